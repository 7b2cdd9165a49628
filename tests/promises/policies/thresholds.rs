//! Policies that flush with the write: what counts, when the threshold is reached, and what the
//! flush covers.

use mmap_io::{FlushPolicy, MemoryMappedFile};

use super::{open, settled, state};
use crate::common::probe::{can_probe, Probe};
use crate::common::{block_on, is_quiet, on_a_disk, wait_until};

#[test]
fn every_bytes_flushes_at_threshold() {
    let dir = on_a_disk();
    let probes = can_probe("every_bytes_flushes_at_threshold", dir.path());
    block_on(async {
        let path = dir.path().join("data");
        let file = settled(&path, 1 << 20, FlushPolicy::EveryBytes(10_000)).await;
        let probe = Probe::new(&path);
        let is_clean = || !probes || probe.is_clean();
        file.update_region(0, &[1; 6000]).await.unwrap();
        assert_eq!(state(&file), (0, 6000));
        // Some of the same bytes: they count again, though they are pending once.
        file.update_region(5000, &[3; 3000]).await.unwrap();
        assert_eq!(state(&file), (0, 8000));
        file.update_region(900_000, &[4; 999]).await.unwrap();
        assert_eq!(state(&file), (0, 8999));
        // Exactly at the threshold; it does not matter how far apart the bytes are.
        file.update_region(500_000, b"x").await.unwrap();
        assert_eq!(state(&file), (1, 0));
        // The same bytes, ten times.
        for _ in 0..9 {
            file.update_region(0, &[2; 1000]).await.unwrap();
            assert_eq!(state(&file), (1, 1000));
        }
        file.update_region(0, &[2; 1000]).await.unwrap();
        assert_eq!(state(&file), (2, 0));
        assert!(is_clean());

        // Every kind of write counts.
        let big = [5; 10_000];
        file.update_region(0, &big).await.unwrap();
        assert_eq!((state(&file), is_clean()), ((3, 0), true));
        let (half, other): (&[u8], &[u8]) = (&big[..5000], &big[..5000]);
        file.update_regions(&[(0, half), (700_000, other)])
            .await
            .unwrap();
        assert_eq!((state(&file), is_clean()), ((4, 0), true));
        file.write_bytes(4095, big.to_vec().into()).await.unwrap();
        assert_eq!((state(&file), is_clean()), ((5, 0), true));
        assert!(file.try_update_region(4095, &big).await.unwrap());
        assert_eq!((state(&file), is_clean()), ((6, 0), true));
        // Through the descriptor as well as through the map.
        file.update_region(1, &vec![6; 600_000]).await.unwrap();
        assert_eq!((state(&file), is_clean()), ((7, 0), true));
        // Overlapping ranges of one operation are written in order; a write of no bytes does not
        // count.
        file.update_regions(&[(0, half), (1000, &other[..4999])])
            .await
            .unwrap();
        file.update_region(0, b"").await.unwrap();
        assert_eq!(state(&file), (7, 5999));
        // A durable write flushes its own bytes only.
        file.update_region_async(0, &[7; 1000]).await.unwrap();
        assert_eq!(state(&file), (8, 4999));
    });
}

#[test]
fn flush_range_debits_covered_bytes() {
    let dir = on_a_disk();
    block_on(async {
        let path = dir.path().join("data");
        let file = settled(&path, 1 << 20, FlushPolicy::EveryBytes(20_000)).await;
        file.update_region(0, &[1; 10_000]).await.unwrap();
        file.update_region(500_000, &[1; 9_000]).await.unwrap();
        // From inside a page into the next. Bytes that are not pending are not debited.
        file.flush_range(5000, 1000).await.unwrap();
        assert_eq!(state(&file), (1, 18_000));
        file.flush_range(5500, 1000).await.unwrap();
        assert_eq!(state(&file), (2, 17_500));
        file.flush_range(9_999, 490_002).await.unwrap();
        assert_eq!(state(&file), (3, 17_498));
        file.flush_range(200_000, 1000).await.unwrap();
        assert_eq!(state(&file), (4, 17_498));
        // The pending bytes count towards the next flush.
        file.update_region(200_000, &[1; 2_501]).await.unwrap();
        assert_eq!(state(&file), (4, 19_999));
        file.update_region(5000, &[1; 1]).await.unwrap();
        assert_eq!(state(&file), (5, 0));
        // Bytes that are cut off are no longer pending.
        file.update_region(900_000, &[1; 9_000]).await.unwrap();
        file.resize(901_000).await.unwrap();
        assert_eq!(state(&file), (5, 1000));
    });
}

