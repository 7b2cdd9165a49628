//! The queue of the exclusive operations on one file: writes, mutable views, resizes, snapshots.
//!
//! Many tasks submit operations; one pool job at a time, the *drain*, applies them (flat
//! combining). The drain takes the queued operations as a batch, so that one fence, one scan and
//! one system call serve many writes; it never waits. An operation whose range is in use is
//! *deferred*, and so is every later operation that overlaps it, transitively: the order on each
//! byte is that of submission. When a view or an operation ends, the deferred operations that
//! overlap it are retried, and so are those that overlap one of these, transitively. The operations
//! that stay deferred overlap none of the retried ones, so they neither overtake one nor are
//! overtaken.
//!
//! How each event changes the state of an operation:
//!
//! | state | submit | drain, range free | drain, range in use | future dropped |
//! |---|---|---|---|---|
//! | new | queued | | | |
//! | queued | | started | deferred | withdrawn |
//! | deferred | | started (at a retry) | deferred | withdrawn, and a retry |
//! | started | | | | runs to completion, its outcome is dropped |
//!
//! The [payload](Held) doubles as the state. It is taken exactly once: by the drain, which starts
//! the operation, or by a dropped future, which withdraws it. A write that finds no room for its
//! data takes its place in the order all the same, and waits at the [door].
//!
//! The drain checks for work and clears `running` in one critical section. An operation that is
//! submitted after that therefore starts a new drain. All steps that close such a race are listed,
//! each with its reason, in [`Steps`].
//!
//! Locks are taken in this order: the queue's state, the payload of an operation, its completion,
//! the lease table's state. Wakers and the owners of a `Bytes` are foreign code: they are called
//! and dropped while this thread holds none of these locks and no lease.

mod blocked;
mod budget;
mod deferred;
mod door;
mod ended;
#[cfg(all(test, mmap_io_loom))]
mod loom_models;
mod op;
mod state;
mod steps;
mod submitted;
#[cfg(all(test, not(mmap_io_loom)))]
mod tests;
mod turn;
mod write;

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::commit::{Commits, Durable, Waiter};
use crate::completion::{contain, wake_all};
use crate::error::{MmapIoError, Result};
use crate::lease::BRIEF;
use crate::offload::{check, spawn, ROUNDS};
use crate::range::ByteRange;
use crate::residency;
use crate::sync::{lock, AtomicU64, Mutex, Ordering};
use crate::sys;

use self::blocked::Warnings;
use self::budget::{Account, Budget};
use self::deferred::Deferred;
use self::door::Door;
use self::op::Held;
use self::state::State;
use self::steps::Steps;

pub(crate) use self::door::Source;
pub(crate) use self::ended::Ended;
pub(crate) use self::op::{Action, Op, Outcome, Payload, Ranges};
pub(crate) use self::steps::AllSteps;
pub(crate) use self::submitted::Submitted;
pub(crate) use self::turn::Turn;

/// The largest number of ranges in a batch, unless one operation has more. It is small enough for
/// the lease table to scan quickly, because readers may wait for the table's lock in the meantime.
const PORTION: usize = if cfg!(mmap_io_loom) { 16 } else { 1024 };

/// A file whose exclusive operations are queued, and whose durable writes are flushed together.
pub(crate) trait QueueHost: Durable {
    /// The lease that a granted view or snapshot holds.
    type Lease: Granted;
    /// The steps of the protocol; all of them, except in a model.
    type Steps: Steps;

    /// Returns the queue of the file.
    fn queue(&self) -> &Queue<Self::Lease, Self::Steps>;

    /// Applies a batch: any number of writes, or one operation of another kind. Puts the operations
    /// that have ended into `ended`, and returns the operations whose range is in use, in order.
    /// May block the thread, but never waits for a lease.
    fn apply(
        self: &Arc<Self>,
        batch: &[Arc<Op<Self::Lease>>],
        ended: &mut Ended<Self::Lease>,
    ) -> Vec<Arc<Op<Self::Lease>>>;

    /// Returns the leases that overlap `ranges` at present, for a warning.
    fn leased(&self, _ranges: &[ByteRange]) -> Vec<ByteRange> {
        Vec::new()
    }

    /// Returns a path of the file, for a warning.
    fn name(&self) -> Option<&Path> {
        None
    }
}

/// The lease with which an operation may end.
pub(crate) trait Granted: Send + 'static {
    /// Notes that a future waits for the lease and holds it from now on. The caller holds the lock
    /// of the completion, so that this comes before the drop of the future, or not at all.
    fn delivered(&self);
}

