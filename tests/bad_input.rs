//! Bad input: each a clear error, and nothing changed.

#![cfg(unix)]

mod common;

use std::error::Error;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{symlink, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::child::{child, child_dir, Child};
use common::{block_on, is_quiet, pattern, patterned, skip, wait_until};
use futures_lite::future::poll_once;
use mmap_io::utils::{align_up, ensure_in_bounds, page_size, slice_range};
use mmap_io::{AnonymousMmap, MemoryMappedFile, MmapIoError, MmapMode, Result, Stats, TouchHint};

const TOO_LARGE: u64 = (128 << 40) + 1;

macro_rules! assert_error {
    ($result:expr, $pattern:pat) => {
        let result = $result.map(drop);
        assert!(matches!(result, Err($pattern)), "{result:?}");
    };
}

macro_rules! assert_kind {
    ($result:expr, $kind:ident) => {
        let result = $result.map(drop);
        let kind = result.as_ref().err().and_then(MmapIoError::io_kind);
        assert_eq!(kind, Some(ErrorKind::$kind), "{result:?}");
    };
}

/// A file as it was.
struct Before {
    path: PathBuf,
    content: Vec<u8>,
    stats: Stats,
}

impl Before {
    fn new(path: &Path, file: &MemoryMappedFile) -> Self {
        Self {
            path: path.to_path_buf(),
            content: fs::read(path).unwrap(),
            stats: file.stats(),
        }
    }

    /// What is wrong with the input is found before anything is done, or even queued.
    fn assert_unchanged(&self, file: &MemoryMappedFile) {
        assert!(fs::read(&self.path).unwrap() == self.content);
        assert_eq!(file.len(), self.content.len() as u64);
        let mut stats = file.stats();
        // Whoever opens the file in a new way maps it, and changes nothing.
        stats.mapped_bytes = self.stats.mapped_bytes;
        // A copy takes its turn before it knows where to.
        stats.pool_hops = self.stats.pool_hops;
        assert_eq!(stats, self.stats);
    }
}

#[test]
fn ranges_outside_file_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let before = Before::new(&path, &file);
        let outside = |(offset, len): (u64, u64), result: Result<()>| {
            let error = result.unwrap_err();
            let told = match error {
                MmapIoError::OutOfBounds { offset, len, total } => (offset, len, total),
                error => panic!("{error:?}"),
            };
            assert_eq!(told, (offset, len, 1000));
            let message = error.to_string();
            for number in [offset, len, 1000] {
                assert!(message.contains(&number.to_string()), "{message}");
            }
            assert_eq!((error.io_kind(), error.raw_os_error()), (None, None));
        };
        for range @ (offset, len) in [
            (1000, 1),
            (999, 2),
            (0, 1001),
            (5000, 1),
            (u64::MAX, 1),
            (u64::MAX, 2),
            (1, u64::MAX),
            (u64::MAX, u64::MAX),
            (1 << 63, 1 << 63),
            (200 << 40, 1),
        ] {
            for file in [&file, &reader] {
                outside(range, file.as_slice(offset, len).map(drop));
                outside(range, file.try_as_slice(offset, len).map(drop));
                outside(range, file.slice(offset, len).await.map(drop));
                outside(range, file.bytes(offset, len).map(drop));
                outside(range, file.read_bytes(offset, len).await.map(drop));
                outside(range, file.flush_range(offset, len).await);
                outside(range, file.flush_range_async(offset, len).await);
                outside(range, file.touch_pages_range(offset, len).await);
                outside(range, file.prefetch_range(offset, len).await);
                #[cfg(feature = "advise")]
                for advice in [mmap_io::MmapAdvice::Normal, mmap_io::MmapAdvice::DontNeed] {
                    outside(range, file.advise(offset, len, advice).await);
                }
            }
            outside(range, reader.as_slice_bytes(offset, len).map(drop));
            outside(range, file.as_slice_mut(offset, len).await.map(drop));
            outside(range, file.try_as_slice_mut(offset, len).map(drop));
        }
        let data = [7; 3];
        for offset in [998, 1000, 5000, u64::MAX - 2, u64::MAX, 200 << 40] {
            let range = (offset, 3);
            outside(range, file.update_region(offset, &data).await);
            outside(range, file.update_region_async(offset, &data).await);
            outside(range, file.try_update_region(offset, &data).await.map(drop));
            let bytes = || data.to_vec().into();
            outside(range, file.write_bytes(offset, bytes()).await);
            outside(range, file.write_bytes_async(offset, bytes()).await);
            outside(range, mmap_io::update_region(&file, offset, &data).await);
            let second = [(0, &data[..]), (offset, &data[..])];
            outside(range, file.update_regions(&second).await);
            outside(range, file.update_regions_async(&second).await);
            let mut buffer = *b"as";
            let range = (offset, 2);
            if offset > 998 {
                outside(range, file.read_into(offset, &mut buffer).await);
                outside(range, reader.read_into(offset, &mut buffer).await);
            }
            assert_eq!(&buffer, b"as");
        }
        before.assert_unchanged(&file);
        outside((1000, 1), mmap_io::write_mmap(&path, 1000, b"x").await);
        assert!(fs::read(&path).unwrap() == pattern(1000));
    });
}

