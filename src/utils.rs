//! Helpers for offsets and pages.

use crate::error::{MmapIoError, Result};
use crate::range::ByteRange;
use crate::residency;
use crate::sys;

/// Returns the size of a page of memory in bytes, a power of two.
pub fn page_size() -> usize {
    sys::page_size()
}

/// Returns the smallest multiple of `alignment` that is not below `value`.
///
/// It is `u64::MAX` where that multiple does not fit. An alignment of 0 leaves the value as it is.
///
/// ```
/// assert_eq!(mmap_io::utils::align_up(4097, 4096), 8192);
/// assert_eq!(mmap_io::utils::align_up(7, 0), 7);
/// ```
pub fn align_up(value: u64, alignment: u64) -> u64 {
    match alignment {
        0 => value,
        _ => value
            .checked_next_multiple_of(alignment)
            .unwrap_or(u64::MAX),
    }
}

/// Returns an error unless `len` bytes at `offset` lie inside `total` bytes.
///
/// # Errors
///
/// [`OutOfBounds`](MmapIoError::OutOfBounds)
pub fn ensure_in_bounds(offset: u64, len: u64, total: u64) -> Result<()> {
    ByteRange::new(offset, len, total).map(|_| ())
}

/// Returns the start and the end of `len` bytes at `offset`, as indices into `total` bytes.
///
/// It differs from [`ensure_in_bounds`] in what it returns.
///
/// # Errors
///
/// [`OutOfBounds`](MmapIoError::OutOfBounds), also if the platform cannot index that far.
///
/// ```
/// assert_eq!(mmap_io::utils::slice_range(10, 5, 20).unwrap(), (10, 15));
/// ```
pub fn slice_range(offset: u64, len: u64, total: u64) -> Result<(usize, usize)> {
    let range = ByteRange::new(offset, len, total)?;
    let too_far = |_| MmapIoError::OutOfBounds { offset, len, total };
    let start = usize::try_from(range.start()).map_err(too_far)?;
    let end = usize::try_from(range.end()).map_err(too_far)?;
    Ok((start, end))
}

/// Makes this process stop asking the system which pages are in memory.
///
/// On Linux, a read calls `cachestat` and `mincore` before it decides whether to hop to the pool,
/// and a write calls `cachestat`.
/// A filter of system calls that kills the process for an unknown call, as systemd's
/// `@system-service` does for `mincore`, would end the process at the first read. After this
/// function, neither call is made, and every read that makes pages resident hops to the pool (20 to
/// 40 us), and so does every write. A filter that answers with an error does not need it.
///
/// It holds for the whole process and cannot be undone, as such a filter cannot be removed either.
/// Call it before the filter is set, and before other threads use this crate.
///
/// ```
/// mmap_io::utils::stop_probing_residency();
/// ```
pub fn stop_probing_residency() {
    residency::stop_probing();
}
