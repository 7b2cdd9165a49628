//! Opening and creating: from a path to a descriptor, and from a descriptor to an [`OpenFile`].
//!
//! Nothing is truncated before the file is known not to be in use here: a file is opened as it is,
//! identified, looked up, and only then changed. And nothing is lost before all that can fail was
//! asked.
//!
//! Other processes open, grow and shrink the same files at the same time. So an opening that did not
//! create the file alone (`O_EXCL`) only ever adds to it, by a call that cannot cut, takes the length
//! that comes out, and cleans nothing up if it fails. Links are the kernel's business, and so is
//! which of them may be followed: there is one call of `open` for each try.

mod target;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use self::target::*;
use crate::descriptor::Descriptor;
use crate::error::{MmapIoError, Result};
use crate::map::{Backing, Protection};
use crate::mode::{MmapMode, TouchHint};
use crate::open_file::{HandleRef, OpenFile, Source};
use crate::queue::{Action, Op, Queue};
use crate::range::{check_size, ByteRange, MAX_LEN};
use crate::registry::{Claim, Found};
use crate::residency;
use crate::sys::{self, Created, FileInfo, FsTraits};
use crate::wakers::EventListener;

/// How a file is to be opened.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    pub(crate) how: How,
    pub(crate) mode: MmapMode,
    pub(crate) preallocate: bool,
    pub(crate) touch_mtime: bool,
    pub(crate) touch: TouchHint,
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
    Descriptor(Arc<Descriptor>),
}

/// One try at an opening.
pub(crate) enum Attempt {
    Opened(Opened),
    /// The same file is being opened or closed; try again then.
    Later(EventListener, Again),
}

/// What an attempt had opened. It stays, whatever becomes of the next one: others have it by now.
#[derive(Debug)]
pub(crate) struct Again {
    file: Arc<Descriptor>,
    created: Option<Created>,
}

/// An opened file.
pub(crate) struct Opened {
    pub(crate) open: HandleRef,
    /// What is still to be done, in the file's queue, and to what range.
    rest: Option<(Action, ByteRange)>,
    mode: MmapMode,
}

impl Opening {
    /// Fails unless the mode permits it, and the size is one that a file can have. Before the file
    /// system is touched.
    pub(crate) fn check(&self) -> Result<()> {
        if let How::CreateNew(..) = self.how {
            self.mode.require_write()?;
        }
        match self.how {
            How::Create(_, size) | How::CreateNew(_, size) => check_size(size),
            How::OpenOrCreate(..) | How::Existing(_) | How::Descriptor(_) => Ok(()),
        }
    }

    /// Tries to open the file, perhaps again. Blocks.
    pub(crate) fn attempt(&self, mut again: Option<Again>) -> Result<Attempt> {
        for tries_left in (0..TRIES).rev() {
            let target = match again.take() {
                // By its descriptor: the path may be another file's by now.
                Some(again) => again.into(),
                None => self.open_target()?,
            };
            let (info, fs_traits) = target.identify()?;
            if info.len > MAX_LEN {
                check_size(info.len)?;
            }
            if let (0, How::OpenOrCreate(_, size)) = (info.len, &self.how) {
                check_size(*size)?;
            }
            match find_open(&target, &info, fs_traits) {
                Found::Claimed(opening) => return Ok(Attempt::Later(opening, target.into())),
                Found::Open(open) => {
                    if self.creates() {
                        if let Err(closed) = open.check_in_use() {
                            return Ok(Attempt::Later(closed, target.into()));
                        }
                    }
                    let joined = self.join(HandleRef::new(open), &target.keep(), &info, fs_traits);
                    return joined.map(Attempt::Opened);
                }
                Found::Vacant(claim) => {
                    // Another holder of the claim may have changed the file, or removed it.
                    let info = sys::file_info(&target.file)?;
                    if matches!(self.how, How::CreateNew(..)) && info.len > 0 {
                        // Or another process has written to it since it was created here.
                        return Err(MmapIoError::Io(io::ErrorKind::AlreadyExists.into()));
                    }
                    let path = self.how.path().filter(|_| tries_left > 0);
                    if !path.is_some_and(|path| is_gone(&info, path)) {
                        return self
                            .fill(claim, target, &info, fs_traits)
                            .map(Attempt::Opened);
                    }
                }
            }
        }
        unreachable!("the last try takes the file as it is")
    }

    /// Whether no other handle here may have the file.
    fn creates(&self) -> bool {
        matches!(self.how, How::Create(..) | How::CreateNew(..))
    }

