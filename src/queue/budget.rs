//! The bound on queued write data: back-pressure, first come, first served.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use crate::completion::contain;
use crate::sync::{lock, Mutex};

/// Bytes that may be queued at a time, unless told otherwise.
const DEFAULT_LIMIT: usize = 64 << 20;

/// How many bytes of queued data a file may hold.
///
/// The line is kept here, and not by a lock whose holder waits for room: such locks let a newcomer
/// in before the one who was told that it is his turn.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: AtomicUsize,
    used: AtomicUsize,
    /// Length of the line.
    waiting: AtomicUsize,
    line: Mutex<Line>,
}

/// Tasks that wait for room, in the order in which they came; nobody overtakes them.
#[derive(Debug)]
struct Line {
    places: VecDeque<(u64, Waker)>,
    /// Places that were taken.
    taken: u64,
}

impl Line {
    /// Where a place stands; their numbers go up.
    fn position(&self, number: u64) -> Option<usize> {
        self.places
            .binary_search_by_key(&number, |place| place.0)
            .ok()
    }
}

impl Budget {
    pub(crate) fn new() -> Self {
        Self {
            limit: AtomicUsize::new(DEFAULT_LIMIT),
            used: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            line: Mutex::new(Line {
                places: VecDeque::new(),
                taken: 0,
            }),
        }
    }

    /// Changes the limit, for what is admitted from now on.
    pub(crate) fn set_limit(&self, bytes: usize) {
        self.limit.store(bytes, Ordering::Relaxed);
        self.wake_first();
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
        let mut place = Place {
            budget: self,
            number: None,
        };
        std::future::poll_fn(|context| place.poll(bytes, context)).await
    }

    /// Gives bytes back.
    pub(crate) fn release(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        // SeqCst, as in `Place::poll`: a task that joins the line and a release that looks for one
        // cannot both miss each other.
        self.used.fetch_sub(bytes, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.wake_first();
        }
    }

    fn wake_first(&self) {
        let first = {
            let line = lock(&self.line);
            line.places.front().map(|(_, waker)| waker.clone())
        };
        if let Some(waker) = first {
            // The executor's code.
            contain(|| waker.wake());
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

/// A place in the line, if one had to be taken.
struct Place<'a> {
    budget: &'a Budget,
    number: Option<u64>,
}

impl<'a> Place<'a> {
    fn poll(&mut self, bytes: usize, context: &mut Context<'_>) -> Poll<Permit<'a>> {
        let budget = self.budget;
        if self.number.is_none() && budget.waiting.load(Ordering::SeqCst) == 0 {
            if let Some(permit) = budget.try_admit(bytes) {
                return Poll::Ready(permit);
            }
        }
        let waker = context.waker().clone();
        let mut line = lock(&budget.line);
        // In the line before the look at what is used: see `release`.
        let (is_first, old) = match self.number {
            None => {
                self.number = Some(line.taken);
                let place = (line.taken, waker);
                line.taken += 1;
                line.places.push_back(place);
                budget.waiting.fetch_add(1, Ordering::SeqCst);
                (line.places.len() == 1, None)
            }
            Some(number) => {
                let at = line.position(number).expect("it was not left yet");
                (
                    at == 0,
                    Some(std::mem::replace(&mut line.places[at].1, waker)),
                )
            }
        };
        let permit = match is_first {
            true => budget.try_admit(bytes),
            false => None,
        };
        drop(line);
        // A waker's drop is the executor's code, as its wake is.
        drop(old);
        match permit {
            Some(permit) => {
                self.leave();
                Poll::Ready(permit)
            }
            None => Poll::Pending,
        }
    }

    /// Lets the next one look for room.
    fn leave(&mut self) {
        let Some(number) = self.number.take() else {
            return;
        };
        let left = {
            let mut line = lock(&self.budget.line);
            let at = line.position(number);
            self.budget.waiting.fetch_sub(1, Ordering::SeqCst);
            at.and_then(|at| Some((at, line.places.remove(at)?)))
        };
        if let Some((0, _)) = left {
            self.budget.wake_first();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.leave();
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
    fn a_newcomer_does_not_overtake_one_who_was_told_that_it_is_his_turn() {
        let budget = Budget::new();
        budget.set_limit(100);
        block_on(async {
            let first = budget.admit(100).await;
            let mut second = pin!(budget.admit(10));
            assert!(poll_once(&mut second).await.is_none());
            let mut third = pin!(budget.admit(10));
            assert!(poll_once(&mut third).await.is_none());
            drop(first);
            let _second = poll_once(&mut second).await.unwrap();
            assert!(poll_once(budget.admit(10)).await.is_none());
            assert!(poll_once(&mut third).await.is_some());
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
