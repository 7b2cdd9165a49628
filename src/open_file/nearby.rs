//! Chooses pages near a write that are made writable together with its own.
//!
//! The first write to a page makes a hop to the pool, where the page is made writable. Later writes
//! to it are applied where they are polled. To make fewer hops, the drain makes more pages writable
//! than it has to:
//!
//! - If the page is dirty, because it was written through the descriptor or another map: the other
//!   pages of its [`BLOCK`], if they are dirty as well. They will be written out in any case.
//! - If the page is not dirty, and the writer *walks*, that is, its writes through the queue have
//!   come to neighbouring pages: the next pages, as many as it has walked, and at most a block. A page
//!   that the writer never reaches is written out for nothing, so there are few. A page that is not
//!   in memory would have to be read, and may be a hole that would get a block on the disk: there
//!   the walk stops.

use super::write_plan::WriteTarget;
use crate::range::{ByteRange, PageRange};
use crate::residency;
use crate::sys;

/// The most bytes that are made writable together with a small write.
const BLOCK: u64 = 64 << 10;

/// The pages that the last queued writes have walked through. Only the drain uses it.
#[derive(Debug, Default)]
pub(super) struct Walk {
    start: u64,
    /// The end of the last page that is writable.
    end: u64,
}

impl Walk {
    /// Goes on to the pages of a write that is about to be applied; returns the pages ahead of it
    /// that are to be made writable.
    fn step(&mut self, pages: PageRange, len: u64) -> PageRange {
        if pages.start() != self.end {
            // In the last page again, or elsewhere.
            if pages.end() != self.end {
                (self.start, self.end) = (pages.start(), pages.end());
            }
            return PageRange::EMPTY;
        }
        let walked = pages.end() - self.start;
        let end = pages.end() + walked.min(BLOCK);
        let ahead = ByteRange::between(pages.end(), end.min(len).max(pages.end()));
        let ahead = ahead.to_pages(sys::page_size());
        self.end = ahead.end();
        ahead
    }
}

/// Returns the pages that are to be made writable together with those of a write to `range`.
pub(super) fn nearby(
    walk: &mut Walk,
    target: &WriteTarget<'_>,
    range: ByteRange,
) -> Option<ByteRange> {
    let page_size = sys::page_size();
    let pages = range.to_pages(page_size);
    let ahead = walk.step(pages, target.len);
    if target.map.writable().contain(pages) {
        return None;
    }
    let are_dirty = |pages| {
        residency::are_dirty(
            target.map.run(pages),
            target.backing,
            target.fs_traits,
            pages,
        )
    };
    if are_dirty(pages)? {
        let block = ByteRange::from(range.to_pages((BLOCK as usize).max(page_size)));
        let end = block
            .end()
            .min(target.len.next_multiple_of(page_size as u64));
        let block = ByteRange::between(block.start(), end);
        return are_dirty(block.to_pages(page_size))?.then_some(block);
    }
    // Pages that are clean make those around them forgotten, as those of the write do.
    let is_wanted = ahead.len() > 0 && residency::may_be_cached(target.map.run(ahead));
    is_wanted.then(|| ahead.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walk_grows_with_what_was_walked() {
        let page = sys::page_size() as u64;
        let pages = |first: u64, count: u64| {
            ByteRange::between(first * page, (first + count) * page).to_pages(page as usize)
        };
        let mut walk = Walk::default();
        let mut step = |first, count| {
            let ahead = walk.step(pages(first, count), 1000 * page);
            (ahead.start() / page, ahead.len() / page)
        };
        // The first write is no walk, and neither is another one to the same page.
        assert_eq!(step(10, 1).1, 0);
        assert_eq!(step(10, 1).1, 0);
        let most = BLOCK / page;
        assert_eq!(step(11, 1), (12, 2.min(most)));
        // The next hop comes behind what was made writable.
        let next = 12 + 2.min(most);
        let (start, len) = step(next, 1);
        assert_eq!((start, len), (next + 1, (next - 9).min(most)));
        // A jump begins anew.
        assert_eq!(step(500, 1).1, 0);
        assert_eq!(step(498, 1).1, 0);
        // Not behind the end of the file.
        assert_eq!(step(999, 1).1, 0);
        assert_eq!(step(1000, 1).1, 0);
    }
}
