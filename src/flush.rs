//! When written bytes are flushed without being asked for, and which are still to be.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rangemap::RangeSet;

use crate::range::ByteRange;
use crate::sync::lock;
use crate::sys;

/// Milliseconds in a year: a longer wait is as good as none, and does not overflow a clock.
const LONGEST_WAIT: u64 = 365 * 24 * 60 * 60 * 1000;

/// When a write is made durable without an explicit flush.
///
/// Whatever the policy, [`flush`](crate::MemoryMappedFile::flush) and the writes whose names end in
/// `_async` are durable when they return. The default is [`Never`](Self::Never): then nothing else
/// is.
///
/// A policy bounds what a power cut may take. A process that is killed loses no write that has
/// returned, whatever the policy; see [What survives](crate#what-survives).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FlushPolicy {
    /// Flushes only on request.
    #[default]
    Never,
    /// Flushes only on request, as [`Never`](Self::Never) does; says that the caller will.
    Manual,
    /// Flushes with every write, before it returns.
    Always,
    /// Flushes everything once that many bytes have been written since the last flush; a byte that
    /// is written again counts again. The write that reaches the number returns after that flush. A
    /// flush of a part takes off what it covered. 0 disables the policy.
    EveryBytes(usize),
    /// Flushes everything with every n-th write since the last flush of everything; that write
    /// returns after the flush. 0 disables the policy.
    EveryWrites(usize),
    /// Flushes in the background, at most that many milliseconds after the first write that is not
    /// flushed. 0 disables the policy.
    ///
    /// A single job on the thread pool serves all files of the process and ends when no file has
    /// unflushed bytes. It flushes two files at a time; a file that takes longer than 100 ms holds
    /// up no other, as long as such files are fewer than half of the pool's threads.
    ///
    /// Dropping the last handle starts the flush at once, so that nothing is lost
    /// ([`close`](crate::MemoryMappedFile::close) waits for it as well). The error of a background
    /// flush is returned by the next durable operation, by the next write under this policy, and by
    /// [`last_flush_error`](crate::MemoryMappedFile::last_flush_error).
    EveryMillis(u64),
}

/// What a policy asks for after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    /// The write is flushed before it returns.
    Write,
    /// Everything that is pending is flushed before the write returns.
    Everything,
    /// Everything is flushed at that time; the timer is to be told.
    Alarm(Instant),
    /// Everything is flushed at a time that the timer knows.
    Alarmed,
}

/// The bytes that were written and not flushed.
#[derive(Debug)]
pub(crate) struct Pending(Mutex<Ranges>);

/// The same, locked for a batch of writes.
#[derive(Debug)]
pub(crate) struct Writing<'a>(MutexGuard<'a, Ranges>);

#[derive(Debug)]
struct Ranges {
    /// There is something to flush to.
    counts: bool,
    set: RangeSet<u64>,
    /// Ranges in the set.
    len: usize,
    /// Bytes in the set.
    bytes: u64,
    /// Ranges are widened to multiples of this power of two, so that the set stays small.
    granule: u64,
    /// What the flush that is running took out of the set: not durable yet, either.
    flushing: Vec<ByteRange>,
    /// What the policies count.
    since_flush: Written,
    /// When everything is flushed in the background.
    alarm: Option<Instant>,
}

/// What was written since the set of ranges was last empty, rewrites included.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    bytes: u64,
    writes: usize,
}

/// The most ranges that are kept apart. One more, and all of them are widened: first to pages,
/// which is what a flush writes anyway, then to twice as much.
const MOST_RANGES: usize = 4096;

impl Pending {
    /// Of memory without a file nothing is ever pending.
    pub(crate) fn new(has_file: bool) -> Self {
        Self(Mutex::new(Ranges {
            counts: has_file,
            set: RangeSet::new(),
            len: 0,
            bytes: 0,
            granule: 1,
            flushing: Vec::new(),
            since_flush: Written::default(),
            alarm: None,
        }))
    }

    /// Number of distinct bytes, those that are being flushed included: they are not durable
    /// before the flush has ended. Of more than some thousand ranges, the whole pages that they
    /// lie in.
    pub(crate) fn bytes(&self) -> u64 {
        let pending = self.ranges();
        let flushing = pending.flushing.iter().map(|range| pending.missing(*range));
        pending.bytes + flushing.sum::<u64>()
    }

