//! The future of an operation in the queue.

use std::future::Future;
use std::marker::PhantomData;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::door::Source;
use super::op::{Held, Op, Outcome};
use super::steps::Steps;
use super::{Queue, QueueHost};
use crate::commit::Waiter;
use crate::completion::wake_all;
use crate::error::Result;
use crate::sync::lock;
use crate::sys;

/// An operation in the queue; resolves when the operation has ended. `H` is a reference to the
/// file. A borrowed one does not keep the file open, so a future that is forgotten keeps nothing.
///
/// # Cancel safety
///
/// Dropping the future withdraws the operation if it has not started. An operation that has started
/// runs to completion.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub(crate) struct Submitted<'a, T: QueueHost, H: Deref<Target = Arc<T>> = &'a Arc<T>> {
    pub(super) target: H,
    /// Present until the operation has ended.
    pub(super) op: Option<Arc<Op<T::Lease>>>,
    lifetime: PhantomData<&'a T>,
}

impl<T: QueueHost, H: Deref<Target = Arc<T>>> Submitted<'_, T, H> {
    pub(super) fn new(target: H, op: Arc<Op<T::Lease>>) -> Self {
        Self {
            target,
            op: Some(op),
            lifetime: PhantomData,
        }
    }

    /// Brings the data in, if the write was called from the door. If there is no memory for a copy of
    /// it, the write leaves the door and fails.
    pub(super) fn bring_in(&self, source: &Source<'_>) {
        let Some(op) = &self.op else {
            return;
        };
        let copy = match &*lock(&op.held) {
            Held::Called(Some(_)) => false,
            Held::Called(None) => true,
            _ => return,
        };
        let queue = self.target.queue();
        let copied = match copy.then(|| source.copy()).transpose() {
            Ok(copied) => copied,
            Err(error) => {
                queue.count_failed(op.action);
                Queue::withdraw(&self.target, op);
                return wake_all(&mut op.acknowledge(Err(error)).into_iter().collect());
            }
        };
        let start = {
            let mut state = lock(&queue.state);
            if !op.enter(copied) {
                // The call was taken back in the meantime.
                return;
            }
            state.take_in(op.clone());
            !std::mem::replace(&mut state.running, true)
        };
        if start {
            queue.start(&self.target);
        }
    }
}

impl<T: QueueHost, H: Deref<Target = Arc<T>> + Unpin> Future for Submitted<'_, T, H> {
    type Output = Result<Outcome<T::Lease>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let op = self.op.as_ref().expect("not polled after it has resolved");
        let outcome = std::task::ready!(op.done.poll(context));
        op.lost.taken();
        self.op = None;
        Poll::Ready(outcome)
    }
}

impl<T: QueueHost, H: Deref<Target = Arc<T>>> Drop for Submitted<'_, T, H> {
    fn drop(&mut self) {
        if sys::is_forked() {
            return;
        }
        if let Some(op) = &self.op {
            if T::Steps::DROPS_ITS_OUTCOME {
                op.done.abandon();
            }
            Queue::withdraw(&self.target, op);
        }
    }
}
