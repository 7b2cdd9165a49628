//! The way to the thread pool, for everything that may block.
//!
//! The pool is the one of the [`blocking`] crate, shared with the rest of the process and with no
//! tie to any runtime. Its threads are a limited good (500, or what `BLOCKING_MAX_THREADS` says):
//! no job of this crate waits in it for a view, a lease, or another job.
//!
//! # Cancel contract
//!
//! Dropping the future of [`offload`] withdraws a job that no thread has taken up yet; one that
//! has started runs to its end, and its result is dropped on the pool. So a job owns all that it
//! works on.
//!
//! # When no thread can be started
//!
//! An operation that cannot be given to the pool ends in an error where it is awaited, and not in
//! a wait: where a process may have no more threads, and the pool has none, and in a forked child.
//! See [`room`].

#[cfg(all(test, mmap_io_loom))]
#[allow(unsafe_code)]
pub(crate) mod loom_pool;

#[cfg_attr(all(test, mmap_io_loom), allow(dead_code))]
mod room;

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::sync::OnceLock;

use self::room::Place;

use crate::wakers::Shielded;

/// Rounds of work after which a job that finds ever more goes back behind the jobs that wait, so
/// that a pool of one thread serves everybody.
pub(crate) const ROUNDS: usize = if cfg!(mmap_io_loom) { 2 } else { 64 };

/// Runs `job` on the pool; the future resolves to its result, or resumes its panic.
///
/// # Errors
///
/// Of the job; or `Io` if the pool cannot run it.
pub(crate) fn offload<T, E>(
    job: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> impl Future<Output = Result<T, E>> + Send + 'static
where
    T: Send + 'static,
    E: From<io::Error> + Send + 'static,
{
    let task = Place::take().map(|place| blocking::unblock(move || run(&place, job)));
    async move { Shielded::new(task?).await }
}

/// Runs `job` on the pool, whether or not another one waits for it.
///
/// # Errors
///
/// The pool cannot run it: then the job is dropped.
pub(crate) fn spawn(job: impl FnOnce() + Send + 'static) -> io::Result<()> {
    #[cfg(all(test, mmap_io_loom))]
    loom_pool::spawn(job);
    #[cfg(not(all(test, mmap_io_loom)))]
    {
        let place = Place::take()?;
        blocking::unblock(move || run(&place, job)).detach();
    }
    Ok(())
}

/// Fails where nothing can be given to the pool any more, and no lock of the crate may be waited
/// for: in a forked child.
pub(crate) fn check() -> io::Result<()> {
    room::check()
}

fn run<T>(place: &Place, job: impl FnOnce() -> T) -> T {
    place.begin();
    let _here = OnPool::enter();
    job()
}

/// Drops a value whose drop may block (the last close of a descriptor, the end of a large mapping)
/// on the pool: here, if this is one of its jobs, or if it cannot run one.
pub(crate) fn release<T: Send + 'static>(value: T) {
    match ON_POOL.get() {
        true => drop(value),
        // A job that cannot be run is dropped at once, and what it holds with it.
        false => drop(spawn(move || drop(value))),
    }
}

thread_local! {
    /// This thread runs a job of [`offload`].
    static ON_POOL: Cell<bool> = const { Cell::new(false) };
}

/// Marks the thread for as long as it runs a job.
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

/// Whether the pool has a single thread, as `BLOCKING_MAX_THREADS` may say: then a job that sleeps
/// holds up all others.
pub(crate) fn pool_has_one_thread() -> bool {
    pool_threads() == 1
}

/// How many threads the pool may have, as `BLOCKING_MAX_THREADS` says. A program may have set
/// another limit since (`blocking::set_max_blocking_threads`), and the pool cannot be asked.
pub(crate) fn pool_threads() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| {
        // Read as the pool itself reads it: unset or not a number is its default of 500.
        let threads = std::env::var("BLOCKING_MAX_THREADS").ok();
        let threads = threads.and_then(|threads| threads.parse::<usize>().ok());
        threads.map_or(500, |threads| threads.clamp(1, 10_000))
    })
}
