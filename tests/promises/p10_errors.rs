//! Errors, not signals: a full disk, a file that another process has truncated, a disk that fails.
//! And a flush that failed is never forgotten, which takes a failing disk as well.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use futures_lite::future::yield_now;
use mmap_io::{FlushPolicy, MemoryMappedFile, MmapIoError};

use crate::common::disk::{truncate, Disk, MIB};
use crate::common::{block_on, is_quiet, patterned, skip, wait_until, TIMEOUT};

mod full_disk;
mod truncation;

#[test]
fn unreadable_disk_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let Some(disk) = Disk::ext4("unreadable_disk_is_an_error", &image, 64 * MIB) else {
        return;
    };
    fs::write(disk.path("data"), vec![5; 32 << 20]).unwrap();
    File::open(disk.path("data")).unwrap().sync_all().unwrap();
    drop(disk);
    // It is mounted again with a cold cache; then most of its blocks are removed.
    let Some(disk) = Disk::loop_device("unreadable_disk_is_an_error", &image) else {
        return;
    };
    let path = disk.path("data");
    let plain = File::open(&path).unwrap();
    plain.read_exact_at(&mut [0; 4096], 0).unwrap();
    truncate(&image, 16 * MIB);
    let bad = 30 * MIB;
    let error = plain.read_exact_at(&mut [0; 4096], bad).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));

    fn assert_unreadable<T>(result: mmap_io::Result<T>) {
        let error = result.map(drop).unwrap_err();
        assert!(matches!(error, MmapIoError::Io(_)), "{error:?}");
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
    block_on(async {
        let file = MemoryMappedFile::open_rw(&path).await.unwrap();
        assert_unreadable(file.slice(bad + 100, 100).await);
        assert_unreadable(file.read_bytes(bad, 10_000).await);
        let mut buffer = *b"unchanged";
        assert_unreadable(file.read_into(bad, &mut buffer).await);
        assert_eq!(&buffer, b"unchanged");
        assert_unreadable(file.touch_pages().await);
        assert_unreadable(file.touch_pages_range(bad, 1).await);
        assert_unreadable(file.update_region(bad + 100, b"part of a page").await);
        assert_unreadable(file.update_regions(&[(0, b"x"), (bad, b"y")]).await);
        assert_unreadable(file.try_update_region(bad, b"x").await);
        assert_unreadable(file.as_slice_mut(bad, 10).await);
        assert_unreadable(file.copy_to(dir.path().join("copy")).await);
        assert!(!dir.path().join("copy").exists());
        let bytes = file.bytes(bad, 10).unwrap();
        assert!(file.write_bytes(0, bytes).await.is_err());
        // The readable part can be used, and nothing of the above was written there.
        assert_eq!(file.slice(0, 4096).await.unwrap(), [5; 4096]);
        file.update_region_async(0, b"fine").await.unwrap();
        wait_until(&file, is_quiet).await;
    });
}

