//! Linux: the calls that make a mapping usable without signals, stalls or locked instructions.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::io::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::unix::{directory_of, file_info, free_space, madvise, msync, page_size, sync_directory};
use super::{Advice, CacheHint, Habits, Run};

/// [`membarrier(2)`]: run a full barrier on every thread of this process that is running.
///
/// [`membarrier(2)`]: https://man7.org/linux/man-pages/man2/membarrier.2.html
const MEMBARRIER_PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
/// [`membarrier(2)`]: announce that this process will use the command above.
///
/// [`membarrier(2)`]: https://man7.org/linux/man-pages/man2/membarrier.2.html
const MEMBARRIER_REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

/// The calling thread as a process file descriptor (`pidfd_open(2)`), since Linux 6.15.
const PIDFD_SELF: libc::c_int = -10_000;

/// Most runs that one `process_madvise(2)` takes (`IOV_MAX`).
const RUNS_A_CALL: usize = 1024;

/// Faults the pages of a run in, for reading ([`madvise(2)`], `MADV_POPULATE_READ`, Linux 5.14).
///
/// # Errors
///
/// `EFAULT` where a load would raise `SIGBUS`: past the end of the file, or a failed read. Kernels
/// without the call get one volatile read a page, which cannot report anything.
///
/// # Safety
///
/// The run lies in one live, readable mapping, inside the file.
///
/// [`madvise(2)`]: https://man7.org/linux/man-pages/man2/madvise.2.html
pub(crate) unsafe fn populate_read(run: Run) -> io::Result<()> {
    loop {
        // SAFETY: the caller's contract; populating discards nothing.
        match unsafe { madvise(run.addr, run.len, libc::MADV_POPULATE_READ) } {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_refused(&error) => break,
            result => return result,
        }
    }
    // SAFETY: the caller vouches for the run.
    unsafe { touch(run) };
    Ok(())
}

/// Reads a byte of each page, where populating is refused.
///
/// # Safety
///
/// The run lies in one live, readable mapping, inside the file.
unsafe fn touch(run: Run) {
    for at in (0..run.len).step_by(page_size()) {
        // SAFETY: `at` is below `run.len`, so it stays in the run.
        let byte = unsafe { run.addr.add(at) };
        // SAFETY: the caller vouches for the run; a volatile read has no other effect.
        unsafe { byte.read_volatile() };
    }
}

/// Makes the pages of every run writable, allocating holes ([`madvise(2)`],
/// `MADV_POPULATE_WRITE`, Linux 5.14), without changing a byte.
///
/// All runs go in one [`process_madvise(2)`] on this process where the kernel takes that (6.15):
/// a batch of 1,024 scattered pages costs 245 ns a page that way, and 640 ns by a call for each.
///
/// # Errors
///
/// The index of the run that failed, and why: `EFAULT` where a store would raise `SIGBUS` (no
/// space for a hole, past the end of the file, a failed read). Kernels without the call, and filters
/// that refuse it, get one volatile read a page, which cannot report anything.
///
/// # Safety
///
/// Every run lies in one live, writable mapping, inside the file.
///
/// [`madvise(2)`]: https://man7.org/linux/man-pages/man2/madvise.2.html
/// [`process_madvise(2)`]: https://man7.org/linux/man-pages/man2/process_madvise.2.html
pub(crate) unsafe fn populate_write(runs: &[Run]) -> Result<(), (usize, io::Error)> {
    let mut done = 0;
    if runs.len() > 1 {
        // SAFETY: the caller vouches for every run.
        done = unsafe { populate_write_vectored(runs) };
    }
    while done < runs.len() {
        let run = runs[done];
        // SAFETY: the caller vouches for every run; populating discards nothing.
        match unsafe { madvise(run.addr, run.len, libc::MADV_POPULATE_WRITE) } {
            Ok(()) => done += 1,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_refused(&error) => {
                // SAFETY: the caller vouches for every run.
                unsafe { touch(run) };
                done += 1;
            }
            Err(error) => return Err((done, error)),
        }
    }
    Ok(())
}

/// As many of the first runs as one kind of call could do; the rest is for the caller, who finds
/// out why.
///
/// # Safety
///
/// As for [`populate_write`].
unsafe fn populate_write_vectored(runs: &[Run]) -> usize {
    static REFUSED: AtomicBool = AtomicBool::new(false);
    // Relaxed: a stale answer costs one refused call.
    if REFUSED.load(Ordering::Relaxed) {
        return 0;
    }
    let mut done = 0;
    for batch in runs.chunks(RUNS_A_CALL) {
        // SAFETY: `Run` has the layout of `iovec` (pointer, length; `repr(C)`), and the caller
        // vouches for every run.
        let populated = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                PIDFD_SELF,
                batch.as_ptr().cast::<libc::iovec>(),
                batch.len(),
                libc::MADV_POPULATE_WRITE,
                0,
            )
        };
        let mut populated = match usize::try_from(populated) {
            Ok(bytes) => bytes,
            Err(_) => {
                // Not this kernel (ENOSYS, EBADF, EINVAL) or not here (EPERM), or the first run
                // of the batch is in trouble (EFAULT, ENOMEM, EINTR): then the next batch may
                // well be taken.
                let error = io::Error::last_os_error().raw_os_error();
                if !matches!(error, Some(libc::EFAULT | libc::ENOMEM | libc::EINTR)) {
                    REFUSED.store(true, Ordering::Relaxed);
                }
                return done;
            }
        };
        for run in batch {
            if populated < run.len {
                return done;
            }
            populated -= run.len;
            done += 1;
        }
    }
    done
}

