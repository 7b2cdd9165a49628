//! The deferred operations of a queue, searched by overlap.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::op::Op;
use crate::lease::{Intervals, Key};
use crate::range::ByteRange;

/// The deferred operations, by their places in the order of submission.
#[derive(Debug)]
pub(super) struct Deferred<L> {
    ops: BTreeMap<u64, Entry<L>>,
    /// The ranges of all operations, with the places of the operations.
    ranges: Intervals<u64>,
}

#[derive(Debug)]
struct Entry<L> {
    op: Arc<Op<L>>,
    /// The keys of its ranges.
    keys: Box<[Key]>,
}

impl<L> Deferred<L> {
    pub(super) fn new() -> Self {
        Self {
            ops: BTreeMap::new(),
            ranges: Intervals::new(),
        }
    }

    pub(super) fn insert(&mut self, op: Arc<Op<L>>) {
        let place = op.place();
        let insert = |range: &ByteRange| self.ranges.insert(*range, place);
        let keys = op.ranges.iter().map(insert).collect();
        self.ops.insert(place, Entry { op, keys });
    }

    /// Removes the operation, if it is deferred.
    pub(super) fn remove(&mut self, op: &Op<L>) {
        let place = op.place();
        // An operation that was never submitted has no place of its own, so compare the pointers.
        let is_there = |entry: &Entry<L>| std::ptr::eq(&*entry.op, op);
        if self.ops.get(&place).is_some_and(is_there) {
            self.remove_at(place);
        }
    }

    fn remove_at(&mut self, place: u64) -> Option<Arc<Op<L>>> {
        let entry = self.ops.remove(&place)?;
        for key in &*entry.keys {
            self.ranges.remove(*key);
        }
        Some(entry.op)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    pub(super) fn overlaps(&self, range: ByteRange) -> bool {
        self.ranges.overlaps(range)
    }

    /// Returns whether an operation before `place` in the order overlaps `range`.
    pub(super) fn overlaps_before(&self, range: ByteRange, place: u64) -> bool {
        self.ranges.any_overlap(range, |other| *other < place)
    }

    /// Returns whether an operation behind `place` in the order overlaps `range`.
    pub(super) fn overlaps_behind(&self, range: ByteRange, place: u64) -> bool {
        self.ranges.any_overlap(range, |other| *other > place)
    }

    pub(super) fn ops(&self) -> impl Iterator<Item = &Arc<Op<L>>> {
        self.ops.values().map(|entry| &entry.op)
    }

    /// Takes out the operations that overlap one of `ranges`, or a taken operation; empties
    /// `ranges`.
    ///
    /// The cost grows with the number of taken operations only: no range is searched for twice, and
    /// no operation is found twice.
    pub(super) fn take(
        &mut self,
        ranges: &mut Vec<ByteRange>,
        taken: &mut impl Extend<Arc<Op<L>>>,
    ) {
        while let Some(range) = ranges.pop() {
            while let Some(key) = self.ranges.find_overlap(range) {
                let place = *self.ranges.value_mut(key);
                let op = self
                    .remove_at(place)
                    .expect("the range belongs to a deferred operation");
                ranges.extend(op.ranges.iter());
                taken.extend([op]);
            }
        }
    }
}
