//! Keeps the thread pool from trying to start a thread that cannot be started.
//!
//! # The problem
//!
//! [`blocking`] 1.6.1 to 1.7.0 does not survive a failed thread start (`RLIMIT_NPROC`, `pids.max`,
//! no address space for a stack). Its `grow_pool` retries forever with the pool's lock held, on the
//! thread that submits a job or on a thread of the pool. The executor stops, and every later
//! submission waits for the lock, even if threads are idle. (The loop tests a copy of the limit
//! that the failure has lowered; `docs/upstream` has the report.)
//!
//! # The protocol
//!
//! The crate counts its own jobs ([`JOBS`]) and the threads of the pool that have run one of them
//! ([`THREADS`]). While there are at least as many threads as jobs, a submission needs no check:
//! the pool hardly ever grows for it.
//!
//! Otherwise the pool may want to start a thread, so a *probe* runs first. It starts as many trial
//! threads as the pool may want, all alive at the same time, and lets them end:
//!
//! - If all of them start, the pool may grow too. The probe records for how many jobs
//!   ([`ROOM`]) and when ([`PROBED_AT`]); until the record is too old, submissions rely on it.
//! - If one does not start, the probe lowers the pool's limit to the number of its known threads.
//!   The pool then does not try to start any; jobs take turns on the threads that it has. The
//!   first later probe that succeeds restores the limit.
//! - If not even one starts, and the pool is not known to have a thread, no job can run: the
//!   submission returns the error.
//!
//! Probes run in two places:
//!
//! - In [`JobSlot::take`], before a submission, if there are more jobs than known threads and no
//!   probe of the last [`VALID_FOR`] ms covers that many jobs. This delays the submitter.
//! - In [`JobSlot::begin`], on a thread of the pool, so that submitters seldom have to. This is
//!   needed even for a single task: a thread that has just ended its job is not idle yet when the
//!   task submits the next one, so the pool may start another. So if two jobs begin within
//!   [`RENEW_AFTER`] ms of each other and the last probe is older than that, the job probes again.
//!   With twice as many known threads as jobs such growth is unlikely, and the job probes only
//!   every [`RENEW_AFTER_IF_SPARE`] ms; not never, since other users of the pool may occupy
//!   the threads.
//!
//! # What it cannot prevent
//!
//! - Another process, or another part of this one, may take the last thread between the probe and
//!   the pool's own start.
//! - Another user of the pool may make the pool grow when no thread can be started. That submission
//!   spins as it would without this crate, and then submissions of this crate wait for the lock
//!   that it holds. Once a probe has failed and lowered the limit, the other users are safe as
//!   well.
//!
//! # Rejected alternatives
//!
//! - `blocking` 1.6.0 tests the limit itself, but requiring it would force that version on the rest
//!   of the build, and it still spins if the pool has no thread.
//! - A queue of this crate in front of the pool would be a second pool.

use std::cell::Cell;
use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use super::pool_threads;
use crate::sync::lock;
use crate::sys::{self, BareThread};

/// For how many milliseconds submissions rely on a probe.
const VALID_FOR: u64 = 20;
/// After how many milliseconds a job probes again. Less than [`VALID_FOR`], so that the pool renews
/// the record before a submission has to.
const RENEW_AFTER: u64 = 10;
/// The same while there are twice as many known threads as jobs.
const RENEW_AFTER_IF_SPARE: u64 = 100;
/// The most trial threads of a probe for more jobs than were probed for before.
const MOST_NEW: usize = 32;
/// The most trial threads of a probe that only renews the record.
const MOST_RENEWING: usize = 4;

/// Jobs of this crate that were submitted and have not ended.
static JOBS: OwnCacheLine<AtomicUsize> = OwnCacheLine(AtomicUsize::new(0));
/// Live threads of the pool that have run a job of this crate.
static THREADS: AtomicUsize = AtomicUsize::new(0);
/// The number of jobs that the last probe covers.
static ROOM: AtomicUsize = AtomicUsize::new(0);
/// When the last probe ended, in milliseconds of [`now`].
static PROBED_AT: AtomicU64 = AtomicU64::new(0);
/// When a job last began, in milliseconds of [`now`].
static LAST_BEGIN: AtomicU64 = AtomicU64::new(0);

