//! Submits a write: with its data if there is room, and otherwise to the door.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, Waker};

use super::budget::Account;
use super::door::Source;
use super::op::{Action, Held, Op, Outcome, Payload, Ranges};
use super::steps::Steps;
use super::{Granted, Queue, QueueHost, Submitted};
use crate::commit::Waiter;
use crate::completion::wake_all;
use crate::error::Result;
use crate::offload::check;
use crate::sync::lock;

impl<L: Granted, S: Steps> Queue<L, S> {
    /// Writes `source` to `ranges`, one range after the other. Submits the write when it is first
    /// polled, whether there is room for its data or not. A [`TryWrite`](Action::TryWrite) without
    /// room gives up at once.
    ///
    /// # Cancel safety
    ///
    /// As for [`Submitted`].
    pub(crate) async fn write<T: QueueHost<Lease = L, Steps = S>>(
        target: &Arc<T>,
        ranges: Ranges,
        action: Action,
        mut source: Source<'_>,
    ) -> Result<Outcome<L>> {
        let mut unsubmitted = Some(ranges);
        let mut submitted = None;
        std::future::poll_fn(|context| {
            let Some(submitted) = &mut submitted else {
                let waker = context.waker().clone();
                let ranges = unsubmitted.take().expect("a write is submitted once");
                match Self::enter(target, ranges, action, &mut source, waker) {
                    Ok(Some(write)) => submitted = Some(write),
                    Ok(None) => return Poll::Ready(Ok(Outcome::InUse)),
                    Err(error) => return Poll::Ready(Err(error)),
                }
                return Poll::Pending;
            };
            let outcome = Pin::new(&mut *submitted).poll(context);
            if outcome.is_pending() {
                submitted.bring_in(&source);
            }
            outcome
        })
        .await
    }

    /// Makes the first poll of a write: submits it. Returns `None` if it gives up.
    ///
    /// # Errors
    ///
    /// There is no memory for a copy of its data.
    fn enter<'a, T: QueueHost<Lease = L, Steps = S>>(
        target: &'a Arc<T>,
        ranges: Ranges,
        action: Action,
        source: &mut Source<'_>,
        waker: Waker,
    ) -> Result<Option<Submitted<'a, T>>> {
        let queue = target.queue();
        let weight = ranges.weight();
        let account = if queue.budget.try_enter(weight) {
            Some(Account::Queued)
        } else if matches!(action, Action::TryWrite(_)) {
            return Ok(None);
        } else {
            // Other writes may wait for the lease of a mapped payload. So it is copied, and its
            // lease is released, before this write waits, if either account has room for the copy.
            let is_mapped = matches!(source, Source::Payload(Payload::Mapped(_)));
            let takes = is_mapped && queue.budget.try_take(Account::Blocked, weight);
            takes.then_some(Account::Blocked)
        };
        let payload = source.hand_over();
        let is_to_copy = payload.is_none();
        let held = match account {
            Some(account) => Held::Ready(payload.unwrap_or(Payload::Nothing), account),
            None => Held::Outside(payload),
        };
        let op = Op::write(ranges, action, held, waker);
        // The drop of this gives the room back, after an error and while a panic unwinds.
        let submitted = Submitted::new(target, op.clone());
        if account.is_some() {
            if is_to_copy {
                match source.copy() {
                    Ok(copied) => op.fill(copied),
                    Err(error) => {
                        queue.count_failed(action);
                        return Err(error);
                    }
                }
            }
            Self::push(target, op);
            return Ok(Some(submitted));
        }
        let mut called = Vec::new();
        if let Err(error) = check() {
            // Before the lock, as in `submit`.
            called.extend(op.acknowledge(Err(error.into())));
        } else {
            let mut state = lock(&queue.state);
            state.number(&op);
            state.door.join(op.clone());
            // Room may have been given back just before this write joined the line.
            if S::CALLS_AFTER_JOINING {
                state.call(&queue.budget, &mut called);
            }
        }
        submitted.bring_in(source);
        wake_all(&mut called);
        Ok(Some(submitted))
    }
}
