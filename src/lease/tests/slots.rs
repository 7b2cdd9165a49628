//! Slots and blocks: views across threads, the fast path, and delisting.

use std::cell::RefCell;
use std::sync::mpsc;

use super::*;

#[test]
fn a_thread_may_hold_more_views_than_slots() {
    let host = Host::new();
    let views: Vec<_> = (0..100)
        .map(|at| {
            Way::Borrowed
                .take(&host, range(at * 10, at * 10 + 10))
                .unwrap()
        })
        .collect();
    assert_eq!(host.leases.count(), 100);
    for at in 0..100 {
        assert!(exclusive(&host, range(at * 10 + 9, at * 10 + 10)).is_none());
    }
    drop(views);
    assert_eq!(host.restarts(), 100);
    assert!(exclusive(&host, range(0, 1000)).is_some());
}

#[test]
fn a_view_may_end_on_another_thread() {
    let host = Host::new();
    let view = {
        let host = host.clone();
        thread::spawn(move || Way::Borrowed.take(&host, range(0, 10)).unwrap())
            .join()
            .unwrap()
    };
    // The thread that takes the block over finds that slot taken.
    let adopted = {
        let host = host.clone();
        thread::spawn(move || {
            let views: Vec<_> = (0..16)
                .map(|_| Way::Borrowed.take(&host, range(20, 30)).unwrap())
                .collect();
            assert!(exclusive(&host, range(0, 10)).is_none());
            drop(views);
        })
    };
    adopted.join().unwrap();
    assert!(exclusive(&host, range(0, 10)).is_none());
    let restarts = host.restarts();
    drop(view);
    assert_eq!(host.restarts(), restarts + 1);
    assert!(exclusive(&host, range(0, 10)).is_some());
}

#[test]
fn views_work_while_a_thread_exits() {
    /// Drops the view that it holds, and takes and drops another one, when the thread exits.
    struct AtExit(Arc<Host>, Option<Held>, mpsc::Sender<bool>);

    impl Drop for AtExit {
        fn drop(&mut self) {
            drop(self.1.take());
            let late = Way::Borrowed.take(&self.0, range(50, 60)).unwrap();
            let is_respected = exclusive(&self.0, range(50, 60)).is_none();
            drop(late);
            self.2.send(is_respected).unwrap();
        }
    }

    thread_local! {
        static EARLY: RefCell<Option<AtExit>> = const { RefCell::new(None) };
        static LATE: RefCell<Option<AtExit>> = const { RefCell::new(None) };
    }

    let host = Host::new();
    let (sender, receiver) = mpsc::channel();
    let in_thread = host.clone();
    thread::spawn(move || {
        // One value is registered before the thread has a block, and one after. Whatever the
        // platform's order of destruction is, one of them is destroyed when the block is gone.
        EARLY.with(|slot| {
            *slot.borrow_mut() = Some(AtExit(in_thread.clone(), None, sender.clone()));
        });
        let view = Way::Borrowed.take(&in_thread, range(0, 10));
        LATE.with(|slot| *slot.borrow_mut() = Some(AtExit(in_thread.clone(), view, sender)));
    })
    .join()
    .unwrap();
    assert_eq!(receiver.iter().collect::<Vec<_>>(), [true, true]);
    assert_eq!(host.leases.count(), 0);
}

#[test]
fn readers_open_a_fenced_range() {
    let host = Host::new();
    drop(exclusive(&host, range(0, 100)).unwrap());
    // Fewer and more readers than it takes to open the range; the next writer sees each of them.
    for reads in [1, 10, 63, 64, 65, 200] {
        for _ in 0..reads {
            let view = Way::Borrowed.take(&host, range(0, 10)).unwrap();
            drop(view);
        }
        let view = Way::Borrowed.take(&host, range(0, 10)).unwrap();
        assert!(exclusive(&host, range(5, 6)).is_none());
        drop(view);
        let writer = exclusive(&host, range(5, 6)).unwrap();
        assert!(Way::Borrowed.take(&host, range(0, 10)).is_none());
        drop(writer);
    }
}