#[test]
fn every_writes_flushes_at_threshold() {
    let dir = on_a_disk();
    let probes = can_probe("every_writes_flushes_at_threshold", dir.path());
    block_on(async {
        let path = dir.path().join("data");
        let file = settled(&path, 100_000, FlushPolicy::EveryWrites(3)).await;
        let probe = Probe::new(&path);
        let is_clean = || !probes || probe.is_clean();
        for round in 0..3 {
            // Rewrites are writes, and the bytes they change still count once.
            file.update_region(0, &[1; 5000]).await.unwrap();
            file.update_region(0, &[2; 5000]).await.unwrap();
            assert_eq!(state(&file), (round, 5000));
            file.update_region(50_000, b"x").await.unwrap();
            assert_eq!((state(&file), is_clean()), ((round + 1, 0), true));
        }
        // An operation of many ranges is one write; an operation without ranges is none.
        let many: Vec<(u64, &[u8])> = (0..10).map(|at| (at * 5000, &b"x"[..])).collect();
        file.update_regions(&many).await.unwrap();
        file.update_regions(&[]).await.unwrap();
        assert_eq!(state(&file), (3, 10));
        // A flush of the whole file resets the count, a flush of a range does not.
        file.flush().await.unwrap();
        assert_eq!(state(&file), (4, 0));
        file.update_regions(&many).await.unwrap();
        file.flush_range(0, 10_000).await.unwrap();
        assert_eq!(state(&file), (5, 8));
        file.write_bytes(0, vec![1].into()).await.unwrap();
        assert_eq!(state(&file), (5, 9));
        assert!(file.try_update_region(0, b"x").await.unwrap());
        assert_eq!((state(&file), is_clean()), ((6, 0), true));
        // A view is a write.
        file.as_slice_mut(0, 10).await.unwrap().fill(1);
        file.as_slice_mut(0, 10).await.unwrap().fill(2);
        assert_eq!(state(&file), (6, 10));
        file.update_region(0, b"x").await.unwrap();
        assert_eq!((state(&file), is_clean()), ((7, 0), true));
    });
}

#[test]
fn failed_or_empty_write_does_not_flush() {
    let dir = on_a_disk();
    block_on(async {
        let path = dir.path().join("data");
        for policy in [
            FlushPolicy::Always,
            FlushPolicy::EveryBytes(1),
            FlushPolicy::EveryWrites(1),
        ] {
            let file = settled(&path, 1000, policy).await;
            file.update_region(990, &[1; 20]).await.unwrap_err();
            file.update_region(0, b"").await.unwrap();
            let view = file.as_slice(0, 10).unwrap();
            assert!(!file.try_update_region(5, b"x").await.unwrap());
            drop(view);
            assert_eq!(state(&file), (0, 0));
            file.update_region(0, b"x").await.unwrap();
            assert_eq!(state(&file), (1, 0));
            wait_until(&file, is_quiet).await;
        }
    });
}

#[test]
fn handles_follow_their_own_policy() {
    let dir = on_a_disk();
    block_on(async {
        let path = dir.path().join("data");
        let lazy = settled(&path, 100_000, FlushPolicy::Never).await;
        let always = open(&path, FlushPolicy::Always).await;
        let bytes = open(&path, FlushPolicy::EveryBytes(8000)).await;
        let writes = open(&path, FlushPolicy::EveryWrites(4)).await;
        // Pending bytes belong to the file, and so does the count.
        lazy.update_region(0, &[1; 7000]).await.unwrap();
        bytes.update_region(0, &[2; 900]).await.unwrap();
        assert_eq!(state(&lazy), (0, 7000));
        // `Always` flushes only the bytes of its own write.
        always.update_region(50_000, &[3; 100]).await.unwrap();
        assert_eq!(state(&lazy), (1, 7000));
        // The thresholds flush all pending bytes.
        bytes.update_region(60_000, &[4; 1000]).await.unwrap();
        assert_eq!(state(&lazy), (2, 0));
        lazy.update_region(0, &[1; 9000]).await.unwrap();
        assert_eq!(state(&lazy), (2, 9000));
        bytes.update_region(0, b"x").await.unwrap();
        assert_eq!(state(&lazy), (3, 0));
        for _ in 0..3 {
            lazy.update_region(0, &[1; 9000]).await.unwrap();
        }
        assert_eq!(state(&lazy), (3, 9000));
        writes.update_region(0, b"x").await.unwrap();
        assert_eq!(state(&lazy), (4, 0));
        for handle in [&lazy, &always, &bytes, &writes] {
            assert_eq!((state(handle), handle.len()), ((4, 0), 100_000));
        }
        assert_eq!(lazy.flush_policy(), FlushPolicy::Never);
        assert_eq!(writes.flush_policy(), FlushPolicy::EveryWrites(4));
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        lazy.update_region(0, b"x").await.unwrap();
        assert_eq!(reader.pending_bytes(), 0);
        reader.flush().await.unwrap();
        assert_eq!(state(&lazy), (4, 1));
    });
}

#[test]
fn tasks_share_one_threshold() {
    let dir = on_a_disk();
    let path = dir.path().join("data");
    let file = block_on(settled(&path, 8 << 16, FlushPolicy::EveryBytes(50_000)));
    std::thread::scope(|threads| {
        for task in 0..8 {
            let file = &file;
            threads.spawn(move || {
                for turn in 0..200_u64 {
                    let at = (task << 16) + turn * 300;
                    block_on(file.update_region(at, &[turn as u8; 300])).unwrap();
                    // The write that crosses the threshold waits. So at most one write of each task
                    // is pending beyond it, besides the bytes that are being flushed.
                    assert!(file.pending_bytes() < 2 * (50_000 + 8 * 300));
                }
            });
        }
    });
    let (flushes, pending) = state(&file);
    assert!(pending < 50_000);
    // A write that crosses the threshold while a flush begins may find its bytes flushed by that
    // flush, and waits for another one nevertheless.
    let written = 8 * 200 * 300;
    assert!((1..=2 * written / 50_000).contains(&flushes), "{flushes}");
}
