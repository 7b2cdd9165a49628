//! The order of everything exclusive on one file: writes, mutable views, resizes, snapshots.
//!
//! Many tasks submit, one pool job at a time applies (flat combining). The job takes what is
//! there as a batch, so that a fence, a scan and a system call serve many writes; it never waits.
//! An operation whose range is in use is *deferred*, and so is every later one that overlaps it,
//! transitively: the order on each byte is that of submission. Deferred operations are tried
//! again when something they met has gone, or one of them is withdrawn.
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
//! The payload tells which it is: it is there until somebody takes it, to start or to withdraw.
//!
//! The job ends when it finds nothing to do, and says so under the same lock under which it looked;
//! whoever adds something afterwards starts the next one.

mod apply;
mod budget;
#[cfg(all(test, mmap_io_loom))]
mod loom_models;
mod strategy;
#[cfg(all(test, not(mmap_io_loom)))]
mod tests;

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::commit::{Extent, Waiter};
use crate::completion::{contain, wake_all, Completion};
use crate::error::{again, MmapIoError, Result};
use crate::flush::FlushPolicy;
use crate::lease::{Intervals, Kind, BRIEF};
use crate::offload::{check, spawn, ROUNDS};
use crate::range::ByteRange;
use crate::residency;
use crate::sync::{lock, AtomicU64, Mutex, Ordering};
use crate::sys;

pub(crate) use self::apply::{apply_writes, Site};
pub(crate) use self::budget::{Budget, Permit};

/// A file whose exclusive operations are queued.
pub(crate) trait Drain: Send + Sync + Sized + 'static {
    /// What a granted view or snapshot holds.
    type Lease: Send + 'static;

    fn queue(&self) -> &Queue<Self::Lease>;

    /// Applies a batch: any number of writes, or one operation of another kind. What has ended
    /// goes into `ended`; what was found in use is returned, in order. Blocks, but not for a
    /// lease.
    fn apply(
        self: &Arc<Self>,
        batch: &[Arc<Op<Self::Lease>>],
        ended: &mut Ended<Self::Lease>,
    ) -> Vec<Arc<Op<Self::Lease>>>;

    /// More to apply is about to come, and it is better to wait for it, for a moment, than to
    /// [`finish`](Self::finish).
    fn lingers(&self) -> bool;

    /// Something is left to do behind what was applied.
    fn is_left_to_do(&self) -> bool;

    /// There is more to apply: what was left to do behind it is given to another job.
    fn hand_on(self: &Arc<Self>);

    /// There is nothing more to apply: this job may do what was left. The queue goes on
    /// meanwhile, in another one.
    fn finish(self: Arc<Self>);
}

/// Operations that have ended, and whose futures are not told yet.
///
/// They are told when the job holds no reference to the file any more, so that a file is closed
/// when the last handle is, and not a moment later.
#[derive(Debug)]
pub(crate) struct Ended<L>(Vec<End<L>>);

type End<L> = (Arc<Op<L>>, Result<Outcome<L>>);

impl<L> Ended<L> {
    pub(crate) fn push(&mut self, op: &Arc<Op<L>>, outcome: Result<Outcome<L>>) {
        self.0.push((op.clone(), outcome));
    }

    fn tell(&mut self) {
        let mut wakers: Vec<Waker> = self
            .0
            .drain(..)
            .filter_map(|(op, outcome)| op.done.complete(outcome))
            .collect();
        wake_all(&mut wakers);
    }
}

/// One operation, shared by the queue and the future that waits for it.
#[derive(Debug)]
pub(crate) struct Op<L> {
    pub(crate) ranges: Ranges,
    pub(crate) action: Action,
    /// Bytes of the budget that the payload holds.
    budgeted: usize,
    payload: Mutex<Option<Payload>>,
    /// Its place in the order of submission; written and read under the queue's lock.
    place: AtomicU64,
    /// When it was first found in use.
    deferred_since: OnceLock<Instant>,
    done: Completion<Result<Outcome<L>>>,
}

