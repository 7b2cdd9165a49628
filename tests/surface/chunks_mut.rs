//! Changing a whole file chunk by chunk: one exclusive view, steps that can be dropped in between.

use std::cell::Cell;
use std::future::{poll_fn, Future};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;
use std::pin::{pin, Pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use mmap_io::iterator::ChunkIteratorMut;
use mmap_io::{FlushPolicy, MemoryMappedFile, MmapIoError};

use crate::common::{
    block_on, pattern, patterned, poll_once, rt_test, wait_until, with_timeout, TIMEOUT,
};

/// How many bytes are made writable by one job on the pool.
const STEP: u64 = 4 << 20;

async fn zeroes(dir: &Path, len: u64) -> MemoryMappedFile {
    let path = dir.join("zeroes");
    MemoryMappedFile::create_rw(path, len).await.unwrap()
}

rt_test!(chunks_mut_covers_file_in_order, |dir| {
    let (_, file) = patterned(dir, 100_000).await;
    let mut chunks = Vec::new();
    let step = 7_u8;
    file.chunks_mut(30_000)
        .for_each_mut(|offset, chunk| {
            chunks.push((offset, chunk.len()));
            chunk
                .iter_mut()
                .for_each(|byte| *byte = byte.wrapping_add(step));
            Ok(())
        })
        .await
        .unwrap();
    let expected = [
        (0, 30_000),
        (30_000, 30_000),
        (60_000, 30_000),
        (90_000, 10_000),
    ];
    assert_eq!(chunks, expected);
    let content = file.as_slice(0, 100_000).unwrap();
    assert!(content
        .iter()
        .zip(pattern(100_000))
        .all(|(now, old)| *now == old.wrapping_add(7)));
    assert_eq!(file.pending_bytes(), 100_000);
});

#[test]
fn every_chunk_size_covers_file() {
    const LEN: usize = 10_001;
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), LEN).await;
        for size in [1, 7, 4096, LEN - 1, LEN, LEN + 1, usize::MAX] {
            let mut expected = file.as_slice(0, LEN as u64).unwrap().to_vec();
            for (number, chunk) in expected.chunks_mut(size).enumerate() {
                chunk.fill(number as u8 ^ size as u8);
            }
            let mut at = 0;
            let changed = file.chunks_mut(size).for_each_mut(|offset, chunk| {
                assert_eq!(offset, at);
                chunk.fill((at / size as u64) as u8 ^ size as u8);
                at += chunk.len() as u64;
                Ok(())
            });
            changed.await.unwrap();
            assert_eq!(at, LEN as u64);
            assert!(file.as_slice(0, LEN as u64).unwrap() == expected[..]);
        }
    });
}

#[test]
#[cfg_attr(windows, ignore = "Windows cuts no mapped file")]
fn chunks_mut_checks_mode_first() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 100).await;
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        for size in [0, 10] {
            let refused = reader
                .chunks_mut(size)
                .for_each_mut(|_, _| panic!("called"));
            assert!(matches!(refused.await, Err(MmapIoError::InvalidMode(_))));
        }
        let nothing = file.chunks_mut(0).for_each_mut(|_, _| panic!("called"));
        nothing.await.unwrap();
        // The length is that at the call.
        let chunks: ChunkIteratorMut<'_> = file.chunks_mut(10);
        file.resize(99).await.unwrap();
        let refused = chunks.for_each_mut(|_, _| panic!("called")).await;
        assert!(
            matches!(refused, Err(MmapIoError::OutOfBounds { .. })),
            "{refused:?}"
        );
    });
}

