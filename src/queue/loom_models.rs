//! Models of the queue: nothing is left in it with nobody to look again, what is withdrawn is
//! never applied, and the order on each byte is that of submission.
//!
//! The view that is in the way is a model too: the leases have their own. The models named
//! `without_*` do one step wrong, and must fail.

use std::marker::PhantomData;

use loom::thread;

use super::*;
use crate::commit::{Commits, Durable};
use crate::offload::loom_pool::{block_on, check, Alone};
use crate::sync::AtomicU32;

/// What the view is of.
const VIEWED: fn() -> ByteRange = || ByteRange::between(0, 10);

type Operation = Arc<Op<()>>;

/// A file with one view.
struct File<S> {
    queue: Queue<()>,
    commits: Commits,
    view: Mutex<View>,
    /// What reads through the view and what is applied under it.
    bytes: Alone,
    applying: Alone,
    /// Places of the operations that have started, as they did.
    started: Mutex<Vec<u64>>,
    disk: Arc<Disk>,
    /// Changes right before handles go. The count of a std `Arc` does too, but loom sees nothing
    /// of that.
    handles: AtomicU32,
    steps: PhantomData<S>,
}

/// What is left of a file: how many operations have written, and how many of them are durable.
struct Disk {
    written: AtomicU32,
    durable: AtomicU32,
}

/// A lease on the bytes in view.
struct View {
    held: bool,
    /// Something waits for its end.
    watched: bool,
}

impl<S: Steps> File<S> {
    fn new(held: bool) -> Arc<Self> {
        Arc::new(Self {
            queue: Queue::new(),
            commits: Commits::default(),
            view: Mutex::new(View {
                held,
                watched: false,
            }),
            bytes: Alone::new(),
            applying: Alone::new(),
            started: Mutex::new(Vec::new()),
            disk: Arc::new(Disk {
                written: AtomicU32::new(0),
                durable: AtomicU32::new(0),
            }),
            handles: AtomicU32::new(0),
            steps: PhantomData,
        })
    }

    /// The last look through the view, and its end.
    fn release(self: &Arc<Self>) {
        self.bytes.run(|| {});
        let watched = {
            let mut view = lock(&self.view);
            view.held = false;
            std::mem::take(&mut view.watched)
        };
        if watched {
            S::restart(self);
        }
    }

    /// Whether nothing is in the way of any of the batch; what is in the way is watched.
    fn grant(&self, batch: &[Operation]) -> Vec<bool> {
        let mut view = lock(&self.view);
        let mut taken: Vec<ByteRange> = view.held.then(VIEWED).into_iter().collect();
        let mut granted = Vec::new();
        for op in batch {
            let range = op.ranges[0];
            view.watched |= view.held && range.overlaps(VIEWED());
            let is_free = !taken.iter().any(|other| other.overlaps(range));
            if !is_free {
                // An earlier one is in the way of later ones.
                taken.push(range);
            }
            granted.push(is_free);
        }
        granted
    }

    /// Starts a write, unless it was withdrawn.
    fn write(&self, op: &Operation) -> bool {
        // Held, so that whoever looks after a withdrawal sees what that came too late for.
        let mut started = lock(&self.started);
        if self.queue.begin(op).is_none() && S::STARTS_ONLY_WHAT_IS_QUEUED {
            return false;
        }
        started.push(op.place.load(Ordering::Relaxed));
        drop(started);
        if op.ranges[0].overlaps(VIEWED()) {
            self.bytes.run(|| {});
        }
        self.disk.written.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn has_started(&self, op: &Operation) -> bool {
        let place = op.place.load(Ordering::Relaxed);
        lock(&self.started).contains(&place)
    }

    /// When all jobs have ended: these have started, once each, and those that overlap in the
    /// order of submission.
    fn check_end(&self, ops: &[Operation]) {
        let state = lock(&self.queue.state);
        let left = state.fresh.iter().chain(&state.deferred);
        assert_eq!(left.filter(|op| op.is_queued()).count(), 0, "left behind");
        assert!(!state.running && state.applying.is_none());
        let started = lock(&self.started);
        assert_eq!(started.len(), ops.len(), "another number");
        let rank = |op: &Operation| {
            let place = op.place.load(Ordering::Relaxed);
            let rank = started.iter().position(|started| *started == place);
            (place, rank.expect("it has started"))
        };
        for (index, op) in ops.iter().enumerate() {
            let overlap = |other: &&Operation| other.ranges[0].overlaps(op.ranges[0]);
            for other in ops[index + 1..].iter().filter(overlap) {
                let ((place, rank), (other_place, other_rank)) = (rank(op), rank(other));
                let in_order = (place < other_place) == (rank < other_rank);
                assert!(in_order, "another order");
            }
        }
    }
}

impl<S: Steps> Drain for File<S> {
    type Lease = ();

