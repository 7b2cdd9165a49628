//! Reads a range in, piece by piece, each while the caller uses the one before.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::MemoryMappedFile;
use crate::descriptor::Descriptor;
use crate::fairness::operation;
use crate::map::Protection;
use crate::offload::{check, spawn};
use crate::open_file::OpenFile;
use crate::range::{ByteRange, PageRange};
use crate::residency;
use crate::sync::lock;
use crate::sys;

/// How many bytes behind a piece the disk is asked for, so that it does not pause between pieces.
const AHEAD: u64 = 2 << 20;

/// How far behind a piece the pages are noted that are not in memory, so that a reader which drops
/// what it has brought in can tell them. More than the system itself reads ahead, when a page is
/// touched that an earlier reader has left with a mark to do so.
const NOTED: u64 = 32 << 20;

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
    /// From the first piece up to here, the pages were in memory, or were read in.
    known: u64,
    /// Beyond `known` and up to here, the disk was asked for the pages.
    asked: u64,
    /// The pages up to here were noted in `brought`, if they were not in memory.
    noted: u64,
    /// The pages that this reader brings into the cache, if it drops them later. Sorted.
    brought: Vec<PageRange>,
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
                known: start,
                asked: start,
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

    /// Reads a piece in, and asks the disk for what follows it, up to `end`. `None` if all of that
    /// is in memory, and pages that were passed stay there.
    ///
    /// Errors are not reported: the read of the piece itself finds them again.
    pub(crate) fn advance(
        self: &Arc<Self>,
        piece: ByteRange,
        end: u64,
    ) -> Option<impl Future<Output = ()> + Send + 'static> {
        // The read of the piece says so as well; the lock may stay locked forever.
        check().ok()?;
        let is_resident = |range| self.shared.is_resident(self.protection, range);
        let mut state = lock(&self.state);
        if piece.start() != state.next {
            // What lies between was neither asked for nor noted.
            (state.known, state.asked) = (piece.start(), piece.start());
            state.noted = piece.start();
        }
        state.next = piece.end();
        let until = end.min(piece.end() + AHEAD).max(state.asked);
        let next = ByteRange::between(state.asked, until);
        let is_next_resident = next.is_empty() || is_resident(next);
        if is_next_resident && state.known == state.asked {
            state.known = until;
        }
        state.asked = until;
        let is_resident = is_next_resident && (piece.end() <= state.known || is_resident(piece));
        let drops_behind = self.drops_behind.load(Ordering::Relaxed);
        let noted = match drops_behind {
            true => {
                let until = end.min(piece.end() + NOTED).max(state.noted);
                let from = std::mem::replace(&mut state.noted, until);
                ByteRange::between(from, until)
            }
            false if is_resident => {
                state.known = state.known.max(piece.end());
                return None;
            }
            false => ByteRange::EMPTY,
        };
        drop(state);
        let this = Arc::clone(self);
        let missing = match is_resident {
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
            shared.read_ahead(this.protection, piece, next);
            let mut state = lock(&this.state);
            state.known = state.known.max(piece.end());
            Ok(())
        });
        Some(async move {
            // See above.
            let _ = operation("reading ahead", (piece.start(), piece.len()), read).await;
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