#[test]
fn empty_range_is_valid_at_any_offset() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let empty_path = dir.path().join("empty");
        fs::write(&empty_path, b"").unwrap();
        let empty = MemoryMappedFile::open_ro(&empty_path).await.unwrap();
        // Not even a view of everything is in the way.
        let view = file.bytes(0, 1000).unwrap();
        for (path, file) in [(&path, &file), (&path, &reader), (&empty_path, &empty)] {
            let before = Before::new(path, file);
            for offset in [0, 500, 1000, 1001, u64::MAX] {
                assert!(file.as_slice(offset, 0).unwrap().is_empty());
                assert!(file.try_as_slice(offset, 0).unwrap().unwrap().is_empty());
                assert!(file.as_slice_bytes(offset, 0).unwrap().is_empty());
                assert!(file.slice(offset, 0).await.unwrap().is_empty());
                assert!(file.bytes(offset, 0).unwrap().is_empty());
                assert!(file.read_bytes(offset, 0).await.unwrap().is_empty());
                file.read_into(offset, &mut []).await.unwrap();
                file.update_region(offset, b"").await.unwrap();
                file.update_region_async(offset, b"").await.unwrap();
                let regions: [(u64, &[u8]); 2] = [(offset, b""), (0, b"")];
                file.update_regions(&regions).await.unwrap();
                file.update_regions_async(&regions).await.unwrap();
                file.write_bytes(offset, Vec::new().into()).await.unwrap();
                file.write_bytes_async(offset, Vec::new().into())
                    .await
                    .unwrap();
                assert!(file.try_update_region(offset, b"").await.unwrap());
                let mut view = file.as_slice_mut(offset, 0).await.unwrap();
                assert!(view.is_empty() && view.as_mut().is_empty());
                view.commit().await.unwrap();
                let view = file.try_as_slice_mut(offset, 0).unwrap();
                assert!(view.unwrap().is_empty());
                file.flush_range(offset, 0).await.unwrap();
                file.flush_range_async(offset, 0).await.unwrap();
                file.touch_pages_range(offset, 0).await.unwrap();
                file.prefetch_range(offset, 0).await.unwrap();
                #[cfg(feature = "advise")]
                file.advise(offset, 0, mmap_io::MmapAdvice::DontNeed)
                    .await
                    .unwrap();
            }
            file.update_regions(&[]).await.unwrap();
            file.update_regions_async(&[]).await.unwrap();
            before.assert_unchanged(file);
        }
        drop(view);
        // Beside some bytes, those count.
        file.update_regions(&[(u64::MAX, b""), (0, b"x")])
            .await
            .unwrap();
        assert_eq!(file.as_slice(0, 1).unwrap(), b"x");
    });
}

