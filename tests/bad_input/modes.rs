//! Modes, descriptors and handles that do not permit what is asked of them.

use std::error::Error;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::Path;

use futures_lite::future::poll_once;
use mmap_io::{MemoryMappedFile, MmapIoError, MmapMode, Result, TouchHint};

use super::{Before, TOO_LARGE};
use crate::assert_error;
use crate::common::{block_on, is_quiet, pattern, patterned, wait_until};

/// Every operation that changes the file, as a result without its value.
async fn every_write(file: &MemoryMappedFile, offset: u64) -> Vec<Result<()>> {
    vec![
        file.update_region(offset, b"x").await,
        file.update_region_async(offset, b"x").await,
        file.update_regions(&[(offset, b"x")]).await,
        file.update_regions_async(&[(offset, b"x")]).await,
        file.write_bytes(offset, vec![1].into()).await,
        file.write_bytes_async(offset, vec![1].into()).await,
        file.try_update_region(offset, b"x").await.map(drop),
        file.as_slice_mut(offset, 1).await.map(drop),
        file.try_as_slice_mut(offset, 1).map(drop),
        mmap_io::update_region(file, offset, b"x").await,
    ]
}

#[test]
fn read_only_handle_refuses_writes() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, writer) = patterned(dir.path(), 1000).await;
        let file = MemoryMappedFile::open_ro(&path).await.unwrap();
        let before = Before::new(&path, &file);
        // The mode is looked at first, the bounds after it.
        for offset in [0, 5000, u64::MAX] {
            for refused in every_write(&file, offset).await {
                assert_error!(refused, MmapIoError::InvalidMode(_));
            }
        }
        for size in [0, 10, 2000, TOO_LARGE] {
            assert_error!(file.resize(size).await, MmapIoError::InvalidMode(_));
        }
        // SAFETY: it is refused.
        assert_error!(unsafe { file.as_mut_ptr() }, MmapIoError::InvalidMode(_));
        let error = file.update_region(0, b"x").await.unwrap_err();
        assert!(error.to_string().contains("read-only"), "{error}");
        assert_error!(writer.as_slice_bytes(0, 1), MmapIoError::InvalidMode(_));
        // There is nothing to flush, by whatever name.
        file.flush().await.unwrap();
        file.flush_async().await.unwrap();
        file.flush_range(0, 1000).await.unwrap();
        file.flush_range_async(0, 1000).await.unwrap();
        mmap_io::flush(&file).await.unwrap();
        assert_eq!(file.pending_bytes(), 0);
        before.assert_unchanged(&file);
        for name in ["new", "data"] {
            let read_only = MemoryMappedFile::builder(dir.path().join(name)).size(10);
            let read_only = read_only.mode(MmapMode::ReadOnly);
            assert_error!(read_only.create_new().await, MmapIoError::InvalidMode(_));
        }
        assert!(!dir.path().join("new").exists());
    });
}

#[test]
fn descriptor_access_must_match_mode() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let path = dir.path().join("data");
        fs::write(&path, pattern(1000)).unwrap();
        let open = |options: &mut fs::OpenOptions| options.open(&path).unwrap();
        // Also while another handle, which may write, has mapped the file.
        for _open in [None, Some(MemoryMappedFile::open_rw(&path).await.unwrap())] {
            for (descriptor, mode) in [
                (open(File::options().read(true)), MmapMode::ReadWrite),
                (open(File::options().write(true)), MmapMode::ReadWrite),
                (open(File::options().write(true)), MmapMode::ReadOnly),
                (open(File::options().append(true)), MmapMode::ReadOnly),
                (
                    open(File::options().read(true).append(true)),
                    MmapMode::ReadWrite,
                ),
            ] {
                let file = MemoryMappedFile::from_file(descriptor, mode, &path).await;
                assert_error!(file, MmapIoError::InvalidMode(_));
            }
            for options in [
                File::options().read(true),
                File::options().read(true).append(true),
            ] {
                let file = MemoryMappedFile::from_file(open(options), MmapMode::ReadOnly, "name");
                let file = file.await.unwrap();
                assert_eq!(file.slice(0, 1000).await.unwrap(), &pattern(1000)[..]);
                assert_eq!(file.path(), Path::new("name"));
            }
        }
        assert!(fs::read(&path).unwrap() == pattern(1000));
    });
}