/// Whether every page of the run is in the page cache ([`mincore(2)`]); no I/O, about 0.6 us for
/// 64 KiB. The run is not touched: where there is no mapping, that is an error.
///
/// [`mincore(2)`]: https://man7.org/linux/man-pages/man2/mincore.2.html
pub(crate) fn resident(run: Run) -> io::Result<bool> {
    const PAGES_A_CALL: usize = 1024;
    let page = page_size();
    let mut present = [0_u8; PAGES_A_CALL];
    let mut at = 0;
    while at < run.len {
        let len = (run.len - at).min(PAGES_A_CALL * page);
        let addr = run.addr.wrapping_add(at);
        // SAFETY: `present` has a byte for each page of `len`; the kernel looks at no byte of the run.
        if unsafe { libc::mincore(addr.cast(), len, present.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let pages = len.div_ceil(page);
        if present[..pages].iter().any(|byte| byte & 1 == 0) {
            return Ok(false);
        }
        at += len;
    }
    Ok(true)
}

/// Number of pages of a file range that are in the page cache ([`cachestat(2)`], Linux 6.5; 0.3 us),
/// those included whose read has begun. `None` where the kernel does not have the call.
///
/// # Errors
///
/// `EPERM` where the kernel hides the cache of other users' files from this process: where
/// [`resident`] answers that all of it is there.
///
/// [`cachestat(2)`]: https://www.kernel.org/doc/html/latest/mm/cachestat.html
pub(crate) fn cached_pages(file: &File, offset: u64, len: u64) -> io::Result<Option<u64>> {
    const SYS_CACHESTAT: libc::c_long = 451;
    static IS_MISSING: AtomicBool = AtomicBool::new(false);
    // Relaxed: a stale answer costs one refused call.
    if IS_MISSING.load(Ordering::Relaxed) {
        return Ok(None);
    }
    // `struct cachestat` of `linux/mman.h`; the cached pages come first.
    let mut counts = [0_u64; 5];
    let range = [offset, len];
    // SAFETY: both arrays are live for the call and of the sizes that it knows, and `file` keeps the
    // descriptor open.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            range.as_ptr(),
            counts.as_mut_ptr(),
            0,
        )
    };
    if result == 0 {
        return Ok(Some(counts[0]));
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENOSYS) {
        IS_MISSING.store(true, Ordering::Relaxed);
        return Ok(None);
    }
    Err(error)
}

/// Length of an open file in bytes ([`statx(2)`], `STATX_SIZE` alone).
///
/// The times are left out on purpose: a process that asks for them makes the next store to the file
/// change its inode, and an `msync` after it takes a fifth longer (multigrain timestamps, Linux
/// 6.13).
///
/// [`statx(2)`]: https://man7.org/linux/man-pages/man2/statx.2.html
pub(crate) fn file_len(file: &File) -> io::Result<u64> {
    statx_len(file, libc::AT_STATX_SYNC_AS_STAT)
}

/// Length of an open file in bytes, as this machine knows it: no server is asked
/// ([`statx(2)`], `AT_STATX_DONT_SYNC`).
///
/// [`statx(2)`]: https://man7.org/linux/man-pages/man2/statx.2.html
pub(crate) fn known_len(file: &File) -> io::Result<u64> {
    statx_len(file, libc::AT_STATX_DONT_SYNC)
}

/// What a path leads to, by a descriptor that only tells what it is ([`open(2)`], `O_PATH`). It breaks
/// no lease of another process, and closing it leaves the locks alone that this process has on the
/// file (`fcntl(2)`, `F_SETLK`). `None` if it cannot be looked at.
///
/// [`open(2)`]: https://man7.org/linux/man-pages/man2/open.2.html
pub(crate) fn look(path: &Path) -> Option<File> {
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(libc::O_PATH);
    options.open(path).ok()
}

/// Whether this process may open a file that was looked at for reading, and for writing if
/// `writes` ([`faccessat2(2)`]). If in doubt, not.
///
/// [`faccessat2(2)`]: https://man7.org/linux/man-pages/man2/faccessat2.2.html
pub(crate) fn may_open(looked: &File, writes: bool) -> bool {
    let mode = if writes {
        libc::R_OK | libc::W_OK
    } else {
        libc::R_OK
    };
    let flags = libc::AT_EMPTY_PATH | libc::AT_EACCESS;
    // SAFETY: the path is empty and ends in a zero byte, and `looked` keeps the descriptor open.
    let answer = unsafe {
        let (call, file) = (libc::SYS_faccessat2, looked.as_raw_fd());
        libc::syscall(call, file, b"\0".as_ptr(), mode, flags)
    };
    answer == 0
}

/// Whether an open file has a name in some directory, as this machine knows it ([`statx(2)`],
/// `AT_STATX_DONT_SYNC`).
///
/// [`statx(2)`]: https://man7.org/linux/man-pages/man2/statx.2.html
pub(crate) fn is_linked(file: &File) -> io::Result<bool> {
    match statx(file, libc::AT_STATX_DONT_SYNC, STATX_NLINK) {
        Some(stat) => Ok(stat.stx_nlink > 0),
        None => Ok(file.metadata()?.nlink() > 0),
    }
}