#[test]
fn empty_views_are_page_aligned() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let anonymous = AnonymousMmap::new(1000).unwrap();
        let assert_aligned = |view: &[u8]| assert_eq!(view.as_ptr() as usize % (64 << 10), 0);
        for offset in [0, 7, 1000, 2000] {
            for file in [&file, &reader] {
                assert_aligned(&file.as_slice(offset, 0).unwrap());
                assert_aligned(&file.try_as_slice(offset, 0).unwrap().unwrap());
                assert_aligned(&file.slice(offset, 0).await.unwrap());
                assert_aligned(&file.bytes(offset, 0).unwrap());
                assert_aligned(&file.read_bytes(offset, 0).await.unwrap());
            }
            assert_aligned(reader.as_slice_bytes(offset, 0).unwrap());
            assert_aligned(&file.as_slice_mut(offset, 0).await.unwrap());
            assert_aligned(&file.try_as_slice_mut(offset, 0).unwrap().unwrap());
            assert_aligned(&anonymous.as_slice(offset, 0).unwrap());
        }
    });
}

#[test]
fn empty_file_needs_a_first_length() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty");
    fs::write(&path, b"").unwrap();
    block_on(async {
        let file = MemoryMappedFile::open_ro(&path).await.unwrap();
        assert!(file.is_empty());
        assert_eq!(file.current_len().unwrap(), 0);
        assert_error!(
            file.as_slice(0, 1),
            MmapIoError::OutOfBounds {
                offset: 0,
                len: 1,
                total: 0
            }
        );
        assert_error!(file.slice(0, 1).await, MmapIoError::OutOfBounds { .. });
        file.touch_pages().await.unwrap();
        file.flush().await.unwrap();
        let copy = dir.path().join("copy");
        assert_eq!(file.copy_to(&copy).await.unwrap(), 0);
        assert_eq!(fs::read(&copy).unwrap(), b"");
        let eager = MemoryMappedFile::builder(&path).touch_hint(TouchHint::Eager);
        assert!(eager.open().await.unwrap().is_empty());

        // What writes needs a byte, whether the file is open already or not.
        for keep_open in [true, false] {
            let _open = keep_open.then(|| file.clone());
            let writable = || MemoryMappedFile::builder(&path).mode(MmapMode::ReadWrite);
            assert_error!(
                MemoryMappedFile::open_rw(&path).await,
                MmapIoError::ResizeFailed(_)
            );
            assert_error!(writable().open().await, MmapIoError::ResizeFailed(_));
            assert_error!(
                mmap_io::load_mmap(&path, MmapMode::ReadWrite).await,
                MmapIoError::ResizeFailed(_)
            );
            assert_error!(
                writable().open_or_create().await,
                MmapIoError::ResizeFailed(_)
            );
            assert_error!(
                MemoryMappedFile::open_or_create(&path, TOO_LARGE).await,
                MmapIoError::ResizeFailed(_)
            );
            assert_error!(
                mmap_io::write_mmap(&path, 0, b"x").await,
                MmapIoError::ResizeFailed(_)
            );
            let plain = File::options().read(true).write(true).open(&path).unwrap();
            assert_error!(
                MemoryMappedFile::from_file(plain, MmapMode::ReadWrite, &path).await,
                MmapIoError::ResizeFailed(_)
            );
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        // In a mode that does not write, nothing is given to it either.
        let read_only = MemoryMappedFile::builder(&path).size(10);
        let read_only = read_only.mode(MmapMode::ReadOnly);
        assert!(read_only.clone().create().await.unwrap().is_empty());
        assert!(read_only.open_or_create().await.unwrap().is_empty());
        // The reader sees the bytes that it gets here.
        let grown = MemoryMappedFile::open_or_create(&path, 10).await.unwrap();
        assert_eq!((grown.len(), file.len()), (10, 10));
        assert_eq!(file.as_slice(0, 10).unwrap(), [0; 10]);
    });
}

