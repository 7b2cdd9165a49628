//! The calls that all Unix systems share, and portable versions of those that only Linux has.

mod attributes;
mod locks;
mod opening;

use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::io::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::OnceLock;

#[cfg(any(target_os = "linux", target_os = "android"))]
use super::linux::{subvolume, subvolume_at};
use super::{Access, FileId, FileInfo, Run};

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) use self::portable::*;

pub(crate) use self::attributes::*;
pub(crate) use self::locks::*;
pub(crate) use self::opening::*;

/// A map may be longer than its file: a page past the end of the file faults, and the file is not
/// changed.
pub(crate) const CAN_MAP_PAST_END: bool = true;

/// Returns the size of a page in bytes, a power of two ([`sysconf(3)`]).
///
/// [`sysconf(3)`]: https://man7.org/linux/man-pages/man3/sysconf.3.html
pub(crate) fn page_size() -> usize {
    static PAGE: OnceLock<usize> = OnceLock::new();
    *PAGE.get_or_init(|| {
        // SAFETY: `sysconf` takes no pointer.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(size).unwrap_or(4096)
    })
}

/// Whether this process is a child that was forked off a process which had called [`watch_forks`].
static FORKED: AtomicBool = AtomicBool::new(false);

/// Whether this process was forked off a process that had called [`watch_forks`], and has not
/// executed another program since. Such a child has only one of the parent's threads.
///
/// A child that a program makes with the bare system call is not detected.
#[inline]
pub(crate) fn is_forked() -> bool {
    // Relaxed: the child's only thread has set it itself, before `fork` returned, and every other
    // thread of the child is started after that.
    FORKED.load(Ordering::Relaxed)
}

/// Runs `body` in a forked child, and returns whether it returned in time, with `true`.
#[cfg(all(test, not(mmap_io_loom)))]
pub(crate) fn in_fork(body: impl FnOnce() -> bool) -> bool {
    watch_forks().unwrap();
    // SAFETY: the child runs `body` and ends without unwinding into the test. What `body` calls
    // allocates; the C library has its allocator ready in the child.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: the call takes no pointer. Its signal ends a child that hangs.
        unsafe { libc::alarm(20) };
        let is_right = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        // SAFETY: the child ends here, without what a process does at its end.
        unsafe { libc::_exit(i32::from(!is_right.unwrap_or(false))) };
    }
    assert!(child > 0);
    let mut status = 0;
    // SAFETY: `status` is live for the call.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    status == 0
}

