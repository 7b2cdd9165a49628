//! One file of the process: its length, its maps, its leases, its queue, its commits.
//!
//! However many handles are open on a file, there is one [`OpenFile`], which they share. It lives
//! until the last handle, view, `Bytes` and queued operation is gone, and its maps with it.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Instant;

use event_listener::{Event, EventListener};

use crate::commit::{Commits, Durable, Extent, Flush};
use crate::error::{MmapIoError, Result};
use crate::flush::{Due, FlushPolicy, Pending, Taken};
use crate::lease::{Kind, Lease, LeaseHost, Leases};
use crate::map::{Backing, Map, Protection, Span};
use crate::offload::{spawn, ROUNDS};
use crate::queue::{apply_writes, Action, Drain, Ended, Op, Outcome, Queue, Site};
use crate::range::{ByteRange, MAX_LEN};
use crate::registry::{Claim, FileKey, Registry};
use crate::residency;
use crate::sys::{self, Advice, Habits};
use crate::timer::{Alarmed, Timer};
use crate::writeback::Writeback;

/// The open files of the process.
pub(crate) static OPEN_FILES: Registry<OpenFile> = Registry::new();

/// Those that are flushed in the background.
static TIMER: Timer<OpenFile> = Timer::new();

/// Mappings of more bytes than this are unmapped on the pool: it takes 4 us a MiB that is
/// resident.
const UNMAP_INLINE: u64 = 4 << 20;

/// A lease that owns its file.
pub(crate) type OwnedLease = Lease<Arc<OpenFile>>;

/// What the handles of one file share.
#[derive(Debug)]
pub(crate) struct OpenFile {
    hot: Hot,
    queue: Queue<OwnedLease>,
    commits: Commits,
    pending: Pending,
    mapped: [OnceLock<Mapped>; 2],
    /// Times the length was cut; counted before the file is.
    cuts: AtomicU64,
    /// Held while a map is made for the current length, or the length grows: the current maps
    /// always cover it.
    remap: Mutex<()>,
    last_gate: Mutex<Option<Instant>>,
    names: Mutex<Names>,
    /// Blocks are reserved when the file grows.
    preallocate: AtomicBool,
    pub(crate) counters: Counters,
    /// Its place in the registry; memory has none.
    key: Option<FileKey>,
    /// Handles, and futures that need none.
    users: AtomicUsize,
    /// Told when the file is closed, or somebody has joined it.
    closed: Event,
    /// For those who have a reference and need a count.
    this: Weak<Self>,
}

/// A handle's part in a file: while there is one, or a view, the file is in use. Jobs that are
/// about to end may hold it open for a moment longer.
#[derive(Debug)]
pub(crate) struct User(Arc<OpenFile>);

impl User {
    pub(crate) fn new(open: Arc<OpenFile>) -> Self {
        // SeqCst: against `check_in_use`, which listens and then looks.
        open.users.fetch_add(1, Ordering::SeqCst);
        open.closed.notify(usize::MAX);
        Self(open)
    }
}

impl Deref for User {
    type Target = Arc<OpenFile>;

    fn deref(&self) -> &Arc<OpenFile> {
        &self.0
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let was_last = self.0.users.fetch_sub(1, Ordering::SeqCst) == 1;
        // What is scheduled is done at once: nobody writes any more, and somebody may wait for the
        // file to be closed.
        let now = Instant::now();
        if was_last && self.0.pending.hurry(now) {
            TIMER.update(&self.0);
        }
    }
}

/// What every read looks at.
#[derive(Debug)]
#[repr(align(128))]
struct Hot {
    leases: Leases,
    /// Length in bytes. Grows after the maps, shrinks before the file.
    len: AtomicU64,
    /// Where the current maps begin, by protection; null where there is none.
    bases: [AtomicPtr<u8>; 2],
    /// The current maps, likewise.
    maps: [AtomicPtr<Map>; 2],
}

/// The maps of one protection.
#[derive(Debug)]
struct Mapped {
    backing: Backing,
    habits: Habits,
    /// The last is the current one. The others were outgrown, and are kept for those who found
    /// them current: each is at most half the size of the next.
    maps: Mutex<Vec<Arc<Map>>>,
}