fn statx_len(file: &File, sync: libc::c_int) -> io::Result<u64> {
    match statx(file, sync, STATX_SIZE) {
        Some(stat) => Ok(stat.stx_size),
        None => Ok(file.metadata()?.len()),
    }
}

const STATX_NLINK: libc::c_uint = 0x4;
const STATX_SIZE: libc::c_uint = 0x200;

/// What is asked for by `mask`; `None` where the kernel does not have the call, or a filter refuses it.
#[cfg(not(target_os = "android"))]
fn statx(file: &File, sync: libc::c_int, mask: libc::c_uint) -> Option<libc::statx> {
    let mut stat = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is empty and ends in a zero byte, `stat` is live for the call, and `file`
    // keeps the descriptor open.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            b"\0".as_ptr().cast(),
            libc::AT_EMPTY_PATH | sync,
            mask,
            stat.as_mut_ptr(),
        )
    };
    // SAFETY: all-zero bytes are a valid `statx`, and the call has filled in what it knows.
    (result == 0).then(|| unsafe { stat.assume_init() })
}

/// Android's C library does not have the call everywhere.
#[cfg(target_os = "android")]
fn statx(_file: &File, _sync: libc::c_int, _mask: libc::c_uint) -> Option<libc::statx> {
    None
}

/// There is a barrier for the whole process, unless the kernel or a filter refuses it.
pub(crate) const HAS_BARRIER: bool = true;

/// Announces that [`barrier`] will be used; `false` where the kernel or a filter refuses.
pub(crate) fn register_barrier() -> bool {
    membarrier(MEMBARRIER_REGISTER_PRIVATE_EXPEDITED).is_ok() && barrier().is_ok()
}

/// Runs a full memory barrier on every running thread of this process. 0.3 us when no other
/// thread runs, 10-22 us with busy threads, milliseconds at worst.
pub(crate) fn barrier() -> io::Result<()> {
    membarrier(MEMBARRIER_PRIVATE_EXPEDITED)
}

fn membarrier(command: libc::c_int) -> io::Result<()> {
    // SAFETY: the call takes no pointer.
    match unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Starts writing the dirty pages of a file range back, and does not wait for them; one that is
/// being written back already is waited for, if it was dirtied again ([`sync_file_range(2)`];
/// Android has no such call). Nothing is durable by it.
///
/// [`sync_file_range(2)`]: https://man7.org/linux/man-pages/man2/sync_file_range.2.html
pub(crate) fn start_writeback(file: &File, offset: u64, len: u64) -> io::Result<()> {
    sync_file_range(file, offset, len, SYNC_FILE_RANGE_WRITE)
}

/// Writes the dirty pages of a file range back and waits until none is on its way
/// ([`sync_file_range(2)`]). Neither the file's metadata nor what the drive holds is durable by it.
///
/// # Errors
///
/// A page that could not be written.
///
/// [`sync_file_range(2)`]: https://man7.org/linux/man-pages/man2/sync_file_range.2.html
pub(crate) fn finish_writeback(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let all = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    sync_file_range(file, offset, len, all)
}

const SYNC_FILE_RANGE_WAIT_BEFORE: libc::c_uint = 1;
const SYNC_FILE_RANGE_WRITE: libc::c_uint = 2;
const SYNC_FILE_RANGE_WAIT_AFTER: libc::c_uint = 4;

#[cfg(not(target_os = "android"))]
fn sync_file_range(file: &File, offset: u64, len: u64, flags: libc::c_uint) -> io::Result<()> {
    loop {
        // SAFETY: the call takes no pointer, and `file` keeps the descriptor open.
        let result = unsafe {
            libc::sync_file_range(
                file.as_raw_fd(),
                offset as libc::off64_t,
                len as libc::off64_t,
                flags,
            )
        };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(target_os = "android")]
fn sync_file_range(_: &File, _: u64, _: u64, _: libc::c_uint) -> io::Result<()> {
    Ok(())
}

/// What may be relied on for a file ([`fstatfs(2)`]).
///
/// - *Coherent writes*: ext2 to ext4, xfs, btrfs and tmpfs write through the page cache, which is
///   what is mapped; see [`may_write_at`] for the flags. Not where every write is synchronous by
///   mount option.
/// - *Syncs by range*: in ext4, xfs and tmpfs `fdatasync` of a range is a write-back of the range,
///   followed by a commit of all that the inode has in the journal and a flush of the drive, which
///   do not depend on the range. btrfs logs the extents of the range.
/// - *Local*: by name. NFS, SMB, 9p, FUSE, and what is not known here, may ask a server whatever they
///   are asked, and may give one number to several files. overlayfs is taken for local, though its
///   layers need not be.
/// - *Copies up*: overlayfs; a file keeps its id when it is copied up. It does not count its cache
///   ([`cached_pages`]), since the pages belong to the files of its layers.
///
/// [`fstatfs(2)`]: https://man7.org/linux/man-pages/man2/fstatfs.2.html
pub(crate) fn habits(file: &File) -> Habits {
    const EXT: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const BTRFS: u64 = 0x9123_683e;
    const TMPFS: u64 = 0x0102_1994;
    const OVERLAYFS: u64 = 0x794c_7630;
    const F2FS: u64 = 0xf2f5_2010;
    const ZFS: u64 = 0x2fc1_2fc1;
    const BCACHEFS: u64 = 0xca45_1a4e;
    const RAMFS: u64 = 0x8584_58f6;
    const EXFAT: u64 = 0x2011_bab0;
    const FAT: u64 = 0x4d44;
    const EROFS: u64 = 0xe0f5_e1e2;
    const SQUASHFS: u64 = 0x7371_7368;
    const ISO9660: u64 = 0x9660;
    const HUGETLBFS: u64 = 0x9584_58f6;
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    let mut flags = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `stat` is live for the call, and `file` keeps the descriptor open.
    let kind = unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) };
    // SAFETY: `flags` is live for the call, and `file` keeps the descriptor open.
    let mounted = unsafe { libc::fstatvfs(file.as_raw_fd(), flags.as_mut_ptr()) };
    if kind != 0 || mounted != 0 {
        return Habits::default();
    }
    // SAFETY: all-zero bytes are a valid `statfs`, and the call has filled it in.
    let kind = unsafe { stat.assume_init() }.f_type;
    // SAFETY: all-zero bytes are a valid `statvfs`, and the call has filled it in.
    let mounted = unsafe { flags.assume_init() }.f_flag;
    // Signed or not, and of 32 or 64 bits, by platform; the numbers have 32.
    let kind = u64::from(kind as u32);
    Habits {
        coherent_writes: matches!(kind, EXT | XFS | BTRFS | TMPFS)
            && mounted & libc::ST_SYNCHRONOUS == 0,
        syncs_by_range: cfg!(not(target_os = "android")) && matches!(kind, EXT | XFS | TMPFS),
        is_local: matches!(
            kind,
            EXT | XFS
                | BTRFS
                | TMPFS
                | OVERLAYFS
                | F2FS
                | ZFS
                | BCACHEFS
                | RAMFS
                | EXFAT
                | FAT
                | EROFS
                | SQUASHFS
                | ISO9660
        ),
        in_memory: kind == TMPFS,
        copies_up: kind == OVERLAYFS,
        has_huge_pages: kind == HUGETLBFS,
    }
}

