//! Lets a bounded number of jobs read pages in at the same time.
//!
//! A read of pages that are not in memory occupies a thread of the pool for as long as the disk
//! takes. Ten thousand such reads would occupy every thread, and writes, flushes and the timer would
//! wait behind them. So at most half of the threads read at a time. The other reads stand in one
//! line of the process, and begin in the order in which they came.
//!
//! # Rejected alternatives
//!
//! - Futures that wait for a permit: a future that has been given the permit but is never polled
//!   again (a `select!` that keeps it, or `mem::forget`) would keep all later reads waiting. What
//!   stands in the line is a job, which needs no poll to begin.
//! - A loop that runs one read after the other on the same thread: the other jobs of a pool with one
//!   thread would wait for the whole line. Each read is a job of its own, which goes behind those
//!   that are waiting.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use async_lock::{Semaphore, SemaphoreGuard};

use super::room::JobSlot;
use super::{check, pool_threads, run};
use crate::completion::{contain, Completion};
use crate::error::Result;
use crate::sync::lock;
use crate::trace::Phase;

/// The most reads at a time, however many threads the pool may have.
const MOST: usize = 64;

/// How many reads may run at a time.
fn most() -> usize {
    (pool_threads() / 2).clamp(1, MOST)
}

/// A read that waits. It is called with `Ok` to read, or with the reason why it cannot.
type Job = Box<dyn FnOnce(io::Result<()>) + Send>;

/// The reads that wait, by their tickets.
#[derive(Default)]
struct Line {
    next_ticket: u64,
    waiting: BTreeMap<u64, Job>,
}

static LINE: Mutex<Line> = Mutex::new(Line {
    next_ticket: 0,
    waiting: BTreeMap::new(),
});

/// One permit for each read that may be running. A permit is taken only under the lock of [`LINE`],
/// and belongs to the job on the pool, whatever happens to the future.
fn permits() -> &'static Semaphore {
    static PERMITS: OnceLock<Semaphore> = OnceLock::new();
    PERMITS.get_or_init(|| Semaphore::new(most()))
}

/// Runs `job`, which reads pages in, on the pool when its turn has come.
///
/// The cancel contract is that of [`offload`](super::offload()).
///
/// # Errors
///
/// Those of the job, or `Io` if the pool cannot run it.
pub(crate) async fn offload_read_in(
    job: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<()> {
    // Before the lock, which may stay locked forever in a forked child.
    check()?;
    let job = Phase::submit().around(job);
    let ended = Arc::new(Completion::new());
    let _place = Place::take(ended.clone(), job);
    begin_reads();
    match poll_fn(|context| ended.poll(context)).await {
        Ok(outcome) => outcome,
        Err(panic) => resume_unwind(panic),
    }
}

/// A place in the line, which its drop gives up.
struct Place {
    ticket: u64,
    ended: Arc<Completion<thread::Result<Result<()>>>>,
}

impl Place {
    fn take(
        ended: Arc<Completion<thread::Result<Result<()>>>>,
        job: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Self {
        let outcome = ended.clone();
        let job = Box::new(move |admitted: io::Result<()>| {
            let read = || admitted.map_err(Into::into).and_then(|()| job());
            let outcome_of_job = catch_unwind(AssertUnwindSafe(read));
            if let Some(waker) = outcome.complete(outcome_of_job) {
                contain(|| waker.wake());
            }
        });
        let mut line = lock(&LINE);
        let ticket = line.next_ticket;
        line.next_ticket += 1;
        line.waiting.insert(ticket, job);
        Self { ticket, ended }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if check().is_err() {
            return;
        }
        let withdrawn = lock(&LINE).waiting.remove(&self.ticket);
        drop(withdrawn);
        self.ended.abandon();
    }
}

/// Gives the pool the reads that stand first, as many as there are permits.
fn begin_reads() {
    while let Some((permit, job)) = next() {
        match JobSlot::take() {
            Ok(slot) => {
                let job = move || {
                    job(Ok(()));
                    drop(permit);
                    begin_reads();
                };
                blocking::unblock(move || run(&slot, job)).detach();
            }
            Err(error) => job(Err(error)),
        }
    }
}

/// The first of the line, and a permit for it.
fn next() -> Option<(SemaphoreGuard<'static>, Job)> {
    // A read that ends releases its permit before it locks the line. So if there is no permit here,
    // one that is running will look at the line again.
    let mut line = lock(&LINE);
    let first = line.waiting.first_entry()?;
    let permit = permits().try_acquire()?;
    Some((permit, first.remove()))
}

#[cfg(all(test, not(mmap_io_loom)))]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::Condvar;

    use futures_lite::future::{block_on, poll_once};

    use super::*;

    type Read = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

    /// Holds reads up until it is opened.
    #[derive(Default)]
    struct Gate {
        is_open: Mutex<bool>,
        opened: Condvar,
        running: AtomicUsize,
        most: AtomicUsize,
    }

    impl Gate {
        fn pass(&self) {
            let running = 1 + self.running.fetch_add(1, Ordering::Relaxed);
            self.most.fetch_max(running, Ordering::Relaxed);
            let is_open = lock(&self.is_open);
            drop(
                self.opened
                    .wait_while(is_open, |is_open| !*is_open)
                    .unwrap(),
            );
            self.running.fetch_sub(1, Ordering::Relaxed);
        }

        fn open(&self) {
            *lock(&self.is_open) = true;
            self.opened.notify_all();
        }
    }

    /// Submits reads that wait at the gate, as many as may run at a time.
    async fn occupy(gate: &Arc<Gate>) -> Vec<Read> {
        let mut reads = Vec::new();
        for _ in 0..most() {
            let gate = gate.clone();
            reads.push(submit(move || gate.pass()).await);
        }
        reads
    }

    /// Polls a read once, which does not end by that.
    async fn submit(job: impl FnOnce() + Send + 'static) -> Read {
        let mut read: Read = Box::pin(offload_read_in(move || {
            job();
            Ok(())
        }));
        assert!(poll_once(&mut read).await.is_none());
        read
    }

    #[test]
    fn withdrawn_reads_never_begin() {
        block_on(async {
            let gate = Arc::new(Gate::default());
            let mut reads = occupy(&gate).await;
            let begun = Arc::new(Mutex::new(Vec::new()));
            let mut waiting = Vec::new();
            for number in 0..20 {
                let begun = begun.clone();
                waiting.push(submit(move || lock(&*begun).push(number)).await);
            }
            drop(waiting.remove(7));
            // This one keeps its place although it is not polled again, and its result is kept for it.
            let unpolled = waiting.remove(10);
            assert!(lock(&*begun).is_empty());
            gate.open();
            reads.extend(waiting);
            for read in reads {
                read.await.unwrap();
            }
            unpolled.await.unwrap();
            let mut begun = lock(&*begun).clone();
            begun.sort_unstable();
            assert!(begun.iter().copied().eq((0..7).chain(8..20)), "{begun:?}");
            assert!(gate.most.load(Ordering::Relaxed) <= most());
        });
    }

    #[test]
    fn panic_reaches_its_awaiter_alone() {
        block_on(async {
            let fails = offload_read_in(|| panic!("the disk is on fire"));
            let fails = std::panic::AssertUnwindSafe(fails);
            let caught = futures_lite::FutureExt::catch_unwind(fails).await;
            let message = *caught.unwrap_err().downcast::<&str>().unwrap();
            assert_eq!(message, "the disk is on fire");
            offload_read_in(|| Ok(())).await.unwrap();
        });
    }
}
