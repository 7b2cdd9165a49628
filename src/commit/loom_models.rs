//! Loom models of group commit: no waiter is forgotten, no waiter is served by a flush that began
//! before its bytes were written, and one flush runs at a time.
//!
//! The models drive the real commits. The models named `without_*` leave out one step, and must
//! fail.

use std::marker::PhantomData;

use loom::thread;

use super::*;
use crate::offload::loom_pool::{block_on, check, Alone};
use crate::sync::AtomicU32;

/// The bytes of the file, each a cell of its own.
const CELLS: usize = 3;

/// A file whose flush takes a while.
struct File<S> {
    commits: Commits,
    disk: Arc<Disk>,
    flushing: Alone,
    begun: AtomicU32,
    /// The number of the flush that fails; the first flush is 1.
    fails: Option<u32>,
    steps: PhantomData<S>,
}

/// The part that outlives a file. All accesses are Relaxed: only the commits may establish an
/// order.
struct Disk {
    /// 1 if the cell is written in the page cache.
    written: [AtomicU32; CELLS],
    durable: [AtomicU32; CELLS],
    /// Changes just before a handle is dropped. The count of a std `Arc` does too, but loom does
    /// not see that.
    handles: AtomicU32,
}

impl<S> File<S> {
    fn new(fails: Option<u32>) -> Arc<Self> {
        Arc::new(Self {
            commits: Commits::default(),
            disk: Arc::new(Disk {
                written: std::array::from_fn(|_| AtomicU32::new(0)),
                durable: std::array::from_fn(|_| AtomicU32::new(0)),
                handles: AtomicU32::new(0),
            }),
            flushing: Alone::new(),
            begun: AtomicU32::new(0),
            fails,
            steps: PhantomData,
        })
    }
}

impl Disk {
    fn write(&self, cell: usize) {
        self.written[cell].store(1, Ordering::Relaxed);
    }

    fn is_durable(&self, cell: usize) -> bool {
        self.durable[cell].load(Ordering::Relaxed) == 1
    }
}

impl<S: Steps> Durable for File<S> {
    const ONE_TURN: bool = S::ONE_TURN;
    const SERVES_EARLIER_WAITERS_ONLY: bool = S::SERVES_EARLIER_WAITERS_ONLY;
    const CLEARS_WHERE_IT_CHECKS: bool = S::CLEARS_WHERE_IT_CHECKS;
    const ERROR_STICKS: bool = S::ERROR_STICKS;

    fn commits(&self) -> &Commits {
        &self.commits
    }

    fn flush(&self, extent: Extent<'_>) -> io::Result<()> {
        let cells: Vec<usize> = match extent {
            Extent::Everything => (0..CELLS).collect(),
            Extent::Ranges(ranges) => ranges.iter().map(|range| range.start() as usize).collect(),
        };
        self.flushing.run(|| {
            let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
            let pages: Vec<u32> = cells
                .iter()
                .map(|cell| self.disk.written[*cell].load(Ordering::Relaxed))
                .collect();
            if self.fails == Some(number) {
                return Err(io::Error::other("the disk is full"));
            }
            for (cell, page) in cells.into_iter().zip(pages) {
                self.disk.durable[cell].store(page, Ordering::Relaxed);
            }
            Ok(())
        })
    }
}

/// The steps of group commit ([`Durable`]) and of its clients. A model leaves out one at a time.
trait Steps: Send + Sync + 'static {
    /// The turn is run here, and a job goes on after one round; otherwise a job runs all of it.
    const RUNS_HERE: bool = true;
    const ONE_TURN: bool = true;
    const SERVES_EARLIER_WAITERS_ONLY: bool = true;
    const CLEARS_WHERE_IT_CHECKS: bool = true;
    const ERROR_STICKS: bool = true;
    /// A client writes before it waits.
    const WRITES_FIRST: bool = true;
    /// A client adds its waiter before it asks for the turn.
    const ADDS_FIRST: bool = true;
    /// A waiter leaves the request of an earlier one, that everything is flushed, as it is.
    const KEEPS_EVERYTHING: bool = true;
}

