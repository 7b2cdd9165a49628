//! Readers that wait: for gates, batches, queued leases and cuts.

use std::task::{Context, Wake, Waker};

use super::*;
use crate::error::MmapIoError;

#[test]
fn a_gate_blocks_new_readers_of_its_range() {
    let host = Host::new();
    let gated = [range(0, 100), range(500, 600)];
    let raised = host.leases.raise_gate(&gated, None).unwrap();
    assert!(
        host.leases.raise_gate(&gated, Some(raised)).is_none(),
        "the gate was raised again within the pause"
    );
    let until = raised + GATE;
    for inside in [range(0, 10), range(550, 700)] {
        for hold in [Hold::Slot, Hold::Entry] {
            match Lease::try_shared(host.clone(), hold, inside) {
                Err((conflict, _)) => assert_eq!(conflict, Conflict::Gate(until)),
                // The thread may have been kept from running until the gate was over.
                Ok(_) => assert!(Instant::now() >= until),
            }
        }
    }
    assert!(Way::Borrowed.take(&host, range(100, 500)).is_some());
    // A waiting reader lowers the gate, for all readers, when its time is over.
    let lease = Lease::shared_briefly(host.clone(), Hold::Slot, range(0, 10));
    assert!(Instant::now() >= until);
    drop(lease.unwrap());
    assert!(Way::Borrowed.take(&host, range(0, 10)).is_some());
}

#[test]
fn a_granted_write_lowers_its_gate() {
    let host = Host::new();
    host.leases.raise_gate(&[range(0, 100)], None).unwrap();
    drop(exclusive(&host, range(0, 100)).unwrap());
    assert!(Way::Borrowed.take(&host, range(0, 10)).is_some());
}

#[test]
fn readers_wait_for_small_batches_only() {
    let host = Host::new();
    let small = [range(0, 10)];
    let mut wants = [Want {
        ranges: &small,
        gives_up: false,
        granted: false,
    }];
    let batch = host.leases.begin_batch(&mut wants).unwrap();
    let reader = host.parked_reader(range(0, 10));
    drop(batch);
    reader.join().unwrap().unwrap();

    let large = [range(0, BRIEF + 1)];
    let mut wants = [Want {
        ranges: &large,
        gives_up: false,
        granted: false,
    }];
    let _batch = host.leases.begin_batch(&mut wants).unwrap();
    assert!(Lease::shared_briefly(host.clone(), Hold::Slot, range(0, 10)).is_err());
}

#[test]
fn readers_wait_for_a_lease_until_it_lasts() {
    let host = Host::new();
    for lasts in [false, true] {
        let lease = exclusive(&host, range(0, 10)).unwrap();
        let reader = host.parked_reader(range(5, 6));
        match lasts {
            true => lease.mark_lasting(),
            false => drop(lease),
        }
        assert_eq!(reader.join().unwrap().is_err(), lasts);
    }
    // A lease that a caller takes lasts at once. If a reader conflicts with two leases, one that
    // lasts is enough.
    let _brief = exclusive(&host, range(100, 110)).unwrap();
    let _lasting = Way::Of(Kind::Exclusive)
        .take(&host, range(110, 120))
        .unwrap();
    for (bytes, conflict) in [
        (range(100, 105), Conflict::Applying),
        (range(115, 120), Conflict::Held),
        (range(100, 120), Conflict::Held),
    ] {
        for hold in [Hold::Slot, Hold::Entry] {
            let attempt = Lease::try_shared(host.clone(), hold, bytes);
            assert_eq!(attempt.map(drop).unwrap_err().0, conflict);
        }
    }
}

#[test]
fn readers_of_a_cut_range_fail_during_the_cut() {
    let host = Host::new();
    let cut = exclusive(&host, range(500, 1000)).unwrap();
    let reader = host.parked_reader(range(900, 910));
    host.len.store(500, Ordering::SeqCst);
    host.leases.recheck(range(500, 1000));
    let error = reader.join().unwrap().unwrap_err();
    assert!(matches!(error, MmapIoError::OutOfBounds { total: 500, .. }));
    drop(cut);
}

#[test]
fn only_overlapping_readers_are_woken() {
    let host = Host::new();
    let table = &host.leases.table;
    let readers = [range(0, 10), range(5, 100), range(100, 110), range(0, 1000)];
    let waiters = readers.map(|range| table.listen(range));
    let end = |bytes: ByteRange| {
        let lease = exclusive(&host, bytes).unwrap();
        let Lease { token, .. } = &mut *std::mem::ManuallyDrop::new(lease);
        table.release(token.take().unwrap()).readers.len()
    };
    let batch = |ranges: &[ByteRange]| {
        let mut wants = [Want {
            ranges,
            gives_up: false,
            granted: false,
        }];
        table.begin_batch(&mut wants).unwrap();
        assert!(wants[0].granted);
        table.end_batch().readers.len()
    };
    let told = [
        (0, 5, 2),
        (5, 6, 3),
        (10, 100, 2),
        (109, 500, 2),
        (999, 1001, 1),
        (1000, 1100, 0),
    ];
    for (start, end_of, expected) in told {
        let bytes = range(start, end_of);
        assert_eq!(end(bytes), expected, "{bytes:?}");
        assert_eq!(batch(&[bytes]), expected, "{bytes:?}");
        assert_eq!(table.recheck(bytes).readers.len(), expected, "{bytes:?}");
    }
    assert_eq!(batch(&[range(2000, 2100), range(105, 106)]), 2);
    drop(waiters);
    assert_eq!(end(range(0, 1000)), 0);
    assert_eq!(batch(&[range(0, 1000)]), 0);
}

#[test]
fn panic_of_waker_at_a_gate_is_contained() {
    struct Panics;

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("this waker panics");
        }
    }

    let host = Host::new();
    let mut reader = Box::pin(Lease::shared(host.clone(), Hold::Entry, range(0, 10)));
    host.leases.raise_gate(&[range(0, 100)], None).unwrap();
    let waker = Waker::from(Arc::new(Panics));
    let mut context = Context::from_waker(&waker);
    // Ready only if the gate's millisecond is over.
    while reader.as_mut().poll(&mut context).is_pending() {}
}
