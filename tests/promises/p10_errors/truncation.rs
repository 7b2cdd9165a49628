//! A file that another process has cut is an error of the operation that meets the cut.

use std::fs::{self, File};
use std::io::ErrorKind;

use futures_lite::future::poll_once;
use futures_lite::{AsyncBufReadExt, AsyncReadExt};
use mmap_io::{MemoryMappedFile, MmapIoError};

use crate::common::child::{alone, child};
use crate::common::disk::truncate;
use crate::common::{block_on, is_quiet, pattern, patterned, wait_until};

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
fn truncation_fails_lost_ranges_only() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 100_000).await;
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let of_the_lost = file.bytes(50_000, 10).unwrap();
        // This write has passed every check except the last.
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
            // A hint about missing bytes does nothing.
            handle.prefetch_range(50_000, 10).await.unwrap();
            assert!(handle.copy_to(dir.path().join("copy")).await.is_err());
            assert!(!dir.path().join("copy").exists());
        }
        for size in [5_000, 10_000, 200_000] {
            assert_truncated(file.resize(size).await, (0, 100_000, 10_000));
        }

        // None of these operations has written anything or made the file longer.
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

        // And the rest, after the file has its length again.
        truncate(&path, 100_000);
        assert_eq!(reader.slice(50_000, 10).await.unwrap(), [0; 10]);
        file.update_region_async(99_999, b"x").await.unwrap();
        file.resize(100_001).await.unwrap();
        assert_eq!(fs::read(&path).unwrap()[99_999..], *b"x\0");

        // An opening adopts the length.
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
        // Without lost bytes there is no error; nor for bytes that this process cuts off itself.
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
        // The page still exists, but its end is past the end of the file.
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
        // There was nothing to replace it with.
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
        // An opening adopts the length.
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
fn truncated_source_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 100_000).await;
        let path = dir.path().join("source");
        fs::write(&path, pattern(100_000)).unwrap();
        let source = MemoryMappedFile::open_ro(&path).await.unwrap();
        for (errors, (len, at)) in [(20_000, 50_000), (20_000, 20_100)].into_iter().enumerate() {
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
            assert_eq!(file.stats().write_errors, errors as u64 + 1);
        }
        assert_eq!(file.stats().updates, 0);
        assert!(file.as_slice(0, 1000).unwrap() == pattern(1000)[..]);
    });
}

/// A reader of a handle that cannot write lends the mapping itself, and copies from it later.
#[test]
fn reader_meets_cut_behind_its_buffer() {
    // Without the error, the copy ends the process.
    alone(child!(reader_meets_cut_behind_its_buffer), || {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let (path, _) = patterned(dir.path(), 60_000).await;
            let file = MemoryMappedFile::open_ro(&path).await.unwrap();
            let mut reader = file.reader();
            assert_eq!(reader.fill_buf().await.unwrap().len(), 60_000);
            // What is lent can be read through another method, and is gone then.
            let mut some = [0; 100];
            reader.read_exact(&mut some).await.unwrap();
            assert_eq!(some, pattern(100)[..]);
            assert_eq!(reader.fill_buf().await.unwrap(), &pattern(60_000)[100..]);
            reader.consume(20_000 - 100);
            truncate(&path, 10_000);
            for _ in 0..2 {
                let error = reader.read(&mut some).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error:?}");
                assert_eq!(some, pattern(100)[..]);
                assert_eq!(reader.position(), 20_000);
            }
        });
    });
}