/// What a durable operation still owes to the file's length and name.
#[derive(Debug, Default)]
struct Names {
    /// The length has changed since it was last made durable.
    length: bool,
    /// The directory of a file that was created here, until its entry is durable.
    directory: Option<File>,
}

/// Counts for `stats`. Relaxed throughout: nothing follows from them.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) writes: AtomicU64,
    pub(crate) write_errors: AtomicU64,
    pub(crate) hops: AtomicU64,
    pub(crate) resident_hits: AtomicU64,
    pub(crate) resident_misses: AtomicU64,
}

impl OpenFile {
    /// A file of `len` bytes, for a claimed place.
    pub(crate) fn open(
        claim: &Claim<Self>,
        file: &Arc<File>,
        len: u64,
        protection: Protection,
    ) -> io::Result<Arc<Self>> {
        let backing = Backing::File(file.clone());
        Self::new(Some(claim.key().clone()), &backing, len, protection)
    }

    /// Memory of `len` bytes, all of them 0, which has no name and is never flushed.
    pub(crate) fn anonymous(len: u64) -> io::Result<Arc<Self>> {
        Self::new(None, &Backing::Memory, len, Protection::ReadWrite)
    }

    fn new(
        key: Option<FileKey>,
        backing: &Backing,
        len: u64,
        protection: Protection,
    ) -> io::Result<Arc<Self>> {
        let opened = Arc::new_cyclic(|this| Self {
            hot: Hot {
                leases: Leases::new(),
                len: AtomicU64::new(len),
                bases: [AtomicPtr::default(), AtomicPtr::default()],
                maps: [AtomicPtr::default(), AtomicPtr::default()],
            },
            queue: Queue::new(),
            commits: Commits::default(),
            pending: Pending::new(backing.file().is_some()),
            mapped: [OnceLock::new(), OnceLock::new()],
            cuts: AtomicU64::new(0),
            remap: Mutex::new(()),
            last_gate: Mutex::new(None),
            names: Mutex::default(),
            preallocate: AtomicBool::new(false),
            counters: Counters::default(),
            key,
            users: AtomicUsize::new(0),
            closed: Event::new(),
            this: this.clone(),
        });
        opened.attach(backing, protection)?;
        Ok(opened)
    }

    /// Maps the file with a protection that nobody has asked for yet, through `file`.
    pub(crate) fn attach(&self, backing: &Backing, protection: Protection) -> io::Result<()> {
        let _remap = ignore_poison(&self.remap);
        let mapped = &self.mapped[protection as usize];
        if mapped.get().is_none() {
            let len = self.len();
            if len == 0 && !sys::CAN_MAP_PAST_END {
                return Ok(());
            }
            let map = Arc::new(Map::new(backing, len, protection)?);
            self.make_current(protection, &map);
            let _ = mapped.set(Mapped {
                backing: backing.clone(),
                habits: backing.file().map(sys::habits).unwrap_or_default(),
                maps: Mutex::new(vec![map]),
            });
            if protection == Protection::ReadWrite {
                // Whoever had created or resized it may have gone before that was durable.
                self.owes_its_length();
            }
        }
        Ok(())
    }

    /// Whether somebody uses the file; if not, an event for when that has changed, or the file is
    /// closed.
    pub(crate) fn check_in_use(&self) -> Result<(), EventListener> {
        let closed = self.closed.listen();
        match self.users.load(Ordering::SeqCst) > 0 || self.hot.leases.count() > 0 {
            true => Ok(()),
            false => Err(closed),
        }
    }

    /// Length in bytes.
    #[inline]
    pub(crate) fn len(&self) -> u64 {
        // Acquire: pairs with the store in `grow`, which comes after that of the maps.
        self.hot.len.load(Ordering::Acquire)
    }

