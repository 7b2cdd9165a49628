//! No pool thread waits for a view, a lease or another pool job: thousands of operations that wait
//! occupy no thread, and everything else proceeds. A pool of one thread shows it most plainly: one
//! job that waited would stop all others. (The whole suite also passes with one.)

use std::future::Future;
use std::path::Path;
use std::pin::Pin;

use futures_lite::future::poll_once;
use mmap_io::{MemoryMappedFile, MmapMode, Result};

use crate::common::child::child;
use crate::common::{block_on, is_quiet, pattern, patterned, wait_until, with_timeout};

type Made<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// Operations that are waited for together.
#[derive(Default)]
struct Waiters<'a>(Vec<Made<'a>>);

impl<'a> Waiters<'a> {
    fn join(&mut self, operation: impl Future<Output = Result<()>> + 'a) {
        self.0.push(Box::pin(operation));
    }

    /// Polls all of them until `count` are queued, and checks that all of them wait.
    async fn all_wait(&mut self, file: &MemoryMappedFile, count: usize) {
        let poll = async {
            while file.stats().queued_writes < count || file.stats().oldest_blocked.is_none() {
                for operation in &mut self.0 {
                    assert!(poll_once(operation).await.is_none());
                }
                futures_lite::future::yield_now().await;
            }
        };
        with_timeout(poll).await;
    }

    async fn all_end(self) {
        for operation in self.0 {
            with_timeout(operation).await.unwrap();
        }
    }
}

#[test]
fn blocked_writers_leave_pool_free() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 10_000).await;
        let other = MemoryMappedFile::create_rw(dir.path().join("other"), 100)
            .await
            .unwrap();
        let view = file.bytes(0, 10_000).unwrap();
        let mut writers = Waiters::default();
        for at in 0..2000_u64 {
            let file = file.clone();
            writers.join(async move { file.update_region(at, &[at as u8 | 1]).await });
        }
        writers.all_wait(&file, 2000).await;
        with_timeout(other.update_region_async(0, b"durable"))
            .await
            .unwrap();
        drop(view);
        writers.all_end().await;
        wait_until(&file, is_quiet).await;
        for at in 0..2000 {
            assert_eq!(file.as_slice(at, 1).unwrap(), [at as u8 | 1]);
        }
    });
}

#[test]
fn blocked_ops_leave_pool_free() {
    const TURNS: u64 = 100;
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 10_000).await;
        let view = file.bytes(0, 10_000).unwrap();
        // None of them is out of bounds after the shrinks before it.
        let parts: [(u64, &[u8]); 2] = [(0, b"both"), (7_000, b"both")];
        let mut waiters = Waiters::default();
        let data = || bytes::Bytes::from_static(b"owned");
        for turn in 0..TURNS {
            waiters.join(file.update_region(turn, b"write"));
            waiters.join(file.update_region_async(turn * 50, b"durable"));
            waiters.join(file.update_regions(&parts));
            waiters.join(file.update_regions_async(&parts));
            waiters.join(file.write_bytes(turn, data()));
            waiters.join(file.write_bytes_async(turn, data()));
            waiters.join(async { file.as_slice_mut(0, 5_000).await.map(drop) });
            waiters.join(async { file.as_slice_mut(9, 90).await?.commit().await });
            waiters.join(file.resize(9_900 - turn));
        }
        let waiting = TURNS as usize * 9;
        waiters.all_wait(&file, waiting).await;
        // Snapshots behind them. What they copy is cut off before their turn.
        let mut copies = Vec::new();
        for turn in 0..10 {
            copies.push(Box::pin(
                file.copy_to(dir.path().join(format!("copy {turn}"))),
            ));
        }
        let submit = async {
            while file.stats().queued_writes < waiting + 10 {
                for copy in &mut copies {
                    assert!(poll_once(copy).await.is_none());
                }
            }
        };
        with_timeout(submit).await;
        // The same file, as far as it needs no turn.
        with_timeout(file.flush()).await.unwrap();
        with_timeout(file.flush_range(5, 5)).await.unwrap();
        with_timeout(file.touch_pages()).await.unwrap();
        assert_eq!(
            with_timeout(file.read_bytes(0, 10_000)).await.unwrap(),
            view
        );
        assert!(!with_timeout(file.try_update_region(0, b"x")).await.unwrap());
        with_timeout(MemoryMappedFile::open_ro(file.path()))
            .await
            .unwrap();
        with_timeout(everything(&dir.path().join("other"))).await;
        assert_eq!(view, pattern(10_000));
        drop(view);
        waiters.all_end().await;
        for copy in copies {
            // It waits for its turn; its result does not matter here.
            let _ = with_timeout(copy).await;
        }
        assert_eq!(file.len(), 9_900 - (TURNS - 1));
        wait_until(&file, is_quiet).await;
    });
}

