//! The alarms of `EveryMillis`: one job on the pool for all files of the process.
//!
//! The first alarm starts the job; it sleeps until the next one is due, and is gone when there is
//! none left. It takes one thread of the pool while something is written and not flushed.
//!
//! What is due is rung by *ringers*, jobs of their own, since a file may take long: seconds for a
//! flush over a network. A ringer rings one file after the other, so that thousands of files that
//! are quick take [`FEW`] threads. One that has been at one file for longer than [`PATIENCE`] no
//! longer counts among the few, and another takes its place, up to half of the pool's threads:
//! a slow file holds up no other, and never all users of the pool. The timer's job itself waits
//! for no file: where only a ringer's end can help, it ends, and the ringer starts it again.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::completion::contain;
use crate::offload::{pool_has_one_thread, pool_threads, spawn, ROUNDS};
use crate::sync::lock;

/// How long the job sleeps at a time, before it goes back behind the jobs that wait: a program may
/// have left the pool a single thread (`blocking::set_max_blocking_threads`), and cannot be asked.
const SLEEP: Duration = Duration::from_millis(100);
/// The same where the pool is known to have one thread: every other job waits meanwhile.
const NAP: Duration = Duration::from_millis(1);

/// Ringers that are at work at a time, the slow ones apart.
const FEW: usize = 2;
/// How long a ringer may be at one file and still be one of the few.
const PATIENCE: Duration = Duration::from_millis(100);

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
    /// Told when another alarm is the first, and when a ringer has gone.
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    /// By time, and by address of the file.
    alarms: BTreeMap<(Instant, usize), Arc<T>>,
    /// The times, by address of the file.
    times: BTreeMap<usize, Instant>,
    /// A job exists that will look again.
    running: bool,
    ringers: Vec<Ringer>,
    /// Ringers that there have been.
    numbers: u64,
}

#[derive(Debug)]
struct Ringer {
    number: u64,
    /// When it began with the file that it is at; `None` until a thread of the pool takes it up.
    /// It will look for what is due then.
    since: Option<Instant>,
}

impl Ringer {
    fn is_quick_until(&self) -> Option<Instant> {
        Some(self.since? + PATIENCE)
    }
}

impl<T: Alarmed> Timer<T> {
    pub(crate) const fn new() -> Self {
        Self {
            state: Mutex::new(State {
                alarms: BTreeMap::new(),
                times: BTreeMap::new(),
                running: false,
                ringers: Vec::new(),
                numbers: 0,
            }),
            changed: Condvar::new(),
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
        let start = state.needs_a_job();
        drop(state);
        if start {
            self.start();
        } else if is_another {
            self.changed.notify_one();
        }
        // It may be the last reference to the file.
        drop(replaced);
    }

    fn start(&'static self) {
        if spawn(|| self.run()).is_err() {
            // The alarms stay set, and the next update tries again.
            self.state().running = false;
        }
    }

    fn run(&'static self) {
        for _ in 0..ROUNDS {
            match self.next() {
                Next::Ring(number) => self.start_ringer(number),
                Next::Again => break,
                Next::Nothing => return,
            }
        }
        // Behind the jobs that wait.
        self.start();
    }

    /// Waits until something is to be done.
    fn next(&self) -> Next {
        let mut state = self.state();
        loop {
            let now = Instant::now();
            let wait = match state.first() {
                None => None,
                Some(at) if at > now => Some(at - now),
                Some(_) => match state.turn(now) {
                    Turn::Taken(number) => return Next::Ring(number),
                    Turn::In(wait) => Some(wait),
                    Turn::Unknown => None,
                },
            };
            let Some(wait) = wait else {
                state.running = false;
                return Next::Nothing;
            };
            let longest = if pool_has_one_thread() { NAP } else { SLEEP };
            let woken = self.changed.wait_timeout(state, wait.min(longest));
            let (again, sleep) = woken.unwrap_or_else(PoisonError::into_inner);
            if sleep.timed_out() && wait > longest {
                return Next::Again;
            }
            state = again;
        }
    }

    fn start_ringer(&'static self, number: u64) {
        if spawn(move || self.ring(number)).is_err() {
            self.state().dismiss(number);
        }
    }

    /// Rings what is due, one after the other.
    fn ring(&'static self, number: u64) {
        for _ in 0..ROUNDS {
            let (due, start) = {
                let mut state = self.state();
                let due = state.next_due(number);
                (due, state.needs_a_job())
            };
            if start {
                self.start();
            }
            let Some((at, target)) = due else {
                // Another one may take its place.
                self.changed.notify_one();
                return;
            };
            // A file that panics does not take the others' alarms with it.
            contain(move || target.ring(at));
        }
        self.state().wait_for_a_thread(number);
        self.start_ringer(number);
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        lock(&self.state)
    }
}

impl<T> State<T> {
    /// The time of the next alarm.
    fn first(&self) -> Option<Instant> {
        let ((at, _), _) = self.alarms.first_key_value()?;
        Some(*at)
    }

