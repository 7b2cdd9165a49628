//! The order of the queue, driven step by step.

use std::task::Context;

use super::*;
use crate::flush::FlushPolicy;

impl Granted for () {
    fn delivered(&self) {}
}

/// A queue whose drain job is the test.
struct Driven(Queue<()>);

impl Driven {
    fn new() -> Self {
        let queue = Queue::new();
        lock(&queue.state).running = true;
        Self(queue)
    }

    fn submit(&self, start: u64, end: u64) -> Arc<Op<()>> {
        let op = Op::new(
            ByteRange::between(start, end),
            Action::Write(FlushPolicy::Never),
        );
        lock(&self.0.state).push(op.clone());
        op
    }

    /// The places of the operations in the next batch.
    fn next_batch(&self) -> (Vec<Arc<Op<()>>>, Vec<u64>) {
        let batch = self.0.next_batch(&mut Ended::new(), false).unwrap();
        let places = batch.iter().map(|op| op.place.load(Ordering::Relaxed));
        let places = places.collect();
        (batch, places)
    }

    /// Everything has gone that anything may have met.
    fn retry(&self) {
        self.retry_at(0, u64::MAX);
    }

    fn retry_at(&self, start: u64, end: u64) {
        lock(&self.0.state).note_gone(&[ByteRange::between(start, end)]);
    }
}

#[test]
fn one_that_is_deferred_while_its_batch_is_made_up_keeps_its_place() {
    let queue = Driven::new();
    queue.submit(0, 10);
    let (batch, places) = queue.next_batch();
    assert_eq!(places, [0]);
    queue.0.finish_batch(batch, &mut Ended::new());
    // The last meets the first, and is deferred at once; the second is when it is applied.
    queue.submit(300, 600);
    queue.submit(5, 405);
    let (batch, places) = queue.next_batch();
    assert_eq!(places, [1]);
    queue.0.finish_batch(batch, &mut Ended::new());
    queue.retry();
    assert_eq!(queue.next_batch().1, [0, 1, 2]);
}

#[test]
fn what_overlaps_a_deferred_one_is_deferred_and_the_rest_goes_on() {
    let queue = Driven::new();
    queue.submit(0, 10);
    let (batch, _) = queue.next_batch();
    queue.0.finish_batch(batch, &mut Ended::new());
    queue.submit(5, 20);
    queue.submit(15, 30);
    queue.submit(40, 50);
    let (batch, places) = queue.next_batch();
    assert_eq!(places, [3]);
    queue.0.finish_batch(Vec::new(), &mut Ended::new());
    drop(batch);
    assert!(queue.0.overlaps(ByteRange::between(29, 30)));
    assert!(!queue.0.overlaps(ByteRange::between(30, 100)));
    queue.retry();
    assert_eq!(queue.next_batch().1, [0, 1, 2]);
}

#[test]
fn one_that_is_withdrawn_is_passed_over_and_frees_those_behind_it() {
    let queue = Driven::new();
    let first = queue.submit(0, 10);
    let (batch, _) = queue.next_batch();
    queue.submit(5, 20);
    // It is withdrawn while it is applied, and found in use.
    drop(queue.0.take_payload(&first));
    queue.0.finish_batch(batch, &mut Ended::new());
    assert_eq!(queue.next_batch().1, [1]);
}

#[test]
fn a_batch_ends_before_what_is_no_write_and_after_a_mebibyte() {
    let queue = Driven::new();
    queue.submit(0, BRIEF);
    queue.submit(BRIEF, BRIEF + 1);
    let resize = Op::new(ByteRange::between(10, u64::MAX), Action::Resize);
    lock(&queue.0.state).push(resize);
    queue.submit(0, 1);
    for expected in [[0], [1], [2], [3]] {
        let (batch, places) = queue.next_batch();
        assert_eq!(places, expected);
        for op in &batch {
            queue.0.complete(op, Ok(Outcome::Done), &mut Ended::new());
        }
        queue.0.finish_batch(Vec::new(), &mut Ended::new());
    }
    assert!(queue.next_batch().0.is_empty());
    assert!(!lock(&queue.0.state).running);
}

