//! Locks: pages that stay in memory, and advisory locks on files.

use std::io;

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

/// Turns the result of a call into an error if the call has failed.
fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
