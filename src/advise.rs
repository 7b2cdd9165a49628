//! The kinds of advice to the kernel about how a range will be used.

use crate::sys;

/// Tells the kernel how a range will be used ([`madvise(2)`]); an argument of
/// [`advise`](crate::MemoryMappedFile::advise).
///
/// Systems that do not know a hint ignore it.
///
/// [`madvise(2)`]: https://man7.org/linux/man-pages/man2/madvise.2.html
#[doc(alias = "madvise")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MmapAdvice {
    /// The range will be used in no special way: the default read-ahead.
    Normal,
    /// The range will be read in random order: no read-ahead. Reading many pages in is slow after
    /// it.
    Random,
    /// The range will be read from front to back: read far ahead, and drop what was read.
    Sequential,
    /// The range will be used soon: start reading it.
    WillNeed,
    /// The range will not be used soon: take the pages out of this mapping. Their content stays in
    /// the file; what was written to private pages is lost.
    DontNeed,
    /// The range will not be used soon: its pages go first when memory is short.
    Cold,
    /// The range will not be used soon: write it back and free its memory now.
    PageOut,
    /// Use huge pages, where the file system has them.
    HugePage,
    /// Use no huge pages.
    NoHugePage,
}

impl From<MmapAdvice> for sys::Advice {
    fn from(advice: MmapAdvice) -> Self {
        match advice {
            MmapAdvice::Normal => Self::Normal,
            MmapAdvice::Random => Self::Random,
            MmapAdvice::Sequential => Self::Sequential,
            MmapAdvice::WillNeed => Self::WillNeed,
            MmapAdvice::DontNeed => Self::DontNeed,
            MmapAdvice::Cold => Self::Cold,
            MmapAdvice::PageOut => Self::PageOut,
            MmapAdvice::HugePage => Self::HugePage,
            MmapAdvice::NoHugePage => Self::NoHugePage,
        }
    }
}
