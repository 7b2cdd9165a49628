//! Atomic leases, and copies of bytes that are in atomic use.

use std::cell::Cell;

use super::*;
use crate::lease::copy::CopyLease;
use crate::lease::fence::Fences;

type Copied = CopyLease<Arc<Host>>;

fn copy(host: &Arc<Host>, bytes: ByteRange) -> Result<Copied, Conflict> {
    CopyLease::try_new(host.clone(), bytes).map_err(|(conflict, _)| conflict)
}

fn atomic(host: &Arc<Host>, kind: Kind, bytes: ByteRange) -> Result<Held> {
    Lease::atomic_briefly(host.clone(), kind, bytes)
}

/// The leases that a copy has taken.
fn parts_of(copy: &Copied, bytes: ByteRange) -> Vec<(Kind, ByteRange)> {
    match copy {
        CopyLease::Plain(_) => vec![(Kind::Shared, bytes)],
        CopyLease::Parts(parts) => parts.iter().map(|(kind, part, _)| (*kind, *part)).collect(),
    }
}

proptest! {
    #[test]
    fn copies_match_the_oracle(
        steps in proptest::collection::vec(
            (0..WAYS.len() + 1, 0..64_u64, 1..32_u64, 0..8_u64, any::<bool>()),
            1..100,
        ),
    ) {
        /// What was taken; it exists to be dropped.
        #[allow(dead_code)]
        enum Taken {
            Lease(Held),
            Copy(Copied),
        }
        let host = Host::new();
        let mut held: Vec<(Vec<(Kind, ByteRange)>, Taken)> = Vec::new();
        for (way, word, words, odd, gives_back) in steps {
            if gives_back && !held.is_empty() {
                drop(held.swap_remove(word as usize % held.len()));
                continue;
            }
            let taken = held.iter().flat_map(|(parts, _)| parts);
            let overlapping = |wanted: ByteRange| {
                let taken = taken.filter(move |(_, other)| other.overlaps(wanted));
                taken.copied().collect::<Vec<_>>()
            };
            if let Some(way) = WAYS.get(way) {
                let wanted = range(word * 8, (word + words) * 8);
                let overlapping = overlapping(wanted);
                let free = !overlapping.iter().any(|(kind, _)| kind.excludes(way.kind()));
                let got = way.take(&host, wanted);
                prop_assert_eq!(got.is_some(), free, "{:?} wants {:?}", way, wanted);
                held.extend(got.map(|lease| {
                    (vec![(way.kind(), wanted)], Taken::Lease(lease))
                }));
                continue;
            }
            // A copy may begin and end inside a word.
            let wanted = range(word * 8 + odd, (word + words) * 8 + odd / 2);
            let overlapping = overlapping(wanted);
            let free = !overlapping.iter().any(|(kind, _)| *kind == Kind::Exclusive);
            let got = copy(&host, wanted);
            prop_assert_eq!(got.is_ok(), free, "a copy of {:?}", wanted);
            let Ok(copy) = got else { continue };
            let mut at = wanted.start();
            copy.each_part(wanted, |kind, part| {
                assert_eq!(part.start(), at, "a gap");
                at = part.end();
                for byte in part.start()..part.end() {
                    let byte = range(byte, byte + 1);
                    let of_byte = overlapping.iter().filter(|(_, other)| other.overlaps(byte));
                    let atomic = of_byte.map(|(kind, _)| *kind).find(|kind| *kind != Kind::Shared);
                    assert_eq!(kind, atomic.unwrap_or(Kind::Shared), "{byte:?}");
                }
            });
            assert_eq!(at, wanted.end());
            let parts = parts_of(&copy, wanted);
            for (kind, part) in &parts {
                let word = match kind {
                    Kind::Atomic4 => 4,
                    Kind::Atomic8 => 8,
                    Kind::Shared | Kind::Exclusive => 1,
                };
                assert!(part.start() % word == 0 && part.end() % word == 0, "{parts:?}");
            }
            held.push((parts, Taken::Copy(copy)));
        }
        drop(held);
        prop_assert_eq!(host.leases.count(), 0);
    }
}

#[test]
fn joining_a_view_runs_no_fence() {
    thread_local! {
        static FENCES: Cell<usize> = const { Cell::new(0) };
    }

    /// The fences of the process, with a count of the heavy ones of a thread.
    #[derive(Debug)]
    struct Counted;

    impl Fences for Counted {
        fn light() {
            ProcessFences::light();
        }

        fn heavy() -> io::Result<()> {
            FENCES.set(FENCES.get() + 1);
            ProcessFences::heavy()
        }
    }

    // No other table has this number.
    let table = Table::<Counted>::new(u64::MAX, &BLOCKS);
    let take = |kind, range| {
        let before = FENCES.get();
        let taken = table.try_atomic(kind, range, Asks::Caller);
        (taken.map(Result::unwrap), FENCES.get() - before)
    };
    let open_fenced_range = || {
        for _ in 0..200 {
            let token = table.try_shared(thread_block(), range(1000, 1001), Term::Lasting);
            let _ = table.release(token.unwrap());
        }
    };
    let (first, fences) = take(Kind::Atomic4, range(0, 800));
    assert_eq!(fences, 1);
    open_fenced_range();
    let (second, fences) = take(Kind::Atomic4, range(400, 800));
    assert_eq!(fences, 0, "a lease that joins another one ran a fence");
    // It has all of the rights that it has without the first one.
    let _ = table.release(first.unwrap());
    let reader = |bytes| match table.try_shared(thread_block(), bytes, Term::Lasting) {
        Ok(token) => {
            let _ = table.release(token);
            None
        }
        Err((conflict, _)) => Some(conflict),
    };
    assert_eq!(reader(range(0, 400)), None);
    assert_eq!(reader(range(399, 401)), Some(Conflict::Held));
    assert_eq!(
        take(Kind::Atomic8, range(400, 408)).0.unwrap_err(),
        Conflict::Held
    );
    let (third, fences) = take(Kind::Atomic4, range(0, 404));
    assert_eq!(fences, 1, "a lease that is partly outside ran no fence");
    for token in [second, third] {
        let _ = table.release(token.unwrap());
    }
}