/// Whether [`write_at`] may be used up to `end`: as long as the descriptor does not write around
/// the page cache (`O_DIRECT`), elsewhere (`O_APPEND`), or synchronously, which would take an error
/// of the write-back from the flush that is to report it; and as long as no `SIGXFSZ` is raised.
///
/// Asked for each write, since others can change the flags and the limit at any time ([`fcntl(2)`],
/// [`getrlimit(2)`]; 0.1 us each).
///
/// [`fcntl(2)`]: https://man7.org/linux/man-pages/man2/fcntl.2.html
/// [`getrlimit(2)`]: https://man7.org/linux/man-pages/man2/getrlimit.2.html
pub(crate) fn may_write_at(file: &File, end: u64) -> bool {
    let elsewhere = libc::O_APPEND | libc::O_DIRECT | libc::O_SYNC | libc::O_DSYNC;
    // SAFETY: `F_GETFL` takes no pointer, and `file` keeps the descriptor open.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    flags >= 0 && flags & elsewhere == 0 && super::unix::check_file_limit(end).is_ok()
}

/// Writes all of `data` at `offset`, whatever the position of the descriptor; also if another holder of
/// it makes it append in this very moment ([`pwritev2(2)`], `RWF_NOAPPEND`, Linux 6.9). Older kernels
/// write to the end of the file then ([`pwrite(2)`]).
///
/// [`pwritev2(2)`]: https://man7.org/linux/man-pages/man2/pwritev2.2.html
/// [`pwrite(2)`]: https://man7.org/linux/man-pages/man2/pwrite.2.html
pub(crate) fn write_at(file: &File, mut data: &[u8], mut offset: u64) -> io::Result<()> {
    static IS_MISSING: AtomicBool = AtomicBool::new(false);
    // Relaxed: a stale answer costs one refused call.
    while !data.is_empty() && !IS_MISSING.load(Ordering::Relaxed) {
        match write_without_appending(file, data, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                data = &data[written..];
                offset += written as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // `EINVAL` may be about the file; then the other call says so as well.
            Err(error) if is_refused(&error) => {
                let is_unknown = error.raw_os_error() != Some(libc::EINVAL);
                IS_MISSING.store(is_unknown, Ordering::Relaxed);
                break;
            }
            Err(error) => return Err(error),
        }
    }
    file.write_all_at(data, offset)
}

