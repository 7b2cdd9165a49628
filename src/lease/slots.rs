//! Where readers publish the ranges they look at: a block of slots for each thread.
//!
//! Only the thread that owns a block takes slots in it; any thread may release one, since views
//! are `Send`. Writers of all files scan all blocks. Blocks are never freed: a thread that ends
//! hands its block, live leases included, to the next thread that asks.
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
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Slots a thread: as many slices as it can hold without a lock. Beyond that it uses the map
/// under the mutex.
const SLOTS: usize = if cfg!(mmap_io_loom) { 1 } else { 16 };

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
#[repr(align(128))]
pub(crate) struct Block {
    slots: [Slot; SLOTS],
    owned: AtomicBool,
    /// The block that was there before this one; fixed once the block is in the list.
    next: AtomicPtr<Block>,
}

impl Block {
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

/// The list of all blocks. It only grows, to the largest number of threads that read at a time.
#[derive(Debug)]
pub(crate) struct Blocks {
    first: AtomicPtr<Block>,
}

impl Blocks {
    pub(crate) const fn new() -> Self {
        Self {
            first: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// A block for the calling thread, which is its owner until it hands it back.
    pub(crate) fn claim(&self) -> &'static Block {
        let unowned = self.iter().find(|block| {
            // Acquire: pairs with the Release in `hand_back`.
            let claimed =
                block
                    .owned
                    .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
            claimed.is_ok()
        });
        unowned.unwrap_or_else(|| self.add())
    }

    #[cold]
    fn add(&self) -> &'static Block {
        let block = Box::into_raw(Box::new(Block {
            slots: std::array::from_fn(|_| Slot::new()),
            owned: AtomicBool::new(true),
            next: AtomicPtr::new(ptr::null_mut()),
        }));
        // SAFETY: the block was just allocated, and is never freed.
        let added: &'static Block = unsafe { &*block };
        let mut first = self.first.load(Ordering::Relaxed);
        loop {
            added.next.store(first, Ordering::Relaxed);
            // Release: pairs with the Acquire in `iter`, for the contents of this block; each
            // exchange continues the release sequence of those before it, for theirs.
            match self.first.compare_exchange_weak(
                first,
                block,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return added,
                Err(current) => first = current,
            }
        }
    }

    /// Every slot of every thread, of those threads that have ever read.
    pub(crate) fn slots(&self) -> impl Iterator<Item = &'static Slot> + '_ {
        self.iter().flat_map(|block| block.slots.iter())
    }

    fn iter(&self) -> impl Iterator<Item = &'static Block> + '_ {
        let load = |link: &AtomicPtr<Block>| {
            // Acquire: pairs with the exchange in `add`, for the contents of the block.
            let block = link.load(Ordering::Acquire);
            // SAFETY: the list holds leaked blocks only, or null at its end.
            unsafe { block.as_ref::<'static>() }
        };
        std::iter::successors(load(&self.first), move |block| load(&block.next))
    }
}
