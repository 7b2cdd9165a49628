//! Flush policies, as seen from outside: which write waits for a flush and what that covers, what
//! is only started, what happens in the background, and that nothing which was scheduled is lost
//! with the last handle. Where a kernel tells (`cachestat(2)`, smaps), the pages say so too.

#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_lite::future::{poll_once, zip};
use mmap_io::{FlushPolicy, MemoryMappedFile, MmapMode};

use crate::common::child::{abort_if_stuck, child, child_dir};
use crate::common::on_a_disk;
use crate::common::probe::{can_probe, Probe};
use crate::common::{block_on, eventually, is_quiet, join_with_timeout, wait_until};

const HOUR: FlushPolicy = FlushPolicy::EveryMillis(3_600_000);

/// Another handle on a file.
async fn open(path: &Path, policy: FlushPolicy) -> MemoryMappedFile {
    let builder = MemoryMappedFile::builder(path).mode(MmapMode::ReadWrite);
    builder.flush_policy(policy).open().await.unwrap()
}

/// A file of which nothing is pending but what is written to it from now on.
pub(crate) async fn settled(path: &Path, len: usize, policy: FlushPolicy) -> MemoryMappedFile {
    fs::write(path, vec![0; len]).unwrap();
    fs::File::open(path).unwrap().sync_all().unwrap();
    let file = open(path, policy).await;
    assert_eq!((file.pending_bytes(), file.stats().flushes), (0, 0));
    file
}

/// What a policy has done so far: flushes, and bytes that are still to be flushed.
fn state(file: &MemoryMappedFile) -> (u64, u64) {
    let stats = file.stats();
    (stats.flushes, stats.pending_bytes)
}

#[test]
fn zero_disables_a_policy() {
    let dir = on_a_disk();
    block_on(async {
        let mut disabled = Vec::new();
        for (name, policy) in [
            ("bytes", FlushPolicy::EveryBytes(0)),
            ("writes", FlushPolicy::EveryWrites(0)),
            ("millis", FlushPolicy::EveryMillis(0)),
            ("never", FlushPolicy::Never),
            ("manual", FlushPolicy::Manual),
        ] {
            let file = settled(&dir.path().join(name), 50_000, policy).await;
            for at in 0..50 {
                file.update_region(at * 1000, &[1; 1000]).await.unwrap();
            }
            file.as_slice_mut(0, 50_000).await.unwrap().fill(2);
            assert_eq!(state(&file), (0, 50_000), "{policy:?}");
            disabled.push(file);
        }
        // An alarm that was due at once would have rung before this one.
        let other = settled(&dir.path().join("other"), 100, FlushPolicy::EveryMillis(1)).await;
        other.update_region(0, b"x").await.unwrap();
        eventually("the other is flushed", || state(&other) == (1, 0));
        for file in disabled {
            assert_eq!(state(&file), (0, 50_000), "{:?}", file.flush_policy());
            // It is there when it is asked for.
            file.flush().await.unwrap();
            assert_eq!(state(&file), (1, 0));
        }
    });
}

