//! The slots in which readers publish the ranges that they look at; each thread has a block of
//! them.
//!
//! Only the thread that owns a block takes slots in it; any thread may release a slot, since views
//! are `Send`. Blocks are never freed: when a thread ends, its block, live leases included, goes to
//! the next thread that asks for a block.
//!
//! Writers of all files scan the *listed* blocks: the blocks of threads that have read recently.
//! Blocks stand in chunks of 64. A chunk has a word with one bit for each listed block, and each
//! block has an `unlisted` flag of its own. The owner checks the flag after it has published a
//! lease; the flag is in the cache line that the owner has just written. If the flag is set, the
//! owner lists the block again, under the chunk's lock, before it loads the announcement. From time
//! to time a writer delists blocks without a live lease ([`Blocks::delist`]): it sets the flag,
//! runs a heavy fence, checks the slots again, and clears the bit under the chunk's lock if the
//! flag is still set. No lease is overlooked in the meantime:
//!
//! 1. The lease was published before that fence: the writer sees the lease and clears the flag
//!    again; the bit was never cleared. Or the writer sees that the lease has ended and clears the
//!    bit, which makes the end visible to the writers that find the block delisted
//!    (`DELIST`/`LISTED`).
//! 2. The lease was published after the fence: the owner finds the flag set, or has listed the
//!    block again since then. In both cases the bit is set last, or is not cleared.
//! 3. Another writer scans after the lease is published and before the block is listed, and skips
//!    the block. Then the owner, after a fence, sees the announcement of this writer.
//!
//! Only one thread at a time delists, so that no thread clears a bit because of a flag that another
//! thread has set.
//!
//! What each step does to a slot's state:
//!
//! | from | by | to |
//! |---|---|---|
//! | `FREE` | the owner, publishing a lease: fields first, then the state | `LIVE` or `BRIEF` |
//! | `LIVE` or `BRIEF` | the thread that drops the lease | `RELEASED` |
//! | `RELEASED` | the same thread, after it has checked `watched` | `FREE` |
//!
//! For a writer, `RELEASED` means the same as `FREE`, and `BRIEF` the same as `LIVE`; `BRIEF` tells
//! a caller that could wait for the lease that it ends soon. `RELEASED` exists so that a slot cannot be
//! taken again between the end of its lease and the check of `watched`: otherwise the next lease,
//! which may belong to another file, would clear the mark of a writer that waits for *this* lease.
//!
//! A writer reads a slot without a lock. While it reads, the slot may be released and taken again,
//! so that the writer sees some old fields and some new ones. Two cases matter:
//!
//! 1. The writer judges the *old* lease by new fields, and skips it. The new fields were stored
//!    after the slot was free, so the old lease has ended; `FIELD_STORE`/`FIELD_LOAD` make its end
//!    visible.
//! 2. The writer misses the *new* lease because it loaded an old state. Then the state of the new
//!    lease was not stored before the writer's fence, and its reader will see the announcement.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr};

use super::fence::Fences;
use super::kinds::Term;
use crate::range::ByteRange;
use crate::sync::{lock, AtomicU32, AtomicU64, Mutex, Ordering};
use crate::sys;

/// Slots of a thread: the number of slices that it can hold without a lock. For further slices it
/// uses the map under the mutex.
const SLOTS: usize = if cfg!(mmap_io_loom) { 1 } else { 16 };

/// Blocks of a chunk: one for each bit of a word.
const BLOCKS: usize = 64;

/// The number of listed blocks up to which delisting is not worth its fence.
const FEW: usize = 64;

const FREE: u32 = 0;
const RELEASED: u32 = 1;
const LIVE: u32 = 2;
const BRIEF: u32 = 3;

fn is_live(state: u32) -> bool {
    state >= LIVE
}

/// One published lease.
#[derive(Debug)]
pub(crate) struct Slot {
    state: AtomicU32,
    /// 1 if a writer waits for this lease to end, otherwise 0.
    watched: AtomicU32,
    /// The id of the leased file.
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

