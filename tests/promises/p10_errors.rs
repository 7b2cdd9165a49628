//! Errors, not signals: a full disk, a file that somebody else has truncated, a disk that fails. And
//! a flush that failed is never forgotten, which takes a failing disk as well.

#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use futures_lite::future::{poll_once, yield_now, zip};
use mmap_io::{FlushPolicy, MemoryMappedFile, MmapIoError};

use crate::common::disk::{assert_full, truncate, Disk, MIB};
use crate::common::on_a_disk;
use crate::common::{block_on, is_quiet, pattern, patterned, skip, wait_until, TIMEOUT};

#[track_caller]
fn assert_truncated<T>(result: mmap_io::Result<T>, told: (u64, u64, u64)) {
    match result.map(drop).unwrap_err() {
        MmapIoError::Truncated {
            offset,
            len,
            file_len,
        } => assert_eq!((offset, len, file_len), told),
        error => panic!("{error:?}"),
    }
}

#[test]
fn full_tmpfs_found_before_first_byte() {
    if let Some(disk) = Disk::tmpfs("full_tmpfs_found_before_first_byte", MIB) {
        block_on(everything_on_a_full(disk));
    }
}

#[test]
fn full_ext4_found_before_first_byte() {
    let dir = tempfile::tempdir().unwrap();
    if let Some(disk) = Disk::ext4(
        "full_ext4_found_before_first_byte",
        &dir.path().join("image"),
        4 * MIB,
    ) {
        block_on(everything_on_a_full(disk));
    }
}

async fn everything_on_a_full(disk: Disk) {
    let path = disk.path("data");
    let file = MemoryMappedFile::create_rw(&path, 10 * MIB).await.unwrap();
    let mut content = vec![0; 10 << 20];
    content[..4096].copy_from_slice(&pattern(4096));
    file.update_region_async(0, &content[..4096]).await.unwrap();
    let roomy = MemoryMappedFile::builder(disk.path("roomy")).size(5000);
    let roomy = roomy.preallocate(true).create().await.unwrap();
    File::create(disk.path("empty")).unwrap();
    let filler = disk.fill();

    assert_full(file.update_region(4000, &[9; 5000]).await);
    assert_full(file.update_region_async(MIB, b"x").await);
    let first_is_fine: [(u64, &[u8]); 2] = [(0, b"x"), (2 * MIB, b"y")];
    assert_full(file.update_regions(&first_is_fine).await);
    assert_full(file.update_regions_async(&first_is_fine).await);
    let data = || vec![9; 100].into();
    assert_full(file.write_bytes(4090, data()).await);
    assert_full(file.write_bytes_async(4090, data()).await);
    assert_full(file.try_update_region(5000, b"x").await);
    wait_until(&file, |stats| stats.write_errors == 7).await;
    assert_full(file.as_slice_mut(4090, 10).await);
    assert_full(mmap_io::write_mmap(&path, 5000, b"x").await);
    assert_full(file.copy_to(disk.path("copy")).await);
    assert!(!disk.path("copy").exists());

    // Where blocks are reserved, that is what fails.
    let reserved = |name| {
        MemoryMappedFile::builder(disk.path(name))
            .size(100_000)
            .preallocate(true)
    };
    for refused in [
        reserved("new").create().await,
        reserved("new").create_new().await,
        reserved("new").open_or_create().await,
        reserved("empty").open_or_create().await,
    ] {
        assert!(
            matches!(refused, Err(MmapIoError::ResizeFailed(_))),
            "{refused:?}"
        );
        assert_full(refused);
        assert!(!disk.path("new").exists());
        assert_eq!(fs::metadata(disk.path("empty")).unwrap().len(), 0);
    }
    let grown = roomy.resize(5 * MIB).await;
    assert!(
        matches!(grown, Err(MmapIoError::ResizeFailed(_))),
        "{grown:?}"
    );
    assert_full(grown);
    let roomy_len = fs::metadata(disk.path("roomy")).unwrap().len();
    assert_eq!((roomy.len(), roomy_len), (5000, 5000));
    roomy.update_region_async(4990, b"reserved").await.unwrap();

    // Nothing has changed, and what is there can be read and written.
    assert!(fs::read(&path).unwrap() == content);
    assert_eq!(file.slice(0, 4096).await.unwrap(), &content[..4096]);
    // A tmpfs takes a page for a hole that is only read.
    match file.slice(5000, 10).await {
        Ok(hole) => assert_eq!(hole, [0; 10]),
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error:?}"),
    }
    assert_eq!(file.pending_bytes(), 0);
    // Also beside one that fails.
    let (fits, too_much) = zip(
        file.update_region(0, b"still"),
        file.update_region(MIB, b"x"),
    )
    .await;
    fits.unwrap();
    assert_full(too_much);
    assert_eq!(file.as_slice(0, 5).unwrap(), b"still");
    file.flush().await.unwrap();
    wait_until(&file, is_quiet).await;
    // With room again, so can the rest.
    fs::remove_file(filler).unwrap();
    file.update_region_async(MIB, b"room").await.unwrap();
    assert_eq!(file.as_slice(MIB, 4).unwrap(), b"room");
}

