//! Opens and creates files: from a path to a descriptor, and from a descriptor to an [`OpenFile`].
//!
//! A file is opened as it is, identified, looked up among the files that are open in this process,
//! and only then changed: nothing is truncated before the file is known to be unused here. And
//! nothing is truncated before every check that can fail has succeeded.
//!
//! Other processes open, grow and shrink the same files at the same time. So an opening that did
//! not create the file itself (`O_EXCL`) only adds to the file, by a call that cannot cut it; it
//! accepts the length that results, and cleans nothing up if it fails. The kernel resolves links,
//! and decides which of them may be followed: each try makes one call of `open`.

mod target;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

pub(crate) use self::target::*;
use crate::advisory_lock::{AdvisoryLock, Lock};
use crate::descriptor::Descriptor;
use crate::error::{MmapIoError, Result};
use crate::map::{Backing, Protection, RESERVES};
use crate::mode::{MmapMode, TouchHint};
use crate::open_file::{HandleRef, OpenFile, ReliedLock, Source};
use crate::queue::{Action, Op, Queue};
use crate::range::{check_size, ByteRange, MAX_LEN};
use crate::registry::{Claim, Found};
use crate::residency;
use crate::sys::{self, Created, FileInfo, FsTraits};
use crate::wakers::EventListener;

/// A request to open or create a file, with the builder's options.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    pub(crate) open_mode: OpenMode,
    pub(crate) mode: MmapMode,
    pub(crate) preallocate: bool,
    pub(crate) touch_mtime: bool,
    pub(crate) touch: TouchHint,
    pub(crate) huge_pages: bool,
    pub(crate) advisory_lock: Option<Lock>,
    /// The permissions of a file that is created, before the `umask`.
    pub(crate) permissions: u32,
}

/// Which file is opened, and what happens if it exists and if it does not.
#[derive(Clone, Debug)]
pub(crate) enum OpenMode {
    /// Opens the file, which must exist.
    Existing(PathBuf),
    /// Empties or creates the file, and gives it this length in bytes.
    Create(PathBuf, u64),
    /// Creates the file with this length in bytes; it must not exist.
    CreateNew(PathBuf, u64),
    /// Opens the file, or creates it; an empty file gets this length in bytes.
    OpenOrCreate(PathBuf, u64),
    /// Maps the file of a descriptor.
    Descriptor(Arc<Descriptor>),
}

/// The outcome of one try to open a file.
pub(crate) enum Attempt<F = Arc<OpenFile>> {
    Opened(F, Opened),
    /// The same file is being opened or closed here: after the event, try again.
    RetryAfter(EventListener, RetryState),
}

impl Attempt {
    /// Makes the caller a user of the file. On the pool, a job whose future may have been dropped
    /// must not be one: the next creation of the file would be refused.
    pub(crate) fn into_use(self) -> Attempt<HandleRef> {
        match self {
            Self::Opened(open, opened) => Attempt::Opened(HandleRef::new(open), opened),
            Self::RetryAfter(event, state) => Attempt::RetryAfter(event, state),
        }
    }
}

/// What an attempt that must be repeated has opened. If the next attempt fails, a file that the first
/// one created is removed, like any other whose creation fails: if it is still empty. It is kept if
/// there is no next attempt, because the future was dropped.
#[derive(Debug)]
pub(crate) struct RetryState {
    file: Arc<Descriptor>,
    created: Option<Created>,
    is_new: bool,
}

/// How a file was opened.
pub(crate) struct Opened {
    /// A change of the length that the file's queue has still to make, and the range it is about.
    pending_resize: Option<(Action, ByteRange)>,
    mode: MmapMode,
    /// The advisory lock that was asked for. It is released if the opening fails after all.
    lock: Option<ReliedLock>,
    /// Whether this opening created the file.
    pub(crate) is_new: bool,
}

impl Opening {
    /// Fails if the mode does not permit the request, or no file can have the size. Does not ask
    /// the file system.
    pub(crate) fn check(&self) -> Result<()> {
        if let OpenMode::CreateNew(..) = self.open_mode {
            self.mode.require_write()?;
        }
        match self.open_mode {
            OpenMode::Create(_, size) | OpenMode::CreateNew(_, size) => check_size(size),
            OpenMode::OpenOrCreate(..) | OpenMode::Existing(_) | OpenMode::Descriptor(_) => Ok(()),
        }
    }