    fn queue(&self) -> &Queue<()> {
        &self.queue
    }

    fn apply(self: &Arc<Self>, batch: &[Operation], ended: &mut Ended<()>) -> Vec<Operation> {
        self.applying.run(|| {
            let mut deferred = Vec::new();
            for (op, granted) in batch.iter().zip(self.grant(batch)) {
                match op.action {
                    Action::TryWrite(_) if !granted => {
                        self.queue.finish(op, Ok(Outcome::InUse), ended);
                    }
                    _ if !granted => deferred.push(op.clone()),
                    _ if !self.write(op) => {}
                    Action::Write(FlushPolicy::Always) => self.commits.add(op.clone(), false),
                    _ => ended.push(op, Ok(Outcome::Done)),
                }
            }
            self.handles.load(Ordering::Relaxed);
            deferred
        })
    }

    fn lingers(&self) -> bool {
        self.commits.lingers()
    }

    fn is_left_to_do(&self) -> bool {
        self.commits.are_due()
    }

    fn hand_on(self: &Arc<Self>) {
        Commits::start(self);
    }

    fn finish(self: Arc<Self>) {
        if !S::FLUSHES_AT_THE_END {
            return;
        }
        if let Some(turn) = Commits::turn(&self) {
            drop(self);
            turn.run(ROUNDS);
        }
    }
}

impl<S: Steps> Durable for File<S> {
    fn commits(&self) -> &Commits {
        &self.commits
    }

    fn flush(&self, _: Extent<'_>) -> io::Result<()> {
        let written = self.disk.written.load(Ordering::Relaxed);
        self.disk.durable.store(written, Ordering::Relaxed);
        Ok(())
    }
}

/// What happens to operations. As it does, and with mistakes.
trait Steps: Send + Sync + Sized + 'static {
    const STARTS_ONLY_WHAT_IS_QUEUED: bool = true;
    const FLUSHES_AT_THE_END: bool = true;
    const RESTARTS_WHILE_RUNNING: bool = true;
    const RESTARTS_WHILE_APPLYING: bool = true;
    const RESTARTS_AFTER_WITHDRAWAL: bool = true;
    const CLEARS_WHERE_IT_LOOKS: bool = true;
    const COUNTS_THE_BATCH: bool = true;
    const RUNS_UNTIL_ALL_ARE_TOLD: bool = true;
    const DEFERS_BEHIND_THE_DEFERRED: bool = true;
    const RETRIES_IN_FRONT: bool = true;

    fn submit(file: &Arc<File<Self>>, op: &Operation) -> Submitted<File<Self>> {
        let start = {
            let mut state = lock(&file.queue.state);
            state.push(op.clone());
            !std::mem::replace(&mut state.running, true)
        };
        if start {
            start_again(file);
        }
        Submitted {
            target: file.clone(),
            op: Some(op.clone()),
        }
    }

    fn restart(file: &Arc<File<Self>>) {
        let start = {
            let mut state = lock(&file.queue.state);
            let is_applying = Self::RESTARTS_WHILE_APPLYING && state.applying.is_some();
            let retry = !state.deferred.is_empty() || is_applying;
            if Self::RESTARTS_WHILE_RUNNING || !state.running {
                state.retry = retry;
            }
            retry && !std::mem::replace(&mut state.running, true)
        };
        if start {
            start_again(file);
        }
    }

    /// Whether something is queued for the bytes in view.
    fn overlaps(file: &Arc<File<Self>>) -> bool {
        let state = lock(&file.queue.state);
        (Self::COUNTS_THE_BATCH && state.applying.is_some())
            || state.deferred_ranges.overlaps(VIEWED())
            || state.fresh.iter().any(|op| op.ranges[0].overlaps(VIEWED()))
    }

