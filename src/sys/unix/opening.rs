//! Opens and creates files by path, and finds the directory that has a file's name.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::io::{AsRawFd, FromRawFd};
use std::path::Path;

use super::{file_info, sync_directory, uninterrupted};
#[cfg(any(target_os = "linux", target_os = "android"))]
use crate::sys::linux::sync_names_without_directory;
use crate::sys::FileId;

/// Opens a path with the given options. Never waits for the peer of a pipe or a device. But if
/// another process has a lease on a regular file ([`fcntl(2)`], `F_SETLEASE`), it waits until that
/// process gives up the lease or the system revokes it, as `open(2)` does by default.
///
/// The descriptor does not have `O_NONBLOCK` set in the end, since users can obtain it.
///
/// [`fcntl(2)`]: https://man7.org/linux/man-pages/man2/fcntl.2.html
pub(crate) fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    /// The most waits, so that a process that renews its lease again and again cannot block the
    /// opening forever.
    const WAITS: usize = 8;
    let mut waits = 0;
    // The file that was waited for stays open until the opening has succeeded: no process can take
    // a lease on it in the meantime.
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

/// Opens the regular file that a path leads to, and waits for the end of its lease. The file is
/// [examined](crate::sys::look) first, and then opened through that descriptor. The result only
/// shows that the lease has ended: the caller must open the path again, so that the kernel applies
/// its rules for paths.
///
/// `None` if it is not a regular file, or cannot be examined.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn wait_for_lease(options: &mut OpenOptions, path: &Path) -> Option<io::Result<File>> {
    let found = crate::sys::look(path)?;
    if !found.metadata().ok()?.is_file() {
        return None;
    }
    let found = format!("/proc/self/fd/{}", found.as_raw_fd());
    Some(options.custom_flags(libc::O_NOCTTY).open(found))
}

/// Returns `None`: these systems have no leases.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn wait_for_lease(_options: &mut OpenOptions, _path: &Path) -> Option<io::Result<File>> {
    None
}

/// The permissions of a new file, from which the system removes those of the process's `umask`.
pub(crate) const FOR_ALL: u32 = 0o666;
/// The permissions of a new file that only its owner may access.
pub(crate) const FOR_THE_OWNER: u32 = 0o600;

/// Prepares `options` to open a file for reading and writing, or to create it if it does not exist.
///
/// One call does both: the kernel follows links, and has rules about what may be opened where that
/// it applies only to such calls (`fs.protected_regular`, `nosymfollow`).
pub(crate) fn open_or_create(options: &mut OpenOptions, permissions: u32) -> &mut OpenOptions {
    let options = options.read(true).write(true).create(true).truncate(false);
    options.mode(permissions)
}

/// The name of a file that was created, in a directory that is held open, so that renaming the
/// directory does not matter.
#[derive(Debug)]
pub(crate) struct Created {
    directory: File,
    name: CString,
}

/// Creates a file for reading and writing, which must not exist ([`open(2)`], `O_EXCL`).
///
/// Returns its name as well, so that the file can be removed; `None` if the directory may not be
/// opened, which on Linux needs no permission.
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
    /// Gives the file another name in its directory, and takes that name from the file that has it
    /// ([`renameat(2)`]).
    ///
    /// [`renameat(2)`]: https://man7.org/linux/man-pages/man2/rename.2.html
    pub(crate) fn rename(&mut self, name: &OsStr) -> io::Result<()> {
        let name = CString::new(name.as_bytes())?;
        let directory = self.directory.as_raw_fd();
        // SAFETY: both names are live `CString`s, and `self.directory` keeps the descriptor open.
        let renamed =
            unsafe { libc::renameat(directory, self.name.as_ptr(), directory, name.as_ptr()) };
        if renamed != 0 {
            return Err(io::Error::last_os_error());
        }
        self.name = name;
        Ok(())
    }

    /// Makes the name of `file`, which was created here, durable.
    pub(crate) fn sync(&self, file: &File) -> io::Result<()> {
        let here = CString::new(".")?;
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NONBLOCK;
        match open_at(&self.directory, &here, flags, 0) {
            Ok(directory) => sync_directory(&directory),
            Err(error) => sync_names_without_directory(file, error),
        }
    }

    /// Removes the file that was created, unless the name belongs to another file by now.
    ///
    /// Between the check and the removal another process may still move a file to the name: no
    /// system call removes a name on a condition.
    pub(crate) fn remove(&self, file: &File) -> io::Result<()> {
        if !names(&self.directory, &self.name, file)? {
            return Ok(());
        }
        // SAFETY: the name is a live `CString`, and `directory` keeps the descriptor open.
        match unsafe { libc::unlinkat(self.directory.as_raw_fd(), self.name.as_ptr(), 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The flags for opening a directory only to look up names in it.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) const SEARCH: libc::c_int = libc::O_PATH;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) const SEARCH: libc::c_int = 0;

/// Allows files of more than 2 GiB on 32-bit platforms.
#[cfg(any(target_os = "linux", target_os = "android"))]
const LARGE: libc::c_int = libc::O_LARGEFILE;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const LARGE: libc::c_int = 0;

/// Splits a path into its directory and the name in it; `None` if it ends in a slash.
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

/// Opens a directory. Never waits, even if the path leads to a pipe or a device.
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
    let permissions = libc::c_uint::from(permissions);
    let opened = uninterrupted(|| {
        // SAFETY: the name is a live `CStr`, and `directory` keeps the descriptor open.
        unsafe { libc::openat(directory.as_raw_fd(), name.as_ptr(), flags, permissions) }
    })?;
    // SAFETY: `openat` has just returned the descriptor, and nothing else owns it.
    Ok(unsafe { File::from_raw_fd(opened) })
}

/// Returns the error: these systems have no call that makes all names of a file system durable.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn sync_names_without_directory(_file: &File, error: io::Error) -> io::Result<()> {
    Err(error)
}

/// Whether a name in a directory belongs to the file itself, and not to a symbolic link to it.
fn names(directory: &File, name: &CStr, file: &File) -> io::Result<bool> {
    Ok(file_id_in(directory, name)? == file_info(file)?.id)
}

/// Returns the identity of what has a name in a directory, be it a symbolic link. Needs no
/// permission for the file, and closes no descriptor of it that would release the locks of this
/// process.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn file_id_in(directory: &File, name: &CStr) -> io::Result<FileId> {
    let found = open_at(directory, name, SEARCH | libc::O_NOFOLLOW, 0)?;
    Ok(file_info(&found)?.id)
}

/// Does the same by [`fstatat(2)`].
///
/// [`fstatat(2)`]: https://man7.org/linux/man-pages/man2/stat.2.html
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn file_id_in(directory: &File, name: &CStr) -> io::Result<FileId> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
    uninterrupted(|| {
        let (directory, flags) = (directory.as_raw_fd(), libc::AT_SYMLINK_NOFOLLOW);
        // SAFETY: the name is a live `CStr`, `stat` is live for the call, and `directory` keeps the
        // descriptor open.
        unsafe { libc::fstatat(directory, name.as_ptr(), stat.as_mut_ptr(), flags) }
    })?;
    // SAFETY: all-zero bytes are a valid `stat`, and the call has filled it in.
    let stat = unsafe { stat.assume_init() };
    #[allow(clippy::unnecessary_cast)] // They are narrower on some platforms.
    let (volume, index) = (stat.st_dev as u64, stat.st_ino as u64);
    Ok(FileId {
        volume,
        index: index.into(),
    })
}

/// Opens the directory that has the name of the file to which `path` leads; follows links.
///
/// # Errors
///
/// `NotFound` if the name belongs to another file by now.
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
