//! Finds out which file a path leads to, by a descriptor that can be used or only examined.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::RetryState;
use crate::descriptor::Descriptor;
use crate::error::{MmapIoError, Result};
use crate::mode::MmapMode;
use crate::offload::release;
use crate::open_file::{OpenFile, OPEN_FILES};
use crate::range::ByteRange;
use crate::registry::Found;
use crate::sys::{self, Created, FileInfo, FsTraits};

/// How many times a path is opened because its file had lost its name when it was checked. The last
/// try accepts the file that it opened, as the kernel would.
pub(crate) const TRIES: usize = 8;

/// An opened descriptor. If this opening created the file (`O_EXCL`), the drop removes the file,
/// unless it is kept, or is no longer empty.
#[derive(Debug)]
pub(crate) struct Target {
    pub(super) file: Arc<Descriptor>,
    pub(super) created: Option<Created>,
    /// Whether this opening created the file, also if it does not remove it.
    pub(super) is_new: bool,
}

impl Target {
    pub(crate) fn existing(path: &Path, mode: MmapMode) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(mode == MmapMode::ReadWrite);
        Ok(Self {
            file: Descriptor::new(sys::open(&mut options, path)?),
            created: None,
            is_new: false,
        })
    }

    /// Opens a file that is to be emptied, or creates it. If another process creates or removes the
    /// file in the meantime, the file counts as not created here.
    pub(crate) fn create(path: &Path, permissions: u32) -> io::Result<Self> {
        match Self::create_new(path, permissions) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Self::open_or_create(path, permissions)
            }
            target => target,
        }
    }

    pub(super) fn create_new(path: &Path, permissions: u32) -> io::Result<Self> {
        let (file, created) = sys::create_new(path, permissions)?;
        Ok(Self {
            file: Descriptor::new(file),
            created,
            is_new: true,
        })
    }

    /// Opens a file, or creates it, and never removes it. Follows links; a link to a file that does
    /// not exist creates that file.
    pub(super) fn open_or_create(path: &Path, permissions: u32) -> io::Result<Self> {
        let is_missing =
            fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if is_missing {
            // Of all processes that create the file, this call succeeds in one. If it fails, the
            // call below tells why.
            if let Ok(mut new) = Self::create_new(path, permissions) {
                new.created = None;
                return Ok(new);
            }
        }
        let mut options = OpenOptions::new();
        let options = sys::open_or_create(&mut options, permissions);
        let file = Descriptor::new(sys::open(options, path)?);
        // No call tells whether it has created the file behind a link.
        let is_link = || fs::symlink_metadata(path).is_ok_and(|link| link.is_symlink());
        Ok(Self {
            file,
            created: None,
            is_new: is_missing && is_link(),
        })
    }

    /// Returns the identity of the file and the traits of its file system.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if it is not a regular file, `Unsupported` if it cannot be mapped
    /// (hugetlbfs).
    pub(crate) fn identify(&self) -> Result<(FileInfo, FsTraits)> {
        let info = sys::file_info(&self.file)?;
        if !info.is_regular {
            let problem = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
            return Err(MmapIoError::from(problem));
        }
        let fs_traits = sys::fs_traits(&self.file);
        if fs_traits.has_huge_pages {
            let problem = "files of hugetlbfs cannot be mapped here";
            let problem = io::Error::new(io::ErrorKind::Unsupported, problem);
            return Err(MmapIoError::from(problem));
        }
        Ok((info, fs_traits))
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Empties the file if this opening created it, so that the drop removes it. The caller has
    /// checked that all of its bytes were added by this opening.
    pub(crate) fn discard(self) {
        if self.created.is_some() {
            let _ = self.file.set_len(0);
        }
    }

    /// Keeps the file, and returns the descriptor.
    pub(crate) fn keep(mut self) -> Arc<Descriptor> {
        self.created = None;
        self.file.clone()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(created) = self.created.take() {
            if sys::file_len(&self.file).is_ok_and(|len| len == 0) {
                let _ = created.remove(&self.file);
            }
        }
    }
}

impl From<RetryState> for Target {
    fn from(mut state: RetryState) -> Self {
        Self {
            file: state.file.clone(),
            created: state.created.take(),
            is_new: state.is_new,
        }
    }
}

impl Drop for RetryState {
    fn drop(&mut self) {
        // A dropped future drops it on an executor thread, where no directory must be closed.
        if let Some(created) = self.created.take() {
            release(created);
        }
    }
}

impl From<Target> for RetryState {
    fn from(mut target: Target) -> Self {
        Self {
            created: target.created.take(),
            file: target.file.clone(),
            is_new: target.is_new,
        }
    }
}

/// Looks for the file of a descriptor among the files that are open in this process, or claims its
/// place.
pub(crate) fn find_open(target: &Target, info: &FileInfo, fs_traits: FsTraits) -> Found<OpenFile> {
    let is_it = |open: &Arc<OpenFile>| open.is_file(&target.file);
    OPEN_FILES.find(info.id, (!fs_traits.is_local).then_some(is_it))
}

/// What a path is to be opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    Read,
    Write,
    /// Writing, by a call that may create the file. The system has extra rules for such calls
    /// (`fs.protected_regular`); no rule restricts a process on its own files.
    WriteOrCreate,
}

/// Looks for the file that a path leads to among the files that are open in this process, if the
/// process may open it. Opens nothing.
pub(crate) fn find_by_path(path: &Path, intent: Intent) -> Option<Arc<OpenFile>> {
    let looked = sys::look(path)?;
    let id = sys::file_info(&looked).ok()?.id;
    let open = OPEN_FILES.open(id);
    let may_open = || {
        sys::may_open(&looked, intent != Intent::Read)
            && (intent != Intent::WriteOrCreate || sys::is_owner(&looked))
    };
    if open.is_empty() || !may_open() {
        return None;
    }
    let fs_traits = sys::fs_traits(&looked);
    let is_it = |open: &Arc<OpenFile>| fs_traits.is_local || open.is_file(&looked);
    // Where files are copied up, a newer descriptor may show another file.
    let mut open = open.into_iter().filter(|_| !fs_traits.copies_up);
    open.find(is_it)
}

/// Fails with `Busy` if a file that is to be overwritten is in use in this process.
pub(crate) fn fail_if_used(open: &OpenFile) -> Result<()> {
    match open.check_in_use() {
        Ok(()) => Err(ByteRange::between(0, open.len()).busy()),
        Err(_) => Ok(()),
    }
}

/// Whether a file has lost its name, and the path leads to another file, or nowhere. The path is
/// checked because a file without a name can be opened as well (`/proc/self/fd`), and because some
/// FUSE file systems do not count names.
pub(crate) fn is_gone(info: &FileInfo, path: &Path) -> bool {
    !info.is_linked && !sys::file_id_at(path).is_ok_and(|id| id == info.id)
}

/// Makes a path absolute, so that it does not depend on a later change of the current directory.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    // An empty path must stay invalid: joined with the directory, it would name the directory.
    if path.is_absolute() || path.as_os_str().is_empty() {
        return path.to_path_buf();
    }
    // If the current directory no longer exists, the opening reports that.
    std::env::current_dir().map_or_else(|_| path.to_path_buf(), |directory| directory.join(path))
}
