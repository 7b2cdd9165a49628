//! Replacing a whole file at once: a new file takes the name of an old one.

use std::collections::hash_map::RandomState;
use std::fs::{self, File, Metadata};
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::completion::contain;
use crate::error::{MmapIoError, Result, Subject};
use crate::fairness::operation;
use crate::offload::offload;
use crate::opening::absolute;
use crate::residency;
use crate::sys::{self, Created};

/// How the name of a temporary file begins.
const PREFIX: &str = ".mmap-io-replace-";

/// How many names are tried for a temporary file. Each is random, with 64 bits.
const TRIES: usize = 8;

/// How many links are followed, as by the kernel.
const LINKS: usize = 40;

/// Puts a new file with the given content in the place of the file at `path`, durably and at once.
///
/// A program that opens the path sees the whole old content or the whole new content, never a
/// mixture, also after a crash or a power cut; when this returns `Ok`, the new content survives
/// one. If there is no file at `path`, the new file is created there. This is for files that are
/// replaced as a whole, such as a configuration or an index; to change parts of a file, open it and
/// write to it.
///
/// The new file is another file with the same name:
/// - Handles, views and mappings of the old file keep the old content, in this process and others,
///   and go on working; see [`is_at_path`](crate::MemoryMappedFile::is_at_path).
/// - It gets the permissions of the old file, its owner and group as far as the process may give a
///   file away, and on Linux its extended attributes (access control lists among them) as far as
///   the process may read and set them. If the group cannot be kept, the new group gets the
///   permissions of all other users instead, and no access control list.
/// - A symbolic link at `path` stays, and the file that it leads to is replaced.
/// - Other hard links to the old file keep the old file.
///
/// The process needs permission to write to the directory, not to the file. The content is written
/// to a temporary file in the same directory first, so the disk needs room for both files. If there
/// is an old file, only the process's own user may open the temporary file until it is whole. It is
/// removed if the call fails. If the process ends in the middle, the temporary file stays behind:
/// its name is `.mmap-io-replace-` and 16 hexadecimal digits, and it can be removed.
///
/// If several tasks or processes replace a file at the same time, each puts its file there, one
/// after the other, and the last file stays.
///
/// The content may lie in a mapping of this crate, also of the old file.
///
/// # Errors
///
/// - [`Io`](MmapIoError::Io): the disk is full, `path` is no regular file, or the system refuses a
///   call, for example because the file is itself a mount point. The old file is as it was.
/// - [`Truncated`](MmapIoError::Truncated): the content lies in a mapping of a file that another
///   process has cut. The old file is as it was.
/// - [`FlushFailed`](MmapIoError::FlushFailed): the new file has taken its place, but a power cut
///   may bring the old one back.
///
/// # Cancel safety
///
/// Dropping the future withdraws an operation that has not started; an operation that has started
/// runs to completion.
///
/// # Platform-specific behavior
///
/// [`rename(2)`], and [`fsync(2)`] of the file before it and of the directory after it. On Windows
/// a file that is mapped cannot be replaced.
///
/// # Examples
///
/// ```
/// # futures_lite::future::block_on(async {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("index");
/// use mmap_io::{replace, MemoryMappedFile};
///
/// replace(&path, "first").await?;
/// let old = MemoryMappedFile::open_ro(&path).await?;
/// replace(&path, "second").await?;
/// # #[cfg(unix)]
/// assert_eq!(old.as_slice(0, 5)?, b"first");
/// let new = MemoryMappedFile::open_ro(&path).await?;
/// assert_eq!(new.as_slice(0, 6)?, b"second");
/// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
///
/// [`rename(2)`]: https://man7.org/linux/man-pages/man2/rename.2.html
/// [`fsync(2)`]: https://man7.org/linux/man-pages/man2/fsync.2.html
#[doc(alias = "atomic")]
#[doc(alias = "durable")]
#[doc(alias = "rename")]
pub fn replace(
    path: impl AsRef<Path>,
    content: impl Into<Bytes>,
) -> impl Future<Output = Result<()>> + Send + 'static {
    let (subject, path) = (Subject::from(path.as_ref()), absolute(path.as_ref()));
    let content = content.into();
    operation("replacing", subject, async move {
        let replace = move || {
            let replaced = replace_at(&path, &content);
            // Its owner is foreign code; whether that panics, the file is replaced.
            contain(|| drop(content));
            replaced
        };
        offload(replace).await
    })
}

