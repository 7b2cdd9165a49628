//! Gives the other tasks of a thread a turn when operations complete as soon as they are polled.
//!
//! A task that awaits one ready future after another never returns to its executor, and the other
//! tasks of the thread starve. This works on every runtime: each thread counts the operations that
//! completed on it without waiting, and when the count is full, the next such future returns
//! `Pending` once before it resolves.
//!
//! Mostly the future wakes itself. That is cheap, and serves the tasks that are ready, but not always
//! the timers and sockets of the thread: tokio's one-threaded runtime looks at them when it has no
//! task to run, or after it has run 61. So in a long row of yields some are woken from the pool: until
//! then the thread has nothing to run.

use std::cell::Cell;
use std::future::{poll_fn, Future};
use std::pin::pin;
use std::time::{Duration, Instant};

use crate::completion::contain;
use crate::error::{MmapIoError, Result, Subject};
use crate::offload::{has_spare_threads, spawn};
use crate::trace;
use crate::wakers::yield_by;

/// How many operations in a row may complete on a thread before one of them yields to the executor.
const OPERATIONS: u32 = 128;

/// How many bytes operations may copy on a thread before one of them yields to the executor.
const COPIED: u64 = 64 << 10;

/// How many bytes of a view count as one that is copied: the caller reads them between operations.
const VIEWED: u64 = 16;

/// How long a row of yields lasts until one of them is woken from the pool, which takes some 30 us.
const ROW: Duration = Duration::from_micros(500);

/// A yield so long after the one before begins a new row: in between, the thread had other work, or
/// none.
const PAUSE: Duration = Duration::from_millis(5);

thread_local! {
    /// Operations that completed on this thread since one last waited there.
    static COMPLETED: Cell<u32> = const { Cell::new(0) };
    /// Bytes copied on this thread since an operation last waited there.
    static BYTES: Cell<u64> = const { Cell::new(0) };
    /// The times of the first and of the last yield of a row on this thread.
    static YIELDS: Cell<Option<(Instant, Instant)>> = const { Cell::new(None) };
}

/// Runs `operation`. If it completes without waiting, it is counted; if the thread's count is then
/// full, the future yields once before it resolves.
///
/// The yield comes last, so that the operation is always submitted at the first poll. An error of
/// which its caller is perhaps the only one to be told comes without it, since a future may be
/// dropped while it yields; then the next operation of the thread yields.
async fn fair<T>(operation: impl Future<Output = Result<T>>) -> Result<T> {
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
        false if is_full() && !tells_of_a_loss(&output) => yield_once().await,
        false => {}
    }
    output
}

fn tells_of_a_loss<T>(output: &Result<T>) -> bool {
    use MmapIoError::{Faulted, Truncated};
    matches!(output, Err(Truncated { .. } | Faulted { .. }))
}

/// Begins the count anew, and returns `Pending` once.
async fn yield_once() {
    begin_anew();
    yield_by(|waker| {
        let mut is_on_pool = false;
        if ends_row(Instant::now()) && has_spare_threads() {
            let waker = waker.clone();
            let wake = move || {
                let _ = contain(|| waker.wake());
            };
            is_on_pool = spawn(wake).is_ok();
        }
        if !is_on_pool {
            contain(|| waker.wake_by_ref());
        }
    })
    .await;
}

/// Notes a yield, and returns whether the row of them has become so long that it is to be woken from
/// the pool.
fn ends_row(now: Instant) -> bool {
    let first = match YIELDS.get() {
        Some((first, last)) if now - last < PAUSE => first,
        _ => now,
    };
    let is_long = now - first >= ROW;
    YIELDS.set(Some((if is_long { now } else { first }, now)));
    is_long
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
pub(crate) fn copied(bytes: u64) {
    BYTES.set(BYTES.get().saturating_add(bytes));
}

/// Counts bytes that were in memory when the caller asked for a view of them.
pub(crate) fn viewed(bytes: u64) {
    copied(bytes / VIEWED);
}

/// Counts a step of a longer operation, which has worked on `bytes` bytes on the thread that polls.
/// If the thread's count is full then, the future yields once.
#[cfg(feature = "iterator")]
pub(crate) async fn step(bytes: u64) {
    copied(bytes);
    if is_full() {
        yield_once().await;
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
    use std::io::{Error, ErrorKind};

    use futures_lite::future::{block_on, poll_once, yield_now};

    use super::*;

    /// Polls a future to completion, and returns the number of polls.
    fn polls(operation: impl Future<Output = Result<()>>) -> usize {
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
            .map(|_| polls(fair(ready(Ok(())))) - 1)
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
                Ok(())
            })
        };
        assert_eq!(polls(operation(COPIED)), 2);
        assert_eq!(polls(operation(COPIED - 1)), 1);
        assert_eq!(polls(operation(1)), 2);
    }

    #[test]
    fn views_count_less_than_copies() {
        let operation = |bytes| {
            fair(async move {
                viewed(bytes);
                Ok(())
            })
        };
        assert_eq!(polls(operation(VIEWED * COPIED)), 2);
        assert_eq!(polls(operation(VIEWED * (COPIED - 1))), 1);
        assert_eq!(polls(operation(VIEWED)), 2);
    }

    #[test]
    fn long_row_ends_and_begins_anew() {
        let start = Instant::now();
        let at = |micros| ends_row(start + Duration::from_micros(micros));
        assert!(!at(0));
        assert!(!at(499));
        assert!(at(500));
        // The next row begins there.
        assert!(!at(999));
        assert!(at(1000));
        // A pause ends the row.
        assert!(!at(6000));
        assert!(!at(6499));
        assert!(at(6500));
        assert!(at(11_400));
    }

    #[test]
    fn error_of_a_loss_leaves_the_yield_to_the_next() {
        for tells in [true, false] {
            for _ in 1..OPERATIONS {
                assert_eq!(polls(fair(ready(Ok(())))), 1);
            }
            let error = match tells {
                true => MmapIoError::Faulted { offset: 0 },
                false => Error::from(ErrorKind::OutOfMemory).into(),
            };
            assert_eq!(polls(fair(ready(Err(error)))), 1 + usize::from(!tells));
            assert_eq!(polls(fair(ready(Ok(())))), 1 + usize::from(tells));
            begin_anew();
        }
    }

    #[test]
    fn wait_resets_count() {
        let ready_ones = |count| {
            (0..count)
                .map(|_| polls(fair(ready(Ok(())))) - 1)
                .sum::<usize>()
        };
        assert_eq!(ready_ones(OPERATIONS - 1), 0);
        let waits = async {
            yield_now().await;
            Ok(())
        };
        assert_eq!(polls(fair(waits)), 2);
        assert_eq!(ready_ones(OPERATIONS - 1), 0);
        // A future that is dropped while it waits is not counted.
        assert!(block_on(poll_once(fair(pending::<Result<()>>()))).is_none());
        assert_eq!(ready_ones(1), 1);
    }
}
