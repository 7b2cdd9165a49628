//! The door of the queue: the writes that have a place in the order, but no room for their data.
//!
//! A write takes its place when it is first polled. If there is no room, its future keeps the data
//! until the write is *called*: then the room is reserved for it, and the future brings the data
//! in. Until then, later operations that overlap it are deferred.
//!
//! A write that waits only for room stands in the *line*: first come, first served. A write that
//! was found blocked while [`Account::Blocked`] was full stands beside the line: it was sent back
//! without its data. It joins the line again, at its place, when the obstacle has gone, or when
//! that account has room for it.
//!
//! A task may poll several writes and then await them one by one, in that order. So a write must
//! never wait until a later write is polled: if a write that joins the line again finds no room,
//! later writes that were called and have not come in give their room back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::budget::{Account, Budget};
use super::op::{Held, Op, Payload};
use crate::error::Result;
use crate::lease::{Intervals, Key};
use crate::range::ByteRange;
use crate::residency::room_for_copy;
use crate::sync::lock;

/// The data of a write, in the form in which its future holds it.
#[derive(Debug)]
pub(crate) enum Source<'a> {
    /// Borrowed data, copied when there is room.
    Slice(&'a [u8]),
    /// Borrowed data in several parts, each with its offset.
    Parts(&'a [(u64, &'a [u8])]),
    /// Data that is handed over without a copy.
    Payload(Payload),
}

impl Source<'_> {
    /// Returns the data, one part for each range.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let (one, many) = match self {
            Self::Slice(data) => (Some(*data), &[][..]),
            Self::Parts(parts) => (None, *parts),
            Self::Payload(payload) => (Some(payload.bytes()), &[][..]),
        };
        let many = many.iter().map(|(_, part)| *part);
        one.into_iter().chain(many).filter(|part| !part.is_empty())
    }

    /// Takes the payload, if the data is handed over without a copy.
    pub(super) fn hand_over(&mut self) -> Option<Payload> {
        match self {
            Self::Slice(_) | Self::Parts(_) => None,
            Self::Payload(payload) => Some(std::mem::replace(payload, Payload::Nothing)),
        }
    }

    /// Returns a copy of borrowed data.
    ///
    /// # Errors
    ///
    /// `Io` with `OutOfMemory`. The data may be a view of a file that is larger than the memory.
    pub(super) fn copy(&self) -> Result<Payload> {
        debug_assert!(
            !matches!(self, Self::Payload(_)),
            "it is handed over, not copied"
        );
        // No overflow: `Ranges` has no more bytes.
        let len = self.parts().map(<[u8]>::len).sum();
        let mut data = room_for_copy(len)?;
        self.parts().for_each(|part| data.extend_from_slice(part));
        Ok(Payload::Owned(data.into()))
    }
}

/// The writes without room, by their places in the order.
#[derive(Debug)]
pub(super) struct Door<L> {
    writes: BTreeMap<u64, Outside<L>>,
    /// The ranges of all writes, with the places of the writes.
    ranges: Intervals<u64>,
    /// The writes that wait only for room.
    line: BTreeSet<u64>,
    /// The length of the line that the budget was told last.
    told: usize,
    /// The writes that were called and have not come in yet.
    called: BTreeSet<u64>,
    /// The writes that were found blocked and sent back.
    blocked: BTreeSet<u64>,
}

#[derive(Debug)]
struct Outside<L> {
    op: Arc<Op<L>>,
    /// The keys of its ranges.
    keys: Box<[Key]>,
}

impl<L> Door<L> {
    pub(super) fn new() -> Self {
        Self {
            writes: BTreeMap::new(),
            ranges: Intervals::new(),
            line: BTreeSet::new(),
            told: 0,
            called: BTreeSet::new(),
            blocked: BTreeSet::new(),
        }
    }

    /// Puts a new write into the line.
    pub(super) fn join(&mut self, op: Arc<Op<L>>) {
        self.line.insert(op.place());
        self.insert(op);
    }

    /// Puts a write that was found blocked beside the line.
    pub(super) fn send_back(&mut self, op: Arc<Op<L>>) {
        self.blocked.insert(op.place());
        self.insert(op);
    }