    /// Whether a job must be started now: then the caller starts it.
    fn needs_a_job(&mut self) -> bool {
        // A ringer that is about to begin looks for what is due, and asks again.
        !self.alarms.is_empty() && !std::mem::replace(&mut self.running, true)
    }

    /// Whether one more ringer may begin with what is due: it is entered then.
    fn turn(&mut self, now: Instant) -> Turn {
        let most = (pool_threads() / 2).max(1);
        let is_waiting = self.ringers.iter().any(|ringer| ringer.since.is_none());
        if is_waiting || self.ringers.len() >= most {
            return Turn::Unknown;
        }
        // When each of those that count will count no more.
        let ends = self.ringers.iter().filter_map(Ringer::is_quick_until);
        let mut ends: Vec<_> = ends.filter(|end| *end > now).collect();
        if ends.len() < FEW {
            let number = self.numbers;
            self.numbers += 1;
            self.ringers.push(Ringer {
                number,
                since: None,
            });
            return Turn::Taken(number);
        }
        ends.sort_unstable();
        Turn::In(ends[ends.len() - FEW] - now)
    }

    /// What a ringer is to ring next; if that is nothing, it is gone.
    fn next_due(&mut self, number: u64) -> Option<(Instant, Arc<T>)> {
        let now = Instant::now();
        let is_due = self.first().is_some_and(|at| at <= now);
        let others = self.ringers.iter().filter(|ringer| {
            let is_quick = ringer.is_quick_until().map_or(true, |end| end > now);
            is_quick && ringer.number != number
        });
        if is_due && others.count() < FEW {
            self.set_since(number, Some(now));
            return Some(self.pop());
        }
        self.dismiss(number);
        None
    }

    /// The ringer goes behind the jobs that wait.
    fn wait_for_a_thread(&mut self, number: u64) {
        self.set_since(number, None);
    }

    fn set_since(&mut self, number: u64, since: Option<Instant>) {
        let mut ringers = self.ringers.iter_mut();
        if let Some(ringer) = ringers.find(|ringer| ringer.number == number) {
            ringer.since = since;
        }
    }

    fn dismiss(&mut self, number: u64) {
        self.ringers.retain(|ringer| ringer.number != number);
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
    fn pop(&mut self) -> (Instant, Arc<T>) {
        let ((at, address), target) = self.alarms.pop_first().expect("there is one");
        self.times.remove(&address);
        (at, target)
    }
}

/// What the job does next.
enum Next {
    /// It starts a ringer.
    Ring(u64),
    /// It lets the others go first.
    Again,
    /// It ends.
    Nothing,
}

/// When a ringer may begin with what is due.
enum Turn {
    /// Now: that one.
    Taken(u64),
    /// When so much time has gone, if not before.
    In(Duration),
    /// When another one has gone, or begins: that one sees to it.
    Unknown,
}

#[cfg(all(test, not(mmap_io_loom)))]
mod tests {
    use std::sync::mpsc::{channel, Receiver, Sender};

    use super::*;

    struct Bell {
        name: u32,
        alarm: Mutex<Option<Instant>>,
        heard: Mutex<Sender<(u32, Instant)>>,
        /// It rings until this is closed.
        end: Mutex<Option<Receiver<()>>>,
    }

    impl Alarmed for Bell {
        fn alarm(&self) -> Option<Instant> {
            *self.alarm.lock().unwrap()
        }

        fn ring(self: &Arc<Self>, at: Instant) {
            assert!(Instant::now() >= at, "too early");
            assert_eq!(self.alarm.lock().unwrap().take(), Some(at));
            self.heard.lock().unwrap().send((self.name, at)).unwrap();
            if let Some(end) = self.end.lock().unwrap().take() {
                end.recv().unwrap_err();
            }
            assert_ne!(self.name, 3, "this one panics");
        }
    }