/// Bytes that the file system can still give to unprivileged users and to root.
fn free(path: &Path) -> u64 {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: an all-zero `statvfs` is valid, and the call fills it.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends in a zero byte, and `stat` is live for the call.
    assert_eq!(unsafe { libc::statvfs(path.as_ptr(), &mut stat) }, 0);
    stat.f_bfree * stat.f_frsize
}

/// A store into a hole may want the blocks of a whole large folio. Where those are not to be given,
/// the bytes alone are written, and in the end the error says what is wrong.
#[test]
fn small_writes_fill_disk_completely() {
    let test = "small_writes_fill_disk_completely";
    let dir = on_a_disk();
    let Some(disk) = Disk::ext4(test, &dir.path().join("image"), 32 * MIB) else {
        return;
    };
    block_on(async {
        let path = disk.path("data");
        let file = MemoryMappedFile::create_rw(&path, 1 << 30).await.unwrap();
        let (mut written, mut at) = (0, 4000);
        loop {
            // Over the end of a page: two blocks.
            match file.update_region(at, &[written as u8; 200]).await {
                Ok(()) => written += 1,
                Err(error) => {
                    assert_full::<()>(Err(error));
                    break;
                }
            }
            at += 8192;
        }
        assert!(written > 1000, "{written}");
        for number in 0..written {
            let at = 4000 + 8192 * number as u64;
            let slice = file.slice(at, 200).await.unwrap();
            assert_eq!(slice, [number as u8; 200], "write {number} of {written}");
        }
        assert_full(file.as_slice_mut(900 * MIB, 4096).await);
        assert_full(file.update_region(900 * MIB, &[1; 100_000]).await);
    });
}

/// What cannot be had as a whole is not begun.
#[test]
fn view_larger_than_disk_takes_nothing() {
    let test = "view_larger_than_disk_takes_nothing";
    let dir = on_a_disk();
    let ext4 = Disk::ext4(test, &dir.path().join("image"), 32 * MIB);
    for disk in [ext4, Disk::tmpfs(test, 32 * MIB)].into_iter().flatten() {
        block_on(async {
            let path = disk.path("data");
            let file = MemoryMappedFile::create_rw(&path, 1 << 30).await.unwrap();
            file.update_region_async(0, b"the first page")
                .await
                .unwrap();
            let before = free(&path);
            assert_full(file.as_slice_mut(0, 1 << 30).await.map(drop));
            let data = vec![1; 64 << 20];
            assert_full(file.update_region(100, &data).await);
            assert!(free(&path) > before / 2, "{} of {before}", free(&path));
            assert_eq!(file.as_slice(0, 5).unwrap(), b"the f");
            // A part of it can be had.
            let view = file.as_slice_mut(0, 12 * MIB).await.unwrap();
            assert!(view.starts_with(b"the first page"));
        });
    }
}

#[test]
fn full_disk_at_eof_is_not_truncation() {
    let Some(disk) = Disk::tmpfs("full_disk_at_eof_is_not_truncation", MIB) else {
        return;
    };
    block_on(async {
        // The last page, a hole, is not all inside the file.
        let path = disk.path("data");
        File::create(&path).unwrap().set_len(10_000).unwrap();
        let file = MemoryMappedFile::open_rw(&path).await.unwrap();
        disk.fill();
        assert_full(file.update_region(9_000, b"x").await);
        assert_full(file.as_slice_mut(9_000, 10).await);
    });
}

