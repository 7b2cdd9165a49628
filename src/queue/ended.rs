//! What is left to do for a batch when no lock and no lease is held any more.

use std::sync::Arc;
use std::task::Waker;

use super::op::{Op, Outcome, Payload};
use super::Granted;
use crate::completion::{contain, wake_all};
use crate::error::Result;
use crate::wakers::scope;

/// What is to be done when no lock is held, and no lease: operations that have ended, and whose
/// futures are not told yet, futures that are to be polled again, and data to be dropped.
///
/// Futures are told when the job holds no reference to the file any more, so that a file is closed
/// when the last handle is, and not a moment later.
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

    pub(crate) fn push(&mut self, op: &Arc<Op<L>>, outcome: Result<Outcome<L>>) {
        self.ends.push((op.clone(), outcome));
    }

    /// Data that was written, or will not be.
    pub(crate) fn drop_later(&mut self, payload: Payload) {
        self.dropped.push(payload);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty() && self.called.is_empty() && self.dropped.is_empty()
    }

    pub(super) fn tell(&mut self) {
        let mut wakers = std::mem::take(&mut self.called);
        let ends = self.ends.drain(..);
        // In a scope, since a lease that is delivered has readers look again.
        scope(|| {
            let told = ends.filter_map(|(op, outcome)| {
                op.done.deliver(outcome, |outcome| {
                    outcome.iter().for_each(Outcome::delivered);
                })
            });
            wakers.extend(told);
        });
        drop_payloads(&mut self.dropped);
        wake_all(&mut wakers);
    }
}

/// Drops each of them, whatever another one's owner does.
fn drop_payloads(payloads: &mut Vec<Payload>) {
    for payload in payloads.drain(..) {
        contain(|| drop(payload));
    }
}
