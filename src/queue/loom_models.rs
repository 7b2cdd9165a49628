//! Loom models of the queue: no operation is left in it without a drain that will look at it, a
//! withdrawn operation is never applied, and the order on each byte is that of submission.
//!
//! The models drive the real queue. The view that blocks operations is a model as well: the leases
//! have models of their own. The models named `without_*` leave one of the [`Steps`] out, and must
//! fail.

/// A model that must fail if one step is left out, and the text of the failure.
macro_rules! needed {
    ($name:ident, $step:ident, $model:ident, $failure:literal) => {
        #[test]
        #[should_panic = $failure]
        fn $name() {
            #[derive(Debug)]
            struct Without;

            impl Steps for Without {
                const $step: bool = false;
            }

            impl HostSteps for Without {}

            $model::<Without>();
        }
    };
}

mod door;
mod order;
mod outcome;
mod turn;

use std::future::Future;
use std::mem::ManuallyDrop;
use std::pin::Pin;

use loom::thread;

use super::*;
use crate::commit::Extent;
use crate::flush::FlushPolicy;
use crate::lease::Kind;
use crate::offload::loom_pool::{block_on, check, Alone};
use crate::sync::AtomicU32;

/// The bytes that the view covers.
const VIEWED: fn() -> ByteRange = || ByteRange::between(0, 10);

type Operation = Arc<Op<Lease>>;

/// The steps of the queue, and those of its host.
trait HostSteps: Steps {
    /// A host applies an operation only if it gets the payload, so not if it was withdrawn.
    const STARTS_ONLY_QUEUED: bool = true;
}

impl HostSteps for AllSteps {}

/// A file with one view.
struct File<S> {
    queue: Queue<Lease, S>,
    commits: Commits,
    view: Mutex<View>,
    /// Accessed by the reader of the view, and by the operations that overlap the view.
    bytes: Alone,
    applying: Alone,
    /// Places of the operations that have started, in the order of their starts.
    started: Mutex<Vec<u64>>,
    /// The first bytes of the operations that have started, in the order of their starts.
    order: Mutex<Vec<u64>>,
    granted: Arc<Grant>,
    disk: Arc<Disk>,
    /// Changes just before a handle is dropped. The count of a std `Arc` does too, but loom does
    /// not see that.
    handles: AtomicU32,
}

/// The part that outlives a file: how many operations have written, and how many of these writes
/// are durable.
struct Disk {
    written: AtomicU32,
    durable: AtomicU32,
}

/// The lease with which an operation ends.
struct Lease(Arc<Grant>);