    /// Changes whenever pages of the file are about to go.
    pub(crate) fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::SeqCst)
    }

    /// The address of a range in the current map, if it is inside the file.
    ///
    /// Under a lease on the range the answer stays true: what is inside the file then cannot be
    /// cut off.
    #[inline]
    pub(crate) fn span_within(&self, protection: Protection, range: ByteRange) -> Option<Span> {
        if range.end() > self.len() {
            return None;
        }
        // Acquire: pairs with `make_current`.
        let base = NonNull::new(self.hot.bases[protection as usize].load(Ordering::Acquire))?;
        // SAFETY: the base is that of a map which `mapped` keeps until `self` is dropped, and
        // which covers the length that was read before: maps grow before the length does.
        Some(unsafe { Span::in_map(base, range) })
    }

    /// The same, or the error.
    pub(crate) fn span(&self, protection: Protection, range: ByteRange) -> Result<Span> {
        self.span_within(protection, range)
            .ok_or_else(|| range.out_of_bounds(self.len()))
    }

    /// The current map; `None` only where an empty file cannot be mapped.
    ///
    /// It covers the length that was read before the call.
    #[inline]
    pub(crate) fn map(&self, protection: Protection) -> Option<&Map> {
        // Acquire: pairs with `make_current`, for the contents of the map.
        let map = self.hot.maps[protection as usize].load(Ordering::Acquire);
        // SAFETY: the pointer is null or that of a map in `mapped`, which keeps it until `self`
        // is dropped.
        unsafe { map.as_ref() }
    }

    pub(crate) fn queue(&self) -> &Queue<OwnedLease> {
        &self.queue
    }

    pub(crate) fn commits(&self) -> &Commits {
        &self.commits
    }

    pub(crate) fn pending(&self) -> &Pending {
        &self.pending
    }

    /// Bytes of the address space that are mapped, reservations left out.
    pub(crate) fn mapped_bytes(&self) -> u64 {
        let live = self.mapped.iter().filter(|mapped| mapped.get().is_some());
        live.count() as u64 * self.len()
    }

    pub(crate) fn reserve_on_growth(&self) {
        self.preallocate.store(true, Ordering::Relaxed);
    }

    /// The file was created here: its length and its name in `directory` are not durable yet.
    pub(crate) fn owes_its_name(&self, directory: Option<File>) {
        *ignore_poison(&self.names) = Names {
            length: true,
            directory,
        };
    }

    /// Starts a flush, whether or not somebody waits for it; its error sticks.
    pub(crate) fn start(self: &Arc<Self>, flush: Flush) -> Arc<Flush> {
        let flush = Arc::new(flush);
        self.commits.add(flush.clone(), false);
        if let Some(turn) = Commits::turn(self) {
            turn.spawn();
        }
        flush
    }

    /// Counts what was written through a view, and starts what the policy asks for.
    pub(crate) fn wrote_view(self: &Arc<Self>, range: ByteRange, policy: FlushPolicy) {
        match self.pending.wrote(&[range], policy) {
            Due::Nothing | Due::Alarmed => {}
            Due::Write => drop(self.start(Flush::of(range))),
            Due::Everything => drop(self.start(Flush::of_everything())),
            Due::Alarm(_) => TIMER.update(self),
        }
    }

    /// Takes pages out of every map. They stay in the page cache, and in the file.
    pub(crate) fn unmap_pages(&self, range: ByteRange) -> io::Result<()> {
        for mapped in self.mapped.iter().filter_map(OnceLock::get) {
            let maps = ignore_poison(&mapped.maps).clone();
            for map in maps {
                // Outgrown maps are shorter.
                let range = ByteRange::between(
                    range.start().min(map.capacity()),
                    range.end().min(map.capacity()),
                );
                if !range.is_empty() {
                    let run = map.run(range.to_pages(sys::page_size()));
                    // SAFETY: the pages are inside the live map, which is a shared one of a file.
                    unsafe { sys::advise(run, Advice::DontNeed) }?;
                }
            }
        }
        Ok(())
    }

    /// The descriptor that changes go through.
    fn writable(&self) -> Result<&Mapped> {
        self.mapped[Protection::ReadWrite as usize]
            .get()
            .ok_or(MmapIoError::InvalidMode("no handle may write the file"))
    }

    fn make_current(&self, protection: Protection, map: &Arc<Map>) {
        let current = Arc::as_ptr(map).cast_mut();
        // Release: pairs with the loads in `map` and `span_within`.
        self.hot.maps[protection as usize].store(current, Ordering::Release);
        self.hot.bases[protection as usize].store(map.as_ptr(), Ordering::Release);
    }

    /// Applies writes, or defers them.
    fn write(
        self: &Arc<Self>,
        batch: &[Arc<Op<OwnedLease>>],
        ended: &mut Ended<OwnedLease>,
    ) -> Vec<Arc<Op<OwnedLease>>> {
        let (mapped, map) = match (self.writable(), self.map(Protection::ReadWrite)) {
            (Ok(mapped), Some(map)) => (mapped, map),
            _ => unreachable!("a write comes from a handle that may write a file with bytes"),
        };
        let site = Site {
            backing: &mapped.backing,
            map,
            len: self.len(),
            coherent: match mapped.habits.coherent_writes {
                true => mapped.backing.file(),
                false => None,
            },
            leases: &self.hot.leases,
            pending: &self.pending,
            commits: &self.commits,
            last_gate: &self.last_gate,
        };
        let applied = apply_writes(&site, &self.queue, batch, ended);
        let counters = &self.counters;
        counters.writes.fetch_add(applied.writes, Ordering::Relaxed);
        counters
            .write_errors
            .fetch_add(applied.errors, Ordering::Relaxed);
        if applied.alarm {
            TIMER.update(self);
        }
        applied.deferred
    }

    /// Grants a view or a snapshot; `None` while something is in the way.
    fn lease(self: &Arc<Self>, kind: Kind, range: ByteRange) -> Result<Option<OwnedLease>> {
        range.check(self.len())?;
        if kind == Kind::Exclusive {
            let (mapped, map) = (self.writable()?, self.map(Protection::ReadWrite));
            residency::check_length(mapped.backing.file(), &[range])?;
            if let Some(map) = map {
                residency::populate_write(map, &mapped.backing, std::iter::once(range))?;
            }
        }
        Ok(Lease::try_acquire(self.clone(), kind, range, true)?)
    }

    /// Gives the file a new length; `false` while views of the tail are in the way. Nothing is
    /// done any more if `starts` says that the operation was withdrawn.
    fn resize(self: &Arc<Self>, new_len: u64, starts: impl FnOnce() -> bool) -> Result<bool> {
        let len = self.len();
        let backing = &self.writable()?.backing;
        residency::check_length(backing.file(), &[ByteRange::between(0, len)])?;
        let Some(file) = backing.file() else {
            return Err(MmapIoError::InvalidMode("memory has a fixed size"));
        };
        if new_len >= len {
            if !starts() {
                return Ok(true);
            }
            // Before anybody can write, and flush, past the old end.
            self.owes_its_length();
            self.grow(len, new_len, file)
                .map_err(MmapIoError::ResizeFailed)?;
        } else {
            let tail = ByteRange::between(new_len, len);
            let Some(tail) = Lease::try_acquire(self.clone(), Kind::Exclusive, tail, true)? else {
                return Ok(false);
            };
            if !starts() {
                return Ok(true);
            }
            // The length first: nobody may look past it when the pages go.
            self.hot.len.store(new_len, Ordering::Release);
            // SeqCst: whoever has seen the old length before this, and asks again after a page
            // was gone, sees the count.
            self.cuts.fetch_add(1, Ordering::SeqCst);
            if let Err(error) = file.set_len(new_len) {
                self.hot.len.store(len, Ordering::Release);
                return Err(MmapIoError::ResizeFailed(error));
            }
            self.pending.truncate(new_len);
            self.settle();
            self.owes_its_length();
            drop(tail);
        }
        Ok(true)
    }

    /// Takes the alarm down if there is nothing to flush: it would keep the file, and the timer.
    fn settle(&self) {
        if self.pending.settle() {
            // Whoever flushes or cuts the file holds it.
            if let Some(this) = self.this.upgrade() {
                TIMER.update(&this);
            }
        }
    }

    fn flushed(&self, taken: Taken<'_>, result: io::Result<()>) -> io::Result<()> {
        let result = taken.flushed(result);
        self.settle();
        result
    }

    fn owes_its_length(&self) {
        ignore_poison(&self.names).length = true;
    }

    fn grow(&self, len: u64, new_len: u64, file: &File) -> io::Result<()> {
        file.set_len(new_len)?;
        let reserve = || match self.preallocate.load(Ordering::Relaxed) {
            true if new_len > len => sys::allocate(file, len, new_len - len),
            _ => Ok(()),
        };
        reserve()
            .and_then(|()| self.extend(new_len))
            .map_err(|error| {
                // What cannot be had is not left half done; the file was that long before.
                let _ = file.set_len(len);
                error
            })
    }

    /// Moves the end of the file, which is that long already.
    fn extend(&self, len: u64) -> io::Result<()> {
        let _remap = ignore_poison(&self.remap);
        for protection in [Protection::Read, Protection::ReadWrite] {
            let Some(mapped) = self.mapped[protection as usize].get() else {
                continue;
            };
            if self
                .map(protection)
                .is_some_and(|map| map.capacity() >= len)
            {
                continue;
            }
            let map = Arc::new(Map::new(&mapped.backing, len, protection)?);
            self.make_current(protection, &map);
            ignore_poison(&mapped.maps).push(map);
        }
        // Release: pairs with the load in `len`. Whoever sees the length sees maps that cover it.
        self.hot.len.store(len, Ordering::Release);
        Ok(())
    }

    /// Adopts what somebody else appended.
    fn adopt_length(&self) -> Result<()> {
        let mapped = self.mapped.iter().find_map(OnceLock::get);
        let Some(mapped) = mapped else {
            return Ok(());
        };
        residency::check_length(mapped.backing.file(), &[ByteRange::between(0, self.len())])?;
        let len = mapped
            .backing
            .file()
            .map_or(Ok(self.len()), sys::file_len)?;
        if len > MAX_LEN {
            return Err(MmapIoError::ResizeFailed(
                io::ErrorKind::InvalidInput.into(),
            ));
        }
        if len > self.len() {
            self.extend(len).map_err(MmapIoError::ResizeFailed)?;
        }
        Ok(())
    }
}

