//! Models of submission, deferral and withdrawal: no operation is missed, and the order is kept.

use super::*;

/// One write, and a view that blocks it and ends at any time.
fn release<S: HostSteps>() {
    check(2, || {
        let file = File::<S>::new(true);
        let viewer = file.viewer();
        let op = write(0, 10);
        assert!(is_done(block_on(submit(&file, &op))));
        viewer.join().unwrap();
        move || file.check_end(&[op])
    });
}

/// Two threads submit, and no view blocks them.
fn submissions<S: HostSteps>() {
    check(2, || {
        let file = File::<S>::new(false);
        let ops = [write(0, 10), write(5, 15)];
        let other = {
            let (file, op) = (file.clone(), ops[1].clone());
            thread::spawn(move || assert!(is_done(block_on(submit(&file, &op)))))
        };
        assert!(is_done(block_on(submit(&file, &ops[0]))));
        other.join().unwrap();
        move || file.check_end(&ops)
    });
}

/// Writes that overlap one another, of which a view blocks only the first.
fn order<S: HostSteps>() {
    check(1, || {
        let file = File::<S>::new(true);
        let viewer = file.viewer();
        let ops = [write(0, 20), write(15, 30), write(25, 40)];
        let futures: Vec<_> = ops.iter().map(|op| submit(&file, op)).collect();
        for future in futures {
            assert!(is_done(block_on(future)));
        }
        viewer.join().unwrap();
        move || file.check_end(&ops)
    });
}

/// A write that only a withdrawn write blocks, under a view that stays.
fn withdrawal<S: HostSteps>() {
    check(1, || {
        let file = File::<S>::new(true);
        let ops = [write(0, 20), write(15, 30)];
        let [first, second] = [0, 1].map(|op| submit(&file, &ops[op]));
        let other = thread::spawn(move || drop(first));
        assert!(is_done(block_on(second)));
        other.join().unwrap();
        file.release();
        move || file.check_end(&ops[1..])
    });
}

/// A write that is withdrawn while the view that blocks it ends.
fn withdrawal_and_release<S: HostSteps>() {
    check(1, || {
        let file = File::<S>::new(true);
        let op = write(0, 10);
        let future = submit(&file, &op);
        let viewer = file.viewer();
        drop(future);
        // The answer must not change from now on.
        let has_started = file.has_started(&op);
        viewer.join().unwrap();
        move || match has_started {
            true => file.check_end(&[op]),
            false => file.check_end(&[]),
        }
    });
}

/// All events together: two threads submit, one of them withdraws, and a view ends.
fn all_events<S: HostSteps>() {
    check(1, || {
        let file = File::<S>::new(true);
        let viewer = file.viewer();
        let ops = [write(0, 20), write(15, 30), write(5, 18)];
        let other = {
            let (file, op) = (file.clone(), ops[2].clone());
            thread::spawn(move || assert!(is_done(block_on(submit(&file, &op)))))
        };
        let first = submit(&file, &ops[0]);
        let second = submit(&file, &ops[1]);
        drop(first);
        let has_started = file.has_started(&ops[0]);
        assert!(is_done(block_on(second)));
        other.join().unwrap();
        viewer.join().unwrap();
        move || file.check_end(&ops[usize::from(!has_started)..])
    });
}

/// A thread that bypasses the queue if no queued operation overlaps its range.
fn overlap<S: HostSteps>() {
    check(1, || {
        let file = File::<S>::new(true);
        let op = write(0, 10);
        let future = submit(&file, &op);
        let viewer = file.viewer();
        if !file.queue.overlaps(VIEWED()) {
            file.bytes.run(|| {});
            assert!(
                file.has_started(&op),
                "an unfinished operation is overlooked"
            );
        }
        assert!(is_done(block_on(future)));
        viewer.join().unwrap();
        move || file.check_end(&[op])
    });
}

#[test]
fn the_end_of_a_view_restarts_the_queue() {
    release::<AllSteps>();
}

#[test]
fn every_submission_is_applied() {
    submissions::<AllSteps>();
}

#[test]
fn overlapping_writes_keep_their_order() {
    order::<AllSteps>();
}

#[test]
fn a_withdrawal_restarts_later_operations() {
    withdrawal::<AllSteps>();
}

#[test]
fn a_withdrawn_write_is_never_applied() {
    withdrawal_and_release::<AllSteps>();
}

#[test]
fn all_events_together_keep_the_order() {
    all_events::<AllSteps>();
}

#[test]
fn overlaps_sees_every_unfinished_operation() {
    overlap::<AllSteps>();
}

/// A host that does not check whether an operation was withdrawn.
#[test]
#[should_panic = "number of started operations"]
fn without_a_check_for_withdrawal() {
    #[derive(Debug)]
    struct Without;

    impl Steps for Without {}

    impl HostSteps for Without {
        const STARTS_ONLY_QUEUED: bool = false;
    }

    withdrawal_and_release::<Without>();
}

needed!(
    without_clearing_running_under_the_lock,
    CLEARS_WHERE_IT_CHECKS,
    submissions,
    "deadlock"
);
needed!(
    without_a_restart_while_a_job_runs,
    RESTARTS_WHILE_RUNNING,
    release,
    "deadlock"
);
needed!(
    without_a_restart_during_a_batch,
    RESTARTS_WHILE_APPLYING,
    release,
    "deadlock"
);
needed!(
    without_a_restart_after_withdrawal,
    RESTARTS_AFTER_WITHDRAWAL,
    withdrawal,
    "deadlock"
);
needed!(
    without_counting_the_current_batch,
    COUNTS_THE_BATCH,
    overlap,
    "Causality violation"
);
needed!(
    without_deferring_behind_the_deferred,
    DEFERS_BEHIND_THE_DEFERRED,
    order,
    "operations started out of order"
);
needed!(
    without_retrying_in_front,
    RETRIES_IN_FRONT,
    order,
    "operations started out of order"
);
