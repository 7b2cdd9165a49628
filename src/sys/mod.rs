//! The platform boundary: every operation that the crate needs from an operating system.
//!
//! This is the only file that selects a platform. Every backend exports the same items, so that the
//! rest of the crate needs no `cfg` for them; a port adds one file and one arm here.
//!
//! | item | Linux | other Unix | Windows |
//! |---|---|---|---|
//! | [`page_size`] | `sysconf(3)` | `sysconf(3)` | `GetSystemInfo` |
//! | [`CAN_MAP_PAST_END`] | yes | yes | no |
//! | [`open`], [`open_or_create`], [`FOR_ALL`], [`FOR_THE_OWNER`] | `open(2)`, waits for a lease | `open(2)` | `CreateFileW` |
//! | [`create_new`], [`Created`] | `openat(2)`, `renameat(2)`, `unlinkat(2)` | `openat(2)`, `renameat(2)`, `unlinkat(2)` | `CREATE_NEW`, `MoveFileExW`, `DeleteFileW` |
//! | [`file_info`], [`file_id_at`] | `fstat(2)`, `stat(2)`, `statx(2)` | `fstat(2)`, `stat(2)` | `GetFileInformationByHandleEx` |
//! | [`file_len`], [`known_len`], [`is_linked`] | `statx(2)` | `fstat(2)` | `GetFileInformationByHandle` |
//! | [`access`] | `fcntl(2)` | `fcntl(2)` | `NtQueryInformationFile` |
//! | [`is_owner`] | `geteuid(2)` | `geteuid(2)` | never |
//! | [`restrict`], [`copy_permissions`] | `fchmod(2)` | `fchmod(2)` | the read-only attribute |
//! | [`copy_attributes`] | `fchown(2)`, `fchmod(2)`, `setxattr(2)` | `fchown(2)`, `fchmod(2)` | the read-only attribute |
//! | [`check_address_space`] | `mmap(2)` | `mmap(2)` | not checked |
//! | [`check_file_limit`] | `getrlimit(2)` | `getrlimit(2)` | no limit |
//! | [`check_free_space`], [`check_free_space_for`] | `fstatvfs(3)` | `fstatvfs(3)` | not checked |
//! | [`check_room`] | `FS_IOC_FIEMAP`, `fstatvfs(3)` | not checked | not checked |
//! | [`allocated`] | `fstat(2)` | `fstat(2)` | unknown |
//! | [`is_fault`], [`is_disk_full`], [`is_refused`] | by `errno` | by `errno` (never refused) | by error code (disk full only) |
//! | [`resident`] | `mincore(2)` | unknown | unknown |
//! | [`populate_read`] | `MADV_POPULATE_READ`, else a read of each page | a read of each page | a read of each page |
//! | [`try_populate_read`], [`try_populate_write`] | `MADV_POPULATE_READ`/`_WRITE` | nothing | a read of each page |
//! | [`cached_pages`] | `cachestat(2)` | unknown | unknown |
//! | [`HAS_BARRIER`], [`register_barrier`], [`barrier`] | `membarrier(2)` | none | `FlushProcessWriteBuffers` |
//! | [`start_writeback`], [`finish_writeback`] | `sync_file_range(2)` | nothing | nothing |
//! | [`fs_traits`] | `fstatfs(2)` | none | none |
//! | [`may_write_at`], [`write_at`], [`append`], [`reserve`] | `fcntl(2)`, `pwritev2(2)`, `fallocate(2)` | not used | not used |
//! | [`cache_hint`] | `posix_fadvise(2)` | nothing | nothing |
//! | [`advise`] | `madvise(2)` | `madvise(2)` | `PrefetchVirtualMemory` |
//! | [`allocate`], [`preallocate`], [`ALLOCATE_KEEPS_BYTES`] | `fallocate(2)` | zeroes are written | zeroes are written |
//! | [`extend`] | `fallocate(2)` | `ftruncate(2)` | `SetEndOfFile` |
//! | [`sync_range`] | `msync(2)` | `msync(2)` (macOS: `F_FULLFSYNC` after it) | `FlushViewOfFile`, `FlushFileBuffers` |
//! | [`sync_file`] | `fsync(2)` | `fsync(2)` (macOS: `F_FULLFSYNC`) | `FlushFileBuffers` |
//! | [`touch_mtime`] | `futimens(3)` | `futimens(3)` | `SetFileTime` |
//! | [`sync_name`] | `fsync(2)` of the directory, else `syncfs(2)` | `fsync(2)` of the directory | nothing |
//! | [`reopen`], [`is_reopening_refused`] | `/proc/self/fd` | not used | not used |
//! | [`look`], [`may_open`] | `O_PATH`, `faccessat2(2)` | nothing | nothing |
//! | [`lock_pages`], [`unlock_pages`] | `mlock(2)` | `mlock(2)` | `VirtualLock`, `VirtualUnlock` |
//! | [`try_lock_shared`], [`try_lock_exclusive`], [`unlock`] | `flock(2)` | `flock(2)` | `LockFileEx`, `UnlockFileEx` |
//! | [`has_huge_pages`] | `/proc/self/smaps` | unknown | unknown |
//! | [`clone_file`] | `FICLONE` | nothing | nothing |
//! | [`watch_forks`], [`is_forked`] | `pthread_atfork(3)` | `pthread_atfork(3)` | never |
//! | [`BareThread`] | `pthread_create(3)` | `pthread_create(3)` | the standard library's |
//! | [`copy_contents`] | `copy_file_range(2)` | through memory | through memory |
//! | [`CAN_GUARD_FAULTS`], [`guard_faults`], [`replace_by_zeroes`], [`len_of_number`], [`is_unreadable`] | `sigaction(2)`, `mmap(2)`, `mremap(2)`, `fstat(2)`, `pread(2)` | the same without `mremap` on macOS, iOS and FreeBSD | no |