/// Has another thread take an atomic lease, and returns when that thread is about to park.
fn parked_view(host: &Arc<Host>, kind: Kind, bytes: ByteRange) -> thread::JoinHandle<Result<()>> {
    let in_thread = host.clone();
    host.parked(move || atomic(&in_thread, kind, bytes).map(drop))
}

#[test]
fn atomic_view_waits_for_a_copy() {
    let host = Host::new();
    let bytes = range(0, 64);
    let check = |copied: Copied, kind| {
        let view = parked_view(&host, kind, range(8, 16));
        drop(copied);
        view.join().unwrap().unwrap();
        assert_eq!(host.leases.count(), 0);
    };
    check(copy(&host, bytes).unwrap(), Kind::Atomic8);
    check(copy(&host, range(11, 12)).unwrap(), Kind::Atomic4);
    // A copy beside a view, and a copy of the bytes of a view of the other size.
    for place in [range(32, 40), range(8, 16)] {
        let first = atomic(&host, Kind::Atomic8, place).unwrap();
        let copied = copy(&host, bytes).unwrap();
        assert!(matches!(copied, CopyLease::Parts(_)));
        drop(first);
        check(copied, Kind::Atomic4);
    }
    // More copies than a thread has slots.
    let copies: Vec<_> = (0..40).map(|_| copy(&host, bytes).unwrap()).collect();
    let view = parked_view(&host, Kind::Atomic8, bytes);
    drop(copies);
    view.join().unwrap().unwrap();
}

#[test]
fn atomic_view_does_not_wait_for_views() {
    let host = Host::new();
    let bytes = range(0, 64);
    for way in WAYS {
        let held = way.take(&host, bytes).unwrap();
        for kind in [Kind::Atomic4, Kind::Atomic8] {
            assert_eq!(atomic(&host, kind, bytes).is_ok(), way.kind() == kind);
        }
        // Also beside a copy, for which it would wait.
        let _copy = copy(&host, bytes);
        if way.kind() != Kind::Atomic8 {
            assert!(atomic(&host, Kind::Atomic8, bytes).is_err());
        }
        drop(held);
    }
    let large = copy(&host, range(0, BRIEF + 1)).unwrap();
    assert!(atomic(&host, Kind::Atomic8, bytes).is_err());
    drop(large);
    assert!(atomic(&host, Kind::Atomic8, bytes).is_ok());
}

#[test]
fn atomic_view_waits_for_small_writes() {
    let host = Host::new();
    for (len, waits) in [(64, true), (BRIEF + 1, false)] {
        let ranges = [range(0, len)];
        let mut wants = [Want {
            ranges: &ranges,
            gives_up: false,
            granted: false,
        }];
        let batch = host.leases.begin_batch(&mut wants).unwrap();
        if waits {
            let view = parked_view(&host, Kind::Atomic4, range(0, 4));
            drop(batch);
            view.join().unwrap().unwrap();
        } else {
            assert!(atomic(&host, Kind::Atomic4, range(0, 4)).is_err());
        }
    }
    // A mutable view that its caller does not have yet.
    let lease = exclusive(&host, range(0, 64)).unwrap();
    let view = parked_view(&host, Kind::Atomic4, range(0, 4));
    lease.mark_lasting();
    assert!(view.join().unwrap().is_err());
}

#[test]
fn a_gate_holds_off_atomic_views_and_copies() {
    let host = Host::new();
    let first = atomic(&host, Kind::Atomic8, range(0, 64)).unwrap();
    let raised = host.leases.raise_gate(&[range(0, 64)], None).unwrap();
    let until = raised + GATE;
    for bytes in [range(0, 8), range(0, 128)] {
        let joins = host
            .leases
            .table
            .try_atomic(Kind::Atomic8, bytes, Asks::Caller);
        assert_eq!(joins.map(drop).unwrap_err(), Conflict::Gate(until));
        let copies = host.leases.table.try_copy(bytes, Term::Brief);
        assert_eq!(copies.map(drop).unwrap_err(), Conflict::Gate(until));
    }
    drop(atomic(&host, Kind::Atomic8, range(0, 8)).unwrap());
    assert!(Instant::now() >= until);
    drop(copy(&host, range(0, 8)).unwrap());
    drop(first);
}

#[test]
fn cut_words_are_out_of_bounds() {
    let host = Host::new();
    let cut = exclusive(&host, range(500, 1000)).unwrap();
    let view = parked_view(&host, Kind::Atomic4, range(900, 904));
    host.len.store(500, Ordering::SeqCst);
    host.leases.recheck(range(500, 1000));
    let error = view.join().unwrap().unwrap_err();
    assert!(matches!(
        error,
        crate::error::MmapIoError::OutOfBounds { total: 500, .. }
    ));
    drop(cut);
}
