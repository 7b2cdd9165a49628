//! Bad input is a clear error, and changes nothing.

#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};

use mmap_io::{MemoryMappedFile, Stats};

use crate::common::eventually;

#[path = "../common/mod.rs"]
mod common;

mod limits;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod memory;
mod modes;
mod paths;
mod ranges;
#[cfg(target_os = "linux")]
mod reserving;
#[cfg(feature = "atomic")]
mod words;

const TOO_LARGE: u64 = (128 << 40) + 1;

macro_rules! assert_error {
    ($result:expr, $pattern:pat) => {
        let result = $result.map(drop);
        assert!(matches!(result, Err($pattern)), "{result:?}");
    };
}
pub(crate) use assert_error;

macro_rules! assert_kind {
    ($result:expr, $kind:ident) => {
        let result = $result.map(drop);
        let kind = result
            .as_ref()
            .err()
            .and_then(mmap_io::MmapIoError::io_kind);
        assert_eq!(kind, Some(std::io::ErrorKind::$kind), "{result:?}");
    };
}
pub(crate) use assert_kind;

/// A file as it was.
struct Before {
    path: PathBuf,
    content: Vec<u8>,
    stats: Stats,
}

impl Before {
    fn new(path: &Path, file: &MemoryMappedFile) -> Self {
        Self {
            path: path.to_path_buf(),
            content: fs::read(path).unwrap(),
            stats: file.stats(),
        }
    }

    /// Bad input is found before anything is done, or even queued.
    fn assert_unchanged(&self, file: &MemoryMappedFile) {
        assert!(fs::read(&self.path).unwrap() == self.content);
        assert_eq!(file.len(), self.content.len() as u64);
        // A copy takes its turn before it knows where to, and may have it for a moment.
        eventually("no view is left", || file.stats().views == self.stats.views);
        let mut stats = file.stats();
        stats.pool_hops = self.stats.pool_hops;
        // Opening the file in another mode maps it again, and changes nothing.
        stats.mapped_bytes = self.stats.mapped_bytes;
        assert_eq!(stats, self.stats);
    }
}
