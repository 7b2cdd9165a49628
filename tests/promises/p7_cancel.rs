//! All or nothing: any future may be dropped after any number of polls, and nothing is torn, leaked
//! or stuck.

use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;

use futures_lite::future::{or, poll_once, yield_now, Boxed};
use mmap_io::{FlushPolicy, MemoryMappedFile, MmapIoError};

use crate::common::child::{child, with_one_pool_thread};
use crate::common::operations::{
    operations, BlockedBy, BusyPool, Fixture, Operation, Running, BEFORE, LEN, READS,
};
use crate::common::{
    block_on, eventually, is_quiet, join_with_timeout, patterned, wait_until, HeldQueue, TIMEOUT,
};

/// How far a future gets before it is dropped.
#[derive(Clone, Copy, Debug)]
struct Progress {
    polls: usize,
    /// It was woken after the last poll: what it waits for is ready, and not taken yet.
    is_woken: bool,
}

/// Polls a future whenever it is woken; returns whether it has completed.
fn advance(running: &mut Running<'_>, progress: Progress) -> bool {
    let (woken, waker) = parking::pair();
    let waker = waker.into();
    for poll in 1..=progress.polls {
        let state = running.as_mut().poll(&mut Context::from_waker(&waker));
        if let std::task::Poll::Ready(result) = state {
            result.unwrap();
            return true;
        }
        if poll < progress.polls || progress.is_woken {
            assert!(woken.park_timeout(TIMEOUT), "the future was not woken");
        }
    }
    false
}

/// Drops a future on this thread, or on another.
fn drop_it(running: Running<'_>, elsewhere: bool) {
    std::thread::scope(|scope| match elsewhere {
        true => scope.spawn(move || drop(running)).join().unwrap(),
        false => drop(running),
    });
}

/// The same operation, and one over the whole file, are blocked by nothing.
async fn goes_on(operation: &Operation, fixture: &Fixture) {
    for _ in 0..2 {
        let result = (operation.run)(fixture).await;
        assert!(result.is_ok(), "{}: {result:?}", operation.name);
    }
    for (path, _) in fixture.created().collect::<Vec<_>>() {
        MemoryMappedFile::open_rw(path).await.unwrap();
    }
    // A job of a dropped future may hold a lease until it ends; a lease that nothing ends would stay.
    eventually(operation.name, || {
        let view = fixture.file.try_as_slice_mut(0, fixture.file.len());
        view.unwrap().is_some()
    });
    fixture.file.flush().await.unwrap();
    fixture.settled().await;
    fixture.written();
}

#[test]
fn futures_can_be_dropped_after_any_poll() {
    let dir = tempfile::tempdir().unwrap();
    for operation in operations() {
        let mut polls = 0;
        while !is_done_after(polls, &operation, dir.path()) {
            polls += 1;
            assert!(polls < 100, "{} does not end", operation.name);
        }
    }
}

/// Drops an operation after `polls` polls, in each way; returns whether it was complete by then.
fn is_done_after(polls: usize, operation: &Operation, dir: &Path) -> bool {
    let mut is_done = true;
    for (is_woken, elsewhere) in [(false, false), (false, true), (true, false), (true, true)] {
        let fixture = block_on(Fixture::new(dir));
        let mut running = (operation.run)(&fixture);
        is_done &= advance(&mut running, Progress { polls, is_woken });
        drop_it(running, elsewhere);
        block_on(async {
            fixture.settled().await;
            fixture.written();
            goes_on(operation, &fixture).await;
        });
    }
    is_done
}

/// Checks that nothing has happened, and that everything still can.
async fn is_untouched(operation: &Operation, fixture: &Fixture) {
    fixture.settled().await;
    let name = operation.name;
    assert_eq!(fixture.written(), BEFORE, "{name}");
    assert_eq!(fixture.file.len(), LEN, "{name}");
    assert_eq!(fixture.file.stats().updates, 0, "{name}");
    assert_eq!(fixture.created().count(), 0, "{name}");
    assert!(fixture.dir.join("doomed").exists(), "{name}");
    goes_on(operation, fixture).await;
}

