//! One file of the process: its length, its maps, its leases, its queue, its commits.
//!
//! However many handles are open on a file, there is one [`OpenFile`], which they share. It lives
//! until the last handle, view, `Bytes` and queued operation is gone, and its maps with it.

mod apply;
mod durability;
mod resize;
mod write_plan;

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{fence, AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use self::durability::TIMER;
use crate::commit::Commits;
use crate::descriptor::Descriptor;
use crate::error::{MmapIoError, Result};
use crate::flush::Pending;
use crate::lease::{Asks, Kind, Lease, LeaseHost, Leases};
use crate::map::{Backing, Map, Protection, Span};
use crate::offload::release;
use crate::queue::Queue;
use crate::range::{ByteRange, MAX_LEN};
use crate::registry::{Claim, Registry};
use crate::residency;
use crate::sync::lock;
use crate::sys::{self, Advice, FileId, Habits};
use crate::wakers::{Event, EventListener};

/// The open files of the process.
pub(crate) static OPEN_FILES: Registry<OpenFile> = Registry::new();

/// Mappings of more bytes than this are unmapped on the pool: it takes 4 us a MiB that is
/// resident.
const UNMAP_INLINE: u64 = 4 << 20;

/// How long an opening that has to replace a map waits for the views of a moment.
const BRIEFLY: Duration = Duration::from_millis(1);

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
    /// Views may show bytes up to here that another process has cut off; 0 if none was noticed.
    shown_end: AtomicU64,
    /// What another process has cut off before it was durable; told once.
    lost: Mutex<Option<MmapIoError>>,
    /// Held while a map is made for the current length, or the length grows: the current maps
    /// always cover it.
    remap: Mutex<()>,
    last_gate: Mutex<Option<Instant>>,
    owed: Mutex<Owed>,
    /// Blocks are reserved when the file grows.
    preallocate: AtomicBool,
    /// Its time of modification is set by each flush of something that was written.
    touch_mtime: AtomicBool,
    /// A caller has the address of the bytes, to write to whenever it likes.
    written_by_address: AtomicBool,
    pub(crate) counters: Counters,
    /// Its place in the registry; memory has none.
    id: Option<FileId>,
    /// When the file was born that the read-only map shows, where it may be copied up.
    shown: Mutex<Option<SystemTime>>,
    /// Handles, and futures that need none.
    users: AtomicUsize,
    /// Told when the file is closed, or has a user or a view that it did not have.
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
        open.closed.notify();
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
        if sys::is_forked() {
            // In a forked child there is nobody to tell, and a lock may never be free.
            return;
        }
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
}

/// The maps of one protection.
#[derive(Debug)]
struct Mapped {
    backing: Backing,
    habits: Habits,
    /// The last is the current one. The others were outgrown, and are kept for the views that may
    /// lie in them.
    maps: Mutex<Vec<Arc<Map>>>,
}

impl Mapped {
    fn current(&self) -> Option<Arc<Map>> {
        lock(&self.maps).last().cloned()
    }
}

/// A descriptor to map a file through.
#[derive(Debug)]
pub(crate) struct Source {
    file: Arc<Descriptor>,
    habits: Habits,
    /// When the file was born that a map shows, where that is worth knowing.
    born: Option<SystemTime>,
}

impl Source {
    /// The descriptor itself; where files are copied up, a newer one for reading, since `file` may
    /// have been opened before that.
    pub(crate) fn new(file: &Arc<Descriptor>, habits: Habits, protection: Protection) -> Self {
        let mut source = Self {
            file: file.clone(),
            habits,
            born: None,
        };
        if habits.copies_up && protection == Protection::Read {
            // First the question, then the descriptor: a copy that is made in between is seen
            // as one that was made after.
            source.born = born(file);
            if let Ok(newer) = sys::reopen(file) {
                source.file = Descriptor::new(newer);
            }
        }
        if habits.in_memory || (habits.is_local && protection == Protection::Read) {
            source.file.writes_nothing_out();
        }
        source
    }