#[test]
fn truncation_fails_lost_ranges_only() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 100_000).await;
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let of_the_lost = file.bytes(50_000, 10).unwrap();
        // One that has passed every check but the last.
        let view = reader.as_slice(60_000, 10).unwrap();
        let mut waiting = Box::pin(file.update_region(60_000, b"x"));
        assert!(poll_once(&mut waiting).await.is_none());
        wait_until(&file, |stats| stats.oldest_blocked.is_some()).await;
        truncate(&path, 10_000);
        drop(view);
        assert_truncated(waiting.await, (60_000, 1, 10_000));

        assert_truncated(file.update_region(50_000, b"x").await, (50_000, 1, 10_000));
        assert_truncated(
            file.update_region_async(9_999, b"xx").await,
            (9_999, 2, 10_000),
        );
        let first_is_there: [(u64, &[u8]); 2] = [(0, b"x"), (20_000, b"yy")];
        assert_truncated(
            file.update_regions(&first_is_there).await,
            (20_000, 2, 10_000),
        );
        assert_truncated(
            file.update_regions_async(&first_is_there).await,
            (20_000, 2, 10_000),
        );
        let data = || vec![9; 100].into();
        assert_truncated(file.write_bytes(9_950, data()).await, (9_950, 100, 10_000));
        assert_truncated(
            file.write_bytes_async(9_950, data()).await,
            (9_950, 100, 10_000),
        );
        assert_truncated(
            file.try_update_region(10_000, b"x").await,
            (10_000, 1, 10_000),
        );
        assert!(file.write_bytes(0, of_the_lost).await.is_err());
        assert!(file.as_slice_mut(50_000, 10).await.is_err());
        for handle in [&file, &reader] {
            let told = (50_000, 10, 10_000);
            assert_truncated(handle.slice(50_000, 10).await, told);
            assert_truncated(handle.read_bytes(50_000, 10).await, told);
            let mut buffer = *b"unchanged!";
            assert_truncated(handle.read_into(50_000, &mut buffer).await, told);
            assert_eq!(&buffer, b"unchanged!");
            assert_truncated(handle.touch_pages().await, (0, 100_000, 10_000));
            assert_truncated(handle.touch_pages_range(50_000, 10).await, told);
            // A hint about what is not there does nothing.
            handle.prefetch_range(50_000, 10).await.unwrap();
            assert!(handle.copy_to(dir.path().join("copy")).await.is_err());
            assert!(!dir.path().join("copy").exists());
        }
        for size in [5_000, 10_000, 200_000] {
            assert_truncated(file.resize(size).await, (0, 100_000, 10_000));
        }

        // Nothing of all that has been written, or made the file longer again.
        assert!(fs::read(&path).unwrap() == pattern(10_000));
        // What is left can be used.
        file.update_region(0, b"here").await.unwrap();
        file.update_region_async(5_000, b"left").await.unwrap();
        let mut view = file.as_slice_mut(9_990, 10).await.unwrap();
        view.fill(7);
        view.commit().await.unwrap();
        assert_eq!(reader.slice(5_000, 4).await.unwrap(), b"left");
        assert_eq!(reader.read_bytes(9_990, 10).await.unwrap(), [7; 10][..]);
        file.flush().await.unwrap();
        file.flush_range(0, 100_000).await.unwrap();
        assert_eq!(fs::read(&path).unwrap()[..4], *b"here");
        assert_eq!(fs::metadata(&path).unwrap().len(), 10_000);
        wait_until(&file, is_quiet).await;

        // And the rest, when it comes back.
        truncate(&path, 100_000);
        assert_eq!(reader.slice(50_000, 10).await.unwrap(), [0; 10]);
        file.update_region_async(99_999, b"x").await.unwrap();
        file.resize(100_001).await.unwrap();
        assert_eq!(fs::read(&path).unwrap()[99_999..], *b"x\0");

        // An opening takes note of the length.
        truncate(&path, 10_000);
        let outside = mmap_io::write_mmap(&path, 10_000, b"x").await.unwrap_err();
        assert!(
            matches!(outside, MmapIoError::OutOfBounds { total: 10_000, .. }),
            "{outside:?}"
        );
        for handle in [&file, &reader] {
            assert_eq!(handle.len(), 10_000);
            assert!(handle.slice(9_999, 2).await.is_err());
        }
    });
}

