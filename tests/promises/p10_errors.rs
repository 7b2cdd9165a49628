//! Errors, not signals: a full disk, a file that somebody else has truncated, a flush that failed.

#![cfg(target_os = "linux")]

use std::ffi::CString;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use mmap_io::{MemoryMappedFile, MmapIoError};

use crate::common::{alone, is_quiet, pattern, patterned, skip, until};

/// A tmpfs of 1 MiB, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(test: &str) -> Option<Self> {
        // SAFETY: the call takes nothing and cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            skip(test, "needs root, to mount a small disk");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = CString::new(dir.path().as_os_str().as_bytes()).unwrap();
        // SAFETY: all strings are live and end in a zero byte.
        let result = unsafe {
            libc::mount(
                c"tmpfs".as_ptr(),
                path.as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                c"size=1m".as_ptr().cast(),
            )
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        Some(Self(dir))
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.path().join("filler")).unwrap();
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let path = CString::new(self.0.path().as_os_str().as_bytes()).unwrap();
        // SAFETY: the string is live and ends in a zero byte.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

#[test]
fn a_full_disk_is_found_before_the_first_byte_changes() {
    let Some(disk) = SmallDisk::mount("a_full_disk") else {
        return;
    };
    let path = disk.0.path().join("data");
    alone(async {
        let file = MemoryMappedFile::create_rw(&path, 10 << 20).await.unwrap();
        file.update_region(0, &pattern(4096)).await.unwrap();
        disk.fill();
        let is_full = |error: MmapIoError| {
            assert_eq!(error.io_kind(), Some(ErrorKind::StorageFull), "{error:?}");
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        };
        is_full(file.update_region(4000, &[9; 5000]).await.unwrap_err());
        is_full(file.update_region_async(1 << 20, b"x").await.unwrap_err());
        is_full(
            file.update_regions(&[(0, b"x"), (2 << 20, b"y")])
                .await
                .unwrap_err(),
        );
        is_full(
            file.write_bytes(4090, vec![9; 100].into())
                .await
                .unwrap_err(),
        );
        is_full(file.try_update_region(5000, b"x").await.unwrap_err());
        is_full(file.as_slice_mut(5000, 10).await.map(drop).unwrap_err());
        let other = MemoryMappedFile::builder(disk.0.path().join("other"));
        let refused = other.size(100_000).preallocate(true).create().await;
        assert!(matches!(refused, Err(MmapIoError::ResizeFailed(_))));
        is_full(refused.unwrap_err());
        assert!(!disk.0.path().join("other").exists());
        // Nothing has changed, and what is there can be written.
        assert_eq!(file.as_slice(0, 4096).unwrap(), &pattern(4096)[..]);
        file.update_region(0, b"still").await.unwrap();
        until(&file, is_quiet).await;
        assert_eq!(file.stats().write_errors, 5);
    });
}

#[test]
fn a_file_that_another_process_truncates() {
    let dir = tempfile::tempdir().unwrap();
    alone(async {
        let (path, file) = patterned(dir.path(), 100_000).await;
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        truncate(&path, 10_000);
        let is_truncated = |error: MmapIoError| {
            let told = matches!(
                error,
                MmapIoError::Truncated {
                    file_len: 10_000,
                    ..
                }
            );
            assert!(told, "{error:?}");
        };
        is_truncated(file.update_region(50_000, b"x").await.unwrap_err());
        is_truncated(file.update_region_async(9_999, b"xx").await.unwrap_err());
        is_truncated(
            file.update_regions(&[(0, b"x"), (20_000, b"x")])
                .await
                .unwrap_err(),
        );
        is_truncated(file.as_slice_mut(50_000, 10).await.map(drop).unwrap_err());
        for handle in [&file, &reader] {
            is_truncated(handle.slice(50_000, 10).await.map(drop).unwrap_err());
            is_truncated(handle.read_bytes(50_000, 10).await.map(drop).unwrap_err());
            is_truncated(handle.read_into(50_000, &mut [0; 10]).await.unwrap_err());
            is_truncated(handle.touch_pages().await.unwrap_err());
        }
        is_truncated(file.resize(200_000).await.unwrap_err());
        is_truncated(
            MemoryMappedFile::open_rw(&path)
                .await
                .map(drop)
                .unwrap_err(),
        );
        assert!(file.copy_to(dir.path().join("copy")).await.is_err());
        assert!(!dir.path().join("copy").exists());
        // What is left can be used; nothing made the file longer again.
        file.update_region_async(5_000, b"left").await.unwrap();
        assert_eq!(file.slice(5_000, 4).await.unwrap(), b"left");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 10_000);
        until(&file, is_quiet).await;
    });
}

fn truncate(path: &Path, len: u64) {
    let done = Command::new("truncate")
        .args(["--size", &len.to_string()])
        .arg(path)
        .status()
        .unwrap();
    assert!(done.success());
}
