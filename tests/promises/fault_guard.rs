//! The fault guard: a page that the system cannot provide under a view becomes zeroes, and an error
//! of every later operation, where without the guard the process ends.
//!
//! Each test runs in a process of its own, since a guard that fails ends it.

use std::fs::{self, File};
use std::hint::black_box;
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use bytes::Bytes;
use mmap_io::{FlushPolicy, MemoryMappedFile, MmapIoError};

use crate::common::child::{abort_if_stuck, child, Child};
use crate::common::disk::{truncate, Disk, MIB};
use crate::common::fuse::{with_fuse, READ};
use crate::common::{block_on, pattern, patterned, poll_once, wait_until, with_timeout};
use crate::refused_calls::refuse_populating;

#[cfg(all(feature = "advise", feature = "locking"))]
mod remaps;
mod replaced;
mod signals;

const PAGE: u64 = 4096;

/// Runs the body of a test, of which `this` is the child, in a process of its own.
fn in_a_child(this: Child, body: impl FnOnce(&Path)) {
    const IS_CHILD: &str = "MMAP_IO_TEST_FAULTS";
    if std::env::var_os(IS_CHILD).is_none() {
        this.env(IS_CHILD, "1").passes();
        return;
    }
    abort_if_stuck();
    let dir = tempfile::tempdir().unwrap();
    body(dir.path());
}

#[track_caller]
fn assert_faulted<T>(result: mmap_io::Result<T>, at: u64) {
    match result.map(drop) {
        Err(MmapIoError::Faulted { offset }) => assert_eq!(offset, at),
        other => panic!("{other:?}"),
    }
}

/// Expects every operation on the file to report the lost page.
async fn assert_all_faulted(file: &MemoryMappedFile, dir: &Path, at: u64) {
    assert_faulted(file.as_slice(0, 1), at);
    assert_faulted(file.try_as_slice(0, 1), at);
    assert_faulted(file.bytes(0, 1), at);
    assert_faulted(file.slice(0, 1).await, at);
    assert_faulted(file.slices(&[(0, 1)]).await, at);
    assert_faulted(file.read_bytes(0, 1).await, at);
    assert_faulted(file.read_into(0, &mut [0]).await, at);
    assert_faulted(file.touch_pages().await, at);
    assert_faulted(file.prefetch_range(0, 1).await, at);
    assert_faulted(file.flush().await, at);
    assert_faulted(file.flush_range(0, 1).await, at);
    assert_faulted(file.evict(0, 1).await, at);
    assert_faulted(file.copy_to(dir.join("copy")).await, at);
    // Bounds and zero lengths come first.
    file.slice(0, 0).await.unwrap();
    let outside = file.as_slice(1 << 40, 1).map(drop);
    assert!(matches!(outside, Err(MmapIoError::OutOfBounds { .. })));
    // SAFETY: nothing is read through the pointer.
    assert!(!unsafe { file.as_ptr() }.is_null());
}

async fn assert_all_writes_faulted(file: &MemoryMappedFile, at: u64) {
    assert_faulted(file.update_region(0, b"x").await, at);
    assert_faulted(file.update_region_async(0, b"x").await, at);
    assert_faulted(file.update_regions(&[(0, b"x"), (9, b"y")]).await, at);
    assert_faulted(file.try_update_region(0, b"x").await, at);
    assert_faulted(file.write_bytes(0, vec![1; 5000].into()).await, at);
    assert_faulted(file.as_slice_mut(0, 1).await, at);
    assert_faulted(file.try_as_slice_mut(0, 1), at);
    assert_faulted(file.append(b"x").await, at);
    assert_faulted(file.append_at(file.len(), b"x").await, at);
    let failed_writes = file.stats().write_errors;
    assert_faulted(file.resize(1).await, at);
    assert_faulted(file.grow_to(1 << 24).await, at);
    assert_eq!(file.stats().write_errors, failed_writes);
    assert_faulted(file.schedule_flush().await, at);
    // SAFETY: nothing is stored through the pointer.
    assert_faulted(unsafe { file.as_mut_ptr() }, at);
}

