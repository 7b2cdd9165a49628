//! Bad input: each a clear error, and nothing changed.

mod common;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::Path;

use common::{alone, pattern, patterned, skip};
use mmap_io::utils::{align_up, ensure_in_bounds, page_size, slice_range};
use mmap_io::{MemoryMappedFile, MmapIoError, MmapMode};

const TOO_LARGE: u64 = (128 << 40) + 1;

macro_rules! assert_error {
    ($result:expr, $pattern:pat) => {
        let result = $result.map(drop);
        assert!(matches!(result, Err($pattern)), "{result:?}");
    };
}

#[test]
fn ranges_outside_the_file() {
    let dir = tempfile::tempdir().unwrap();
    alone(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        for (offset, len) in [(1000, 1), (999, 2), (u64::MAX, 2), (1, u64::MAX), (5000, 1)] {
            assert_error!(file.as_slice(offset, len), MmapIoError::OutOfBounds { .. });
            assert_error!(
                file.try_as_slice(offset, len),
                MmapIoError::OutOfBounds { .. }
            );
            assert_error!(
                file.slice(offset, len).await,
                MmapIoError::OutOfBounds { .. }
            );
            assert_error!(file.bytes(offset, len), MmapIoError::OutOfBounds { .. });
            assert_error!(
                file.read_bytes(offset, len).await,
                MmapIoError::OutOfBounds { .. }
            );
            assert_error!(
                file.as_slice_mut(offset, len).await,
                MmapIoError::OutOfBounds { .. }
            );
            assert_error!(
                file.try_as_slice_mut(offset, len),
                MmapIoError::OutOfBounds { .. }
            );
            assert_error!(
                file.flush_range(offset, len).await,
                MmapIoError::OutOfBounds { .. }
            );
            assert_error!(
                file.touch_pages_range(offset, len).await,
                MmapIoError::OutOfBounds { .. }
            );
            assert_error!(
                file.prefetch_range(offset, len).await,
                MmapIoError::OutOfBounds { .. }
            );
            #[cfg(feature = "advise")]
            assert_error!(
                file.advise(offset, len, mmap_io::MmapAdvice::Normal).await,
                MmapIoError::OutOfBounds { .. }
            );
        }
        assert_error!(
            file.update_region(999, b"xx").await,
            MmapIoError::OutOfBounds { .. }
        );
        assert_error!(
            file.update_region_async(u64::MAX, b"xx").await,
            MmapIoError::OutOfBounds { .. }
        );
        assert_error!(
            file.update_regions(&[(0, b"x"), (1000, b"x")]).await,
            MmapIoError::OutOfBounds {
                offset: 1000,
                len: 1,
                total: 1000
            }
        );
        assert_error!(
            file.write_bytes(999, vec![1, 2].into()).await,
            MmapIoError::OutOfBounds { .. }
        );
        assert_error!(
            file.try_update_region(1000, b"x").await,
            MmapIoError::OutOfBounds { .. }
        );
        // No bytes are no bytes, wherever.
        file.update_region(u64::MAX, b"").await.unwrap();
        assert!(file.slice(u64::MAX, 0).await.unwrap().is_empty());
        assert!(file.as_slice(5000, 0).unwrap().is_empty());
        assert!(file.as_slice_mut(5000, 0).await.unwrap().is_empty());
        assert_eq!(fs::read(path).unwrap(), pattern(1000));
        assert_eq!(file.stats().updates, 0);
    });
}

#[test]
fn sizes_that_no_file_can_have() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new");
    alone(async {
        for size in [0, TOO_LARGE, u64::MAX] {
            let created = MemoryMappedFile::create_rw(&path, size).await;
            assert_eq!(
                created.as_ref().unwrap_err().io_kind(),
                Some(ErrorKind::InvalidInput)
            );
            assert_error!(created, MmapIoError::ResizeFailed(_));
            assert_error!(
                MemoryMappedFile::builder(&path)
                    .size(size)
                    .create_new()
                    .await,
                MmapIoError::ResizeFailed(_)
            );
            assert_error!(
                MemoryMappedFile::open_or_create(&path, size).await,
                MmapIoError::ResizeFailed(_)
            );
            assert!(!path.exists());
        }
        let (data, file) = patterned(dir.path(), 1000).await;
        for size in [0, TOO_LARGE] {
            assert_error!(file.resize(size).await, MmapIoError::ResizeFailed(_));
        }
        // Too large for the file system: the length is what it was.
        assert_error!(file.resize(100 << 40).await, MmapIoError::ResizeFailed(_));
        assert_eq!(
            (file.len(), fs::metadata(data).unwrap().len()),
            (1000, 1000)
        );
        fs::write(&path, b"").unwrap();
        assert_error!(
            MemoryMappedFile::open_rw(&path).await,
            MmapIoError::ResizeFailed(_)
        );
        assert!(MemoryMappedFile::open_ro(&path).await.unwrap().is_empty());
    });
}

