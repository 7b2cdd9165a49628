//! The set of written bytes that have not been flushed yet, and the decision when a policy flushes
//! them.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rangemap::RangeSet;

use crate::flush::FlushPolicy;
use crate::range::ByteRange;
use crate::sync::lock;
use crate::sys;

/// Milliseconds in a year. Longer intervals are cut to this, so that a point in time does not
/// overflow.
const LONGEST_WAIT: u64 = 365 * 24 * 60 * 60 * 1000;

/// The flush that a policy requires after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlushDue {
    None,
    /// The write is flushed before it returns.
    ThisWrite,
    /// Everything that is dirty is flushed before the write returns.
    AllDirty,
    /// Everything is flushed at the given time; the timer must be told.
    ArmTimer(Instant),
    /// Everything is flushed at a time that the timer knows already.
    TimerArmed,
}

/// The bytes of one file that were written and not flushed.
#[derive(Debug)]
pub(crate) struct DirtyRanges(Mutex<Ranges>);

/// The dirty ranges, locked for a batch of writes.
#[derive(Debug)]
pub(crate) struct DirtyGuard<'a>(MutexGuard<'a, Ranges>);

#[derive(Debug)]
struct Ranges {
    /// There is a file to flush to; otherwise nothing is recorded.
    counts: bool,
    set: RangeSet<u64>,
    /// Ranges in the set.
    len: usize,
    /// Bytes in the set.
    bytes: u64,
    /// Ranges are widened to multiples of this power of two, so that the set stays small.
    granule: u64,
    /// The largest end of a range before it was widened, since everything was last durable. No byte
    /// behind it was written, whatever the set says.
    reach: u64,
    /// The ranges that the running flush took out of the set; they are not durable yet either.
    flushing: Vec<ByteRange>,
    /// The bytes and writes that the policies count.
    since_flush: Written,
    /// The time at which everything is flushed in the background.
    alarm: Option<Instant>,
}

/// The amount written since the set of ranges was last empty, rewrites included.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    bytes: u64,
    writes: usize,
}

/// The largest number of separate ranges. With one more, all ranges are widened: first to pages,
/// which a flush writes as a whole anyway, then to twice that size, and so on.
const MOST_RANGES: usize = 4096;

impl DirtyRanges {
    /// Creates an empty set. Without a file, nothing is ever dirty.
    pub(crate) fn new(has_file: bool) -> Self {
        Self(Mutex::new(Ranges {
            counts: has_file,
            set: RangeSet::new(),
            len: 0,
            bytes: 0,
            granule: 1,
            reach: 0,
            flushing: Vec::new(),
            since_flush: Written::default(),
            alarm: None,
        }))
    }

    /// Returns the number of distinct dirty bytes. Bytes that are being flushed count: they are not
    /// durable before the flush has ended. With more than a few thousand ranges, the pages that
    /// hold the ranges are counted instead, or larger pieces.
    pub(crate) fn bytes(&self) -> u64 {
        let dirty = self.ranges();
        let flushing = dirty.flushing.iter().map(|range| dirty.missing(*range));
        dirty.bytes + flushing.sum::<u64>()
    }

    /// Returns whether every byte of the range was written and not flushed.
    pub(crate) fn covers(&self, range: ByteRange) -> bool {
        let dirty = self.ranges();
        let is_gapless = dirty.set.gaps(&range.into()).next().is_none();
        is_gapless
    }

