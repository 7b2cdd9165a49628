//! Models of a task that takes the drain's turn.

use super::*;

/// Takes the turn, if that is possible, and changes the file.
fn take_turn<S: HostSteps>(file: &Arc<File<S>>, hull: ByteRange) -> bool {
    let turn = Turn::take(file, hull);
    if turn.is_some() {
        file.applying.run(|| {});
    }
    turn.is_some()
}

/// A task that takes the turn, and another that submits.
fn turn_and_submission<S: HostSteps>() {
    check(2, || {
        let file = File::<S>::new(false);
        let op = write(0, 10);
        let other = {
            let (file, op) = (file.clone(), op.clone());
            thread::spawn(move || assert!(is_done(block_on(submit(&file, &op)))))
        };
        take_turn(&file, ByteRange::between(5, 15));
        other.join().unwrap();
        move || file.check_end(&[op])
    });
}

/// Two tasks that take the turn.
fn two_turns<S: HostSteps>() {
    check(1, || {
        let file = File::<S>::new(false);
        let other = {
            let file = file.clone();
            thread::spawn(move || take_turn(&file, ByteRange::between(0, 10)))
        };
        let took = take_turn(&file, ByteRange::between(0, 10));
        assert!(other.join().unwrap() || took);
        move || file.check_end(&[])
    });
}

/// A task that takes the turn behind a write which a view may block. The view ends at any time.
fn turn_behind_a_write<S: HostSteps>() {
    check(2, || {
        let file = File::<S>::new(true);
        let op = write(0, 10);
        let future = submit(&file, &op);
        let viewer = file.viewer();
        if take_turn(&file, ByteRange::between(20, 30)) {
            assert!(file.has_started(&op), "a write was overtaken");
        }
        assert!(is_done(block_on(future)));
        viewer.join().unwrap();
        move || file.check_end(&[op])
    });
}

/// A write that is submitted, and withdrawn, during a turn.
fn turn_and_withdrawal<S: HostSteps>() {
    check(2, || {
        let file = File::<S>::new(false);
        let op = write(0, 10);
        let other = {
            let (file, op) = (file.clone(), op.clone());
            thread::spawn(move || drop(submit(&file, &op)))
        };
        take_turn(&file, ByteRange::between(5, 15));
        other.join().unwrap();
        move || {
            let has_started = file.has_started(&op);
            file.check_end(if has_started {
                std::slice::from_ref(&op)
            } else {
                &[]
            });
        }
    });
}

#[test]
fn a_turn_and_a_submission_do_not_miss_each_other() {
    turn_and_submission::<AllSteps>();
}

#[test]
fn turns_exclude_each_other() {
    two_turns::<AllSteps>();
}

#[test]
fn a_turn_overtakes_no_write() {
    turn_behind_a_write::<AllSteps>();
}

#[test]
fn a_turn_survives_a_withdrawal() {
    turn_and_withdrawal::<AllSteps>();
}

needed!(
    without_handing_the_turn_on,
    HANDS_THE_TURN_ON,
    turn_and_submission,
    "deadlock"
);
needed!(
    without_looking_for_operations,
    OVERTAKES_NOTHING,
    turn_behind_a_write,
    "a write was overtaken"
);
