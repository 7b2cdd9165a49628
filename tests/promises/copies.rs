//! A copy equals its source, and its holes stay holes.

#![cfg(unix)]

use std::fs;
use std::os::unix::fs::MetadataExt;

use mmap_io::{copy_mmap, MemoryMappedFile, MmapIoError};

#[cfg(target_os = "linux")]
use crate::common::disk::{assert_full, Disk};
use crate::common::on_a_disk;
use crate::common::{block_on, pattern, patterned};
#[cfg(target_os = "linux")]
use crate::common::{
    child::child,
    fuse::{with_fuse, LSEEK},
};

const MIB: u64 = 1 << 20;

/// Bytes of disk that a file takes.
fn allocated(path: &std::path::Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn copy_of_sparse_file_is_sparse() {
    let dir = on_a_disk();
    let (path, copy) = (dir.path().join("data"), dir.path().join("copy"));
    block_on(async {
        let file = MemoryMappedFile::create_rw(&path, 2 << 30).await.unwrap();
        // Some on the disk, some only in memory; the last bytes lie before a hole.
        let pieces = [(0, 4096), (100 * MIB - 50, 100), (1 << 30, 300_000)];
        for (at, len) in pieces {
            file.update_region(at, &pattern(len)).await.unwrap();
        }
        file.flush_range(0, 4096).await.unwrap();
        let before = allocated(&path);
        for by_path in [false, true] {
            match by_path {
                false => assert_eq!(file.copy_to(&copy).await.unwrap(), 2 << 30),
                true => copy_mmap(&path, &copy).await.unwrap(),
            }
            let copied = MemoryMappedFile::open_ro(&copy).await.unwrap();
            assert_eq!(copied.len(), 2 << 30);
            for (at, len) in pieces {
                let slice = copied.slice(at, len as u64).await.unwrap();
                assert_eq!(*slice, *pattern(len));
            }
            assert_eq!(copied.slice(50 * MIB, 10).await.unwrap(), [0; 10]);
            assert_eq!(copied.slice((2 << 30) - 10, 10).await.unwrap(), [0; 10]);
            drop(copied);
            let after = allocated(&copy);
            assert!(after <= before + MIB, "{after} bytes for {before}");
            fs::remove_file(&copy).unwrap();
        }
    });
}

#[test]
fn copy_of_hole_keeps_length() {
    let dir = on_a_disk();
    let (path, copy) = (dir.path().join("data"), dir.path().join("copy"));
    fs::File::create(&path).unwrap().set_len(10 * MIB).unwrap();
    fs::write(&copy, pattern(20_000)).unwrap();
    block_on(copy_mmap(&path, &copy)).unwrap();
    let content = fs::read(&copy).unwrap();
    assert_eq!(content.len() as u64, 10 * MIB);
    assert!(content.iter().all(|byte| *byte == 0));
}

/// A copy takes its turn while its destination is looked at, and may hold its lease for a moment after
/// the error.
#[test]
fn refused_copy_does_not_keep_file_busy() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        drop(file);
        for _ in 0..300 {
            let itself = copy_mmap(&path, &path).await;
            assert!(matches!(itself, Err(MmapIoError::Busy { .. })));
            MemoryMappedFile::create_rw(&path, 1000).await.unwrap();
        }
    });
}

/// The server of a file system does not know of bytes that were stored through a map, until the
/// system writes them out.
#[cfg(target_os = "linux")]
#[test]
fn copy_has_bytes_that_server_lacks() {
    let this = child!(copy_has_bytes_that_server_lacks);
    with_fuse(this, &[("data", 1 << 20)], |fuse| {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let copy = dir.path().join("copy");
            // There is no data, it says.
            fuse.refuse(LSEEK, libc::ENXIO);
            let file = MemoryMappedFile::open_rw(fuse.path("data")).await.unwrap();
            file.update_region(5000, b"in memory").await.unwrap();
            let mut expected = pattern(1 << 20);
            assert!(fuse.content("data") == expected);
            expected[5000..5009].copy_from_slice(b"in memory");
            assert_eq!(file.copy_to(&copy).await.unwrap(), 1 << 20);
            assert!(fs::read(&copy).unwrap() == expected);
        });
    });
}

/// A layer of an overlayfs may have such a server: the lower one here, and the upper one since
/// Linux 5.7.
#[cfg(target_os = "linux")]
#[test]
fn copy_from_overlayfs_has_bytes_that_server_lacks() {
    let this = child!(copy_from_overlayfs_has_bytes_that_server_lacks);
    let test = this.test();
    with_fuse(this, &[("data", 1 << 20)], |fuse| {
        let dir = tempfile::tempdir().unwrap();
        let (copy, empty) = (dir.path().join("copy"), dir.path().join("empty"));
        fs::create_dir(&empty).unwrap();
        let (lower, empty) = (fuse.path(""), empty.display());
        let layers = format!("lowerdir={}:{empty}", lower.display());
        let Some(overlay) = Disk::mount(test, &layers, "overlay", "overlay".as_ref()) else {
            return;
        };
        fuse.refuse(LSEEK, libc::ENXIO);
        block_on(async {
            let file = MemoryMappedFile::open_rw(fuse.path("data")).await.unwrap();
            file.update_region(5000, b"in memory").await.unwrap();
            let mut expected = pattern(1 << 20);
            expected[5000..5009].copy_from_slice(b"in memory");
            let seen = MemoryMappedFile::open_ro(overlay.path("data")).await;
            assert_eq!(seen.unwrap().copy_to(&copy).await.unwrap(), 1 << 20);
            assert!(fs::read(&copy).unwrap() == expected);
        });
    });
}

/// The owner alone may open a copy until it is whole; a copy that fails leaves the permissions as
/// they were, and nothing of the source.
#[cfg(target_os = "linux")]
#[test]
fn failed_copy_keeps_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let Some(disk) = Disk::tmpfs("failed_copy_keeps_permissions", MIB) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let copy = disk.path("copy");
    block_on(async {
        let (path, file) = patterned(dir.path(), 4 << 20).await;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        fs::write(&copy, "old").unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o664)).unwrap();
        assert_full(file.copy_to(&copy).await);
        let metadata = fs::metadata(&copy).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.len()), (0o664, 0));
        file.resize(1000).await.unwrap();
        file.copy_to(&copy).await.unwrap();
        assert_eq!(fs::metadata(&copy).unwrap().mode() & 0o7777, 0o640);
    });
}
