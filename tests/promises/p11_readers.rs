//! No reader waits for a writer that waits; and short reads do not starve it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Instant;

use futures_lite::future::poll_once;

use crate::common::{alone, patterned, until, SOON};

#[test]
fn readers_go_on_while_a_write_waits_for_a_slow_one() {
    let dir = tempfile::tempdir().unwrap();
    alone(async {
        let (_, file) = patterned(dir.path(), 10_000).await;
        let slow = file.bytes(0, 10_000).unwrap();
        let mut write = Box::pin(file.update_region(0, &[1; 10_000]));
        assert!(poll_once(&mut write).await.is_none());
        until(&file, |stats| stats.oldest_blocked.is_some()).await;
        for _ in 0..10_000 {
            assert_eq!(file.as_slice(100, 10).unwrap(), slow[100..110]);
            assert!(file.try_as_slice(100, 10).unwrap().is_some());
        }
        assert_eq!(file.slice(100, 10).await.unwrap(), slow[100..110]);
        drop(file.bytes(0, 1).unwrap());
        drop(slow);
        write.await.unwrap();
    });
}

#[test]
fn a_stream_of_short_reads_does_not_starve_a_write() {
    let dir = tempfile::tempdir().unwrap();
    let (_, file) = alone(patterned(dir.path(), 10_000));
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (file, stop) = (file.clone(), stop.clone());
            std::thread::spawn(move || {
                // There is always one view: the next is taken before the last is dropped.
                let begin = Instant::now();
                let mut view = file.as_slice(0, 100).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    assert!(begin.elapsed() < SOON, "a write was starved");
                    view = file.as_slice(0, 100).unwrap();
                    drop(view);
                    view = file.as_slice(0, 100).unwrap();
                }
                drop(view);
            })
        })
        .collect();
    alone(async {
        for turn in 0..5 {
            file.update_region(50, &[turn; 10]).await.unwrap();
        }
    });
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
}
