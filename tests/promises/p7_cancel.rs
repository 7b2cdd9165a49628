//! All or nothing: whatever future is dropped, after however many polls, nothing is torn, leaked or
//! stuck.

use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use futures_lite::future::{or, poll_once, yield_now};
use mmap_io::{FlushPolicy, MemoryMappedFile, MmapIoError};

use crate::common::operations::{
    operations, with_one_pool_thread, Gate, HeldBy, Operation, Running, Scene, BEFORE, LEN,
};
use crate::common::{alone, ends, eventually, is_quiet, patterned, until, HeldQueue, SOON};

/// How far a future gets before it is dropped.
#[derive(Clone, Copy, Debug)]
struct Progress {
    polls: usize,
    /// It was woken after the last poll: what it waits for is there, and nobody has taken it.
    is_woken: bool,
}

struct Woken(mpsc::Sender<()>);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        // Nobody listens when the future is dropped.
        let _ = self.0.send(());
    }
}

/// Polls a future whenever it is woken; whether it has come to its end.
fn advance(running: &mut Running<'_>, progress: Progress) -> bool {
    let (wake, woken) = mpsc::channel();
    let waker = Waker::from(Arc::new(Woken(wake)));
    for poll in 1..=progress.polls {
        let state = running.as_mut().poll(&mut Context::from_waker(&waker));
        if let std::task::Poll::Ready(result) = state {
            result.unwrap();
            return true;
        }
        if poll < progress.polls || progress.is_woken {
            woken.recv_timeout(SOON).expect("nobody wakes it");
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

/// The same operation, and another over all of the file, find nothing in their way.
async fn goes_on(operation: &Operation, scene: &Scene) {
    for _ in 0..2 {
        let result = (operation.run)(scene).await;
        assert!(result.is_ok(), "{}: {result:?}", operation.name);
    }
    for (path, _) in scene.created().collect::<Vec<_>>() {
        MemoryMappedFile::open_rw(path).await.unwrap();
    }
    let view = scene.file.try_as_slice_mut(0, scene.file.len());
    assert!(view.unwrap().is_some(), "{} holds a lease", operation.name);
    scene.file.flush().await.unwrap();
    scene.settled().await;
    scene.written();
}

#[test]
fn every_future_may_be_dropped_after_every_poll() {
    let dir = tempfile::tempdir().unwrap();
    for operation in operations() {
        let mut polls = 0;
        while !is_done_after(polls, &operation, dir.path()) {
            polls += 1;
            assert!(polls < 100, "{} does not end", operation.name);
        }
    }
}

/// Drops an operation after so many polls, in all ways; whether it was done by then.
fn is_done_after(polls: usize, operation: &Operation, dir: &Path) -> bool {
    let mut is_done = true;
    for (is_woken, elsewhere) in [(false, false), (false, true), (true, false), (true, true)] {
        let scene = alone(Scene::new(dir));
        let mut running = (operation.run)(&scene);
        is_done &= advance(&mut running, Progress { polls, is_woken });
        drop_it(running, elsewhere);
        alone(async {
            scene.settled().await;
            scene.written();
            goes_on(operation, &scene).await;
        });
    }
    is_done
}

/// Nothing has happened, and everything can.
async fn is_untouched(operation: &Operation, scene: &Scene) {
    scene.settled().await;
    let name = operation.name;
    assert_eq!(scene.written(), BEFORE, "{name}");
    assert_eq!(scene.file.len(), LEN, "{name}");
    assert_eq!(scene.file.stats().updates, 0, "{name}");
    assert_eq!(scene.created().count(), 0, "{name}");
    assert!(scene.dir.join("doomed").exists(), "{name}");
    goes_on(operation, scene).await;
}

#[test]
fn what_is_dropped_behind_a_view_never_happens() {
    let dir = tempfile::tempdir().unwrap();
    for operation in operations() {
        for elsewhere in [false, true] {
            if operation.held_by == HeldBy::AnyView {
                let scene = alone(Scene::new(dir.path()));
                let view = scene.file.bytes(0, LEN).unwrap();
                alone(drop_behind_a_view(&operation, &scene, elsewhere));
                drop(view);
                alone(is_untouched(&operation, &scene));
            }
            if operation.held_by != HeldBy::Nothing {
                let scene = alone(Scene::new(dir.path()));
                let view = alone(scene.file.as_slice_mut(0, LEN)).unwrap();
                alone(drop_behind_a_view(&operation, &scene, elsewhere));
                drop(view);
                alone(is_untouched(&operation, &scene));
            }
        }
    }
}

async fn drop_behind_a_view(operation: &Operation, scene: &Scene, elsewhere: bool) {
    let name = operation.name;
    let is_queued = !["slice", "read_bytes", "read_into"].contains(&name);
    let mut running = (operation.run)(scene);
    for polls in 0.. {
        assert!(polls < 1_000_000, "{name} is not found to be blocked");
        assert!(poll_once(&mut running).await.is_none(), "{name}");
        let is_stuck = !is_queued || scene.file.stats().oldest_blocked.is_some();
        if polls > 100 && is_stuck {
            break;
        }
        std::thread::yield_now();
        yield_now().await;
    }
    drop_it(running, elsewhere);
    let stats = scene.file.stats();
    assert_eq!((stats.queued_writes, stats.queued_bytes), (0, 0), "{name}");
    assert_eq!(stats.views, 1, "{name}");
}

#[test]
fn what_is_dropped_before_the_pool_takes_it_up_never_happens() {
    let name = "p7_cancel::what_is_dropped_before_the_pool_takes_it_up_never_happens";
    with_one_pool_thread(name, || {
        let dir = tempfile::tempdir().unwrap();
        for operation in operations() {
            for elsewhere in [false, true] {
                let scene = alone(Scene::new(dir.path()));
                let gate = Gate::shut();
                let mut running = (operation.run)(&scene);
                assert!(alone(poll_once(&mut running)).is_none());
                drop_it(running, elsewhere);
                let stats = scene.file.stats();
                assert_eq!((stats.queued_writes, stats.queued_bytes), (0, 0));
                drop(gate);
                // The one thread takes its jobs in order: after these, whatever was left.
                for _ in 0..4 {
                    alone(blocking::unblock(|| ()));
                }
                alone(is_untouched(&operation, &scene));
            }
        }
    });
}

#[test]
fn a_write_that_was_dropped_before_it_was_admitted_is_in_nobodys_way() {
    let dir = tempfile::tempdir().unwrap();
    alone(async {
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
        // Behind the second one, which has its place already.
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
        held.let_go().await;
        third.await.unwrap();
        assert_eq!(fourth.await.unwrap()[..], [0; 10]);
        until(&file, is_quiet).await;
        let mut expected = [0; 999];
        expected[400..500].fill(3);
        assert_eq!(file.as_slice(0, 999).unwrap(), expected);
    });
}

#[test]
fn a_write_that_was_dropped_in_the_queue_is_never_applied() {
    let dir = tempfile::tempdir().unwrap();
    alone(async {
        let (_, file) = patterned(dir.path(), 1000).await;
        file.update_region(0, &[0; 1000]).await.unwrap();
        let view = file.bytes(0, 10).unwrap();
        let mut dropped = Box::pin(file.update_region(5, &[1; 100]));
        // Behind it, over bytes that the view does not hold.
        let mut behind = Box::pin(file.update_region(50, &[2; 10]));
        assert!(poll_once(&mut dropped).await.is_none());
        assert!(poll_once(&mut behind).await.is_none());
        until(&file, |stats| stats.oldest_blocked.is_some()).await;
        drop(dropped);
        let in_time = or(behind, async {
            smol::Timer::after(SOON).await;
            panic!("it waits for one that was withdrawn");
        });
        in_time.await.unwrap();
        drop(view);
        file.flush().await.unwrap();
        let mut expected = [0; 1000];
        expected[50..60].fill(2);
        assert_eq!(file.as_slice(0, 1000).unwrap(), expected);
        until(&file, is_quiet).await;
    });
}

#[test]
fn a_view_that_was_granted_and_not_taken_goes_with_its_future() {
    let dir = tempfile::tempdir().unwrap();
    let (_, file) = alone(patterned(dir.path(), 10_000));
    let (wake, woken) = mpsc::channel();
    let waker = Waker::from(Arc::new(Woken(wake)));
    for _ in 0..100 {
        let mut future = Box::pin(file.as_slice_mut(0, 10_000));
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        if polled.is_ready() {
            // The drain was quick.
            continue;
        }
        // It has the lease now, and may keep it for as long as it likes.
        woken.recv_timeout(SOON).expect("not granted");
        assert_eq!(file.stats().views, 1);
        let busy = file.as_slice(5_000, 1).unwrap_err();
        assert!(matches!(busy, MmapIoError::Busy { .. }), "{busy:?}");
        drop(future);
        assert_eq!(file.stats().views, 0);
        assert!(file.try_as_slice(0, 10_000).unwrap().is_some());
    }
}

#[test]
fn readers_are_never_told_of_a_view_whose_future_was_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (_, file) = alone(patterned(dir.path(), 10_000));
    for turn in 0..3_000 {
        let mut future = Box::pin(file.as_slice_mut(0, 10_000));
        drop(alone(poll_once(&mut future)));
        // Before the drain takes it up, while it does, and after.
        for _ in 0..turn % 100 * 20 {
            std::hint::spin_loop();
        }
        drop(future);
        drop(file.as_slice(0, 10_000).unwrap());
    }
    alone(until(&file, is_quiet));
}

#[test]
fn readers_of_a_tail_that_is_cut_and_grown_are_never_told_busy() {
    let dir = tempfile::tempdir().unwrap();
    let (_, file) = alone(patterned(dir.path(), 100_000));
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
            alone(file.resize(4_096)).unwrap();
            alone(file.resize(100_000)).unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

/// Forgets a future after its first poll, and then its handle goes.
fn forget(dir: &Path, name: &str, begin: impl FnOnce(&MemoryMappedFile)) {
    let path = dir.join(name);
    let file = alone(
        MemoryMappedFile::builder(&path)
            .size(100_000)
            .write_buffer(100)
            .create(),
    );
    let file = file.unwrap();
    begin(&file);
    drop(file);
    let again = ends(name, MemoryMappedFile::create_rw(path, 10));
    match again {
        Ok(_) | Err(MmapIoError::Busy { .. }) => {}
        Err(error) => panic!("{name}: {error:?}"),
    }
}

#[test]
fn a_forgotten_future_does_not_hold_up_a_creation() {
    fn forgotten<'a>(future: impl Future + 'a) {
        let mut future = Box::pin(future);
        let _ = alone(poll_once(&mut future));
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
fn a_commit_that_is_dropped_unpolled_is_like_a_dropped_view() {
    let dir = tempfile::tempdir().unwrap();
    let create = |policy| {
        let path = dir.path().join(format!("{policy:?}"));
        let builder = MemoryMappedFile::builder(path).size(10_000);
        let file = alone(builder.flush_policy(policy).create()).unwrap();
        alone(file.flush()).unwrap();
        file
    };
    let drop_commit = |file: &MemoryMappedFile| {
        let mut view = alone(file.as_slice_mut(0, 100)).unwrap();
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
