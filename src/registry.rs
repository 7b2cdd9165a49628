//! Finds the open files of the process by identity.
//!
//! Two handles on one file must share its leases, or they would alias each other's bytes. So every
//! opening looks here, by the identity of the descriptor that it has just opened, and either joins
//! the file or claims its place. A claim lasts through the slow part of an opening (truncating,
//! mapping), and no lock is held then. Other openings of the file wait for an event, as tasks; they
//! occupy no thread of the pool.
//!
//! The identity is (device, inode). It contains nothing that can change while the file is open,
//! such as the birth time: an inode of an old ext4 gets one with its first write, and overlayfs
//! changes it when it copies a file up.

use std::collections::hash_map::{Entry, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use crate::sync::lock;
use crate::sys::FileId;
use crate::wakers::{Event, EventListener};

/// The open files, by identity. The references are weak: the registry keeps no file open.
#[derive(Debug)]
pub(crate) struct Registry<T> {
    places: OnceLock<Mutex<HashMap<FileId, Place<T>>>>,
}

/// The entry of one identity.
#[derive(Debug)]
struct Place<T> {
    /// Present while a caller examines the place or opens a file in it; notified at the end.
    claimed: Option<Arc<Event>>,
    /// One file; several if the file system gives one identity to several files.
    open: Vec<Weak<T>>,
}

/// What a lookup has found.
#[derive(Debug)]
pub(crate) enum Found<T: 'static> {
    /// The file is open.
    Open(Arc<T>),
    /// The file is not open, and the caller now holds the claim on its place.
    Vacant(Claim<T>),
    /// Another caller holds the claim; look again after the event.
    Claimed(EventListener),
}

impl<T> Registry<T> {
    pub(crate) const fn new() -> Self {
        Self {
            places: OnceLock::new(),
        }
    }

    /// Looks a file up, and claims its place if it is not open.
    ///
    /// Where several files may have the identity, `is_it` tells whether an open file is the one
    /// that is looked for. It may ask a slow file system, so it is called under a claim, and not
    /// under the lock.
    pub(crate) fn find(
        &'static self,
        id: FileId,
        is_it: Option<impl FnMut(&Arc<T>) -> bool>,
    ) -> Found<T> {
        let (claim, open) = {
            let mut places = self.places();
            let place = places.entry(id).or_insert_with(Place::vacant);
            if let Some(event) = &place.claimed {
                return Found::Claimed(event.listen());
            }
            let mut open = place.open.iter().filter_map(Weak::upgrade);
            let open: Vec<Arc<T>> = match &is_it {
                Some(_) => open.collect(),
                None => match open.next() {
                    Some(file) => return Found::Open(file),
                    None => Vec::new(),
                },
            };
            let event = Arc::new(Event::new());
            place.claimed = Some(event.clone());
            let claim = Claim {
                registry: self,
                id,
                event,
            };
            (claim, open)
        };
        let found = is_it.and_then(|is_it| open.into_iter().find(is_it));
        found.map_or(Found::Vacant(claim), Found::Open)
    }

    /// Returns the files that are open under an identity, without a claim.
    pub(crate) fn open(&self, id: FileId) -> Vec<Arc<T>> {
        let places = self.places();
        let open = places.get(&id).into_iter().flat_map(|place| &place.open);
        // Upgraded under the lock, but dropped outside: the drop of a file takes the lock.
        open.filter_map(Weak::upgrade).collect()
    }

    /// Removes a file that is being dropped from its place.
    pub(crate) fn remove(&self, id: FileId, file: *const T) {
        self.update(id, |place| {
            place.open.retain(|open| !std::ptr::eq(open.as_ptr(), file));
        });
    }

    /// Changes a place, and removes it if nothing is left in it.
    fn update(&self, id: FileId, change: impl FnOnce(&mut Place<T>)) {
        if let Entry::Occupied(mut place) = self.places().entry(id) {
            change(place.get_mut());
            if place.get().claimed.is_none() && place.get().open.is_empty() {
                place.remove();
            }
        }
    }

    fn places(&self) -> MutexGuard<'_, HashMap<FileId, Place<T>>> {
        let places = self.places.get_or_init(Mutex::default);
        lock(places)
    }
}

impl<T> Place<T> {
    fn vacant() -> Self {
        Self {
            claimed: None,
            open: Vec::new(),
        }
    }
}

/// The exclusive right to open the file of one identity. Its drop ends the claim, and leaves the
/// place as it was if no file was put there.
#[derive(Debug)]
#[must_use]
pub(crate) struct Claim<T: 'static> {
    registry: &'static Registry<T>,
    id: FileId,
    event: Arc<Event>,
}

impl<T> Claim<T> {
    pub(crate) fn id(&self) -> FileId {
        self.id
    }

