//! Queued write data is bounded, first come, first served. What could break: a limit that is
//! exceeded when many threads write at once, a newcomer that overtakes the waiters, bytes that are
//! never returned to the budget, so that a file accepts no more writes, and writes that wait for
//! the room of writes that a view blocks.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_lite::future::{poll_once, zip};
use mmap_io::{MemoryMappedFile, MmapIoError, MmapMode, Result, Stats};

use crate::common::{
    assert_waits, block_on, is_quiet, patterned, wait_until, with_timeout, HeldQueue,
};

type Made = Pin<Box<dyn Future<Output = Result<()>>>>;

/// The bytes that a write of one range counts in addition to its data.
const OWN: usize = 512;

/// A file of 10,000 bytes whose buffer has room for `writes` writes of one range, with `bytes`
/// bytes in total.
async fn with_room(dir: &Path, writes: usize, bytes: usize) -> MemoryMappedFile {
    limited(dir, writes * OWN + bytes).await
}

/// A file of 10,000 bytes with a write buffer of `limit` bytes.
async fn limited(dir: &Path, limit: usize) -> MemoryMappedFile {
    let (path, _file) = patterned(dir, 10_000).await;
    let builder = MemoryMappedFile::builder(path).mode(MmapMode::ReadWrite);
    builder.write_buffer(limit).open().await.unwrap()
}

/// A write to the first bytes.
fn write(file: &MemoryMappedFile, byte: u8, len: usize) -> Made {
    let file = file.clone();
    Box::pin(async move { file.update_region(0, &vec![byte; len]).await })
}

/// Submits a write that has to wait, in the queue or for room in it.
async fn submit(line: &mut Vec<Made>, mut write: Made) {
    assert!(poll_once(&mut write).await.is_none());
    line.push(write);
}

async fn poll_all(line: &mut [Made]) {
    for write in line {
        assert!(poll_once(write).await.is_none());
    }
}

/// Polls all of them, as their tasks would, until the statistics satisfy `is_so`.
async fn poll_until(file: &MemoryMappedFile, line: &mut [Made], is_so: impl Fn(&Stats) -> bool) {
    let look = async {
        while !is_so(&file.stats()) {
            poll_all(line).await;
            futures_lite::future::yield_now().await;
        }
    };
    with_timeout(look).await;
}

#[test]
fn writers_wait_for_room_in_order() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = with_room(dir.path(), 3, 1000).await;
        let view = file.bytes(0, 10_000).unwrap();
        let mut line = Vec::new();
        for turn in 0..50 {
            submit(&mut line, write(&file, turn, 300)).await;
            // Some are queued, and the queue knows that some are blocked.
            assert!(file.stats().queued_bytes <= 2000);
        }
        let full = |stats: &Stats| (stats.queued_bytes, stats.queued_writes);
        poll_until(&file, &mut line, |stats| full(stats) == (900, 50)).await;
        // Two writes that are dropped leave their room to the next.
        drop(line.drain(..2));
        poll_until(&file, &mut line, |stats| full(stats) == (900, 48)).await;
        drop(view);
        for write in line {
            with_timeout(write).await.unwrap();
        }
        assert_eq!(file.as_slice(0, 300).unwrap(), [49; 300]);
        // A write that is larger than the buffer is admitted alone.
        with_timeout(file.update_region(0, &[7; 5000]))
            .await
            .unwrap();
        wait_until(&file, is_quiet).await;
    });
}

#[test]
fn appends_take_room_like_other_writes() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = with_room(dir.path(), 2, 1000).await;
        let held = HeldQueue::new(&file, 9_999);
        let data = [7; 900];
        let mut first = std::pin::pin!(file.append(&data));
        assert!(poll_once(&mut first).await.is_none());
        assert_eq!(file.stats().queued_bytes, 900);
        assert!(!file.try_update_region(0, &data[..200]).await.unwrap());
        let mut second = std::pin::pin!(file.append(&data));
        assert!(poll_once(&mut second).await.is_none());
        assert_eq!(file.stats().queued_bytes, 900);
        held.release().await;
        let (first, second) = with_timeout(zip(first, second)).await;
        assert_eq!((first.unwrap(), second.unwrap()), (10_000, 10_900));
        assert_eq!(file.as_slice(10_000, 1800).unwrap(), [7; 1800]);
        wait_until(&file, is_quiet).await;
    });
}