/// What an operation does to its ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Copies its payload there; done when what the policy asks for is.
    Write(FlushPolicy),
    /// The same, but gives up instead of being deferred.
    TryWrite(FlushPolicy),
    /// Leases its one range to the caller.
    Lease(Kind),
    /// Changes the length of the file to the start of its one range, which is unbounded.
    Resize,
    /// The same, unless the file has bytes already.
    FirstLength,
    /// Takes note of what somebody else appended to the file. Its range is all that follows.
    AdoptLength,
}

impl Action {
    fn is_write(self) -> bool {
        matches!(self, Self::Write(_) | Self::TryWrite(_))
    }

    /// When what it writes is flushed.
    fn policy(self) -> FlushPolicy {
        match self {
            Self::Write(policy) | Self::TryWrite(policy) => policy,
            Self::Lease(_) | Self::Resize | Self::FirstLength | Self::AdoptLength => {
                FlushPolicy::Never
            }
        }
    }
}

/// The ranges of an operation, in the order in which they are written.
#[derive(Debug)]
pub(crate) enum Ranges {
    One([ByteRange; 1]),
    Many(Box<[ByteRange]>),
}

impl std::ops::Deref for Ranges {
    type Target = [ByteRange];

    fn deref(&self) -> &[ByteRange] {
        match self {
            Self::One(range) => range,
            Self::Many(ranges) => ranges,
        }
    }
}

/// What an operation owns until it starts: the bytes to write, one range after the other.
#[derive(Debug)]
pub(crate) enum Payload {
    Owned(Box<[u8]>),
    Shared(Bytes),
    /// Bytes that lie in a map of ours; copied before anything else is done with the operation.
    /// They hold a lease, which this write, or one that it waits for, may have to wait for.
    Mapped(Bytes),
    /// For operations that write nothing.
    Nothing,
}

impl Payload {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Shared(bytes) | Self::Mapped(bytes) => bytes,
            Self::Nothing => &[],
        }
    }
}

/// How an operation ended well.
#[derive(Debug)]
pub(crate) enum Outcome<L> {
    Done,
    /// Something was in the way of a [`Action::TryWrite`].
    InUse,
    Leased(L),
}

impl<L> Op<L> {
    /// An operation of nothing but an action.
    pub(crate) fn new(range: ByteRange, action: Action) -> Arc<Self> {
        Self::with_payload(Ranges::One([range]), action, Payload::Nothing, 0)
    }

    /// A write; the permit covers its payload.
    pub(crate) fn write(
        ranges: Ranges,
        action: Action,
        payload: Payload,
        permit: Permit<'_>,
    ) -> Arc<Self> {
        debug_assert_eq!(
            ranges.iter().map(|range| range.len()).sum::<u64>(),
            payload.bytes().len() as u64
        );
        Self::with_payload(ranges, action, payload, permit.keep())
    }

    fn with_payload(
        ranges: Ranges,
        action: Action,
        payload: Payload,
        budgeted: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            ranges,
            action,
            budgeted,
            payload: Mutex::new(Some(payload)),
            place: AtomicU64::new(0),
            deferred_since: OnceLock::new(),
            done: Completion::new(),
        })
    }

    fn is_queued(&self) -> bool {
        lock(&self.payload).is_some()
    }

    /// Ends an operation that no queue has seen.
    fn acknowledge_alone(&self, error: io::Error) {
        // Its future was not polled yet: there is nothing to wake.
        let _ = self.done.complete(Err(MmapIoError::Io(error)));
    }

    /// It was found in use before.
    pub(crate) fn was_deferred(&self) -> bool {
        self.deferred_since.get().is_some()
    }

    /// Bytes that a write writes.
    fn len(&self) -> u64 {
        self.ranges.iter().map(|range| range.len()).sum()
    }

    fn hull(&self) -> Option<ByteRange> {
        self.ranges.iter().copied().reduce(ByteRange::hull)
    }
}

