//! Locks: pages that stay in memory, and advisory locks on files.

use std::fs::File;
use std::io;

use windows_sys::Win32::Foundation::{ERROR_IO_PENDING, ERROR_LOCK_VIOLATION, ERROR_NOT_LOCKED};
use windows_sys::Win32::Storage::FileSystem::{
    LockFileEx, UnlockFileEx, LOCKFILE_EXCLUSIVE_LOCK, LOCKFILE_FAIL_IMMEDIATELY,
};
use windows_sys::Win32::System::Memory::{VirtualLock, VirtualUnlock};
use windows_sys::Win32::System::IO::OVERLAPPED;

use super::{check, handle};
use crate::sys::Run;

/// Reads the pages of a run into memory, and keeps them there ("VirtualLock function").
///
/// # Errors
///
/// `ERROR_WORKING_SET_QUOTA` if the process may not lock that much: a little less than its minimum
/// working set, which `SetProcessWorkingSetSize` sets.
///
/// # Safety
///
/// The run lies in one live mapping.
pub(crate) unsafe fn lock_pages(run: Run) -> io::Result<()> {
    // SAFETY: the run is mapped, by this function's contract; locking changes no byte.
    check(unsafe { VirtualLock(run.addr.cast(), run.len) })
}

/// Lets the pages of a run leave memory again ("VirtualUnlock function"). It is no error if they
/// are not locked.
///
/// # Safety
///
/// The run lies in one live mapping.
pub(crate) unsafe fn unlock_pages(run: Run) -> io::Result<()> {
    // SAFETY: the run is mapped, by this function's contract; unlocking changes no byte.
    match check(unsafe { VirtualUnlock(run.addr.cast(), run.len) }) {
        Err(error) if error.raw_os_error() == Some(ERROR_NOT_LOCKED as i32) => Ok(()),
        result => result,
    }
}

/// Returns the place of the byte that stands for the whole file.
///
/// A lock is mandatory here: no other handle can read or write the bytes that are locked, not even
/// one of this process. So the lock is on one byte far past the end of every file. It conflicts
/// with locks on the whole file, as the standard library takes them, and nothing reads or writes
/// there.
fn place() -> OVERLAPPED {
    const AT: u64 = i64::MAX as u64 - 1;
    let mut place = OVERLAPPED::default();
    place.Anonymous.Anonymous.Offset = AT as u32;
    place.Anonymous.Anonymous.OffsetHigh = (AT >> 32) as u32;
    place
}

/// Takes a shared lock for the handle ("LockFileEx function"). Returns `false`, and does not wait,
/// if another handle has a lock that conflicts with it.
pub(crate) fn try_lock_shared(file: &File) -> io::Result<bool> {
    try_lock(file, LOCKFILE_FAIL_IMMEDIATELY)
}

/// Takes an exclusive lock, like [`try_lock_shared`].
pub(crate) fn try_lock_exclusive(file: &File) -> io::Result<bool> {
    try_lock(file, LOCKFILE_FAIL_IMMEDIATELY | LOCKFILE_EXCLUSIVE_LOCK)
}

fn try_lock(file: &File, flags: u32) -> io::Result<bool> {
    let mut place = place();
    // SAFETY: `place` is live for the call, which ends at once, as the flags ask; `file` keeps the
    // handle open.
    match check(unsafe { LockFileEx(handle(file), flags, 0, 1, 0, &mut place) }) {
        Err(error)
            if [ERROR_LOCK_VIOLATION, ERROR_IO_PENDING]
                .iter()
                .any(|code| error.raw_os_error() == Some(*code as i32)) =>
        {
            Ok(false)
        }
        result => result.map(|()| true),
    }
}

/// Releases the lock of the handle ("UnlockFileEx function").
pub(crate) fn unlock(file: &File) -> io::Result<()> {
    let mut place = place();
    // SAFETY: `place` is live for the call, and `file` keeps the handle open, which was not opened
    // for overlapped operations: so the call has ended when it returns.
    check(unsafe { UnlockFileEx(handle(file), 0, 1, 0, &mut place) })
}
