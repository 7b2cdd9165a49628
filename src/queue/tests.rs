//! The order of the queue, driven step by step.

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

    fn retry(&self) {
        lock(&self.0.state).retry = true;
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
    drop(queue.0.begin(&first));
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
            queue.0.finish(op, Ok(Outcome::Done), &mut Ended::new());
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
    queue.0.budget.set_limit(10);
    let write = |held| {
        let ranges = Ranges::One([ByteRange::between(0, 10)]);
        let action = Action::Write(FlushPolicy::Never);
        Op::write(ranges, action, 10, held, Waker::noop().clone())
    };
    assert!(queue.0.budget.try_enter(10));
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
    assert_eq!(queue.0.budget.used(), 10);
}
