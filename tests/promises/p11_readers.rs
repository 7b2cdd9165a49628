//! No reader waits for a writer that waits; and short reads do not starve the writer. What could
//! break: a write that keeps its claim on a range while it waits, a gate that stays up when its
//! time is over, and a write that never finds a moment without readers.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures_lite::future::poll_once;
use mmap_io::{MemoryMappedFile, MmapIoError, MmapMode};

use crate::common::{
    assert_waits, at_once, block_on, is_quiet, pattern, patterned, wait_until, wait_until_examined,
    with_timeout, TIMEOUT,
};

#[test]
fn readers_proceed_beside_blocked_write() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 10_000).await;
        let other = MemoryMappedFile::builder(&path)
            .mode(MmapMode::ReadOnly)
            .open()
            .await
            .unwrap();
        let slow = file.bytes(0, 9_000).unwrap();
        let mut write = Box::pin(file.update_region(0, &[1; 9_000]));
        assert_waits(&file, 9_999, &mut write).await;
        let read = || {
            for file in [&file, &other] {
                for _ in 0..5_000 {
                    assert_eq!(file.as_slice(100, 10).unwrap(), slow[100..110]);
                    // It never waits, so it does not succeed only because another reader has
                    // waited.
                    assert!(file.try_as_slice(100, 10).unwrap().is_some());
                }
                // At the first poll: the pages are there.
                let slice = at_once(file.slice(100, 10));
                assert_eq!(slice.unwrap(), slow[100..110]);
                let bytes = at_once(file.read_bytes(0, 9_000));
                assert_eq!(bytes.unwrap(), slow);
                let mut buffer = [0; 10];
                at_once(file.read_into(100, &mut buffer)).unwrap();
                assert_eq!(buffer, slow[100..110]);
                assert_eq!(file.bytes(0, 9_000).unwrap(), slow);
            }
            assert_eq!(other.as_slice_bytes(500, 10).unwrap(), &slow[500..510]);
        };
        read();
        std::thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(read);
            }
        });
        assert!(poll_once(&mut write).await.is_none());
        drop(slow);
        // What was borrowed from the reader stays leased until the reader is dropped.
        assert!(poll_once(&mut write).await.is_none());
        drop(other);
        with_timeout(write).await.unwrap();
        assert_eq!(file.as_slice(0, 9_000).unwrap(), [1; 9_000]);
    });
}

#[test]
fn readers_proceed_beside_any_blocked_op() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 10_000).await;
        let slow = file.bytes(1_000, 8_000).unwrap();
        let mut mutable = Box::pin(file.as_slice_mut(1_000, 5_000));
        assert_waits(&file, 0, &mut mutable).await;
        let mut shrink = Box::pin(file.resize(8_000));
        assert_waits(&file, 0, &mut shrink).await;
        let parts: [(u64, &[u8]); 2] = [(1_010, &[1; 10]), (9_500, &[1; 10])];
        let mut both = Box::pin(file.update_regions(&parts));
        assert_waits(&file, 0, &mut both).await;
        let mut snapshot = Box::pin(file.copy_to(dir.path().join("copy")));
        while file.stats().queued_writes < 4 {
            assert!(poll_once(&mut snapshot).await.is_none());
        }
        for (at, len) in [(1_000, 8_000), (1_010, 1), (7_999, 2), (9_000, 1_000)] {
            let expected = &pattern(10_000)[at as usize..(at + len) as usize];
            assert_eq!(file.as_slice(at, len).unwrap(), expected);
            assert!(file.try_as_slice(at, len).unwrap().is_some());
            assert_eq!(at_once(file.slice(at, len)).unwrap(), expected);
            assert_eq!(at_once(file.read_bytes(at, len)).unwrap(), expected);
        }
        drop((mutable, shrink, both, snapshot, slow));
        wait_until(&file, is_quiet).await;
    });
}

/// Makes the queue examine again everything that waits for the first byte.
async fn look_again(file: &MemoryMappedFile, spare: u64) {
    let mut withdrawn = Box::pin(file.update_region(0, b"withdrawn"));
    assert_waits(file, spare, &mut withdrawn).await;
    drop(withdrawn);
    wait_until_examined(file, spare).await;
}

#[test]
fn gate_of_blocked_write_steps_back() {
    let mut shortest = Duration::MAX;
    for _ in 0..10 {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let (_, file) = patterned(dir.path(), 1_000).await;
            let slow = file.bytes(0, 900).unwrap();
            let mut write = Box::pin(file.update_region(0, &[1; 900]));
            assert_waits(&file, 999, &mut write).await;
            // When the queue examines it again, it raises its gate.
            let begin = Instant::now();
            look_again(&file, 999).await;
            let raised = Instant::now();
            assert_eq!(file.as_slice(10, 10).unwrap(), slow[10..20]);
            shortest = shortest.min(raised.elapsed());
            // And it does not raise the gate again soon.
            for _ in 0..20 {
                look_again(&file, 999).await;
                let is_let_through = file.try_as_slice(10, 10).unwrap().is_some();
                let is_soon = begin.elapsed() < Duration::from_millis(100);
                assert!(
                    is_let_through || !is_soon,
                    "expected the gate to stay down for 100 ms, but it is up again"
                );
            }
            assert!(poll_once(&mut write).await.is_none());
            drop(slow);
            with_timeout(write).await.unwrap();
        });
    }
    // The machine may be slow sometimes, but not every time.
    let about_a_millisecond = Duration::from_millis(30);
    assert!(shortest < about_a_millisecond, "{shortest:?}");
}