#[test]
fn impossible_sizes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new");
    block_on(async {
        let (data, file) = patterned(dir.path(), 1000).await;
        let kept = dir.path().join("kept");
        fs::write(&kept, b"content").unwrap();
        for size in [0, TOO_LARGE, u64::MAX] {
            for path in [&path, &kept, &data] {
                // Before the file system is touched, and before anything else about the path.
                let builder = || MemoryMappedFile::builder(path).size(size);
                for created in [
                    MemoryMappedFile::create_rw(path, size).await,
                    mmap_io::create_mmap(path, size).await,
                    builder().create().await,
                    builder().preallocate(true).create().await,
                    builder().create_new().await,
                ] {
                    assert_error!(created, MmapIoError::ResizeFailed(_));
                }
            }
            assert_kind!(MemoryMappedFile::create_rw(&path, size).await, InvalidInput);
            assert_error!(
                MemoryMappedFile::open_or_create(&path, size).await,
                MmapIoError::ResizeFailed(_)
            );
            assert_error!(file.resize(size).await, MmapIoError::ResizeFailed(_));
            // It has one already, which counts.
            let there = MemoryMappedFile::open_or_create(&kept, size).await;
            assert_eq!(there.unwrap().len(), 7);
        }
        assert_error!(
            MemoryMappedFile::builder(&path).create().await,
            MmapIoError::ResizeFailed(_)
        );
        assert_error!(
            MemoryMappedFile::builder(&path).open_or_create().await,
            MmapIoError::ResizeFailed(_)
        );
        assert!(!path.exists());
        assert_eq!(fs::read(&kept).unwrap(), b"content");
        assert!(fs::read(&data).unwrap() == pattern(1000) && file.len() == 1000);
    });
}

#[test]
fn special_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (fifo, link) = (dir.path().join("fifo"), dir.path().join("link"));
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    symlink(&fifo, &link).unwrap();
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    block_on(async {
        let (data, file) = patterned(dir.path(), 1000).await;
        for path in [
            dir.path(),
            &fifo,
            &link,
            &socket,
            Path::new("/dev/null"),
            Path::new("/dev/zero"),
        ] {
            let builder = || MemoryMappedFile::builder(path).size(10);
            for refused in [
                MemoryMappedFile::open_ro(path).await.map(drop),
                MemoryMappedFile::open_rw(path).await.map(drop),
                MemoryMappedFile::create_rw(path, 10).await.map(drop),
                MemoryMappedFile::open_or_create(path, 10).await.map(drop),
                builder().create_new().await.map(drop),
                builder().mode(MmapMode::ReadOnly).create().await.map(drop),
                mmap_io::load_mmap(path, MmapMode::ReadOnly).await.map(drop),
                mmap_io::write_mmap(path, 0, b"x").await,
                mmap_io::copy_mmap(path, dir.path().join("copy")).await,
                mmap_io::copy_mmap(&data, path).await,
                file.copy_to(path).await.map(drop),
            ] {
                assert_error!(refused, MmapIoError::Io(_));
            }
            assert!(fs::symlink_metadata(path).is_ok());
            assert!(!dir.path().join("copy").exists());
        }
        for path in [dir.path(), Path::new("/dev/null"), Path::new("/dev/zero")] {
            for mode in [MmapMode::ReadOnly, MmapMode::ReadWrite] {
                let write = path != dir.path();
                let open = File::options().read(true).write(write).open(path).unwrap();
                assert!(MemoryMappedFile::from_file(open, mode, "").await.is_err());
            }
        }
        let (one, _other) = UnixStream::pair().unwrap();
        let stream = File::from(std::os::fd::OwnedFd::from(one));
        assert_error!(
            MemoryMappedFile::from_file(stream, MmapMode::ReadOnly, "").await,
            MmapIoError::Io(_)
        );
        assert!(fs::read(&data).unwrap() == pattern(1000));
    });
}