#[test]
fn read_only_mode_ignores_write_options() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let path = dir.path().join("data");
        fs::write(&path, pattern(1000)).unwrap();
        // Alone, and beside others.
        for _open in [None, Some(MemoryMappedFile::open_rw(&path).await.unwrap())] {
            let all = || {
                MemoryMappedFile::builder(&path)
                    .mode(MmapMode::ReadOnly)
                    .size(1 << 20)
                    .preallocate(true)
                    .write_buffer(0)
                    .touch_hint(TouchHint::Eager)
            };
            for opened in [
                all().open().await,
                all().create().await,
                all().open_or_create().await,
            ] {
                let file = opened.unwrap();
                assert_eq!((file.len(), file.mode()), (1000, MmapMode::ReadOnly));
                assert_eq!(file.as_slice(0, 1000).unwrap(), &pattern(1000)[..]);
            }
        }
        // A buffer of nothing admits one write after the other.
        let file = MemoryMappedFile::builder(&path)
            .mode(MmapMode::ReadWrite)
            .write_buffer(0)
            .open()
            .await
            .unwrap();
        file.update_region(0, b"x").await.unwrap();
        file.update_region_async(1, b"y").await.unwrap();
        assert_eq!(fs::read(&path).unwrap()[..2], *b"xy");
        wait_until(&file, is_quiet).await;
    });
}

#[test]
fn unmap_fails_while_handle_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let clone = file.clone();
        let file = file.unmap().unwrap_err();
        assert_eq!(file.as_slice(0, 1000).unwrap(), &pattern(1000)[..]);
        drop(clone);
        let bytes = file.bytes(10, 10).unwrap();
        let part = bytes.slice(5..);
        drop(bytes);
        let file = file.unmap().unwrap_err();
        file.update_region(0, b"still").await.unwrap();
        assert_eq!(part, pattern(20)[15..]);
        drop(part);
        // A future that owns a handle counts as one.
        let resize = file.resize(2000);
        let file = file.unmap().unwrap_err();
        drop(resize);
        // A handle of its own on the same file does not.
        let other = MemoryMappedFile::open_rw(&path).await.unwrap();
        let view = other.as_slice(0, 5).unwrap();
        let mut plain = file.unmap().unwrap();
        let mut start = [0; 5];
        plain.rewind().unwrap();
        plain.read_exact(&mut start).unwrap();
        assert_eq!(&start, b"still");
        plain.rewind().unwrap();
        assert_eq!(plain.metadata().unwrap().len(), 1000);
        assert_eq!(view, b"still");
        drop(view);
        plain.write_all(b"plain").unwrap();
        assert_eq!(other.as_slice(0, 5).unwrap(), b"plain");
        // It can be mapped again.
        let again = MemoryMappedFile::from_file(plain, MmapMode::ReadWrite, &path);
        again.await.unwrap().close().await.unwrap();
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        assert!(reader.unmap().unwrap().write_all(b"x").is_err());
    });
}

#[test]
fn close_leaves_other_handles_open() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let other = MemoryMappedFile::open_rw(&path).await.unwrap();
        let clone = file.clone();
        let bytes = file.bytes(0, 10).unwrap();
        let mut write = Box::pin(other.update_region(0, b"x"));
        assert!(poll_once(&mut write).await.is_none());
        file.close().await.unwrap();
        assert_eq!(bytes, pattern(10));
        clone.update_region(500, b"clone").await.unwrap();
        clone.close().await.unwrap();
        drop(bytes);
        write.await.unwrap();
        assert_eq!(other.as_slice(500, 5).unwrap(), b"clone");
    });
}

#[test]
fn errors_carry_numbers_and_causes() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 1000).await;
        let view = file.as_slice_mut(100, 50).await.unwrap();
        let busy = file.as_slice(120, 7).map(drop).unwrap_err();
        drop(view);
        let outside = file.as_slice(990, 20).map(drop).unwrap_err();
        let size = file.resize(0).await.unwrap_err();
        let missing = MemoryMappedFile::open_ro(dir.path().join("missing"));
        let missing = missing.await.unwrap_err();
        for (error, numbers) in [
            (&busy, &["120", "7"][..]),
            (&outside, &["990", "20", "1000"]),
        ] {
            let message = error.to_string();
            assert!(numbers.iter().all(|number| message.contains(number)));
            assert!(error.source().is_none() && error.io_kind().is_none());
            assert_eq!(error.raw_os_error(), None);
        }
        for (error, number) in [(&size, None), (&missing, Some(libc::ENOENT))] {
            let cause = error.io_error().unwrap();
            assert_eq!(error.raw_os_error(), number);
            assert_eq!(error.io_kind(), Some(cause.kind()));
            // The message holds the cause's, and a chain does not say it twice.
            assert!(error.to_string().contains(&cause.to_string()));
            assert!(error.source().is_none());
        }
    });
}
