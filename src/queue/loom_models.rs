//! Models of the queue: nothing is left in it with nobody to look again, what is withdrawn is
//! never applied, and the order on each byte is that of submission.
//!
//! The view that is in the way is a model too: the leases have their own. The models named
//! `without_*` do one step wrong, and must fail.

use std::future::poll_fn;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::task::Context;

use loom::thread;

use super::*;
use crate::commit::Extent;
use crate::flush::FlushPolicy;
use crate::lease::Kind;
use crate::offload::loom_pool::{block_on, check, Alone};
use crate::sync::AtomicU32;

/// What the view is of.
const VIEWED: fn() -> ByteRange = || ByteRange::between(0, 10);

type Operation = Arc<Op<Lease>>;

/// A file with one view.
struct File<S> {
    queue: Queue<Lease>,
    commits: Commits,
    view: Mutex<View>,
    /// What reads through the view and what is applied under it.
    bytes: Alone,
    applying: Alone,
    /// Places of the operations that have started, as they did.
    started: Mutex<Vec<u64>>,
    /// Where the ranges of the operations begin that have started, as they did.
    order: Mutex<Vec<u64>>,
    granted: Arc<Grant>,
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

/// The lease that an operation ends in.
struct Lease(Arc<Grant>);

struct Grant {
    lives: AtomicU32,
    /// Readers do not wait for its end.
    lasts: AtomicU32,
}

impl Lease {
    fn new(grant: &Arc<Grant>) -> Self {
        grant.lives.store(1, Ordering::Relaxed);
        Self(grant.clone())
    }
}

impl Granted for Lease {
    fn delivered(&self) {
        self.0.lasts.store(1, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.lasts.store(0, Ordering::Relaxed);
        self.0.lives.store(0, Ordering::Relaxed);
    }
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
            order: Mutex::new(Vec::new()),
            granted: Arc::new(Grant {
                lives: AtomicU32::new(0),
                lasts: AtomicU32::new(0),
            }),
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
            S::restart(self, &[VIEWED()]);
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
        if self.queue.take_payload(op).is_none() && S::STARTS_ONLY_WHAT_IS_QUEUED {
            return false;
        }
        started.push(op.place.load(Ordering::Relaxed));
        drop(started);
        lock(&self.order).push(op.ranges[0].start());
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
        let left = state.fresh.iter().chain(state.deferred.ops());
        assert_eq!(left.filter(|op| op.is_queued()).count(), 0, "left behind");
        assert!(!state.running && state.applying.is_none());
        drop(state);
        self.check_budget();
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

impl<S: Steps> File<S> {
    /// Writes of ten bytes fill an account.
    fn with_small_accounts(held: bool) -> Arc<Self> {
        let file = Self::new(held);
        file.queue.budget.set_limit(10);
        file
    }

    /// All room was given back, and the door is as it was.
    fn check_budget(&self) {
        let state = lock(&self.queue.state);
        assert_eq!(state.door.ops().count(), 0, "left at the door");
        assert_eq!(self.queue.budget.used(), 0, "room was lost");
    }

    fn check_order(&self, expected: &[u64]) {
        self.check_budget();
        assert_eq!(*lock(&self.order), expected, "another order");
    }
}

impl<S: Steps> QueueHost for File<S> {
    type Lease = Lease;

    fn queue(&self) -> &Queue<Lease> {
        &self.queue
    }

    fn apply(self: &Arc<Self>, batch: &[Operation], ended: &mut Ended<Lease>) -> Vec<Operation> {
        self.applying.run(|| {
            let mut deferred = Vec::new();
            for (op, granted) in batch.iter().zip(self.grant(batch)) {
                match op.action {
                    Action::TryWrite(_) if !granted => {
                        self.queue.complete(op, Ok(Outcome::InUse), ended);
                    }
                    _ if !granted => deferred.push(op.clone()),
                    Action::Lease(_) => {
                        let lease = Lease::new(&self.granted);
                        self.queue.complete(op, Ok(Outcome::Leased(lease)), ended);
                    }
                    _ if !self.write(op) => {}
                    Action::Write(FlushPolicy::Always) => self.commits.add(op.clone(), false),
                    _ => ended.push(op, Ok(Outcome::Done)),
                }
            }
            self.handles.load(Ordering::Relaxed);
            deferred
        })
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
    const KEEPS_ITS_PLACE: bool = true;
    const LOOKS_WHEN_IT_JOINS: bool = true;
    const RETRIES_WHEN_IT_COMES_IN: bool = true;
    const LEAVES_THE_DOOR: bool = true;
    const MARKS_UNDER_THE_LOCK: bool = true;
    const LETS_GO_IN_THE_DROP: bool = true;

    fn submit(file: &Arc<File<Self>>, op: &Operation) -> Submission<Self> {
        let start = {
            let mut state = lock(&file.queue.state);
            state.push(op.clone());
            !std::mem::replace(&mut state.running, true)
        };
        if start {
            start_again(file);
        }
        submission(file, op)
    }

    fn restart(file: &Arc<File<Self>>, gone: &[ByteRange]) {
        let start = {
            let mut state = lock(&file.queue.state);
            let is_applying = Self::RESTARTS_WHILE_APPLYING && state.applying.is_some();
            let matters = is_applying
                || state.door.has_blocked()
                || gone.iter().any(|range| state.deferred.overlaps(*range));
            if matters && (Self::RESTARTS_WHILE_RUNNING || !state.running) {
                state.note_gone(gone);
            }
            matters && !std::mem::replace(&mut state.running, true)
        };
        if start {
            start_again(file);
        }
    }

    /// Whether something is queued for the bytes in view.
    fn overlaps(file: &Arc<File<Self>>) -> bool {
        let state = lock(&file.queue.state);
        (Self::COUNTS_THE_BATCH && state.applying.is_some())
            || state.deferred.overlaps(VIEWED())
            || state.fresh.iter().any(|op| op.ranges[0].overlaps(VIEWED()))
    }

    /// Drops the future.
    fn withdraw(mut future: Submission<Self>) {
        let op = future.op.take().expect("not resolved");
        withdraw_again(&future.target, &op);
    }

    /// A write of as many bytes as `range` has, polled once.
    fn write(file: &Arc<File<Self>>, range: ByteRange) -> Writing<Self> {
        let mut writing = Writing {
            file: file.clone(),
            op: None,
            polled: None,
        };
        let waker =
            futures_lite::future::block_on(poll_fn(|context| Poll::Ready(context.waker().clone())));
        let _ = writing.poll_again(&mut Context::from_waker(&waker), range);
        writing
    }

    /// What it comes to.
    fn finish_write(writing: Writing<Self>) -> Result<Outcome<Lease>> {
        // As in `block_on`: where the wait never ends, nothing is withdrawn.
        let mut writing = ManuallyDrop::new(writing);
        let range = ByteRange::EMPTY;
        let outcome = block_on(poll_fn(|context| writing.poll_again(context, range)));
        ManuallyDrop::into_inner(writing).op = None;
        outcome
    }
}

/// A future that keeps its file, so that it can go to another thread.
type Submission<S> = Submitted<'static, File<S>, Box<Arc<File<S>>>>;

fn submission<S: Steps>(file: &Arc<File<S>>, op: &Operation) -> Submission<S> {
    Submitted::new(Box::new(file.clone()), op.clone())
}

/// [`Queue::write`], as a future that keeps its file.
struct Writing<S: Steps> {
    file: Arc<File<S>>,
    op: Option<Operation>,
    /// The real one.
    polled: Option<Boxed<Result<Outcome<Lease>>>>,
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<S: Steps> Writing<S> {
    /// [`Queue::write`] over again, where a mistake can be made. Submitted in the first poll.
    fn poll_again(
        &mut self,
        context: &mut Context<'_>,
        range: ByteRange,
    ) -> Poll<Result<Outcome<Lease>>> {
        if let Some(op) = &self.op {
            let outcome = op.done.poll(context);
            if outcome.is_pending() {
                come_in_again(&self.file, op);
            }
            return outcome;
        }
        let queue = &self.file.queue;
        let weight = range.len();
        let has_room = queue.budget.try_enter(weight);
        let held = match has_room {
            true => Held::Ready(payload(weight), Account::Queued),
            false => Held::Outside(None),
        };
        let action = Action::Write(FlushPolicy::Never);
        let waker = context.waker().clone();
        let op = Op::write(Ranges::One([range]), action, held, waker);
        self.op = Some(op.clone());
        let mut called = Vec::new();
        let start = {
            let mut state = lock(&queue.state);
            if has_room {
                state.push(op.clone());
                !std::mem::replace(&mut state.running, true)
            } else {
                match S::KEEPS_ITS_PLACE {
                    true => state.number(&op),
                    // Behind all others, until it comes in.
                    false => op.place.store(u64::MAX - weight, Ordering::Relaxed),
                }
                state.door.join(op.clone());
                if S::LOOKS_WHEN_IT_JOINS {
                    state.call(&queue.budget, &mut called);
                }
                false
            }
        };
        if start {
            start_again(&self.file);
        }
        come_in_again(&self.file, &op);
        wake_all(&mut called);
        Poll::Pending
    }
}

impl<S: Steps> Drop for Writing<S> {
    fn drop(&mut self) {
        if let Some(op) = &self.op {
            withdraw_again(&self.file, op);
        }
    }
}

fn payload(len: u64) -> Payload {
    Payload::Owned(vec![0; len as usize].into())
}

/// [`Submitted::bring_in`] over again.
fn come_in_again<S: Steps>(file: &Arc<File<S>>, op: &Operation) {
    let start = {
        let mut state = lock(&file.queue.state);
        if !op.enter(Some(payload(op.weight))) {
            return;
        }
        if S::KEEPS_ITS_PLACE {
            let gone = state.gone.len();
            state.take_in(op.clone());
            if !S::RETRIES_WHEN_IT_COMES_IN {
                state.gone.truncate(gone);
            }
        } else {
            let place = op.place();
            state.door.remove(place);
            state.push(op.clone());
        }
        !std::mem::replace(&mut state.running, true)
    };
    if start {
        start_again(file);
    }
}

/// [`Queue::withdraw`] over again.
fn withdraw_again<S: Steps>(file: &Arc<File<S>>, op: &Operation) {
    let queue = &file.queue;
    if S::LETS_GO_IN_THE_DROP {
        op.done.abandon();
    }
    let held = std::mem::replace(&mut *lock(&op.held), Held::Gone);
    let (account, is_outside) = match held {
        Held::Gone => return,
        Held::Ready(_, account) => (Some(account), false),
        Held::Called(_) => (Some(Account::Queued), true),
        Held::Outside(_) => (None, true),
    };
    if let Some(account) = account {
        queue.budget.give_back(account, op.weight);
    }
    let mut called = Vec::new();
    {
        let mut state = lock(&queue.state);
        if is_outside && S::LEAVES_THE_DOOR {
            let place = op.place();
            state.door.remove(place);
        }
        state.deferred.remove(op);
        state.call(&queue.budget, &mut called);
    }
    if S::RESTARTS_AFTER_WITHDRAWAL {
        S::restart(file, &op.ranges);
    }
    wake_all(&mut called);
}

fn start_again<S: Steps>(file: &Arc<File<S>>) {
    let file = file.clone();
    spawn(move || drain_again(file)).expect("the models take every job");
}

/// [`Queue::drain`] over again, where a mistake can be made.
fn drain_again<S: Steps>(file: Arc<File<S>>) {
    let queue = &file.queue;
    let mut ended = Ended::new();
    loop {
        let mut state = lock(&queue.state);
        state.deferred.is_blind = !S::DEFERS_BEHIND_THE_DEFERRED;
        if !S::RETRIES_IN_FRONT {
            let State {
                gone,
                deferred,
                fresh,
                ..
            } = &mut *state;
            deferred.take(gone, fresh);
        }
        let is_empty = state.fresh.is_empty() && state.gone.is_empty();
        drop(state);
        if !S::CLEARS_WHERE_IT_LOOKS && is_empty {
            lock(&queue.state).running = false;
            return commit_again(file);
        }
        let batch = queue
            .next_batch(&mut ended, false)
            .expect("nothing is mapped");
        if !S::RUNS_UNTIL_ALL_ARE_TOLD && batch.is_empty() {
            lock(&queue.state).running = false;
        }
        if batch.is_empty() && ended.is_empty() {
            return commit_again(file);
        }
        if !batch.is_empty() {
            Commits::start(&file);
            let deferred = file.apply(&batch, &mut ended);
            queue.finish_batch(deferred, &mut ended);
        }
        if !S::MARKS_UNDER_THE_LOCK {
            let outcomes = ended.ends.iter().map(|(_, outcome)| outcome);
            outcomes.flatten().for_each(Outcome::delivered);
        }
        ended.tell();
    }
}

/// [`Queue::commit`], unless it is forgotten.
fn commit_again<S: Steps>(file: Arc<File<S>>) {
    if S::FLUSHES_AT_THE_END {
        Queue::commit(file);
    }
}

/// What the crate does.
struct Real;

impl Steps for Real {
    fn submit(file: &Arc<File<Self>>, op: &Operation) -> Submission<Self> {
        let mut submitted = Queue::submit(file, op.clone());
        submitted.op = None;
        submission(file, op)
    }

    fn restart(file: &Arc<File<Self>>, gone: &[ByteRange]) {
        let hull = gone.iter().copied().reduce(ByteRange::hull);
        Queue::restart(file, hull.expect("an operation has a range"));
    }

    fn overlaps(file: &Arc<File<Self>>) -> bool {
        file.queue.overlaps(VIEWED())
    }

    fn withdraw(future: Submission<Self>) {
        drop(future);
    }

    fn write(file: &Arc<File<Self>>, range: ByteRange) -> Writing<Self> {
        let kept = file.clone();
        let mut polled = Box::pin(async move {
            let data = vec![0; range.len() as usize];
            let action = Action::Write(FlushPolicy::Never);
            Queue::write(&kept, Ranges::One([range]), action, Source::Slice(&data)).await
        });
        let first = futures_lite::future::block_on(futures_lite::future::poll_once(&mut polled));
        assert!(first.is_none());
        Writing {
            file: file.clone(),
            op: None,
            polled: Some(polled),
        }
    }

    fn finish_write(mut writing: Writing<Self>) -> Result<Outcome<Lease>> {
        block_on(writing.polled.take().expect("not resolved"))
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

fn is_done(outcome: Result<Outcome<Lease>>) -> bool {
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
            state.defer(first, &file.queue.budget, &mut Ended::new());
            lock(&file.view).watched = true;
            submission(&file, &ops[0])
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

/// Two writes, with room for one.
fn door<S: Steps>() {
    check(1, || {
        let file = File::<S>::with_small_accounts(false);
        let other = {
            let file = file.clone();
            thread::spawn(move || {
                let write = S::write(&file, ByteRange::between(20, 30));
                assert!(is_done(S::finish_write(write)));
            })
        };
        let write = S::write(&file, ByteRange::between(0, 10));
        assert!(is_done(S::finish_write(write)));
        other.join().unwrap();
        move || file.check_budget()
    });
}

/// A write without room, and others that overlap it and come after it.
fn door_order<S: Steps>() {
    check(1, || {
        let file = File::<S>::with_small_accounts(false);
        let writes = [(0, 10), (20, 30)].map(|(start, end)| ByteRange::between(start, end));
        let writes = writes.map(|range| S::write(&file, range));
        let later = op(25, u64::MAX, Action::Resize);
        let later = S::submit(&file, &later);
        for write in writes {
            assert!(is_done(S::finish_write(write)));
        }
        assert!(is_done(block_on(later)));
        move || file.check_order(&[0, 20, 25])
    });
}

/// A write without room that is dropped while room is made for it.
fn door_withdrawal<S: Steps>() {
    check(1, || {
        let file = File::<S>::with_small_accounts(false);
        let writes = [(0, 10), (20, 30)].map(|(start, end)| ByteRange::between(start, end));
        let [first, second] = writes.map(|range| S::write(&file, range));
        let later = op(25, u64::MAX, Action::Resize);
        let later = S::submit(&file, &later);
        let other = thread::spawn(move || drop(second));
        assert!(is_done(S::finish_write(first)));
        assert!(is_done(block_on(later)));
        other.join().unwrap();
        move || file.check_budget()
    });
}

/// A write that is blocked by one that a view blocks, and finds no room among such: it is sent back
/// to the door, and comes in when the view has ended.
fn sent_back<S: Steps>() {
    check(1, || {
        let file = File::<S>::with_small_accounts(true);
        let viewer = {
            let file = file.clone();
            thread::spawn(move || file.release())
        };
        let writes = [(0, 10), (5, 15)].map(|(start, end)| ByteRange::between(start, end));
        let writes = writes.map(|range| S::write(&file, range));
        let later = op(12, u64::MAX, Action::Resize);
        let later = S::submit(&file, &later);
        // One after the other: none is polled for another's sake.
        for write in writes {
            assert!(is_done(S::finish_write(write)));
        }
        assert!(is_done(block_on(later)));
        viewer.join().unwrap();
        move || file.check_order(&[0, 5, 12])
    });
}

/// The future of a view that is dropped while the view is granted, or after that.
fn dropped_view<S: Steps>() {
    check(1, || {
        let file = File::<S>::new(false);
        let op = op(20, 30, Action::Lease(Kind::Exclusive));
        let future = S::submit(&file, &op);
        S::withdraw(future);
        let lasts = file.granted.lasts.load(Ordering::Relaxed);
        assert_eq!(lasts, 0, "it lasts");
        let granted = file.granted.clone();
        move || {
            let Grant { lives, lasts } = &*granted;
            assert_eq!(lasts.load(Ordering::Relaxed), 0, "it lasts");
            assert_eq!(lives.load(Ordering::Relaxed), 0, "it lives");
        }
    });
}

#[test]
fn room_is_not_missed() {
    door::<Real>();
}

#[test]
fn a_write_without_room_keeps_its_place() {
    door_order::<Real>();
}

#[test]
fn one_that_leaves_the_door_frees_those_behind() {
    door_withdrawal::<Real>();
}

#[test]
fn one_that_is_sent_back_comes_in_again() {
    sent_back::<Real>();
}

#[test]
fn a_view_does_not_last_longer_than_its_future() {
    dropped_view::<Real>();
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
    door::<Again>();
    door_order::<Again>();
    door_withdrawal::<Again>();
    sent_back::<Again>();
    dropped_view::<Again>();
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
needed!(
    without_a_place_at_the_first_poll,
    KEEPS_ITS_PLACE,
    door_order,
    "another order"
);
needed!(
    without_a_look_for_room_after_joining,
    LOOKS_WHEN_IT_JOINS,
    door,
    "deadlock"
);
needed!(
    without_a_retry_when_one_comes_in,
    RETRIES_WHEN_IT_COMES_IN,
    door_order,
    "deadlock"
);
needed!(
    without_leaving_the_door,
    LEAVES_THE_DOOR,
    door_withdrawal,
    "deadlock"
);
needed!(
    without_marking_under_the_lock,
    MARKS_UNDER_THE_LOCK,
    dropped_view,
    "it lasts"
);
needed!(
    without_letting_go_in_the_drop,
    LETS_GO_IN_THE_DROP,
    dropped_view,
    "it l"
);