    /// Whether every byte of the range was written and not flushed.
    pub(crate) fn covers(&self, range: ByteRange) -> bool {
        let pending = self.ranges();
        let is_gapless = pending.set.gaps(&range.into()).next().is_none();
        is_gapless
    }

    /// Counts writes, while nobody else does.
    pub(crate) fn writing(&self) -> Writing<'_> {
        Writing(self.ranges())
    }

    /// Counts one write, and says what `policy` asks for.
    pub(crate) fn wrote(&self, ranges: &[ByteRange], policy: FlushPolicy) -> Due {
        self.writing().wrote(ranges, policy)
    }

    /// What `policy` asks for, for the sake of a write that has been counted.
    pub(crate) fn due(&self, policy: FlushPolicy) -> Due {
        let mut pending = self.ranges();
        match pending.bytes {
            0 => Due::Nothing,
            _ => pending.due(policy),
        }
    }

    /// Takes out what a flush of `ranges` is about to cover. Bytes written from now on count anew:
    /// the flush may miss them. One flush at a time.
    pub(crate) fn take(&self, ranges: &[ByteRange]) -> Taken<'_> {
        let mut pending = self.ranges();
        debug_assert!(pending.flushing.is_empty());
        let before = pending.since_flush;
        pending.flushing = match pending.granule {
            1 => pending.remove(ranges),
            // A flush writes whole pages, and so all that is counted for them.
            _ => {
                let pages = ranges.iter().map(|range| range.to_pages(sys::page_size()));
                let pages: Vec<ByteRange> = pages.map(ByteRange::from).collect();
                pending.remove(&pages)
            }
        };
        let after = pending.since_flush;
        Taken {
            pending: self,
            is_durable: false,
            written: Written {
                bytes: before.bytes - after.bytes,
                writes: before.writes - after.writes,
            },
        }
    }

    /// Forgets what lies past the new end of the file; returns the hull of it.
    pub(crate) fn truncate(&self, len: u64) -> Option<ByteRange> {
        let removed = self.ranges().remove(&[ByteRange::between(len, u64::MAX)]);
        removed.into_iter().reduce(ByteRange::hull)
    }

    /// Takes the alarm that was set for `at` down; says whether there is something to flush. One
    /// that was set for another time is none.
    pub(crate) fn ring(&self, at: Instant) -> bool {
        let mut pending = self.ranges();
        let is_current = pending.alarm == Some(at);
        if is_current {
            pending.alarm = None;
        }
        is_current && pending.bytes > 0
    }

    /// When everything is to be flushed in the background.
    pub(crate) fn alarm(&self) -> Option<Instant> {
        self.ranges().alarm
    }

    /// Moves an alarm that is set to `now`, or takes it down if there is nothing to flush; says
    /// whether there was one.
    pub(crate) fn hurry(&self, now: Instant) -> bool {
        let mut pending = self.ranges();
        let is_set = pending.alarm.is_some();
        pending.alarm = (is_set && pending.bytes > 0).then_some(now);
        is_set
    }

    /// Takes an alarm down that has nothing to flush; says whether there was one.
    pub(crate) fn settle(&self) -> bool {
        let mut pending = self.ranges();
        pending.bytes == 0 && pending.alarm.take().is_some()
    }

    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        lock(&self.0)
    }
}

impl Writing<'_> {
    /// Counts one write, and says what `policy` asks for.
    pub(crate) fn wrote(&mut self, ranges: &[ByteRange], policy: FlushPolicy) -> Due {
        let pending = &mut *self.0;
        if !pending.counts {
            return Due::Nothing;
        }
        for range in ranges {
            pending.add(*range);
            pending.since_flush.bytes += range.len();
        }
        pending.since_flush.writes += 1;
        pending.due(policy)
    }
}

