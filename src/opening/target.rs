//! What a path leads to, opened or looked at, and which file that is.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Again;
use crate::descriptor::Descriptor;
use crate::error::{MmapIoError, Result};
use crate::mode::MmapMode;
use crate::open_file::{OpenFile, OPEN_FILES};
use crate::range::ByteRange;
use crate::registry::Found;
use crate::sys::{self, Created, FileInfo, FsTraits};

/// Times that a path is followed again because its file had gone when it was looked at. After that
/// the file counts that was opened last, as it does for the kernel.
pub(crate) const TRIES: usize = 8;

/// An opened descriptor. If the file was created with it, and by it alone, it is removed again
/// unless it is kept, or has got bytes.
#[derive(Debug)]
pub(crate) struct Target {
    pub(super) file: Arc<Descriptor>,
    pub(super) created: Option<Created>,
}

impl Target {
    pub(crate) fn existing(path: &Path, mode: MmapMode) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(mode == MmapMode::ReadWrite);
        Ok(Self {
            file: Descriptor::new(sys::open(&mut options, path)?),
            created: None,
        })
    }

    /// A file to be written from scratch: as it is, or created. Which of the two it was is not
    /// known if another process has created or removed it meanwhile: then it was not created here.
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
        })
    }

    /// Links are followed, also one that points nowhere: there the file is created.
    pub(super) fn open_or_create(path: &Path, permissions: u32) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let options = sys::open_or_create(&mut options, permissions);
        Ok(Self {
            file: Descriptor::new(sys::open(options, path)?),
            created: None,
        })
    }

    /// What was opened.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if it is no regular file, `Unsupported` if it is one that cannot be mapped here.
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

    /// Empties the file if it was created here, so that it is removed: the bytes that it has are
    /// those that it was given here.
    pub(crate) fn discard(self) {
        if self.created.is_some() {
            let _ = self.file.set_len(0);
        }
    }

    /// The file stays.
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

impl From<Again> for Target {
    fn from(again: Again) -> Self {
        Self {
            file: again.file,
            created: again.created,
        }
    }
}

impl From<Target> for Again {
    fn from(mut target: Target) -> Self {
        Self {
            created: target.created.take(),
            file: target.file.clone(),
        }
    }
}

/// Looks for the file of a descriptor among those that are open.
pub(crate) fn find_open(target: &Target, info: &FileInfo, fs_traits: FsTraits) -> Found<OpenFile> {
    let is_it = |open: &Arc<OpenFile>| open.is_file(&target.file);
    OPEN_FILES.find(info.id, (!fs_traits.is_local).then_some(is_it))
}

/// What a path would be opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    Read,
    Write,
    /// As by a call that may create the file: the system has rules of its own for those
    /// (`fs.protected_regular`), none of which is about the process's own files.
    WriteOrCreate,
}

/// Looks for the file that a path leads to among those that are open, if the process may open it.
/// Opens nothing.
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
    // Where it is copied up, a newer descriptor is another file's.
    let mut open = open.into_iter().filter(|_| !fs_traits.copies_up);
    open.find(is_it)
}

/// Fails if a file that is to be overwritten is in use here.
pub(crate) fn fail_if_used(open: &OpenFile) -> Result<()> {
    match open.check_in_use() {
        Ok(()) => Err(ByteRange::between(0, open.len()).busy()),
        Err(_) => Ok(()),
    }
}

/// Whether a file has lost its name, and the path leads to another one, or nowhere. One without a
/// name can be opened all the same (`/proc/self/fd`), and some FUSE file systems count no names.
pub(crate) fn is_gone(info: &FileInfo, path: &Path) -> bool {
    !info.is_linked && !sys::file_id_at(path).is_ok_and(|id| id == info.id)
}

/// The path, from the current directory on where it is relative: as it is now, whenever it is used.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    // No path is no name of the directory.
    if path.is_absolute() || path.as_os_str().is_empty() {
        return path.to_path_buf();
    }
    // Where there is no such directory any more, opening says so.
    std::env::current_dir().map_or_else(|_| path.to_path_buf(), |directory| directory.join(path))
}