#[test]
fn newcomer_does_not_overtake_notified_waiter() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = with_room(dir.path(), 3, 100).await;
        let held = HeldQueue::new(&file, 9_999);
        let mut line = Vec::new();
        for (byte, len) in [(1, 50), (2, 40), (3, 50)] {
            submit(&mut line, write(&file, byte, len)).await;
        }
        // This write would fit if the third did not wait before it.
        submit(&mut line, write(&file, 4, 10)).await;
        assert_eq!(
            file.stats().queued_bytes,
            90,
            "a newcomer overtook a waiting write"
        );
        // Room for both. It belongs to them, although they have not been polled again when a
        // newcomer arrives.
        drop(line.remove(0));
        submit(&mut line, write(&file, 5, 10)).await;
        assert_eq!(file.stats().queued_bytes, 100);
        poll_all(&mut line).await;
        assert_eq!(file.stats().queued_bytes, 100);
        held.release().await;
        for write in line {
            with_timeout(write).await.unwrap();
        }
        assert_eq!(
            file.as_slice(0, 10).unwrap(),
            [5; 10],
            "expected the newest write to be applied last"
        );
    });
}

#[test]
fn oversized_write_is_admitted_alone() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        for limit in [0, 1, 100] {
            let file = limited(dir.path(), limit).await;
            let held = HeldQueue::new(&file, 9_999);
            let mut line = Vec::new();
            submit(&mut line, write(&file, 1, 1)).await;
            submit(&mut line, write(&file, 2, 5000)).await;
            // Small writes do not keep it out forever.
            submit(&mut line, write(&file, 3, 1)).await;
            assert_eq!(file.stats().queued_bytes, 1);
            drop(line.remove(0));
            poll_all(&mut line).await;
            assert_eq!(file.stats().queued_bytes, 5000);
            held.release().await;
            for write in line {
                with_timeout(write).await.unwrap();
            }
            let (first, rest) = (file.as_slice(0, 1), file.as_slice(1, 4999));
            assert_eq!(first.unwrap(), [3]);
            assert_eq!(rest.unwrap(), [2; 4999]);
            wait_until(&file, is_quiet).await;
        }
    });
}

#[test]
fn blocked_writes_have_their_own_limit() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = with_room(dir.path(), 1, 1000).await;
        let view = file.bytes(0, 10).unwrap();
        let mut line = Vec::new();
        // One of them as large as the buffer, and more.
        submit(&mut line, write(&file, 1, 5000)).await;
        wait_until(&file, |stats| stats.oldest_blocked.is_some()).await;
        for byte in 2..20 {
            submit(&mut line, write(&file, byte, 600)).await;
            // The other writes can use the whole buffer.
            with_timeout(file.update_region(6000, &[byte; 1000]))
                .await
                .unwrap();
            poll_all(&mut line).await;
            assert!(file.stats().queued_bytes <= 6000);
        }
        poll_until(&file, &mut line, |stats| stats.queued_bytes == 5000).await;
        // The first is dropped: one of the writes that were sent back takes its room.
        drop(line.remove(0));
        poll_until(&file, &mut line, |stats| stats.queued_bytes == 600).await;
        drop(view);
        for write in line {
            with_timeout(write).await.unwrap();
        }
        assert_eq!(file.as_slice(0, 600).unwrap(), [19; 600]);
        assert_eq!(file.as_slice(6000, 1000).unwrap(), [19; 1000]);
        wait_until(&file, is_quiet).await;
    });
}