impl Ranges {
    /// What `policy` asks for now.
    fn due(&mut self, policy: FlushPolicy) -> Due {
        let reached = |is_reached: bool| match is_reached {
            true => Due::Everything,
            false => Due::Nothing,
        };
        match policy {
            FlushPolicy::Never | FlushPolicy::Manual => Due::Nothing,
            FlushPolicy::Always => Due::Write,
            FlushPolicy::EveryBytes(0)
            | FlushPolicy::EveryWrites(0)
            | FlushPolicy::EveryMillis(0) => Due::Nothing,
            FlushPolicy::EveryBytes(bytes) => reached(self.since_flush.bytes >= bytes as u64),
            FlushPolicy::EveryWrites(writes) => reached(self.since_flush.writes >= writes),
            FlushPolicy::EveryMillis(millis) => {
                let wait = Duration::from_millis(millis.min(LONGEST_WAIT));
                let at = Instant::now() + wait;
                if self.alarm.is_some_and(|alarm| alarm <= at) {
                    return Due::Alarmed;
                }
                self.alarm = Some(at);
                Due::Alarm(at)
            }
        }
    }

    fn add(&mut self, range: ByteRange) {
        let range = self.widened(range);
        let within = range.into();
        // Ranges that it touches become one with it.
        let (mut new, mut joined) = (range.len(), 0);
        let touching = range.start().saturating_sub(1)..range.end().saturating_add(1);
        for other in self.set.overlapping(&touching) {
            let shared = other
                .end
                .min(range.end())
                .saturating_sub(other.start.max(range.start()));
            new -= shared;
            joined += 1;
        }
        if new == 0 {
            return;
        }
        self.set.insert(within);
        self.bytes += new;
        self.len = self.len + 1 - joined;
        if self.len > MOST_RANGES {
            self.coarsen();
        }
    }

    fn widened(&self, range: ByteRange) -> ByteRange {
        match self.granule {
            1 => range,
            granule => ByteRange::from(range.to_pages(granule as usize)),
        }
    }

    /// Widens all ranges until they are half as many as they may be: each one is then moved a few
    /// times at most, however many come.
    fn coarsen(&mut self) {
        while self.len > MOST_RANGES / 2 {
            self.granule = (self.granule * 2).max(sys::page_size() as u64);
            let ranges = std::mem::take(&mut self.set);
            let widened = ranges
                .iter()
                .map(|range| self.widened(range.clone().into()));
            let mut widened: Vec<ByteRange> = widened.collect();
            ByteRange::merge(&mut widened);
            self.len = widened.len();
            self.bytes = widened.iter().map(|range| range.len()).sum();
            self.set = widened.into_iter().map(Range::from).collect();
        }
    }

    /// Bytes of the range that are not in the set.
    fn missing(&self, range: ByteRange) -> u64 {
        let within = range.into();
        let gaps = self.set.gaps(&within);
        gaps.map(|gap| gap.end - gap.start).sum()
    }

    /// Takes `ranges` out; returns what of them was there.
    fn remove(&mut self, ranges: &[ByteRange]) -> Vec<ByteRange> {
        let mut removed = Vec::new();
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            let within = (*range).into();
            let before = removed.len();
            for part in self.set.overlapping(&within) {
                let there = ByteRange::from(part.clone());
                let part = there.intersection(*range);
                // What is left of it stands at its two ends.
                let left = usize::from(there.start() < part.start())
                    + usize::from(part.end() < there.end());
                self.len = self.len + left - 1;
                removed.push(part);
            }
            if removed.len() > before {
                self.set.remove(within);
            }
        }
        let covered = removed.iter().map(|part| part.len()).sum::<u64>();
        self.bytes -= covered;
        self.since_flush.bytes = self.since_flush.bytes.saturating_sub(covered);
        if self.bytes == 0 {
            self.since_flush = Written::default();
            self.granule = 1;
        }
        removed
    }
}

/// What a flush is about to cover; goes back unless [`flushed`](Self::flushed) says it worked.
#[derive(Debug)]
#[must_use]
pub(crate) struct Taken<'a> {
    pending: &'a Pending,
    is_durable: bool,
    /// What the policies count no more.
    written: Written,
}

