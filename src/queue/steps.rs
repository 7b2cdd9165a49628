//! The steps of the queue's protocol that close a race or keep the order, each with its reason.
//!
//! The loom models leave one step out at a time and must fail then. So they exercise the code that
//! the crate runs, and this list is complete: a step that no model needs would not be here.

use std::fmt::Debug;

/// The steps of the protocol. Every constant is `true` in the crate; only the models override them.
pub(crate) trait Steps: Debug + Send + Sync + 'static {
    /// The end of a lease is recorded in [`gone`](super::state::State::gone) also while a drain job
    /// runs. The job may have deferred the blocked operation already, and no other job will retry
    /// it.
    const RESTARTS_WHILE_RUNNING: bool = true;
    /// The end of a lease is recorded also if only the batch that is being applied may overlap it.
    /// The batch may have found the lease, and [`finish_batch`](super::Queue::finish_batch) has not
    /// deferred its operations yet.
    const RESTARTS_WHILE_APPLYING: bool = true;
    /// The withdrawal of an operation retries the operations that were deferred behind it. No lease
    /// ends in this case, so nothing else would.
    const RESTARTS_AFTER_WITHDRAWAL: bool = true;
    /// A job clears `running` in the critical section in which it finds nothing to do. Otherwise an
    /// operation that is submitted between the check and the clearing would start no job.
    const CLEARS_WHERE_IT_CHECKS: bool = true;
    /// A job with an empty batch goes on running until it has told all futures whose operations
    /// have ended. A future that is told may submit again; with `running` cleared, that would start
    /// a second drain beside this one.
    const RUNS_UNTIL_ALL_ARE_TOLD: bool = true;
    /// [`overlaps`](super::Queue::overlaps) counts the batch that is being applied. Its operations
    /// are in neither list, but have not ended.
    const COUNTS_THE_BATCH: bool = true;
    /// An operation that overlaps an earlier deferred one is deferred too. Otherwise a batch that
    /// is taken after the earlier one was deferred would let it overtake.
    const DEFERS_BEHIND_THE_DEFERRED: bool = true;
    /// Deferred operations are retried in the order of submission, before operations that were
    /// submitted later.
    const RETRIES_IN_FRONT: bool = true;
    /// A write that waits at the door keeps its place in the order when its data comes in.
    const KEEPS_ITS_PLACE: bool = true;
    /// A write that has joined the line looks for room once more. Room that was given back before
    /// it joined has called no write, because the line was empty.
    const CALLS_AFTER_JOINING: bool = true;
    /// A write that comes in from the door retries the later operations that were deferred behind
    /// it. They wait for no lease, so nothing else would.
    const RETRIES_WHEN_IT_COMES_IN: bool = true;
    /// A withdrawn write leaves the door. Otherwise the operations behind it wait forever.
    const LEAVES_THE_DOOR: bool = true;
    /// A granted lease is marked as lasting under the lock of its completion, and so before the
    /// future is dropped or not at all. Otherwise a lease whose future is gone could be marked, and
    /// readers would get `Busy` from it instead of a short wait.
    const MARKS_UNDER_THE_LOCK: bool = true;
    /// The drop of a future drops the outcome that the future has not taken. Otherwise a lease that
    /// was delivered to it stays until the last reference to the operation goes.
    const DROPS_ITS_OUTCOME: bool = true;
    /// A task takes the turn only if nothing was submitted before, deferred operations and writes at
    /// the door included.
    const OVERTAKES_NOTHING: bool = true;
    /// The end of a task's turn starts a job if something was submitted during the turn. That
    /// submission has found the turn taken, and has started none.
    const HANDS_THE_TURN_ON: bool = true;
    /// A drain that finds nothing to apply flushes for the durable writes that it has applied. No
    /// other job would.
    const FLUSHES_AT_THE_END: bool = true;
}

/// The protocol of the crate: all steps.
#[derive(Debug)]
pub(crate) struct AllSteps;

impl Steps for AllSteps {}