    /// Maps the first `len` bytes.
    pub(crate) fn map(&self, len: u64, protection: Protection) -> io::Result<Map> {
        Map::new(&Backing::File(self.file.clone()), len, protection)
    }
}

fn born(file: &File) -> Option<SystemTime> {
    sys::file_info(file).ok()?.born
}

/// What a durable operation still owes to the file's length and names.
#[derive(Debug, Default)]
struct Owed {
    /// The length has changed since it was last made durable.
    length: bool,
    /// The paths by which the file was opened for writing since its names were made durable.
    names: Vec<PathBuf>,
}

impl Owed {
    fn is_nothing(&self) -> bool {
        !self.length && self.names.is_empty()
    }
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
    /// A file of `len` bytes, for a claimed place, mapped through `source`; not mapped if it is
    /// empty, and the platform cannot do that.
    pub(crate) fn open(
        claim: &Claim<Self>,
        source: &Source,
        map: Option<Map>,
        len: u64,
        protection: Protection,
    ) -> Arc<Self> {
        let opened = Self::new(Some(claim.id()), len);
        opened.install(map, source, protection);
        opened
    }

    /// Memory of `len` bytes, all of them 0, which has no name and is never flushed.
    pub(crate) fn anonymous(len: u64) -> io::Result<Arc<Self>> {
        let map = Map::new(&Backing::Memory, len, Protection::ReadWrite)?;
        let opened = Self::new(None, len);
        let backing = Backing::Memory;
        opened.set_map(Some(map), backing, Habits::default(), Protection::ReadWrite);
        Ok(opened)
    }

