//! Manages the maps of a file: makes them, finds them, and unmaps those that are outgrown.

use std::fs::File;
use std::future::Future;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::page_lock::{overlapping, LockedPages};
use super::OpenFile;
use crate::descriptor::Descriptor;
use crate::error::{MmapIoError, Result};
use crate::fault_guard::IS_ON;
use crate::lease::{Asks, Kind, Lease, LeaseHost};
use crate::map::{Backing, Map, Protection, Span, RESERVES};
use crate::offload::offload_read_in;
use crate::range::{ByteRange, PageRange, MAX_LEN};
use crate::residency;
use crate::sync::lock;
use crate::sys::{self, Advice, CacheHint, FsTraits};
use crate::wakers::scope;

/// How long an opening that must replace a map waits for views that end within a moment.
const BRIEFLY: Duration = Duration::from_millis(1);

/// The maps of one protection.
#[derive(Debug)]
pub(super) struct Mapped {
    pub(super) backing: Backing,
    pub(super) fs_traits: FsTraits,
    /// The last map is the current one. The maps before it are outgrown, and are kept because views
    /// may point into them.
    pub(super) maps: Mutex<Vec<Arc<Map>>>,
    /// The pages that are locked in the current map. As long as the mutex is held, that map stays
    /// the current one.
    pub(super) locked: Mutex<LockedPages>,
}

impl Mapped {
    pub(super) fn current(&self) -> Option<Arc<Map>> {
        lock(&self.maps).last().cloned()
    }
}

/// A descriptor to map a file through.
#[derive(Debug)]
pub(crate) struct Source {
    file: Arc<Descriptor>,
    pub(super) fs_traits: FsTraits,
    /// The birth time of the file that a map shows; known only where files are copied up.
    born: Option<SystemTime>,
}

impl Source {
    /// Chooses the descriptor to map through: `file` itself or, to read where files are copied up,
    /// a newer descriptor, since `file` may have been opened before the copy was made.
    pub(crate) fn new(file: &Arc<Descriptor>, fs_traits: FsTraits, protection: Protection) -> Self {
        let mut source = Self {
            file: file.clone(),
            fs_traits,
            born: None,
        };
        if fs_traits.copies_up && protection == Protection::Read {
            // The birth time first, then the descriptor: a copy that is made in between looks like
            // one that was made later, and the map is replaced once more than necessary.
            source.born = born(file);
            if let Ok(newer) = sys::reopen(file, false) {
                source.file = Descriptor::new(newer);
            }
        }
        if fs_traits.in_memory || (fs_traits.is_local && protection == Protection::Read) {
            source.file.writes_nothing_out();
        }
        source
    }

    /// Maps the first `len` bytes.
    pub(crate) fn map(&self, len: u64, protection: Protection) -> io::Result<Map> {
        Map::new(&Backing::File(self.file.clone()), len, protection)
    }
}

pub(super) fn born(file: &File) -> Option<SystemTime> {
    sys::file_info(file).ok()?.born
}

impl OpenFile {
    /// Maps the file through `source`, if no handle has asked for the protection before. Where
    /// files are copied up, maps through the descriptor that writes, if there is one.
    ///
    /// # Errors
    ///
    /// `Busy` if the file was copied up, and a view shows the file from before the copy.
    pub(crate) fn attach(&self, source: Source, protection: Protection) -> Result<()> {
        // In a scope, so that no waker runs under the lock.
        scope(|| self.attach_in_scope(source, protection))
    }

    fn attach_in_scope(&self, source: Source, protection: Protection) -> Result<()> {
        let len_to_map = lock(&self.len_to_map);
        let source = match self.mapped[Protection::ReadWrite as usize].get() {
            Some(Mapped {
                backing: Backing::File(file),
                ..
            }) if source.fs_traits.copies_up => Source {
                file: file.clone(),
                ..source
            },
            _ => source,
        };
        let len = self.len().max(*len_to_map);
        if source.fs_traits.copies_up {
            self.follow_copy(&source, len, protection)?;
        }
        if self.mapped[protection as usize].get().is_none() {
            let can_map = len > 0 || RESERVES;
            let map = can_map.then(|| source.map(len, protection)).transpose()?;
            self.install(map, &source, protection);
        }
        Ok(())
    }

