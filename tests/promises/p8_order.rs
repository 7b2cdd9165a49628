//! Overlapping operations take effect in the order of submission, and each of them whole. What
//! could break: a pass over the queue that lets one operation overtake another, an operation that
//! is deferred because of a third, and a write that is seen in part.

use std::fs;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_lite::future::{poll_once, zip};
use mmap_io::{MappedSliceMut, MemoryMappedFile, MmapIoError, MmapMode, Result};

use crate::common::{
    assert_waits, block_on, is_quiet, pattern, patterned, wait_until, with_timeout, HeldQueue,
};

mod model;

#[test]
fn only_overlapping_writes_keep_order() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 1000).await;
        file.update_region(0, &[0; 1000]).await.unwrap();
        let view = file.as_slice(0, 10).unwrap();
        // `first` meets the view, `second` meets `first`, `third` meets `second`.
        let mut first = Box::pin(file.update_region(5, &[1; 20]));
        let mut second = Box::pin(file.update_region(20, &[2; 20]));
        let mut third = Box::pin(file.update_region(35, &[3; 20]));
        assert!(poll_once(&mut first).await.is_none());
        assert!(poll_once(&mut second).await.is_none());
        assert!(poll_once(&mut third).await.is_none());
        file.update_region(100, &[9; 10]).await.unwrap();
        assert!(poll_once(&mut third).await.is_none());
        assert_eq!(file.as_slice(10, 90).unwrap(), [0; 90]);
        drop(view);
        third.await.unwrap();
        // The other two were applied before it.
        let mut expected = [0; 100];
        expected[5..25].fill(1);
        expected[20..40].fill(2);
        expected[35..55].fill(3);
        assert_eq!(file.as_slice(0, 100).unwrap(), expected);
        let (first, second) = zip(first, second).await;
        first.and(second).unwrap();
    });
}

#[test]
fn views_resizes_and_copies_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 1000).await;
        file.update_region(0, &[0; 1000]).await.unwrap();
        let blocker = file.bytes(900, 1).unwrap();
        let copy = dir.path().join("copy");
        let mut write = Box::pin(file.update_region(890, &[1; 20]));
        assert!(poll_once(&mut write).await.is_none());
        let mut shrink = Box::pin(file.resize(895));
        assert!(poll_once(&mut shrink).await.is_none());
        let mut late = Box::pin(file.update_region(899, &[2; 5]));
        assert!(poll_once(&mut late).await.is_none());
        let mut grow = Box::pin(file.resize(2000));
        assert!(poll_once(&mut grow).await.is_none());
        drop(blocker);
        grow.await.unwrap();
        write.await.unwrap();
        shrink.await.unwrap();
        // It was submitted before the growth: its range was cut off.
        assert!(late.await.is_err());
        assert_eq!(file.len(), 2000);
        assert_eq!(
            file.as_slice(890, 10).unwrap(),
            [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
        );
        file.copy_to(&copy).await.unwrap();
        assert_eq!(
            std::fs::read(copy).unwrap(),
            &file.as_slice(0, 2000).unwrap()[..]
        );
    });
}

#[test]
fn try_update_region_does_not_overtake() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 1000).await;
        let before = pattern(1000);
        let view = file.bytes(0, 10).unwrap();
        let mut first = Box::pin(file.update_region(5, &[1; 15]));
        assert_waits(&file, 999, &mut first).await;
        // No view conflicts with these, only the operations that wait.
        assert!(!file.try_update_region(19, &[9; 2]).await.unwrap());
        assert!(file.try_as_slice_mut(19, 2).unwrap().is_none());
        let mut second = Box::pin(file.as_slice_mut(15, 15));
        assert_waits(&file, 999, &mut second).await;
        let parts: [(u64, &[u8]); 2] = [(29, &[3; 5]), (100, &[3; 5])];
        let mut third = Box::pin(file.update_regions(&parts));
        assert_waits(&file, 999, &mut third).await;
        for at in [10, 29, 33, 104] {
            assert!(!file.try_update_region(at, &[9; 1]).await.unwrap(), "{at}");
            assert!(file.try_as_slice_mut(at, 1).unwrap().is_none());
        }
        assert_eq!(file.as_slice(0, 200).unwrap(), &before[..200]);
        // The bytes beside them are free.
        for at in [34, 99, 105] {
            assert!(file.try_update_region(at, &[9; 1]).await.unwrap(), "{at}");
        }
        drop(view);
        with_timeout(first).await.unwrap();
        let mut view = with_timeout(second).await.unwrap();
        assert_eq!(view[..5], [1; 5]);
        view.fill(2);
        assert!(poll_once(&mut third).await.is_none());
        drop(view);
        with_timeout(third).await.unwrap();
        let mut expected = before[..200].to_vec();
        expected[5..20].fill(1);
        expected[15..30].fill(2);
        expected[29..34].fill(3);
        expected[100..105].fill(3);
        for at in [34, 99, 105] {
            expected[at] = 9;
        }
        assert_eq!(file.as_slice(0, 200).unwrap(), &expected[..]);
    });
}

