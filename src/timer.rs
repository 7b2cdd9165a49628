//! Rings the alarms of `EveryMillis`, with one timer job on the pool for all files of the process.
//!
//! The first alarm starts the timer job. The job sleeps until the next alarm is due, and ends when
//! no alarm is left. It occupies one thread of the pool while a file has written bytes to flush.
//!
//! Alarms that are due are rung by *ringers*, which are separate jobs, since ringing a file may
//! take long: seconds for a flush over a network. A ringer rings one file after the other, so that
//! thousands of quick files occupy only [`FEW`] threads. A ringer that has been busy with one file
//! for longer than [`PATIENCE`] is slow: it no longer counts among the few, and another ringer may
//! start, up to half of the pool's threads. So a slow file delays no other file, and slow files
//! together never occupy the whole pool. The timer job itself waits for no file: if it cannot go on
//! before a ringer ends, the job ends, and the ringer starts it again.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::completion::contain;
use crate::offload::{pool_has_one_thread, pool_threads, spawn, ROUNDS};
use crate::sync::lock;

/// How long the timer job sleeps at most before it goes to the end of the pool's queue: a program
/// may have limited the pool to one thread (`blocking::set_max_blocking_threads`), which cannot be
/// queried.
const SLEEP: Duration = Duration::from_millis(100);
/// The same if the pool is known to have one thread: every other job waits while this one sleeps.
const NAP: Duration = Duration::from_millis(1);

/// The most ringers at a time, slow ringers not counted.
const FEW: usize = 2;
/// How long a ringer may be busy with one file before it counts as slow.
const PATIENCE: Duration = Duration::from_millis(100);

/// Something that has an alarm: a file.
pub(crate) trait Alarmed: Send + Sync + 'static {
    /// Returns when the alarm is to ring; `None` if it is not set. Called under the timer's lock.
    /// After each change the timer must be [updated](Timer::update).
    fn alarm(&self) -> Option<Instant>;

    /// Does what the alarm was set for, after the time `at` for which it was set. May block, but
    /// must not wait for an alarm.
    fn ring(self: &Arc<Self>, at: Instant);
}

/// The alarms that are set, at most one for each file.
///
/// An alarm keeps its file open, so that a scheduled flush happens even if all handles are dropped.
/// It is removed as soon as nothing is left to flush, so that it does not keep the file open
/// needlessly.
#[derive(Debug)]
pub(crate) struct Timer<T> {
    state: Mutex<State<T>>,
    /// Notified when the first alarm has changed, and when a ringer has ended.
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    /// The files, by the time of the alarm and the address of the file.
    alarms: BTreeMap<(Instant, usize), Arc<T>>,
    /// The times of the alarms, by the address of the file.
    times: BTreeMap<usize, Instant>,
    /// A timer job exists that will check for alarms again.
    running: bool,
    ringers: Vec<Ringer>,
    /// The number of the next ringer.
    numbers: u64,
}

#[derive(Debug)]
struct Ringer {
    number: u64,
    /// When it began to ring its current file; `None` while the job waits for a thread of the pool.
    /// It checks for due alarms as soon as it gets one.
    since: Option<Instant>,
}

impl Ringer {
    /// Returns when the ringer becomes slow; `None` while it waits for a thread.
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

