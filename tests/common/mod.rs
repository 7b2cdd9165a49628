//! What the integration tests share.

#![allow(dead_code, unused_macros, unused_imports)] // No binary uses all of it.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mmap_io::{MemoryMappedFile, Stats};

#[cfg(target_os = "linux")]
pub(crate) mod fuse;
pub(crate) mod operations;

/// Makes a module with one test for each runtime out of one async body, which gets a directory of
/// its own.
macro_rules! rt_test {
    ($name:ident, |$dir:ident| $body:block) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            async fn body($dir: &std::path::Path) {
                $body
            }

            fn run(block_on: impl FnOnce(futures_lite::future::Boxed<()>)) {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().to_path_buf();
                block_on(Box::pin(async move { body(&path).await }));
            }

            #[test]
            fn tokio_current_thread() {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                run(|future| runtime.block_on(future));
            }

            #[test]
            fn tokio_multi_thread() {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()
                    .unwrap();
                run(|future| runtime.block_on(async { runtime.spawn(future).await.unwrap() }));
            }

            #[test]
            fn smol() {
                run(|future| ::smol::block_on(::smol::spawn(future)));
            }

            #[test]
            fn async_std() {
                run(|future| ::async_std::task::block_on(::async_std::task::spawn(future)));
            }

            #[test]
            fn bare_block_on() {
                run(|future| futures_lite::future::block_on(future));
            }
        }
    };
}
pub(crate) use rt_test;

/// Runs a test without any runtime.
pub(crate) fn alone<T>(body: impl Future<Output = T>) -> T {
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

/// Polls once.
pub(crate) async fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
    futures_lite::future::poll_once(future).await
}

/// Completes an operation where it is polled: at the first poll, or at the second where its thread owed
/// other tasks a turn.
#[track_caller]
pub(crate) fn at_once<T>(operation: impl Future<Output = T>) -> T {
    let mut operation = std::pin::pin!(operation);
    let first = alone(poll_once(&mut operation));
    first.unwrap_or_else(|| alone(poll_once(&mut operation)).expect("it waits"))
}

/// Waits until the pool has done what it does about the file, and `is_so` holds: a watchdog ends
/// the test if it never does.
pub(crate) async fn until(file: &MemoryMappedFile, is_so: impl Fn(&Stats) -> bool) {
    for _ in 0..1_000_000 {
        if is_so(&file.stats()) {
            return;
        }
        std::thread::yield_now();
        futures_lite::future::yield_now().await;
    }
    panic!("it never came to that: {:?}", file.stats());
}

/// Nothing is out, and nothing is queued.
pub(crate) fn is_quiet(stats: &Stats) -> bool {
    stats.views == 0 && stats.queued_writes == 0 && stats.queued_bytes == 0
}

/// Says why a test cannot run here, where continuous integration looks for it.
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

/// A watchdog, for what nothing is in the way of.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    let too_late = async {
        smol::Timer::after(SOON).await;
        panic!("still waiting, for nothing");
    };
    futures_lite::future::or(future, too_late).await
}

/// Waits until the queue has looked at all that was submitted before. `spare` is a byte that
/// nothing is in the way of.
pub(crate) async fn until_looked_at(file: &MemoryMappedFile, spare: u64) {
    // First in, first looked at.
    soon(file.update_region(spare, b"-")).await.unwrap();
}

/// Submits an operation, and shows that it waits: the queue has looked at it, and does not let it
/// through. `spare` is as for [`until_looked_at`].
pub(crate) async fn assert_waits<F: Future + Unpin>(
    file: &MemoryMappedFile,
    spare: u64,
    future: &mut F,
) {
    assert!(poll_once(&mut *future).await.is_none());
    until_looked_at(file, spare).await;
    assert!(poll_once(future).await.is_none(), "it did not wait");
}

/// Keeps the queue of a file from looking at anything: what is submitted meanwhile is found at once
/// by the next look. Takes one thread of the pool, so that nothing else of the pool may be awaited
/// meanwhile.
pub(crate) struct HeldQueue {
    _until_dropped: Sender<()>,
    write: Pin<Box<dyn Future<Output = mmap_io::Result<()>> + Send>>,
}

impl HeldQueue {
    /// `spare` is a byte that nothing is in the way of.
    pub(crate) fn new(file: &MemoryMappedFile, spare: u64) -> Self {
        /// Data whose drop, which is the last thing done for a write, takes its time.
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
                let let_go = self.1.recv_timeout(SOON);
                assert_eq!(let_go, Err(RecvTimeoutError::Disconnected));
            }
        }

        let (entered, has_entered) = mpsc::channel();
        let (until_dropped, let_go) = mpsc::channel();
        let data = Bytes::from_owner(Slow(entered, let_go));
        let mut write = Box::pin(file.write_bytes(spare, data));
        assert!(alone(poll_once(&mut write)).is_none());
        has_entered.recv_timeout(SOON).unwrap();
        Self {
            _until_dropped: until_dropped,
            write,
        }
    }

    pub(crate) async fn let_go(self) {
        drop(self._until_dropped);
        soon(self.write).await.unwrap();
    }
}

/// Runs a test of this binary again, in a process of its own, under another program.
pub(crate) fn run_alone(program: &[&str], test: &str) {
    let this = std::env::current_exe().unwrap();
    let output = std::process::Command::new(program[0])
        .args(&program[1..])
        .arg(this)
        .args(["--exact", "--nocapture", "--test-threads=1", test])
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}\n{errors}");
    assert!(printed.contains("1 passed"), "there is no {test}");
    // It may say why it was skipped.
    print!("{printed}");
}

pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Waits for something that happens on its own: a watchdog ends the test if it never does.
#[track_caller]
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

/// Runs what must come to an end on its own, in a thread that is given up if it does not.
#[track_caller]
pub(crate) fn ends<T: Send + 'static>(
    what: &str,
    body: impl Future<Output = T> + Send + 'static,
) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || sender.send(alone(body)));
    match receiver.recv_timeout(SOON) {
        Ok(value) => value,
        Err(RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(_) => unreachable!("it sends before it ends"),
        },
        Err(RecvTimeoutError::Timeout) => panic!("never ends: {what}"),
    }
}
