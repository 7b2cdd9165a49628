//! Remembers to which pages of a map a store can be made without a page fault.
//!
//! A store to a page that was never touched, or that the system has cleaned since, faults: it may
//! wait for a read, or for the journal of the file system. The page cache alone does not tell. It
//! speaks of *folios*, groups of pages: after the system has cleaned a folio, it write-protects all
//! of its pages, and a store to one of them makes the whole folio dirty again, but only that page
//! writable. So a page is writable only if the page cache calls it dirty *and* it was made writable
//! here, and nothing has made its folio dirty again in the meantime.
//!
//! The rule for the last part: whatever is about to make a page dirty looks first whether it is. If
//! it is not, or if nothing has looked (a store through a view, a write through the descriptor), the
//! pages of the whole [`BLOCK`] are forgotten, which contains the folio. The same happens when the
//! crate itself has pages cleaned or unmapped. What another process makes dirty is not noticed: then
//! a store may wait, as any store to a mapping may.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use crate::range::{ByteRange, PageRange};
use crate::sync::lock;
use crate::sys;

/// The pages that are forgotten together, in bytes: the size of the largest folio.
const BLOCK: u64 = 2 << 20;

/// The most blocks that are remembered: those of 8 GiB, in less than 1 MiB of memory.
const MOST: usize = 4096;

/// The pages of one map that can be stored to.
#[derive(Debug, Default)]
pub(crate) struct WritablePages(Mutex<Noted>);

#[derive(Debug, Default)]
struct Noted {
    blocks: HashMap<u64, Block>,
    /// How many times pages were forgotten.
    forgotten: u64,
}

#[derive(Debug)]
struct Block {
    /// One bit for each page.
    pages: [u64; 8],
    /// How many times pages had been forgotten when this was made.
    since: u64,
}

/// When pages were about to be made writable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment(u64);

impl WritablePages {
    /// Notes that pages are about to be made writable; returns the moment for [`add`](Self::add).
    pub(crate) fn begin(&self, pages: &[PageRange]) -> Moment {
        let Noted { blocks, forgotten } = &mut *self.noted();
        for (number, _) in pages.iter().flat_map(|pages| parts((*pages).into())) {
            if blocks.len() >= MOST && !blocks.contains_key(&number) {
                blocks.clear();
            }
            blocks.entry(number).or_insert(Block {
                pages: [0; 8],
                since: *forgotten,
            });
        }
        Moment(*forgotten)
    }

    /// Notes that pages were made writable after `began`, except in blocks that were forgotten
    /// since: the pages may have been cleaned after they were made writable.
    pub(crate) fn add(&self, pages: PageRange, began: Moment) {
        let mut noted = self.noted();
        for (number, part) in parts(pages.into()) {
            let block = noted.blocks.get_mut(&number);
            if let Some(block) = block.filter(|block| block.since <= began.0) {
                for page in bits(part) {
                    block.pages[page / 64] |= 1 << (page % 64);
                }
            }
        }
    }

    /// Whether all of the pages are writable.
    pub(crate) fn contain(&self, pages: PageRange) -> bool {
        let noted = self.noted();
        parts(pages.into()).all(|(number, part)| {
            let block = noted.blocks.get(&number);
            block.is_some_and(|block| {
                bits(part).all(|page| block.pages[page / 64] & 1 << (page % 64) != 0)
            })
        })
    }

    /// Forgets the pages of every block that has a byte of the range.
    pub(crate) fn forget(&self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        let Noted { blocks, forgotten } = &mut *self.noted();
        *forgotten += 1;
        let (first, last) = (range.start() / BLOCK, (range.end() - 1) / BLOCK);
        match last - first < blocks.len() as u64 {
            true => {
                for number in first..=last {
                    blocks.remove(&number);
                }
            }
            false => blocks.retain(|number, _| !(first..=last).contains(number)),
        }
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        lock(&self.0)
    }
}

/// The range, widened to whole blocks.
pub(crate) fn around(range: ByteRange) -> ByteRange {
    range.to_pages(BLOCK as usize).into()
}

/// The parts of a range, each inside one block, with the numbers of the blocks.
fn parts(range: ByteRange) -> impl Iterator<Item = (u64, ByteRange)> {
    let blocks = range.start() / BLOCK..range.end().div_ceil(BLOCK);
    blocks.map(move |number| {
        let block = ByteRange::between(number * BLOCK, (number + 1) * BLOCK);
        (number, block.intersection(range))
    })
}

/// The places of pages inside their block.
fn bits(pages: ByteRange) -> std::ops::Range<usize> {
    let page_size = sys::page_size() as u64;
    let first = pages.start() % BLOCK / page_size;
    first as usize..(first + pages.len() / page_size) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(first: u64, count: u64) -> PageRange {
        let page_size = sys::page_size() as u64;
        ByteRange::between(first * page_size, (first + count) * page_size)
            .to_pages(sys::page_size())
    }

    fn add(writable: &WritablePages, pages: PageRange) {
        let began = writable.begin(&[pages]);
        writable.add(pages, began);
    }

    #[test]
    fn pages_are_forgotten_while_they_are_made_writable() {
        let in_block = BLOCK / sys::page_size() as u64;
        let writable = WritablePages::default();
        let both = pages(in_block - 2, 4);
        let began = writable.begin(&[both]);
        // A byte of the first block, which another job is about to make writable, too.
        writable.forget(ByteRange::between(0, 1));
        writable.begin(&[pages(0, 1)]);
        writable.add(both, began);
        assert!(!writable.contain(pages(in_block - 1, 1)));
        assert!(writable.contain(pages(in_block, 2)));
        add(&writable, both);
        assert!(writable.contain(both));
    }

    #[test]
    fn pages_are_forgotten_by_whole_blocks() {
        let in_block = BLOCK / sys::page_size() as u64;
        let writable = WritablePages::default();
        add(&writable, pages(in_block - 2, 4));
        assert!(writable.contain(pages(in_block - 2, 4)));
        assert!(!writable.contain(pages(in_block - 3, 2)));
        assert!(!writable.contain(pages(in_block + 1, 2)));
        assert!(!writable.contain(pages(5 * in_block, 1)));
        writable.forget(ByteRange::between(0, 0));
        assert!(writable.contain(pages(in_block - 2, 4)));
        // A byte of the first block.
        writable.forget(ByteRange::between(10, 11));
        assert!(!writable.contain(pages(in_block - 1, 1)));
        assert!(writable.contain(pages(in_block, 2)));
        add(&writable, pages(9 * in_block, 1));
        writable.forget(ByteRange::between(BLOCK + 1, u64::MAX));
        assert!(!writable.contain(pages(in_block, 1)));
        assert!(!writable.contain(pages(9 * in_block, 1)));
    }

    #[test]
    fn memory_for_blocks_is_bounded() {
        let in_block = BLOCK / sys::page_size() as u64;
        let writable = WritablePages::default();
        for number in 0..3 * MOST as u64 {
            add(&writable, pages(number * in_block, 1));
            assert!(writable.contain(pages(number * in_block, 1)));
            assert!(writable.noted().blocks.len() <= MOST);
        }
    }
}
