//! Wakers are foreign code. What could break: a waker that panics and thereby loses the wake-ups of
//! other tasks, or ends the process; and a waker that drops or polls another future of the same
//! file, and deadlocks on a lock that its caller holds.

use std::future::Future;
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{mpsc, Arc, Mutex};
use std::task::{Context, Wake, Waker};

#[cfg(feature = "cow")]
use mmap_io::MmapIoError;
use mmap_io::{MemoryMappedFile, MmapMode};

use crate::common::{
    block_on, eventually, join_with_timeout, patterned, poll_once, wait_until, TIMEOUT,
};

type Waiting = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A waker that counts its calls, and runs a closure at the first.
struct Does<F>(AtomicUsize, Mutex<Option<F>>);

impl<F: FnOnce() + Send + 'static> Does<F> {
    fn new(what: F) -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(0), Mutex::new(Some(what))))
    }

    fn is_woken(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }
}

impl<F: FnOnce() + Send + 'static> Wake for Does<F> {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
        let what = self.1.lock().unwrap().take();
        if let Some(what) = what {
            what();
        }
    }
}

/// A waker that panics when it wakes and when it is dropped.
struct PanicsInDrop;

impl Wake for PanicsInDrop {
    fn wake(self: Arc<Self>) {
        panic!("this waker panics");
    }
}

impl Drop for PanicsInDrop {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("this waker panics in its drop");
        }
    }
}

/// Ends the process if it lives too long: a thread that is stuck in a lock cannot be stopped.
struct Watchdog(#[allow(dead_code)] mpsc::Sender<()>);

impl Watchdog {
    fn new(what: &'static str) -> Self {
        let (alive, gone) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            if gone.recv_timeout(TIMEOUT) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("a deadlock: {what}");
                std::process::abort();
            }
        });
        Self(alive)
    }
}

/// Polls once; `None` if the future completed, which happens when a job is quick.
fn begin(mut future: Waiting, waker: &Waker) -> Option<Waiting> {
    let polled = future.as_mut().poll(&mut Context::from_waker(waker));
    polled.is_pending().then_some(future)
}

/// Futures that wait for the same thing, under wakers of all kinds. `hold` makes them wait until
/// the closure that it returns is run.
fn check<'a>(
    what: &'static str,
    hold: impl Fn() -> Box<dyn FnOnce() + 'a>,
    wait: impl Fn() -> Waiting,
) {
    let _watchdog = Watchdog::new(what);
    // A waker that panics, before other wakers and after them.
    for bad_at in 0..3 {
        let release = hold();
        let futures = [0, 1, 2].map(|at| {
            let good = Does::new(|| ());
            let waker = match at == bad_at {
                true => Waker::from(Arc::new(PanicsInDrop)),
                false => Waker::from(good.clone()),
            };
            let future = begin(wait(), &waker);
            // The clone that is left is dropped by the crate.
            let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(waker)));
            (at, future, good)
        });
        release();
        for (at, future, good) in futures {
            let Some(future) = future else {
                continue;
            };
            if at != bad_at {
                eventually(what, || good.is_woken());
            }
            join_with_timeout(what, future);
        }
    }
    // A waker that drops another future, and one that polls it.
    for polls in [false, true] {
        let release = hold();
        let mut other = begin(wait(), &idle());
        let waker = Does::new(move || match (&mut other, polls) {
            (Some(other), true) => {
                let _ = other.as_mut().poll(&mut Context::from_waker(&idle()));
            }
            _ => drop(other),
        });
        let first = begin(wait(), &Waker::from(waker.clone()));
        release();
        if let Some(first) = first {
            eventually(what, || waker.is_woken());
            join_with_timeout(what, first);
        }
    }
}

async fn small_buffer(dir: &std::path::Path) -> MemoryMappedFile {
    let (path, _) = patterned(dir, 10_000).await;
    let builder = MemoryMappedFile::builder(path).mode(MmapMode::ReadWrite);
    let file = builder.write_buffer(100).open().await.unwrap();
    // The pages are resident: reads wait only for views.
    file.update_region(0, &[7; 10_000]).await.unwrap();
    file
}

#[test]
fn reader_wakers_may_panic_drop_and_poll() {
    let dir = tempfile::tempdir().unwrap();
    let file = block_on(small_buffer(dir.path()));
    let hold = || -> Box<dyn FnOnce() + '_> {
        let view = file.try_as_slice_mut(0, 100).unwrap().unwrap();
        Box::new(move || drop(view))
    };
    check("slice", hold, || {
        let file = file.clone();
        Box::pin(async move { drop(file.slice(0, 10).await.unwrap()) })
    });
    check("read_bytes", hold, || {
        let file = file.clone();
        Box::pin(async move { drop(file.read_bytes(0, 10).await.unwrap()) })
    });
}

