//! Tests of the lease table: against a naive oracle (a list of ranges under one mutex), and case by
//! case.

mod atomic;
mod companions;
mod slots;
mod stress;
mod waiting;

use std::sync::atomic::AtomicUsize;
use std::sync::Arc;
use std::thread;

use proptest::prelude::*;

use super::*;

/// A file that consists of its leases only.
struct Host {
    leases: Leases,
    len: AtomicU64,
    /// How often the length was read: a waiting reader reads it once before each try.
    looks: AtomicUsize,
    restarts: AtomicUsize,
    /// How often the host was told of a view.
    views: AtomicUsize,
    /// The file that shows through it, with the companions.
    under: Option<(Arc<Self>, Companions)>,
}

impl Host {
    fn new() -> Arc<Self> {
        Arc::new(Self::with(None))
    }

    /// Makes a host through which `file` shows.
    fn over(file: &Arc<Self>) -> Arc<Self> {
        Arc::new(Self::with(Some((file.clone(), Companions::new()))))
    }

    fn with(under: Option<(Arc<Self>, Companions)>) -> Self {
        Self {
            leases: Leases::new(),
            len: AtomicU64::new(1 << 30),
            looks: AtomicUsize::new(0),
            restarts: AtomicUsize::new(0),
            views: AtomicUsize::new(0),
            under,
        }
    }

    /// Has another thread wait for a shared lease, and returns when that thread is about to park,
    /// which it does after `SPINS` tries.
    fn parked_reader(self: &Arc<Self>, range: ByteRange) -> thread::JoinHandle<Result<()>> {
        let host = self.clone();
        self.parked(move || Lease::shared_briefly(host, Hold::Slot, range).map(drop))
    }

    /// Has another thread run `take`, and returns when that thread is about to park.
    fn parked(
        &self,
        take: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> thread::JoinHandle<Result<()>> {
        let before = self.looks.load(Ordering::SeqCst);
        let reader = thread::spawn(take);
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

    fn viewed(&self) {
        self.views.fetch_add(1, Ordering::SeqCst);
    }

    fn under(&self) -> Option<Under<'_>> {
        let (file, companions) = self.under.as_ref()?;
        Some(Under {
            file: &**file,
            companions,
        })
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
fn kinds_exclude_each_other_as_documented() {
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
                    "{first:?} is held, {second:?} wants {start}..{end}"
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
    fn grants_match_the_oracle(
        steps in proptest::collection::vec(
            (0..WAYS.len(), 0..400_u64, 1..200_u64, any::<bool>()),
            1..120,
        ),
    ) {
        let host = Host::new();
        let mut held: Vec<(Kind, ByteRange, Held)> = Vec::new();
        for (way, start, len, gives_back) in steps {
            if gives_back && !held.is_empty() {
                drop(held.swap_remove(start as usize % held.len()));
                continue;
            }
            // Ranges within one 32 KiB block, and ranges in many blocks.
            let scale = if len % 2 == 0 { 1 } else { 10_000 };
            let wanted = range(start * scale, (start + len) * scale);
            let way = WAYS[way];
            let free = held
                .iter()
                .all(|(kind, other, _)| !(kind.excludes(way.kind()) && other.overlaps(wanted)));
            let got = way.take(&host, wanted);
            prop_assert_eq!(got.is_some(), free, "{:?} wants {:?}", way, wanted);
            held.extend(got.map(|lease| (way.kind(), wanted, lease)));
            prop_assert_eq!(host.leases.count(), held.len());
        }
    }
}

#[test]
fn a_refused_try_blocks_no_later_write() {
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
fn a_batch_grants_whole_writes_in_order() {
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
    // The second write conflicts with the view. The third overlaps the second, and must not
    // overtake it.
    assert_eq!(granted, [true, false, false, true]);
    assert!(Way::Borrowed.take(&host, range(15, 16)).is_none());
    assert!(Way::Borrowed.take(&host, range(50, 60)).is_some());
    drop(batch);
    assert!(Way::Borrowed.take(&host, range(15, 16)).is_some());
    drop(view);
    assert_eq!(host.restarts(), 1);
}

#[test]
fn a_conflicting_lease_restarts_the_writer() {
    for way in WAYS {
        let host = Host::new();
        let held = way.take(&host, range(0, 100)).unwrap();
        assert!(exclusive(&host, range(50, 60)).is_none());
        assert_eq!(host.restarts(), 0, "{way:?}");
        drop(held);
        assert_eq!(host.restarts(), 1, "{way:?}");
        // No writer waits now, so no writer is restarted.
        drop(way.take(&host, range(0, 100)));
        assert_eq!(host.restarts(), 1, "{way:?}");
    }
}

#[test]
fn slots_stay_unmarked_behind_a_long_lease() {
    // The slot may have belonged to another thread, and still be marked from its last lease there:
    // then the end of its next lease restarts a writer in vain.
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
fn leases_of_two_files_are_independent() {
    let (one, other) = (Host::new(), Host::new());
    let view = Way::Borrowed.take(&one, range(0, 10)).unwrap();
    assert!(exclusive(&other, range(0, 10)).is_some());
    assert!(exclusive(&one, range(0, 10)).is_none());
    drop(view);
    assert_eq!((one.restarts(), other.restarts()), (1, 0));
}

#[test]
fn a_forgotten_view_blocks_only_its_range() {
    let host = Host::new();
    std::mem::forget(Way::Borrowed.take(&host, range(0, 10)));
    assert!(exclusive(&host, range(0, 10)).is_none());
    assert!(exclusive(&host, range(10, 20)).is_some());
    for _ in 0..100 {
        assert!(Way::Borrowed.take(&host, range(0, 10)).is_some());
    }
    // A file that is opened later is not blocked, wherever it lies in memory.
    drop(host);
    for _ in 0..10 {
        assert!(exclusive(&Host::new(), range(0, 10)).is_some());
    }
}

#[test]
fn private_writes_exclude_writers_of_their_pages() {
    // Private pages that were not modified show the file. A write to private bytes excludes writers
    // of the file from the whole page, because the store copies that page.
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