#[test]
fn missing_paths_are_not_found() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let missing = dir.path().join("missing");
        let error = MemoryMappedFile::open_ro(&missing).await.unwrap_err();
        assert_eq!(error.io_kind(), Some(ErrorKind::NotFound));
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        let builder = || MemoryMappedFile::builder(&missing).size(10);
        let read_only = || builder().mode(MmapMode::ReadOnly);
        for opened in [
            MemoryMappedFile::open_rw(&missing).await.map(drop),
            builder().open().await.map(drop),
            read_only().create().await.map(drop),
            read_only().open_or_create().await.map(drop),
            mmap_io::load_mmap(&missing, MmapMode::ReadWrite)
                .await
                .map(drop),
            mmap_io::write_mmap(&missing, 0, b"x").await,
            mmap_io::copy_mmap(&missing, dir.path().join("copy")).await,
            mmap_io::delete_mmap(&missing).await,
        ] {
            assert_kind!(opened, NotFound);
        }
        let (_, file) = patterned(dir.path(), 10).await;
        let below = missing.join("below");
        for created in [
            MemoryMappedFile::create_rw(&below, 10).await.map(drop),
            MemoryMappedFile::open_or_create(&below, 10).await.map(drop),
            MemoryMappedFile::builder(&below)
                .size(10)
                .create_new()
                .await
                .map(drop),
            file.copy_to(&below).await.map(drop),
        ] {
            assert_kind!(created, NotFound);
        }
        for path in ["nul\0here", "nul\0"] {
            for opened in [
                MemoryMappedFile::open_ro(path).await.map(drop),
                MemoryMappedFile::create_rw(path, 10).await.map(drop),
                MemoryMappedFile::open_or_create(path, 10).await.map(drop),
                file.copy_to(path).await.map(drop),
                mmap_io::delete_mmap(path).await,
            ] {
                assert_kind!(opened, InvalidInput);
            }
        }
        assert_kind!(MemoryMappedFile::create_rw("", 10).await, NotFound);
        let below_a_file = dir.path().join("data/below");
        let error = MemoryMappedFile::create_rw(&below_a_file, 10).await;
        assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::ENOTDIR));
        let long = dir.path().join("x".repeat(300));
        let error = MemoryMappedFile::create_rw(&long, 10).await;
        assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::ENAMETOOLONG));
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    });
}

#[test]
fn create_new_refuses_existing_paths() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let (dangling, circle) = (dir.path().join("dangling"), dir.path().join("circle"));
        symlink(dir.path().join("target"), &dangling).unwrap();
        symlink(&circle, &circle).unwrap();
        // Whether it is mapped, or not, or a link to nothing.
        for path in [&path, &dangling, &circle] {
            let new = MemoryMappedFile::builder(path).size(10);
            assert_kind!(new.clone().create_new().await, AlreadyExists);
            let new = new.preallocate(true);
            assert_kind!(new.create_new().await, AlreadyExists);
        }
        assert!(!dir.path().join("target").exists());
        for opened in [
            MemoryMappedFile::open_ro(&circle).await.map(drop),
            MemoryMappedFile::create_rw(&circle, 10).await.map(drop),
            MemoryMappedFile::open_or_create(&circle, 10)
                .await
                .map(drop),
            file.copy_to(&circle).await.map(drop),
        ] {
            let error = opened.unwrap_err().raw_os_error();
            assert_eq!(error, Some(libc::ELOOP));
        }
        assert_kind!(MemoryMappedFile::open_ro(&dangling).await, NotFound);
        // A link that dangles is created through.
        let target = dir.path().join("target");
        for way in 0..3 {
            match way {
                0 => drop(MemoryMappedFile::create_rw(&dangling, 10).await.unwrap()),
                1 => drop(
                    MemoryMappedFile::open_or_create(&dangling, 10)
                        .await
                        .unwrap(),
                ),
                _ => drop(file.copy_to(&dangling).await.unwrap()),
            }
            assert!(fs::symlink_metadata(&dangling).unwrap().is_symlink());
            let len = fs::metadata(&target).unwrap().len();
            assert_eq!(len, if way == 2 { 1000 } else { 10 });
            fs::remove_file(&target).unwrap();
        }
        assert!(fs::read(&path).unwrap() == pattern(1000));
    });
}

