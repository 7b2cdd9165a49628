//! Models of the end of an operation: its outcome, its flush and its lease.

use super::*;

/// A durable write that has started when its future is dropped, and the last handle with it.
fn last_handle<S: HostSteps>() {
    check(2, || {
        let file = File::<S>::new(false);
        let (disk, last) = (file.disk.clone(), Arc::downgrade(&file));
        let future = submit(&file, &op(0, 5, Action::Write(FlushPolicy::Always)));
        drop(future);
        file.handles.store(1, Ordering::Relaxed);
        drop(file);
        move || {
            let [written, durable] = [&disk.written, &disk.durable];
            let [written, durable] = [written, durable].map(|n| n.load(Ordering::Relaxed));
            assert_eq!(written, durable, "a write that has started is durable");
            assert!(last.upgrade().is_none(), "a job still keeps the file open");
        }
    });
}

/// A try-write behind a deferred write. The future that is told about its refusal submits again,
/// before the job that has told it goes on.
fn try_write<S: HostSteps>() {
    check(2, || {
        let file = File::<S>::new(true);
        let ops = [write(0, 20), write(40, 50)];
        let waits = {
            let mut state = lock(&file.queue.state);
            state.push(ops[0].clone());
            let first = state.incoming.pop_front().expect("pushed");
            state.defer(first, &file.queue.budget, &mut Ended::new());
            lock(&file.view).watched = true;
            Submission::new(Box::new(file.clone()), ops[0].clone())
        };
        let viewer = file.viewer();
        let try_write = op(15, 30, Action::TryWrite(FlushPolicy::Never));
        let outcome = block_on(submit(&file, &try_write));
        assert!(is_done(block_on(submit(&file, &ops[1]))));
        assert!(is_done(block_on(waits)));
        viewer.join().unwrap();
        move || match outcome {
            Ok(Outcome::InUse) => file.check_end(&ops),
            outcome => {
                assert!(is_done(outcome));
                let [first, second] = ops;
                file.check_end(&[first, second, try_write]);
            }
        }
    });
}

/// Durable writes: the drain takes the turn to flush when it has nothing to apply.
fn durable<S: HostSteps>() {
    check(2, || {
        let file = File::<S>::new(false);
        let write = |file: Arc<File<S>>, start: u64| {
            let op = op(start, start + 5, Action::Write(FlushPolicy::Always));
            assert!(is_done(block_on(submit(&file, &op))));
            file.disk.durable.load(Ordering::Relaxed)
        };
        let other = {
            let file = file.clone();
            thread::spawn(move || write(file, 0))
        };
        // At least its own write is durable.
        assert!(write(file.clone(), 5) >= 1);
        assert!(other.join().unwrap() >= 1);
        move || assert_eq!(file.disk.durable.load(Ordering::Relaxed), 2)
    });
}

/// The future of a view that is dropped while the view is granted, or after that.
fn dropped_view<S: HostSteps>() {
    check(1, || {
        let file = File::<S>::new(false);
        let op = op(20, 30, Action::Lease(Kind::Exclusive));
        drop(submit(&file, &op));
        let lasts = file.granted.lasts.load(Ordering::Relaxed);
        assert_eq!(lasts, 0, "the lease of a dropped future is lasting");
        let granted = file.granted.clone();
        move || {
            let [lasts, lives] = [&granted.lasts, &granted.lives];
            let [lasts, lives] = [lasts, lives].map(|n| n.load(Ordering::Relaxed));
            assert_eq!(lasts, 0, "the lease of a dropped future is lasting");
            assert_eq!(lives, 0, "the lease of a dropped future is live");
        }
    });
}

#[test]
fn a_started_durable_write_outlives_the_handles() {
    last_handle::<AllSteps>();
}

#[test]
fn a_refused_try_write_may_submit_again() {
    try_write::<AllSteps>();
}

#[test]
fn durable_writes_are_flushed() {
    durable::<AllSteps>();
}

#[test]
fn a_granted_view_ends_with_its_future() {
    dropped_view::<AllSteps>();
}

needed!(
    without_running_until_all_are_told,
    RUNS_UNTIL_ALL_ARE_TOLD,
    try_write,
    "Causality violation"
);
needed!(
    without_a_flush_at_the_end,
    FLUSHES_AT_THE_END,
    durable,
    "deadlock"
);
needed!(
    without_marking_under_the_lock,
    MARKS_UNDER_THE_LOCK,
    dropped_view,
    "the lease of a dropped future is lasting"
);
needed!(
    without_dropping_the_outcome,
    DROPS_ITS_OUTCOME,
    dropped_view,
    "the lease of a dropped future is"
);
