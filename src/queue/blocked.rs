//! Warns of operations that have been blocked for a second, if a subscriber of `tracing` wants
//! warnings. If none is there that wants warnings of anything, no timer runs.
//!
//! The drain sets an alarm when it has deferred an operation that was not named yet. When the alarm
//! rings, the operation that has been blocked longest is named. Each is named at most once,
//! and a file warns at most once a second, however many operations are blocked.
//!
//! One timer job serves all files, beside that of `EveryMillis`. It runs while an alarm is set. The
//! jobs in which alarms ring are the only ones that call the subscriber: a drain would hang with a
//! subscriber that blocks, and end with one that panics.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::op::{Action, Op};
use super::state::State;
use super::steps::Steps;
use super::{Granted, Queue, QueueHost};
use crate::completion::contain;
use crate::range::ByteRange;
use crate::sync::{lock, Ordering};
use crate::timer::{Alarmed, Timer};
use crate::trace::{self, Blocked};

/// How long an operation is blocked before the warning, and the least time between two.
const AFTER: Duration = Duration::from_secs(1);

static TIMER: Timer<Alarm> = Timer::new();

/// What a queue has warned of. Its lock protects this.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    /// An operation was deferred that was not named yet.
    is_due: bool,
    /// There is an alarm that will look at the deferred operations.
    is_set: bool,
}

impl Warnings {
    /// Notes that an operation was deferred, also if it was deferred before: the alarm may have
    /// rung while the drain tried the operation again, and is not set any more then.
    pub(super) fn note<L>(&mut self, deferred: &Op<L>) {
        let is_named = deferred.is_named.load(Ordering::Relaxed);
        self.is_due |= !is_named && deferred.action.changes();
    }
}

/// The alarm of one queue, whose file it does not keep open.
struct Alarm {
    at: Mutex<Option<Instant>>,
    /// Looks at the operations, and returns when to look again.
    look: Box<dyn Fn() -> Option<Instant> + Send + Sync>,
}

impl Alarmed for Alarm {
    fn alarm(&self) -> Option<Instant> {
        *lock(&self.at)
    }

    fn ring(self: &Arc<Self>, _: Instant) {
        let next = (self.look)();
        *lock(&self.at) = next;
        if next.is_some() {
            TIMER.update(self);
        }
    }
}

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alarm")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl<L: Granted, S: Steps> Queue<L, S> {
    /// Sets the alarm, if an operation was deferred and no alarm is set.
    pub(super) fn time_blocked<T: QueueHost<Lease = L, Steps = S>>(target: &Arc<T>) {
        if !trace::may_warn() {
            return;
        }
        {
            let mut state = lock(&target.queue().state);
            let is_due = std::mem::take(&mut state.warnings.is_due);
            if !is_due || std::mem::replace(&mut state.warnings.is_set, true) {
                return;
            }
        }
        let target = Arc::downgrade(target);
        TIMER.update(&Arc::new(Alarm {
            at: Mutex::new(Some(Instant::now() + AFTER)),
            look: Box::new(move || Self::warn(target.upgrade()?)),
        }));
    }

    /// Warns of the operation that has been blocked longest, and returns when to look again.
    fn warn<T: QueueHost<Lease = L, Steps = S>>(target: Arc<T>) -> Option<Instant> {
        let now = Instant::now();
        let (named, others, next) = lock(&target.queue().state).next_warning(now);
        if let Some((op, since)) = named {
            let mut leases = target.leased(&op.ranges);
            ByteRange::merge(&mut leases);
            let file = target.name().map(Path::to_path_buf);
            // The subscriber may block, which is not to keep the file open; and it may panic, which
            // is not to stop later warnings of this file.
            drop(target);
            contain(|| {
                trace::warn_blocked(&Blocked {
                    operation: name(op.action),
                    file: file.as_deref(),
                    ranges: &op.ranges,
                    since: now - since,
                    leases: &leases,
                    others,
                });
            });
        }
        next
    }
}

/// An operation that is to be named, and when it was first deferred; how many others have been
/// blocked as long; and when to look again.
type Warning<L> = (Option<(Arc<Op<L>>, Instant)>, usize, Option<Instant>);

impl<L: Granted, S: Steps> State<L, S> {
    fn next_warning(&mut self, now: Instant) -> Warning<L> {
        // Looked at once: a future that is dropped withdraws its operation without the queue's lock.
        let waiting = self.deferred.ops().chain(self.door.ops());
        let waiting = waiting.filter(|op| op.is_queued() && op.action.changes());
        let blocked: Vec<_> = waiting
            .filter_map(|op| Some(((*op.deferred_since.get()?, op.place()), op)))
            .collect();
        let mut unnamed: Vec<_> = blocked
            .iter()
            .filter(|(_, op)| !op.is_named.load(Ordering::Relaxed))
            .collect();
        unnamed.sort_unstable_by_key(|(since, _)| *since);
        let Some(((since, _), op)) = unnamed.first() else {
            self.warnings.is_set = false;
            return (None, 0, None);
        };
        if *since + AFTER > now {
            return (None, 0, Some(*since + AFTER));
        }
        // The named one is among them.
        let as_long = blocked
            .iter()
            .filter(|((other, _), _)| *other + AFTER <= now);
        let others = as_long.count() - 1;
        let next = unnamed.get(1);
        let again = next.map(|((next, _), _)| (*next + AFTER).max(now + AFTER));
        op.is_named.store(true, Ordering::Relaxed);
        self.warnings.is_set = again.is_some();
        (Some(((*op).clone(), *since)), others, again)
    }
}

