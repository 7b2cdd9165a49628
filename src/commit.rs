//! Group commit: many durable waiters, one flush at a time serves all who are there.
//!
//! Whoever adds the first waiter gets the *turn*: to flush, here or in a job of its own. The turn
//! takes every waiter, flushes what they cover, looks again, and tells them the result: who arrives
//! during a flush shares the next one, since the running one may have passed its bytes already.
//!
//! A flush that failed is never tried again. The kernel may have marked the pages clean, so that a
//! second flush would succeed without their ever having reached the disk; the error sticks.

#[cfg(all(test, mmap_io_loom))]
mod loom_models;
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

/// A flush is put off for one part in so many of the time the last one took, at most.
const LINGER: u32 = 4;
/// And never for longer than that, whatever the last one took.
const LONGEST_LINGER: Duration = Duration::from_micros(500);

/// A file that can be flushed.
pub(crate) trait Durable: Send + Sync + Sized + 'static {
    fn commits(&self) -> &Commits;

    /// Makes at least `extent` durable. Blocks.
    fn flush(&self, extent: Extent<'_>) -> io::Result<()>;

    /// What is lost of the bytes that were to be durable, through no fault of a flush: said once, and
    /// it does not stick.
    fn take_lost(&self) -> Option<MmapIoError> {
        None
    }
}

/// What a flush is to cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent<'a> {
    Everything,
    Ranges(&'a [ByteRange]),
}

/// Someone who waits for bytes to be durable.
pub(crate) trait Waiter: Send + Sync {
    /// What the waiter itself has written.
    fn extent(&self) -> Extent<'_>;

    /// Whether a caller is told the result.
    fn is_heeded(&self) -> bool {
        true
    }

    /// Takes the result of the flush; returns whom to wake.
    fn acknowledge(&self, result: Result<()>) -> Option<Waker>;
}

/// A waiter that is nothing but that.
#[derive(Debug)]
pub(crate) struct Flush {
    /// `None` for everything.
    range: Option<[ByteRange; 1]>,
    is_heeded: bool,
    done: Completion<Result<()>>,
}

impl Flush {
    pub(crate) fn of(range: ByteRange) -> Self {
        Self {
            range: Some([range]),
            is_heeded: true,
            done: Completion::new(),
        }
    }

    pub(crate) fn of_everything() -> Self {
        Self {
            range: None,
            is_heeded: true,
            done: Completion::new(),
        }
    }

    /// The same, in the background: no caller waits for it.
    pub(crate) fn unheeded(self) -> Self {
        Self {
            is_heeded: false,
            ..self
        }
    }

    /// Waits until it is durable.
    pub(crate) async fn done(&self) -> Result<()> {
        std::future::poll_fn(|context| self.done.poll(context)).await
    }
}

impl Waiter for Flush {
    fn extent(&self) -> Extent<'_> {
        match &self.range {
            Some(range) => Extent::Ranges(range),
            None => Extent::Everything,
        }
    }

    fn is_heeded(&self) -> bool {
        self.is_heeded
    }

    fn acknowledge(&self, result: Result<()>) -> Option<Waker> {
        self.done.complete(result)
    }
}

/// The durable waiters of one file.
#[derive(Default)]
pub(crate) struct Commits {
    state: Mutex<State>,
    /// The first error a flush met.
    failed: OnceLock<MmapIoError>,
    pub(crate) flushes: AtomicU64,
    pub(crate) served: AtomicU64,
}

#[derive(Default)]
struct State {
    waiting: Vec<Arc<dyn Waiter>>,
    /// One of them waits for more than it has written itself.
    everything: bool,
    /// Somebody has the turn, and will look at `waiting` again.
    is_flushing: bool,
    last: Option<LastFlush>,
}

/// The flush before this one.
#[derive(Clone, Copy)]
struct LastFlush {
    /// Waiters that the next one could serve: those that it had served, if they come back, and
    /// those that waited when it had ended.
    returning: usize,
    ended: Instant,
    took: Duration,
}

impl State {
    /// Whether those who were told by the last flush may be about to come back.
    fn expects_more(&self) -> bool {
        if pool_has_one_thread() {
            // What they would need may stand behind this job.
            return false;
        }
        // The models know no time.
        let last = self.last.filter(|_| !cfg!(all(test, mmap_io_loom)));
        last.is_some_and(|last| {
            self.waiting.len() < last.returning
                && last.ended.elapsed() < (last.took / LINGER).min(LONGEST_LINGER)
        })
    }
}

impl Commits {
    /// The error that sticks to the file, if a flush has failed.
    pub(crate) fn failure(&self) -> Option<MmapIoError> {
        self.failed.get().cloned()
    }

    /// Adds a waiter, to be told when its bytes are durable. With `everything`, or if that is what
    /// it waits for, all that is pending is flushed with them. Somebody must then call
    /// [`turn`](Self::turn).
    pub(crate) fn add(&self, waiter: Arc<dyn Waiter>, everything: bool) {
        let mut state = lock(&self.state);
        state.everything |= everything || waiter.extent() == Extent::Everything;
        state.waiting.push(waiter);
    }