/// A file whose write buffer is full and whose queue is held: the next write waits for room.
async fn with_a_full_buffer<'a>(file: &'a MemoryMappedFile) -> (HeldQueue, Submitted<'a>) {
    let held = HeldQueue::new(file, 0);
    let mut full: Submitted<'a> = Box::pin(async move {
        file.update_region(1, &[1; 100]).await?;
        Ok(Came::Nothing)
    });
    assert!(poll_once(&mut full).await.is_none());
    (held, full)
}

async fn small_buffer(dir: &Path) -> MemoryMappedFile {
    let (path, _) = patterned(dir, 1000).await;
    let builder = MemoryMappedFile::builder(path).mode(MmapMode::ReadWrite);
    builder.write_buffer(100).open().await.unwrap()
}

#[test]
fn unadmitted_write_precedes_later_resize() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = small_buffer(dir.path()).await;
        let (held, full) = with_a_full_buffer(&file).await;
        let mut write = Box::pin(file.update_region(500, &[2; 100]));
        assert!(poll_once(&mut write).await.is_none());
        let mut shrink = Box::pin(file.resize(550));
        assert!(poll_once(&mut shrink).await.is_none());
        let mut grow = Box::pin(file.resize(700));
        assert!(poll_once(&mut grow).await.is_none());
        held.release().await;
        let all = zip(zip(full, write), zip(shrink, grow));
        let ((full, write), (shrink, grow)) = with_timeout(all).await;
        full.unwrap();
        write.and(shrink).and(grow).unwrap();
        let mut expected = [0; 150];
        expected[..50].fill(2);
        assert_eq!(file.as_slice(550 - 50, 150).unwrap(), expected);
        assert_eq!(file.len(), 700);
    });
}

#[test]
fn unadmitted_write_precedes_later_ops() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = small_buffer(dir.path()).await;
        let copy = dir.path().join("copy");
        for withdrawn in [false, true] {
            file.update_region(500, &[0; 100]).await.unwrap();
            let (held, full) = with_a_full_buffer(&file).await;
            let mut write = Box::pin(file.update_region(500, &[2; 100]));
            assert!(poll_once(&mut write).await.is_none());
            assert!(file.try_as_slice_mut(599, 1).unwrap().is_none());
            let mut mutable = Box::pin(async {
                let mut view = file.as_slice_mut(590, 20).await.unwrap();
                let seen = view[0];
                view.fill(3);
                seen
            });
            assert!(poll_once(&mut mutable).await.is_none());
            let parts: [(u64, &[u8]); 2] = [(600, &[4; 20]), (700, &[4; 20])];
            let mut later = Box::pin(file.update_regions(&parts));
            assert!(poll_once(&mut later).await.is_none());
            held.release().await;
            let seen = if withdrawn {
                drop(write);
                with_timeout(zip(full, zip(mutable, later))).await.1 .0
            } else {
                let all = zip(zip(full, write), zip(mutable, later));
                let ((_, write), (seen, later)) = with_timeout(all).await;
                write.and(later).unwrap();
                seen
            };
            let written = if withdrawn { 0 } else { 2 };
            assert_eq!(seen, written);
            let mut expected = [4; 120];
            expected[..90].fill(written);
            expected[90..100].fill(3);
            assert_eq!(file.as_slice(500, 120).unwrap(), expected);
        }

        let (held, full) = with_a_full_buffer(&file).await;
        let mut write = Box::pin(file.update_region(500, &[5; 100]));
        assert!(poll_once(&mut write).await.is_none());
        let mut snapshot = Box::pin(file.copy_to(&copy));
        assert!(poll_once(&mut snapshot).await.is_none());
        let mut later = Box::pin(file.update_region(550, &[6; 100]));
        assert!(poll_once(&mut later).await.is_none());
        held.release().await;
        let all = zip(zip(full, write), zip(snapshot, later));
        let ((_, write), (snapshot, later)) = with_timeout(all).await;
        write.and(snapshot.map(drop)).and(later).unwrap();
        assert_eq!(fs::read(&copy).unwrap()[500..600], [5; 100]);
        assert_eq!(file.as_slice(550, 100).unwrap(), [6; 100]);
    });
}

#[test]
fn readmitted_writes_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = small_buffer(dir.path()).await;
        let view = file.bytes(10, 1).unwrap();
        let copies: Vec<[u8; 60]> = (0..20).map(|byte| [byte; 60]).collect();
        let mut line: Vec<Submitted<'_>> = Vec::new();
        // Each overlaps the one before it, and all except the first find no room for blocked
        // writes.
        for (number, data) in copies.iter().enumerate() {
            let (file, at) = (&file, 10 + number as u64 * 20);
            line.push(Box::pin(async move {
                file.update_region(at, data).await?;
                Ok(Came::Nothing)
            }));
            let write = line.last_mut().unwrap();
            assert!(poll_once(write).await.is_none());
            let rest = [number as u8; 100];
            with_timeout(file.update_region(900, &rest)).await.unwrap();
        }
        // The futures are awaited one after the other; no future has to be polled for another to
        // proceed.
        drop(view);
        for write in line {
            with_timeout(write).await.unwrap();
        }
        let mut expected = [19; 20 * 19 + 60];
        for (number, part) in expected.chunks_mut(20).enumerate() {
            part.fill(number.min(19) as u8);
        }
        assert_eq!(file.as_slice(10, 20 * 19 + 60).unwrap(), expected);
        wait_until(&file, is_quiet).await;
    });
}