#[test]
fn first_error_stops_chunks() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = zeroes(dir.path(), 10_000).await;
        let fill = |offset: u64, chunk: &mut [u8]| {
            chunk.fill(1);
            offset < 4000
        };
        let stopped = file.chunks_mut(2000).for_each_mut(|offset, chunk| {
            let problem = std::io::Error::other("stop");
            fill(offset, chunk).then_some(()).ok_or(problem.into())
        });
        // As it is: no word is added.
        assert_eq!(stopped.await.unwrap_err().to_string(), "stop");
        assert_eq!(file.pending_bytes(), 6000);
        assert_eq!(file.as_slice(5999, 2).unwrap(), [1, 0]);
        file.flush().await.unwrap();

        let stopped = file
            .chunks_mut(2000)
            .for_each_mut_legacy(|offset, chunk| fill(offset, chunk).then_some(()).ok_or("stop"));
        assert_eq!(stopped.await.unwrap(), Err("stop"));
        assert_eq!(file.pending_bytes(), 6000);
        let all = file
            .chunks_mut(2000)
            .for_each_mut_legacy(|_, _| Ok::<_, ()>(()));
        assert_eq!(all.await.unwrap(), Ok(()));
        assert_eq!(file.pending_bytes(), 10_000);
        let reader = MemoryMappedFile::open_ro(file.path()).await.unwrap();
        let refused = reader
            .chunks_mut(1)
            .for_each_mut_legacy(|_, _| Ok::<_, ()>(()));
        assert!(matches!(refused.await, Err(MmapIoError::InvalidMode(_))));
    });
}

#[test]
fn closure_need_not_be_send() {
    fn sendable<F: Future + Send>(future: F) -> F {
        future
    }
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = zeroes(dir.path(), 1000).await;
        let mut calls = 0;
        sendable(file.chunks_mut(100).for_each_mut(|_, _| {
            calls += 1;
            Ok(())
        }))
        .await
        .unwrap();
        let shared = Rc::new(Cell::new(calls));
        let changing = file.chunks_mut(100).for_each_mut(|_, chunk| {
            shared.set(shared.get() + chunk.len());
            Ok(())
        });
        changing.await.unwrap();
        assert_eq!(shared.get(), 1010);
    });
}

#[test]
fn chunks_mut_excludes_others() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 20_000).await;
        let other = MemoryMappedFile::open_ro(&path).await.unwrap();
        let plain = std::fs::read(&path).unwrap();
        // It waits for a view of any byte, and nothing was called before.
        let view = other.bytes(10_000, 1).unwrap();
        let spare = MemoryMappedFile::open_rw(&path).await.unwrap();
        let is_busy = |at| {
            let busy = |file: &MemoryMappedFile| {
                matches!(file.as_slice(at, 1), Err(MmapIoError::Busy { .. }))
            };
            busy(&file) && busy(&other) && spare.try_as_slice_mut(at, 1).unwrap().is_none()
        };
        let mut calls = 0;
        let mut changing = Box::pin(file.chunks_mut(4096).for_each_mut(|offset, chunk| {
            calls += 1;
            // All chunks, also those that were changed and those that follow.
            assert!([0, offset, 19_999].into_iter().all(is_busy));
            chunk.fill(9);
            Ok(())
        }));
        assert!(poll_once(&mut changing).await.is_none());
        assert!(poll_once(&mut changing).await.is_none());
        assert_eq!(view[..], plain[10_000..10_001]);
        drop(view);
        with_timeout(&mut changing).await.unwrap();
        drop(changing);
        assert_eq!(calls, 5);
        assert!(!is_busy(0));
        assert_eq!(other.as_slice(0, 20_000).unwrap(), [9; 20_000]);
    });
}

#[test]
fn chunks_mut_takes_its_turn() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = zeroes(dir.path(), 10_000).await;
        file.resize(20_000).await.unwrap();
        let chunks = file.chunks_mut(1000);
        let view = file.bytes(0, 10_000).unwrap();
        let mut first = Box::pin(file.update_region(0, &[1; 1000]));
        assert!(poll_once(&mut first).await.is_none());
        let mut second = Box::pin(chunks.for_each_mut(|offset, chunk| {
            if offset == 0 {
                assert_eq!(chunk, [1; 1000]);
            }
            chunk.fill(2);
            Ok(())
        }));
        assert!(poll_once(&mut second).await.is_none());
        let mut third = Box::pin(file.update_region(0, &[3; 500]));
        assert!(poll_once(&mut third).await.is_none());
        drop(view);
        let (first, second, third) = with_timeout(async {
            let all = futures_lite::future::zip(first, second);
            let ((first, second), third) = futures_lite::future::zip(all, third).await;
            (first, second, third)
        })
        .await;
        assert!(first.is_ok() && second.is_ok() && third.is_ok());
        assert_eq!(file.as_slice(0, 500).unwrap(), [3; 500]);
        assert_eq!(file.as_slice(500, 19_500).unwrap(), [2; 19_500]);
    });
}

