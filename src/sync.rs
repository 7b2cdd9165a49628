//! The primitives of the protocols that are model-checked: the standard library's, or loom's when
//! the models are built.

#[cfg(all(test, mmap_io_loom))]
pub(crate) use loom::sync::atomic::{fence, AtomicU32, AtomicU64};
#[cfg(all(test, mmap_io_loom))]
pub(crate) use loom::sync::{Mutex, MutexGuard};
#[cfg(not(all(test, mmap_io_loom)))]
pub(crate) use std::sync::atomic::{fence, AtomicU32, AtomicU64};
#[cfg(not(all(test, mmap_io_loom)))]
pub(crate) use std::sync::{Mutex, MutexGuard};

pub(crate) use std::sync::atomic::Ordering;

/// Locks `mutex`, whether or not a thread panicked while it held it.
///
/// What the crate keeps under a lock is either plain data, whole after each statement, or put
/// right by a guard when a panic passes.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
