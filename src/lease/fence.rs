//! The memory fences and orderings that the lease protocol relies on.
//!
//! A reader publishes its range and then checks for writers; a writer announces its range and then
//! checks for readers. Each stores to one place and loads from another, and at least one of them
//! must see the other: the store and the load may not swap, on either side. That takes a full fence
//! on both sides (some 20 cycles each, and it stops the CPU from overlapping cache misses), or an
//! *asymmetric* pair: a compiler fence for the frequent reader, and for the rare writer a system
//! call that runs a full fence on every thread of the process. folly, liburcu and seize use the
//! same pair.
//!
//! The protocol relies on this property: [`membarrier(2)`] with `PRIVATE_EXPEDITED`, and
//! `FlushProcessWriteBuffers`, put a full barrier into every other running thread, between two of
//! its instructions. A thread that is not running passes a full barrier when it is scheduled. The
//! compiler fence keeps a reader's store before its load. If the store comes before the barrier,
//! the writer's scan sees the store. Otherwise the load comes after the barrier, and sees the
//! announcement.
//!
//! The fences only decide *which* value is seen. The Release and Acquire pairs named in [`Fences`]
//! make the data that one side has written visible to the other side.
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
/// Each constant and each second fence has one correct value, given here. The models override them
/// one at a time, to show that each of them is needed.
pub(crate) trait Fences: Debug + Send + Sync + 'static {
    /// Stores of a slot's fields by its thread. Pairs with [`FIELD_LOAD`](Self::FIELD_LOAD): if a
    /// slot was free in the meantime and a writer sees its new fields, the accesses under its
    /// earlier lease have ended for the writer.
    const FIELD_STORE: Ordering = Ordering::Release;
    /// Loads of a slot's fields by a writer.
    const FIELD_LOAD: Ordering = Ordering::Acquire;
    /// Store of a slot's state when its lease ends. Pairs with [`SCAN`](Self::SCAN): if a writer
    /// finds the slot free, the reader's accesses have ended for the writer.
    const RELEASE: Ordering = Ordering::Release;
    /// Load of a slot's state by a writer.
    const SCAN: Ordering = Ordering::Acquire;
    /// Store of the word that readers load. Pairs with [`READER_LOAD`](Self::READER_LOAD): a reader
    /// that passes on the fast path sees the writes that came before it.
    const ANNOUNCE: Ordering = Ordering::Release;
    /// Load of that word by a reader.
    const READER_LOAD: Ordering = Ordering::Acquire;

    /// Load by a writer of the bits of the listed blocks. Pairs with [`DELIST`](Self::DELIST): if a
    /// writer skips a block, the leases in the block have ended for the writer.
    const LISTED: Ordering = Ordering::Acquire;
    /// Clearing of such a bit.
    const DELIST: Ordering = Ordering::Release;

    /// The bit of a block is cleared only if its owner has not listed the block again.
    const RECHECKS_UNLISTED_FLAG: bool = true;
    /// If a reader takes its lease between the two scans of a blocked writer, the reader marks its
    /// own slot.
    const READER_MARKS_OWN_SLOT: bool = true;

    /// A request stores its stripes together with its hull, before its fence.
    const ANNOUNCES_STRIPES: bool = true;
    /// A range that is recorded as fenced was announced as one range, without gaps.
    const ANNOUNCES_GAPS: bool = true;

    /// A write without a fence is refused outside of the fenced range.
    const FENCES_THE_UNFENCED: bool = true;

    /// The reader's fence: between its store and its load.
    fn light();

    /// The reader's second fence: between the end of its lease and its check for a mark.
    #[inline(always)]
    fn light_again() {
        Self::light();
    }

    /// The writer's fence: between its announcement and its scan.
    ///
    /// # Errors
    ///
    /// If the system refuses the fence; the writer must not go on then.
    fn heavy() -> io::Result<()>;

    /// The fence between the store that flags a block as unlisted, and the second check of its
    /// slots.
    ///
    /// # Errors
    ///
    /// If the system refuses the fence; the block is flagged as listed again then.
    fn heavy_to_delist() -> io::Result<()> {
        Self::heavy()
    }

    /// The reader's fence between listing its block and loading the announcement. It is always a
    /// full fence, because it is rare.
    fn after_listing() {
        fence(Ordering::SeqCst);
    }

    /// The writer's second fence: between its mark on a conflicting lease and its second scan.
    fn heavy_again() -> io::Result<()> {
        Self::heavy()
    }
}

/// The fences of this process: asymmetric where the system has a process-wide barrier, and
/// otherwise full fences on both sides. The choice is fixed at build time, so that no reader has to
/// check.
#[derive(Debug)]
pub(crate) struct ProcessFences;

impl ProcessFences {
    /// Returns whether readers may use the light fence: the system has a barrier, or needs none. If
    /// the kernel or a system call filter refuses the barrier that the build relies on, no slots
    /// are handed out. Then all leases are in the map, and the heavy fence is not needed.
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
