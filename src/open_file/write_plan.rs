//! Decides how a write gets into the file: by a copy into the mapping, or by `pwrite`.
//!
//! A store into the mapping is the fastest way on a page that is resident, mapped and dirty. On any
//! other page it pays for a page fault: the kernel reads the page, although all of it will be
//! overwritten, and the file system starts a journal transaction. `pwrite` of whole pages avoids
//! the fault. Measured on ext4 (medians of one write, in microseconds; copying includes
//! `MADV_POPULATE_WRITE`):
//!
//! | bytes | dirty: copy | `pwrite` | clean: copy | `pwrite` | not resident: copy | `pwrite` | hole: copy | `fallocate`, `pwrite` |
//! |---|---|---|---|---|---|---|---|---|
//! | 4 Ki | 0.7 | 14 | 14 | 7 | 3400 | 2.4 | 1090 | 8 |
//! | 64 Ki | 4 | 14 | 76 | 8 | 4000 | 8 | 1130 | 12 |
//! | 256 Ki | 15 | 18 | 293 | 17 | 3990 | 24 | 1270 | 26 |
//! | 1 Mi | 70 | 54 | 1184 | 58 | 4000 | 95 | 1810 | 100 |
//!
//! So whole pages go through the descriptor, unless they are dirty, and were written here, so that
//! they are mapped or will be from this write on. Where the system does not tell which pages are
//! dirty, they are taken for dirty if they are few, have not been flushed since they were written
//! here, and are resident. The partial pages at both ends are copied.
//!
//! The descriptor is used only where `pwrite` and the mapping are coherent with each other
//! ([`FsTraits::coherent_writes`](sys::FsTraits::coherent_writes), [`sys::may_write_at`]).

use std::fs::File;
use std::io;

use super::OpenFile;
use crate::map::{Backing, Map};
use crate::range::{ByteRange, PageRange};
use crate::residency;
use crate::sys::{self, FsTraits};

/// The file that writes are applied to, and the map that they go through.
#[derive(Debug)]
pub(super) struct WriteTarget<'a> {
    pub(super) file: &'a OpenFile,
    pub(super) backing: &'a Backing,
    pub(super) fs_traits: FsTraits,
    pub(super) map: &'a Map,
    /// The length of the file in bytes; nothing changes it while a batch is applied.
    pub(super) len: u64,
    /// The descriptor, if `pwrite` through it and stores through the map are coherent with each
    /// other.
    pub(super) coherent: Option<&'a File>,
}

/// Whole pages of at least this many bytes together always go through the descriptor, if the system
/// does not tell whether they are dirty.
const ALWAYS_DIRECT: u64 = 256 << 10;

/// Which pages of a write's ranges go through the descriptor.
#[derive(Debug)]
pub(super) struct WritePlan {
    /// One entry for each range; empty, without an allocation, if all ranges are copied.
    direct: Box<[Option<ByteRange>]>,
}

impl WritePlan {
    pub(super) fn of(target: &WriteTarget<'_>, ranges: &[ByteRange]) -> Self {
        let mut direct = Vec::new();
        if target.coherent.is_some() {
            for (index, range) in ranges.iter().enumerate() {
                if let Some(pages) = direct_pages(target, *range) {
                    direct.resize(ranges.len(), None);
                    direct[index] = Some(pages.into());
                }
            }
        }
        Self {
            direct: direct.into(),
        }
    }

    /// Returns a plan that writes everything through the descriptor, for pages that cannot be made
    /// writable in the map although the file has blocks for the bytes: a store to a large folio
    /// needs all blocks of the folio, and a full disk may have no room for the other ones.
    ///
    /// `None` if the descriptor and the map are not coherent.
    pub(super) fn all_direct(target: &WriteTarget<'_>, ranges: &[ByteRange]) -> Option<Self> {
        let file = target.coherent?;
        let end = ranges.iter().map(|range| range.end()).max()?;
        sys::may_write_at(file, end).then(|| Self {
            direct: ranges.iter().copied().map(Some).collect(),
        })
    }

