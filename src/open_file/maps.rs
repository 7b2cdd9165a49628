//! The maps of a file: made, found, and given up when they are outgrown.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::OpenFile;
use crate::descriptor::Descriptor;
use crate::error::{MmapIoError, Result};
use crate::lease::{Asks, Kind, Lease};
use crate::map::{Backing, Map, Protection, Span};
use crate::range::{ByteRange, MAX_LEN};
use crate::residency;
use crate::sync::lock;
use crate::sys::{self, Advice, FsTraits};

/// How long an opening that has to replace a map waits for the views of a moment.
const BRIEFLY: Duration = Duration::from_millis(1);

/// The maps of one protection.
#[derive(Debug)]
pub(super) struct Mapped {
    pub(super) backing: Backing,
    pub(super) fs_traits: FsTraits,
    /// The last is the current one. The others were outgrown, and are kept for the views that may
    /// lie in them.
    pub(super) maps: Mutex<Vec<Arc<Map>>>,
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
    /// When the file was born that a map shows, where that is worth knowing.
    born: Option<SystemTime>,
}

impl Source {
    /// The descriptor itself; where files are copied up, a newer one for reading, since `file` may
    /// have been opened before that.
    pub(crate) fn new(file: &Arc<Descriptor>, fs_traits: FsTraits, protection: Protection) -> Self {
        let mut source = Self {
            file: file.clone(),
            fs_traits,
            born: None,
        };
        if fs_traits.copies_up && protection == Protection::Read {
            // First the question, then the descriptor: a copy that is made in between is seen
            // as one that was made after.
            source.born = born(file);
            if let Ok(newer) = sys::reopen(file) {
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
    /// Maps the file with a protection that no handle has asked for yet, through `source`; where a
    /// file is copied up when it is first written, through the descriptor that writes.
    ///
    /// # Errors
    ///
    /// `Busy` where the file was copied up, and a view shows what it was before.
    pub(crate) fn attach(&self, source: Source, protection: Protection) -> Result<()> {
        let _remap = lock(&self.remap);
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
        if source.fs_traits.copies_up {
            self.follow_copy(&source, protection)?;
        }
        let len = self.len();
        if self.mapped[protection as usize].get().is_none() {
            let can_map = len > 0 || sys::CAN_MAP_PAST_END;
            let map = can_map.then(|| source.map(len, protection)).transpose()?;
            self.install(map, &source, protection);
        }
        Ok(())
    }

    /// Replaces the read-only map if the file was copied up since its descriptor was opened: no
    /// write through this crate would ever be seen in it.
    ///
    /// Views of it that only look would not notice, since writes wait for them; those that are there
    /// to see changes would. So there may be none.
    pub(super) fn follow_copy(&self, source: &Source, protection: Protection) -> Result<()> {
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
            // It cannot be told: a descriptor that may write has copied the file up for certain.
            _ => protection == Protection::Read,
        };
        if is_current {
            return Ok(());
        }
        let map = Arc::new(source.map(self.len(), Protection::Read)?);
        let _exclusive = self.lease_everything()?;
        self.make_current(Protection::Read, &map);
        lock(&mapped.maps).push(map);
        *lock(&self.shown) = now;
        Ok(())
    }

    /// An exclusive lease on the whole file; waits for views that are gone in a moment.
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
            // Another process, or this one, may have created or resized it without making that
            // durable.
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
            self.make_current(protection, map);
        }
        let _ = self.mapped[protection as usize].set(Mapped {
            backing,
            fs_traits,
            maps: Mutex::new(map.into_iter().collect()),
        });
    }

    /// The descriptor through which the file was first mapped with a protection, for as long as the
    /// file is open: that of every handle that uses it so.
    ///
    /// # Panics
    ///
    /// For memory, and before [`attach`](Self::attach).
    pub(crate) fn descriptor(&self, protection: Protection) -> &Arc<Descriptor> {
        let descriptor = self.descriptor_if_mapped(protection);
        descriptor.expect("a handle is attached, and memory offers nothing that needs a file")
    }

    /// The same, if there is one.
    pub(crate) fn descriptor_if_mapped(&self, protection: Protection) -> Option<&Arc<Descriptor>> {
        match &self.mapped[protection as usize].get()?.backing {
            Backing::File(file) => Some(file),
            Backing::Memory => None,
        }
    }