#[test]
fn blocked_readers_leave_pool_free() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 10_000).await;
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let view = file.as_slice_mut(0, 10_000).await.unwrap();
        let mut waiters = Waiters::default();
        let copy = dir.path().join("copy");
        waiters.join(async { reader.copy_to(copy).await.map(drop) });
        waiters.all_wait(&file, 1).await;
        let mut readers = Waiters::default();
        for turn in 0..500 {
            let (file, at) = (if turn % 2 == 0 { &file } else { &reader }, turn * 10);
            readers.join(async move { file.slice(at, 10).await.map(drop) });
            readers.join(async move { file.read_bytes(at, 10).await.map(drop) });
            readers.join(async move { file.read_into(at, &mut [0; 10]).await });
        }
        for _ in 0..10 {
            for read in &mut readers.0 {
                assert!(poll_once(read).await.is_none());
            }
        }
        with_timeout(everything(&dir.path().join("other"))).await;
        drop(view);
        readers.all_end().await;
        waiters.all_end().await;
        wait_until(&file, is_quiet).await;
    });
}

#[test]
fn mapped_sources_and_opens_leave_pool_free() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 10_000).await;
        let view = file.bytes(0, 10_000).unwrap();
        let mut waiters = Waiters::default();
        // Their data lies in a mapping, so that each is copied on the pool first.
        for turn in 0..200 {
            waiters.join(file.write_bytes(turn * 10, file.bytes(turn * 20, 10).unwrap()));
        }
        waiters.all_wait(&file, 200).await;
        // One call opens the file, and all others wait for it.
        let path = dir.path().join("new");
        let mut opening = Waiters::default();
        for turn in 0..200 {
            let path = &path;
            opening.join(async move {
                let file = match turn % 2 {
                    0 => MemoryMappedFile::open_or_create(path, 5_000).await?,
                    _ => {
                        let builder = MemoryMappedFile::builder(path).size(5_000);
                        builder.mode(MmapMode::ReadWrite).open_or_create().await?
                    }
                };
                file.update_region_async(turn, b"x").await
            });
        }
        for open in &mut opening.0 {
            let _ = poll_once(open).await;
        }
        drop(view);
        waiters.all_end().await;
        opening.0.clear();
        with_timeout(everything(&path.with_extension("other"))).await;
        wait_until(&file, is_quiet).await;
    });
}

/// Every kind of operation that uses the pool, one after the other.
async fn everything(path: &Path) {
    let copy = path.with_extension("copy");
    let file = MemoryMappedFile::create_rw(path, 10_000).await.unwrap();
    let reader = MemoryMappedFile::open_ro(path).await.unwrap();
    let again = MemoryMappedFile::open_or_create(path, 1).await.unwrap();
    file.update_region(0, b"write").await.unwrap();
    again.update_region_async(0, b"write").await.unwrap();
    let parts: [(u64, &[u8]); 2] = [(0, b"both"), (7_000, b"both")];
    file.update_regions(&parts).await.unwrap();
    again.update_regions_async(&parts).await.unwrap();
    let own = reader.bytes(7_000, 4).unwrap();
    file.write_bytes(20, own).await.unwrap();
    file.write_bytes_async(30, bytes::Bytes::from_static(b"x"))
        .await
        .unwrap();
    assert!(file.try_update_region(40, b"x").await.unwrap());
    let mut view = again.as_slice_mut(50, 10).await.unwrap();
    view.fill(1);
    view.commit().await.unwrap();
    file.resize(3 << 20).await.unwrap();
    again.resize(20_000).await.unwrap();
    reader.touch_pages().await.unwrap();
    reader.prefetch_range(0, 100).await.unwrap();
    assert_eq!(reader.slice(20, 4).await.unwrap(), b"both");
    assert_eq!(reader.read_bytes(20, 4).await.unwrap(), "both");
    reader.read_into(0, &mut [0; 100]).await.unwrap();
    file.flush_range(0, 100).await.unwrap();
    file.flush().await.unwrap();
    assert_eq!(reader.copy_to(&copy).await.unwrap(), 20_000);
    drop((reader, again));
    file.close().await.unwrap();
    mmap_io::copy_mmap(path, &copy).await.unwrap();
    mmap_io::delete_mmap(&copy).await.unwrap();
}

#[test]
fn one_pool_thread_is_enough() {
    for child in [
        child!(blocked_writers_leave_pool_free),
        child!(blocked_ops_leave_pool_free),
        child!(blocked_readers_leave_pool_free),
        child!(mapped_sources_and_opens_leave_pool_free),
    ] {
        child.one_pool_thread().passes();
    }
}

/// Processes of their own in which, from some moment on, no thread can be started: `RLIMIT_NPROC`
/// is lowered. The limit does not apply to root, so a root process becomes another user first.
#[cfg(target_os = "linux")]
mod thread_limit {
    use std::time::Duration;

    use mmap_io::FlushPolicy;

    use super::*;
    use crate::common::child::{abort_if_stuck, child, child_dir, Child};
    use crate::common::{eventually, skip, HeldQueue};

