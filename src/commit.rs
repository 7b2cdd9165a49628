//! Group commit: many durable waiters, one flush at a time serves all who are there.
//!
//! The first waiter starts a flush job. The job takes every waiter, flushes what they cover, tells
//! all of them the result, and looks again: who arrives during a flush shares the next one, since
//! the running one may have passed its bytes already.
//!
//! A flush that failed is never tried again. The kernel may have marked the pages clean, so that a
//! second flush would succeed without their ever having reached the disk; the error sticks.

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::task::Waker;

use crate::completion::{contain, wake_all, Completion};
use crate::error::{MmapIoError, Result};
use crate::offload::{spawn, ROUNDS};
use crate::range::ByteRange;
use crate::sync::{lock, Mutex, Ordering};

/// A file that can be flushed.
pub(crate) trait Durable: Send + Sync + 'static {
    fn commits(&self) -> &Commits;

    /// Makes at least `ranges` durable. Blocks.
    fn flush(&self, ranges: &[ByteRange]) -> io::Result<()>;
}

/// Someone who waits for bytes to be durable.
pub(crate) trait Waiter: Send + Sync {
    fn ranges(&self) -> &[ByteRange];

    /// Takes the result of the flush; returns whom to wake.
    fn acknowledge(&self, result: Result<()>) -> Option<Waker>;
}

/// A waiter that is nothing but that.
#[derive(Debug)]
pub(crate) struct Flush {
    range: [ByteRange; 1],
    done: Completion<Result<()>>,
}

impl Flush {
    pub(crate) fn new(range: ByteRange) -> Self {
        Self {
            range: [range],
            done: Completion::new(),
        }
    }

    /// Waits until the range is durable.
    pub(crate) async fn done(&self) -> Result<()> {
        std::future::poll_fn(|context| self.done.poll(context)).await
    }
}

impl Waiter for Flush {
    fn ranges(&self) -> &[ByteRange] {
        &self.range
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
    failed: OnceLock<Arc<io::Error>>,
    pub(crate) flushes: AtomicU64,
    pub(crate) served: AtomicU64,
}

#[derive(Default)]
struct State {
    waiting: Vec<Arc<dyn Waiter>>,
    /// A job exists that will look at `waiting` again.
    running: bool,
}

impl Commits {
    /// The error that sticks to the file, if a flush has failed.
    pub(crate) fn failure(&self) -> Option<MmapIoError> {
        Some(MmapIoError::FlushFailed(self.failed.get()?.clone()))
    }

    /// Has the waiters told when their bytes are durable.
    pub(crate) fn submit<D: Durable>(
        target: &Arc<D>,
        waiters: impl IntoIterator<Item = Arc<dyn Waiter>>,
    ) {
        let start = {
            let mut state = lock(&target.commits().state);
            state.waiting.extend(waiters);
            !state.waiting.is_empty() && !std::mem::replace(&mut state.running, true)
        };
        if start {
            let target = target.clone();
            spawn(move || Self::run(target));
        }
    }

    fn run<D: Durable>(mut target: Arc<D>) {
        for _ in 0..ROUNDS {
            let waiting = {
                let mut state = lock(&target.commits().state);
                if state.waiting.is_empty() {
                    state.running = false;
                    return;
                }
                std::mem::take(&mut state.waiting)
            };
            let ranges: Vec<ByteRange> = waiting
                .iter()
                .flat_map(|waiter| waiter.ranges())
                .copied()
                .collect();
            target.commits().flush(&*target, &ranges);
            // Relaxed: these are counters.
            let served = waiting.len() as u64;
            target.commits().served.fetch_add(served, Ordering::Relaxed);
            let failed = target.commits().failed.get().cloned();
            // As the queue does: they are told when this job holds no reference to the file.
            let file = Arc::downgrade(&target);
            drop(target);
            let mut wakers: Vec<Waker> = waiting
                .iter()
                .filter_map(|waiter| {
                    let failed = failed.clone().map(MmapIoError::FlushFailed);
                    waiter.acknowledge(failed.map_or(Ok(()), Err))
                })
                .collect();
            wake_all(&mut wakers);
            match file.upgrade() {
                Some(file) => target = file,
                None => return,
            }
        }
        spawn(move || Self::run(target));
    }

    /// Flushes once, unless that has failed before; the result is in `failed`.
    fn flush(&self, target: &impl Durable, ranges: &[ByteRange]) {
        if self.failed.get().is_some() {
            return;
        }
        self.flushes.fetch_add(1, Ordering::Relaxed);
        let result = contain(|| target.flush(ranges))
            .unwrap_or_else(|| Err(io::Error::other("the flush panicked")));
        if let Err(error) = result {
            // Only this job sets it, and only one runs at a time.
            let _ = self.failed.set(Arc::new(error));
        }
    }
}

impl std::fmt::Debug for Commits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Commits")
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}
