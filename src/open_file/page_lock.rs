//! Locks pages in memory, and keeps them locked when their map is replaced.
//!
//! The system locks the pages of a mapping, and a file that outgrows its map gets a new one. So the
//! pages that are locked are noted here, and whatever makes another map the current one locks them
//! there first. Only pages of the current maps are locked, and only those that are noted.
//!
//! Operations that lock and unlock pages take turns, each for as long as it runs, so that one which
//! fails halfway can unlock what it has locked and nothing else.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rangemap::RangeSet;

use super::maps::Mapped;
use super::OpenFile;
use crate::error::{MmapIoError, Result};
use crate::map::{Map, Protection};
use crate::range::{ByteRange, PageRange, MAX_LEN};
use crate::residency;
use crate::sync::lock;
use crate::sys;
use crate::wakers::Event;

/// The most bytes of one call, during which the kernel holds the address space's lock.
const STEP: u64 = 8 << 20;

/// The pages that are locked in a current map, as ranges of bytes.
pub(super) type LockedPages = RangeSet<u64>;

/// Whose turn it is to lock and unlock pages.
#[derive(Debug)]
pub(super) struct PageLockTurns {
    is_taken: AtomicBool,
    ended: Event,
}

impl PageLockTurns {
    pub(super) const fn new() -> Self {
        Self {
            is_taken: AtomicBool::new(false),
            ended: Event::new(),
        }
    }
}

/// The turn to lock and unlock pages of a file; its drop ends the turn.
#[derive(Debug)]
#[must_use]
pub(crate) struct PageLockTurn(Arc<OpenFile>);

impl Drop for PageLockTurn {
    fn drop(&mut self) {
        let turns = &self.0.page_lock_turns;
        // Release: pairs with the swap of the next turn.
        turns.is_taken.store(false, Ordering::Release);
        // A forked child has no task that waits, and a lock may stay locked there forever.
        if !sys::is_forked() {
            turns.ended.notify();
        }
    }
}

impl OpenFile {
    /// Waits, as a task, for the turn to lock and unlock pages. The turn is taken only by a poll,
    /// and the caller gives it to a job in the same poll: a future that is never polled again keeps
    /// no turn.
    pub(crate) async fn page_lock_turn(self: &Arc<Self>) -> PageLockTurn {
        loop {
            let ended = self.page_lock_turns.ended.listen();
            // Acquire: pairs with the end of the turn before.
            if !self.page_lock_turns.is_taken.swap(true, Ordering::Acquire) {
                return PageLockTurn(self.clone());
            }
            ended.await;
        }
    }

