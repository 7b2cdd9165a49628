//! Gives the other tasks of a thread a turn when operations complete as soon as they are polled.
//!
//! A task that awaits one ready future after another never returns to its executor, and the other
//! tasks of the thread starve. This works on every runtime: each thread counts the operations that
//! completed on it without waiting, and when the count is full, the next such future returns
//! `Pending` once before it resolves.

use std::cell::Cell;
use std::future::{poll_fn, Future};
use std::pin::pin;

use futures_lite::future::yield_now;

use crate::error::{Result, Subject};
use crate::trace;

/// How many operations in a row may complete on a thread before one of them yields to the executor.
const OPERATIONS: u32 = 128;

/// How many bytes operations may copy on a thread before one of them yields to the executor.
const COPIED: usize = 64 << 10;

thread_local! {
    /// Operations that completed on this thread since one last waited there.
    static COMPLETED: Cell<u32> = const { Cell::new(0) };
    /// Bytes copied on this thread since an operation last waited there.
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

/// Runs `operation`. If it completes without waiting, it is counted; if the thread's count is then
/// full, the future yields once before it resolves.
///
/// The yield comes last, so that the operation is always submitted at the first poll.
async fn fair<T>(operation: impl Future<Output = T>) -> T {
    let mut operation = pin!(operation);
    let mut has_waited = false;
    let output = poll_fn(|context| {
        let polled = operation.as_mut().poll(context);
        has_waited |= polled.is_pending();
        polled
    })
    .await;
    match has_waited {
        true => begin_anew(),
        false if is_full() => {
            begin_anew();
            yield_now().await;
        }
        false => {}
    }
    output
}

/// Runs one operation of the public API: [fairly](fair), in a [span](trace), and with the
/// operation's name in an error that has no context yet.
pub(crate) async fn operation<T>(
    name: &'static str,
    subject: impl Into<Subject> + Clone,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let done = trace::operation(name, &subject, fair(work)).await;
    done.map_err(|error| error.during(name, subject))
}

/// Counts bytes that an operation copied on the thread that polls it.
pub(crate) fn copied(bytes: usize) {
    BYTES.set(BYTES.get().saturating_add(bytes));
}

/// Counts a step of a longer operation, which has worked on `bytes` bytes on the thread that polls.
/// If the thread's count is full then, the future yields once.
#[cfg(feature = "iterator")]
pub(crate) async fn step(bytes: usize) {
    copied(bytes);
    if is_full() {
        begin_anew();
        yield_now().await;
    }
}

fn is_full() -> bool {
    let completed = COMPLETED.get() + 1;
    COMPLETED.set(completed);
    completed >= OPERATIONS || BYTES.get() >= COPIED
}

fn begin_anew() {
    COMPLETED.set(0);
    BYTES.set(0);
}

#[cfg(all(test, not(mmap_io_loom)))]
mod tests {
    use std::future::{pending, ready};

    use futures_lite::future::{block_on, poll_once};

    use super::*;

    /// Polls a future to completion, and returns the number of polls.
    fn polls(operation: impl Future<Output = ()>) -> usize {
        let mut operation = pin!(operation);
        let mut polls = 1;
        while block_on(poll_once(&mut operation)).is_none() {
            polls += 1;
        }
        polls
    }

    #[test]
    fn full_count_of_operations_yields_once() {
        let yields: Vec<usize> = (0..3 * OPERATIONS)
            .map(|_| polls(fair(ready(()))) - 1)
            .collect();
        assert_eq!(yields.iter().sum::<usize>(), 3);
        let one_round = OPERATIONS as usize;
        assert_eq!(yields[..one_round].iter().sum::<usize>(), 1);
    }

    #[test]
    fn full_count_of_copied_bytes_yields_once() {
        let operation = |bytes| {
            fair(async move {
                copied(bytes);
            })
        };
        assert_eq!(polls(operation(COPIED)), 2);
        assert_eq!(polls(operation(COPIED - 1)), 1);
        assert_eq!(polls(operation(1)), 2);
    }

    #[test]
    fn wait_resets_count() {
        let ready_ones = |count| {
            (0..count)
                .map(|_| polls(fair(ready(()))) - 1)
                .sum::<usize>()
        };
        assert_eq!(ready_ones(OPERATIONS - 1), 0);
        assert_eq!(polls(fair(yield_now())), 2);
        assert_eq!(ready_ones(OPERATIONS - 1), 0);
        // A future that is dropped while it waits is not counted.
        assert!(block_on(poll_once(fair(pending::<()>()))).is_none());
        assert_eq!(ready_ones(1), 1);
    }
}
