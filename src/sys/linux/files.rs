//! Queries about files: their length, name and file system, and what the process may do with them.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::io::{AsRawFd, RawFd};
use std::path::Path;

use super::memory::READ_AHEAD;
use crate::sys::unix::{directory_of, file_info, sync_directory, uninterrupted};
use crate::sys::{CacheHint, FsTraits};

/// Returns the length of an open file in bytes ([`statx(2)`], `STATX_SIZE` alone).
///
/// It does not query the times: that would make the next store to the file change its inode, and an
/// `msync` after that would take a fifth longer (multigrain timestamps, Linux 6.13).
///
/// [`statx(2)`]: https://man7.org/linux/man-pages/man2/statx.2.html
pub(crate) fn file_len(file: &File) -> io::Result<u64> {
    statx_len(file, libc::AT_STATX_SYNC_AS_STAT)
}

/// Returns the length of an open file in bytes as this machine knows it, without asking a server
/// ([`statx(2)`], `AT_STATX_DONT_SYNC`).
///
/// [`statx(2)`]: https://man7.org/linux/man-pages/man2/statx.2.html
pub(crate) fn known_len(file: &File) -> io::Result<u64> {
    statx_len(file, libc::AT_STATX_DONT_SYNC)
}

/// Returns a descriptor of what a path leads to that can only be examined ([`open(2)`], `O_PATH`);
/// `None` if that fails. It breaks no lease of another process, and its close does not release the
/// locks that this process holds on the file (`fcntl(2)`, `F_SETLK`).
///
/// [`open(2)`]: https://man7.org/linux/man-pages/man2/open.2.html
pub(crate) fn look(path: &Path) -> Option<File> {
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(libc::O_PATH);
    options.open(path).ok()
}