#[test]
fn every_bytes_flushes_at_threshold() {
    let dir = on_a_disk();
    let probes = can_probe("every_bytes_flushes_at_threshold", dir.path());
    block_on(async {
        let path = dir.path().join("data");
        let file = settled(&path, 1 << 20, FlushPolicy::EveryBytes(10_000)).await;
        let probe = Probe::new(&path);
        let is_clean = || !probes || probe.is_clean();
        file.update_region(0, &[1; 6000]).await.unwrap();
        assert_eq!(state(&file), (0, 6000));
        assert!(!probes || !probe.is_clean());
        // Some of the same bytes: they count again, though they are pending once.
        file.update_region(5000, &[3; 3000]).await.unwrap();
        assert_eq!(state(&file), (0, 8000));
        file.update_region(900_000, &[4; 999]).await.unwrap();
        assert_eq!(state(&file), (0, 8999));
        // Exactly so many, however far apart.
        file.update_region(500_000, b"x").await.unwrap();
        assert_eq!(state(&file), (1, 0));
        // The same bytes, ten times.
        for _ in 0..9 {
            file.update_region(0, &[2; 1000]).await.unwrap();
            assert_eq!(state(&file), (1, 1000));
        }
        file.update_region(0, &[2; 1000]).await.unwrap();
        assert_eq!(state(&file), (2, 0));
        assert!(is_clean());

        // Whatever kind of write it is.
        let big = [5; 10_000];
        file.update_region(0, &big).await.unwrap();
        assert_eq!((state(&file), is_clean()), ((3, 0), true));
        let (half, other): (&[u8], &[u8]) = (&big[..5000], &big[..5000]);
        file.update_regions(&[(0, half), (700_000, other)])
            .await
            .unwrap();
        assert_eq!((state(&file), is_clean()), ((4, 0), true));
        file.write_bytes(4095, big.to_vec().into()).await.unwrap();
        assert_eq!((state(&file), is_clean()), ((5, 0), true));
        assert!(file.try_update_region(4095, &big).await.unwrap());
        assert_eq!((state(&file), is_clean()), ((6, 0), true));
        // Through the descriptor as well as through the map.
        file.update_region(1, &vec![6; 600_000]).await.unwrap();
        assert_eq!((state(&file), is_clean()), ((7, 0), true));
        // Overlapping ranges of one operation are written one after the other; one that writes
        // nothing counts nothing.
        file.update_regions(&[(0, half), (1000, &other[..4999])])
            .await
            .unwrap();
        file.update_region(0, b"").await.unwrap();
        assert_eq!(state(&file), (7, 5999));
        // A durable write covers its own bytes, and no others.
        file.update_region_async(0, &[7; 1000]).await.unwrap();
        assert_eq!(state(&file), (8, 4999));
    });
}

#[test]
fn flush_range_debits_covered_bytes() {
    let dir = on_a_disk();
    block_on(async {
        let path = dir.path().join("data");
        let file = settled(&path, 1 << 20, FlushPolicy::EveryBytes(20_000)).await;
        file.update_region(0, &[1; 10_000]).await.unwrap();
        file.update_region(500_000, &[1; 9_000]).await.unwrap();
        // From inside a page into the next; what is not pending is debited by nobody.
        file.flush_range(5000, 1000).await.unwrap();
        assert_eq!(state(&file), (1, 18_000));
        file.flush_range(5500, 1000).await.unwrap();
        assert_eq!(state(&file), (2, 17_500));
        file.flush_range(9_999, 490_002).await.unwrap();
        assert_eq!(state(&file), (3, 17_498));
        file.flush_range(200_000, 1000).await.unwrap();
        assert_eq!(state(&file), (4, 17_498));
        // It is these that count towards the next flush.
        file.update_region(200_000, &[1; 2_501]).await.unwrap();
        assert_eq!(state(&file), (4, 19_999));
        file.update_region(5000, &[1; 1]).await.unwrap();
        assert_eq!(state(&file), (5, 0));
        // What is cut off is nobody's debt.
        file.update_region(900_000, &[1; 9_000]).await.unwrap();
        file.resize(901_000).await.unwrap();
        assert_eq!(state(&file), (5, 1000));
    });
}

