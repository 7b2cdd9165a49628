//! Opening and creating: from a path to a descriptor, and from a descriptor to an [`OpenFile`].
//!
//! Nothing is truncated before the file is known to be nobody else's: a file is opened as it is,
//! identified, looked up, and only then changed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use event_listener::EventListener;

use crate::error::{MmapIoError, Result};
use crate::map::{Backing, Protection};
use crate::mode::MmapMode;
use crate::open_file::{directory_of, OpenFile, User, OPEN_FILES};
use crate::queue::{Action, Op, Queue};
use crate::range::{ByteRange, MAX_LEN};
use crate::registry::{Claim, Found};
use crate::sys::{self, FileInfo};
use crate::write::check_size;

/// How a file is to be opened.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    pub(crate) how: How,
    pub(crate) mode: MmapMode,
    pub(crate) preallocate: bool,
}

/// What to do about a file that is there, and one that is not.
#[derive(Clone, Debug)]
pub(crate) enum How {
    /// It must be there.
    Existing(PathBuf),
    /// It is emptied, or created; then it has that many bytes.
    Create(PathBuf, u64),
    /// It must not be there.
    CreateNew(PathBuf, u64),
    /// It is created if it is not there; one without bytes gets that many.
    OpenOrCreate(PathBuf, u64),
    /// It is open already.
    Descriptor(Arc<File>),
}

/// One try at an opening.
pub(crate) enum Attempt {
    Opened(Opened),
    /// Somebody is opening or closing the same file; try again then.
    Later(EventListener, Again),
}

/// What an attempt had opened. It stays, whatever becomes of the next one: others have it by now.
#[derive(Debug)]
pub(crate) struct Again {
    file: Arc<File>,
    created: Option<PathBuf>,
}

/// An opened file, and its descriptor.
pub(crate) struct Opened {
    pub(crate) open: User,
    pub(crate) file: Arc<File>,
    /// The residency probe tells the truth about this file.
    pub(crate) may_probe: bool,
    /// What is still to be done, in the file's queue, and the length it is about.
    rest: Option<(Action, u64)>,
}

impl Opening {
    /// Fails unless the size is one that a file can have. Before the file system is touched.
    pub(crate) fn check(&self) -> Result<()> {
        match self.how {
            How::Create(_, size) | How::CreateNew(_, size) => check_size(size),
            How::OpenOrCreate(..) | How::Existing(_) | How::Descriptor(_) => Ok(()),
        }
    }

    /// Tries to open the file, perhaps again. Blocks.
    pub(crate) fn attempt(&self, mut again: Option<Again>) -> Result<Attempt> {
        loop {
            let (target, info) = match again.take() {
                // By its descriptor: the path may name somebody else's file by now.
                Some(again) => identified(again.into())?,
                None => self.open_descriptor()?,
            };
            if info.len > MAX_LEN {
                check_size(info.len)?;
            }
            match find_open(&target, &info) {
                Found::Claimed(opening) => return Ok(Attempt::Later(opening, target.into())),
                Found::Open(open) => {
                    if let Some(path) = &target.created {
                        // Whoever has opened it first does not know that it is new.
                        open.owes_its_name(directory_of(path)?);
                    }
                    if self.creates() {
                        if let Err(closed) = open.check_in_use() {
                            return Ok(Attempt::Later(closed, target.into()));
                        }
                    }
                    let joined = self.join(User::new(open), target.keep(), &info);
                    return joined.map(Attempt::Opened);
                }
                Found::Vacant(claim) => {
                    // Whoever had the claim before may have changed the file, or removed it.
                    let info = sys::file_info(&target.file)?;
                    if matches!(self.how, How::CreateNew(..)) && info.len > 0 {
                        // Somebody has had it, and written to it, since it was created here.
                        target.keep();
                        return Err(MmapIoError::Io(io::ErrorKind::AlreadyExists.into()));
                    }
                    if info.is_linked || matches!(self.how, How::Descriptor(_)) {
                        return self.fill(claim, target, &info).map(Attempt::Opened);
                    }
                    target.keep();
                }
            }
        }
    }

