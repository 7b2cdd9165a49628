//! One exclusive operation: its action, its ranges and the bytes that it writes.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::Instant;

use bytes::Bytes;

use super::budget::Account;
use super::Granted;
use crate::commit::{Extent, Lost, Waiter};
use crate::completion::Completion;
use crate::error::{MmapIoError, Result};
use crate::flush::FlushPolicy;
use crate::lease::Kind;
use crate::range::ByteRange;
use crate::sync::{lock, AtomicU64, Mutex, Ordering};
use crate::trace::Phase;

/// One operation, shared by the queue and the future that waits for it.
#[derive(Debug)]
pub(crate) struct Op<L> {
    pub(crate) ranges: Ranges,
    pub(crate) action: Action,
    /// The bytes that the operation takes from an account of the budget: 0 unless it is a write.
    pub(super) weight: u64,
    pub(super) held: Mutex<Held>,
    /// The place in the order of submission; written and read under the queue's lock.
    pub(super) place: AtomicU64,
    /// The time at which the range was first found in use.
    pub(super) deferred_since: OnceLock<Instant>,
    /// A subscriber was warned of it; written and read under the queue's lock.
    pub(super) is_named: AtomicBool,
    /// The bytes that an append has added to the file; its `ranges` are their place in the order.
    appended: OnceLock<[ByteRange; 1]>,
    pub(super) phase: Phase,
    pub(super) lost: Lost,
    pub(super) done: Completion<Result<Outcome<L>>>,
}

/// The action of an operation on its ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Copies the payload to the ranges; ends when the flush that the policy requires has ended.
    Write(FlushPolicy),
    /// The same as `Write`, but gives up instead of being deferred.
    TryWrite(FlushPolicy),
    /// Writes the payload behind the end of the file. The one range has its length, and lies where
    /// no file reaches, so that it overlaps other appends and everything that changes the length.
    Append(FlushPolicy),
    /// The same as `Append`, but gives up unless the file has this length.
    AppendAt(FlushPolicy, u64),
    /// Leases the one range to the caller.
    Lease(Kind),
    /// Leases the one range exclusively, but leaves it to the caller to make its pages writable.
    #[cfg_attr(not(feature = "iterator"), allow(dead_code))]
    LeaseUnpopulated,
    /// Changes the length of the file to the start of the one range, which has no end.
    Resize,
    /// Makes the file at least as long as the start of the one range, which has no end.
    GrowTo,
    /// Changes the length like `Resize`, unless the file has bytes already.
    SetLenIfEmpty,
    /// Adopts the length that another process has given the file. Waits for its turn in the drain,
    /// but for no view: its range is empty.
    AdoptFileLen,
}

impl Action {
    pub(crate) fn is_write(self) -> bool {
        match self {
            Self::Write(_) | Self::TryWrite(_) | Self::Append(_) | Self::AppendAt(..) => true,
            Self::Lease(_)
            | Self::LeaseUnpopulated
            | Self::Resize
            | Self::GrowTo
            | Self::SetLenIfEmpty
            | Self::AdoptFileLen => false,
        }
    }

    /// Whether this operation may be applied in one batch with another.
    pub(super) fn joins(self, other: Self) -> bool {
        let kind = |action| match action {
            Self::Write(_) | Self::TryWrite(_) => Some(0),
            Self::Append(_) => Some(1),
            _ => None,
        };
        kind(self).is_some() && kind(self) == kind(other)
    }

    /// Whether the operation changes something, or lets its caller do so.
    pub(super) fn changes(self) -> bool {
        !matches!(self, Self::Lease(Kind::Shared))
    }

    /// Returns the flush policy of a write, and `Never` for other actions.
    pub(crate) fn policy(self) -> FlushPolicy {
        match self {
            Self::Write(policy)
            | Self::TryWrite(policy)
            | Self::Append(policy)
            | Self::AppendAt(policy, _) => policy,
            Self::Lease(_)
            | Self::LeaseUnpopulated
            | Self::Resize
            | Self::GrowTo
            | Self::SetLenIfEmpty
            | Self::AdoptFileLen => FlushPolicy::Never,
        }
    }
}