#[test]
fn every_writes_flushes_at_threshold() {
    let dir = on_a_disk();
    let probes = can_probe("every_writes_flushes_at_threshold", dir.path());
    block_on(async {
        let path = dir.path().join("data");
        let file = settled(&path, 100_000, FlushPolicy::EveryWrites(3)).await;
        let probe = Probe::new(&path);
        let is_clean = || !probes || probe.is_clean();
        for round in 0..3 {
            // Rewrites are writes, and the bytes they change still count once.
            file.update_region(0, &[1; 5000]).await.unwrap();
            file.update_region(0, &[2; 5000]).await.unwrap();
            assert_eq!(state(&file), (round, 5000));
            file.update_region(50_000, b"x").await.unwrap();
            assert_eq!((state(&file), is_clean()), ((round + 1, 0), true));
        }
        // An operation of many ranges is one write, and one of none is none.
        let many: Vec<(u64, &[u8])> = (0..10).map(|at| (at * 5000, &b"x"[..])).collect();
        file.update_regions(&many).await.unwrap();
        file.update_regions(&[]).await.unwrap();
        assert_eq!(state(&file), (3, 10));
        // A flush of all starts anew, one of a part does not.
        file.flush().await.unwrap();
        assert_eq!(state(&file), (4, 0));
        file.update_regions(&many).await.unwrap();
        file.flush_range(0, 10_000).await.unwrap();
        assert_eq!(state(&file), (5, 8));
        file.write_bytes(0, vec![1].into()).await.unwrap();
        assert_eq!(state(&file), (5, 9));
        assert!(file.try_update_region(0, b"x").await.unwrap());
        assert_eq!((state(&file), is_clean()), ((6, 0), true));
        // A view is a write.
        file.as_slice_mut(0, 10).await.unwrap().fill(1);
        file.as_slice_mut(0, 10).await.unwrap().fill(2);
        assert_eq!(state(&file), (6, 10));
        file.update_region(0, b"x").await.unwrap();
        assert_eq!((state(&file), is_clean()), ((7, 0), true));
    });
}

#[test]
fn failed_or_empty_write_does_not_flush() {
    let dir = on_a_disk();
    block_on(async {
        let path = dir.path().join("data");
        for policy in [
            FlushPolicy::Always,
            FlushPolicy::EveryBytes(1),
            FlushPolicy::EveryWrites(1),
        ] {
            let file = settled(&path, 1000, policy).await;
            file.update_region(990, &[1; 20]).await.unwrap_err();
            file.update_region(0, b"").await.unwrap();
            let view = file.as_slice(0, 10).unwrap();
            assert!(!file.try_update_region(5, b"x").await.unwrap());
            drop(view);
            assert_eq!(state(&file), (0, 0));
            file.update_region(0, b"x").await.unwrap();
            assert_eq!(state(&file), (1, 0));
            wait_until(&file, is_quiet).await;
        }
    });
}

#[test]
fn dropped_view_starts_policy_flush() {
    let dir = on_a_disk();
    let probes = can_probe("dropped_view_starts_policy_flush", dir.path());
    block_on(async {
        for (name, policy, starts) in [
            ("never", FlushPolicy::Never, false),
            ("hour", HOUR, false),
            ("more", FlushPolicy::EveryBytes(5001), false),
            ("two", FlushPolicy::EveryWrites(2), false),
            ("always", FlushPolicy::Always, true),
            ("bytes", FlushPolicy::EveryBytes(5000), true),
            ("writes", FlushPolicy::EveryWrites(1), true),
            ("soon", FlushPolicy::EveryMillis(1), true),
        ] {
            let path = dir.path().join(name);
            let file = settled(&path, 100_000, policy).await;
            let probe = Probe::new(&path);
            let is_clean = || !probes || probe.is_clean();
            file.as_slice_mut(10_000, 5000).await.unwrap().fill(3);
            if starts {
                eventually(name, || state(&file) == (1, 0) && is_clean());
            } else {
                assert_eq!(state(&file), (0, 5000), "{policy:?}");
            }
            // One that is committed is durable, with one flush, whatever the policy.
            let flushes = file.stats().flushes;
            let mut view = file.as_slice_mut(10_000, 5000).await.unwrap();
            view.fill(4);
            view.commit().await.unwrap();
            assert_eq!(state(&file), (flushes + 1, 0), "{policy:?}");
            assert!(is_clean());
            assert_eq!(file.as_slice(10_000, 5000).unwrap(), [4; 5000]);
        }
    });
}

