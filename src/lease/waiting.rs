//! The readers that wait for a range. Each reader is told when a lease on some of its bytes has
//! ended. A caller that waits for the bytes of an atomic view counts as a reader here.
//!
//! A reader notes its range *before* it tries the table once more. The thread that ends a lease
//! tells only the readers whose range the lease overlaps. One event for the whole file is the
//! rejected alternative: each write would wake every reader that waits for other bytes, in vain.
//!
//! No reader is missed:
//!
//! 1. The reader was refused under the table's lock before the lease ended there. The reader had
//!    noted its range by then, so the thread that ends the lease finds it.
//! 2. The reader tries the table after the lease has ended, and is not refused.
//!
//! The set has a lock of its own, the last in the order of locks, so that waiting readers do not
//! delay readers that need not wait.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use super::intervals::{Intervals, Key};
use crate::range::ByteRange;
use crate::sync::{lock, AtomicU64, Mutex, Ordering};
use crate::sys;
use crate::wakers::{Event, EventListener};

/// The readers that wait for bytes of one file.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// Number of ranges in the set. Relaxed: a reader counts itself before it takes the table's
    /// lock, and a thread that ends a lease loads the count under that lock, after the reader.
    count: AtomicU64,
    /// An event for each reader.
    ranges: Mutex<Intervals<Option<Arc<Event>>>>,
}

impl Waiting {
    pub(super) fn new() -> Self {
        Self {
            count: AtomicU64::new(0),
            ranges: Mutex::new(Intervals::new()),
        }
    }

    /// Notes that a reader waits for `range`, which is not empty.
    pub(super) fn listen(&self, range: ByteRange) -> Waiter<'_> {
        let event = Arc::new(Event::new());
        let told = event.listen();
        let mut ranges = lock(&self.ranges);
        let key = ranges.insert(range, Some(event));
        self.count.fetch_add(1, Ordering::Relaxed);
        let noted = Noted { waiting: self, key };
        Waiter {
            told,
            _noted: noted,
        }
    }

    /// Returns whether no reader waits that has been refused already. The caller holds the table's
    /// lock.
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Returns the events of the readers that wait for a byte of `ended`.
    pub(super) fn overlapping(&self, ended: &[ByteRange]) -> Vec<Arc<Event>> {
        let mut events = Vec::new();
        if !ended.is_empty() {
            let ranges = lock(&self.ranges);
            for range in ended {
                ranges.any_overlap(*range, |event| {
                    events.extend(event.clone());
                    false
                });
            }
        }
        events
    }
}

/// Resolves when the reader is told.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub(crate) struct Waiter<'a> {
    told: EventListener,
    _noted: Noted<'a>,
}

impl Waiter<'_> {
    /// Blocks the thread until the reader is told, or until `deadline`.
    pub(super) fn wait(self, deadline: Option<Instant>) {
        self.told.wait(deadline);
    }
}

impl Future for Waiter<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.told).poll(context)
    }
}

/// A range in the set, removed when dropped.
#[derive(Debug)]
struct Noted<'a> {
    waiting: &'a Waiting,
    key: Key,
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        if sys::is_forked() {
            // In a forked child the lock may never be free, and no reader is told any more.
            return;
        }
        let mut ranges = lock(&self.waiting.ranges);
        let event = ranges.remove(self.key);
        self.waiting.count.fetch_sub(1, Ordering::Relaxed);
        drop(ranges);
        drop(event);
    }
}
