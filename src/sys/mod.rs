//! The platform boundary: everything the crate asks of an operating system.
//!
//! This is the one file that picks a platform. Every backend exports the same items, so that the
//! rest of the crate has no `cfg` of its own for them; a port adds one file and one arm here.
//!
//! | item | Linux | other Unix | Windows |
//! |---|---|---|---|
//! | [`populate_read`], [`populate_write`] | `MADV_POPULATE_READ`/`_WRITE` | a read of each page | a read of each page |
//! | [`resident`] | `mincore(2)` | unknown | unknown |
//! | [`cached_pages`] | `cachestat(2)` | unknown | unknown |
//! | [`register_barrier`], [`barrier`] | `membarrier(2)` | none | `FlushProcessWriteBuffers` |
//! | [`start_writeback`], [`finish_writeback`] | `sync_file_range(2)` | nothing | nothing |
//! | [`fs_traits`] | `fstatfs(2)` | none | none |
//! | [`write_at`], [`reserve`] | `pwritev2(2)`, `fallocate(2)` | not used | not used |
//! | [`cache_hint`] | `posix_fadvise(2)` | nothing | nothing |
//! | [`allocate`], [`preallocate`] | `fallocate(2)` | zeroes are written | zeroes are written |
//! | [`extend`] | `fallocate(2)` | `ftruncate(2)` | `SetEndOfFile` |
//! | [`sync_range`] | `msync(2)` | `msync(2)` (macOS: `F_FULLFSYNC` after it) | `FlushViewOfFile`, `FlushFileBuffers` |
//! | [`sync_file`] | `fsync(2)` | `fsync(2)` (macOS: `F_FULLFSYNC`) | `FlushFileBuffers` |
//! | [`touch_mtime`] | `futimens(3)` | `futimens(3)` | `SetFileTime` |
//! | [`sync_name`] | `fsync(2)` of the directory, else `syncfs(2)` | `fsync(2)` of the directory | nothing |
//! | [`reopen`] | `/proc/self/fd` | not used | not used |
//! | [`look`], [`may_open`] | `O_PATH`, `faccessat2(2)` | nothing | nothing |
//! | [`has_huge_pages`] | `/proc/self/smaps` | unknown | unknown |
//! | [`clone_file`] | `FICLONE` | nothing | nothing |
//! | [`watch_forks`], [`is_forked`] | `pthread_atfork(3)` | `pthread_atfork(3)` | never |
//! | [`BareThread`] | `pthread_create(3)` | `pthread_create(3)` | the standard library's |
//! | [`copy_contents`] | `copy_file_range(2)` | through memory | through memory |

use std::time::SystemTime;

use crate::range::PageRange;

#[cfg(unix)]
mod bare_thread;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod fallback;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux;
#[cfg(not(unix))]
mod std_thread;
#[cfg(not(any(unix, windows)))]
mod stub;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
pub(crate) use bare_thread::BareThread;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) use fallback::*;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) use linux::*;
#[cfg(not(unix))]
pub(crate) use std_thread::BareThread;
#[cfg(not(any(unix, windows)))]
pub(crate) use stub::*;
#[cfg(unix)]
pub(crate) use unix::*;
#[cfg(windows)]
pub(crate) use windows::*;

/// What tells one file from every other while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    /// Device number, or volume serial number.
    pub(crate) volume: u64,
    /// Inode number, or 128-bit file id.
    pub(crate) index: u128,
}

/// What a newly opened descriptor turns out to be.
#[derive(Clone, Debug)]
pub(crate) struct FileInfo {
    pub(crate) id: FileId,
    /// Length in bytes.
    pub(crate) len: u64,
    /// A regular file, not a directory, pipe, socket or device.
    pub(crate) is_regular: bool,
    /// It has a name in some directory.
    pub(crate) is_linked: bool,
    /// Birth time, where the file system keeps one.
    pub(crate) born: Option<SystemTime>,
}

/// What a descriptor was opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) read: bool,
    pub(crate) write: bool,
    /// Positioned writes would land at the end of the file (`O_APPEND`).
    pub(crate) append: bool,
}

/// What may be relied on for a file, by the file system it is on and the way it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FsTraits {
    /// What [`write_at`] writes is seen in every map at once, and the other way.
    pub(crate) coherent_writes: bool,
    /// Once its pages were written back, a sync of any one range makes all of the file's metadata
    /// durable, and what the drive holds.
    pub(crate) range_sync_covers_metadata: bool,
    /// What is asked about an open file is answered by this machine, without waiting; and a
    /// [`FileId`] is that of one file, as long as the file is open.
    pub(crate) is_local: bool,
    /// Its pages are all there is of it (tmpfs): a close writes nothing out, and no more pages are
    /// mapped than it has blocks.
    pub(crate) in_memory: bool,
    /// The first descriptor that may write makes a copy of the file, which is the file from then on.
    /// A map made through a descriptor that was opened before shows the old one for ever.
    /// [`cached_pages`] counts nothing.
    pub(crate) copies_up: bool,
    /// It is mapped by pages of its own size (hugetlbfs), which this crate does not do.
    pub(crate) has_huge_pages: bool,
}

/// A run of mapped memory whose pages are asked for.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Run {
    /// First byte; at a page boundary.
    pub(crate) addr: *mut u8,
    /// Length in bytes; whole pages.
    pub(crate) len: usize,
}

impl Run {
    /// The run of `pages` in a map that begins at `base`. An address, and no access.
    pub(crate) fn at(base: *mut u8, pages: PageRange) -> Self {
        Self {
            addr: base.wrapping_add(pages.start() as usize),
            len: pages.len() as usize,
        }
    }
}

/// How soon the cached pages of a file range will be needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheHint {
    /// Soon: start reading them.
    WillNeed,
    /// Not at all: drop those that are clean.
    DontNeed,
}

/// Advice about a range of mapped memory, in the platform's common terms.
#[cfg_attr(not(feature = "advise"), allow(dead_code))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advice {
    Normal,
    Random,
    Sequential,
    WillNeed,
    DontNeed,
    Cold,
    PageOut,
    HugePage,
    NoHugePage,
}

#[cfg(all(test, target_os = "linux", not(mmap_io_loom)))]
mod tests;