#[test]
fn flush_covers_raw_pointer_stores() {
    let dir = on_a_disk();
    if !can_probe("flush_covers_raw_pointer_stores", dir.path()) {
        return;
    }
    block_on(async {
        for (name, policy) in [
            ("never", FlushPolicy::Never),
            ("always", FlushPolicy::Always),
            ("bytes", FlushPolicy::EveryBytes(1)),
            ("writes", FlushPolicy::EveryWrites(1)),
            ("hour", HOUR),
        ] {
            let path = dir.path().join(name);
            let file = settled(&path, 100_000, policy).await;
            let probe = Probe::new(&path);
            // SAFETY: the pointer is used while the file is open, below its length, and nobody
            // else looks at those bytes.
            let start = unsafe { file.as_mut_ptr() }.unwrap();
            assert_eq!(file.pending_bytes(), 100_000);
            file.flush().await.unwrap();
            assert_eq!(file.pending_bytes(), 0);
            for at in [0, 50_000, 99_999] {
                // SAFETY: as above.
                unsafe { start.add(at).write(1) };
                assert_eq!((file.pending_bytes(), probe.is_clean()), (0, false));
                file.flush().await.unwrap();
                assert!(probe.is_clean(), "{policy:?}");
                // SAFETY: as above.
                unsafe { start.add(at).write(2) };
                file.flush_range(at as u64, 1).await.unwrap();
                assert!(probe.is_clean(), "{policy:?}");
            }
            assert_eq!(file.stats().flushes, 7);
        }
    });
}

#[test]
fn handles_follow_their_own_policy() {
    let dir = on_a_disk();
    block_on(async {
        let path = dir.path().join("data");
        let lazy = settled(&path, 100_000, FlushPolicy::Never).await;
        let always = open(&path, FlushPolicy::Always).await;
        let bytes = open(&path, FlushPolicy::EveryBytes(8000)).await;
        let writes = open(&path, FlushPolicy::EveryWrites(4)).await;
        // What is pending is the file's, and so is the count.
        lazy.update_region(0, &[1; 7000]).await.unwrap();
        bytes.update_region(0, &[2; 900]).await.unwrap();
        assert_eq!(state(&lazy), (0, 7000));
        // That one flushes what it has written itself.
        always.update_region(50_000, &[3; 100]).await.unwrap();
        assert_eq!(state(&lazy), (1, 7000));
        // These flush all.
        bytes.update_region(60_000, &[4; 1000]).await.unwrap();
        assert_eq!(state(&lazy), (2, 0));
        lazy.update_region(0, &[1; 9000]).await.unwrap();
        assert_eq!(state(&lazy), (2, 9000));
        bytes.update_region(0, b"x").await.unwrap();
        assert_eq!(state(&lazy), (3, 0));
        for _ in 0..3 {
            lazy.update_region(0, &[1; 9000]).await.unwrap();
        }
        assert_eq!(state(&lazy), (3, 9000));
        writes.update_region(0, b"x").await.unwrap();
        assert_eq!(state(&lazy), (4, 0));
        for handle in [&lazy, &always, &bytes, &writes] {
            assert_eq!((state(handle), handle.len()), ((4, 0), 100_000));
        }
        assert_eq!(lazy.flush_policy(), FlushPolicy::Never);
        assert_eq!(writes.flush_policy(), FlushPolicy::EveryWrites(4));
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        lazy.update_region(0, b"x").await.unwrap();
        assert_eq!(reader.pending_bytes(), 0);
        reader.flush().await.unwrap();
        assert_eq!(state(&lazy), (4, 1));
    });
}

