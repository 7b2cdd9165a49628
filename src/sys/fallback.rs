//! What only Linux has, for all others: nothing is relied on, and nothing is done.

use std::fs::File;
use std::io;
use std::path::Path;

use super::{FsTraits, Run};

/// Not needed for correctness, and not available.
pub(crate) fn start_writeback(_file: &File, _offset: u64, _len: u64) -> io::Result<()> {
    Ok(())
}

/// Not available, and not called where [`fs_traits`] says so.
pub(crate) fn finish_writeback(_file: &File, _offset: u64, _len: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Nothing is relied on but the ids.
pub(crate) fn fs_traits(_file: &File) -> FsTraits {
    FsTraits {
        is_local: true,
        ..FsTraits::default()
    }
}

/// Not called, since [`fs_traits`] knows no file system that copies up.
pub(crate) fn reopen(_file: &File) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Never, where [`fs_traits`] says so.
pub(crate) fn may_write_at(_file: &File, _end: u64) -> bool {
    false
}

/// Not called where [`fs_traits`] says so.
pub(crate) fn write_at(_file: &File, _data: &[u8], _offset: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Not called either.
pub(crate) fn reserve(_file: &File, _offset: u64, _len: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// For a caller that asked for it: nothing is refused.
pub(crate) fn preallocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    super::allocate(file, offset, len)
}

/// Unknown here.
pub(crate) fn check_room(_file: &File, _offset: u64, _len: u64) -> io::Result<()> {
    Ok(())
}

/// Unknown here: [`super::resident`] says nothing either.
pub(crate) fn cached_pages(_file: &File, _offset: u64, _len: u64) -> io::Result<Option<u64>> {
    Ok(None)
}

/// Unknown here.
pub(crate) fn has_huge_pages(_run: Run) -> io::Result<Option<bool>> {
    Ok(None)
}

/// Length of an open file in bytes.
pub(crate) fn known_len(file: &File) -> io::Result<u64> {
    super::file_len(file)
}

/// Nothing is refused: what another system does not have is not called.
pub(crate) fn is_refused(_error: &io::Error) -> bool {
    false
}

/// Nothing here looks at a file without opening it.
pub(crate) fn look(_path: &Path) -> Option<File> {
    None
}

/// Not called, since nothing is looked at.
pub(crate) fn may_open(_looked: &File, _writes: bool) -> bool {
    false
}

/// Whether an open file has a name in some directory.
pub(crate) fn is_linked(file: &File) -> io::Result<bool> {
    Ok(super::file_info(file)?.is_linked)
}
