//! The state of a lease table, which its mutex protects.

use std::time::Instant;

use super::announced::Stripes;
use super::intervals::{Intervals, Key};
use super::kinds::{Conflict, Kind};
use super::slots::Slot;
use crate::range::ByteRange;

/// The part of a lease table that its mutex protects.
#[derive(Debug)]
pub(super) struct State {
    /// Leases in the map by kind.
    pub(super) entries: [Intervals<Marks>; 4],
    /// A cache of the stripes of the leases that readers must not overlook; `None` if those leases
    /// have changed since it was computed.
    pub(super) held: Option<Stripes>,
    /// Ranges of the batch of writes that is being applied: sorted, disjoint.
    pub(super) applying: Vec<ByteRange>,
    /// The batch has at most [`BRIEF`](super::table::BRIEF) bytes.
    pub(super) applying_is_brief: bool,
    /// Requests between their announcement and their last scan.
    pub(super) pending: Vec<Pending>,
    /// Number of requests made so far.
    pub(super) requests: u64,
    /// The *fenced* range: it has been announced since before a heavy fence that has ended. A slot
    /// that overlaps it is visible to writers, or its reader takes the mutex first.
    pub(super) fenced: Option<ByteRange>,
    /// Readers since the last request that took the mutex and found no conflict.
    pub(super) empty_checks: u32,
    /// Ranges that new readers stay out of until the given time.
    pub(super) gate: Option<Gate>,
    /// A buffer that the scan reuses.
    pub(super) live: Vec<(ByteRange, &'static Slot)>,
}

/// The marks on a lease in the map.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Marks {
    /// A writer waits for the end of the lease.
    pub(super) watched: bool,
    /// A caller holds the lease and may keep it. Not used for shared leases, which do not conflict
    /// with readers.
    pub(super) lasting: bool,
}

/// The turn of a write that a steady stream of readers has blocked.
#[derive(Debug)]
pub(super) struct Gate {
    pub(super) ranges: Vec<ByteRange>,
    pub(super) until: Instant,
}

impl Gate {
    pub(super) fn overlaps(&self, range: ByteRange) -> bool {
        self.ranges.iter().any(|other| other.overlaps(range))
    }
}

/// A request that is neither granted nor refused yet.
#[derive(Debug)]
pub(super) struct Pending {
    /// Distinguishes the request from other requests on the same bytes.
    pub(super) number: u64,
    pub(super) hull: ByteRange,
    /// What the request announces: its hull, or the hull of the fenced range and its own.
    pub(super) announces: ByteRange,
    /// The request has marked slots; it runs its second fence now, or has run it.
    pub(super) has_marked: bool,
}

/// An obstacle that blocks a writer, other than a slot.
#[derive(Clone, Copy)]
pub(super) enum Obstacle {
    Entry(Kind, Key),
    /// The batch that is being applied. Only a request from outside the queue can conflict with it,
    /// and such a request does not wait.
    Applying,
}

impl State {
    /// Returns the conflict that a new shared lease on `range` would have.
    pub(super) fn reader_conflict(&self, range: ByteRange) -> Option<Conflict> {
        if self.is_applying(range) {
            return Some(if self.applying_is_brief {
                Conflict::Applying
            } else {
                Conflict::Held
            });
        }
        if self.find_excluding(Kind::Shared, range).is_some() {
            let lasts = Kind::ALL.into_iter().any(|kind| {
                let lasting = |marks: &Marks| marks.lasting;
                kind.excludes(Kind::Shared)
                    && self.entries[kind as usize].any_overlap(range, lasting)
            });
            return Some(if lasts {
                Conflict::Held
            } else {
                Conflict::Applying
            });
        }
        match &self.gate {
            Some(gate) if gate.overlaps(range) => Some(Conflict::Gate(gate.until)),
            _ => None,
        }
    }

    /// Returns the obstacle for a new lease of `kind` on `range`, without the slots.
    pub(super) fn writer_conflict(&self, kind: Kind, range: ByteRange) -> Option<Obstacle> {
        if let Some((kind, key)) = self.find_excluding(kind, range) {
            return Some(Obstacle::Entry(kind, key));
        }
        self.is_applying(range).then_some(Obstacle::Applying)
    }

    pub(super) fn find_excluding(&self, kind: Kind, range: ByteRange) -> Option<(Kind, Key)> {
        let others = Kind::ALL.into_iter().filter(|other| kind.excludes(*other));
        others
            .filter_map(|other| Some((other, self.entries[other as usize].find_overlap(range)?)))
            .next()
    }

    pub(super) fn is_applying(&self, range: ByteRange) -> bool {
        let next = self
            .applying
            .partition_point(|other| other.end() <= range.start());
        self.applying
            .get(next)
            .is_some_and(|other| other.overlaps(range))
    }

    /// Returns ranges whose hull covers everything that a reader must not overlook.
    pub(super) fn all_writers(&self) -> impl Iterator<Item = ByteRange> + '_ {
        let held = self.held().filter_map(Intervals::hull);
        let applying = self.applying.first().into_iter();
        let applying = applying.chain(self.applying.last());
        held.chain(applying.copied()).chain(self.unheld())
    }

    /// Returns the stripes of everything that a reader must not overlook, all of which lies inside
    /// `hull`.
    pub(super) fn stripes(&mut self, hull: ByteRange) -> Stripes {
        let mut stripes = Stripes::none_over(hull);
        match self.held {
            Some(held) if held.scale == stripes.scale => stripes = held,
            _ => {
                for entries in self.held() {
                    stripes.add_all(entries);
                }
                self.held = Some(stripes);
            }
        }
        for range in self.applying.iter().copied().chain(self.unheld()) {
            stripes.add(range);
        }
        stripes
    }

    /// Returns the leases in the map that readers must not overlook, by kind.
    fn held(&self) -> impl Iterator<Item = &Intervals<Marks>> {
        let held = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Shared);
        held.map(|kind| &self.entries[kind as usize])
    }

    /// Returns the ranges that readers must not overlook and that are not leased: gate, fenced
    /// range and requests.
    fn unheld(&self) -> impl Iterator<Item = ByteRange> + '_ {
        let gate = self.gate.iter().flat_map(|gate| &gate.ranges);
        let pending = self.pending.iter().map(|request| &request.announces);
        gate.chain(&self.fenced).chain(pending).copied()
    }
}
