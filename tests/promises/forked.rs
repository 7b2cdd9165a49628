//! A child that was forked and executes no other program: the threads of the pool belong to the
//! parent, and any lock may be held forever by a thread that does not exist in the child. What
//! needs the pool or a lock is an error, views that need neither are granted, and handles can be
//! dropped.

use std::future::Future;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_lite::future::poll_once;
use mmap_io::{
    copy_mmap, AnonymousMmap, FlushPolicy, MemoryMappedFile, MmapIoError, MmapMode, Result,
};

use crate::common::child::{child, child_dir, Child};
use crate::common::{block_on, pattern, patterned, with_timeout};

/// Runs `body` in a forked child, and says whether it returned in time, with `true`.
pub(crate) fn in_fork(body: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child runs `body` and ends without unwinding into the test. What `body` calls
    // allocates; the C library has its allocator ready in the child.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: the call takes no pointer. Its signal ends a child that hangs.
        unsafe { libc::alarm(20) };
        let is_right = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        // SAFETY: the child ends here, without what a process does at its end.
        unsafe { libc::_exit(i32::from(!is_right.unwrap_or(false))) };
    }
    assert!(child > 0);
    let mut status = 0;
    // SAFETY: `status` is live for the call.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    status == 0
}

/// Whether an operation ends in the error at its first poll.
fn is_refused<T>(operation: impl Future<Output = Result<T>>) -> bool {
    match block_on(poll_once(operation)) {
        Some(Err(MmapIoError::Io(error))) => error.kind() == ErrorKind::Unsupported,
        _ => false,
    }
}

fn is_busy<T>(result: Result<T>) -> bool {
    matches!(result, Err(MmapIoError::Busy { .. }))
}

/// Every operation that needs the pool, or a lock.
fn all_are_refused(file: &MemoryMappedFile, memory: &AnonymousMmap) -> bool {
    let path = file.path();
    let builder = || MemoryMappedFile::builder(path).size(10);
    [
        is_refused(file.update_region(0, b"x")),
        is_refused(file.update_region_async(0, b"x")),
        is_refused(file.update_regions(&[(0, b"x")])),
        is_refused(file.update_regions_async(&[(0, b"x")])),
        is_refused(file.write_bytes(0, Bytes::from_static(b"x"))),
        is_refused(file.write_bytes_async(0, Bytes::from_static(b"x"))),
        is_refused(file.try_update_region(0, b"x")),
        is_refused(file.as_slice_mut(0, 10)),
        is_refused(async { file.try_as_slice_mut(0, 10) }),
        is_refused(file.resize(20_000)),
        is_refused(file.slice(0, 10)),
        is_refused(file.read_bytes(0, 10)),
        is_refused(file.read_into(0, &mut [0; 10])),
        is_refused(file.flush()),
        is_refused(file.flush_range(0, 10)),
        is_refused(file.schedule_flush()),
        is_refused(file.evict(0, 10)),
        is_refused(file.prefetch_range(0, 10)),
        is_refused(file.copy_to(path.with_extension("copy"))),
        is_refused(file.clone().close()),
        #[cfg(feature = "locking")]
        is_refused(file.lock(0, 10)),
        #[cfg(feature = "locking")]
        is_refused(file.unlock_all()),
        is_refused(builder().create()),
        is_refused(builder().open()),
        is_refused(builder().open_or_create()),
        is_refused(MemoryMappedFile::open_ro(path)),
        is_refused(copy_mmap(path, path.with_extension("copy"))),
        is_refused(memory.update_region(0, b"x")),
        is_refused(memory.slice(0, 10)),
        is_busy(file.bytes(0, 10)),
        #[cfg(feature = "atomic")]
        is_refused(async { file.atomic_u32(0) }),
    ]
    .iter()
    .all(|is_right| *is_right)
}

/// A test of its own process, which does nothing else at the time of the fork.
fn in_child(child: Child) {
    let dir = tempfile::tempdir().unwrap();
    child.dir(dir.path()).passes();
}

#[test]
fn forked_child_gets_errors() {
    in_child(child!(errors_child));
}

#[test]
fn errors_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let (path, file) = block_on(patterned(&dir, 200_000));
    // Views are out of it, whatever is dropped.
    let file: &MemoryMappedFile = Box::leak(Box::new(file));
    let memory = AnonymousMmap::new(200_000).unwrap();
    let reader = block_on(MemoryMappedFile::open_ro(&path)).unwrap();
    let kept = reader.as_slice_bytes(100, 10).unwrap().to_vec();
    let bytes = file.bytes(0, 100).unwrap();
    let slice = file.as_slice(0, 100).unwrap();
    let mut view = block_on(file.as_slice_mut(200, 100)).unwrap();
    let mut waiting = Box::pin(file.update_region(0, b"waits"));
    assert!(block_on(poll_once(&mut waiting)).is_none());
    #[cfg(feature = "atomic")]
    let word = file.atomic_u64(400).unwrap();
    // The only handle on another file, of which something is to be flushed.
    let policy = FlushPolicy::EveryMillis(3_600_000);
    let lone = MemoryMappedFile::builder(dir.join("lone")).size(100);
    let lone = block_on(lone.flush_policy(policy).create()).unwrap();
    block_on(lone.update_region(0, b"pending")).unwrap();

    // What it owns is dropped in the child while the pool is gone; and in the parent, unused.
    assert!(in_fork(move || {
        let all = pattern(200_000);
        let is_right = all_are_refused(file, &memory)
            // It flushes nothing before.
            && is_refused(reader.evict(0, 10))
            && file.as_slice(100_000, 5_000).unwrap() == all[100_000..105_000]
            && file.try_as_slice(100_000, 10).unwrap().is_some()
            && is_busy(file.as_slice(200, 10))
            && reader.as_slice_bytes(100, 10).unwrap() == kept
            && slice == all[..100]
            && bytes == all[..100];
        view.fill(1);
        let is_right = is_right && is_refused(view.commit());
        drop((waiting, slice, bytes, lone, reader, memory));
        #[cfg(feature = "atomic")]
        drop(word);
        is_right
    }));
    block_on(async {
        with_timeout(file.update_region_async(0, b"parent"))
            .await
            .unwrap();
        assert_eq!(file.as_slice(0, 6).unwrap(), b"parent");
        // The mapping is shared with the child.
        assert_eq!(file.as_slice(200, 100).unwrap(), [1; 100]);
    });
}

