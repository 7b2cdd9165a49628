//! Tests of the order of the queue, driven step by step: the test takes the place of the drain job.

use std::task::{Context, Poll, Waker};

use super::*;
use crate::flush::FlushPolicy;

impl Granted for () {
    fn delivered(&self) {}
}

/// A queue whose drain job is played by the test.
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

    /// Returns the next batch, and the places of its operations.
    fn next_batch(&self) -> (Vec<Arc<Op<()>>>, Vec<u64>) {
        let batch = self.0.next_batch(&mut Ended::new(), false).unwrap();
        let places = batch.iter().map(|op| op.place.load(Ordering::Relaxed));
        let places = places.collect();
        (batch, places)
    }

    /// Everything that may have blocked an operation has ended.
    fn retry(&self) {
        self.retry_at(0, u64::MAX);
    }

    fn retry_at(&self, start: u64, end: u64) {
        lock(&self.0.state).note_gone(&[ByteRange::between(start, end)]);
    }
}

#[test]
fn an_operation_deferred_early_keeps_its_place() {
    let queue = Driven::new();
    queue.submit(0, 10);
    let (batch, places) = queue.next_batch();
    assert_eq!(places, [0]);
    queue.0.finish_batch(batch, &mut Ended::new());
    // The last overlaps the first and is deferred at once; the second is deferred when it is
    // applied.
    queue.submit(300, 600);
    queue.submit(5, 405);
    let (batch, places) = queue.next_batch();
    assert_eq!(places, [1]);
    queue.0.finish_batch(batch, &mut Ended::new());
    queue.retry();
    assert_eq!(queue.next_batch().1, [0, 1, 2]);
}

#[test]
fn only_overlapping_operations_are_deferred() {
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
fn a_withdrawn_operation_frees_later_ones() {
    let queue = Driven::new();
    let first = queue.submit(0, 10);
    let (batch, _) = queue.next_batch();
    queue.submit(5, 20);
    // The first is withdrawn while it is applied, and its range is found in use.
    drop(queue.0.take_payload(&first));
    queue.0.finish_batch(batch, &mut Ended::new());
    assert_eq!(queue.next_batch().1, [1]);
}

#[test]
fn a_batch_ends_at_a_resize_or_a_mebibyte() {
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
fn a_refused_drain_fails_incoming_operations() {
    let queue = Driven::new();
    // A deferred operation waits for a view, not for this job.
    let deferred = queue.submit(0, 10);
    let batch = queue.next_batch().0;
    queue.0.finish_batch(batch, &mut Ended::new());
    let incoming = [queue.submit(5, 20), queue.submit(100, 110)];
    let error = MmapIoError::from(io::Error::from_raw_os_error(11));
    queue.0.refuse(&error);
    let told = |op: &Arc<Op<()>>| {
        let mut context = Context::from_waker(Waker::noop());
        op.done.poll(&mut context).map(|told| told.unwrap_err())
    };
    for op in &incoming {
        let Poll::Ready(error) = told(op) else {
            panic!("an incoming operation was not told");
        };
        assert_eq!(error.raw_os_error(), Some(11));
        assert!(!op.is_queued());
    }
    assert_eq!(queue.0.failed_writes.load(Ordering::Relaxed), 2);
    assert!(deferred.is_queued() && told(&deferred).is_pending());
    assert!(!lock(&queue.0.state).running);
    // Its view ends, so the next drain would look at it, but cannot run either.
    queue.retry();
    queue.0.refuse(&error);
    assert!(told(&deferred).is_ready());
    assert_eq!(queue.0.backlog().operations, 0);
}

#[test]
fn a_panic_fails_what_has_not_ended() {
    let queue = Driven::new();
    let writes = [0, 20, 40].map(|start| queue.submit(start, start + 10));
    let mut batch = queue.next_batch().0;
    batch.push(Op::new(ByteRange::between(60, 70), Action::Resize));
    let mut ended = Ended::new();
    drop(queue.0.take_payload(&writes[0]));
    ended.push(&writes[0], Ok(Outcome::Done));
    // The second has started.
    drop(queue.0.take_payload(&writes[1]));
    queue.0.fail_batch(&batch, &mut ended);
    let outcomes = ended
        .ends
        .iter()
        .map(|(op, outcome)| (op.ranges[0].start(), outcome.is_ok()));
    let outcomes: Vec<_> = outcomes.collect();
    assert_eq!(outcomes, [(0, true), (20, false), (40, false), (60, false)]);
    // A change of the length is no write.
    assert_eq!(queue.0.failed_writes.load(Ordering::Relaxed), 2);
}

#[test]
fn a_refused_drain_gives_its_room_to_the_line() {
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
fn only_operations_that_may_be_free_are_retried() {
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
        // The third overlaps the fourth, and the fourth the fifth.
        ((100, 105), &[2, 3, 4]),
        ((14, 21), &[0, 1]),
        ((34, 1001), &[1, 2, 3, 4, 5]),
    ] {
        queue.retry_at(gone.0, gone.1);
        let (batch, places) = queue.next_batch();
        assert_eq!(places, expected, "retried after {gone:?} has ended");
        queue.0.finish_batch(batch, &mut Ended::new());
    }
    // No deferred operation overlaps these bytes, so no job is started for them.
    lock(&queue.0.state).running = false;
    assert!(!lock(&queue.0.state).restart(&[ByteRange::between(40, 100)]));
    assert!(lock(&queue.0.state).restart(&[ByteRange::between(30, 100)]));
}

#[test]
fn a_lease_that_ends_during_a_batch_retries_it() {
    let queue = Driven::new();
    queue.submit(0, 10);
    queue.submit(50, 60);
    let (batch, _) = queue.next_batch();
    assert!(!lock(&queue.0.state).restart(&[ByteRange::between(5, 6)]));
    queue.0.finish_batch(batch, &mut Ended::new());
    assert_eq!(queue.next_batch().1, [0]);
}

#[test]
fn a_withdrawn_operation_leaves_at_once() {
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
    // An operation that was never submitted removes no other one.
    state.deferred.insert(ops[0].clone());
    let other = Op::new(ByteRange::between(0, 1), Action::Write(FlushPolicy::Never));
    state.deferred.remove(&other);
    assert_eq!(state.deferred.ops().count(), 1);
}

#[test]
fn a_batch_has_at_most_a_portion_of_ranges() {
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
    /// Views come and go. Each operation is applied once: after the earlier operations that overlap
    /// it, and while no view overlaps it.
    #[test]
    fn every_operation_is_applied_once_in_order(
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
            // Each operation that is left overlaps a view, or an earlier operation that is left.
            for (at, op) in waiting.iter().enumerate() {
                let before = waiting[..at].iter().map(|other| other.ranges[0]);
                let mut blocks = views.iter().copied().chain(before);
                let is_blocked = blocks.any(|range| range.overlaps(op.ranges[0]));
                assert!(is_blocked, "a free operation was not applied");
            }
        }
    }
}