    /// Whether a file of the place is being dropped at this moment.
    pub(crate) fn is_closing(&self) -> bool {
        let places = self.registry.places();
        let open = places
            .get(&self.id)
            .into_iter()
            .flat_map(|place| &place.open);
        // The drop of a file removes it from its place, after that of its last reference.
        { open }.any(|open| open.strong_count() == 0)
    }

    /// Puts the opened file in its place.
    pub(crate) fn fill(self, file: &Arc<T>) {
        // The place exists, because it is claimed.
        self.registry
            .update(self.id, |place| place.open.push(Arc::downgrade(file)));
    }
}

impl<T> Drop for Claim<T> {
    fn drop(&mut self) {
        self.registry.update(self.id, |place| place.claimed = None);
        self.event.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIQUE: Option<fn(&Arc<u32>) -> bool> = None;

    fn id(index: u128) -> FileId {
        FileId { volume: 1, index }
    }

    fn claim(registry: &'static Registry<u32>) -> Claim<u32> {
        match registry.find(id(1), UNIQUE) {
            Found::Vacant(claim) => claim,
            found => panic!("{found:?}"),
        }
    }

    #[test]
    fn removed_file_leaves_its_place_vacant() {
        static REGISTRY: Registry<u32> = Registry::new();
        let claim = claim(&REGISTRY);
        assert!(matches!(REGISTRY.find(id(1), UNIQUE), Found::Claimed(_)));
        assert!(matches!(REGISTRY.find(id(2), UNIQUE), Found::Vacant(_)));
        let file = Arc::new(7);
        claim.fill(&file);
        assert!(matches!(REGISTRY.find(id(1), UNIQUE), Found::Open(found) if *found == 7));
        REGISTRY.remove(id(1), Arc::as_ptr(&file));
        assert!(matches!(REGISTRY.find(id(1), UNIQUE), Found::Vacant(_)));
        assert!(REGISTRY.places().is_empty());
    }

    #[test]
    fn dropped_claim_notifies_and_remove_checks_file() {
        static REGISTRY: Registry<u32> = Registry::new();
        let first = claim(&REGISTRY);
        let Found::Claimed(listener) = REGISTRY.find(id(1), UNIQUE) else {
            panic!("the place is not claimed");
        };
        drop(first);
        futures_lite::future::block_on(listener);
        let (mine, other) = (Arc::new(1), Arc::new(2));
        claim(&REGISTRY).fill(&mine);
        REGISTRY.remove(id(1), Arc::as_ptr(&other));
        assert!(matches!(REGISTRY.find(id(1), UNIQUE), Found::Open(found) if *found == 1));
    }

    #[test]
    fn claim_tells_of_file_being_dropped() {
        static REGISTRY: Registry<u32> = Registry::new();
        let file = Arc::new(1);
        claim(&REGISTRY).fill(&file);
        let raw = Arc::as_ptr(&file);
        drop(file);
        // Its drop has not come to the registry yet.
        let second = claim(&REGISTRY);
        assert!(second.is_closing());
        REGISTRY.remove(id(1), raw);
        assert!(!second.is_closing());
    }

    #[test]
    fn files_with_one_identity_are_told_apart() {
        static REGISTRY: Registry<u32> = Registry::new();
        let find = |number| REGISTRY.find(id(1), Some(move |file: &Arc<u32>| **file == number));
        let files = [Arc::new(1), Arc::new(2)];
        for file in &files {
            let Found::Vacant(claim) = find(**file) else {
                panic!("another file was taken for file {file}");
            };
            assert!(matches!(find(**file), Found::Claimed(_)));
            claim.fill(file);
        }
        for file in &files {
            assert!(matches!(find(**file), Found::Open(found) if Arc::ptr_eq(&found, file)));
        }
        REGISTRY.remove(id(1), Arc::as_ptr(&files[0]));
        assert!(matches!(find(2), Found::Open(found) if *found == 2));
        assert!(matches!(find(1), Found::Vacant(_)));
        // The files and claims that the lookups returned have been dropped.
        REGISTRY.remove(id(1), Arc::as_ptr(&files[1]));
        assert!(REGISTRY.places().is_empty());
    }

    #[test]
    fn lock_is_free_while_files_are_compared() {
        static REGISTRY: Registry<u32> = Registry::new();
        let file = Arc::new(1);
        claim(&REGISTRY).fill(&file);
        let is_it = |_: &Arc<u32>| {
            assert!(matches!(REGISTRY.find(id(2), UNIQUE), Found::Vacant(_)));
            false
        };
        assert!(matches!(
            REGISTRY.find(id(1), Some(is_it)),
            Found::Vacant(_)
        ));
    }
}
