//! What programs for the crate may rely on, item by item: one case for each public item, or for a
//! few that belong together. `items` lists which case covers which item; `.ci/check-public-items`
//! holds that list against what rustdoc finds.
//!
//! A case tests what the item promises by itself: what it returns, the order of its checks (zero
//! length, mode, alignment, bounds, overlap), its errors and their numbers, what is `Busy`. How the
//! promises hold under load is tested in `promises`.

#![cfg(unix)]

use std::fmt::Debug;
use std::fs;
use std::future::Future;
use std::path::PathBuf;

use mmap_io::{MemoryMappedFile, MmapIoError, Result};
use tempfile::TempDir;

use crate::common::{pattern, with_timeout};

#[path = "../common/mod.rs"]
mod common;

mod anonymous;
mod atomic;
mod builder;
mod errors;
mod flushing;
mod functions;
mod items;
mod iterating;
mod looking;
mod opening;
mod pages;
mod programs;
mod reading;
mod sizing;
mod streaming;
mod traits;
mod views;
mod watching;
mod writing;

/// Length of the file of most cases.
const LEN: u64 = 10_000;

/// A length that no file can have.
const TOO_LARGE: u64 = (128 << 40) + 1;

/// One file, whose bytes have the values of their positions, and a handle of each kind on it.
struct Rig {
    dir: TempDir,
    path: PathBuf,
    file: MemoryMappedFile,
    reader: MemoryMappedFile,
    cow: MemoryMappedFile,
    private: MemoryMappedFile,
}

impl Rig {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        fs::write(&path, pattern(LEN as usize)).unwrap();
        Self {
            file: MemoryMappedFile::open_rw(&path).await.unwrap(),
            reader: MemoryMappedFile::open_ro(&path).await.unwrap(),
            cow: MemoryMappedFile::open_cow(&path).await.unwrap(),
            private: MemoryMappedFile::open_cow_writable(&path).await.unwrap(),
            dir,
            path,
        }
    }

    fn all(&self) -> [&MemoryMappedFile; 4] {
        [&self.file, &self.reader, &self.cow, &self.private]
    }

    fn writers(&self) -> [&MemoryMappedFile; 2] {
        [&self.file, &self.private]
    }

    fn non_writers(&self) -> [&MemoryMappedFile; 2] {
        [&self.reader, &self.cow]
    }

    /// Another path in the directory of the file.
    fn path_of(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Runs a case, and fails it if it waits for what should not block it.
fn block_on<T>(case: impl Future<Output = T>) -> T {
    common::block_on(with_timeout(case))
}

/// Ranges that do not lie inside the file of a rig.
const OUTSIDE: [(u64, u64); 5] = [
    (LEN, 1),
    (LEN - 1, 2),
    (5000, LEN),
    (u64::MAX, 2),
    (1 << 63, 3),
];

/// Offsets at which a range of no bytes is accepted.
const ANYWHERE: [u64; 4] = [0, LEN, LEN + 1, u64::MAX];

#[track_caller]
fn assert_outside<T: Debug>(result: Result<T>, (offset, len): (u64, u64), total: u64) {
    let error = result.expect_err("the range is outside");
    match error {
        MmapIoError::OutOfBounds {
            offset: at,
            len: asked,
            total: all,
        } => assert_eq!((at, asked, all), (offset, len, total)),
        ref other => panic!("expected OutOfBounds, found {other:?}"),
    }
    assert_names(&error, &[offset, len, total]);
}

/// Expects the message of an error to name numbers.
#[track_caller]
fn assert_names(error: &MmapIoError, numbers: &[u64]) {
    let message = error.to_string();
    for number in numbers {
        assert!(message.contains(&number.to_string()), "{number}: {message}");
    }
}

#[track_caller]
fn assert_busy<T: Debug>(result: Result<T>, (offset, len): (u64, u64)) {
    let error = result.expect_err("a view overlaps the range");
    match error {
        MmapIoError::Busy {
            offset: at,
            len: asked,
            path: None,
            ..
        } => assert_eq!((at, asked), (offset, len)),
        ref other => panic!("expected Busy, found {other:?}"),
    }
    assert_names(&error, &[offset, len]);
}

/// Expects a call to be refused by an error that matches a pattern.
macro_rules! refused {
    ($call:expr, $pattern:pat) => {{
        let result = $call.map(drop);
        assert!(matches!(result, Err($pattern)), "{result:?}");
    }};
}
use refused;

/// Checks an operation that any handle permits against the rules of ranges: zero length first, then
/// bounds, then overlap.
macro_rules! checks_range {
    ($rig:expr, |$file:ident, $offset:ident, $len:ident| $call:expr) => {{
        let _all = $rig.file.try_as_slice_mut(0, LEN).unwrap().unwrap();
        for $file in $rig.all() {
            for $offset in ANYWHERE {
                let $len = 0;
                $call.unwrap();
            }
            for range @ ($offset, $len) in OUTSIDE {
                assert_outside($call.map(drop), range, LEN);
            }
        }
    }};
}
use checks_range;

/// Checks an operation that writes: zero length first, then the mode, then bounds, then overlap.
macro_rules! checks_write {
    ($rig:expr, |$file:ident, $offset:ident, $len:ident| $call:expr) => {{
        let _all = $rig.file.bytes(0, LEN).unwrap();
        let _all = $rig.private.bytes(0, LEN).unwrap();
        for $file in $rig.all() {
            for $offset in ANYWHERE {
                let $len = 0;
                $call.unwrap();
            }
        }
        for $file in $rig.non_writers() {
            for ($offset, $len) in [(0, 1)].into_iter().chain(OUTSIDE) {
                refused!($call, MmapIoError::InvalidMode(_));
            }
        }
        for $file in $rig.writers() {
            for range @ ($offset, $len) in OUTSIDE {
                assert_outside($call.map(drop), range, LEN);
            }
        }
    }};
}
use checks_write;

/// Data of some bytes, for checks that come before the data is looked at.
fn data(len: u64) -> Vec<u8> {
    vec![7; len as usize]
}