#[test]
fn truncated_view_reads_zeroes() {
    in_a_child(child!(truncated_view_reads_zeroes), |dir| {
        block_on(async {
            let (path, file) = patterned(dir, 100_000).await;
            let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
            let old = reader.bytes(0, 100_000).unwrap();
            let slice = file.as_slice(50_000, 100).unwrap();
            assert_eq!(slice, &pattern(50_100)[50_000..]);
            truncate(&path, 5000);
            assert_eq!(slice, [0; 100]);
            drop(slice);
            assert!(old[8192..].iter().all(|byte| *byte == 0));
            for handle in [&file, &reader] {
                assert_all_faulted(handle, dir, 8192).await;
            }
            assert_all_writes_faulted(&file, 8192).await;
            assert_eq!(file.metadata().await.unwrap().len(), 5000);
            // What was not cut off is there, and can be used again after `refresh`.
            assert_eq!(old[..5000], pattern(5000));
            assert_eq!(reader.refresh().await.unwrap(), 5000);
            for handle in [&file, &reader] {
                assert_eq!(handle.slice(0, 5000).await.unwrap(), &pattern(5000)[..]);
            }
            file.flush().await.unwrap();
            file.close().await.unwrap();
        });
    });
}

/// A log that is copied and then cut to nothing, beside a response that sends the old content.
#[test]
fn rotated_log_grows_beside_bytes() {
    in_a_child(child!(rotated_log_grows_beside_bytes), |dir| {
        block_on(async {
            for opens_again in [false, true] {
                let (path, mut log) = patterned(dir, 100_000).await;
                let old = log.bytes(0, 100_000).unwrap();
                truncate(&path, 0);
                assert_eq!(old[0], 0);
                assert_faulted(log.append(b"x").await, 0);
                if opens_again {
                    let refused = MemoryMappedFile::open_rw(&path).await.map(drop);
                    assert!(
                        matches!(refused, Err(MmapIoError::ResizeFailed(_))),
                        "{refused:?}"
                    );
                    log = MemoryMappedFile::open_or_create(&path, 4).await.unwrap();
                    assert_eq!(log.append(b"anew").await.unwrap(), 4);
                } else {
                    assert_eq!(log.refresh().await.unwrap(), 0);
                    assert_eq!(log.append_async(b"anew").await.unwrap(), 0);
                }
                let end = log.append_async(&[7; 200_000]).await.unwrap();
                assert_eq!(log.slice(end - 4, 6).await.unwrap(), b"anew\x07\x07");
                assert_eq!(
                    fs::read(&path).unwrap()[end as usize - 4..][..6],
                    *b"anew\x07\x07"
                );
                assert!(
                    old.iter().all(|byte| *byte == 0),
                    "the view shows new bytes"
                );
                let new = log.bytes(100_000, 10).unwrap();
                drop(old);
                assert_eq!(new, [7; 10][..]);
                log.flush().await.unwrap();
            }
        });
    });
}

/// An append that waited for a view of cut bytes, which was touched after that.
#[test]
fn blocked_append_goes_on_after_a_fault() {
    in_a_child(child!(blocked_append_goes_on_after_a_fault), |dir| {
        block_on(async {
            let (path, log) = patterned(dir, 4096).await;
            let old = log.bytes(0, 4096).unwrap();
            truncate(&path, 0);
            assert_eq!(log.refresh().await.unwrap(), 0);
            let mut append = Box::pin(log.append(b"x"));
            assert!(poll_once(&mut append).await.is_none());
            wait_until(&log, |stats| stats.oldest_blocked.is_some()).await;
            assert_eq!(old[0], 0);
            // The append may go first.
            assert!(log.refresh().await.unwrap() <= 1);
            assert_eq!(with_timeout(append).await.unwrap(), 0);
            drop(old);
            assert_eq!(log.append(b"y").await.unwrap(), 1);
        });
    });
}