#[test]
fn relative_path_finds_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let here = std::env::current_dir().unwrap();
    let mut relative: PathBuf = here.components().skip(1).map(|_| "..").collect();
    let absolute = dir.path().canonicalize().unwrap();
    relative.push(absolute.strip_prefix("/").unwrap());
    block_on(async {
        let path = relative.join("data");
        let file = MemoryMappedFile::create_rw(&path, 100).await.unwrap();
        assert_eq!(file.path(), path);
        file.update_region_async(0, b"x").await.unwrap();
        let again = MemoryMappedFile::open_rw(absolute.join("data"))
            .await
            .unwrap();
        let view = again.as_slice(0, 1).unwrap();
        assert_eq!(view, b"x");
        assert!(!file.try_update_region(0, b"y").await.unwrap());
    });
}

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
        // Also while somebody has mapped the file who may.
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
fn create_over_mapped_path_is_busy() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let hard = dir.path().join("hard");
        fs::hard_link(&path, &hard).unwrap();
        let before = Before::new(&path, &file);
        for path in [&path, &hard] {
            let error = MemoryMappedFile::create_rw(path, 10).await.unwrap_err();
            let told = matches!(
                error,
                MmapIoError::Busy {
                    offset: 0,
                    len: 1000,
                    ..
                }
            );
            assert!(told, "{error:?}");
            assert!(error.to_string().contains("is mapped"), "{error}");
            assert_error!(
                mmap_io::copy_mmap(path, &hard).await,
                MmapIoError::Busy { .. }
            );
        }
        before.assert_unchanged(&file);
        drop(file);
        assert_eq!(
            MemoryMappedFile::create_rw(&path, 10).await.unwrap().len(),
            10
        );
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
        // Somebody else's handle does not.
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

#[test]
fn utils_check_and_align() {
    assert!(page_size().is_power_of_two());
    for (value, alignment, aligned) in [
        (0, 4096, 0),
        (1, 4096, 4096),
        (4096, 4096, 4096),
        (4097, 4096, 8192),
        (5, 0, 5),
        (5, 1, 5),
        (7, 3, 9),
        (u64::MAX, 1, u64::MAX),
        // Saturating.
        (u64::MAX, 4096, u64::MAX),
        (u64::MAX - 4094, 4096, u64::MAX),
        (u64::MAX - 4095, 4096, u64::MAX - 4095),
    ] {
        assert_eq!(align_up(value, alignment), aligned, "{value} {alignment}");
    }
    for (offset, len, total, fits) in [
        (0, 0, 0, true),
        (5, 5, 10, true),
        (10, 0, 10, true),
        (5, 6, 10, false),
        (11, 0, 10, false),
        (1, u64::MAX, u64::MAX, false),
        (u64::MAX, 1, u64::MAX, false),
        (0, u64::MAX, u64::MAX, true),
    ] {
        assert_eq!(ensure_in_bounds(offset, len, total).is_ok(), fits);
        let range = slice_range(offset, len, total).ok();
        let expected = fits.then(|| (offset as usize, (offset + len) as usize));
        assert_eq!(range, expected);
    }
    for error in [
        ensure_in_bounds(5, 6, 10).unwrap_err(),
        slice_range(5, 6, 10).unwrap_err(),
    ] {
        assert_error!(
            Err::<(), _>(&error),
            MmapIoError::OutOfBounds {
                offset: 5,
                len: 6,
                total: 10
            }
        );
        let message = error.to_string();
        assert!(["5", "6", "10"]
            .iter()
            .all(|number| message.contains(number)));
    }
}

// Tests that need a process of their own: one half sets the fixture and runs the other there.

