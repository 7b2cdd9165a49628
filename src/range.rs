//! Byte ranges that cannot overflow, and their conversion to whole pages.

use std::io;
use std::ops::{Bound, RangeBounds};

use crate::error::{MmapIoError, Result};

/// Largest size of a file in bytes: on 64-bit targets what a 32-bit number of 32 KiB blocks can
/// address, on 32-bit targets what an address space can hold.
pub(crate) const MAX_LEN: u64 = if cfg!(target_pointer_width = "64") {
    128 << 40
} else {
    (2 << 30) - 1
};

/// A half-open range of bytes, `start <= end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// No bytes.
    pub(crate) const EMPTY: Self = Self { start: 0, end: 0 };

    /// Returns the range of `len` bytes at `offset`, if it lies inside `total` bytes.
    #[inline]
    pub(crate) fn new(offset: u64, len: u64, total: u64) -> Result<Self> {
        match offset.checked_add(len) {
            Some(end) if end <= total => Ok(Self { start: offset, end }),
            _ => Err(MmapIoError::OutOfBounds { offset, len, total }),
        }
    }

    /// Returns a range as callers write it, if it lies inside `total` bytes. If its end is
    /// given, and it has no bytes, it may lie anywhere.
    pub(crate) fn resolve(range: impl RangeBounds<u64>, total: u64) -> Result<Self> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.checked_add(1),
            Bound::Excluded(end) => Some(*end),
            Bound::Unbounded => return Self::new(start, total.saturating_sub(start), total),
        };
        match end {
            Some(end) if end <= start => Ok(Self { start, end: start }),
            end => Self::new(start, end.unwrap_or(u64::MAX) - start, total),
        }
    }

    /// Returns the range from `start` to `end`.
    ///
    /// # Panics
    ///
    /// If `start > end`, in builds with debug assertions.
    #[inline]
    pub(crate) fn between(start: u64, end: u64) -> Self {
        debug_assert!(start <= end, "{start} is past {end}");
        Self { start, end }
    }

    #[inline]
    pub(crate) fn start(self) -> u64 {
        self.start
    }

    #[inline]
    pub(crate) fn end(self) -> u64 {
        self.end
    }

    #[inline]
    pub(crate) fn len(self) -> u64 {
        self.end - self.start
    }

    #[inline]
    pub(crate) fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Returns whether the two ranges, neither of which is empty, share a byte.
    #[inline]
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Returns whether all of `other` lies inside this range.
    #[inline]
    pub(crate) fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Sorts ranges, and joins those that touch.
    pub(crate) fn merge(ranges: &mut Vec<Self>) {
        ranges.sort_unstable_by_key(|range| range.start);
        ranges.dedup_by(|next, last| {
            let touches = next.start <= last.end;
            if touches {
                *last = last.hull(*next);
            }
            touches
        });
    }

    /// The smallest range that covers both.
    #[inline]
    pub(crate) fn hull(self, other: Self) -> Self {
        Self {
            start: self.start.min(other.start),
            end: self.end.max(other.end),
        }
    }

    /// Returns the bytes that lie in both ranges, which overlap.
    #[inline]
    pub(crate) fn intersection(self, other: Self) -> Self {
        Self::between(self.start.max(other.start), self.end.min(other.end))
    }

    /// Checks the range against a length that may have shrunk since it was made.
    #[inline]
    pub(crate) fn check(self, total: u64) -> Result<()> {
        match self.end <= total {
            true => Ok(()),
            false => Err(self.out_of_bounds(total)),
        }
    }

    /// Returns the sum of the lengths, or `u64::MAX` if that is less: ranges may repeat each other.
    pub(crate) fn total_len(ranges: &[Self]) -> u64 {
        let lens = ranges.iter().map(|range| range.len());
        lens.fold(0, u64::saturating_add)
    }

    pub(crate) fn out_of_bounds(self, total: u64) -> MmapIoError {
        MmapIoError::OutOfBounds {
            offset: self.start,
            len: self.len(),
            total,
        }
    }

    /// Returns the pages that hold the range.
    #[inline]
    pub(crate) fn to_pages(self, page_size: usize) -> PageRange {
        let mask = page_size as u64 - 1;
        PageRange(Self {
            start: self.start & !mask,
            end: (self.end + mask) & !mask,
        })
    }

    /// Returns the pages that lie completely inside the range, if there are any.
    #[inline]
    pub(crate) fn whole_pages(self, page_size: usize) -> Option<PageRange> {
        let mask = page_size as u64 - 1;
        let start = self.start.checked_add(mask)? & !mask;
        let end = self.end & !mask;
        (start < end).then_some(PageRange(Self { start, end }))
    }

    pub(crate) fn busy(self) -> MmapIoError {
        MmapIoError::Busy {
            offset: self.start,
            len: self.len(),
            path: None,
        }
    }
}

impl From<ByteRange> for std::ops::Range<u64> {
    fn from(range: ByteRange) -> Self {
        range.start..range.end
    }
}

impl From<std::ops::Range<u64>> for ByteRange {
    fn from(range: std::ops::Range<u64>) -> Self {
        Self::between(range.start, range.end)
    }
}

