//! How a write gets into the file: copied into the mapping, or given to `pwrite`.
//!
//! A store into the mapping is the fastest there is on a page that is in memory, mapped and dirty.
//! On any other page it pays for a fault: the page is read, though all of it will be overwritten,
//! and the journal is asked. `pwrite` of whole pages does neither. Measured on ext4 (medians of
//! one write, in microseconds; copying includes `MADV_POPULATE_WRITE`):
//!
//! | bytes | dirty: copy | `pwrite` | clean: copy | `pwrite` | not resident: copy | `pwrite` | hole: copy | `fallocate`, `pwrite` |
//! |---|---|---|---|---|---|---|---|---|
//! | 4 Ki | 0.7 | 14 | 14 | 7 | 3400 | 2.4 | 1090 | 8 |
//! | 64 Ki | 4 | 14 | 76 | 8 | 4000 | 8 | 1130 | 12 |
//! | 256 Ki | 15 | 18 | 293 | 17 | 3990 | 24 | 1270 | 26 |
//! | 1 Mi | 70 | 54 | 1184 | 58 | 4000 | 95 | 1810 | 100 |
//!
//! So whole pages go through the descriptor, unless they are few and likely to be mapped and
//! dirty: written here, not flushed since, and resident. The parts of pages at both ends are
//! copied.
//!
//! Only where the two ways are coherent: [`sys::writes_are_coherent`].

use std::fs::File;
use std::io;

use super::OpenFile;
use crate::map::{Backing, Map};
use crate::range::{ByteRange, PageRange};
use crate::residency;
use crate::sys;

/// What writes are applied to.
#[derive(Debug)]
pub(super) struct WriteTarget<'a> {
    pub(super) file: &'a OpenFile,
    pub(super) backing: &'a Backing,
    pub(super) map: &'a Map,
    /// Length of the file in bytes; nothing changes it while a batch is applied.
    pub(super) len: u64,
    /// The file, if `pwrite` through its descriptor and stores through the map are coherent with
    /// each other.
    pub(super) coherent: Option<&'a File>,
}

/// Whole pages of at least that many bytes are never copied.
const ALWAYS_DIRECT: u64 = 256 << 10;

/// Which pages of a write's ranges go through the descriptor.
#[derive(Debug)]
pub(super) struct WritePlan {
    /// One for each range; none at all for the many writes that are only copied.
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

    /// Everything goes through the descriptor: pages cannot be made writable in the map, though the
    /// file has room for the bytes. A large folio wants all of its blocks when it is stored to, and
    /// a full disk may have those of the bytes alone.
    ///
    /// `None` where the two ways are not coherent.
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

    /// The parts that are copied into the mapping.
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
    /// What `pwrite` met; some of the bytes may have changed then.
    ///
    /// # Safety
    ///
    /// The map of the target lives and is writable, the ranges are inside the file, and the caller
    /// holds an exclusive lease on each. `data` is in no map of ours.
    pub(super) unsafe fn execute(
        &self,
        target: &WriteTarget<'_>,
        ranges: &[ByteRange],
        mut data: &[u8],
    ) -> io::Result<()> {
        let copy = |range: ByteRange, data: &[u8]| {
            // SAFETY: the caller's contract; the range is a part of one of the ranges.
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
            let file = target.coherent.expect("or nothing was chosen");
            sys::write_at(file, middle, direct.start())?;
            copy(after, last);
        }
        Ok(())
    }

    /// What of a range goes through the descriptor, and what stands before and after that.
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

/// Reserves the blocks of what goes through the descriptor, so that a full disk is found before
/// the first byte changes. Blocks.
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

/// The whole pages of the range, if they are better written through the descriptor.
fn direct_pages(target: &WriteTarget<'_>, range: ByteRange) -> Option<PageRange> {
    let pages = range.whole_pages(sys::page_size())?;
    let stays_mapped = pages.len() < ALWAYS_DIRECT
        && target.file.dirty.covers(pages.into())
        && residency::may_be_cached(target.map.run(pages));
    let may_write = || {
        let file = target.coherent?;
        sys::may_write_at(file, pages.end()).then_some(pages)
    };
    match stays_mapped {
        true => None,
        false => may_write(),
    }
}