    fn open_target(&self) -> Result<Target> {
        if let Some(target) = self.share()? {
            return Ok(target);
        }
        let target = match &self.how {
            How::Existing(path) => Target::existing(path, self.mode)?,
            How::Create(path, size) => {
                self.check_room(path, *size)?;
                Target::create(path, sys::FOR_ALL)?
            }
            How::CreateNew(path, size) => {
                self.check_room(path, *size)?;
                Target::create_new(path, sys::FOR_ALL)?
            }
            How::OpenOrCreate(path, size) => {
                match check_size(*size).and_then(|()| self.check_room(path, *size)) {
                    Ok(()) => Target::open_or_create(path, sys::FOR_ALL)?,
                    // It may be there, and have a size of its own.
                    Err(problem) => match Target::existing(path, self.mode) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {
                            return Err(problem);
                        }
                        target => target?,
                    },
                }
            }
            How::Descriptor(file) => {
                self.check_access(file)?;
                Target {
                    file: file.clone(),
                    created: None,
                }
            }
        };
        Ok(target)
    }

    /// What is open here already, if the path leads to it. Nothing else is opened then: a descriptor
    /// more would be closed again, and take the locks with it that the program has on the file
    /// (`fcntl(2)`, `F_SETLK`).
    fn share(&self) -> Result<Option<Target>> {
        let (path, intent) = match &self.how {
            How::Existing(path) if self.mode != MmapMode::ReadWrite => (path, Intent::Read),
            How::Existing(path) | How::Create(path, _) => (path, Intent::Write),
            How::OpenOrCreate(path, _) => (path, Intent::WriteOrCreate),
            How::CreateNew(..) | How::Descriptor(_) => return Ok(None),
        };
        let Some(open) = find_by_path(path, intent) else {
            return Ok(None);
        };
        if self.creates() {
            fail_if_used(&open)?;
            return Ok(None);
        }
        let file = open.descriptor_if_mapped(self.protection()).cloned();
        Ok(file.map(|file| Target {
            file,
            created: None,
        }))
    }

    /// Fails if a file of that size could not be written, mapped, or reserved. Before there is one.
    fn check_room(&self, path: &Path, size: u64) -> Result<()> {
        sys::check_file_limit(size).map_err(MmapIoError::resize_failed)?;
        sys::check_address_space(size)?;
        match self.preallocate {
            true => sys::check_free_space_for(path, size).map_err(MmapIoError::resize_failed),
            false => Ok(()),
        }
    }

    fn check_access(&self, file: &File) -> Result<()> {
        let access = sys::access(file)?;
        let problem = match self.mode {
            _ if !access.read => "the descriptor is not open for reading",
            MmapMode::ReadWrite if !access.write => "the descriptor is not open for writing",
            MmapMode::ReadWrite if access.append => "the descriptor is open for appending",
            MmapMode::ReadOnly | MmapMode::ReadWrite | MmapMode::CopyOnWrite => return Ok(()),
        };
        Err(MmapIoError::invalid_mode(problem))
    }

    /// Shares what is open already.
    fn join(
        &self,
        open: HandleRef,
        file: &Arc<Descriptor>,
        info: &FileInfo,
        fs_traits: FsTraits,
    ) -> Result<Opened> {
        let len = open.len();
        let mut rest = (info.len != len).then_some((Action::AdoptFileLen, ByteRange::EMPTY));
        match &self.how {
            How::Create(..) | How::CreateNew(..) => return Err(ByteRange::between(0, len).busy()),
            How::OpenOrCreate(..) if len.min(info.len) == 0 && self.mode == MmapMode::ReadWrite => {
                let behind = ByteRange::between(self.size(), u64::MAX);
                rest = Some((Action::SetLenIfEmpty, behind));
            }
            // The other length was looked at before the file's creation was over, or another process
            // has changed it, which is for its queue to find.
            _ if rest.is_some() => {}
            _ => self.check_not_empty(len)?,
        }
        let source = Source::new(file, fs_traits, self.protection());
        open.attach(source, self.protection())?;
        self.reserve(file, info.len, false)?;
        self.prepare(&open);
        let mode = self.mode;
        Ok(Opened { open, rest, mode })
    }

    /// Opens what is not open in this process.
    fn fill(
        &self,
        claim: Claim<OpenFile>,
        target: Target,
        info: &FileInfo,
        fs_traits: FsTraits,
    ) -> Result<Opened> {
        let size = match &self.how {
            How::Create(_, size) | How::CreateNew(_, size) => Some(*size),
            How::OpenOrCreate(_, size) if info.len == 0 && self.mode == MmapMode::ReadWrite => {
                Some(*size)
            }
            _ => {
                self.check_not_empty(info.len)?;
                None
            }
        };
        let protection = self.protection();
        let source = Source::new(&target.file, fs_traits, protection);
        let len = size.unwrap_or(info.len);
        // Where that is possible, before anything is changed.
        let early = sys::CAN_MAP_PAST_END.then(|| source.map(len, protection));
        let early = early.transpose()?;
        let mapped = self
            .give_length(&target.file, info.len, size)
            .and_then(|len| {
                let map = match early {
                    Some(map) if len <= map.capacity() => Some(map),
                    _ if len > 0 => Some(source.map(len, protection)?),
                    _ => None,
                };
                Ok((map, len))
            });
        let (map, len) = mapped.map_err(|error| {
            self.give_back(&target.file, size);
            error
        })?;
        if self.touch == TouchHint::Eager && self.creates() {
            // Here, where a file that was created can be taken away again.
            let backing = Backing::File(target.file.clone());
            let touched = map.as_ref().map_or(Ok(()), |map| {
                residency::populate_read(map, &backing, ByteRange::between(0, len))
            });
            if let Err(error) = touched {
                if sys::file_len(&target.file).is_ok_and(|now| now == len) {
                    target.discard();
                }
                return Err(error);
            }
        }
        let open = OpenFile::open(&claim, &source, map, len, protection);
        self.prepare(&open);
        claim.fill(&open);
        target.keep();
        Ok(Opened {
            open: HandleRef::new(open),
            rest: None,
            mode: self.mode,
        })
    }

    /// What is true of the file as soon as any handle has it.
    fn prepare(&self, open: &OpenFile) {
        if self.preallocate {
            open.reserve_on_growth();
        }
        if self.touch_mtime {
            open.touch_mtime_on_flush();
        }
        if let (MmapMode::ReadWrite, Some(path)) = (self.mode, self.how.path()) {
            open.mark_name_unsynced(path);
        }
    }

    /// Gives a file of `old` bytes its size, and says how long it is then: longer, if another
    /// process was faster.
    fn give_length(&self, file: &File, old: u64, size: Option<u64>) -> Result<u64> {
        let Some(size) = size else {
            self.reserve(file, old, false)?;
            return Ok(old);
        };
        if self.preallocate {
            sys::check_free_space(file, size).map_err(MmapIoError::resize_failed)?;
        }
        // Not a file that is empty anyway: ext4 writes a truncated one back when it is closed.
        if old > 0 {
            if self.preallocate && sys::ALLOCATE_KEEPS_BYTES {
                // Whether the file system can do that at all.
                sys::preallocate(file, size - 1, 1).map_err(MmapIoError::resize_failed)?;
            }
            file.set_len(0)?;
        }
        self.reserve(file, size, true)?;
        // Last: as long as the file has no bytes, no other process has a use for it.
        sys::extend(file, size).map_err(MmapIoError::resize_failed)?;
        let len = sys::file_len(file)?;
        check_size(len)?;
        Ok(len)
    }

    /// Empties a file that could not be created; not if another process has given it bytes.
    fn give_back(&self, file: &File, size: Option<u64>) {
        let ours = match size {
            Some(size) if self.creates() => size,
            _ => return,
        };
        // The length comes last where blocks can be reserved without it.
        let is_last = sys::ALLOCATE_KEEPS_BYTES && sys::CAN_MAP_PAST_END;
        let ours = if is_last { 0 } else { ours };
        if sys::file_len(file).is_ok_and(|len| len <= ours) {
            // The error that led here is the one that counts.
            let _ = file.set_len(0);
        }
    }

    /// Reserves the blocks of a file; of one that is `new`, from its end on, if reserving changes
    /// bytes.
    fn reserve(&self, file: &File, len: u64, new: bool) -> Result<()> {
        let start = match sys::ALLOCATE_KEEPS_BYTES {
            _ if !self.preallocate || self.mode != MmapMode::ReadWrite => return Ok(()),
            true => 0,
            false if new => sys::file_len(file)?,
            false => return Ok(()),
        };
        match start < len {
            true => sys::preallocate(file, start, len - start).map_err(MmapIoError::resize_failed),
            false => Ok(()),
        }
    }

    fn check_not_empty(&self, len: u64) -> Result<()> {
        check_not_empty(self.mode, len)
    }

    fn protection(&self) -> Protection {
        match self.mode {
            MmapMode::ReadOnly | MmapMode::CopyOnWrite => Protection::Read,
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
        if let Some((action, range)) = self.rest {
            Queue::submit(&self.open, Op::new(range, action)).await?;
            check_not_empty(self.mode, self.open.len())?;
        }
        Ok(())
    }
}

impl How {
    /// The path that is opened; a descriptor has none.
    fn path(&self) -> Option<&Path> {
        match self {
            Self::Existing(path)
            | Self::Create(path, _)
            | Self::CreateNew(path, _)
            | Self::OpenOrCreate(path, _) => Some(path),
            Self::Descriptor(_) => None,
        }
    }
}

fn check_not_empty(mode: MmapMode, len: u64) -> Result<()> {
    match mode {
        MmapMode::ReadWrite => check_size(len),
        MmapMode::ReadOnly | MmapMode::CopyOnWrite => Ok(()),
    }
}