/// The ranges of an operation, in the order in which they are written. Those of a write have no more
/// than `isize::MAX` bytes together, so that their sums do not overflow: one range is as long as one
/// slice, and [`of_parts`](Self::of_parts) checks several.
#[derive(Debug)]
pub(crate) enum Ranges {
    One([ByteRange; 1]),
    Many(Box<[ByteRange]>),
}

impl Ranges {
    /// The ranges of a write of data in several parts. The parts may be the same bytes many times.
    ///
    /// # Errors
    ///
    /// `Io` with `OutOfMemory` if there cannot be a copy of all the data.
    pub(crate) fn of_parts(ranges: Box<[ByteRange]>) -> Result<Self> {
        let lens = ranges.iter().map(|range| range.len());
        let total = lens.fold(0, u64::saturating_add);
        match usize::try_from(total) {
            Ok(total) if total <= isize::MAX as usize => Ok(Self::Many(ranges)),
            _ => Err(MmapIoError::no_memory(total)),
        }
    }

    /// The place in the order of an append of `len` bytes; see [`Action::Append`].
    pub(crate) fn of_append(len: u64) -> Self {
        Self::One([ByteRange::between(u64::MAX - len, u64::MAX)])
    }
}

impl std::ops::Deref for Ranges {
    type Target = [ByteRange];

    fn deref(&self) -> &[ByteRange] {
        match self {
            Self::One(range) => range,
            Self::Many(ranges) => ranges,
        }
    }
}

impl Ranges {
    /// The smallest range that covers all of them.
    pub(crate) fn hull(&self) -> ByteRange {
        let hull = self.iter().copied().reduce(ByteRange::hull);
        hull.unwrap_or(ByteRange::EMPTY)
    }

    /// Returns the bytes that a write to these ranges takes from an account of the budget: its data
    /// and its overhead, which together are about the memory that it uses. The sum does not overflow:
    /// the data has at most `isize::MAX` bytes, and the ranges themselves are in memory.
    pub(super) fn weight(&self) -> u64 {
        const OWN: u64 = if cfg!(mmap_io_loom) { 0 } else { 384 };
        const A_RANGE: u64 = if cfg!(mmap_io_loom) { 0 } else { 128 };
        let ranges = self.iter().map(|range| range.len() + A_RANGE);
        OWN + ranges.sum::<u64>()
    }
}

/// The payload of an operation until it starts, and where the operation waits.
#[derive(Debug)]
pub(super) enum Held {
    /// At the door: the write has a place in the order, but no room. There is a payload if the
    /// future has handed it over, and none if the future will copy its data.
    Outside(Option<Payload>),
    /// The write has room in [`Account::Queued`], and its future has to bring the payload in.
    Called(Option<Payload>),
    /// In the queue, with room in the given account.
    Ready(Payload, Account),
    /// Started, or withdrawn.
    Gone,
}

/// The bytes to write, one range after the other.
#[derive(Debug)]
pub(crate) enum Payload {
    /// A copy; the future can make another one.
    Owned(Box<[u8]>),
    Shared(Bytes),
    /// Bytes that lie in one of our maps; copied before the drain does anything else with the
    /// operation. They hold a lease, for which this write, or a write that it waits for, may have
    /// to wait.
    Mapped(Bytes),
    /// The copy of such bytes. It is the only copy, because the lease was released.
    Unmapped(Box<[u8]>),
    /// No bytes: the operation is not a write.
    Nothing,
}

impl Payload {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) | Self::Unmapped(bytes) => bytes,
            Self::Shared(bytes) | Self::Mapped(bytes) => bytes,
            Self::Nothing => &[],
        }
    }
}

/// The outcome of an operation that has succeeded.
#[derive(Debug)]
pub(crate) enum Outcome<L> {
    Done,
    /// The bytes of an append begin at this offset.
    Appended(u64),
    /// Something conflicts with a [`Action::TryWrite`], or the file has another length than a
    /// [`Action::AppendAt`] expects.
    InUse,
    Leased(L),
}