    /// The turn, if somebody waits and nobody has it.
    pub(crate) fn turn<D: Durable>(target: &Arc<D>) -> Option<FlushTurn<D>> {
        let mut state = lock(&target.commits().state);
        let is_free = !state.waiting.is_empty() && !std::mem::replace(&mut state.is_flushing, true);
        is_free.then(|| FlushTurn(target.clone()))
    }

    /// Has a job flush, if somebody waits and nobody has the turn.
    pub(crate) fn start<D: Durable>(target: &Arc<D>) {
        if let Some(turn) = Self::turn(target) {
            turn.spawn();
        }
    }

    /// Lets those who were told just now come back before the next flush, in the same way, while a
    /// drain elsewhere applies what they write. Nothing depends on anybody's coming.
    fn linger(&self) {
        while lock(&self.state).expects_more() {
            thread::yield_now();
        }
    }

    /// Whether somebody waits, nobody has the turn, and it is better to apply what comes in for a
    /// moment than to take it.
    ///
    /// Tasks that write in a loop would be served in two halves otherwise, each of them waiting
    /// while the other one is flushed. A writer that was alone is never held up.
    pub(crate) fn lingers(&self) -> bool {
        let state = lock(&self.state);
        !state.is_flushing && !state.waiting.is_empty() && state.expects_more()
    }

    /// Whether no flush is running or waited for.
    pub(crate) fn are_idle(&self) -> bool {
        let state = lock(&self.state);
        !state.is_flushing && state.waiting.is_empty()
    }

    /// Whether somebody waits for the next flush.
    pub(crate) fn are_due(&self) -> bool {
        !lock(&self.state).waiting.is_empty()
    }

    /// Flushes once, unless that has failed before; the result is in `failed`.
    fn flush(&self, target: &impl Durable, extent: Extent<'_>) {
        if self.failed.get().is_some() {
            return;
        }
        self.flushes.fetch_add(1, Ordering::Relaxed);
        let result = contain(|| target.flush(extent))
            .unwrap_or_else(|| Err(io::Error::other("the flush panicked")));
        if let Err(error) = result {
            let failed = MmapIoError::FlushFailed(error.into());
            // Only the turn sets it, and there is one at a time.
            let _ = self.failed.set(failed.during("flushing", Subject::Nothing));
        }
    }
}

/// The task of flushing a file until nobody waits any more; there is one at a time. Somebody waits
/// while it lasts, and it keeps the file for them: also for those that nobody asks any more.
#[must_use = "everybody waits for whoever has it"]
pub(crate) struct FlushTurn<D: Durable>(Arc<D>);

impl<D: Durable> FlushTurn<D> {
    /// Flushes in a job of its own.
    pub(crate) fn spawn(self) {
        let target = self.0.clone();
        if let Err(error) = spawn(move || self.run(ROUNDS)) {
            Self(target).refuse(&error.into());
        }
    }

    /// Gives the turn back: the job that was to flush cannot be run. Nothing sticks, since nothing
    /// was tried.
    fn refuse(self, error: &MmapIoError) {
        let waiting = {
            let mut state = lock(&self.0.commits().state);
            state.everything = false;
            state.is_flushing = false;
            std::mem::take(&mut state.waiting)
        };
        drop(self);
        let refused = waiting.iter();
        let refused = refused.filter_map(|waiter| waiter.acknowledge(Err(error.clone())));
        wake_all(&mut refused.collect());
    }

    /// Flushes here; what is not done after `rounds` goes on in a job behind those that wait.
    pub(crate) fn run(self, rounds: usize) {
        let Self(target) = self;
        for round in 0..rounds {
            if round > 0 {
                target.commits().linger();
            }
            let began = Instant::now();
            let (waiting, everything) = {
                let mut state = lock(&target.commits().state);
                let waiting = std::mem::take(&mut state.waiting);
                (waiting, std::mem::take(&mut state.everything))
            };
            let commits = target.commits();
            let is_heeded = waiting.iter().any(|waiter| waiter.is_heeded());
            let lost = is_heeded.then(|| target.take_lost()).flatten();
            if everything {
                commits.flush(&*target, Extent::Everything);
            } else {
                let ranges: Vec<ByteRange> = waiting
                    .iter()
                    .flat_map(|waiter| match waiter.extent() {
                        Extent::Ranges(ranges) => ranges,
                        Extent::Everything => unreachable!("then everything is flushed"),
                    })
                    .copied()
                    .collect();
                commits.flush(&*target, Extent::Ranges(&ranges));
            }
            // Relaxed: these are counters.
            let served = waiting.len() as u64;
            commits.served.fetch_add(served, Ordering::Relaxed);
            let failed = commits.failed.get().cloned().or(lost);
            let is_over = {
                let mut state = lock(&commits.state);
                let ended = Instant::now();
                state.last = Some(LastFlush {
                    returning: state.waiting.len() + waiting.len(),
                    ended,
                    took: ended - began,
                });
                state.is_flushing = !state.waiting.is_empty();
                !state.is_flushing
            };
            let tell = || {
                let mut wakers: Vec<Waker> = waiting
                    .iter()
                    .filter_map(|waiter| waiter.acknowledge(failed.clone().map_or(Ok(()), Err)))
                    .collect();
                wake_all(&mut wakers);
            };
            if is_over {
                // As the queue does: they are told when nothing here holds the file open.
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
