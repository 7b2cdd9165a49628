//! The lease table against a naive oracle: a list of ranges under one mutex.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU8, AtomicUsize};
use std::sync::{mpsc, Arc, Mutex};
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::error::MmapIoError;

/// A file that has nothing but leases.
struct Host {
    leases: Leases,
    len: AtomicU64,
    /// Times that the length was asked for: once for each try of a reader that waits.
    looks: AtomicUsize,
    restarts: AtomicUsize,
}

impl Host {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            leases: Leases::new(),
            len: AtomicU64::new(1 << 30),
            looks: AtomicUsize::new(0),
            restarts: AtomicUsize::new(0),
        })
    }

    /// Has another thread wait for a shared lease, and returns when it is about to park: it does
    /// that after so many looks.
    fn parked_reader(self: &Arc<Self>, range: ByteRange) -> thread::JoinHandle<Result<()>> {
        let before = self.looks.load(Ordering::SeqCst);
        let host = self.clone();
        let reader =
            thread::spawn(move || Lease::shared_briefly(host, Hold::Slot, range).map(drop));
        while self.looks.load(Ordering::SeqCst) < before + SPINS as usize + 2 {
            thread::yield_now();
        }
        assert!(!reader.is_finished());
        reader
    }

    fn restarts(&self) -> usize {
        self.restarts.load(Ordering::SeqCst)
    }
}

impl LeaseHost for Host {
    fn leases(&self) -> &Leases {
        &self.leases
    }

    fn len(&self) -> u64 {
        self.looks.fetch_add(1, Ordering::SeqCst);
        self.len.load(Ordering::SeqCst)
    }

    fn restart(&self, _: ByteRange) {
        self.restarts.fetch_add(1, Ordering::SeqCst);
    }
}

type Held = Lease<Arc<Host>>;

/// The ways to take a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Borrowed,
    Owned,
    Of(Kind),
}

const WAYS: [Way; 5] = [
    Way::Borrowed,
    Way::Owned,
    Way::Of(Kind::Exclusive),
    Way::Of(Kind::Atomic4),
    Way::Of(Kind::Atomic8),
];

impl Way {
    fn kind(self) -> Kind {
        match self {
            Self::Borrowed | Self::Owned => Kind::Shared,
            Self::Of(kind) => kind,
        }
    }

    fn take(self, host: &Arc<Host>, range: ByteRange) -> Option<Held> {
        match self {
            Self::Borrowed => Lease::try_shared(host.clone(), Hold::Slot, range).ok(),
            Self::Owned => Lease::try_shared(host.clone(), Hold::Entry, range).ok(),
            Self::Of(kind) => Lease::try_acquire(host.clone(), kind, range, Asks::Caller).unwrap(),
        }
    }
}

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::between(start, end)
}

fn exclusive(host: &Arc<Host>, bytes: ByteRange) -> Option<Held> {
    Lease::try_acquire(host.clone(), Kind::Exclusive, bytes, Asks::Queue).unwrap()
}

#[test]
fn every_pair_of_kinds_excludes_as_it_should() {
    for first in WAYS {
        for second in WAYS {
            let host = Host::new();
            let held = first.take(&host, range(100, 200)).unwrap();
            let excluded = first.kind().excludes(second.kind());
            for (start, end) in [(100, 200), (150, 160), (0, 101), (199, 300), (0, 1000)] {
                let got = second.take(&host, range(start, end));
                assert_eq!(
                    got.is_none(),
                    excluded,
                    "{first:?} {second:?} {start} {end}"
                );
            }
            for (start, end) in [(0, 100), (200, 300)] {
                assert!(second.take(&host, range(start, end)).is_some());
            }
            drop(held);
            assert!(second.take(&host, range(100, 200)).is_some());
            assert_eq!(host.leases.count(), 0);
        }
    }
    assert!(!Kind::Shared.excludes(Kind::Shared));
    assert!(!Kind::Atomic4.excludes(Kind::Atomic4));
    assert!(Kind::Atomic4.excludes(Kind::Atomic8) && Kind::Atomic8.excludes(Kind::Shared));
}

