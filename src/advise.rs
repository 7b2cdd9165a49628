//! Telling the kernel how a range will be used.

use crate::sys;

/// How a range will be used ([`madvise(2)`]).
///
/// Systems that do not know a hint ignore it.
///
/// [`madvise(2)`]: https://man7.org/linux/man-pages/man2/madvise.2.html
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MmapAdvice {
    /// In no special way: the default read-ahead.
    Normal,
    /// In random order: no read-ahead. Populating pages is slow afterwards.
    Random,
    /// From front to back: read far ahead, and drop what was read.
    Sequential,
    /// Soon: start reading it.
    WillNeed,
    /// Not soon: take the pages out of this mapping. Their content stays in the file.
    DontNeed,
    /// Not soon: the first to go when memory is short.
    Cold,
    /// Not soon: write it back and give the memory to others now.
    PageOut,
    /// With huge pages, where the file system has them.
    HugePage,
    /// Without huge pages.
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
