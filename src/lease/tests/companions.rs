//! Leases of a host through which a file shows, and their companions.

use super::*;

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