    /// Drops the future.
    fn withdraw(mut future: Submitted<File<Self>>) {
        let op = future.op.take().expect("not resolved");
        let file = &future.target;
        if file.queue.begin(&op).is_some() && Self::RESTARTS_AFTER_WITHDRAWAL {
            Self::restart(file);
        }
    }
}

fn start_again<S: Steps>(file: &Arc<File<S>>) {
    let file = file.clone();
    spawn(move || drain_again(file)).expect("the models take every job");
}

/// [`Queue::drain`] over again, where a mistake can be made.
fn drain_again<S: Steps>(file: Arc<File<S>>) {
    let queue = &file.queue;
    let mut ended = Ended(Vec::new());
    loop {
        let mut state = lock(&queue.state);
        if !S::DEFERS_BEHIND_THE_DEFERRED {
            state.deferred_ranges = Intervals::new();
        }
        if !S::RETRIES_IN_FRONT && std::mem::take(&mut state.retry) {
            state.deferred_ranges = Intervals::new();
            let deferred = std::mem::take(&mut state.deferred);
            state.fresh.extend(deferred);
        }
        let is_empty = state.fresh.is_empty() && !state.retry;
        drop(state);
        if !S::CLEARS_WHERE_IT_LOOKS && is_empty {
            lock(&queue.state).running = false;
            return file.finish();
        }
        let batch = queue
            .next_batch(&mut ended, false)
            .expect("nothing is mapped");
        if !S::RUNS_UNTIL_ALL_ARE_TOLD && batch.is_empty() {
            lock(&queue.state).running = false;
        }
        if batch.is_empty() && ended.0.is_empty() {
            return file.finish();
        }
        if !batch.is_empty() {
            file.hand_on();
            let deferred = file.apply(&batch, &mut ended);
            queue.finish_batch(deferred);
        }
        ended.tell();
    }
}

/// What the crate does.
struct Real;

impl Steps for Real {
    fn submit(file: &Arc<File<Self>>, op: &Operation) -> Submitted<File<Self>> {
        Queue::submit(file, op.clone())
    }

    fn restart(file: &Arc<File<Self>>) {
        Queue::restart(file);
    }

    fn overlaps(file: &Arc<File<Self>>) -> bool {
        file.queue.overlaps(VIEWED())
    }

    fn withdraw(future: Submitted<File<Self>>) {
        drop(future);
    }
}

/// The same, from the copies that mutations are made of.
struct Again;

impl Steps for Again {}

fn op(start: u64, end: u64, action: Action) -> Operation {
    Op::new(ByteRange::between(start, end), action)
}

fn write(start: u64, end: u64) -> Operation {
    op(start, end, Action::Write(FlushPolicy::Never))
}

fn is_done(outcome: Result<Outcome<()>>) -> bool {
    matches!(outcome, Ok(Outcome::Done))
}

/// One write, and a view in its way that ends meanwhile.
fn release<S: Steps>() {
    check(2, || {
        let file = File::<S>::new(true);
        let viewer = {
            let file = file.clone();
            thread::spawn(move || file.release())
        };
        let op = write(0, 10);
        assert!(is_done(block_on(S::submit(&file, &op))));
        viewer.join().unwrap();
        move || file.check_end(&[op])
    });
}

/// Nothing in the way, and two who submit.
fn submissions<S: Steps>() {
    check(2, || {
        let file = File::<S>::new(false);
        let ops = [write(0, 10), write(5, 15)];
        let other = {
            let (file, op) = (file.clone(), ops[1].clone());
            thread::spawn(move || assert!(is_done(block_on(S::submit(&file, &op)))))
        };
        assert!(is_done(block_on(S::submit(&file, &ops[0]))));
        other.join().unwrap();
        move || file.check_end(&ops)
    });
}

/// Writes that overlap one another, of which only the first is viewed.
fn order<S: Steps>() {
    check(1, || {
        let file = File::<S>::new(true);
        let viewer = {
            let file = file.clone();
            thread::spawn(move || file.release())
        };
        let ops = [write(0, 20), write(15, 30), write(25, 40)];
        let futures: Vec<_> = ops.iter().map(|op| S::submit(&file, op)).collect();
        for future in futures {
            assert!(is_done(block_on(future)));
        }
        viewer.join().unwrap();
        move || file.check_end(&ops)
    });
}