#[test]
fn write_cut_by_earlier_shrink_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 10_000).await;
        let before = pattern(10_000);
        let view = file.bytes(9_500, 1).unwrap();
        let mut shrink = Box::pin(file.resize(9_000));
        assert_waits(&file, 0, &mut shrink).await;
        let parts: [(u64, &[u8]); 3] = [(100, b"part"), (9_100, b"part"), (200, b"part")];
        let mut many = Box::pin(file.update_regions(&parts));
        let mut one = Box::pin(file.update_region(8_990, &[1; 20]));
        let mut owned = Box::pin(file.write_bytes(4_000, Bytes::from(vec![1; 5_001])));
        let mut mutable = Box::pin(file.as_slice_mut(8_999, 2));
        assert_waits(&file, 0, &mut many).await;
        assert_waits(&file, 0, &mut one).await;
        assert_waits(&file, 0, &mut owned).await;
        assert_waits(&file, 0, &mut mutable).await;
        drop(view);
        with_timeout(shrink).await.unwrap();
        let failed = [
            with_timeout(many).await,
            with_timeout(one).await,
            with_timeout(owned).await,
            with_timeout(mutable).await.map(drop),
        ];
        for failed in failed {
            let total = match failed.unwrap_err() {
                MmapIoError::OutOfBounds { total, .. } => total,
                error => panic!("{error:?}"),
            };
            assert_eq!(total, 9_000);
        }
        assert_eq!(file.as_slice(1, 8_999).unwrap(), &before[1..9_000]);
        assert_eq!(fs::read(&path).unwrap()[1..], before[1..9_000]);
        assert_eq!(file.stats().write_errors, 3);
    });
}

#[test]
fn reader_sees_whole_writes() {
    // Across pages, across blocks of the lease table, and of more than a mebibyte, for which
    // `as_slice` does not wait.
    for (offset, len, turns) in [(10, 5_000, 300), (30_000, 40_000, 200), (1, 1_500_000, 10)] {
        let dir = tempfile::tempdir().unwrap();
        let file = block_on(MemoryMappedFile::create_rw(
            dir.path().join("data"),
            2_000_000,
        ));
        let file = file.unwrap();
        let is_over = AtomicBool::new(false);
        // Endless reads may starve a write, which this test does not examine.
        let lets_writes_through = |file: &MemoryMappedFile| {
            let long = Duration::from_millis(100);
            while file
                .stats()
                .oldest_blocked
                .is_some_and(|since| since > long)
            {
                std::thread::yield_now();
            }
        };
        let check = |view: &[u8]| {
            assert_eq!(view.len(), len);
            // Each byte equals the next. This is quick, since endless long reads do starve a write.
            assert!(
                view[1..] == view[..len - 1],
                "a reader saw a part of a write"
            );
        };
        std::thread::scope(|threads| {
            for reader in 0..3 {
                let (file, is_over) = (&file, &is_over);
                threads.spawn(move || {
                    let len = len as u64;
                    while !is_over.load(Ordering::Relaxed) {
                        lets_writes_through(file);
                        match reader {
                            0 => match file.as_slice(offset, len) {
                                Err(MmapIoError::Busy { .. }) if len > 1 << 20 => {}
                                slice => check(&slice.unwrap()),
                            },
                            1 => check(&block_on(file.slice(offset, len)).unwrap()),
                            _ => {
                                if let Some(slice) = file.try_as_slice(offset, len).unwrap() {
                                    check(&slice);
                                }
                            }
                        }
                    }
                });
            }
            let write = async {
                for turn in 0..turns {
                    let data = vec![turn as u8; len];
                    let (before, after) = data.split_at(len / 3);
                    let parts = [(offset, before), (offset + before.len() as u64, after)];
                    match turn % 3 {
                        0 => file.update_region(offset, &data).await.unwrap(),
                        1 => file.update_regions(&parts).await.unwrap(),
                        _ => file.write_bytes(offset, data.into()).await.unwrap(),
                    }
                }
            };
            // The readers end also if the write fails, so that the failure is reported.
            let written =
                std::panic::catch_unwind(AssertUnwindSafe(|| block_on(with_timeout(write))));
            is_over.store(true, Ordering::Relaxed);
            written.unwrap();
        });
    }
}

enum Came<'a> {
    Nothing,
    Mutable(MappedSliceMut<'a>),
    Copied(Vec<u8>),
}

type Submitted<'a> = Pin<Box<dyn Future<Output = Result<Came<'a>>> + 'a>>;
