//! Targets that are neither Unix nor Windows. The crate compiles there, but opening a file fails
//! with
//! [`Unsupported`](io::ErrorKind::Unsupported). No file is ever open, so most functions here are
//! never called.

use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::path::Path;

use super::{Access, Advice, CacheHint, FileId, FileInfo, Run};

pub(crate) const CAN_MAP_PAST_END: bool = false;

fn unsupported<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Returns a number to calculate with; no file is mapped.
pub(crate) fn page_size() -> usize {
    4096
}

/// Returns `false`: there is no `fork` here.
pub(crate) fn is_forked() -> bool {
    false
}

/// Does nothing: there is no `fork` here.
pub(crate) fn watch_forks() -> io::Result<()> {
    Ok(())
}

pub(crate) fn open(_options: &mut OpenOptions, _path: &Path) -> io::Result<File> {
    unsupported()
}

pub(crate) const FOR_ALL: u32 = 0;
pub(crate) const FOR_THE_OWNER: u32 = 0;

pub(crate) fn open_or_create(options: &mut OpenOptions, _permissions: u32) -> &mut OpenOptions {
    let options = options.read(true).write(true);
    options.create(true).truncate(false)
}

#[derive(Debug)]
pub(crate) enum Created {}

pub(crate) fn create_new(_path: &Path, _permissions: u32) -> io::Result<(File, Option<Created>)> {
    unsupported()
}

impl Created {
    pub(crate) fn rename(&mut self, _name: &OsStr) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn sync(&self, _file: &File) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn remove(&self, _file: &File) -> io::Result<()> {
        match *self {}
    }
}

pub(crate) fn restrict(_file: &File, _source: &Metadata) -> io::Result<()> {
    unsupported()
}

pub(crate) fn copy_permissions(_file: &File, _source: &Metadata) -> io::Result<()> {
    unsupported()
}

pub(crate) fn copy_attributes(_file: &File, _old: &Path, _metadata: &Metadata) -> io::Result<()> {
    unsupported()
}

pub(crate) fn touch_mtime(_file: &File) -> io::Result<()> {
    unsupported()
}

/// Succeeds: a lack of address space is found when memory is mapped.
pub(crate) fn check_address_space(_len: u64) -> io::Result<()> {
    Ok(())
}

pub(crate) fn check_free_space(_file: &File, _len: u64) -> io::Result<()> {
    unsupported()
}

pub(crate) fn check_free_space_for(_path: &Path, _len: u64) -> io::Result<()> {
    unsupported()
}

pub(crate) fn check_file_limit(_end: u64) -> io::Result<()> {
    unsupported()
}

pub(crate) fn file_info(_file: &File) -> io::Result<FileInfo> {
    unsupported()
}

pub(crate) fn file_id_at(_path: &Path) -> io::Result<FileId> {
    unsupported()
}

/// Whether the error says that an address is invalid, which tells a caller nothing.
pub(crate) fn is_fault(_error: &io::Error) -> bool {
    false
}

pub(crate) fn is_disk_full(_error: &io::Error) -> bool {
    false
}

pub(crate) fn access(_file: &File) -> io::Result<Access> {
    unsupported()
}

pub(crate) fn sync_file(_file: &File) -> io::Result<()> {
    unsupported()
}

pub(crate) fn sync_name(_file: &File, _path: &Path) -> io::Result<()> {
    unsupported()
}

/// Not called, since [`fs_traits`](super::fs_traits) never claims `in_memory`.
pub(crate) fn allocated(_file: &File) -> io::Result<u64> {
    Ok(u64::MAX)
}

pub(crate) fn is_owner(_file: &File) -> bool {
    false
}

/// # Safety
///
/// None needed; the signature is shared with the other platforms.
pub(crate) unsafe fn populate_read(_run: Run) -> io::Result<()> {
    unsupported()
}

/// # Safety
///
/// None needed; the signature is shared with the other platforms.
pub(crate) unsafe fn try_populate_read(_run: Run) -> io::Result<bool> {
    unsupported()
}

/// # Safety
///
/// None needed; the signature is shared with the other platforms.
pub(crate) unsafe fn try_populate_write(_runs: &[Run]) -> Result<usize, (usize, io::Error)> {
    unsupported().map_err(|error| (0, error))
}

pub(crate) fn resident(_run: Run) -> io::Result<bool> {
    unsupported()
}

/// No barrier for the whole process exists.
pub(crate) const HAS_BARRIER: bool = false;

/// Returns `false`. Anonymous memory works without a file, and its leases then fence on both sides.
pub(crate) fn register_barrier() -> bool {
    false
}

pub(crate) fn barrier() -> io::Result<()> {
    unsupported()
}

pub(crate) fn cache_hint(_: &File, _: u64, _: u64, _: CacheHint) -> io::Result<()> {
    unsupported()
}

pub(crate) fn extend(_file: &File, _len: u64) -> io::Result<()> {
    unsupported()
}

/// [`allocate`] writes zeroes where it works, so it may be called only for bytes that are new.
pub(crate) const ALLOCATE_KEEPS_BYTES: bool = false;

pub(crate) fn allocate(_file: &File, _offset: u64, _len: u64) -> io::Result<()> {
    unsupported()
}

/// # Safety
///
/// None needed; the signature is shared with the other platforms.
pub(crate) unsafe fn sync_range(_file: &File, _run: Run) -> io::Result<()> {
    unsupported()
}

/// # Safety
///
/// None needed; the signature is shared with the other platforms.
#[cfg_attr(not(feature = "advise"), allow(dead_code))]
pub(crate) unsafe fn advise(_run: Run, _advice: Advice) -> io::Result<()> {
    unsupported()
}

/// # Safety
///
/// None needed; the signature is shared with the other platforms.
pub(crate) unsafe fn lock_pages(_run: Run) -> io::Result<()> {
    unsupported()
}

/// # Safety
///
/// None needed; the signature is shared with the other platforms.
pub(crate) unsafe fn unlock_pages(_run: Run) -> io::Result<()> {
    unsupported()
}

pub(crate) fn try_lock_shared(_file: &File) -> io::Result<bool> {
    unsupported()
}

pub(crate) fn try_lock_exclusive(_file: &File) -> io::Result<bool> {
    unsupported()
}

pub(crate) fn unlock(_file: &File) -> io::Result<()> {
    unsupported()
}

pub(crate) fn clone_file(_source: &File, _destination: &File) -> bool {
    false
}

pub(crate) fn copy_contents(_source: &File, _destination: &File, _len: u64) -> io::Result<()> {
    unsupported()
}

/// Returns the length of an open file in bytes.
pub(crate) fn file_len(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.len())
}