impl Taken<'_> {
    /// Where the last of the bytes ends.
    pub(crate) fn end(&self) -> Option<u64> {
        let pending = self.pending.ranges();
        pending.flushing.iter().map(|range| range.end()).max()
    }

    /// Ends the flush with its result.
    pub(crate) fn flushed(mut self, result: io::Result<()>) -> io::Result<()> {
        self.is_durable = result.is_ok();
        result
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut pending = self.pending.ranges();
        let flushing = std::mem::take(&mut pending.flushing);
        if !self.is_durable {
            flushing.into_iter().for_each(|range| pending.add(range));
            pending.since_flush.bytes += self.written.bytes;
            pending.since_flush.writes += self.written.writes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::between(start, end)
    }

    /// Pending ranges to which each of `ranges` was written, one write each.
    fn written(ranges: &[ByteRange]) -> Pending {
        let pending = Pending::new(true);
        for range in ranges {
            let due = pending.wrote(&[*range], FlushPolicy::Manual);
            assert_eq!(due, Due::Nothing);
        }
        pending
    }

    fn flush(pending: &Pending, ranges: &[ByteRange]) {
        pending.take(ranges).flushed(Ok(())).unwrap();
    }

    #[test]
    fn a_byte_counts_once_and_a_partial_flush_debits_what_it_covered() {
        let pending = written(&[range(0, 100), range(50, 150), range(1000, 1010)]);
        assert_eq!(pending.bytes(), 160);
        flush(&pending, &[range(90, 1005)]);
        assert_eq!(pending.bytes(), 95);
        flush(&pending, &[range(0, 10), range(5, 20), range(1009, 2000)]);
        assert_eq!(pending.bytes(), 74);
        flush(&pending, &[range(0, u64::MAX)]);
        assert_eq!(pending.bytes(), 0);
    }

    #[test]
    fn a_failed_flush_gives_the_bytes_back() {
        let pending = written(&[range(0, 10)]);
        let taken = pending.take(&[range(0, 5)]);
        pending.wrote(&[range(3, 4)], FlushPolicy::Never);
        taken.flushed(Err(io::ErrorKind::Other.into())).unwrap_err();
        assert_eq!(pending.bytes(), 10);
        let taken = pending.take(&[range(0, 100)]);
        taken.flushed(Err(io::ErrorKind::Other.into())).unwrap_err();
        // The writes are counted still, too.
        let due = pending.wrote(&[range(0, 1)], FlushPolicy::EveryWrites(3));
        assert_eq!(due, Due::Everything);
    }

    #[test]
    fn bytes_count_until_their_flush_has_ended() {
        let pending = written(&[range(0, 10)]);
        let taken = pending.take(&[range(0, 5)]);
        assert_eq!(pending.bytes(), 10);
        // Once, though they are to be flushed again.
        pending.wrote(&[range(3, 4)], FlushPolicy::Never);
        assert_eq!(pending.bytes(), 10);
        taken.flushed(Ok(())).unwrap();
        assert_eq!(pending.bytes(), 6);
    }

    #[test]
    fn the_write_that_reaches_a_threshold_flushes_everything() {
        let pending = written(&[range(0, 60)]);
        let policy = FlushPolicy::EveryBytes(100);
        assert_eq!(pending.wrote(&[range(60, 99)], policy), Due::Nothing);
        assert_eq!(pending.wrote(&[range(99, 100)], policy), Due::Everything);
        // A partial flush takes off what it covers.
        flush(&pending, &[range(0, 50)]);
        assert_eq!(pending.wrote(&[range(100, 149)], policy), Due::Nothing);
        assert_eq!(pending.wrote(&[range(0, 1)], policy), Due::Everything);
    }

    #[test]
    fn every_bytes_counts_rewrites() {
        let pending = written(&[range(0, 60)]);
        let policy = FlushPolicy::EveryBytes(100);
        assert_eq!(pending.wrote(&[range(0, 39)], policy), Due::Nothing);
        assert_eq!(pending.bytes(), 60);
        assert_eq!(pending.wrote(&[range(0, 1)], policy), Due::Everything);
        flush(&pending, &[range(0, 60)]);
        for _ in 0..11 {
            assert_eq!(pending.wrote(&[range(0, 9)], policy), Due::Nothing);
        }
        assert_eq!(pending.wrote(&[range(0, 9)], policy), Due::Everything);
        // A failed flush takes nothing off.
        let taken = pending.take(&[range(0, 9)]);
        taken.flushed(Err(io::ErrorKind::Other.into())).unwrap_err();
        assert_eq!(pending.wrote(&[range(0, 1)], policy), Due::Everything);
    }

    #[test]
    fn many_ranges_are_counted_in_pages_and_more() {
        let page = sys::page_size() as u64;
        let pending = Pending::new(true);
        let write = |at| pending.wrote(&[range(at, at + 1)], FlushPolicy::Never);
        for number in 0..MOST_RANGES as u64 {
            write(2 * number);
        }
        assert_eq!(pending.bytes(), MOST_RANGES as u64);
        write(2 * MOST_RANGES as u64);
        assert_eq!(
            pending.bytes(),
            (2 * MOST_RANGES as u64 + 1).next_multiple_of(page)
        );
        flush(&pending, &[range(0, 100 * page)]);
        assert_eq!(pending.bytes(), 0);
        // Pages that do not touch each other, from both ends.
        for number in 0..50_000 {
            write(page * 2 * number);
            write(page * 2 * (200_000 - number));
            let pending = pending.ranges();
            assert!(pending.set.iter().count() == pending.len || number % 1000 != 0);
            assert!(pending.len <= MOST_RANGES);
        }
        assert!(pending.covers(range(page * 2000, page * 2000 + 1)));
        pending.truncate(page * 1000);
        assert!(pending.bytes() <= page * 1000);
        flush(&pending, &[range(0, page * 1000)]);
        write(7);
        assert_eq!(pending.bytes(), 1, "exact again");
    }

    #[test]
    fn the_number_of_ranges_is_known() {
        let mut seed = 7_u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        let pending = Pending::new(true);
        let mut bytes = vec![false; 1000];
        for _ in 0..3000 {
            let start = random(1000);
            let end = (start + 1 + random(50)).min(1000);
            let writes = random(3) > 0;
            match writes {
                true => drop(pending.wrote(&[range(start, end)], FlushPolicy::Never)),
                false => flush(&pending, &[range(start, end)]),
            }
            bytes[start as usize..end as usize].fill(writes);
            let count = bytes.iter().filter(|byte| **byte).count();
            assert_eq!(pending.bytes(), count as u64);
            let pending = pending.ranges();
            assert_eq!(pending.set.iter().count(), pending.len);
        }
    }

    #[test]
    fn writes_are_counted_since_nothing_was_pending() {
        let pending = written(&[range(0, 10)]);
        let policy = FlushPolicy::EveryWrites(3);
        assert_eq!(pending.wrote(&[range(0, 10)], policy), Due::Nothing);
        flush(&pending, &[range(0, 5)]);
        assert_eq!(pending.wrote(&[range(0, 10)], policy), Due::Everything);
        flush(&pending, &[range(0, 10)]);
        assert_eq!(pending.wrote(&[range(0, 10)], policy), Due::Nothing);
        assert_eq!(pending.wrote(&[range(0, 10)], policy), Due::Nothing);
        assert_eq!(pending.wrote(&[range(0, 10)], policy), Due::Everything);
    }

    #[test]
    fn zero_disables_a_policy() {
        for policy in [
            FlushPolicy::EveryBytes(0),
            FlushPolicy::EveryWrites(0),
            FlushPolicy::EveryMillis(0),
        ] {
            let pending = Pending::new(true);
            assert_eq!(pending.wrote(&[range(0, 1 << 30)], policy), Due::Nothing);
            assert!(!pending.hurry(Instant::now()));
        }
    }

    #[test]
    fn one_alarm_is_set_for_the_earliest_time_and_stale_ones_are_none() {
        let pending = Pending::new(true);
        let write = |millis| pending.wrote(&[range(0, 10)], FlushPolicy::EveryMillis(millis));
        let Due::Alarm(late) = write(1_000_000) else {
            panic!("nothing is set");
        };
        assert_eq!(write(2_000_000), Due::Alarmed);
        let Due::Alarm(early) = write(1000) else {
            panic!("it is earlier");
        };
        assert!(early < late);
        assert!(!pending.ring(late));
        assert!(pending.ring(early));
        assert!(!pending.ring(early));
        let Due::Alarm(next) = write(u64::MAX) else {
            panic!("it has rung");
        };
        assert!(!pending.settle(), "there is something to flush");
        assert!(pending.hurry(late));
        assert_eq!(pending.alarm(), Some(late));
        flush(&pending, &[range(0, 10)]);
        assert!(!pending.ring(next), "that one was moved");
        assert!(!pending.ring(late), "there is nothing to flush");
        let take_downs: [&dyn Fn() -> bool; 2] = [&|| pending.settle(), &|| pending.hurry(late)];
        for take_down in take_downs {
            write(1000);
            flush(&pending, &[range(0, 10)]);
            assert!(take_down());
            assert_eq!(pending.alarm(), None);
            assert!(!take_down());
        }
    }
}
