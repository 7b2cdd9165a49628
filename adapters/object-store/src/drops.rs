//! Drops on the pool what may block when it is dropped, and contains what panics there.

use std::ops::{Deref, DerefMut};
use std::panic::{catch_unwind, AssertUnwindSafe};

use blocking::unblock;

/// A value that is dropped on the pool, whichever thread lets it go: a file, whose close may write
/// it out or ask a server, or what owns one.
#[derive(Debug)]
pub(crate) struct DropOnPool<T: Send + 'static>(
    /// `None` only inside the drop.
    Option<T>,
);

impl<T: Send + 'static> DropOnPool<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(value))
    }
}

impl<T: Send + 'static> Deref for DropOnPool<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("present until the drop")
    }
}

impl<T: Send + 'static> DerefMut for DropOnPool<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("present until the drop")
    }
}

impl<T: Send + 'static> Drop for DropOnPool<T> {
    fn drop(&mut self) {
        let value = self.0.take();
        unblock(move || drop(value)).detach();
    }
}

/// A job that no thread has started. It may own values of the user, whose drop may panic: the pool
/// would end the process if that happened in the drop of a withdrawn job, so the panic ends here.
pub(crate) struct Unstarted<T>(Option<T>);

impl<T> Unstarted<T> {
    pub(crate) fn new(job: T) -> Self {
        Self(Some(job))
    }

    pub(crate) fn start(mut self) -> T {
        self.0.take().expect("present until it is started")
    }
}

impl<T> Drop for Unstarted<T> {
    fn drop(&mut self) {
        let withdrawn = self.0.take();
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(withdrawn))) {
            // Its drop could panic as well.
            std::mem::forget(payload);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread::{current, ThreadId};

    struct Tells(mpsc::Sender<ThreadId>);

    impl Drop for Tells {
        fn drop(&mut self) {
            self.0.send(current().id()).unwrap();
        }
    }

    #[test]
    fn drop_runs_on_another_thread() {
        let (sender, receiver) = mpsc::channel();
        drop(DropOnPool::new(Tells(sender.clone())));
        // Also if what owns it is a future that is given up before its first poll.
        let value = DropOnPool::new(Tells(sender));
        drop(async move { value.0.is_some() });
        for _ in 0..2 {
            assert_ne!(receiver.recv().unwrap(), current().id());
        }
        assert!(receiver.recv().is_err());
    }
}
