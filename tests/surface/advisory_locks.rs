//! Advisory locks on files: between processes, between the handles of one process, and how long
//! they last.

use std::fs::{self, File};
use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{self, Stdio};
use std::task::{Context, RawWaker, RawWakerVTable, Waker};

use mmap_io::{FlushPolicy, Lock, MemoryMappedFile, MmapIoError, MmapMode, Result};

use crate::common::child::{child, child_dir, with_one_pool_thread};
use crate::common::{block_on, eventually, on_a_disk, pattern, poll_once, rt_test, with_timeout};

const KIND: &str = "MMAP_IO_TEST_LOCK";

fn locked(path: &Path, lock: Lock) -> mmap_io::MemoryMappedFileBuilder {
    let builder = MemoryMappedFile::builder(path);
    builder.mode(MmapMode::ReadWrite).advisory_lock(lock)
}

#[track_caller]
fn assert_in_use<T: std::fmt::Debug>(result: Result<T>) {
    let error = result.unwrap_err();
    assert!(matches!(error, MmapIoError::LockFailed(_)), "{error:?}");
    assert_eq!(
        error.io_kind(),
        Some(std::io::ErrorKind::WouldBlock),
        "{error}"
    );
}

/// Whether a descriptor outside the crate could lock the file: by this test, as by another process.
fn is_free(path: &Path, kind: libc::c_int) -> bool {
    let file = File::open(path).unwrap();
    // SAFETY: the call takes no pointer, and `file` keeps the descriptor open.
    let flock = |operation| unsafe { libc::flock(file.as_raw_fd(), operation) } == 0;
    // Unlocked before it is closed: a child that is being started has a copy of the descriptor.
    flock(kind | libc::LOCK_NB) && flock(libc::LOCK_UN)
}

/// Waits until the last job that keeps the file open has ended.
#[track_caller]
fn assert_freed(path: &Path) {
    eventually("the lock is released", || is_free(path, libc::LOCK_EX));
}

/// Another process, which has a lock on the file until it is dropped.
struct Holder(process::Child);

impl Holder {
    fn new(dir: &Path, kind: &str) -> Self {
        let mut command = child!(holder_child).dir(dir).env(KIND, kind).command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().unwrap();
        let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
        assert!({ &mut lines }.any(|line| line.unwrap().ends_with("it is locked")));
        // Nothing more is read: the child must be able to write.
        std::thread::spawn(move || lines.for_each(drop));
        Self(holder)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let status = self.0.wait().unwrap();
        assert!(status.success() || std::thread::panicking());
    }
}

#[test]
fn holder_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let kind = match std::env::var(KIND).unwrap().as_str() {
        "shared" => Lock::Shared,
        _ => Lock::Exclusive,
    };
    // Read-only, by a read-only descriptor.
    let builder = MemoryMappedFile::builder(dir.join("data")).advisory_lock(kind);
    let file = block_on(builder.open()).unwrap();
    println!("it is locked");
    std::io::stdout().flush().unwrap();
    std::io::stdin().read_to_string(&mut String::new()).unwrap();
    drop(file);
}

#[test]
fn exclusive_lock_excludes_processes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, pattern(1000)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    let holder = Holder::new(dir.path(), "exclusive");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    block_on(async {
        for lock in [Lock::Shared, Lock::Exclusive] {
            let builder = || locked(&path, lock).size(5000).preallocate(true);
            assert_in_use(builder().open().await);
            assert_in_use(builder().mode(MmapMode::ReadOnly).open().await);
            assert_in_use(builder().open_or_create().await);
            assert_in_use(builder().create().await);
        }
        // Nothing was changed, and nothing is left that a later opening could meet.
        assert_eq!(fs::read(&path).unwrap(), pattern(1000));
        // It is a convention: a handle that asks for no lock is not stopped.
        let file = MemoryMappedFile::open_rw(&path).await.unwrap();
        assert_in_use(locked(&path, Lock::Shared).open().await);
        drop(holder);
        let exclusive = locked(&path, Lock::Exclusive).open().await.unwrap();
        assert!(!is_free(&path, libc::LOCK_SH));
        drop((exclusive, file));
    });
}

#[test]
fn shared_locks_go_together() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, pattern(1000)).unwrap();
    let holder = Holder::new(dir.path(), "shared");
    block_on(async {
        assert_in_use(locked(&path, Lock::Exclusive).open().await);
        let shared = locked(&path, Lock::Shared).open().await.unwrap();
        assert_eq!(shared.as_slice(0, 1000).unwrap(), &pattern(1000)[..]);
        drop(holder);
        // This process has its own one still.
        assert!(!is_free(&path, libc::LOCK_EX));
        assert!(is_free(&path, libc::LOCK_SH));
        shared.close().await.unwrap();
        assert_freed(&path);
    });
}

