//! One exclusive operation: what it does to which ranges, and the bytes that it writes.

use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::Instant;

use bytes::Bytes;

use super::budget::Account;
use super::Granted;
use crate::commit::{Extent, Waiter};
use crate::completion::Completion;
use crate::error::Result;
use crate::flush::FlushPolicy;
use crate::lease::Kind;
use crate::range::ByteRange;
use crate::sync::{lock, AtomicU64, Mutex, Ordering};

/// One operation, shared by the queue and the future that waits for it.
#[derive(Debug)]
pub(crate) struct Op<L> {
    pub(crate) ranges: Ranges,
    pub(crate) action: Action,
    /// Bytes that it takes of an account of the budget: 0 unless it is a write.
    pub(super) weight: u64,
    pub(super) held: Mutex<Held>,
    /// Its place in the order of submission; written and read under the queue's lock.
    pub(super) place: AtomicU64,
    /// When it was first found in use.
    pub(super) deferred_since: OnceLock<Instant>,
    pub(super) done: Completion<Result<Outcome<L>>>,
}

/// What an operation does to its ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Copies its payload there; done when what the policy asks for is.
    Write(FlushPolicy),
    /// The same, but gives up instead of being deferred.
    TryWrite(FlushPolicy),
    /// Leases its one range to the caller.
    Lease(Kind),
    /// Changes the length of the file to the start of its one range, which is unbounded.
    Resize,
    /// Makes the file at least as long as the start of its one range, which is unbounded.
    GrowTo,
    /// Changes the length likewise, unless the file has bytes already.
    SetLenIfEmpty,
    /// Takes note of the length that another process has given the file. Waits for its turn in the
    /// drain, and for no view: its range is empty.
    AdoptFileLen,
}

impl Action {
    pub(super) fn is_write(self) -> bool {
        matches!(self, Self::Write(_) | Self::TryWrite(_))
    }

    /// When what it writes is flushed.
    pub(crate) fn policy(self) -> FlushPolicy {
        match self {
            Self::Write(policy) | Self::TryWrite(policy) => policy,
            Self::Lease(_)
            | Self::Resize
            | Self::GrowTo
            | Self::SetLenIfEmpty
            | Self::AdoptFileLen => FlushPolicy::Never,
        }
    }
}

/// The ranges of an operation, in the order in which they are written.
#[derive(Debug)]
pub(crate) enum Ranges {
    One([ByteRange; 1]),
    Many(Box<[ByteRange]>),
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
    /// Bytes that a write to these ranges takes of an account of the budget: its data, and what it
    /// costs to keep it. About what it takes of memory.
    pub(super) fn weight(&self) -> u64 {
        const OWN: u64 = if cfg!(mmap_io_loom) { 0 } else { 384 };
        const A_RANGE: u64 = if cfg!(mmap_io_loom) { 0 } else { 128 };
        let ranges = self.iter().map(|range| range.len() + A_RANGE);
        OWN + ranges.sum::<u64>()
    }
}

/// What an operation owns until it starts, and where it waits for that.
#[derive(Debug)]
pub(super) enum Held {
    /// At the door: it has its place in the order, and no room. The payload is there if the future
    /// has handed it over, and not if the future is to copy it.
    Outside(Option<Payload>),
    /// It has room in [`Account::Queued`], and its future is to bring the payload in.
    Called(Option<Payload>),
    /// In the queue, with room in that account.
    Ready(Payload, Account),
    /// Started, or withdrawn.
    Gone,
}

/// The bytes to write, one range after the other.
#[derive(Debug)]
pub(crate) enum Payload {
    /// A copy, which the future can make again.
    Owned(Box<[u8]>),
    Shared(Bytes),
    /// Bytes that lie in a map of ours; copied before anything else is done with the operation.
    /// They hold a lease, which this write, or one that it waits for, may have to wait for.
    Mapped(Bytes),
    /// The copy of such bytes, of which there is no other any more.
    Unmapped(Box<[u8]>),
    /// For operations that write nothing.
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

/// How an operation ended well.
#[derive(Debug)]
pub(crate) enum Outcome<L> {
    Done,
    /// Something conflicts with a [`Action::TryWrite`].
    InUse,
    Leased(L),
}

impl<L: Granted> Outcome<L> {
    /// A future waits for the outcome, and has it from now on.
    pub(super) fn delivered(&self) {
        match self {
            Self::Leased(lease) => lease.delivered(),
            Self::Done | Self::InUse => {}
        }
    }
}

impl<L> Op<L> {
    /// An operation of nothing but an action.
    pub(crate) fn new(range: ByteRange, action: Action) -> Arc<Self> {
        let held = Held::Ready(Payload::Nothing, Account::Queued);
        Self::with(Ranges::One([range]), action, 0, held, Completion::new())
    }

    /// A write, whose future will be woken by `waker`.
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
            done,
        })
    }

    /// Holds its payload, in the room that it was called to; `false` if it was not. The queue's lock
    /// is held.
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

    /// Neither started nor withdrawn.
    pub(super) fn is_queued(&self) -> bool {
        !matches!(*lock(&self.held), Held::Gone)
    }

    /// Bytes of data that it holds, or has room for.
    pub(super) fn held_bytes(&self) -> u64 {
        match *lock(&self.held) {
            Held::Ready(..) | Held::Called(_) if self.action.is_write() => self.len(),
            _ => 0,
        }
    }

    /// It was found in use before.
    pub(crate) fn was_deferred(&self) -> bool {
        self.deferred_since.get().is_some()
    }

    /// Its place in the order; the queue's lock is held.
    pub(super) fn place(&self) -> u64 {
        self.place.load(Ordering::Relaxed)
    }

    /// Bytes that a write writes.
    pub(super) fn len(&self) -> u64 {
        self.ranges.iter().map(|range| range.len()).sum()
    }

    pub(super) fn hull(&self) -> Option<ByteRange> {
        self.ranges.iter().copied().reduce(ByteRange::hull)
    }
}

impl<L: Send> Waiter for Op<L> {
    fn extent(&self) -> Extent<'_> {
        Extent::Ranges(&self.ranges)
    }

    fn acknowledge(&self, result: Result<()>) -> Option<Waker> {
        self.done.complete(result.map(|()| Outcome::Done))
    }
}