#[test]
fn readmitted_bytes_stay_whole() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = with_room(dir.path(), 1, 100).await;
        let view = file.bytes(0, 10).unwrap();
        let mut line = Vec::new();
        submit(&mut line, write(&file, 1, 100)).await;
        wait_until(&file, |stats| stats.oldest_blocked.is_some()).await;
        for byte in 2..5 {
            let (file, data) = (file.clone(), vec![byte; 100]);
            let write = async move { file.write_bytes(5, data.into()).await };
            submit(&mut line, Box::pin(write)).await;
        }
        poll_until(&file, &mut line, |stats| stats.queued_bytes == 100).await;
        drop(view);
        for write in line {
            with_timeout(write).await.unwrap();
        }
        assert_eq!(file.as_slice(0, 5).unwrap(), [1; 5]);
        assert_eq!(file.as_slice(5, 100).unwrap(), [4; 100]);
    });
}

#[test]
fn small_writes_count_their_overhead() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = with_room(dir.path(), 10, 10).await;
        let _view = file.bytes(0, 10).unwrap();
        let mut line = Vec::new();
        for _ in 0..100 {
            submit(&mut line, write(&file, 1, 1)).await;
            assert!(file.stats().queued_bytes <= 20);
        }
        let full = |stats: &Stats| (stats.queued_bytes, stats.queued_writes);
        poll_until(&file, &mut line, |stats| full(stats) == (10, 100)).await;
        // The ranges of one write count likewise.
        line.clear();
        let parts: Vec<(u64, &[u8])> = (0..100).map(|at| (at, &b"x"[..])).collect();
        let mut wide = Box::pin(file.update_regions(&parts));
        assert!(poll_once(&mut wide).await.is_none());
        wait_until(&file, |stats| stats.oldest_blocked.is_some()).await;
        submit(&mut line, write(&file, 1, 1)).await;
        poll_until(&file, &mut line, |stats| full(stats) == (100, 2)).await;
    });
}

#[test]
fn try_update_region_does_not_wait_for_room() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = with_room(dir.path(), 1, 100).await;
        let held = HeldQueue::new(&file, 9_999);
        let mut full = write(&file, 1, 100);
        assert!(poll_once(&mut full).await.is_none());
        let tried = poll_once(file.try_update_region(5000, b"x")).await;
        assert!(!tried
            .expect("expected completion at once, but the operation waits")
            .unwrap());
        let stats = file.stats();
        assert_eq!((stats.queued_writes, stats.queued_bytes), (1, 100));
        held.release().await;
        with_timeout(full).await.unwrap();
        assert!(with_timeout(file.try_update_region(5000, b"x"))
            .await
            .unwrap());

        // Nor for blocked writes, which take no room from it.
        let view = file.bytes(0, 10).unwrap();
        let mut full = write(&file, 2, 100);
        assert!(poll_once(&mut full).await.is_none());
        wait_until(&file, |stats| stats.oldest_blocked.is_some()).await;
        assert!(with_timeout(file.try_update_region(5000, b"y"))
            .await
            .unwrap());
        drop(view);
        with_timeout(full).await.unwrap();
    });
}

#[test]
fn mapped_source_is_released_before_waiting() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        // Onto other bytes, and onto the bytes of a write that waits for them.
        for target in [8_000, 50] {
            let file = with_room(dir.path(), 1, 4096).await;
            let block = file.bytes(0, 100).unwrap();
            let content = block.to_vec();
            // It waits for the block, and takes all the room for blocked writes.
            let mut writer = write(&file, 1, 4096);
            assert!(poll_once(&mut writer).await.is_none());
            wait_until(&file, |stats| stats.oldest_blocked.is_some()).await;
            let mover = file.write_bytes(target, block);
            let (writer, mover) = with_timeout(zip(writer, mover)).await;
            writer.and(mover).unwrap();
            assert_eq!(file.as_slice(target, 100).unwrap(), &content[..]);
            wait_until(&file, is_quiet).await;
        }
    });
}

