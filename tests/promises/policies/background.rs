//! `EveryMillis`: one timer for all files, and a flush that outlives the handles.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_lite::future::{poll_once, zip};
use mmap_io::{FlushPolicy, MemoryMappedFile};

use super::{open, settled, state, HOUR};
use crate::common::child::{abort_if_stuck, child, child_dir};
use crate::common::probe::{can_probe, until_dirty, Probe};
use crate::common::{block_on, eventually, join_with_timeout, on_a_disk};

fn threads_of_this_process() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("Threads:"));
    line.unwrap()["Threads:".len()..].trim().parse().unwrap()
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
            eventually("the first flush", || {
                state(&file) == (round + 1, 0) && is_clean()
            });
            assert!(before.elapsed() >= Duration::from_millis(20));
        }
        // A view and a raw pointer count from the moment when they were requested.
        file.as_slice_mut(0, 10).await.unwrap().fill(2);
        eventually("the flush after a view", || {
            state(&file) == (6, 0) && is_clean()
        });
        // SAFETY: the pointer is not used.
        unsafe { file.as_mut_ptr() }.unwrap();
        eventually("the flush after a pointer", || state(&file) == (7, 0));
        // The earliest of two policies counts.
        let patient = open(&path, HOUR).await;
        patient.update_region(0, b"x").await.unwrap();
        assert_eq!(state(&file), (7, 1));
        file.update_region(1, b"x").await.unwrap();
        eventually("the flush at the earlier time", || {
            state(&file) == (8, 0) && is_clean()
        });
        assert!(file.last_flush_error().is_none());
    });
}

#[test]
fn one_timer_serves_all_files() {
    // In memory, if there is a tmpfs: the test counts threads.
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
            // Alternately a file that waits long and one that does not.
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
        // One thread waits for the time and two flush. The pool grows by a few more when a job is
        // submitted before the thread of the last job is idle, and up to 32 trial threads find out
        // whether it may: far from a thread for each file in any case.
        assert!(most <= before + 50, "{most} threads, {before} before");
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
    // Written to, seen dirty, and dropped in several ways.
    let written = |path: PathBuf| async move {
        let file = settled(&path, 100_000, HOUR).await;
        let probe = Probe::new(&path);
        until_dirty!(
            probe,
            file.update_region(50_000, b"scheduled").await.unwrap()
        );
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
                // A handle without a policy is the last to be dropped.
                let lazy = block_on(open(&path, FlushPolicy::Never));
                drop(other);
                drop(lazy);
            }
        }
        Probe::new(&path).wait_until_clean();
        assert_eq!(fs::read(&path).unwrap()[50_000..50_009], *b"scheduled");
        create(&path);
    }
    // A creation does not wait for the flush that is due either; and the file has the requested
    // length.
    let file = block_on(written(path.clone()));
    drop(file);
    create(&path);
    assert_eq!(fs::read(&path).unwrap().len(), 10);
    // Nor for an alarm that has nothing left to flush.
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
            // The background flush may begin at any moment of this.
            for at in 0..round % 7 {
                file.update_region(at, b"x").await.unwrap();
            }
            file.as_slice_mut(5000, 10).await.unwrap().fill(1);
            drop(file);
            probe.wait_until_clean();
        }
    });
}

#[test]
fn tick_never_fails_unmap_or_close() {
    let dir = on_a_disk();
    join_with_timeout("unmapping", async move {
        let path = dir.path().join("data");
        let mut file = settled(&path, 10_000, FlushPolicy::EveryMillis(1)).await;
        for round in 0..30_u64 {
            let flushes = file.stats().flushes;
            file.update_region(round, b"x").await.unwrap();
            if round % 3 == 0 {
                eventually("a background flush has begun", || {
                    file.stats().flushes > flushes
                });
                file.update_region(round, b"y").await.unwrap();
            }
            match round % 2 {
                0 => drop(file.unmap().expect("the only handle can be unmapped")),
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
        let mut turns = 0;
        for round in 0..5 {
            soon.update_region(0, b"x").await.unwrap();
            // The other file is served until the flush and in between.
            while state(&soon) != (round + 1, 0) {
                other.update_region(turns % 100, b"x").await.unwrap();
                other.touch_pages().await.unwrap();
                turns += 1;
            }
        }
        assert!(turns > 5, "{turns} turns of the other file between flushes");
        // While the timer sleeps for an hour.
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
                // The pool completed the write before the poll.
                continue;
            }
            // The write has started, and sets the alarm after its handle is dropped.
            eventually("the write has started", || file.stats().queued_bytes == 0);
            drop((write, file));
            MemoryMappedFile::create_rw(&path, 4096).await.unwrap();
        }
    });
}