    /// The address of a range in the current map, if it is inside the file.
    ///
    /// Under a lease on the range the answer stays true: what is inside the file then is not cut off,
    /// unless another process cuts it.
    #[inline]
    pub(crate) fn span_within(&self, protection: Protection, range: ByteRange) -> Option<Span> {
        if range.end() > self.len() {
            return None;
        }
        // Acquire: pairs with `make_current`.
        let base = NonNull::new(self.hot.bases[protection as usize].load(Ordering::Acquire))?;
        // SAFETY: the base is that of a map which covers the length that was read before, since maps
        // grow before the length does. The map lives for as long as a lease that was there before
        // this call: see `forget_outgrown`.
        Some(unsafe { Span::in_map(base, range) })
    }

    /// The same, or the error.
    pub(crate) fn span(&self, protection: Protection, range: ByteRange) -> Result<Span> {
        self.span_within(protection, range)
            .ok_or_else(|| range.out_of_bounds(self.len()))
    }

    /// The current map; `None` only where an empty file cannot be mapped.
    ///
    /// It covers the length that was read before the call.
    pub(crate) fn map(&self, protection: Protection) -> Option<Arc<Map>> {
        self.mapped[protection as usize].get()?.current()
    }

    /// Where the current map begins; null where there is none.
    pub(crate) fn base(&self, protection: Protection) -> *mut u8 {
        self.hot.bases[protection as usize].load(Ordering::Acquire)
    }

    /// Unmaps what was outgrown, if no view may lie there. Blocks.
    ///
    /// 1. A lease that is taken before the fence is found by the count, and everything stays.
    /// 2. One that is taken after the fence finds the address of the current map, which was stored
    ///    before: whoever takes a lease looks for the address afterwards.
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
        if self.hot.leases.count_after_fence()? > 0 {
            return Ok(());
        }
        for mapped in self.mapped.iter().filter_map(OnceLock::get) {
            let mut maps = lock(&mapped.maps);
            let current = maps.pop();
            let outgrown = std::mem::take(&mut *maps);
            maps.extend(current);
            drop(maps);
            // A job that still works on one has its own reference.
            drop(outgrown);
        }
        Ok(())
    }

    /// Whether a range is in memory, as far as that can be told without waiting.
    pub(crate) fn is_resident(&self, protection: Protection, range: ByteRange) -> bool {
        let mapped = self.mapped[protection as usize].get();
        mapped.is_some_and(|mapped| {
            // Without a lease the map may go meanwhile; its address is only asked about.
            let run = sys::Run::at(self.base(protection), range.to_pages(sys::page_size()));
            residency::is_resident(run, &mapped.backing, mapped.fs_traits, range)
        })
    }

    /// Reads the pages of a range in. Blocks.
    ///
    /// # Errors
    ///
    /// `OutOfBounds` if a shrink went first, and those of [`residency::populate_read`].
    pub(crate) fn read_in(&self, protection: Protection, range: ByteRange) -> Result<()> {
        loop {
            let cuts = self.cuts();
            range.check(self.len())?;
            let mapped = self.mapped[protection as usize].get();
            let Some((mapped, map)) = mapped.zip(self.map(protection)) else {
                return Ok(());
            };
            match residency::populate_read(&map, &mapped.backing, range) {
                // What this process cuts off, and grows again, is no other process's truncation.
                Err(_) if self.cuts() != cuts => {}
                populated => return populated,
            }
        }
    }

    /// Takes pages out of every map. They stay in the page cache, and in the file.
    pub(crate) fn unmap_pages(&self, range: ByteRange) -> io::Result<()> {
        for mapped in self.mapped.iter().filter_map(OnceLock::get) {
            let maps = lock(&mapped.maps).clone();
            for map in maps {
                // Outgrown maps are shorter.
                let range = ByteRange::between(
                    range.start().min(map.capacity()),
                    range.end().min(map.capacity()),
                );
                if !range.is_empty() {
                    let run = map.run(range.to_pages(sys::page_size()));
                    // SAFETY: the pages are inside the live map, which is a shared one of a file.
                    unsafe { sys::advise(run, Advice::DontNeed) }?;
                }
            }
        }
        Ok(())
    }

    /// The descriptor that changes go through.
    pub(super) fn writable(&self) -> Result<&Mapped> {
        self.mapped[Protection::ReadWrite as usize]
            .get()
            .ok_or_else(|| MmapIoError::invalid_mode("no handle may write the file"))
    }

    pub(super) fn make_current(&self, protection: Protection, map: &Map) {
        // Release: pairs with the load in `span_within`.
        self.hot.bases[protection as usize].store(map.as_ptr(), Ordering::Release);
    }
}
