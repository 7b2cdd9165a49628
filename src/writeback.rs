//! Makes ranges of a file durable by the cheapest sequence of system calls.
//!
//! Every sequence ends in one `msync`, and so in one commit of the journal and one flush of the
//! drive's cache: these make up most of the cost, and each further `msync` pays for them again.
//! What differs is the pages that are written. Measured on ext4 (medians, in microseconds), for
//! pages spread evenly over the given span of a 256 MiB file. In the rows marked "others", 2,048
//! further pages of the file are dirty that were not part of the request:
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
//! So a compact hull takes one `msync`, whatever lies in it. For ranges that lie far apart,
//! write-back of each range is started, so that all of them run at the same time, and then one
//! `msync` of the first range commits and flushes. That needs a file system where this `msync`
//! covers the other ranges ([`FsTraits::range_sync_covers_metadata`]); elsewhere one `msync` covers
//! the hull. `fdatasync` writes back the whole file, and is never the cheapest.

use std::fs::File;
use std::io;

use crate::map::Map;
use crate::range::{ByteRange, PageRange};
use crate::sys::{self, FsTraits};

/// The largest hull in bytes for which one `msync` is the cheapest.
const COMPACT: u64 = 4 << 20;

/// Ranges that are to be made durable, and how.
#[derive(Debug)]
pub(crate) struct Writeback {
    /// No range is empty. It is a single hull if one `msync` covers all of them.
    ranges: Vec<ByteRange>,
    /// The pages of the ranges: sorted, disjoint, and at least one run.
    runs: Vec<PageRange>,
}

impl Writeback {
    /// Decides how to make ranges durable; `None` if they hold no byte.
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

    /// Returns the ranges that [`run`](Self::run) makes durable, which may be larger than those
    /// asked for.
    pub(crate) fn covers(&self) -> &[ByteRange] {
        &self.ranges
    }

    /// Makes the ranges durable. Blocks.
    ///
    /// # Errors
    ///
    /// That of the first call that fails.
    ///
    /// # Panics
    ///
    /// If the map does not cover the ranges.
    pub(crate) fn run(&self, map: &Map, file: &File) -> io::Result<()> {
        let (first, last) = (self.runs[0], self.runs[self.runs.len() - 1]);
        let pages = match self.write_each(file) {
            // The call is refused here, so everything between the ranges is written as well.
            Err(error) if sys::is_refused(&error) => first.hull(last),
            written => written.map(|()| first)?,
        };
        let run = map.run(pages);
        // SAFETY: `Map::run` has checked that the pages are inside the map; `map` is borrowed and
        // so live, and the caller passes the file that it is a shared mapping of.
        unsafe { sys::sync_range(file, run) }
    }

    /// Writes back the pages of ranges that lie far apart, with all of the I/O at the same time.
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
    fn near_ranges_share_hull_far_do_not() {
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