struct Grant {
    /// The lease is live.
    lives: AtomicU32,
    /// The lease is marked as lasting: readers do not wait for its end.
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

/// A lease on the viewed bytes.
struct View {
    held: bool,
    /// An operation waits for the end of the lease.
    watched: bool,
}

impl<S: HostSteps> File<S> {
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
        })
    }

    /// A file whose accounts are full with a write of ten bytes.
    fn with_small_accounts(held: bool) -> Arc<Self> {
        let file = Self::new(held);
        file.queue.budget.set_limit(10);
        file
    }

    /// Reads through the view for the last time, and ends the view.
    fn release(self: &Arc<Self>) {
        self.bytes.run(|| {});
        let watched = {
            let mut view = lock(&self.view);
            view.held = false;
            std::mem::take(&mut view.watched)
        };
        if watched {
            Queue::restart(self, VIEWED());
        }
    }

    /// Another thread that ends the view.
    fn viewer(self: &Arc<Self>) -> thread::JoinHandle<()> {
        let file = self.clone();
        thread::spawn(move || file.release())
    }

    /// Tells which operations of the batch are free. A view that blocks one of them is watched.
    fn grant(&self, batch: &[Operation]) -> Vec<bool> {
        let mut view = lock(&self.view);
        let mut taken: Vec<ByteRange> = view.held.then(VIEWED).into_iter().collect();
        let mut granted = Vec::new();
        for op in batch {
            let range = op.ranges[0];
            view.watched |= view.held && range.overlaps(VIEWED());
            let is_free = !taken.iter().any(|other| other.overlaps(range));
            if !is_free {
                // A blocked operation blocks later ones.
                taken.push(range);
            }
            granted.push(is_free);
        }
        granted
    }

    /// Starts a write, unless it was withdrawn.
    fn write(&self, op: &Operation) -> bool {
        // Held throughout, so that a thread that checks after its withdrawal sees every operation
        // for which the withdrawal came too late.
        let mut started = lock(&self.started);
        if self.queue.take_payload(op).is_none() && S::STARTS_ONLY_QUEUED {
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

    /// Called when all jobs have ended: `ops` have started, once each, and overlapping operations
    /// in the order of submission.
    fn check_end(&self, ops: &[Operation]) {
        let state = lock(&self.queue.state);
        let left = state.incoming.iter().chain(state.deferred.ops());
        let left = left.filter(|op| op.is_queued()).count();
        assert_eq!(left, 0, "operations left in the queue");
        assert!(!state.running && state.applying.is_none());
        drop(state);
        self.check_budget();
        let started = lock(&self.started);
        assert_eq!(started.len(), ops.len(), "number of started operations");
        let rank = |op: &Operation| {
            let place = op.place.load(Ordering::Relaxed);
            let rank = started.iter().position(|started| *started == place);
            (place, rank.expect("the operation has started"))
        };
        for (index, op) in ops.iter().enumerate() {
            let overlap = |other: &&Operation| other.ranges[0].overlaps(op.ranges[0]);
            for other in ops[index + 1..].iter().filter(overlap) {
                let ((place, rank), (other_place, other_rank)) = (rank(op), rank(other));
                let in_order = (place < other_place) == (rank < other_rank);
                assert!(in_order, "operations started out of order");
            }
        }
    }

    /// All room was given back, and no write is left at the door.
    fn check_budget(&self) {
        let state = lock(&self.queue.state);
        assert_eq!(state.door.ops().count(), 0, "writes left at the door");
        assert_eq!(self.queue.budget.used(), 0, "bytes left in the budget");
    }

    fn check_order(&self, expected: &[u64]) {
        self.check_budget();
        let order = lock(&self.order);
        assert_eq!(*order, expected, "operations started out of order");
    }
}

impl<S: HostSteps> QueueHost for File<S> {
    type Lease = Lease;
    type Steps = S;

    fn queue(&self) -> &Queue<Lease, S> {
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
                    Action::Write(FlushPolicy::Always) => self.commits.add(op.clone(), false, 0),
                    _ => ended.push(op, Ok(Outcome::Done)),
                }
            }
            self.handles.load(Ordering::Relaxed);
            deferred
        })
    }
}

impl<S: HostSteps> Durable for File<S> {
    fn commits(&self) -> &Commits {
        &self.commits
    }

    fn flush(&self, _: Extent<'_>) -> io::Result<()> {
        let written = self.disk.written.load(Ordering::Relaxed);
        self.disk.durable.store(written, Ordering::Relaxed);
        Ok(())
    }
}

/// A future that keeps its file, so that it can move to another thread.
type Submission<S> = Submitted<'static, File<S>, Box<Arc<File<S>>>>;

fn submit<S: HostSteps>(file: &Arc<File<S>>, op: &Operation) -> Submission<S> {
    let mut submitted = Queue::submit(file, op.clone());
    // The borrowed future must not withdraw the operation when it is dropped here.
    submitted.op = None;
    Submitted::new(Box::new(file.clone()), op.clone())
}

/// [`Queue::write`] as a future that keeps its file. It is leaked unless a model finishes or drops
/// it: where a model deadlocks, loom unwinds, and a drop that goes on with the model would abort.
struct Writing(ManuallyDrop<Boxed<Result<Outcome<Lease>>>>);

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Writing {
    /// A write to `range`, polled once.
    fn new<S: HostSteps>(file: &Arc<File<S>>, range: ByteRange) -> Self {
        let file = file.clone();
        let mut write = Box::pin(async move {
            let data = vec![0; range.len() as usize];
            let action = Action::Write(FlushPolicy::Never);
            Queue::write(&file, Ranges::One([range]), action, Source::Slice(&data)).await
        });
        let first = futures_lite::future::block_on(futures_lite::future::poll_once(&mut write));
        assert!(first.is_none(), "a write is pending after its first poll");
        Self(ManuallyDrop::new(write))
    }

    /// Waits for the outcome.
    fn finish(self) -> Result<Outcome<Lease>> {
        block_on(ManuallyDrop::into_inner(self.0))
    }

    /// Drops the future.
    fn withdraw(self) {
        drop(ManuallyDrop::into_inner(self.0));
    }
}

fn op(start: u64, end: u64, action: Action) -> Operation {
    Op::new(ByteRange::between(start, end), action)
}

fn write(start: u64, end: u64) -> Operation {
    op(start, end, Action::Write(FlushPolicy::Never))
}

fn is_done(outcome: Result<Outcome<Lease>>) -> bool {
    matches!(outcome, Ok(Outcome::Done))
}