    /// Whether anything goes through the descriptor.
    pub(super) fn is_direct(&self) -> bool {
        !self.direct.is_empty()
    }

    /// Returns the parts that are copied into the mapping.
    pub(super) fn memcpy_parts<'a>(
        &'a self,
        ranges: &'a [ByteRange],
    ) -> impl Iterator<Item = ByteRange> + Clone + 'a {
        let parts = ranges.iter().enumerate().flat_map(|(index, range)| {
            let (before, direct, after) = self.parts(index, *range);
            match direct {
                Some(_) => [before, after],
                None => [*range, ByteRange::EMPTY],
            }
        });
        parts.filter(|part| !part.is_empty())
    }

    /// Writes `data` to the ranges, one after the other.
    ///
    /// # Errors
    ///
    /// Those of `pwrite`; some of the bytes may have changed then.
    ///
    /// # Safety
    ///
    /// The map of the target is live and writable, the ranges are inside the file, and the caller
    /// holds an exclusive lease on each. `data` is in no map of this crate.
    pub(super) unsafe fn execute(
        &self,
        target: &WriteTarget<'_>,
        ranges: &[ByteRange],
        mut data: &[u8],
    ) -> io::Result<()> {
        let copy = |range: ByteRange, data: &[u8]| {
            // SAFETY: `range` is a part of one of the ranges, for which the caller of `execute`
            // guarantees a live, writable map and an exclusive lease; `data` is in no map.
            unsafe { target.map.span(range).copy_from(data) }
        };
        for (index, range) in ranges.iter().enumerate() {
            let (now, later) = data.split_at(range.len() as usize);
            data = later;
            let (before, direct, after) = self.parts(index, *range);
            let Some(direct) = direct else {
                copy(*range, now);
                continue;
            };
            let (first, rest) = now.split_at(before.len() as usize);
            let (middle, last) = rest.split_at(direct.len() as usize);
            copy(before, first);
            let file = target
                .coherent
                .expect("a plan without a descriptor has no direct part");
            // It makes the pages dirty, and not writable in the map.
            target.map.writable().forget(direct);
            sys::write_at(file, middle, direct.start())?;
            copy(after, last);
        }
        Ok(())
    }

    /// Splits a range into the part that goes through the descriptor, and the parts before and
    /// after it.
    fn parts(&self, index: usize, range: ByteRange) -> (ByteRange, Option<ByteRange>, ByteRange) {
        match self.direct.get(index).copied().flatten() {
            Some(direct) => (
                ByteRange::between(range.start(), direct.start()),
                Some(direct),
                ByteRange::between(direct.end(), range.end()),
            ),
            None => (ByteRange::EMPTY, None, ByteRange::EMPTY),
        }
    }
}

/// Reserves the disk blocks of what goes through the descriptor, so that a full disk is found
/// before the first byte changes. Blocks.
pub(super) fn reserve(target: &WriteTarget<'_>, plan: &WritePlan) -> io::Result<()> {
    let Some(file) = target.coherent else {
        return Ok(());
    };
    for direct in plan.direct.iter().flatten() {
        let pages = direct.to_pages(sys::page_size());
        sys::reserve(file, pages.start(), pages.len())?;
    }
    Ok(())
}

/// Returns the whole pages of the range, if writing them through the descriptor is cheaper.
fn direct_pages(target: &WriteTarget<'_>, range: ByteRange) -> Option<PageRange> {
    let pages = range.whole_pages(sys::page_size())?;
    let run = target.map.run(pages);
    let are_dirty = || {
        let told = residency::are_dirty(run, target.backing, target.fs_traits, pages);
        told.unwrap_or_else(|| pages.len() < ALWAYS_DIRECT && residency::may_be_cached(run))
    };
    let stays_mapped = target.file.dirty.covers(pages.into()) && are_dirty();
    let may_write = || {
        let file = target.coherent?;
        sys::may_write_at(file, pages.end()).then_some(pages)
    };
    match stays_mapped {
        true => None,
        false => may_write(),
    }
}
