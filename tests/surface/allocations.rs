//! What a read and a queued write cost in allocations and system calls. What could break: a view
//! that is allocated on the heap, and a batch that pays for each write what it should pay once.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_lite::future::poll_once;
use mmap_io::{MemoryMappedFile, Result};

use crate::common::child::{child, child_dir, with_one_pool_thread, Child};
use crate::common::{at_once, block_on, patterned, HeldQueue};

/// The system's allocator, which counts allocations.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations of all threads.
static ALL: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Allocations of this thread.
    static MINE: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    ALL.fetch_add(1, Ordering::Relaxed);
    // A thread that ends may allocate after its thread-local values are dropped.
    let _ = MINE.try_with(|mine| mine.set(mine.get() + 1));
}

// SAFETY: every call goes to the system's allocator, as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's contract.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(old, layout) }
    }
}

/// Whether a read of resident pages completes where it is polled. Windows does not tell whether they
/// are resident, so each such read goes to the pool.
const READS_WHERE_POLLED: bool = cfg!(unix);

/// Allocations of this thread in 100 calls.
fn in_a_hundred<T>(mut call: impl FnMut() -> T) -> u64 {
    // Some memory is allocated once and kept: the slots of the thread, the room of a set, and what
    // the first yield needs.
    (0..200).for_each(|_| drop(call()));
    let before = MINE.get();
    for _ in 0..100 {
        drop(call());
    }
    MINE.get() - before
}

/// Runs the body of a test, of which `this` is the child, where no read that yields is woken from the
/// pool: that allocates a job, once in 500 us at most.
fn without_yields(this: Child, body: impl FnOnce()) {
    with_one_pool_thread(this, body);
}

#[test]
fn read_does_not_allocate() {
    without_yields(child!(read_does_not_allocate), || {
        let dir = tempfile::tempdir().unwrap();
        let (path, file) = block_on(patterned(dir.path(), 100_000));
        let reader = block_on(MemoryMappedFile::open_ro(path)).unwrap();
        for file in [&file, &reader] {
            // Twice: the second time all slots of the thread are taken.
            let mut held = Vec::with_capacity(20);
            for _ in 0..2 {
                assert_eq!(in_a_hundred(|| file.as_slice(5, 70_000).unwrap()), 0);
                assert_eq!(in_a_hundred(|| file.try_as_slice(5, 10).unwrap()), 0);
                if READS_WHERE_POLLED {
                    let slice = || at_once(file.slice(5, 70_000)).unwrap();
                    assert_eq!(in_a_hundred(slice), 0);
                    let mut buffer = [0; 100];
                    let read = || block_on(file.read_into(70_000, &mut buffer)).unwrap();
                    assert_eq!(in_a_hundred(read), 0);
                }
                held.extend((0..20).map(|_| file.as_slice(0, 10).unwrap()));
            }
        }
        // After a write, a read takes another path.
        block_on(file.update_region(0, b"x")).unwrap();
        assert_eq!(in_a_hundred(|| file.as_slice(0, 10).unwrap()), 0);
    });
}

#[test]
fn bytes_allocate_once() {
    without_yields(child!(bytes_allocate_once), || {
        let dir = tempfile::tempdir().unwrap();
        let (_, file) = block_on(patterned(dir.path(), 100_000));
        assert_eq!(in_a_hundred(|| file.bytes(5, 70_000).unwrap()), 100);
        if READS_WHERE_POLLED {
            let read = || at_once(file.read_bytes(5, 70_000));
            assert_eq!(in_a_hundred(|| read().unwrap()), 100);
        }
        let bytes = file.bytes(5, 70_000).unwrap();
        assert_eq!(in_a_hundred(|| bytes.clone()), 0);
        assert_eq!(in_a_hundred(|| bytes.slice(100..50_000)), 0);
    });
}

const WRITES: usize = 64;

/// A hundred bytes for each write; the bytes from here on belong to no write.
const SPARE: u64 = 100 * WRITES as u64;

type Submitted<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// A batch of writes, not submitted yet.
fn writes(file: &MemoryMappedFile) -> Vec<Submitted<'_>> {
    let write = |at| Box::pin(file.update_region(at * 100, b"data")) as Submitted<'_>;
    (0..WRITES as u64).map(write).collect()
}