    /// Limits the threads of this user, as far as the process is permitted to.
    fn set_limit(threads: libc::rlim_t) {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the structure is live for the call.
        let read = unsafe { libc::getrlimit(libc::RLIMIT_NPROC, &mut limit) };
        limit.rlim_cur = threads.min(limit.rlim_max);
        // SAFETY: as above.
        let set = unsafe { libc::setrlimit(libc::RLIMIT_NPROC, &limit) };
        assert_eq!((read, set), (0, 0));
    }

    fn can_start() -> bool {
        std::thread::Builder::new().spawn(|| ()).is_ok()
    }

    /// Lets no other thread be started from now on; returns whether the limit works.
    fn no_more_threads() -> bool {
        set_limit(1);
        // SAFETY: the calls take no pointers.
        unsafe {
            if libc::geteuid() == 0 {
                libc::setresuid(45_678, 45_678, 45_678);
            }
        }
        !can_start()
    }

    fn in_child(child: Child) {
        let dir = tempfile::tempdir().unwrap();
        // Another user can reach it.
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(dir.path(), permissions).unwrap();
        child.dir(dir.path()).usual_pool().passes();
    }

    #[test]
    fn open_without_threads_is_an_error() {
        in_child(child!(cold_child));
    }

    #[test]
    fn cold_child() {
        let Some(dir) = child_dir() else {
            return;
        };
        let path = dir.join("data");
        std::fs::write(&path, pattern(100)).unwrap();
        abort_if_stuck();
        if !no_more_threads() {
            return skip("open_without_threads_is_an_error", "no limit holds");
        }
        block_on(async {
            for _ in 0..10 {
                let opened = poll_once(Box::pin(MemoryMappedFile::open_ro(&path))).await;
                let error = opened.expect("at once").unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "{error:?}");
            }
            // Memory needs no thread, and its first write does.
            let memory = mmap_io::AnonymousMmap::new(100).unwrap();
            let error = memory.update_region(0, b"x").await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "{error:?}");
            assert_eq!(
                (memory.stats().queued_writes, memory.stats().queued_bytes),
                (0, 0)
            );
            assert_eq!(memory.stats().write_errors, 1);
            set_limit(libc::RLIM_INFINITY);
            let file = MemoryMappedFile::open_ro(&path).await.unwrap();
            assert_eq!(file.slice(0, 100).await.unwrap(), &pattern(100)[..]);
            memory.update_region(0, b"x").await.unwrap();
        });
    }

    #[test]
    fn warm_pool_works_at_thread_limit() {
        in_child(child!(warm_child));
    }

    #[test]
    fn warm_child() {
        let Some(dir) = child_dir() else {
            return;
        };
        abort_if_stuck();
        block_on(async {
            let mut files = Vec::new();
            for name in 0..20 {
                let builder = MemoryMappedFile::builder(dir.join(name.to_string()));
                let builder = builder
                    .size(10_000)
                    .flush_policy(FlushPolicy::EveryMillis(5));
                files.push(builder.create().await.unwrap());
            }
            // The watchdog of `with_timeout` has a thread of its own.
            with_timeout(async { futures_lite::future::yield_now().await }).await;
            // What was found out before, about room to grow, is forgotten after a moment.
            std::thread::sleep(Duration::from_millis(50));
            if !no_more_threads() {
                return skip("warm_pool_works_at_thread_limit", "no limit holds");
            }
            let everything = async {
                // One thread waits, and what is submitted in the meantime would need other threads.
                let held = HeldQueue::new(&files[0], 9_999);
                let mut waiters = Waiters::default();
                for (turn, file) in files[1..].iter().enumerate() {
                    waiters.join(file.update_region(0, b"write"));
                    waiters.join(file.update_region_async(100, b"durable"));
                    waiters.join(async { file.as_slice_mut(200, 10).await?.commit().await });
                    waiters.join(file.resize(20_000 + turn as u64));
                    waiters.join(async { MemoryMappedFile::open_ro(file.path()).await.map(drop) });
                    waiters.join(file.flush());
                }
                let mut pending = Waiters::default();
                for mut operation in waiters.0 {
                    match poll_once(&mut operation).await {
                        Some(ended) => ended.unwrap(),
                        None => pending.0.push(operation),
                    }
                }
                held.release().await;
                pending.all_end().await;
                // One after the other, too.
                for turn in 0..1_000_u64 {
                    let file = &files[turn as usize % 20];
                    file.update_region(turn, b"x").await.unwrap();
                }
                eventually("the background flushes", || {
                    files.iter().all(|file| file.pending_bytes() == 0)
                });
            };
            everything.await;
            set_limit(libc::RLIM_INFINITY);
            assert!(can_start());
            // The pool may grow again: two jobs that need a thread each at the same time.
            for file in &files {
                file.flush().await.unwrap();
            }
            std::thread::sleep(Duration::from_millis(50));
            let first = HeldQueue::new(&files[0], 9_999);
            let held: Vec<_> = files[1..]
                .iter()
                .map(|file| HeldQueue::new(file, 9_999))
                .collect();
            first.release().await;
            for queue in held {
                queue.release().await;
            }
        });
    }
}