#[test]
fn background_flush_waits_for_the_next_map() {
    in_a_child(child!(background_flush_waits_for_the_next_map), |dir| {
        block_on(async {
            let path = dir.join("data");
            let file = MemoryMappedFile::builder(&path)
                .size(100_000)
                .flush_policy(FlushPolicy::EveryMillis(1))
                .create()
                .await
                .unwrap();
            // The file is faulted when the alarm of the write rings.
            let view = file.bytes(50_000, 1).unwrap();
            let mut slice = file.as_slice_mut(0, 1).await.unwrap();
            slice[0] = 7;
            truncate(&path, 5000);
            assert_eq!(view[0], 0);
            drop((view, slice));
            assert_faulted(file.flush().await, 8192);
            let quiet = MemoryMappedFile::builder(dir.join("other"));
            let quiet = quiet.flush_policy(FlushPolicy::EveryMillis(1)).size(1);
            let quiet = quiet.create().await.unwrap();
            quiet.update_region(0, b"x").await.unwrap();
            // It rings later than that of the faulted file.
            wait_until(&quiet, |stats| stats.pending_bytes == 0).await;
            assert_eq!(file.pending_bytes(), 1);
            assert_eq!(file.refresh().await.unwrap(), 5000);
            wait_until(&file, |stats| stats.pending_bytes == 0).await;
        });
    });
}

#[test]
fn second_cut_faults_again() {
    in_a_child(child!(second_cut_faults_again), |dir| {
        block_on(async {
            let (path, file) = patterned(dir, 100_000).await;
            let oldest = file.bytes(0, 100_000).unwrap();
            truncate(&path, 80_000);
            assert_eq!(oldest[90_000], 0);
            assert_eq!(file.refresh().await.unwrap(), 80_000);
            let newer = file.bytes(0, 80_000).unwrap();
            truncate(&path, 40_000);
            // The old map loses more, but is no longer that of the file.
            assert_eq!(oldest[60_000], 0);
            assert_eq!(file.as_slice(100, 5).unwrap(), &pattern(105)[100..]);
            assert_eq!(newer[60_000], 0);
            assert_faulted(file.slice(0, 1).await, 40_960);
            assert_eq!(file.refresh().await.unwrap(), 40_000);
            assert_eq!(file.slice(100, 5).await.unwrap(), &pattern(105)[100..]);
        });
    });
}

/// What was stored to the zeroes is lost, and the next durable operation says so.
#[test]
fn swallowed_stores_are_reported() {
    in_a_child(child!(swallowed_stores_are_reported), |dir| {
        block_on(async {
            for grows_again in [false, true] {
                let (path, file) = patterned(dir, 100_000).await;
                let mut view = file.as_slice_mut(50_000, 100).await.unwrap();
                truncate(&path, 5000);
                view.fill(9);
                assert_eq!(view[..], [9; 100]);
                if grows_again {
                    truncate(&path, 100_000);
                }
                // The view would write beside the file.
                assert_faulted(file.refresh().await, 8192);
                assert_faulted(view.commit().await, 8192);
                let len = if grows_again { 100_000 } else { 5000 };
                assert_eq!(file.refresh().await.unwrap(), len);
                // Once.
                assert_faulted(file.update_region_async(0, b"x").await, 49_152);
                file.update_region_async(0, b"y").await.unwrap();
                assert_eq!(fs::read(&path).unwrap()[0], b'y');
                file.close().await.unwrap();
            }
        });
    });
}

/// The map that has swallowed the store is outgrown when the loss is noticed.
#[test]
fn store_to_an_outgrown_map_is_reported() {
    in_a_child(child!(store_to_an_outgrown_map_is_reported), |dir| {
        block_on(async {
            for opens_again in [false, true] {
                let (path, file) = patterned(dir, 100_000).await;
                let mut view = file.as_slice_mut(50_000, 100).await.unwrap();
                file.grow_to(MIB + 1).await.unwrap();
                truncate(&path, 0);
                view[0] = 7;
                truncate(&path, 3 * MIB);
                drop(view);
                match opens_again {
                    false => assert_eq!(file.refresh().await.unwrap(), 3 * MIB),
                    true => drop(MemoryMappedFile::open_rw(&path).await.unwrap()),
                }
                assert_faulted(file.flush().await, 49_152);
                file.update_region_async(0, b"x").await.unwrap();
                assert_eq!(fs::read(&path).unwrap()[0], b'x');
                file.close().await.unwrap();
            }
        });
    });
}