    /// Whether the file may be nobody else's.
    fn creates(&self) -> bool {
        matches!(self.how, How::Create(..) | How::CreateNew(..))
    }

    fn open_descriptor(&self) -> Result<(Target, FileInfo)> {
        let target = match &self.how {
            How::Existing(path) => Target::existing(path, self.mode)?,
            How::Create(path, _) => return open_target(path),
            How::CreateNew(path, _) => Target::new(path)?,
            How::OpenOrCreate(path, size) => {
                let (target, info) = match Target::existing(path, self.mode) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        check_size(*size)?;
                        open_target(path)?
                    }
                    target => identified(target?)?,
                };
                if info.len == 0 {
                    check_size(*size)?;
                }
                return Ok((target, info));
            }
            How::Descriptor(file) => {
                self.check_access(file)?;
                Target {
                    file: file.clone(),
                    created: None,
                }
            }
        };
        identified(target)
    }

    fn check_access(&self, file: &File) -> Result<()> {
        let access = sys::access(file)?;
        let problem = match self.mode {
            _ if !access.read => "the descriptor is not open for reading",
            MmapMode::ReadWrite if !access.write => "the descriptor is not open for writing",
            MmapMode::ReadWrite if access.append => "the descriptor is open for appending",
            MmapMode::ReadOnly | MmapMode::ReadWrite => return Ok(()),
        };
        Err(MmapIoError::InvalidMode(problem))
    }

    /// Shares what is open already.
    fn join(&self, open: User, file: Arc<File>, info: &FileInfo) -> Result<Opened> {
        let len = open.len();
        // A longer one is adopted in its turn among what happens behind the end, and no more.
        let mut rest = (info.len != len).then_some((Action::AdoptLength, len));
        match &self.how {
            How::Create(..) | How::CreateNew(..) => return Err(ByteRange::between(0, len).busy()),
            How::OpenOrCreate(..) if len == 0 && self.mode == MmapMode::ReadWrite => {
                rest = Some((Action::FirstLength, self.size()));
            }
            // What counts is the length it has here: the other one was looked at before its
            // creation was over, or somebody else has changed it, which is for its queue to find.
            _ => self.check_not_empty(len)?,
        }
        open.attach(&Backing::File(file.clone()), self.protection())?;
        self.reserve(&file, info.len, false)?;
        if self.preallocate {
            open.reserve_on_growth();
        }
        Ok(Opened {
            may_probe: self.may_probe(&file),
            file,
            open,
            rest,
        })
    }

    /// Opens what nobody else in this process has open.
    fn fill(&self, claim: Claim<OpenFile>, target: Target, info: &FileInfo) -> Result<Opened> {
        let writes = self.mode == MmapMode::ReadWrite;
        let size = match &self.how {
            How::Create(_, size) | How::CreateNew(_, size) => Some(*size),
            How::OpenOrCreate(_, size) if info.len == 0 && writes => Some(*size),
            _ => {
                self.check_not_empty(info.len)?;
                None
            }
        };
        let len = size.unwrap_or(info.len);
        let directory = match &target.created {
            Some(path) => directory_of(path)?,
            None => None,
        };
        if size.is_some() {
            if info.len > 0 {
                target.file.set_len(0)?;
            }
            sys::set_len(&target.file, len).map_err(MmapIoError::ResizeFailed)?;
        }
        let reserved = self.reserve(&target.file, len, size.is_some());
        let opened = reserved.and_then(|()| {
            Ok(OpenFile::open(
                &claim,
                &target.file,
                len,
                self.protection(),
            )?)
        });
        let open = opened.map_err(|error| {
            if size.is_some() {
                // It was empty, or is by now; a file that was not there goes with `target`.
                let _ = target.file.set_len(0);
            }
            error
        })?;
        if self.preallocate {
            open.reserve_on_growth();
        }
        if size.is_some() {
            open.owes_its_name(directory);
        }
        claim.fill(&open);
        let file = target.keep();
        Ok(Opened {
            open: User::new(open),
            may_probe: self.may_probe(&file),
            file,
            rest: None,
        })
    }

    fn reserve(&self, file: &File, len: u64, is_new: bool) -> Result<()> {
        let may_reserve = is_new || sys::ALLOCATE_KEEPS_BYTES;
        if self.preallocate && self.mode == MmapMode::ReadWrite && len > 0 && may_reserve {
            sys::allocate(file, 0, len).map_err(MmapIoError::ResizeFailed)?;
        }
        Ok(())
    }

    fn check_not_empty(&self, len: u64) -> Result<()> {
        match self.mode {
            MmapMode::ReadWrite => check_size(len),
            MmapMode::ReadOnly => Ok(()),
        }
    }

    fn may_probe(&self, file: &File) -> bool {
        self.mode == MmapMode::ReadWrite || sys::is_owner(file)
    }

    fn protection(&self) -> Protection {
        match self.mode {
            MmapMode::ReadOnly => Protection::Read,
            MmapMode::ReadWrite => Protection::ReadWrite,
        }
    }

    fn size(&self) -> u64 {
        match self.how {
            How::Create(_, size) | How::CreateNew(_, size) | How::OpenOrCreate(_, size) => size,
            How::Existing(_) | How::Descriptor(_) => 0,
        }
    }
}

