//! A failed flush is never forgotten, whatever started it: a threshold, the background, a dropped
//! view, or many waiters at once. The disk is a real one that runs full under its file system; what
//! each durable call returns afterwards is also in `p10_errors`.

use std::future::Future;
use std::path::PathBuf;
use std::task::Context;
use std::time::Instant;

use futures_lite::future::{poll_once, yield_now};
use mmap_io::{FlushPolicy, MemoryMappedFile, MmapIoError, MmapMode};

use crate::common::child::{child, child_dir};
use crate::common::disk::{Disk, MIB};
use crate::common::{block_on, eventually, join_with_timeout, TIMEOUT};
use crate::forked::in_fork;

/// A disk that has room for its content, and for nothing else.
struct Failing {
    /// Unmounted in this order.
    disk: Disk,
    small: Disk,
    filler: Option<PathBuf>,
    _dir: tempfile::TempDir,
}

impl Failing {
    /// With a file of 32 MiB, of which the first bytes are durable.
    fn new(test: &str) -> Option<Self> {
        // The image is sparse, on a disk that has no room for it.
        let dir = tempfile::tempdir().unwrap();
        let small = Disk::tmpfs(test, 8 * MIB)?;
        let disk = Disk::ext4(test, &small.path("image"), 64 * MIB)?;
        let path = disk.path("data");
        block_on(async {
            let file = MemoryMappedFile::create_rw(&path, 32 * MIB).await.unwrap();
            file.update_region_async(0, b"durable").await.unwrap();
            file.close().await.unwrap();
        });
        Some(Self {
            disk,
            small,
            filler: None,
            _dir: dir,
        })
    }

    async fn open(&self, policy: FlushPolicy) -> MemoryMappedFile {
        let builder = MemoryMappedFile::builder(self.disk.path("data")).mode(MmapMode::ReadWrite);
        builder.flush_policy(policy).open().await.unwrap()
    }

    fn fail(&mut self) {
        self.filler = Some(self.small.fill());
    }

    /// From now on a flush would succeed although bytes are lost.
    fn repair(&mut self) {
        self.small.free(&self.filler.take().unwrap());
    }

    /// Opens the file when every handle and `Bytes` is gone, and the error with them.
    async fn open_afresh(&self) -> MemoryMappedFile {
        // The last job may still hold the file.
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let again = self.open(FlushPolicy::Never).await;
            if again.last_flush_error().is_none() {
                return again;
            }
            assert!(
                Instant::now() < deadline,
                "expected a fresh state after the last drop, but the error is still there"
            );
            drop(again);
            yield_now().await;
        }
    }
}

/// The cause, which has to be one of a full disk.
#[track_caller]
fn cause(result: mmap_io::Result<()>) -> i32 {
    let error = result.unwrap_err();
    assert!(matches!(error, MmapIoError::FlushFailed(_)), "{error:?}");
    let cause = error.raw_os_error();
    assert!(
        matches!(cause, Some(libc::ENOSPC | libc::EIO)),
        "{cause:?} is not what a flush of it meets"
    );
    cause.unwrap()
}

/// Checks that every durable operation fails with that cause, and that everything else proceeds.
async fn assert_sticks(file: &MemoryMappedFile, lost: i32) {
    assert_eq!(cause(Err(file.last_flush_error().unwrap())), lost);
    assert_eq!(cause(file.flush().await), lost);
    assert_eq!(cause(file.flush_range(0, 1).await), lost);
    assert_eq!(cause(file.update_region_async(0, b"d").await), lost);
    let regions: [(u64, &[u8]); 2] = [(0, b"d"), (MIB, b"x")];
    assert_eq!(cause(file.update_regions_async(&regions).await), lost);
    let bytes = vec![b'd'].into();
    assert_eq!(cause(file.write_bytes_async(0, bytes).await), lost);
    assert_eq!(cause(file.append_async(b"x").await.map(drop)), lost);
    let view = file.as_slice_mut(0, 1).await.unwrap();
    assert_eq!(cause(view.commit().await), lost);
    assert_eq!(cause(file.evict(0, 4096).await), lost);
    assert_eq!(cause(file.clone().close().await), lost);
    let lazy = MemoryMappedFile::open_rw(file.path()).await.unwrap();
    lazy.update_region(0, b"durable").await.unwrap();
    lazy.update_region(3 * MIB, b"visible").await.unwrap();
    assert_eq!(file.slice(3 * MIB, 7).await.unwrap(), b"visible");
    assert_eq!(file.read_bytes(0, 7).await.unwrap(), "durable");
    assert_eq!(file.as_slice(0, 7).unwrap(), b"durable");
    lazy.as_slice_mut(4 * MIB, 10).await.unwrap().fill(1);
    assert!(lazy.try_update_region(4 * MIB, b"x").await.unwrap());
    file.schedule_flush().await.unwrap();
    assert_eq!(cause(lazy.flush().await), lost);
    // The error occurred once, and the flush is not tried again.
    assert_eq!(file.stats().flush_errors, 1);
}