    /// Replaces the read-only map by one of `len` bytes if the file was copied up after the map's
    /// descriptor was opened: such a map never shows a write of this crate.
    ///
    /// It requires that no view exists. A slice would not notice the difference, since writes wait
    /// for it; but an atomic view is meant to see changes, and would see none.
    fn follow_copy(&self, source: &Source, len: u64, protection: Protection) -> Result<()> {
        let (mapped, map) = (
            self.mapped[Protection::Read as usize].get(),
            self.map(Protection::Read),
        );
        let (Some(mapped), Some(map)) = (mapped, map) else {
            return Ok(());
        };
        if matches!(map.backing(), Backing::File(file) if Arc::ptr_eq(file, &source.file)) {
            return Ok(());
        }
        let now = match protection {
            Protection::Read => source.born,
            Protection::ReadWrite => born(&source.file),
        };
        let shown = *lock(&self.shown);
        let is_current = match (shown, now) {
            (Some(shown), Some(now)) => shown == now,
            // The birth times are unknown: opening a descriptor that writes has always copied the
            // file up, opening one that reads has not.
            _ => protection == Protection::Read,
        };
        if is_current {
            return Ok(());
        }
        let map = source.map(len, Protection::Read)?;
        let _exclusive = self.lease_everything()?;
        self.replace_map(mapped, Protection::Read, map)?;
        *lock(&self.shown) = now;
        Ok(())
    }

    /// Takes an exclusive lease on the whole file; waits for views that end within a moment.
    pub(super) fn lease_everything(&self) -> Result<Lease<&Self>> {
        let everything = ByteRange::between(0, MAX_LEN);
        let began = Instant::now();
        loop {
            if let Some(lease) = Lease::try_acquire(self, Kind::Exclusive, everything, Asks::Queue)?
            {
                return Ok(lease);
            }
            if began.elapsed() > BRIEFLY {
                return Err(ByteRange::between(0, self.len()).busy());
            }
            thread::yield_now();
        }
    }

    pub(super) fn install(&self, map: Option<Map>, source: &Source, protection: Protection) {
        if protection == Protection::Read {
            *lock(&self.shown) = source.born;
        }
        let backing = Backing::File(source.file.clone());
        self.set_map(map, backing, source.fs_traits, protection);
        if protection == Protection::ReadWrite {
            // This process or another one may have created or resized the file without making the
            // length durable.
            self.mark_length_unsynced();
        }
    }

    pub(super) fn set_map(
        &self,
        map: Option<Map>,
        backing: Backing,
        fs_traits: FsTraits,
        protection: Protection,
    ) {
        let map = map.map(Arc::new);
        if let Some(map) = &map {
            if self.huge_pages.load(Ordering::Relaxed) {
                map.use_huge_pages();
            }
            self.set_base(protection, map);
        }
        let _ = self.mapped[protection as usize].set(Mapped {
            backing,
            fs_traits,
            maps: Mutex::new(map.into_iter().collect()),
            locked: Mutex::default(),
        });
        self.settle();
    }

    /// Asks the system to use huge pages for the current maps and those that replace them.
    pub(crate) fn use_huge_pages(&self) {
        // While it is held, no map is made that could miss the mark.
        let _no_new_maps = lock(&self.len_to_map);
        self.huge_pages.store(true, Ordering::Relaxed);
        let mapped = self.mapped.iter().filter_map(OnceLock::get);
        for map in mapped.filter_map(Mapped::current) {
            map.use_huge_pages();
        }
    }

    /// Returns the descriptor through which the file was first mapped with a protection. All
    /// handles with that protection use it, and it stays open as long as the file.
    ///
    /// # Panics
    ///
    /// For anonymous memory, and before [`attach`](Self::attach).
    pub(crate) fn descriptor(&self, protection: Protection) -> &Arc<Descriptor> {
        let descriptor = self.descriptor_if_mapped(protection);
        descriptor.expect("only handles that are attached to a file need its descriptor")
    }

    /// Returns the same descriptor, if there is one.
    pub(crate) fn descriptor_if_mapped(&self, protection: Protection) -> Option<&Arc<Descriptor>> {
        self.mapped[protection as usize].get()?.backing.descriptor()
    }

    /// Returns the address of a range in the current map, if the range is inside the file.
    ///
    /// If the caller took a lease on the range before this call, the answer stays true: this process
    /// does not cut off leased bytes, and the map is kept, also after `map_again`. Without a lease,
    /// the map may have gone.
    #[inline]
    pub(crate) fn span_within(&self, protection: Protection, range: ByteRange) -> Option<Span> {
        self.span_within_calling(protection, range, || ())
    }

