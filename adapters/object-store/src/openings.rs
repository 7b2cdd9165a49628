//! Lets one task at a time open an object, so that the tasks that ask for it together share a map.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_lock::MutexGuardArc;

/// The objects that are being opened.
#[derive(Debug, Default)]
pub(crate) struct Openings {
    locks: Mutex<HashMap<Arc<str>, Arc<async_lock::Mutex<()>>>>,
}

/// The right to open an object, until it is dropped.
#[must_use]
pub(crate) struct Turn<'a> {
    openings: &'a Openings,
    location: Arc<str>,
    /// `None` only inside the drop.
    lock: Option<Arc<async_lock::Mutex<()>>>,
    guard: Option<MutexGuardArc<()>>,
}

impl Openings {
    /// Waits until no other task opens the object. Dropping the future leaves nothing behind.
    pub(crate) async fn turn(&self, location: &str) -> Turn<'_> {
        let (mut turn, lock) = {
            let location: Arc<str> = location.into();
            let mut locks = self.locks();
            let lock = Arc::clone(locks.entry(Arc::clone(&location)).or_default());
            let turn = Turn {
                openings: self,
                location,
                lock: Some(Arc::clone(&lock)),
                guard: None,
            };
            (turn, lock.lock_arc())
        };
        turn.guard = Some(lock.await);
        turn
    }

    fn locks(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<async_lock::Mutex<()>>>> {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.guard.take());
        let mut locks = self.openings.locks();
        // Under the lock no task gets it from the table, and no other turn gives up its own.
        self.lock = None;
        if locks
            .get(&self.location)
            .is_some_and(|lock| Arc::strong_count(lock) == 1)
        {
            locks.remove(&self.location);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, poll_once};
    use std::pin::pin;

    #[test]
    fn turns_leave_nothing_behind() {
        let openings = Openings::default();
        block_on(async {
            let first = openings.turn("a").await;
            let _other = openings.turn("b").await;
            let mut second = pin!(openings.turn("a"));
            assert!(poll_once(&mut second).await.is_none());
            {
                let mut given_up = pin!(openings.turn("a"));
                assert!(poll_once(&mut given_up).await.is_none());
            }
            drop(first);
            assert_eq!(openings.locks().len(), 2);
            drop(second.await);
            assert_eq!(openings.locks().len(), 1);
        });
        assert!(openings.locks().is_empty());
    }
}
