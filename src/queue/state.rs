//! The state of a queue, which its lock protects: the operations, by their progress.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use super::blocked::Warnings;
use super::budget::{Account, Budget};
use super::deferred::Deferred;
use super::door::Door;
use super::op::{Held, Op, Payload};
use super::steps::Steps;
use super::{Ended, Granted, PORTION};
use crate::range::ByteRange;
use crate::sync::{lock, Ordering};

#[derive(Debug)]
pub(super) struct State<L, S> {
    /// Operations that the drain has to look at, in the order of submission. Withdrawn operations
    /// are skipped.
    pub(super) incoming: VecDeque<Arc<Op<L>>>,
    /// The operations of `incoming` whose payload has to be copied first.
    pub(super) payloads_to_copy: Vec<Arc<Op<L>>>,
    /// Operations whose range was found in use.
    pub(super) deferred: Deferred<L>,
    pub(super) door: Door<L>,
    /// Ranges of leases and operations that have ended, and that may have blocked an operation that
    /// is deferred or was sent back to the door.
    pub(super) gone: Vec<ByteRange>,
    /// The writes that were sent back to the door are reconsidered when the drain has looked at all
    /// operations before this place.
    pub(super) reconsider: Option<u64>,
    /// A drain job exists that will check for work again, or a task has the [turn](super::Turn).
    pub(super) running: bool,
    pub(super) is_turn_of_a_task: bool,
    /// The hull of the batch that is being applied.
    pub(super) applying: Option<ByteRange>,
    /// Number of operations submitted.
    pub(super) submitted: u64,
    pub(super) warnings: Warnings,
    pub(super) steps: PhantomData<S>,
}

impl<L: Granted, S: Steps> State<L, S> {
    /// Gives an operation its place in the order of submission.
    pub(super) fn number(&mut self, op: &Op<L>) {
        op.place.store(self.submitted, Ordering::Relaxed);
        self.submitted += 1;
    }

    /// Adds an operation behind all others.
    pub(super) fn push(&mut self, op: Arc<Op<L>>) {
        self.number(&op);
        self.note_payload_to_copy(&op);
        self.incoming.push_back(op);
    }

    /// Has the drain copy the payload first, if it lies in one of our maps.
    fn note_payload_to_copy(&mut self, op: &Arc<Op<L>>) {
        if matches!(*lock(&op.held), Held::Ready(Payload::Mapped(_), _)) {
            self.payloads_to_copy.push(op.clone());
        }
    }

    /// Takes a write in from the door, and puts it at its place among the incoming operations.
    pub(super) fn take_in(&mut self, op: Arc<Op<L>>) {
        let place = op.place();
        self.door.remove(place);
        let blocks = |range: &ByteRange| {
            self.deferred.overlaps_behind(*range, place) || self.door.blocks_behind(*range, place)
        };
        if S::RETRIES_WHEN_IT_COMES_IN && op.ranges.iter().any(blocks) {
            self.note_gone(&op.ranges);
        }
        if !S::KEEPS_ITS_PLACE {
            self.number(&op);
        }
        self.note_payload_to_copy(&op);
        let place = op.place();
        let at = self.incoming.partition_point(|other| other.place() < place);
        self.incoming.insert(at, op);
    }

    /// Returns whether an earlier operation that is deferred or at the door overlaps `op`.
    pub(super) fn is_behind(&self, op: &Op<L>) -> bool {
        let place = op.place();
        op.ranges.iter().any(|range| {
            self.deferred.overlaps_before(*range, place) || self.door.overlaps_before(*range, place)
        })
    }

    /// Defers an operation whose range was found in use. Its bytes are counted as blocked; if there
    /// is no room for them, the operation is sent back to the door.
    pub(super) fn defer(&mut self, op: Arc<Op<L>>, budget: &Budget, ended: &mut Ended<L>) {
        op.deferred_since.get_or_init(Instant::now);
        self.warnings.note(&op);
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
                // This is the only copy of the bytes, whose lease was released. It is kept beyond
                // the limit.
                budget.take(Account::Blocked, op.weight);
            }
            budget.give_back(*account, op.weight);
            *account = Account::Blocked;
        }
        drop(held);
        self.deferred.insert(op);
    }

    /// Retries the operations that leases or operations on `gone`, which have ended, may have
    /// blocked. Returns whether the caller has to start a drain job.
    pub(super) fn restart(&mut self, gone: &[ByteRange]) -> bool {
        // An operation that is being applied may still be deferred because of a lease on `gone`.
        let matters = (S::RESTARTS_WHILE_APPLYING && self.applying.is_some())
            || self.door.has_blocked()
            || gone.iter().any(|range| self.deferred.overlaps(*range));
        if matters && (S::RESTARTS_WHILE_RUNNING || !self.running) {
            self.note_gone(gone);
        }
        matters && !std::mem::replace(&mut self.running, true)
    }

    /// Records ranges whose deferred operations are retried in the next round.
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

    /// Moves the deferred operations that `gone` may have blocked back to the incoming operations,
    /// in the order of submission. Sorting is needed: an operation that is deferred while a batch
    /// is being assembled is recorded before that batch's own operations, even if it was submitted
    /// after them.
    pub(super) fn requeue_deferred(&mut self) {
        if self.gone.is_empty() {
            return;
        }
        if self.door.has_blocked() {
            self.reconsider.get_or_insert(self.submitted);
        }
        let before = self.incoming.len();
        self.deferred.take(&mut self.gone, &mut self.incoming);
        if self.incoming.len() > before && S::RETRIES_IN_FRONT {
            let incoming = self.incoming.make_contiguous();
            // The list is nearly two sorted runs, for which this sort is fast.
            incoming.sort_by_key(|op| op.place());
        }
    }

    /// Lets the writes that were sent back to the door join the line again, when the drain has
    /// looked at the operations that could block them.
    pub(super) fn reconsider(&mut self, budget: &Budget) {
        let Some(until) = self.reconsider else {
            return;
        };
        if self.incoming.front().is_some_and(|op| op.place() < until) {
            return;
        }
        self.reconsider = None;
        let deferred = &self.deferred;
        let is_behind = |range: ByteRange, place: u64| deferred.overlaps_before(range, place);
        self.door.reconsider(budget, is_behind);
    }

    /// Calls in the writes at the door for which there is room; adds their wakers to `wakers`.
    pub(super) fn call(&mut self, budget: &Budget, wakers: &mut Vec<Waker>) {
        let called = self.door.call(budget);
        wakers.extend(called.iter().filter_map(|op| op.done.nudge()));
    }
}