/// Makes [`is_forked`] return `true` in children that are forked off from now on
/// ([`pthread_atfork(3)`]).
///
/// # Errors
///
/// `ENOMEM` if there is no memory for the handler.
///
/// [`pthread_atfork(3)`]: https://man7.org/linux/man-pages/man3/pthread_atfork.3.html
pub(crate) fn watch_forks() -> io::Result<()> {
    type Handler = Option<unsafe extern "C" fn()>;
    extern "C" {
        // The `libc` crate declares it for some systems only, but POSIX requires it.
        fn pthread_atfork(prepare: Handler, parent: Handler, child: Handler) -> libc::c_int;
    }
    unsafe extern "C" fn in_child() {
        // Only an atomic store, which is allowed even in a signal handler.
        FORKED.store(true, Ordering::Relaxed);
    }
    // SAFETY: the declaration matches POSIX; `in_child` is a function of this program, and neither
    // allocates, locks nor panics.
    match unsafe { pthread_atfork(None, None, Some(in_child)) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Removes the permissions of all users but the owner from a file, before it gets the content of
/// `source`.
///
/// # Errors
///
/// `PermissionDenied` if the permissions cannot be changed, and users may read the file who may not
/// read `source`.
pub(crate) fn restrict(file: &File, source: &Metadata) -> io::Result<()> {
    const READ_BY_OTHERS: u32 = 0o044;
    let mode = file.metadata()?.mode();
    if mode & 0o7777 & !FOR_THE_OWNER == 0 {
        return Ok(());
    }
    match file.set_permissions(Permissions::from_mode(mode & FOR_THE_OWNER)) {
        Err(error)
            if error.kind() == io::ErrorKind::PermissionDenied
                && mode & READ_BY_OTHERS & !source.mode() == 0 =>
        {
            Ok(())
        }
        result => result,
    }
}

/// Gives a file the permissions of `source` for reading, writing and executing, but not its special
/// bits. Succeeds even if the system refuses, as some file systems have no permissions.
pub(crate) fn copy_permissions(file: &File, source: &Metadata) -> io::Result<()> {
    match file.set_permissions(Permissions::from_mode(source.mode() & 0o777)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        result => result,
    }
}

/// Fails with `ENOMEM` if the address space has no room for `len` bytes ([`mmap(2)`], `PROT_NONE`).
/// It reserves nothing.
///
/// [`mmap(2)`]: https://man7.org/linux/man-pages/man2/mmap.2.html
pub(crate) fn check_address_space(len: u64) -> io::Result<()> {
    let no_room = || io::Error::from_raw_os_error(libc::ENOMEM);
    let len = usize::try_from(len).map_err(|_| no_room())?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
    // SAFETY: a null address and no `MAP_FIXED`: the kernel maps unused addresses.
    let addr = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
    if addr == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping was made above with this length, and nothing else knows its address.
    unsafe { libc::munmap(addr, len) };
    Ok(())
}

/// Fails with `ENOSPC` if the file's blocks and the free space of its file system are together less
/// than `len` bytes, so that a disk that is too small is not filled first. Other limits, such as a
/// quota, are found when the blocks are reserved.
pub(crate) fn check_free_space(file: &File, len: u64) -> io::Result<()> {
    let taken = allocated(file)?;
    match free_space(file) {
        Some(free) if len > free.saturating_add(taken) => {
            Err(io::Error::from_raw_os_error(libc::ENOSPC))
        }
        _ => Ok(()),
    }
}

/// Returns the size in bytes of the blocks that a file has.
pub(crate) fn allocated(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.blocks().saturating_mul(512))
}

/// Returns how many bytes of the file's file system this process may still use ([`fstatvfs(3)`]);
/// `None` if the file system does not tell.
///
/// The blocks that it keeps in reserve are among them for the effective user 0 alone. The system may
/// let other processes use them as well (`CAP_SYS_RESOURCE`, the `resuid` of ext4), but does not tell
/// which; any other process would fill the disk up to the reserve before it fails.
///
/// [`fstatvfs(3)`]: https://man7.org/linux/man-pages/man3/fstatvfs.3.html
pub(super) fn free_space(file: &File) -> Option<u64> {
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    use libc::{fstatvfs, statvfs};
    // The other call fails on 32-bit platforms if the file system has 2^32 blocks or more.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    use libc::{fstatvfs64 as fstatvfs, statvfs64 as statvfs};

    let mut stat = std::mem::MaybeUninit::<statvfs>::zeroed();
    let told = uninterrupted(|| {
        // SAFETY: `stat` is live for the call, and `file` keeps the descriptor open.
        unsafe { fstatvfs(file.as_raw_fd(), stat.as_mut_ptr()) }
    });
    told.ok()?;
    // SAFETY: all-zero bytes are a valid `statvfs`, and the call has filled it in.
    let stat = unsafe { stat.assume_init() };
    // SAFETY: `geteuid` takes nothing and cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    let free = if is_root { stat.f_bfree } else { stat.f_bavail };
    #[allow(clippy::unnecessary_cast)] // They are narrower on some platforms.
    let (free, block) = (free as u64, stat.f_frsize as u64);
    (stat.f_blocks > 0).then_some(free.saturating_mul(block))
}

/// Checks the free space like [`check_free_space`], for a file that does not exist yet. `Ok` if the
/// path exists, or its directory cannot be opened.
pub(crate) fn check_free_space_for(path: &Path, len: u64) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    match split(path)?.map(|(directory, _)| open_directory(directory, SEARCH)) {
        Some(Ok(directory)) => check_free_space(&directory, len),
        _ => Ok(()),
    }
}