#[test]
fn durable_operation_flushes_once() {
    let dir = on_a_disk();
    let probes = can_probe("durable_operation_flushes_once", dir.path());
    block_on(async {
        let path = dir.path().join("data");
        let file = settled(&path, 64 << 20, FlushPolicy::Never).await;
        let probe = Probe::new(&path);
        // Near each other, and too far for one hull.
        for step in [8192, 1 << 20] {
            let many: Vec<(u64, &[u8])> = (0..60).map(|at| (at * step, &b"data"[..])).collect();
            let before = file.stats();
            file.update_regions_async(&many).await.unwrap();
            let after = file.stats();
            assert_eq!(after.flushes, before.flushes + 1);
            assert_eq!(after.flushed_waiters, before.flushed_waiters + 1);
            assert_eq!(
                (after.pending_bytes, after.updates),
                (0, before.updates + 1)
            );
            assert!(!probes || probe.is_clean());
        }
        // Far ranges, and pending bytes between them that they must not debit.
        file.update_region(30 << 20, &[1; 5000]).await.unwrap();
        let ends: [(u64, &[u8]); 2] = [(0, b"first"), (60 << 20, b"last")];
        file.update_regions_async(&ends).await.unwrap();
        let pending = file.pending_bytes();
        match probe.unwritten(30 << 20, 5000) {
            Some(0) | None => assert!(pending <= 5000),
            Some(_) => assert_eq!(pending, 5000),
        }
        for at in [0, 60 << 20] {
            assert_eq!(probe.unwritten(at, 1).unwrap_or(0), 0);
        }
        file.update_region_async(0, b"x").await.unwrap();
        file.write_bytes_async(0, vec![1].into()).await.unwrap();
        assert_eq!(file.stats().flushes, 5);
    });
}

#[test]
fn writes_proceed_during_flush() {
    // The flush takes a thread of the pool, and they need another.
    let dir = on_a_disk();
    child!(flushing_child).dir(dir.path()).usual_pool().passes();
}

#[test]
fn flushing_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    abort_if_stuck();
    block_on(async {
        let path = dir.join("data");
        let file = settled(&path, 64 << 20, FlushPolicy::Never).await;
        let data = vec![1; 32 << 20];
        // Where a flush is over too soon to tell, again.
        for _ in 0..50 {
            file.update_region(0, &data).await.unwrap();
            file.update_region(40 << 20, &[1; 4096]).await.unwrap();
            let flushes = file.stats().flushes;
            let mut flush = Box::pin(file.flush_range(0, 32 << 20));
            if poll_once(&mut flush).await.is_some() {
                continue;
            }
            eventually("it has begun", || file.stats().flushes > flushes);
            file.update_region(40 << 20, b"meanwhile").await.unwrap();
            let view = file.as_slice_mut((40 << 20) + 100, 10).await.unwrap();
            drop(view);
            let is_over = poll_once(&mut flush).await;
            let went_on = is_over.is_none();
            match is_over {
                Some(flushed) => flushed.unwrap(),
                None => flush.await.unwrap(),
            }
            assert_eq!(file.as_slice(40 << 20, 9).unwrap(), b"meanwhile");
            assert_eq!(file.pending_bytes(), 4096);
            if went_on {
                return;
            }
        }
        panic!("no write ever returned before a flush that had begun earlier");
    });
}

#[test]
fn tasks_share_one_threshold() {
    let dir = on_a_disk();
    let path = dir.path().join("data");
    let file = block_on(settled(&path, 8 << 16, FlushPolicy::EveryBytes(50_000)));
    std::thread::scope(|threads| {
        for task in 0..8 {
            let file = &file;
            threads.spawn(move || {
                for turn in 0..200_u64 {
                    let at = (task << 16) + turn * 300;
                    block_on(file.update_region(at, &[turn as u8; 300])).unwrap();
                    // Whoever crosses it waits, so that no more is ever pending than one write of
                    // each task beyond, besides what is being flushed.
                    assert!(file.pending_bytes() < 2 * (50_000 + 8 * 300));
                }
            });
        }
    });
    let (flushes, pending) = state(&file);
    assert!(pending < 50_000);
    // A write that crosses it while a flush begins may find that its bytes were flushed by that one,
    // and waits for another all the same.
    let written = 8 * 200 * 300;
    assert!((1..=2 * written / 50_000).contains(&flushes), "{flushes}");
}

fn threads_of_this_process() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("Threads:"));
    line.unwrap()["Threads:".len()..].trim().parse().unwrap()
}

#[test]
fn dropped_view_does_not_wait_for_flush() {
    let dir = on_a_disk();
    child!(occupied_pool_child)
        .dir(dir.path())
        .one_pool_thread()
        .passes();
}

/// Occupies the only thread of the pool.
fn occupy() -> Sender<()> {
    let (leave, left) = channel::<()>();
    let (entered, is_in) = channel();
    blocking::unblock(move || {
        entered.send(()).unwrap();
        let _ = left.recv();
    })
    .detach();
    is_in.recv().unwrap();
    leave
}

