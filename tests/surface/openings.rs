//! Files that are opened, created, copied and removed at the same time: an opening waits for no
//! view, no file is lost, and a call that creates a file never gets the error that its own file
//! exists.

use std::fs;
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
#[cfg(unix)]
use std::{future::Future, task::Context};

use futures_lite::future::poll_once;
use mmap_io::{MemoryMappedFile, MmapIoError};

#[cfg(unix)]
use crate::common::child::{child, child_dir};
use crate::common::{block_on, is_quiet, patterned, wait_until};
#[cfg(unix)]
use crate::common::{HeldQueue, TIMEOUT};

#[test]
fn opening_grown_file_waits_for_no_view() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 8192).await;
        let view = file.bytes(0, 10).unwrap();
        let mut write = Box::pin(file.update_region(0, &[1; 10]));
        while file.stats().oldest_blocked.is_none() {
            assert!(poll_once(&mut write).await.is_none());
            std::thread::yield_now();
        }
        // Another process appends to it.
        let mut other = fs::File::options().append(true).open(&path).unwrap();
        other.write_all(&[7; 100]).unwrap();
        let opened = MemoryMappedFile::open_ro(&path).await.unwrap();
        assert_eq!((opened.len(), file.len()), (8292, 8292));
        file.update_region(8200, b"x").await.unwrap();
        assert!(poll_once(&mut write).await.is_none());
        drop(view);
        write.await.unwrap();
    });
}

#[test]
fn file_is_busy_once_opened() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let path = dir.path().join("data");
        fs::write(&path, [1; 100]).unwrap();
        let start = || loop {
            let mut opening = Box::pin(MemoryMappedFile::open_rw(&path));
            // The pool may have opened it before the poll.
            if block_on(poll_once(&mut opening)).is_none() {
                break opening;
            }
        };
        let mut opening = start();
        // Until the pool has opened it, creating succeeds, and is over again; then it is busy,
        // though the future that opens is not polled.
        loop {
            match MemoryMappedFile::create_rw(&path, 100).await {
                Ok(created) => created.close().await.unwrap(),
                Err(error) => {
                    assert!(matches!(error, MmapIoError::Busy { .. }), "{error:?}");
                    break;
                }
            }
            // If the pool came upon the file that was created, the opening begins anew when it is
            // polled.
            if let Some(opened) = poll_once(&mut opening).await {
                drop(opened.unwrap());
                opening = start();
            }
        }
        drop(opening.await.unwrap());
        MemoryMappedFile::create_rw(&path, 100).await.unwrap();
    });
}

#[test]
fn failed_create_keeps_replacement_file() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 8192).await;
        let copy = dir.path().join("copy");
        let view = file.as_slice_mut(0, 10).await.unwrap();
        let mut copying = Box::pin(file.copy_to(&copy));
        while file.stats().oldest_blocked.is_none() {
            assert!(poll_once(&mut copying).await.is_none());
            std::thread::yield_now();
        }
        fs::write(&copy, b"precious").unwrap();
        drop(copying);
        drop(view);
        wait_until(&file, is_quiet).await;
        assert_eq!(fs::read(&copy).unwrap(), b"precious");
    });
}

#[test]
#[cfg_attr(windows, ignore = "Windows removes no mapped file")]
fn creator_never_gets_already_exists() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    match block_on(MemoryMappedFile::open_rw(&path)) {
                        Ok(file) => assert_eq!(file.len(), 4096),
                        Err(MmapIoError::ResizeFailed(_)) => {}
                        Err(error) => assert_eq!(error.io_kind(), Some(ErrorKind::NotFound)),
                    }
                }
            });
        }
        for _ in 0..300 {
            let builder = MemoryMappedFile::builder(&path).size(4096);
            let created = block_on(builder.create_new()).unwrap();
            assert_eq!(created.len(), 4096);
            fs::remove_file(&path).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn mapped_for_writing() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let path = dir.path().join("data");
        fs::write(&path, [1; 100]).unwrap();
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let second = MemoryMappedFile::open_ro(&path).await.unwrap();
        assert!(!reader.is_mapped_for_writing() && !second.is_mapped_for_writing());
        #[cfg(feature = "cow")]
        {
            let private = MemoryMappedFile::open_cow_writable(&path).await.unwrap();
            private.update_region(0, b"private").await.unwrap();
            assert!(!reader.is_mapped_for_writing() && !private.is_mapped_for_writing());
        }
        let writer = MemoryMappedFile::open_rw(&path).await.unwrap();
        assert!(reader.is_mapped_for_writing() && writer.is_mapped_for_writing());
        // What it has written may be newer than the time of modification.
        writer.close().await.unwrap();
        assert!(reader.is_mapped_for_writing() && second.is_mapped_for_writing());
        drop(second);
        reader.close().await.unwrap();
        let again = MemoryMappedFile::open_ro(&path).await.unwrap();
        assert!(!again.is_mapped_for_writing());
    });
}

#[test]
#[cfg_attr(windows, ignore = "Windows cuts no mapped file")]
fn touch_pages_uses_current_length() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 100_000).await;
        let touching = file.touch_pages();
        file.resize(100).await.unwrap();
        touching.await.unwrap();
    });
}