#[test]
fn panic_in_closure_frees_lease() {
    let dir = tempfile::tempdir().unwrap();
    let file = block_on(zeroes(dir.path(), 10_000));
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        block_on(file.chunks_mut(1000).for_each_mut(|offset, chunk| {
            chunk.fill(1);
            assert!(offset < 3000, "on purpose");
            Ok(())
        }))
    }));
    assert!(panicked.is_err());
    assert_eq!(file.stats().views, 0);
    assert_eq!(file.pending_bytes(), 4000);
    assert!(file.try_as_slice_mut(0, 10_000).unwrap().is_some());
    block_on(async {
        with_timeout(file.update_region(0, &[2; 10_000]))
            .await
            .unwrap();
        file.flush().await.unwrap();
    });
}

/// Polls whenever it is woken, until `is_enough` of the number of polls; returns whether it has
/// completed.
fn advance<F: Future<Output = mmap_io::Result<()>>>(
    mut future: Pin<&mut F>,
    is_enough: impl Fn(usize) -> bool,
) -> bool {
    let (woken, waker) = parking::pair();
    let waker = waker.into();
    for polls in 0.. {
        if is_enough(polls) {
            break;
        }
        if let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            result.unwrap();
            return true;
        }
        assert!(woken.park_timeout(TIMEOUT), "it was not woken");
    }
    false
}

#[test]
fn dropped_chunks_mut_keeps_its_steps() {
    const CHUNK: u64 = STEP / 2;
    const LEN: u64 = STEP + CHUNK + 1;
    let dir = tempfile::tempdir().unwrap();
    // Drops it when `is_enough` of the polls and the changed bytes; returns the latter, and whether
    // it had completed.
    let dropped = |is_enough: &dyn Fn(usize, u64) -> bool| {
        let file = block_on(zeroes(dir.path(), LEN));
        let changed = Cell::new(0);
        let is_done = {
            let changing = file.chunks_mut(CHUNK as usize).for_each_mut(|_, chunk| {
                changed.set(changed.get() + chunk.len() as u64);
                chunk.fill(1);
                Ok(())
            });
            advance(pin!(changing), |polls| is_enough(polls, changed.get()))
        };
        let changed = changed.get();
        assert_eq!(file.pending_bytes(), changed);
        block_on(async {
            // Nothing is leased, and no operation is left.
            let mut everything = with_timeout(file.as_slice_mut(0, LEN)).await.unwrap();
            let (before, after) = everything.split_at_mut(changed as usize);
            assert!(*before == vec![1; before.len()]);
            assert!(*after == vec![0; after.len()]);
            drop(everything);
            assert_eq!((file.stats().views, file.stats().queued_writes), (0, 0));
            file.close().await.unwrap();
        });
        (changed, is_done)
    };
    for most in 0.. {
        if dropped(&|polls, _| polls >= most).1 {
            break;
        }
        assert!(most < 100, "it does not end");
    }
    // Between any two chunks, as each of them ends in a yield. Before the first one there may be
    // none, if the pool is quick.
    for calls in 1..=4 {
        let expected = LEN.min(calls * CHUNK);
        let (changed, _) = dropped(&|_, changed| changed >= expected);
        assert_eq!(changed, expected);
    }
}

#[test]
#[cfg_attr(windows, ignore = "Windows cuts no mapped file")]
fn file_grows_under_chunks_mut() {
    const LEN: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = zeroes(dir.path(), LEN).await;
        let calls = Cell::new(0);
        let mut changing = Box::pin(file.chunks_mut(1 << 16).for_each_mut(|_, chunk| {
            calls.set(calls.get() + 1);
            chunk.fill(calls.get());
            Ok(())
        }));
        // Some chunks are changed in one map, and others when the file has another.
        for grown in [LEN * 8, LEN * 64] {
            let before = calls.get();
            while calls.get() == before {
                assert!(poll_once(&mut changing).await.is_none());
                std::thread::yield_now();
            }
            with_timeout(file.resize(grown)).await.unwrap();
        }
        let mut shrink = Box::pin(file.resize(LEN / 2));
        assert!(poll_once(&mut shrink).await.is_none());
        wait_until(&file, |stats| stats.oldest_blocked.is_some()).await;
        with_timeout(&mut changing).await.unwrap();
        drop(changing);
        assert_eq!(calls.get(), 16);
        // The lease has ended, and so the shrink goes on.
        with_timeout(shrink).await.unwrap();
        let content = file.as_slice(0, LEN / 2).unwrap();
        let expected = (0..LEN / 2).map(|at| (at >> 16) as u8 + 1);
        assert!(content.iter().copied().eq(expected));
    });
}

