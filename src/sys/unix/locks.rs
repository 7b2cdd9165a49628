//! Locks: pages that stay in memory, and advisory locks on files.

use std::fs::File;
use std::io;
use std::os::unix::io::AsRawFd;

use super::uninterrupted;
use crate::sys::Run;

/// Reads the pages of a run into memory, and keeps them there ([`mlock(2)`]).
///
/// # Errors
///
/// `EPERM` or `ENOMEM` if the process may not lock that much (`RLIMIT_MEMLOCK`); `ENOMEM` or
/// `EAGAIN` if a page cannot be read, as past the end of the file. Some of the pages may be locked
/// then.
///
/// # Safety
///
/// The run lies in one live mapping.
///
/// [`mlock(2)`]: https://man7.org/linux/man-pages/man2/mlock.2.html
pub(crate) unsafe fn lock_pages(run: Run) -> io::Result<()> {
    // SAFETY: the run is mapped, by this function's contract; locking changes no byte.
    check(unsafe { libc::mlock(run.addr.cast(), run.len) })
}

/// Lets the pages of a run leave memory again ([`mlock(2)`]). It is no error if they are not
/// locked.
///
/// # Safety
///
/// The run lies in one live mapping.
///
/// [`mlock(2)`]: https://man7.org/linux/man-pages/man2/mlock.2.html
pub(crate) unsafe fn unlock_pages(run: Run) -> io::Result<()> {
    // SAFETY: the run is mapped, by this function's contract; unlocking changes no byte.
    check(unsafe { libc::munlock(run.addr.cast(), run.len) })
}

/// Takes a shared advisory lock on the open file description of `file` ([`flock(2)`]). Returns
/// `false`, and does not wait, if another description has a lock that conflicts with it.
///
/// [`flock(2)`]: https://man7.org/linux/man-pages/man2/flock.2.html
pub(crate) fn try_lock_shared(file: &File) -> io::Result<bool> {
    try_flock(file, libc::LOCK_SH)
}

/// Takes an exclusive advisory lock, like [`try_lock_shared`].
pub(crate) fn try_lock_exclusive(file: &File) -> io::Result<bool> {
    try_flock(file, libc::LOCK_EX)
}

/// Releases the advisory lock of the open file description of `file` ([`flock(2)`]), also if
/// another process shares the description.
///
/// [`flock(2)`]: https://man7.org/linux/man-pages/man2/flock.2.html
pub(crate) fn unlock(file: &File) -> io::Result<()> {
    flock(file, libc::LOCK_UN)
}

fn try_flock(file: &File, kind: libc::c_int) -> io::Result<bool> {
    match flock(file, kind | libc::LOCK_NB) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        result => result.map(|()| true),
    }
}

fn flock(file: &File, operation: libc::c_int) -> io::Result<()> {
    // On a network file system a signal interrupts the call.
    let changed = uninterrupted(|| {
        // SAFETY: the call takes no pointer, and `file` keeps the descriptor open.
        unsafe { libc::flock(file.as_raw_fd(), operation) }
    });
    changed.map(drop)
}

/// Turns the result of a call into an error if the call has failed.
fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