/// Held during a probe.
static STATE: Mutex<State> = Mutex::new(State {
    watches_forks: false,
    has_submitted: false,
    is_limited: false,
});

struct State {
    watches_forks: bool,
    /// A job was submitted, so that the pool has a thread, at least while there is a job.
    has_submitted: bool,
    /// The last probe failed, and the pool's limit is lowered.
    is_limited: bool,
}

/// Keeps a value that changes with each job from slowing the threads that read its neighbours.
#[repr(align(128))]
struct OwnCacheLine<T>(T);

/// The right to submit one job. It is dropped when the job has ended, or was withdrawn.
#[derive(Debug)]
pub(super) struct JobSlot(());

impl JobSlot {
    /// Counts one more job, after a probe if the pool may have to grow for it.
    ///
    /// # Errors
    ///
    /// No thread can be started and the pool is not known to have one; or this is a forked child.
    #[inline]
    pub(super) fn take() -> io::Result<Self> {
        check()?;
        let jobs = JOBS.0.fetch_add(1, Ordering::Relaxed) + 1;
        let slot = Self(());
        if jobs > THREADS.load(Ordering::Relaxed) && !is_covered(jobs, VALID_FOR) {
            probe(lock(&STATE), jobs, VALID_FOR)?;
        }
        Ok(slot)
    }

    /// Notes, on a thread of the pool, that the job begins; renews the probe if it is time.
    #[inline]
    pub(super) fn begin(&self) {
        let count = THIS_THREAD.with(KnownThread::count_job);
        let jobs = JOBS.0.load(Ordering::Relaxed);
        let has_spare = 2 * jobs <= THREADS.load(Ordering::Relaxed);
        // With threads to spare only every 16th job reads the clock, which takes longer than
        // everything else here.
        if !has_spare || count % 16 == 0 {
            renew(jobs, has_spare);
        }
    }
}

impl Drop for JobSlot {
    fn drop(&mut self) {
        JOBS.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns the number of jobs of this crate that were submitted and have not ended.
pub(super) fn jobs() -> usize {
    JOBS.0.load(Ordering::Relaxed)
}

/// Fails in a child that was forked off a process with open files. The child does not have the
/// threads of the pool, and one of them may have held a lock of the crate, which then stays locked
/// forever. So this is called before such a lock is taken.
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
    /// Counts this thread in [`THREADS`], from its first job to its end.
    static THIS_THREAD: KnownThread = KnownThread::new();
}

/// A thread of the pool, and how many jobs it has run.
struct KnownThread(Cell<u32>);

impl KnownThread {
    fn new() -> Self {
        THREADS.fetch_add(1, Ordering::Relaxed);
        Self(Cell::new(0))
    }

