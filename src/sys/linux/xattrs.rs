//! Copies extended attributes.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::io::AsRawFd;
use std::path::Path;

use crate::sys::unix::is_not_permitted;

/// The most bytes of a list of names, and of a value ([`xattr(7)`]).
///
/// [`xattr(7)`]: https://man7.org/linux/man-pages/man7/xattr.7.html
const MOST: usize = 1 << 16;

/// The access control list of a file. A new file gets one from the default list of its directory.
const ACL: &[u8] = b"system.posix_acl_access\0";

/// What the kernel computes from the content of a file; wrong values make the file unreadable.
const OF_THE_CONTENT: [&[u8]; 2] = [b"security.ima", b"security.evm"];

/// Gives `file` the extended attributes of the file at `old`, as far as the process may read and
/// set them ([`listxattr(2)`], [`getxattr(2)`], [`setxattr(2)`]). An access control list that
/// `file` has is removed; that of `old` is copied if `with_acl`.
///
/// [`listxattr(2)`]: https://man7.org/linux/man-pages/man2/listxattr.2.html
/// [`getxattr(2)`]: https://man7.org/linux/man-pages/man2/getxattr.2.html
/// [`setxattr(2)`]: https://man7.org/linux/man-pages/man2/setxattr.2.html
pub(in crate::sys) fn copy_xattrs(file: &File, old: &Path, with_acl: bool) -> io::Result<()> {
    let old = CString::new(old.as_os_str().as_bytes())?;
    let acl = CStr::from_bytes_with_nul(ACL).expect("it ends in a zero byte");
    // SAFETY: the name is a live `CStr`, and `file` keeps the descriptor open.
    let removed = check(unsafe { libc::fremovexattr(file.as_raw_fd(), acl.as_ptr()) } as isize);
    if let Err(error) = removed {
        // It would let users in that the old file keeps out.
        if !is_missing(&error) || has(file, acl) {
            return Err(error);
        }
    }
    for name in list(&old)?.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        if OF_THE_CONTENT.contains(&name.to_bytes()) || (name == acl && !with_acl) {
            continue;
        }
        match get(&old, name).and_then(|value| set(file, name, &value)) {
            Err(error) if !is_missing(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether the attribute is not there, or the process may not read or set it.
fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENODATA) || is_not_permitted(error)
}

/// Returns the names of the attributes of a file, each with a zero byte at its end.
fn list(path: &CStr) -> io::Result<Vec<u8>> {
    let mut names = vec![0; MOST];
    // SAFETY: the path is a live `CStr`, and `names` has as many bytes as the call is told.
    let len = check(unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), MOST) });
    match len {
        Err(error) if is_missing(&error) => names.clear(),
        len => names.truncate(len?),
    }
    Ok(names)
}

/// Whether a file has an attribute, as far as the system tells.
fn has(file: &File, name: &CStr) -> bool {
    let nowhere = std::ptr::null_mut();
    // SAFETY: the name is a live `CStr`, `file` keeps the descriptor open, and a call that is told
    // of no room writes nothing.
    unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), nowhere, 0) >= 0 }
}

fn get(path: &CStr, name: &CStr) -> io::Result<Vec<u8>> {
    let mut value = vec![0; MOST];
    let (path, name, at) = (path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast());
    // SAFETY: both names are live `CStr`s, and `value` has as many bytes as the call is told.
    let len = check(unsafe { libc::lgetxattr(path, name, at, MOST) })?;
    value.truncate(len);
    Ok(value)
}

fn set(file: &File, name: &CStr, value: &[u8]) -> io::Result<()> {
    let (file, name, len) = (file.as_raw_fd(), name.as_ptr(), value.len());
    // SAFETY: the name is a live `CStr`, `value` has `len` bytes, and the caller's `file` keeps the
    // descriptor open.
    check(unsafe { libc::fsetxattr(file, name, value.as_ptr().cast(), len, 0) } as isize)?;
    Ok(())
}

/// Returns the length that a call has returned, or its error.
fn check(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}