    /// Locks the set, so that the caller can record several writes.
    pub(crate) fn lock(&self) -> DirtyGuard<'_> {
        DirtyGuard(self.ranges())
    }

    /// Records one write; returns the flush that `policy` requires.
    pub(crate) fn record(&self, ranges: &[ByteRange], policy: FlushPolicy) -> FlushDue {
        self.lock().record(ranges, policy)
    }

    /// Returns the flush that `policy` requires for a write that has been recorded already.
    pub(crate) fn due(&self, policy: FlushPolicy) -> FlushDue {
        let mut dirty = self.ranges();
        match dirty.bytes {
            0 => FlushDue::None,
            _ => dirty.due(policy),
        }
    }

    /// Takes out the bytes that a flush of `ranges` is about to cover. Bytes that are written from
    /// now on are dirty again, since the flush may miss them. There is one flush at a time.
    pub(crate) fn take(&self, ranges: &[ByteRange]) -> InFlight<'_> {
        let mut dirty = self.ranges();
        debug_assert!(dirty.flushing.is_empty());
        let before = dirty.since_flush;
        let (granule, reach) = (dirty.granule, dirty.reach);
        let covered = |range: &ByteRange| {
            let range = match granule {
                1 => *range,
                // A flush writes whole pages, and so every byte that was counted for these pages.
                _ => range.to_pages(sys::page_size()).into(),
            };
            match range.end() < reach {
                true => range,
                // Nothing was written behind it, and the mapping need not reach as far as the last
                // range was widened.
                false => ByteRange::between(range.start(), u64::MAX),
            }
        };
        let covered: Vec<ByteRange> = ranges.iter().map(covered).collect();
        dirty.flushing = dirty.remove(&covered);
        let after = dirty.since_flush;
        InFlight {
            dirty: self,
            is_durable: false,
            written: Written {
                bytes: before.bytes - after.bytes,
                writes: before.writes - after.writes,
            },
        }
    }

    /// Removes the ranges past the new end of the file, also those that a running flush has taken;
    /// returns a hull of the bytes there that were written.
    pub(crate) fn truncate(&self, len: u64) -> Option<ByteRange> {
        let mut dirty = self.ranges();
        let mut removed = dirty.remove(&[ByteRange::between(len, u64::MAX)]);
        let flushing = std::mem::take(&mut dirty.flushing);
        for range in flushing {
            let (start, end) = (range.start(), range.end());
            if start < len {
                dirty.flushing.push(ByteRange::between(start, end.min(len)));
            }
            if len < end {
                removed.push(ByteRange::between(start.max(len), end));
            }
        }
        let reach = dirty.reach;
        dirty.reach = reach.min(len);
        let written = removed.into_iter().filter(|range| range.start() < reach);
        let written =
            written.map(|range| ByteRange::between(range.start(), range.end().min(reach)));
        written.reduce(ByteRange::hull)
    }

    /// Clears the alarm if it is still set for `at`, and returns whether there are bytes to flush.
    /// Returns `false` if the alarm has been moved or cleared in the meantime.
    pub(crate) fn take_alarm(&self, at: Instant) -> bool {
        let mut dirty = self.ranges();
        let is_current = dirty.alarm == Some(at);
        if is_current {
            dirty.alarm = None;
        }
        is_current && dirty.bytes > 0
    }

    /// Returns the time at which everything is to be flushed in the background.
    pub(crate) fn alarm(&self) -> Option<Instant> {
        self.ranges().alarm
    }

    /// Moves an existing alarm to `now`, or clears it if there is nothing to flush; returns whether
    /// there was an alarm.
    pub(crate) fn bring_alarm_forward(&self, now: Instant) -> bool {
        let mut dirty = self.ranges();
        let is_set = dirty.alarm.is_some();
        dirty.alarm = (is_set && dirty.bytes > 0).then_some(now);
        is_set
    }

    /// Clears the alarm if there is nothing to flush; returns whether an alarm was cleared.
    pub(crate) fn cancel_alarm_if_clean(&self) -> bool {
        let mut dirty = self.ranges();
        dirty.bytes == 0 && dirty.alarm.take().is_some()
    }

    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        lock(&self.0)
    }
}

impl DirtyGuard<'_> {
    /// Records one write; returns the flush that `policy` requires.
    pub(crate) fn record(&mut self, ranges: &[ByteRange], policy: FlushPolicy) -> FlushDue {
        let dirty = &mut *self.0;
        let is_nothing = ranges.iter().all(|range| range.is_empty());
        if !dirty.counts || is_nothing {
            return FlushDue::None;
        }
        for range in ranges {
            dirty.add(*range);
            dirty.reach = dirty.reach.max(range.end());
            dirty.since_flush.bytes += range.len();
        }
        dirty.since_flush.writes += 1;
        dirty.due(policy)
    }
}

