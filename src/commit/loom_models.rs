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
    /// The page cache. Relaxed throughout: nothing but the commits may be relied on for order.
    written: [AtomicU32; CELLS],
    /// The disk.
    durable: [AtomicU32; CELLS],
    flushing: Alone,
    begun: AtomicU32,
    /// The flush that fails; the first is 1.
    fails: Option<u32>,
}

impl File {
    fn new(fails: Option<u32>) -> Arc<Self> {
        Arc::new(Self {
            commits: Commits::default(),
            written: std::array::from_fn(|_| AtomicU32::new(0)),
            durable: std::array::from_fn(|_| AtomicU32::new(0)),
            flushing: Alone::new(),
            begun: AtomicU32::new(0),
            fails,
        })
    }

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
                .map(|cell| self.written[*cell].load(Ordering::Relaxed))
                .collect();
            if self.fails == Some(number) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            for (cell, page) in cells.into_iter().zip(pages) {
                self.durable[cell].store(page, Ordering::Relaxed);
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

    fn turn(file: &Arc<File>) -> Option<Turn<File>> {
        let mut state = lock(&file.commits.state);
        let is_taken = std::mem::replace(&mut state.taken, true) && Self::ONE_TURN;
        if state.waiting.is_empty() || is_taken {
            state.taken = is_taken;
            return None;
        }
        Some(Turn(file.clone()))
    }

    /// [`Turn::run`] over again, where a mistake can be made.
    fn run(turn: Turn<File>) {
        let Turn(file) = turn;
        let commits = &file.commits;
        loop {
            let (mut waiting, everything) = {
                let mut state = lock(&commits.state);
                if state.waiting.is_empty() {
                    if Self::CLEARS_WHERE_IT_LOOKS {
                        state.taken = false;
                    }
                    break;
                }
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
                file.flush(extent).err().map(Arc::new)
            };
            if !Self::TAKES_FIRST {
                waiting = std::mem::take(&mut lock(&commits.state).waiting);
            }
            let mut wakers = waiting
                .iter()
                .filter_map(|waiter| {
                    let failed = failed.clone().map(MmapIoError::FlushFailed);
                    waiter.acknowledge(failed.map_or(Ok(()), Err))
                })
                .collect();
            wake_all(&mut wakers);
        }
        if !Self::CLEARS_WHERE_IT_LOOKS {
            lock(&commits.state).taken = false;
        }
    }
}

/// What the crate does. The turn goes on in a job after a round.
struct Real;

impl Steps for Real {
    fn add(file: &Arc<File>, flush: &Arc<Flush>, everything: bool) {
        file.commits.add(flush.clone(), everything);
    }

    fn turn(file: &Arc<File>) -> Option<Turn<File>> {
        Commits::turn(file)
    }

    fn run(turn: Turn<File>) {
        turn.run(1);
    }
}

/// The same, all of it in jobs.
struct InJobs;

impl Steps for InJobs {
    fn add(file: &Arc<File>, flush: &Arc<Flush>, everything: bool) {
        Real::add(file, flush, everything);
    }

    fn turn(file: &Arc<File>) -> Option<Turn<File>> {
        Real::turn(file)
    }

    fn run(turn: Turn<File>) {
        turn.spawn();
    }
}

/// Waits until a flush has served it, and everything if asked to.
fn commit<S: Steps>(file: &Arc<File>, flush: Flush, everything: bool) -> Result<()> {
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
    block_on(flush.done())
}

/// A durable write.
fn write<S: Steps>(file: &Arc<File>, cell: usize) -> Result<()> {
    let range = ByteRange::between(cell as u64, cell as u64 + 1);
    if S::WRITES_FIRST {
        file.write(cell);
    }
    let result = commit::<S>(file, Flush::of(range), false);
    if !S::WRITES_FIRST {
        file.write(cell);
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
            assert_eq!(result.is_ok(), file.is_durable(cell));
            if fails == Some(1) {
                assert!(result.is_err());
            }
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
            assert!(!state.taken && state.waiting.is_empty());
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
        file.write(2);
        let writer = {
            let file = file.clone();
            thread::spawn(move || {
                write::<S>(&file, 1).unwrap();
                assert!(file.is_durable(1));
            })
        };
        file.write(0);
        commit::<S>(&file, Flush::of_everything(), false).unwrap();
        assert!(file.is_durable(0) && file.is_durable(2));
        writer.join().unwrap();
        || {}
    });
}

/// A write that crosses a threshold waits for more than itself.
fn threshold<S: Steps>() {
    check(1, || {
        let file = File::new(None);
        file.write(2);
        let writer = {
            let file = file.clone();
            thread::spawn(move || {
                file.write(0);
                commit::<S>(&file, Flush::of(ByteRange::between(0, 1)), true).unwrap();
                assert!(file.is_durable(0) && file.is_durable(2));
            })
        };
        write::<S>(&file, 1).unwrap();
        assert!(file.is_durable(1));
        writer.join().unwrap();
        || {}
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

/// A model that must fail with one step done wrong.
macro_rules! needed {
    ($name:ident, $model:expr, $mistake:ident) => {
        #[test]
        #[should_panic]
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
    without_writing_before,
    writes::<Wrong>(2, None),
    WRITES_FIRST
);
needed!(
    without_adding_before_looking_for_the_turn,
    writes::<Wrong>(2, None),
    ADDS_FIRST
);
needed!(
    without_one_turn_at_a_time,
    writes::<Wrong>(2, None),
    ONE_TURN
);
needed!(
    without_taking_the_waiting_before_the_flush,
    writes::<Wrong>(2, None),
    TAKES_FIRST
);
needed!(
    without_clearing_the_flag_where_it_is_looked_at,
    writes::<Wrong>(2, None),
    CLEARS_WHERE_IT_LOOKS
);
needed!(
    without_an_error_that_sticks,
    writes::<Wrong>(2, Some(1)),
    STICKS
);
needed!(
    without_keeping_that_everything_is_due,
    threshold::<Wrong>(),
    KEEPS_EVERYTHING
);
