//! A one-shot channel: a pool thread hands one outcome to the future that waits for it.

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
    /// The future has taken the outcome.
    Taken,
    /// The future was dropped before it took the outcome.
    Abandoned,
}

impl<T> Completion<T> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(State::Waiting(None)))
    }

    /// Creates the completion of a future that has been polled already, with `waker`.
    pub(crate) fn to_wake(waker: Waker) -> Self {
        Self(Mutex::new(State::Waiting(Some(waker))))
    }

    /// Takes the waker, so that the caller can have the future polled before there is an outcome.
    /// The caller wakes it after it has released every lock.
    #[must_use]
    pub(crate) fn nudge(&self) -> Option<Waker> {
        match &mut *lock(&self.0) {
            State::Waiting(waker) => waker.take(),
            State::Done(_) | State::Taken | State::Abandoned => None,
        }
    }

    /// Delivers the outcome; later outcomes are dropped. Returns the waker, which the caller wakes
    /// after it has released every lock.
    #[must_use]
    pub(crate) fn complete(&self, outcome: T) -> Option<Waker> {
        self.deliver(outcome, |outcome| outcome)
    }

    /// Delivers what `hand_over` makes of `outcome`, like [`complete`](Self::complete). It is called
    /// under the lock, and only if a future waits. So its effect comes before the drop of the future,
    /// or not at all.
    #[must_use]
    pub(crate) fn deliver<O>(&self, outcome: O, hand_over: impl FnOnce(O) -> T) -> Option<Waker> {
        let mut state = lock(&self.0);
        match &mut *state {
            State::Waiting(waker) => {
                let waker = waker.take();
                *state = State::Done(hand_over(outcome));
                waker
            }
            State::Done(_) | State::Taken | State::Abandoned => {
                drop(state);
                drop(outcome);
                None
            }
        }
    }

    /// Notes that the future is being dropped. Drops its waker, and an outcome that it has not
    /// taken, after the lock is released.
    pub(crate) fn abandon(&self) {
        let old = std::mem::replace(&mut *lock(&self.0), State::Abandoned);
        contain(|| drop(old));
    }

    /// Returns the outcome when it is there. Wakers run code of the executor, so they are cloned
    /// and dropped outside the lock.
    ///
    /// # Panics
    ///
    /// If polled again after it has returned the outcome.
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

/// Wakes every waker. Wakers run code of the executor: if one panics, the rest are still woken and
/// the caller goes on.
pub(crate) fn wake_all(wakers: &mut Vec<Waker>) {
    for waker in wakers.drain(..) {
        contain(|| waker.wake());
    }
}

/// Runs foreign code (a waker, a user's destructor) and catches its panic, so that our own work is
/// not left half done. The panic hook has reported the panic by then.
pub(crate) fn contain<T>(code: impl FnOnce() -> T) -> Option<T> {
    if cfg!(all(test, mmap_io_loom)) {
        // In a loom model a panic means that the model fails, so it is not caught.
        return Some(code());
    }
    match panic::catch_unwind(AssertUnwindSafe(code)) {
        Ok(value) => Some(value),
        Err(payload) => {
            // The payload of the panic may panic in its drop, and so may the payload of that panic.
            if let Err(again) = panic::catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                std::mem::forget(again);
            }
            None
        }
    }
}
