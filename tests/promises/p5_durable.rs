//! Durable means durable, as far as a running system shows it: when a durable call returns, no page
//! of its range is dirty or being written back. (A power cut shows the rest.)

#![cfg(target_os = "linux")]

use std::os::fd::{AsRawFd, RawFd};

use mmap_io::{FlushPolicy, MemoryMappedFile};

use crate::common::{alone, skip};

#[repr(C)]
struct Range {
    offset: u64,
    len: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
struct CacheStat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Pages that are dirty or being written back, by `cachestat(2)` (Linux 6.5).
fn unwritten(descriptor: RawFd, offset: u64, len: u64) -> Option<u64> {
    const SYS_CACHESTAT: libc::c_long = 451;
    let range = Range { offset, len };
    let mut stat = CacheStat::default();
    // SAFETY: both structures are live for the call, and laid out as it says.
    let result = unsafe { libc::syscall(SYS_CACHESTAT, descriptor, &range, &mut stat, 0) };
    (result == 0).then_some(stat.dirty + stat.writeback)
}

#[test]
fn nothing_is_left_to_write_when_a_durable_call_returns() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    alone(async {
        let file = MemoryMappedFile::builder(dir.path().join("data"))
            .size(1 << 20)
            .create()
            .await
            .unwrap();
        let left = |offset, len| unwritten(file.as_raw_fd(), offset, len);
        if left(0, 0).is_none() {
            return skip("p5_durable", "no cachestat(2) in this kernel");
        }
        let dirty = || async {
            file.update_region(0, &[1; 1 << 20]).await.unwrap();
            assert!(left(0, 0).unwrap() > 0, "the probe sees nothing");
        };
        dirty().await;
        file.update_region_async(0, b"first").await.unwrap();
        // The first one after a creation takes the whole file along.
        assert_eq!(left(0, 0), Some(0));
        dirty().await;
        file.update_region_async(5000, b"x").await.unwrap();
        assert_eq!(left(4096, 4096), Some(0));
        file.update_regions_async(&[(0, b"x"), (500_000, b"y")])
            .await
            .unwrap();
        assert_eq!((left(0, 4096), left(499_712, 4096)), (Some(0), Some(0)));
        dirty().await;
        file.write_bytes_async(100_000, vec![1; 9000].into())
            .await
            .unwrap();
        assert_eq!(left(98_304, 12_288), Some(0));
        dirty().await;
        file.flush_range(40_960, 4096).await.unwrap();
        assert_eq!(left(40_960, 4096), Some(0));
        file.flush().await.unwrap();
        assert_eq!((left(0, 0), file.pending_bytes()), (Some(0), 0));
        let mut view = file.as_slice_mut(8192, 4096).await.unwrap();
        view.fill(3);
        assert!(left(8192, 4096).unwrap() > 0);
        view.commit().await.unwrap();
        assert_eq!(left(8192, 4096), Some(0));
        file.resize(2 << 20).await.unwrap();
        dirty().await;
        file.update_region_async(0, b"grown").await.unwrap();
        assert_eq!(left(0, 0), Some(0));
        dirty().await;
        file.clone().close().await.unwrap();
        assert_eq!(left(0, 0), Some(0));

        let always = MemoryMappedFile::builder(dir.path().join("always"))
            .size(4096)
            .flush_policy(FlushPolicy::Always)
            .create()
            .await
            .unwrap();
        always.update_region(0, b"x").await.unwrap();
        assert_eq!(unwritten(always.as_raw_fd(), 0, 0), Some(0));
    });
}
