//! The two words that readers compare their ranges with: a hull, and stripes under it.

use super::intervals::Intervals;
use crate::range::ByteRange;

/// A range in blocks of 32 KiB, first and last in one word: what readers compare with.
pub(super) struct Hull;

impl Hull {
    const BLOCK_BITS: u32 = 15;
    /// No block: 0, for the sake of the comparison that every read makes.
    pub(super) const EMPTY: u64 = 0;
    /// A first block behind the last stands for no block; it is packed as 0.
    const MASK: u64 = 1 << 32;

    pub(super) fn of(range: ByteRange) -> u64 {
        let first = range.start() >> Self::BLOCK_BITS;
        let last = (range.end() - 1) >> Self::BLOCK_BITS;
        debug_assert!(last <= u64::from(u32::MAX), "{range:?} is too far");
        (first << 32 | last) ^ Self::MASK
    }

    /// Whether the packed range may share a byte with `range`, which is not empty.
    #[inline]
    pub(super) fn covers(packed: u64, range: ByteRange) -> bool {
        let unpacked = packed ^ Self::MASK;
        let (first, last) = (unpacked >> 32, unpacked & u64::from(u32::MAX));
        range.start() >> Self::BLOCK_BITS <= last && first <= (range.end() - 1) >> Self::BLOCK_BITS
    }
}

/// Ranges as a set of stripes, all of the same size: a power of two of bytes. Packed into one word,
/// together with the size, so that the word means the same whatever else a reader has seen.
///
/// A byte lies in the stripe that its offset in stripes names, modulo their number. The size is
/// chosen so that no two stripes under the hull share a number; what lies outside may.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stripes {
    /// Logarithm of their size.
    pub(super) scale: u32,
    /// One bit for each.
    bits: u32,
}

impl Stripes {
    pub(super) const EMPTY: u64 = 0;
    const COUNT: u64 = 32;

    /// No stripes, small enough to tell ranges in `hull` apart.
    pub(super) fn none_over(hull: ByteRange) -> Self {
        let (first, last) = (hull.start(), hull.end() - 1);
        let mut scale = Hull::BLOCK_BITS;
        while (last >> scale) - (first >> scale) >= Self::COUNT {
            scale += 1;
        }
        Self { scale, bits: 0 }
    }

    pub(super) fn add(&mut self, range: ByteRange) {
        self.bits |= Self::bits(self.scale, range);
    }

    /// Adds the ranges of a set, with as many looks at it as there are stripes, at most.
    pub(super) fn add_all<V: Default>(&mut self, ranges: &Intervals<V>) {
        let mut at = 0;
        while let Some(range) = ranges.first_ending_after(at) {
            let range = ByteRange::between(range.start().max(at), range.end());
            self.add(range);
            // All that ends before the end of its last stripe adds nothing more, as what starts
            // before this range does not reach to it.
            at = (((range.end() - 1) >> self.scale) + 1) << self.scale;
        }
    }

    pub(super) fn packed(self) -> u64 {
        u64::from(self.bits) << 32 | u64::from(self.scale)
    }

    /// Whether the packed ranges may share a byte with `range`, which is not empty. With no ranges,
    /// one of many stripes is covered all the same.
    #[inline]
    pub(super) fn covers(packed: u64, range: ByteRange) -> bool {
        let (first, count) = Self::span(packed as u32, range);
        // The first stripe at or after that of the range is one of its own.
        u64::from(((packed >> 32) as u32).rotate_right(first).trailing_zeros()) < count
    }

    /// The stripes of a range that is not empty.
    fn bits(scale: u32, range: ByteRange) -> u32 {
        let (first, count) = Self::span(scale, range);
        let lowest = match count >= Self::COUNT {
            true => u32::MAX,
            false => (1 << count) - 1,
        };
        lowest.rotate_left(first)
    }

    /// The first stripe of a range modulo their number, and how many it has.
    #[inline]
    fn span(scale: u32, range: ByteRange) -> (u32, u64) {
        // Masked by what a shift can be anyway, to save the check.
        let scale = scale & 63;
        let (first, last) = (range.start() >> scale, (range.end() - 1) >> scale);
        (first as u32 % Self::COUNT as u32, last - first + 1)
    }
}

/// Compares both ways to add `ranges`, and looks, with what the ranges say themselves.
#[cfg(all(test, not(mmap_io_loom)))]
pub(super) fn check_stripes(hull: ByteRange, ranges: &[ByteRange], looks: &[ByteRange]) {
    let (mut one, mut all, mut set) = (
        Stripes::none_over(hull),
        Stripes::none_over(hull),
        Intervals::new(),
    );
    for range in ranges {
        one.add(*range);
        set.insert(*range, ());
    }
    all.add_all(&set);
    assert_eq!(one.packed(), all.packed());
    let size = 1 << one.scale;
    assert!(one.scale == Hull::BLOCK_BITS || hull.len() > size * (Stripes::COUNT / 2 - 1));
    let widen = |range: &ByteRange| {
        let start = range.start() / size * size;
        ByteRange::between(start, range.end().div_ceil(size) * size)
    };
    for look in looks {
        let covers = Stripes::covers(one.packed(), *look);
        let overlaps = ranges.iter().any(|range| range.overlaps(*look));
        assert!(covers || !overlaps, "{look:?} is overlooked");
        if hull.contains(*look) {
            let is_near = ranges.iter().any(|range| widen(range).overlaps(*look));
            assert_eq!(covers, is_near, "{look:?}");
        }
    }
}
