//! The bound on queued write data: back-pressure, first come, first served.

use std::sync::atomic::{AtomicUsize, Ordering};

use event_listener::{listener, Event};

/// Bytes that may be queued at a time, unless told otherwise.
const DEFAULT_LIMIT: usize = 64 << 20;

/// How many bytes of queued data a file may hold.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: AtomicUsize,
    used: AtomicUsize,
    /// Tasks that wait for room; nobody overtakes them.
    waiting: AtomicUsize,
    /// Held by the task whose turn it is to wait for room.
    turn: async_lock::Mutex<()>,
    /// Told when bytes are given back.
    room: Event,
}

impl Budget {
    pub(crate) fn new() -> Self {
        Self {
            limit: AtomicUsize::new(DEFAULT_LIMIT),
            used: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            turn: async_lock::Mutex::new(()),
            room: Event::new(),
        }
    }

    /// Changes the limit, for what is admitted from now on.
    pub(crate) fn set_limit(&self, bytes: usize) {
        self.limit.store(bytes, Ordering::Relaxed);
    }

    /// Bytes that are queued or about to be.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Waits until `bytes` more may be queued. More than the limit are admitted when nothing else
    /// is queued.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future takes nothing from the budget.
    pub(crate) async fn admit(&self, bytes: usize) -> Permit<'_> {
        // SeqCst here and in `release`: a task that joins the line and a release that looks for
        // one cannot both miss each other.
        if self.waiting.load(Ordering::SeqCst) == 0 {
            if let Some(permit) = self.try_admit(bytes) {
                return permit;
            }
        }
        let _place = Place::join(&self.waiting);
        let _turn = self.turn.lock().await;
        loop {
            listener!(self.room => listener);
            if let Some(permit) = self.try_admit(bytes) {
                return permit;
            }
            listener.await;
        }
    }

    /// Gives bytes back.
    pub(crate) fn release(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.used.fetch_sub(bytes, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.room.notify(1);
        }
    }

    fn try_admit(&self, bytes: usize) -> Option<Permit<'_>> {
        let limit = self.limit.load(Ordering::Relaxed);
        let fits = |used: usize| {
            let total = used.checked_add(bytes)?;
            (used == 0 || total <= limit).then_some(total)
        };
        self.used
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits)
            .ok()?;
        Some(Permit {
            budget: self,
            bytes,
        })
    }
}

/// Admitted bytes; given back when dropped, unless [`keep`](Self::keep) hands them on.
#[derive(Debug)]
#[must_use]
pub(crate) struct Permit<'a> {
    budget: &'a Budget,
    bytes: usize,
}

impl Permit<'_> {
    /// The bytes stay taken, until somebody calls [`Budget::release`] for them.
    pub(crate) fn keep(mut self) -> usize {
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}

/// A place in the line.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn join(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::SeqCst);
        Self(waiting)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(all(test, not(mmap_io_loom)))]
mod tests {
    use std::pin::pin;

    use futures_lite::future::{block_on, poll_once};

    use super::*;

    #[test]
    fn the_line_is_served_in_order_and_nobody_overtakes_it() {
        let budget = Budget::new();
        budget.set_limit(100);
        block_on(async {
            let first = budget.admit(80).await;
            let mut second = pin!(budget.admit(50));
            assert!(poll_once(&mut second).await.is_none());
            // It would fit, but somebody waits.
            let mut third = pin!(budget.admit(10));
            assert!(poll_once(&mut third).await.is_none());
            drop(first);
            assert!(poll_once(&mut third).await.is_none());
            let second = poll_once(&mut second).await.unwrap();
            let third = poll_once(&mut third).await.unwrap();
            assert_eq!(budget.used(), 60);
            drop((second, third));
            assert_eq!(budget.used(), 0);
        });
    }

    #[test]
    fn a_write_above_the_limit_is_admitted_alone() {
        let budget = Budget::new();
        budget.set_limit(100);
        block_on(async {
            let small = budget.admit(1).await;
            let mut large = pin!(budget.admit(1000));
            assert!(poll_once(&mut large).await.is_none());
            drop(small);
            assert_eq!(poll_once(&mut large).await.unwrap().keep(), 1000);
            assert_eq!(budget.used(), 1000);
        });
    }

    #[test]
    fn leaving_the_line_lets_the_next_one_go() {
        let budget = Budget::new();
        budget.set_limit(100);
        block_on(async {
            let first = budget.admit(100).await;
            let mut second = Box::pin(budget.admit(50));
            assert!(poll_once(&mut second).await.is_none());
            let mut third = pin!(budget.admit(50));
            assert!(poll_once(&mut third).await.is_none());
            drop(first);
            drop(second);
            assert!(poll_once(&mut third).await.is_some());
        });
    }
}