    /// Tries to open the file; `retry` holds what an earlier attempt opened. Blocks.
    pub(crate) fn attempt(&self, mut retry: Option<RetryState>) -> Result<Attempt> {
        for tries_left in (0..TRIES).rev() {
            let target = match retry.take() {
                // By its descriptor: the path may lead to another file by now.
                Some(state) => state.into(),
                None => self.open_target()?,
            };
            let (info, fs_traits) = target.identify()?;
            if info.len > MAX_LEN {
                check_size(info.len)?;
            }
            if let (0, OpenMode::OpenOrCreate(_, size)) = (info.len, &self.open_mode) {
                check_size(*size)?;
            }
            match find_open(&target, &info, fs_traits) {
                Found::Claimed(opening) => return Ok(Attempt::RetryAfter(opening, target.into())),
                Found::Open(open) => {
                    if self.creates() || self.check_lock(&open).is_err() {
                        if let Err(closed) = open.check_in_use() {
                            return Ok(Attempt::RetryAfter(closed, target.into()));
                        }
                    }
                    let is_new = target.is_new;
                    let joined = self.join(&open, &target.keep(), &info, fs_traits);
                    return joined.map(|opened| Attempt::Opened(open, Opened { is_new, ..opened }));
                }
                Found::Vacant(claim) => {
                    // Another holder of the claim may have changed the file, or removed it.
                    let info = sys::file_info(&target.file)?;
                    if matches!(self.open_mode, OpenMode::CreateNew(..)) && info.len > 0 {
                        // Or another process has written to the file since it was created here.
                        return Err(MmapIoError::Io(io::ErrorKind::AlreadyExists.into()));
                    }
                    let path = self.open_mode.path().filter(|_| tries_left > 0);
                    if !path.is_some_and(|path| is_gone(&info, path)) {
                        return self.open_first(claim, target, &info, fs_traits);
                    }
                }
            }
        }
        unreachable!("the last try accepts the file as it is")
    }

    /// Whether the request is refused if another handle of this process has the file.
    fn creates(&self) -> bool {
        matches!(
            self.open_mode,
            OpenMode::Create(..) | OpenMode::CreateNew(..)
        )
    }