fn name(action: Action) -> &'static str {
    match action {
        Action::Write(_) | Action::TryWrite(_) => "a write",
        Action::Append(_) | Action::AppendAt(..) => "an append",
        Action::Lease(_) | Action::LeaseUnpopulated => "a mutable view",
        Action::Resize | Action::GrowTo | Action::SetLenIfEmpty | Action::AdoptFileLen => {
            "a change of the length"
        }
    }
}

#[cfg(all(test, not(mmap_io_loom)))]
mod tests {
    use super::*;
    use crate::flush::FlushPolicy;
    use crate::queue::op::Held;
    use crate::queue::Ended;
    use crate::range::ByteRange;

    fn defer(queue: &Queue<()>, start: u64) -> Arc<Op<()>> {
        let range = ByteRange::between(start, start + 10);
        let op = Op::new(range, Action::Write(FlushPolicy::Never));
        let mut state = lock(&queue.state);
        state.number(&op);
        state.defer(op.clone(), &queue.budget, &mut Ended::new());
        op
    }

    #[test]
    fn oldest_are_named_once_in_order() {
        let queue: Queue<()> = Queue::new();
        let ops = [0, 100, 200].map(|start| defer(&queue, start));
        assert!(lock(&queue.state).warnings.is_due);
        let first = *ops[0].deferred_since.get().unwrap();
        let look = |now| lock(&queue.state).next_warning(now);
        // Too early: look again when the first has been blocked for a second.
        let (named, _, again) = look(first);
        assert!(named.is_none());
        assert_eq!(again, Some(first + AFTER));
        let mut now = Instant::now() + AFTER;
        for (at, op) in ops.iter().enumerate() {
            let (named, others, again) = look(now);
            let (named, since) = named.unwrap();
            assert!(Arc::ptr_eq(&named, op));
            assert_eq!(Some(&since), op.deferred_since.get());
            assert_eq!(others, 2);
            // The next one a second later, until all are named.
            assert_eq!(again, (at < 2).then_some(now + AFTER));
            now += AFTER;
        }
        assert!(look(now).0.is_none());
        assert_eq!(look(now).2, None);
        // One that is deferred later is named, and those that were named are not again.
        let (gone, late) = (defer(&queue, 300), defer(&queue, 400));
        queue.take_payload(&gone);
        let now = Instant::now() + AFTER;
        let (named, others, again) = look(now);
        assert!(Arc::ptr_eq(&named.unwrap().0, &late));
        assert_eq!((others, again), (3, None));
    }

    #[test]
    fn blocked_while_retried_is_named_later() {
        let queue: Queue<()> = Queue::new();
        let op = defer(&queue, 0);
        let retry_at_alarm = |named: Option<&Arc<Op<()>>>| {
            let mut state = lock(&queue.state);
            state.deferred.remove(&op);
            (state.warnings.is_due, state.warnings.is_set) = (false, true);
            // The alarm rings while the drain tries the operation again.
            let (other, _, again) = state.next_warning(Instant::now() + AFTER);
            assert_eq!(other.map(|(op, _)| op.place()), named.map(|op| op.place()));
            assert!(again.is_none() && !state.warnings.is_set);
            state.defer(op.clone(), &queue.budget, &mut Ended::new());
            state.warnings.is_due
        };
        assert!(retry_at_alarm(None), "no other alarm is set");
        // Another one that was deferred later is named before it.
        let later = defer(&queue, 100);
        assert!(retry_at_alarm(Some(&later)), "no other alarm is set");
        let (named, ..) = lock(&queue.state).next_warning(Instant::now() + AFTER);
        assert!(Arc::ptr_eq(&named.unwrap().0, &op));
        assert!(!retry_at_alarm(None), "it was named");
    }

    /// A future is dropped, which does not wait for the queue's lock, while the alarm counts.
    #[test]
    fn withdrawal_does_not_upset_the_count() {
        for _ in 0..100 {
            let queue: Queue<()> = Queue::new();
            let ops = [defer(&queue, 0), defer(&queue, 100)];
            let now = Instant::now() + AFTER;
            std::thread::scope(|scope| {
                // The alarm looks at the first, and waits for this lock of the second.
                let mut second = lock(&ops[1].held);
                let alarm = scope.spawn(|| lock(&queue.state).next_warning(now));
                while !alarm.is_finished() && queue.state.try_lock().is_ok() {
                    std::thread::yield_now();
                }
                (0..1000).for_each(|_| std::hint::spin_loop());
                *lock(&ops[0].held) = Held::Gone;
                *second = Held::Gone;
                drop(second);
                let (_, others, _) = alarm.join().unwrap();
                assert_eq!(others, 0);
            });
        }
    }
}
