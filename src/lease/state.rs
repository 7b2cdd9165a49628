//! The state of a lease table, which its mutex protects.

use std::time::Instant;

use super::announced::Stripes;
use super::intervals::{Intervals, Key};
use super::kinds::{Conflict, Entry, Kind, Term, Token};
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
    pub(super) term: Term,
    /// The lowest end that another process has given the file while the lease lived, of those that
    /// cut off bytes of the lease.
    pub(super) cut_at: Option<u64>,
}

impl Marks {
    pub(super) fn of(term: Term) -> Self {
        Self {
            term,
            ..Self::default()
        }
    }
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
    /// Records a lease in the map.
    pub(super) fn insert(&mut self, kind: Kind, range: ByteRange, marks: Marks) -> Token {
        if kind != Kind::Shared {
            self.held = None;
        }
        let key = self.entries[kind as usize].insert(range, marks);
        Token::Entry(Entry::new(kind, key))
    }

    /// Returns the conflict that a new lease on `range` would have with leases of the kinds that
    /// `excludes` names, with the batch, and with the gate. Does not look at the slots.
    pub(super) fn conflict(
        &self,
        excludes: impl Fn(Kind) -> bool,
        range: ByteRange,
    ) -> Option<Conflict> {
        if self.is_applying(range) {
            return Some(if self.applying_is_brief {
                Conflict::Applying
            } else {
                Conflict::Held
            });
        }
        if self.find_entry(&excludes, range).is_some() {
            let lasts = Kind::ALL.into_iter().any(|kind| {
                let lasting = |marks: &Marks| marks.term != Term::Brief;
                excludes(kind) && self.entries[kind as usize].any_overlap(range, lasting)
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
        if let Some((kind, key)) = self.find_entry(|other| kind.excludes(other), range) {
            return Some(Obstacle::Entry(kind, key));
        }
        self.is_applying(range).then_some(Obstacle::Applying)
    }

    /// Returns any lease in the map on a byte of `range` whose kind `excludes` names.
    fn find_entry(&self, excludes: impl Fn(Kind) -> bool, range: ByteRange) -> Option<(Kind, Key)> {
        let mut kinds = Kind::ALL.into_iter().filter(|kind| excludes(*kind));
        kinds.find_map(|kind| Some((kind, self.entries[kind as usize].find_overlap(range)?)))
    }

    /// Returns the parts of `range` by the kind of lease under which a copy reads them: whole words
    /// that are in atomic use, and shared parts between them. Sorted and disjoint; together they
    /// cover `range`.
    pub(super) fn copy_parts(&self, range: ByteRange) -> Vec<(Kind, ByteRange)> {
        let mut atomic: Vec<(Kind, ByteRange)> = Vec::new();
        for (kind, word) in Kind::ATOMIC {
            let entries = &self.entries[kind as usize];
            let mut at = range.start();
            // Of leases that overlap each other, the walk visits only those that reach further than
            // all before them.
            while let Some(held) = entries.first_ending_after(at) {
                if held.start().max(at) >= range.end() {
                    break;
                }
                // Atomic leases are on whole words. The intersection makes sure that the part is
                // under the lease in any case.
                let start = held.start().max(at / word * word);
                let end = held.end().min(range.end().next_multiple_of(word));
                at = held.end();
                match atomic.last_mut() {
                    Some((last, part)) if *last == kind && part.end() >= start => {
                        *part = ByteRange::between(part.start(), end);
                    }
                    _ => atomic.push((kind, ByteRange::between(start, end))),
                }
            }
        }
        atomic.sort_unstable_by_key(|(_, part)| part.start());
        let mut parts = Vec::with_capacity(2 * atomic.len() + 1);
        let mut at = range.start();
        for (kind, part) in atomic {
            if at < part.start() {
                parts.push((Kind::Shared, ByteRange::between(at, part.start())));
            }
            at = part.end();
            parts.push((kind, part));
        }
        if at < range.end() {
            parts.push((Kind::Shared, ByteRange::between(at, range.end())));
        }
        parts
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
