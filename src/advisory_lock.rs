//! Advisory locks on files, by which processes agree on who uses a file.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::descriptor::Descriptor;
use crate::error::{MmapIoError, Result};
use crate::offload::release;
use crate::sys;

/// Says which advisory lock a process takes on a file; an argument of
/// [`advisory_lock`](crate::MemoryMappedFileBuilder::advisory_lock).
#[doc(alias = "flock")]
#[cfg_attr(not(feature = "advisory-lock"), allow(dead_code, unreachable_pub))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Lock {
    /// A lock that several processes may have at the same time: for those that read.
    Shared,
    /// A lock that excludes every lock of another process: for a process that writes.
    Exclusive,
}

impl Lock {
    /// Whether a process that has this lock needs no other one in order to have `asked`.
    fn covers(self, asked: Self) -> bool {
        self == asked || self == Self::Exclusive
    }
}

/// An advisory lock on a file, which the drop releases.
///
/// It has an open file description of its own: locks belong to descriptions, and the descriptors
/// that the handles share may be duplicated and locked by the caller.
#[derive(Debug)]
pub(crate) struct AdvisoryLock {
    file: Arc<Descriptor>,
    lock: Lock,
    /// Whether the file system answers without waiting for another machine.
    is_local: bool,
}

impl AdvisoryLock {
    /// Takes a lock on `file`, which `path` leads to. Opens the path again, also for writing if
    /// `writes`. Does not wait for another process.
    ///
    /// # Errors
    ///
    /// `LockFailed`; of the kind `WouldBlock` if another process has a lock that conflicts.
    pub(crate) fn take(
        lock: Lock,
        file: &File,
        path: &Path,
        writes: bool,
        is_local: bool,
    ) -> Result<Self> {
        // For writing where the caller may write: NFS grants an exclusive lock only then.
        let mut options = OpenOptions::new();
        let opened = sys::open(options.read(true).write(writes), path);
        let taken = opened.and_then(|own| {
            if sys::file_info(&own)?.id != sys::file_info(file)?.id {
                let problem = "the path leads to another file by now";
                return Err(io::Error::new(io::ErrorKind::NotFound, problem));
            }
            let is_taken = match lock {
                Lock::Shared => sys::try_lock_shared(&own)?,
                Lock::Exclusive => sys::try_lock_exclusive(&own)?,
            };
            match is_taken {
                true => Ok(own),
                false => Err(conflict("another process has locked the file")),
            }
        });
        let own = Descriptor::new(taken.map_err(MmapIoError::lock_failed)?);
        if is_local && !writes {
            own.writes_nothing_out();
        }
        Ok(Self {
            file: own,
            lock,
            is_local,
        })
    }

    /// Fails if this lock of the process is weaker than the one that is asked for. A description
    /// could change its lock, but it loses the one that it has if the change fails ([`flock(2)`]).
    ///
    /// [`flock(2)`]: https://man7.org/linux/man-pages/man2/flock.2.html
    pub(crate) fn check_covers(&self, asked: Lock) -> Result<()> {
        match self.lock.covers(asked) {
            true => Ok(()),
            false => Err(MmapIoError::lock_failed(conflict(
                "this process has a shared lock on the file",
            ))),
        }
    }
}

fn conflict(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::WouldBlock, problem)
}

impl Drop for AdvisoryLock {
    fn drop(&mut self) {
        // A forked child shares the description with its parent, whose lock this is.
        if sys::is_forked() {
            return;
        }
        // Closing alone would not do: a child that another thread is just starting has a copy of
        // the descriptor for a moment.
        // No error is possible that leaves the lock: at the latest, the close releases it.
        let file = self.file.clone();
        match self.is_local {
            true => drop(sys::unlock(&file)),
            false => release(Unlocks(file)),
        }
    }
}

/// Releases the lock of a description where that may take time.
struct Unlocks(Arc<Descriptor>);

impl Drop for Unlocks {
    fn drop(&mut self) {
        let _ = sys::unlock(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusive_covers_shared() {
        for (held, asked, covers) in [
            (Lock::Shared, Lock::Shared, true),
            (Lock::Shared, Lock::Exclusive, false),
            (Lock::Exclusive, Lock::Shared, true),
            (Lock::Exclusive, Lock::Exclusive, true),
        ] {
            assert_eq!(held.covers(asked), covers, "{held:?} {asked:?}");
        }
    }
}