#[cfg(unix)]
#[test]
fn create_follows_dangling_links() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    block_on(async {
        std::os::unix::fs::symlink("second", at("first")).unwrap();
        std::os::unix::fs::symlink(at("data"), at("second")).unwrap();
        let file = MemoryMappedFile::create_rw(at("first"), 100).await.unwrap();
        assert_eq!(fs::metadata(at("data")).unwrap().len(), 100);
        let same = MemoryMappedFile::create_rw(at("data"), 100).await;
        assert!(matches!(same, Err(MmapIoError::Busy { .. })));
        drop(file);
        std::os::unix::fs::symlink("round", at("about")).unwrap();
        std::os::unix::fs::symlink("about", at("round")).unwrap();
        assert!(MemoryMappedFile::create_rw(at("about"), 1).await.is_err());
    });
}

/// The kernel asks the process that holds the lease to release it, and an opening waits for that.
#[cfg(target_os = "linux")]
#[test]
fn open_waits_for_foreign_lease() {
    use std::os::fd::AsRawFd;

    use crate::common::child::child;
    use crate::common::on_a_disk;

    let dir = on_a_disk();
    let (path, ready) = (dir.path().join("data"), dir.path().join("ready"));
    let open: [fn(&std::path::Path) -> mmap_io::Result<MemoryMappedFile>; 4] = [
        |path| block_on(MemoryMappedFile::open_ro(path)),
        |path| block_on(MemoryMappedFile::open_rw(path)),
        |path| block_on(MemoryMappedFile::open_or_create(path, 10)),
        |path| block_on(MemoryMappedFile::create_rw(path, 10)),
    ];
    for open in open {
        fs::write(&path, [7; 5000]).unwrap();
        let _ = fs::remove_file(&ready);
        std::thread::scope(|scope| {
            let holder = scope.spawn(|| child!(leasing_child).dir(dir.path()).passes());
            while !ready.exists() {
                assert!(!holder.is_finished(), "{:?}", holder.join());
                std::thread::yield_now();
            }
            let file = open(&path).unwrap();
            assert!(!file.is_empty());
            // SAFETY: the call takes no pointer, and the handle keeps the descriptor open.
            let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
            assert_eq!(flags & libc::O_NONBLOCK, 0);
            holder.join().unwrap();
        });
    }
    // No other opening leaves it, either; and a pipe is waited for by none.
    let fifo = dir.path().join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    let refused = block_on(MemoryMappedFile::open_ro(&fifo)).map(drop);
    assert_eq!(
        refused.unwrap_err().io_kind(),
        Some(ErrorKind::InvalidInput)
    );
}

/// Holds a lease until another process opens the file.
#[cfg(target_os = "linux")]
#[test]
fn leasing_child() {
    use std::os::fd::AsRawFd;

    let Some(dir) = crate::common::child::child_dir() else {
        return;
    };
    crate::common::child::abort_if_stuck();
    // SAFETY: ignoring a signal runs no code.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(dir.join("data"))
        .unwrap();
    // SAFETY: the calls take no pointer, and `file` keeps the descriptor open.
    let fcntl = |command, argument: libc::c_int| unsafe {
        libc::fcntl(file.as_raw_fd(), command, argument)
    };
    // As long as another process has the file open, there is no lease: the parent may not have closed
    // it yet, and a child of another test has the parent's descriptors until it executes its program.
    while fcntl(libc::F_SETLEASE, libc::F_WRLCK) != 0 {
        let error = std::io::Error::last_os_error();
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
        std::thread::yield_now();
    }
    fs::write(dir.join("ready"), "").unwrap();
    while fcntl(libc::F_GETLEASE, 0) == libc::F_WRLCK {
        std::thread::yield_now();
    }
    assert_eq!(fcntl(libc::F_SETLEASE, libc::F_UNLCK), 0);
}

/// The file gets bytes, and loses them again before the opening that was to give it some.
#[cfg(unix)]
#[test]
fn impossible_size_is_an_error_whenever_it_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let child = child!(impossible_size_child).dir(dir.path());
    child.one_pool_thread().passes();
}

#[cfg(unix)]
#[test]
fn impossible_size_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let (_, other) = block_on(patterned(&dir, 10));
    for size in [0, u64::MAX] {
        let path = dir.join(size.to_string());
        fs::write(&path, "").unwrap();
        let reader = block_on(MemoryMappedFile::open_ro(&path)).unwrap();
        fs::write(&path, "bytes").unwrap();
        let (woken, waker) = parking::pair();
        let waker = waker.into();
        let mut opening = Box::pin(MemoryMappedFile::open_or_create(&path, size));
        // The pool finds the file with bytes; the opening learns of that when it is polled again.
        let held = HeldQueue::new(&other, 0);
        let polled = opening.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        block_on(held.release());
        assert!(woken.park_timeout(TIMEOUT), "the file is not found");
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_len(0).unwrap();
        let refused = block_on(opening);
        assert!(
            matches!(refused, Err(MmapIoError::ResizeFailed(_))),
            "{refused:?}"
        );
        // With bytes it is opened as it is.
        fs::write(&path, "bytes").unwrap();
        let file = block_on(MemoryMappedFile::open_or_create(&path, size)).unwrap();
        assert_eq!((file.len(), reader.len()), (5, 5));
    }
}
