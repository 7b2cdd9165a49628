//! Operations that were looked at and found in use, searched by overlap.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::op::Op;
use crate::lease::{Intervals, Key};
use crate::range::ByteRange;

/// The deferred operations, by their places in the order of submission.
#[derive(Debug)]
pub(super) struct Deferred<L> {
    ops: BTreeMap<u64, Aside<L>>,
    /// The ranges of all of them, with their places.
    ranges: Intervals<u64>,
    /// A mistake that a model makes: nothing is put behind one of them.
    #[cfg(all(test, mmap_io_loom))]
    pub(super) is_blind: bool,
}

#[derive(Debug)]
struct Aside<L> {
    op: Arc<Op<L>>,
    /// Of its ranges.
    keys: Box<[Key]>,
}

impl<L> Deferred<L> {
    pub(super) fn new() -> Self {
        Self {
            ops: BTreeMap::new(),
            ranges: Intervals::new(),
            #[cfg(all(test, mmap_io_loom))]
            is_blind: false,
        }
    }

    pub(super) fn insert(&mut self, op: Arc<Op<L>>) {
        let place = op.place();
        let insert = |range: &ByteRange| self.ranges.insert(*range, place);
        let keys = op.ranges.iter().map(insert).collect();
        self.ops.insert(place, Aside { op, keys });
    }

    /// Takes it out, if it is there.
    pub(super) fn remove(&mut self, op: &Op<L>) {
        let place = op.place();
        // One that was never submitted has no place of its own.
        let is_there = |aside: &Aside<L>| std::ptr::eq(&*aside.op, op);
        if self.ops.get(&place).is_some_and(is_there) {
            self.remove_at(place);
        }
    }

    fn remove_at(&mut self, place: u64) -> Option<Arc<Op<L>>> {
        let aside = self.ops.remove(&place)?;
        for key in &*aside.keys {
            self.ranges.remove(*key);
        }
        Some(aside.op)
    }

    pub(super) fn overlaps(&self, range: ByteRange) -> bool {
        self.ranges.overlaps(range)
    }

    /// Whether one that stands before `place` in the order overlaps `range`.
    pub(super) fn overlaps_before(&self, range: ByteRange, place: u64) -> bool {
        #[cfg(all(test, mmap_io_loom))]
        if self.is_blind {
            return false;
        }
        self.ranges.any_overlap(range, |other| *other < place)
    }

    /// Whether one that stands behind `place` overlaps `range`.
    pub(super) fn overlaps_behind(&self, range: ByteRange, place: u64) -> bool {
        self.ranges.any_overlap(range, |other| *other > place)
    }

    pub(super) fn ops(&self) -> impl Iterator<Item = &Arc<Op<L>>> {
        self.ops.values().map(|aside| &aside.op)
    }

    /// Takes out those that overlap one of `ranges`, or one that is taken out; empties `ranges`.
    ///
    /// Costs as much as are taken out: a range that was looked for is not looked for again, and one
    /// that was found is not found again.
    pub(super) fn take(
        &mut self,
        ranges: &mut Vec<ByteRange>,
        taken: &mut impl Extend<Arc<Op<L>>>,
    ) {
        while let Some(range) = ranges.pop() {
            while let Some(key) = self.ranges.find_overlap(range) {
                let place = *self.ranges.value_mut(key);
                let op = self.remove_at(place).expect("it has a range there");
                ranges.extend(op.ranges.iter());
                taken.extend([op]);
            }
        }
    }
}
