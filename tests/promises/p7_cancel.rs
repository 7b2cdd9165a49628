//! All or nothing: whatever future is dropped, after however many polls, nothing is torn, leaked or
//! stuck.

use std::future::Future;
use std::pin::Pin;

use futures_lite::future::{poll_once, yield_now};
use mmap_io::MemoryMappedFile;

use crate::common::{alone, is_quiet, patterned, until};

type Made<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

#[test]
fn every_future_may_be_dropped_after_every_poll() {
    let dir = tempfile::tempdir().unwrap();
    let names: [&dyn Fn(&MemoryMappedFile) -> Made<'_>; 12] = [
        &|file| Box::pin(async { file.update_region(10, &[1; 3000]).await.unwrap() }),
        &|file| Box::pin(async { file.update_region_async(10, &[2; 3000]).await.unwrap() }),
        &|file| {
            Box::pin(async {
                let part = [3; 1000];
                let parts = [(10, &part[..]), (1010, &part[..]), (2010, &part[..])];
                file.update_regions_async(&parts).await.unwrap();
            })
        },
        &|file| Box::pin(async { file.write_bytes(10, vec![4; 3000].into()).await.unwrap() }),
        &|file| Box::pin(async { assert!(file.try_update_region(10, &[5; 3000]).await.unwrap()) }),
        &|file| Box::pin(async { file.as_slice_mut(10, 3000).await.unwrap().fill(6) }),
        &|file| {
            Box::pin(async {
                file.as_slice_mut(0, 5000)
                    .await
                    .unwrap()
                    .commit()
                    .await
                    .unwrap()
            })
        },
        &|file| Box::pin(async { drop(file.slice(0, 9000).await.unwrap()) }),
        &|file| Box::pin(async { drop(file.read_bytes(0, 9000).await.unwrap()) }),
        &|file| Box::pin(async { file.flush().await.unwrap() }),
        &|file| Box::pin(async { file.resize(file.len() + 1).await.unwrap() }),
        &|file| {
            Box::pin(async {
                file.copy_to(file.path().with_extension("copy"))
                    .await
                    .unwrap();
            })
        },
    ];
    alone(async {
        let (_, file) = patterned(dir.path(), 10_000).await;
        file.update_region(0, &[0; 10_000]).await.unwrap();
        for (number, make) in names.iter().enumerate() {
            for polls in 0..40 {
                let mut future = make(&file);
                let mut is_done = false;
                for _ in 0..polls {
                    is_done = is_done || poll_once(&mut future).await.is_some();
                    if is_done {
                        break;
                    }
                    std::thread::yield_now();
                    yield_now().await;
                }
                drop(future);
                until(&file, is_quiet).await;
                {
                    let view = file.as_slice_mut(10, 3000).await.unwrap();
                    let whole = view.iter().all(|byte| *byte == view[0]);
                    assert!(whole, "operation {number} was torn after {polls} polls");
                }
            }
            make(&file).await;
        }
    });
}

#[test]
fn a_write_that_was_dropped_in_the_queue_is_never_applied() {
    let dir = tempfile::tempdir().unwrap();
    alone(async {
        let (_, file) = patterned(dir.path(), 1000).await;
        file.update_region(0, &[0; 1000]).await.unwrap();
        let view = file.bytes(0, 10).unwrap();
        let mut dropped = Box::pin(file.update_region(5, &[1; 100]));
        // Behind it, over bytes that the view does not hold.
        let mut behind = Box::pin(file.update_region(50, &[2; 10]));
        assert!(poll_once(&mut dropped).await.is_none());
        assert!(poll_once(&mut behind).await.is_none());
        until(&file, |stats| stats.oldest_blocked.is_some()).await;
        drop(dropped);
        behind.await.unwrap();
        drop(view);
        file.flush().await.unwrap();
        let mut expected = [0; 1000];
        expected[50..60].fill(2);
        assert_eq!(file.as_slice(0, 1000).unwrap(), expected);
        until(&file, is_quiet).await;
    });
}
