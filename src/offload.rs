//! Runs everything that may block on the thread pool.
//!
//! The pool is that of the [`blocking`] crate. It is independent of any runtime, and the rest of
//! the process uses it as well. The number of its threads is limited (500, or what
//! `BLOCKING_MAX_THREADS` says): no job of this crate waits there for a view, a lease, or another
//! job.
//!
//! # Cancel contract
//!
//! Dropping the future of [`offload`] withdraws the job if no thread has started it. A job that has
//! started runs to completion, and its result is dropped on the pool. So a job owns everything that
//! it works on.
//!
//! # Reads
//!
//! Reads of pages that are not in memory take as long as the disk, and there may be thousands of
//! them. They occupy at most half of the threads at a time; see [`read_ins`].
//!
//! # When no thread can be started
//!
//! An operation that cannot be given to the pool returns an error, and does not wait. This happens
//! in a forked child, and in a process that cannot start a thread while the pool has none. See
//! [`room`].

#[cfg(all(test, mmap_io_loom))]
#[allow(unsafe_code)]
pub(crate) mod loom_pool;

mod read_ins;
#[cfg_attr(all(test, mmap_io_loom), allow(dead_code))]
mod room;

pub(crate) use self::read_ins::offload_read_in;

use std::cell::Cell;
use std::future::{poll_fn, Future};
use std::io;
use std::sync::{Arc, OnceLock};

use self::room::JobSlot;
use crate::completion::{contain, Completion};
use crate::error::{MmapIoError, Result};
use crate::trace::Phase;
use crate::wakers::{scope, Shielded};

/// After how many rounds a job that always finds more work goes to the end of the pool's queue, so
/// that a pool of one thread serves the other jobs as well.
pub(crate) const ROUNDS: usize = if cfg!(mmap_io_loom) { 2 } else { 64 };

/// Runs `job` on the pool; the future resolves to its result, or resumes its panic.
///
/// # Errors
///
/// Those of the job, or `Io` if the pool cannot run it.
pub(crate) fn offload<T, E>(
    job: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> impl Future<Output = Result<T, E>> + Send + 'static
where
    T: Send + 'static,
    E: From<io::Error> + Send + 'static,
{
    let job = Unstarted(Some(Phase::submit().around(job)));
    let task = JobSlot::take().map(|slot| blocking::unblock(move || run(&slot, job.start())));
    async move { Shielded::new(task?).await }
}

/// A job that no thread has started. It may own values of the user, whose drop may panic: the pool
/// would end the process if that happened in the drop of a withdrawn job, so the panic ends here.
struct Unstarted<J>(Option<J>);

impl<J> Unstarted<J> {
    fn start(mut self) -> J {
        self.0.take().expect("present until it is started")
    }
}

impl<J> Drop for Unstarted<J> {
    fn drop(&mut self) {
        if let Some(withdrawn) = self.0.take() {
            contain(|| drop(withdrawn));
        }
    }
}

/// Runs `job` on the pool; the future resolves to what `hand_over` makes of its result.
///
/// `hand_over` runs on the pool as well, before the drop of the future or not at all. So the future
/// has what it makes, and its drop takes it along.
pub(crate) async fn offload_for<O, T>(
    job: impl FnOnce() -> Result<O> + Send + 'static,
    hand_over: impl FnOnce(O) -> T + Send + 'static,
) -> Result<T>
where
    O: Send + 'static,
    T: Send + 'static,
{
    let handed = Handed(Arc::new(Completion::new()));
    let outcome = handed.0.clone();
    let job = offload(move || {
        let done = job()?;
        // In a scope, since it may wake others under the lock. The future waits for the job.
        let _ = scope(|| outcome.deliver(done, hand_over));
        Ok::<_, MmapIoError>(())
    });
    job.await?;
    Ok(poll_fn(|context| handed.0.poll(context)).await)
}

/// The future's side of what a job hands over; the drop abandons it.
struct Handed<T>(Arc<Completion<T>>);

impl<T> Drop for Handed<T> {
    fn drop(&mut self) {
        // In a forked child the lock may stay locked forever.
        if check().is_ok() {
            self.0.abandon();
        }
    }
}

/// Runs `job` on the pool, and returns without waiting for it. The job cannot be withdrawn.
///
/// # Errors
///
/// The pool cannot run the job, which is then dropped.
pub(crate) fn spawn(job: impl FnOnce() + Send + 'static) -> io::Result<()> {
    #[cfg(all(test, mmap_io_loom))]
    loom_pool::spawn(job);
    #[cfg(not(all(test, mmap_io_loom)))]
    {
        let slot = JobSlot::take()?;
        blocking::unblock(move || run(&slot, job)).detach();
    }
    Ok(())
}

/// Whether the jobs of this crate and one more need at most half of the threads that the pool may
/// have. A job that is not needed for progress is submitted only then.
pub(crate) fn has_spare_threads() -> bool {
    2 * (room::jobs() + 1) <= pool_threads()
}

/// Fails in a forked child, which must not wait for a lock of this crate, and has no pool.
pub(crate) fn check() -> io::Result<()> {
    room::check()
}

fn run<T>(slot: &JobSlot, job: impl FnOnce() -> T) -> T {
    slot.begin();
    let _on_pool = OnPool::enter();
    job()
}

/// Drops a value whose drop may block (the last close of a descriptor, the end of a large mapping)
/// on the pool. On a thread of the pool, or if the pool cannot run a job, the value is dropped
/// right here.
pub(crate) fn release<T: Send + 'static>(value: T) {
    match ON_POOL.get() {
        true => drop(value),
        // If the pool cannot run the job, `spawn` drops it at once, and the value with it.
        false => drop(spawn(move || drop(value))),
    }
}

