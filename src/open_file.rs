//! Holds the state of one open file: its length, maps, leases, queue and commits.
//!
//! All handles of the process on one file share one [`OpenFile`]. The file and its maps stay open
//! until the last handle, view, `Bytes` and queued operation has been dropped.

mod append;
mod apply;
mod cow;
mod durability;
mod faults;
mod lock_place;
mod maps;
mod nearby;
#[cfg_attr(not(feature = "locking"), allow(dead_code))]
mod page_lock;
mod resize;
mod write_here;
mod write_plan;

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::atomic::{fence, AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Instant, SystemTime};

use self::cow::Origin;
use self::durability::TIMER;
use self::lock_place::LockPlace;
use self::maps::Mapped;
use self::nearby::Walk;
use self::page_lock::PageLockTurns;
use crate::commit::{Commits, Losses};
use crate::descriptor::Descriptor;
use crate::dirty::DirtyRanges;
use crate::error::Result;
use crate::fault_guard::Bases;
use crate::lease::{Lease, LeaseHost, Leases, Under};
use crate::map::{Backing, Map, Protection};
use crate::offload::release;
use crate::queue::Queue;
use crate::range::ByteRange;
use crate::registry::{Claim, Registry};
use crate::sys::{self, FileId, FsTraits};
use crate::trace;
use crate::wakers::{Event, EventListener};

pub(crate) use self::lock_place::ReliedLock;
pub(crate) use self::maps::Source;

/// The open files of the process.
pub(crate) static OPEN_FILES: Registry<OpenFile> = Registry::new();

/// Mappings of more bytes than this are unmapped on the pool: unmapping takes 4 us for each
/// resident MiB.
const UNMAP_INLINE: u64 = 4 << 20;

/// A lease that keeps its file open.
pub(crate) type OwnedLease = Lease<Arc<OpenFile>>;

/// One open file, which all handles on it share.
#[derive(Debug)]
pub(crate) struct OpenFile {
    hot: Hot,
    queue: Queue<OwnedLease>,
    commits: Commits,
    dirty: DirtyRanges,
    mapped: [OnceLock<Mapped>; 2],
    /// How many times the length was cut. Counted before the file is cut.
    cuts: AtomicU64,
    /// Live views may show bytes up to here that another process has cut off; 0 if no such cut was
    /// noticed.
    shown_end: AtomicU64,
    /// The written bytes that have gone before they were durable: another process has cut them off.
    losses: Mutex<Losses>,
    /// The least length of new maps, if that is more than the known length: the one that the file is
    /// growing to, or the one that it has again if a cut is refused. Else 0. Held while maps are made,
    /// and while the length is raised, so that the current maps always cover the length. Not while
    /// the file itself grows or is cut: an opening that maps the file would wait for that.
    len_to_map: Mutex<u64>,
    last_gate: Mutex<Option<Instant>>,
    unsynced: Mutex<UnsyncedMetadata>,
    /// A path by which the file was opened for writing.
    name: trace::Name,
    /// Whether growth reserves blocks.
    preallocate: AtomicBool,
    /// A descriptor of its own for appends, whose position tells where they went.
    appender: OnceLock<Option<Arc<Descriptor>>>,
    /// Whether a flush of written bytes sets the time of the last modification.
    touch_mtime: AtomicBool,
    /// Whether maps are made for huge pages.
    huge_pages: AtomicBool,
    /// Locked only by the drain.
    walk: Mutex<Walk>,
    page_lock_turns: PageLockTurns,
    /// The lock by which other processes know that this process uses the file.
    lock_place: Mutex<LockPlace>,
    /// Whether a caller has the address of the bytes, and may store to them at any time.
    written_by_address: AtomicBool,
    pub(crate) counters: Counters,
    /// The identity in the registry; `None` for anonymous memory and private pages.
    id: Option<FileId>,
    /// For private pages: the file that they are copies of.
    origin: Option<Origin>,
    /// The private pages over this file, which are told when the file is cut.
    private: Mutex<Vec<Weak<Self>>>,
    /// On a file system that copies files up: the birth time of the file that the read-only map
    /// shows.
    shown: Mutex<Option<SystemTime>>,
    /// The number of handles, plus that of futures which keep the file in use without a handle.
    users: AtomicUsize,
    /// Notified when the file is closed, or gets a new user or a new lasting view.
    closed: Event,
    /// A weak reference to itself, for methods that have `&self` and need an `Arc`.
    this: Weak<Self>,
}