#[test]
fn mapped_source_is_released_without_room() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = with_room(dir.path(), 1, 100).await;
        let content = file.as_slice(5000, 100).unwrap().to_vec();
        let held = HeldQueue::new(&file, 9_999);
        // The buffer is full, and stays so: this future is not polled again.
        let mut full = write(&file, 1, 100);
        assert!(poll_once(&mut full).await.is_none());
        let mut never = write(&file, 2, 100);
        assert!(poll_once(&mut never).await.is_none());
        let mut mover = Box::pin(file.write_bytes(7000, file.bytes(5000, 100).unwrap()));
        assert!(poll_once(&mut mover).await.is_none());
        held.release().await;
        with_timeout(full).await.unwrap();
        with_timeout(file.as_slice_mut(5000, 100))
            .await
            .unwrap()
            .fill(9);
        with_timeout(mover).await.unwrap();
        assert_eq!(file.as_slice(7000, 100).unwrap(), &content[..]);
    });
}

#[test]
fn dropped_waiter_passes_its_room_on() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        for leaver in 0..4 {
            let file = with_room(dir.path(), 4, 100).await;
            let held = HeldQueue::new(&file, 9_999);
            let mut queued = write(&file, 0, 5000);
            assert!(poll_once(&mut queued).await.is_none());
            let mut line = Vec::new();
            for byte in 1..=4 {
                submit(&mut line, write(&file, byte, 25)).await;
            }
            // Before it is notified of room, and after.
            if leaver % 2 == 0 {
                drop(line.remove(leaver));
                drop(queued);
            } else {
                drop(queued);
                drop(line.remove(leaver));
            }
            poll_all(&mut line).await;
            assert_eq!(file.stats().queued_bytes, 75, "{leaver} left");
            held.release().await;
            for write in line {
                with_timeout(write).await.unwrap();
            }
            wait_until(&file, is_quiet).await;
        }
    });
}

#[test]
fn failed_and_dropped_writes_free_room() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = with_room(dir.path(), 3, 1000).await;
        let path = file.path().to_owned();
        let is_empty = || assert_eq!(file.stats().queued_bytes, 0);

        // Refused before it is queued.
        let data = [1; 900];
        file.update_region(9_500, &data).await.unwrap_err();
        file.update_regions(&[(0, &data), (9_500, &data)])
            .await
            .unwrap_err();
        is_empty();

        // A view conflicts with the range.
        let view = file.bytes(0, 1).unwrap();
        assert!(!file.try_update_region(0, &data).await.unwrap());
        is_empty();
        // Every kind of write counts while it waits.
        let parts = [(0, &data[..400]), (5000, &data[..200])];
        let mut both = Box::pin(file.update_regions(&parts));
        assert_waits(&file, 9_999, &mut both).await;
        assert_eq!(file.stats().queued_bytes, 600);
        let mut owned = Box::pin(file.write_bytes(0, Bytes::from_static(&[2; 300])));
        assert_waits(&file, 9_999, &mut owned).await;
        let mut mutable = Box::pin(file.as_slice_mut(0, 9_000));
        assert_waits(&file, 9_999, &mut mutable).await;
        assert_eq!(file.stats().queued_bytes, 900);
        wait_until(&file, |stats| stats.queued_writes == 3).await;
        // Withdrawn.
        drop((both, owned, mutable));
        is_empty();
        drop(view);

        // Its range is cut off before its turn.
        let view = file.bytes(9_000, 1).unwrap();
        let mut shrink = Box::pin(file.resize(9_000));
        assert_waits(&file, 0, &mut shrink).await;
        let mut late = Box::pin(file.update_region(8_900, &data));
        assert_waits(&file, 0, &mut late).await;
        assert_eq!(file.stats().queued_bytes, 900);
        drop(view);
        with_timeout(shrink).await.unwrap();
        let cut = with_timeout(late).await.unwrap_err();
        assert!(matches!(cut, MmapIoError::OutOfBounds { .. }), "{cut:?}");
        is_empty();

        // Another process cuts the file.
        let outside = std::fs::File::options().write(true).open(&path).unwrap();
        outside.set_len(4096).unwrap();
        for _ in 0..3 {
            let gone = with_timeout(file.update_region(5_000, &data))
                .await
                .unwrap_err();
            assert!(matches!(gone, MmapIoError::Truncated { .. }), "{gone:?}");
        }
        outside.set_len(9_000).unwrap();
        is_empty();
        with_timeout(file.update_region(0, &[3; 1000]))
            .await
            .unwrap();
        wait_until(&file, is_quiet).await;
    });
}

