//! Models of group commit: nobody is forgotten, nobody is told of a flush that began before the
//! bytes were written, and one flush runs at a time.
//!
//! The models named `without_*` do one step wrong, and must fail.

use loom::thread;

use super::*;
use crate::offload::loom_pool::{block_on, check, Alone};
use crate::sync::AtomicU32;

/// Bytes of the file, each a cell of its own.
const CELLS: usize = 3;

/// A file whose flush takes a while.
struct File {
    commits: Commits,
    disk: Arc<Disk>,
    flushing: Alone,
    begun: AtomicU32,
    /// The flush that fails; the first is 1.
    fails: Option<u32>,
}

/// What is left of a file. Relaxed throughout: nothing but the commits may be relied on for order.
struct Disk {
    /// In the page cache.
    written: [AtomicU32; CELLS],
    durable: [AtomicU32; CELLS],
    /// Changes right before a handle goes. The count of a std `Arc` does so too, but loom sees
    /// nothing of that.
    handles: AtomicU32,
}

impl File {
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

impl Durable for File {
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

/// How a client makes its bytes durable. As it is, and with mistakes.
trait Steps: 'static {
    const WRITES_FIRST: bool = true;
    const ADDS_FIRST: bool = true;
    const ONE_TURN: bool = true;
    const TAKES_FIRST: bool = true;
    const CLEARS_WHERE_IT_LOOKS: bool = true;
    const STICKS: bool = true;
    const KEEPS_EVERYTHING: bool = true;

    fn add(file: &Arc<File>, flush: &Arc<Flush>, everything: bool) {
        let mut state = lock(&file.commits.state);
        let everything = everything || flush.extent() == Extent::Everything;
        state.everything = everything || (Self::KEEPS_EVERYTHING && state.everything);
        state.waiting.push(flush.clone());
    }

    fn turn(file: &Arc<File>) -> Option<FlushTurn<File>> {
        let mut state = lock(&file.commits.state);
        let is_taken = std::mem::replace(&mut state.is_flushing, true) && Self::ONE_TURN;
        if state.waiting.is_empty() || is_taken {
            state.is_flushing = is_taken;
            return None;
        }
        Some(FlushTurn(file.clone()))
    }

    /// [`FlushTurn::run`] over again, where a mistake can be made.
    fn run(turn: FlushTurn<File>) {
        let FlushTurn(file) = turn;
        let commits = &file.commits;
        loop {
            let (mut waiting, everything) = {
                let mut state = lock(&commits.state);
                let waiting = match Self::TAKES_FIRST {
                    true => std::mem::take(&mut state.waiting),
                    false => state.waiting.clone(),
                };
                (waiting, std::mem::take(&mut state.everything))
            };
            let ranges: Vec<ByteRange> = waiting
                .iter()
                .filter_map(|waiter| match waiter.extent() {
                    Extent::Ranges(ranges) => Some(ranges[0]),
                    Extent::Everything => None,
                })
                .collect();
            let extent = match everything {
                true => Extent::Everything,
                false => Extent::Ranges(&ranges),
            };
            let failed = if Self::STICKS {
                commits.flush(&*file, extent);
                commits.failed.get().cloned()
            } else {
                file.flush(extent)
                    .err()
                    .map(|error| MmapIoError::FlushFailed(error.into()))
            };
            if !Self::TAKES_FIRST {
                waiting = std::mem::take(&mut lock(&commits.state).waiting);
            }
            let more = {
                let mut state = lock(&commits.state);
                let more = !state.waiting.is_empty();
                if Self::CLEARS_WHERE_IT_LOOKS {
                    state.is_flushing = more;
                }
                more
            };
            if !Self::CLEARS_WHERE_IT_LOOKS {
                lock(&commits.state).is_flushing = more;
            }
            let mut wakers = waiting
                .iter()
                .filter_map(|waiter| waiter.acknowledge(failed.clone().map_or(Ok(()), Err)))
                .collect();
            wake_all(&mut wakers);
            if !more {
                return;
            }
        }
    }
}

/// What the crate does. The turn goes on in a job after a round.
struct Real;

impl Steps for Real {
    fn add(file: &Arc<File>, flush: &Arc<Flush>, everything: bool) {
        file.commits.add(flush.clone(), everything);
    }

