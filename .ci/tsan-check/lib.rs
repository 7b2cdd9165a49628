//! Two threads store to one word, with and without an order between them.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Barrier;

/// A word that any thread may be handed.
struct Word(UnsafeCell<u64>);

// SAFETY: not sound on purpose: `racy` shows what ThreadSanitizer makes of it.
// `ordered` reaches the word from one thread at a time.
unsafe impl Sync for Word {}

static READY: AtomicBool = AtomicBool::new(false);

/// Stores from two threads, of which the second waits for `READY` to be set
/// with `order`.
fn store_twice(word: &Word, set: Ordering, seen: Ordering) -> u64 {
    READY.store(false, Ordering::SeqCst);
    // The end of one thread and the start of another may be ordered by chance, so
    // both run before either stores.
    let both_run = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            both_run.wait();
            // SAFETY: the other thread stores only once it has seen `READY`; with
            // relaxed orderings that is the race to be found.
            unsafe { word.0.get().write_volatile(1) };
            READY.store(true, set);
        });
        scope.spawn(|| {
            both_run.wait();
            while !READY.load(seen) {
                std::thread::yield_now();
            }
            // SAFETY: as above.
            unsafe { word.0.get().write_volatile(2) };
        });
    });
    // SAFETY: both threads have ended.
    unsafe { word.0.get().read() }
}

#[test]
fn ordered() {
    let word = Word(UnsafeCell::new(0));
    assert_eq!(store_twice(&word, Ordering::Release, Ordering::Acquire), 2);
}

#[test]
fn racy() {
    let word = Word(UnsafeCell::new(0));
    assert_eq!(store_twice(&word, Ordering::Relaxed, Ordering::Relaxed), 2);
}
