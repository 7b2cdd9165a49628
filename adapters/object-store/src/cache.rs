//! The mapped objects that are kept for the next read: bounded, the least recently used first.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::generation::Generation;

/// Each map takes a descriptor, of which many systems give a process 1,024.
const MAPS: usize = 512;

/// Mapped bytes take address space, and no memory until they are read.
const BYTES: u64 = if usize::BITS < 64 {
    512 << 20
} else {
    64 << 30
};

/// Maps of objects, by location.
pub(crate) struct Cache {
    bounds: Bounds,
    usage: Arc<Usage>,
    state: Mutex<State>,
    pub(crate) counters: Counters,
    /// Whether the last object that asked for a place got none.
    is_full: AtomicBool,
}

struct Bounds {
    maps: AtomicUsize,
    bytes: AtomicU64,
}

/// What the maps take that exist, those included that are no longer in the cache.
#[derive(Debug, Default)]
struct Usage {
    maps: AtomicUsize,
    bytes: AtomicU64,
}

#[derive(Default)]
struct State {
    entries: HashMap<Arc<str>, Entry>,
    /// The locations of all entries, by their last use.
    order: BTreeMap<u64, Arc<str>>,
    clock: u64,
}

struct Entry {
    generation: Arc<Generation>,
    last_use: u64,
}

/// Counters for `stats`. Always Relaxed: no decision depends on them.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) hits: AtomicU64,
    pub(crate) mapped: AtomicU64,
    pub(crate) evicted: AtomicU64,
    pub(crate) unmapped_reads: AtomicU64,
}

/// The place of one map within the bounds, given back when the map goes.
#[derive(Debug)]
pub(crate) struct Reservation {
    usage: Arc<Usage>,
    bytes: u64,
}

impl Cache {
    pub(crate) fn new() -> Self {
        Self {
            bounds: Bounds {
                maps: AtomicUsize::new(MAPS),
                bytes: AtomicU64::new(BYTES),
            },
            usage: Arc::default(),
            state: Mutex::default(),
            counters: Counters::default(),
            is_full: AtomicBool::new(false),
        }
    }

    pub(crate) fn set_max_maps(&self, maps: usize) {
        self.bounds.maps.store(maps, Ordering::Relaxed);
    }

    pub(crate) fn set_max_bytes(&self, bytes: u64) {
        self.bounds.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Returns the map of an object, which is then the most recently used.
    pub(crate) fn get(&self, location: &str) -> Option<Arc<Generation>> {
        let state = &mut *self.state();
        let entry = state.entries.get_mut(location)?;
        state.clock += 1;
        let last_use = std::mem::replace(&mut entry.last_use, state.clock);
        let location = state.order.remove(&last_use)?;
        state.order.insert(state.clock, location);
        Some(Arc::clone(&entry.generation))
    }

    /// Puts the map of an object in the place of an earlier one.
    pub(crate) fn insert(&self, location: &str, generation: Arc<Generation>) {
        let location: Arc<str> = location.into();
        let mut state = self.state();
        let replaced = state.remove(&location);
        state.clock += 1;
        let last_use = state.clock;
        state.order.insert(last_use, Arc::clone(&location));
        let entry = Entry {
            generation,
            last_use,
        };
        state.entries.insert(location, entry);
        // The drop of a map outside the lock.
        drop(state);
        drop(replaced);
    }

    /// Removes the map of an object: the disk gives its blocks free when no `Bytes` shows it.
    pub(crate) fn forget(&self, location: &str) {
        let forgotten = self.state().remove(location);
        drop(forgotten);
    }

    /// Removes the map of an object, unless another one has taken its place.
    pub(crate) fn forget_exactly(&self, location: &str, generation: &Arc<Generation>) {
        let mut state = self.state();
        let entry = state.entries.get(location);
        let is_it = entry.is_some_and(|entry| Arc::ptr_eq(&entry.generation, generation));
        let forgotten = is_it.then(|| state.remove(location));
        drop(state);
        drop(forgotten);
    }

    /// Makes room for a map of `bytes`, if that is possible: by the maps that were not used for the
    /// longest time, of those that no reader uses.
    pub(crate) fn reserve(&self, location: &str, bytes: u64) -> Option<Reservation> {
        let max_maps = self.bounds.maps.load(Ordering::Relaxed);
        let max_bytes = self.bounds.bytes.load(Ordering::Relaxed);
        let mut evicted = Vec::new();
        let mut state = self.state();
        let (maps, used) = self.usage.now();
        let mut maps_over = (maps + 1).saturating_sub(max_maps);
        let mut bytes_over = used.saturating_add(bytes).saturating_sub(max_bytes);
        for oldest in state.order.values() {
            if maps_over == 0 && bytes_over == 0 {
                break;
            }
            let generation = &state.entries[oldest].generation;
            // Under the lock: the cache alone has it, and no other thread can get it.
            if Arc::strong_count(generation) == 1 {
                maps_over = maps_over.saturating_sub(1);
                bytes_over = bytes_over.saturating_sub(generation.len());
                evicted.push(Arc::clone(oldest));
            }
        }
        if maps_over > 0 || bytes_over > 0 {
            drop(state);
            let was_full = self.is_full.swap(true, Ordering::Relaxed);
            if !was_full {
                tracing::warn!(
                    location,
                    bytes,
                    maps,
                    mapped_bytes = used,
                    "no room for a map: the object is read into memory of its own"
                );
            }
            return None;
        }
        let evicted = evicted.iter().filter_map(|location| {
            let generation = Arc::into_inner(state.remove(location)?)?;
            Some((Arc::clone(location), generation.into_file()))
        });
        let evicted: Vec<_> = evicted.collect();
        let reservation = Reservation::new(&self.usage, bytes);
        // The drop of the maps, and the subscriber of `tracing`, outside the lock.
        drop(state);
        self.is_full.store(false, Ordering::Relaxed);
        let count = evicted.len() as u64;
        self.counters.evicted.fetch_add(count, Ordering::Relaxed);
        for (location, file) in evicted {
            tracing::debug!(location = &*location, bytes = file.len(), "evicted a map");
        }
        Some(reservation)
    }

    /// Returns how many maps there are, and of how many bytes; and how many of them are cached.
    pub(crate) fn usage(&self) -> (usize, u64, usize) {
        let (maps, bytes) = self.usage.now();
        (maps, bytes, self.state().entries.len())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remove(&mut self, location: &str) -> Option<Arc<Generation>> {
        let entry = self.entries.remove(location)?;
        self.order.remove(&entry.last_use);
        Some(entry.generation)
    }
}

impl Usage {
    fn now(&self) -> (usize, u64) {
        let maps = self.maps.load(Ordering::Relaxed);
        (maps, self.bytes.load(Ordering::Relaxed))
    }
}

impl Reservation {
    /// Under the lock of the cache, which is what keeps the sum within the bounds.
    fn new(usage: &Arc<Usage>, bytes: u64) -> Self {
        usage.maps.fetch_add(1, Ordering::Relaxed);
        usage.bytes.fetch_add(bytes, Ordering::Relaxed);
        Self {
            usage: Arc::clone(usage),
            bytes,
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.usage.maps.fetch_sub(1, Ordering::Relaxed);
        self.usage.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}
