//! The work that a drain does after it has released its locks and leases: wake futures, drop data.

use std::sync::Arc;
use std::task::Waker;

use super::op::{Op, Outcome, Payload};
use super::steps::Steps;
use super::Granted;
use crate::completion::{contain, wake_all};
use crate::error::Result;
use crate::wakers::scope;

/// The work to do while the thread holds no lock and no lease: tell the futures whose operations
/// have ended, wake the futures that were called, drop data.
///
/// Futures are told when the job holds no reference to the file any more, so that the file is
/// closed together with its last handle.
#[derive(Debug)]
pub(crate) struct Ended<L> {
    pub(super) ends: Vec<End<L>>,
    pub(super) called: Vec<Waker>,
    pub(super) dropped: Vec<Payload>,
}

type End<L> = (Arc<Op<L>>, Result<Outcome<L>>);

impl<L: Granted> Ended<L> {
    pub(super) fn new() -> Self {
        Self {
            ends: Vec::new(),
            called: Vec::new(),
            dropped: Vec::new(),
        }
    }

    /// Adds an operation that has ended.
    pub(crate) fn push(&mut self, op: &Arc<Op<L>>, outcome: Result<Outcome<L>>) {
        self.ends.push((op.clone(), outcome));
    }

    /// Returns whether the operation has ended.
    pub(super) fn has(&self, op: &Arc<Op<L>>) -> bool {
        self.ends.iter().any(|(other, _)| Arc::ptr_eq(other, op))
    }

    /// Keeps data that was written, or that will not be written, to be dropped.
    pub(crate) fn drop_later(&mut self, payload: Payload) {
        self.dropped.push(payload);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty() && self.called.is_empty() && self.dropped.is_empty()
    }

    /// Tells the futures, wakes the called ones, and drops the data.
    pub(super) fn tell<S: Steps>(&mut self) {
        let mut wakers = std::mem::take(&mut self.called);
        let ends = self.ends.drain(..);
        let mark = |outcome: &Result<Outcome<L>>| outcome.iter().for_each(Outcome::delivered);
        // In a scope, since the delivery of a lease wakes readers.
        scope(|| {
            let told = ends.filter_map(|(op, outcome)| {
                if !S::MARKS_UNDER_THE_LOCK {
                    mark(&outcome);
                }
                op.phase.end();
                op.done.deliver(outcome, |outcome| {
                    mark(&outcome);
                    outcome
                })
            });
            wakers.extend(told);
        });
        drop_payloads(&mut self.dropped);
        wake_all(&mut wakers);
    }
}

/// Drops each payload, even if the owner of another one panics.
fn drop_payloads(payloads: &mut Vec<Payload>) {
    for payload in payloads.drain(..) {
        contain(|| drop(payload));
    }
}
