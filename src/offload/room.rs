//! Room for the pool to grow, looked for before the pool needs it.
//!
//! [`blocking`] 1.7.0 and its forerunners from 1.6.1 on do not survive a thread that cannot be
//! started (`RLIMIT_NPROC`, `pids.max`, no address space for a stack). Its `grow_pool` tries again
//! for ever, with the pool's lock held, on the thread that submits a job or on one of its own: the
//! executor stands still, and so does every later submission, though threads may be idle. (The
//! loop tests a copy of the limit that the failure has lowered; `docs/upstream` has the report.)
//! What was tried and given up: 1.6.0 tests the limit itself, but cannot be asked for here without
//! forcing it on the rest of the build; and a queue of our own in front of the pool would be a
//! second pool.
//!
//! So this module finds out first, by starting threads that do nothing, as many at once as the
//! pool may want. If they start, the pool may grow. If they do not, the pool's limit is lowered to
//! the threads that it is known to have: then it does not try, and jobs take turns. It is raised
//! again when threads can be started again.
//!
//! When that is looked at:
//! - before a submission that makes more jobs of ours than threads of the pool have been seen,
//!   unless it was looked at, for so many jobs, within [`LASTS`];
//! - by a job that begins, where another one began shortly before it, every [`RENEWED`]: a thread
//!   that has ended its job is not idle yet when the next one is submitted, so that a pool may grow
//!   for a single task. Every [`RARELY`] or so where twice as many threads as jobs were seen, which
//!   makes that unlikely: other users of the pool may hold them.
//!
//! What this cannot do: the last thread may be taken by another process, or by another part of
//! this one, between the look and the pool's own start; and a submission of another user of the
//! pool, that makes it grow at the limit, spins as it would without this crate, and then ours wait
//! for the lock that it holds. Once the limit is noticed and lowered, theirs are safe, too.

use std::cell::Cell;
use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::pool_threads;
use crate::sys::{self, BareThread};

/// Milliseconds for which a look holds good for submissions.
const LASTS: u64 = 20;
/// Milliseconds after which a job looks again, on the pool, so that no submission has to.
const RENEWED: u64 = 10;
/// The same where there are twice as many threads as jobs.
const RARELY: u64 = 100;
/// Threads that are started at once, at most, for more jobs than ever before.
const MOST: usize = 32;
/// The same where it was looked at before, and may have changed.
const AGAIN: usize = 4;

/// Jobs of ours that were submitted and have not ended.
static JOBS: Apart<AtomicUsize> = Apart(AtomicUsize::new(0));
/// Threads of the pool that have run a job of ours, and live.
static THREADS: AtomicUsize = AtomicUsize::new(0);
/// So many jobs there was room for at the last look.
static ROOM: AtomicUsize = AtomicUsize::new(0);
/// When that was, in milliseconds of [`now`].
static LOOKED: AtomicU64 = AtomicU64::new(0);
/// When a job last began.
static BEGAN: AtomicU64 = AtomicU64::new(0);

static STATE: Mutex<State> = Mutex::new(State {
    watches_forks: false,
    has_submitted: false,
    is_limited: false,
});

struct State {
    watches_forks: bool,
    /// A job was submitted: the pool has a thread, at least while there is a job.
    has_submitted: bool,
    /// The pool's limit was lowered to the threads that it has.
    is_limited: bool,
}

/// In a cache line of its own: changed with each job.
#[repr(align(128))]
struct Apart<T>(T);

/// A job that may be submitted, until it is dropped with it.
#[derive(Debug)]
pub(super) struct Place(());

impl Place {
    /// A place for one more job.
    ///
    /// # Errors
    ///
    /// No thread can be started, and none is known to be there; or this is a forked child.
    #[inline]
    pub(super) fn take() -> io::Result<Self> {
        check()?;
        let jobs = JOBS.0.fetch_add(1, Ordering::Relaxed) + 1;
        let place = Self(());
        if jobs > THREADS.load(Ordering::Relaxed) && !(has_room(jobs, LASTS) && has_memory(1)) {
            look(STATE.lock(), jobs, LASTS)?;
        }
        Ok(place)
    }

