//! Paths that lead to no regular file, to nothing, or to a file that exists already.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use mmap_io::{MemoryMappedFile, MmapIoError, MmapMode};

use super::Before;
use crate::common::{block_on, pattern, patterned};
use crate::{assert_error, assert_kind};

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
        // A mapped path, a link to nothing, and a link to itself.
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
        // A file is created through a dangling link.
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
