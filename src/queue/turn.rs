//! The turn of a task that applies its write itself.

use std::sync::Arc;

use super::steps::Steps;
use super::QueueHost;
use crate::range::ByteRange;
use crate::sync::lock;

/// The right to change the file without an operation in the queue. As long as it is held, no drain
/// applies anything; what is submitted is applied next, by a job that its end starts.
#[derive(Debug)]
#[must_use]
pub(crate) struct Turn<'a, T: QueueHost>(&'a Arc<T>);

impl<'a, T: QueueHost> Turn<'a, T> {
    /// Takes the turn, to change bytes in `hull`, if the queue is empty and no job drains it. So the
    /// caller overtakes no operation.
    pub(crate) fn take(target: &'a Arc<T>, hull: ByteRange) -> Option<Self> {
        let mut state = lock(&target.queue().state);
        let is_empty =
            state.incoming.is_empty() && state.deferred.is_empty() && state.door.is_empty();
        if state.running || !is_empty && T::Steps::OVERTAKES_NOTHING {
            return None;
        }
        state.running = true;
        state.applying = Some(hull);
        Some(Self(target))
    }
}

impl<T: QueueHost> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        let queue = self.0.queue();
        let start = {
            let mut state = lock(&queue.state);
            state.applying = None;
            let has_work = !state.incoming.is_empty() || !state.door.is_empty();
            if !has_work {
                // No operation was deferred that the end of a lease could have freed.
                state.gone.clear();
            }
            state.running = has_work && T::Steps::HANDS_THE_TURN_ON;
            has_work && T::Steps::HANDS_THE_TURN_ON
        };
        if start {
            queue.start(self.0);
        }
    }
}
