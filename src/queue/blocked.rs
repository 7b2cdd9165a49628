//! Warns of operations that have been blocked for a second, if a subscriber of `tracing` wants
//! warnings. If none is there that wants warnings of anything, no timer runs.
//!
//! The drain sets an alarm when it has deferred an operation that was not deferred before. When the
//! alarm rings, the operation that has been blocked longest is named. Each is named at most once,
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
use crate::sync::lock;
use crate::timer::{Alarmed, Timer};
use crate::trace::{self, Blocked};

/// How long an operation is blocked before the warning, and the least time between two.
const AFTER: Duration = Duration::from_secs(1);

static TIMER: Timer<Alarm> = Timer::new();

/// What a queue has warned of. Its lock protects this.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    /// An operation was deferred for the first time.
    pub(super) is_due: bool,
    /// There is an alarm that will look at the deferred operations.
    is_set: bool,
    /// The last operation that was named. Those that were deferred before it were named as well.
    last: Option<Since>,
}

/// The time at which an operation was first deferred, and its place.
type Since = (Instant, u64);

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
        let last = self.warnings.last;
        let blocked = || {
            let waiting = self.deferred.ops().chain(self.door.ops());
            let waiting = waiting.filter(|op| op.is_queued() && op.action.changes());
            waiting.filter_map(|op| Some(((*op.deferred_since.get()?, op.place()), op)))
        };
        let unnamed = || blocked().filter(|(since, _)| Some(*since) > last);
        let Some((since, op)) = unnamed().min_by_key(|(since, _)| *since) else {
            self.warnings.is_set = false;
            return (None, 0, None);
        };
        if since.0 + AFTER > now {
            return (None, 0, Some(since.0 + AFTER));
        }
        let others = blocked().filter(|(other, _)| other.0 + AFTER <= now);
        let others = others.count() - 1;
        let next = unnamed().map(|(other, _)| other);
        let next = next.filter(|other| *other > since).min();
        let again = next.map(|next| (next.0 + AFTER).max(now + AFTER));
        let named = (op.clone(), since.0);
        self.warnings.last = Some(since);
        self.warnings.is_set = again.is_some();
        (Some(named), others, again)
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
}
