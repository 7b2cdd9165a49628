//! Another process cuts the file: it opens again, `refresh` adopts its length, and growth ends.

use std::fs::{self, File};
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::mpsc::channel;
use std::task::Context;

use mmap_io::{MemoryMappedFile, MmapIoError};

use crate::common::{
    assert_waits, join_with_timeout, pattern, poll_once, wait_until, with_timeout, TIMEOUT,
};

/// Cuts a file as logrotate's `copytruncate` cuts a log.
fn cut(path: &Path, len: u64) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(len).unwrap();
}

fn assert_truncated<T>(result: mmap_io::Result<T>) {
    let result = result.map(drop);
    assert!(
        matches!(result, Err(MmapIoError::Truncated { .. })),
        "{result:?}"
    );
}

#[test]
fn cut_file_reopens_beside_view() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    join_with_timeout("opening a log that was cut", async move {
        fs::write(&path, pattern(65_536)).unwrap();
        let old = MemoryMappedFile::open_ro(&path).await.unwrap();
        let bytes = old.bytes(0, 4096).unwrap();
        let page = bytes.slice(..100);
        drop(old);

        cut(&path, 100);
        for _ in 0..2 {
            let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
            assert_eq!(reader.len(), 100);
            assert_eq!(reader.slice(0, 100).await.unwrap(), &pattern(100)[..]);
        }
        assert_eq!(MemoryMappedFile::open_rw(&path).await.unwrap().len(), 100);

        cut(&path, 0);
        assert_eq!(MemoryMappedFile::open_ro(&path).await.unwrap().len(), 0);
        for _ in 0..2 {
            let refused = MemoryMappedFile::open_rw(&path).await.map(drop);
            assert!(
                matches!(refused, Err(MmapIoError::ResizeFailed(_))),
                "{refused:?}"
            );
        }
        // The bytes that it adds would appear in the view.
        let mut created = Box::pin(MemoryMappedFile::open_or_create(&path, 5000));
        let spare = MemoryMappedFile::open_ro(&path).await.unwrap();
        assert!(poll_once(&mut created).await.is_none());
        for _ in 0..3 {
            assert_eq!(spare.refresh().await.unwrap(), 0);
            assert!(
                poll_once(&mut created).await.is_none(),
                "expected the operation to wait, but it completed"
            );
        }
        drop((bytes, page));
        let created = created.await.unwrap();
        assert_eq!((created.len(), spare.len()), (5000, 5000));
        created
            .update_region_async(4990, b"0123456789")
            .await
            .unwrap();
        assert_eq!(fs::read(&path).unwrap()[4990..], *b"0123456789");
    });
}

#[test]
fn refresh_adopts_changed_length() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    join_with_timeout("taking note of a length", async move {
        let file = MemoryMappedFile::create_rw(&path, 65_536).await.unwrap();
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        file.flush().await.unwrap();
        file.update_region(10, b"stays").await.unwrap();
        file.update_region(50_000, b"goes").await.unwrap();
        let view = reader.as_slice(40_000, 10).unwrap();

        cut(&path, 8192);
        assert_truncated(file.update_region(9000, b"x").await);
        assert_truncated(file.resize(70_000).await);
        assert_eq!(file.len(), 65_536);
        assert_eq!(reader.refresh().await.unwrap(), 8192);
        assert_eq!((file.len(), file.pending_bytes()), (8192, 5));

        // The error is reported once, to every waiter of that flush.
        assert_truncated(file.flush().await);
        file.flush().await.unwrap();
        file.update_region_async(20, b"durable").await.unwrap();
        assert!(file.last_flush_error().is_none());
        let outside = file.update_region(9000, b"x").await;
        assert!(
            matches!(outside, Err(MmapIoError::OutOfBounds { .. })),
            "{outside:?}"
        );

        // Growth that does not reach the bytes of the view does not wait for it.
        file.resize(16_384).await.unwrap();
        let mut resized = Box::pin(file.resize(65_536));
        let mut grown = Box::pin(file.grow_to(50_000));
        assert_waits(&file, 0, &mut resized).await;
        assert_waits(&file, 0, &mut grown).await;
        drop(resized);
        assert_waits(&file, 0, &mut grown).await;
        drop(view);
        assert_eq!(with_timeout(grown).await.unwrap(), 50_000);
        assert!(fs::read(&path).unwrap()[8192..] == [0; 50_000 - 8192]);

        // Another process appends.
        cut(&path, 100_000);
        assert_eq!(file.refresh().await.unwrap(), 100_000);
        assert_eq!(reader.as_slice(99_990, 10).unwrap(), [0; 10]);
    });
}

