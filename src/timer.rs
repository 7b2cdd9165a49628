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
    /// When it is to ring, if at all. Asked under the timer's lock; after each change the timer is
    /// to be [updated](Timer::update).
    fn alarm(&self) -> Option<Instant>;

    /// The time that the alarm was set for has come. May block, but not for an alarm.
    fn ring(self: &Arc<Self>, at: Instant);
}

/// The alarms that are set, at most one for a file. Each holds its file, so that what is scheduled
/// is done, whatever becomes of the handles; and it is taken down when there is nothing to do any
/// more, so that nothing is held for its sake.
#[derive(Debug)]
pub(crate) struct Timer<T> {
    state: Mutex<State<T>>,
    /// Told when another alarm is the first.
    first: Condvar,
}

#[derive(Debug)]
struct State<T> {
    /// By time, and by address of the file.
    alarms: BTreeMap<(Instant, usize), Arc<T>>,
    /// The times, by address of the file.
    times: BTreeMap<usize, Instant>,
    /// A job exists that will look again.
    running: bool,
}

impl<T: Alarmed> Timer<T> {
    pub(crate) const fn new() -> Self {
        Self {
            state: Mutex::new(State {
                alarms: BTreeMap::new(),
                times: BTreeMap::new(),
                running: false,
            }),
            first: Condvar::new(),
        }
    }

    /// Has `target` rung when it says, or soon afterwards. Costs a short lock.
    ///
    /// It is asked here, under the lock: of two threads that change its alarm, the one that comes
    /// last sees what both have done.
    pub(crate) fn update(&'static self, target: &Arc<T>) {
        let mut state = self.state();
        let first = state.first();
        let replaced = state.set(target, target.alarm());
        let is_another = state.first() != first;
        let start = !state.alarms.is_empty() && !std::mem::replace(&mut state.running, true);
        drop(state);
        if start {
            spawn(|| self.run());
        } else if is_another {
            self.first.notify_one();
        }
        // It may be the last reference to the file.
        drop(replaced);
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
            let Some(at) = state.first() else {
                state.running = false;
                return Next::Nothing;
            };
            let wait = at.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return Next::Due(at, state.pop());
            }
            let longest = if pool_has_one_thread() { NAP } else { SLEEP };
            let woken = self.first.wait_timeout(state, wait.min(longest));
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

impl<T> State<T> {
    /// The time of the next alarm.
    fn first(&self) -> Option<Instant> {
        let ((at, _), _) = self.alarms.first_key_value()?;
        Some(*at)
    }

    /// Sets the one alarm of a file; returns what its former alarm held.
    fn set(&mut self, target: &Arc<T>, alarm: Option<Instant>) -> Option<Arc<T>> {
        let address = Arc::as_ptr(target) as usize;
        let former = match alarm {
            Some(at) => self.times.insert(address, at),
            None => self.times.remove(&address),
        };
        let replaced = former.and_then(|at| self.alarms.remove(&(at, address)));
        if let Some(at) = alarm {
            self.alarms.insert((at, address), target.clone());
        }
        replaced
    }

    /// Takes the next alarm down.
    fn pop(&mut self) -> Arc<T> {
        let ((_, address), target) = self.alarms.pop_first().expect("there is one");
        self.times.remove(&address);
        target
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
        alarm: Mutex<Option<Instant>>,
        heard: Mutex<Sender<(u32, Instant)>>,
    }

    impl Alarmed for Bell {
        fn alarm(&self) -> Option<Instant> {
            *self.alarm.lock().unwrap()
        }

        fn ring(self: &Arc<Self>, at: Instant) {
            assert!(Instant::now() >= at, "too early");
            assert_eq!(self.alarm.lock().unwrap().take(), Some(at));
            self.heard.lock().unwrap().send((self.name, at)).unwrap();
            assert_ne!(self.name, 3, "this one panics");
        }
    }

    fn bell(name: u32, at: Instant, heard: &Sender<(u32, Instant)>) -> Arc<Bell> {
        Arc::new(Bell {
            name,
            alarm: Mutex::new(Some(at)),
            heard: Mutex::new(heard.clone()),
        })
    }

    fn wait_for_the_end(timer: &Timer<Bell>) {
        while timer.state().running {
            std::thread::yield_now();
        }
    }

    #[test]
    fn alarms_ring_in_order_an_earlier_one_is_not_slept_over_and_the_job_ends() {
        static TIMER: Timer<Bell> = Timer::new();
        let (heard, ring) = channel();
        let now = Instant::now();
        let at = |millis| now + Duration::from_millis(millis);
        // The job sleeps for this one when the others come.
        TIMER.update(&bell(1, at(300), &heard));
        TIMER.update(&bell(2, at(20), &heard));
        TIMER.update(&bell(3, at(20), &heard));
        TIMER.update(&bell(4, now, &heard));
        let order: Vec<_> = (0..4).map(|_| ring.recv().unwrap()).collect();
        assert!(order.windows(2).all(|pair| pair[0].1 <= pair[1].1));
        assert_eq!(order.last(), Some(&(1, at(300))));
        drop(heard);
        // Every bell is let go of, and the next alarm starts a new job.
        assert!(ring.recv().is_err());
        wait_for_the_end(&TIMER);
        let (heard, ring) = channel();
        TIMER.update(&bell(5, Instant::now(), &heard));
        assert_eq!(ring.recv().unwrap().0, 5);
    }

    #[test]
    fn a_file_has_one_alarm_and_none_is_held_that_will_not_ring() {
        static TIMER: Timer<Bell> = Timer::new();
        const HOUR: Duration = Duration::from_secs(3600);
        let (heard, ring) = channel();
        let late = Instant::now() + HOUR;
        let moved = bell(1, late, &heard);
        let stopped = bell(2, late, &heard);
        drop(heard);
        for bell in [&moved, &stopped] {
            TIMER.update(bell);
            TIMER.update(bell);
        }
        assert_eq!(TIMER.state().alarms.len(), 2);
        let now = Instant::now();
        *moved.alarm.lock().unwrap() = Some(now);
        TIMER.update(&moved);
        *stopped.alarm.lock().unwrap() = None;
        TIMER.update(&stopped);
        assert_eq!(ring.recv().unwrap(), (1, now));
        drop((moved, stopped));
        assert!(ring.recv().is_err(), "somebody holds a bell");
        wait_for_the_end(&TIMER);
    }
}