/// All steps.
struct All;

impl Steps for All {}

/// All steps, with every turn in a job.
struct InJobs;

impl Steps for InJobs {
    const RUNS_HERE: bool = false;
}

/// Waits until a flush has served `flush`, and everything if `everything` is set.
fn commit<S: Steps>(file: &Arc<File<S>>, flush: Flush, everything: bool) -> Result<()> {
    let flush = start(file, flush, everything);
    block_on(flush.done())
}

fn start<S: Steps>(file: &Arc<File<S>>, flush: Flush, everything: bool) -> Arc<Flush> {
    let flush = Arc::new(flush);
    let add = || {
        if !S::KEEPS_EVERYTHING {
            lock(&file.commits.state).everything = false;
        }
        file.commits.add(flush.clone(), everything, 0);
    };
    let turn = if S::ADDS_FIRST {
        add();
        Commits::turn(file)
    } else {
        let turn = Commits::turn(file);
        add();
        turn
    };
    match turn {
        Some(turn) if S::RUNS_HERE => turn.run(1),
        Some(turn) => turn.spawn(),
        None => {}
    }
    flush
}

/// A durable write.
fn write<S: Steps>(file: &Arc<File<S>>, cell: usize) -> Result<()> {
    let range = ByteRange::between(cell as u64, cell as u64 + 1);
    if S::WRITES_FIRST {
        file.disk.write(cell);
    }
    let result = commit(file, Flush::of(range), false);
    if !S::WRITES_FIRST {
        file.disk.write(cell);
    }
    result
}

/// Durable writes, one in each thread. Each result is correct, whichever flush served the write.
fn writes<S: Steps>(clients: usize, fails: Option<u32>) {
    check(1, move || {
        let file = File::<S>::new(fails);
        let client = move |cell: usize, file: Arc<File<S>>| {
            let result = write(&file, cell);
            // Nothing else flushes the cell.
            let durable = file.disk.is_durable(cell);
            assert_eq!(result.is_ok(), durable, "a result differs from the disk");
            assert!(
                fails != Some(1) || result.is_err(),
                "a waiter was not told of the error"
            );
        };
        let threads: Vec<_> = (1..clients)
            .map(|cell| {
                let file = file.clone();
                thread::spawn(move || client(cell, file))
            })
            .collect();
        client(0, file.clone());
        for thread in threads {
            thread.join().unwrap();
        }
        move || {
            let state = lock(&file.commits.state);
            assert!(!state.is_flushing && state.waiting.is_empty());
            let begun = file.begun.load(Ordering::Relaxed);
            assert!(begun as usize <= clients);
            if let Some(fails) = fails {
                assert!(begun <= fails, "a flush was tried after one had failed");
            }
            assert_eq!(
                file.commits.failure().is_some(),
                fails.is_some_and(|fails| begun == fails)
            );
        }
    });
}

/// One client flushes everything, and another client only its own bytes.
fn everything<S: Steps>() {
    check(1, || {
        let file = File::<S>::new(None);
        // Written before, by a client that does not wait.
        file.disk.write(2);
        let writer = {
            let file = file.clone();
            thread::spawn(move || {
                write(&file, 1).unwrap();
                assert!(file.disk.is_durable(1));
            })
        };
        file.disk.write(0);
        commit(&file, Flush::of_everything(), false).unwrap();
        assert!(file.disk.is_durable(0) && file.disk.is_durable(2));
        writer.join().unwrap();
        || {}
    });
}

/// A write that crosses a threshold waits for all dirty bytes.
fn threshold<S: Steps>() {
    check(1, || {
        let file = File::<S>::new(None);
        file.disk.write(2);
        let writer = {
            let file = file.clone();
            thread::spawn(move || {
                file.disk.write(0);
                commit(&file, Flush::of(ByteRange::between(0, 1)), true).unwrap();
                let durable = file.disk.is_durable(0) && file.disk.is_durable(2);
                assert!(durable, "a flush of everything missed a cell");
            })
        };
        write(&file, 1).unwrap();
        assert!(file.disk.is_durable(1));
        writer.join().unwrap();
        || {}
    });
}