thread_local! {
    /// Whether this thread is running a job of this crate.
    static ON_POOL: Cell<bool> = const { Cell::new(false) };
}

/// Marks the thread while it runs a job.
struct OnPool;

impl OnPool {
    fn enter() -> Self {
        ON_POOL.set(true);
        Self
    }
}

impl Drop for OnPool {
    fn drop(&mut self) {
        ON_POOL.set(false);
    }
}

/// Whether the pool has a single thread, as `BLOCKING_MAX_THREADS` may say. A job that sleeps then
/// delays all other jobs.
pub(crate) fn pool_has_one_thread() -> bool {
    pool_threads() == 1
}

/// Returns how many threads the pool may have, according to `BLOCKING_MAX_THREADS`. A program may
/// have set another limit since (`blocking::set_max_blocking_threads`), which cannot be queried.
pub(crate) fn pool_threads() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| {
        // Parsed as the pool itself parses it: if unset or not a number, its default of 500.
        let threads = std::env::var("BLOCKING_MAX_THREADS").ok();
        let threads = threads.and_then(|threads| threads.parse::<usize>().ok());
        threads.map_or(500, |threads| threads.clamp(1, 10_000))
    })
}

#[cfg(all(test, not(mmap_io_loom)))]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use futures_lite::future::{block_on, poll_once};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    #[test]
    fn nothing_is_handed_over_after_drop() {
        let (begin, has_begun) = mpsc::channel();
        let (let_go, gate) = mpsc::channel::<()>();
        let (sender, handed) = mpsc::channel();
        let (result, is_dropped) = mpsc::channel::<()>();
        let job = move || {
            begin.send(()).unwrap();
            let _ = gate.recv_timeout(TIMEOUT);
            Ok(result)
        };
        let mut future = Box::pin(offload_for(job, move |_| sender.send(()).unwrap()));
        assert!(block_on(poll_once(&mut future)).is_none());
        has_begun.recv_timeout(TIMEOUT).unwrap();
        drop(future);
        drop(let_go);
        // The job drops its result.
        let gone = is_dropped.recv_timeout(TIMEOUT);
        assert_eq!(gone, Err(mpsc::RecvTimeoutError::Disconnected));
        assert!(handed.try_recv().is_err());
    }

    #[test]
    fn drop_takes_what_was_handed_over() {
        let (sender, handed) = mpsc::channel();
        let (value, is_dropped) = mpsc::channel::<()>();
        let hand_over = move |()| {
            sender.send(()).unwrap();
            value
        };
        let (let_go, gate) = mpsc::channel::<()>();
        let job = move || {
            let _ = gate.recv_timeout(TIMEOUT);
            Ok(())
        };
        let mut future = Box::pin(offload_for(job, hand_over));
        assert!(block_on(poll_once(&mut future)).is_none());
        drop(let_go);
        handed.recv_timeout(TIMEOUT).unwrap();
        drop(future);
        // At once, although the job may not have ended.
        assert_eq!(is_dropped.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    }
}
