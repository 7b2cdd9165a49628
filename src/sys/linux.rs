//! Linux and Android: barriers, write-back and positioned writes; the submodules have the rest.

mod blocks;
mod copy;
mod files;
mod memory;
mod xattrs;

use std::fs::File;
use std::io::{self, IoSlice, Seek};
use std::os::unix::fs::FileExt;
use std::os::unix::io::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(not(target_os = "android"))]
use crate::sys::unix::sync_once;

pub(crate) use self::blocks::*;
pub(crate) use self::copy::*;
pub(crate) use self::files::*;
pub(crate) use self::memory::*;
pub(in crate::sys) use self::xattrs::*;

/// [`membarrier(2)`]: runs a full barrier on every running thread of this process.
///
/// [`membarrier(2)`]: https://man7.org/linux/man-pages/man2/membarrier.2.html
const MEMBARRIER_PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
/// [`membarrier(2)`]: announces that this process will use the command above.
///
/// [`membarrier(2)`]: https://man7.org/linux/man-pages/man2/membarrier.2.html
const MEMBARRIER_REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

/// A barrier for the whole process exists, unless the kernel or a `seccomp` filter refuses it.
pub(crate) const HAS_BARRIER: bool = true;

/// Announces that [`barrier`] will be used; returns `false` if the kernel or a filter refuses.
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

/// Starts writing back the dirty pages of a file range, without waiting for the writes to end
/// ([`sync_file_range(2)`]; Android has no such call). It waits only for an earlier write-back of a
/// page that has become dirty again. It makes nothing durable.
///
/// [`sync_file_range(2)`]: https://man7.org/linux/man-pages/man2/sync_file_range.2.html
pub(crate) fn start_writeback(file: &File, offset: u64, len: u64) -> io::Result<()> {
    sync_file_range(file, offset, len, SYNC_FILE_RANGE_WRITE)
}

/// Writes back the dirty pages of a file range, and waits until all writes have ended
/// ([`sync_file_range(2)`]). It does not make the file's metadata durable, and does not flush the
/// drive's cache.
///
/// # Errors
///
/// A page could not be written.
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
    sync_once(|| {
        // SAFETY: the call takes no pointer, and `file` keeps the descriptor open.
        unsafe {
            libc::sync_file_range(
                file.as_raw_fd(),
                offset as libc::off64_t,
                len as libc::off64_t,
                flags,
            )
        }
    })
}

#[cfg(target_os = "android")]
fn sync_file_range(_: &File, _: u64, _: u64, _: libc::c_uint) -> io::Result<()> {
    Ok(())
}

/// Whether [`write_at`] may be used up to `end`.
///
/// Not if the descriptor bypasses the page cache (`O_DIRECT`), appends (`O_APPEND`), or writes
/// synchronously (`O_SYNC`, `O_DSYNC`): a write-back error would then go to the write instead of to
/// the flush that has to report it. Not past the limit on file sizes either, which would raise
/// `SIGXFSZ`, and not if the file is sealed against writes, which leaves the maps that exist
/// writable (`F_SEAL_FUTURE_WRITE`).
///
/// Checked for each write, since another holder of the descriptor can change its flags and seal the
/// file at any time, and another process the limit ([`fcntl(2)`], [`getrlimit(2)`]; 0.1 us each).
///
/// [`fcntl(2)`]: https://man7.org/linux/man-pages/man2/fcntl.2.html
/// [`getrlimit(2)`]: https://man7.org/linux/man-pages/man2/getrlimit.2.html
pub(crate) fn may_write_at(file: &File, end: u64) -> bool {
    let unsuitable = libc::O_APPEND | libc::O_DIRECT | libc::O_SYNC | libc::O_DSYNC;
    // SAFETY: `F_GETFL` takes no pointer, and `file` keeps the descriptor open.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    flags >= 0
        && flags & unsuitable == 0
        && super::unix::check_file_limit(end).is_ok()
        && !is_sealed(file)
}

/// Whether a file in memory is sealed against writes ([`F_GET_SEALS(2const)`]). No other file can
/// be sealed.
///
/// [`F_GET_SEALS(2const)`]: https://man7.org/linux/man-pages/man2/F_GET_SEALS.2const.html
fn is_sealed(file: &File) -> bool {
    // SAFETY: the call takes no pointer, and `file` keeps the descriptor open.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    seals >= 0 && seals & (libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE) != 0
}

/// Writes all of `data` at `offset`, independently of the descriptor's position, and even if
/// another holder of the descriptor sets `O_APPEND` at this very moment ([`pwritev2(2)`],
/// `RWF_NOAPPEND`, Linux 6.9). Older kernels then write to the end of the file ([`pwrite(2)`]).
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
            Err(error) if is_refused(&error) => {
                // `EINVAL` and `EPERM` may be about this file alone; then `pwrite` below reports
                // them as well.
                if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP)) {
                    IS_MISSING.store(true, Ordering::Relaxed);
                }
                break;
            }
            Err(error) => return Err(error),
        }
    }
    file.write_all_at(data, offset)
}

pub(super) fn write_without_appending(file: &File, data: &[u8], offset: u64) -> io::Result<usize> {
    /// From `linux/fs.h`.
    const RWF_NOAPPEND: libc::c_int = 0x20;
    let part = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // The kernel takes the offset as two words; on 64-bit platforms it uses only the first one.
    let (low, high) = (offset as libc::c_ulong, (offset >> 32) as libc::c_ulong);
    // SAFETY: `part` and the data are live for the call, which only reads them, and `file` keeps
    // the descriptor open.
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

/// Writes all parts behind the end of the file, wherever that is now, so that no other process's
/// append is overwritten ([`pwritev2(2)`], `RWF_APPEND`, Linux 4.16). Returns how many bytes were
/// written, and the end of the file after them, to which the call moves the position ([`lseek(2)`]):
/// so nothing else may use this open file description.
///
/// [`pwritev2(2)`]: https://man7.org/linux/man-pages/man2/pwritev2.2.html
/// [`lseek(2)`]: https://man7.org/linux/man-pages/man2/lseek.2.html
pub(crate) fn append(mut file: &File, parts: &[IoSlice<'_>]) -> io::Result<(usize, u64)> {
    /// From `linux/fs.h`.
    const RWF_APPEND: libc::c_int = 0x10;
    /// The offset that has the call use the position, and move it.
    const POSITION: libc::c_ulong = libc::c_ulong::MAX;
    loop {
        // SAFETY: an `IoSlice` has the layout of an `iovec`; the parts and their data are live for
        // the call, which only reads them, and `file` keeps the descriptor open.
        let written = unsafe {
            libc::syscall(
                libc::SYS_pwritev2,
                file.as_raw_fd(),
                parts.as_ptr(),
                parts.len(),
                POSITION,
                POSITION,
                RWF_APPEND,
            )
        };
        match usize::try_from(written) {
            Ok(written) => return Ok((written, file.stream_position()?)),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

/// Whether the error says that the kernel, the file system or a filter of system calls refuses this
/// kind of call, so that the caller should try another one.
pub(crate) fn is_refused(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSYS | libc::EPERM | libc::EOPNOTSUPP | libc::EINVAL)
    )
}