impl LeaseHost for OpenFile {
    #[inline]
    fn leases(&self) -> &Leases {
        &self.hot.leases
    }

    fn restart(&self) {
        // Whoever holds a lease holds the file, so that this fails only when nothing is queued.
        if let Some(this) = self.this.upgrade() {
            Queue::restart(&this);
        }
    }
}

impl Drain for OpenFile {
    type Lease = OwnedLease;

    fn queue(&self) -> &Queue<OwnedLease> {
        &self.queue
    }

    fn apply(
        self: &Arc<Self>,
        batch: &[Arc<Op<OwnedLease>>],
        ended: &mut Ended<OwnedLease>,
    ) -> Vec<Arc<Op<OwnedLease>>> {
        let op = match batch {
            [op] => op,
            writes => return self.write(writes, ended),
        };
        let range = op.ranges[0];
        let outcome = match op.action {
            Action::Write(_) | Action::TryWrite(_) => return self.write(batch, ended),
            Action::Lease(kind) => self
                .lease(kind, range)
                .map(|lease| lease.map(Outcome::Leased)),
            Action::FirstLength if self.len() > 0 => Ok(Some(Outcome::Done)),
            Action::Resize | Action::FirstLength => self
                .resize(range.start(), || self.queue.begin(op).is_some())
                .map(|resized| resized.then_some(Outcome::Done)),
            Action::AdoptLength => self.adopt_length().map(|()| Some(Outcome::Done)),
        };
        match outcome.transpose() {
            Some(outcome) => {
                self.queue.finish(op, outcome, ended);
                Vec::new()
            }
            None => batch.to_vec(),
        }
    }