/// Blocks.
fn replace_at(path: &Path, content: &[u8]) -> Result<()> {
    let (path, old) = resolve(path)?;
    if old.as_ref().is_some_and(|old| !old.is_file()) {
        let problem = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
        return Err(MmapIoError::from(problem));
    }
    sys::check_file_limit(content.len() as u64)?;
    // A page of a mapping that cannot be read is an error of `write(2)` as well, but one that does
    // not tell the cause.
    residency::read_in_mapped(content)?;
    // A file that replaces none gets the permissions that a new file has here.
    let permissions = old.as_ref().map_or(sys::FOR_ALL, |_| sys::FOR_THE_OWNER);
    let mut new = Temporary::create(&path, permissions)?;
    new.write(content)?;
    if let Some(old) = &old {
        // After the content: writing to a file removes some of its attributes.
        sys::copy_attributes(&new.file, &path, old)?;
    }
    sys::sync_file(&new.file)?;
    new.take_name(&path)
}

/// Returns the path with all links resolved, and what the system says of the file there, if there
/// is one.
fn resolve(path: &Path) -> io::Result<(PathBuf, Option<Metadata>)> {
    // The kernel comes first, and decides which links may be followed.
    let missing = match fs::metadata(path) {
        Ok(metadata) => return Ok((fs::canonicalize(path)?, Some(metadata))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => error,
        Err(error) => return Err(error),
    };
    let mut path = path.to_path_buf();
    for _ in 0..LINKS {
        let name = path.file_name().map(|name| name.as_encoded_bytes());
        // A path such as `new/` or `new/.` can name a directory only.
        let names_a_file =
            name.is_some_and(|name| path.as_os_str().as_encoded_bytes().ends_with(name));
        let (Some(directory), true) = (path.parent(), names_a_file) else {
            return Err(missing);
        };
        match fs::read_link(&path) {
            // A link that leads nowhere: the file is created where it leads to.
            Ok(target) => path = directory.join(target),
            Err(_) => {
                let name = path.file_name().expect("checked above");
                return Ok((fs::canonicalize(directory)?.join(name), None));
            }
        }
    }
    Err(missing)
}

/// A file that is to take the name of another file in its directory. If it does not come to that,
/// the drop removes it.
struct Temporary {
    file: File,
    /// Present until the file has taken its name.
    created: Option<Created>,
}

impl Temporary {
    /// Creates the file beside `path`.
    fn create(path: &Path, permissions: u32) -> io::Result<Self> {
        let mut tries_left = TRIES;
        loop {
            tries_left -= 1;
            let random = RandomState::new().build_hasher().finish();
            let beside = path.with_file_name(format!("{PREFIX}{random:016x}"));
            let (file, created) = match sys::create_new(&beside, permissions) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tries_left > 0 => {
                    continue;
                }
                created => created?,
            };
            if created.is_none() {
                let _ = fs::remove_file(&beside);
                // The name could not be made durable.
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            return Ok(Self { file, created });
        }
    }

    fn write(&mut self, content: &[u8]) -> Result<()> {
        // So that a disk that is too small is not filled first.
        sys::check_room(&self.file, 0, content.len() as u64)?;
        match self.file.write_all(content) {
            // Its pages were there a moment ago.
            Err(error) if sys::is_fault(&error) => {
                residency::read_in_mapped(content)?;
                Err(MmapIoError::from(error))
            }
            Err(error) => Err(MmapIoError::from(error)),
            Ok(()) => residency::check_mapped(content),
        }
    }

    /// Takes the name of the file at `path`, and makes that durable.
    fn take_name(mut self, path: &Path) -> Result<()> {
        let name = path
            .file_name()
            .expect("a resolved path of a file has a name");
        let created = self.created.as_mut().expect("present until here");
        created.rename(name)?;
        // The drop leaves the file alone from here on.
        let created = self.created.take();
        let synced = created.map_or(Ok(()), |created| created.sync(&self.file));
        synced.map_err(|error| MmapIoError::FlushFailed(error.into()))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(created) = self.created.take() {
            // The caller reports the error that it has.
            let _ = created.remove(&self.file);
        }
    }
}
