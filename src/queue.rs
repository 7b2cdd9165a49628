//! The order of everything exclusive on one file: writes, mutable views, resizes, snapshots.
//!
//! Many tasks submit, one pool job at a time applies (flat combining). The job takes what is
//! there as a batch, so that a fence, a scan and a system call serve many writes; it never waits.
//! An operation whose range is in use is *deferred*, and so is every later one that overlaps it,
//! transitively: the order on each byte is that of submission. When a view or an operation that
//! they may have met has gone, the deferred operations that overlap it are tried again, and those
//! that overlap one of these, transitively: what is left aside overlaps none that is tried, so that
//! it neither overtakes one nor is overtaken.
//!
//! What each step does to an operation:
//!
//! | state | submit | drain, range free | drain, range in use | future dropped |
//! |---|---|---|---|---|
//! | new | queued | | | |
//! | queued | | started | deferred | withdrawn |
//! | deferred | | started (at a retry) | deferred | withdrawn, and a retry |
//! | started | | | | goes on, nobody is told |
//!
//! What the operation [holds](Held) tells which it is. A write that finds no room for its data
//! takes its place in the order all the same, and waits at the [door].
//!
//! The job ends when it finds nothing to do, and says so under the same lock under which it looked;
//! whoever adds something afterwards starts the next one.
//!
//! Locks are taken in this order: the queue's state, what an operation holds, its completion, the
//! lease table's state. Wakers, and the owners of a `Bytes`, are other people's code: they are
//! called and dropped when none is held, and no lease either.

mod budget;
mod deferred;
mod door;
mod ended;
#[cfg(all(test, mmap_io_loom))]
mod loom_models;
mod op;
mod state;
mod submitted;
#[cfg(all(test, not(mmap_io_loom)))]
mod tests;

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, Waker};
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

use self::budget::{Account, Budget};
use self::deferred::Deferred;
use self::door::Door;
use self::op::Held;
use self::state::State;

pub(crate) use self::door::Source;
pub(crate) use self::ended::Ended;
pub(crate) use self::op::{Action, Op, Outcome, Payload, Ranges};
pub(crate) use self::submitted::Submitted;

/// Ranges of a batch, at most, unless one operation has more: as many as the lease table judges in a
/// moment, for readers may wait for its lock meanwhile.
const PORTION: usize = if cfg!(mmap_io_loom) { 16 } else { 1024 };

/// A file whose exclusive operations are queued, and whose durable writes are flushed together.
pub(crate) trait QueueHost: Durable {
    /// What a granted view or snapshot holds.
    type Lease: Granted;

    fn queue(&self) -> &Queue<Self::Lease>;

    /// Applies a batch: any number of writes, or one operation of another kind. Operations that
    /// have ended go into `ended`; operations whose range is in use are returned, in order. Blocks,
    /// but not for a lease.
    fn apply(
        self: &Arc<Self>,
        batch: &[Arc<Op<Self::Lease>>],
        ended: &mut Ended<Self::Lease>,
    ) -> Vec<Arc<Op<Self::Lease>>>;
}

/// A lease that an operation ends in.
pub(crate) trait Granted: Send + 'static {
    /// A future waits for the lease, and has it from now on. The lock of its completion is held, so
    /// that this comes before the drop of the future, or not at all.
    fn delivered(&self);
}

/// The queue of one file.
#[derive(Debug)]
pub(crate) struct Queue<L> {
    state: Mutex<State<L>>,
    pub(crate) budget: Budget,
    /// Drain jobs started.
    pub(crate) drains: AtomicU64,
}

/// How much stands in a queue.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backlog {
    pub(crate) operations: usize,
    /// Bytes of data that they hold, or have room for.
    pub(crate) bytes: u64,
    /// How long the operation that was deferred first has been.
    pub(crate) oldest: Option<Duration>,
}

