//! Losses: written bytes that have gone before they were durable, and not because a flush has
//! failed. Another process has cut them off.
//!
//! The error does not stick to the file, since the bytes that are left can be made durable. It
//! goes to
//!
//! - the waiters of each flush, until a future has taken it: a future may be dropped when the error
//!   has been delivered, and then no caller knows of it;
//! - every waiter whose bytes were written before the loss, even if another future has taken it:
//!   its bytes may be the ones that have gone, and the flush that it waits for may find nothing to
//!   do.
//!
//! So a caller may be told of one loss several times, but never not at all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::error::MmapIoError;

/// The losses of one file. The last one is kept: a waiter that is told of it need not be told of an
/// earlier one too.
#[derive(Debug, Default)]
pub(crate) struct Losses(Option<Arc<Loss>>);

/// A loss of written bytes.
#[derive(Debug)]
pub(crate) struct Loss {
    /// The number of the loss; the first is 1.
    number: u64,
    error: MmapIoError,
    /// A future has taken the error.
    is_told: AtomicBool,
}

impl Losses {
    /// Notes a loss, of which no caller has been told.
    pub(crate) fn add(&mut self, error: MmapIoError) {
        self.0 = Some(Arc::new(Loss {
            number: self.count() + 1,
            error,
            is_told: AtomicBool::new(false),
        }));
    }

    /// Returns the number of losses so far.
    pub(crate) fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, |loss| loss.number)
    }

    /// Returns whether no future has taken the error of the last loss yet.
    pub(crate) fn is_untold(&self) -> bool {
        self.0.as_ref().is_some_and(|loss| loss.is_untold())
    }

    /// Returns the last loss.
    pub(crate) fn last(&self) -> Option<Arc<Loss>> {
        self.0.clone()
    }
}

impl Loss {
    /// Returns whether a waiter is to be told, whose bytes were written when there had been `before`
    /// losses.
    pub(super) fn concerns(&self, before: u64) -> bool {
        before < self.number || self.is_untold()
    }

    pub(super) fn error(&self) -> MmapIoError {
        self.error.clone()
    }

    fn is_untold(&self) -> bool {
        // Relaxed: if the store is not seen yet, the loss is told once more.
        !self.is_told.load(Ordering::Relaxed)
    }
}

/// The loss because of which a waiter fails, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Lost(OnceLock<Arc<Loss>>);

impl Lost {
    pub(crate) const fn nothing() -> Self {
        Self(OnceLock::new())
    }

    /// Notes the loss, before the waiter is told.
    pub(super) fn set(&self, loss: &Arc<Loss>) {
        // A waiter is told once.
        let _ = self.0.set(loss.clone());
    }

    /// Notes that the future of the waiter has taken its result.
    pub(crate) fn taken(&self) {
        if let Some(loss) = self.0.get() {
            loss.is_told.store(true, Ordering::Relaxed);
        }
    }
}
