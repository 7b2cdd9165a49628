//! Where readers publish the ranges they look at: a block of slots for each thread.
//!
//! Only the thread that owns a block takes slots in it; any thread may release one, since views
//! are `Send`. Blocks are never freed: a thread that ends hands its block, live leases included, to
//! the next thread that asks.
//!
//! Writers of all files scan the blocks that are *listed*: those of threads that have read lately.
//! Blocks stand in chunks of 64, each with a word of one bit for each block that is to be scanned,
//! and each block has a flag of its own, which its owner looks at after it has published a lease, in
//! the cache line that it has just written. If the flag is down, the owner lists the block again,
//! under the chunk's lock, before it looks at the announcement. At times a writer takes blocks
//! without a live lease off the list ([`Blocks::delist`]): it takes the flag down, runs a heavy
//! fence, looks at the slots again, and clears the bit under the chunk's lock if the flag is still
//! down. No lease is overlooked meanwhile:
//!
//! 1. The lease was published before that fence: the writer sees it, and puts the flag up again; the
//!    bit was never cleared. Or it sees that the lease has ended, and clears the bit, which makes the
//!    end visible to those that find the block off the list (`DELIST`/`LISTED`).
//! 2. It was published after the fence: the owner finds the flag down, or has listed the block again
//!    since, and then the bit is set last, or not cleared.
//! 3. Another writer scans between the publishing and the listing, and passes the block by. Then
//!    the owner, after a fence, sees its announcement.
//!
//! One thread at a time does that, so that a flag that one of them takes down is not the reason for
//! another one to clear a bit.
//!
//! What each step does to a slot's state:
//!
//! | from | by | to |
//! |---|---|---|
//! | `FREE` | the owner, publishing a lease: fields first, then the state | `LIVE` |
//! | `LIVE` | whoever drops the lease | `RELEASED` |
//! | `RELEASED` | the same thread, after it has looked at `watched` | `FREE` |
//!
//! To a writer, `RELEASED` is as good as `FREE`. It is there so that a slot cannot be taken again
//! between the end of its lease and the look at `watched`: the mark of a writer that waits for
//! *this* lease would be taken down by the next one, which may belong to another file.
//!
//! A writer reads a slot without a lock, and it may be released and taken again meanwhile, so
//! that the writer sees some old fields and some new ones. Two cases matter:
//!
//! 1. It judges the *old* lease by new fields, and passes it by. The new fields were stored after
//!    the slot was free, so the old lease has ended; `FIELD_STORE`/`FIELD_LOAD` make its end
//!    visible.
//! 2. It misses the *new* lease because it loaded an old state. Then the new lease's state was
//!    not stored before the writer's fence, and its reader will meet the announcement.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr};

use super::fence::Fences;
use crate::range::ByteRange;
use crate::sync::{lock, AtomicU32, AtomicU64, Mutex, Ordering};
use crate::sys;

/// Slots a thread: as many slices as it can hold without a lock. Beyond that it uses the map
/// under the mutex.
const SLOTS: usize = if cfg!(mmap_io_loom) { 1 } else { 16 };

/// Blocks a chunk: one bit for each in a word.
const BLOCKS: usize = 64;

/// Listed blocks that are scanned without a thought.
const FEW: usize = 64;

const FREE: u32 = 0;
const LIVE: u32 = 1;
const RELEASED: u32 = 2;

/// One published lease.
#[derive(Debug)]
pub(crate) struct Slot {
    state: AtomicU32,
    /// A writer waits for this lease to end: 0 or 1.
    watched: AtomicU32,
    /// The file the lease is on.
    file: AtomicU64,
    start: AtomicU64,
    end: AtomicU64,
}

impl Slot {
    fn new() -> Self {
        Self {
            state: AtomicU32::new(FREE),
            watched: AtomicU32::new(0),
            file: AtomicU64::new(0),
            start: AtomicU64::new(0),
            end: AtomicU64::new(0),
        }
    }

    #[inline]
    fn is_free(&self) -> bool {
        // Acquire: pairs with the Release in `release`.
        self.state.load(Ordering::Acquire) == FREE
    }

    /// Ends the lease, and returns its range if a writer waits for that.
    #[inline]
    #[must_use]
    pub(crate) fn release<F: Fences>(&self) -> Option<ByteRange> {
        self.state.store(RELEASED, F::RELEASE);
        // Against `watch`: either this thread sees the mark, or the writer sees the end.
        F::light_again();
        let watched = self.watched.load(Ordering::Relaxed) != 0;
        let range = watched.then(|| self.unwatch());
        // Release: the owner that takes the slot again (Acquire) finds the mark taken down.
        self.state.store(FREE, Ordering::Release);
        range
    }

    /// Takes the mark down; returns the range, which stays until the slot is free.
    #[cold]
    fn unwatch(&self) -> ByteRange {
        self.watched.store(0, Ordering::Relaxed);
        // Relaxed: the thread that stored them has handed this one the lease.
        let load = |bound: &AtomicU64| bound.load(Ordering::Relaxed);
        ByteRange::between(load(&self.start), load(&self.end))
    }