#[test]
fn op_dropped_behind_view_never_happens() {
    let dir = tempfile::tempdir().unwrap();
    for operation in operations() {
        for elsewhere in [false, true] {
            if operation.blocked_by == BlockedBy::AnyView {
                let fixture = block_on(Fixture::new(dir.path()));
                let view = fixture.file.bytes(0, LEN).unwrap();
                block_on(drop_behind_a_view(&operation, &fixture, elsewhere));
                drop(view);
                block_on(is_untouched(&operation, &fixture));
            }
            if operation.blocked_by != BlockedBy::Nothing {
                let fixture = block_on(Fixture::new(dir.path()));
                let view = block_on(fixture.file.as_slice_mut(0, LEN)).unwrap();
                block_on(drop_behind_a_view(&operation, &fixture, elsewhere));
                drop(view);
                block_on(is_untouched(&operation, &fixture));
            }
        }
    }
}

async fn drop_behind_a_view(operation: &Operation, fixture: &Fixture, elsewhere: bool) {
    let name = operation.name;
    // Private pages have a queue of their own.
    let is_queued = !READS.contains(&name) && !name.ends_with("private");
    let mut running = (operation.run)(fixture);
    for polls in 0.. {
        assert!(polls < 1_000_000, "{name} is not found to be blocked");
        assert!(poll_once(&mut running).await.is_none(), "{name}");
        let is_stuck = !is_queued || fixture.file.stats().oldest_blocked.is_some();
        if polls > 100 && is_stuck {
            break;
        }
        std::thread::yield_now();
        yield_now().await;
    }
    drop_it(running, elsewhere);
    let stats = fixture.file.stats();
    assert_eq!((stats.queued_writes, stats.queued_bytes), (0, 0), "{name}");
    assert_eq!(stats.views, 1, "{name}");
}

#[test]
fn op_dropped_before_pool_never_happens() {
    with_one_pool_thread(child!(op_dropped_before_pool_never_happens), || {
        let dir = tempfile::tempdir().unwrap();
        for operation in operations() {
            for elsewhere in [false, true] {
                let fixture = block_on(Fixture::new(dir.path()));
                let gate = BusyPool::new();
                let mut running = (operation.run)(&fixture);
                assert!(block_on(poll_once(&mut running)).is_none());
                drop_it(running, elsewhere);
                let stats = fixture.file.stats();
                assert_eq!((stats.queued_writes, stats.queued_bytes), (0, 0));
                drop(gate);
                // The one thread runs its jobs in order: these jobs come after any that were left.
                for _ in 0..4 {
                    block_on(blocking::unblock(|| ()));
                }
                block_on(is_untouched(&operation, &fixture));
            }
        }
    });
}

#[test]
fn unadmitted_dropped_write_blocks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let path = dir.path().join("data");
        std::fs::write(&path, [0; 1000]).unwrap();
        let file = MemoryMappedFile::builder(&path)
            .write_buffer(100)
            .open_or_create()
            .await
            .unwrap();
        let held = HeldQueue::new(&file, 999);
        let mut first = Box::pin(file.update_region(0, &[1; 100]));
        let mut second = Box::pin(file.update_region(200, &[2; 100]));
        let mut third = Box::pin(file.write_bytes(400, vec![3; 100].into()));
        // Behind the second write, which has its place already.
        let mut fourth = Box::pin(file.as_slice_mut(250, 10));
        assert!(poll_once(&mut first).await.is_none());
        assert!(poll_once(&mut second).await.is_none());
        assert!(poll_once(&mut third).await.is_none());
        assert!(poll_once(&mut fourth).await.is_none());
        assert_eq!(file.stats().queued_bytes, 100);
        drop(second);
        assert_eq!(file.stats().queued_bytes, 100);
        assert!(poll_once(&mut third).await.is_none());
        drop(first);
        assert_eq!(file.stats().queued_bytes, 100);
        held.release().await;
        third.await.unwrap();
        assert_eq!(fourth.await.unwrap()[..], [0; 10]);
        wait_until(&file, is_quiet).await;
        let mut expected = [0; 999];
        expected[400..500].fill(3);
        assert_eq!(file.as_slice(0, 999).unwrap(), expected);
    });
}

#[test]
fn queued_dropped_write_is_never_applied() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 1000).await;
        file.update_region(0, &[0; 1000]).await.unwrap();
        let view = file.bytes(0, 10).unwrap();
        let mut dropped = Box::pin(file.update_region(5, &[1; 100]));
        // Behind it, over bytes that the view does not cover.
        let mut behind = Box::pin(file.update_region(50, &[2; 10]));
        assert!(poll_once(&mut dropped).await.is_none());
        assert!(poll_once(&mut behind).await.is_none());
        wait_until(&file, |stats| stats.oldest_blocked.is_some()).await;
        drop(dropped);
        let in_time = or(behind, async {
            smol::Timer::after(TIMEOUT).await;
            panic!("the write still waits for a write that was dropped");
        });
        in_time.await.unwrap();
        drop(view);
        file.flush().await.unwrap();
        let mut expected = [0; 1000];
        expected[50..60].fill(2);
        assert_eq!(file.as_slice(0, 1000).unwrap(), expected);
        wait_until(&file, is_quiet).await;
    });
}

