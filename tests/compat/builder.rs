//! The builder: its options, and the four ways in which it ends.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use mmap_io::{
    FlushPolicy, Lock, MemoryMappedFile, MemoryMappedFileBuilder, MmapIoError, MmapMode, TouchHint,
};

use crate::common::{at_once, poll_once, HeldQueue};
use crate::{block_on, refused, Rig, LEN, TOO_LARGE};

fn builder(path: &Path) -> MemoryMappedFileBuilder {
    MemoryMappedFile::builder(path)
}

#[test]
fn create() {
    block_on(async {
        let rig = Rig::new().await;
        let new = rig.path_of("new");
        // Read-write by default, and the size is needed.
        refused!(builder(&new).create().await, MmapIoError::ResizeFailed(_));
        let file = builder(&new).size(5).create().await.unwrap();
        assert_eq!((file.mode(), file.len()), (MmapMode::ReadWrite, 5));
        assert!(file.was_created());
        refused!(
            builder(&new).size(5).create().await,
            MmapIoError::Busy { .. }
        );
        file.close().await.unwrap();
        fs::write(&new, b"content").unwrap();
        let file = builder(&new).size(3).create().await.unwrap();
        assert_eq!(file.as_slice(0, 3).unwrap(), [0; 3]);
        // The other modes open the file as it is.
        for mode in [MmapMode::ReadOnly, MmapMode::CopyOnWrite] {
            let file = builder(&rig.path)
                .size(5)
                .mode(mode)
                .create()
                .await
                .unwrap();
            assert_eq!((file.mode(), file.len()), (mode, LEN));
            let missing = builder(&rig.path_of("missing")).mode(mode).create().await;
            assert_eq!(missing.unwrap_err().io_kind(), Some(ErrorKind::NotFound));
        }
    });
}

#[test]
fn create_new() {
    block_on(async {
        let rig = Rig::new().await;
        let new = rig.path_of("new");
        for mode in [MmapMode::ReadOnly, MmapMode::CopyOnWrite] {
            let refused = builder(&new).size(5).mode(mode).create_new().await;
            refused!(refused, MmapIoError::InvalidMode(_));
        }
        for size in [0, TOO_LARGE] {
            let refused = builder(&rig.path).size(size).create_new().await;
            refused!(refused, MmapIoError::ResizeFailed(_));
        }
        assert!(!new.exists());
        let file = builder(&new).size(5).create_new().await.unwrap();
        assert_eq!(
            (file.mode(), file.was_created()),
            (MmapMode::ReadWrite, true)
        );
        let error = builder(&new).size(5).create_new().await.unwrap_err();
        assert!(matches!(error, MmapIoError::Io(_)), "{error:?}");
        assert_eq!(error.io_kind(), Some(ErrorKind::AlreadyExists));
        assert!(error.to_string().contains(new.to_str().unwrap()), "{error}");
    });
}

#[test]
fn open() {
    block_on(async {
        let rig = Rig::new().await;
        // Read-only by default; the size is for files without bytes.
        let file = builder(&rig.path).size(TOO_LARGE).open().await.unwrap();
        assert_eq!((file.mode(), file.len()), (MmapMode::ReadOnly, LEN));
        assert!(!file.was_created());
        for mode in [MmapMode::ReadWrite, MmapMode::CopyOnWrite] {
            let file = builder(&rig.path).mode(mode).open().await.unwrap();
            assert_eq!((file.mode(), file.len()), (mode, LEN));
        }
        let empty = rig.path_of("empty");
        fs::write(&empty, b"").unwrap();
        let opened = builder(&empty)
            .size(5)
            .mode(MmapMode::ReadWrite)
            .open()
            .await;
        refused!(opened, MmapIoError::ResizeFailed(_));
        assert!(builder(&empty).open().await.unwrap().is_empty());
    });
}