    /// The range leased on `file`, if there is one now.
    #[inline]
    pub(crate) fn live<F: Fences>(&self, file: u64) -> Option<ByteRange> {
        if self.state.load(F::SCAN) != LIVE || self.file.load(F::FIELD_LOAD) != file {
            return None;
        }
        let start = self.start.load(F::FIELD_LOAD);
        let end = self.end.load(F::FIELD_LOAD);
        // Torn fields (case 1) need not be in order; then there is no lease to see.
        (start < end).then(|| ByteRange::between(start, end))
    }

    /// Asks for [`release`](Self::release) to answer with the range. Counts only if the lease is still
    /// live when looked at again after a heavy fence.
    pub(crate) fn watch(&self) {
        self.watched.store(1, Ordering::Relaxed);
    }
}

/// The slots of one thread, on cache lines of their own.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct Block {
    /// Writers do not scan the block: 0 or 1, as wide as the word that a reader looks at with it.
    /// Beside the first slot.
    unlisted: AtomicU64,
    owned: AtomicBool,
    /// Where it stands.
    chunk: &'static Chunk,
    bit: u64,
    slots: [Slot; SLOTS],
}

impl Block {
    /// 0 if writers scan the block. The owner asks after it has published a lease, and a light
    /// fence.
    #[inline(always)]
    pub(crate) fn unlisted(&self) -> u64 {
        // Relaxed: the owner itself, or an owner before it, has set the bit before the flag.
        self.unlisted.load(Ordering::Relaxed)
    }

    /// Has writers scan the block, from now on. The caller is the owner. A look at an announcement
    /// after this sees that of each writer that has passed the block by.
    #[cold]
    pub(crate) fn list<F: Fences>(&self) {
        if sys::is_forked() {
            // The lock may never be free there, and no writer scans.
            return;
        }
        {
            let _listing = lock(&self.chunk.listing);
            // Release: a writer that sees the bit sees the lease that was published before.
            self.chunk.active.fetch_or(self.bit, Ordering::Release);
            self.unlisted.store(0, Ordering::Relaxed);
        }
        F::after_listing();
    }

    fn is_idle<F: Fences>(&self) -> bool {
        let mut slots = self.slots.iter();
        slots.all(|slot| slot.state.load(F::SCAN) != LIVE)
    }

    /// Publishes a lease in a free slot, if there is one. The caller must be the owning thread,
    /// and may rely on the lease only after a light fence and a look for writers.
    #[inline]
    pub(crate) fn publish<F: Fences>(
        &'static self,
        file: u64,
        range: ByteRange,
    ) -> Option<&'static Slot> {
        let first = &self.slots[0];
        let slot = match first.is_free() {
            true => first,
            false => self.find_free()?,
        };
        slot.file.store(file, F::FIELD_STORE);
        slot.start.store(range.start(), F::FIELD_STORE);
        slot.end.store(range.end(), F::FIELD_STORE);
        // Release: whoever sees the state sees the fields.
        slot.state.store(LIVE, Ordering::Release);
        Some(slot)
    }

    /// For a thread that holds a view already; out of line, to keep the path of one that does not
    /// small.
    #[cold]
    fn find_free(&'static self) -> Option<&'static Slot> {
        self.slots.iter().find(|slot| slot.is_free())
    }

    /// Hands the block to whoever claims one next, live leases included.
    pub(crate) fn hand_back(&self) {
        // Release: the next owner sees all that this one did to its slots.
        self.owned.store(false, Ordering::Release);
    }
}

/// Up to 64 blocks.
#[derive(Debug)]
struct Chunk {
    /// A bit for each block that is listed. Changed under the lock, by read-modify-write only, so
    /// that the end of each lease on a block that was taken off stays visible.
    active: AtomicU64,
    listing: Mutex<()>,
    /// Null where there is none yet.
    blocks: [AtomicPtr<Block>; BLOCKS],
    /// The chunk that was there before this one; fixed once the chunk is in the list.
    next: AtomicPtr<Chunk>,
}