    /// Reads the pages of a range into memory, and locks them in the map of a protection. Blocks.
    ///
    /// # Errors
    ///
    /// Those of [`read_in`](Self::read_in), or `LockFailed`; then no page is locked that was not
    /// locked before.
    pub(crate) fn lock_pages(
        &self,
        _turn: &PageLockTurn,
        protection: Protection,
        range: ByteRange,
    ) -> Result<()> {
        let mut added = Vec::new();
        for step in range.to_pages(sys::page_size()).steps(STEP) {
            if let Err(error) = self.lock_step(protection, range, step, &mut added) {
                let mapped = self.mapped[protection as usize].get();
                for pages in added {
                    // The error of the lock is the one to report.
                    let _ = mapped.map(|mapped| mapped.unlock(pages));
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Locks a step of a range, and notes in `added` which of its pages were not locked before.
    fn lock_step(
        &self,
        protection: Protection,
        range: ByteRange,
        step: PageRange,
        added: &mut Vec<PageRange>,
    ) -> Result<()> {
        let part = range.intersection(step.into());
        loop {
            let cuts = self.cuts();
            range.check(self.len())?;
            self.read_in(protection, &[part])?;
            let Some(mapped) = self.mapped[protection as usize].get() else {
                return Ok(());
            };
            // While it is held, the current map stays the current one.
            let mut locked = lock(&mapped.locked);
            range.check(self.len())?;
            let Some(map) = mapped.current() else {
                return Ok(());
            };
            let before: Vec<PageRange> = overlapping(&locked, step).collect();
            let new = step.without(&before);
            // SAFETY: `Map::run` has checked that the pages are inside the map, which `map` keeps
            // live.
            let Err(error) = (unsafe { sys::lock_pages(map.run(step)) }) else {
                locked.insert(ByteRange::from(step).into());
                added.extend(new);
                return Ok(());
            };
            for pages in new {
                // SAFETY: as above. The failed call may have locked some of the pages.
                let _ = unsafe { sys::unlock_pages(map.run(pages)) };
            }
            drop(locked);
            // If this process has cut the file, the next round reports that, or succeeds.
            if self.cuts() == cuts {
                residency::check_length(mapped.backing.file(), &[part])?;
                return Err(MmapIoError::lock_failed(error));
            }
        }
    }

    /// Unlocks the pages of a range in every map. Blocks.
    ///
    /// # Errors
    ///
    /// `UnlockFailed`; some of the pages may be unlocked then.
    pub(crate) fn unlock_pages(&self, _turn: &PageLockTurn, range: ByteRange) -> Result<()> {
        let pages = range.to_pages(sys::page_size());
        for mapped in self.mapped.iter().filter_map(OnceLock::get) {
            let unlocked = mapped.unlock(pages);
            unlocked.map_err(|error| MmapIoError::UnlockFailed(error.into()))?;
        }
        Ok(())
    }

    /// Unlocks the pages that were cut off: if the file grows again, those are other pages.
    pub(super) fn unlock_past(&self, len: u64) {
        let page = sys::page_size() as u64;
        let [start, end] = [len, MAX_LEN].map(|at| at.next_multiple_of(page));
        let past = ByteRange::between(start, end).to_pages(sys::page_size());
        for mapped in self.mapped.iter().filter_map(OnceLock::get) {
            // It can fail only if the process has too many mappings. Then the pages that come later
            // are locked as well, until the map is replaced. They are not noted, since a new map
            // may be too short for them.
            if mapped.unlock(past).is_err() {
                lock(&mapped.locked).remove(ByteRange::from(past).into());
            }
        }
    }

    /// Makes a map the current one of its protection, with the same pages locked as in the map
    /// before.
    ///
    /// # Errors
    ///
    /// The system does not lock them; then the map before stays the current one.
    pub(super) fn replace_map(
        &self,
        mapped: &Mapped,
        protection: Protection,
        map: Map,
    ) -> io::Result<()> {
        if self.huge_pages.load(Ordering::Relaxed) {
            map.use_huge_pages();
        }
        let locked = lock(&mapped.locked);
        if let Some(before) = mapped.current() {
            move_locks(&locked, &before, &map)?;
        }
        let mut maps = lock(&mapped.maps);
        self.set_base(protection, &map);
        maps.push(Arc::new(map));
        drop(maps);
        self.settle();
        Ok(())
    }
}

impl Mapped {
    /// Unlocks those pages of a range that are locked.
    fn unlock(&self, range: PageRange) -> io::Result<()> {
        loop {
            let mut locked = lock(&self.locked);
            let next = overlapping(&locked, range).flat_map(|pages| pages.steps(STEP));
            let Some((pages, map)) = { next }.next().zip(self.current()) else {
                return Ok(());
            };
            // SAFETY: `Map::run` has checked that the pages are inside the map, which `map` keeps
            // live.
            unsafe { sys::unlock_pages(map.run(pages)) }?;
            locked.remove(ByteRange::from(pages).into());
        }
    }
}

/// Locks pages in a new map, and unlocks them in the map before.
///
/// Both count against the limit of the process. If it has no room for both, the pages are unlocked
/// for a moment.
pub(super) fn move_locks(locked: &LockedPages, before: &Map, map: &Map) -> io::Result<()> {
    let locked_in_both = lock_all(locked, map);
    unlock_all(locked, before);
    if locked_in_both.is_err() {
        if let Err(error) = lock_all(locked, map) {
            // The pages were locked there until now, so that there should be room for them.
            let _ = lock_all(locked, before);
            return Err(error);
        }
    }
    Ok(())
}

fn lock_all(locked: &LockedPages, map: &Map) -> io::Result<()> {
    for step in steps(locked) {
        // SAFETY: `Map::run` has checked that the pages are inside the map, which is borrowed and
        // so live.
        unsafe { sys::lock_pages(map.run(step)) }?;
    }
    Ok(())
}

fn unlock_all(locked: &LockedPages, map: &Map) {
    for step in steps(locked) {
        // SAFETY: as in `lock_all`.
        // If it fails, the pages are unlocked when the map is unmapped.
        let _ = unsafe { sys::unlock_pages(map.run(step)) };
    }
}

fn steps(locked: &LockedPages) -> impl Iterator<Item = PageRange> + '_ {
    locked.iter().flat_map(|range| pages(range).steps(STEP))
}

/// Returns which pages of a range are locked, in their order.
pub(super) fn overlapping(
    locked: &LockedPages,
    range: PageRange,
) -> impl Iterator<Item = PageRange> + '_ {
    let range = ByteRange::from(range);
    let found = locked.overlapping(Range::from(range));
    let found = found.filter(move |_| !range.is_empty());
    found.map(move |found| {
        let found = ByteRange::from(found.clone()).intersection(range);
        found.to_pages(sys::page_size())
    })
}

fn pages(range: &Range<u64>) -> PageRange {
    ByteRange::from(range.clone()).to_pages(sys::page_size())
}
