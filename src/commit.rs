//! Group commit: many waiters for durability share one flush at a time.
//!
//! The thread that adds the first waiter gets the *turn*: the exclusive right to flush, on this
//! thread or in a job of its own. The turn takes all waiters, flushes the bytes that they wait for,
//! checks for new waiters and tells the served ones the result. A waiter that arrives during a
//! flush is served by the next flush, since the running flush may have passed its bytes already.
//!
//! A failed flush is never repeated. The kernel may have marked the pages clean, so that a second
//! flush would succeed although the pages never reached the disk. The error sticks to the file.

#[cfg(all(test, mmap_io_loom))]
mod loom_models;
mod loss;
#[cfg(all(test, unix, not(mmap_io_loom)))]
mod tests;

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use crate::completion::{contain, wake_all, Completion};
use crate::error::{MmapIoError, Result, Subject};
use crate::offload::{pool_has_one_thread, spawn, ROUNDS};
use crate::range::ByteRange;
use crate::sync::{lock, Mutex, Ordering};
use crate::sys;
use crate::trace::{self, Phase};

pub(crate) use self::loss::{Loss, Losses, Lost};

/// A flush is delayed by at most 1/LINGER of the time that the previous flush took.
const LINGER: u32 = 4;
/// The longest delay of a flush, however long the previous flush took.
const LONGEST_LINGER: Duration = Duration::from_micros(500);

/// A file that can be flushed.
///
/// The constants are steps of the protocol: `true` in the crate. The loom models leave out one at a
/// time, and must fail then.
pub(crate) trait Durable: Send + Sync + Sized + 'static {
    /// There is one turn at a time. A second flush beside the first would make the outcome of each
    /// depend on the other: a write-back error is reported to one of them only.
    const ONE_TURN: bool = true;
    /// A flush serves the waiters that were there when it began. It may have passed the bytes of a
    /// later waiter already.
    const SERVES_EARLIER_WAITERS_ONLY: bool = true;
    /// A turn checks for new waiters and gives up its right in one critical section. Otherwise a
    /// waiter that is added between the two would start no flush.
    const CLEARS_WHERE_IT_CHECKS: bool = true;
    /// After a failed flush no other flush is tried; see the module's documentation.
    const ERROR_STICKS: bool = true;

    /// Returns the durable waiters of the file.
    fn commits(&self) -> &Commits;

    /// Makes at least `extent` durable. Blocks the thread.
    fn flush(&self, extent: Extent<'_>) -> io::Result<()>;

    /// Fails if the file cannot be flushed at present, or if a flush that has ended may have missed
    /// something for that reason. That error does not stick.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Returns the last loss of bytes that were to become durable. Its error does not stick.
    fn last_loss(&self) -> Option<Arc<Loss>> {
        None
    }
}

/// The bytes that a flush has to cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent<'a> {
    Everything,
    Ranges(&'a [ByteRange]),
}

/// A waiter for bytes to become durable.
pub(crate) trait Waiter: Send + Sync {
    /// Returns the bytes that the waiter waits for.
    fn extent(&self) -> Extent<'_>;

    /// Returns where the waiter keeps the loss because of which it fails.
    fn lost(&self) -> &Lost;

    /// Notes that the flush begins.
    fn begin(&self) {}

    /// Takes the result of the flush; returns the waker of the waiting future, to be woken by the
    /// caller.
    fn acknowledge(&self, result: Result<()>) -> Option<Waker>;
}

/// A plain flush of a range or of the whole file, without a write.
#[derive(Debug)]
pub(crate) struct Flush {
    /// `None` for the whole file.
    range: Option<[ByteRange; 1]>,
    phase: Phase,
    lost: Lost,
    done: Completion<Result<()>>,
}

impl Flush {
    pub(crate) fn of(range: ByteRange) -> Self {
        Self {
            range: Some([range]),
            phase: Phase::submit(),
            lost: Lost::nothing(),
            done: Completion::new(),
        }
    }

    pub(crate) fn of_everything() -> Self {
        Self {
            range: None,
            phase: Phase::submit(),
            lost: Lost::nothing(),
            done: Completion::new(),
        }
    }

    /// Turns the flush into a background flush: no future waits for it.
    pub(crate) fn unheeded(self) -> Self {
        self.done.abandon();
        self
    }

    /// Waits until the bytes are durable.
    async fn done(&self) -> Result<()> {
        let result = self.ended().await;
        self.lost.taken();
        result
    }

    async fn ended(&self) -> Result<()> {
        std::future::poll_fn(|context| self.done.poll(context)).await
    }
}

/// A flush that was started. It runs to completion also if this is dropped, which tells the flush
/// that no future waits for it.
#[derive(Debug)]
pub(crate) struct Started(Arc<Flush>);

impl Started {
    pub(crate) fn new(flush: Arc<Flush>) -> Self {
        Self(flush)
    }

    /// Waits until the bytes are durable.
    pub(crate) async fn done(self) -> Result<()> {
        self.0.done().await
    }