/// A handle's reference to its file. The file is in use while a handle or a view exists; a job that
/// is about to end may keep it open for a moment longer.
#[derive(Debug)]
pub(crate) struct HandleRef(Arc<OpenFile>);

impl HandleRef {
    pub(crate) fn new(open: Arc<OpenFile>) -> Self {
        // SeqCst: `check_in_use` listens and then loads the count; either it sees this user, or its
        // listener is notified below.
        open.users.fetch_add(1, Ordering::SeqCst);
        // A forked child opens no files, and a lock may stay locked there forever.
        if !sys::is_forked() {
            if let Some(origin) = &open.origin {
                origin.begin_use();
            }
            open.closed.notify();
        }
        Self(open)
    }
}

impl Deref for HandleRef {
    type Target = Arc<OpenFile>;

    fn deref(&self) -> &Arc<OpenFile> {
        &self.0
    }
}

impl Drop for HandleRef {
    fn drop(&mut self) {
        if sys::is_forked() {
            // A forked child has no tasks to notify, and a lock may stay locked there forever.
            return;
        }
        let was_last = self.0.users.fetch_sub(1, Ordering::SeqCst) == 1;
        // A scheduled flush is started at once: no further writes will come, and a creation may be
        // waiting for the file to be closed.
        let now = Instant::now();
        if was_last && self.0.dirty.bring_alarm_forward(now) {
            TIMER.update(&self.0);
        }
        if let Some(origin) = self.0.origin.as_ref().filter(|_| was_last) {
            origin.end_use(&self.0.users);
        }
    }
}

/// The fields that every read uses.
#[derive(Debug)]
#[repr(align(128))]
struct Hot {
    leases: Leases,
    /// The length in bytes. It grows after the maps, and shrinks before the file.
    len: AtomicU64,
    /// The addresses of the current maps, by protection; null if there is no map, or if a page of
    /// one was lost.
    bases: Bases,
}

/// Metadata that the next durable operation has to sync as well: the file's length and its names.
#[derive(Debug, Default)]
struct UnsyncedMetadata {
    /// Whether the length has changed since it was last made durable.
    length: bool,
    /// The paths by which the file was opened for writing since its names were last made durable.
    names: Vec<PathBuf>,
}

impl UnsyncedMetadata {
    fn is_nothing(&self) -> bool {
        !self.length && self.names.is_empty()
    }
}

/// Counters for `stats`. Always Relaxed: no decision depends on them.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Writes that the drain has applied.
    pub(crate) writes: AtomicU64,
    /// Writes that were applied where they were polled.
    pub(crate) inline_writes: AtomicU64,
    /// Writes that have failed here; the queue counts those that have failed there.
    pub(crate) write_errors: AtomicU64,
    pub(crate) hops: AtomicU64,
    pub(crate) resident_hits: AtomicU64,
    pub(crate) resident_misses: AtomicU64,
    pub(crate) bytes_read_in: AtomicU64,
    pub(crate) read_in_nanos: AtomicU64,
}

impl OpenFile {
    /// Makes the state of a file of `len` bytes, for a claimed place in the registry. `map` was
    /// made through `source`; it is `None` if the file is empty and the platform cannot map it.
    pub(crate) fn open(
        claim: &Claim<Self>,
        source: &Source,
        map: Option<Map>,
        len: u64,
        protection: Protection,
    ) -> Arc<Self> {
        let opened = Self::new(Some(claim.id()), None, len);
        opened.install(map, source, protection);
        opened
    }

    /// Makes anonymous memory of `len` bytes, all of them 0. It has no name and is never flushed.
    pub(crate) fn anonymous(len: u64) -> io::Result<Arc<Self>> {
        let map = Map::new(&Backing::Memory, len, Protection::ReadWrite)?;
        let opened = Self::new(None, None, len);
        let backing = Backing::Memory;
        opened.set_map(
            Some(map),
            backing,
            FsTraits::default(),
            Protection::ReadWrite,
        );
        Ok(opened)
    }

