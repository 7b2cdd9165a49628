//! When written bytes are flushed without being asked for, and which are still to be.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rangemap::RangeSet;

use crate::range::ByteRange;

/// When a write is made durable without an explicit flush.
///
/// Whatever the policy, [`flush`](crate::MemoryMappedFile::flush) and the writes whose names end
/// in `_async` are durable when they return.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FlushPolicy {
    /// Only when asked for.
    #[default]
    Never,
    /// Only when asked for; says that the caller will.
    Manual,
    /// With every write, before it returns.
    Always,
}

/// The bytes that were written and not flushed.
#[derive(Debug)]
pub(crate) struct Pending(Mutex<Ranges>);

#[derive(Debug, Default)]
struct Ranges {
    set: RangeSet<u64>,
    /// Bytes in the set.
    bytes: u64,
}

impl Pending {
    pub(crate) fn new() -> Self {
        Self(Mutex::default())
    }

    /// Number of distinct bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.ranges().bytes
    }

    /// Adds what was written.
    pub(crate) fn add(&self, ranges: impl IntoIterator<Item = ByteRange>) {
        let mut pending = self.ranges();
        for range in ranges {
            pending.add(range);
        }
    }

    /// Takes out what a flush of `range` is about to cover. Bytes written from now on count anew:
    /// the flush may miss them.
    pub(crate) fn take(&self, range: ByteRange) -> Taken<'_> {
        let mut pending = self.ranges();
        let within = range.into();
        let taken: Vec<ByteRange> = pending
            .set
            .overlapping(&within)
            .map(|part| {
                ByteRange::between(part.start.max(range.start()), part.end.min(range.end()))
            })
            .collect();
        pending.set.remove(within);
        pending.bytes -= taken.iter().map(|part| part.len()).sum::<u64>();
        Taken {
            pending: self,
            ranges: taken,
        }
    }

    /// Forgets what lies past the new end of the file.
    pub(crate) fn truncate(&self, len: u64) {
        if len < u64::MAX {
            drop(self.take(ByteRange::between(len, u64::MAX)).flushed(Ok(())));
        }
    }

    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ranges {
    fn add(&mut self, range: ByteRange) {
        let within = range.into();
        let new: u64 = self.set.gaps(&within).map(|gap| gap.end - gap.start).sum();
        if new > 0 {
            self.set.insert(within);
            self.bytes += new;
        }
    }
}

/// What a flush is about to cover; goes back unless [`flushed`](Self::flushed) says it worked.
#[derive(Debug)]
#[must_use]
pub(crate) struct Taken<'a> {
    pending: &'a Pending,
    ranges: Vec<ByteRange>,
}

impl Taken<'_> {
    /// Ends the flush with its result.
    pub(crate) fn flushed(mut self, result: io::Result<()>) -> io::Result<()> {
        if result.is_ok() {
            self.ranges.clear();
        }
        result
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.pending.add(self.ranges.drain(..));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::between(start, end)
    }

    #[test]
    fn a_byte_counts_once_and_a_partial_flush_debits_what_it_covered() {
        let pending = Pending::new();
        pending.add([range(0, 100), range(50, 150), range(1000, 1010)]);
        assert_eq!(pending.bytes(), 160);
        pending.take(range(90, 1005)).flushed(Ok(())).unwrap();
        assert_eq!(pending.bytes(), 95);
        pending.take(range(0, u64::MAX)).flushed(Ok(())).unwrap();
        assert_eq!(pending.bytes(), 0);
    }

    #[test]
    fn a_failed_flush_gives_the_bytes_back() {
        let pending = Pending::new();
        pending.add([range(0, 10)]);
        let taken = pending.take(range(0, 5));
        assert_eq!(pending.bytes(), 5);
        pending.add([range(3, 4)]);
        taken.flushed(Err(io::ErrorKind::Other.into())).unwrap_err();
        assert_eq!(pending.bytes(), 10);
    }
}