#[test]
fn a_drain_that_cannot_be_run_fails_what_it_was_to_look_at() {
    let queue = Driven::new();
    // What is deferred waits for a view, and not for this job.
    let deferred = queue.submit(0, 10);
    let batch = queue.next_batch().0;
    queue.0.finish_batch(batch, &mut Ended::new());
    let fresh = [queue.submit(5, 20), queue.submit(100, 110)];
    let error = MmapIoError::from(io::Error::from_raw_os_error(11));
    queue.0.refuse(&error);
    let told = |op: &Arc<Op<()>>| {
        let mut context = Context::from_waker(Waker::noop());
        op.done.poll(&mut context).map(|told| told.unwrap_err())
    };
    for op in &fresh {
        let Poll::Ready(error) = told(op) else {
            panic!("left behind");
        };
        assert_eq!(error.raw_os_error(), Some(11));
        assert!(!op.is_queued());
    }
    assert!(deferred.is_queued() && told(&deferred).is_pending());
    assert!(!lock(&queue.0.state).running);
    // Its view ends, and it is looked at in vain.
    queue.retry();
    queue.0.refuse(&error);
    assert!(told(&deferred).is_ready());
    assert_eq!(queue.0.backlog().operations, 0);
}

#[test]
fn a_drain_that_cannot_be_run_gives_its_room_to_the_line() {
    let queue = Driven::new();
    let ranges = || Ranges::One([ByteRange::between(0, 10)]);
    let weight = ranges().weight();
    queue.0.budget.set_limit(weight as usize);
    let write = |held| {
        let action = Action::Write(FlushPolicy::Never);
        Op::write(ranges(), action, held, Waker::noop().clone())
    };
    assert!(queue.0.budget.try_enter(weight));
    let payload = Payload::Owned([0; 10].into());
    let inside = write(Held::Ready(payload, Account::Queued));
    let outside = write(Held::Outside(None));
    {
        let mut state = lock(&queue.0.state);
        state.push(inside.clone());
        state.number(&outside);
        state.door.join(outside.clone());
        let mut called = Vec::new();
        state.call(&queue.0.budget, &mut called);
        assert!(called.is_empty() && !queue.0.budget.try_enter(0));
    }
    let error = MmapIoError::from(io::Error::from_raw_os_error(11));
    queue.0.refuse(&error);
    assert!(!inside.is_queued());
    assert!(matches!(*lock(&outside.held), Held::Called(None)));
    assert_eq!(queue.0.budget.used(), weight);
}

#[test]
fn only_what_may_have_met_what_has_gone_is_tried_again() {
    let queue = Driven::new();
    for start in [0, 20, 100, 110, 120, 1000] {
        queue.submit(start, start + 15);
    }
    let (batch, places) = queue.next_batch();
    assert_eq!(places, [0, 1, 2, 3, 4, 5]);
    queue.0.finish_batch(batch, &mut Ended::new());
    assert!(queue.next_batch().1.is_empty());
    for (gone, expected) in [
        ((40, 100), &[][..]),
        ((0, 1), &[0]),
        // It overlaps the fourth, and the fourth the fifth.
        ((100, 105), &[2, 3, 4]),
        ((14, 21), &[0, 1]),
        ((34, 1001), &[1, 2, 3, 4, 5]),
    ] {
        queue.retry_at(gone.0, gone.1);
        let (batch, places) = queue.next_batch();
        assert_eq!(places, expected, "{gone:?}");
        queue.0.finish_batch(batch, &mut Ended::new());
    }
    // Nothing of what is left overlaps these bytes, and no job is started for them.
    lock(&queue.0.state).running = false;
    assert!(!lock(&queue.0.state).restart(&[ByteRange::between(40, 100)]));
    assert!(lock(&queue.0.state).restart(&[ByteRange::between(30, 100)]));
}

