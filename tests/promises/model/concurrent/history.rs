//! What has happened, and whether an order explains it.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;

use super::LEN;
use crate::common::model::ops::Op;
use crate::common::model::oracle::range;

/// A change, or the attempt at one. Its number is its byte.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// For messages.
    pub(super) what: String,
    pub(super) ranges: Vec<Range<u64>>,
    /// Ticks around its first poll.
    pub(super) begun: Range<u64>,
    /// Of its end, if it has ended in `Ok`.
    pub(super) ended: Option<u64>,
    /// It may have taken effect.
    pub(super) may_show: bool,
}

/// What a look has shown.
#[derive(Debug)]
struct Seen {
    at: u64,
    bytes: Vec<u8>,
    begun: u64,
}

/// What has happened, by the number of the operation.
pub(super) struct History {
    clock: AtomicU64,
    pub(super) written: Mutex<Vec<Written>>,
    seen: Mutex<Vec<Seen>>,
}

impl History {
    pub(super) fn new() -> Self {
        Self {
            clock: AtomicU64::new(1),
            // 0 is what was there before.
            written: Mutex::new(vec![Written {
                what: String::new(),
                ranges: vec![range((0, LEN))],
                begun: 0..0,
                ended: Some(0),
                may_show: true,
            }]),
            seen: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn tick(&self) -> u64 {
        // SeqCst: ticks of all threads are in one order.
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    pub(super) fn begin(&self, what: &Op) -> u8 {
        let mut written = self.written.lock().unwrap();
        let what = format!("{what:?}");
        written.push(Written {
            what,
            ..Written::default()
        });
        u8::try_from(written.len() - 1).unwrap()
    }

    pub(super) fn note(&self, number: u8, note: impl FnOnce(&mut Written)) {
        note(&mut self.written.lock().unwrap()[usize::from(number)]);
    }

    pub(super) fn saw(&self, begun: u64, at: u64, bytes: &[u8]) {
        let bytes = bytes.to_vec();
        self.seen.lock().unwrap().push(Seen { at, bytes, begun });
    }

    /// Fails unless there is an order of the changes that explains all that was seen.
    pub(super) fn check(&self) {
        let written = self.written.lock().unwrap();
        let mut before: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); written.len()];
        for (later, it) in written.iter().enumerate() {
            for (earlier, other) in written.iter().enumerate() {
                let both_show = it.may_show && other.may_show;
                if both_show && other.begun.end < it.begun.start && overlap(it, other) {
                    before[later].insert(earlier);
                }
            }
        }
        for seen in self.seen.lock().unwrap().iter() {
            let shown: BTreeSet<usize> = seen.bytes.iter().map(|byte| usize::from(*byte)).collect();
            for number in &shown {
                assert!(written[*number].may_show, "{number} was not written");
            }
            // What had ended, and all that shows.
            let has_ended = |it: &Written| it.ended.is_some_and(|ended| ended < seen.begun);
            let visible: Vec<usize> = (0..written.len())
                .filter(|number| shown.contains(number) || has_ended(&written[*number]))
                .collect();
            for run in runs(seen) {
                let (range, last) = run;
                let owner = &written[last];
                let wrote = |at: u64| owner.ranges.iter().any(|own| own.contains(&at));
                assert!(
                    range.clone().all(wrote),
                    "{last} shows at {range:?}, where it did not write"
                );
                for other in &visible {
                    let covers = |own: &Range<u64>| own.start < range.end && range.start < own.end;
                    if *other != last && written[*other].ranges.iter().any(covers) {
                        before[last].insert(*other);
                        let (under, over) = (&written[*other], &written[last]);
                        assert!(
                            !before[*other].contains(&last),
                            "at {range:?} {over:?} shows over {under:?}, since {}",
                            seen.begun
                        );
                    }
                }
            }
        }
        // Takes away what nothing is before, until nothing is left.
        let mut left: BTreeSet<usize> = (0..written.len()).collect();
        while let Some(first) = left
            .iter()
            .copied()
            .find(|number| before[*number].is_disjoint(&left))
        {
            left.remove(&first);
        }
        let circle: Vec<_> = left
            .iter()
            .map(|number| (number, &written[*number], &before[*number]))
            .collect();
        assert!(
            circle.is_empty(),
            "no order explains what was seen: {circle:?}"
        );
    }
}

fn overlap(one: &Written, other: &Written) -> bool {
    let overlaps = |it: &Range<u64>| {
        let mut others = other.ranges.iter();
        others.any(|other| it.start < other.end && other.start < it.end)
    };
    one.ranges.iter().any(overlaps)
}

/// The parts of what was seen that show one operation each.
fn runs(seen: &Seen) -> Vec<(Range<u64>, usize)> {
    let mut runs: Vec<(Range<u64>, usize)> = Vec::new();
    for (at, byte) in (seen.at..).zip(&seen.bytes) {
        let number = usize::from(*byte);
        match runs.last_mut() {
            Some((range, last)) if *last == number => range.end = at + 1,
            _ => runs.push((at..at + 1, number)),
        }
    }
    runs
}