#[test]
fn open_or_create() {
    block_on(async {
        let rig = Rig::new().await;
        let file = builder(&rig.path).size(5).open_or_create().await.unwrap();
        assert_eq!((file.mode(), file.len()), (MmapMode::ReadWrite, LEN));
        let new = rig.path_of("new");
        for mode in [MmapMode::ReadOnly, MmapMode::CopyOnWrite] {
            let missing = builder(&new).size(5).mode(mode).open_or_create().await;
            assert_eq!(missing.unwrap_err().io_kind(), Some(ErrorKind::NotFound));
            let there = builder(&rig.path)
                .mode(mode)
                .open_or_create()
                .await
                .unwrap();
            assert_eq!(there.mode(), mode);
        }
        let missing = builder(&new).open_or_create().await;
        refused!(missing, MmapIoError::ResizeFailed(_));
        let file = builder(&new).size(5).open_or_create().await.unwrap();
        assert_eq!((file.len(), file.was_created()), (5, true));
    });
}

#[test]
fn mode() {
    block_on(async {
        let rig = Rig::new().await;
        for mode in [
            MmapMode::ReadOnly,
            MmapMode::ReadWrite,
            MmapMode::CopyOnWrite,
        ] {
            let file = builder(&rig.path).mode(mode).open().await.unwrap();
            assert_eq!(file.mode(), mode);
            let may_write = mode == MmapMode::ReadWrite;
            assert_eq!(file.update_region(0, b"x").await.is_ok(), may_write);
        }
    });
}

#[test]
fn flush_policy() {
    block_on(async {
        let rig = Rig::new().await;
        let with = |policy| builder(&rig.path).flush_policy(policy);
        let write = |policy| with(policy).mode(MmapMode::ReadWrite).open();
        let file = write(FlushPolicy::Always).await.unwrap();
        assert_eq!(file.flush_policy(), FlushPolicy::Always);
        file.update_region(0, b"x").await.unwrap();
        assert_eq!(file.pending_bytes(), 0);
        assert_eq!(FlushPolicy::default(), FlushPolicy::Never);
        assert_eq!(rig.file.flush_policy(), FlushPolicy::Never);
        // What does not write has no other policy.
        for mode in [MmapMode::ReadOnly, MmapMode::CopyOnWrite] {
            let file = with(FlushPolicy::Always).mode(mode).open().await.unwrap();
            assert_eq!(file.flush_policy(), FlushPolicy::Never);
        }
    });
}

#[test]
fn touch_hint() {
    assert_eq!(TouchHint::default(), TouchHint::Never);
    block_on(async {
        let rig = Rig::new().await;
        for (hint, reads_in) in [
            (TouchHint::Never, false),
            (TouchHint::Lazy, false),
            (TouchHint::Eager, true),
        ] {
            let path = rig.path_of(&format!("{hint:?}"));
            fs::write(&path, b"bytes").unwrap();
            let file = builder(&path).touch_hint(hint).open().await.unwrap();
            let stats = file.stats();
            let looked = stats.resident_hits + stats.resident_misses;
            assert_eq!(looked > 0, reads_in, "{hint:?}");
        }
    });
}

#[test]
fn huge_pages() {
    block_on(async {
        let rig = Rig::new().await;
        // A hint: never an error, and not a byte more or less.
        let new = rig.path_of("new");
        let file = builder(&new)
            .size(4097)
            .huge_pages(true)
            .create()
            .await
            .unwrap();
        assert_eq!(file.len(), 4097);
        file.resize(8193).await.unwrap();
        assert_eq!(file.as_slice(0, 8193).unwrap(), [0; 8193]);
        let reader = builder(&rig.path).huge_pages(true).open().await.unwrap();
        assert_eq!(reader.as_slice(1, 1).unwrap(), [1]);
        assert_ne!(reader.is_hugepage_backed().await, Some(true));
    });
}

#[test]
fn cow_writable() {
    block_on(async {
        let rig = Rig::new().await;
        for (mode, writable, is_private) in [
            (MmapMode::CopyOnWrite, true, true),
            (MmapMode::CopyOnWrite, false, false),
            (MmapMode::ReadWrite, true, false),
            (MmapMode::ReadOnly, true, false),
        ] {
            let builder = builder(&rig.path).mode(mode).cow_writable(writable);
            let file = builder.open().await.unwrap();
            assert_eq!(file.is_cow_writable(), is_private, "{mode:?}");
        }
    });
}