    fn lingers(&self) -> bool {
        self.commits.lingers()
    }

    fn is_left_to_do(&self) -> bool {
        self.commits.are_due()
    }

    fn hand_on(self: &Arc<Self>) {
        if let Some(turn) = Commits::turn(self) {
            turn.spawn();
        }
    }

    fn finish(self: Arc<Self>) {
        // The drain's own thread is awake, and saves a durable write the second hop.
        if let Some(turn) = Commits::turn(&self) {
            drop(self);
            turn.run(ROUNDS);
        }
    }
}

impl Alarmed for OpenFile {
    fn alarm(&self) -> Option<Instant> {
        self.pending.alarm()
    }

    fn ring(self: &Arc<Self>, at: Instant) {
        if !self.pending.ring(at) {
            return;
        }
        self.commits.add(Arc::new(Flush::of_everything()), true);
        if let Some(turn) = Commits::turn(self) {
            // Once, here: a thread for each file that is due would be many.
            turn.run(1);
        }
    }
}

impl Durable for OpenFile {
    fn commits(&self) -> &Commits {
        &self.commits
    }

    fn flush(&self, extent: Extent<'_>) -> io::Result<()> {
        let mapped = self.mapped[Protection::ReadWrite as usize].get();
        let file = mapped.and_then(|mapped| Some((mapped.habits, mapped.backing.file()?)));
        let Some((habits, file)) = file else {
            return Ok(());
        };
        let owed = std::mem::take(&mut *ignore_poison(&self.names));
        let len = self.len();
        let inside =
            |range: &ByteRange| ByteRange::between(range.start().min(len), range.end().min(len));
        let ranges: Vec<ByteRange> = match extent {
            Extent::Everything => vec![ByteRange::between(0, len)],
            Extent::Ranges(ranges) => ranges.iter().map(inside).collect(),
        };
        let writeback = Writeback::of(ranges, habits);
        let covers = writeback.as_ref().map_or(&[][..], Writeback::covers);
        let taken = self.pending.take(covers);
        let result = if owed.length || owed.directory.is_some() {
            // All of the file: no call makes the length durable and leaves bytes alone.
            sys::sync_file(file).and_then(|()| {
                let directory = owed.directory.as_ref();
                directory.map_or(Ok(()), sys::sync_directory)
            })
        } else {
            match (&writeback, self.map(Protection::ReadWrite)) {
                (Some(writeback), Some(map)) => writeback.run(map, file),
                _ => Ok(()),
            }
        };
        self.flushed(taken, result)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            OPEN_FILES.remove(key, self);
        }
        self.closed.notify(usize::MAX);
        if self.mapped_bytes() > UNMAP_INLINE {
            let mapped = std::mem::take(&mut self.mapped);
            spawn(move || drop(mapped));
        }
    }
}

