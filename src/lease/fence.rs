//! The fences and orderings that the lease protocol rests on.
//!
//! A reader publishes its range and then looks for writers; a writer announces its range and then
//! looks for readers. Each stores to one place and loads from another, and at least one of them
//! must see the other: the store and the load may not swap, on either side. That takes a full
//! fence on both sides (some 20 cycles each, and it stops the CPU from overlapping cache misses),
//! or an *asymmetric* pair: a compiler fence for the frequent reader, and for the rare writer a
//! system call that runs a full fence on every thread of the process. folly, liburcu and seize
//! rest on the same pair.
//!
//! What is relied on: [`membarrier(2)`] with `PRIVATE_EXPEDITED`, and `FlushProcessWriteBuffers`,
//! put a full barrier into every other running thread between two of its instructions, while
//! threads that are not running pass a full barrier when they are scheduled. So each reader's
//! store and load stand, as one pair in program order (which the compiler fence keeps), before or
//! after that point: before, and the writer's scan sees the store; after, and the reader's load
//! sees the announcement.
//!
//! The fences only decide *which* value is seen. That data written by one side is visible to the
//! other comes from the Release and Acquire pairs named in [`Fences`].
//!
//! [`membarrier(2)`]: https://man7.org/linux/man-pages/man2/membarrier.2.html

use std::fmt::Debug;
use std::io;
use std::sync::atomic::compiler_fence;
use std::sync::OnceLock;

use crate::sync::{fence, Ordering};
use crate::sys;

/// The memory orderings of the protocol, and its two fences.
///
/// The constants and the second fences have one right value each, given here. The models override
/// them, to show that each of them is needed.
pub(crate) trait Fences: Debug + Send + Sync + 'static {
    /// Stores of a slot's fields by its thread. Pairs with [`FIELD_LOAD`](Self::FIELD_LOAD): a
    /// writer that sees the new fields of a slot that was free in between has also seen the
    /// accesses of its earlier lease end.
    const FIELD_STORE: Ordering = Ordering::Release;
    /// Loads of a slot's fields by a writer.
    const FIELD_LOAD: Ordering = Ordering::Acquire;
    /// Store of a slot's state when its lease ends. Pairs with [`SCAN`](Self::SCAN): the writer
    /// that finds it free has seen the reader's accesses end.
    const RELEASE: Ordering = Ordering::Release;
    /// Load of a slot's state by a writer.
    const SCAN: Ordering = Ordering::Acquire;
    /// Store of the word that readers look at. Pairs with [`READER_LOAD`](Self::READER_LOAD): a reader that is
    /// let through has seen the writes that were there before it.
    const ANNOUNCE: Ordering = Ordering::Release;
    /// Load of that word by a reader.
    const READER_LOAD: Ordering = Ordering::Acquire;

    /// Load of the bits of blocks that are listed, by a writer. Pairs with [`DELIST`](Self::DELIST):
    /// a writer that passes a block by has seen the leases in it end.
    const LISTED: Ordering = Ordering::Acquire;
    /// Clearing of such a bit.
    const DELIST: Ordering = Ordering::Release;

    /// A bit is cleared only if the block was not listed again.
    const LOOKS_AT_THE_FLAG: bool = true;
    /// A reader that takes its lease between the two looks of a blocked writer marks it itself.
    const MARKS_ITSELF: bool = true;

    /// A request announces its stripes with its hull, before its fence.
    const ANNOUNCES_STRIPES: bool = true;
    /// What is closed as one range was announced as one.
    const ANNOUNCES_WHAT_IS_BETWEEN: bool = true;

    /// The reader's fence: between its store and its load.
    fn light();

    /// The reader's second fence: between the end of its lease and its look for a mark.
    #[inline(always)]
    fn light_again() {
        Self::light();
    }

    /// The writer's fence: between its announcement and its scan.
    ///
    /// # Errors
    ///
    /// When the system refuses it; the writer may not go on then.
    fn heavy() -> io::Result<()>;

    /// The fence between the end of a flag that says that a block is listed, and the second look at
    /// its slots.
    ///
    /// # Errors
    ///
    /// When the system refuses it; the flag goes up again then.
    fn heavy_to_delist() -> io::Result<()> {
        Self::heavy()
    }

    /// The reader's fence between the listing of its block and its look at the announcement: a full
    /// one, whatever the others are, for it is rare.
    fn after_listing() {
        fence(Ordering::SeqCst);
    }

    /// The writer's second fence: between its mark on a lease in the way and its second look.
    fn heavy_again() -> io::Result<()> {
        Self::heavy()
    }
}

/// The fences of this process: asymmetric where the system has a barrier for it, and else full
/// ones on both sides. Which it is is fixed at build time, so that no reader has to look.
#[derive(Debug)]
pub(crate) struct ProcessFences;

impl ProcessFences {
    /// Whether readers may use the light fence: the system has a barrier, or needs none. Where a
    /// kernel or a filter refuses the barrier that the build counts on, they may not, and no slots
    /// are handed out; leases are all in the map then, and the heavy fence is not needed.
    ///
    /// Decided once, before the first slot is handed out.
    pub(crate) fn can_be_light() -> bool {
        static DECIDED: OnceLock<bool> = OnceLock::new();
        *DECIDED.get_or_init(|| !sys::HAS_BARRIER || sys::register_barrier())
    }
}

impl Fences for ProcessFences {
    #[inline(always)]
    fn light() {
        if sys::HAS_BARRIER {
            compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
    }

    fn heavy() -> io::Result<()> {
        fence(Ordering::SeqCst);
        if sys::HAS_BARRIER && Self::can_be_light() {
            sys::barrier()?;
        }
        Ok(())
    }
}