#[test]
fn what_is_no_regular_file() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    let made = std::process::Command::new("mkfifo")
        .arg(&fifo)
        .status()
        .unwrap();
    assert!(made.success());
    alone(async {
        for path in [
            dir.path(),
            &fifo,
            Path::new("/dev/null"),
            Path::new("/dev/zero"),
        ] {
            assert_error!(MemoryMappedFile::open_ro(path).await, MmapIoError::Io(_));
            assert_error!(MemoryMappedFile::open_rw(path).await, MmapIoError::Io(_));
            assert_error!(
                MemoryMappedFile::create_rw(path, 10).await,
                MmapIoError::Io(_)
            );
            assert_error!(
                MemoryMappedFile::open_or_create(path, 10).await,
                MmapIoError::Io(_)
            );
            assert!(path.exists());
        }
    });
}

#[test]
fn paths_that_lead_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    alone(async {
        let missing = dir.path().join("missing");
        let error = MemoryMappedFile::open_ro(&missing).await.unwrap_err();
        assert_eq!(error.io_kind(), Some(ErrorKind::NotFound));
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        assert!(MemoryMappedFile::open_rw(&missing).await.is_err());
        assert!(MemoryMappedFile::create_rw(missing.join("below"), 10)
            .await
            .is_err());
        assert!(MemoryMappedFile::create_rw("nul\0here", 10).await.is_err());
        assert!(mmap_io::delete_mmap(&missing).await.is_err());
        assert!(!missing.exists());
        fs::write(&missing, b"x").unwrap();
        let taken = MemoryMappedFile::builder(&missing)
            .size(1)
            .create_new()
            .await
            .unwrap_err();
        assert_eq!(taken.io_kind(), Some(ErrorKind::AlreadyExists));
        assert_eq!(fs::read(&missing).unwrap(), b"x");
        // A link that dangles is created through; one in a circle is not.
        let (link, circle) = (dir.path().join("link"), dir.path().join("circle"));
        std::os::unix::fs::symlink(dir.path().join("target"), &link).unwrap();
        std::os::unix::fs::symlink(&circle, &circle).unwrap();
        let file = MemoryMappedFile::create_rw(&link, 10).await.unwrap();
        assert_eq!(fs::metadata(dir.path().join("target")).unwrap().len(), 10);
        drop(file);
        assert!(MemoryMappedFile::create_rw(&circle, 10).await.is_err());
    });
}

#[test]
fn modes_and_descriptors_that_do_not_permit_it() {
    let dir = tempfile::tempdir().unwrap();
    alone(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        drop(file);
        let file = MemoryMappedFile::open_ro(&path).await.unwrap();
        assert_error!(
            file.update_region(0, b"x").await,
            MmapIoError::InvalidMode(_)
        );
        assert_error!(
            file.update_region_async(0, b"x").await,
            MmapIoError::InvalidMode(_)
        );
        assert_error!(
            file.update_regions(&[(0, b"x")]).await,
            MmapIoError::InvalidMode(_)
        );
        assert_error!(
            file.write_bytes(0, vec![1].into()).await,
            MmapIoError::InvalidMode(_)
        );
        assert_error!(
            file.try_update_region(0, b"x").await,
            MmapIoError::InvalidMode(_)
        );
        assert_error!(file.as_slice_mut(0, 1).await, MmapIoError::InvalidMode(_));
        assert_error!(file.try_as_slice_mut(0, 1), MmapIoError::InvalidMode(_));
        assert_error!(file.resize(10).await, MmapIoError::InvalidMode(_));
        // SAFETY: it is refused.
        assert_error!(unsafe { file.as_mut_ptr() }, MmapIoError::InvalidMode(_));
        file.flush().await.unwrap();
        file.update_region(0, b"").await.unwrap();
        drop(file);
        let open = |options: &mut fs::OpenOptions| options.open(&path).unwrap();
        for (descriptor, mode) in [
            (open(fs::File::options().read(true)), MmapMode::ReadWrite),
            (open(fs::File::options().write(true)), MmapMode::ReadWrite),
            (open(fs::File::options().write(true)), MmapMode::ReadOnly),
            (
                open(fs::File::options().read(true).append(true)),
                MmapMode::ReadWrite,
            ),
        ] {
            let file = MemoryMappedFile::from_file(descriptor, mode, &path).await;
            assert_error!(file, MmapIoError::InvalidMode(_));
        }
        let read_only = MemoryMappedFile::builder(&path).mode(MmapMode::ReadOnly);
        assert_error!(read_only.create_new().await, MmapIoError::InvalidMode(_));
        assert_eq!(fs::read(&path).unwrap(), pattern(1000));
    });
}