use std::time::SystemTime;

use crate::range::PageRange;

#[cfg(unix)]
mod bare_thread;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod fallback;
#[cfg(any(
    target_os = "linux",
    target_os = "android",
    target_os = "freebsd",
    target_vendor = "apple"
))]
mod faults;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux;
#[cfg(not(any(
    target_os = "linux",
    target_os = "android",
    target_os = "freebsd",
    target_vendor = "apple"
)))]
mod no_faults;
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
#[cfg(any(
    target_os = "linux",
    target_os = "android",
    target_os = "freebsd",
    target_vendor = "apple"
))]
pub(crate) use faults::*;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) use linux::*;
#[cfg(not(any(
    target_os = "linux",
    target_os = "android",
    target_os = "freebsd",
    target_vendor = "apple"
)))]
pub(crate) use no_faults::*;
#[cfg(not(unix))]
pub(crate) use std_thread::BareThread;
#[cfg(not(any(unix, windows)))]
pub(crate) use stub::*;
#[cfg(unix)]
pub(crate) use unix::*;
#[cfg(windows)]
pub(crate) use windows::*;

/// The identity of a file: it differs from that of every other file while the file is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    /// Device number, or volume serial number.
    pub(crate) volume: u64,
    /// Inode number, with that of the subvolume above it where the file system repeats inode
    /// numbers; or 128-bit file id.
    pub(crate) index: u128,
}

/// What the system tells about the file of a descriptor.
#[derive(Clone, Debug)]
pub(crate) struct FileInfo {
    pub(crate) id: FileId,
    /// The length in bytes.
    pub(crate) len: u64,
    /// Whether it is a regular file, and not a directory, pipe, socket or device.
    pub(crate) is_regular: bool,
    /// Whether the file has a name in some directory.
    pub(crate) is_linked: bool,
    /// The birth time, if the file system keeps one.
    pub(crate) born: Option<SystemTime>,
}

/// What a descriptor may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) read: bool,
    pub(crate) write: bool,
    /// Whether positioned writes would land at the end of the file (`O_APPEND`).
    pub(crate) append: bool,
}

/// What the crate may rely on for a file, depending on its file system and mount options. The
/// default relies on nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FsTraits {
    /// Bytes that [`write_at`] writes appear in every map at once, and vice versa.
    pub(crate) coherent_writes: bool,
    /// Once the dirty pages have been written back, syncing any one range also commits all of the
    /// file's metadata and flushes the drive's cache.
    pub(crate) range_sync_covers_metadata: bool,
    /// This machine answers questions about an open file without waiting for another one, and no
    /// two files have the same [`FileId`] while they are open.
    pub(crate) is_local: bool,
    /// The file exists only in memory (tmpfs): a close writes nothing out, and no more pages are
    /// mapped than the file has blocks.
    pub(crate) in_memory: bool,
    /// The first descriptor that may write replaces the file by a copy (overlayfs). A map that was
    /// made through an earlier descriptor shows the old file forever. [`cached_pages`] counts
    /// nothing there.
    pub(crate) copies_up: bool,
    /// The file is mapped in pages of another size (hugetlbfs), which this crate does not support.
    pub(crate) has_huge_pages: bool,
}

/// What the page cache has of a part of a file, in pages. It counts in folios, groups of pages: all
/// pages of one are dirty, or none.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(any(target_os = "linux", target_os = "android")), allow(dead_code))]
pub(crate) struct CachedPages {
    pub(crate) cached: u64,
    /// Pages that are not on the disk as they are in memory. A page that is being written out, and
    /// has not changed since, is not counted.
    pub(crate) dirty: u64,
}

/// A run of whole pages of mapped memory.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Run {
    /// The address of the first byte; at a page boundary.
    pub(crate) addr: *mut u8,
    /// The length in bytes; whole pages.
    pub(crate) len: usize,
}

impl Run {
    /// Computes the run of `pages` in a map that begins at `base`; accesses nothing, and does not
    /// check that the pages are inside the map.
    pub(crate) fn at(base: *mut u8, pages: PageRange) -> Self {
        Self {
            addr: base.wrapping_add(pages.start() as usize),
            len: pages.len() as usize,
        }
    }
}

/// How soon the process will need the pages of a file range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheHint {
    /// Soon: the system starts reading them.
    WillNeed,
    /// Not at all: the system drops the clean ones from the page cache.
    DontNeed,
}

/// Advice about a range of mapped memory, by the names that most platforms use.
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