impl From<PageRange> for ByteRange {
    fn from(pages: PageRange) -> Self {
        pages.0
    }
}

/// A range of whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageRange(ByteRange);

impl PageRange {
    pub(crate) const EMPTY: Self = Self(ByteRange::EMPTY);

    #[inline]
    pub(crate) fn start(self) -> u64 {
        self.0.start
    }

    #[inline]
    pub(crate) fn end(self) -> u64 {
        self.0.end
    }

    #[inline]
    pub(crate) fn len(self) -> u64 {
        self.0.len()
    }

    /// The smallest range that covers both.
    pub(crate) fn hull(self, other: Self) -> Self {
        Self(self.0.hull(other.0))
    }

    /// Sorts ranges, and joins those that touch.
    pub(crate) fn merged(ranges: impl Iterator<Item = Self>) -> Vec<Self> {
        let mut merged = ranges.map(ByteRange::from).collect();
        ByteRange::merge(&mut merged);
        merged.into_iter().map(Self).collect()
    }

    /// Returns the pages in front of the one that holds the byte `at`, and the rest.
    pub(crate) fn split_before(self, at: u64, page_size: usize) -> (Self, Self) {
        let at = (at & !(page_size as u64 - 1)).clamp(self.start(), self.end());
        let front = ByteRange::between(self.start(), at);
        (Self(front), Self(ByteRange::between(at, self.end())))
    }

    /// Returns the parts of the range outside `others`, which are sorted and disjoint.
    pub(crate) fn without(self, others: &[Self]) -> Vec<Self> {
        let mut left = Vec::new();
        let mut start = self.start();
        for other in others {
            if start < other.start().min(self.end()) {
                left.push(Self(ByteRange::between(
                    start,
                    other.start().min(self.end()),
                )));
            }
            start = start.max(other.end());
        }
        if start < self.end() {
            left.push(Self(ByteRange::between(start, self.end())));
        }
        left
    }

    /// Cuts the range into pieces of at most `step` bytes; `step` is a multiple of the page size.
    pub(crate) fn steps(self, step: u64) -> impl Iterator<Item = Self> {
        let end = self.end();
        (self.start()..end)
            .step_by(step as usize)
            .map(move |start| Self(ByteRange::between(start, end.min(start + step))))
    }
}