impl Ranges {
    /// Returns the flush that `policy` requires now.
    fn due(&mut self, policy: FlushPolicy) -> FlushDue {
        let reached = |is_reached: bool| match is_reached {
            true => FlushDue::AllDirty,
            false => FlushDue::None,
        };
        match policy {
            FlushPolicy::Never | FlushPolicy::Manual => FlushDue::None,
            FlushPolicy::Always => FlushDue::ThisWrite,
            FlushPolicy::EveryBytes(0)
            | FlushPolicy::EveryWrites(0)
            | FlushPolicy::EveryMillis(0) => FlushDue::None,
            FlushPolicy::EveryBytes(bytes) => reached(self.since_flush.bytes >= bytes as u64),
            FlushPolicy::EveryWrites(writes) => reached(self.since_flush.writes >= writes),
            FlushPolicy::EveryMillis(millis) => {
                let wait = Duration::from_millis(millis.min(LONGEST_WAIT));
                let at = Instant::now() + wait;
                if self.alarm.is_some_and(|alarm| alarm <= at) {
                    return FlushDue::TimerArmed;
                }
                self.alarm = Some(at);
                FlushDue::ArmTimer(at)
            }
        }
    }

    fn add(&mut self, range: ByteRange) {
        let range = self.widened(range);
        let within = range.into();
        // The new range joins the ranges that it touches.
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

    /// Widens all ranges until their number is half of the limit. So each range is moved only a few
    /// times, however many ranges are added.
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

    /// Returns how many bytes of the range are not in the set.
    fn missing(&self, range: ByteRange) -> u64 {
        let within = range.into();
        let gaps = self.set.gaps(&within);
        gaps.map(|gap| gap.end - gap.start).sum()
    }

    /// Removes `ranges`; returns the parts of them that were in the set.
    fn remove(&mut self, ranges: &[ByteRange]) -> Vec<ByteRange> {
        let mut removed = Vec::new();
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            let within = (*range).into();
            let before = removed.len();
            for part in self.set.overlapping(&within) {
                let there = ByteRange::from(part.clone());
                let part = there.intersection(*range);
                // The rest of the stored range lies at its two ends.
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

/// The bytes that a running flush covers. They become dirty again unless
/// [`complete`](Self::complete) is called with `Ok`.
#[derive(Debug)]
#[must_use]
pub(crate) struct InFlight<'a> {
    dirty: &'a DirtyRanges,
    is_durable: bool,
    /// The amount by which the policies' counters were reduced.
    written: Written,
}

impl InFlight<'_> {
    /// Returns the end of the last range, as far as it was written.
    pub(crate) fn end(&self) -> Option<u64> {
        let dirty = self.dirty.ranges();
        let end = dirty.flushing.iter().map(|range| range.end()).max()?;
        Some(end.min(dirty.reach))
    }

    /// Ends the flush with its result.
    pub(crate) fn complete(mut self, result: io::Result<()>) -> io::Result<()> {
        self.is_durable = result.is_ok();
        result
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let mut dirty = self.dirty.ranges();
        let flushing = std::mem::take(&mut dirty.flushing);
        if !self.is_durable {
            flushing.into_iter().for_each(|range| dirty.add(range));
            dirty.since_flush.bytes += self.written.bytes;
            dirty.since_flush.writes += self.written.writes;
        } else if dirty.bytes == 0 {
            dirty.reach = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::between(start, end)
    }

    /// Returns a set to which each of `ranges` was written, in one write each.
    fn written(ranges: &[ByteRange]) -> DirtyRanges {
        let dirty = DirtyRanges::new(true);
        for range in ranges {
            let due = dirty.record(&[*range], FlushPolicy::Manual);
            assert_eq!(due, FlushDue::None);
        }
        dirty
    }

    fn flush(dirty: &DirtyRanges, ranges: &[ByteRange]) {
        dirty.take(ranges).complete(Ok(())).unwrap();
    }

    #[test]
    fn a_partial_flush_debits_the_bytes_it_covers() {
        let dirty = written(&[range(0, 100), range(50, 150), range(1000, 1010)]);
        assert_eq!(dirty.bytes(), 160);
        flush(&dirty, &[range(90, 1005)]);
        assert_eq!(dirty.bytes(), 95);
        flush(&dirty, &[range(0, 10), range(5, 20), range(1009, 2000)]);
        assert_eq!(dirty.bytes(), 74);
        flush(&dirty, &[range(0, u64::MAX)]);
        assert_eq!(dirty.bytes(), 0);
    }

    #[test]
    fn a_cut_takes_what_a_flush_has_taken() {
        let dirty = written(&[range(0, 100), range(200, 300)]);
        let taken = dirty.take(&[range(0, 250)]);
        assert_eq!(dirty.truncate(50), Some(range(50, 300)));
        assert_eq!(taken.end(), Some(50));
        taken
            .complete(Err(io::ErrorKind::Other.into()))
            .unwrap_err();
        assert_eq!(dirty.bytes(), 50);
        assert_eq!(dirty.truncate(50), None);
        assert_eq!(dirty.truncate(10), Some(range(10, 50)));
        flush(&dirty, &[range(0, 10)]);
        assert_eq!(dirty.bytes(), 0);
    }

    /// Ranges that were widened reach behind what was written.
    #[test]
    fn a_cut_behind_all_writes_takes_nothing() {
        let ranges: Vec<_> = (0..MOST_RANGES as u64 + 1)
            .map(|at| range(2 * at, 2 * at + 1))
            .collect();
        let last = ranges.last().unwrap().end();
        let dirty = written(&ranges);
        assert!(dirty.bytes() > last);
        let taken = dirty.take(&[range(0, 1 << 20)]);
        assert_eq!(taken.end(), Some(last));
        assert_eq!(dirty.truncate(last + 1), None);
        taken
            .complete(Err(io::ErrorKind::Other.into()))
            .unwrap_err();
        assert_eq!(dirty.truncate(last), None);
        assert_eq!(dirty.truncate(last - 1), Some(range(last - 1, last)));
        flush(&dirty, &[range(0, 1 << 20)]);
        assert_eq!(dirty.lock().0.reach, 0);
    }

    #[test]
    fn a_write_of_nothing_counts_for_no_policy() {
        let dirty = written(&[]);
        for policy in [
            FlushPolicy::Always,
            FlushPolicy::EveryWrites(1),
            FlushPolicy::EveryMillis(1),
        ] {
            assert_eq!(dirty.record(&[], policy), FlushDue::None);
            assert_eq!(dirty.record(&[range(5, 5)], policy), FlushDue::None);
        }
        assert_eq!(dirty.alarm(), None);
    }

    #[test]
    fn a_failed_flush_gives_the_bytes_back() {
        let dirty = written(&[range(0, 10)]);
        let taken = dirty.take(&[range(0, 5)]);
        dirty.record(&[range(3, 4)], FlushPolicy::Never);
        taken
            .complete(Err(io::ErrorKind::Other.into()))
            .unwrap_err();
        assert_eq!(dirty.bytes(), 10);
        let taken = dirty.take(&[range(0, 100)]);
        taken
            .complete(Err(io::ErrorKind::Other.into()))
            .unwrap_err();
        // The number of writes is restored, too.
        let due = dirty.record(&[range(0, 1)], FlushPolicy::EveryWrites(3));
        assert_eq!(due, FlushDue::AllDirty);
    }

    #[test]
    fn bytes_count_until_their_flush_has_ended() {
        let dirty = written(&[range(0, 10)]);
        let taken = dirty.take(&[range(0, 5)]);
        assert_eq!(dirty.bytes(), 10);
        // A byte counts once, although it must be flushed twice.
        dirty.record(&[range(3, 4)], FlushPolicy::Never);
        assert_eq!(dirty.bytes(), 10);
        taken.complete(Ok(())).unwrap();
        assert_eq!(dirty.bytes(), 6);
    }

    #[test]
    fn every_bytes_flushes_at_threshold() {
        let dirty = written(&[range(0, 60)]);
        let policy = FlushPolicy::EveryBytes(100);
        assert_eq!(dirty.record(&[range(60, 99)], policy), FlushDue::None);
        assert_eq!(dirty.record(&[range(99, 100)], policy), FlushDue::AllDirty);
        // A partial flush takes off what it covers.
        flush(&dirty, &[range(0, 50)]);
        assert_eq!(dirty.record(&[range(100, 149)], policy), FlushDue::None);
        assert_eq!(dirty.record(&[range(0, 1)], policy), FlushDue::AllDirty);
    }

    #[test]
    fn every_bytes_counts_rewrites() {
        let dirty = written(&[range(0, 60)]);
        let policy = FlushPolicy::EveryBytes(100);
        assert_eq!(dirty.record(&[range(0, 39)], policy), FlushDue::None);
        assert_eq!(dirty.bytes(), 60);
        assert_eq!(dirty.record(&[range(0, 1)], policy), FlushDue::AllDirty);
        flush(&dirty, &[range(0, 60)]);
        for _ in 0..11 {
            assert_eq!(dirty.record(&[range(0, 9)], policy), FlushDue::None);
        }
        assert_eq!(dirty.record(&[range(0, 9)], policy), FlushDue::AllDirty);
        // A failed flush does not reduce the count.
        let taken = dirty.take(&[range(0, 9)]);
        taken
            .complete(Err(io::ErrorKind::Other.into()))
            .unwrap_err();
        assert_eq!(dirty.record(&[range(0, 1)], policy), FlushDue::AllDirty);
    }

    #[test]
    fn many_ranges_are_widened_to_pages() {
        let page = sys::page_size() as u64;
        let dirty = DirtyRanges::new(true);
        let write = |at| dirty.record(&[range(at, at + 1)], FlushPolicy::Never);
        for number in 0..MOST_RANGES as u64 {
            write(2 * number);
        }
        assert_eq!(dirty.bytes(), MOST_RANGES as u64);
        write(2 * MOST_RANGES as u64);
        assert_eq!(
            dirty.bytes(),
            (2 * MOST_RANGES as u64 + 1).next_multiple_of(page)
        );
        flush(&dirty, &[range(0, 100 * page)]);
        assert_eq!(dirty.bytes(), 0);
        // Pages that do not touch each other, from both ends.
        for number in 0..50_000 {
            write(page * 2 * number);
            write(page * 2 * (200_000 - number));
            let dirty = dirty.ranges();
            assert!(dirty.set.iter().count() == dirty.len || number % 1000 != 0);
            assert!(dirty.len <= MOST_RANGES);
        }
        assert!(dirty.covers(range(page * 2000, page * 2000 + 1)));
        dirty.truncate(page * 1000);
        assert!(dirty.bytes() <= page * 1000);
        flush(&dirty, &[range(0, page * 1000)]);
        write(7);
        assert_eq!(
            dirty.bytes(),
            1,
            "the set counts single bytes again once it was empty"
        );
    }

    #[test]
    fn bytes_and_ranges_match_a_bitmap() {
        let mut seed = 7_u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        let dirty = DirtyRanges::new(true);
        let mut bytes = vec![false; 1000];
        for _ in 0..3000 {
            let start = random(1000);
            let end = (start + 1 + random(50)).min(1000);
            let writes = random(3) > 0;
            match writes {
                true => drop(dirty.record(&[range(start, end)], FlushPolicy::Never)),
                false => flush(&dirty, &[range(start, end)]),
            }
            bytes[start as usize..end as usize].fill(writes);
            let count = bytes.iter().filter(|byte| **byte).count();
            assert_eq!(dirty.bytes(), count as u64);
            let dirty = dirty.ranges();
            assert_eq!(dirty.set.iter().count(), dirty.len);
        }
    }

    /// The mapping may end in the middle of what the last range was widened to.
    #[test]
    fn flush_up_to_the_last_write_leaves_nothing() {
        let page = sys::page_size() as u64;
        for fails_first in [false, true] {
            let dirty = DirtyRanges::new(true);
            let count = 2 * (MOST_RANGES as u64 + 1) + 1;
            for number in (0..count).step_by(2) {
                let at = page * number;
                dirty.record(&[range(at, at + 1)], FlushPolicy::Never);
            }
            let len = page * count;
            assert!(dirty.ranges().granule > page);
            if fails_first {
                let taken = dirty.take(&[range(0, len)]);
                taken
                    .complete(Err(io::ErrorKind::Other.into()))
                    .unwrap_err();
            }
            flush(&dirty, &[range(0, len - page)]);
            assert!(dirty.bytes() > 0, "the last write is not covered");
            flush(&dirty, &[range(0, len)]);
            assert_eq!(dirty.bytes(), 0);
            let policy = FlushPolicy::EveryWrites(2);
            assert_eq!(dirty.record(&[range(0, 1)], policy), FlushDue::None);
        }
    }

    #[test]
    fn every_writes_counts_since_last_clean() {
        let dirty = written(&[range(0, 10)]);
        let policy = FlushPolicy::EveryWrites(3);
        assert_eq!(dirty.record(&[range(0, 10)], policy), FlushDue::None);
        flush(&dirty, &[range(0, 5)]);
        assert_eq!(dirty.record(&[range(0, 10)], policy), FlushDue::AllDirty);
        flush(&dirty, &[range(0, 10)]);
        assert_eq!(dirty.record(&[range(0, 10)], policy), FlushDue::None);
        assert_eq!(dirty.record(&[range(0, 10)], policy), FlushDue::None);
        assert_eq!(dirty.record(&[range(0, 10)], policy), FlushDue::AllDirty);
    }

    #[test]
    fn zero_disables_a_policy() {
        for policy in [
            FlushPolicy::EveryBytes(0),
            FlushPolicy::EveryWrites(0),
            FlushPolicy::EveryMillis(0),
        ] {
            let dirty = DirtyRanges::new(true);
            assert_eq!(dirty.record(&[range(0, 1 << 30)], policy), FlushDue::None);
            assert!(!dirty.bring_alarm_forward(Instant::now()));
        }
    }

    #[test]
    fn the_earliest_alarm_wins() {
        let dirty = DirtyRanges::new(true);
        let write = |millis| dirty.record(&[range(0, 10)], FlushPolicy::EveryMillis(millis));
        let FlushDue::ArmTimer(late) = write(1_000_000) else {
            panic!("the first write sets an alarm");
        };
        assert_eq!(write(2_000_000), FlushDue::TimerArmed);
        let FlushDue::ArmTimer(early) = write(1000) else {
            panic!("an earlier alarm replaces a later one");
        };
        assert!(early < late);
        assert!(!dirty.take_alarm(late));
        assert!(dirty.take_alarm(early));
        assert!(!dirty.take_alarm(early));
        let FlushDue::ArmTimer(next) = write(u64::MAX) else {
            panic!("the alarm was taken, so a write sets a new one");
        };
        assert!(
            !dirty.cancel_alarm_if_clean(),
            "the alarm was cleared although bytes are dirty"
        );
        assert!(dirty.bring_alarm_forward(late));
        assert_eq!(dirty.alarm(), Some(late));
        flush(&dirty, &[range(0, 10)]);
        assert!(
            !dirty.take_alarm(next),
            "the alarm was moved away from this time"
        );
        assert!(!dirty.take_alarm(late), "no byte is dirty");
        let clears: [&dyn Fn() -> bool; 2] = [&|| dirty.cancel_alarm_if_clean(), &|| {
            dirty.bring_alarm_forward(late)
        }];
        for clear in clears {
            write(1000);
            flush(&dirty, &[range(0, 10)]);
            assert!(clear());
            assert_eq!(dirty.alarm(), None);
            assert!(!clear());
        }
    }
}
