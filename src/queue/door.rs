//! The door of the queue: writes that have their place in the order, and no room for their data.
//!
//! A write takes its place when it is first polled. If there is no room, its future keeps the data
//! until it is *called*: then the room is its own, and the future brings the data in. Later
//! operations that overlap it are deferred meanwhile.
//!
//! What waits for nothing but room stands in a *line*, first come, first served. What was found
//! blocked when [`Account::Blocked`] was full stands beside the line: it was sent back without its
//! data, and joins the line again, in its place, when what it met has gone, or there is room for it
//! where blocked writes are counted.
//!
//! A task may poll several writes and then await them one by one, in that order. So a write never
//! waits for the poll of a later one: if it finds no room when it has joined the line again, later
//! ones that were called, and have not come in, give theirs back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::budget::{Account, Budget};
use super::op::{Held, Op, Payload};
use crate::lease::{Intervals, Key};
use crate::range::ByteRange;
use crate::sync::lock;

/// The data of a write, as its future has it.
#[derive(Debug)]
pub(crate) enum Source<'a> {
    /// Copied when there is room.
    Slice(&'a [u8]),
    /// The same, one part after the other.
    Parts(&'a [(u64, &'a [u8])]),
    /// Handed over.
    Payload(Payload),
}

impl Source<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Slice(data) => data.len(),
            Self::Parts(parts) => parts.iter().map(|(_, data)| data.len()).sum(),
            Self::Payload(payload) => payload.bytes().len(),
        }
    }

    /// The payload that is not to be copied.
    pub(super) fn hand_over(&mut self) -> Option<Payload> {
        match self {
            Self::Slice(_) | Self::Parts(_) => None,
            Self::Payload(payload) => Some(std::mem::replace(payload, Payload::Nothing)),
        }
    }

    /// A copy of the data.
    pub(super) fn copy(&self) -> Payload {
        match self {
            Self::Slice(data) => Payload::Owned((*data).into()),
            Self::Parts(parts) => {
                let mut data = Vec::with_capacity(self.len());
                parts
                    .iter()
                    .for_each(|(_, part)| data.extend_from_slice(part));
                Payload::Owned(data.into())
            }
            Self::Payload(_) => unreachable!("it was handed over"),
        }
    }
}

/// Writes without room, by their places in the order.
#[derive(Debug)]
pub(super) struct Door<L> {
    writes: BTreeMap<u64, Outside<L>>,
    /// The ranges of all of them, with their places.
    ranges: Intervals<u64>,
    /// Those that wait for room alone.
    line: BTreeSet<u64>,
    /// Length of the line as the budget knows it.
    told: usize,
    /// Those that were called, and have not come in yet.
    called: BTreeSet<u64>,
    /// Those that were found blocked.
    blocked: BTreeSet<u64>,
}

#[derive(Debug)]
struct Outside<L> {
    op: Arc<Op<L>>,
    /// Of its ranges.
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

    /// A newcomer joins the line.
    pub(super) fn join(&mut self, op: Arc<Op<L>>) {
        self.line.insert(op.place());
        self.insert(op);
    }

    /// One that is blocked is sent back.
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

    /// It has come in, or was withdrawn.
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

    /// Whether one that stands before `place` in the order overlaps `range`.
    pub(super) fn overlaps_before(&self, range: ByteRange, place: u64) -> bool {
        self.ranges.any_overlap(range, |other| *other < place)
    }

    /// Whether one that was found blocked overlaps `range`, and stands behind `place`.
    pub(super) fn blocks_behind(&self, range: ByteRange, place: u64) -> bool {
        !self.blocked.is_empty()
            && self.ranges.any_overlap(range, |other| {
                *other > place && self.blocked.contains(other)
            })
    }

    pub(super) fn has_blocked(&self) -> bool {
        !self.blocked.is_empty()
    }

    /// All that stand there.
    pub(super) fn ops(&self) -> impl Iterator<Item = &Arc<Op<L>>> {
        self.writes.values().map(|outside| &outside.op)
    }

    /// Gives room to those in the line that find it, in order; returns them, to be woken.
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
                // It is being withdrawn, and leaves the door by itself.
                _ => budget.give_back(Account::Queued, op.weight),
            }
        }
        self.tell(budget);
        called
    }

    /// Lets newcomers know of the line.
    fn tell(&mut self, budget: &Budget) {
        if self.told != self.line.len() {
            self.told = self.line.len();
            budget.set_waiting(self.told);
        }
    }

    /// Takes the room back from the last one that was called, if it stands behind `place`.
    fn call_off_after(&mut self, place: u64, budget: &Budget) -> bool {
        let Some(last) = self.called.last().copied().filter(|last| *last > place) else {
            return false;
        };
        self.called.remove(&last);
        let op = &self.writes[&last].op;
        let mut held = lock(&op.held);
        // Unless it is being withdrawn, and gives it back by itself.
        if let Held::Called(payload) = &mut *held {
            *held = Held::Outside(payload.take());
            budget.give_back(Account::Queued, op.weight);
            self.line.insert(last);
        }
        true
    }

    /// Lets those that were found blocked join the line again if nothing before them is known to
    /// block them, by `is_behind` or here, or there is room for them where blocked writes are
    /// counted.
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
