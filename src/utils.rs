//! Small helpers for offsets and pages.

use crate::error::{MmapIoError, Result};
use crate::range::ByteRange;
use crate::sys;

/// The size of a page of memory in bytes, a power of two.
pub fn page_size() -> usize {
    sys::page_size()
}

/// The smallest multiple of `alignment` that is not below `value`; `u64::MAX` where there is
/// none. An alignment of 0 leaves the value as it is.
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

/// Fails unless `len` bytes at `offset` lie inside `total` bytes.
///
/// # Errors
///
/// [`OutOfBounds`](MmapIoError::OutOfBounds)
pub fn ensure_in_bounds(offset: u64, len: u64, total: u64) -> Result<()> {
    ByteRange::new(offset, len, total).map(|_| ())
}

/// Returns the indices of the first byte and past the last one, for `len` bytes at `offset` of
/// `total` bytes.
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