/// Returns the identity, the length and the kind of an open file ([`fstat(2)`]).
///
/// [`fstat(2)`]: https://man7.org/linux/man-pages/man2/fstat.2.html
pub(crate) fn file_info(file: &File) -> io::Result<FileInfo> {
    let metadata = file.metadata()?;
    Ok(FileInfo {
        id: file_id(&metadata, subvolume(file)),
        len: metadata.len(),
        is_regular: metadata.is_file(),
        is_linked: metadata.nlink() > 0,
        born: metadata.created().ok(),
    })
}

/// Returns the identity of the file that a path leads to ([`stat(2)`]), without opening it.
///
/// [`stat(2)`]: https://man7.org/linux/man-pages/man2/stat.2.html
pub(crate) fn file_id_at(path: &Path) -> io::Result<FileId> {
    let metadata = fs::metadata(path)?;
    Ok(file_id(&metadata, subvolume_at(path)))
}

fn file_id(metadata: &Metadata, subvolume: u64) -> FileId {
    FileId {
        volume: metadata.dev(),
        index: u128::from(subvolume) << 64 | u128::from(metadata.ino()),
    }
}

/// Fails with `EFBIG` if a file may not be written up to `end` ([`getrlimit(2)`], `RLIMIT_FSIZE`).
///
/// [`getrlimit(2)`]: https://man7.org/linux/man-pages/man2/getrlimit.2.html
pub(crate) fn check_file_limit(end: u64) -> io::Result<()> {
    match end <= file_limit() {
        true => Ok(()),
        false => Err(io::Error::from_raw_os_error(libc::EFBIG)),
    }
}

/// Returns the process's limit on file sizes in bytes; the largest number if there is none.
pub(super) fn file_limit() -> u64 {
    let mut limit = std::mem::MaybeUninit::<libc::rlimit>::zeroed();
    // SAFETY: `limit` is live for the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, limit.as_mut_ptr()) } != 0 {
        return u64::MAX;
    }
    // SAFETY: all-zero bytes are a valid `rlimit`, and the call has filled it in.
    let limit = unsafe { limit.assume_init() }.rlim_cur;
    #[allow(clippy::unnecessary_cast)] // It is signed on some platforms.
    match limit == libc::RLIM_INFINITY {
        true => u64::MAX,
        false => limit as u64,
    }
}

/// Whether the error says that an address is invalid, which tells a caller nothing.
pub(crate) fn is_fault(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EFAULT)
}

/// Whether the error says that the disk, or the user's quota, is full.
pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// Returns what the descriptor may be used for ([`fcntl(2)`], `F_GETFL`).
///
/// [`fcntl(2)`]: https://man7.org/linux/man-pages/man2/fcntl.2.html
pub(crate) fn access(file: &File) -> io::Result<Access> {
    // SAFETY: `F_GETFL` takes no pointer, and `file` keeps the descriptor open.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    let mode = flags & libc::O_ACCMODE;
    Ok(Access {
        read: mode == libc::O_RDONLY || mode == libc::O_RDWR,
        write: mode == libc::O_WRONLY || mode == libc::O_RDWR,
        append: flags & libc::O_APPEND != 0,
    })
}

/// Makes the content, length and attributes of `file` durable ([`fsync(2)`]; on macOS
/// `F_FULLFSYNC`, which the standard library calls there).
///
/// [`fsync(2)`]: https://man7.org/linux/man-pages/man2/fsync.2.html
pub(crate) fn sync_file(file: &File) -> io::Result<()> {
    if cfg!(target_vendor = "apple") {
        return file.sync_all();
    }
    sync_once(|| {
        // SAFETY: the call takes no pointer, and `file` keeps the descriptor open.
        unsafe { libc::fsync(file.as_raw_fd()) }
    })
}