/// The queue of one file.
#[derive(Debug)]
pub(crate) struct Queue<L, S = AllSteps> {
    state: Mutex<State<L, S>>,
    pub(crate) budget: Budget,
    /// Number of drain jobs started.
    pub(crate) drains: AtomicU64,
    /// Number of writes that have failed without the host: before it got them, or in its panic.
    pub(crate) failed_writes: AtomicU64,
}

/// The number of operations in a queue, and their data.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backlog {
    pub(crate) operations: usize,
    /// Bytes of data that the operations hold, or have room for.
    pub(crate) bytes: u64,
    /// For how long the operation that was deferred first has been deferred.
    pub(crate) oldest: Option<Duration>,
}

impl<L: Granted, S: Steps> Queue<L, S> {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                incoming: VecDeque::new(),
                payloads_to_copy: Vec::new(),
                deferred: Deferred::new(),
                door: Door::new(),
                gone: Vec::new(),
                reconsider: None,
                running: false,
                is_turn_of_a_task: false,
                applying: None,
                submitted: 0,
                warnings: Warnings::default(),
                steps: PhantomData,
            }),
            budget: Budget::new(),
            drains: AtomicU64::new(0),
            failed_writes: AtomicU64::new(0),
        }
    }

    /// Adds an operation at the end of the queue. The future resolves when the operation has ended.
    pub(crate) fn submit<T: QueueHost<Lease = L, Steps = S>>(
        target: &Arc<T>,
        op: Arc<Op<L>>,
    ) -> Submitted<'_, T> {
        Self::push(target, op.clone());
        Submitted::new(target, op)
    }

    /// Adds an operation at the end of the queue, for a future that waits for it.
    fn push<T: QueueHost<Lease = L, Steps = S>>(target: &Arc<T>, op: Arc<Op<L>>) {
        let queue = target.queue();
        if let Err(error) = check() {
            // Check before the lock: in a forked child, a thread that exists only in the parent may
            // hold it.
            return wake_all(&mut op.acknowledge(Err(error.into())).into_iter().collect());
        }
        let start = {
            let mut state = lock(&queue.state);
            state.push(op);
            !std::mem::replace(&mut state.running, true)
        };
        if start {
            queue.start(target);
        }
    }

    /// Retries the deferred operations that a lease on the range `gone`, which has ended, may have
    /// blocked.
    pub(crate) fn restart<T: QueueHost<Lease = L, Steps = S>>(target: &Arc<T>, gone: ByteRange) {
        if sys::is_forked() {
            return;
        }
        let queue = target.queue();
        let start = lock(&queue.state).restart(&[gone]);
        if start {
            queue.start(target);
        }
    }

    /// Returns whether an operation that was submitted and has not ended overlaps `range`, or may
    /// overlap it: of a batch that is being applied, only the hull is known.
    pub(crate) fn overlaps(&self, range: ByteRange) -> bool {
        let state = lock(&self.state);
        let overlaps = |op: &Arc<Op<L>>| op.ranges.iter().any(|other| other.overlaps(range));
        S::COUNTS_THE_BATCH && state.applying.is_some_and(|hull| hull.overlaps(range))
            || state.deferred.overlaps(range)
            || state.door.overlaps(range)
            || state
                .incoming
                .iter()
                .any(|op| op.is_queued() && overlaps(op))
    }

    /// Returns how much is queued, for metrics.
    pub(crate) fn backlog(&self) -> Backlog {
        let state = lock(&self.state);
        let waiting = state.deferred.ops().chain(state.door.ops());
        let waiting: Vec<_> = waiting.filter(|op| op.is_queued()).collect();
        let since = waiting.iter().filter_map(|op| op.deferred_since.get());
        let oldest = since.min().map(Instant::elapsed);
        let incoming = state.incoming.iter().filter(|op| op.is_queued());
        let all: Vec<_> = waiting.into_iter().chain(incoming).collect();
        Backlog {
            operations: all.len(),
            bytes: all.iter().map(|op| op.held_bytes()).sum(),
            oldest,
        }
    }

    /// Starts a drain job. The caller has set `running`.
    fn start<T: QueueHost<Lease = L, Steps = S>>(&self, target: &Arc<T>) {
        self.drains.fetch_add(1, Ordering::Relaxed);
        let job = {
            let target = target.clone();
            move || Self::drain(target)
        };
        if let Err(error) = spawn(job) {
            self.refuse(&error.into());
        }
    }

    /// Fails the operations that the drain would have looked at, because its job cannot run.
    fn refuse(&self, error: &MmapIoError) {
        let mut ended = Ended::new();
        loop {
            let refused = {
                let mut state = lock(&self.state);
                state.requeue_deferred();
                state.payloads_to_copy.clear();
                state.running = !state.incoming.is_empty();
                let refused = std::mem::take(&mut state.incoming);
                // The writes that get the freed room start a drain of their own, and fail there if
                // it cannot run.
                state.reconsider(&self.budget);
                state.call(&self.budget, &mut ended.called);
                refused
            };
            if refused.is_empty() {
                break;
            }
            for op in refused.iter().filter(|op| op.is_queued()) {
                self.fail(op, error.clone(), &mut ended);
            }
        }
        ended.tell::<S>();
    }

    /// The drain job: applies batches until there is nothing to do, then flushes.
    fn drain<T: QueueHost<Lease = L, Steps = S>>(mut target: Arc<T>) {
        let mut ended = Ended::new();
        let mut rounds = 0;
        while rounds < ROUNDS {
            target.queue().detach_mapped_payloads(&mut ended);
            let lingers = target.commits().lingers();
            let Some(batch) = target.queue().next_batch(&mut ended, lingers) else {
                continue;
            };
            Self::time_blocked(&target);
            if batch.is_empty() && ended.is_empty() {
                if !lingers {
                    return Self::commit(target);
                }
                thread::yield_now();
                continue;
            }
            rounds += 1;
            if !batch.is_empty() {
                if !lingers {
                    // This job has more to apply, so another job makes the applied writes durable.
                    Commits::start(&target);
                }
                batch.iter().for_each(|op| op.phase.begin());
                let applied = contain(|| target.apply(&batch, &mut ended));
                let deferred = applied.unwrap_or_else(|| {
                    // The leases were released while the panic unwound. No future may be left
                    // waiting.
                    target.queue().fail_batch(&batch, &mut ended);
                    Vec::new()
                });
                target.queue().finish_batch(deferred, &mut ended);
            }
            drop(batch);
            let file = Arc::downgrade(&target);
            // A started operation runs to completion, even if all handles are dropped.
            let kept = target.commits().are_due().then(|| target.clone());
            drop(target);
            ended.tell::<S>();
            // If the file is gone, so is its queue, and no future waits for an operation.
            match kept.or_else(|| file.upgrade()) {
                Some(file) => target = file,
                None => return,
            }
        }
        Commits::start(&target);
        target.queue().start(&target);
    }

    /// Makes the applied writes durable, unless another job does so already. This thread is running
    /// anyway, so a durable write does not need a second hop to the pool. New operations are
    /// drained by another job in the meantime.
    fn commit<T: QueueHost<Lease = L, Steps = S>>(target: Arc<T>) {
        if !S::FLUSHES_AT_THE_END {
            return;
        }
        if let Some(turn) = Commits::turn(&target) {
            drop(target);
            turn.run(ROUNDS);
        }
    }

    /// Copies the payloads that lie in one of our maps, and releases the leases on them. Includes
    /// the operations that will be deferred: the operation that such an operation waits for may
    /// itself wait for the lease.
    fn detach_mapped_payloads(&self, ended: &mut Ended<L>) {
        let ops = std::mem::take(&mut lock(&self.state).payloads_to_copy);
        for op in ops {
            let shared = match &*lock(&op.held) {
                Held::Ready(Payload::Mapped(bytes), _) => bytes.clone(),
                _ => continue,
            };
            match residency::copy_mapped(&shared) {
                Ok(owned) => {
                    let mut held = lock(&op.held);
                    // The operation may have been withdrawn in the meantime.
                    let old = match &mut *held {
                        Held::Ready(payload, _) => {
                            Some(std::mem::replace(payload, Payload::Unmapped(owned)))
                        }
                        _ => None,
                    };
                    drop(held);
                    contain(|| drop(old));
                }
                Err(error) => self.fail(&op, error, ended),
            }
            // The owner of a `Bytes` may hold more than a view of ours, and its drop is user code.
            contain(|| drop(shared));
        }
    }

    /// Returns the next operations to apply. An empty batch means that there is nothing to do: then
    /// the job ends, unless it lingers. Returns `None` while there are [payloads to
    /// copy](Self::detach_mapped_payloads).
    fn next_batch(&self, ended: &mut Ended<L>, lingers: bool) -> Option<Vec<Arc<Op<L>>>> {
        let mut refused = Vec::new();
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        if !state.payloads_to_copy.is_empty() {
            return None;
        }
        state.reconsider(&self.budget);
        state.requeue_deferred();
        let mut batch = Vec::new();
        let (mut bytes, mut ranges) = (0, 0);
        while let Some(op) = state.incoming.pop_front() {
            if !op.is_queued() {
                continue;
            }
            if S::DEFERS_BEHIND_THE_DEFERRED && state.is_behind(&op) {
                match op.action {
                    // Refused below, after the lock is released: it runs foreign code.
                    Action::TryWrite(_) => refused.push(op),
                    _ => state.defer(op, &self.budget, ended),
                }
                continue;
            }
            let is_write = op.action.is_write();
            if is_write {
                bytes += op.len();
                ranges += op.ranges.len();
            }
            let is_full = bytes > BRIEF || ranges > PORTION;
            let first: Option<&Arc<Op<L>>> = batch.first();
            let ends_batch = first.is_some_and(|first| is_full || !op.action.joins(first.action));
            if ends_batch {
                state.incoming.push_front(op);
                break;
            }
            batch.push(op);
            if !is_write {
                break;
            }
        }
        state.applying = batch
            .iter()
            .map(|op| op.ranges.hull())
            .reduce(ByteRange::hull);
        if batch.is_empty() {
            state.reconsider(&self.budget);
        }
        state.call(&self.budget, &mut ended.called);
        // A future that has to be told first may submit more.
        let all_are_told = ended.is_empty() && refused.is_empty();
        let is_over = batch.is_empty() && (all_are_told || !S::RUNS_UNTIL_ALL_ARE_TOLD);
        if !S::CLEARS_WHERE_IT_CHECKS {
            drop(guard);
            guard = lock(&self.state);
        }
        guard.running = !is_over || lingers;
        drop(guard);
        for op in refused {
            self.complete(&op, Ok(Outcome::InUse), ended);
        }
        Some(batch)
    }

    /// Ends a batch: defers the operations whose range was in use.
    fn finish_batch(&self, deferred: Vec<Arc<Op<L>>>, ended: &mut Ended<L>) {
        let mut state = lock(&self.state);
        state.applying = None;
        for op in deferred {
            if op.is_queued() {
                state.defer(op, &self.budget, ended);
            } else {
                // Withdrawn in the meantime; other operations may have been deferred behind it.
                state.note_gone(&op.ranges);
            }
        }
        state.call(&self.budget, &mut ended.called);
    }

    /// Takes the payload of a queued operation, which starts it, and returns its bytes to the
    /// budget. Returns `None` if the operation was withdrawn.
    pub(crate) fn take_payload(&self, op: &Op<L>) -> Option<Payload> {
        let mut held = lock(&op.held);
        match std::mem::replace(&mut *held, Held::Gone) {
            Held::Ready(payload, account) => {
                self.budget.give_back(account, op.weight);
                Some(payload)
            }
            Held::Gone => None,
            Held::Outside(_) | Held::Called(_) => {
                unreachable!("a write at the door is in no batch")
            }
        }
    }

    /// Ends an operation, started or not, with `outcome`.
    pub(crate) fn complete(
        &self,
        op: &Arc<Op<L>>,
        outcome: Result<Outcome<L>>,
        ended: &mut Ended<L>,
    ) {
        // Dropped later, because the caller may hold leases.
        ended.dropped.extend(self.take_payload(op));
        ended.push(op, outcome);
    }

    /// Withdraws an operation, if it has not started.
    fn withdraw<T: QueueHost<Lease = L, Steps = S>>(target: &Arc<T>, op: &Op<L>) {
        let queue = target.queue();
        let held = std::mem::replace(&mut *lock(&op.held), Held::Gone);
        let (payload, account, is_outside) = match held {
            Held::Gone => return,
            Held::Ready(payload, account) => (Some(payload), Some(account), false),
            Held::Called(payload) => (payload, Some(Account::Queued), true),
            Held::Outside(payload) => (payload, None, true),
        };
        if let Some(account) = account {
            queue.budget.give_back(account, op.weight);
        }
        let mut called = Vec::new();
        let start = {
            let mut state = lock(&queue.state);
            if is_outside && S::LEAVES_THE_DOOR {
                let place = op.place();
                state.door.remove(place);
            }
            state.deferred.remove(op);
            state.call(&queue.budget, &mut called);
            S::RESTARTS_AFTER_WITHDRAWAL && state.restart(&op.ranges)
        };
        if start {
            queue.start(target);
        }
        wake_all(&mut called);
        contain(|| drop(payload));
    }

    /// Fails the operations that a panic has left without an outcome.
    fn fail_batch(&self, batch: &[Arc<Op<L>>], ended: &mut Ended<L>) {
        for op in batch.iter().filter(|op| !ended.has(op)).collect::<Vec<_>>() {
            let panicked = io::Error::other("the operation panicked");
            self.fail(op, MmapIoError::from(panicked), ended);
        }
    }

    /// Ends an operation, started or not, with an error that the host does not know of.
    fn fail(&self, op: &Arc<Op<L>>, error: MmapIoError, ended: &mut Ended<L>) {
        self.count_failed(op.action);
        self.complete(op, Err(error), ended);
    }

    fn count_failed(&self, action: Action) {
        let failed = u64::from(action.is_write());
        // Relaxed: nothing follows from a counter.
        self.failed_writes.fetch_add(failed, Ordering::Relaxed);
    }
}
