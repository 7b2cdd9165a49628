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
}

impl<T> Completion<T> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(State::Waiting(None)))
    }

    /// Delivers the outcome, once; later ones are dropped. Returns whom to wake, after every lock
    /// is released.
    #[must_use]
    pub(crate) fn complete(&self, outcome: T) -> Option<Waker> {
        let mut state = lock(&self.0);
        match &mut *state {
            State::Waiting(waker) => {
                let waker = waker.take();
                *state = State::Done(outcome);
                waker
            }
            State::Done(_) | State::Taken => {
                drop(state);
                drop(outcome);
                None
            }
        }
    }

    /// Nobody waits any more: lets go of the waker, here, where no lock is held.
    pub(crate) fn abandon(&self) {
        let old = match &mut *lock(&self.0) {
            State::Waiting(waker) => waker.take(),
            State::Done(_) | State::Taken => None,
        };
        contain(|| drop(old));
    }

    /// The outcome, when it is there.
    ///
    /// # Panics
    ///
    /// When polled again after that.
    pub(crate) fn poll(&self, context: &mut Context<'_>) -> Poll<T> {
        let mut state = lock(&self.0);
        match &mut *state {
            State::Waiting(waker) => {
                let same = waker
                    .as_ref()
                    .is_some_and(|waker| waker.will_wake(context.waker()));
                let old = if same {
                    None
                } else {
                    waker.replace(context.waker().clone())
                };
                // A waker's drop is the executor's code.
                drop(state);
                drop(old);
                Poll::Pending
            }
            State::Done(_) => match std::mem::replace(&mut *state, State::Taken) {
                State::Done(outcome) => Poll::Ready(outcome),
                State::Waiting(_) | State::Taken => unreachable!("matched above"),
            },
            State::Taken => panic!("a future was polled after it had completed"),
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
    panic::catch_unwind(AssertUnwindSafe(code)).ok()
}