    fn turn(file: &Arc<File>) -> Option<FlushTurn<File>> {
        Commits::turn(file)
    }

    fn run(turn: FlushTurn<File>) {
        turn.run(1);
    }
}

/// The same, all of it in jobs.
struct InJobs;

impl Steps for InJobs {
    fn add(file: &Arc<File>, flush: &Arc<Flush>, everything: bool) {
        Real::add(file, flush, everything);
    }

    fn turn(file: &Arc<File>) -> Option<FlushTurn<File>> {
        Real::turn(file)
    }

    fn run(turn: FlushTurn<File>) {
        turn.spawn();
    }
}

/// Waits until a flush has served it, and everything if asked to.
fn commit<S: Steps>(file: &Arc<File>, flush: Flush, everything: bool) -> Result<()> {
    let flush = start::<S>(file, flush, everything);
    block_on(flush.done())
}

fn start<S: Steps>(file: &Arc<File>, flush: Flush, everything: bool) -> Arc<Flush> {
    let flush = Arc::new(flush);
    let turn = if S::ADDS_FIRST {
        S::add(file, &flush, everything);
        S::turn(file)
    } else {
        let turn = S::turn(file);
        S::add(file, &flush, everything);
        turn
    };
    if let Some(turn) = turn {
        S::run(turn);
    }
    flush
}

/// A durable write.
fn write<S: Steps>(file: &Arc<File>, cell: usize) -> Result<()> {
    let range = ByteRange::between(cell as u64, cell as u64 + 1);
    if S::WRITES_FIRST {
        file.disk.write(cell);
    }
    let result = commit::<S>(file, Flush::of(range), false);
    if !S::WRITES_FIRST {
        file.disk.write(cell);
    }
    result
}

/// Durable writes, one of a thread. Each is told the truth, whichever flush served it.
fn writes<S: Steps>(clients: usize, fails: Option<u32>) {
    check(1, move || {
        let file = File::new(fails);
        let client = move |cell: usize, file: Arc<File>| {
            let result = write::<S>(&file, cell);
            // Nothing else flushes the cell.
            let durable = file.disk.is_durable(cell);
            assert_eq!(result.is_ok(), durable, "told something else");
            assert!(fails != Some(1) || result.is_err(), "the error is lost");
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
                assert!(begun <= fails, "a flush came after one that had failed");
            }
            assert_eq!(
                file.commits.failure().is_some(),
                fails.is_some_and(|fails| begun == fails)
            );
        }
    });
}

/// One client flushes all, and another only what it has written itself.
fn everything<S: Steps>() {
    check(1, || {
        let file = File::new(None);
        // Written before, by somebody who waits for nothing.
        file.disk.write(2);
        let writer = {
            let file = file.clone();
            thread::spawn(move || {
                write::<S>(&file, 1).unwrap();
                assert!(file.disk.is_durable(1));
            })
        };
        file.disk.write(0);
        commit::<S>(&file, Flush::of_everything(), false).unwrap();
        assert!(file.disk.is_durable(0) && file.disk.is_durable(2));
        writer.join().unwrap();
        || {}
    });
}

/// A write that crosses a threshold waits for more than itself.
fn threshold<S: Steps>() {
    check(1, || {
        let file = File::new(None);
        file.disk.write(2);
        let writer = {
            let file = file.clone();
            thread::spawn(move || {
                file.disk.write(0);
                commit::<S>(&file, Flush::of(ByteRange::between(0, 1)), true).unwrap();
                let durable = file.disk.is_durable(0) && file.disk.is_durable(2);
                assert!(durable, "everything was asked for");
            })
        };
        write::<S>(&file, 1).unwrap();
        assert!(file.disk.is_durable(1));
        writer.join().unwrap();
        || {}
    });
}

/// A waiter that is woken some time before its turn goes on.
struct Hasty {
    flush: Flush,
    disk: Arc<Disk>,
}