#[test]
fn flush_error_outlives_repair() {
    // The image is sparse, on a disk that has no room for it.
    let test = "flush_error_outlives_repair";
    let Some(small) = Disk::tmpfs(test, 8 * MIB) else {
        return;
    };
    let Some(disk) = Disk::ext4(test, &small.path("image"), 64 * MIB) else {
        return;
    };
    let path = disk.path("data");
    block_on(async {
        let file = MemoryMappedFile::create_rw(&path, 32 * MIB).await.unwrap();
        file.update_region_async(0, b"durable").await.unwrap();
        assert!(file.last_flush_error().is_none());
        let filler = small.fill();
        file.update_region(MIB, &[1; 8192]).await.unwrap();
        let lost = file.flush().await.unwrap_err();
        let lost = lost.raw_os_error();
        assert!(
            matches!(lost, Some(libc::ENOSPC | libc::EIO)),
            "{lost:?} is not what a flush of it meets"
        );
        let fails = |result: mmap_io::Result<()>| {
            let error = result.unwrap_err();
            assert!(matches!(error, MmapIoError::FlushFailed(_)), "{error:?}");
            assert_eq!(error.raw_os_error(), lost);
        };
        // Also when there is room, and a flush would succeed: what was lost is lost.
        small.free(&filler);
        let other = MemoryMappedFile::open_rw(&path).await.unwrap();
        let always = MemoryMappedFile::builder(&path)
            .flush_policy(FlushPolicy::Always)
            .open_or_create()
            .await
            .unwrap();
        for file in [&file, &other, &always] {
            fails(file.flush().await);
            fails(file.flush_range(0, 1).await);
            fails(file.flush_async().await);
            fails(file.flush_range_async(2 * MIB, 1).await);
            fails(file.update_region_async(0, b"x").await);
            fails(file.update_regions_async(&[(0, b"x")]).await);
            fails(file.write_bytes_async(0, vec![1].into()).await);
            fails(file.as_slice_mut(0, 1).await.unwrap().commit().await);
            fails(file.clone().close().await);
            fails(Err(file.last_flush_error().unwrap()));
            assert_eq!(file.stats().flush_errors, 1);
        }
        fails(always.update_region(0, b"x").await);
        fails(always.try_update_region(0, b"x").await.map(drop));
        assert!(file.pending_bytes() >= 8192);
        // Operations that are not durable proceed.
        file.update_region(0, b"visible").await.unwrap();
        assert_eq!(other.slice(0, 7).await.unwrap(), b"visible");
        assert_eq!(file.slice(MIB, 8192).await.unwrap(), [1; 8192]);
        file.resize(33 * MIB).await.unwrap();
        fails(file.flush().await);

        // A `Bytes` keeps the file and its error alive; after that, an opening starts afresh.
        let bytes = file.bytes(0, 7).unwrap();
        drop((file, other, always));
        let again = MemoryMappedFile::open_rw(&path).await.unwrap();
        fails(again.flush().await);
        drop((bytes, again));
        // The last job may still hold the file.
        let deadline = Instant::now() + TIMEOUT;
        let fresh = loop {
            let again = MemoryMappedFile::open_rw(&path).await.unwrap();
            if again.last_flush_error().is_none() {
                break again;
            }
            assert!(
                Instant::now() < deadline,
                "expected a fresh state after the last drop, but the error is still there"
            );
            drop(again);
            yield_now().await;
        };
        fresh.update_region_async(MIB, b"again").await.unwrap();
        fresh.flush().await.unwrap();
    });
}

#[test]
fn hugetlbfs_file_is_refused() {
    let test = "hugetlbfs_file_is_refused";
    // SAFETY: the name is live and ends in a zero byte.
    let memory = unsafe { libc::memfd_create(b"huge\0".as_ptr().cast(), libc::MFD_HUGETLB) };
    if memory < 0 {
        return skip(test, "there is no hugetlbfs");
    }
    // SAFETY: the descriptor is new, and nothing else owns it.
    let memory = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(memory) };
    memory.set_len(4 * MIB).unwrap();
    for mode in [mmap_io::MmapMode::ReadOnly, mmap_io::MmapMode::ReadWrite] {
        let copy = memory.try_clone().unwrap();
        let refused = block_on(MemoryMappedFile::from_file(copy, mode, "huge")).map(drop);
        let error = refused.unwrap_err();
        assert_eq!(error.io_kind(), Some(std::io::ErrorKind::Unsupported));
        assert!(error.to_string().contains("hugetlbfs"), "{error}");
    }
}

#[test]
fn large_range_is_not_counted_as_resident() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 5 << 20).await;
        file.touch_pages().await.unwrap();
        let before = file.stats();
        file.slice(0, 5 << 20).await.unwrap();
        let after = file.stats();
        assert_eq!(after.resident_hits, before.resident_hits);
        assert_eq!(after.resident_misses, before.resident_misses);
        assert_eq!(after.pool_hops, before.pool_hops + 1);
        file.slice(0, 1 << 20).await.unwrap();
        assert_eq!(file.stats().resident_hits, before.resident_hits + 1);
    });
}
