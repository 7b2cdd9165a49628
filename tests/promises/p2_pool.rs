//! No pool thread waits: thousands of writes that wait for one view take none of them. (The whole
//! suite also passes with a pool of one thread.)

use std::future::Future;
use std::pin::Pin;
use std::task::Poll;

use futures_lite::future::poll_fn;
use mmap_io::MemoryMappedFile;

use crate::common::{alone, is_quiet, patterned, until};

#[test]
fn two_thousand_writers_wait_for_a_view_and_another_file_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    alone(async {
        let (_, file) = patterned(dir.path(), 10_000).await;
        let other = MemoryMappedFile::create_rw(dir.path().join("other"), 100)
            .await
            .unwrap();
        let view = file.bytes(0, 10_000).unwrap();
        let mut writers: Vec<Pin<Box<dyn Future<Output = _>>>> = Vec::new();
        for at in 0..2000_u64 {
            let file = file.clone();
            writers.push(Box::pin(async move {
                file.update_region(at, &[at as u8 | 1]).await
            }));
        }
        let mut all = poll_fn(move |context| {
            writers.retain_mut(|writer| writer.as_mut().poll(context).is_pending());
            match writers.is_empty() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        });
        assert!(futures_lite::future::poll_once(&mut all).await.is_none());
        other.update_region_async(0, b"durable").await.unwrap();
        until(&file, |stats| {
            stats.queued_writes == 2000 && stats.oldest_blocked.is_some()
        })
        .await;
        drop(view);
        all.await;
        until(&file, is_quiet).await;
        for at in 0..2000 {
            assert_eq!(file.as_slice(at, 1).unwrap(), [at as u8 | 1]);
        }
    });
}
