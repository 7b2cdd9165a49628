//! Permissions and limits of the process. Each test sets the scene, and runs a child in it.

use std::fs::{self, File};
use std::os::unix::fs::{symlink, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use mmap_io::{MemoryMappedFile, MmapIoError, Result};

use crate::assert_kind;
use crate::common::child::{child, child_dir, Child};
use crate::common::{block_on, pattern, skip};

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
            "needs root, to become another user",
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
        // A readable file is read, although its page cache may not be probed.
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

        // More than the address space permits.
        let assert_unmapped = |result: Result<MemoryMappedFile>| {
            let error = result.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOMEM), "{error:?}");
        };
        let most: libc::rlim_t = match usize::BITS {
            64 => 1 << 33,
            _ => 1 << 29,
        };
        limit(libc::RLIMIT_AS, most);
        #[allow(clippy::useless_conversion)] // It is narrower on some platforms.
        let huge = 2 * u64::from(most);
        assert_unmapped(MemoryMappedFile::create_rw("new", huge).await);
        assert_unmapped(MemoryMappedFile::create_rw("dangling", huge).await);
        assert_unmapped(MemoryMappedFile::open_or_create("new", huge).await);
        assert_unmapped(MemoryMappedFile::open_or_create("empty", huge).await);
        let new = MemoryMappedFile::builder("new").size(huge);
        assert_unmapped(new.create_new().await);
        // Before the old content is lost.
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

        // The old content is unchanged, and a path without a directory works.
        assert_eq!(view, &pattern(1000)[..]);
        drop(view);
        file.update_region_async(0, b"x").await.unwrap();
        file.resize(2000).await.unwrap();
        let file = MemoryMappedFile::create_rw("bare", 10).await.unwrap();
        file.update_region_async(0, b"x").await.unwrap();
        assert_eq!(fs::metadata(dir.join("bare")).unwrap().len(), 10);
    });
}
