//! Replacements on all other platforms for the calls that only Linux has: they do nothing, and
//! promise nothing.

use std::fs::File;
use std::io::{self, IoSlice};
use std::path::Path;

use super::{CachedPages, FsTraits, Run};

/// Does nothing: the call is unavailable, and only a hint.
pub(crate) fn start_writeback(_file: &File, _offset: u64, _len: u64) -> io::Result<()> {
    Ok(())
}

/// Not called, since [`fs_traits`] never claims `range_sync_covers_metadata`.
pub(crate) fn finish_writeback(_file: &File, _offset: u64, _len: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Claims nothing but that identities are unique, and that files are local.
pub(crate) fn fs_traits(_file: &File) -> FsTraits {
    FsTraits {
        is_local: true,
        ..FsTraits::default()
    }
}

/// Not called, since [`fs_traits`] never claims `copies_up` or `coherent_writes`.
pub(crate) fn reopen(_file: &File, _writes: bool) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Returns `true`, as [`reopen`] always fails.
pub(crate) fn is_reopening_refused(_error: &io::Error) -> bool {
    true
}

/// Returns `false`, since [`fs_traits`] never claims `coherent_writes`.
pub(crate) fn may_write_at(_file: &File, _end: u64) -> bool {
    false
}

/// Not called, since [`may_write_at`] returns `false`.
pub(crate) fn write_at(_file: &File, _data: &[u8], _offset: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Not called, since [`may_write_at`] returns `false`.
pub(crate) fn append(_file: &File, _parts: &[IoSlice<'_>]) -> io::Result<(usize, u64)> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Not called, since [`may_write_at`] returns `false`.
pub(crate) fn reserve(_file: &File, _offset: u64, _len: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Reserves blocks on request of the user, as [`super::allocate`] does.
pub(crate) fn preallocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    super::allocate(file, offset, len)
}

/// Succeeds: the extents of a file are unknown here.
pub(crate) fn check_room(_file: &File, _offset: u64, _len: u64) -> io::Result<()> {
    Ok(())
}

/// Returns `None`: unknown here.
pub(crate) fn cached_pages(
    _file: &File,
    _offset: u64,
    _len: u64,
) -> io::Result<Option<CachedPages>> {
    Ok(None)
}

/// Returns `None`: unknown here.
pub(crate) fn has_huge_pages(_run: Run) -> io::Result<Option<bool>> {
    Ok(None)
}

/// Returns the length of an open file in bytes.
pub(crate) fn known_len(file: &File) -> io::Result<u64> {
    super::file_len(file)
}

/// Returns `false`: optional calls are not made here, so none can be refused.
pub(crate) fn is_refused(_error: &io::Error) -> bool {
    false
}

/// Returns `None`: no call here examines a file without opening it.
pub(crate) fn look(_path: &Path) -> Option<File> {
    None
}

/// Not called, since [`look`] returns `None`.
pub(crate) fn may_open(_looked: &File, _writes: bool) -> bool {
    false
}

/// Whether an open file has a name in some directory.
pub(crate) fn is_linked(file: &File) -> io::Result<bool> {
    Ok(super::file_info(file)?.is_linked)
}
