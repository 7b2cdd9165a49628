//! Other processes are ordinary neighbours: they open, create, grow and move the same files at the
//! same time, and no opening here removes, empties or shortens their files.

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use mmap_io::{MemoryMappedFile, MmapIoError};

use crate::common::child::{child, child_dir};
use crate::common::disk::{try_run, Disk, MIB};
use crate::common::probe::{can_trace, trace};
use crate::common::{block_on, join_with_timeout, on_a_disk, pattern, skip};

#[cfg(feature = "atomic")]
mod counters;
mod creation;
mod cuts;
mod overlay;

/// Exchanges two names atomically.
fn exchange(one: &Path, other: &Path) -> std::io::Result<()> {
    let [one, other] = [one, other].map(|path| CString::new(path.as_os_str().as_bytes()).unwrap());
    let here = libc::AT_FDCWD;
    // SAFETY: both names are live and end in a zero byte.
    match unsafe {
        libc::renameat2(
            here,
            one.as_ptr(),
            here,
            other.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Runs `body` while another thread repeats `disturb`.
fn beside(disturb: impl Fn() + Sync, body: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        /// Stops the thread, also if the body panics.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                disturb();
            }
        });
        body();
    });
}

#[test]
fn proc_fd_path_opens_unnamed_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    join_with_timeout("opening a deleted file", async move {
        fs::write(&path, pattern(5000)).unwrap();
        let deleted = File::options().read(true).write(true).open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        // SAFETY: the name is live and ends in a zero byte.
        let memory = unsafe { libc::memfd_create(b"memory\0".as_ptr().cast(), 0) };
        assert!(memory >= 0);
        // SAFETY: the descriptor is new, and nothing else owns it.
        let memory = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(memory) };
        memory.set_len(5000).unwrap();
        for file in [&deleted, &memory] {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
            let writer = MemoryMappedFile::open_rw(&path).await.unwrap();
            writer.update_region_async(0, b"x").await.unwrap();
            assert_eq!(reader.as_slice(0, 1).unwrap(), b"x");
            drop((reader, writer));
            let again = MemoryMappedFile::open_or_create(&path, 10).await.unwrap();
            assert_eq!(again.len(), 5000);
        }
    });
}

#[test]
fn copy_is_private_until_whole() {
    let test = "copy_is_private_until_whole";
    if !can_trace(test) {
        return;
    }
    let dir = on_a_disk();
    let calls = "-etrace=openat,fchmod,copy_file_range,pwrite64,ioctl,ftruncate";
    let trace = trace(child!(copying_child), dir.path(), &["-y", calls]);
    for name in ["new", "old"] {
        let of_copy = |line: &&str| line.contains(&format!("/{name}"));
        let lines: Vec<_> = trace.lines().filter(of_copy).collect();
        let first = |what: &str| lines.iter().position(|line| line.contains(what));
        let copied = ["copy_file_range(", "pwrite64(", "FICLONE"];
        let copied = copied.iter().filter_map(|call| first(call)).min().unwrap();
        let private = first("0600").expect("the copy never had mode 0600");
        assert!(private < copied, "{lines:#?}");
        let cut = first("ftruncate(").unwrap_or(usize::MAX);
        assert!(private < cut, "{lines:#?}");
    }
}

#[test]
fn copying_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let [source, new, old] = ["source", "new", "old"].map(|name| dir.join(name));
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    let set_mode = |path: &Path, mode| {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    fs::write(&source, pattern(100_000)).unwrap();
    fs::write(&old, b"old").unwrap();
    for (of_source, of_copy) in [(0o600, 0o600), (0o4755, 0o755), (0o640, 0o640)] {
        set_mode(&source, of_source);
        set_mode(&old, 0o6777);
        let file = block_on(MemoryMappedFile::open_ro(&source)).unwrap();
        for copy in [&new, &old] {
            block_on(file.copy_to(copy)).unwrap();
            assert!(fs::read(copy).unwrap() == pattern(100_000));
            assert_eq!(mode(copy), of_copy);
        }
        fs::remove_file(&new).unwrap();
    }
}