impl Waiter for Hasty {
    fn extent(&self) -> Extent<'_> {
        self.flush.extent()
    }

    fn acknowledge(&self, result: Result<()>) -> Option<Waker> {
        if let Some(waker) = self.flush.acknowledge(result) {
            waker.wake();
        }
        self.disk.handles.load(Ordering::Relaxed);
        None
    }
}

/// A flush that nobody waits for, and whose file is closed meanwhile.
fn nobody_left() {
    check(1, || {
        let file = File::new(None);
        let (disk, last) = (file.disk.clone(), Arc::downgrade(&file));
        let spawn_turn = |file: &Arc<File>| {
            if let Some(turn) = Commits::turn(file) {
                turn.spawn();
            }
        };
        let other = {
            let file = file.clone();
            thread::spawn(move || {
                file.disk.write(1);
                let flush = Flush::of(ByteRange::between(1, 2));
                file.commits.add(Arc::new(flush), false);
                spawn_turn(&file);
                file.disk.handles.fetch_add(1, Ordering::Relaxed);
            })
        };
        disk.write(0);
        let waiter = Arc::new(Hasty {
            flush: Flush::of(ByteRange::between(0, 1)),
            disk: disk.clone(),
        });
        file.commits.add(waiter.clone(), false);
        spawn_turn(&file);
        block_on(waiter.flush.done()).unwrap();
        disk.handles.fetch_add(1, Ordering::Relaxed);
        drop(file);
        other.join().unwrap();
        move || {
            assert!(disk.is_durable(1), "a flush was started, and is lost");
            assert!(last.upgrade().is_none(), "somebody keeps the file");
        }
    });
}

#[test]
fn everybody_is_told_after_the_bytes_are_durable() {
    writes::<Real>(3, None);
    writes::<InJobs>(3, None);
}

#[test]
fn an_error_reaches_everybody_from_then_on() {
    for fails in [1, 2] {
        writes::<Real>(3, Some(fails));
        writes::<InJobs>(3, Some(fails));
    }
}

#[test]
fn everything_is_flushed_for_whoever_asks() {
    everything::<Real>();
    everything::<InJobs>();
    threshold::<Real>();
    threshold::<InJobs>();
}

#[test]
fn a_flush_that_was_started_outlives_the_handles() {
    nobody_left();
}

/// What the mutations mutate is right.
#[test]
fn the_steps_over_again() {
    struct Again;
    impl Steps for Again {}
    writes::<Again>(3, None);
    writes::<Again>(3, Some(1));
    writes::<Again>(2, Some(2));
    everything::<Again>();
    threshold::<Again>();
}

/// A model that must fail with one step done wrong, and how.
macro_rules! needed {
    ($name:ident, $mistake:ident, $model:expr, $failure:literal) => {
        #[test]
        #[should_panic = $failure]
        fn $name() {
            struct Wrong;
            impl Steps for Wrong {
                const $mistake: bool = false;
            }
            $model;
        }
    };
}

needed!(
    without_writing_before_it_waits,
    WRITES_FIRST,
    writes::<Wrong>(2, None),
    "told something else"
);
needed!(
    without_adding_before_it_looks_for_the_turn,
    ADDS_FIRST,
    writes::<Wrong>(2, None),
    "deadlock"
);
needed!(
    without_one_turn_at_a_time,
    ONE_TURN,
    writes::<Wrong>(2, None),
    "Causality violation"
);
needed!(
    without_taking_the_waiting_before_the_flush,
    TAKES_FIRST,
    writes::<Wrong>(2, None),
    "told something else"
);
needed!(
    without_clearing_the_flag_where_it_looks,
    CLEARS_WHERE_IT_LOOKS,
    writes::<Wrong>(2, None),
    "deadlock"
);
needed!(
    without_an_error_that_sticks,
    STICKS,
    writes::<Wrong>(2, Some(1)),
    "the error is lost"
);
needed!(
    without_keeping_that_everything_is_due,
    KEEPS_EVERYTHING,
    threshold::<Wrong>(),
    "everything was asked for"
);
