//! What the integration tests share.

#![allow(dead_code, unused_macros, unused_imports)] // No binary uses all of it.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mmap_io::{MemoryMappedFile, Stats};

pub(crate) mod child;
#[cfg(target_os = "linux")]
pub(crate) mod disk;
#[cfg(target_os = "linux")]
pub(crate) mod fuse;
#[cfg(all(
    target_os = "linux",
    feature = "advise",
    feature = "atomic",
    feature = "cow",
    feature = "iterator",
    feature = "locking"
))]
pub(crate) mod model;
pub(crate) mod operations;
#[cfg(target_os = "linux")]
pub(crate) mod probe;

/// Runs a future to its end on a runtime.
pub(crate) type BlockOn = fn(futures_lite::future::Boxed<()>);

/// Every runtime, each of them for one future.
pub(crate) mod runtimes {
    use futures_lite::future::Boxed;

    pub(crate) fn tokio_current_thread(future: Boxed<()>) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(future);
    }

    pub(crate) fn tokio_multi_thread(future: Boxed<()>) {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async { runtime.spawn(future).await.unwrap() });
    }

    pub(crate) fn smol(future: Boxed<()>) {
        ::smol::block_on(::smol::spawn(future));
    }

    pub(crate) fn async_std(future: Boxed<()>) {
        ::async_std::task::block_on(::async_std::task::spawn(future));
    }

    pub(crate) fn bare_block_on(future: Boxed<()>) {
        futures_lite::future::block_on(future);
    }
}

/// Makes a module with one test for each runtime, which calls `check` with a [`BlockOn`].
macro_rules! on_each_runtime {
    ($name:ident, $check:expr) => {
        mod $name {
            #[allow(unused_imports)] // The body may name nothing but macros and paths.
            use super::*;
            use $crate::common::runtimes;

            const CHECK: fn($crate::common::BlockOn) = $check;

            #[test]
            fn tokio_current_thread() {
                CHECK(runtimes::tokio_current_thread);
            }

            #[test]
            fn tokio_multi_thread() {
                CHECK(runtimes::tokio_multi_thread);
            }

            #[test]
            fn smol() {
                CHECK(runtimes::smol);
            }

            #[test]
            fn async_std() {
                CHECK(runtimes::async_std);
            }

            #[test]
            fn bare_block_on() {
                CHECK(runtimes::bare_block_on);
            }
        }
    };
}
pub(crate) use on_each_runtime;

/// Makes a module with one test for each runtime from one async body, which gets a directory of its
/// own.
macro_rules! rt_test {
    ($name:ident, |$dir:ident| $body:block) => {
        $crate::common::on_each_runtime!($name, |block_on: $crate::common::BlockOn| {
            async fn body($dir: &std::path::Path) {
                $body
            }

            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().to_path_buf();
            block_on(Box::pin(async move { body(&path).await }));
        });
    };
}
pub(crate) use rt_test;

/// Runs a future without any runtime.
pub(crate) fn block_on<T>(body: impl Future<Output = T>) -> T {
    futures_lite::future::block_on(body)
}

/// A file of `len` bytes, each with the value of its position.
pub(crate) async fn patterned(dir: &Path, len: usize) -> (PathBuf, MemoryMappedFile) {
    let path = dir.join("data");
    std::fs::write(&path, pattern(len)).unwrap();
    let file = MemoryMappedFile::open_rw(&path).await.unwrap();
    (path, file)
}

pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// A directory on a disk: a tmpfs has nothing to write back to.
pub(crate) fn on_a_disk() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Polls a future once.
pub(crate) async fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
    futures_lite::future::poll_once(future).await
}

/// Expects an operation to complete where it is polled: at the first poll, or at the second if its
/// thread had to yield to other tasks.
#[track_caller]
pub(crate) fn at_once<T>(operation: impl Future<Output = T>) -> T {
    let mut operation = std::pin::pin!(operation);
    let first = block_on(poll_once(&mut operation));
    first.unwrap_or_else(|| {
        block_on(poll_once(&mut operation))
            .expect("expected completion at once, but the operation waits")
    })
}

/// Waits until the statistics of the file satisfy `is_so`, and fails the test if they never do.
pub(crate) async fn wait_until(file: &MemoryMappedFile, is_so: impl Fn(&Stats) -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let stats = file.stats();
        if is_so(&stats) {
            return;
        }
        let is_in_time = Instant::now() < deadline;
        assert!(is_in_time, "the expected state was not reached: {stats:?}");
        std::thread::yield_now();
        futures_lite::future::yield_now().await;
    }
}