#[test]
fn growth_after_cut_adopts_regrown_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    join_with_timeout("growing after a cut", async move {
        let file = MemoryMappedFile::create_rw(&path, 8192).await.unwrap();
        let view = file.as_slice(0, 4096).unwrap();
        cut(&path, 100);
        assert_eq!(file.refresh().await.unwrap(), 100);
        let mut grown = Box::pin(file.grow_to(5000));
        assert!(poll_once(&mut grown).await.is_none());
        assert_eq!(file.refresh().await.unwrap(), 100);
        assert!(
            poll_once(&mut grown).await.is_none(),
            "expected the operation to wait, but it completed"
        );
        // Another process grows the file before the view is dropped.
        cut(&path, 20_000);
        assert_eq!(file.refresh().await.unwrap(), 20_000);
        drop(view);
        assert_eq!(grown.await.unwrap(), 20_000);
    });
}

#[test]
fn background_flush_keeps_truncation_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    join_with_timeout("flushing in the background", async move {
        let file = MemoryMappedFile::builder(&path)
            .size(65_536)
            .flush_policy(mmap_io::FlushPolicy::EveryMillis(1))
            .create()
            .await
            .unwrap();
        let quiet = MemoryMappedFile::open_rw(&path).await.unwrap();
        quiet.update_region(50_000, b"goes").await.unwrap();
        cut(&path, 8192);
        quiet.refresh().await.unwrap();
        let flushes = file.stats().flushes;
        file.update_region(0, b"in the background").await.unwrap();
        wait_until(&file, |stats| {
            stats.flushes > flushes && stats.pending_bytes == 0
        })
        .await;
        assert_truncated(quiet.update_region_async(0, b"durable").await);
        quiet.update_region_async(0, b"durable").await.unwrap();
    });
}

/// Polls a future once, and waits until it is woken. Returns `false` if it has ended in the poll.
fn poll_until_woken<T>(mut future: Pin<&mut (dyn Future<Output = T> + Send)>) -> bool {
    let (woken, waker) = parking::pair();
    let waker = waker.into();
    let first = future.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(first.is_ready() || woken.park_timeout(TIMEOUT));
    first.is_pending()
}

/// Has another process cut off bytes that are not durable.
async fn lose_a_write(file: &MemoryMappedFile, path: &Path) {
    file.resize(65_536).await.unwrap();
    file.flush().await.unwrap();
    file.update_region(50_000, b"goes").await.unwrap();
    cut(path, 8192);
    assert_eq!(file.refresh().await.unwrap(), 8192);
}

#[test]
fn future_that_is_dropped_takes_no_truncation_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    join_with_timeout("dropping what would tell of a cut", async move {
        let file = MemoryMappedFile::create_rw(&path, 65_536).await.unwrap();
        for writes in [false, true] {
            loop {
                lose_a_write(&file, &path).await;
                let has_waited = match writes {
                    false => poll_until_woken(Box::pin(file.flush()).as_mut()),
                    true => poll_until_woken(Box::pin(file.update_region_async(0, b"x")).as_mut()),
                };
                if has_waited {
                    break;
                }
                // The pool was so fast that the poll has taken the error.
            }
            assert_truncated(file.flush().await);
            file.flush().await.unwrap();
        }
    });
}