    fn new(id: Option<FileId>, len: u64) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            hot: Hot {
                leases: Leases::new(),
                len: AtomicU64::new(len),
                bases: [AtomicPtr::default(), AtomicPtr::default()],
            },
            queue: Queue::new(),
            commits: Commits::default(),
            pending: Pending::new(id.is_some()),
            mapped: [OnceLock::new(), OnceLock::new()],
            cuts: AtomicU64::new(0),
            shown_end: AtomicU64::new(0),
            lost: Mutex::default(),
            remap: Mutex::new(()),
            last_gate: Mutex::new(None),
            owed: Mutex::default(),
            preallocate: AtomicBool::new(false),
            touch_mtime: AtomicBool::new(false),
            written_by_address: AtomicBool::new(false),
            counters: Counters::default(),
            id,
            shown: Mutex::default(),
            users: AtomicUsize::new(0),
            closed: Event::new(),
            this: this.clone(),
        })
    }

    /// Maps the file with a protection that no handle has asked for yet, through `source`; where a
    /// file is copied up when it is first written, through the descriptor that writes.
    ///
    /// # Errors
    ///
    /// `Busy` where the file was copied up, and a view shows what it was before.
    pub(crate) fn attach(&self, source: Source, protection: Protection) -> Result<()> {
        let _remap = lock(&self.remap);
        let source = match self.mapped[Protection::ReadWrite as usize].get() {
            Some(Mapped {
                backing: Backing::File(file),
                ..
            }) if source.habits.copies_up => Source {
                file: file.clone(),
                ..source
            },
            _ => source,
        };
        if source.habits.copies_up {
            self.follow_copy(&source, protection)?;
        }
        let len = self.len();
        if self.mapped[protection as usize].get().is_none() {
            let can_map = len > 0 || sys::CAN_MAP_PAST_END;
            let map = can_map.then(|| source.map(len, protection)).transpose()?;
            self.install(map, &source, protection);
        }
        Ok(())
    }

    /// Replaces the read-only map if the file was copied up since its descriptor was opened: no
    /// write through this crate would ever be seen in it.
    ///
    /// Views of it that only look would not notice, since writes wait for them; those that are there
    /// to see changes would. So there may be none.
    fn follow_copy(&self, source: &Source, protection: Protection) -> Result<()> {
        let (mapped, map) = (
            self.mapped[Protection::Read as usize].get(),
            self.map(Protection::Read),
        );
        let (Some(mapped), Some(map)) = (mapped, map) else {
            return Ok(());
        };
        if matches!(map.backing(), Backing::File(file) if Arc::ptr_eq(file, &source.file)) {
            return Ok(());
        }
        let now = match protection {
            Protection::Read => source.born,
            Protection::ReadWrite => born(&source.file),
        };
        let shown = *lock(&self.shown);
        let is_current = match (shown, now) {
            (Some(shown), Some(now)) => shown == now,
            // It cannot be told: a descriptor that may write has copied the file up for certain.
            _ => protection == Protection::Read,
        };
        if is_current {
            return Ok(());
        }
        let map = Arc::new(source.map(self.len(), Protection::Read)?);
        let _exclusive = self.lease_everything()?;
        self.make_current(Protection::Read, &map);
        lock(&mapped.maps).push(map);
        *lock(&self.shown) = now;
        Ok(())
    }

    /// An exclusive lease on the whole file; waits for views that are gone in a moment.
    fn lease_everything(&self) -> Result<Lease<&Self>> {
        let everything = ByteRange::between(0, MAX_LEN);
        let began = Instant::now();
        loop {
            if let Some(lease) = Lease::try_acquire(self, Kind::Exclusive, everything, Asks::Queue)?
            {
                return Ok(lease);
            }
            if began.elapsed() > BRIEFLY {
                return Err(ByteRange::between(0, self.len()).busy());
            }
            thread::yield_now();
        }
    }

    fn install(&self, map: Option<Map>, source: &Source, protection: Protection) {
        if protection == Protection::Read {
            *lock(&self.shown) = source.born;
        }
        let backing = Backing::File(source.file.clone());
        self.set_map(map, backing, source.habits, protection);
        if protection == Protection::ReadWrite {
            // Another process, or this one, may have created or resized it without making that
            // durable.
            self.owes_its_length();
        }
    }

    fn set_map(&self, map: Option<Map>, backing: Backing, habits: Habits, protection: Protection) {
        let map = map.map(Arc::new);
        if let Some(map) = &map {
            self.make_current(protection, map);
        }
        let _ = self.mapped[protection as usize].set(Mapped {
            backing,
            habits,
            maps: Mutex::new(map.into_iter().collect()),
        });
    }

    /// The descriptor through which the file was first mapped with a protection, for as long as the
    /// file is open: that of every handle that uses it so.
    ///
    /// # Panics
    ///
    /// For memory, and before [`attach`](Self::attach).
    pub(crate) fn descriptor(&self, protection: Protection) -> &Arc<Descriptor> {
        let descriptor = self.descriptor_if_mapped(protection);
        descriptor.expect("a handle is attached, and memory offers nothing that needs a file")
    }

    /// The same, if there is one.
    pub(crate) fn descriptor_if_mapped(&self, protection: Protection) -> Option<&Arc<Descriptor>> {
        match &self.mapped[protection as usize].get()?.backing {
            Backing::File(file) => Some(file),
            Backing::Memory => None,
        }
    }

    /// Whether `file` is a descriptor of this file. Both are asked now, since what tells files
    /// apart may change. Blocks where the file system does.
    pub(crate) fn is_file(&self, file: &File) -> bool {
        let mapped = self.mapped.iter().find_map(OnceLock::get);
        let Some(held) = mapped.and_then(|mapped| mapped.backing.file()) else {
            return true;
        };
        match (sys::file_info(held), sys::file_info(file)) {
            (Ok(held), Ok(file)) => {
                let born = held.born.zip(file.born);
                held.id == file.id && born.map_or(true, |(held, file)| held == file)
            }
            // In doubt it is, and shares the leases.
            _ => true,
        }
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
    /// Under a lease on the range the answer stays true: what is inside the file then is not cut off,
    /// unless another process cuts it.
    #[inline]
    pub(crate) fn span_within(&self, protection: Protection, range: ByteRange) -> Option<Span> {
        if range.end() > self.len() {
            return None;
        }
        // Acquire: pairs with `make_current`.
        let base = NonNull::new(self.hot.bases[protection as usize].load(Ordering::Acquire))?;
        // SAFETY: the base is that of a map which covers the length that was read before, since maps
        // grow before the length does. The map lives for as long as a lease that was there before
        // this call: see `forget_outgrown`.
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
    pub(crate) fn map(&self, protection: Protection) -> Option<Arc<Map>> {
        self.mapped[protection as usize].get()?.current()
    }

    /// Where the current map begins; null where there is none.
    pub(crate) fn base(&self, protection: Protection) -> *mut u8 {
        self.hot.bases[protection as usize].load(Ordering::Acquire)
    }

    /// Unmaps what was outgrown, if no view may lie there. Blocks.
    ///
    /// 1. A lease that is taken before the fence is found by the count, and everything stays.
    /// 2. One that is taken after the fence finds the address of the current map, which was stored
    ///    before: whoever takes a lease looks for the address afterwards.
    fn forget_outgrown(&self) -> io::Result<()> {
        let is_outgrown = |mapped: &Mapped| lock(&mapped.maps).len() > 1;
        if !self
            .mapped
            .iter()
            .filter_map(OnceLock::get)
            .any(is_outgrown)
        {
            return Ok(());
        }
        if self.hot.leases.count_after_fence()? > 0 {
            return Ok(());
        }
        for mapped in self.mapped.iter().filter_map(OnceLock::get) {
            let mut maps = lock(&mapped.maps);
            let current = maps.pop();
            let outgrown = std::mem::take(&mut *maps);
            maps.extend(current);
            drop(maps);
            // A job that still works on one has its own reference.
            drop(outgrown);
        }
        Ok(())
    }

    /// Whether a range is in memory, as far as that can be told without waiting.
    pub(crate) fn is_resident(&self, protection: Protection, range: ByteRange) -> bool {
        let mapped = self.mapped[protection as usize].get();
        mapped.is_some_and(|mapped| {
            // Without a lease the map may go meanwhile; its address is only asked about.
            let run = sys::Run::at(self.base(protection), range.to_pages(sys::page_size()));
            residency::is_resident(run, &mapped.backing, mapped.habits, range)
        })
    }

    /// Reads the pages of a range in. Blocks.
    ///
    /// # Errors
    ///
    /// `OutOfBounds` if a shrink went first, and those of [`residency::populate_read`].
    pub(crate) fn read_in(&self, protection: Protection, range: ByteRange) -> Result<()> {
        loop {
            let cuts = self.cuts();
            range.check(self.len())?;
            let mapped = self.mapped[protection as usize].get();
            let Some((mapped, map)) = mapped.zip(self.map(protection)) else {
                return Ok(());
            };
            match residency::populate_read(&map, &mapped.backing, range) {
                // What this process cuts off, and grows again, is no other process's truncation.
                Err(_) if self.cuts() != cuts => {}
                populated => return populated,
            }
        }
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

    /// A caller gets the address of the bytes, and its stores are not seen.
    pub(crate) fn gives_address_to_write(&self) {
        // Relaxed: whoever flushes after a store knows that the address was taken before.
        self.written_by_address.store(true, Ordering::Relaxed);
    }

    pub(crate) fn reserve_on_growth(&self) {
        self.preallocate.store(true, Ordering::Relaxed);
    }

    pub(crate) fn touch_mtime_on_flush(&self) {
        self.touch_mtime.store(true, Ordering::Relaxed);
    }

    /// Takes pages out of every map. They stay in the page cache, and in the file.
    pub(crate) fn unmap_pages(&self, range: ByteRange) -> io::Result<()> {
        for mapped in self.mapped.iter().filter_map(OnceLock::get) {
            let maps = lock(&mapped.maps).clone();
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
            .ok_or_else(|| MmapIoError::invalid_mode("no handle may write the file"))
    }

    fn make_current(&self, protection: Protection, map: &Map) {
        // Release: pairs with the load in `span_within`.
        self.hot.bases[protection as usize].store(map.as_ptr(), Ordering::Release);
    }
}

impl LeaseHost for OpenFile {
    #[inline]
    fn leases(&self) -> &Leases {
        &self.hot.leases
    }

    fn len(&self) -> u64 {
        Self::len(self)
    }

    fn restart(&self, gone: ByteRange) {
        // Acquire: pairs with the fence in `grow`, by the mark that brought this thread here.
        fence(Ordering::Acquire);
        // Growth over what another process has cut off waits for the views that show it, wherever the
        // bytes begin that it is asked for. The length says nothing of that: the other process may have
        // made the file longer since.
        let gone = match self.shown_end.load(Ordering::Relaxed) {
            0 => gone,
            _ => ByteRange::between(gone.start(), u64::MAX),
        };
        // Whoever holds a lease holds the file, so that this fails only when nothing is queued.
        if let Some(this) = self.this.upgrade() {
            Queue::restart(&this, gone);
        }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        // In a forked child nothing is opened any more, and a lock may never be free.
        if !sys::is_forked() {
            if let Some(id) = self.id {
                OPEN_FILES.remove(id, self);
            }
            self.closed.notify();
        }
        let is_slow = |mapped: &Mapped| match &mapped.backing {
            Backing::File(file) => file.may_block(),
            Backing::Memory => false,
        };
        // The resident ones, as far as is known.
        let to_unmap = |mapped: &Mapped| match mapped.backing.file() {
            Some(file) if mapped.habits.in_memory => sys::allocated(file).unwrap_or(u64::MAX),
            _ => self.len(),
        };
        let mapped = || self.mapped.iter().filter_map(OnceLock::get);
        let to_unmap = mapped().map(to_unmap).fold(0, u64::saturating_add);
        if to_unmap > UNMAP_INLINE || mapped().any(is_slow) {
            release(std::mem::take(&mut self.mapped));
        }
    }
}

/// Asserted here because of the raw pointers in [`Hot`].
const _: () = {
    const fn assert<T: Send + Sync + Deref>() {}
    assert::<Arc<OpenFile>>();
};

#[cfg(all(test, not(mmap_io_loom)))]
mod tests {
    use super::*;
    use crate::file::MemoryMappedFile;
    use crate::flush::FlushPolicy;

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
            let open: &Arc<OpenFile> = &file.handle.shared;
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

    #[test]
    fn outgrown_maps_stay_while_a_view_lives() {
        let dir = tempfile::tempdir().unwrap();
        futures_lite::future::block_on(async {
            // A view of each kind lives; and none.
            for kind in 0..4 {
                let path = dir.path().join(format!("data{kind}"));
                let file = MemoryMappedFile::create_rw(&path, 4096).await.unwrap();
                let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
                let open: &Arc<OpenFile> = &file.handle.shared;
                let maps = || {
                    let count = |mapped: &Mapped| lock(&mapped.maps).len();
                    [&open.mapped[0], &open.mapped[1]].map(|mapped| mapped.get().map_or(0, count))
                };
                let outgrow = || async {
                    let capacity = open.map(Protection::ReadWrite).unwrap().capacity();
                    file.resize(capacity + 1).await.unwrap();
                };
                outgrow().await;
                assert_eq!(maps(), [1, 1]);
                file.update_region(0, &[kind; 10]).await.unwrap();
                let slice = reader.as_slice(0, 10).unwrap();
                let bytes = file.bytes(0, 10).unwrap();
                let mut view = file.as_slice_mut(100, 10).await.unwrap();
                outgrow().await;
                assert_eq!(maps(), [2, 2]);
                assert_eq!(slice, [kind; 10]);
                assert_eq!(*bytes, [kind; 10]);
                view.fill(kind);
                let slice = (kind == 0).then_some(slice);
                let bytes = (kind == 1).then_some(bytes);
                let view = (kind == 2).then_some(view);
                outgrow().await;
                let is_viewed = slice.is_some() || bytes.is_some() || view.is_some();
                assert_eq!(maps(), if is_viewed { [3, 3] } else { [1, 1] });
                drop((slice, bytes, view));
                outgrow().await;
                assert_eq!(maps(), [1, 1]);
                assert_eq!(file.as_slice(100, 10).unwrap(), [kind; 10]);
            }
        });
    }
}