#[test]
fn preallocate() {
    block_on(async {
        let rig = Rig::new().await;
        let blocks = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
        let (sparse, reserved) = (rig.path_of("sparse"), rig.path_of("reserved"));
        builder(&sparse).size(1 << 20).create().await.unwrap();
        // The last block may be there, since it makes the file that long.
        assert!(blocks(&sparse) <= 64 << 10);
        let builder = builder(&reserved).size(1 << 20).preallocate(true);
        let file = builder.create().await.unwrap();
        assert!(blocks(&reserved) >= 1 << 20);
        file.resize(2 << 20).await.unwrap();
        assert!(blocks(&reserved) >= 2 << 20);
    });
}

#[test]
fn advisory_lock() {
    /// Whether another open file description could take a lock of a kind.
    fn is_free(path: &Path, kind: libc::c_int) -> bool {
        let file = fs::File::open(path).unwrap();
        // SAFETY: a system call on a descriptor that is open.
        unsafe { libc::flock(file.as_raw_fd(), kind | libc::LOCK_NB) == 0 }
    }
    block_on(async {
        let rig = Rig::new().await;
        for (lock, is_shared_free) in [(Lock::Shared, true), (Lock::Exclusive, false)] {
            let path = rig.path_of(&format!("{lock:?}"));
            let locked = builder(&path).size(5).advisory_lock(lock);
            let file = locked.open_or_create().await.unwrap();
            assert_eq!(is_free(&path, libc::LOCK_SH), is_shared_free);
            assert!(!is_free(&path, libc::LOCK_EX));
            file.close().await.unwrap();
            assert!(is_free(&path, libc::LOCK_EX));
        }
        // Held by another program.
        let other = fs::File::open(&rig.path).unwrap();
        // SAFETY: a system call on a descriptor that is open.
        assert_eq!(unsafe { libc::flock(other.as_raw_fd(), libc::LOCK_EX) }, 0);
        let error = builder(&rig.path).advisory_lock(Lock::Shared).open().await;
        let error = error.unwrap_err();
        assert!(matches!(error, MmapIoError::LockFailed(_)), "{error:?}");
        assert_eq!(error.io_kind(), Some(ErrorKind::WouldBlock));
    });
}

#[test]
fn write_buffer() {
    block_on(async {
        let rig = Rig::new().await;
        let builder = builder(&rig.path).mode(MmapMode::ReadWrite).write_buffer(1);
        let file = builder.open().await.unwrap();
        // A write that is larger than the buffer is admitted alone, and leaves no room.
        let held = HeldQueue::new(&file, 100);
        let mut larger = Box::pin(file.update_region(0, b"larger"));
        assert!(poll_once(&mut larger).await.is_none());
        assert!(!at_once(file.try_update_region(10, b"x")).unwrap());
        held.release().await;
        larger.await.unwrap();
        assert!(file.try_update_region(10, b"x").await.unwrap());
        assert_eq!(file.as_slice(0, 6).unwrap(), b"larger");
    });
}

#[test]
fn unix_permissions() {
    block_on(async {
        let rig = Rig::new().await;
        let new = rig.path_of("new");
        let secret = |path| builder(path).size(5).unix_permissions(0o600);
        let file = secret(&new).create().await.unwrap();
        let mode = file.metadata().await.unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // A file that is there keeps its own.
        let before = fs::metadata(&rig.path).unwrap().mode();
        secret(&rig.path).open_or_create().await.unwrap();
        assert_eq!(fs::metadata(&rig.path).unwrap().mode(), before);
    });
}

#[test]
fn touch_mtime() {
    block_on(async {
        let rig = Rig::new().await;
        let builder = builder(&rig.path)
            .mode(MmapMode::ReadWrite)
            .touch_mtime(true);
        let file = builder.open().await.unwrap();
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        let plain = fs::File::options().write(true).open(&rig.path).unwrap();
        plain.set_modified(long_ago).unwrap();
        let modified = || fs::metadata(&rig.path).unwrap().modified().unwrap();
        file.update_region_async(0, b"x").await.unwrap();
        assert!(modified() > long_ago);
        // A flush of nothing touches nothing.
        plain.set_modified(long_ago).unwrap();
        file.flush().await.unwrap();
        assert_eq!(modified(), long_ago);
    });
}
