//! A thread pool for the loom models: a few threads that take jobs in order, and end with the
//! model.
//!
//! A model in which a thread waits forever fails: loom reports a deadlock.

use std::collections::VecDeque;
use std::future::Future;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::Condvar;
use loom::thread;

use crate::sync::{lock, Mutex};

loom::lazy_static! {
    /// The pool of one execution of a model.
    static ref POOL: Pool = Pool::new();
}

struct Pool {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    jobs: VecDeque<Box<dyn FnOnce() + Send>>,
    /// The model has ended: only jobs add further jobs.
    closed: bool,
}

impl Pool {
    fn new() -> Self {
        Self {
            state: Mutex::new(State {
                jobs: VecDeque::new(),
                closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn work(&self) {
        let mut state = lock(&self.state);
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = lock(&self.state);
            } else if state.closed {
                return;
            } else {
                state = wait(&self.changed, state);
            }
        }
    }
}

/// Runs `job` on the pool, as [`spawn`](super::spawn) does.
pub(super) fn spawn(job: impl FnOnce() + Send + 'static) {
    lock(&POOL.state).jobs.push_back(Box::new(job));
    POOL.changed.notify_one();
}

/// Checks every interleaving of a model with `threads` threads of the pool. Runs the closure that
/// the model returns after all jobs have ended.
pub(crate) fn check<End: FnOnce()>(
    threads: usize,
    model: impl Fn() -> End + Send + Sync + 'static,
) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(2);
    builder.check(move || {
        let pool: &'static Pool = &POOL;
        let threads: Vec<_> = (0..threads)
            .map(|_| thread::spawn(|| pool.work()))
            .collect();
        let end = model();
        lock(&pool.state).closed = true;
        pool.changed.notify_all();
        for thread in threads {
            thread.join().unwrap();
        }
        end();
    });
}

/// Waits for a future as an executor does: polls it again only after it was woken.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    // If the wait never ends, loom panics in here. A future that was dropped by that panic would
    // continue to run parts of the model.
    let mut future = ManuallyDrop::new(Box::pin(future));
    let parker = Arc::new(Parker {
        woken: Mutex::new(false),
        changed: Condvar::new(),
    });
    let waker = Waker::from(parker.clone());
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = Pin::new(&mut *future).poll(&mut context) {
            drop(ManuallyDrop::into_inner(future));
            return output;
        }
        let mut woken = lock(&parker.woken);
        while !std::mem::take(&mut *woken) {
            woken = wait(&parker.changed, woken);
        }
    }
}

struct Parker {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        *lock(&self.woken) = true;
        self.changed.notify_one();
    }
}

fn wait<'a, T>(
    changed: &Condvar,
    guard: loom::sync::MutexGuard<'a, T>,
) -> loom::sync::MutexGuard<'a, T> {
    changed
        .wait(guard)
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Code that only one thread at a time may run. Loom reports two runs that are not ordered.
pub(crate) struct Alone(UnsafeCell<()>);

// SAFETY: the cell holds `()`, so there are no bytes to race on; loom checks the order of accesses.
unsafe impl Sync for Alone {}

impl Alone {
    pub(crate) fn new() -> Self {
        Self(UnsafeCell::new(()))
    }

    pub(crate) fn run<T>(&self, code: impl FnOnce() -> T) -> T {
        self.0.with_mut(|_| code())
    }
}