    /// Reads the target's alarm, and schedules, moves or removes it. The alarm rings at its time or
    /// shortly afterwards. Takes a short lock.
    ///
    /// The alarm is read under the lock: if two threads change it at the same time, the last one of
    /// them to get here sees both changes.
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
        // After the lock: this may be the last reference to the file.
        drop(replaced);
    }

    fn start(&'static self) {
        if spawn(|| self.run()).is_err() {
            // The alarms stay set, and the next update tries to start the job again.
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
        // At the end of the pool's queue.
        self.start();
    }

    /// Waits until the timer job has something to do.
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

    /// Rings the files whose alarms are due, one after the other.
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
                // Another ringer may start now.
                self.changed.notify_one();
                return;
            };
            // The panic of one file does not stop the alarms of the other files.
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
    /// Returns the time of the next alarm.
    fn first(&self) -> Option<Instant> {
        let ((at, _), _) = self.alarms.first_key_value()?;
        Some(*at)
    }

    /// Whether a timer job must be started now. If so it counts as running, and the caller starts
    /// it.
    fn needs_a_job(&mut self) -> bool {
        !self.alarms.is_empty() && !std::mem::replace(&mut self.running, true)
    }

    /// Enters one more ringer if it may start now, or returns when it may.
    fn turn(&mut self, now: Instant) -> Turn {
        let most = (pool_threads() / 2).max(1);
        let is_waiting = self.ringers.iter().any(|ringer| ringer.since.is_none());
        if is_waiting || self.ringers.len() >= most {
            return Turn::Unknown;
        }
        // When each of the quick ringers becomes slow.
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

    /// Returns what a ringer is to ring next. `None` ends the ringer, which is removed then.
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

    /// Notes that the ringer goes to the end of the pool's queue.
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

    /// Sets or removes the one alarm of a file, and returns the reference that its former alarm
    /// held.
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

    /// Removes the next alarm, which the caller has seen, and returns it.
    fn pop(&mut self) -> (Instant, Arc<T>) {
        let ((at, address), target) = self.alarms.pop_first().expect("an alarm is due");
        self.times.remove(&address);
        (at, target)
    }
}

/// What the timer job does next.
enum Next {
    /// Starts the ringer of this number.
    Ring(u64),
    /// Goes to the end of the pool's queue.
    Again,
    /// Ends.
    Nothing,
}

/// When one more ringer may start to ring due alarms.
enum Turn {
    /// Now: it is entered with this number.
    Taken(u64),
    /// After this time at the latest, when a quick ringer has become slow.
    In(Duration),
    /// When another ringer ends or gets a thread. That ringer rings the due alarms, or starts the
    /// timer job again.
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
        /// The bell rings until this channel is closed.
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
            assert_ne!(self.name, 3, "bell 3 panics on purpose");
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

    /// Returns a bell that is due, and that rings until the sender is dropped.
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
    fn earlier_alarm_wakes_sleeping_job() {
        static TIMER: Timer<Bell> = Timer::new();
        let (heard, ring) = channel();
        let now = Instant::now();
        let soon = now + Duration::from_millis(20);
        // The job is sleeping until this alarm when the others are set.
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
        // The timer drops every bell, and the next alarm starts a new job.
        assert!(ring.recv().is_err());
        wait_for_the_end(&TIMER);
        let (heard, ring) = channel();
        TIMER.update(&bell(5, Instant::now(), &heard));
        assert_eq!(names(&ring, 1), [5]);
    }

    #[test]
    fn slow_bells_do_not_delay_others() {
        static TIMER: Timer<Bell> = Timer::new();
        // Slow bells may occupy half of the pool.
        let slow = 5.min((pool_threads() / 2).saturating_sub(1));
        let (heard, ring) = channel();
        let mut ends = Vec::new();
        for name in 0..slow as u32 {
            let (bell, end) = slow_bell(10 + name, &heard);
            TIMER.update(&bell);
            ends.push(end);
        }
        // All of them begin before any of them has ended.
        names(&ring, slow);
        for name in 20..30 {
            TIMER.update(&bell(name, Instant::now(), &heard));
        }
        assert_eq!(names(&ring, 10), Vec::from_iter(20..30));
        assert!(TIMER.state().ringers.len() >= slow);
        drop((ends, heard));
        assert!(ring.recv().is_err(), "a bell rang twice");
        wait_for_the_end(&TIMER);
    }

    #[test]
    fn quick_bells_use_few_threads() {
        static TIMER: Timer<Bell> = Timer::new();
        let (heard, ring) = channel();
        let now = Instant::now();
        let mut most = 0;
        let quick = || {
            let state = TIMER.state();
            // On a busy machine a ringer may become slow though its bells are quick.
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
        assert!(most <= FEW, "{most} quick ringers at a time");
        wait_for_the_end(&TIMER);
    }

    #[test]
    fn cancelled_alarm_is_not_held() {
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
        assert!(ring.recv().is_err(), "the cancelled bell rang");
        wait_for_the_end(&TIMER);
    }
}