impl<L: Granted> Queue<L> {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                fresh: VecDeque::new(),
                mapped: Vec::new(),
                deferred: Deferred::new(),
                door: Door::new(),
                gone: Vec::new(),
                reconsider: None,
                running: false,
                applying: None,
                submitted: 0,
            }),
            budget: Budget::new(),
            drains: AtomicU64::new(0),
        }
    }

    /// Puts an operation at the end of the queue. The future resolves when it is done.
    pub(crate) fn submit<T: QueueHost<Lease = L>>(
        target: &Arc<T>,
        op: Arc<Op<L>>,
    ) -> Submitted<'_, T> {
        let queue = target.queue();
        if let Err(error) = check() {
            // Before the lock: in a forked child a thread that is not there may hold it.
            wake_all(&mut op.acknowledge(Err(error.into())).into_iter().collect());
        } else {
            let start = {
                let mut state = lock(&queue.state);
                state.push(op.clone());
                !std::mem::replace(&mut state.running, true)
            };
            if start {
                queue.start(target);
            }
        }
        Submitted::new(target, op)
    }

    /// Writes `source` to `ranges`, one after the other: submits the write when it is first polled,
    /// whether there is room for its data or not. A [`TryWrite`](Action::TryWrite) without room
    /// gives up at once.
    ///
    /// # Cancel safety
    ///
    /// As for [`Submitted`].
    pub(crate) async fn write<T: QueueHost<Lease = L>>(
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
                let ranges = unsubmitted.take().expect("it is submitted once");
                let Some(write) = Self::enter(target, ranges, action, &mut source, waker) else {
                    return Poll::Ready(Ok(Outcome::InUse));
                };
                submitted = Some(write);
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

    /// The first poll of a write. `None` if it gives up.
    fn enter<'a, T: QueueHost<Lease = L>>(
        target: &'a Arc<T>,
        ranges: Ranges,
        action: Action,
        source: &mut Source<'_>,
        waker: Waker,
    ) -> Option<Submitted<'a, T>> {
        let queue = target.queue();
        let weight = ranges.weight();
        let account = if queue.budget.try_enter(weight) {
            Some(Account::Queued)
        } else if matches!(action, Action::TryWrite(_)) {
            return None;
        } else {
            // Its lease may be what the others wait for: it is copied and let go before it waits,
            // if its copy can be counted anywhere.
            let is_mapped = matches!(source, Source::Payload(Payload::Mapped(_)));
            let takes = is_mapped && queue.budget.try_take(Account::Blocked, weight);
            takes.then_some(Account::Blocked)
        };
        let payload = source.hand_over();
        let held = match account {
            Some(account) => Held::Ready(payload.unwrap_or_else(|| source.copy()), account),
            None => Held::Outside(payload),
        };
        let op = Op::write(ranges, action, held, waker);
        if account.is_some() {
            return Some(Self::submit(target, op));
        }
        let mut called = Vec::new();
        if let Err(error) = check() {
            // As in `submit`.
            called.extend(op.acknowledge(Err(error.into())));
        } else {
            let mut state = lock(&queue.state);
            state.number(&op);
            state.door.join(op.clone());
            // Room may have been given back before there was a line to look at.
            state.call(&queue.budget, &mut called);
        }
        let submitted = Submitted::new(target, op);
        submitted.bring_in(source);
        wake_all(&mut called);
        Some(submitted)
    }

    /// Has the deferred operations tried again that may have met what has gone.
    pub(crate) fn restart<T: QueueHost<Lease = L>>(target: &Arc<T>, gone: ByteRange) {
        if sys::is_forked() {
            return;
        }
        let queue = target.queue();
        let start = lock(&queue.state).restart(&[gone]);
        if start {
            queue.start(target);
        }
    }

    /// Whether an operation that was submitted and is not finished overlaps `range`, or may: a
    /// batch that is being applied is judged by its hull.
    pub(crate) fn overlaps(&self, range: ByteRange) -> bool {
        let state = lock(&self.state);
        let overlaps = |op: &Arc<Op<L>>| op.ranges.iter().any(|other| other.overlaps(range));
        state.applying.is_some_and(|hull| hull.overlaps(range))
            || state.deferred.overlaps(range)
            || state.door.overlaps(range)
            || state.fresh.iter().any(|op| op.is_queued() && overlaps(op))
    }

    pub(crate) fn backlog(&self) -> Backlog {
        let state = lock(&self.state);
        let waiting = state.deferred.ops().chain(state.door.ops());
        let waiting: Vec<_> = waiting.filter(|op| op.is_queued()).collect();
        let since = waiting.iter().filter_map(|op| op.deferred_since.get());
        let oldest = since.min().map(Instant::elapsed);
        let fresh = state.fresh.iter().filter(|op| op.is_queued());
        let all: Vec<_> = waiting.into_iter().chain(fresh).collect();
        Backlog {
            operations: all.len(),
            bytes: all.iter().map(|op| op.held_bytes()).sum(),
            oldest,
        }
    }

    fn start<T: QueueHost<Lease = L>>(&self, target: &Arc<T>) {
        self.drains.fetch_add(1, Ordering::Relaxed);
        let job = {
            let target = target.clone();
            move || Self::drain(target)
        };
        if let Err(error) = spawn(job) {
            self.refuse(&error.into());
        }
    }

    /// Ends what the drain that cannot be run was to look at.
    fn refuse(&self, error: &MmapIoError) {
        let mut ended = Ended::new();
        loop {
            let refused = {
                let mut state = lock(&self.state);
                state.requeue_deferred();
                state.mapped.clear();
                state.running = !state.fresh.is_empty();
                let refused = std::mem::take(&mut state.fresh);
                // The futures that they give their room to find out on their own.
                state.reconsider(&self.budget);
                state.call(&self.budget, &mut ended.called);
                refused
            };
            if refused.is_empty() {
                break;
            }
            for op in refused.iter().filter(|op| op.is_queued()) {
                self.complete(op, Err(error.clone()), &mut ended);
            }
        }
        ended.tell();
    }

    fn drain<T: QueueHost<Lease = L>>(mut target: Arc<T>) {
        let mut ended = Ended::new();
        let mut rounds = 0;
        while rounds < ROUNDS {
            target.queue().detach_mapped_payloads(&mut ended);
            let lingers = target.commits().lingers();
            let Some(batch) = target.queue().next_batch(&mut ended, lingers) else {
                continue;
            };
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
                    // There is more to apply: what was applied is made durable in another job.
                    Commits::start(&target);
                }
                let applied = contain(|| target.apply(&batch, &mut ended));
                let deferred = applied.unwrap_or_else(|| {
                    // The leases went back as the panic passed; nobody may be left waiting.
                    target.queue().fail(&batch, &mut ended);
                    Vec::new()
                });
                target.queue().finish_batch(deferred, &mut ended);
            }
            drop(batch);
            let file = Arc::downgrade(&target);
            // What has started runs to its end, whoever is left.
            let kept = target.commits().are_due().then(|| target.clone());
            drop(target);
            ended.tell();
            // Gone, and its queue with it: then nobody is left to wait.
            match kept.or_else(|| file.upgrade()) {
                Some(file) => target = file,
                None => return,
            }
        }
        Commits::start(&target);
        target.queue().start(&target);
    }

    /// Makes durable what was applied, unless another job does: this thread is awake, and saves a
    /// durable write the second hop. New operations are drained by another job in the meantime.
    fn commit<T: QueueHost<Lease = L>>(target: Arc<T>) {
        if let Some(turn) = Commits::turn(&target) {
            drop(target);
            turn.run(ROUNDS);
        }
    }

    /// Copies payloads that lie in a map of ours, and lets go of the leases on them. Also of those
    /// that will be deferred: what they wait for may wait for such a lease.
    fn detach_mapped_payloads(&self, ended: &mut Ended<L>) {
        let mapped = std::mem::take(&mut lock(&self.state).mapped);
        for op in mapped {
            let shared = match &*lock(&op.held) {
                Held::Ready(Payload::Mapped(bytes), _) => bytes.clone(),
                _ => continue,
            };
            match residency::copy_mapped(&shared) {
                Ok(owned) => {
                    let mut held = lock(&op.held);
                    // Unless it was withdrawn meanwhile.
                    let old = match &mut *held {
                        Held::Ready(payload, _) => {
                            Some(std::mem::replace(payload, Payload::Unmapped(owned)))
                        }
                        _ => None,
                    };
                    drop(held);
                    contain(|| drop(old));
                }
                Err(error) => self.complete(&op, Err(error), ended),
            }
            // The owner of a `Bytes` may hold more than a view of ours: it is the user's code.
            contain(|| drop(shared));
        }
    }

    /// The next operations to apply; empty when there is nothing to do, and then the job is over,
    /// unless it lingers. `None` while there are [payloads to copy](Self::detach_mapped_payloads).
    fn next_batch(&self, ended: &mut Ended<L>, lingers: bool) -> Option<Vec<Arc<Op<L>>>> {
        let mut refused = Vec::new();
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        if !state.mapped.is_empty() {
            return None;
        }
        state.reconsider(&self.budget);
        state.requeue_deferred();
        let mut batch = Vec::new();
        let (mut bytes, mut ranges) = (0, 0);
        while let Some(op) = state.fresh.pop_front() {
            if !op.is_queued() {
                continue;
            }
            if state.is_behind(&op) {
                match op.action {
                    // Later: it runs other people's code.
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
            let ends_batch = !batch.is_empty() && (!is_write || is_full);
            if ends_batch {
                state.fresh.push_front(op);
                break;
            }
            batch.push(op);
            if !is_write {
                break;
            }
        }
        state.applying = batch
            .iter()
            .filter_map(|op| op.hull())
            .reduce(ByteRange::hull);
        if batch.is_empty() {
            state.reconsider(&self.budget);
        }
        state.call(&self.budget, &mut ended.called);
        // A future that is still to be told may submit more before long.
        let is_over = batch.is_empty() && ended.is_empty() && refused.is_empty();
        state.running = !is_over || lingers;
        drop(guard);
        for op in refused {
            self.complete(&op, Ok(Outcome::InUse), ended);
        }
        Some(batch)
    }

    fn finish_batch(&self, deferred: Vec<Arc<Op<L>>>, ended: &mut Ended<L>) {
        let mut state = lock(&self.state);
        state.applying = None;
        for op in deferred {
            if op.is_queued() {
                state.defer(op, &self.budget, ended);
            } else {
                // Withdrawn by now, and others may have been deferred for its sake.
                state.note_gone(&op.ranges);
            }
        }
        state.call(&self.budget, &mut ended.called);
    }

    /// Starts an operation: the payload, unless it was withdrawn. Its bytes leave the budget.
    pub(crate) fn take_payload(&self, op: &Op<L>) -> Option<Payload> {
        let mut held = lock(&op.held);
        match std::mem::replace(&mut *held, Held::Gone) {
            Held::Ready(payload, account) => {
                self.budget.give_back(account, op.weight);
                Some(payload)
            }
            Held::Gone => None,
            Held::Outside(_) | Held::Called(_) => unreachable!("it is not at the door"),
        }
    }

    /// Ends an operation, started or not, with its outcome.
    pub(crate) fn complete(
        &self,
        op: &Arc<Op<L>>,
        outcome: Result<Outcome<L>>,
        ended: &mut Ended<L>,
    ) {
        // The caller may hold leases.
        ended.dropped.extend(self.take_payload(op));
        ended.push(op, outcome);
    }

    /// Takes an operation out, if it has not started.
    fn withdraw<T: QueueHost<Lease = L>>(target: &Arc<T>, op: &Op<L>) {
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
            if is_outside {
                let place = op.place();
                state.door.remove(place);
            }
            state.deferred.remove(op);
            state.call(&queue.budget, &mut called);
            state.restart(&op.ranges)
        };
        if start {
            queue.start(target);
        }
        wake_all(&mut called);
        contain(|| drop(payload));
    }

    /// Completes what a panic left over.
    fn fail(&self, batch: &[Arc<Op<L>>], ended: &mut Ended<L>) {
        for op in batch {
            let panicked = io::Error::other("the operation panicked");
            self.complete(op, Err(MmapIoError::from(panicked)), ended);
        }
    }
}