#[test]
fn copy_of_lost_bytes_is_an_error() {
    in_a_child(child!(copy_of_lost_bytes_is_an_error), |dir| {
        block_on(async {
            let (path, source) = patterned(dir, 100_000).await;
            let bytes = source.bytes(50_000, 100).unwrap();
            let kept = source.bytes(100, 100).unwrap();
            truncate(&path, 5000);
            assert_eq!(bytes[0], 0);
            truncate(&path, 100_000);
            let to = dir.join("to");
            let file = mmap_io::create_mmap(&to, 10_000).await.unwrap();
            for _ in 0..2 {
                assert_faulted(file.write_bytes(0, bytes.clone()).await, 8192);
                assert_faulted(mmap_io::replace(dir.join("new"), bytes.clone()).await, 8192);
                source.refresh().await.unwrap();
            }
            file.write_bytes(0, kept).await.unwrap();
            assert_eq!(file.as_slice(0, 100).unwrap(), &pattern(200)[100..]);
        });
    });
}

#[cfg(feature = "iterator")]
#[test]
fn chunk_that_loses_its_page_fails() {
    in_a_child(child!(chunk_that_loses_its_page_fails), |dir| {
        block_on(async {
            let (path, file) = patterned(dir, 100_000).await;
            let changed = file.chunks_mut(10_000).for_each_mut(|offset, chunk| {
                if offset == 20_000 {
                    truncate(&path, 0);
                }
                chunk.fill(1);
                Ok(())
            });
            assert_faulted(changed.await, 0);
        });
    });
}

/// A copy that meets a lost page ends in an error, and not in zeroes.
#[cfg(feature = "iterator")]
#[test]
fn copy_that_meets_a_cut_fails() {
    in_a_child(child!(copy_that_meets_a_cut_fails), |dir| {
        block_on(async {
            let (path, file) = patterned(dir, 100_000).await;
            let mut copies = file.chunks_owned(50_000);
            truncate(&path, 60_000);
            assert_eq!(copies.next().unwrap().unwrap(), pattern(50_000));
            assert_faulted(copies.next().unwrap(), 61_440);
            assert_faulted(file.chunks_owned(10).next().unwrap(), 61_440);
        });
    });
}

/// On a kernel that cannot populate pages, operations read them through the descriptor, so that a
/// failed read is an error of one operation, and no page is lost.
#[test]
fn old_kernels_need_no_guard() {
    with_fuse(
        child!(old_kernels_need_no_guard),
        &[("data", 1 << 20), ("uneven", 100)],
        |fuse| {
            refuse_populating();
            block_on(async {
                let path = fuse.path("data");
                let file = MemoryMappedFile::open_rw(&path).await.unwrap();
                assert_eq!(file.slice(0, 100).await.unwrap(), &pattern(100)[..]);
                fuse.refuse(READ, libc::EIO);
                let at = 900 << 10;
                let refused = file.update_region(at + 5, b"part of a page").await;
                assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EIO));
                let refused = file.slice(at, 100).await;
                assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EIO));
                // Growth looks at the page in which the file ends.
                let uneven = MemoryMappedFile::open_rw(fuse.path("uneven"))
                    .await
                    .unwrap();
                let refused = uneven.grow_to(200).await;
                assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EIO));
                assert_eq!(file.slice(0, 100).await.unwrap(), &pattern(100)[..]);
            });
        },
    );
}

#[test]
fn failed_read_sticks_to_the_file() {
    let this = child!(failed_read_sticks_to_the_file);
    with_fuse(this, &[("data", 1 << 20)], |fuse| {
        block_on(async {
            let path = fuse.path("data");
            let file = MemoryMappedFile::open_ro(&path).await.unwrap();
            assert_eq!(file.slice(0, 100).await.unwrap(), &pattern(100)[..]);
            let first = file.bytes(0, 100).unwrap();
            let at = 900 << 10;
            let slice = file.as_slice(at + 5, 10).unwrap();
            fuse.refuse(READ, libc::EIO);
            assert_eq!(slice, [0; 10]);
            drop(slice);
            fuse.refuse(READ, 0);
            assert_faulted(file.slice(0, 100).await, at);
            assert_faulted(file.refresh().await, at);
            assert_faulted(MemoryMappedFile::open_ro(&path).await, at);
            // The other pages stay as they are.
            assert_eq!(first, pattern(100));
            drop((first, file));
            let again = MemoryMappedFile::open_ro(&path).await.unwrap();
            let slice = again.slice(at + 5, 10).await.unwrap();
            assert_eq!(slice, &pattern(1 << 20)[at as usize + 5..][..10]);
        });
    });
}