/// Checks that a file may be given the size `size`.
pub(crate) fn check_size(size: u64) -> Result<()> {
    let problem = match size {
        0 => "a mapped file needs at least one byte",
        size if size > MAX_LEN => "larger than a file can be mapped",
        _ => return Ok(()),
    };
    let problem = io::Error::new(io::ErrorKind::InvalidInput, problem);
    Err(MmapIoError::resize_failed(problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_leaves_the_gaps_between_others() {
        let pages =
            |start: u64, end: u64| ByteRange::between(start * 4096, end * 4096).to_pages(4096);
        let left = |others: &[PageRange]| pages(10, 20).without(others);
        assert_eq!(left(&[]), [pages(10, 20)]);
        assert_eq!(left(&[pages(0, 10), pages(20, 30)]), [pages(10, 20)]);
        assert_eq!(left(&[pages(0, 30)]), []);
        assert_eq!(
            left(&[pages(5, 12), pages(14, 15), pages(18, 20)]),
            [pages(12, 14), pages(15, 18)]
        );
        assert_eq!(left(&[pages(12, 40), pages(50, 60)]), [pages(10, 12)]);
    }

    #[test]
    fn pages_are_split_before_the_page_of_a_byte() {
        let pages = |start, end| ByteRange::between(start, end).to_pages(4096);
        let split = |at| pages(4096, 16_384).split_before(at, 4096);
        assert_eq!(split(0), (pages(4096, 4096), pages(4096, 16_384)));
        assert_eq!(split(8191), (pages(4096, 4096), pages(4096, 16_384)));
        assert_eq!(split(8192), (pages(4096, 8192), pages(8192, 16_384)));
        assert_eq!(
            split(u64::MAX),
            (pages(4096, 16_384), pages(16_384, 16_384))
        );
    }

    #[test]
    fn bounds_are_exact_and_never_wrap() {
        assert!(ByteRange::new(0, 0, 0).is_ok());
        assert!(ByteRange::new(10, 0, 10).is_ok());
        assert!(ByteRange::new(4, 6, 10).is_ok());
        assert!(ByteRange::new(5, 6, 10).is_err());
        assert!(ByteRange::new(u64::MAX, 1, u64::MAX).is_err());
        assert!(ByteRange::new(1, u64::MAX, u64::MAX).is_err());
    }

    #[test]
    fn explicit_range_of_no_bytes_lies_anywhere() {
        let resolve = |start, end| {
            let range = ByteRange::resolve((start, end), 10);
            range.ok().map(|range| (range.start(), range.end()))
        };
        for at in [0, 9, 10, 11, u64::MAX] {
            let start = Bound::Included(at);
            assert_eq!(resolve(start, Bound::Excluded(at)), Some((at, at)));
        }
        assert_eq!(
            resolve(Bound::Included(20), Bound::Excluded(15)),
            Some((20, 20))
        );
        assert_eq!(
            resolve(Bound::Excluded(19), Bound::Included(19)),
            Some((20, 20))
        );
        // The last of all bytes is one.
        let last = Bound::Included(u64::MAX);
        assert_eq!(resolve(last, last), None);
        // To the end of the file, in which it has to begin.
        assert_eq!(
            resolve(Bound::Included(10), Bound::Unbounded),
            Some((10, 10))
        );
        assert_eq!(resolve(Bound::Included(11), Bound::Unbounded), None);
    }

    #[test]
    fn total_of_many_ranges_saturates() {
        let range = |len: u64| ByteRange::between(5, 5 + len);
        assert_eq!(ByteRange::total_len(&[]), 0);
        assert_eq!(ByteRange::total_len(&[range(3), range(0), range(4)]), 7);
        let huge = vec![ByteRange::between(0, 1 << 62); 4];
        assert_eq!(ByteRange::total_len(&huge), u64::MAX);
    }

    #[test]
    fn overlap_needs_a_shared_byte() {
        let range = |start, end| ByteRange::between(start, end);
        assert!(range(0, 5).overlaps(range(4, 6)));
        assert!(!range(0, 5).overlaps(range(5, 6)));
        assert!(range(3, 4).overlaps(range(0, 9)));
    }

    #[test]
    fn whole_pages_exclude_partial_pages() {
        let pages = |start, end| {
            let pages = ByteRange::between(start, end).whole_pages(4096);
            pages.map(|pages| (pages.start(), pages.end()))
        };
        assert_eq!(pages(0, 4096), Some((0, 4096)));
        assert_eq!(pages(1, 4096), None);
        assert_eq!(pages(1, 8192), Some((4096, 8192)));
        assert_eq!(pages(4095, 12_289), Some((4096, 12_288)));
        assert_eq!(pages(5000, 5000), None);
        assert_eq!(pages(u64::MAX - 1, u64::MAX), None);
    }

    /// Bytes around the first pages, and at the end of the largest file.
    fn edges(page: u64) -> Vec<u64> {
        let mut edges: Vec<u64> = (0..5)
            .flat_map(|number| [number * page, number * page + 1, (number + 1) * page - 1])
            .chain([4097, 12_289, 20_000, 70_000, MAX_LEN - page, MAX_LEN])
            .collect();
        edges.sort_unstable();
        edges
    }

    #[test]
    fn rounding_fits_every_page_size() {
        for page in [4 << 10, 16 << 10, 64 << 10_u64] {
            let size = page as usize;
            // The pages that `holds` is true for, which are next to each other.
            let pages_where = |start: u64, holds: &dyn Fn(u64, u64) -> bool| {
                let mut found: Option<(u64, u64)> = None;
                // A page before the range, and more pages than the short ranges have.
                for number in (start / page).saturating_sub(1)..start / page + 8 {
                    let (from, to) = (number * page, (number + 1) * page);
                    if holds(from, to) {
                        found = Some((found.map_or(from, |(first, _)| first), to));
                    }
                }
                found
            };
            let both = |pages: PageRange| (pages.start(), pages.end());
            let edges = edges(page);
            for (index, start) in edges.iter().enumerate() {
                for end in edges[index..]
                    .iter()
                    .filter(|end| **end - start <= 6 * page)
                {
                    let (start, end) = (*start, *end);
                    let range = ByteRange::between(start, end);
                    let whole = pages_where(start, &|from, to| start <= from && to <= end);
                    assert_eq!(range.whole_pages(size).map(both), whole, "{range:?} {page}");
                    if start == end {
                        continue;
                    }
                    let pages = range.to_pages(size);
                    let touched = pages_where(start, &|from, to| from < end && start < to);
                    assert_eq!(Some(both(pages)), touched, "{range:?} {page}");
                    for at in [start, (start + end) / 2, end - 1] {
                        let (front, back) = pages.split_before(at, size);
                        assert_eq!((front.start(), back.end()), (pages.start(), pages.end()));
                        assert!(front.end() == back.start() && back.start() % page == 0);
                        assert!(back.start() <= at && at < back.start() + page);
                    }
                    for step in [page, 4 * page] {
                        let steps: Vec<PageRange> = pages.steps(step).collect();
                        assert!(steps.iter().all(|piece| piece.len() <= step));
                        assert_eq!(PageRange::merged(steps.iter().copied()), [pages]);
                        let sum: u64 = steps.iter().map(|piece| piece.len()).sum();
                        assert_eq!(sum, pages.len());
                    }
                }
            }
        }
    }

    #[test]
    fn runs_of_pages_merge_when_they_touch() {
        let ranges = [(100_000, 100_001), (4096, 4097), (0, 1), (5000, 5001)];
        let ranges = ranges.map(|(start, end)| ByteRange::between(start, end).to_pages(4096));
        let runs = PageRange::merged(ranges.into_iter());
        assert_eq!(runs.len(), 2);
        assert_eq!(runs[0].len(), 8192);
        let steps: Vec<_> = runs[0].steps(4096).map(PageRange::start).collect();
        assert_eq!(steps, [0, 4096]);
    }
}
