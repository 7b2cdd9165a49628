//! Blocks that are reserved for a file, at the limits of the process. Each test runs a child.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use mmap_io::{MemoryMappedFile, MmapIoError, Result};

use crate::common::child::{child, child_dir};
use crate::common::disk::{assert_full, Disk};
use crate::common::{block_on, on_a_disk};

macro_rules! limit {
    ($resource:ident, $most:expr) => {{
        let most = $most as libc::rlim_t;
        let limit = libc::rlimit {
            rlim_cur: most,
            rlim_max: most,
        };
        // SAFETY: the structure is live for the call.
        assert_eq!(unsafe { libc::setrlimit(libc::$resource, &limit) }, 0);
    }};
}

/// The bytes of a file, and those of its blocks.
fn sizes(path: &Path) -> (u64, u64) {
    let metadata = fs::metadata(path).unwrap();
    (metadata.len(), metadata.blocks() * 512)
}

/// A tmpfs applies the limit also to blocks that are reserved past the end of a file.
#[test]
fn file_limit_on_tmpfs_is_no_signal() {
    let test = "file_limit_on_tmpfs_is_no_signal";
    let Some(disk) = Disk::tmpfs(test, 1 << 20) else {
        return;
    };
    let hole = File::create(disk.path("hole")).unwrap();
    hole.set_len(10_000).unwrap();
    child!(appending_child).dir(&disk.path("")).passes();
    child!(reserving_child).dir(&disk.path("")).passes();
    disk.fill();
    child!(filling_child).dir(&disk.path("")).passes();
}

fn assert_too_large(result: Result<()>) {
    let error = result.unwrap_err();
    assert!(matches!(error, MmapIoError::ResizeFailed(_)), "{error:?}");
    assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
}

fn append_and_grow(path: &Path, reserved: bool) {
    block_on(async {
        let builder = MemoryMappedFile::builder(path).size(4096);
        let file = builder.preallocate(reserved).create().await.unwrap();
        let before = sizes(path);
        assert_too_large(file.resize(20_000).await);
        assert_too_large(file.grow_to(20_000).await.map(drop));
        let appended = file.append(&[1; 10_000]).await.unwrap_err();
        assert_eq!(appended.raw_os_error(), Some(libc::EFBIG), "{appended:?}");
        assert_eq!((file.len(), sizes(path)), (4096, before));
        // The last of its pages reaches past the limit.
        assert_eq!(file.append(&[1; 5000]).await.unwrap(), 4096);
        assert_eq!(file.grow_to(10_000).await.unwrap(), 10_000);
        assert_eq!(file.slice(4096, 5000).await.unwrap(), [1; 5000]);
    });
}

#[test]
fn appending_child() {
    if let Some(dir) = child_dir() {
        limit!(RLIMIT_FSIZE, 10_000);
        append_and_grow(&dir.join("appended"), false);
    }
}

#[test]
fn reserving_child() {
    if let Some(dir) = child_dir() {
        limit!(RLIMIT_FSIZE, 10_000);
        append_and_grow(&dir.join("reserved"), true);
    }
}

#[test]
fn filling_child() {
    if let Some(dir) = child_dir() {
        limit!(RLIMIT_FSIZE, 10_000);
        block_on(async {
            let file = MemoryMappedFile::open_rw(dir.join("hole")).await.unwrap();
            assert_full(file.update_region(9000, b"x").await);
        });
    }
}

#[test]
fn growth_that_cannot_be_mapped_takes_no_blocks() {
    let dir = on_a_disk();
    child!(unmappable_child).dir(dir.path()).passes();
}

#[test]
fn unmappable_child() {
    const MORE: u64 = 256 << 20;
    let Some(dir) = child_dir() else {
        return;
    };
    let path = dir.join("data");
    block_on(async {
        let builder = MemoryMappedFile::builder(&path).size(4096);
        let file = builder.preallocate(true).create().await.unwrap();
        let before = sizes(&path);
        let pages = fs::read_to_string("/proc/self/statm").unwrap();
        let pages = pages.split(' ').next().unwrap().parse::<u64>().unwrap();
        let mapped = pages * mmap_io::utils::page_size() as u64;
        limit!(RLIMIT_AS, mapped + MORE / 2);
        for grown in [file.resize(MORE).await, file.grow_to(MORE).await.map(drop)] {
            let error = grown.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOMEM), "{error:?}");
            assert_eq!((file.len(), sizes(&path)), (4096, before));
        }
    });
}

#[cfg(target_pointer_width = "64")]
#[test]
fn append_that_cannot_be_mapped_takes_no_blocks() {
    let dir = on_a_disk();
    child!(outgrowing_child).dir(dir.path()).passes();
}

#[cfg(target_pointer_width = "64")]
#[test]
fn outgrowing_child() {
    const GIB: u64 = 1 << 30;
    let Some(dir) = child_dir() else {
        return;
    };
    let path = dir.join("data");
    fs::write(&path, "").unwrap();
    let set_len = |len| {
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_len(len).unwrap();
    };
    set_len(64 * GIB);
    // Room for one map, which reserves an eighth of the file, and for no second one.
    limit!(RLIMIT_AS, 80 * GIB);
    block_on(async {
        let file = MemoryMappedFile::open_rw(&path).await.unwrap();
        let end = 72 * GIB - 100;
        set_len(end);
        assert_eq!(file.refresh().await.unwrap(), end);
        let before = sizes(&path);
        let error = file.append(&[1; 100_000]).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOMEM), "{error:?}");
        assert_eq!((file.len(), sizes(&path)), (end, before));
        assert_eq!(file.append(&[1; 50]).await.unwrap(), end);
    });
}