#[test]
fn occupied_pool_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    abort_if_stuck();
    block_on(async {
        for (name, policy) in [
            ("always", FlushPolicy::Always),
            ("bytes", FlushPolicy::EveryBytes(100)),
            ("writes", FlushPolicy::EveryWrites(1)),
            ("millis", FlushPolicy::EveryMillis(1)),
        ] {
            let file = settled(&dir.join(name), 1000, policy).await;
            let mut view = file.as_slice_mut(0, 100).await.unwrap();
            let leave = occupy();
            view.fill(1);
            drop(view);
            assert_eq!(state(&file), (0, 100));
            drop(leave);
            eventually(name, || state(&file) == (1, 0));
        }
    });
}

#[test]
fn every_millis_flushes_in_background() {
    let dir = on_a_disk();
    let probes = can_probe("every_millis_flushes_in_background", dir.path());
    block_on(async {
        let path = dir.path().join("data");
        let file = settled(&path, 100_000, FlushPolicy::EveryMillis(20)).await;
        let probe = Probe::new(&path);
        let is_clean = || !probes || probe.is_clean();
        for round in 0..5 {
            let before = Instant::now();
            // One write: of two, the first may be flushed before the second, on a busy machine.
            let parts = [(round * 5000, &[1; 100][..]), (90_000, &[1; 100][..])];
            file.update_regions(&parts).await.unwrap();
            eventually("the tick", || state(&file) == (round + 1, 0) && is_clean());
            assert!(before.elapsed() >= Duration::from_millis(20));
        }
        // A view, and stores through a pointer, count from when they were asked for.
        file.as_slice_mut(0, 10).await.unwrap().fill(2);
        eventually("the tick after a view", || {
            state(&file) == (6, 0) && is_clean()
        });
        // SAFETY: the pointer is not used.
        unsafe { file.as_mut_ptr() }.unwrap();
        eventually("the tick after a pointer", || state(&file) == (7, 0));
        // The earliest of two policies counts.
        let patient = open(&path, HOUR).await;
        patient.update_region(0, b"x").await.unwrap();
        assert_eq!(state(&file), (7, 1));
        file.update_region(1, b"x").await.unwrap();
        eventually("the earlier tick", || state(&file) == (8, 0) && is_clean());
        assert!(file.last_flush_error().is_none());
    });
}

#[test]
fn one_timer_serves_all_files() {
    // In memory, where there is one: what is counted are threads.
    let shared = Path::new("/dev/shm");
    let dir = match shared.is_dir() {
        true => tempfile::tempdir_in(shared),
        false => tempfile::tempdir(),
    };
    let dir = dir.unwrap();
    child!(thousand_files_child)
        .dir(dir.path())
        .usual_pool()
        .passes();
}

#[test]
fn thousand_files_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    abort_if_stuck();
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure is live for the call.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    block_on(async {
        let mut files = Vec::new();
        for number in 0..1000 {
            let path = dir.join(number.to_string());
            fs::write(&path, [0; 100]).unwrap();
            // In turns: one that waits long, and one that does not.
            let policy = match number % 2 {
                0 => HOUR,
                _ => FlushPolicy::EveryMillis(50),
            };
            files.push(open(&path, policy).await);
        }
        let before = threads_of_this_process();
        let mut most = 0;
        for file in &files {
            file.update_region(0, b"dirty").await.unwrap();
            most = most.max(threads_of_this_process());
        }
        eventually("half of them are flushed", || {
            most = most.max(threads_of_this_process());
            let mut ticking = files.iter().skip(1).step_by(2);
            ticking.all(|file| state(file) == (1, 0))
        });
        // One that waits for the time and two that flush; and the pool grows by one or two more when
        // a job is submitted before the thread of the last one is idle.
        assert!(most <= before + 5, "{most} threads, {before} before");
        for file in files.iter().step_by(2) {
            assert_eq!(state(file), (0, 5));
            file.flush().await.unwrap();
        }
        assert!(files.iter().all(|file| state(file) == (1, 0)));
    });
}