/// It has the error of its flush, and waits for the pool to close the file.
#[test]
fn close_that_is_dropped_takes_no_truncation_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    join_with_timeout("dropping a close", async move {
        let file = MemoryMappedFile::create_rw(&path, 65_536).await.unwrap();
        loop {
            lose_a_write(&file, &path).await;
            let mut closing = Box::pin(file.clone().close());
            if poll_until_woken(closing.as_mut()) && poll_once(&mut closing).await.is_none() {
                break;
            }
            // The pool was so fast that the close has told of it, or may have.
            drop(closing);
            let _ = file.flush().await;
        }
        assert_truncated(file.flush().await);
        file.flush().await.unwrap();
    });
}

/// The file is as long again when the view ends, or when a flush covers its stores.
#[test]
fn stores_through_view_are_lost_in_file_that_grows_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    join_with_timeout("storing before a cut", async move {
        let file = MemoryMappedFile::create_rw(&path, 65_536).await.unwrap();
        // It lives on, and no cut reaches it.
        let mut spare = file.as_slice_mut(0, 4).await.unwrap();
        for way in 0..4 {
            file.flush().await.unwrap();
            let mut view = file.as_slice_mut(40_000, 4).await.unwrap();
            view.copy_from_slice(b"lost");
            for len in [8192, 65_536] {
                cut(&path, len);
                assert_eq!(file.refresh().await.unwrap(), len);
            }
            match way {
                0 => {
                    drop(view);
                    assert_truncated(file.flush().await);
                }
                1 => assert_truncated(view.commit().await),
                _ => {
                    assert_truncated(file.flush().await);
                    if way == 3 {
                        view.copy_from_slice(b"here");
                    }
                    // It may have been stored to in between.
                    assert_truncated(view.commit().await);
                    if way == 3 {
                        assert_eq!(fs::read(&path).unwrap()[40_000..40_004], *b"here");
                    }
                }
            }
            // The next view has lost nothing.
            let mut view = file.as_slice_mut(40_000, 4).await.unwrap();
            view.copy_from_slice(b"data");
            view.commit().await.unwrap();
            assert_eq!(fs::read(&path).unwrap()[40_000..40_004], *b"data");
            spare[0] = way;
        }
        drop(spare);
        file.flush().await.unwrap();
    });
}

/// The address of the bytes is given without a lease, so that a cut may come at any moment.
#[test]
fn address_beside_own_cuts_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    join_with_timeout("cutting while the address is asked for", async move {
        let file = MemoryMappedFile::create_rw(&path, 8192).await.unwrap();
        let asking = file.clone();
        let (stop, stopped) = channel::<()>();
        let thread = std::thread::spawn(move || {
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                // SAFETY: nothing is accessed.
                unsafe { asking.as_mut_ptr() }.unwrap();
            }
        });
        for round in 0..2000 {
            file.resize(8192).await.unwrap();
            file.resize(4096).await.unwrap();
            if round % 50 == 0 {
                file.flush().await.unwrap();
            }
        }
        drop(stop);
        thread.join().unwrap();
        file.flush().await.unwrap();
        // Nothing behind the end is dirty, which another process could cut off.
        assert_eq!(file.pending_bytes(), 0);
    });
}

#[test]
fn stores_through_view_of_cut_bytes_are_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    join_with_timeout("storing behind a cut", async move {
        for way in 0..5 {
            let file = MemoryMappedFile::open_or_create(&path, 8192).await.unwrap();
            file.resize(8192).await.unwrap();
            file.flush().await.unwrap();
            let stored = match way {
                #[cfg(feature = "atomic")]
                0 | 1 => {
                    let view = file.atomic_u64(4096).unwrap();
                    cut(&path, 4100);
                    assert_eq!(file.refresh().await.unwrap(), 4100);
                    view.store(7, std::sync::atomic::Ordering::Relaxed);
                    drop(view);
                    file.flush().await
                }
                _ => {
                    let mut view = file.as_slice_mut(4000, 200).await.unwrap();
                    // In the same page, so that the stores raise no signal.
                    cut(&path, 4100);
                    assert_eq!(file.refresh().await.unwrap(), 4100);
                    view.fill(7);
                    match way {
                        2 => view.commit().await,
                        _ => {
                            drop(view);
                            file.flush_range(4000, 10).await
                        }
                    }
                }
            };
            assert_truncated(stored);
            // It is told once, and what is left was written.
            file.flush().await.unwrap();
            assert_eq!(file.pending_bytes(), 0);
            if way > 1 {
                assert_eq!(file.as_slice(4000, 100).unwrap(), [7; 100]);
            }
        }
    });
}