/// A write that nothing but a withdrawn one is in the way of, under a view that stays.
fn withdrawal<S: Steps>() {
    check(1, || {
        let file = File::<S>::new(true);
        let ops = [write(0, 20), write(15, 30)];
        let [first, second] = [0, 1].map(|op| S::submit(&file, &ops[op]));
        let other = thread::spawn(move || S::withdraw(first));
        assert!(is_done(block_on(second)));
        other.join().unwrap();
        file.release();
        move || file.check_end(&ops[1..])
    });
}

/// A write that is withdrawn while the view in its way ends.
fn withdrawal_and_release<S: Steps>() {
    check(1, || {
        let file = File::<S>::new(true);
        let op = write(0, 10);
        let future = S::submit(&file, &op);
        let viewer = {
            let file = file.clone();
            thread::spawn(move || file.release())
        };
        S::withdraw(future);
        // From now on it stays as it is.
        let has_started = file.has_started(&op);
        viewer.join().unwrap();
        move || match has_started {
            true => file.check_end(&[op]),
            false => file.check_end(&[]),
        }
    });
}

/// All of it at once: two who submit, one of whom withdraws, and a view that ends.
fn crowd<S: Steps>() {
    check(1, || {
        let file = File::<S>::new(true);
        let viewer = {
            let file = file.clone();
            thread::spawn(move || file.release())
        };
        let ops = [write(0, 20), write(15, 30), write(5, 18)];
        let other = {
            let (file, op) = (file.clone(), ops[2].clone());
            thread::spawn(move || assert!(is_done(block_on(S::submit(&file, &op)))))
        };
        let first = S::submit(&file, &ops[0]);
        let second = S::submit(&file, &ops[1]);
        S::withdraw(first);
        let has_started = file.has_started(&ops[0]);
        assert!(is_done(block_on(second)));
        other.join().unwrap();
        viewer.join().unwrap();
        move || file.check_end(&ops[usize::from(!has_started)..])
    });
}

/// Somebody who passes by the queue, if nothing in it is in the way.
fn overlap<S: Steps>() {
    check(1, || {
        let file = File::<S>::new(true);
        let op = write(0, 10);
        let future = S::submit(&file, &op);
        let viewer = {
            let file = file.clone();
            thread::spawn(move || file.release())
        };
        if !S::overlaps(&file) {
            file.bytes.run(|| {});
            assert!(file.has_started(&op), "overtaken");
        }
        assert!(is_done(block_on(future)));
        viewer.join().unwrap();
        move || file.check_end(&[op])
    });
}

/// A durable write that has started when its future is dropped, and the last handle with it.
fn nobody_left<S: Steps>() {
    check(2, || {
        let file = File::<S>::new(false);
        let (disk, last) = (file.disk.clone(), Arc::downgrade(&file));
        let future = S::submit(&file, &op(0, 5, Action::Write(FlushPolicy::Always)));
        S::withdraw(future);
        file.handles.store(1, Ordering::Relaxed);
        drop(file);
        move || {
            let [written, durable] = [&disk.written, &disk.durable];
            let [written, durable] = [written, durable].map(|n| n.load(Ordering::Relaxed));
            assert_eq!(written, durable, "it has not run to its end");
            assert!(last.upgrade().is_none(), "somebody keeps the file");
        }
    });
}

/// One that gives up rather than wait, behind one that waits. Whoever is told that goes on, before
/// the job that has told it does.
fn giving_up<S: Steps>() {
    check(2, || {
        let file = File::<S>::new(true);
        let ops = [write(0, 20), write(40, 50)];
        let waits = {
            let mut state = lock(&file.queue.state);
            state.push(ops[0].clone());
            let first = state.fresh.pop_front().expect("pushed");
            state.defer(first);
            lock(&file.view).watched = true;
            Submitted {
                target: file.clone(),
                op: Some(ops[0].clone()),
            }
        };
        let viewer = {
            let file = file.clone();
            thread::spawn(move || file.release())
        };
        let try_write = op(15, 30, Action::TryWrite(FlushPolicy::Never));
        let gives_up = block_on(S::submit(&file, &try_write));
        assert!(is_done(block_on(S::submit(&file, &ops[1]))));
        assert!(is_done(block_on(waits)));
        viewer.join().unwrap();
        move || match gives_up {
            Ok(Outcome::InUse) => file.check_end(&ops),
            gives_up => {
                assert!(is_done(gives_up));
                let [first, second] = ops;
                file.check_end(&[first, second, try_write]);
            }
        }
    });
}

