//! Models of the door: writes that find no room keep their place, and come in.

use super::*;

/// Two writes, with room for one.
fn door<S: HostSteps>() {
    check(1, || {
        let file = File::<S>::with_small_accounts(false);
        let other = {
            let file = file.clone();
            thread::spawn(move || {
                let write = Writing::new(&file, ByteRange::between(20, 30));
                assert!(is_done(write.finish()));
            })
        };
        let write = Writing::new(&file, ByteRange::between(0, 10));
        assert!(is_done(write.finish()));
        other.join().unwrap();
        move || file.check_budget()
    });
}

/// A write without room, and a later operation that overlaps it.
fn door_order<S: HostSteps>() {
    check(1, || {
        let file = File::<S>::with_small_accounts(false);
        let writes = [(0, 10), (20, 30)].map(|(start, end)| ByteRange::between(start, end));
        let writes = writes.map(|range| Writing::new(&file, range));
        let later = op(25, u64::MAX, Action::Resize);
        let later = submit(&file, &later);
        for write in writes {
            assert!(is_done(write.finish()));
        }
        assert!(is_done(block_on(later)));
        move || file.check_order(&[0, 20, 25])
    });
}

/// A write without room that is dropped while room is made for it.
fn door_withdrawal<S: HostSteps>() {
    check(1, || {
        let file = File::<S>::with_small_accounts(false);
        let writes = [(0, 10), (20, 30)].map(|(start, end)| ByteRange::between(start, end));
        let [first, second] = writes.map(|range| Writing::new(&file, range));
        let later = op(25, u64::MAX, Action::Resize);
        let later = submit(&file, &later);
        let other = thread::spawn(move || second.withdraw());
        assert!(is_done(first.finish()));
        assert!(is_done(block_on(later)));
        other.join().unwrap();
        move || file.check_budget()
    });
}

/// A write behind a write that a view blocks. The account of blocked writes has no room for it: it
/// is sent back to the door, and comes in when the view has ended.
fn sent_back<S: HostSteps>() {
    check(1, || {
        let file = File::<S>::with_small_accounts(true);
        let viewer = file.viewer();
        let writes = [(0, 10), (5, 15)].map(|(start, end)| ByteRange::between(start, end));
        let writes = writes.map(|range| Writing::new(&file, range));
        let later = op(12, u64::MAX, Action::Resize);
        let later = submit(&file, &later);
        // One after the other: no write may depend on the poll of a later one.
        for write in writes {
            assert!(is_done(write.finish()));
        }
        assert!(is_done(block_on(later)));
        viewer.join().unwrap();
        move || file.check_order(&[0, 5, 12])
    });
}

#[test]
fn a_write_without_room_is_called_in() {
    door::<AllSteps>();
}

#[test]
fn a_write_without_room_keeps_its_place() {
    door_order::<AllSteps>();
}

#[test]
fn a_withdrawal_at_the_door_frees_later_writes() {
    door_withdrawal::<AllSteps>();
}

#[test]
fn a_write_that_is_sent_back_comes_in_again() {
    sent_back::<AllSteps>();
}

needed!(
    without_keeping_the_place,
    KEEPS_ITS_PLACE,
    door_order,
    "operations started out of order"
);
needed!(
    without_a_call_after_joining,
    CALLS_AFTER_JOINING,
    door,
    "deadlock"
);
needed!(
    without_a_retry_when_a_write_comes_in,
    RETRIES_WHEN_IT_COMES_IN,
    door_order,
    "deadlock"
);
needed!(
    without_leaving_the_door,
    LEAVES_THE_DOOR,
    door_withdrawal,
    "deadlock"
);