#[test]
fn readers_between_two_views_stay_fast() {
    const MIB: u64 = 1 << 20;
    for kind in [Kind::Exclusive, Kind::Atomic4, Kind::Atomic8] {
        check_between(kind);
    }

    fn check_between(kind: Kind) {
        let host = Host::new();
        let views = [range(0, 4096), range(64 * MIB - 4096, 64 * MIB)]
            .map(|ends| Way::Of(kind).take(&host, ends).unwrap());
        let middle = range(32 * MIB, 32 * MIB + 64);
        // These readers open the range that the views have fenced.
        for _ in 0..200 {
            drop(Way::Borrowed.take(&host, middle).unwrap());
        }
        let block = thread_block().unwrap();
        let is_fast = |bytes| {
            let slot = match host
                .leases
                .table
                .publish(block, bytes, Term::Lasting)
                .unwrap()
            {
                Ok(slot) => (slot, true),
                Err(slot) => (slot, false),
            };
            let _ = slot.0.release::<ProcessFences>();
            slot.1
        };
        assert!(is_fast(middle) && is_fast(range(3 * MIB, 60 * MIB)));
        assert!(!is_fast(range(0, 1)) && !is_fast(range(64 * MIB - 1, 64 * MIB)));
        assert!(!is_fast(range(0, 64 * MIB)));
        drop(views);
        assert!(is_fast(range(0, 64 * MIB)));
    }
}

proptest! {
    #[test]
    fn stripes_cover_their_ranges(
        ranges in proptest::collection::vec((0..1_u64 << 30, 1..1_u64 << 26), 1..40),
        looks in proptest::collection::vec((0..1_u64 << 31, 1..1_u64 << 22), 1..40),
    ) {
        let ranges: Vec<_> = ranges.iter().map(|(at, len)| range(*at, at + len)).collect();
        let looks: Vec<_> = looks.iter().map(|(at, len)| range(*at, at + len)).collect();
        let hull = ranges.iter().copied().reduce(ByteRange::hull).unwrap();
        announced::check_stripes(hull, &ranges, &looks);
    }
}

/// Reads in many threads at the same time, each with a block of its own.
fn read_in_many_threads(host: &Arc<Host>, blocks: usize) {
    let together = Arc::new(std::sync::Barrier::new(blocks));
    let threads: Vec<_> = (0..blocks)
        .map(|_| {
            let (host, together) = (host.clone(), together.clone());
            let read = move || {
                drop(Way::Borrowed.take(&host, range(0, 1)).unwrap());
                together.wait();
            };
            let thread = thread::Builder::new().stack_size(64 << 10);
            thread.spawn(read).unwrap()
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn idle_blocks_are_delisted() {
    let host = Host::new();
    let listed = || BLOCKS.slots::<ProcessFences>().count();
    read_in_many_threads(&host, 200);
    // Other tests read and write at the same time, and another thread may be delisting.
    for _ in 0..100 {
        BLOCKS.delist::<ProcessFences>();
        if listed() < 100 * 16 {
            break;
        }
        thread::yield_now();
    }
    assert!(listed() < 100 * 16, "{} slots are still listed", listed());
    // A live lease keeps its block listed, and a new lease lists its block again.
    let view = Way::Borrowed.take(&host, range(0, 10)).unwrap();
    for _ in 0..3 {
        BLOCKS.delist::<ProcessFences>();
        assert!(exclusive(&host, range(5, 6)).is_none());
    }
    drop(view);
    for _ in 0..3 {
        BLOCKS.delist::<ProcessFences>();
        let view = Way::Borrowed.take(&host, range(0, 10)).unwrap();
        assert!(exclusive(&host, range(5, 6)).is_none());
        drop(view);
        drop(exclusive(&host, range(5, 6)).unwrap());
    }
}