    /// Ends the lease, and returns its range if a writer waits for its end.
    #[inline]
    #[must_use]
    pub(crate) fn release<F: Fences>(&self) -> Option<ByteRange> {
        self.state.store(RELEASED, F::RELEASE);
        // Pairs with `watch`: either this thread sees the mark, or the writer sees the end.
        F::light_again();
        let watched = self.watched.load(Ordering::Relaxed) != 0;
        let range = watched.then(|| self.unwatch());
        // Release: the owner that takes the slot again (Acquire) finds the mark cleared.
        self.state.store(FREE, Ordering::Release);
        range
    }

    /// Clears the mark and returns the range, which does not change until the slot is free.
    #[cold]
    fn unwatch(&self) -> ByteRange {
        self.watched.store(0, Ordering::Relaxed);
        // Relaxed: the thread that stored the bounds has handed the lease to this thread.
        let load = |bound: &AtomicU64| bound.load(Ordering::Relaxed);
        ByteRange::between(load(&self.start), load(&self.end))
    }

    /// Returns the range that the slot leases on `file`, if it does now.
    #[inline]
    pub(crate) fn live<F: Fences>(&self, file: u64) -> Option<ByteRange> {
        if !is_live(self.state.load(F::SCAN)) || self.file.load(F::FIELD_LOAD) != file {
            return None;
        }
        let start = self.start.load(F::FIELD_LOAD);
        let end = self.end.load(F::FIELD_LOAD);
        // Torn fields (case 1) need not be in order; then the slot holds no lease that matters.
        (start < end).then(|| ByteRange::between(start, end))
    }

    /// Returns the range that the slot leases on `file` for a caller that may keep the lease.
    ///
    /// `None` also if the lease changes while it is looked at: then it ends soon. Two looks, since a
    /// lease that ends between the loads of one would lend its range to the next.
    pub(crate) fn lasting<F: Fences>(&self, file: u64) -> Option<ByteRange> {
        let look = || {
            let range = self.live::<F>(file)?;
            // Relaxed: a state that is out of date costs another attempt.
            (self.state.load(Ordering::Relaxed) == LIVE).then_some(range)
        };
        look().filter(|range| look() == Some(*range))
    }

    /// Has [`release`](Self::release) return the range. The mark is reliable only if the lease is
    /// still live when it is checked again after a heavy fence.
    pub(crate) fn watch(&self) {
        self.watched.store(1, Ordering::Relaxed);
    }
}

/// The slots of one thread, on cache lines of their own.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct Block {
    /// 1 if writers do not scan the block, otherwise 0. As wide as the announcement, with which a
    /// reader combines it, and in the same cache line as the first slot.
    unlisted: AtomicU64,
    owned: AtomicBool,
    /// The chunk that holds the block.
    chunk: &'static Chunk,
    bit: u64,
    slots: [Slot; SLOTS],
}

impl Block {
    /// Returns 0 if writers scan the block. The owner calls this after it has published a lease and
    /// run a light fence.
    #[inline(always)]
    pub(crate) fn unlisted(&self) -> u64 {
        // Relaxed: the owner itself, or an earlier owner, has set the bit before it cleared the
        // flag.
        self.unlisted.load(Ordering::Relaxed)
    }

    /// Has writers scan the block from now on. The caller is the owner. If it loads the
    /// announcement after this call, it sees the announcement of each writer that has skipped the
    /// block.
    #[cold]
    pub(crate) fn list<F: Fences>(&self) {
        if sys::is_forked() {
            // In a forked child the lock may never be free, and no writer scans.
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
        slots.all(|slot| !is_live(slot.state.load(F::SCAN)))
    }

    /// Publishes a lease in a free slot, if there is one. The caller must be the owning thread. It
    /// may rely on the lease only after a light fence and a check for writers.
    #[inline]
    pub(crate) fn publish<F: Fences>(
        &'static self,
        file: u64,
        range: ByteRange,
        term: Term,
    ) -> Option<&'static Slot> {
        let first = &self.slots[0];
        let slot = match first.is_free() {
            true => first,
            false => self.find_free()?,
        };
        slot.file.store(file, F::FIELD_STORE);
        slot.start.store(range.start(), F::FIELD_STORE);
        slot.end.store(range.end(), F::FIELD_STORE);
        // Release: a thread that sees the state sees the fields.
        let state = match term {
            Term::Lasting | Term::Working => LIVE,
            Term::Brief => BRIEF,
        };
        slot.state.store(state, Ordering::Release);
        Some(slot)
    }