    fn open_target(&self) -> Result<Target> {
        if let Some(target) = self.share()? {
            return Ok(target);
        }
        let target = match &self.open_mode {
            OpenMode::Existing(path) => Target::existing(path, self.mode)?,
            OpenMode::Create(path, size) => {
                self.check_room(path, *size)?;
                Target::create(path, self.permissions)?
            }
            OpenMode::CreateNew(path, size) => {
                self.check_room(path, *size)?;
                Target::create_new(path, self.permissions)?
            }
            OpenMode::OpenOrCreate(path, size) => {
                match check_size(*size).and_then(|()| self.check_room(path, *size)) {
                    Ok(()) => Target::open_or_create(path, self.permissions)?,
                    // The file may exist, and have a size of its own.
                    Err(problem) => match Target::existing(path, self.mode) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {
                            return Err(problem);
                        }
                        target => target?,
                    },
                }
            }
            OpenMode::Descriptor(file) => {
                self.check_access(file)?;
                Target {
                    file: file.clone(),
                    created: None,
                    is_new: false,
                }
            }
        };
        Ok(target)
    }

    /// Returns the descriptor of the file that the path leads to, if this process has mapped the
    /// file already. Nothing is opened then: a further descriptor would have to be closed again,
    /// and that would release the locks that the program holds on the file (`fcntl(2)`, `F_SETLK`).
    fn share(&self) -> Result<Option<Target>> {
        let (path, intent) = match &self.open_mode {
            OpenMode::Existing(path) if self.mode != MmapMode::ReadWrite => (path, Intent::Read),
            OpenMode::Existing(path) | OpenMode::Create(path, _) => (path, Intent::Write),
            OpenMode::OpenOrCreate(path, _) => (path, Intent::WriteOrCreate),
            OpenMode::CreateNew(..) | OpenMode::Descriptor(_) => return Ok(None),
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
            is_new: false,
        }))
    }

    /// Fails if a file of `size` bytes could not be written, mapped or reserved. Called before the
    /// file is created.
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

    /// Adds a handle to a file that is already open in this process.
    fn join(
        &self,
        open: &Arc<OpenFile>,
        file: &Arc<Descriptor>,
        info: &FileInfo,
        fs_traits: FsTraits,
    ) -> Result<Opened> {
        let len = open.len();
        let mut pending_resize = (info.len != len || open.has_lost_pages())
            .then_some((Action::AdoptFileLen, ByteRange::EMPTY));
        match &self.open_mode {
            OpenMode::Create(..) | OpenMode::CreateNew(..) => {
                return Err(ByteRange::between(0, len).busy())
            }
            // If no file can have the size, the file has bytes, as its check has found.
            OpenMode::OpenOrCreate(_, size)
                if len.min(info.len) == 0
                    && self.mode == MmapMode::ReadWrite
                    && check_size(*size).is_ok() =>
            {
                let past_end = ByteRange::between(*size, u64::MAX);
                pending_resize = Some((Action::SetLenIfEmpty, past_end));
            }
            // The file's length was read before its creation had ended, or another process has
            // changed it since. The queue finds the true length, in order with other operations.
            _ if pending_resize.is_some() => {}
            _ => self.check_not_empty(len)?,
        }
        // Before anything is changed.
        let lock = self.lock_joined(open, file, fs_traits)?;
        // Before the file is mapped: a map stays until the file is closed.
        self.reserve(file, info.len, false)?;
        let source = Source::new(file, fs_traits, self.protection());
        open.attach(source, self.protection())?;
        self.prepare(open);
        Ok(Opened {
            pending_resize,
            mode: self.mode,
            lock,
            is_new: false,
        })
    }

    /// Fails if this process has a lock on an open file that is weaker than the requested one.
    fn check_lock(&self, open: &OpenFile) -> Result<()> {
        self.advisory_lock
            .map_or(Ok(()), |asked| open.check_lock(asked))
    }

    /// Takes the requested lock on a file that is already open in this process, unless the process
    /// has it.
    fn lock_joined(
        &self,
        open: &Arc<OpenFile>,
        file: &File,
        fs_traits: FsTraits,
    ) -> Result<Option<ReliedLock>> {
        let Some(asked) = self.advisory_lock else {
            return Ok(None);
        };
        let take = || self.take_lock(asked, file, fs_traits);
        open.rely_on_lock(asked, take).map(Some)
    }

    /// Takes the requested lock on a file that is not open in this process.
    fn lock_first(
        &self,
        claim: &Claim<OpenFile>,
        file: &File,
        fs_traits: FsTraits,
    ) -> Result<Option<AdvisoryLock>> {
        let Some(asked) = self.advisory_lock else {
            return Ok(None);
        };
        loop {
            // Looked at before the lock is tried: if a handle is being dropped at this moment, the
            // lock may be one that it still has.
            let is_closing = claim.is_closing();
            match self.take_lock(asked, file, fs_traits) {
                Err(error) if is_closing && is_conflict(&error) => thread::yield_now(),
                taken => return taken.map(Some),
            }
        }
    }

    fn take_lock(&self, asked: Lock, file: &File, fs_traits: FsTraits) -> Result<AdvisoryLock> {
        let path = self.open_mode.path();
        let path = path.expect("a lock can be asked for only by path");
        let writes = self.mode == MmapMode::ReadWrite;
        AdvisoryLock::take(asked, file, path, writes, fs_traits.is_local)
    }

    /// Opens a file that is not open in this process, and puts it into the registry.
    fn open_first(
        &self,
        claim: Claim<OpenFile>,
        target: Target,
        info: &FileInfo,
        fs_traits: FsTraits,
    ) -> Result<Attempt> {
        let size = match &self.open_mode {
            OpenMode::Create(_, size) | OpenMode::CreateNew(_, size) => Some(*size),
            OpenMode::OpenOrCreate(_, size)
                if info.len == 0 && self.mode == MmapMode::ReadWrite =>
            {
                // The file may have become empty since its check.
                check_size(*size)?;
                Some(*size)
            }
            _ => {
                self.check_not_empty(info.len)?;
                None
            }
        };
        // Before anything is changed.
        let lock = match self.lock_first(&claim, &target.file, fs_traits) {
            Err(error) if is_conflict(&error) => {
                // Not removed, even if it was created here: another process uses it.
                target.keep();
                return Err(error);
            }
            lock => lock?,
        };
        let protection = self.protection();
        let source = Source::new(&target.file, fs_traits, protection);
        let len = size.unwrap_or(info.len);
        // Where a map may reach past the end, it is made before the file is changed.
        let can_be_early = RESERVES || (sys::CAN_MAP_PAST_END && len > 0);
        let early = can_be_early.then(|| source.map(len, protection));
        let early = early.transpose()?;
        let mapped = self
            .give_length(&target.file, info.len, size)
            .and_then(|len| {
                let map = match early {
                    Some(map) if len <= map.capacity() => Some(map),
                    _ if len > 0 => Some(source.map(len, protection)?),
                    _ => None,
                };
                if let (Some(map), true) = (&map, self.huge_pages) {
                    // Before a page is touched.
                    map.use_huge_pages();
                }
                Ok((map, len))
            });
        let (map, len) = mapped.map_err(|error| {
            self.give_back(&target.file, size);
            error
        })?;
        if self.touch == TouchHint::Eager && self.creates() {
            // Here, where a file that this call created can still be removed.
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
        let lock = self.advisory_lock.zip(lock);
        let lock = lock.map(|(asked, lock)| open.rely_on_lock(asked, || Ok(lock)));
        let lock = lock.transpose()?;
        self.prepare(&open);
        claim.fill(&open);
        let is_new = target.is_new;
        target.keep();
        let opened = Opened {
            pending_resize: None,
            mode: self.mode,
            lock,
            is_new,
        };
        Ok(Attempt::Opened(open, opened))
    }

    /// Applies the options that hold for the file as soon as one handle asked for them.
    fn prepare(&self, open: &OpenFile) {
        if self.preallocate {
            open.reserve_on_growth();
        }
        if self.touch_mtime {
            open.touch_mtime_on_flush();
        }
        if self.huge_pages {
            open.use_huge_pages();
        }
        if let (MmapMode::ReadWrite, Some(path)) = (self.mode, self.open_mode.path()) {
            open.mark_name_unsynced(path);
        }
    }

    /// Gives a file of `old` bytes its size, and returns its length after that, which is larger
    /// than `size` if another process has extended the file first.
    fn give_length(&self, file: &File, old: u64, size: Option<u64>) -> Result<u64> {
        let Some(size) = size else {
            self.reserve(file, old, false)?;
            return Ok(old);
        };
        if self.preallocate {
            sys::check_free_space(file, size).map_err(MmapIoError::resize_failed)?;
        }
        // Not if the file is empty: ext4 writes a file back on close once it has been truncated.
        if old > 0 {
            if self.preallocate && sys::ALLOCATE_KEEPS_BYTES {
                // Fails before the truncation if the file system cannot reserve blocks.
                sys::preallocate(file, size - 1, 1).map_err(MmapIoError::resize_failed)?;
            }
            file.set_len(0)?;
        }
        self.reserve(file, size, true)?;
        // Last: no other process uses the file as long as it is empty.
        sys::extend(file, size).map_err(MmapIoError::resize_failed)?;
        let len = sys::file_len(file)?;
        check_size(len)?;
        Ok(len)
    }

    /// Empties a file whose creation has failed, unless another process has extended it.
    fn give_back(&self, file: &File, size: Option<u64>) {
        let ours = match size {
            Some(size) if self.creates() => size,
            _ => return,
        };
        // Where blocks can be reserved past the end, the length is set last, so that a failed
        // creation has set none.
        let is_last = sys::ALLOCATE_KEEPS_BYTES && sys::CAN_MAP_PAST_END;
        let ours = if is_last { 0 } else { ours };
        if sys::file_len(file).is_ok_and(|len| len <= ours) {
            // The caller reports the error of the creation.
            let _ = file.set_len(0);
        }
    }

    /// Reserves the blocks of a file of `len` bytes. Where reserving writes zeroes, this does
    /// nothing to a file with content, and starts at the end of a file that is `new`.
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
            // Private pages are mapped after the file was opened like this.
            MmapMode::ReadOnly | MmapMode::CopyOnWrite => Protection::Read,
            MmapMode::ReadWrite => Protection::ReadWrite,
        }
    }
}

impl Opened {
    /// Makes the pending change of the length, through the queue, in order with the file's other
    /// operations.
    pub(crate) async fn finish(&self, open: &Arc<OpenFile>) -> Result<()> {
        if let Some((action, range)) = self.pending_resize {
            Queue::submit(open, Op::new(range, action)).await?;
            check_not_empty(self.mode, open.len())?;
        }
        Ok(())
    }

    /// Keeps the advisory lock for as long as the file is open: the opening has succeeded.
    pub(crate) fn keep_lock(self) {
        if let Some(lock) = self.lock {
            lock.keep();
        }
    }
}

impl OpenMode {
    /// Returns the path that is opened; `None` for a descriptor.
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

/// Whether the error says that another process has locked the file.
fn is_conflict(error: &MmapIoError) -> bool {
    matches!(error, MmapIoError::LockFailed(cause) if cause.kind() == io::ErrorKind::WouldBlock)
}

fn check_not_empty(mode: MmapMode, len: u64) -> Result<()> {
    match mode {
        MmapMode::ReadWrite | MmapMode::CopyOnWrite => check_size(len),
        MmapMode::ReadOnly => Ok(()),
    }
}