proptest! {
    #[test]
    fn grants_and_refuses_as_the_oracle_does(
        steps in proptest::collection::vec((0..WAYS.len(), 0..400_u64, 1..200_u64, any::<bool>()), 1..120),
    ) {
        let host = Host::new();
        let mut held: Vec<(Kind, ByteRange, Held)> = Vec::new();
        for (way, start, len, gives_back) in steps {
            if gives_back && !held.is_empty() {
                drop(held.swap_remove(start as usize % held.len()));
                continue;
            }
            // Far apart and close by: in one 32 KiB block and in many.
            let scale = if len % 2 == 0 { 1 } else { 10_000 };
            let wanted = range(start * scale, (start + len) * scale);
            let way = WAYS[way];
            let free = held
                .iter()
                .all(|(kind, other, _)| !(kind.excludes(way.kind()) && other.overlaps(wanted)));
            let got = way.take(&host, wanted);
            prop_assert_eq!(got.is_some(), free, "{:?} {:?}", way, wanted);
            held.extend(got.map(|lease| (way.kind(), wanted, lease)));
            prop_assert_eq!(host.leases.count(), held.len());
        }
    }
}

#[test]
fn no_two_threads_hold_what_excludes_each_other() {
    const BYTES: u64 = 200_000;
    let host = Host::new();
    let oracle: Arc<Mutex<Vec<(u64, Kind, ByteRange)>>> = Arc::default();
    let memory: Arc<Vec<AtomicU8>> = Arc::new((0..BYTES).map(|_| AtomicU8::new(0)).collect());
    let threads: Vec<_> = (0..4_u64)
        .map(|thread| {
            let (host, oracle, memory) = (host.clone(), oracle.clone(), memory.clone());
            thread::spawn(move || {
                let mut seed = 0x9e37_79b9_7f4a_7c15 ^ (thread + 1);
                let mut random = move |below: u64| {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    seed % below
                };
                for turn in 0..4_000_u64 {
                    let start = random(BYTES - 1);
                    let wanted = range(start, (start + 1 + random(3_000)).min(BYTES));
                    let way = WAYS[random(WAYS.len() as u64) as usize];
                    let Some(lease) = way.take(&host, wanted) else {
                        continue;
                    };
                    let id = thread << 32 | turn;
                    {
                        let mut oracle = oracle.lock().unwrap();
                        for (_, kind, other) in oracle.iter() {
                            let clash = kind.excludes(way.kind()) && other.overlaps(wanted);
                            assert!(!clash, "{way:?} {wanted:?} beside {kind:?} {other:?}");
                        }
                        oracle.push((id, way.kind(), wanted));
                    }
                    let bytes = &memory[wanted.start() as usize..wanted.end() as usize];
                    let looks_like = |value| {
                        let mut bytes = bytes.iter().step_by(101);
                        bytes.all(|byte| byte.load(Ordering::Relaxed) == value)
                    };
                    match way.kind() {
                        Kind::Exclusive => {
                            let stamp = id as u8;
                            for byte in bytes {
                                byte.store(stamp, Ordering::Relaxed);
                            }
                            thread::yield_now();
                            assert!(looks_like(stamp));
                        }
                        _ => {
                            let before: Vec<u8> = bytes
                                .iter()
                                .map(|byte| byte.load(Ordering::Relaxed))
                                .collect();
                            thread::yield_now();
                            let same = before
                                .iter()
                                .zip(bytes)
                                .all(|(old, byte)| *old == byte.load(Ordering::Relaxed));
                            assert!(same);
                        }
                    }
                    oracle.lock().unwrap().retain(|(other, ..)| *other != id);
                    drop(lease);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(host.leases.count(), 0);
}

/// Plain memory, so that a sanitizer sees what the leases are worth.
struct Cell4K(std::cell::UnsafeCell<[u8; 4096]>);

// SAFETY: the tests touch it under leases only, which is what they test.
unsafe impl Sync for Cell4K {}

#[test]
fn leases_order_plain_accesses() {
    let host = Host::new();
    let memory = Arc::new(Cell4K(std::cell::UnsafeCell::new([0; 4096])));
    let all = range(0, 4096);
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (host, memory) = (host.clone(), memory.clone());
            thread::spawn(move || {
                let mut reads = 0_u32;
                while reads < 5_000 {
                    let Ok(lease) = Lease::try_shared(host.clone(), Hold::Slot, all) else {
                        std::hint::spin_loop();
                        continue;
                    };
                    // SAFETY: under a shared lease.
                    let bytes = unsafe { &*memory.0.get() };
                    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
                    drop(lease);
                    reads += 1;
                }
            })
        })
        .collect();
    let mut writes = 0_u8;
    while !readers.iter().all(|reader| reader.is_finished()) {
        let ranges = [all];
        let mut wants = [Want {
            ranges: &ranges,
            gives_up: false,
            granted: false,
        }];
        let batch = host.leases.begin_batch(&mut wants).unwrap();
        if wants[0].granted {
            writes = writes.wrapping_add(1);
            // SAFETY: under an exclusive lease.
            unsafe { *memory.0.get() = [writes; 4096] };
        }
        drop(batch);
    }
    for reader in readers {
        reader.join().unwrap();
    }
}

#[test]
fn a_write_that_gives_up_holds_up_nobody() {
    let host = Host::new();
    let reader = Way::Borrowed.take(&host, range(0, 1)).unwrap();
    let ranges = [range(0, 10), range(5, 15)];
    for gives_up in [true, false] {
        let mut wants = ranges.each_ref().map(|range| Want {
            ranges: std::slice::from_ref(range),
            gives_up,
            granted: false,
        });
        drop(host.leases().begin_batch(&mut wants).unwrap());
        assert!(!wants[0].granted);
        assert_eq!(wants[1].granted, gives_up);
    }
    drop(reader);
}

#[test]
fn a_batch_grants_each_write_whole_and_keeps_their_order() {
    let host = Host::new();
    let view = Way::Borrowed.take(&host, range(100, 110)).unwrap();
    let ranges = [
        vec![range(0, 10)],
        vec![range(50, 60), range(105, 106)],
        vec![range(55, 56)],
        vec![range(0, 20)],
    ];
    let mut wants: Vec<Want<'_>> = ranges
        .iter()
        .map(|ranges| Want {
            ranges,
            gives_up: false,
            granted: false,
        })
        .collect();
    let batch = host.leases.begin_batch(&mut wants).unwrap();
    let granted: Vec<bool> = wants.iter().map(|want| want.granted).collect();
    // The second meets the view; the third overlaps the second, and may not overtake it.
    assert_eq!(granted, [true, false, false, true]);
    assert!(Way::Borrowed.take(&host, range(15, 16)).is_none());
    assert!(Way::Borrowed.take(&host, range(50, 60)).is_some());
    drop(batch);
    assert!(Way::Borrowed.take(&host, range(15, 16)).is_some());
    drop(view);
    assert_eq!(host.restarts(), 1);
}

#[test]
fn whoever_is_in_the_way_tells_when_it_goes() {
    for way in WAYS {
        let host = Host::new();
        let held = way.take(&host, range(0, 100)).unwrap();
        assert!(exclusive(&host, range(50, 60)).is_none());
        assert_eq!(host.restarts(), 0, "{way:?}");
        drop(held);
        assert_eq!(host.restarts(), 1, "{way:?}");
        // Not asked, not told.
        drop(way.take(&host, range(0, 100)));
        assert_eq!(host.restarts(), 1, "{way:?}");
    }
}

#[test]
fn readers_are_not_asked_to_tell_while_a_long_lease_is_in_the_way() {
    // The slot may have been another thread's, and be marked from its last lease there: its next
    // one tells somebody in vain.
    drop(Way::Borrowed.take(&Host::new(), range(0, 1)));
    let host = Host::new();
    let long = Way::Owned.take(&host, range(0, 100)).unwrap();
    let slice = Way::Borrowed.take(&host, range(0, 100)).unwrap();
    assert!(exclusive(&host, range(0, 100)).is_none());
    drop(slice);
    for _ in 0..200 {
        drop(Way::Borrowed.take(&host, range(0, 100)).unwrap());
    }
    assert_eq!(host.restarts(), 0);
    drop(long);
    assert_eq!(host.restarts(), 1);
}

#[test]
fn a_thread_holds_more_views_than_it_has_slots() {
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
fn files_are_not_mistaken_for_each_other() {
    let (one, other) = (Host::new(), Host::new());
    let view = Way::Borrowed.take(&one, range(0, 10)).unwrap();
    assert!(exclusive(&other, range(0, 10)).is_some());
    assert!(exclusive(&one, range(0, 10)).is_none());
    drop(view);
    assert_eq!((one.restarts(), other.restarts()), (1, 0));
}

#[test]
fn a_view_outlives_its_thread_and_ends_on_another() {
    let host = Host::new();
    let view = {
        let host = host.clone();
        thread::spawn(move || Way::Borrowed.take(&host, range(0, 10)).unwrap())
            .join()
            .unwrap()
    };
    // Whoever takes the block over finds that slot taken.
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
fn views_are_taken_and_dropped_while_a_thread_is_torn_down() {
    /// Drops the view it holds, and takes and drops another, when the thread is torn down.
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
        // One is registered before the thread has a block, and one after: whichever way the
        // platform goes about it, one of them is destroyed when the block is gone.
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
fn a_forgotten_view_stays_in_the_way_and_nothing_else_breaks() {
    let host = Host::new();
    std::mem::forget(Way::Borrowed.take(&host, range(0, 10)));
    assert!(exclusive(&host, range(0, 10)).is_none());
    assert!(exclusive(&host, range(10, 20)).is_some());
    for _ in 0..100 {
        assert!(Way::Borrowed.take(&host, range(0, 10)).is_some());
    }
    // A file that comes later is not held up, wherever it lies in memory.
    drop(host);
    for _ in 0..10 {
        assert!(exclusive(&Host::new(), range(0, 10)).is_some());
    }
}

#[test]
fn a_private_file_excludes_in_its_own_table_and_shares_in_the_files() {
    // Private pages that were not modified show the file: whoever writes to the private bytes
    // keeps writers of the file off the whole page, for a store to it copies that page.
    let (file, private) = (Host::new(), Host::new());
    let write = |bytes: ByteRange| {
        let pages = bytes.to_pages(4096);
        let pages = range(pages.start(), pages.end());
        Some((exclusive(&private, bytes)?, Way::Owned.take(&file, pages)?))
    };
    let view = |bytes| {
        Some((
            Way::Borrowed.take(&private, bytes)?,
            Way::Borrowed.take(&file, bytes)?,
        ))
    };
    let writer = write(range(5000, 5010)).unwrap();
    assert!(view(range(5000, 5001)).is_none() && view(range(4096, 5000)).is_some());
    assert!(exclusive(&file, range(4096, 4097)).is_none());
    assert!(exclusive(&file, range(0, 4096)).is_some());
    drop(writer);
    let reader = view(range(0, 100)).unwrap();
    assert!(exclusive(&file, range(99, 100)).is_none() && write(range(0, 1)).is_none());
    drop(reader);
    let file_writer = exclusive(&file, range(0, 1)).unwrap();
    assert!(view(range(0, 1)).is_none() && write(range(4000, 4001)).is_none());
    drop(file_writer);
}

#[test]
fn a_gate_keeps_new_readers_out_of_its_range_until_it_is_lowered() {
    let host = Host::new();
    let gated = [range(0, 100), range(500, 600)];
    let raised = host.leases.raise_gate(&gated, None).unwrap();
    assert!(
        host.leases.raise_gate(&gated, Some(raised)).is_none(),
        "too soon"
    );
    let until = raised + GATE;
    for inside in [range(0, 10), range(550, 700)] {
        for hold in [Hold::Slot, Hold::Entry] {
            let attempt = Lease::try_shared(host.clone(), hold, inside);
            assert_eq!(attempt.map(drop).unwrap_err(), Conflict::Gate(until));
        }
    }
    assert!(Way::Borrowed.take(&host, range(100, 500)).is_some());
    // A reader that waits finds it down when its time has come, and takes it down for all.
    let lease = Lease::shared_briefly(host.clone(), Hold::Slot, range(0, 10));
    assert!(Instant::now() >= until);
    drop(lease.unwrap());
    assert!(Way::Borrowed.take(&host, range(0, 10)).is_some());
}

#[test]
fn a_gate_is_gone_when_its_write_is_through() {
    let host = Host::new();
    host.leases.raise_gate(&[range(0, 100)], None).unwrap();
    drop(exclusive(&host, range(0, 100)).unwrap());
    assert!(Way::Borrowed.take(&host, range(0, 10)).is_some());
}

#[test]
fn readers_wait_for_a_small_batch_and_not_for_a_large_one() {
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
fn readers_wait_for_a_queued_lease_until_it_lasts() {
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
    // A caller's own lasts at once; of two, one that lasts counts.
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
            assert_eq!(attempt.map(drop).unwrap_err(), conflict);
        }
    }
}

#[test]
fn a_reader_of_what_is_being_cut_is_told_while_the_cut_lasts() {
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
fn a_closed_range_is_opened_by_readers_and_closed_by_the_next_writer() {
    let host = Host::new();
    drop(exclusive(&host, range(0, 100)).unwrap());
    // More than it takes to open the range; each is seen by the writer after it.
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
fn a_reader_is_told_of_what_overlaps_it_and_of_nothing_else() {
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
fn readers_between_two_views_stay_on_the_fast_path() {
    const MIB: u64 = 1 << 20;
    let host = Host::new();
    let views = [range(0, 4096), range(64 * MIB - 4096, 64 * MIB)].map(|ends| {
        let way = Way::Of(Kind::Exclusive);
        way.take(&host, ends).unwrap()
    });
    let middle = range(32 * MIB, 32 * MIB + 64);
    // They open what the views have closed.
    for _ in 0..200 {
        drop(Way::Borrowed.take(&host, middle).unwrap());
    }
    let block = thread_block().unwrap();
    let is_fast = |bytes| {
        let slot = match host.leases.table.publish(block, bytes).unwrap() {
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

proptest! {
    #[test]
    fn stripes_cover_what_they_should(
        ranges in proptest::collection::vec((0..1_u64 << 30, 1..1_u64 << 26), 1..40),
        looks in proptest::collection::vec((0..1_u64 << 31, 1..1_u64 << 22), 1..40),
    ) {
        let ranges: Vec<_> = ranges.iter().map(|(at, len)| range(*at, at + len)).collect();
        let looks: Vec<_> = looks.iter().map(|(at, len)| range(*at, at + len)).collect();
        let hull = ranges.iter().copied().reduce(ByteRange::hull).unwrap();
        announced::check_stripes(hull, &ranges, &looks);
    }
}

/// Readers in many threads at a time, in blocks of their own.
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
fn blocks_of_threads_that_have_read_are_no_longer_scanned() {
    let host = Host::new();
    let listed = || BLOCKS.slots::<ProcessFences>().count();
    read_in_many_threads(&host, 200);
    // Other tests read and write at the same time: one that takes blocks off may be faster.
    for _ in 0..100 {
        BLOCKS.delist::<ProcessFences>();
        if listed() < 100 * 16 {
            break;
        }
        thread::yield_now();
    }
    assert!(listed() < 100 * 16, "{} slots", listed());
    // A live lease keeps its block on the list, and a new one puts its block back.
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

#[test]
fn leases_exclude_each_other_while_blocks_are_taken_off() {
    let host = Host::new();
    let memory = Arc::new(Cell4K(std::cell::UnsafeCell::new([0; 4096])));
    let all = range(0, 4096);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let delister = {
        let stop = stop.clone();
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                BLOCKS.delist::<ProcessFences>();
            }
        })
    };
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (host, memory) = (host.clone(), memory.clone());
            thread::spawn(move || {
                let mut reads = 0_u32;
                while reads < 5_000 {
                    let Ok(lease) = Lease::try_shared(host.clone(), Hold::Slot, all) else {
                        std::hint::spin_loop();
                        continue;
                    };
                    // SAFETY: under a shared lease.
                    let bytes = unsafe { &*memory.0.get() };
                    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
                    drop(lease);
                    reads += 1;
                }
            })
        })
        .collect();
    let mut writes = 0_u8;
    while !readers.iter().all(|reader| reader.is_finished()) {
        if let Some(lease) = exclusive(&host, all) {
            writes = writes.wrapping_add(1);
            // SAFETY: under an exclusive lease.
            unsafe { *memory.0.get() = [writes; 4096] };
            drop(lease);
        }
    }
    for reader in readers {
        reader.join().unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    delister.join().unwrap();
}