fn hole_on_a_full(disk: Disk) {
    let path = disk.path("data");
    block_on(async {
        let file = MemoryMappedFile::create_rw(&path, 10 * MIB).await.unwrap();
        let data = pattern(4096);
        file.update_region_async(0, &data).await.unwrap();
        let view = file.bytes(0, PAGE).unwrap();
        // SAFETY: no operation and no view uses the bytes that are stored to below.
        let bytes = unsafe { file.as_mut_ptr() }.unwrap();
        file.flush().await.unwrap();
        let filler = disk.fill();
        for page in [1000, 1002, 700, 2000] {
            // SAFETY: as above; the address is inside the file.
            let byte = unsafe { bytes.add(page * PAGE as usize) };
            // SAFETY: as above.
            unsafe { byte.write_volatile(1) };
        }
        let at = 700 * PAGE;
        assert_all_faulted(&file, Path::new("/nowhere"), at).await;
        assert_all_writes_faulted(&file, at).await;
        assert_eq!(view, data);
        // The stores are lost, also when there is room again.
        disk.free(&filler);
        assert_faulted(file.refresh().await, at);
        assert_faulted(MemoryMappedFile::open_rw(&path).await, at);
        assert_faulted(file.close().await, at);
        drop(view);
        let again = MemoryMappedFile::open_rw(&path).await.unwrap();
        again.update_region_async(at, b"room").await.unwrap();
        assert_eq!(again.slice(0, PAGE).await.unwrap(), &data[..]);
    });
}

#[test]
fn store_to_hole_on_full_tmpfs() {
    in_a_child(child!(store_to_hole_on_full_tmpfs), |_| {
        if let Some(disk) = Disk::tmpfs("store_to_hole_on_full_tmpfs", MIB) {
            hole_on_a_full(disk);
        }
    });
}

#[test]
fn store_to_hole_without_populate() {
    in_a_child(child!(store_to_hole_without_populate), |_| {
        if let Some(disk) = Disk::tmpfs("store_to_hole_without_populate", MIB) {
            refuse_populating();
            hole_on_a_full(disk);
        }
    });
}

#[test]
fn store_to_hole_on_full_ext4() {
    in_a_child(child!(store_to_hole_on_full_ext4), |dir| {
        let image = dir.join("image");
        if let Some(disk) = Disk::ext4("store_to_hole_on_full_ext4", &image, 4 * MIB) {
            hole_on_a_full(disk);
        }
    });
}

/// 16 threads lose pages at once, while maps come and go.
#[test]
fn threads_fault_at_once() {
    const THREADS: usize = 16;
    const ROUNDS: usize = 5;
    in_a_child(child!(threads_fault_at_once), |dir| {
        let shared = dir.join("shared");
        fs::write(&shared, pattern(1 << 20)).unwrap();
        let start = Barrier::new(THREADS);
        let own_file = |number: usize| {
            let path = dir.join(format!("file{number}"));
            block_on(async {
                fs::write(&path, pattern(100_000)).unwrap();
                let file = MemoryMappedFile::open_ro(&path).await.unwrap();
                let view = file.bytes(0, 100_000).unwrap();
                let cut = File::options().write(true).open(&path).unwrap();
                cut.set_len(4096).unwrap();
                assert_eq!(view[..4096], pattern(4096));
                assert_eq!(black_box(view[4096 * (1 + number % 20)]), 0);
                assert_faulted(file.slice(0, 1).await, 4096);
                assert_faulted(file.as_slice(0, 1), 4096);
                if number % 2 == 0 {
                    assert_eq!(file.refresh().await.unwrap(), 4096);
                    assert_eq!(file.slice(0, 4096).await.unwrap(), &view[..4096]);
                }
            });
        };
        let shared_file = block_on(MemoryMappedFile::open_ro(&shared)).unwrap();
        let view = shared_file.bytes(0, 1 << 20).unwrap();
        File::options()
            .write(true)
            .open(&shared)
            .unwrap()
            .set_len(4096)
            .unwrap();
        thread::scope(|scope| {
            for number in 0..THREADS {
                let (start, own_file, view, shared_file) = (&start, &own_file, &view, &shared_file);
                scope.spawn(move || {
                    start.wait();
                    for page in 1..256 {
                        assert_eq!(black_box(view[page * 4096]), 0);
                    }
                    assert_faulted(shared_file.as_slice(0, 1), 4096);
                    for _ in 0..ROUNDS {
                        own_file(number);
                    }
                });
            }
        });
        assert_eq!(view[..4096], pattern(4096));
    });
}

