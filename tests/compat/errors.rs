//! Each error: what causes it, the numbers in it, and its message.

use std::error::Error;
use std::fs;
use std::io::{self, ErrorKind};

use mmap_io::{Cause, MemoryMappedFile, MmapAdvice, MmapIoError, Result};

use crate::{assert_names, block_on, Rig, LEN, TOO_LARGE};

/// Checks what holds for an error that comes from an `io::Error`.
#[track_caller]
fn assert_caused(error: &MmapIoError, cause: &Cause, words: &[&str]) {
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "{word}: {message}");
    }
    let inner: &io::Error = cause;
    assert!(message.ends_with(&inner.to_string()), "{message}");
    assert_eq!(cause.to_string(), message);
    assert_eq!(error.io_kind(), Some(inner.kind()));
    assert_eq!(error.raw_os_error(), inner.raw_os_error());
    // `source` goes on below what the message says.
    let below = inner.source().map(ToString::to_string);
    assert_eq!(error.source().map(ToString::to_string), below);
    // Clones share the cause, and so does the `io::Error` that it becomes.
    let clone = error.clone();
    assert!(std::ptr::eq(clone.io_error().unwrap(), inner));
    let plain = io::Error::from(clone);
    assert_eq!((plain.kind(), plain.to_string()), (inner.kind(), message));
    assert!(plain.get_ref().unwrap().is::<MmapIoError>());
}

/// Checks what holds for an error that has numbers instead.
#[track_caller]
fn assert_plain(error: MmapIoError, numbers: &[u64], kind: ErrorKind) {
    assert_names(&error, numbers);
    assert!(error.io_error().is_none() && error.source().is_none());
    assert_eq!((error.io_kind(), error.raw_os_error()), (None, None));
    assert_eq!(io::Error::from(error).kind(), kind);
}

#[test]
fn io() {
    block_on(async {
        let rig = Rig::new().await;
        let missing = rig.path_of("missing");
        let error = MemoryMappedFile::open_ro(&missing).await.unwrap_err();
        let MmapIoError::Io(cause) = &error else {
            panic!("{error:?}");
        };
        assert_caused(&error, cause, &["opening", missing.to_str().unwrap()]);
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        assert_eq!(error.io_kind(), Some(ErrorKind::NotFound));
        assert_eq!(error.io_error().unwrap().kind(), ErrorKind::NotFound);
        // From an `io::Error`, with the question mark.
        let converted = || -> Result<()> { Err(io::Error::from_raw_os_error(libc::ENOSPC))? };
        let error = converted().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        let cause = Cause::from(ErrorKind::NotFound);
        assert_eq!(cause.kind(), ErrorKind::NotFound);
        assert_eq!(Cause::from(io::Error::other("text")).to_string(), "text");
    });
}

#[test]
fn invalid_mode() {
    block_on(async {
        let rig = Rig::new().await;
        let error = rig.reader.update_region(5, b"xx").await.unwrap_err();
        let MmapIoError::InvalidMode(cause) = &error else {
            panic!("{error:?}");
        };
        assert_caused(&error, cause, &["writing 2 bytes at offset 5", "read-only"]);
    });
}

#[test]
fn out_of_bounds() {
    block_on(async {
        let rig = Rig::new().await;
        let error = rig.file.as_slice(LEN - 3, 7).unwrap_err();
        let MmapIoError::OutOfBounds { offset, len, total } = error else {
            panic!("{error:?}");
        };
        assert_eq!((offset, len, total), (LEN - 3, 7, LEN));
        assert_plain(error, &[LEN - 3, 7, LEN], ErrorKind::InvalidInput);
    });
}

#[test]
fn misaligned() {
    block_on(async {
        let rig = Rig::new().await;
        let error = rig.file.atomic_u64(12).unwrap_err();
        let MmapIoError::Misaligned { required, offset } = error else {
            panic!("{error:?}");
        };
        assert_eq!((required, offset), (8, 12));
        assert_plain(error, &[8, 12], ErrorKind::InvalidInput);
    });
}