    /// Does the same; `between` runs between the load of the length and that of the address.
    #[inline(always)]
    fn span_within_calling(
        &self,
        protection: Protection,
        range: ByteRange,
        mut between: impl FnMut(),
    ) -> Option<Span> {
        loop {
            let before = IS_ON.then(|| self.base(protection));
            if range.end() > self.len() {
                return None;
            }
            between();
            let base = self.base(protection);
            // Between the two loads the file may have been cut and mapped again, by a shorter map:
            // `map_again` waits for no reader. A map that was replaced never comes back, so if both
            // bases are those of one map, it was the current one when the length was loaded.
            if before.is_some_and(|before| base != before) {
                continue;
            }
            let base = NonNull::new(base)?;
            // SAFETY: the range is inside the length that was read above, and the base is that of a
            // map which covers that length: `cover` stores the base before the length, and where a
            // shorter map can follow, it was the base when the length was read as well.
            return Some(unsafe { Span::in_map(base, range) });
        }
    }

    /// Returns the same address.
    ///
    /// # Errors
    ///
    /// `OutOfBounds`; `Faulted` if a page of the file was lost.
    pub(crate) fn span(&self, protection: Protection, range: ByteRange) -> Result<Span> {
        loop {
            if let Some(span) = self.span_within(protection, range) {
                return Ok(span);
            }
            range.check(self.len())?;
            // If it succeeds, there is an address again.
            self.check_whole(protection)?;
        }
    }

    /// Returns the current map; `None` if there is none, as for an empty file that cannot be
    /// mapped.
    ///
    /// The map covers the length of this moment, and perhaps not one that the caller has read
    /// before: a file that was cut may have been mapped again, by a shorter map.
    /// [`map_within`](Self::map_within) returns a map for a range.
    pub(crate) fn map(&self, protection: Protection) -> Option<Arc<Map>> {
        self.mapped[protection as usize].get()?.current()
    }

    /// Returns the current map, which covers the range.
    ///
    /// # Errors
    ///
    /// `OutOfBounds` if the range is not inside the file.
    pub(crate) fn map_within(&self, protection: Protection, range: ByteRange) -> Result<Arc<Map>> {
        self.mapped_within(protection, range).map(|(_, map)| map)
    }

    fn mapped_within(
        &self,
        protection: Protection,
        range: ByteRange,
    ) -> Result<(&Mapped, Arc<Map>)> {
        loop {
            let len = self.len();
            range.check(len)?;
            let mapped = self.mapped[protection as usize].get();
            let mapped = mapped.and_then(|mapped| Some((mapped, mapped.current()?)));
            // A file with bytes has a map.
            let (mapped, map) = mapped.ok_or_else(|| range.out_of_bounds(len))?;
            // If the map is shorter, the file was cut after its length was loaded.
            if range.end() <= map.capacity() {
                return Ok((mapped, map));
            }
        }
    }

    /// Returns the address of the current map; null if there is none.
    #[inline]
    pub(crate) fn base(&self, protection: Protection) -> *mut u8 {
        // Acquire: pairs with `set_base`.
        self.hot.bases[protection as usize].load(Ordering::Acquire)
    }

    /// Forgets which pages around a range can be stored to without a fault: they are about to be
    /// cleaned, unmapped, or made dirty by other means.
    pub(crate) fn forget_writable(&self, range: ByteRange) {
        if let Some(map) = self.map(Protection::ReadWrite) {
            map.writable().forget(range);
        }
    }

    /// Forgets which pages around a range can be stored to without a fault, and runs `change`, which
    /// cleans or unmaps them. Then forgets them again: the drain may have made pages writable before
    /// `change` came to them.
    pub(crate) fn while_not_writable<T>(&self, range: ByteRange, change: impl FnOnce() -> T) -> T {
        self.forget_writable(range);
        let changed = change();
        self.forget_writable(range);
        changed
    }

    /// Unmaps the outgrown maps, if no view can point into them. Blocks.
    ///
    /// 1. A lease that is taken before the fence is included in the count, and all maps stay.
    /// 2. A reader that takes its lease after the fence loads the address of the map after taking
    ///    the lease, and so finds the current map, whose address was stored before the fence.
    ///
    /// They stay as long as the file has lost pages: the loss is noted in the map that was touched,
    /// and its bytes are to be reported. Without views no map loses pages in the meantime.
    pub(super) fn forget_outgrown(&self) -> io::Result<()> {
        let is_outgrown = |mapped: &Mapped| lock(&mapped.maps).len() > 1;
        if !self
            .mapped
            .iter()
            .filter_map(OnceLock::get)
            .any(is_outgrown)
        {
            return Ok(());
        }
        if self.hot.leases.count_after_fence()? > 0 || !self.settle().is_nothing() {
            return Ok(());
        }
        for mapped in self.mapped.iter().filter_map(OnceLock::get) {
            let mut maps = lock(&mapped.maps);
            let current = maps.pop();
            let outgrown = std::mem::take(&mut *maps);
            maps.extend(current);
            drop(maps);
            // A job that still works on an outgrown map holds its own reference.
            drop(outgrown);
        }
        Ok(())
    }

