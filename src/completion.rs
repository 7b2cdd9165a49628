//! One value handed from a pool thread to the future that waits for it.

use std::panic::{self, AssertUnwindSafe};
use std::task::{Context, Poll, Waker};

use crate::sync::{lock, Mutex};

/// A slot for the outcome of an operation, and the waker of its one future.
#[derive(Debug)]
pub(crate) struct Completion<T>(Mutex<State<T>>);

#[derive(Debug)]
enum State<T> {
    Waiting(Option<Waker>),
    Done(T),
    /// The future has it.
    Taken,
    /// The future was dropped.
    Abandoned,
}

impl<T> Completion<T> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(State::Waiting(None)))
    }

    /// One whose future has been polled already, with that waker.
    pub(crate) fn to_wake(waker: Waker) -> Self {
        Self(Mutex::new(State::Waiting(Some(waker))))
    }

    /// Returns whom to wake, after every lock is released, to be polled again before there is an
    /// outcome.
    #[must_use]
    pub(crate) fn nudge(&self) -> Option<Waker> {
        match &mut *lock(&self.0) {
            State::Waiting(waker) => waker.take(),
            State::Done(_) | State::Taken | State::Abandoned => None,
        }
    }

    /// Delivers the outcome, once; later ones are dropped. Returns whom to wake, after every lock
    /// is released.
    #[must_use]
    pub(crate) fn complete(&self, outcome: T) -> Option<Waker> {
        self.deliver(outcome, |_| ())
    }

    /// The same; `delivered` is told of the outcome, under the lock, if a future waits for it. So
    /// what it does comes before the drop of the future, or not at all.
    #[must_use]
    pub(crate) fn deliver(&self, outcome: T, delivered: impl FnOnce(&T)) -> Option<Waker> {
        let mut state = lock(&self.0);
        match &mut *state {
            State::Waiting(waker) => {
                let waker = waker.take();
                delivered(&outcome);
                *state = State::Done(outcome);
                waker
            }
            State::Done(_) | State::Taken | State::Abandoned => {
                drop(state);
                drop(outcome);
                None
            }
        }
    }

    /// The future is dropped: lets go of its waker, and of an outcome that it has not taken, here,
    /// where no lock is held.
    pub(crate) fn abandon(&self) {
        let old = std::mem::replace(&mut *lock(&self.0), State::Abandoned);
        contain(|| drop(old));
    }

    /// The outcome, when it is there. Wakers are the executors' code: they are cloned and dropped
    /// outside the lock.
    ///
    /// # Panics
    ///
    /// When polled again after that.
    pub(crate) fn poll(&self, context: &mut Context<'_>) -> Poll<T> {
        let mut new = None;
        loop {
            let mut state = lock(&self.0);
            match &mut *state {
                State::Waiting(Some(waker)) if waker.will_wake(context.waker()) => {
                    drop(state);
                    contain(|| drop(new));
                    return Poll::Pending;
                }
                State::Waiting(waker) if new.is_some() => {
                    let old = std::mem::replace(waker, new);
                    drop(state);
                    contain(|| drop(old));
                    return Poll::Pending;
                }
                State::Waiting(_) => {
                    drop(state);
                    new = Some(context.waker().clone());
                }
                State::Done(_) => {
                    let done = std::mem::replace(&mut *state, State::Taken);
                    drop(state);
                    contain(|| drop(new));
                    match done {
                        State::Done(outcome) => return Poll::Ready(outcome),
                        _ => unreachable!("matched above"),
                    }
                }
                State::Taken | State::Abandoned => {
                    panic!("a future was polled after it had completed")
                }
            }
        }
    }
}

/// Wakes every waker. They are the executors' code: if one panics, the others are still woken and
/// the caller goes on.
pub(crate) fn wake_all(wakers: &mut Vec<Waker>) {
    for waker in wakers.drain(..) {
        contain(|| waker.wake());
    }
}

/// Runs code that is not ours, where a panic of it must not leave our work half done. The panic
/// hook has reported it.
pub(crate) fn contain<T>(code: impl FnOnce() -> T) -> Option<T> {
    if cfg!(all(test, mmap_io_loom)) {
        // There a panic is a model that fails.
        return Some(code());
    }
    match panic::catch_unwind(AssertUnwindSafe(code)) {
        Ok(value) => Some(value),
        Err(payload) => {
            // What was thrown may panic in its drop, and so may what that throws.
            if let Err(again) = panic::catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                std::mem::forget(again);
            }
            None
        }
    }
}