#[test]
fn flush_reports_bytes_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 100_000).await;
        file.flush().await.unwrap();
        file.update_region(90_000, b"lost").await.unwrap();
        truncate(&path, 50_000);
        let told = file.flush().await;
        assert!(matches!(told, Err(MmapIoError::FlushFailed(_))), "{told:?}");
        assert_eq!(
            file.last_flush_error().unwrap().io_kind(),
            Some(std::io::ErrorKind::UnexpectedEof)
        );
        assert_eq!(file.pending_bytes(), 4);
        drop(file);
        // Where nothing is lost there is nothing to say; nor for what is cut off here.
        let file = MemoryMappedFile::open_rw(&path).await.unwrap();
        file.update_region(10, b"kept").await.unwrap();
        truncate(&path, 20_000);
        file.flush().await.unwrap();
        drop(file);
        let file = MemoryMappedFile::open_rw(&path).await.unwrap();
        file.update_region(19_000, b"cut").await.unwrap();
        file.resize(100).await.unwrap();
        file.resize(50_000).await.unwrap();
        file.flush().await.unwrap();
    });
}

#[test]
fn truncation_inside_page_is_found() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 12_000).await;
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        // The page is still there, but its end is not the file's.
        truncate(&path, 10_000);
        let told = (9_990, 20, 10_000);
        for handle in [&file, &reader] {
            assert_truncated(handle.slice(9_990, 20).await, told);
            assert_truncated(handle.read_bytes(9_990, 20).await, told);
            assert_truncated(handle.read_into(9_990, &mut [0; 20]).await, told);
            assert_truncated(handle.touch_pages().await, (0, 12_000, 10_000));
        }
        assert_truncated(file.as_slice_mut(9_990, 20).await, told);
    });
}

#[test]
fn truncation_error_has_callers_range() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 100_000).await;
        fs::write(dir.path().join("old"), b"keep").unwrap();
        truncate(&path, 10_000);
        assert_truncated(file.as_slice_mut(50_000, 10).await, (50_000, 10, 10_000));
        assert_truncated(
            file.copy_to(dir.path().join("old")).await,
            (0, 100_000, 10_000),
        );
        // There was nothing to replace it by.
        assert_eq!(fs::read(dir.path().join("old")).unwrap(), b"keep");
    });
}

#[test]
fn emptied_file_fails_until_reopened() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 10_000).await;
        truncate(&path, 0);
        let told = (0, 10_000, 0);
        assert_truncated(file.update_region(0, b"x").await, (0, 1, 0));
        assert_truncated(file.slice(0, 1).await, (0, 1, 0));
        assert_truncated(file.touch_pages().await, told);
        assert_truncated(file.resize(1).await, told);
        assert!(file.as_slice_mut(0, 1).await.is_err());
        assert!(file.copy_to(dir.path().join("copy")).await.is_err());
        // An opening takes note of the length.
        assert!(MemoryMappedFile::open_rw(&path).await.is_err());
        assert!(MemoryMappedFile::open_ro(&path).await.unwrap().is_empty());
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        let again = MemoryMappedFile::open_or_create(&path, 10).await.unwrap();
        assert_eq!((again.len(), file.len()), (10, 10));
        file.update_region(0, b"anew").await.unwrap();
        assert_eq!(again.slice(0, 5).await.unwrap(), b"anew\0");
        file.close().await.unwrap();
    });
}