    /// For a thread that holds a view already. Out of line, to keep the path of a thread without a
    /// view short.
    #[cold]
    fn find_free(&'static self) -> Option<&'static Slot> {
        self.slots.iter().find(|slot| slot.is_free())
    }

    /// Makes the block, live leases included, available to the next thread that claims one.
    pub(crate) fn hand_back(&self) {
        // Release: the next owner sees everything that this thread did to its slots.
        self.owned.store(false, Ordering::Release);
    }
}

/// Up to 64 blocks.
#[derive(Debug)]
struct Chunk {
    /// A bit for each listed block. Changed under the lock, by read-modify-write only, so that the
    /// end of each lease in a delisted block stays visible.
    active: AtomicU64,
    listing: Mutex<()>,
    /// Null where no block exists yet.
    blocks: [AtomicPtr<Block>; BLOCKS],
    /// The chunk that was added before this one; fixed once the chunk is in the list.
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

    /// Claims a block without an owner, or a new block, for the calling thread.
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

    /// Adds a block for the calling thread; returns `None` if another thread was faster.
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

    /// Returns the listed blocks.
    fn listed<F: Fences>(&'static self) -> impl Iterator<Item = &'static Block> {
        // Acquire: pairs with the Release of the thread that has set or cleared a bit.
        let mut bits = self.active.load(F::LISTED);
        std::iter::from_fn(move || {
            let place = bits.trailing_zeros() as usize;
            bits &= bits.wrapping_sub(1);
            // `place` is past the last block if no bit is left.
            load(self.blocks.get(place)?)
        })
    }
}

/// Returns the target of a link, if it has one.
fn load<T>(link: &AtomicPtr<T>) -> Option<&'static T> {
    // Acquire: pairs with the exchange that has stored the link, for the contents of the target.
    let target = link.load(Ordering::Acquire);
    // SAFETY: blocks and chunks that are linked are never freed.
    unsafe { target.as_ref::<'static>() }
}

/// All blocks. Their number only grows, up to about the largest number of threads that have read at
/// the same time.
#[derive(Debug)]
pub(crate) struct Blocks {
    first: AtomicPtr<Chunk>,
    /// A thread is delisting blocks.
    delisting: AtomicBool,
}

impl Blocks {
    pub(crate) const fn new() -> Self {
        Self {
            first: AtomicPtr::new(ptr::null_mut()),
            delisting: AtomicBool::new(false),
        }
    }

    /// Claims a block for the calling thread, which owns it until it hands it back, and lists the
    /// block.
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
            // exchange continues the release sequence of the earlier exchanges, for the contents of
            // their chunks.
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

    /// Returns every slot of every listed block.
    pub(crate) fn slots<F: Fences>(&self) -> impl Iterator<Item = &'static Slot> + '_ {
        self.listed::<F>().flat_map(|block| block.slots.iter())
    }

    /// Delists the blocks without a live lease, if more than [`FEW`] blocks are listed. Runs a
    /// heavy fence.
    pub(crate) fn tidy<F: Fences>(&self) {
        if !self.are_few() {
            self.delist::<F>();
        }
    }

    /// Whether at most [`FEW`] blocks are listed, so that a scan of them takes less than a
    /// microsecond.
    pub(crate) fn are_few(&self) -> bool {
        let active = |chunk: &Chunk| chunk.active.load(Ordering::Relaxed).count_ones() as usize;
        self.chunks().map(active).sum::<usize>() <= FEW
    }

    /// Delists the blocks without a live lease.
    pub(crate) fn delist<F: Fences>(&self) {
        // Acquire and Release: one thread at a time delists, and sees what the previous thread did.
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
            if !F::RECHECKS_UNLISTED_FLAG || block.unlisted() != 0 {
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
