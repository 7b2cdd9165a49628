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

#[cfg(all(test, mmap_io_loom))]
#[allow(unsafe_code)]
pub(crate) mod loom_pool;

use std::cell::Cell;
use std::sync::OnceLock;

use blocking::Task;

use crate::wakers::Shielded;

/// Rounds of work after which a job that finds ever more goes back behind the jobs that wait, so
/// that a pool of one thread serves everybody.
pub(crate) const ROUNDS: usize = if cfg!(mmap_io_loom) { 2 } else { 64 };

/// Runs `job` on the pool; the future resolves to its result, or resumes its panic.
pub(crate) fn offload<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> Shielded<Task<T>> {
    Shielded::new(task(job))
}

fn task<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Task<T> {
    blocking::unblock(move || {
        let _here = OnPool::enter();
        job()
    })
}

/// Runs `job` on the pool, whoever waits for it or not.
pub(crate) fn spawn(job: impl FnOnce() + Send + 'static) {
    #[cfg(all(test, mmap_io_loom))]
    loom_pool::spawn(job);
    #[cfg(not(all(test, mmap_io_loom)))]
    task(job).detach();
}

/// Drops a value whose drop may block (the last close of a descriptor, the end of a large mapping)
/// on the pool: here, if this is one of its jobs.
pub(crate) fn release<T: Send + 'static>(value: T) {
    match ON_POOL.get() {
        true => drop(value),
        false => spawn(move || drop(value)),
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
    static ONE: OnceLock<bool> = OnceLock::new();
    *ONE.get_or_init(|| {
        // Read as the pool itself reads it: unset or not a number is its default of 500.
        let threads = std::env::var("BLOCKING_MAX_THREADS").ok();
        let threads = threads.and_then(|threads| threads.parse::<usize>().ok());
        threads.is_some_and(|threads| threads <= 1)
    })
}
