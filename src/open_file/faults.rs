//! Pages that the fault guard has replaced by zeroes: every operation on their file fails, until
//! the file is mapped again.
//!
//! The file has lost pages if one of its maps that are attached to it has ([`Guarded`]). The signal
//! handler notes that in the map, and then removes both addresses in [`Hot::bases`](super::Hot). An
//! operation asks for the address of its protection. If there is none, it looks at the maps.
//!
//! Bytes that another process has cut off are lost to this process, and to the map only until the
//! file is mapped again: [`map_again`](OpenFile::map_again). A page inside the file is lost because
//! a disk has failed, or is full. What was stored to it has gone, and what was read from it was
//! wrong; so that error sticks to the file.

use std::ptr::null_mut;
use std::sync::atomic::{compiler_fence, Ordering};
use std::sync::{Arc, MutexGuard, OnceLock, PoisonError, Weak};

use super::apply::Operation;
use super::durability::TIMER;
use super::maps::Mapped;
use super::page_lock::{move_locks, LockedPages};
use super::{OpenFile, OwnedLease};
use crate::error::{MmapIoError, Result};
use crate::fault_guard::{Guarded, Lost, IS_ON};
use crate::map::{Map, Protection};
use crate::queue::{Action, Ended, Queue};
use crate::range::ByteRange;
use crate::sync::lock;
use crate::sys;

const PROTECTIONS: [Protection; 2] = [Protection::Read, Protection::ReadWrite];

impl OpenFile {
    /// Fails with `Faulted` if a page of the file was lost. Called at the beginning of an operation,
    /// and after a copy from or into the map of `protection`. Costs a load from a line that every
    /// operation loads.
    #[inline]
    pub(crate) fn check_whole(&self, protection: Protection) -> Result<()> {
        if !IS_ON {
            return Ok(());
        }
        // The compiler must not move a copy behind the load. An Acquire load would not prevent
        // that. No fence of the processor is needed: the signal handler that removes the address
        // runs in the thread that copies.
        compiler_fence(Ordering::SeqCst);
        match self.base(protection).is_null() {
            false => Ok(()),
            true => self.find_loss(),
        }
    }

    /// Does the same for the maps of all protections.
    pub(crate) fn check_maps(&self) -> Result<()> {
        let mapped = |protection: &Protection| self.mapped[*protection as usize].get().is_some();
        match PROTECTIONS.into_iter().find(mapped) {
            // A loss in the map of one protection removes the addresses of both.
            Some(protection) => self.check_whole(protection),
            None => Ok(()),
        }
    }

    /// Whether a page of the file was lost.
    pub(crate) fn has_lost_pages(&self) -> bool {
        self.check_maps().is_err()
    }

    #[cold]
    fn find_loss(&self) -> Result<()> {
        if sys::is_forked() {
            // A lock may stay locked forever there, and nothing can be mapped again.
            return Err(MmapIoError::Faulted { offset: 0 });
        }
        let lost = self.settle();
        match lost.is_nothing() {
            true => Ok(()),
            false => Err(lost.error()),
        }
    }

    /// Makes the addresses agree with the maps: removes them if a page was lost, and puts them back
    /// if none was. Returns what was lost.
    ///
    /// The signal handler may run at any time. It notes the loss in the map (1), loads whether the
    /// map is attached (2), and removes the addresses (3). All are SeqCst, as are the stores of
    /// addresses and the loads of losses here. If an address is stored before (3), the handler
    /// removes it. Otherwise (1) comes before that store, and the loss is found after it.
    ///
    /// A handler that is held up between (2) and (3) may remove addresses of maps that have lost
    /// nothing, after the file was mapped again. The next operation puts them back: those of the
    /// last maps, which cannot change here, since the lists are locked.
    pub(super) fn settle(&self) -> Lost {
        if !IS_ON {
            return Lost::NOTHING;
        }
        let all = self.lock_maps();
        let lost = || {
            let maps = all.iter().flat_map(|(_, maps)| maps.iter());
            let lost = maps.map(|map| map.guarded().lost_of_the_file());
            lost.fold(Lost::NOTHING, Lost::or)
        };
        if lost().is_nothing() {
            for (protection, maps) in &all {
                match maps.last() {
                    Some(map) if self.base(*protection).is_null() => {
                        self.set_base(*protection, map);
                    }
                    _ => {}
                }
            }
        }
        let lost = lost();
        if !lost.is_nothing() {
            for base in &self.hot.bases {
                base.store(null_mut(), Ordering::SeqCst);
            }
        }
        lost
    }