#[test]
fn granted_view_drops_with_its_future() {
    let dir = tempfile::tempdir().unwrap();
    let (_, file) = block_on(patterned(dir.path(), 10_000));
    let (woken, waker) = parking::pair();
    let waker = waker.into();
    for _ in 0..100 {
        let mut future = Box::pin(file.as_slice_mut(0, 10_000));
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        if polled.is_ready() {
            // The drain granted it before the poll.
            continue;
        }
        // The future holds the lease now, and may keep it for any time.
        assert!(woken.park_timeout(TIMEOUT), "the view was not granted");
        assert_eq!(file.stats().views, 1);
        let busy = file.as_slice(5_000, 1).unwrap_err();
        assert!(matches!(busy, MmapIoError::Busy { .. }), "{busy:?}");
        drop(future);
        assert_eq!(file.stats().views, 0);
        assert!(file.try_as_slice(0, 10_000).unwrap().is_some());
    }
}

#[test]
fn dropped_view_future_never_makes_busy() {
    let dir = tempfile::tempdir().unwrap();
    let (_, file) = block_on(patterned(dir.path(), 10_000));
    for turn in 0..3_000 {
        let mut future = Box::pin(file.as_slice_mut(0, 10_000));
        drop(block_on(poll_once(&mut future)));
        // Before the drain starts it, while it does, and after.
        for _ in 0..turn % 100 * 20 {
            std::hint::spin_loop();
        }
        drop(future);
        drop(file.as_slice(0, 10_000).unwrap());
    }
    block_on(wait_until(&file, is_quiet));
}

#[test]
fn dropped_opening_or_close_never_makes_busy() {
    type Running = Boxed<mmap_io::Result<()>>;
    fn opened(
        opening: impl Future<Output = mmap_io::Result<MemoryMappedFile>> + Send + 'static,
    ) -> Running {
        Box::pin(async { opening.await.map(drop) })
    }

    let begin: &[fn(&Path) -> Running] = &[
        |path| opened(MemoryMappedFile::create_rw(path, 5_000)),
        |path| opened(MemoryMappedFile::open_rw(path)),
        #[cfg(feature = "cow")]
        |path| opened(MemoryMappedFile::open_cow(path)),
        #[cfg(feature = "cow")]
        |path| opened(MemoryMappedFile::open_cow_writable(path)),
        |path| Box::pin(block_on(MemoryMappedFile::open_ro(path)).unwrap().close()),
        // The handle goes with the future.
        #[cfg(feature = "cow")]
        |path| {
            let private = block_on(MemoryMappedFile::open_cow_writable(path)).unwrap();
            Box::pin(async move { private.touch_pages().await })
        },
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    block_on(MemoryMappedFile::create_rw(&path, 5_000)).unwrap();
    for turn in 0..400 {
        for begin in begin {
            let mut running = begin(&path);
            let mut polls = 1 + turn % 2;
            while polls > 0 && block_on(poll_once(&mut running)).is_none() {
                polls -= 1;
                // Before the pool opens the file, while it does, and after.
                for _ in 0..turn % 100 * 50 {
                    std::hint::spin_loop();
                }
            }
            drop(running);
            block_on(MemoryMappedFile::create_rw(&path, 5_000)).unwrap();
        }
    }
}

#[test]
fn resizing_tail_never_makes_busy() {
    let dir = tempfile::tempdir().unwrap();
    let (_, file) = block_on(patterned(dir.path(), 100_000));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let reads = [
                    file.as_slice(99_000, 100).map(drop),
                    file.bytes(99_000, 100).map(drop),
                    file.try_as_slice(99_000, 100).map(drop),
                ];
                for error in reads.into_iter().filter_map(Result::err) {
                    let is_cut = matches!(error, MmapIoError::OutOfBounds { .. });
                    assert!(is_cut, "{error:?}");
                }
            }
        });
        for _ in 0..500 {
            block_on(file.resize(4_096)).unwrap();
            block_on(file.resize(100_000)).unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

/// Forgets a future after its first poll, and then drops its handle.
fn forget(dir: &Path, name: &str, begin: impl FnOnce(&MemoryMappedFile)) {
    let path = dir.join(name);
    let file = block_on(
        MemoryMappedFile::builder(&path)
            .size(100_000)
            .write_buffer(100)
            .create(),
    );
    let file = file.unwrap();
    begin(&file);
    drop(file);
    let again = join_with_timeout(name, MemoryMappedFile::create_rw(path, 10));
    match again {
        Ok(_) | Err(MmapIoError::Busy { .. }) => {}
        Err(error) => panic!("{name}: {error:?}"),
    }
}

#[test]
fn forgotten_future_does_not_block_create() {
    fn forgotten<'a>(future: impl Future + 'a) {
        let mut future = Box::pin(future);
        let _ = block_on(poll_once(&mut future));
        std::mem::forget(future);
    }

    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let data = [1; 80];
    forget(dir, "update_region", |file| {
        forgotten(file.update_region(0, &data));
    });
    forget(dir, "at the door", |file| {
        forgotten(file.update_region(0, &data));
        forgotten(file.update_region(0, &data));
        forgotten(file.update_regions(&[(0, &data), (500, &data)]));
    });
    forget(dir, "update_region_async", |file| {
        forgotten(file.update_region_async(0, &data));
    });
    forget(dir, "try_update_region", |file| {
        forgotten(file.try_update_region(0, &data));
    });
    forget(dir, "write_bytes", |file| {
        forgotten(file.write_bytes(0, file.bytes(500, 80).unwrap()));
    });
    forget(dir, "as_slice_mut", |file| {
        forgotten(file.as_slice_mut(0, 100));
    });
    forget(dir, "resize", |file| {
        forgotten(file.resize(10));
    });
    forget(dir, "slice", |file| {
        forgotten(file.slice(0, 100_000));
        forgotten(file.read_bytes(50_000, 10));
    });
    forget(dir, "flush", |file| {
        forgotten(file.flush());
        forgotten(file.touch_pages());
    });
    forget(dir, "copy_to", |file| {
        forgotten(file.copy_to(dir.join("copy")));
    });
}