impl<L: Send> Waiter for Op<L> {
    fn extent(&self) -> Extent<'_> {
        Extent::Ranges(&self.ranges)
    }

    fn acknowledge(&self, result: Result<()>) -> Option<Waker> {
        self.done.complete(result.map(|()| Outcome::Done))
    }
}

/// The queue of one file.
#[derive(Debug)]
pub(crate) struct Queue<L> {
    state: Mutex<State<L>>,
    pub(crate) budget: Budget,
    /// Drain jobs started.
    pub(crate) drains: AtomicU64,
}

#[derive(Debug)]
struct State<L> {
    /// Not looked at yet, in order of submission. Withdrawn ones are passed over.
    fresh: VecDeque<Arc<Op<L>>>,
    /// Those of `fresh` whose payload is still to be copied.
    mapped: Vec<Arc<Op<L>>>,
    /// Looked at, and found in use; submitted before all of `fresh`.
    deferred: Vec<Arc<Op<L>>>,
    /// The ranges of `deferred`.
    deferred_ranges: Intervals<()>,
    /// Something that a deferred operation met has gone.
    retry: bool,
    /// A job exists that will look again.
    running: bool,
    /// Hull of the batch that is being applied.
    applying: Option<ByteRange>,
    /// Operations submitted.
    submitted: u64,
}

/// How much stands in a queue.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backlog {
    pub(crate) operations: usize,
    /// How long the operation that was deferred first has been.
    pub(crate) oldest: Option<Duration>,
}