    fn new(id: Option<FileId>, origin: Option<Origin>, len: u64) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            hot: Hot {
                leases: Leases::new(),
                len: AtomicU64::new(len),
                bases: [AtomicPtr::default(), AtomicPtr::default()],
            },
            queue: Queue::new(),
            commits: Commits::default(),
            // Nothing else is ever flushed.
            dirty: DirtyRanges::new(id.is_some()),
            mapped: [OnceLock::new(), OnceLock::new()],
            cuts: AtomicU64::new(0),
            shown_end: AtomicU64::new(0),
            losses: Mutex::default(),
            len_to_map: Mutex::default(),
            last_gate: Mutex::new(None),
            unsynced: Mutex::default(),
            name: trace::Name::new(),
            preallocate: AtomicBool::new(false),
            appender: OnceLock::new(),
            touch_mtime: AtomicBool::new(false),
            huge_pages: AtomicBool::new(false),
            walk: Mutex::default(),
            page_lock_turns: PageLockTurns::new(),
            lock_place: Mutex::default(),
            written_by_address: AtomicBool::new(false),
            counters: Counters::default(),
            id,
            origin,
            private: Mutex::default(),
            shown: Mutex::default(),
            users: AtomicUsize::new(0),
            closed: Event::new(),
            this: this.clone(),
        })
    }

    /// Whether `file` is a descriptor of this file. Asks the system about both descriptors each
    /// time, since what tells files apart may change. Blocks if the file system does.
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
            // If in doubt, it is: then the handles share the leases.
            _ => true,
        }
    }

    /// Succeeds if the file has a user or a view. Otherwise returns an event for when it gets one,
    /// or is closed. A view that its caller does not have yet is none: it may have been withdrawn.
    pub(crate) fn check_in_use(&self) -> Result<(), EventListener> {
        let closed = self.closed.listen();
        match self.users.load(Ordering::SeqCst) > 0 || self.hot.leases.has_lasting() {
            true => Ok(()),
            false => Err(closed),
        }
    }

    /// Returns the length in bytes.
    #[inline]
    pub(crate) fn len(&self) -> u64 {
        // Acquire: pairs with the store in `cover`, which comes after the stores of the maps.
        self.hot.len.load(Ordering::Acquire)
    }

    /// Returns a count that changes before pages of the file are cut off.
    pub(crate) fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::SeqCst)
    }

    pub(crate) fn queue(&self) -> &Queue<OwnedLease> {
        &self.queue
    }

    pub(crate) fn commits(&self) -> &Commits {
        &self.commits
    }

    pub(crate) fn dirty(&self) -> &DirtyRanges {
        &self.dirty
    }

    /// Returns the number of mapped bytes, reserved address space not included.
    pub(crate) fn mapped_bytes(&self) -> u64 {
        let live = self.mapped.iter().filter(|mapped| mapped.get().is_some());
        live.count() as u64 * self.len()
    }

    /// Returns whether there is, or was, a handle that may write to the file.
    pub(crate) fn is_mapped_for_writing(&self) -> bool {
        self.mapped[Protection::ReadWrite as usize].get().is_some()
    }

    /// Notes that a caller gets the address of the bytes, so that its stores cannot be counted.
    pub(crate) fn gives_address_to_write(&self) {
        // Relaxed: a caller that stores and then flushes has itself ordered this before the flush.
        self.written_by_address.store(true, Ordering::Relaxed);
    }

    pub(crate) fn reserve_on_growth(&self) {
        self.preallocate.store(true, Ordering::Relaxed);
    }

    pub(crate) fn touch_mtime_on_flush(&self) {
        self.touch_mtime.store(true, Ordering::Relaxed);
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

    fn viewed(&self) {
        // An opening that waits for the file to be closed must check again.
        self.closed.notify();
    }

    fn under(&self) -> Option<Under<'_>> {
        self.origin.as_ref().map(Origin::under)
    }

    fn restart(&self, gone: ByteRange) {
        // Acquire: pairs with the fence in `grow`, by the mark on the lease that brought this
        // thread here.
        fence(Ordering::Acquire);
        // Growth over bytes that another process has cut off waits for every view that shows such
        // bytes, also if the view ends before the range that the growth was submitted with. The
        // length does not tell whether that happens: the other process may have made the file
        // longer since.
        let gone = match self.shown_end.load(Ordering::Relaxed) {
            0 => gone,
            _ => ByteRange::between(gone.start(), u64::MAX),
        };
        // A queued operation keeps the file open, so that this fails only if nothing is queued.
        if let Some(this) = self.this.upgrade() {
            Queue::restart(&this, gone);
        }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        // Before the registry forgets the file: the next opening of it may want the lock. Without
        // locking the mutex, which a forked child might find locked.
        let lock_place = self.lock_place.get_mut();
        let lock_place = lock_place.unwrap_or_else(PoisonError::into_inner);
        drop(lock_place.take());
        // A forked child opens no more files, and a lock may stay locked there forever.
        if !sys::is_forked() {
            if let Some(id) = self.id {
                OPEN_FILES.remove(id, self);
            }
            self.closed.notify();
        }
        self.detach_maps();
        let is_slow = |mapped: &Mapped| match &mapped.backing {
            Backing::File(file) | Backing::Private(file) => file.may_block(),
            Backing::Memory => false,
        };
        // An upper bound of the resident bytes: the blocks of a file in memory, else the length.
        let to_unmap = |mapped: &Mapped| match mapped.backing.stored_file() {
            Some(file) if mapped.fs_traits.in_memory => sys::allocated(file).unwrap_or(u64::MAX),
            _ => self.len(),
        };
        let mapped = || self.mapped.iter().filter_map(OnceLock::get);
        let to_unmap = mapped().map(to_unmap).fold(0, u64::saturating_add);
        if to_unmap > UNMAP_INLINE || mapped().any(is_slow) {
            release(std::mem::take(&mut self.mapped));
        }
    }
}