#[test]
fn gate_steps_back_for_every_reader() {
    for kind in 0..6 {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let (_, file) = patterned(dir.path(), 1_000).await;
            let slow = file.bytes(0, 900).unwrap();
            let mut write = Box::pin(file.update_region(0, &[1; 900]));
            assert_waits(&file, 999, &mut write).await;
            look_again(&file, 999).await;
            let begin = Instant::now();
            match kind {
                0 => drop(file.as_slice(10, 10).unwrap()),
                // No reader waits here for the time to be over.
                1 => {
                    while file.try_as_slice(10, 10).unwrap().is_none() {
                        assert!(
                            begin.elapsed() < TIMEOUT,
                            "expected the gate to step back, but it stays up"
                        );
                        std::thread::yield_now();
                    }
                }
                2 => drop(file.bytes(10, 10).unwrap()),
                3 => drop(with_timeout(file.slice(10, 10)).await.unwrap()),
                4 => drop(with_timeout(file.read_bytes(10, 10)).await.unwrap()),
                _ => with_timeout(file.read_into(10, &mut [0; 10]))
                    .await
                    .unwrap(),
            }
            assert!(poll_once(&mut write).await.is_none());
            drop(slow);
            with_timeout(write).await.unwrap();
        });
    }
}

#[test]
fn short_reads_do_not_starve_write() {
    const WRITES: u8 = 5;
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = block_on(patterned(dir.path(), 10_000));
    let other = block_on(MemoryMappedFile::open_ro(&path)).unwrap();
    let is_over = AtomicBool::new(false);
    let reads = [const { AtomicU32::new(0) }; 3];
    std::thread::scope(|threads| {
        for (reader, reads) in reads.iter().enumerate() {
            let file = if reader == 1 { &other } else { &file };
            let is_over = &is_over;
            threads.spawn(move || {
                let begin = Instant::now();
                // There is almost always a view: the next is taken before the last is dropped.
                let mut view = file.as_slice(0, 100).unwrap();
                while !is_over.load(Ordering::Relaxed) {
                    assert!(begin.elapsed() < TIMEOUT, "a write was starved");
                    view = file.as_slice(0, 100).unwrap();
                    drop(view);
                    if reader == 2 {
                        block_on(file.slice(0, 100)).unwrap();
                        drop(file.bytes(20, 80).unwrap());
                    }
                    view = file.as_slice(0, 100).unwrap();
                    reads.fetch_add(1, Ordering::Relaxed);
                }
                drop(view);
            });
        }
        block_on(async {
            for turn in 0..WRITES {
                let before = reads.each_ref().map(|reads| reads.load(Ordering::Relaxed));
                file.update_region(50, &[turn; 10]).await.unwrap();
                // Nor does the write starve the readers.
                for (reads, before) in reads.iter().zip(before) {
                    let begin = Instant::now();
                    while reads.load(Ordering::Relaxed) == before {
                        assert!(begin.elapsed() < TIMEOUT, "a reader was starved");
                        std::thread::yield_now();
                    }
                }
            }
        });
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!(file.as_slice(50, 10).unwrap(), [WRITES - 1; 10]);
}

#[test]
fn kept_ranges_are_merged() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, _) = patterned(dir.path(), 100_000).await;
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let pattern = pattern(100_000);
        let look = |start: u64, end: u64| {
            let bytes = reader.as_slice_bytes(start, end - start).unwrap();
            assert_eq!(*bytes, pattern[start as usize..end as usize]);
            reader.stats().views
        };
        for at in (0..50_000).step_by(100) {
            assert_eq!(look(at, at + 100), 1);
        }
        assert_eq!(look(10, 49_000), 1);
        assert_eq!(look(60_000, 60_010), 2);
        assert_eq!(look(60_020, 60_030), 3);
        // Fills a gap, and touches both of its neighbours.
        assert_eq!(look(60_010, 60_020), 2);
        assert_eq!(look(49_999, 60_001), 1);
        assert_eq!(look(0, 100_000), 1);
    });
}

#[test]
fn refused_range_keeps_no_lease() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        reader.as_slice_bytes(500, 10).unwrap();
        let view = file.as_slice_mut(900, 10).await.unwrap();
        let refused = reader.as_slice_bytes(100, 850).unwrap_err();
        assert!(
            matches!(
                refused,
                MmapIoError::Busy {
                    offset: 100,
                    len: 850,
                    ..
                }
            ),
            "{refused:?}"
        );
        drop(view);
        // The bytes before and after the conflict are free.
        with_timeout(file.update_region(100, b"x")).await.unwrap();
        with_timeout(file.update_region(949, b"x")).await.unwrap();
        assert!(!file.try_update_region(505, b"x").await.unwrap());
    });
}
