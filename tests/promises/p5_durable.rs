//! Durable means durable, as far as a running system can show it: when a durable call returns, no
//! page of its range is dirty or being written back, the necessary system calls were made, and a
//! process that maps the file then sees the bytes. (`tests/power_cut` shows the rest.)

use std::fs;

use mmap_io::{FlushPolicy, MemoryMappedFile};

use crate::common::child::{child, child_dir};
use crate::common::probe::{can_probe, until_dirty, Probe};
use crate::common::{at_once, block_on, on_a_disk, pattern, skip};

mod names;

/// Changes a range without making it durable, checks that the probe sees the change, and runs the
/// operation that has to make it durable.
macro_rules! assert_cleans {
    ($probe:ident, $file:ident, $offset:expr, $len:expr, $durable:expr) => {
        let data = vec![7; $len];
        until_dirty!($probe, $file.update_region($offset, &data).await.unwrap());
        $durable.await.unwrap();
        assert!($probe.is_clean(), stringify!($durable));
        assert_eq!($file.pending_bytes(), 0, stringify!($durable));
    };
}

#[test]
fn durable_calls_leave_no_dirty_page() {
    let dir = on_a_disk();
    if !can_probe("durable_calls_leave_no_dirty_page", dir.path()) {
        return;
    }
    block_on(async {
        let path = dir.path().join("data");
        let file = MemoryMappedFile::create_rw(&path, 1 << 20).await.unwrap();
        let probe = Probe::new(&path);
        file.update_region(0, &[1; 1 << 20]).await.unwrap();
        file.flush().await.unwrap();
        assert!(probe.is_clean());

        // Ranges that begin and end inside of pages, and in several.
        assert_cleans!(probe, file, 0, 1, file.update_region_async(0, b"x"));
        assert_cleans!(probe, file, 4095, 2, file.update_region_async(4095, b"xx"));
        assert_cleans!(
            probe,
            file,
            100_000,
            9000,
            file.update_region_async(100_000, &[1; 9000])
        );
        assert_cleans!(
            probe,
            file,
            500_000,
            9000,
            file.write_bytes_async(500_000, vec![1; 9000].into())
        );
        let (first, last): (&[u8], &[u8]) = (b"first", b"last");
        assert_cleans!(
            probe,
            file,
            0,
            1 << 20,
            file.update_regions_async(&[((1 << 20) - 4, last), (0, first)])
        );
        assert_cleans!(probe, file, 40_960, 4096, file.flush_range(40_960, 4096));
        assert_cleans!(probe, file, 4000, 200, file.flush_range(4000, 200));
        assert_cleans!(probe, file, 12_287, 2, file.flush_range_async(12_287, 2));
        assert_cleans!(probe, file, 0, 1 << 20, file.flush());
        assert_cleans!(probe, file, (1 << 20) - 1, 1, file.flush_async());
        assert_cleans!(probe, file, 5000, 1, mmap_io::flush(&file));
        assert_cleans!(probe, file, 5000, 1, file.clone().close());
        // Through another handle.
        let other = MemoryMappedFile::open_rw(&path).await.unwrap();
        assert_cleans!(probe, file, 70_000, 1, other.flush());

        // Stores through views and pointers.
        let mut view = file.as_slice_mut(8000, 5000).await.unwrap();
        until_dirty!(probe, view.fill(3));
        view.commit().await.unwrap();
        assert!(probe.is_clean());
        until_dirty!(probe, file.as_slice_mut(8000, 5000).await.unwrap().fill(4));
        assert_eq!(file.pending_bytes(), 5000);
        file.flush().await.unwrap();
        assert_eq!((probe.is_clean(), file.pending_bytes()), (true, 0));
        // SAFETY: nothing reads the byte.
        let byte = unsafe { file.as_mut_ptr().unwrap().add(200_000) };
        // SAFETY: as above.
        until_dirty!(probe, unsafe { byte.write(1) });
        file.flush().await.unwrap();
        assert!(probe.is_clean());

        // After a change of the length.
        file.resize(3 << 20).await.unwrap();
        let (middle, end) = (2 << 20, (3 << 20) - 1);
        assert_cleans!(
            probe,
            file,
            middle,
            9,
            file.update_region_async(middle, b"nine byte")
        );
        assert_cleans!(probe, file, end, 1, file.flush_range(end, 1));
        file.resize(1 << 20).await.unwrap();
        assert_cleans!(probe, file, 0, 1 << 20, file.flush());
    });
}