/// An old ext4 has no room for a birth time in the inode, until the first write makes some.
#[test]
fn new_birth_time_keeps_file_identity() {
    let test = "new_birth_time_keeps_file_identity";
    let dir = tempfile::tempdir().unwrap();
    let (image, data) = (dir.path().join("image"), dir.path().join("data"));
    fs::write(&data, pattern(8192)).unwrap();
    let prepare = |image: &Path| {
        let write = format!("write {} data", data.display());
        for request in [&*write, "set_inode_field data extra_isize 16"] {
            let mut debugfs = Command::new("debugfs");
            debugfs.args(["-w", "-R", request]).arg(image);
            try_run(test, &mut debugfs)?;
        }
        Some(())
    };
    let options = ["-I256", "-b1024"];
    let Some(disk) = Disk::ext4_prepared(test, &image, 16 * MIB, &options, prepare) else {
        return;
    };
    let path = disk.path("data");
    let born = || fs::metadata(&path).unwrap().created().ok();
    block_on(async {
        let before = born();
        let file = MemoryMappedFile::open_rw(&path).await.unwrap();
        file.update_region_async(0, b"first").await.unwrap();
        if born() == before {
            return skip(test, "the birth time did not change");
        }
        let view = file.as_slice(0, 5).unwrap();
        let other = MemoryMappedFile::open_rw(&path).await.unwrap();
        assert!(!other.try_update_region(0, b"other").await.unwrap());
        assert_eq!(view, b"first");
    });
}

/// Whether another open file description would meet a lock on the first byte.
fn is_locked(other: &File) -> bool {
    let mut lock = lock_of(libc::F_WRLCK);
    // SAFETY: `lock` is live for the call, and `other` keeps the descriptor open.
    let asked = unsafe { libc::fcntl(other.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) };
    assert_eq!(asked, 0, "{}", std::io::Error::last_os_error());
    lock.l_type != libc::F_UNLCK as libc::c_short
}

fn lock_of(kind: libc::c_int) -> libc::flock {
    // SAFETY: all-zero bytes are a valid `flock`: the whole file, from its start.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock
}

/// POSIX takes the locks of a process off a file when the process closes any descriptor of it.
#[test]
fn posix_locks_outlive_further_handles() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("file"), dir.path().join("source"));
    fs::write(&path, [1; 8192]).unwrap();
    fs::write(&copy, [2; 8192]).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let other = File::options().read(true).write(true).open(&path).unwrap();
    block_on(async {
        let first = MemoryMappedFile::open_rw(&path).await.unwrap();
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let source = MemoryMappedFile::open_ro(&copy).await.unwrap();
        let lock = lock_of(libc::F_WRLCK);
        // SAFETY: `lock` is live for the call, and `file` keeps the descriptor open.
        let locked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &lock) };
        assert_eq!(locked, 0, "{}", std::io::Error::last_os_error());
        assert!(is_locked(&other));
        for round in 0..3 {
            let handles = [
                MemoryMappedFile::open_rw(&path).await.unwrap(),
                MemoryMappedFile::open_ro(&path).await.unwrap(),
                MemoryMappedFile::open_or_create(&path, 10).await.unwrap(),
            ];
            for handle in handles {
                handle.close().await.unwrap();
            }
            let refused = MemoryMappedFile::create_rw(&path, 10).await;
            assert!(matches!(refused, Err(MmapIoError::Busy { .. })));
            let refused = source.copy_to(&path).await;
            assert!(matches!(refused, Err(MmapIoError::Busy { .. })));
            assert!(is_locked(&other), "round {round}");
        }
        drop((first, reader, source));
    });
}

#[test]
fn second_handle_needs_open_permission() {
    let test = "second_handle_needs_open_permission";
    if let Some(dir) = child_dir() {
        return as_another_user(&dir.join("file"));
    }
    // SAFETY: it has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return skip(test, "needs root, to become another user");
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), [1; 4096]).unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    child!(second_handle_needs_open_permission)
        .dir(dir.path())
        .passes();
}

fn as_another_user(path: &Path) {
    let may = |mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    block_on(async {
        let writer = MemoryMappedFile::open_rw(path).await.unwrap();
        let reader = MemoryMappedFile::open_ro(path).await.unwrap();
        for mode in [0o600, 0o644, 0o602, 0o666] {
            may(mode);
            // The threads of the pool as well.
            // SAFETY: it takes no pointers.
            assert_eq!(unsafe { libc::seteuid(65534) }, 0);
            let opened = [
                MemoryMappedFile::open_ro(path).await,
                MemoryMappedFile::open_rw(path).await,
                MemoryMappedFile::open_or_create(path, 10).await,
            ];
            let created = MemoryMappedFile::create_rw(path, 10).await;
            // SAFETY: the same.
            assert_eq!(unsafe { libc::seteuid(0) }, 0);
            let (reads, writes) = (mode & 0o4 > 0, mode & 0o6 == 0o6);
            for (opened, may) in opened.iter().zip([reads, writes, writes]) {
                match opened {
                    Ok(_) => assert!(may, "{mode:o}"),
                    Err(error) => {
                        assert!(!may, "{mode:o}: {error}");
                        assert_eq!(error.io_kind(), Some(std::io::ErrorKind::PermissionDenied));
                    }
                }
            }
            let is_busy = matches!(created, Err(MmapIoError::Busy { .. }));
            assert_eq!(is_busy, writes, "{mode:o}: {created:?}");
        }
        drop((writer, reader));
    });
}
