//! A full disk is an error before the first byte changes.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use futures_lite::future::zip;
use mmap_io::{MemoryMappedFile, MmapIoError};

use crate::common::child::{alone, child};
use crate::common::disk::{assert_full, Disk, MIB};
use crate::common::{block_on, is_quiet, on_a_disk, pattern, wait_until};

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

    // With preallocation, reserving the blocks fails.
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

    // Nothing has changed, and the bytes that have blocks can be read and written.
    assert!(fs::read(&path).unwrap() == content);
    assert_eq!(file.slice(0, 4096).await.unwrap(), &content[..4096]);
    // A tmpfs takes a page for a hole that is only read.
    match file.slice(5000, 10).await {
        Ok(hole) => assert_eq!(hole, [0; 10]),
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error:?}"),
    }
    assert_eq!(file.pending_bytes(), 0);
    // Also at the same time as a write that fails.
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
    // With room again, the rest can be written.
    disk.free(&filler);
    file.update_region_async(MIB, b"room").await.unwrap();
    assert_eq!(file.as_slice(MIB, 4).unwrap(), b"room");
}

/// Bytes that the file system can still give to root, and those to other users.
fn free(path: &Path) -> (u64, u64) {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: an all-zero `statvfs` is valid, and the call fills it.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends in a zero byte, and `stat` is live for the call.
    assert_eq!(unsafe { libc::statvfs(path.as_ptr(), &mut stat) }, 0);
    #[allow(clippy::useless_conversion)] // They are narrower on some platforms.
    let [all, usable, len] = [stat.f_bfree, stat.f_bavail, stat.f_frsize].map(u64::from);
    (all * len, usable * len)
}

/// A store into a hole may need the blocks of a whole large folio. Where those are unavailable,
/// only the bytes themselves are written, and in the end the error says that the disk is full.
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
        // One block may be left, and the file system gives back what it had reserved for itself
        // when it writes the data out.
        let mut at = 500 * MIB;
        loop {
            file.flush().await.unwrap();
            let before = at;
            while file.update_region(at, b"x").await.is_ok() {
                at += 4096;
            }
            if at == before {
                break;
            }
        }
        assert_full(file.as_slice_mut(900 * MIB, 4096).await);
        assert_full(file.update_region(900 * MIB, &[1; 100_000]).await);
    });
}

/// What does not fit as a whole is not begun.
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
            let (before, _) = free(&path);
            assert_full(file.as_slice_mut(0, 1 << 30).await.map(drop));
            let data = vec![1; 64 << 20];
            assert_full(file.update_region(100, &data).await);
            let (left, _) = free(&path);
            assert!(left > before / 2, "{left} of {before}");
            assert_eq!(file.as_slice(0, 5).unwrap(), b"the f");
            // A part of it fits.
            let view = file.as_slice_mut(0, 12 * MIB).await.unwrap();
            assert!(view.starts_with(b"the first page"));
        });
    }
}

/// Makes the process one of an unprivileged user, until the drop.
struct Unprivileged;

impl Unprivileged {
    fn begin() -> Self {
        const OTHER_USER: libc::uid_t = 65_534;
        // SAFETY: no list of groups is read, since it is empty.
        assert_eq!(unsafe { libc::setgroups(0, std::ptr::null()) }, 0);
        // SAFETY: the call takes no pointer.
        assert_eq!(unsafe { libc::setegid(OTHER_USER) }, 0);
        // SAFETY: as above.
        assert_eq!(unsafe { libc::seteuid(OTHER_USER) }, 0);
        Self
    }
}

impl Drop for Unprivileged {
    fn drop(&mut self) {
        // SAFETY: the call takes no pointer.
        assert_eq!(unsafe { libc::seteuid(0) }, 0);
        // SAFETY: as above.
        assert_eq!(unsafe { libc::setegid(0) }, 0);
    }
}

/// Only root may use the blocks that a file system keeps in reserve. For other users, what does not
/// fit without them is not begun.
#[test]
fn reserve_is_for_root() {
    let this = child!(reserve_is_for_root);
    let test = this.test();
    alone(this, || {
        let dir = on_a_disk();
        let image = dir.path().join("image");
        let options = ["-b4096", "-m50"];
        let Some(disk) = Disk::ext4_with(test, &image, 96 * MIB, &options) else {
            return;
        };
        fs::set_permissions(disk.path(""), fs::Permissions::from_mode(0o777)).unwrap();
        let path = disk.path("data");
        let file = |path: &Path, size| MemoryMappedFile::builder(path).size(size);
        let user = Unprivileged::begin();
        block_on(async {
            let data = file(&path, MIB).preallocate(true).create().await.unwrap();
            let sparse = file(&disk.path("sparse"), 1 << 30).create().await.unwrap();
            let (all, usable) = free(&path);
            assert!(all > usable + 30 * MIB, "{all} {usable}");
            let too_much = usable + 10 * MIB;
            let refused = disk.path("refused");
            assert_full(data.resize(too_much).await);
            assert_full(data.append(&vec![1; too_much as usize]).await);
            assert_full(file(&refused, too_much).preallocate(true).create().await);
            assert_full(sparse.as_slice_mut(0, too_much).await.map(drop));
            assert_full(mmap_io::replace(&refused, vec![1; too_much as usize]).await);
            let (_, left) = free(&path);
            assert!(left > usable - 5 * MIB, "{left} of {usable}");
            drop(user);
            data.resize(too_much).await.unwrap();
        });
    });
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
    // A file that existed before stays, and so does a file that is opened.
    fs::write(&path, b"there").unwrap();
    assert_full(block_on(builder().create()));
    assert!(path.exists());
    let opening = builder().mode(mmap_io::MmapMode::ReadWrite).open();
    assert_full(block_on(opening));
    assert!(path.exists());
}