#[test]
fn last_drop_keeps_scheduled_flush() {
    let dir = on_a_disk();
    if !can_probe("last_drop_keeps_scheduled_flush", dir.path()) {
        return;
    }
    let path = dir.path().join("data");
    // Written to, seen dirty, and let go of in several ways.
    let written = |path: PathBuf| async move {
        let file = settled(&path, 100_000, HOUR).await;
        file.update_region(50_000, b"scheduled").await.unwrap();
        assert!(!Probe::new(&path).is_clean());
        file
    };
    let again = |path: PathBuf| async move {
        MemoryMappedFile::create_rw(&path, 10).await.unwrap();
    };
    let create =
        |path: &Path| join_with_timeout("create_rw after the last handle", again(path.to_owned()));
    for round in 0..4 {
        let file = block_on(written(path.clone()));
        let other = file.clone();
        drop(file);
        match round {
            0 => drop(other),
            1 => drop(other.unmap().unwrap()),
            2 => {
                let view = block_on(other.read_bytes(0, 10)).unwrap();
                drop(other);
                drop(view);
            }
            _ => {
                // Another handle without a policy is the last one.
                let lazy = block_on(open(&path, FlushPolicy::Never));
                drop(other);
                drop(lazy);
            }
        }
        Probe::new(&path).wait_until_clean();
        assert_eq!(fs::read(&path).unwrap()[50_000..50_009], *b"scheduled");
        create(&path);
    }
    // It does not wait for the flush that is due, either; and the file is what was asked for.
    let file = block_on(written(path.clone()));
    drop(file);
    create(&path);
    assert_eq!(fs::read(&path).unwrap().len(), 10);
    // Nor for an alarm that has nothing to ring for.
    let file = block_on(written(path.clone()));
    block_on(file.flush()).unwrap();
    drop(file);
    create(&path);
    let file = block_on(written(path.clone()));
    block_on(file.close()).unwrap();
    create(&path);
}

#[test]
fn scheduled_flush_outlives_handle() {
    let dir = on_a_disk();
    if !can_probe("scheduled_flush_outlives_handle", dir.path()) {
        return;
    }
    block_on(async {
        for round in 0..50 {
            let path = dir.path().join(round.to_string());
            let file = settled(&path, 10_000, FlushPolicy::EveryMillis(1)).await;
            let probe = Probe::new(&path);
            // The tick meets them at any moment.
            for at in 0..round % 7 {
                file.update_region(at, b"x").await.unwrap();
            }
            file.as_slice_mut(5000, 10).await.unwrap().fill(1);
            drop(file);
            probe.wait_until_clean();
        }
    });
}

/// Bytes that say that their write is over, and let its job go on when told.
struct Payload {
    written: Sender<()>,
    go_on: Receiver<()>,
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        b"payload"
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        let _ = self.written.send(());
        let _ = self.go_on.recv();
    }
}

#[test]
fn started_durable_write_flushes_if_dropped() {
    let dir = on_a_disk();
    if !can_probe("started_durable_write_flushes_if_dropped", dir.path()) {
        return;
    }
    block_on(async {
        let path = dir.path().join("data");
        let file = settled(&path, 10_000, FlushPolicy::Never).await;
        let probe = Probe::new(&path);
        let (written, is_written) = channel();
        let (go, go_on) = channel();
        let data = Bytes::from_owner(Payload { written, go_on });
        let mut write = Box::pin(file.write_bytes_async(0, data));
        assert!(poll_once(&mut write).await.is_none());
        is_written.recv().unwrap();
        // The bytes are in place, and whoever wanted them durable has gone, and so has the file.
        drop((write, file));
        assert!(!probe.is_clean());
        drop(go);
        probe.wait_until_clean();
        assert_eq!(fs::read(&path).unwrap()[..7], *b"payload");
    });
}