rt_test!(handles_of_a_process_share_a_lock, |dir| {
    let path = dir.join("data");
    let create = || locked(&path, Lock::Exclusive).size(1000);
    let file = create().create_new().await.unwrap();
    assert!(!is_free(&path, libc::LOCK_SH));
    let also = locked(&path, Lock::Exclusive).open().await.unwrap();
    let shared = locked(&path, Lock::Shared).open().await.unwrap();
    let without = MemoryMappedFile::open_ro(&path).await.unwrap();
    let bytes = file.read_bytes(0, 10).await.unwrap();
    // What uses the file holds the lock, whether or not it has asked for one.
    for handle in [file, also, shared, without] {
        handle.close().await.unwrap();
        assert!(!is_free(&path, libc::LOCK_SH));
    }
    drop(bytes);
    assert_freed(&path);

    let shared = locked(&path, Lock::Shared).open().await.unwrap();
    assert_in_use(locked(&path, Lock::Exclusive).open().await);
    // The lock that it had is still there.
    assert!(!is_free(&path, libc::LOCK_EX));
    let again = locked(&path, Lock::Shared).open().await.unwrap();
    drop((shared, again));
    // An opening waits for handles that are dropped.
    locked(&path, Lock::Exclusive).open().await.unwrap();
});

#[test]
fn dropped_lock_is_free_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, pattern(1000)).unwrap();
    // Handles come and go on two threads, never two kinds of lock at the same time.
    for lock in [Lock::Exclusive, Lock::Shared] {
        let run = || {
            block_on(async {
                for _ in 0..200 {
                    let file = with_timeout(locked(&path, lock).open()).await.unwrap();
                    file.update_region(0, b"x").await.unwrap();
                }
            });
        };
        std::thread::scope(|threads| {
            threads.spawn(run);
            run();
        });
        assert_freed(&path);
    }
}

/// An opening waits for a file that has no handle any more, if the process has too weak a lock on
/// it: here until the flush that the last handle has left behind has ended.
#[test]
fn stronger_lock_waits_for_last_flush() {
    let dir = on_a_disk();
    let path = dir.path().join("data");
    fs::write(&path, pattern(100_000)).unwrap();
    block_on(async {
        for _ in 0..20 {
            let shared = locked(&path, Lock::Shared).flush_policy(FlushPolicy::EveryMillis(60_000));
            let shared = shared.open().await.unwrap();
            shared.update_region(0, &[1; 90_000]).await.unwrap();
            drop(shared);
            let exclusive = with_timeout(locked(&path, Lock::Exclusive).open()).await;
            exclusive.unwrap().close().await.unwrap();
        }
    });
}

#[test]
fn failed_opening_leaves_no_lock() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    block_on(async {
        // Not while there is a file of that name.
        fs::write(&path, "").unwrap();
        let refused = locked(&path, Lock::Exclusive).open().await;
        assert!(
            matches!(refused, Err(MmapIoError::ResizeFailed(_))),
            "{refused:?}"
        );
        assert_freed(&path);
        // Nor does an opening that was dropped, once it has run to completion.
        let mut opening = Box::pin(locked(&path, Lock::Exclusive).size(10).open_or_create());
        let _ = poll_once(&mut opening).await;
        drop(opening);
        let file = locked(&path, Lock::Shared).size(10).open_or_create();
        with_timeout(file).await.unwrap().close().await.unwrap();
        assert_freed(&path);
    });
}

/// A handle that has asked for no lock keeps the file open, but not the lock of an opening that has
/// failed.
#[test]
fn failed_opening_leaves_no_lock_to_handles() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, pattern(1000)).unwrap();
    let plain = File::options().write(true).open(&path).unwrap();
    block_on(async {
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        // As another process does it; the opening learns that after it has taken the lock.
        plain.set_len(0).unwrap();
        for lock in [Lock::Shared, Lock::Exclusive] {
            let refused = locked(&path, lock).open().await;
            assert!(
                matches!(refused, Err(MmapIoError::ResizeFailed(_))),
                "{refused:?}"
            );
            assert_freed(&path);
        }
        // A stronger lock does not have to wait until the pool has released the one before it.
        locked(&path, Lock::Shared).open().await.unwrap_err();
        plain.set_len(1000).unwrap();
        let exclusive = locked(&path, Lock::Exclusive).open().await.unwrap();
        // This one is the file's, whichever handle has asked for it.
        exclusive.close().await.unwrap();
        assert!(!is_free(&path, libc::LOCK_SH));
        reader.close().await.unwrap();
        assert_freed(&path);
    });
}

#[test]
fn dropped_opening_leaves_no_lock_to_handles() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, pattern(1000)).unwrap();
    block_on(async {
        for is_relied_on in [false, true] {
            let (_reader, opening) = loop {
                let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
                let mut opening = Box::pin(locked(&path, Lock::Exclusive).open());
                match poll_once(&mut opening).await {
                    None => break (reader, opening),
                    // The pool was so fast that the opening has ended.
                    Some(opened) => drop(opened.unwrap()),
                }
                drop(reader);
                assert_freed(&path);
            };
            eventually("it has the lock", || !is_free(&path, libc::LOCK_SH));
            if !is_relied_on {
                drop(opening);
                assert_freed(&path);
                continue;
            }
            let shared = locked(&path, Lock::Shared).open().await.unwrap();
            drop(opening);
            // The pool has released nothing by then.
            shared.update_region_async(0, b"x").await.unwrap();
            assert!(!is_free(&path, libc::LOCK_SH));
        }
        assert_freed(&path);
    });
}