#[test]
fn chunks_mut_flushes_by_policy() {
    let dir = tempfile::tempdir().unwrap();
    let changed = |policy, len: usize| {
        let path = dir.path().join("data");
        block_on(async move {
            let builder = MemoryMappedFile::builder(path).size(10_000);
            let file = builder.flush_policy(policy).create().await.unwrap();
            let changed = file.chunks_mut(1000).for_each_mut_legacy(|offset, chunk| {
                chunk.fill(1);
                (offset + 1000 < len as u64).then_some(()).ok_or(())
            });
            let _ = changed.await.unwrap();
            (file.pending_bytes(), file.stats().flushed_waiters)
        })
    };
    assert_eq!(changed(FlushPolicy::Never, 10_001), (10_000, 0));
    assert_eq!(changed(FlushPolicy::Always, 10_001), (0, 1));
    assert_eq!(changed(FlushPolicy::EveryBytes(10_000), 10_001), (0, 1));
    assert_eq!(
        changed(FlushPolicy::EveryBytes(10_001), 10_001),
        (10_000, 0)
    );
    // All chunks are one write.
    assert_eq!(changed(FlushPolicy::EveryWrites(1), 10_001), (0, 1));
    assert_eq!(changed(FlushPolicy::EveryWrites(2), 10_001), (10_000, 0));
}

#[test]
fn chunks_mut_yields_to_other_tasks() {
    /// How often a future returns to its executor.
    async fn turns(changing: impl Future<Output = mmap_io::Result<()>>) -> u64 {
        let mut changing = pin!(changing);
        let mut turns = 0;
        poll_fn(|context| {
            let polled = changing.as_mut().poll(context);
            turns += 1;
            polled
        })
        .await
        .unwrap();
        turns
    }
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = zeroes(dir.path(), 1 << 20).await;
        let small = turns(file.chunks_mut(64).for_each_mut(|_, _| Ok(()))).await;
        assert!(small >= (1 << 20) / 64 / 128, "{small} turns");
        let large = turns(file.chunks_mut(1 << 16).for_each_mut(|_, _| Ok(()))).await;
        assert!(large >= 16, "{large} turns");
    });
}

#[cfg(target_os = "linux")]
mod disks {
    use super::*;
    use crate::common::disk::{assert_full, truncate, Disk, MIB};

    #[test]
    fn full_disk_keeps_steps_before() {
        const SIZE: u64 = 10 * MIB;
        let Some(disk) = Disk::tmpfs("full_disk_keeps_steps_before", SIZE) else {
            return;
        };
        block_on(async {
            let path = disk.path("data");
            let file = MemoryMappedFile::create_rw(path, 2 * SIZE).await.unwrap();
            let mut changed = 0;
            let full = file.chunks_mut(1 << 20).for_each_mut(|_, chunk| {
                chunk.fill(1);
                changed += chunk.len() as u64;
                Ok(())
            });
            assert_full(full.await);
            assert_eq!(changed, 2 * STEP);
            assert_eq!(file.pending_bytes(), changed);
            let kept = file.slice(0, changed).await.unwrap();
            assert!(kept.iter().all(|byte| *byte == 1));
        });
    }

    #[test]
    fn truncated_step_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let file = zeroes(dir.path(), 3 * STEP).await;
            truncate(file.path(), STEP + 100);
            let mut changed = 0;
            let cut = file.chunks_mut(1 << 20).for_each_mut(|_, chunk| {
                chunk.fill(1);
                changed += chunk.len() as u64;
                Ok(())
            });
            let cut = cut.await;
            assert!(matches!(cut, Err(MmapIoError::Truncated { .. })), "{cut:?}");
            assert_eq!(changed, STEP);
        });
    }
}
