//! Platforms without a fault guard. On Windows, a page of a mapping that cannot be read is an
//! exception, which only the code that touches the page could catch. None of this is ever called.

use std::fs::File;

use super::Run;

/// Whether [`guard_faults`] does anything.
pub(crate) const CAN_GUARD_FAULTS: bool = false;

pub(crate) fn guard_faults(_rescue: fn(usize) -> bool) {}

/// # Safety
///
/// None needed; the signature is shared with the other platforms.
pub(crate) unsafe fn replace_by_zeroes(_run: Run) -> bool {
    false
}

pub(crate) fn file_number(_file: &File) -> i32 {
    -1
}

pub(crate) fn len_of_number(_number: i32) -> Option<u64> {
    None
}

pub(crate) fn is_unreadable(_number: i32, _offset: u64) -> bool {
    false
}
