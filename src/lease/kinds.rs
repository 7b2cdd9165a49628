//! What is asked of the lease table, and what it answers.

use std::sync::Arc;
use std::time::Instant;

use super::intervals::Key;
use super::slots::Slot;
use crate::range::ByteRange;
use crate::wakers::Event;

/// What a lease permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// To read.
    Shared,
    /// To read and write.
    Exclusive,
    /// To use through 4-byte atomics, together with others that do.
    #[allow(dead_code)]
    // Atomic views are its callers to be; the oracle and the models drive it.
    Atomic4,
    /// To use through 8-byte atomics, together with others that do.
    #[allow(dead_code)]
    Atomic8,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Shared, Self::Exclusive, Self::Atomic4, Self::Atomic8];

    /// Whether leases of the two kinds may not share a byte.
    pub(crate) fn excludes(self, other: Self) -> bool {
        self != other || self == Self::Exclusive
    }
}

/// A lease that was granted, to be given back with [`Table::release`].
#[derive(Debug)]
#[must_use = "a lease that is not released blocks writers for ever"]
pub(crate) enum Token {
    /// A shared lease in a slot of the thread that took it.
    Slot(&'static Slot),
    /// A lease of any kind in the map under the mutex.
    Entry(Entry),
}

/// Where a lease in the map stands: its kind and key, in one word, so that a token is two and is
/// returned in registers.
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
}

/// Who asks for a lease that is not a reader's, and so how long it may last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asks {
    /// An operation of the queue. What conflicts with it tells when it goes. Its lease is over in a
    /// moment, unless it is given to a caller: then it is [marked](Table::mark_lasting).
    Queue,
    /// A caller, who has it at once and may keep it.
    Caller,
}

/// What conflicts with a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conflict {
    /// Small writes that are being applied, a cut, or a view that its caller does not have yet: over
    /// in a moment.
    Applying,
    /// A large write, a mutable or an atomic view, or a reader: over when it is.
    Held,
    /// A write that has waited too long keeps new readers out until then.
    Gate(Instant),
}

/// Whom to wake after a lease has ended.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Wake {
    /// A writer waits for what has ended: a lease on that range.
    pub(crate) writers: Option<ByteRange>,
    /// The readers that wait for a byte of it.
    pub(crate) readers: Vec<Arc<Event>>,
}

/// One write of a batch: what it needs, and whether it got it.
#[derive(Debug)]
pub(crate) struct Want<'a> {
    pub(crate) ranges: &'a [ByteRange],
    /// If it is refused it is over, and nobody is behind it.
    pub(crate) gives_up: bool,
    pub(crate) granted: bool,
}