/// Whether no view of the file lives and no operation is queued.
pub(crate) fn is_quiet(stats: &Stats) -> bool {
    stats.views == 0 && stats.queued_writes == 0 && stats.queued_bytes == 0
}

/// Prints why a test cannot run here, and writes it to the log that continuous integration reads.
pub(crate) fn skip(test: &str, reason: &str) {
    let line = format!("skipped: {test}: {reason}\n");
    print!("{line}");
    if let Some(log) = std::env::var_os("MMAP_IO_SKIP_LOG") {
        use std::io::Write;
        let mut log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        log.write_all(line.as_bytes()).unwrap();
    }
}

/// Awaits what nothing blocks, and fails the test if it takes too long.
pub(crate) async fn with_timeout<T>(future: impl Future<Output = T>) -> T {
    let too_late = async {
        smol::Timer::after(TIMEOUT).await;
        panic!("the future still waits, although nothing blocks it");
    };
    futures_lite::future::or(future, too_late).await
}

/// Waits until the queue has examined every operation that was submitted before. Nothing may
/// conflict with the byte at `spare`.
pub(crate) async fn wait_until_examined(file: &MemoryMappedFile, spare: u64) {
    // The queue examines operations in the order of submission.
    with_timeout(file.update_region(spare, b"-")).await.unwrap();
}

/// Submits an operation and checks that it waits: the queue has examined it, and has not started
/// it. `spare` is as for [`wait_until_examined`].
pub(crate) async fn assert_waits<F: Future + Unpin>(
    file: &MemoryMappedFile,
    spare: u64,
    future: &mut F,
) {
    assert!(poll_once(&mut *future).await.is_none());
    wait_until_examined(file, spare).await;
    assert!(
        poll_once(future).await.is_none(),
        "expected the operation to wait, but it completed"
    );
}

/// Keeps the queue of a file busy, so that the operations that are submitted in the meantime are
/// all examined together afterwards. It occupies one thread of the pool: until it is released, the
/// test must not await anything that needs the pool.
pub(crate) struct HeldQueue {
    _until_dropped: Sender<()>,
    write: Pin<Box<dyn Future<Output = mmap_io::Result<()>> + Send>>,
}

impl HeldQueue {
    /// Nothing may conflict with the byte at `spare`.
    pub(crate) fn new(file: &MemoryMappedFile, spare: u64) -> Self {
        /// Data whose drop, the last step of a write, waits until the test lets it go on.
        struct Slow(Sender<()>, Receiver<()>);

        impl AsRef<[u8]> for Slow {
            fn as_ref(&self) -> &[u8] {
                b"-"
            }
        }

        impl Drop for Slow {
            fn drop(&mut self) {
                // The other end is gone if the test has failed.
                let _ = self.0.send(());
                let release = self.1.recv_timeout(TIMEOUT);
                assert_eq!(release, Err(RecvTimeoutError::Disconnected));
            }
        }

        let (entered, has_entered) = mpsc::channel();
        let (until_dropped, release) = mpsc::channel();
        let data = Bytes::from_owner(Slow(entered, release));
        let mut write = Box::pin(file.write_bytes(spare, data));
        // A view blocks the write, which could be applied where it is polled otherwise.
        let view = file.bytes(spare, 1).unwrap();
        assert!(block_on(poll_once(&mut write)).is_none());
        drop(view);
        has_entered.recv_timeout(TIMEOUT).unwrap();
        Self {
            _until_dropped: until_dropped,
            write,
        }
    }

    pub(crate) async fn release(self) {
        drop(self._until_dropped);
        with_timeout(self.write).await.unwrap();
    }
}

pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// Waits for something that happens by itself, and fails the test if it never does.
#[track_caller]
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !is_so() {
        assert!(Instant::now() < deadline, "timed out; expected: {what}");
        std::thread::yield_now();
    }
}

/// Runs a future in a thread, and fails the test if it does not end; the thread is then left
/// behind.
#[track_caller]
pub(crate) fn join_with_timeout<T: Send + 'static>(
    what: &str,
    body: impl Future<Output = T> + Send + 'static,
) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || sender.send(block_on(body)));
    match receiver.recv_timeout(TIMEOUT) {
        Ok(value) => value,
        Err(RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(_) => unreachable!("it sends before it ends"),
        },
        Err(RecvTimeoutError::Timeout) => panic!("timed out; expected to complete: {what}"),
    }
}