#[test]
fn mapped_source_counts_while_copied() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = with_room(dir.path(), 1, 1000).await;
        let source = file.bytes(5000, 800).unwrap();
        let held = HeldQueue::new(&file, 9_999);
        let mut copied = Box::pin(file.write_bytes(0, source));
        assert!(poll_once(&mut copied).await.is_none());
        assert_eq!(file.stats().queued_bytes, 800);
        let mut next = write(&file, 1, 300);
        assert!(poll_once(&mut next).await.is_none());
        assert_eq!(file.stats().queued_bytes, 800);
        drop(copied);
        assert!(poll_once(&mut next).await.is_none());
        assert_eq!(file.stats().queued_bytes, 300);
        held.release().await;
        with_timeout(next).await.unwrap();
        wait_until(&file, is_quiet).await;
    });
}

#[test]
fn all_handles_share_one_limit() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = with_room(dir.path(), 2, 100).await;
        let other = MemoryMappedFile::open_rw(file.path()).await.unwrap();
        let clone = other.clone();
        let held = HeldQueue::new(&file, 9_999);
        let mut line = Vec::new();
        for file in [&file, &other, &clone, &file] {
            submit(&mut line, write(file, 1, 50)).await;
            assert!(file.stats().queued_bytes <= 100);
        }
        for file in [&file, &other, &clone] {
            assert_eq!(file.stats().queued_bytes, 100);
            wait_until(file, |stats| stats.queued_writes == 4).await;
        }
        held.release().await;
        for write in line {
            with_timeout(write).await.unwrap();
        }
        wait_until(&file, is_quiet).await;
    });
}

#[test]
fn limit_holds_under_many_threads() {
    const LIMIT: usize = 1000;
    const WRITERS: usize = 4;
    let dir = tempfile::tempdir().unwrap();
    let file = block_on(with_room(dir.path(), 4, LIMIT));
    let writers_left = AtomicUsize::new(WRITERS);
    std::thread::scope(|threads| {
        for writer in 0..WRITERS {
            let (file, writers_left) = (&file, &writers_left);
            threads.spawn(move || {
                let file = block_on(MemoryMappedFile::open_rw(file.path())).unwrap();
                for turn in 0..100 {
                    // Many at a time; the seventh of each eight is dropped before it completes.
                    let mut line: Vec<_> = (0..8)
                        .map(|at| write(&file, turn, 1 + (writer * 37 + at * 129) % LIMIT))
                        .collect();
                    let polled: Vec<_> = line
                        .iter_mut()
                        .map(|write| block_on(poll_once(write)).is_some())
                        .collect();
                    for (at, (write, is_done)) in line.into_iter().zip(polled).enumerate() {
                        if !is_done && at != 6 {
                            block_on(with_timeout(write)).unwrap();
                        }
                    }
                }
                writers_left.fetch_sub(1, Ordering::Relaxed);
            });
        }
        threads.spawn(|| {
            // Every other time with a view that blocks the writes; with one at all times, they
            // would go on only when their gate is raised, for a moment in each 100 ms.
            for round in 0.. {
                if writers_left.load(Ordering::Relaxed) == 0 {
                    break;
                }
                let view = file.as_slice(0, 1).unwrap();
                let _view = (round % 2 == 0).then_some(view);
                for _ in 0..100 {
                    let queued = file.stats().queued_bytes;
                    // As many bytes again may belong to blocked writes.
                    assert!(queued <= 2 * (LIMIT + 4 * OWN), "{queued} bytes are queued");
                }
            }
        });
    });
    block_on(wait_until(&file, is_quiet));
}