/// Whether this process may open the file of [`look`] for reading and, if `writes`, for writing
/// ([`faccessat2(2)`]). `false` if in doubt.
///
/// [`faccessat2(2)`]: https://man7.org/linux/man-pages/man2/faccessat2.2.html
pub(crate) fn may_open(looked: &File, writes: bool) -> bool {
    /// The `libc` crate lacks it for Android.
    const AT_EACCESS: libc::c_int = 0x200;
    let mode = if writes {
        libc::R_OK | libc::W_OK
    } else {
        libc::R_OK
    };
    let flags = libc::AT_EMPTY_PATH | AT_EACCESS;
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

/// Returns the number of the subvolume that an open file is in, if files of two subvolumes can have
/// the same device and inode number (bcachefs, Linux 6.10 and later); else 0.
pub(in crate::sys) fn subvolume(file: &File) -> u64 {
    match told_subvolume(file.as_raw_fd(), b"\0", libc::AT_EMPTY_PATH) {
        Some(number) if kind_of(file).is_ok_and(|kind| kind == BCACHEFS) => number,
        _ => 0,
    }
}

/// Returns the same of the file that a path leads to, without opening it.
pub(in crate::sys) fn subvolume_at(path: &Path) -> u64 {
    let Ok(name) = CString::new(path.as_os_str().as_bytes()) else {
        return 0;
    };
    match told_subvolume(libc::AT_FDCWD, name.as_bytes_with_nul(), 0) {
        Some(_) => look(path).map_or(0, |file| subvolume(&file)),
        None => 0,
    }
}

/// Returns the number of a file's subvolume ([`statx(2)`], `STATX_SUBVOL`), and asks no server for
/// it. `None` if the file system has no subvolumes, or the kernel does not tell.
///
/// Not to be used on btrfs, which has a device number for each subvolume, and on overlayfs, which
/// tells the subvolume of the layer that has the file at the moment.
///
/// [`statx(2)`]: https://man7.org/linux/man-pages/man2/statx.2.html
#[cfg(not(target_os = "android"))]
fn told_subvolume(directory: RawFd, name: &[u8], flags: libc::c_int) -> Option<u64> {
    const STATX_SUBVOL: libc::c_uint = 0x8000;
    /// The place of the number in `struct statx`, in words; not all versions of `libc` name it.
    const SUBVOL: usize = 20;
    let mut words = [0_u64; 32];
    // SAFETY: the name ends in a zero byte, and both it and `words` are live for the call; a
    // `statx` has the 256 bytes of `words`, and needs no larger alignment.
    let result = unsafe {
        libc::statx(
            directory,
            name.as_ptr().cast(),
            flags | libc::AT_STATX_DONT_SYNC,
            STATX_SUBVOL,
            words.as_mut_ptr().cast(),
        )
    };
    // The mask of what the kernel has told.
    let told = u32::from_ne_bytes(words[0].to_ne_bytes()[..4].try_into().ok()?);
    (result == 0 && told & STATX_SUBVOL != 0).then_some(words[SUBVOL])
}

/// Returns `None`: the C library of older Android versions does not have the call.
#[cfg(target_os = "android")]
fn told_subvolume(_directory: RawFd, _name: &[u8], _flags: libc::c_int) -> Option<u64> {
    None
}

const STATX_NLINK: libc::c_uint = 0x4;
const STATX_SIZE: libc::c_uint = 0x200;

/// Queries the fields of `mask`; `None` if the kernel does not have the call, or a filter refuses
/// it.
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

/// Returns `None`: the C library of older Android versions does not have the call.
#[cfg(target_os = "android")]
fn statx(_file: &File, _sync: libc::c_int, _mask: libc::c_uint) -> Option<libc::statx> {
    None
}

/// Returns what the crate may rely on for a file ([`fstatfs(2)`]).
///
/// - *Coherent writes*: on ext2 to ext4, xfs, btrfs and tmpfs, `pwrite` goes through the page
///   cache, and so do maps; see [`may_write_at`](crate::sys::may_write_at) for the flags of the
///   descriptor. Not if a mount option makes every write synchronous.
/// - *Range sync covers metadata*: on ext4, xfs and tmpfs, `fdatasync` of a range writes the range
///   back, then commits everything that the journal has of the inode, and flushes the drive's
///   cache; the commit and the flush do not depend on the range. btrfs, however, logs only the
///   extents of the range.
/// - *Local*: decided by a list. NFS, SMB, 9p, FUSE and unknown file systems may ask a server for
///   any answer, and may give one number to several files. overlayfs counts as local, although its
///   layers may not be.
/// - *Copies up*: overlayfs, and every file system if the call is refused. A file keeps its
///   identity when it is copied up. The page cache of such a file is not counted
///   ([`cached_pages`](crate::sys::cached_pages)), since the pages belong to the files of its
///   layers.
///
/// [`fstatfs(2)`]: https://man7.org/linux/man-pages/man2/fstatfs.2.html
pub(crate) fn fs_traits(file: &File) -> FsTraits {
    let mut flags = std::mem::MaybeUninit::<libc::statvfs64>::zeroed();
    let mounted = uninterrupted(|| {
        // SAFETY: `flags` is live for the call, and `file` keeps the descriptor open.
        unsafe { libc::fstatvfs64(file.as_raw_fd(), flags.as_mut_ptr()) }
    });
    let (Ok(kind), Ok(_)) = (kind_of(file), mounted) else {
        // It may be an overlayfs.
        return FsTraits {
            copies_up: true,
            ..FsTraits::default()
        };
    };
    // SAFETY: all-zero bytes are a valid `statvfs64`, and the call has filled it in.
    let mounted = unsafe { flags.assume_init() }.f_flag;
    FsTraits {
        coherent_writes: matches!(kind, EXT | XFS | BTRFS | TMPFS)
            && mounted & libc::ST_SYNCHRONOUS == 0,
        range_sync_covers_metadata: cfg!(not(target_os = "android"))
            && matches!(kind, EXT | XFS | TMPFS),
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

/// Whether `SEEK_DATA` takes the pages for data that are dirty and have no block yet. On FUSE, a
/// server answers that does not know of them.
///
/// overlayfs asks the file system of the layer that has the file. That may be such a server as
/// well: of a lower layer, and since Linux 5.7 of the upper one.
pub(super) fn seeks_in_cache(file: &File) -> bool {
    let kind = kind_of(file);
    kind.is_ok_and(|kind| matches!(kind, EXT | XFS | BTRFS | TMPFS | F2FS))
}

/// Returns the number of a file's file system ([`fstatfs(2)`]).
///
/// [`fstatfs(2)`]: https://man7.org/linux/man-pages/man2/fstatfs.2.html
fn kind_of(file: &File) -> io::Result<u64> {
    let mut stat = std::mem::MaybeUninit::<libc::statfs64>::zeroed();
    uninterrupted(|| {
        // SAFETY: `stat` is live for the call, and `file` keeps the descriptor open.
        unsafe { libc::fstatfs64(file.as_raw_fd(), stat.as_mut_ptr()) }
    })?;
    // SAFETY: all-zero bytes are a valid `statfs64`, and the call has filled it in.
    let kind = unsafe { stat.assume_init() }.f_type;
    // It is signed or unsigned, and has 32 or 64 bits, depending on the platform. The numbers have
    // 32 bits.
    Ok(u64::from(kind as u32))
}

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

/// Gives the page cache a hint about a file range ([`posix_fadvise(2)`]).
///
/// [`posix_fadvise(2)`]: https://man7.org/linux/man-pages/man2/posix_fadvise.2.html
pub(crate) fn cache_hint(file: &File, offset: u64, len: u64, hint: CacheHint) -> io::Result<()> {
    let (advice, piece) = match hint {
        CacheHint::WillNeed => (libc::POSIX_FADV_WILLNEED, READ_AHEAD),
        CacheHint::DontNeed => (libc::POSIX_FADV_DONTNEED, len.max(1)),
    };
    (offset..offset + len)
        .step_by(piece as usize)
        .try_for_each(|start| {
            let len = piece.min(offset + len - start);
            fadvise(file, start, len, advice)
        })
}

fn fadvise(file: &File, offset: u64, len: u64, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: the call takes no pointer, and `file` keeps the descriptor open.
    let errno = unsafe {
        libc::posix_fadvise64(
            file.as_raw_fd(),
            offset as libc::off64_t,
            len as libc::off64_t,
            advice,
        )
    };
    match errno {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Makes the name by which the file was opened durable: by an `fsync` of the directory or, if the
/// directory cannot be opened or the file now has another name, of the whole file system, which
/// needs no further descriptor and no permission. Does nothing for a file that no longer has a
/// name.
pub(crate) fn sync_name(file: &File, path: &Path) -> io::Result<()> {
    if let Ok(directory) = directory_of(file, path) {
        return sync_directory(&directory);
    }
    if !file_info(file)?.is_linked {
        return Ok(());
    }
    sync_file_system(file)
}

/// Makes all names on the file system of `file` durable, because the directory that has its name
/// cannot be opened.
pub(in crate::sys) fn sync_names_without_directory(file: &File, _: io::Error) -> io::Result<()> {
    sync_file_system(file)
}

/// Makes everything on the file system of `file` durable ([`syncfs(2)`]).
///
/// [`syncfs(2)`]: https://man7.org/linux/man-pages/man2/syncfs.2.html
fn sync_file_system(file: &File) -> io::Result<()> {
    let synced = uninterrupted(|| {
        // SAFETY: the call takes no pointer, and `file` keeps the descriptor open.
        unsafe { libc::syncfs(file.as_raw_fd()) }
    });
    synced.map(drop)
}

/// Opens an open file a second time, for reading or for writing ([`proc_pid_fd(5)`]). On overlayfs
/// the new descriptor shows the current copy of the file.
///
/// # Errors
///
/// `/proc` is not mounted, or the process may no longer open the file.
///
/// [`proc_pid_fd(5)`]: https://man7.org/linux/man-pages/man5/proc_pid_fd.5.html
pub(crate) fn reopen(file: &File, writes: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    crate::sys::unix::open(options.read(!writes).write(writes), path.as_ref())
}

/// Whether the error of [`reopen`] says that the system refuses it, and will refuse it again; and
/// not that the process has no descriptor or memory free at the moment.
pub(crate) fn is_reopening_refused(error: &io::Error) -> bool {
    let is_denied = matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENOTDIR | libc::EACCES | libc::EROFS | libc::ELOOP)
    );
    is_denied || crate::sys::is_refused(error)
}