    fn insert(&mut self, op: Arc<Op<L>>) {
        let place = op.place();
        let insert = |range: &ByteRange| self.ranges.insert(*range, place);
        let keys = op.ranges.iter().map(insert).collect();
        self.writes.insert(place, Outside { op, keys });
    }

    /// Removes a write that has come in or was withdrawn.
    pub(super) fn remove(&mut self, place: u64) {
        if let Some(outside) = self.writes.remove(&place) {
            for key in &*outside.keys {
                self.ranges.remove(*key);
            }
        }
        self.line.remove(&place);
        self.called.remove(&place);
        self.blocked.remove(&place);
    }

    pub(super) fn overlaps(&self, range: ByteRange) -> bool {
        self.ranges.overlaps(range)
    }

    /// Returns whether a write before `place` in the order overlaps `range`.
    pub(super) fn overlaps_before(&self, range: ByteRange, place: u64) -> bool {
        self.ranges.any_overlap(range, |other| *other < place)
    }

    /// Returns whether a write that was found blocked, behind `place`, overlaps `range`.
    pub(super) fn blocks_behind(&self, range: ByteRange, place: u64) -> bool {
        !self.blocked.is_empty()
            && self.ranges.any_overlap(range, |other| {
                *other > place && self.blocked.contains(other)
            })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    pub(super) fn has_blocked(&self) -> bool {
        !self.blocked.is_empty()
    }

    /// Returns all writes at the door.
    pub(super) fn ops(&self) -> impl Iterator<Item = &Arc<Op<L>>> {
        self.writes.values().map(|outside| &outside.op)
    }

    /// Gives room to the writes in the line, in order, as far as there is room; returns these
    /// writes, to be woken.
    pub(super) fn call(&mut self, budget: &Budget) -> Vec<Arc<Op<L>>> {
        let mut called = Vec::new();
        while let Some(place) = self.line.first().copied() {
            let op = self.writes[&place].op.clone();
            while !budget.try_take(Account::Queued, op.weight) {
                if !self.call_off_after(place, budget) {
                    self.tell(budget);
                    return called;
                }
            }
            self.line.remove(&place);
            let mut held = lock(&op.held);
            match &mut *held {
                Held::Outside(payload) => {
                    *held = Held::Called(payload.take());
                    drop(held);
                    self.called.insert(place);
                    called.push(op);
                }
                // The write is being withdrawn, which removes it from the door.
                _ => budget.give_back(Account::Queued, op.weight),
            }
        }
        self.tell(budget);
        called
    }

    /// Tells the budget the length of the line, so that new writes do not overtake it.
    fn tell(&mut self, budget: &Budget) {
        if self.told != self.line.len() {
            self.told = self.line.len();
            budget.set_waiting(self.told);
        }
    }

    /// Takes the room back from the last write that was called, if it is behind `place`.
    fn call_off_after(&mut self, place: u64, budget: &Budget) -> bool {
        let Some(last) = self.called.last().copied().filter(|last| *last > place) else {
            return false;
        };
        self.called.remove(&last);
        let op = &self.writes[&last].op;
        let mut held = lock(&op.held);
        // A write that is being withdrawn gives its room back itself.
        if let Held::Called(payload) = &mut *held {
            *held = Held::Outside(payload.take());
            budget.give_back(Account::Queued, op.weight);
            self.line.insert(last);
        }
        true
    }

    /// Lets the writes that were found blocked join the line again. A write may join if no earlier
    /// operation is known to block it, at the door or by `is_behind`, or if the account of blocked
    /// writes has room for it.
    pub(super) fn reconsider(
        &mut self,
        budget: &Budget,
        is_behind: impl Fn(ByteRange, u64) -> bool,
    ) {
        let mut would_take = budget.would_take(Account::Blocked);
        let (writes, ranges) = (&self.writes, &self.ranges);
        let may_join = |place: &u64| {
            let op = &writes[place].op;
            let mut op_ranges = op.ranges.iter();
            let is_behind = op_ranges.any(|range| {
                is_behind(*range, *place) || ranges.any_overlap(*range, |other| other < place)
            });
            !is_behind || would_take(op.weight)
        };
        let (join, stay) = std::mem::take(&mut self.blocked)
            .into_iter()
            .partition::<BTreeSet<u64>, _>(may_join);
        self.blocked = stay;
        self.line.extend(join);
    }
}