    /// Whether a range is in memory, as far as the system tells without waiting.
    pub(crate) fn is_resident(&self, protection: Protection, range: ByteRange) -> bool {
        self.ask(protection, range, residency::is_resident)
    }

    /// Whether a range is in memory, or will be soon without being asked for.
    pub(crate) fn is_cached_or_read(&self, protection: Protection, range: ByteRange) -> bool {
        self.ask(protection, range, residency::is_cached_or_read)
    }

    fn ask(
        &self,
        protection: Protection,
        range: ByteRange,
        question: fn(sys::Run, &Backing, FsTraits, ByteRange) -> bool,
    ) -> bool {
        let mapped = self.mapped[protection as usize].get();
        mapped.is_some_and(|mapped| {
            // Without a lease the map may be unmapped at any time; the system is only asked about
            // the address, and nothing is accessed there.
            let run = sys::Run::at(self.base(protection), range.to_pages(sys::page_size()));
            question(run, &mapped.backing, mapped.fs_traits, range)
        })
    }

    /// Reads the pages of all ranges into memory. Blocks.
    ///
    /// # Errors
    ///
    /// `OutOfBounds` if a shrink came first, those of [`residency::populate_read`], and `Faulted`.
    pub(crate) fn read_in(&self, protection: Protection, ranges: &[ByteRange]) -> Result<()> {
        let Some(furthest) = ranges.iter().copied().max_by_key(|range| range.end()) else {
            return Ok(());
        };
        loop {
            let cuts = self.cuts();
            let (mapped, map) = self.mapped_within(protection, furthest)?;
            self.check_whole(protection)?;
            match residency::read_in(&map, &mapped.backing, ranges) {
                // This process has cut the file, and may have grown it again: the error may be due
                // to that, and not to another process.
                Err(_) if self.cuts() != cuts => {}
                // Again, since a page may have been lost in the meantime.
                populated => return populated.and_then(|()| self.check_whole(protection)),
            }
        }
    }

    /// Runs a job that reads `bytes` bytes in, on the pool; if there are many such jobs, after those
    /// that came before. Counts the bytes, and the time from here to the end of the job.
    ///
    /// Only the job keeps the file open: its future may be kept without being polled, and a creation
    /// of the file would wait for its end.
    pub(crate) fn read_in_on_pool(
        self: &Arc<Self>,
        bytes: u64,
        job: impl FnOnce(&Self) -> Result<()> + Send + 'static,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        let (shared, began) = (Arc::clone(self), Instant::now());
        shared.counters.hops.fetch_add(1, Ordering::Relaxed);
        offload_read_in(move || {
            job(&shared)?;
            let counters = &shared.counters;
            counters.bytes_read_in.fetch_add(bytes, Ordering::Relaxed);
            let waited = began.elapsed().as_nanos() as u64;
            counters.read_in_nanos.fetch_add(waited, Ordering::Relaxed);
            Ok(())
        })
    }

    /// Asks the disk for the pages of `ahead` that are not in memory, and waits for those of `piece`.
    /// Blocks. Reports no error: the read of the piece itself finds it again.
    pub(crate) fn read_ahead(&self, protection: Protection, piece: ByteRange, ahead: ByteRange) {
        let Ok((mapped, map)) = self.mapped_within(protection, piece.hull(ahead)) else {
            return;
        };
        if !ahead.is_empty() {
            let pages = ahead.to_pages(sys::page_size());
            residency::ask_for(&map, &mapped.backing, pages);
        }
        let _ = residency::populate_read(&map, &mapped.backing, piece);
    }

    /// Reads a piece in, for a reader that takes one after the other. Blocks. Reports no error: the
    /// read of the piece itself finds it again.
    pub(crate) fn read_in_order(&self, protection: Protection, piece: ByteRange) {
        if let Ok((mapped, map)) = self.mapped_within(protection, piece) {
            let _ = residency::read_in_order(&map, &mapped.backing, piece);
        }
    }

