//! Making ranges of a file durable: which call does it.
//!
//! Every way ends in one `msync`, and so in one commit of the journal and one flush of the drive:
//! those are most of what it costs, and each further `msync` pays for them again. What differs is
//! the pages that are written. Measured on ext4 (medians, in microseconds), for pages that lie
//! evenly in a span of a file of 256 MiB; in the lower half 2,048 other pages of the file are dirty,
//! which nobody asked for:
//!
//! | pages in span | `msync` of the hull | write-back of each, one `msync` | write-back, `fdatasync` | `msync` of each |
//! |---|---|---|---|---|
//! | 64 in 256 KiB | 191 | 209 | 189 | 3,055 |
//! | 64 in 4 MiB | 448 | 420 | 392 | 3,554 |
//! | 64 in 256 MiB | 8,912 | 8,954 | 8,962 | 15,745 |
//! | 64 in 256 KiB, others | 427 | 532 | 40,603 | 3,305 |
//! | 64 in 4 MiB, others | 1,016 | 864 | 37,938 | 3,886 |
//! | 8 in 256 MiB, others | 33,551 | 1,247 | 36,712 | 2,036 |
//!
//! So a compact hull takes one `msync`, whatever is in it. Ranges that lie far apart are written
//! back one by one, all at the same time, and then one `msync` of the first commits and flushes; on
//! file systems where that covers the others ([`FsTraits::range_sync_covers_metadata`]), and elsewhere the hull
//! it is. `fdatasync` writes the whole file, and wins nowhere.

use std::fs::File;
use std::io;

use crate::map::Map;
use crate::range::{ByteRange, PageRange};
use crate::sys::{self, FsTraits};

/// Largest hull in bytes for which one `msync` is best.
const COMPACT: u64 = 4 << 20;

/// What is about to be made durable, in the way that is best for it.
#[derive(Debug)]
pub(crate) struct Writeback {
    /// None is empty; one hull, if they share it.
    ranges: Vec<ByteRange>,
    /// The pages of the ranges: sorted and disjoint, at least one.
    runs: Vec<PageRange>,
}

impl Writeback {
    /// `None` when the ranges hold no byte.
    pub(crate) fn of(mut ranges: Vec<ByteRange>, fs_traits: FsTraits) -> Option<Self> {
        ranges.retain(|range| !range.is_empty());
        let hull = ranges.iter().copied().reduce(ByteRange::hull)?;
        if hull.len() <= COMPACT || !fs_traits.range_sync_covers_metadata {
            ranges = vec![hull];
        }
        let page_size = sys::page_size();
        let runs = PageRange::merged(ranges.iter().map(|range| range.to_pages(page_size)));
        Some(Self { ranges, runs })
    }

    /// The bytes that will be durable.
    pub(crate) fn covers(&self) -> &[ByteRange] {
        &self.ranges
    }

    /// Makes them durable. Blocks.
    ///
    /// # Errors
    ///
    /// What any of the calls met.
    ///
    /// # Panics
    ///
    /// When the map does not cover the ranges.
    pub(crate) fn run(&self, map: &Map, file: &File) -> io::Result<()> {
        let (first, last) = (self.runs[0], self.runs[self.runs.len() - 1]);
        let pages = match self.write_each(file) {
            // Not allowed here: all between them is written with them.
            Err(error) if sys::is_refused(&error) => first.hull(last),
            written => written.map(|()| first)?,
        };
        assert!(pages.end() <= map.capacity().next_multiple_of(sys::page_size() as u64));
        // SAFETY: the pages are inside the live map, as was just checked.
        unsafe { sys::sync_range(file, map.run(pages)) }
    }

    /// Writes back the pages of ranges that lie far apart, all at the same time.
    fn write_each(&self, file: &File) -> io::Result<()> {
        if self.runs.len() > 1 {
            for run in &self.runs {
                sys::start_writeback(file, run.start(), run.len())?;
            }
            for run in &self.runs {
                sys::finish_writeback(file, run.start(), run.len())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(ranges: &[(u64, u64)], range_sync_covers_metadata: bool) -> Vec<(u64, u64)> {
        let ranges = ranges.iter();
        let ranges = ranges.map(|(start, end)| ByteRange::between(*start, *end));
        let fs_traits = FsTraits {
            range_sync_covers_metadata,
            ..FsTraits::default()
        };
        let writeback = Writeback::of(ranges.collect(), fs_traits);
        let runs = writeback.map_or_else(Vec::new, |writeback| writeback.runs);
        runs.iter().map(|run| (run.start(), run.end())).collect()
    }

    #[test]
    fn near_ranges_share_a_hull_and_far_ones_are_written_one_by_one() {
        let page = sys::page_size() as u64;
        let far = 1 << 30;
        assert_eq!(runs(&[], true), []);
        assert_eq!(runs(&[(5, 5)], true), []);
        assert_eq!(
            runs(&[(5, 6), (9 * page, 9 * page + 1)], true),
            [(0, 10 * page)]
        );
        assert_eq!(
            runs(&[(far, far + 1), (5, 6), (page, page + 1)], true),
            [(0, 2 * page), (far, far + page)]
        );
        assert_eq!(runs(&[(far, far + 1), (5, 6)], false), [(0, far + page)]);
    }
}