/// Runs a child on `dir`, which is its current directory.
fn assert_passes_in(dir: &Path, child: Child, prepare: impl FnOnce(&mut Command)) {
    // The binary may lie where another user cannot reach it.
    let binary = dir.join("binary");
    fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    child.dir(dir).binary(&binary).passes_with(|command| {
        command.current_dir(dir);
        prepare(command);
    });
    fs::remove_file(binary).unwrap();
}

#[test]
fn missing_permission_is_an_error() {
    // SAFETY: the call takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return skip(
            "missing_permission_is_an_error",
            "needs root, to become somebody else",
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let allow = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    allow(dir.path(), 0o755);
    let [data, secret, closed] = ["data", "secret", "closed"].map(|name| dir.path().join(name));
    fs::write(&data, pattern(1000)).unwrap();
    fs::write(&secret, b"x").unwrap();
    allow(&secret, 0o600);
    fs::create_dir(&closed).unwrap();
    fs::write(closed.join("data"), b"x").unwrap();
    allow(&closed, 0o700);
    fs::create_dir(dir.path().join("open")).unwrap();
    allow(&dir.path().join("open"), 0o777);
    assert_passes_in(dir.path(), child!(unprivileged_child), |command| {
        command.uid(65534).gid(65534);
    });
    assert!(!dir.path().join("new").exists());
    assert!(fs::read(&data).unwrap() == pattern(1000));
    assert_eq!(fs::read(&secret).unwrap(), b"x");
    assert_eq!(fs::read(closed.join("data")).unwrap(), b"x");
    assert!(fs::read(dir.path().join("open/copy")).unwrap() == pattern(1000));
}

#[test]
fn unprivileged_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    block_on(async {
        let [data, secret, new] = ["data", "secret", "new"].map(|name| dir.join(name));
        let file = MemoryMappedFile::open_ro(&data).await.unwrap();
        for denied in [
            MemoryMappedFile::open_rw(&data).await.map(drop),
            MemoryMappedFile::create_rw(&data, 10).await.map(drop),
            MemoryMappedFile::open_or_create(&data, 10).await.map(drop),
            MemoryMappedFile::create_rw(&new, 10).await.map(drop),
            MemoryMappedFile::open_or_create(&new, 10).await.map(drop),
            MemoryMappedFile::builder(&new)
                .size(10)
                .create_new()
                .await
                .map(drop),
            MemoryMappedFile::open_ro(&secret).await.map(drop),
            MemoryMappedFile::open_ro(dir.join("closed/data"))
                .await
                .map(drop),
            MemoryMappedFile::create_rw(dir.join("closed/new"), 10)
                .await
                .map(drop),
            mmap_io::write_mmap(&data, 0, b"x").await,
            mmap_io::delete_mmap(&data).await,
            mmap_io::copy_mmap(&secret, &new).await,
            file.copy_to(&new).await.map(drop),
            file.copy_to(&secret).await.map(drop),
        ] {
            assert_kind!(denied, PermissionDenied);
        }
        let error = MemoryMappedFile::open_ro(&secret).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
        // What may be read is read, though its page cache may not be probed.
        assert_eq!(file.slice(0, 1000).await.unwrap(), &pattern(1000)[..]);
        assert_eq!(file.stats().resident_hits, 0);
        file.copy_to(dir.join("open/copy")).await.unwrap();
    });
}

#[test]
fn resource_limits_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("data"), pattern(1000)).unwrap();
    fs::write(dir.path().join("other"), pattern(500)).unwrap();
    fs::write(dir.path().join("empty"), b"").unwrap();
    symlink("nothing", dir.path().join("dangling")).unwrap();
    assert_passes_in(dir.path(), child!(limited_child), |_| ());
}