/// Durable writes: the drain gets the turn to flush when it has nothing to apply.
fn durable<S: Steps>() {
    check(2, || {
        let file = File::<S>::new(false);
        let write = |file: Arc<File<S>>, start: u64| {
            let op = op(start, start + 5, Action::Write(FlushPolicy::Always));
            assert!(is_done(block_on(S::submit(&file, &op))));
            file.disk.durable.load(Ordering::Relaxed)
        };
        let other = {
            let file = file.clone();
            thread::spawn(move || write(file, 0))
        };
        // Its own write, at least.
        assert!(write(file.clone(), 5) >= 1);
        assert!(other.join().unwrap() >= 1);
        move || assert_eq!(file.disk.durable.load(Ordering::Relaxed), 2)
    });
}

#[test]
fn the_end_of_a_view_is_not_missed() {
    release::<Real>();
}

#[test]
fn a_submission_is_not_missed() {
    submissions::<Real>();
}

#[test]
fn the_order_is_that_of_submission() {
    order::<Real>();
}

#[test]
fn a_withdrawal_frees_those_behind() {
    withdrawal::<Real>();
}

#[test]
fn a_withdrawal_has_come_too_late_or_holds() {
    withdrawal_and_release::<Real>();
}

#[test]
fn one_that_gives_up_is_told_so() {
    giving_up::<Real>();
}

#[test]
fn durable_writes_are_flushed() {
    durable::<Real>();
}

#[test]
fn all_of_it_at_once() {
    crowd::<Real>();
}

#[test]
fn the_queue_is_not_overtaken() {
    overlap::<Real>();
}

#[test]
fn a_durable_write_that_has_started_outlives_the_handles() {
    nobody_left::<Real>();
}

/// What the mutations mutate is right.
#[test]
fn the_steps_over_again() {
    release::<Again>();
    submissions::<Again>();
    order::<Again>();
    withdrawal::<Again>();
    withdrawal_and_release::<Again>();
    crowd::<Again>();
    overlap::<Again>();
    nobody_left::<Again>();
    giving_up::<Again>();
    durable::<Again>();
}

/// A model that must fail with one step done wrong, and how.
macro_rules! needed {
    ($name:ident, $mistake:ident, $model:ident, $failure:literal) => {
        #[test]
        #[should_panic = $failure]
        fn $name() {
            struct Wrong;
            impl Steps for Wrong {
                const $mistake: bool = false;
            }
            $model::<Wrong>();
        }
    };
}

needed!(
    without_clearing_the_flag_where_it_looks,
    CLEARS_WHERE_IT_LOOKS,
    submissions,
    "deadlock"
);
needed!(
    without_a_restart_while_a_job_runs,
    RESTARTS_WHILE_RUNNING,
    release,
    "deadlock"
);
needed!(
    without_a_restart_while_a_batch_is_applied,
    RESTARTS_WHILE_APPLYING,
    release,
    "deadlock"
);
needed!(
    without_a_restart_after_a_withdrawal,
    RESTARTS_AFTER_WITHDRAWAL,
    withdrawal,
    "deadlock"
);
needed!(
    without_counting_the_batch_that_is_applied,
    COUNTS_THE_BATCH,
    overlap,
    "Causality violation"
);
needed!(
    without_asking_whether_it_was_withdrawn,
    STARTS_ONLY_WHAT_IS_QUEUED,
    withdrawal_and_release,
    "another number"
);
needed!(
    without_deferring_behind_the_deferred,
    DEFERS_BEHIND_THE_DEFERRED,
    order,
    "another order"
);
needed!(
    without_retrying_in_front,
    RETRIES_IN_FRONT,
    order,
    "another order"
);
needed!(
    without_running_until_all_are_told,
    RUNS_UNTIL_ALL_ARE_TOLD,
    giving_up,
    "Causality violation"
);
needed!(
    without_a_flush_at_the_end,
    FLUSHES_AT_THE_END,
    durable,
    "deadlock"
);