/// A waker whose clone waits until the pool, which has one thread, has done what it was given.
fn waker_that_waits_for_pool() -> Waker {
    const VTABLE: RawWakerVTable = RawWakerVTable::new(
        |data| {
            block_on(smol::unblock(|| ()));
            RawWaker::new(data, &VTABLE)
        },
        |_| (),
        |_| (),
        |_| (),
    );
    // SAFETY: no function uses the pointer, and all may be called on any thread.
    unsafe { Waker::from_raw(RawWaker::new(std::ptr::null(), &VTABLE)) }
}

/// An opening that ends in its first poll may still yield to the other tasks of its thread.
#[test]
fn opening_dropped_at_its_yield_leaves_no_lock() {
    let this = child!(opening_dropped_at_its_yield_leaves_no_lock);
    with_one_pool_thread(this, || {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        fs::write(&path, pattern(1000)).unwrap();
        let reader = block_on(MemoryMappedFile::open_ro(&path)).unwrap();
        block_on(reader.touch_pages()).unwrap();
        let read = || block_on(poll_once(reader.slice(0, 10))).is_some();
        while read() {}
        let row = std::iter::from_fn(|| read().then_some(())).count();
        for _ in 0..row {
            assert!(read());
        }
        // This is the one that yields.
        let mut opening = Box::pin(locked(&path, Lock::Exclusive).open());
        let waker = waker_that_waits_for_pool();
        let first = opening.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(first.is_pending());
        assert!(!is_free(&path, libc::LOCK_SH));
        drop(opening);
        assert_freed(&path);
    });
}

/// A lock that a descriptor of this process has set by `fcntl` is another one.
#[test]
fn fcntl_locks_are_other_locks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, pattern(1000)).unwrap();
    let plain = File::options().read(true).write(true).open(&path).unwrap();
    // SAFETY: all-zero bytes are a valid `flock`, which means the whole file.
    let mut whole: libc::flock = unsafe { std::mem::zeroed() };
    whole.l_type = libc::F_WRLCK as _;
    // SAFETY: `whole` is live for the call, and `plain` keeps the descriptor open.
    let set = unsafe { libc::fcntl(plain.as_raw_fd(), libc::F_OFD_SETLK, &whole) };
    assert_eq!(set, 0);
    let file = block_on(locked(&path, Lock::Exclusive).open()).unwrap();
    block_on(file.update_region_async(0, b"both")).unwrap();
}

#[test]
fn forked_child_keeps_the_parents_lock() {
    let dir = tempfile::tempdir().unwrap();
    child!(forking_child).dir(dir.path()).passes();
}

#[test]
fn forking_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let path = dir.join("data");
    let file = block_on(locked(&path, Lock::Exclusive).size(100).create()).unwrap();
    // SAFETY: the child drops a handle and ends, without unwinding into the test.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(file);
        // SAFETY: the child ends here, without what a process does at its end.
        unsafe { libc::_exit(0) };
    }
    let mut status = -1;
    // SAFETY: `status` is live for the call.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
    assert!(!is_free(&path, libc::LOCK_SH));
    drop(file);
    assert_freed(&path);
}

/// An opening that does not get the lock changes neither the file nor what holds for its handles.
#[test]
fn refused_lock_changes_nothing() {
    const MIB: u64 = 1 << 20;
    let dir = on_a_disk();
    let path = dir.path().join("data");
    File::create(&path).unwrap().set_len(MIB).unwrap();
    let allocated = || fs::metadata(&path).unwrap().blocks() * 512;
    block_on(async {
        let shared = locked(&path, Lock::Shared).mode(MmapMode::ReadOnly);
        let shared = shared.open().await.unwrap();
        let exclusive = locked(&path, Lock::Exclusive).preallocate(true);
        #[cfg(feature = "hugepages")]
        let exclusive = exclusive.huge_pages(true);
        assert_in_use(exclusive.open().await);
        assert_eq!(allocated(), 0);
        assert!(!shared.is_mapped_for_writing());
        #[cfg(feature = "hugepages")]
        {
            // SAFETY: nothing is read through the pointer.
            let base = unsafe { shared.as_ptr() };
            assert!(!crate::common::probe::has_flag(base, "hg"));
        }
        // Growth reserves nothing.
        let writer = MemoryMappedFile::open_rw(&path).await.unwrap();
        writer.resize(2 * MIB).await.unwrap();
        assert!(allocated() < MIB, "{} bytes", allocated());
    });
}