    /// Locks the lists of maps, always in this order. No other code holds two of them.
    fn lock_maps(&self) -> Vec<(Protection, MutexGuard<'_, Vec<Arc<Map>>>)> {
        let maps = |protection: Protection| {
            let mapped = self.mapped[protection as usize].get()?;
            Some((protection, lock(&mapped.maps)))
        };
        PROTECTIONS.into_iter().filter_map(maps).collect()
    }

    /// Fails the operations of a batch if a page of the file was lost, and returns whether it has.
    /// What adopts the length of the file goes on, since that may map the file again.
    pub(super) fn refuse_faulted(
        &self,
        batch: &[Operation],
        ended: &mut Ended<OwnedLease>,
    ) -> bool {
        let Err(error) = self.check_maps() else {
            return false;
        };
        let adopts =
            |op: &Operation| matches!(op.action, Action::AdoptFileLen | Action::SetLenIfEmpty);
        if batch.iter().any(adopts) {
            return false;
        }
        for op in batch {
            self.fail(op, error.clone(), ended);
        }
        true
    }

    /// Maps the file again if a page was lost because another process has cut the file. Only the
    /// drain calls it, after it has adopted the length of the file.
    ///
    /// Views of the maps before stay as they are, and show zeroes where pages were lost.
    ///
    /// # Errors
    ///
    /// `Faulted` if a page inside the file was lost; of private pages; and as long as a view exists
    /// through which its holder may write, since it would write to a map that is not the file.
    pub(super) fn map_again(&self) -> Result<()> {
        let lost = self.settle();
        if lost.is_nothing() {
            return Ok(());
        }
        let has_writers = || self.hot.leases.has_writing_views();
        if lost.is_of_the_file() || self.is_private() || has_writers() {
            return Err(lost.error());
        }
        // No view can be made in the meantime, since there is no address.
        let _no_new_maps = lock(&self.len_to_map);
        // A map of no bytes does not exist.
        let len = self.len().max(1);
        let mut fresh = Vec::new();
        for protection in PROTECTIONS {
            let mapped = self.mapped[protection as usize].get();
            let Some((mapped, before)) = mapped.and_then(|it| Some((it, it.current()?))) else {
                continue;
            };
            let map = Map::new(before.backing(), len, protection)?;
            if self.huge_pages.load(Ordering::Relaxed) {
                map.use_huge_pages();
            }
            fresh.push((mapped, before, Arc::new(map)));
        }
        // Only when all maps are made: the locks of a map that is dropped go with it.
        let mut moved: Vec<MutexGuard<'_, LockedPages>> = Vec::new();
        for (mapped, before, map) in &fresh {
            let locked = lock(&mapped.locked);
            if let Err(error) = move_locks(&locked, before, map) {
                for ((_, before, map), locked) in fresh.iter().zip(&moved) {
                    // The error that came first is the one to report.
                    let _ = move_locks(locked, map, before);
                }
                return Err(error.into());
            }
            moved.push(locked);
        }
        // What was stored to the zeroes has not reached the file. Before the maps are replaced, so that
        // a flush which is running finds this loss if it does not find the lost pages.
        {
            let mut losses = lock(&self.losses);
            if let Some(gone) = self.dirty.truncate(lost.cut_at()) {
                let offset = gone.to_pages(sys::page_size()).start();
                losses.add(MmapIoError::Faulted { offset });
            }
        }
        self.replace_all(fresh.into_iter().map(|(_, _, map)| map));
        drop(moved);
        self.cancel_alarm_if_clean();
        if let Some(this) = self.this.upgrade() {
            // An alarm that has rung in the meantime was of no use.
            TIMER.update(&this);
            // Growth that views have blocked: they may show no byte any more that it would change.
            Queue::restart(&this, ByteRange::between(0, u64::MAX));
        }
        Ok(())
    }

