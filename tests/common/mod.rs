//! What the integration tests share.

#![allow(dead_code, unused_macros, unused_imports)] // No binary uses all of it.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mmap_io::{MemoryMappedFile, Stats};

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

pub(crate) const SOON: Duration = Duration::from_secs(60);
