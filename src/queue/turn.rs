//! The turn of a task that applies its write itself.

use std::hint::spin_loop;
use std::sync::Arc;

use super::steps::Steps;
use super::QueueHost;
use crate::range::ByteRange;
use crate::sync::lock;

/// How often a task looks whether another task has ended its turn, which takes a microsecond, before
/// it submits its write instead.
const LOOKS: u32 = if cfg!(mmap_io_loom) { 1 } else { 16 };
/// How long it pauses between two looks, in hints to the processor: some 0.5 us.
const PAUSE: u32 = 16;

/// The right to change the file without an operation in the queue. As long as it is held, no drain
/// applies anything; what is submitted is applied next, by a job that its end starts.
#[derive(Debug)]
#[must_use]
pub(crate) struct Turn<'a, T: QueueHost>(&'a Arc<T>);

impl<'a, T: QueueHost> Turn<'a, T> {
    /// Takes the turn, to change bytes in `hull`, if the queue is empty and no job drains it. So the
    /// caller overtakes no operation.
    pub(crate) fn take(target: &'a Arc<T>, hull: ByteRange) -> Option<Self> {
        for look in 0..LOOKS {
            if look > 0 {
                (0..PAUSE).for_each(|_| spin_loop());
            }
            let mut state = lock(&target.queue().state);
            let is_empty =
                state.incoming.is_empty() && state.deferred.is_empty() && state.door.is_empty();
            if !is_empty && T::Steps::OVERTAKES_NOTHING {
                return None;
            }
            if !state.running {
                state.running = true;
                state.is_turn_of_a_task = true;
                state.applying = Some(hull);
                return Some(Self(target));
            }
            if !state.is_turn_of_a_task {
                return None;
            }
        }
        None
    }
}

impl<T: QueueHost> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        let queue = self.0.queue();
        let start = {
            let mut state = lock(&queue.state);
            state.applying = None;
            state.is_turn_of_a_task = false;
            let has_work = !state.incoming.is_empty() || !state.door.is_empty();
            if !has_work {
                // No operation was deferred that the end of a lease could have freed.
                state.gone.clear();
            }
            state.running = has_work && T::Steps::HANDS_THE_TURN_ON;
            state.running
        };
        if start {
            queue.start(self.0);
        }
    }
}