    /// Makes maps the current ones, in the order of the protections.
    fn replace_all(&self, fresh: impl Iterator<Item = Arc<Map>>) {
        let before: Vec<Arc<Map>> = {
            let all = self.lock_maps();
            all.iter()
                .flat_map(|(_, maps)| maps.iter().cloned())
                .collect()
        };
        let len = self.len();
        let hide = |old: &Arc<Map>| {
            // SAFETY: the drain has just asked the file for its length. No view exists through
            // which its holder may write, and this is the drain.
            unsafe { old.hide_behind(len) }
        };
        // Without a lock on the lists, which operations wait for.
        let are_hidden = before.iter().all(hide);
        let mut all = self.lock_maps();
        all.retain(|(_, maps)| !maps.is_empty());
        before.iter().for_each(|old| old.guarded().detach());
        for ((protection, maps), map) in all.iter_mut().zip(fresh) {
            self.set_base(*protection, &map);
            maps.push(map);
        }
        drop(all);
        let has_private = lock(&self.private)
            .iter()
            .any(|private| Weak::strong_count(private) > 0);
        if are_hidden && !has_private {
            // No view shows the file behind its last page any more, so growth need not wait for
            // views there. Relaxed: as all accesses by the drain.
            let last_page = len.next_multiple_of(sys::page_size() as u64);
            self.shown_end.fetch_min(last_page, Ordering::Relaxed);
        }
        self.settle();
    }

    /// Detaches all maps, which may live longer than this.
    pub(super) fn detach_maps(&mut self) {
        if !IS_ON {
            return;
        }
        for mapped in self.mapped.iter_mut().filter_map(OnceLock::get_mut) {
            let Mapped { maps, .. } = mapped;
            let maps = maps.get_mut().unwrap_or_else(PoisonError::into_inner);
            maps.iter()
                .map(|map| map.guarded())
                .for_each(Guarded::detach);
        }
    }
}

#[cfg(all(test, target_os = "linux", feature = "fault-guard", not(mmap_io_loom)))]
mod tests {
    use std::fs::File;
    use std::hint::black_box;

    use super::*;
    use crate::file::MemoryMappedFile;
    use crate::lease::CopyLease;
    use crate::range::ByteRange;

    /// The file is cut, and mapped again, in the middle of a copy.
    #[test]
    fn copy_of_lost_pages_fails_beside_new_map() {
        const LEN: u64 = 100_000;
        const CUT: u64 = 4096;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        std::fs::write(&path, vec![1; LEN as usize]).unwrap();
        let cut = File::options().write(true).open(&path).unwrap();
        let file = futures_lite::future::block_on(MemoryMappedFile::open_ro(&path)).unwrap();
        let open: &Arc<OpenFile> = &file.handle.shared;
        let copy = |range: ByteRange, between: &dyn Fn(&[u8])| {
            let lease = CopyLease::try_new(open.clone(), range).ok().unwrap();
            file.copy_out(&lease, range, between)
        };
        let lost = ByteRange::between(LEN - 10, LEN);
        let copied = copy(lost, &|bytes| {
            cut.set_len(CUT).unwrap();
            assert_eq!(black_box(bytes[0]), 0);
            open.adopt_file_len().unwrap();
        });
        assert!(
            matches!(copied, Err(MmapIoError::OutOfBounds { total: CUT, .. })),
            "{copied:?}"
        );
        let left = ByteRange::between(0, CUT);
        copy(left, &|bytes| assert_eq!(bytes, [1; CUT as usize])).unwrap();
    }
}