/// Sets the time of the last modification to now ([`futimens(3)`]). This needs no more than
/// permission to write the file.
///
/// [`futimens(3)`]: https://man7.org/linux/man-pages/man3/futimens.3.html
pub(crate) fn touch_mtime(file: &File) -> io::Result<()> {
    let [accessed, modified] = [libc::UTIME_OMIT, libc::UTIME_NOW].map(|special| {
        let mut time = std::mem::MaybeUninit::<libc::timespec>::zeroed();
        // SAFETY: all-zero bytes are a valid `timespec`.
        let time = unsafe { time.assume_init_mut() };
        time.tv_nsec = special as _;
        *time
    });
    let times = [accessed, modified];
    let touched = uninterrupted(|| {
        // SAFETY: both times are live for the call, and `file` keeps the descriptor open.
        unsafe { libc::futimens(file.as_raw_fd(), times.as_ptr()) }
    });
    touched.map(drop)
}

/// Makes the names in `directory` durable ([`fsync(2)`] of the directory).
///
/// A file system that does not support it returns `EINVAL`, which counts as success: nothing more
/// can be done for the name.
///
/// [`fsync(2)`]: https://man7.org/linux/man-pages/man2/fsync.2.html
pub(super) fn sync_directory(directory: &File) -> io::Result<()> {
    match directory.sync_all() {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => result,
    }
}

/// Whether the process now runs as the user that owns `file`. Then [`super::resident`] tells the
/// truth, independently of the process's capabilities. The kernel hides the page cache of other
/// users' files by reporting every page as resident.
pub(crate) fn is_owner(file: &File) -> bool {
    // SAFETY: `geteuid` takes nothing and cannot fail.
    let euid = unsafe { libc::geteuid() };
    file.metadata().is_ok_and(|metadata| metadata.uid() == euid)
}

/// Copies bytes `start..end` of `source` to the same place in `destination`.
pub(super) fn copy_through_memory(
    source: &File,
    destination: &File,
    start: u64,
    end: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 18];
    let mut at = start;
    while at < end {
        let step = (end - at).min(buffer.len() as u64) as usize;
        source.read_exact_at(&mut buffer[..step], at)?;
        destination.write_all_at(&buffer[..step], at)?;
        at += step as u64;
    }
    Ok(())
}

/// Makes a call that returns -1 if it fails, and makes it again for as long as a signal interrupts
/// it.
pub(super) fn uninterrupted(mut call: impl FnMut() -> libc::c_int) -> io::Result<libc::c_int> {
    loop {
        let result = call();
        if result != -1 {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Makes a call that makes the bytes of a file durable, and returns -1 if it fails. Signals wait
/// until it has ended ([`pthread_sigmask(3)`]).
///
/// On some file systems (FUSE) a signal can interrupt such a call, which would be no failure. But
/// `EINTR` may also be what a server has answered to a write. That is reported only once, and then
/// the pages count as clean: a second call would succeed, although their bytes are lost. Nothing
/// tells the one from the other, so the call is not made again. Signals that can be blocked do not
/// interrupt it; a `SIGSTOP` still can, where a server answers to that.
///
/// [`pthread_sigmask(3)`]: https://man7.org/linux/man-pages/man3/pthread_sigmask.3.html
pub(super) fn sync_once(call: impl FnOnce() -> libc::c_int) -> io::Result<()> {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    let mut former = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: `all` is live for the call, which fills it in.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: both sets are live for the call; `all` has been filled in.
    let masked =
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), former.as_mut_ptr()) };
    let synced = match call() {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    };
    if masked == 0 {
        // SAFETY: the call above has filled `former` in, and a null pointer asks for no set.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, former.as_ptr(), std::ptr::null_mut()) };
    }
    synced
}