impl Opened {
    /// Brings the length up to date, in its turn among the file's operations.
    pub(crate) async fn finish(&self) -> Result<()> {
        if let Some((action, len)) = self.rest {
            let op = Op::new(ByteRange::between(len, u64::MAX), action);
            Queue::submit(&self.open, op).await?;
        }
        Ok(())
    }
}

/// An opened descriptor. If the file was created with it, it is removed again unless it is kept.
#[derive(Debug)]
pub(crate) struct Target {
    file: Arc<File>,
    /// Where the file was created.
    created: Option<PathBuf>,
}

impl Target {
    pub(crate) fn existing(path: &Path, mode: MmapMode) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(mode == MmapMode::ReadWrite);
        Ok(Self {
            file: Arc::new(sys::never_wait(&mut options).open(path)?),
            created: None,
        })
    }

    fn new(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        Ok(Self {
            file: Arc::new(file),
            created: Some(path.to_path_buf()),
        })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The file stays.
    pub(crate) fn keep(mut self) -> Arc<File> {
        self.created = None;
        self.file.clone()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(path) = self.created.take() {
            // Somebody may have put another file there. There is nobody to tell of an error, and
            // the one that led here is the one that counts.
            if is_at(&self.file, &path) {
                let _ = fs::remove_file(path);
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

/// Whether the path names the file that is open.
fn is_at(file: &File, path: &Path) -> bool {
    let id = sys::file_info(file).map(|info| info.id);
    id.is_ok_and(|id| sys::file_id_at(path).is_ok_and(|found| id == found))
}

/// Opens a file to be written from scratch: as it is, or created. Blocks.
pub(crate) fn open_target(path: &Path) -> Result<(Target, FileInfo)> {
    /// As many links as Linux follows.
    const LINKS: usize = 40;
    let mut path = path.to_path_buf();
    for _ in 0..LINKS {
        match Target::new(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            target => return identified(target?),
        }
        match Target::existing(&path, MmapMode::ReadWrite) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            target => return identified(target?),
        }
        // Removed in between; or a link that points nowhere, and then it is created there.
        if let Ok(link) = fs::read_link(&path) {
            path = match path.parent() {
                Some(directory) => directory.join(link),
                None => link,
            };
        }
    }
    Err(MmapIoError::Io(io::ErrorKind::NotFound.into()))
}

pub(crate) fn identified(target: Target) -> Result<(Target, FileInfo)> {
    let info = sys::file_info(&target.file)?;
    if !info.is_regular {
        let problem = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
        return Err(MmapIoError::Io(problem));
    }
    Ok((target, info))
}

/// Looks for the file of a descriptor among those that are open.
pub(crate) fn find_open(target: &Target, info: &FileInfo) -> Found<OpenFile> {
    let is_it = |open: &Arc<OpenFile>| open.is_file(&target.file);
    let habits = sys::habits(&target.file);
    OPEN_FILES.find(info.id, (!habits.unique_ids).then_some(is_it))
}
