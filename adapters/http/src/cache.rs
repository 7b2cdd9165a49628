//! The files that are mapped: a bounded number of them, each checked whenever it is asked for.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mmap_io::MemoryMappedFile;

use crate::lookup::Identity;

/// A file that is mapped, in the state that its identity names.
#[derive(Clone, Debug)]
pub(crate) struct Mapped {
    pub(crate) file: MemoryMappedFile,
    pub(crate) identity: Identity,
    /// Whether what the system has cached of its file system is exact.
    pub(crate) is_local: bool,
}

/// How much a cache keeps mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) files: usize,
    pub(crate) bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Each has a descriptor, of which a process often has 1,024.
            files: 256,
            // Addresses, not memory: the system decides which pages stay.
            bytes: match cfg!(target_pointer_width = "64") {
                true => 64 << 30,
                false => 256 << 20,
            },
        }
    }
}

/// Files by path; the one that was used least recently goes first.
///
/// By path and not by inode, so that a file which was replaced is let go when its path is asked for
/// again. What goes lives on in the bodies that show it.
pub(crate) struct Cache {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: HashMap<PathBuf, Entry>,
    /// Sum of the lengths of all entries.
    bytes: u64,
    /// Grows with each use.
    clock: u64,
}

struct Entry {
    mapped: Mapped,
    used: u64,
}

impl Cache {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: Mutex::default(),
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// The file at a path, if it is in the state that `identity` names.
    pub(crate) fn find(&self, path: &Path, identity: &Identity) -> Option<Mapped> {
        let mut state = self.lock();
        state.clock += 1;
        let clock = state.clock;
        let entry = state.entries.get_mut(path)?;
        if entry.mapped.identity != *identity {
            return None;
        }
        entry.used = clock;
        Some(entry.mapped.clone())
    }

    /// Keeps a file instead of what was kept for its path, and lets others go until the limits are
    /// kept.
    pub(crate) fn insert(&self, path: PathBuf, mapped: Mapped) {
        let len = mapped.identity.len;
        let mut state = self.lock();
        let mut gone = Vec::from_iter(state.remove(&path));
        if len > self.limits.bytes || self.limits.files == 0 {
            drop(state);
            return;
        }
        while state.entries.len() >= self.limits.files || state.bytes > self.limits.bytes - len {
            gone.extend(state.remove_oldest());
        }
        state.clock += 1;
        state.bytes += len;
        let used = state.clock;
        state.entries.insert(path, Entry { mapped, used });
        // Handles are dropped outside of the lock.
        drop(state);
        drop(gone);
    }

    /// Lets the file at a path go, since there is none any more.
    pub(crate) fn remove(&self, path: &Path) {
        let gone = self.lock().remove(path);
        drop(gone);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remove(&mut self, path: &Path) -> Option<Entry> {
        let entry = self.entries.remove(path)?;
        self.bytes -= entry.mapped.identity.len;
        Some(entry)
    }

    /// The number of entries is small beside the cost of mapping the file that takes the place.
    fn remove_oldest(&mut self) -> Option<Entry> {
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used);
        let path = oldest.map(|(path, _)| path.clone())?;
        self.remove(&path)
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Cache")
            .field("limits", &self.limits)
            .field("files", &state.entries.len())
            .field("bytes", &state.bytes)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Files of 10 bytes each in a cache.
    struct Fixture {
        cache: Cache,
        directory: tempfile::TempDir,
    }

    impl Fixture {
        fn new(files: usize, bytes: u64) -> Self {
            Self {
                cache: Cache::new(Limits { files, bytes }),
                directory: tempfile::tempdir().unwrap(),
            }
        }

        fn insert(&self, name: &str) -> Identity {
            let path = self.directory.path().join(name);
            std::fs::write(&path, [b'x'; 10]).unwrap();
            let open = MemoryMappedFile::open_ro(&path);
            let file = futures_lite::future::block_on(open).unwrap();
            let identity = Identity {
                device: 1,
                inode: 2,
                len: 10,
                mtime: (3, 4),
                ctime: (5, 6),
            };
            let mapped = Mapped {
                file,
                identity,
                is_local: true,
            };
            self.cache.insert(name.into(), mapped);
            identity
        }

        fn has(&self, name: &str, identity: Identity) -> bool {
            self.cache.find(Path::new(name), &identity).is_some()
        }
    }

    #[test]
    fn the_oldest_goes_first() {
        for (files, bytes) in [(2, 1000), (1000, 20), (1000, 29)] {
            let fixture = Fixture::new(files, bytes);
            let identity = fixture.insert("a");
            fixture.insert("b");
            assert!(fixture.has("a", identity));
            fixture.insert("c");
            assert!(fixture.has("a", identity) && fixture.has("c", identity));
            assert!(!fixture.has("b", identity));
            assert_eq!(fixture.cache.lock().bytes, 20);
        }
    }

    #[test]
    fn another_state_is_not_found() {
        let fixture = Fixture::new(10, 1000);
        let identity = fixture.insert("a");
        let later = Identity {
            mtime: (3, 5),
            ..identity
        };
        assert!(!fixture.has("a", later) && fixture.has("a", identity));
        assert!(!fixture.has("b", identity));
    }

    #[test]
    fn a_path_counts_once() {
        let fixture = Fixture::new(10, 1000);
        fixture.insert("a");
        fixture.insert("a");
        assert_eq!(fixture.cache.lock().bytes, 10);
        fixture.cache.remove(Path::new("a"));
        assert_eq!(fixture.cache.lock().bytes, 0);
    }

    #[test]
    fn what_is_too_large_is_not_kept() {
        for (files, bytes) in [(0, 1000), (10, 9)] {
            let fixture = Fixture::new(files, bytes);
            let identity = fixture.insert("a");
            assert!(!fixture.has("a", identity));
        }
    }
}
