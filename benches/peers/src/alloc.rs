//! A global allocator that counts allocations, so that "no allocation" is measured and not assumed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

thread_local! {
    // Constant and without a destructor: reading it never allocates, not even in the allocator,
    // and costs one add. Other threads cannot blur what this thread counts.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Bytes allocated and not freed, by all threads. Counted only while a [`HeapWatch`] lives, since
/// all threads share the counter's cache line, which would slow other figures.
static HEAP: AtomicI64 = AtomicI64::new(0);
static WATCHED: AtomicBool = AtomicBool::new(false);

/// The system allocator, which also counts the allocations of each thread.
pub(crate) struct Counting;

/// Measures how far the heap grows, all threads together.
pub(crate) struct HeapWatch {
    start: i64,
}

impl HeapWatch {
    /// Only one at a time.
    pub(crate) fn start() -> Self {
        WATCHED.store(true, Ordering::Relaxed);
        Self {
            start: HEAP.load(Ordering::Relaxed),
        }
    }

    /// Returns by how many bytes the heap has grown since the start.
    pub(crate) fn grown(&self) -> u64 {
        let grown = HEAP.load(Ordering::Relaxed) - self.start;
        u64::try_from(grown).unwrap_or(0)
    }
}

impl Drop for HeapWatch {
    fn drop(&mut self) {
        WATCHED.store(false, Ordering::Relaxed);
    }
}

/// How many times this thread allocated (or reallocated) while `work` ran.
pub(crate) fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

/// The heap grew by `new` bytes, and shrank by `old`.
fn resized(new: usize, old: usize) {
    if WATCHED.load(Ordering::Relaxed) {
        HEAP.fetch_add(new as i64 - old as i64, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on unchanged to `System`, which fulfils the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        resized(layout.size(), 0);
        // SAFETY: the caller fulfils the same contract, that of `GlobalAlloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        resized(layout.size(), 0);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        resized(new_size, layout.size());
        // SAFETY: as above; `ptr` is from `System`, like every pointer that this allocator returns.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        resized(0, layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}