#[test]
fn paths_that_are_mapped_here() {
    let dir = tempfile::tempdir().unwrap();
    alone(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let hard = dir.path().join("hard");
        fs::hard_link(&path, &hard).unwrap();
        for path in [&path, &hard] {
            assert_error!(
                MemoryMappedFile::create_rw(path, 10).await,
                MmapIoError::Busy { .. }
            );
            assert_error!(
                mmap_io::copy_mmap(&path, &hard).await,
                MmapIoError::Busy { .. }
            );
        }
        assert_eq!(fs::read(&path).unwrap(), pattern(1000));
        assert_eq!(file.as_slice(0, 1000).unwrap(), &pattern(1000)[..]);
        drop(file);
        assert_eq!(
            MemoryMappedFile::create_rw(&path, 10).await.unwrap().len(),
            10
        );
    });
}

/// Runs in a process of its own, as somebody who may not; see the next test.
#[test]
fn without_permission_child() {
    let Some(dir) = std::env::var_os("MMAP_IO_TEST_FORBIDDEN") else {
        return;
    };
    let dir = Path::new(&dir);
    alone(async {
        let data = dir.join("data");
        let denied = |error: MmapIoError| {
            assert_eq!(
                error.io_kind(),
                Some(ErrorKind::PermissionDenied),
                "{error:?}"
            );
        };
        denied(MemoryMappedFile::open_rw(&data).await.unwrap_err());
        denied(MemoryMappedFile::create_rw(&data, 10).await.unwrap_err());
        denied(
            MemoryMappedFile::create_rw(dir.join("new"), 10)
                .await
                .unwrap_err(),
        );
        denied(
            MemoryMappedFile::open_ro(dir.join("secret"))
                .await
                .unwrap_err(),
        );
        // What may be read is read, though its page cache may not be probed.
        let file = MemoryMappedFile::open_ro(&data).await.unwrap();
        assert_eq!(file.slice(0, 1000).await.unwrap(), &pattern(1000)[..]);
        assert_eq!(file.stats().resident_hits, 0);
    });
}

#[test]
fn without_permission() {
    // SAFETY: the call takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return skip("without_permission", "needs root, to become somebody else");
    }
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.path().join("data"), pattern(1000)).unwrap();
    fs::write(dir.path().join("secret"), b"x").unwrap();
    fs::set_permissions(dir.path().join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    // The binary may lie where nobody else can reach it.
    let binary = dir.path().join("binary");
    fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let status = std::process::Command::new(&binary)
        .args(["--exact", "without_permission_child"])
        .env("MMAP_IO_TEST_FORBIDDEN", dir.path())
        .current_dir(dir.path())
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    assert!(
        status.status.success(),
        "{}",
        String::from_utf8_lossy(&status.stdout)
    );
    assert!(!dir.path().join("new").exists());
    assert_eq!(fs::read(dir.path().join("data")).unwrap(), pattern(1000));
}

#[test]
fn helpers() {
    assert!(page_size().is_power_of_two());
    assert_eq!(align_up(1, 4096), 4096);
    assert_eq!(align_up(u64::MAX, 4096), u64::MAX);
    assert_eq!(align_up(5, 0), 5);
    assert!(ensure_in_bounds(5, 5, 10).is_ok() && ensure_in_bounds(5, 6, 10).is_err());
    assert_eq!(slice_range(1, 2, 3).unwrap(), 1..3);
    assert!(slice_range(u64::MAX, 2, 3).is_err());
    let error = ensure_in_bounds(5, 6, 10).unwrap_err().to_string();
    assert!(
        error.contains('5') && error.contains('6') && error.contains("10"),
        "{error}"
    );
}