    /// Starts reading the pages of a range, which the handle's file has, without waiting for them.
    ///
    /// # Errors
    ///
    /// That of the system.
    pub(crate) fn prefetch(&self, protection: Protection, range: ByteRange) -> io::Result<()> {
        let mapped = self.mapped[protection as usize].get();
        let file = mapped.and_then(|mapped| Some((mapped.backing.file()?, mapped.fs_traits)));
        file.map_or(Ok(()), |(file, fs_traits)| {
            residency::prefetch(file, fs_traits, range)
        })
    }

    /// Returns those pages of a range that are not in the page cache; all of them, if the system
    /// does not tell.
    pub(crate) fn absent_pages(&self, protection: Protection, range: ByteRange) -> Vec<PageRange> {
        match self.mapped_within(protection, range) {
            Ok((mapped, map)) if !range.is_empty() => {
                let pages = range.to_pages(sys::page_size());
                residency::absent(&map, &mapped.backing, mapped.fs_traits, pages)
            }
            _ => Vec::new(),
        }
    }

    /// Removes pages from the maps and from the page cache, except those that a view shows and
    /// those that are not yet written out. Returns the pages that views show.
    pub(crate) fn evict(
        self: &Arc<Self>,
        file: &File,
        range: ByteRange,
    ) -> io::Result<Vec<PageRange>> {
        // Not private copies, which are nowhere else.
        let shared = self.file_itself();
        // A shrink may have gone first.
        let end = range.end().min(shared.len());
        let range = ByteRange::between(range.start().min(end), end);
        let page_size = sys::page_size();
        let pages = range.to_pages(page_size);
        let leased = shared.leases().leased(range).into_iter();
        let leased = PageRange::merged(leased.map(|range| range.to_pages(page_size)));
        let evicted = pages.without(&leased);
        for pages in &evicted {
            shared.unmap_pages((*pages).into())?;
            sys::cache_hint(file, pages.start(), pages.len(), CacheHint::DontNeed)?;
        }
        Ok(pages.without(&evicted))
    }

    /// Removes pages from every map, except for those that are locked. They stay in the page cache,
    /// and in the file.
    ///
    /// # Panics
    ///
    /// If these are [private pages](Self::is_private), which are nowhere else.
    fn unmap_pages(&self, range: ByteRange) -> io::Result<()> {
        assert!(!self.is_private(), "the pages are nowhere else");
        self.while_not_writable(range, || self.unmap_from_all(range))
    }

    fn unmap_from_all(&self, range: ByteRange) -> io::Result<()> {
        for mapped in self.mapped.iter().filter_map(OnceLock::get) {
            let locked = lock(&mapped.locked);
            let maps = lock(&mapped.maps).clone();
            for map in maps {
                // Outgrown maps are shorter.
                let range = ByteRange::between(
                    range.start().min(map.capacity()),
                    range.end().min(map.capacity()),
                );
                let pages = range.to_pages(sys::page_size());
                let kept: Vec<PageRange> = overlapping(&locked, pages).collect();
                for pages in pages.without(&kept) {
                    let run = map.run(pages);
                    // SAFETY: `Map::run` has checked that the pages are inside the map, which `map`
                    // keeps live; the maps of a file that is in the registry are shared ones.
                    unsafe { sys::advise(run, Advice::DontNeed) }?;
                }
            }
        }
        Ok(())
    }

    /// Returns the writable maps and their descriptor.
    ///
    /// # Errors
    ///
    /// `InvalidMode` if no handle may write the file.
    pub(super) fn writable(&self) -> Result<&Mapped> {
        self.mapped[Protection::ReadWrite as usize]
            .get()
            .ok_or_else(|| MmapIoError::invalid_mode("no handle may write the file"))
    }

    /// Lets readers use a map. The caller holds the lock on the list of the maps of this protection
    /// until the map is the last one there, if there is a list; then it calls
    /// [`settle`](Self::settle).
    pub(super) fn set_base(&self, protection: Protection, map: &Map) {
        // SAFETY: `self` is in an `Arc`, so that it does not move, and its drop detaches the map.
        unsafe { map.guarded().attach(&self.hot.bases) };
        // SeqCst: a Release store, which pairs with the load in `span_within`; for the fault guard,
        // see `settle`.
        self.hot.bases[protection as usize].store(map.as_ptr(), Ordering::SeqCst);
    }
}

#[cfg(all(test, not(mmap_io_loom)))]
mod tests;