#[test]
fn unreadable_disk_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let Some(disk) = Disk::ext4("unreadable_disk_is_an_error", &image, 64 * MIB) else {
        return;
    };
    fs::write(disk.path("data"), vec![5; 32 << 20]).unwrap();
    File::open(disk.path("data")).unwrap().sync_all().unwrap();
    drop(disk);
    // Mounted again, with a cold cache; then most of its blocks are no more.
    let Some(disk) = Disk::loop_device("unreadable_disk_is_an_error", &image) else {
        return;
    };
    let path = disk.path("data");
    let plain = File::open(&path).unwrap();
    plain.read_exact_at(&mut [0; 4096], 0).unwrap();
    truncate(&image, 16 * MIB);
    let bad = 30 * MIB;
    let error = plain.read_exact_at(&mut [0; 4096], bad).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));

    fn assert_unreadable<T>(result: mmap_io::Result<T>) {
        let error = result.map(drop).unwrap_err();
        assert!(matches!(error, MmapIoError::Io(_)), "{error:?}");
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
    block_on(async {
        let file = MemoryMappedFile::open_rw(&path).await.unwrap();
        assert_unreadable(file.slice(bad + 100, 100).await);
        assert_unreadable(file.read_bytes(bad, 10_000).await);
        let mut buffer = *b"unchanged";
        assert_unreadable(file.read_into(bad, &mut buffer).await);
        assert_eq!(&buffer, b"unchanged");
        assert_unreadable(file.touch_pages().await);
        assert_unreadable(file.touch_pages_range(bad, 1).await);
        assert_unreadable(file.update_region(bad + 100, b"part of a page").await);
        assert_unreadable(file.update_regions(&[(0, b"x"), (bad, b"y")]).await);
        assert_unreadable(file.try_update_region(bad, b"x").await);
        assert_unreadable(file.as_slice_mut(bad, 10).await);
        assert_unreadable(file.copy_to(dir.path().join("copy")).await);
        assert!(!dir.path().join("copy").exists());
        let bytes = file.bytes(bad, 10).unwrap();
        assert!(file.write_bytes(0, bytes).await.is_err());
        // The readable part can be used, and nothing of the above was written there.
        assert_eq!(file.slice(0, 4096).await.unwrap(), [5; 4096]);
        file.update_region_async(0, b"fine").await.unwrap();
        wait_until(&file, is_quiet).await;
    });
}

#[test]
fn flush_error_outlives_repair() {
    // The image is sparse, on a disk that has no room for it.
    let test = "flush_error_outlives_repair";
    let Some(small) = Disk::tmpfs(test, 8 * MIB) else {
        return;
    };
    let Some(disk) = Disk::ext4(test, &small.path("image"), 64 * MIB) else {
        return;
    };
    let path = disk.path("data");
    block_on(async {
        let file = MemoryMappedFile::create_rw(&path, 32 * MIB).await.unwrap();
        file.update_region_async(0, b"durable").await.unwrap();
        assert!(file.last_flush_error().is_none());
        let filler = small.fill();
        file.update_region(MIB, &[1; 8192]).await.unwrap();
        let lost = file.flush().await.unwrap_err();
        let lost = lost.raw_os_error();
        assert!(
            matches!(lost, Some(libc::ENOSPC | libc::EIO)),
            "{lost:?} is not what a flush of it meets"
        );
        let fails = |result: mmap_io::Result<()>| {
            let error = result.unwrap_err();
            assert!(matches!(error, MmapIoError::FlushFailed(_)), "{error:?}");
            assert_eq!(error.raw_os_error(), lost);
        };
        // Also when there is room, and a flush would succeed: what was lost is lost.
        fs::remove_file(filler).unwrap();
        let other = MemoryMappedFile::open_rw(&path).await.unwrap();
        let always = MemoryMappedFile::builder(&path)
            .flush_policy(FlushPolicy::Always)
            .open_or_create()
            .await
            .unwrap();
        for file in [&file, &other, &always] {
            fails(file.flush().await);
            fails(file.flush_range(0, 1).await);
            fails(file.flush_async().await);
            fails(file.flush_range_async(2 * MIB, 1).await);
            fails(file.update_region_async(0, b"x").await);
            fails(file.update_regions_async(&[(0, b"x")]).await);
            fails(file.write_bytes_async(0, vec![1].into()).await);
            fails(file.as_slice_mut(0, 1).await.unwrap().commit().await);
            fails(file.clone().close().await);
            fails(Err(file.last_flush_error().unwrap()));
            assert_eq!(file.stats().flush_errors, 1);
        }
        fails(always.update_region(0, b"x").await);
        fails(always.try_update_region(0, b"x").await.map(drop));
        assert!(file.pending_bytes() >= 8192);
        // What is not durable goes on.
        file.update_region(0, b"visible").await.unwrap();
        assert_eq!(other.slice(0, 7).await.unwrap(), b"visible");
        assert_eq!(file.slice(MIB, 8192).await.unwrap(), [1; 8192]);
        file.resize(33 * MIB).await.unwrap();
        fails(file.flush().await);

        // A `Bytes` keeps the file, and its error; then it is another opening.
        let bytes = file.bytes(0, 7).unwrap();
        drop((file, other, always));
        let again = MemoryMappedFile::open_rw(&path).await.unwrap();
        fails(again.flush().await);
        drop((bytes, again));
        // The last job may not have gone yet.
        let deadline = Instant::now() + TIMEOUT;
        let fresh = loop {
            let again = MemoryMappedFile::open_rw(&path).await.unwrap();
            if again.last_flush_error().is_none() {
                break again;
            }
            assert!(Instant::now() < deadline, "never forgotten");
            drop(again);
            yield_now().await;
        };
        fresh.update_region_async(MIB, b"again").await.unwrap();
        fresh.flush().await.unwrap();
    });
}