/// Many pages, so that the disk cannot hold them.
async fn write_what_is_lost(file: &MemoryMappedFile) -> mmap_io::Result<()> {
    file.update_region(8 * MIB, &vec![1; 8 << 20]).await
}

#[test]
fn flush_error_reaches_all_waiters() {
    let Some(mut failing) = Failing::new("flush_error_reaches_all_waiters") else {
        return;
    };
    let file = block_on(failing.open(FlushPolicy::Never));
    failing.fail();
    block_on(write_what_is_lost(&file)).unwrap();
    let mut waiters = Vec::new();
    for waiter in 0..12_u64 {
        let file = file.clone();
        waiters.push(std::thread::spawn(move || {
            join_with_timeout("a waiter", async move {
                // None of these bytes is lost; but no later call may report that all is well.
                let mut results = Vec::new();
                for turn in 0..20 {
                    results.push(match (waiter + turn) % 3 {
                        0 => file.flush().await,
                        1 => file.flush_range(8 * MIB, 8 * MIB).await,
                        _ => file.update_region_async(16 * MIB + waiter, b"x").await,
                    });
                }
                results
            })
        }));
    }
    let mut told = Vec::new();
    for waiter in waiters {
        let results = waiter.join().unwrap();
        let first_error = results.iter().position(Result::is_err).unwrap();
        // From the first error on, every call returns that error.
        told.extend(results.into_iter().skip(first_error).map(cause));
    }
    let lost = told[0];
    assert!(told.iter().all(|cause| *cause == lost), "{told:?}");
    failing.repair();
    block_on(assert_sticks(&file, lost));
}

#[test]
fn threshold_flush_error_fails_later_writes() {
    for (test, policy) in [
        ("p6_always", FlushPolicy::Always),
        ("p6_every_bytes", FlushPolicy::EveryBytes(1 << 20)),
        ("p6_every_writes", FlushPolicy::EveryWrites(3)),
    ] {
        let Some(mut failing) = Failing::new(test) else {
            return;
        };
        block_on(async {
            let file = failing.open(policy).await;
            failing.fail();
            let lost = loop {
                if let Err(error) = write_what_is_lost(&file).await {
                    break cause(Err(error));
                }
                assert!(file.stats().updates < 3, "{policy:?}");
            };
            failing.repair();
            // The bytes that it could not flush stay pending, so the threshold stays crossed.
            assert!(file.pending_bytes() >= 8 * MIB);
            for _ in 0..4 {
                let bytes = vec![1].into();
                assert_eq!(cause(file.update_region(MIB, b"x").await), lost);
                assert_eq!(cause(file.update_regions(&[(0, b"d")]).await), lost);
                assert_eq!(cause(file.write_bytes(MIB, bytes).await), lost);
                let tried = file.try_update_region(MIB, b"x").await;
                assert_eq!(cause(tried.map(drop)), lost);
            }
            assert_sticks(&file, lost).await;
        });
    }
}