/// Gives advice about mapped memory ([`madvise(2)`]).
///
/// # Safety
///
/// `addr..addr + len` lies in one live mapping, and the advice does not change bytes that are
/// borrowed: pages that it discards are read from a file again.
///
/// [`madvise(2)`]: https://man7.org/linux/man-pages/man2/madvise.2.html
pub(super) unsafe fn madvise(addr: *mut u8, len: usize, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: the memory is mapped, and the advice changes no borrowed byte, by this function's
    // contract.
    match unsafe { libc::madvise(addr.cast(), len, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Writes back the dirty pages of a shared mapping, and waits until they are durable ([`msync(2)`],
/// `MS_SYNC`).
///
/// # Safety
///
/// `addr..addr + len` lies in one live mapping, and `addr` is at a page boundary.
///
/// [`msync(2)`]: https://man7.org/linux/man-pages/man2/msync.2.html
pub(super) unsafe fn msync(addr: *mut u8, len: usize) -> io::Result<()> {
    sync_once(|| {
        // SAFETY: the memory is mapped, and begins at a page boundary, by this function's contract.
        unsafe { libc::msync(addr.cast(), len, libc::MS_SYNC) }
    })
}

/// Faults in the pages of a run for reading; touches them where the system cannot populate.
///
/// # Errors
///
/// Those of [`try_populate_read`](crate::sys::try_populate_read).
///
/// # Safety
///
/// The run lies in one live, readable mapping. It was inside the file when the caller checked; a
/// page that another process has cut off since raises `SIGBUS` if it is touched.
pub(crate) unsafe fn populate_read(run: Run) -> io::Result<()> {
    // SAFETY: the run lies in one live, readable mapping, by this function's contract.
    if !unsafe { crate::sys::try_populate_read(run) }? {
        // SAFETY: as above.
        unsafe { touch(run) };
    }
    Ok(())
}

/// Faults in the pages of a run by a read of a byte of each.
///
/// # Safety
///
/// The same as for [`populate_read`].
unsafe fn touch(run: Run) {
    for at in (0..run.len).step_by(page_size()) {
        // SAFETY: `at` is less than `run.len`, and the run lies in one mapping, by this function's
        // contract.
        let byte = unsafe { run.addr.add(at) };
        // SAFETY: the byte is in a live, readable mapping, by this function's contract; its value
        // is ignored, so a concurrent store does not matter.
        unsafe { byte.read_volatile() };
    }
}

/// Portable versions, for Unix systems without the Linux calls.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod portable {
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use super::{copy_through_memory, madvise, msync};
    use crate::sys::{Advice, CacheHint, Run};

    /// Returns `false`: no call here faults pages in.
    ///
    /// # Safety
    ///
    /// None needed; the signature is shared with the platforms that have such a call.
    pub(crate) unsafe fn try_populate_read(_run: Run) -> io::Result<bool> {
        Ok(false)
    }

    /// Returns 0: no call here makes pages writable. The first store to a page may fault, on the
    /// pool.
    ///
    /// # Safety
    ///
    /// None needed; the signature is shared with the platforms that have such a call.
    pub(crate) unsafe fn try_populate_write(_runs: &[Run]) -> Result<usize, (usize, io::Error)> {
        Ok(0)
    }

    /// Returns `false`: unknown here, so every probe finds the range not resident.
    pub(crate) fn resident(_run: Run) -> io::Result<bool> {
        Ok(false)
    }

    /// Returns 0: no file system here has two files with one inode number.
    pub(super) fn subvolume(_file: &File) -> u64 {
        0
    }

    /// Returns 0, as [`subvolume`] does.
    pub(super) fn subvolume_at(_path: &Path) -> u64 {
        0
    }

    /// Returns the length of an open file in bytes.
    pub(crate) fn file_len(file: &File) -> io::Result<u64> {
        Ok(file.metadata()?.len())
    }

    /// No barrier for the whole process exists.
    pub(crate) const HAS_BARRIER: bool = false;

    /// Not called; the signature is shared with the platforms that have a barrier.
    pub(crate) fn register_barrier() -> bool {
        false
    }

    /// Not called, since [`HAS_BARRIER`] is `false`.
    pub(crate) fn barrier() -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Does nothing: the call is unavailable, and only a hint.
    pub(crate) fn cache_hint(_: &File, _: u64, _: u64, _: CacheHint) -> io::Result<()> {
        Ok(())
    }

    /// Makes a file `len` bytes long, unless it is longer: checks the length, and then calls
    /// `ftruncate`, which cuts off what another process appends between the two.
    pub(crate) fn extend(file: &File, len: u64) -> io::Result<()> {
        match file_len(file)? >= len {
            true => Ok(()),
            false => {
                super::check_file_limit(len)?;
                file.set_len(len)
            }
        }
    }

    /// Makes the name by which the file was opened durable. Succeeds if the name no longer belongs
    /// to the file: then the program that renamed the file has to make the new name durable.
    pub(crate) fn sync_name(file: &File, path: &Path) -> io::Result<()> {
        match super::directory_of(file, path) {
            Ok(directory) => super::sync_directory(&directory),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// [`allocate`] writes zeroes, so it may be called only for bytes that are new.
    pub(crate) const ALLOCATE_KEEPS_BYTES: bool = false;

    /// Reserves blocks for a range past the old end of the file by writing zeroes to it.
    ///
    /// # Errors
    ///
    /// `EFBIG` past the process's limit on file sizes.
    pub(crate) fn allocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
        super::check_file_limit(offset + len)?;
        let zeroes = vec![0; 1 << 16];
        let mut at = 0;
        while at < len {
            let step = (len - at).min(zeroes.len() as u64);
            file.write_all_at(&zeroes[..step as usize], offset + at)?;
            at += step;
        }
        Ok(())
    }

    /// Makes the range durable: the mapped pages first, then the drive's own cache.
    ///
    /// # Safety
    ///
    /// The run lies in one live shared mapping of `file`.
    pub(crate) unsafe fn sync_range(file: &File, run: Run) -> io::Result<()> {
        // SAFETY: the run lies in one live mapping, by this function's contract, and begins at a
        // page boundary, as every `Run` does.
        unsafe { msync(run.addr, run.len) }?;
        if cfg!(any(target_os = "macos", target_os = "ios")) {
            // There `msync` does not flush the drive's cache; `sync_data` is `F_FULLFSYNC`.
            file.sync_data()?;
        }
        Ok(())
    }

    /// Gives the advice if the system has it; every other advice is a hint, and is ignored.
    ///
    /// # Safety
    ///
    /// The run lies in one live mapping. That is a shared mapping of a file, whose discarded pages
    /// come back from the file; or the advice is none that discards pages.
    #[cfg_attr(not(feature = "advise"), allow(dead_code))]
    pub(crate) unsafe fn advise(run: Run, advice: Advice) -> io::Result<()> {
        let advice = match advice {
            Advice::Normal => libc::MADV_NORMAL,
            Advice::Random => libc::MADV_RANDOM,
            Advice::Sequential => libc::MADV_SEQUENTIAL,
            Advice::WillNeed => libc::MADV_WILLNEED,
            Advice::DontNeed => libc::MADV_DONTNEED,
            Advice::Cold | Advice::PageOut | Advice::HugePage | Advice::NoHugePage => return Ok(()),
        };
        // SAFETY: the run lies in one live mapping, by this function's contract, and a page that is
        // discarded is read from the file again.
        unsafe { madvise(run.addr, run.len, advice) }
    }

    /// Copies the first `len` bytes of `source` over `destination`.
    pub(crate) fn copy_contents(source: &File, destination: &File, len: u64) -> io::Result<()> {
        copy_through_memory(source, destination, 0, len)
    }

    /// Returns `false`: files cannot share blocks here.
    pub(crate) fn clone_file(_source: &File, _destination: &File) -> bool {
        false
    }
}