/// `OpenFile` must be `Send` and `Sync`, which the raw pointers in [`Hot`] could prevent.
const _: () = {
    const fn assert<T: Send + Sync + Deref>() {}
    assert::<Arc<OpenFile>>();
};

#[cfg(all(test, not(mmap_io_loom)))]
mod tests {
    use futures_lite::AsyncReadExt;

    use super::*;
    use crate::file::MemoryMappedFile;
    use crate::flush::FlushPolicy;
    use crate::sync::lock;

    /// Waits until the file has exactly `count` references, when jobs have dropped theirs.
    fn wait_for_references(open: &Arc<OpenFile>, count: usize) {
        let start = Instant::now();
        while Arc::strong_count(open) != count {
            assert!(
                start.elapsed().as_secs() < 60,
                "the file has {} references, expected {count}",
                Arc::strong_count(open)
            );
            std::thread::yield_now();
        }
    }

    #[test]
    fn timer_holds_file_only_while_dirty() {
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
            match cfg!(windows) {
                // It cuts no mapped file.
                true => file.flush().await.unwrap(),
                false => file.resize(10_000).await.unwrap(),
            }
            wait_for_references(open, idle);
        });
    }

    #[test]
    fn reader_begins_a_read_with_one_length() {
        const LONG: u64 = 300_000;
        const CHANGES: usize = 10_000_000;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        futures_lite::future::block_on(async {
            let file = MemoryMappedFile::create_rw(&path, LONG).await.unwrap();
            let open: &Arc<OpenFile> = &file.handle.shared;
            std::thread::scope(|scope| {
                let changes = scope.spawn(|| {
                    // As a cut and a growth do it, without their calls, and so much more often.
                    for _ in 0..CHANGES {
                        open.hot.len.store(1, Ordering::Release);
                        open.hot.len.store(LONG, Ordering::Release);
                    }
                });
                while !changes.is_finished() {
                    let mut reader = file.reader();
                    // The second read begins where the reader has read ahead to.
                    for position in [0, 256 << 10] {
                        reader.set_position(position);
                        // It may find the end of the file, or that the file was cut.
                        let mut byte = [0];
                        let _ = futures_lite::future::block_on(reader.read(&mut byte));
                    }
                }
            });
        });
    }

    #[test]
    fn outgrown_maps_stay_while_view_lives() {
        let dir = tempfile::tempdir().unwrap();
        futures_lite::future::block_on(async {
            // With a live slice, `Bytes`, or mutable view; and with none.
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