async fn submit(writes: &mut [Submitted<'_>]) {
    for write in writes {
        assert!(poll_once(write).await.is_none());
    }
}

#[test]
fn queued_write_allocates_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (_, file) = block_on(patterned(dir.path(), SPARE as usize + 1));
    block_on(async {
        let held = HeldQueue::new(&file, SPARE);
        let mut batch = writes(&file);
        let before = MINE.get();
        submit(&mut batch).await;
        let submitted = MINE.get() - before;
        // Its data, and the operation itself; the queue grows by doubling.
        let growth = u64::from(WRITES.ilog2()) + 1;
        let twice = 2 * WRITES as u64;
        assert!((twice..=twice + growth).contains(&submitted), "{submitted}");
        held.release().await;
        for write in batch {
            write.await.unwrap();
        }
    });
}

#[test]
fn batch_allocates_less_than_its_writes() {
    let dir = tempfile::tempdir().unwrap();
    child!(batch_child)
        .dir(dir.path())
        .one_pool_thread()
        .passes();
}

/// Counts the allocations of all threads, and so needs a process of its own.
#[test]
fn batch_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let (_, file) = block_on(patterned(&dir, SPARE as usize + 1));
    block_on(async {
        for is_measured in [false, true] {
            let updates = file.stats().updates;
            let held = HeldQueue::new(&file, SPARE);
            let mut batch = writes(&file);
            let before = ALL.load(Ordering::Relaxed);
            submit(&mut batch).await;
            held.release().await;
            for write in batch {
                write.await.unwrap();
            }
            let shared = ALL.load(Ordering::Relaxed) - before - 2 * WRITES as u64;
            // And the write that held the queue.
            assert_eq!(file.stats().updates - updates, WRITES as u64 + 1);
            // Vectors that grow by doubling, and the tree of dirty ranges.
            println!("{shared} allocations are the batch's own");
            assert!(!is_measured || shared < WRITES as u64, "{shared}");
        }
    });
}

#[cfg(target_os = "linux")]
mod system_calls {
    use super::*;
    use crate::common::probe::{can_trace, end_of_step, trace};
    use crate::common::{pattern, with_timeout};

    const WRITES: u64 = 1000;

    /// The allocator takes its memory from the system page by page.
    fn is_of_the_heap(line: &str) -> bool {
        let calls = ["brk(", "mmap(", "munmap(", "mprotect("];
        calls.iter().any(|call| line.contains(call))
    }

    #[test]
    fn batch_of_writes_makes_few_syscalls() {
        if !can_trace("batch_of_writes_makes_few_syscalls") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let trace = trace(child!(thousand_child), dir.path(), &["-qq"]);
        let steps: Vec<Vec<&str>> = trace
            .split_inclusive('\n')
            .filter(|line| !is_of_the_heap(line))
            .collect::<Vec<_>>()
            .split(|line| line.contains("fsync(-1"))
            .map(<[_]>::to_vec)
            .collect();
        let [_, submitted, applied, _] = &steps[..] else {
            panic!("{} steps", steps.len());
        };
        let all = submitted.len();
        assert!(all < 30, "to submit: {all} calls, {submitted:?}");
        let all = applied.len();
        assert!(
            (1..100).contains(&all),
            "to apply: {all} calls, {applied:?}"
        );
        let of_the_batch = applied.iter().filter(|line| line.contains("madvise("));
        assert!(of_the_batch.count() <= 4, "{applied:?}");
    }

    #[test]
    fn thousand_child() {
        let Some(dir) = child_dir() else {
            return;
        };
        // Adjacent writes, at most as many as fit in one batch.
        let len = WRITES * 64;
        let (_, file) = block_on(patterned(&dir, len as usize + 1));
        block_on(async {
            file.update_region(0, &pattern(len as usize)).await.unwrap();
            let held = HeldQueue::new(&file, len);
            let write = |at| Box::pin(file.update_region(at * 64, &[7; 64])) as Submitted<'_>;
            let mut batch: Vec<_> = (0..WRITES).map(write).collect();
            end_of_step();
            submit(&mut batch).await;
            end_of_step();
            held.release().await;
            for write in batch {
                with_timeout(write).await.unwrap();
            }
            end_of_step();
            assert_eq!(file.as_slice(0, len).unwrap(), &vec![7; len as usize][..]);
        });
    }
}
