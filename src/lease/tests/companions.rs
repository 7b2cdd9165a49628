//! Leases of a host through which a file shows, and their companions.

use std::sync::{mpsc, Mutex};
use std::task::{Context, Wake as WakeTask, Waker};

use futures_lite::future::{block_on, poll_once};
use futures_lite::pin;

use super::*;
use crate::lease::copy::CopyLease;

fn atomic(host: &Arc<Host>, bytes: ByteRange) -> Result<Held> {
    Lease::atomic_briefly(host.clone(), Kind::Atomic4, bytes)
}

fn parked_atomic(host: &Arc<Host>, bytes: ByteRange) -> thread::JoinHandle<Result<()>> {
    let in_thread = host.clone();
    host.parked(move || atomic(&in_thread, bytes).map(drop))
}

#[test]
fn atomic_view_waits_for_its_whole_page_of_the_file() {
    let file = Host::new();
    let private = Host::over(&file);
    // A write to the page of the word, and not to the word.
    let write = exclusive(&file, range(64, 128)).unwrap();
    let view = parked_atomic(&private, range(0, 4));
    drop(write);
    view.join().unwrap().unwrap();
    assert_eq!((file.leases.count(), private.leases.count()), (0, 0));
}

#[test]
fn copies_are_brief_in_both_tables() {
    let file = Host::new();
    let private = Host::over(&file);
    let copy = |bytes| CopyLease::try_new(private.clone(), bytes).unwrap();
    for host in [&private, &file] {
        let copied = copy(range(0, 64));
        let view = parked_atomic(host, range(8, 12));
        drop(copied);
        view.join().unwrap().unwrap();
        // Parts of it beside an atomic view of private pages.
        let first = atomic(&private, range(0, 4)).unwrap();
        let copied = copy(range(0, 64));
        assert!(matches!(copied, CopyLease::Parts(_)));
        drop(first);
        let view = parked_atomic(host, range(8, 12));
        drop(copied);
        view.join().unwrap().unwrap();
        let large = copy(range(0, BRIEF + 1));
        assert!(atomic(host, range(8, 12)).is_err());
        drop(large);
    }
    assert_eq!((file.leases.count(), private.leases.count()), (0, 0));
}

#[test]
fn undelivered_leases_are_no_use_of_the_file() {
    let file = Host::new();
    let private = Host::over(&file);
    let host = private.clone();
    let view = Lease::try_acquire(host, Kind::Exclusive, range(0, 10), Asks::Queue);
    let view = view.unwrap().unwrap();
    let work = Lease::try_shared(file.clone(), Hold::Work, range(0, 10_000)).unwrap();
    assert!(!file.leases.has_lasting() && !private.leases.has_lasting());
    // They may last as long as a disk takes: an atomic view does not wait for that.
    assert!(atomic(&file, range(0, 4)).is_err());
    view.mark_lasting();
    drop(work);
    assert!(file.leases.has_lasting() && private.leases.has_lasting());
    assert_eq!(file.views.load(Ordering::SeqCst), 1);
    assert!(atomic(&file, range(0, 4)).is_err());
    drop(view);
    assert!(!file.leases.has_lasting() && !private.leases.has_lasting());
    // What a caller takes itself, it has at once.
    let slice = Lease::try_shared(private.clone(), Hold::Slot, range(0, 10)).unwrap();
    assert!(file.leases.has_lasting());
    drop(slice);
    let view = Way::Of(Kind::Exclusive).take(&private, range(0, 10));
    assert!(file.leases.has_lasting());
    drop(view);
    assert_eq!((file.leases.count(), private.leases.count()), (0, 0));
}

/// A waker that runs a closure at its first call.
struct Does<F>(Mutex<Option<F>>);

impl<F: FnOnce() + Send + 'static> WakeTask for Does<F> {
    fn wake(self: Arc<Self>) {
        let what = self.0.lock().unwrap().take();
        if let Some(what) = what {
            what();
        }
    }
}

#[test]
fn wakers_run_after_all_leases_of_a_copy() {
    let file = Host::new();
    let private = Host::over(&file);
    for asked in [&file, &private] {
        // The copy has a part for the view, a part behind it, and a companion.
        let view = atomic(&private, range(0, 4)).unwrap();
        let copied = CopyLease::try_new(private.clone(), range(0, 8)).unwrap();
        let reader = Lease::shared(private.clone(), Hold::Slot, range(0, 8));
        pin!(reader);
        assert!(block_on(poll_once(&mut reader)).is_none());
        // From now on the reader waits for the copy alone.
        drop(view);
        let (sender, granted) = mpsc::channel();
        let asked = asked.clone();
        let waker = Waker::from(Arc::new(Does(Mutex::new(Some(move || {
            let _ = sender.send(atomic(&asked, range(4, 8)).is_ok());
        })))));
        let mut context = Context::from_waker(&waker);
        assert!(reader.as_mut().poll(&mut context).is_pending());
        let copier = thread::spawn(move || drop(copied));
        let granted = granted.recv_timeout(Duration::from_secs(60));
        assert!(granted.expect("the waker waits for the copy"));
        copier.join().unwrap();
    }
}