pub(super) fn write_without_appending(file: &File, data: &[u8], offset: u64) -> io::Result<usize> {
    /// Of `linux/fs.h`.
    const RWF_NOAPPEND: libc::c_int = 0x20;
    let part = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // The kernel takes the offset in two words, and where they are of 64 bits looks at the first.
    let (low, high) = (offset as libc::c_ulong, (offset >> 32) as libc::c_ulong);
    // SAFETY: `part` and the data are live for the call, which only reads them, and `file` keeps the
    // descriptor open.
    let written = unsafe {
        libc::syscall(
            libc::SYS_pwritev2,
            file.as_raw_fd(),
            &part,
            1_usize,
            low,
            high,
            RWF_NOAPPEND,
        )
    };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// Makes sure that the blocks of a file range are there, where the file system can say or do so:
/// asks for its extents (`FS_IOC_FIEMAP`, 1 us), and reserves them (`fallocate(2)`) if one is
/// missing. Asking first spares the journal, which `fallocate` writes to even if there is nothing
/// to do, and then the next sync has to wait for it.
///
/// # Errors
///
/// `ENOSPC` on a full disk.
pub(crate) fn reserve(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let mut blocks = Blocks::from(offset);
    let asked = for_each_extent(file, offset, len, |start, end, flags| {
        blocks.add(start, end, flags) && blocks.end < offset + len
    });
    if asked.is_ok() && blocks.end >= offset + len {
        return Ok(());
    }
    if blocks.are_shared {
        // Takes the place of `allocate` where the file system knows it (xfs).
        let mode = libc::FALLOC_FL_UNSHARE_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        match fallocate(file, mode, offset, len) {
            Err(error) if is_refused(&error) => {}
            result => return result,
        }
    }
    match allocate(file, offset, len) {
        Err(error) if is_refused(&error) => Ok(()),
        result => result,
    }
}

/// How far the extents of a file reach without a gap, each of them with blocks of its own.
#[derive(Debug)]
pub(super) struct Blocks {
    pub(super) end: u64,
    /// The extent that comes next shares its blocks with another file: a write takes new ones, and may
    /// find none (btrfs, reflinked xfs).
    pub(super) are_shared: bool,
}

/// `FIEMAP_EXTENT_SHARED` of `linux/fiemap.h`.
pub(super) const EXTENT_SHARED: u32 = 0x2000;

impl Blocks {
    /// Adds the next extent; says whether it goes on.
    pub(super) fn add(&mut self, start: u64, end: u64, flags: u32) -> bool {
        let follows = start <= self.end;
        self.are_shared = follows && flags & EXTENT_SHARED != 0;
        let goes_on = follows && !self.are_shared;
        if goes_on {
            self.end = end;
        }
        goes_on
    }
}

impl From<u64> for Blocks {
    fn from(start: u64) -> Self {
        Self {
            end: start,
            are_shared: false,
        }
    }
}

/// Fails with `ENOSPC` if the disk has no room for the holes of a file range. Knows no quota, and
/// nothing of what others take meanwhile.
///
/// Where the extents of a file cannot be asked for, its blocks are taken to lie in the range. A range
/// of at most 8 MiB has room without asking: what is taken in vain is little.
pub(crate) fn check_room(file: &File, offset: u64, len: u64) -> io::Result<()> {
    const UNASKED: u64 = 8 << 20;
    if len <= UNASKED {
        return Ok(());
    }
    let mut allocated = 0;
    let asked = for_each_extent(file, offset, len, |start, end, flags| {
        if flags & EXTENT_SHARED == 0 {
            allocated += end.min(offset + len).saturating_sub(start.max(offset));
        }
        true
    });
    if asked.is_err() {
        allocated = super::allocated(file)?;
    }
    match free_space(file) {
        Some(free) if len.saturating_sub(allocated) > free => {
            Err(io::Error::from_raw_os_error(libc::ENOSPC))
        }
        _ => Ok(()),
    }
}

/// Calls `visit` with the start, the end and the flags of each extent of a file range
/// (`FS_IOC_FIEMAP`), in order, until it says `false`; those at the ends may reach past the range. A delayed allocation
/// counts: it is promised.
///
/// `lseek(2)` with `SEEK_HOLE` would tell holes as well, but moves the position of the descriptor,
/// which may be the caller's.
///
/// # Errors
///
/// `EOPNOTSUPP` or `ENOTTY` where the file system cannot say.
fn for_each_extent(
    file: &File,
    offset: u64,
    len: u64,
    mut visit: impl FnMut(u64, u64, u32) -> bool,
) -> io::Result<()> {
    /// `struct fiemap` of `linux/fiemap.h`, with room for some extents.
    #[repr(C)]
    struct Fiemap {
        start: u64,
        length: u64,
        flags: u32,
        mapped_extents: u32,
        extent_count: u32,
        reserved: u32,
        extents: [Extent; EXTENTS],
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Extent {
        logical: u64,
        physical: u64,
        length: u64,
        reserved: [u64; 2],
        flags: u32,
        reserved_too: [u32; 3],
    }
    const EXTENTS: usize = 16;
    /// `_IOWR('f', 11, struct fiemap)`, of the 32 bytes before the extents.
    const FS_IOC_FIEMAP: u32 = 0xc020_660b;
    let none = Extent {
        logical: 0,
        physical: 0,
        length: 0,
        reserved: [0; 2],
        flags: 0,
        reserved_too: [0; 3],
    };
    let (mut start, end) = (offset, offset + len);
    while start < end {
        let mut map = Fiemap {
            start,
            length: end - start,
            flags: 0,
            mapped_extents: 0,
            extent_count: EXTENTS as u32,
            reserved: 0,
            extents: [none; EXTENTS],
        };
        // SAFETY: `map` is live for the call and has room for as many extents as it says, and
        // `file` keeps the descriptor open.
        if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP as _, &mut map) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let extents = &map.extents[..EXTENTS.min(map.mapped_extents as usize)];
        for extent in extents {
            let extent_end = extent.logical.saturating_add(extent.length);
            if !visit(extent.logical, extent_end, extent.flags) {
                return Ok(());
            }
            start = start.max(extent_end);
        }
        if extents.len() < EXTENTS {
            return Ok(());
        }
    }
    Ok(())
}

/// Tells the page cache about a file range ([`posix_fadvise(2)`]).
///
/// [`posix_fadvise(2)`]: https://man7.org/linux/man-pages/man2/posix_fadvise.2.html
pub(crate) fn cache_hint(file: &File, offset: u64, len: u64, hint: CacheHint) -> io::Result<()> {
    let advice = match hint {
        CacheHint::WillNeed => libc::POSIX_FADV_WILLNEED,
        CacheHint::DontNeed => libc::POSIX_FADV_DONTNEED,
    };
    // SAFETY: the call takes no pointer, and `file` keeps the descriptor open.
    let errno = unsafe {
        libc::posix_fadvise(
            file.as_raw_fd(),
            offset as libc::off_t,
            len as libc::off_t,
            advice,
        )
    };
    match errno {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// [`allocate`] leaves what is there as it is, wherever it is called for.
pub(crate) const ALLOCATE_KEEPS_BYTES: bool = true;

/// Reserves blocks for a file range without changing its length or a byte ([`fallocate(2)`],
/// `FALLOC_FL_KEEP_SIZE`).
///
/// # Errors
///
/// `ENOSPC` on a full disk, `EOPNOTSUPP` where the file system cannot.
///
/// [`fallocate(2)`]: https://man7.org/linux/man-pages/man2/fallocate.2.html
pub(crate) fn allocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    /// At most so much a call: one that a signal interrupts starts over.
    const PIECE: u64 = 64 << 20;
    const LEAST_PIECE: u64 = 1 << 20;
    // Asked first: ext4 keeps what it has allocated before it finds that there is no more.
    check_room(file, offset, len)?;
    let (mut piece, mut done) = (PIECE, 0);
    while done < len {
        let next = piece.min(len - done);
        match try_fallocate(file, libc::FALLOC_FL_KEEP_SIZE, offset + done, next) {
            Ok(()) => done += next,
            // Where signals come faster than that much is allocated (a profiler, tmpfs), less is.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                piece = (piece / 2).max(LEAST_PIECE);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The same, for a caller that asked for it.
///
/// # Errors
///
/// `Unsupported`, in words, where the file system cannot, or a filter of system calls refuses it.
/// Writing zeroes instead would not do: they would be written over what another process appends.
pub(crate) fn preallocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    allocate(file, offset, len).map_err(|error| match is_refused(&error) {
        true => io::Error::new(
            io::ErrorKind::Unsupported,
            "blocks cannot be reserved on this file system",
        ),
        false => error,
    })
}

/// Whether the error says that the kernel, the file system or a filter of system calls does not let a
/// call be made at all, so that another way is to be tried.
pub(crate) fn is_refused(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSYS | libc::EPERM | libc::EOPNOTSUPP | libc::EINVAL)
    )
}

/// Makes a file `len` bytes long, unless it is longer, by a call that cannot cut what another
/// process appends meanwhile: the block of the last byte is reserved ([`fallocate(2)`]), and the
/// bytes before it are a hole.
///
/// Where the file system has no such call, the file is grown by `ftruncate` after a second look,
/// under a lock of this open file description that is tried and never waited for
/// ([`fcntl_locking(2)`], `F_OFD_SETLK`).
///
/// # Errors
///
/// `ENOSPC` on a full disk, `EFBIG` past the process's limit on file sizes, `EAGAIN` if another
/// process, or a lock of this one, holds the file where the lock is needed.
///
/// [`fallocate(2)`]: https://man7.org/linux/man-pages/man2/fallocate.2.html
/// [`fcntl_locking(2)`]: https://man7.org/linux/man-pages/man2/F_OFD_SETLK.2const.html
pub(crate) fn extend(file: &File, len: u64) -> io::Result<()> {
    if file_len(file)? >= len {
        return Ok(());
    }
    super::unix::check_file_limit(len)?;
    match fallocate(file, 0, len - 1, 1) {
        Err(error) if is_refused(&error) => extend_under_lock(file, len),
        extended => extended,
    }
}

fn extend_under_lock(file: &File, len: u64) -> io::Result<()> {
    let lock = |kind: libc::c_int| {
        let mut whole = std::mem::MaybeUninit::<libc::flock>::zeroed();
        // SAFETY: all-zero bytes are a valid `flock`: from the start to the end of the file.
        let whole = unsafe { whole.assume_init_mut() };
        whole.l_type = kind as libc::c_short;
        // SAFETY: `whole` is live for the call, and `file` keeps the descriptor open.
        match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &*whole) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    match lock(libc::F_WRLCK) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            return Err(error);
        }
        // A file system without locks leaves the second look alone.
        Ok(()) | Err(_) => {}
    }
    let extended = match file_len(file) {
        Ok(file_len) if file_len >= len => Ok(()),
        Ok(_) => file.set_len(len),
        Err(error) => Err(error),
    };
    let _ = lock(libc::F_UNLCK);
    extended
}

fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    loop {
        match try_fallocate(file, mode, offset, len) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn try_fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: the call takes no pointer, and `file` keeps the descriptor open.
    let result = unsafe {
        libc::fallocate(
            file.as_raw_fd(),
            mode,
            offset as libc::off_t,
            len as libc::off_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes the name durable by which the file was opened: by an `fsync` of the directory, or, where
/// the directory may not be opened or the file has another name by now, of all that its file system
/// holds ([`syncfs(2)`]), which takes no descriptor and no permission. A file without a name has
/// none to lose.
///
/// [`syncfs(2)`]: https://man7.org/linux/man-pages/man2/syncfs.2.html
pub(crate) fn sync_name(file: &File, path: &Path) -> io::Result<()> {
    if let Ok(directory) = directory_of(file, path) {
        return sync_directory(&directory);
    }
    if !file_info(file)?.is_linked {
        return Ok(());
    }
    // SAFETY: the call takes no pointer, and `file` keeps the descriptor open.
    match unsafe { libc::syncfs(file.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A new descriptor of an open file, for reading ([`proc_pid_fd(5)`]). On overlayfs it shows what
/// the file is now.
///
/// # Errors
///
/// Where `/proc` is not mounted, or the file may no longer be opened.
///
/// [`proc_pid_fd(5)`]: https://man7.org/linux/man-pages/man5/proc_pid_fd.5.html
pub(crate) fn reopen(file: &File) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    super::unix::open(options.read(true), path.as_ref())
}

/// Whether huge pages hold a part of a run ([`proc_pid_smaps(5)`]). Blocks: the kernel walks through
/// the pages of every mapping of the process up to that one. The run is not touched.
///
/// # Errors
///
/// Where `/proc` is not mounted.
///
/// [`proc_pid_smaps(5)`]: https://man7.org/linux/man-pages/man5/proc_pid_smaps.5.html
pub(crate) fn has_huge_pages(run: Run) -> io::Result<Option<bool>> {
    let start = run.addr as u64;
    let end = start + run.len as u64;
    let smaps = BufReader::new(File::open("/proc/self/smaps")?);
    has_huge_pages_in(smaps, start, end).map(Some)
}

/// The same of addresses in a text: a line for each mapping, `from-to permissions ..`, in the order
/// of their addresses, and under it lines of `Name: kilobytes kB`.
fn has_huge_pages_in(mut smaps: impl BufRead, start: u64, end: u64) -> io::Result<bool> {
    let address = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut is_inside = false;
    let mut line = Vec::new();
    // Not as lines of UTF-8: there are paths in it.
    while smaps.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        let mut words = text.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        let mapping = first.split_once('-');
        let mapping = mapping.and_then(|(from, to)| address(from).zip(address(to)));
        if let Some((from, to)) = mapping {
            if from >= end {
                break;
            }
            is_inside = to > start;
        } else if is_inside {
            let bytes = words.next().and_then(|word| word.parse().ok());
            let bytes = bytes.map_or(0, |kilobytes: u64| kilobytes << 10);
            let is_huge = match first {
                "AnonHugePages:" | "ShmemPmdMapped:" | "FilePmdMapped:" => bytes > 0,
                "KernelPageSize:" => bytes > page_size() as u64,
                _ => false,
            };
            if is_huge {
                return Ok(true);
            }
        }
        line.clear();
    }
    Ok(false)
}

/// Makes a range of a shared mapping durable, down to the drive's cache: `msync` with `MS_SYNC`
/// ends in the file system's own `fdatasync` for the range.
///
/// # Safety
///
/// The run lies in one live shared mapping of `file`.
pub(crate) unsafe fn sync_range(_file: &File, run: Run) -> io::Result<()> {
    // SAFETY: the caller's contract is that of `msync`.
    unsafe { msync(run.addr, run.len) }
}

/// Gives advice about a range ([`madvise(2)`]). Kernels that do not know a hint ignore it.
///
/// # Safety
///
/// The run lies in one live shared mapping of a file: discarded pages come back from the file.
///
/// [`madvise(2)`]: https://man7.org/linux/man-pages/man2/madvise.2.html
#[cfg_attr(not(feature = "advise"), allow(dead_code))]
pub(crate) unsafe fn advise(run: Run, advice: Advice) -> io::Result<()> {
    let (code, is_hint) = match advice {
        Advice::Normal => (libc::MADV_NORMAL, false),
        Advice::Random => (libc::MADV_RANDOM, false),
        Advice::Sequential => (libc::MADV_SEQUENTIAL, false),
        Advice::WillNeed => (libc::MADV_WILLNEED, false),
        Advice::DontNeed => (libc::MADV_DONTNEED, false),
        Advice::Cold => (libc::MADV_COLD, true),
        Advice::PageOut => (libc::MADV_PAGEOUT, true),
        Advice::HugePage => (libc::MADV_HUGEPAGE, true),
        Advice::NoHugePage => (libc::MADV_NOHUGEPAGE, true),
    };
    // SAFETY: the caller's contract; every page comes back from the file.
    match unsafe { madvise(run.addr, run.len, code) } {
        Err(error) if is_hint && error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => result,
    }
}

/// Makes `destination` share the blocks of `source`, where the file system can ([`ioctl_ficlone(2)`]).
///
/// [`ioctl_ficlone(2)`]: https://man7.org/linux/man-pages/man2/ioctl_ficlone.2.html
pub(crate) fn clone_file(source: &File, destination: &File) -> bool {
    // SAFETY: `FICLONE` takes a descriptor as its argument, and both files are open.
    unsafe { libc::ioctl(destination.as_raw_fd(), libc::FICLONE, source.as_raw_fd()) == 0 }
}

/// Copies the first `len` bytes of `source` over `destination`, which is empty: what has data inside
/// the kernel where it can ([`copy_file_range(2)`]), and holes as holes. The position of neither
/// descriptor matters or moves.
///
/// # Errors
///
/// `EFBIG` past the process's limit on file sizes, where writing would raise `SIGXFSZ`;
/// `UnexpectedEof` when the source is shorter.
///
/// [`copy_file_range(2)`]: https://man7.org/linux/man-pages/man2/copy_file_range.2.html
pub(crate) fn copy_contents(source: &File, destination: &File, len: u64) -> io::Result<()> {
    super::unix::check_file_limit(len)?;
    // A descriptor with a position of its own; where it is refused, all of the file is data.
    let finder = File::open(format!("/proc/self/fd/{}", source.as_raw_fd())).ok();
    let mut end = 0;
    while let Some(data) = next_data(finder.as_ref(), end, len)? {
        copy_range(source, destination, data.0, data.1)?;
        end = data.1;
    }
    match end < len {
        true => destination.set_len(len),
        false => Ok(()),
    }
}

/// Start and end of the next bytes of a file from `start` on that are no hole, up to `len`
/// ([`lseek(2)`], `SEEK_DATA`, which knows of pages that are not on the disk yet).
///
/// # Errors
///
/// `UnexpectedEof` when the file is shorter.
///
/// [`lseek(2)`]: https://man7.org/linux/man-pages/man2/lseek.2.html
fn next_data(finder: Option<&File>, start: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    if start >= len {
        return Ok(None);
    }
    let Some(finder) = finder else {
        return Ok(Some((start, len)));
    };
    let seek = |from: u64, whence| {
        // SAFETY: the call takes no pointer, and `finder` keeps the descriptor open.
        let at = unsafe { libc::lseek64(finder.as_raw_fd(), from as libc::off64_t, whence) };
        u64::try_from(at).map_err(|_| io::Error::last_os_error())
    };
    let data = match seek(start, libc::SEEK_DATA) {
        Ok(data) => data,
        // No data follows; or `start` is past the end.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            return match file_len(finder)? >= len {
                true => Ok(None),
                false => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
        // The file system does not know.
        Err(_) => return Ok(Some((start, len))),
    };
    if data >= len {
        return Ok(None);
    }
    let hole = seek(data, libc::SEEK_HOLE).unwrap_or(len);
    Ok(Some((data, hole.min(len))))
}

/// Copies bytes `start..end` of `source` to the same place in `destination`.
fn copy_range(source: &File, destination: &File, start: u64, end: u64) -> io::Result<()> {
    let mut done = start;
    while done < end {
        let (mut from, mut to) = (done as libc::off64_t, done as libc::off64_t);
        // SAFETY: both offsets are live for the call, and both files are open.
        let copied = unsafe {
            libc::syscall(
                libc::SYS_copy_file_range,
                source.as_raw_fd(),
                &mut from,
                destination.as_raw_fd(),
                &mut to,
                usize::try_from(end - done)
                    .unwrap_or(usize::MAX)
                    .min(1 << 30),
                0,
            )
        };
        match copied {
            1.. => done += copied as u64,
            // Some file systems do nothing, and say so by copying no byte; at the end of the source
            // the other way finds that out.
            0 => return super::unix::copy_through_memory(source, destination, done, end),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                // Not between these two file systems, or not here. A failing disk fails the other
                // way as well.
                error
                    if is_refused(&error)
                        || matches!(
                            error.raw_os_error(),
                            Some(
                                libc::EXDEV
                                    | libc::EBADF
                                    | libc::EIO
                                    | libc::ETXTBSY
                                    | libc::EOVERFLOW
                            )
                        ) =>
                {
                    return super::unix::copy_through_memory(source, destination, done, end);
                }
                error => return Err(error),
            },
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::has_huge_pages_in;

    #[test]
    fn huge_pages_are_read_from_smaps() {
        let smaps = b"\
00400000-00600000 r-xp 00000000 08:02 17 /a/na-me \xff
Size:               2048 kB
KernelPageSize:        4 kB
AnonHugePages:         0 kB
FilePmdMapped:         0 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0000800000 rw-p 00000000 00:00 0
KernelPageSize:        4 kB
AnonHugePages:      4096 kB
VmFlags: rd wr
7f0000800000-7f0000a00000 rw-s 00000000 00:0f 3 /dev/hugepages/x
KernelPageSize:     2048 kB
7f0000a00000-7f0000c00000 rw-s 00000000 00:10 4 /dev/shm/x
KernelPageSize:        4 kB
ShmemPmdMapped:     2048 kB
";
        for (start, end, expected) in [
            (0x0040_0000, 0x0060_0000, false),
            (0x0000_0000, 0x0040_0000, false),
            (0x7f00_0000_0000, 0x7f00_0010_0000, true),
            (0x7f00_0080_0000, 0x7f00_00a0_0000, true),
            (0x7f00_00a0_0000, 0x7f00_00a0_1000, true),
            (0x7f00_00c0_0000, 0x7f00_00d0_0000, false),
        ] {
            let found = has_huge_pages_in(&smaps[..], start, end).unwrap();
            assert_eq!(found, expected, "{start:x}-{end:x}");
        }
    }
}