    /// Waits until the flush has ended, for a caller that may yet be dropped: when its own caller
    /// gets the result, it calls [`taken`](Self::taken).
    pub(crate) async fn ended(&self) -> Result<()> {
        self.0.ended().await
    }

    /// Notes that the caller has the result.
    pub(crate) fn taken(&self) {
        self.0.lost.taken();
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // In a forked child the lock may stay locked forever.
        if !sys::is_forked() {
            self.0.done.abandon();
        }
    }
}

impl Waiter for Flush {
    fn extent(&self) -> Extent<'_> {
        match &self.range {
            Some(range) => Extent::Ranges(range),
            None => Extent::Everything,
        }
    }

    fn lost(&self) -> &Lost {
        &self.lost
    }

    fn begin(&self) {
        self.phase.begin();
    }

    fn acknowledge(&self, result: Result<()>) -> Option<Waker> {
        self.phase.end();
        self.done.complete(result)
    }
}

/// The waiters for durability of one file, and the counters of its flushes.
#[derive(Default)]
pub(crate) struct Commits {
    state: Mutex<State>,
    /// The error of the first failed flush.
    failed: OnceLock<MmapIoError>,
    pub(crate) flushes: AtomicU64,
    pub(crate) served: AtomicU64,
}

#[derive(Default)]
struct State {
    waiting: Vec<Waiting>,
    /// A waiter waits for everything that is dirty, not only for its own bytes.
    everything: bool,
    /// A thread or a job has the turn, and will check `waiting` again.
    is_flushing: bool,
    last: Option<LastFlush>,
}

struct Waiting {
    waiter: Arc<dyn Waiter>,
    /// The number of losses before the bytes of the waiter were written.
    losses: u64,
}

impl Waiting {
    /// Tells the waiter the result of its flush; `loss` is the last loss of the file.
    fn tell(&self, flushed: &Result<()>, loss: Option<&Arc<Loss>>) -> Option<Waker> {
        match loss.filter(|loss| flushed.is_ok() && loss.concerns(self.losses)) {
            Some(loss) => {
                self.waiter.lost().set(loss);
                self.waiter.acknowledge(Err(loss.error()))
            }
            None => self.waiter.acknowledge(flushed.clone()),
        }
    }
}

/// The previous flush.
#[derive(Clone, Copy)]
struct LastFlush {
    /// How many waiters the next flush could serve: the waiters that this flush served, if they
    /// write again, plus the waiters that were already there when it ended.
    returning: usize,
    ended: Instant,
    took: Duration,
}

impl State {
    /// Returns whether the tasks that the last flush has served may be about to write again.
    fn expects_more(&self) -> bool {
        if pool_has_one_thread() {
            // A job that these tasks need may be queued behind this one.
            return false;
        }
        // Loom models have no clock.
        let last = self.last.filter(|_| !cfg!(all(test, mmap_io_loom)));
        last.is_some_and(|last| {
            self.waiting.len() < last.returning
                && last.ended.elapsed() < (last.took / LINGER).min(LONGEST_LINGER)
        })
    }
}

impl Commits {
    /// Returns the error that sticks to the file, if a flush has failed.
    pub(crate) fn failure(&self) -> Option<MmapIoError> {
        self.failed.get().cloned()
    }

    /// Adds a waiter, to be told when its bytes are durable. With `everything`, or if the waiter
    /// waits for the whole file, all dirty bytes are flushed with them. `losses` is the
    /// [number](Losses::count) of losses when its bytes were written, or before that. The caller,
    /// or a drain that follows, must then take the [turn](Self::turn).
    pub(crate) fn add(&self, waiter: Arc<dyn Waiter>, everything: bool, losses: u64) {
        let mut state = lock(&self.state);
        state.everything |= everything || waiter.extent() == Extent::Everything;
        state.waiting.push(Waiting { waiter, losses });
    }

    /// Returns the turn, if there are waiters and the turn is free.
    pub(crate) fn turn<D: Durable>(target: &Arc<D>) -> Option<FlushTurn<D>> {
        let mut state = lock(&target.commits().state);
        if state.waiting.is_empty() {
            return None;
        }
        let is_taken = std::mem::replace(&mut state.is_flushing, true);
        (!is_taken || !D::ONE_TURN).then(|| FlushTurn(target.clone()))
    }

    /// Starts a job that flushes, if there are waiters and the turn is free.
    pub(crate) fn start<D: Durable>(target: &Arc<D>) {
        if let Some(turn) = Self::turn(target) {
            turn.spawn();
        }
    }

    /// Gives the tasks that were just woken a moment to write again, so that they share the next
    /// flush; a drain on another thread applies what they write. This is an optimization:
    /// correctness does not depend on it.
    fn linger(&self) {
        while lock(&self.state).expects_more() {
            thread::yield_now();
        }
    }