/// Opens the directory of a file that was created, for its name to become durable. `None` where
/// it may not be read: then the name becomes durable as the file system sees fit.
pub(crate) fn directory_of(path: &Path) -> io::Result<Option<File>> {
    match sys::open_directory_of(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        directory => directory,
    }
}

fn ignore_poison<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asserted here because the raw pointers in [`Hot`] are to maps, which are both.
const _: () = {
    const fn assert<T: Send + Sync + Deref>() {}
    assert::<Arc<OpenFile>>();
};

#[cfg(all(test, not(mmap_io_loom)))]
mod tests {
    use super::*;
    use crate::file::MemoryMappedFile;

    /// Waits until no job holds the file any more, and so many others do.
    fn wait_for_references(open: &Arc<OpenFile>, count: usize) {
        let start = Instant::now();
        while Arc::strong_count(open) != count {
            assert!(
                start.elapsed().as_secs() < 60,
                "held for an alarm, or by none"
            );
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_timer_holds_a_file_only_while_there_is_something_to_flush() {
        let dir = tempfile::tempdir().unwrap();
        futures_lite::future::block_on(async {
            let file = MemoryMappedFile::builder(dir.path().join("data"))
                .size(20_000)
                .flush_policy(FlushPolicy::EveryMillis(3_600_000))
                .create()
                .await
                .unwrap();
            let open: &Arc<OpenFile> = &file.handle.open;
            let idle = Arc::strong_count(open);
            let dirty = || async {
                file.update_region(10_000, b"dirty").await.unwrap();
                wait_for_references(open, idle + 1);
            };
            // The first flush is of the whole file, the second of its pages.
            for _ in 0..2 {
                dirty().await;
                file.flush().await.unwrap();
                wait_for_references(open, idle);
            }
            dirty().await;
            file.flush_range(10_000, 4).await.unwrap();
            wait_for_references(open, idle + 1);
            file.resize(10_000).await.unwrap();
            wait_for_references(open, idle);
        });
    }
}