impl<L: Granted> Outcome<L> {
    /// Notes that a future waits for the outcome and holds it from now on.
    pub(super) fn delivered(&self) {
        match self {
            Self::Leased(lease) => lease.delivered(),
            Self::Done | Self::Appended(_) | Self::InUse => {}
        }
    }
}

impl<L> Op<L> {
    /// Creates an operation other than a write through a [`Source`](super::Source).
    pub(crate) fn new(range: ByteRange, action: Action) -> Arc<Self> {
        let held = Held::Ready(Payload::Nothing, Account::Queued);
        Self::with(Ranges::One([range]), action, 0, held, Completion::new())
    }

    /// Creates a write; `waker` will wake its future.
    pub(super) fn write(ranges: Ranges, action: Action, held: Held, waker: Waker) -> Arc<Self> {
        let weight = ranges.weight();
        Self::with(ranges, action, weight, held, Completion::to_wake(waker))
    }

    fn with(
        ranges: Ranges,
        action: Action,
        weight: u64,
        held: Held,
        done: Completion<Result<Outcome<L>>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            ranges,
            action,
            weight,
            held: Mutex::new(held),
            place: AtomicU64::new(0),
            deferred_since: OnceLock::new(),
            is_named: AtomicBool::new(false),
            appended: OnceLock::new(),
            phase: Phase::submit(),
            lost: Lost::nothing(),
            done,
        })
    }

    /// Takes the payload into the room that the write was called to; returns `false` if the write
    /// was not called. The caller holds the queue's lock.
    pub(super) fn enter(&self, copied: Option<Payload>) -> bool {
        let mut held = lock(&self.held);
        let Held::Called(handed_over) = &mut *held else {
            return false;
        };
        let payload = handed_over.take().or(copied);
        let payload = payload.expect("handed over or copied");
        *held = Held::Ready(payload, Account::Queued);
        true
    }

    /// Fills a write that was admitted without its data, and is not submitted yet.
    pub(super) fn fill(&self, copied: Payload) {
        if let Held::Ready(payload, _) = &mut *lock(&self.held) {
            *payload = copied;
        }
    }

    /// Returns whether the operation has neither started nor been withdrawn.
    pub(super) fn is_queued(&self) -> bool {
        !matches!(*lock(&self.held), Held::Gone)
    }

    /// Returns the bytes of data that the operation holds, or has room for.
    pub(super) fn held_bytes(&self) -> u64 {
        match *lock(&self.held) {
            Held::Ready(..) | Held::Called(_) if self.action.is_write() => self.len(),
            _ => 0,
        }
    }

    /// Returns whether the operation was deferred before.
    pub(crate) fn was_deferred(&self) -> bool {
        self.deferred_since.get().is_some()
    }

    /// Returns the place in the order of submission. The caller holds the queue's lock.
    pub(super) fn place(&self) -> u64 {
        self.place.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes that a write writes.
    pub(super) fn len(&self) -> u64 {
        self.ranges.iter().map(|range| range.len()).sum()
    }

    /// Notes where the file has the bytes of an append.
    pub(crate) fn set_appended(&self, range: ByteRange) {
        // An append is applied once.
        let _ = self.appended.set([range]);
    }

    /// The ranges of the file that were written; none of an append that has failed.
    pub(crate) fn written(&self) -> &[ByteRange] {
        match (self.appended.get(), self.action) {
            (Some(appended), _) => appended,
            // Its range is only its place in the order.
            (None, Action::Append(_) | Action::AppendAt(..)) => &[],
            (None, _) => &self.ranges,
        }
    }

    /// The outcome of a write that has succeeded.
    pub(crate) fn success(&self) -> Outcome<L> {
        match self.appended.get() {
            Some([range]) => Outcome::Appended(range.start()),
            None => Outcome::Done,
        }
    }
}

impl<L: Send> Waiter for Op<L> {
    fn extent(&self) -> Extent<'_> {
        Extent::Ranges(self.written())
    }

    fn lost(&self) -> &Lost {
        &self.lost
    }

    fn acknowledge(&self, result: Result<()>) -> Option<Waker> {
        self.phase.end();
        self.done.complete(result.map(|()| self.success()))
    }
}
