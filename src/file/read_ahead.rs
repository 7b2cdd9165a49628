//! Reads a range in, piece by piece, each while the caller uses the one before.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::MemoryMappedFile;
use crate::descriptor::Descriptor;
use crate::map::Protection;
use crate::offload::{check, spawn};
use crate::open_file::OpenFile;
use crate::range::{ByteRange, PageRange};
use crate::residency;
use crate::sync::lock;
use crate::sys;
use crate::trace;

/// How far behind a piece pages are looked up that are not in memory. More than the system reads
/// ahead: what it has read for this reader is not taken for what was in memory before.
const AHEAD: u64 = 32 << 20;

/// The most bytes that are looked up for one piece, on the thread that polls; and how many bytes
/// behind a piece are asked for, if those that were passed are dropped.
const LOOK: u64 = 2 << 20;

/// What one sequential reader of a file has asked for.
#[derive(Debug)]
pub(crate) struct ReadAhead {
    shared: Arc<OpenFile>,
    protection: Protection,
    /// No handle: a job that still runs would keep it from being unmapped.
    descriptor: Arc<Descriptor>,
    /// Whether pages that the reader has passed leave the cache.
    drops_behind: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Where the next piece begins, unless the reader has been moved.
    next: u64,
    /// The pages up to here were looked up.
    seen: u64,
    /// The pages up to here are read in by jobs: behind them, as far as was seen, all were in memory.
    missing: u64,
    /// The pages up to here were noted in `brought`, if they were not in memory.
    noted: u64,
    /// The pages that this reader brings into the cache, if it drops them later. Sorted.
    brought: Vec<PageRange>,
}

impl State {
    /// Returns what is to be looked up now, at most up to `ahead` bytes behind the piece. Mostly
    /// nothing: each look has a cost, and is for several pieces.
    fn look(&mut self, piece: ByteRange, end: u64, ahead: u64) -> ByteRange {
        let limit = end.min(piece.end() + ahead).max(self.seen);
        let until = match limit == end || limit - self.seen >= ahead / 16 {
            true => limit.min(self.seen.max(piece.end()) + LOOK),
            false => self.seen,
        };
        let from = std::mem::replace(&mut self.seen, until);
        ByteRange::between(from, until)
    }
}

impl ReadAhead {
    /// Expects the first piece at `start`.
    pub(crate) fn new(file: &MemoryMappedFile, start: u64) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::clone(&file.shared),
            protection: file.protection,
            descriptor: file.handle.file().clone(),
            drops_behind: AtomicBool::new(false),
            state: Mutex::new(State {
                next: start,
                seen: start,
                missing: start,
                noted: start,
                brought: Vec::new(),
            }),
        })
    }

    /// Chooses whether the pages that this reader brings in leave the cache when it has passed them
    /// and no view shows them.
    pub(crate) fn set_drop_behind(&self, drops_behind: bool) {
        self.drops_behind.store(drops_behind, Ordering::Relaxed);
    }

    /// Reads a piece in. `None` if it is in memory, what follows it up to `end` as well, as far as it
    /// was looked up, and pages that were passed stay there.
    ///
    /// Errors are not reported: the read of the piece itself finds them again.
    pub(crate) fn advance(
        self: &Arc<Self>,
        piece: ByteRange,
        end: u64,
    ) -> Option<impl Future<Output = ()> + Send + 'static> {
        // The read of the piece says so as well; the lock may stay locked forever.
        check().ok()?;
        let mut state = lock(&self.state);
        if piece.start() != state.next {
            // What lies between was neither looked up nor noted.
            (state.seen, state.missing) = (piece.start(), piece.start());
            state.noted = piece.start();
        }
        state.next = piece.end();
        let drops_behind = self.drops_behind.load(Ordering::Relaxed);
        let ahead = if drops_behind { LOOK } else { AHEAD };
        let unseen = state.look(piece, end, ahead);
        if !unseen.is_empty() && !self.shared.is_cached_or_read(self.protection, unseen) {
            state.missing = unseen.end();
        }
        let is_resident = state.missing <= piece.start();
        let noted = match drops_behind {
            true => {
                let until = end.min(piece.end() + AHEAD).max(state.noted);
                let from = std::mem::replace(&mut state.noted, until);
                ByteRange::between(from, until)
            }
            false if is_resident => return None,
            false => ByteRange::EMPTY,
        };
        drop(state);
        let this = Arc::clone(self);
        let missing = match is_resident || self.shared.is_resident(self.protection, piece) {
            true => 0,
            false => {
                let misses = u64::from(residency::is_asked(piece));
                let counters = &self.shared.counters;
                counters
                    .resident_misses
                    .fetch_add(misses, Ordering::Relaxed);
                piece.len()
            }
        };
        let read = self.shared.read_in_on_pool(missing, move |shared| {
            this.drop_passed(piece.start());
            let absent = shared.absent_pages(this.protection, noted);
            lock(&this.state).brought.extend(absent);
            match drops_behind {
                // Asked for one by one, since a folio of many pages is dropped as a whole or not at
                // all, and no more than will be passed soon.
                true => shared.read_ahead(this.protection, piece, unseen),
                false => shared.read_in_order(this.protection, piece),
            }
            Ok(())
        });
        Some(async move {
            // No operation that takes part in fairness: the thread has not waited for it if the
            // caller polls it again only when it is done.
            let subject = (piece.start(), piece.len());
            // See above.
            let _ = trace::operation("reading ahead", &subject, read).await;
        })
    }

    /// Drops the pages in front of `position` that this reader has brought in, except those that a
    /// view shows: their turn comes later. Blocks.
    fn drop_passed(&self, position: u64) {
        let brought = std::mem::take(&mut lock(&self.state).brought);
        let kept = drop_pages(&self.shared, &self.descriptor, brought, position);
        lock(&self.state).brought = kept;
    }
}