/// 16 threads touch pages that cannot be read, all the same ones.
#[test]
fn threads_meet_failed_reads_at_once() {
    const THREADS: usize = 16;
    let this = child!(threads_meet_failed_reads_at_once);
    with_fuse(this, &[("data", 4 << 20)], |fuse| {
        let file = block_on(MemoryMappedFile::open_ro(fuse.path("data"))).unwrap();
        let view = file.bytes(0, 4 << 20).unwrap();
        fuse.refuse(READ, libc::EIO);
        let start = Barrier::new(THREADS);
        thread::scope(|threads| {
            for _ in 0..THREADS {
                threads.spawn(|| {
                    start.wait();
                    for page in 900..910 {
                        assert_eq!(black_box(view[page * 4096]), 0);
                    }
                    assert_faulted(file.as_slice(0, 1), 900 * 4096);
                });
            }
        });
    });
}

#[test]
fn background_flush_meets_lost_pages() {
    in_a_child(child!(background_flush_meets_lost_pages), |dir| {
        block_on(async {
            let path = dir.join("data");
            let builder = MemoryMappedFile::builder(&path).size(100_000);
            let policy = FlushPolicy::EveryMillis(1);
            let file = builder.flush_policy(policy).create().await.unwrap();
            let view: Bytes = file.bytes(50_000, 10).unwrap();
            truncate(&path, 4096);
            assert_eq!(view[0], 0);
            assert_faulted(file.update_region(0, b"x").await, 4096);
            file.refresh().await.unwrap();
            file.update_region(0, b"y").await.unwrap();
            wait_until(&file, |stats| stats.pending_bytes == 0).await;
            assert!(file.last_flush_error().is_none());
        });
    });
}

#[cfg(feature = "cow")]
#[test]
fn private_pages_are_lost_for_good() {
    in_a_child(child!(private_pages_are_lost_for_good), |dir| {
        block_on(async {
            let (path, file) = patterned(dir, 100_000).await;
            let private = MemoryMappedFile::open_cow_writable(&path).await.unwrap();
            private.update_region(0, b"private").await.unwrap();
            let view = private.bytes(0, 100_000).unwrap();
            truncate(&path, 50_000);
            assert_eq!(view[..7], *b"private");
            assert_eq!(view[60_000], 0);
            assert_faulted(private.as_slice(0, 7), 53_248);
            assert_faulted(private.update_region(0, b"x").await, 53_248);
            assert_faulted(private.flush().await, 53_248);
            assert_faulted(private.refresh().await, 53_248);
            // The map of the file has lost nothing, and `refresh` has adopted its length.
            assert_eq!(file.slice(0, 100).await.unwrap(), &pattern(100)[..]);
            let again = MemoryMappedFile::open_cow_writable(&path).await.unwrap();
            again.update_region(0, b"anew").await.unwrap();
            assert_eq!(view[..7], *b"private");
        });
    });
}

#[cfg(feature = "atomic")]
#[test]
fn atomic_view_holds_off_a_new_map() {
    use std::sync::atomic::Ordering;
    in_a_child(child!(atomic_view_holds_off_a_new_map), |dir| {
        block_on(async {
            let (path, file) = patterned(dir, 100_000).await;
            let word = file.atomic_u64(50_000).unwrap();
            truncate(&path, 4096);
            word.store(1, Ordering::Relaxed);
            assert_faulted(file.atomic_u32(0), 4096);
            assert_faulted(file.refresh().await, 4096);
            drop(word);
            assert_eq!(file.refresh().await.unwrap(), 4096);
            assert_faulted(file.flush().await, 49_152);
            file.flush().await.unwrap();
        });
    });
}
