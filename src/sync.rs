//! Atomics, fences and mutexes of the model-checked protocols: from the standard library, or from
//! loom when the models are built.

#[cfg(all(test, mmap_io_loom))]
pub(crate) use loom::sync::atomic::{fence, AtomicU32, AtomicU64};
#[cfg(all(test, mmap_io_loom))]
pub(crate) use loom::sync::Mutex;
#[cfg(not(all(test, mmap_io_loom)))]
pub(crate) use std::sync::atomic::{fence, AtomicU32, AtomicU64};
#[cfg(not(all(test, mmap_io_loom)))]
pub(crate) use std::sync::Mutex;

pub(crate) use std::sync::atomic::Ordering;

use std::sync::{PoisonError, TryLockError};

/// Locks `mutex`, whether or not a thread panicked while it held it.
///
/// This is sound because all data under our locks is either valid after each statement, or repaired
/// by a guard when a panic unwinds.
pub(crate) fn lock<M: Lock>(mutex: &M) -> M::Guard<'_> {
    mutex.lock_ignoring_poison()
}

/// Locks `mutex` as [`lock`] does, if no thread has locked it.
pub(crate) fn try_lock<M: Lock>(mutex: &M) -> Option<M::Guard<'_>> {
    mutex.try_lock_ignoring_poison()
}

/// A mutex of the standard library, or of loom.
pub(crate) trait Lock {
    type Guard<'a>
    where
        Self: 'a;

    fn lock_ignoring_poison(&self) -> Self::Guard<'_>;

    fn try_lock_ignoring_poison(&self) -> Option<Self::Guard<'_>>;
}

impl<T> Lock for std::sync::Mutex<T> {
    type Guard<'a>
        = std::sync::MutexGuard<'a, T>
    where
        T: 'a;

    fn lock_ignoring_poison(&self) -> Self::Guard<'_> {
        self.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_lock_ignoring_poison(&self) -> Option<Self::Guard<'_>> {
        match self.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

#[cfg(all(test, mmap_io_loom))]
impl<T> Lock for loom::sync::Mutex<T> {
    type Guard<'a>
        = loom::sync::MutexGuard<'a, T>
    where
        T: 'a;

    fn lock_ignoring_poison(&self) -> Self::Guard<'_> {
        self.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_lock_ignoring_poison(&self) -> Option<Self::Guard<'_>> {
        match self.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}