    fn count_job(&self) -> u32 {
        let count = self.0.get().wrapping_add(1);
        self.0.set(count);
        count
    }
}

impl Drop for KnownThread {
    fn drop(&mut self) {
        THREADS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns the milliseconds since the first call.
fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u64
}

/// Whether the pool may be given this number of jobs without a probe: a probe of the last
/// `valid_for` ms covers them, or the pool has all of its threads; and there is address space for
/// one more thread.
fn is_covered(jobs: usize, valid_for: u64) -> bool {
    // Acquire: pairs with the store in `probe`, so that `ROOM` is at least as new as the time.
    let probed_at = PROBED_AT.load(Ordering::Acquire);
    let is_recent = now().saturating_sub(probed_at) < valid_for;
    let has_room = is_recent && jobs <= ROOM.load(Ordering::Relaxed);
    (has_room || pool_is_full()) && has_address_space(1)
}

/// Whether there is address space for this number of further threads. It is checked even while a
/// probe is valid, because a thread of the standard library ends the process if it finds no memory
/// when it begins, for its signal stack and its first allocation.
fn has_address_space(threads: usize) -> bool {
    const PER_THREAD: u64 = 8 << 20;
    sys::check_address_space(threads as u64 * PER_THREAD).is_ok()
}

/// Whether the pool has all threads that it may have.
fn pool_is_full() -> bool {
    THREADS.load(Ordering::Relaxed) >= pool_threads()
}

/// Probes again if it is time, on a thread of the pool, unless another thread is probing.
fn renew(jobs: usize, has_spare: bool) {
    let now = now();
    let last_begin = LAST_BEGIN.load(Ordering::Relaxed);
    if last_begin != now {
        LAST_BEGIN.store(now, Ordering::Relaxed);
    }
    let age = now.saturating_sub(PROBED_AT.load(Ordering::Relaxed));
    let is_due = match has_spare {
        true => age >= RENEW_AFTER_IF_SPARE,
        false => age >= RENEW_AFTER && now.saturating_sub(last_begin) < RENEW_AFTER,
    };
    if !is_due || pool_is_full() {
        return;
    }
    if let Ok(state) = STATE.try_lock() {
        // The error matters only to a pool without threads, and this is one of its threads.
        let _ = probe(state, jobs, RENEW_AFTER);
    }
}

/// Finds out whether the pool could grow for this number of jobs, and lowers its limit if not.
///
/// # Errors
///
/// No thread can be started and the pool is not known to have one.
#[cold]
fn probe(mut state: MutexGuard<'_, State>, jobs: usize, valid_for: u64) -> io::Result<()> {
    if is_covered(jobs, valid_for) {
        // Another thread has probed while this one waited for the lock.
        return Ok(());
    }
    if !state.watches_forks {
        sys::watch_forks()?;
        state.watches_forks = true;
    }
    let threads = THREADS.load(Ordering::Relaxed);
    let is_renewal = !state.is_limited && jobs <= ROOM.load(Ordering::Relaxed);
    let missing = jobs.saturating_sub(threads).max(1);
    let wanted = match is_renewal {
        true => missing.min(MOST_RENEWING),
        // Rounded up, so that a rising number of jobs costs a few probes, and not one for each job.
        false => missing.next_power_of_two().min(MOST_NEW),
    };
    let wanted = wanted.min(pool_threads().saturating_sub(threads)).max(1);
    let room = match start_trial_threads(wanted) {
        Ok(()) => {
            if std::mem::take(&mut state.is_limited) {
                set_limit(pool_threads());
            }
            match is_renewal {
                true => ROOM.load(Ordering::Relaxed),
                // All threads that the pool may ever have can be started.
                false if threads + wanted >= pool_threads() => usize::MAX,
                false if wanted == MOST_NEW => 2 * jobs,
                false => threads + wanted,
            }
        }
        Err((started, error)) => {
            // The job that is about to be submitted is in `JOBS`, but has no thread yet.
            let has_other_jobs = state.has_submitted && JOBS.0.load(Ordering::Relaxed) > 1;
            if threads == 0 && started.is_empty() && !has_other_jobs {
                return Err(error);
            }
            if threads == 0 {
                // The pool needs what the trial threads occupy for its first thread.
                started.into_iter().for_each(BareThread::join);
            }
            if !std::mem::replace(&mut state.is_limited, true) {
                // Once, and never raised while the pool is limited: a thread that the lower limit
                // ends is counted in `THREADS` for a moment longer, and a limit above the true
                // number of threads would let the pool grow.
                set_limit(threads.max(1));
            }
            // A limited pool does not try to grow, for however many jobs.
            usize::MAX
        }
    };
    state.has_submitted = true;
    ROOM.store(room, Ordering::Relaxed);
    // Release: pairs with the load in `is_covered`.
    PROBED_AT.store(now(), Ordering::Release);
    Ok(())
}

fn set_limit(threads: usize) {
    blocking::set_max_blocking_threads(NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN));
}

/// Starts `wanted` threads, which all wait until the last has started, and then end. Their stacks
/// are as large as those of the pool's threads.
///
/// # Errors
///
/// The threads that could be started, and why the next one could not.
fn start_trial_threads(wanted: usize) -> Result<(), (Vec<BareThread>, io::Error)> {
    let gate = Arc::new(Mutex::new(()));
    let shut = gate.lock();
    let mut started = Vec::with_capacity(wanted);
    if !has_address_space(wanted) {
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