#[test]
fn busy() {
    block_on(async {
        let rig = Rig::new().await;
        let _view = rig.file.as_slice_mut(0, 10).await.unwrap();
        let error = rig.reader.as_slice(9, 71).unwrap_err();
        let busy = matches!(
            error,
            MmapIoError::Busy {
                offset: 9,
                len: 71,
                path: None,
                ..
            }
        );
        assert!(busy, "{error:?}");
        assert_plain(error, &[9, 71], ErrorKind::WouldBlock);
        // Or a path that is mapped.
        let error = MemoryMappedFile::create_rw(&rig.path, 5).await.unwrap_err();
        let MmapIoError::Busy {
            path: Some(path), ..
        } = &error
        else {
            panic!("{error:?}");
        };
        assert_eq!(**path, rig.path);
        assert!(error.to_string().contains(rig.path.to_str().unwrap()));
        assert_plain(error, &[], ErrorKind::WouldBlock);
    });
}

#[test]
fn resize_failed() {
    block_on(async {
        let rig = Rig::new().await;
        let error = rig.file.resize(TOO_LARGE).await.unwrap_err();
        let MmapIoError::ResizeFailed(cause) = &error else {
            panic!("{error:?}");
        };
        assert_caused(&error, cause, &["resizing", &TOO_LARGE.to_string()]);
        assert_eq!(error.io_kind(), Some(ErrorKind::InvalidInput));
    });
}

#[test]
fn truncated() {
    block_on(async {
        let rig = Rig::new().await;
        let plain = fs::File::options().write(true).open(&rig.path).unwrap();
        plain.set_len(7001).unwrap();
        let error = rig.file.slice(6999, 50).await.unwrap_err();
        let MmapIoError::Truncated {
            offset,
            len,
            file_len,
        } = error
        else {
            panic!("{error:?}");
        };
        assert_eq!((offset, len, file_len), (6999, 50, 7001));
        assert_plain(error, &[6999, 50, 7001], ErrorKind::UnexpectedEof);
    });
}

#[test]
#[cfg(target_os = "linux")]
fn advice_failed() {
    block_on(async {
        let rig = Rig::new().await;
        // The system takes no locked page out of a mapping.
        rig.file.lock(0, 1).await.unwrap();
        let advised = rig.file.advise(0, 10, MmapAdvice::DontNeed).await;
        let error = advised.unwrap_err();
        let MmapIoError::AdviceFailed(cause) = &error else {
            panic!("{error:?}");
        };
        assert_caused(&error, cause, &["10 bytes at offset 0"]);
    });
}

#[test]
fn watch_failed() {
    block_on(async {
        let rig = Rig::new().await;
        fs::remove_file(&rig.path).unwrap();
        let error = rig.file.watch_stream().await.unwrap_err();
        let MmapIoError::WatchFailed(cause) = &error else {
            panic!("{error:?}");
        };
        assert_caused(&error, cause, &["watching", rig.path.to_str().unwrap()]);
    });
}

#[test]
fn lock_failed() {
    use std::os::fd::AsRawFd;

    block_on(async {
        let rig = Rig::new().await;
        let other = fs::File::open(&rig.path).unwrap();
        // SAFETY: a system call on a descriptor that is open.
        assert_eq!(unsafe { libc::flock(other.as_raw_fd(), libc::LOCK_EX) }, 0);
        let builder = MemoryMappedFile::builder(&rig.path);
        let locked = builder.advisory_lock(mmap_io::Lock::Shared).open().await;
        let error = locked.unwrap_err();
        let MmapIoError::LockFailed(cause) = &error else {
            panic!("{error:?}");
        };
        assert_caused(&error, cause, &["opening", rig.path.to_str().unwrap()]);
        assert_eq!(error.io_kind(), Some(ErrorKind::WouldBlock));
    });
}

/// The errors that need a system which fails, made by hand: `promises` has the failing disk.
#[test]
fn rare_errors() {
    let failing = || Cause::from(io::Error::from_raw_os_error(libc::EIO));
    for error in [
        MmapIoError::FlushFailed(failing()),
        MmapIoError::UnlockFailed(failing()),
    ] {
        let (MmapIoError::FlushFailed(cause) | MmapIoError::UnlockFailed(cause)) = &error else {
            unreachable!();
        };
        assert_caused(&error, cause, &[]);
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
    assert_plain(MmapIoError::Faulted { offset: 77 }, &[77], ErrorKind::Other);
}
