//! The open files of the process, found by identity.
//!
//! Two handles on one file must share its leases, or they would alias each other's bytes. So
//! whoever opens a file looks here, by the identity of the descriptor it has just opened, and
//! either joins what is there or claims the place. A claim is held over the slow part of an
//! opening (truncating, mapping) without any lock; others who come meanwhile wait for an event,
//! as tasks, not as pool threads.

use std::collections::hash_map::{Entry, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::SystemTime;

use crate::sys::{FileId, FileInfo};
use crate::wakers::{Event, EventListener};

/// What names a file here. Some FUSE file systems give one inode number to several files; their
/// birth times differ. Only Linux has such, and keeps everybody from setting a birth time: with one
/// that changes, a file would be open twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileKey {
    id: FileId,
    born: Option<SystemTime>,
}

impl From<&FileInfo> for FileKey {
    fn from(info: &FileInfo) -> Self {
        Self {
            id: info.id,
            born: info
                .born
                .filter(|_| cfg!(any(target_os = "linux", target_os = "android"))),
        }
    }
}

/// Open files by key. The references are weak: the registry keeps nothing open.
#[derive(Debug)]
pub(crate) struct Registry<T> {
    places: OnceLock<Mutex<HashMap<FileKey, Place<T>>>>,
}

#[derive(Debug)]
enum Place<T> {
    /// Somebody is opening the file; told when that is over.
    Claimed(Arc<Event>),
    Open(Weak<T>),
}

/// What stands in a place.
#[derive(Debug)]
pub(crate) enum Found<T: 'static> {
    /// The file is open.
    Open(Arc<T>),
    /// It is not, and now the place is the caller's.
    Vacant(Claim<T>),
    /// Somebody is opening it; look again after the event.
    Claimed(EventListener),
}

impl<T> Registry<T> {
    pub(crate) const fn new() -> Self {
        Self {
            places: OnceLock::new(),
        }
    }

    /// Looks a file up, and claims its place if it is vacant.
    pub(crate) fn find(&'static self, key: FileKey) -> Found<T> {
        let mut places = self.places();
        match places.get(&key) {
            Some(Place::Claimed(event)) => return Found::Claimed(event.listen()),
            Some(Place::Open(file)) => {
                if let Some(file) = file.upgrade() {
                    return Found::Open(file);
                }
            }
            None => {}
        }
        let event = Arc::new(Event::new());
        places.insert(key.clone(), Place::Claimed(event.clone()));
        Found::Vacant(Claim {
            registry: self,
            key,
            event,
        })
    }

    /// Removes the place of a file that is being dropped, if it is still its own.
    pub(crate) fn remove(&self, key: &FileKey, file: *const T) {
        if let Entry::Occupied(place) = self.places().entry(key.clone()) {
            if matches!(place.get(), Place::Open(open) if std::ptr::eq(open.as_ptr(), file)) {
                place.remove();
            }
        }
    }

    fn places(&self) -> MutexGuard<'_, HashMap<FileKey, Place<T>>> {
        let places = self.places.get_or_init(Mutex::default);
        places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place that the holder may fill. Dropped unfilled, it is vacant again.
#[derive(Debug)]
#[must_use]
pub(crate) struct Claim<T: 'static> {
    registry: &'static Registry<T>,
    key: FileKey,
    event: Arc<Event>,
}

impl<T> Claim<T> {
    pub(crate) fn key(&self) -> &FileKey {
        &self.key
    }

    /// Puts the opened file in its place.
    pub(crate) fn fill(self, file: &Arc<T>) {
        let place = Place::Open(Arc::downgrade(file));
        self.registry.places().insert(self.key.clone(), place);
    }
}

impl<T> Drop for Claim<T> {
    fn drop(&mut self) {
        if let Entry::Occupied(place) = self.registry.places().entry(self.key.clone()) {
            if matches!(place.get(), Place::Claimed(event) if Arc::ptr_eq(event, &self.event)) {
                place.remove();
            }
        }
        self.event.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u128) -> FileKey {
        FileKey {
            id: FileId { volume: 1, index },
            born: None,
        }
    }

    #[test]
    fn a_place_is_claimed_filled_and_vacated() {
        static REGISTRY: Registry<u32> = Registry::new();
        let Found::Vacant(claim) = REGISTRY.find(key(1)) else {
            panic!("nobody has it");
        };
        assert!(matches!(REGISTRY.find(key(1)), Found::Claimed(_)));
        assert!(matches!(REGISTRY.find(key(2)), Found::Vacant(_)));
        let file = Arc::new(7);
        claim.fill(&file);
        assert!(matches!(REGISTRY.find(key(1)), Found::Open(found) if *found == 7));
        REGISTRY.remove(&key(1), Arc::as_ptr(&file));
        assert!(matches!(REGISTRY.find(key(1)), Found::Vacant(_)));
    }

    #[test]
    fn an_abandoned_claim_is_heard_and_a_stranger_removes_nothing() {
        static REGISTRY: Registry<u32> = Registry::new();
        let Found::Vacant(claim) = REGISTRY.find(key(1)) else {
            panic!("nobody has it");
        };
        let Found::Claimed(listener) = REGISTRY.find(key(1)) else {
            panic!("it is claimed");
        };
        drop(claim);
        futures_lite::future::block_on(listener);
        let Found::Vacant(claim) = REGISTRY.find(key(1)) else {
            panic!("it was abandoned");
        };
        let (mine, other) = (Arc::new(1), Arc::new(2));
        claim.fill(&mine);
        REGISTRY.remove(&key(1), Arc::as_ptr(&other));
        assert!(matches!(REGISTRY.find(key(1)), Found::Open(found) if *found == 1));
    }
}
