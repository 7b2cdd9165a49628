//! The requests to the lease table, and its answers.

use std::sync::Arc;
use std::time::Instant;

use super::intervals::Key;
use super::slots::Slot;
use super::table::BRIEF;
use crate::range::ByteRange;
use crate::wakers::Event;

/// What a lease permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// To read.
    Shared,
    /// To read and write.
    Exclusive,
    /// To use through 4-byte atomics, together with other holders of the same kind.
    Atomic4,
    /// To use through 8-byte atomics, together with other holders of the same kind.
    Atomic8,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Shared, Self::Exclusive, Self::Atomic4, Self::Atomic8];

    /// The kinds under which words are used through atomics, with the size of a word in bytes.
    pub(super) const ATOMIC: [(Self, u64); 2] = [(Self::Atomic4, 4), (Self::Atomic8, 8)];

    /// Returns whether leases of the two kinds must not share a byte.
    pub(crate) fn excludes(self, other: Self) -> bool {
        self != other || self == Self::Exclusive
    }
}

/// How long the holder of a lease may keep it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Term {
    /// For a moment: for one copy of bytes, or until an operation of the queue ends or its caller
    /// has the lease. A caller that wants the bytes waits for its end.
    #[default]
    Brief,
    /// As long as an operation works, which may wait for a disk. A caller that wants the bytes does
    /// not wait for its end. No caller has the lease, so that it is no use of the file.
    Working,
    /// As long as the caller that has it likes.
    Lasting,
}

/// How a shared lease is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// In a slot of the calling thread if one is free: for views that end soon.
    Slot,
    /// In a slot in the same way, for a copy of the bytes, which ends by itself.
    Copy,
    /// In the table's own map: for views that may live long or move to another thread.
    Entry,
    /// There as well, for an operation: no caller has the lease, unless it is given to one.
    Work,
}

impl Hold {
    /// Returns how long a lease that is held in this way may last.
    pub(super) fn term(self, range: ByteRange) -> Term {
        match self {
            Self::Copy if range.len() <= BRIEF => Term::Brief,
            Self::Work => Term::Working,
            Self::Copy | Self::Slot | Self::Entry => Term::Lasting,
        }
    }
}

/// A granted lease, to be given back with [`Table::release`](super::table::Table::release).
#[derive(Debug)]
#[must_use = "a lease that is not released blocks writers forever"]
pub(crate) enum Token {
    /// A shared lease in a slot of the thread that took it.
    Slot(&'static Slot),
    /// A lease of any kind in the map under the mutex.
    Entry(Entry),
}

/// The place of a lease in the map: its kind and its key in one word. A token is two words then,
/// and is returned in registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry(u64);

impl Entry {
    pub(super) fn new(kind: Kind, key: Key) -> Self {
        Self((kind as u64) << 32 | u64::from(key.0))
    }

    pub(super) fn kind(self) -> Kind {
        Kind::ALL[(self.0 >> 32) as usize]
    }

    pub(super) fn key(self) -> Key {
        Key(self.0 as u32)
    }

    /// Returns a number that no other live entry of the table has.
    pub(super) fn number(self) -> u64 {
        self.0
    }
}

/// The origin of a request for a lease that is not a reader's; it decides how long the lease may
/// last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asks {
    /// An operation of the queue. A conflicting lease is marked, so that its end restarts the
    /// operation. The lease of the operation ends soon, unless it is given to a caller: then it is
    /// [marked as lasting](super::table::Table::mark_lasting).
    Queue,
    /// A caller that gets the lease at once and may keep it.
    Caller,
    /// A caller that may keep the lease, and that waits now for a conflict that ends soon. A
    /// conflicting lease is marked, so that its end tells the caller.
    #[cfg_attr(not(feature = "atomic"), allow(dead_code))]
    WaitingCaller,
}

/// What conflicts with a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conflict {
    /// Small writes that are being applied, a cut, a view that its caller does not have yet, or a
    /// copy that is being made of the bytes: ends soon.
    Applying,
    /// A large write, a mutable view, an atomic view or a reader: may last.
    Held,
    /// A write that has waited too long keeps new readers out until the given time.
    Gate(Instant),
}

/// The writers and readers to wake after a lease has ended.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Wake {
    /// The range of the ended lease, if a writer waits for its end.
    pub(crate) writers: Option<ByteRange>,
    /// The readers that wait for a byte of the range.
    pub(crate) readers: Vec<Arc<Event>>,
}

/// One write of a batch: what it needs, and whether it got it.
#[derive(Debug)]
pub(crate) struct Want<'a> {
    pub(crate) ranges: &'a [ByteRange],
    /// A refused write ends at once, so that later writes of the batch are not queued behind it.
    pub(crate) gives_up: bool,
    pub(crate) granted: bool,
}