#[test]
fn failed_eager_create_leaves_no_file() {
    let test = "failed_eager_create_leaves_no_file";
    let Some(disk) = Disk::tmpfs(test, MIB) else {
        return;
    };
    let path = disk.path("data");
    let builder = || {
        let builder = MemoryMappedFile::builder(&path).size(8 * MIB);
        builder.touch_hint(mmap_io::TouchHint::Eager)
    };
    for _ in 0..2 {
        assert_full(block_on(builder().create()));
        assert!(!path.exists());
        assert_full(block_on(builder().create_new()));
        assert!(!path.exists());
    }
    // One that was there stays, and so does one that is opened.
    fs::write(&path, b"there").unwrap();
    assert_full(block_on(builder().create()));
    assert!(path.exists());
    let opening = builder().mode(mmap_io::MmapMode::ReadWrite).open();
    assert_full(block_on(opening));
    assert!(path.exists());
}

#[test]
fn truncated_source_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 100_000).await;
        let path = dir.path().join("source");
        fs::write(&path, pattern(100_000)).unwrap();
        let source = MemoryMappedFile::open_ro(&path).await.unwrap();
        for (len, at) in [(20_000, 50_000), (20_000, 20_100)] {
            fs::write(&path, pattern(100_000)).unwrap();
            let data = source.bytes(at, 1000).unwrap();
            let file_len = File::options().write(true).open(&path).unwrap();
            file_len.set_len(len).unwrap();
            let error = file.write_bytes(0, data).await.unwrap_err();
            match error {
                MmapIoError::Truncated {
                    offset, file_len, ..
                } => assert_eq!((offset, file_len), (at, len)),
                error => panic!("{error:?}"),
            }
        }
        assert!(file.as_slice(0, 1000).unwrap() == pattern(1000)[..]);
    });
}

#[test]
fn hugetlbfs_file_is_refused() {
    let test = "hugetlbfs_file_is_refused";
    // SAFETY: the name is live and ends in a zero byte.
    let memory = unsafe { libc::memfd_create(b"huge\0".as_ptr().cast(), libc::MFD_HUGETLB) };
    if memory < 0 {
        return skip(test, "there is no hugetlbfs");
    }
    // SAFETY: the descriptor is new, and nothing else owns it.
    let memory = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(memory) };
    memory.set_len(4 * MIB).unwrap();
    for mode in [mmap_io::MmapMode::ReadOnly, mmap_io::MmapMode::ReadWrite] {
        let copy = memory.try_clone().unwrap();
        let refused = block_on(MemoryMappedFile::from_file(copy, mode, "huge")).map(drop);
        let error = refused.unwrap_err();
        assert_eq!(error.io_kind(), Some(std::io::ErrorKind::Unsupported));
        assert!(error.to_string().contains("hugetlbfs"), "{error}");
    }
}

#[test]
fn large_range_is_not_counted_as_resident() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 5 << 20).await;
        file.touch_pages().await.unwrap();
        let before = file.stats();
        file.slice(0, 5 << 20).await.unwrap();
        let after = file.stats();
        assert_eq!(after.resident_hits, before.resident_hits);
        assert_eq!(after.resident_misses, before.resident_misses);
        assert_eq!(after.pool_hops, before.pool_hops + 1);
        file.slice(0, 1 << 20).await.unwrap();
        assert_eq!(file.stats().resident_hits, before.resident_hits + 1);
    });
}