#[test]
fn what_goes_while_a_batch_is_applied_has_it_tried_again() {
    let queue = Driven::new();
    queue.submit(0, 10);
    queue.submit(50, 60);
    let (batch, _) = queue.next_batch();
    assert!(!lock(&queue.0.state).restart(&[ByteRange::between(5, 6)]));
    queue.0.finish_batch(batch, &mut Ended::new());
    assert_eq!(queue.next_batch().1, [0]);
}

#[test]
fn one_that_is_withdrawn_leaves_at_once() {
    let queue = Driven::new();
    let ops: Vec<_> = [(0, 10), (5, 20), (30, 40)]
        .map(|(start, end)| queue.submit(start, end))
        .into();
    let (batch, _) = queue.next_batch();
    queue.0.finish_batch(batch, &mut Ended::new());
    let mut state = lock(&queue.0.state);
    for (op, has_others) in [(&ops[2], false), (&ops[0], true), (&ops[1], false)] {
        state.running = false;
        state.deferred.remove(op);
        assert_eq!(state.restart(&op.ranges), has_others);
    }
    // One that was never submitted is none of them.
    state.deferred.insert(ops[0].clone());
    let other = Op::new(ByteRange::between(0, 1), Action::Write(FlushPolicy::Never));
    state.deferred.remove(&other);
    assert_eq!(state.deferred.ops().count(), 1);
}

#[test]
fn a_batch_is_no_more_than_a_portion() {
    let queue = Driven::new();
    let many = 2 * PORTION as u64 + 10;
    for start in 0..many {
        queue.submit(start, start + 1);
    }
    for expected in [PORTION, PORTION, 10] {
        let (batch, places) = queue.next_batch();
        assert_eq!(places.len(), expected);
        queue.0.finish_batch(batch, &mut Ended::new());
    }
}

proptest::proptest! {
    /// Views come and go, and each operation is applied once, after those before it that overlap it,
    /// and when no view does.
    #[test]
    fn the_order_is_kept_and_nothing_is_left_behind(
        steps in proptest::collection::vec((0..4_u8, 0..60_u64, 1..20_u64), 1..80),
    ) {
        let queue = Driven::new();
        let mut views: Vec<ByteRange> = Vec::new();
        let mut waiting: Vec<Arc<Op<()>>> = Vec::new();
        let settle = |views: &[ByteRange], waiting: &mut Vec<Arc<Op<()>>>| loop {
            let (batch, _) = queue.next_batch();
            if batch.is_empty() {
                break;
            }
            let mut taken = views.to_vec();
            let mut deferred = Vec::new();
            for op in batch {
                if taken.iter().any(|range| range.overlaps(op.ranges[0])) {
                    taken.push(op.ranges[0]);
                    deferred.push(op);
                    continue;
                }
                let at = waiting.iter().position(|other| Arc::ptr_eq(other, &op)).unwrap();
                let before = &waiting[..at];
                assert!(!before.iter().any(|other| other.ranges[0].overlaps(op.ranges[0])));
                waiting.remove(at);
                queue.0.complete(&op, Ok(Outcome::Done), &mut Ended::new());
            }
            queue.0.finish_batch(deferred, &mut Ended::new());
        };
        for (step, start, len) in steps {
            let range = ByteRange::between(start, start + len);
            match step {
                0 => views.push(range),
                1 if !views.is_empty() => {
                    let view = views.swap_remove(start as usize % views.len());
                    lock(&queue.0.state).restart(&[view]);
                }
                2 if !waiting.is_empty() => {
                    let op = waiting.remove(start as usize % waiting.len());
                    *lock(&op.held) = Held::Gone;
                    let mut state = lock(&queue.0.state);
                    state.deferred.remove(&op);
                    state.restart(&op.ranges);
                }
                _ => waiting.push(queue.submit(range.start(), range.end())),
            }
            settle(&views, &mut waiting);
            // What is left overlaps a view, or an earlier one that is left.
            for (at, op) in waiting.iter().enumerate() {
                let before = waiting[..at].iter().map(|other| other.ranges[0]);
                let mut blocks = views.iter().copied().chain(before);
                assert!(blocks.any(|range| range.overlaps(op.ranges[0])), "left behind");
            }
        }
    }
}