#[test]
fn any_forgotten_future_lets_files_be_created() {
    let dir = tempfile::tempdir().unwrap();
    for operation in operations() {
        for polls in 1..4 {
            let mut fixture = block_on(Fixture::new(dir.path()));
            let mut running = (operation.run)(&fixture);
            let is_woken = false;
            let is_done = advance(&mut running, Progress { polls, is_woken });
            std::mem::forget(running);
            // No handle of the test is left on the file.
            let other = MemoryMappedFile::open_ro(fixture.dir.join("other"));
            fixture.file = block_on(other).unwrap();
            for entry in std::fs::read_dir(&fixture.dir).unwrap() {
                let path = entry.unwrap().path();
                let name = format!("{} after {polls} polls: {path:?}", operation.name);
                match join_with_timeout(&name, MemoryMappedFile::create_rw(path, 10)) {
                    Ok(_) | Err(MmapIoError::Busy { .. }) => {}
                    Err(error) => panic!("{name}: {error:?}"),
                }
            }
            if is_done {
                break;
            }
        }
    }
}

#[test]
fn unpolled_commit_acts_like_dropped_view() {
    let dir = tempfile::tempdir().unwrap();
    let create = |policy| {
        let path = dir.path().join(format!("{policy:?}"));
        let builder = MemoryMappedFile::builder(path).size(10_000);
        let file = block_on(builder.flush_policy(policy).create()).unwrap();
        block_on(file.flush()).unwrap();
        file
    };
    let drop_commit = |file: &MemoryMappedFile| {
        let mut view = block_on(file.as_slice_mut(0, 100)).unwrap();
        view.fill(1);
        drop(view.commit());
    };
    for policy in [
        FlushPolicy::Always,
        FlushPolicy::EveryBytes(100),
        FlushPolicy::EveryWrites(1),
        FlushPolicy::EveryMillis(1),
    ] {
        let file = create(policy);
        drop_commit(&file);
        eventually("flushed", || file.pending_bytes() == 0);
    }
    // It counts once.
    let file = create(FlushPolicy::EveryWrites(2));
    drop_commit(&file);
    assert_eq!(file.pending_bytes(), 100);
    drop_commit(&file);
    eventually("flushed", || file.pending_bytes() == 0);
    let file = create(FlushPolicy::Never);
    drop_commit(&file);
    assert_eq!((file.pending_bytes(), file.stats().views), (100, 0));
}