#[test]
fn limited_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let limit = |resource, most| {
        let limit = libc::rlimit {
            rlim_cur: most,
            rlim_max: most,
        };
        // SAFETY: the structure is live for the call.
        assert_eq!(unsafe { libc::setrlimit(resource, &limit) }, 0);
    };
    let names = || {
        let entries = fs::read_dir(&dir).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    block_on(async {
        let before = names();
        let file = MemoryMappedFile::open_rw("data").await.unwrap();
        // A view of what could be mapped before.
        let view = file.as_slice(0, 1000).unwrap();

        // More than the address space.
        let assert_unmapped = |result: Result<MemoryMappedFile>| {
            let error = result.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOMEM), "{error:?}");
        };
        let most: libc::rlim_t = 8 << 30;
        limit(libc::RLIMIT_AS, most);
        let huge = 2 * most;
        assert_unmapped(MemoryMappedFile::create_rw("new", huge).await);
        assert_unmapped(MemoryMappedFile::create_rw("dangling", huge).await);
        assert_unmapped(MemoryMappedFile::open_or_create("new", huge).await);
        assert_unmapped(MemoryMappedFile::open_or_create("empty", huge).await);
        let new = MemoryMappedFile::builder("new").size(huge);
        assert_unmapped(new.create_new().await);
        // Before what was there is lost.
        assert_unmapped(MemoryMappedFile::create_rw("other", huge).await);
        let error = file.resize(huge).await.unwrap_err();
        assert!(matches!(error, MmapIoError::ResizeFailed(_)), "{error:?}");
        assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
        assert_eq!(
            (file.len(), fs::metadata("data").unwrap().len()),
            (1000, 1000)
        );
        assert_eq!(fs::metadata("empty").unwrap().len(), 0);
        assert_eq!(names(), before);

        // More than a file may have.
        // SAFETY: the signal is ignored, no handler runs.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        limit(libc::RLIMIT_FSIZE, 1 << 20);
        let assert_too_large = |result: Result<()>| {
            let error = result.unwrap_err();
            assert!(matches!(error, MmapIoError::ResizeFailed(_)), "{error:?}");
            assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
        };
        let large = 2 << 20;
        for name in ["new", "dangling", "other"] {
            let builder = || MemoryMappedFile::builder(name).size(large);
            assert_too_large(builder().create().await.map(drop));
            assert_too_large(builder().preallocate(true).create().await.map(drop));
            if name != "other" {
                assert_too_large(builder().open_or_create().await.map(drop));
            }
        }
        assert_eq!(fs::read("other").unwrap(), pattern(500));
        let new = MemoryMappedFile::builder("new").size(large);
        assert_too_large(new.create_new().await.map(drop));
        let empty = MemoryMappedFile::open_or_create("empty", large).await;
        assert_too_large(empty.map(drop));
        assert_too_large(file.resize(large).await);
        assert_eq!(
            (file.len(), fs::metadata("data").unwrap().len()),
            (1000, 1000)
        );
        assert_eq!(fs::metadata("empty").unwrap().len(), 0);
        assert_eq!(names(), before);

        // More descriptors than there may be.
        limit(libc::RLIMIT_NOFILE, 32);
        let mut taken = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            taken.push(file);
        }
        let assert_too_many = |result: Result<()>| {
            let error = result.unwrap_err().raw_os_error();
            assert_eq!(error, Some(libc::EMFILE));
        };
        assert_too_many(MemoryMappedFile::open_ro("data").await.map(drop));
        assert_too_many(MemoryMappedFile::create_rw("new", 10).await.map(drop));
        assert_too_many(file.copy_to("new").await.map(drop));
        drop(taken);
        assert_eq!(names(), before);

        // What was there is as it was, and a path without a directory is good.
        assert_eq!(view, &pattern(1000)[..]);
        drop(view);
        file.update_region_async(0, b"x").await.unwrap();
        file.resize(2000).await.unwrap();
        let file = MemoryMappedFile::create_rw("bare", 10).await.unwrap();
        file.update_region_async(0, b"x").await.unwrap();
        assert_eq!(fs::metadata(dir.join("bare")).unwrap().len(), 10);
    });
}