#[test]
fn tick_never_fails_unmap_or_close() {
    let dir = on_a_disk();
    join_with_timeout("unmapping", async move {
        let path = dir.path().join("data");
        let mut file = settled(&path, 10_000, FlushPolicy::EveryMillis(1)).await;
        for round in 0..150_u64 {
            let flushes = file.stats().flushes;
            file.update_region(round, b"x").await.unwrap();
            if round % 3 == 0 {
                eventually("a tick has begun", || file.stats().flushes > flushes);
                file.update_region(round, b"y").await.unwrap();
            }
            match round % 2 {
                0 => drop(file.unmap().expect("nobody else has it")),
                _ => file.close().await.unwrap(),
            }
            file = open(&path, FlushPolicy::EveryMillis(round % 3)).await;
        }
    });
}

#[test]
fn one_pool_thread_ticks_and_serves() {
    let dir = on_a_disk();
    child!(lonely_pool_child)
        .dir(dir.path())
        .one_pool_thread()
        .passes();
}

#[test]
fn lonely_pool_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    abort_if_stuck();
    block_on(async {
        let soon = settled(&dir.join("soon"), 100, FlushPolicy::EveryMillis(50)).await;
        let later = settled(&dir.join("later"), 100, HOUR).await;
        let other = settled(&dir.join("other"), 100, FlushPolicy::Never).await;
        later.update_region(0, b"x").await.unwrap();
        for round in 0..5 {
            soon.update_region(0, b"x").await.unwrap();
            // Others go on until it has ticked, and in between.
            let mut turns = 0;
            while state(&soon) != (round + 1, 0) {
                other.update_region(turns % 100, b"x").await.unwrap();
                other.touch_pages().await.unwrap();
                turns += 1;
            }
            assert!(turns > 1, "the pool served nobody else");
        }
        // While the timer has nothing to do for an hour.
        let start = Instant::now();
        for _ in 0..100 {
            other.update_region(0, b"x").await.unwrap();
            other.touch_pages().await.unwrap();
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{:?}",
            start.elapsed()
        );
        let (one, two) = zip(other.flush(), later.update_region_async(1, b"x")).await;
        one.unwrap();
        two.unwrap();
        assert_eq!(state(&later), (1, 1));
    });
}

#[test]
fn write_after_last_drop_leaves_no_alarm() {
    let dir = on_a_disk();
    join_with_timeout("creating", async move {
        for round in 0..20 {
            let path = dir.path().join(format!("data{round}"));
            let file = settled(&path, 16 << 20, HOUR).await;
            let mut write = Box::pin(file.write_bytes(0, vec![1; 16 << 20].into()));
            if poll_once(&mut write).await.is_some() {
                // The pool was faster.
                continue;
            }
            // It has started, and it sets the alarm when its handle has gone.
            eventually("it has started", || file.stats().queued_bytes == 0);
            drop((write, file));
            MemoryMappedFile::create_rw(&path, 4096).await.unwrap();
        }
    });
}

#[test]
fn touch_mtime_sets_time_on_flush() {
    let memory = tempfile::tempdir_in("/dev/shm").ok();
    let disk = on_a_disk();
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    for dir in [Some(&disk), memory.as_ref()].into_iter().flatten() {
        for touch in [true, false] {
            let path = dir.path().join(format!("{touch}"));
            let builder = MemoryMappedFile::builder(&path).size(5000);
            let file = block_on(builder.touch_mtime(touch).create()).unwrap();
            let is_old = || fs::metadata(&path).unwrap().modified().unwrap() == old;
            let age = || {
                let file = fs::File::options().write(true).open(&path).unwrap();
                file.set_modified(old).unwrap();
            };
            block_on(file.update_region(0, b"x")).unwrap();
            // Stored to a page that is dirty already.
            age();
            block_on(file.update_region(1, b"x")).unwrap();
            assert!(is_old());
            block_on(file.flush()).unwrap();
            assert_eq!(is_old(), !touch);
            // Nothing was written.
            age();
            block_on(file.flush()).unwrap();
            block_on(file.flush_range(0, 10)).unwrap();
            assert!(is_old());
        }
    }
}