impl Chunk {
    fn new() -> &'static Self {
        Box::leak(Box::new(Self {
            active: AtomicU64::new(0),
            listing: Mutex::new(()),
            blocks: std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            next: AtomicPtr::new(ptr::null_mut()),
        }))
    }

    /// A block that has no owner, or a new one, for the calling thread.
    fn claim(&'static self) -> Option<&'static Block> {
        let mut places = self.blocks.iter().enumerate();
        places.find_map(|(place, link)| match load(link) {
            Some(block) => {
                // Acquire: pairs with the Release in `hand_back`.
                let claimed =
                    block
                        .owned
                        .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
                claimed.is_ok().then_some(block)
            }
            None => self.add(place),
        })
    }

    /// Adds a block for the calling thread; `None` if another thread was faster.
    #[cold]
    fn add(&'static self, place: usize) -> Option<&'static Block> {
        let block = Box::into_raw(Box::new(Block {
            unlisted: AtomicU64::new(1),
            owned: AtomicBool::new(true),
            chunk: self,
            bit: 1 << place,
            slots: std::array::from_fn(|_| Slot::new()),
        }));
        // Release: pairs with the Acquire in `load`, for the contents of the block.
        let added = self.blocks[place].compare_exchange(
            ptr::null_mut(),
            block,
            Ordering::Release,
            Ordering::Relaxed,
        );
        if added.is_err() {
            // SAFETY: the block was just allocated, and no other thread has seen it.
            drop(unsafe { Box::from_raw(block) });
            return None;
        }
        // SAFETY: the block was just allocated, and is never freed from now on.
        Some(unsafe { &*block })
    }

    /// The blocks that are listed.
    fn listed<F: Fences>(&'static self) -> impl Iterator<Item = &'static Block> {
        // Acquire: pairs with the Release of the thread that has set or cleared a bit.
        let mut bits = self.active.load(F::LISTED);
        std::iter::from_fn(move || {
            let place = bits.trailing_zeros() as usize;
            bits &= bits.wrapping_sub(1);
            // A place past the last: no bit is left.
            load(self.blocks.get(place)?)
        })
    }
}

/// What a link leads to, if anything.
fn load<T>(link: &AtomicPtr<T>) -> Option<&'static T> {
    // Acquire: pairs with the exchange that has put it there, for its contents.
    let target = link.load(Ordering::Acquire);
    // SAFETY: blocks and chunks that are linked are never freed.
    unsafe { target.as_ref::<'static>() }
}

/// All blocks. Their number only grows, to the largest number of threads that read at a time, or a
/// few more.
#[derive(Debug)]
pub(crate) struct Blocks {
    first: AtomicPtr<Chunk>,
    /// A thread takes blocks off the list.
    delisting: AtomicBool,
}

impl Blocks {
    pub(crate) const fn new() -> Self {
        Self {
            first: AtomicPtr::new(ptr::null_mut()),
            delisting: AtomicBool::new(false),
        }
    }

    /// A block for the calling thread, which is its owner until it hands it back. It is listed.
    pub(crate) fn claim<F: Fences>(&self) -> &'static Block {
        let claimed = self.chunks().find_map(Chunk::claim);
        let block = claimed.unwrap_or_else(|| self.add());
        block.list::<F>();
        block
    }

    #[cold]
    fn add(&self) -> &'static Block {
        let chunk = Chunk::new();
        let block = chunk.claim().expect("no other thread has seen it");
        let mut first = self.first.load(Ordering::Relaxed);
        loop {
            chunk.next.store(first, Ordering::Relaxed);
            // Release: pairs with the Acquire in `load`, for the contents of this chunk; each
            // exchange continues the release sequence of those before it, for theirs.
            match self.first.compare_exchange_weak(
                first,
                (chunk as *const Chunk).cast_mut(),
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return block,
                Err(current) => first = current,
            }
        }
    }

    /// Every slot of every block that is listed.
    pub(crate) fn slots<F: Fences>(&self) -> impl Iterator<Item = &'static Slot> + '_ {
        self.listed::<F>().flat_map(|block| block.slots.iter())
    }

    /// Takes blocks without a live lease off the list, if there are more than a few on it. Runs a
    /// heavy fence.
    pub(crate) fn tidy<F: Fences>(&self) {
        let active = |chunk: &Chunk| chunk.active.load(Ordering::Relaxed).count_ones() as usize;
        if self.chunks().map(active).sum::<usize>() > FEW {
            self.delist::<F>();
        }
    }

    /// Takes blocks without a live lease off the list.
    pub(crate) fn delist<F: Fences>(&self) {
        // Acquire and Release: one thread at a time, after what the last one has done.
        if self.delisting.swap(true, Ordering::Acquire) {
            return;
        }
        let idle: Vec<_> = self
            .listed::<F>()
            .filter(|block| block.is_idle::<F>())
            .collect();
        for block in &idle {
            block.unlisted.store(1, Ordering::Relaxed);
        }
        let fenced = F::heavy_to_delist();
        for block in idle {
            if fenced.is_err() || !block.is_idle::<F>() {
                block.unlisted.store(0, Ordering::Relaxed);
                continue;
            }
            let _listing = lock(&block.chunk.listing);
            if !F::LOOKS_AT_THE_FLAG || block.unlisted() != 0 {
                block.chunk.active.fetch_and(!block.bit, F::DELIST);
            }
        }
        self.delisting.store(false, Ordering::Release);
    }

    fn listed<F: Fences>(&self) -> impl Iterator<Item = &'static Block> + '_ {
        self.chunks().flat_map(Chunk::listed::<F>)
    }

    fn chunks(&self) -> impl Iterator<Item = &'static Chunk> + '_ {
        std::iter::successors(load(&self.first), |chunk| load(&chunk.next))
    }
}
