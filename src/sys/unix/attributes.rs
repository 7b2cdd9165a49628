//! Gives a file the owner, the permissions and the extended attributes of another file.

use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{fchown, MetadataExt, PermissionsExt};
use std::path::Path;

#[cfg(any(target_os = "linux", target_os = "android"))]
use crate::sys::linux::copy_xattrs;

/// Does nothing: the calls differ from system to system.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn copy_xattrs(_file: &File, _old: &Path, _with_acl: bool) -> io::Result<()> {
    Ok(())
}

/// Gives `file`, which only its owner may open, the owner, group, permissions and extended
/// attributes of the file at `old`, as far as the process may do that ([`fchown(2)`],
/// [`fchmod(2)`]). No user may open it who may not open `old`, except for the process's own user.
///
/// `metadata` is that of `old`.
///
/// [`fchown(2)`]: https://man7.org/linux/man-pages/man2/chown.2.html
/// [`fchmod(2)`]: https://man7.org/linux/man-pages/man2/chmod.2.html
pub(crate) fn copy_attributes(file: &File, old: &Path, metadata: &Metadata) -> io::Result<()> {
    // The owner first, since a change of it removes other attributes, and since permissions are
    // given to the owner and group that a file has then.
    copy_owner(file, metadata)?;
    let new = file.metadata()?;
    let same_group = new.gid() == metadata.gid();
    let mut mode = metadata.mode() & 0o7777;
    if !same_group {
        mode = mode & 0o7707 | (mode & 0o007) << 3;
    }
    if !same_group || new.uid() != metadata.uid() {
        // The special bits are about the owner and group.
        mode &= 0o777;
    }
    copy_xattrs(file, old, same_group)?;
    match file.set_permissions(Permissions::from_mode(mode)) {
        Err(error) if is_not_permitted(&error) => Ok(()),
        result => result,
    }
}

fn copy_owner(file: &File, old: &Metadata) -> io::Result<()> {
    let new = file.metadata()?;
    if (new.uid(), new.gid()) == (old.uid(), old.gid()) {
        return Ok(());
    }
    match fchown(file, Some(old.uid()), Some(old.gid())) {
        Err(error) if is_not_permitted(&error) => {}
        result => return result,
    }
    // A process may give its files to the groups that it is in.
    match fchown(file, None, Some(old.gid())) {
        Err(error) if is_not_permitted(&error) => Ok(()),
        result => result,
    }
}

/// Whether the error says that the process, or the file system, does not permit the attribute.
/// `EINVAL` is the answer about users that the process's user namespace does not have.
pub(in crate::sys) fn is_not_permitted(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EACCES | libc::ENOTSUP | libc::EINVAL | libc::ENOSYS)
    )
}