#[test]
fn background_flush_error_outlives_handles() {
    let Some(mut failing) = Failing::new("background_flush_error_outlives_handles") else {
        return;
    };
    block_on(async {
        let file = failing.open(FlushPolicy::EveryMillis(5)).await;
        failing.fail();
        // The background may flush before this returns.
        let _ = write_what_is_lost(&file).await;
        eventually("the background flush fails", || {
            file.last_flush_error().is_some()
        });
        failing.repair();
        let lost = cause(Err(file.last_flush_error().unwrap()));
        // Each write under the policy returns the error.
        for _ in 0..3 {
            let bytes = vec![1].into();
            assert_eq!(cause(file.update_region(MIB, b"x").await), lost);
            assert_eq!(cause(file.write_bytes(MIB, bytes).await), lost);
        }
        assert_eq!(file.slice(MIB, 1).await.unwrap(), [1], "it is in place");
        assert_sticks(&file, lost).await;

        // The last `Bytes` keeps the file alive, and the error with it.
        let bytes = file.bytes(0, 7).unwrap();
        drop(file);
        let again = failing.open(FlushPolicy::EveryMillis(5)).await;
        assert_eq!(cause(again.flush().await), lost);
        assert_eq!(cause(again.update_region(MIB, b"x").await), lost);
        let (reader, more) = (again.clone(), bytes.slice(2..4));
        drop((again, bytes));
        assert_eq!(cause(Err(reader.last_flush_error().unwrap())), lost);
        drop(reader);
        let again = failing.open(FlushPolicy::Never).await;
        assert_eq!(cause(again.flush().await), lost);
        drop(again);
        assert_eq!(more, "ra");
        drop(more);
        let fresh = failing.open_afresh().await;
        assert_eq!((fresh.stats().flush_errors, fresh.pending_bytes()), (0, 0));
        fresh.update_region_async(MIB, b"again").await.unwrap();
        fresh.flush().await.unwrap();
        let ticking = failing.open(FlushPolicy::EveryMillis(5)).await;
        ticking.update_region(0, b"d").await.unwrap();
        eventually("the background works again", || {
            ticking.pending_bytes() == 0 && ticking.stats().flushes == 2
        });
        assert!(ticking.last_flush_error().is_none());
    });
}

#[test]
fn view_flush_error_is_kept() {
    let Some(mut failing) = Failing::new("view_flush_error_is_kept") else {
        return;
    };
    block_on(async {
        let file = failing.open(FlushPolicy::Always).await;
        failing.fail();
        file.as_slice_mut(8 * MIB, 8 * MIB).await.unwrap().fill(1);
        eventually("the flush that the view started fails", || {
            file.last_flush_error().is_some()
        });
        failing.repair();
        let lost = cause(Err(file.last_flush_error().unwrap()));
        assert_eq!(cause(file.update_region(0, b"d").await), lost);
        assert_sticks(&file, lost).await;
    });
}

#[test]
fn dropped_flush_error_is_kept() {
    let Some(mut failing) = Failing::new("dropped_flush_error_is_kept") else {
        return;
    };
    block_on(async {
        let file = failing.open(FlushPolicy::Never).await;
        failing.fail();
        write_what_is_lost(&file).await.unwrap();
        // Usually the flush has only begun by then.
        drop(poll_once(Box::pin(file.flush())).await);
        eventually("the flush fails although its future was dropped", || {
            file.last_flush_error().is_some()
        });
        failing.repair();
        let lost = cause(Err(file.last_flush_error().unwrap()));
        assert_sticks(&file, lost).await;
    });
}

/// The last thing that `close` does needs the pool, as the flush does, and may fail as well.
#[test]
fn close_reports_failed_flush_first() {
    let Some(mut failing) = Failing::new("close_reports_failed_flush_first") else {
        return;
    };
    failing.fail();
    child!(closing_child).dir(&failing.disk.path("")).passes();
}

#[test]
fn closing_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let path = dir.join("data");
    let file = block_on(MemoryMappedFile::open_rw(path)).unwrap();
    block_on(write_what_is_lost(&file)).unwrap();
    let mut closing = Box::pin(file.clone().close());
    let (woken, waker) = parking::pair();
    let waker = waker.into();
    let first = closing.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(first.is_pending());
    assert!(woken.park_timeout(TIMEOUT), "the flush has not ended");
    let lost = cause(block_on(file.flush()));
    // In a forked child there is no pool.
    assert!(in_fork(|| {
        let closed = block_on(poll_once(&mut closing)).expect("the flush has ended");
        cause(closed) == lost
    }));
}