    fn bell(name: u32, at: Instant, heard: &Sender<(u32, Instant)>) -> Arc<Bell> {
        Arc::new(Bell {
            name,
            alarm: Mutex::new(Some(at)),
            heard: Mutex::new(heard.clone()),
            end: Mutex::new(None),
        })
    }

    /// A bell that is due, and rings until what is returned is dropped.
    fn slow_bell(name: u32, heard: &Sender<(u32, Instant)>) -> (Arc<Bell>, Sender<()>) {
        let bell = bell(name, Instant::now(), heard);
        let (sender, end) = channel();
        *bell.end.lock().unwrap() = Some(end);
        (bell, sender)
    }

    fn names(ring: &Receiver<(u32, Instant)>, count: usize) -> Vec<u32> {
        let rings = (0..count).map(|_| ring.recv_timeout(Duration::from_secs(60)));
        let mut names: Vec<u32> = rings.map(|ring| ring.unwrap().0).collect();
        names.sort_unstable();
        names
    }

    fn wait_for_the_end(timer: &Timer<Bell>) {
        let is_over = |state: &State<Bell>| !state.running && state.ringers.is_empty();
        while !is_over(&timer.state()) {
            std::thread::yield_now();
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn earlier_alarms_are_not_slept_over_and_the_job_ends() {
        static TIMER: Timer<Bell> = Timer::new();
        let (heard, ring) = channel();
        let now = Instant::now();
        let soon = now + Duration::from_millis(20);
        // The job sleeps for this one when the others come.
        let late = bell(1, now + HOUR, &heard);
        TIMER.update(&late);
        TIMER.update(&bell(2, soon, &heard));
        TIMER.update(&bell(3, soon, &heard));
        TIMER.update(&bell(4, now, &heard));
        assert_eq!(names(&ring, 3), [2, 3, 4]);
        *late.alarm.lock().unwrap() = Some(Instant::now());
        TIMER.update(&late);
        assert_eq!(names(&ring, 1), [1]);
        drop((late, heard));
        // Every bell is let go of, and the next alarm starts a new job.
        assert!(ring.recv().is_err());
        wait_for_the_end(&TIMER);
        let (heard, ring) = channel();
        TIMER.update(&bell(5, Instant::now(), &heard));
        assert_eq!(names(&ring, 1), [5]);
    }

    #[test]
    fn slow_bells_hold_up_no_others() {
        static TIMER: Timer<Bell> = Timer::new();
        // Slow ones may take half of the pool.
        let slow = 5.min((pool_threads() / 2).saturating_sub(1));
        let (heard, ring) = channel();
        let mut ends = Vec::new();
        for name in 0..slow as u32 {
            let (bell, end) = slow_bell(10 + name, &heard);
            TIMER.update(&bell);
            ends.push(end);
        }
        // They begin though none of them has ended.
        names(&ring, slow);
        for name in 20..30 {
            TIMER.update(&bell(name, Instant::now(), &heard));
        }
        assert_eq!(names(&ring, 10), Vec::from_iter(20..30));
        assert!(TIMER.state().ringers.len() >= slow);
        drop((ends, heard));
        assert!(ring.recv().is_err(), "a bell is held");
        wait_for_the_end(&TIMER);
    }

    #[test]
    fn quick_bells_take_few_threads() {
        static TIMER: Timer<Bell> = Timer::new();
        let (heard, ring) = channel();
        let now = Instant::now();
        let mut most = 0;
        let quick = || {
            let state = TIMER.state();
            // On a busy machine one may take longer than its patience.
            let is_quick = |ringer: &Ringer| {
                ringer
                    .is_quick_until()
                    .map_or(true, |end| end > Instant::now())
            };
            let quick = state.ringers.iter().filter(|ringer| is_quick(ringer));
            quick.count()
        };
        for name in 100..600 {
            TIMER.update(&bell(name, now, &heard));
            most = most.max(quick());
        }
        drop(heard);
        let mut count = 0;
        while ring.recv().is_ok() {
            count += 1;
            most = most.max(quick());
        }
        assert_eq!(count, 500);
        assert!(most <= FEW, "{most} at a time");
        wait_for_the_end(&TIMER);
    }

    #[test]
    fn a_file_has_one_alarm_and_none_is_held_that_will_not_ring() {
        static TIMER: Timer<Bell> = Timer::new();
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
        assert!(ring.recv().is_err(), "a bell is held");
        wait_for_the_end(&TIMER);
    }
}