    /// Returns whether there are waiters, the turn is free, and it is better to apply further
    /// writes for a moment than to take the turn.
    ///
    /// Otherwise tasks that write in a loop would be served in two halves, each half waiting while
    /// the other half is flushed. A writer that was alone in the previous flush is never delayed.
    pub(crate) fn lingers(&self) -> bool {
        let state = lock(&self.state);
        !state.is_flushing && !state.waiting.is_empty() && state.expects_more()
    }

    /// Returns whether no flush is running and no waiter is there.
    pub(crate) fn are_idle(&self) -> bool {
        let state = lock(&self.state);
        !state.is_flushing && state.waiting.is_empty()
    }

    /// Returns whether there are waiters for the next flush.
    pub(crate) fn are_due(&self) -> bool {
        !lock(&self.state).waiting.is_empty()
    }

    /// Flushes once. If a flush has failed before, returns its error instead.
    fn flush<D: Durable>(&self, target: &D, extent: Extent<'_>) -> Result<()> {
        match self.failed.get() {
            Some(failed) if D::ERROR_STICKS => return Err(failed.clone()),
            _ => {}
        }
        target.check()?;
        self.flushes.fetch_add(1, Ordering::Relaxed);
        let result = contain(|| target.flush(extent))
            .unwrap_or_else(|| Err(io::Error::other("the flush panicked")));
        result.map_err(|error| {
            let failed = MmapIoError::FlushFailed(error.into());
            let failed = failed.during("flushing", Subject::Nothing);
            // Only the holder of the turn sets the error, and there is one turn at a time.
            let _ = self.failed.set(failed.clone());
            failed
        })?;
        target.check()
    }
}

/// The exclusive right to flush one file, held until no waiter is left. It keeps the file open for
/// its waiters, even for waiters whose futures have been dropped.
#[must_use = "dropping a turn without running it leaves its waiters hanging"]
pub(crate) struct FlushTurn<D: Durable>(Arc<D>);

impl<D: Durable> FlushTurn<D> {
    /// Flushes in a job of its own on the pool.
    pub(crate) fn spawn(self) {
        let target = self.0.clone();
        if let Err(error) = spawn(move || self.run(ROUNDS)) {
            Self(target).refuse(&error.into());
        }
    }

    /// Gives the turn back and fails its waiters, because the job that was to flush cannot run. The
    /// error does not stick, since no flush was tried.
    fn refuse(self, error: &MmapIoError) {
        let waiting = {
            let mut state = lock(&self.0.commits().state);
            state.everything = false;
            state.is_flushing = false;
            std::mem::take(&mut state.waiting)
        };
        drop(self);
        let refused = waiting.iter();
        let refused = refused.filter_map(|one| one.waiter.acknowledge(Err(error.clone())));
        wake_all(&mut refused.collect());
    }

    /// Flushes on this thread for at most `rounds` rounds; then a new job, queued behind the jobs
    /// that wait, goes on.
    pub(crate) fn run(self, rounds: usize) {
        let Self(target) = self;
        for round in 0..rounds {
            if round > 0 {
                target.commits().linger();
            }
            let began = Instant::now();
            let (mut waiting, everything) = {
                let mut state = lock(&target.commits().state);
                let waiting = std::mem::take(&mut state.waiting);
                (waiting, std::mem::take(&mut state.everything))
            };
            if trace::IS_ON {
                waiting.iter().for_each(|one| one.waiter.begin());
            }
            let commits = target.commits();
            let flushed = if everything {
                commits.flush(&*target, Extent::Everything)
            } else {
                let ranges: Vec<ByteRange> = waiting
                    .iter()
                    .flat_map(|one| match one.waiter.extent() {
                        Extent::Ranges(ranges) => ranges,
                        Extent::Everything => {
                            unreachable!("`add` notes that everything is flushed")
                        }
                    })
                    .copied()
                    .collect();
                commits.flush(&*target, Extent::Ranges(&ranges))
            };
            if !D::SERVES_EARLIER_WAITERS_ONLY {
                waiting.append(&mut lock(&commits.state).waiting);
            }
            // Relaxed: these are counters.
            let served = waiting.len() as u64;
            commits.served.fetch_add(served, Ordering::Relaxed);
            // After the flush: it has not made durable what has gone by then.
            let loss = target.last_loss();
            let is_over = {
                let mut state = lock(&commits.state);
                let ended = Instant::now();
                state.last = Some(LastFlush {
                    returning: state.waiting.len() + waiting.len(),
                    ended,
                    took: ended - began,
                });
                let is_over = state.waiting.is_empty();
                if !D::CLEARS_WHERE_IT_CHECKS {
                    drop(state);
                    state = lock(&commits.state);
                }
                state.is_flushing = !is_over;
                is_over
            };
            let tell = || {
                let mut wakers: Vec<Waker> = waiting
                    .iter()
                    .filter_map(|one| one.tell(&flushed, loss.as_ref()))
                    .collect();
                wake_all(&mut wakers);
            };
            if is_over {
                // As in the queue: the waiters are told when this job no longer keeps the file
                // open.
                drop(target);
                return tell();
            }
            tell();
        }
        Self(target).spawn();
    }
}

impl std::fmt::Debug for Commits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Commits")
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}