/// Drops those of the pages that are in front of `position`, and returns the others, and those that
/// a view shows. Blocks.
fn drop_pages(
    shared: &Arc<OpenFile>,
    file: &Descriptor,
    brought: Vec<PageRange>,
    position: u64,
) -> Vec<PageRange> {
    let mut kept = Vec::new();
    for pages in brought {
        let (passed, ahead) = pages.split_before(position, sys::page_size());
        if passed.len() > 0 {
            let shown = shared.evict(file, passed.into());
            kept.extend(shown.unwrap_or_default());
        }
        if ahead.len() > 0 {
            kept.push(ahead);
        }
    }
    PageRange::merged(kept.into_iter())
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        if check().is_err() {
            return;
        }
        let brought = std::mem::take(&mut lock(&self.state).brought);
        if !brought.is_empty() {
            let (shared, file) = (self.shared.clone(), self.descriptor.clone());
            // Without a pool the pages stay, and the system drops them when it needs memory.
            let _ = spawn(move || drop(drop_pages(&shared, &file, brought, u64::MAX)));
        }
    }
}

#[cfg(all(test, not(mmap_io_loom)))]
mod tests {
    use super::*;

    /// The looks of a reader of pieces of `len` bytes, up to `end`.
    fn looks(len: u64, end: u64, ahead: u64) -> Vec<ByteRange> {
        let mut state = State {
            next: 0,
            seen: 0,
            missing: 0,
            noted: 0,
            brought: Vec::new(),
        };
        let starts = (0..end).step_by(len as usize);
        let piece = |start: u64| ByteRange::between(start, end.min(start + len));
        starts
            .map(|start| {
                let look = state.look(piece(start), end, ahead);
                assert!(state.seen >= piece(start).end());
                look
            })
            .collect()
    }

    #[test]
    fn looks_cover_everything_once() {
        const END: u64 = (200 << 20) + 12_345;
        for len in [1_000, 4096, 256 << 10, 5 << 20] {
            for ahead in [LOOK, AHEAD] {
                let mut seen = 0;
                for look in looks(len, END, ahead) {
                    assert_eq!(look.start(), seen);
                    assert!(look.len() <= LOOK + len);
                    seen = look.end();
                }
                assert_eq!(seen, END);
            }
        }
    }

    #[test]
    fn look_is_for_several_pieces() {
        let looks = looks(256 << 10, 200 << 20, AHEAD);
        let looks = looks.iter().filter(|look| !look.is_empty());
        assert_eq!(looks.count(), 100);
    }
}
