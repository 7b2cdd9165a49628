//! Flush policies, as seen from outside: which write waits for a flush and what that covers, what
//! is only started, what happens in the background, and that nothing which was scheduled is lost
//! with the last handle. Where a kernel tells (`cachestat(2)`, smaps), the pages say so too.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_lite::future::poll_once;
use mmap_io::{FlushPolicy, MemoryMappedFile, MmapMode};

use crate::common::child::{abort_if_stuck, child, child_dir};
use crate::common::probe::{can_probe, until_dirty, Probe};
use crate::common::{block_on, eventually, on_a_disk};

mod background;
mod thresholds;

const HOUR: FlushPolicy = FlushPolicy::EveryMillis(3_600_000);

/// Another handle on a file.
async fn open(path: &Path, policy: FlushPolicy) -> MemoryMappedFile {
    let builder = MemoryMappedFile::builder(path).mode(MmapMode::ReadWrite);
    builder.flush_policy(policy).open().await.unwrap()
}

/// A file without pending bytes: only later writes count.
pub(crate) async fn settled(path: &Path, len: usize, policy: FlushPolicy) -> MemoryMappedFile {
    fs::write(path, vec![0; len]).unwrap();
    fs::File::open(path).unwrap().sync_all().unwrap();
    let file = open(path, policy).await;
    assert_eq!((file.pending_bytes(), file.stats().flushes), (0, 0));
    file
}

/// The number of flushes so far, and of bytes that are not flushed yet.
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
        // An alarm that was due at once would have fired before this one.
        let other = settled(&dir.path().join("other"), 100, FlushPolicy::EveryMillis(1)).await;
        other.update_region(0, b"x").await.unwrap();
        eventually("the other is flushed", || state(&other) == (1, 0));
        for file in disabled {
            assert_eq!(state(&file), (0, 50_000), "{:?}", file.flush_policy());
            // A flush on request still works.
            file.flush().await.unwrap();
            assert_eq!(state(&file), (1, 0));
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
            // A view that is committed is durable with one flush, under every policy.
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

#[cfg(feature = "atomic")]
#[test]
fn dropped_atomic_view_counts_as_written() {
    use std::sync::atomic::Ordering;

    let dir = on_a_disk();
    let probes = can_probe("dropped_atomic_view_counts_as_written", dir.path());
    block_on(async {
        for (name, policy, starts) in [
            ("never", FlushPolicy::Never, false),
            ("hour", HOUR, false),
            ("more", FlushPolicy::EveryBytes(81), false),
            ("always", FlushPolicy::Always, true),
            ("bytes", FlushPolicy::EveryBytes(80), true),
            ("soon", FlushPolicy::EveryMillis(1), true),
        ] {
            let path = dir.path().join(name);
            let file = settled(&path, 100_000, policy).await;
            let probe = Probe::new(&path);
            let words = file.atomic_u64_slice(10_000, 10).unwrap();
            words[9].store(3, Ordering::Relaxed);
            assert_eq!(state(&file), (0, 0), "{policy:?}");
            // An explicit flush covers the stores of a view that lives.
            file.flush().await.unwrap();
            assert!(!probes || probe.is_clean());
            let flushes = file.stats().flushes;
            words[0].store(4, Ordering::Relaxed);
            drop(words);
            if starts {
                eventually(name, || {
                    state(&file) == (flushes + 1, 0) && (!probes || probe.is_clean())
                });
            } else {
                assert_eq!(state(&file), (flushes, 80), "{policy:?}");
            }
        }
        let file = settled(&dir.path().join("sizes"), 100, FlushPolicy::Never).await;
        drop(file.atomic_u64(0).unwrap());
        drop(file.atomic_u32(96).unwrap());
        drop(file.atomic_u32_slice(4, 2).unwrap());
        drop(file.atomic_u32_slice(100, 0).unwrap());
        assert_eq!(file.pending_bytes(), 16);
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
            // SAFETY: the pointer is used while the file is open, below its length, and nothing
            // else reads those bytes.
            let start = unsafe { file.as_mut_ptr() }.unwrap();
            assert_eq!(file.pending_bytes(), 100_000);
            file.flush().await.unwrap();
            assert_eq!(file.pending_bytes(), 0);
            for at in [0, 50_000, 99_999] {
                // SAFETY: as above.
                until_dirty!(probe, unsafe { start.add(at).write(1) });
                assert_eq!(file.pending_bytes(), 0);
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
fn durable_operation_flushes_once() {
    let dir = on_a_disk();
    let probes = can_probe("durable_operation_flushes_once", dir.path());
    block_on(async {
        let path = dir.path().join("data");
        let file = settled(&path, 64 << 20, FlushPolicy::Never).await;
        let probe = Probe::new(&path);
        // Near each other, and too far apart for one range.
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
    // The flush occupies one thread of the pool, and the writes need another.
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
        // If a flush is over too soon to tell, try again.
        for _ in 0..50 {
            file.update_region(0, &data).await.unwrap();
            file.update_region(40 << 20, &[1; 4096]).await.unwrap();
            let flushes = file.stats().flushes;
            let mut flush = Box::pin(file.flush_range(0, 32 << 20));
            if poll_once(&mut flush).await.is_some() {
                continue;
            }
            eventually("the flush has begun", || file.stats().flushes > flushes);
            file.update_region(40 << 20, b"in flight").await.unwrap();
            let view = file.as_slice_mut((40 << 20) + 100, 10).await.unwrap();
            drop(view);
            let is_over = poll_once(&mut flush).await;
            let went_on = is_over.is_none();
            match is_over {
                Some(flushed) => flushed.unwrap(),
                None => flush.await.unwrap(),
            }
            assert_eq!(file.as_slice(40 << 20, 9).unwrap(), b"in flight");
            assert_eq!(file.pending_bytes(), 4096);
            if went_on {
                return;
            }
        }
        panic!("expected a write to return during a flush, in 50 attempts");
    });
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

/// Bytes whose drop reports that their write is applied, and then blocks its job until released.
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
        // The bytes are in place; the future of the durable write and the handle are dropped.
        drop((write, file));
        drop(go);
        probe.wait_until_clean();
        assert_eq!(fs::read(&path).unwrap()[..7], *b"payload");
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