/// Slices that grow together end the leases that they had apart, which may wake other tasks.
#[test]
fn waker_may_ask_for_borrowed_slice() {
    let dir = tempfile::tempdir().unwrap();
    join_with_timeout("borrowing slices that touch", async move {
        let (path, file) = patterned(dir.path(), 10_000).await;
        file.touch_pages().await.unwrap();
        let reader = MemoryMappedFile::open_ro(path).await.unwrap();
        reader.as_slice_bytes(0, 10).unwrap();
        // The write looks at the lease, and waits for its end.
        let mut write = Box::pin(file.update_region(0, b"x"));
        assert!(poll_once(&mut write).await.is_none());
        wait_until(&file, |stats| stats.oldest_blocked.is_some()).await;
        let view = file.as_slice_mut(5000, 10).await.unwrap();
        let clone = reader.clone();
        let waker = Does::new(move || assert_eq!(clone.as_slice_bytes(100, 10).unwrap().len(), 10));
        let other = file.clone();
        let waits = begin(
            Box::pin(async move { drop(other.slice(0, 6000).await.unwrap()) }),
            &Waker::from(waker.clone()),
        );
        reader.as_slice_bytes(10, 10).unwrap();
        eventually("the reader is told that a lease has ended", || {
            waker.is_woken()
        });
        drop(view);
        waits.unwrap().await;
        drop(reader);
        write.await.unwrap();
    });
}

#[test]
fn waker_may_panic_when_operation_yields() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = small_buffer(dir.path()).await;
        // One that never waits, so that its thread has to yield at last.
        let mut has_yielded = false;
        for _ in 0..1000 {
            let waker = std::mem::ManuallyDrop::new(Waker::from(Arc::new(PanicsInDrop)));
            let other = file.clone();
            let read = Box::pin(async move { drop(other.read_bytes(0, 10).await.unwrap()) });
            has_yielded |= begin(read, &waker).is_some();
        }
        assert!(has_yielded);
    });
}

#[test]
fn writer_wakers_may_panic_drop_and_poll() {
    let dir = tempfile::tempdir().unwrap();
    let file = block_on(small_buffer(dir.path()));
    let hold = || -> Box<dyn FnOnce() + '_> {
        let view = file.bytes(0, 100).unwrap();
        Box::new(move || drop(view))
    };
    check("write", hold, || {
        let file = file.clone();
        Box::pin(async move { file.update_region(0, &[1; 10]).await.unwrap() })
    });
    check("write without room", hold, || {
        let file = file.clone();
        Box::pin(async move { file.update_region(0, &[1; 90]).await.unwrap() })
    });
    check("durable write", hold, || {
        let file = file.clone();
        Box::pin(async move { file.update_region_async(0, &[1; 10]).await.unwrap() })
    });
    let number = AtomicUsize::new(0);
    check("mutable view", hold, || {
        let file = file.clone();
        // Each view has bytes of its own: a granted view lasts until its future is polled or
        // dropped.
        let at = number.fetch_add(1, Ordering::Relaxed) as u64 % 10 * 10;
        Box::pin(async move { drop(file.as_slice_mut(at, 10).await.unwrap()) })
    });
}

#[test]
fn job_wakers_may_panic_drop_and_poll() {
    let dir = tempfile::tempdir().unwrap();
    let file = block_on(small_buffer(dir.path()));
    let hold = || -> Box<dyn FnOnce()> { Box::new(|| ()) };
    let path = dir.path().join("another");
    std::fs::write(&path, [0; 100]).unwrap();
    check("flush", hold, || {
        let file = file.clone();
        Box::pin(async move {
            file.update_region(0, b"x").await.unwrap();
            file.flush().await.unwrap();
        })
    });
    check("open_rw", hold, || {
        let path = path.clone();
        Box::pin(async move { drop(MemoryMappedFile::open_rw(path).await.unwrap()) })
    });
    check("prefetch_range", hold, || {
        let file = file.clone();
        Box::pin(async move { file.prefetch_range(0, 10_000).await.unwrap() })
    });
}

/// The bytes that a cut takes off a file, which the waker of a reader asks for.
#[cfg(feature = "cow")]
#[test]
fn cut_wakes_readers_after_its_lease() {
    let _watchdog = Watchdog::new("a waker asks for bytes that are being cut off");
    let page = mmap_io::utils::page_size() as u64;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    // The handle that is read through, and the handle that the waker asks.
    for (reads, asks) in [(0, 1), (1, 2), (2, 1)] {
        std::fs::write(&path, vec![1; 2 * page as usize]).unwrap();
        block_on(async {
            let file = MemoryMappedFile::open_rw(&path).await.unwrap();
            let private = [(); 2].map(|()| MemoryMappedFile::open_cow_writable(&path));
            let [first, second] = private.map(|opening| block_on(opening).unwrap());
            let handles = [&file, &first, &second];
            let (reader, asked) = (handles[reads].clone(), handles[asks].clone());
            drop(reader.slice(0, 2 * page).await.unwrap());
            let view = handles[reads].try_as_slice_mut(0, 10).unwrap().unwrap();
            let (sender, answer) = mpsc::channel();
            let waker = Does::new(move || {
                let _ = sender.send(asked.as_slice(page, 10).map(drop));
            });
            let read = async move { drop(reader.slice(0, 2 * page).await) };
            let read = begin(Box::pin(read), &Waker::from(waker)).unwrap();
            file.resize(page).await.unwrap();
            let answer = answer.recv_timeout(TIMEOUT).unwrap();
            assert!(matches!(answer, Err(MmapIoError::OutOfBounds { total, .. }) if total == page));
            drop((view, read));
        });
    }
}

/// A waker that does nothing.
fn idle() -> Waker {
    struct Idle;
    impl Wake for Idle {
        fn wake(self: Arc<Self>) {}
    }
    Waker::from(Arc::new(Idle))
}