#[test]
fn policy_always_leaves_no_dirty_page() {
    let dir = on_a_disk();
    block_on(async {
        let path = dir.path().join("data");
        let file = MemoryMappedFile::builder(&path)
            .size(100_000)
            .flush_policy(FlushPolicy::Always)
            .create()
            .await
            .unwrap();
        let probe = Probe::new(&path);
        let is_durable = || probe.is_clean() && file.pending_bytes() == 0;
        file.update_region(0, &[1; 100_000]).await.unwrap();
        assert!(is_durable());
        file.update_region(99_999, b"x").await.unwrap();
        assert!(is_durable());
        let regions: [(u64, &[u8]); 2] = [(0, b"x"), (50_000, b"y")];
        file.update_regions(&regions).await.unwrap();
        assert!(is_durable());
        file.write_bytes(4095, vec![1, 2].into()).await.unwrap();
        assert!(is_durable());
        assert!(file.try_update_region(20_000, b"x").await.unwrap());
        assert!(is_durable());
        // The policy is the handle's.
        let lazy = MemoryMappedFile::open_rw(&path).await.unwrap();
        lazy.update_region(0, b"x").await.unwrap();
        assert!(!is_durable());
        // The close of the last handle flushes, too.
        drop(file);
        lazy.close().await.unwrap();
        assert!(probe.is_clean());
    });
}

#[test]
fn concurrent_durable_writes_are_clean() {
    let dir = on_a_disk();
    let path = dir.path().join("data");
    let file = block_on(MemoryMappedFile::create_rw(&path, 4 << 12)).unwrap();
    let probe = Probe::new(&path);
    if probe.unwritten(0, 0).is_none() {
        return skip(
            "concurrent_durable_writes_are_clean",
            "no cachestat(2) in this kernel",
        );
    }
    // Each writer has a page of its own, so that it sees whether it shared the right flush: a flush
    // that was running when the bytes arrived may have passed them already.
    std::thread::scope(|threads| {
        for page in 0..4 {
            let (file, probe) = (&file, &probe);
            threads.spawn(move || {
                for turn in 0..100_u8 {
                    let data = [turn; 100];
                    block_on(file.update_region_async(page << 12, &data)).unwrap();
                    assert_eq!(probe.unwritten(page << 12, 1), Some(0));
                }
            });
        }
    });
    let stats = file.stats();
    assert!(stats.flushes <= stats.flushed_waiters);
}

#[test]
fn other_process_sees_flushed_bytes() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let path = dir.path().join("data");
        let file = MemoryMappedFile::create_rw(&path, 100_000).await.unwrap();
        file.update_region(100, &pattern(5000)).await.unwrap();
        file.update_region(90_000, &pattern(10_000)).await.unwrap();
        let seen = || {
            child!(reading_child).dir(dir.path()).passes();
            fs::read(dir.path().join("seen")).unwrap()
        };
        file.flush_range(100, 5000).await.unwrap();
        assert_eq!(seen()[100..5100], pattern(5000));
        file.flush().await.unwrap();
        let both = seen();
        assert_eq!(both[100..5100], pattern(5000));
        assert_eq!(both[90_000..], pattern(10_000));
        file.update_region_async(50_000, b"durable").await.unwrap();
        assert_eq!(seen()[50_000..50_007], *b"durable");
        file.resize(200_000).await.unwrap();
        file.update_region_async(199_993, b"durable").await.unwrap();
        assert_eq!(seen()[199_993..], *b"durable");
    });
}

#[test]
fn reading_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    block_on(async {
        let file = MemoryMappedFile::open_ro(dir.join("data")).await.unwrap();
        let content = file.as_slice(0, file.len()).unwrap();
        fs::write(dir.join("seen"), content).unwrap();
    });
}

#[test]
fn clean_file_flush_is_noop() {
    let dir = on_a_disk();
    let path = dir.path().join("data");
    let file = block_on(MemoryMappedFile::create_rw(&path, 100_000)).unwrap();
    let flushes = || file.stats().flushes;
    let assert_done = |does: bool| {
        let before = (flushes(), file.stats().pool_hops);
        if does {
            block_on(file.flush()).unwrap();
            assert_eq!(flushes(), before.0 + 1);
            return;
        }
        at_once(file.flush()).unwrap();
        at_once(file.flush_range(10, 10)).unwrap();
        assert_eq!((flushes(), file.stats().pool_hops), before);
    };
    // The length and the name are not synced yet.
    assert_done(true);
    assert_done(false);
    block_on(file.update_region(0, b"x")).unwrap();
    assert_done(true);
    assert_done(false);
    // Stores through a view count, before and after it ends.
    let mut view = block_on(file.as_slice_mut(0, 10)).unwrap();
    view[0] = b'y';
    assert_done(true);
    view[1] = b'y';
    assert_done(true);
    drop(view);
    assert_done(true);
    assert_done(false);
    block_on(file.resize(200_000)).unwrap();
    assert_done(true);
    assert_done(false);
    // Another handle opens it, and has to sync its name.
    drop(block_on(MemoryMappedFile::open_rw(&path)).unwrap());
    assert_done(true);
    assert_done(false);
    // Stores by address are not seen.
    // SAFETY: nothing else looks at the bytes until the last store.
    let address = unsafe { file.as_mut_ptr() }.unwrap();
    for value in [b'a', b'b'] {
        // SAFETY: the file is longer, and its handle lives.
        unsafe { address.write_volatile(value) };
        assert_done(true);
    }
}