/// What counts as dirty may be wider than what was written.
#[test]
fn cut_behind_all_writes_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    join_with_timeout("cutting behind all writes", async move {
        for refreshes in [false, true] {
            let file = MemoryMappedFile::create_rw(&path, 12_000).await.unwrap();
            let ranges: Vec<(u64, &[u8])> = (0..4097).map(|at| (2 * at, &b"x"[..])).collect();
            file.update_regions(&ranges).await.unwrap();
            cut(&path, 11_000);
            if refreshes {
                assert_eq!(file.refresh().await.unwrap(), 11_000);
            }
            file.flush().await.unwrap();
            assert!(file.last_flush_error().is_none());
            file.close().await.unwrap();
        }
    });
}

/// The length that another process has given a file need not be durable.
#[test]
fn adopted_length_is_flushed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    join_with_timeout("adopting a length", async move {
        let file = MemoryMappedFile::create_rw(&path, 4096).await.unwrap();
        for step in 1..=4 {
            file.flush().await.unwrap();
            let len = 4096 + step * 100;
            cut(&path, len);
            match step {
                1 => file.resize(len).await.unwrap(),
                2 => drop(file.grow_to(1).await.unwrap()),
                3 => drop(file.refresh().await.unwrap()),
                _ => drop(MemoryMappedFile::open_ro(&path).await.unwrap()),
            }
            assert_eq!(file.len(), len);
            let flushes = file.stats().flushes;
            file.flush().await.unwrap();
            assert_eq!(file.stats().flushes, flushes + 1, "step {step}");
        }
    });
}

/// The slices that a handle has lent reach past the end of the file by now.
#[test]
fn borrowed_slices_outlive_a_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    join_with_timeout("reading what is left of a file", async move {
        fs::write(&path, pattern(100)).unwrap();
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let writer = MemoryMappedFile::open_rw(&path).await.unwrap();
        let old = reader.as_slice_bytes(10, 90).unwrap();
        cut(&path, 50);
        assert_eq!(writer.refresh().await.unwrap(), 50);
        assert_eq!(reader.as_slice_bytes(0, 20).unwrap(), &pattern(20)[..]);
        assert_eq!(reader.as_slice_bytes(0, 50).unwrap(), &pattern(50)[..]);
        for (offset, len) in [(40, 20), (50, 1), (95, 10)] {
            let refused = reader.as_slice_bytes(offset, len).unwrap_err();
            assert!(
                matches!(
                    refused,
                    MmapIoError::OutOfBounds { offset: at, len: of, total: 50 }
                        if (at, of) == (offset, len)
                ),
                "{refused:?}"
            );
        }
        // One lease is left, of all that was lent.
        assert_eq!(writer.stats().views, 1);
        for at in [5, 45] {
            assert!(!writer.try_update_region(at, b"x").await.unwrap());
        }
        let mut grown = Box::pin(writer.grow_to(80));
        assert!(poll_once(&mut grown).await.is_none());
        assert_eq!(writer.refresh().await.unwrap(), 50);
        assert!(poll_once(&mut grown).await.is_none());
        assert_eq!(old[..40], pattern(50)[10..]);
        drop(reader);
        assert_eq!(with_timeout(grown).await.unwrap(), 80);
        writer.update_region(5, b"x").await.unwrap();
    });
}
