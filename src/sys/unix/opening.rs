//! Opening and creating files by their paths, and finding the directory that has one.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::io::{AsRawFd, FromRawFd};
use std::path::Path;

use super::file_info;

/// Opens a path as `options` say. Never waits for the peer of a pipe or a device; but if another
/// process has a lease on a regular file ([`fcntl(2)`], `F_SETLEASE`), it waits until that process
/// gives way or the system takes the lease from it, as every other opening does.
///
/// The descriptor is as if it had been opened without `O_NONBLOCK`: callers get to see it.
///
/// [`fcntl(2)`]: https://man7.org/linux/man-pages/man2/fcntl.2.html
pub(crate) fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    /// A process that takes its lease again and again does not keep the opening for ever.
    const WAITS: usize = 8;
    let mut waits = 0;
    // What was waited for stays open until the file is: no lease can be taken on it meanwhile.
    let mut waited_for = None;
    loop {
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        match options.open(path) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && waits < WAITS => {
                waits += 1;
                match wait_for_lease(options, path) {
                    Some(opened) => waited_for = Some(opened?),
                    None => return Err(error),
                }
            }
            opened => {
                let file = opened?;
                drop(waited_for);
                // SAFETY: `F_SETFL` takes no pointer, and `file` keeps the descriptor open.
                return match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, 0) } {
                    0 => Ok(file),
                    _ => Err(io::Error::last_os_error()),
                };
            }
        }
    }
}

/// Opens the regular file that a path leads to, and waits for its lease. What it is is [looked](crate::sys::look)
/// at first, and that is opened then. The result only says that the lease is gone: the path is for
/// the kernel to judge, in another opening.
///
/// `None` if it is no regular file, or cannot be looked at.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn wait_for_lease(options: &mut OpenOptions, path: &Path) -> Option<io::Result<File>> {
    let found = crate::sys::look(path)?;
    if !found.metadata().ok()?.is_file() {
        return None;
    }
    let found = format!("/proc/self/fd/{}", found.as_raw_fd());
    Some(options.custom_flags(libc::O_NOCTTY).open(found))
}

/// There are no leases.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn wait_for_lease(_options: &mut OpenOptions, _path: &Path) -> Option<io::Result<File>> {
    None
}

/// The permissions of a new file, less what the process's `umask` takes from them.
pub(crate) const FOR_ALL: u32 = 0o666;
/// The permissions of a new file that is its owner's alone.
pub(crate) const FOR_THE_OWNER: u32 = 0o600;

/// Prepares `options` to open a file for reading and writing that is created if it is not there.
///
/// The kernel follows links, and judges what may be opened where by its own rules
/// (`fs.protected_regular`, `nosymfollow`), which it applies to this way of opening alone.
pub(crate) fn open_or_create(options: &mut OpenOptions, permissions: u32) -> &mut OpenOptions {
    let options = options.read(true).write(true).create(true).truncate(false);
    options.mode(permissions)
}

/// The name that a new file was given, in a directory that is held open: what becomes of the path
/// of that directory does not matter.
#[derive(Debug)]
pub(crate) struct Created {
    directory: File,
    name: CString,
}

/// Creates a file for reading and writing, which must not be there ([`open(2)`], `O_EXCL`).
///
/// Says by what name, so that it can be removed; not where the directory may not be opened, which
/// on Linux takes no permission.
///
/// [`open(2)`]: https://man7.org/linux/man-pages/man2/open.2.html
pub(crate) fn create_new(path: &Path, permissions: u32) -> io::Result<(File, Option<Created>)> {
    if let Some((directory, name)) = split(path)? {
        match open_directory(directory, SEARCH) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            directory => {
                let directory = directory?;
                let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
                let file = open_at(&directory, &name, flags, permissions)?;
                return Ok((file, Some(Created { directory, name })));
            }
        }
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    Ok((options.mode(permissions).open(path)?, None))
}

impl Created {
    /// Removes the file that was created, unless the name is that of another file by now.
    ///
    /// Between the look and the removal another process may still move a file to the name: no call
    /// removes a name on condition.
    pub(crate) fn remove(&self, file: &File) -> io::Result<()> {
        if !names(&self.directory, &self.name, file)? {
            return Ok(());
        }
        // SAFETY: the name is live and ends in a zero byte, and `directory` keeps the descriptor
        // open.
        match unsafe { libc::unlinkat(self.directory.as_raw_fd(), self.name.as_ptr(), 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Opens a directory to look names up in it, and no more.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) const SEARCH: libc::c_int = libc::O_PATH;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) const SEARCH: libc::c_int = 0;

/// Files may be larger than 2 GiB on 32-bit platforms, too.
#[cfg(any(target_os = "linux", target_os = "android"))]
const LARGE: libc::c_int = libc::O_LARGEFILE;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const LARGE: libc::c_int = 0;

/// The directory of a path, and the name in it; `None` for a path that ends in no name.
pub(super) fn split(path: &Path) -> io::Result<Option<(&Path, CString)>> {
    let path = path.as_os_str().as_bytes();
    let (directory, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(0) => (&path[..1], &path[1..]),
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&b"."[..], path),
    };
    if name.is_empty() {
        return Ok(None);
    }
    let directory = Path::new(OsStr::from_bytes(directory));
    Ok(Some((directory, CString::new(name)?)))
}

/// Never waits, whatever it is that the path names.
pub(super) fn open_directory(path: &Path, flags: libc::c_int) -> io::Result<File> {
    let flags = flags | libc::O_DIRECTORY | libc::O_NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Opens a name in a directory ([`openat(2)`]).
///
/// [`openat(2)`]: https://man7.org/linux/man-pages/man2/open.2.html
fn open_at(
    directory: &File,
    name: &CStr,
    flags: libc::c_int,
    permissions: u32,
) -> io::Result<File> {
    let flags = flags | libc::O_CLOEXEC | LARGE;
    loop {
        let permissions = libc::c_uint::from(permissions);
        // SAFETY: the name is live and ends in a zero byte, and `directory` keeps the descriptor
        // open.
        let opened =
            unsafe { libc::openat(directory.as_raw_fd(), name.as_ptr(), flags, permissions) };
        if opened >= 0 {
            // SAFETY: the descriptor is new, and nothing else owns it.
            return Ok(unsafe { File::from_raw_fd(opened) });
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Whether a name in a directory is that of the file itself, not of a link to it.
fn names(directory: &File, name: &CStr, file: &File) -> io::Result<bool> {
    let flags = SEARCH | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let found = open_at(directory, name, flags, 0)?;
    Ok(file_info(&found)?.id == file_info(file)?.id)
}

/// Opens the directory that has the file by the name in which `path` ends, links followed.
///
/// # Errors
///
/// `NotFound` if that is another file's name by now.
pub(in crate::sys) fn directory_of(file: &File, path: &Path) -> io::Result<File> {
    let path = fs::canonicalize(path)?;
    if let Some((directory, name)) = split(&path)? {
        let directory = open_directory(directory, 0)?;
        if names(&directory, &name, file)? {
            return Ok(directory);
        }
    }
    Err(io::ErrorKind::NotFound.into())
}