impl<L: Send + 'static> Queue<L> {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                fresh: VecDeque::new(),
                mapped: Vec::new(),
                deferred: Vec::new(),
                deferred_ranges: Intervals::new(),
                retry: false,
                running: false,
                applying: None,
                submitted: 0,
            }),
            budget: Budget::new(),
            drains: AtomicU64::new(0),
        }
    }

    /// Puts an operation at the end of the queue. The future resolves when it is done.
    pub(crate) fn submit<T: Drain<Lease = L>>(target: &Arc<T>, op: Arc<Op<L>>) -> Submitted<T> {
        let queue = target.queue();
        if let Err(error) = check() {
            // Before the lock: in a forked child a thread that is not there may hold it.
            op.acknowledge_alone(error);
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
        Submitted {
            target: target.clone(),
            op: Some(op),
        }
    }

    /// Has the deferred operations tried again.
    pub(crate) fn restart<T: Drain<Lease = L>>(target: &Arc<T>) {
        if sys::is_forked() {
            return;
        }
        let queue = target.queue();
        let start = {
            let mut state = lock(&queue.state);
            state.retry = !state.deferred.is_empty() || state.applying.is_some();
            state.retry && !std::mem::replace(&mut state.running, true)
        };
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
            || state.deferred_ranges.overlaps(range)
            || state.fresh.iter().any(|op| op.is_queued() && overlaps(op))
    }

    pub(crate) fn backlog(&self) -> Backlog {
        let state = lock(&self.state);
        let fresh = state.fresh.iter().filter(|op| op.is_queued()).count();
        let deferred = state.deferred.iter().filter(|op| op.is_queued());
        let since = deferred.clone().filter_map(|op| op.deferred_since.get());
        Backlog {
            operations: fresh + deferred.count(),
            oldest: since.min().map(Instant::elapsed),
        }
    }

    fn start<T: Drain<Lease = L>>(&self, target: &Arc<T>) {
        self.drains.fetch_add(1, Ordering::Relaxed);
        let job = {
            let target = target.clone();
            move || Self::drain(target)
        };
        if let Err(error) = spawn(job) {
            self.refuse(&error);
        }
    }

    /// Ends what the drain that cannot be run was to look at.
    fn refuse(&self, error: &io::Error) {
        let mut ended = Ended(Vec::new());
        loop {
            let refused = {
                let mut state = lock(&self.state);
                if std::mem::take(&mut state.retry) {
                    state.undefer();
                }
                state.mapped.clear();
                state.running = !state.fresh.is_empty();
                std::mem::take(&mut state.fresh)
            };
            if refused.is_empty() {
                break;
            }
            for op in refused.iter().filter(|op| op.is_queued()) {
                self.finish(op, Err(MmapIoError::Io(again(error))), &mut ended);
            }
        }
        ended.tell();
    }

    fn drain<T: Drain<Lease = L>>(mut target: Arc<T>) {
        let mut ended = Ended(Vec::new());
        let mut rounds = 0;
        while rounds < ROUNDS {
            target.queue().copy_mapped(&mut ended);
            let lingers = target.lingers();
            let Some(batch) = target.queue().next_batch(&mut ended, lingers) else {
                continue;
            };
            if batch.is_empty() && ended.0.is_empty() {
                if !lingers {
                    return target.finish();
                }
                thread::yield_now();
                continue;
            }
            rounds += 1;
            if !batch.is_empty() {
                if !lingers {
                    target.hand_on();
                }
                let applied = contain(|| target.apply(&batch, &mut ended));
                let deferred = applied.unwrap_or_else(|| {
                    // The leases went back as the panic passed; nobody may be left waiting.
                    target.queue().fail(&batch, &mut ended);
                    Vec::new()
                });
                target.queue().finish_batch(deferred);
            }
            drop(batch);
            let file = Arc::downgrade(&target);
            // What has started runs to its end, whoever is left.
            let kept = target.is_left_to_do().then(|| target.clone());
            drop(target);
            ended.tell();
            // Gone, and its queue with it: then nobody is left to wait.
            match kept.or_else(|| file.upgrade()) {
                Some(file) => target = file,
                None => return,
            }
        }
        target.hand_on();
        target.queue().start(&target);
    }

    /// Copies payloads that lie in a map of ours, and lets go of the leases on them. Also of those
    /// that will be deferred: what they wait for may wait for such a lease.
    fn copy_mapped(&self, ended: &mut Ended<L>) {
        let mapped = std::mem::take(&mut lock(&self.state).mapped);
        for op in mapped {
            let shared = match &*lock(&op.payload) {
                Some(Payload::Mapped(bytes)) => bytes.clone(),
                _ => continue,
            };
            match residency::copy_mapped(&shared) {
                Ok(owned) => {
                    let mut payload = lock(&op.payload);
                    // Unless it was withdrawn meanwhile.
                    let old = payload
                        .as_mut()
                        .map(|payload| std::mem::replace(payload, Payload::Owned(owned)));
                    drop(payload);
                    contain(|| drop(old));
                }
                Err(error) => self.finish(&op, Err(MmapIoError::Io(error)), ended),
            }
            // The owner of a `Bytes` may hold more than a view of ours: it is the user's code.
            contain(|| drop(shared));
        }
    }

    /// The next operations to apply; empty when there is nothing to do, and then the job is over,
    /// unless it lingers. `None` while there are [payloads to copy](Self::copy_mapped).
    fn next_batch(&self, ended: &mut Ended<L>, lingers: bool) -> Option<Vec<Arc<Op<L>>>> {
        let mut refused = Vec::new();
        let mut state = lock(&self.state);
        if !state.mapped.is_empty() {
            return None;
        }
        if std::mem::take(&mut state.retry) {
            state.undefer();
        }
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(op) = state.fresh.pop_front() {
            if !op.is_queued() {
                continue;
            }
            if op
                .ranges
                .iter()
                .any(|range| state.deferred_ranges.overlaps(*range))
            {
                match op.action {
                    // Later: it runs other people's code.
                    Action::TryWrite(_) => refused.push(op),
                    _ => state.defer(op),
                }
                continue;
            }
            let is_write = op.action.is_write();
            if is_write {
                bytes += op.len();
            }
            let ends_batch = !batch.is_empty() && (!is_write || bytes > BRIEF);
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
        // Whoever is still to be told may submit more before long.
        let is_over = batch.is_empty() && ended.0.is_empty() && refused.is_empty();
        state.running = !is_over || lingers;
        drop(state);
        for op in refused {
            self.finish(&op, Ok(Outcome::InUse), ended);
        }
        Some(batch)
    }

    fn finish_batch(&self, deferred: Vec<Arc<Op<L>>>) {
        let mut state = lock(&self.state);
        state.applying = None;
        if deferred.is_empty() {
            return;
        }
        for op in deferred {
            if op.is_queued() {
                state.defer(op);
            } else {
                // Withdrawn meanwhile, and others may have been deferred for its sake.
                state.retry = true;
            }
        }
    }

    /// Starts an operation, or withdraws it: whoever gets the payload decides what becomes of it.
    /// Its bytes leave the budget.
    pub(crate) fn begin(&self, op: &Op<L>) -> Option<Payload> {
        let payload = lock(&op.payload).take();
        if payload.is_some() {
            self.budget.release(op.budgeted);
        }
        payload
    }

    /// Ends an operation, started or not, with its outcome.
    pub(crate) fn finish(
        &self,
        op: &Arc<Op<L>>,
        outcome: Result<Outcome<L>>,
        ended: &mut Ended<L>,
    ) {
        let payload = self.begin(op);
        contain(|| drop(payload));
        ended.push(op, outcome);
    }

    /// Takes a queued operation out, if it has not started.
    fn withdraw<T: Drain<Lease = L>>(target: &Arc<T>, op: &Op<L>) {
        if let Some(payload) = target.queue().begin(op) {
            Self::restart(target);
            contain(|| drop(payload));
        }
    }

    /// Completes what a panic left over.
    fn fail(&self, batch: &[Arc<Op<L>>], ended: &mut Ended<L>) {
        for op in batch {
            let panicked = io::Error::other("the operation panicked");
            self.finish(op, Err(MmapIoError::Io(panicked)), ended);
        }
    }
}

impl<L> State<L> {
    fn push(&mut self, op: Arc<Op<L>>) {
        op.place.store(self.submitted, Ordering::Relaxed);
        self.submitted += 1;
        if matches!(*lock(&op.payload), Some(Payload::Mapped(_))) {
            self.mapped.push(op.clone());
        }
        self.fresh.push_back(op);
    }

    fn defer(&mut self, op: Arc<Op<L>>) {
        op.deferred_since.get_or_init(Instant::now);
        for range in op.ranges.iter() {
            self.deferred_ranges.insert(*range, ());
        }
        self.deferred.push(op);
    }

    /// Puts the deferred operations back in front of the others, in the order of submission: one
    /// that was deferred while its batch was made up stands before the batch's own.
    fn undefer(&mut self) {
        self.deferred_ranges = Intervals::new();
        self.deferred
            .sort_unstable_by_key(|op| op.place.load(Ordering::Relaxed));
        for op in self.deferred.drain(..).rev() {
            self.fresh.push_front(op);
        }
    }
}

/// An operation in the queue; resolves when it is done.
///
/// # Cancel safety
///
/// Dropping it withdraws the operation if it has not started; one that has runs to its end.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub(crate) struct Submitted<T: Drain> {
    target: Arc<T>,
    /// Present until it is done.
    op: Option<Arc<Op<T::Lease>>>,
}

impl<T: Drain> Future for Submitted<T> {
    type Output = Result<Outcome<T::Lease>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let op = self.op.as_ref().expect("not polled after it has resolved");
        let outcome = std::task::ready!(op.done.poll(context));
        self.op = None;
        Poll::Ready(outcome)
    }
}

impl<T: Drain> Drop for Submitted<T> {
    fn drop(&mut self) {
        if sys::is_forked() {
            return;
        }
        if let Some(op) = &self.op {
            op.done.abandon();
            Queue::withdraw(&self.target, op);
        }
    }
}
