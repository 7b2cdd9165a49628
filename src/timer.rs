//! The alarms of `EveryMillis`: one job on the pool for all files of the process.
//!
//! The first alarm starts the job; it sleeps until the next one is due, rings it, and is gone when
//! there is none left. It takes one thread of the pool while something is written and not flushed.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::completion::contain;
use crate::offload::{pool_has_one_thread, spawn, ROUNDS};

/// How long the job sleeps at a time, before it goes back behind the jobs that wait: a program may
/// have left the pool a single thread (`blocking::set_max_blocking_threads`), and cannot be asked.
const SLEEP: Duration = Duration::from_millis(100);
/// The same where the pool is known to have one thread: every other job waits meanwhile.
const NAP: Duration = Duration::from_millis(1);

/// What an alarm is set for.
pub(crate) trait Alarmed: Send + Sync + 'static {
    /// The time that the alarm was set for has come. May block, but not for an alarm.
    fn ring(self: &Arc<Self>, at: Instant);
}

/// The alarms that are set. Each holds its file, so that what is scheduled is done, whatever
/// becomes of the handles.
#[derive(Debug)]
pub(crate) struct Timer<T> {
    state: Mutex<State<T>>,
    /// Told when an alarm becomes the first.
    earlier: Condvar,
}

#[derive(Debug)]
struct State<T> {
    /// By time, and by the order in which they were set.
    alarms: BTreeMap<(Instant, u64), Arc<T>>,
    /// Alarms that were ever set.
    set: u64,
    /// A job exists that will look again.
    running: bool,
}

impl<T: Alarmed> Timer<T> {
    pub(crate) const fn new() -> Self {
        Self {
            state: Mutex::new(State {
                alarms: BTreeMap::new(),
                set: 0,
                running: false,
            }),
            earlier: Condvar::new(),
        }
    }

    /// Has `target` rung at that time, or soon afterwards. Costs a short lock.
    pub(crate) fn set(&'static self, at: Instant, target: Arc<T>) {
        let mut state = self.state();
        let first = state.alarms.keys().next();
        let is_first = first.map_or(true, |(first, _)| at < *first);
        state.set += 1;
        let place = (at, state.set);
        state.alarms.insert(place, target);
        let start = !std::mem::replace(&mut state.running, true);
        drop(state);
        if start {
            spawn(|| self.run());
        } else if is_first {
            self.earlier.notify_one();
        }
    }

    fn run(&'static self) {
        for _ in 0..ROUNDS {
            match self.next() {
                Next::Due(at, target) => {
                    // A file that panics does not take the others' alarms with it.
                    contain(move || target.ring(at));
                }
                Next::Again => break,
                Next::Nothing => return,
            }
        }
        // Behind the jobs that wait.
        spawn(|| self.run());
    }

    /// Waits for the next alarm.
    fn next(&self) -> Next<T> {
        let mut state = self.state();
        loop {
            let Some(first) = state.alarms.first_entry() else {
                state.running = false;
                return Next::Nothing;
            };
            let (at, _) = *first.key();
            let wait = at.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return Next::Due(at, first.remove());
            }
            let longest = if pool_has_one_thread() { NAP } else { SLEEP };
            let woken = self.earlier.wait_timeout(state, wait.min(longest));
            let (again, sleep) = woken.unwrap_or_else(PoisonError::into_inner);
            if sleep.timed_out() && wait > longest {
                return Next::Again;
            }
            state = again;
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the job does next.
enum Next<T> {
    Due(Instant, Arc<T>),
    /// It lets the others go first.
    Again,
    /// It ends.
    Nothing,
}

#[cfg(all(test, not(mmap_io_loom)))]
mod tests {
    use std::sync::mpsc::{channel, Sender};

    use super::*;

    struct Bell {
        name: u32,
        heard: Mutex<Sender<(u32, Instant)>>,
    }

    impl Alarmed for Bell {
        fn ring(self: &Arc<Self>, at: Instant) {
            assert!(Instant::now() >= at, "too early");
            self.heard.lock().unwrap().send((self.name, at)).unwrap();
            assert_ne!(self.name, 3, "this one panics");
        }
    }

    #[test]
    fn alarms_ring_in_order_an_earlier_one_is_not_slept_over_and_the_job_ends() {
        static TIMER: Timer<Bell> = Timer::new();
        let (heard, ring) = channel();
        let now = Instant::now();
        let bell = |name| {
            Arc::new(Bell {
                name,
                heard: Mutex::new(heard.clone()),
            })
        };
        let at = |millis| now + Duration::from_millis(millis);
        // The job sleeps for this one when the others come.
        TIMER.set(at(300), bell(1));
        TIMER.set(at(20), bell(2));
        TIMER.set(at(20), bell(3));
        TIMER.set(now, bell(4));
        let order: Vec<_> = (0..4).map(|_| ring.recv().unwrap()).collect();
        assert!(order.windows(2).all(|pair| pair[0].1 <= pair[1].1));
        assert_eq!(order.last(), Some(&(1, at(300))));
        drop(heard);
        // Every bell is let go of, and the next alarm starts a new job.
        assert!(ring.recv().is_err());
        while TIMER.state().running {
            std::thread::yield_now();
        }
        let (heard, ring) = channel();
        let heard = Mutex::new(heard);
        TIMER.set(Instant::now(), Arc::new(Bell { name: 5, heard }));
        assert_eq!(ring.recv().unwrap().0, 5);
    }
}
