//! The two words that readers compare their ranges with: a hull over all announced ranges, and a
//! finer set of stripes below the hull.

use super::intervals::Intervals;
use crate::range::ByteRange;

/// A range in blocks of 32 KiB, with the first and the last block packed into one word.
pub(super) struct Hull;

impl Hull {
    const BLOCK_BITS: u32 = 15;
    /// No block. It is 0, so that the comparison that every read makes is cheap.
    pub(super) const EMPTY: u64 = 0;
    /// If the first block is after the last one, the range is empty; it is packed as 0.
    const MASK: u64 = 1 << 32;

    pub(super) fn of(range: ByteRange) -> u64 {
        let first = range.start() >> Self::BLOCK_BITS;
        let last = (range.end() - 1) >> Self::BLOCK_BITS;
        debug_assert!(
            last <= u64::from(u32::MAX),
            "{range:?} ends behind the last block that the word can name"
        );
        (first << 32 | last) ^ Self::MASK
    }

    /// Returns whether the packed range may share a byte with `range`, which is not empty.
    #[inline]
    pub(super) fn covers(packed: u64, range: ByteRange) -> bool {
        if packed == Self::EMPTY {
            // It unpacks to a first block after the last one, between which a range may lie.
            return false;
        }
        let unpacked = packed ^ Self::MASK;
        let (first, last) = (unpacked >> 32, unpacked & u64::from(u32::MAX));
        range.start() >> Self::BLOCK_BITS <= last && first <= (range.end() - 1) >> Self::BLOCK_BITS
    }
}

/// Ranges as a set of stripes of one size, which is a power of two. The set and the size are packed
/// into one word, so that its meaning does not depend on any other value that a reader has seen.
///
/// A byte belongs to the stripe whose number is the offset of the byte, divided by the size, modulo
/// the number of stripes. The size is chosen so that no two stripes under the hull share a number;
/// stripes outside the hull may.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stripes {
    /// The binary logarithm of the stripe size.
    pub(super) scale: u32,
    /// One bit for each stripe.
    bits: u32,
}

impl Stripes {
    pub(super) const EMPTY: u64 = 0;
    const COUNT: u64 = 32;

    /// Creates an empty set whose stripes are small enough to tell ranges inside `hull` apart.
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

    /// Adds the ranges of a set; searches the set at most once for each stripe.
    pub(super) fn add_all<V: Default>(&mut self, ranges: &Intervals<V>) {
        let mut at = 0;
        while let Some(range) = ranges.first_ending_after(at) {
            let range = ByteRange::between(range.start().max(at), range.end());
            self.add(range);
            // A range that ends before the end of that last stripe adds nothing more, because a
            // range that starts before this one does not reach so far.
            at = (((range.end() - 1) >> self.scale) + 1) << self.scale;
        }
    }

    pub(super) fn packed(self) -> u64 {
        u64::from(self.bits) << 32 | u64::from(self.scale)
    }

    /// Returns whether the packed ranges may share a byte with `range`, which is not empty. A range
    /// of 33 stripes or more counts as covered even if no range is packed.
    #[inline]
    pub(super) fn covers(packed: u64, range: ByteRange) -> bool {
        let (first, count) = Self::span(packed as u32, range);
        // The range is covered if the first set stripe at or after its own first stripe belongs to
        // it.
        u64::from(((packed >> 32) as u32).rotate_right(first).trailing_zeros()) < count
    }

    /// Returns the stripes of a range that is not empty.
    fn bits(scale: u32, range: ByteRange) -> u32 {
        let (first, count) = Self::span(scale, range);
        let lowest = match count >= Self::COUNT {
            true => u32::MAX,
            false => (1 << count) - 1,
        };
        lowest.rotate_left(first)
    }

    /// Returns the number of the range's first stripe, and how many stripes the range has.
    #[inline]
    fn span(scale: u32, range: ByteRange) -> (u32, u64) {
        // A shift is less than 64 in any case; the mask saves the check for that.
        let scale = scale & 63;
        let (first, last) = (range.start() >> scale, (range.end() - 1) >> scale);
        (first as u32 % Self::COUNT as u32, last - first + 1)
    }
}

/// Compares both ways to add `ranges`, and the answers for each of `looks`, with a search of the
/// ranges themselves.
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
        assert!(
            covers || !overlaps,
            "{look:?} overlaps a range but is not covered"
        );
        if hull.contains(*look) {
            let is_near = ranges.iter().any(|range| widen(range).overlaps(*look));
            assert_eq!(
                covers, is_near,
                "{look:?} is covered if and only if it shares a stripe"
            );
        }
    }
}