/// A waiter that is woken some time before the turn goes on.
struct Hasty {
    flush: Flush,
    disk: Arc<Disk>,
}

impl Waiter for Hasty {
    fn extent(&self) -> Extent<'_> {
        self.flush.extent()
    }

    fn lost(&self) -> &Lost {
        self.flush.lost()
    }

    fn acknowledge(&self, result: Result<()>) -> Option<Waker> {
        if let Some(waker) = self.flush.acknowledge(result) {
            waker.wake();
        }
        self.disk.handles.load(Ordering::Relaxed);
        None
    }
}

/// A flush without a future that waits, whose file is closed while it runs.
fn started_flush() {
    check(1, || {
        let file = File::<All>::new(None);
        let (disk, last) = (file.disk.clone(), Arc::downgrade(&file));
        let spawn_turn = |file: &Arc<File<All>>| {
            if let Some(turn) = Commits::turn(file) {
                turn.spawn();
            }
        };
        let other = {
            let file = file.clone();
            thread::spawn(move || {
                file.disk.write(1);
                let flush = Flush::of(ByteRange::between(1, 2));
                file.commits.add(Arc::new(flush), false, 0);
                spawn_turn(&file);
                file.disk.handles.fetch_add(1, Ordering::Relaxed);
            })
        };
        disk.write(0);
        let waiter = Arc::new(Hasty {
            flush: Flush::of(ByteRange::between(0, 1)),
            disk: disk.clone(),
        });
        file.commits.add(waiter.clone(), false, 0);
        spawn_turn(&file);
        block_on(waiter.flush.done()).unwrap();
        disk.handles.fetch_add(1, Ordering::Relaxed);
        drop(file);
        other.join().unwrap();
        move || {
            assert!(disk.is_durable(1), "a flush that was started did not run");
            assert!(last.upgrade().is_none(), "a job still keeps the file open");
        }
    });
}

#[test]
fn waiters_are_told_after_their_flush() {
    writes::<All>(3, None);
    writes::<InJobs>(3, None);
}

#[test]
fn a_flush_error_reaches_all_later_waiters() {
    for fails in [1, 2] {
        writes::<All>(3, Some(fails));
        writes::<InJobs>(3, Some(fails));
    }
}

#[test]
fn everything_is_flushed_on_request() {
    everything::<All>();
    everything::<InJobs>();
    threshold::<All>();
    threshold::<InJobs>();
}

#[test]
fn a_started_flush_outlives_the_handles() {
    started_flush();
}

/// A model that must fail if one step is left out, and the text of the failure.
macro_rules! needed {
    ($name:ident, $step:ident, $model:expr, $failure:literal) => {
        #[test]
        #[should_panic = $failure]
        fn $name() {
            struct Without;
            impl Steps for Without {
                const $step: bool = false;
            }
            $model;
        }
    };
}

needed!(
    without_writing_before_it_waits,
    WRITES_FIRST,
    writes::<Without>(2, None),
    "a result differs from the disk"
);
needed!(
    without_adding_before_asking_for_the_turn,
    ADDS_FIRST,
    writes::<Without>(2, None),
    "deadlock"
);
needed!(
    without_one_turn_at_a_time,
    ONE_TURN,
    writes::<Without>(2, None),
    "Causality violation"
);
needed!(
    without_serving_earlier_waiters_only,
    SERVES_EARLIER_WAITERS_ONLY,
    writes::<Without>(2, None),
    "a result differs from the disk"
);
needed!(
    without_clearing_the_flag_under_the_lock,
    CLEARS_WHERE_IT_CHECKS,
    writes::<Without>(2, None),
    "deadlock"
);
needed!(
    without_a_sticking_error,
    ERROR_STICKS,
    writes::<Without>(2, Some(1)),
    "a waiter was not told of the error"
);
needed!(
    without_keeping_the_request_for_everything,
    KEEPS_EVERYTHING,
    threshold::<Without>(),
    "a flush of everything missed a cell"
);
