//! Keeps the advisory lock that this process has on a file.
//!
//! An opening takes the lock before it changes the file, and may fail after that, or its future may
//! be dropped. So the lock belongs to the openings under way that rely on it, and to the file as soon
//! as one of them has become a handle. If all of them fail, the lock is released.

use std::sync::Arc;

use super::OpenFile;
use crate::advisory_lock::{AdvisoryLock, Lock};
use crate::error::Result;
use crate::offload::release;
use crate::sync::lock;
use crate::sys;

/// The lock of this process on a file, and what relies on it.
///
/// Its mutex is held for no longer than it takes to take or to release a lock, which waits for no
/// other process. As long as an opening relies on the lock, neither happens; so an executor's thread
/// that has such an opening may lock the mutex.
#[derive(Debug, Default)]
pub(super) struct LockPlace {
    lock: Option<AdvisoryLock>,
    /// How many openings under way rely on the lock.
    openings: usize,
    /// Whether a handle exists, or has existed, whose opening has relied on the lock.
    is_kept: bool,
}

impl LockPlace {
    /// Returns the lock, unless it is one that nothing relies on any more.
    fn relied_on(&self) -> Option<&AdvisoryLock> {
        self.lock
            .as_ref()
            .filter(|_| self.is_kept || self.openings > 0)
    }

    /// Releases the lock if nothing relies on it. May block.
    fn release_unused(&mut self) {
        if self.relied_on().is_none() {
            self.lock = None;
        }
    }

    /// Removes the lock from the place of a file that is being dropped.
    pub(super) fn take(&mut self) -> Option<AdvisoryLock> {
        self.lock.take()
    }
}

impl OpenFile {
    /// Fails if this process has a lock on the file that is weaker than the one that is asked for.
    pub(crate) fn check_lock(&self, asked: Lock) -> Result<()> {
        let place = lock(&self.lock_place);
        let held = place.relied_on();
        held.map_or(Ok(()), |held| held.check_covers(asked))
    }

    /// Relies on the lock that this process has on the file, or else on the one that `take` returns.
    /// Blocks.
    ///
    /// # Errors
    ///
    /// `LockFailed` if the lock that the process has is weaker than the one that is asked for, and
    /// those of `take`.
    pub(crate) fn rely_on_lock(
        self: &Arc<Self>,
        asked: Lock,
        take: impl FnOnce() -> Result<AdvisoryLock>,
    ) -> Result<ReliedLock> {
        let mut place = lock(&self.lock_place);
        match place.relied_on() {
            Some(held) => held.check_covers(asked)?,
            None => {
                // A lock that is left from an opening that has failed could conflict.
                place.release_unused();
                place.lock = Some(take()?);
            }
        }
        place.openings += 1;
        Ok(ReliedLock(self.clone()))
    }
}

/// An advisory lock that an opening relies on. The drop gives it up: if nothing else relies on it,
/// the lock is released by a thread of the pool.
#[derive(Debug)]
#[must_use]
pub(crate) struct ReliedLock(Arc<OpenFile>);

impl ReliedLock {
    /// Keeps the lock for as long as the file is open.
    pub(crate) fn keep(self) {
        lock(&self.0.lock_place).is_kept = true;
    }
}

impl Drop for ReliedLock {
    fn drop(&mut self) {
        // The lock is that of the parent of a forked child, where the mutex may stay locked forever.
        if sys::is_forked() {
            return;
        }
        let mut place = lock(&self.0.lock_place);
        place.openings -= 1;
        let is_unused = place.relied_on().is_none();
        drop(place);
        if is_unused {
            release(UnusedLock(self.0.clone()));
        }
    }
}

/// Releases the lock of a file, unless something has relied on it since.
struct UnusedLock(Arc<OpenFile>);

impl Drop for UnusedLock {
    fn drop(&mut self) {
        lock(&self.0.lock_place).release_unused();
    }
}
