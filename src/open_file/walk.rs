//! Makes pages writable ahead of a writer that walks forward through the file.
//!
//! Such a writer meets a new page after every few writes, and the first write to a page makes a hop
//! to the pool. So when writes through the queue have come to neighbouring pages, the drain makes
//! the next pages writable as well: as many as the writer has walked, and at most [`AHEAD`] bytes.
//! The writes to these pages are then applied where they are polled.
//!
//! A page that the writer never reaches is written out for nothing, so there are few. A page that is
//! not in memory would have to be read, and may be a hole that would get a block: the walk stops
//! there.

use super::write_plan::WriteTarget;
use crate::range::{ByteRange, PageRange};
use crate::residency;
use crate::sys;

/// The most bytes that are made writable ahead of the writer.
const AHEAD: u64 = 64 << 10;

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
        let end = pages.end() + walked.min(AHEAD);
        let ahead = ByteRange::between(pages.end(), end.min(len).max(pages.end()));
        let ahead = ahead.to_pages(sys::page_size());
        self.end = ahead.end();
        ahead
    }
}

/// Returns the pages ahead of the write to `range` that are to be made writable as well, if it goes on
/// where the last one has ended.
pub(super) fn pages_ahead(
    walk: &mut Walk,
    target: &WriteTarget<'_>,
    range: ByteRange,
) -> Option<ByteRange> {
    let pages = range.to_pages(sys::page_size());
    let ahead = walk.step(pages, target.len);
    if ahead.len() == 0 {
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
    // Clean pages make those around them forgotten, as the pages of the write do if they are clean.
    let costs_nothing = are_dirty(ahead)? || !are_dirty(pages)?;
    let is_wanted = costs_nothing && residency::may_be_cached(target.map.run(ahead));
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
        let most = AHEAD / page;
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