#[test]
fn forked_child_reads_a_quiet_file() {
    in_child(child!(quiet_child));
}

#[test]
fn quiet_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let (_, file) = block_on(patterned(&dir, 200_000));
    // This thread has read nothing yet, so that it has no slots that a writer would scan.
    assert!(in_fork(|| {
        file.as_slice(0, 100).is_ok()
            && file.as_slice(0, 200_000).unwrap() == pattern(200_000)[..]
            && file.try_as_slice(32_767, 2).unwrap().is_some()
    }));
}

#[test]
fn forked_child_reads_beside_old_writes() {
    in_child(child!(after_writes_child));
}

#[test]
fn after_writes_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let (_, file) = block_on(patterned(&dir, 200_000));
    block_on(async {
        file.update_region(10, b"old").await.unwrap();
        drop(file.as_slice_mut(150_000, 10).await.unwrap());
    });
    let view = block_on(file.as_slice_mut(100, 10)).unwrap();
    #[cfg(feature = "atomic")]
    let word = file.atomic_u32(190_000).unwrap();
    assert!(in_fork(|| {
        let is_right = file.as_slice(10, 3).unwrap() == b"old"
            && file.as_slice(110, 189_000).is_ok()
            && file.try_as_slice(0, 100).unwrap().is_some()
            && is_busy(file.as_slice(109, 2))
            && file.try_as_slice(109, 1).unwrap().is_none();
        #[cfg(feature = "atomic")]
        let is_right = is_right && is_busy(file.as_slice(190_003, 1));
        is_right
    }));
    drop(view);
    #[cfg(feature = "atomic")]
    drop(word);
}

#[test]
fn fork_beside_busy_threads_does_not_hang() {
    in_child(child!(busy_child));
}

#[test]
fn busy_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let (path, file) = block_on(patterned(&dir, 200_000));
    let reader = block_on(MemoryMappedFile::open_ro(&path)).unwrap();
    let memory = AnonymousMmap::new(200_000).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for thread in 0..3 {
            let (file, path, is_over) = (&file, &path, &is_over);
            threads.spawn(move || {
                let policy = FlushPolicy::EveryMillis(1);
                while !is_over.load(Ordering::Relaxed) {
                    let other = MemoryMappedFile::builder(path).mode(MmapMode::ReadWrite);
                    let other = block_on(other.flush_policy(policy).open()).unwrap();
                    for at in 0..20 {
                        block_on(other.update_region(thread * 100 + at, b"x")).unwrap();
                        drop(file.bytes(at * 100, 100));
                        drop(file.as_slice(at * 100, 100));
                    }
                }
            });
        }
        threads.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                reader.as_slice_bytes(100_000, 10).unwrap();
            }
        });
        let mut all_right = true;
        for _ in 0..200 {
            let (file, memory) = (file.clone(), memory.clone());
            all_right &= in_fork(|| {
                let is_right = all_are_refused(&file, &memory);
                // Writes were applied below 1,000, and none up here.
                let is_right = is_right && file.as_slice(150_000, 1_000).is_ok();
                let borrowed = reader.as_slice_bytes(100_000, 10);
                let is_right = is_right && (borrowed.is_ok() || is_busy(borrowed));
                drop((file, memory));
                is_right
            });
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(all_right);
    });
}

#[test]
fn fork_before_first_open_works() {
    in_child(child!(early_child));
}

#[test]
fn early_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let path = dir.join("data");
    assert!(in_fork(|| block_on(async {
        let file = MemoryMappedFile::create_rw(&path, 100).await.unwrap();
        file.update_region_async(0, b"child").await.unwrap();
        file.close().await.is_ok()
    })));
    assert_eq!(std::fs::read(&path).unwrap()[..5], *b"child");
}

#[cfg(feature = "watch")]
#[test]
fn forked_child_drops_watches() {
    in_child(child!(watching_child));
}

#[cfg(feature = "watch")]
#[test]
fn watching_child() {
    use futures_lite::StreamExt;
    let Some(dir) = child_dir() else {
        return;
    };
    let (path, file) = block_on(patterned(&dir, 100));
    let watch = block_on(file.watch(|_| ())).unwrap();
    let mut changes = block_on(file.watch_stream()).unwrap();
    assert!(block_on(poll_once(changes.next())).is_none());
    let mut parent = block_on(file.watch_stream()).unwrap();
    assert!(in_fork(move || {
        let ended = block_on(poll_once(changes.next())) == Some(None);
        let is_right = ended
            && !watch.is_active()
            && is_refused(file.watch_stream())
            && is_refused(file.watch(|_| ()));
        drop((watch, changes, file));
        is_right
    }));
    std::fs::write(path, b"parent").unwrap();
    assert!(block_on(with_timeout(parent.next())).is_some());
}
