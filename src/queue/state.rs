//! What a queue keeps under its lock: operations by how far they have come.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use super::budget::{Account, Budget};
use super::deferred::Deferred;
use super::door::Door;
use super::op::{Held, Op, Payload};
use super::{Ended, PORTION};
use crate::range::ByteRange;
use crate::sync::{lock, Ordering};

#[derive(Debug)]
pub(super) struct State<L> {
    /// To be looked at, in order of submission. Withdrawn ones are passed over.
    pub(super) fresh: VecDeque<Arc<Op<L>>>,
    /// Those of `fresh` whose payload is still to be copied.
    pub(super) mapped: Vec<Arc<Op<L>>>,
    /// Looked at, and found in use.
    pub(super) deferred: Deferred<L>,
    pub(super) door: Door<L>,
    /// Ranges of what a deferred operation may have met and has gone, or one that was sent back to
    /// the door.
    pub(super) gone: Vec<ByteRange>,
    /// Those that were sent back are to be looked at when all that was submitted before that place
    /// has been.
    pub(super) reconsider: Option<u64>,
    /// A job exists that will look again.
    pub(super) running: bool,
    /// Hull of the batch that is being applied.
    pub(super) applying: Option<ByteRange>,
    /// Operations submitted.
    pub(super) submitted: u64,
}

impl<L> State<L> {
    /// Gives an operation its place in the order.
    pub(super) fn number(&mut self, op: &Op<L>) {
        op.place.store(self.submitted, Ordering::Relaxed);
        self.submitted += 1;
    }

    pub(super) fn push(&mut self, op: Arc<Op<L>>) {
        self.number(&op);
        self.note_mapped(&op);
        self.fresh.push_back(op);
    }

    /// Has the payload copied, if that is to be done first.
    pub(super) fn note_mapped(&mut self, op: &Arc<Op<L>>) {
        if matches!(*lock(&op.held), Held::Ready(Payload::Mapped(_), _)) {
            self.mapped.push(op.clone());
        }
    }

    /// Takes one in from the door, to its place among those that are to be looked at.
    pub(super) fn take_in(&mut self, op: Arc<Op<L>>) {
        let place = op.place();
        self.door.remove(place);
        let blocks = |range: &ByteRange| {
            self.deferred.overlaps_behind(*range, place) || self.door.blocks_behind(*range, place)
        };
        if op.ranges.iter().any(blocks) {
            self.note_gone(&op.ranges);
        }
        self.note_mapped(&op);
        let at = self.fresh.partition_point(|other| other.place() < place);
        self.fresh.insert(at, op);
    }

    /// Whether one that was submitted earlier is deferred, or at the door, and overlaps it.
    pub(super) fn is_behind(&self, op: &Op<L>) -> bool {
        let place = op.place();
        op.ranges.iter().any(|range| {
            self.deferred.overlaps_before(*range, place) || self.door.overlaps_before(*range, place)
        })
    }

    /// Puts one aside that was found in use. Its bytes are counted as blocked; if there is no room
    /// for them, it is sent back to the door.
    pub(super) fn defer(&mut self, op: Arc<Op<L>>, budget: &Budget, ended: &mut Ended<L>) {
        op.deferred_since.get_or_init(Instant::now);
        let mut held = lock(&op.held);
        if let Held::Ready(payload, account @ Account::Queued) = &mut *held {
            let fits = op.weight == 0 || budget.try_take(Account::Blocked, op.weight);
            if !fits && !matches!(payload, Payload::Unmapped(_)) {
                let payload = std::mem::replace(payload, Payload::Nothing);
                budget.give_back(*account, op.weight);
                *held = match payload {
                    Payload::Owned(_) => {
                        ended.dropped.push(payload);
                        Held::Outside(None)
                    }
                    payload => Held::Outside(Some(payload)),
                };
                drop(held);
                return self.door.send_back(op);
            }
            if !fits {
                // The only copy of bytes whose lease was let go: it is kept, and others make room.
                budget.take(Account::Blocked, op.weight);
            }
            budget.give_back(*account, op.weight);
            *account = Account::Blocked;
        }
        drop(held);
        self.deferred.insert(op);
    }

    /// Has what is put aside looked at again where it may have met what has gone; says whether a job
    /// is to be started for it.
    pub(super) fn restart(&mut self, gone: &[ByteRange]) -> bool {
        // What is being applied may still be found to have met it.
        let matters = self.applying.is_some()
            || self.door.has_blocked()
            || gone.iter().any(|range| self.deferred.overlaps(*range));
        if matters {
            self.note_gone(gone);
        }
        matters && !std::mem::replace(&mut self.running, true)
    }

    pub(super) fn note_gone(&mut self, gone: &[ByteRange]) {
        self.gone.extend(gone);
        if self.gone.len() > PORTION {
            ByteRange::merge(&mut self.gone);
            if self.gone.len() > PORTION / 2 {
                let hull = self.gone.drain(..).reduce(ByteRange::hull);
                self.gone.extend(hull);
            }
        }
    }

    /// Puts deferred operations that may have met what has gone back among the others, in the order
    /// of submission: one that was deferred while its batch was made up stands before the batch's
    /// own.
    pub(super) fn requeue_deferred(&mut self) {
        if self.gone.is_empty() {
            return;
        }
        if self.door.has_blocked() {
            self.reconsider.get_or_insert(self.submitted);
        }
        let before = self.fresh.len();
        self.deferred.take(&mut self.gone, &mut self.fresh);
        if self.fresh.len() > before {
            let fresh = self.fresh.make_contiguous();
            // Fast for what is two sorted runs, or nearly.
            fresh.sort_by_key(|op| op.place());
        }
    }

    /// Lets those that were sent back to the door join the line again, when what could block them
    /// has been looked at.
    pub(super) fn reconsider(&mut self, budget: &Budget) {
        let Some(until) = self.reconsider else {
            return;
        };
        if self.fresh.front().is_some_and(|op| op.place() < until) {
            return;
        }
        self.reconsider = None;
        let deferred = &self.deferred;
        let is_behind = |range: ByteRange, place: u64| deferred.overlaps_before(range, place);
        self.door.reconsider(budget, is_behind);
    }

    /// Calls in those at the door for whom there is room.
    pub(super) fn call(&mut self, budget: &Budget, wakers: &mut Vec<Waker>) {
        let called = self.door.call(budget);
        wakers.extend(called.iter().filter_map(|op| op.done.nudge()));
    }
}
