//! What the lease table knows under its mutex.

use std::time::Instant;

use super::announced::Stripes;
use super::intervals::{Intervals, Key};
use super::kinds::{Conflict, Kind};
use super::slots::Slot;
use crate::range::ByteRange;

/// What is known under the mutex.
#[derive(Debug)]
pub(super) struct State {
    /// Leases in the map by kind.
    pub(super) entries: [Intervals<Marks>; 4],
    /// The stripes of those that readers must not overlook, since they were last looked for.
    pub(super) held: Option<Stripes>,
    /// Ranges of the batch of writes that is being applied: sorted, disjoint.
    pub(super) applying: Vec<ByteRange>,
    /// The batch is at most [`BRIEF`].
    pub(super) applying_is_brief: bool,
    /// Requests between their announcement and their last look.
    pub(super) pending: Vec<Pending>,
    /// Requests that were ever made.
    pub(super) requests: u64,
    /// A range that has stayed announced since before a heavy fence that has ended: a slot on it
    /// is visible, or its reader comes here first.
    pub(super) closed: Option<ByteRange>,
    /// Readers that have met nobody since the last request.
    pub(super) empty_checks: u32,
    /// Ranges that new readers stay out of until the given time.
    pub(super) gate: Option<Gate>,
    /// Scratch of the scan.
    pub(super) live: Vec<(ByteRange, &'static Slot)>,
}

/// What is known of a lease in the map.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Marks {
    /// A writer waits for its end.
    pub(super) watched: bool,
    /// A caller has it, and may keep it. Readers do not look at that of another reader.
    pub(super) lasting: bool,
}

/// The turn of a write that was blocked by ever new readers.
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

/// A request that is not decided yet.
#[derive(Debug)]
pub(super) struct Pending {
    /// Tells it from others on the same bytes.
    pub(super) number: u64,
    pub(super) hull: ByteRange,
    /// What it announces: its hull, or all from what is closed to there.
    pub(super) announces: ByteRange,
    /// It has marked slots, and run its last fence or is about to.
    pub(super) has_marked: bool,
}

/// What blocks a writer, slots apart.
#[derive(Clone, Copy)]
pub(super) enum Obstacle {
    Entry(Kind, Key),
    /// The batch that is being applied: only a request from outside the queue can meet it, and
    /// those do not wait.
    Applying,
}

impl State {
    /// What a new shared lease on `range` would meet.
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

    /// What a new lease of `kind` on `range` would meet, slots apart.
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

    /// Hulls of all that a reader must not overlook.
    pub(super) fn all_writers(&self) -> impl Iterator<Item = ByteRange> + '_ {
        let held = self.held().filter_map(Intervals::hull);
        let applying = self.applying.first().into_iter();
        let applying = applying.chain(self.applying.last());
        held.chain(applying.copied()).chain(self.unheld())
    }

    /// The stripes of all that a reader must not overlook, inside of `hull`.
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

    /// The leases in the map that readers must not overlook.
    fn held(&self) -> impl Iterator<Item = &Intervals<Marks>> {
        let held = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Shared);
        held.map(|kind| &self.entries[kind as usize])
    }

    /// What readers must not overlook, though it is no lease.
    fn unheld(&self) -> impl Iterator<Item = ByteRange> + '_ {
        let gate = self.gate.iter().flat_map(|gate| &gate.ranges);
        let pending = self.pending.iter().map(|request| &request.announces);
        gate.chain(&self.closed).chain(pending).copied()
    }
}