    /// The job begins.
    #[inline]
    pub(super) fn begin(&self) {
        let count = KNOWN.with(Known::count);
        let jobs = JOBS.0.load(Ordering::Relaxed);
        let has_spare = 2 * jobs <= THREADS.load(Ordering::Relaxed);
        // The clock takes longer than all the rest.
        if !has_spare || count % 16 == 0 {
            renew(jobs, has_spare);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        JOBS.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Fails in a child that was forked off a process with open files: the threads of the pool have
/// stayed behind, and a lock may be held by one of them for ever. Asked before such a lock is
/// taken.
#[inline]
pub(super) fn check() -> io::Result<()> {
    match sys::is_forked() {
        false => Ok(()),
        true => Err(forked()),
    }
}

#[cold]
fn forked() -> io::Error {
    let problem = "not in a forked child: the threads that do the work are the parent's";
    io::Error::new(io::ErrorKind::Unsupported, problem)
}

thread_local! {
    /// A thread that [`THREADS`] counts.
    static KNOWN: Known = Known::new();
}

/// Counts the jobs of a thread.
struct Known(Cell<u32>);

impl Known {
    fn new() -> Self {
        THREADS.fetch_add(1, Ordering::Relaxed);
        Self(Cell::new(0))
    }

    fn count(&self) -> u32 {
        let count = self.0.get().wrapping_add(1);
        self.0.set(count);
        count
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        THREADS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Milliseconds since the first call.
fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u64
}

/// Whether the pool has threads for so many jobs, or could start them a moment ago.
fn has_room(jobs: usize, lasts: u64) -> bool {
    // Acquire: pairs with the store in `look`, for what was found then.
    let looked = LOOKED.load(Ordering::Acquire);
    let is_recent = now().saturating_sub(looked) < lasts;
    (is_recent && jobs <= ROOM.load(Ordering::Relaxed)) || is_grown_up()
}

/// Whether there is address space for so many more threads of the pool. A thread of the standard
/// library ends the process if it finds none when it begins, for its signal stack and its first
/// allocation.
fn has_memory(threads: usize) -> bool {
    const ONE: u64 = 8 << 20;
    sys::check_address_space(threads as u64 * ONE).is_ok()
}

/// Whether the pool has all threads that it may have.
fn is_grown_up() -> bool {
    THREADS.load(Ordering::Relaxed) >= pool_threads()
}

/// Looks again if it is time, on a thread of the pool, unless another one does.
fn renew(jobs: usize, has_spare: bool) {
    let now = now();
    let before = BEGAN.load(Ordering::Relaxed);
    if before != now {
        BEGAN.store(now, Ordering::Relaxed);
    }
    let age = now.saturating_sub(LOOKED.load(Ordering::Relaxed));
    let is_due = match has_spare {
        true => age >= RARELY,
        false => age >= RENEWED && now.saturating_sub(before) < RENEWED,
    };
    if !is_due || is_grown_up() {
        return;
    }
    if let Ok(state) = STATE.try_lock() {
        // There is a thread: this one.
        let _ = look(Ok(state), jobs, RENEWED);
    }
}

/// Looks whether the pool may grow for so many jobs, and keeps it from trying if not.
#[cold]
fn look(
    state: Result<MutexGuard<'_, State>, PoisonError<MutexGuard<'_, State>>>,
    jobs: usize,
    lasts: u64,
) -> io::Result<()> {
    let mut state = state.unwrap_or_else(PoisonError::into_inner);
    if has_room(jobs, lasts) && has_memory(1) {
        // Another thread has just looked.
        return Ok(());
    }
    if !state.watches_forks {
        sys::watch_forks()?;
        state.watches_forks = true;
    }
    let threads = THREADS.load(Ordering::Relaxed);
    let is_news = state.is_limited || jobs > ROOM.load(Ordering::Relaxed);
    let missing = jobs.saturating_sub(threads).max(1);
    let wanted = match is_news {
        // More than that, so that a rising number of jobs is looked at a few times, not each time.
        true => missing.next_power_of_two().min(MOST),
        false => missing.min(AGAIN),
    };
    let wanted = wanted.min(pool_threads().saturating_sub(threads)).max(1);
    let room = match try_threads(wanted) {
        Ok(()) => {
            if std::mem::take(&mut state.is_limited) {
                set_limit(pool_threads());
            }
            match is_news {
                true if threads + wanted >= pool_threads() => usize::MAX,
                true if wanted == MOST => 2 * jobs,
                true => threads + wanted,
                false => ROOM.load(Ordering::Relaxed),
            }
        }
        Err((started, error)) => {
            let may_start = !started.is_empty();
            // The job that is about to be submitted counts as one.
            let has_others = state.has_submitted && JOBS.0.load(Ordering::Relaxed) > 1;
            if threads == 0 && !may_start && !has_others {
                return Err(error);
            }
            if threads == 0 {
                // The pool needs what they take.
                started.into_iter().for_each(BareThread::join);
            }
            if !std::mem::replace(&mut state.is_limited, true) {
                // Only here, and never more while it is limited: a thread that the limit ends is
                // still counted for a moment, and a limit above the number of threads is none.
                set_limit(threads.max(1));
            }
            // It does not grow, however many they are.
            usize::MAX
        }
    };
    state.has_submitted = true;
    ROOM.store(room, Ordering::Relaxed);
    // Release: pairs with the load in `has_room`.
    LOOKED.store(now(), Ordering::Release);
    Ok(())
}

fn set_limit(threads: usize) {
    blocking::set_max_blocking_threads(NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN));
}

/// Starts so many threads that do nothing, all at once; or says which could be, and why no more.
/// Their stacks are as large as those of the pool's, and they end by themselves.
fn try_threads(wanted: usize) -> Result<(), (Vec<BareThread>, io::Error)> {
    let gate = Arc::new(Mutex::new(()));
    let shut = gate.lock();
    let mut started = Vec::with_capacity(wanted);
    if !has_memory(wanted) {
        return Err((started, io::ErrorKind::OutOfMemory.into()));
    }
    for _ in 0..wanted {
        match BareThread::start(gate.clone()) {
            Ok(thread) => started.push(thread),
            Err(error) => return Err((started, error)),
        }
    }
    drop(shut);
    Ok(())
}
