//! Other processes are ordinary neighbours: they open, create, grow and move the same files at the
//! same time, and no opening here removes, empties or shortens what is theirs.

#![cfg(target_os = "linux")]

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use mmap_io::{MemoryMappedFile, MmapIoError};

use crate::common::child::{child, child_dir};
use crate::common::disk::{assert_full, try_run, Disk, MIB};
use crate::common::on_a_disk;
use crate::common::probe::{can_trace, trace};
use crate::common::{
    assert_waits, block_on, join_with_timeout, pattern, poll_once, skip, wait_until, with_timeout,
};

/// Exchanges two names, in one step.
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

/// Runs `body` while another thread does `disturb` over and over.
fn beside(disturb: impl Fn() + Sync, body: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        /// Also when the body fails.
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
fn failed_open_or_create_removes_nothing() {
    let test = "failed_open_or_create_removes_nothing";
    let Some(disk) = Disk::tmpfs(test, MIB) else {
        return;
    };
    disk.fill();
    let (new, empty) = (disk.path("new"), disk.path("empty"));
    fs::write(&empty, b"").unwrap();
    block_on(async {
        for path in [&new, &empty, &new] {
            for preallocate in [false, true] {
                let builder = MemoryMappedFile::builder(path).size(4096);
                assert_full(builder.preallocate(preallocate).open_or_create().await);
                assert_eq!(fs::metadata(path).unwrap().len(), 0);
            }
        }
        // What creates a file alone takes it away again, and leaves one that was there.
        let created = disk.path("created");
        assert_full(MemoryMappedFile::create_rw(&created, 4096).await);
        let builder = MemoryMappedFile::builder(&created).size(4096);
        assert_full(builder.create_new().await);
        assert!(!created.exists());
        assert_full(MemoryMappedFile::create_rw(&empty, 4096).await);
        assert!(empty.exists());
    });
}

/// Another process grows the file while this one is about to give it its first length.
#[test]
fn open_or_create_adopts_concurrent_length() {
    let test = "open_or_create_adopts_concurrent_length";
    if !can_trace(test) {
        return;
    }
    let dir = on_a_disk();
    let path = dir.path().join("data");
    let data = pattern(100_000);
    for way in ["open_or_create", "create_new"] {
        let slow = ["-etrace=fallocate", "-einject=fallocate:delay_enter=500000"];
        std::thread::scope(|scope| {
            let (dir, path) = (dir.path(), &path);
            fs::write(dir.join("way"), way).unwrap();
            let child = scope.spawn(|| trace(child!(slow_child), dir, &slow));
            while !path.exists() {
                std::thread::yield_now();
            }
            let file = File::options().write(true).open(path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &data, 0).unwrap();
            child.join().unwrap();
        });
        // In whatever order it came to that.
        assert!(fs::read(&path).unwrap() == data, "{way} changed it");
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn slow_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let path = dir.join("data");
    let builder = MemoryMappedFile::builder(&path).size(4096);
    let file = match &*fs::read(dir.join("way")).unwrap() {
        b"open_or_create" => block_on(builder.open_or_create()),
        _ => block_on(builder.create_new()),
    };
    match file {
        Ok(file) => assert!(file.len() <= fs::metadata(&path).unwrap().len()),
        Err(error) => assert_eq!(error.io_kind(), Some(std::io::ErrorKind::AlreadyExists)),
    }
}

/// The preallocation fails in one process while another one has opened, written and flushed.
#[test]
fn failed_open_or_create_keeps_foreign_bytes() {
    let test = "failed_open_or_create_keeps_foreign_bytes";
    if !can_trace(test) {
        return;
    }
    let dir = on_a_disk();
    let path = dir.path().join("data");
    let failing = [
        "-etrace=fallocate",
        "-einject=fallocate:error=ENOSPC:delay_enter=500000",
    ];
    for was_there in [false, true] {
        if was_there {
            fs::write(&path, b"").unwrap();
        }
        std::thread::scope(|scope| {
            let dir = dir.path();
            let child = scope.spawn(|| trace(child!(failing_child), dir, &failing));
            while !path.exists() {
                std::thread::yield_now();
            }
            let file = block_on(MemoryMappedFile::open_or_create(&path, 4096)).unwrap();
            block_on(file.update_region_async(0, b"precious")).unwrap();
            child.join().unwrap();
        });
        let content = fs::read(&path).expect("the file is gone");
        assert!(content.len() == 4096 && content.starts_with(b"precious"));
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn failing_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let builder = MemoryMappedFile::builder(dir.join("data")).size(4096);
    assert_full(block_on(builder.preallocate(true).open_or_create()));
}

#[test]
fn failed_preallocate_empties_nothing() {
    let test = "failed_preallocate_empties_nothing";
    let dir = tempfile::tempdir().unwrap();
    // An ext4 that maps blocks as ext2 did has no `fallocate`.
    let Some(disk) = Disk::ext4_with(test, &dir.path().join("image"), 16 * MIB, &["-t", "ext2"])
    else {
        return;
    };
    let path = disk.path("data");
    fs::write(&path, pattern(50_000)).unwrap();
    let content = || fs::read(&path).unwrap();
    block_on(async {
        let builder = |path| {
            MemoryMappedFile::builder(path)
                .size(100_000)
                .preallocate(true)
        };
        let new = disk.path("new");
        for refused in [
            builder(&path).create().await,
            builder(&new).create().await,
            builder(&new).create_new().await,
        ] {
            let error = refused.map(drop).unwrap_err();
            assert_eq!(error.io_kind(), Some(std::io::ErrorKind::Unsupported));
            assert!(error.to_string().contains("cannot be reserved"), "{error}");
        }
        assert!(content() == pattern(50_000) && !new.exists());
        // Without reserving it works: a file is made longer under a lock there.
        let file = MemoryMappedFile::create_rw(&path, 100_000).await.unwrap();
        file.update_region_async(99_990, &[7; 10]).await.unwrap();
        drop(file);
        assert!(content().len() == 100_000 && content().ends_with(&[7; 10]));
        let file = MemoryMappedFile::open_or_create(&new, 5000).await.unwrap();
        assert_eq!(
            (file.len(), fs::metadata(&new).unwrap().len()),
            (5000, 5000)
        );
    });
}

/// A signal makes the kernel start a call over, and some file systems take back what it had done.
#[test]
fn preallocate_resumes_after_eintr() {
    let test = "preallocate_resumes_after_eintr";
    if !can_trace(test) {
        return;
    }
    let dir = on_a_disk();
    let interrupted = [
        "-etrace=fallocate",
        "-einject=fallocate:error=EINTR:when=1..3",
    ];
    let trace = trace(child!(reserving_child), dir.path(), &interrupted);
    let lens: Vec<u64> = trace
        .lines()
        .filter(|line| line.contains("FALLOC_FL_KEEP_SIZE"))
        .map(|line| {
            // A call during which another thread made one is cut short in the trace.
            let len = line.split(", ").nth(3).unwrap();
            let digits = len.split(|character: char| !character.is_ascii_digit());
            digits.into_iter().next().unwrap().parse().unwrap()
        })
        .collect();
    assert_eq!(lens[..4], [64, 32, 16, 8].map(|mib| mib * MIB), "{trace}");
    assert_eq!(lens[3..].iter().sum::<u64>(), 150 * MIB, "{trace}");
}

#[test]
fn reserving_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let builder = MemoryMappedFile::builder(dir.join("data")).size(150 * MIB);
    let file = block_on(builder.preallocate(true).create()).unwrap();
    let reserved = fs::metadata(dir.join("data")).unwrap().blocks() * 512;
    assert!(reserved >= 150 * MIB && file.len() == 150 * MIB);
}

#[test]
fn failed_create_spares_swapped_directory() {
    let test = "failed_create_spares_swapped_directory";
    let Some(disk) = Disk::tmpfs(test, MIB) else {
        return;
    };
    let (sub, link, others) = (disk.path("sub"), disk.path("link"), disk.path("others"));
    fs::create_dir(&sub).unwrap();
    fs::create_dir(&others).unwrap();
    symlink(&others, &link).unwrap();
    let names: Vec<String> = (0..400).map(|number| number.to_string()).collect();
    for name in &names {
        fs::write(others.join(name), b"").unwrap();
    }
    disk.fill();
    beside(
        || exchange(&sub, &link).unwrap(),
        || {
            for name in &names {
                let builder = MemoryMappedFile::builder(sub.join(name)).size(4096);
                block_on(builder.create_new()).map(drop).unwrap_err();
                assert!(others.join(name).exists(), "{name} is gone");
            }
        },
    );
}

#[test]
fn create_does_not_hang_on_swapped_pipe() {
    let dir = tempfile::tempdir().unwrap();
    join_with_timeout(
        "creating a file while its directory is a pipe",
        async move {
            let (sub, fifo) = (dir.path().join("sub"), dir.path().join("fifo"));
            fs::create_dir(&sub).unwrap();
            assert!(Command::new("mkfifo")
                .arg(&fifo)
                .status()
                .unwrap()
                .success());
            beside(
                || exchange(&sub, &fifo).unwrap(),
                || {
                    for number in 0..400 {
                        let path = sub.join(number.to_string());
                        let created = block_on(MemoryMappedFile::create_rw(&path, 100));
                        if let Ok(file) = created {
                            block_on(file.update_region_async(0, b"x")).unwrap();
                        }
                    }
                },
            );
        },
    );
}

#[test]
fn only_the_kernel_follows_links() {
    let test = "only_the_kernel_follows_links";
    let Some(disk) = Disk::tmpfs_with(test, MIB, "nosymfollow") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (path, victim) = (disk.path("path"), dir.path().join("victim"));
    fs::write(&victim, pattern(5000)).unwrap();
    symlink(&victim, &path).unwrap();
    if fs::read(&path).is_ok() {
        return skip(test, "the kernel does not know nosymfollow");
    }
    let source = dir.path().join("source");
    fs::write(&source, b"source").unwrap();
    let source = block_on(MemoryMappedFile::open_ro(source)).unwrap();
    beside(
        || {
            // A file that is created here comes in between.
            let _ = fs::remove_file(&path);
            let _ = symlink(&victim, &path);
        },
        || {
            for _ in 0..200 {
                drop(block_on(MemoryMappedFile::create_rw(&path, 100)));
                drop(block_on(MemoryMappedFile::open_or_create(&path, 100)));
                drop(block_on(source.copy_to(&path)));
                assert!(fs::read(&victim).unwrap() == pattern(5000));
            }
        },
    );
}

/// What protects files in directories that all may write to (`fs.protected_regular`) judges only
/// openings that may create.
#[test]
fn creating_opens_pass_o_creat() {
    let test = "creating_opens_pass_o_creat";
    if !can_trace(test) {
        return;
    }
    let dir = on_a_disk();
    let trace = trace(child!(creating_child), dir.path(), &["-etrace=openat"]);
    let openings: Vec<_> = trace
        .lines()
        .filter(|line| line.contains("data\""))
        // It opens nothing.
        .filter(|line| !line.contains("O_PATH"))
        .collect();
    assert!(openings.len() >= 3, "{trace}");
    assert!(
        openings.iter().all(|line| line.contains("O_CREAT")),
        "{openings:#?}"
    );
}

#[test]
fn creating_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    for _ in 0..2 {
        drop(block_on(MemoryMappedFile::open_or_create(dir.join("data"), 10)).unwrap());
    }
    drop(block_on(MemoryMappedFile::create_rw(dir.join("data"), 10)).unwrap());
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
        let private = first("0600").expect("never private");
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

/// An overlayfs, whose files lie on its lower layer until they are opened for writing.
struct Overlay {
    /// Unmounted in this order.
    disk: Disk,
    _layers: tempfile::TempDir,
}

impl Overlay {
    /// With files of 64 KiB of the letter L.
    fn new(test: &str, names: &[&str]) -> Option<Self> {
        let layers = on_a_disk();
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| layers.path().join(name));
        for layer in [&lower, &upper, &work] {
            fs::create_dir(layer).unwrap();
        }
        for name in names {
            fs::write(lower.join(name), vec![b'L'; 65_536]).unwrap();
        }
        let [lower, upper, work] = [&lower, &upper, &work].map(|layer| layer.display());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        let disk = Disk::mount(test, &options, "overlay", "overlay".as_ref())?;
        Some(Self {
            disk,
            _layers: layers,
        })
    }
}

#[test]
fn overlayfs_reader_sees_first_write() {
    let names = ["reader first", "writer first", "descriptor", "late", "std"];
    let test = "overlayfs_reader_sees_first_write";
    let Some(overlay) = Overlay::new(test, &names) else {
        return;
    };
    let [reader_first, writer_first, descriptor, late, std] =
        names.map(|name| overlay.disk.path(name));
    let from_old = |file: File| MemoryMappedFile::from_file(file, mmap_io::MmapMode::ReadOnly, "");
    block_on(async {
        let assert_seen = |reader: MemoryMappedFile, writer: MemoryMappedFile| async move {
            writer.update_region_async(0, b"NEW!").await.unwrap();
            assert_eq!(reader.slice(0, 4).await.unwrap(), b"NEW!");
            // Also in the maps that come with growth.
            writer.resize(5 * MIB).await.unwrap();
            writer.update_region(5 * MIB - 4, b"END!").await.unwrap();
            writer.update_region(4, b"MORE").await.unwrap();
            assert_eq!(reader.slice(5 * MIB - 4, 4).await.unwrap(), b"END!");
            assert_eq!(reader.as_slice(0, 9).unwrap(), b"NEW!MOREL");
            // And of readers that come later.
            let path = writer.path().to_path_buf();
            let other = MemoryMappedFile::open_ro(path).await.unwrap();
            assert_eq!(other.as_slice(0, 9).unwrap(), b"NEW!MOREL");
        };
        let reader = MemoryMappedFile::open_ro(&reader_first).await.unwrap();
        assert_eq!(reader.slice(0, 4).await.unwrap(), b"LLLL");
        let writer = MemoryMappedFile::open_rw(&reader_first).await.unwrap();
        assert_seen(reader, writer).await;

        let writer = MemoryMappedFile::open_rw(&writer_first).await.unwrap();
        let reader = MemoryMappedFile::open_ro(&writer_first).await.unwrap();
        assert_seen(reader, writer).await;

        // Opened before, and mapped after.
        let old = File::open(&descriptor).unwrap();
        let writer = MemoryMappedFile::open_rw(&descriptor).await.unwrap();
        let reader = from_old(old).await.unwrap();
        assert_seen(reader, writer).await;
        let old = File::open(&late).unwrap();
        drop(MemoryMappedFile::open_rw(&late).await.unwrap());
        let reader = from_old(old).await.unwrap();
        let writer = MemoryMappedFile::open_rw(&late).await.unwrap();
        assert_seen(reader, writer).await;

        // Copied up without this crate: seen when the file is opened again.
        let reader = MemoryMappedFile::open_ro(&std).await.unwrap();
        assert_eq!(reader.as_slice(0, 4).unwrap(), b"LLLL");
        drop(File::options().write(true).open(&std).unwrap());
        let second = MemoryMappedFile::open_ro(&std).await.unwrap();
        let writer = MemoryMappedFile::open_rw(&std).await.unwrap();
        writer.update_region(0, b"NEW!").await.unwrap();
        assert_eq!(second.as_slice(0, 4).unwrap(), b"NEW!");
        assert_seen(reader, writer).await;
    });
}

#[test]
fn overlayfs_view_refuses_first_writer() {
    let test = "overlayfs_view_refuses_first_writer";
    let Some(overlay) = Overlay::new(test, &["slice", "bytes", "kept"]) else {
        return;
    };
    let refused = |result: mmap_io::Result<MemoryMappedFile>| {
        let result = result.map(drop);
        assert!(
            matches!(result, Err(MmapIoError::Busy { .. })),
            "{result:?}"
        );
    };
    block_on(async {
        for name in ["slice", "bytes", "kept"] {
            let path = overlay.disk.path(name);
            let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
            let (slice, bytes);
            match name {
                "slice" => {
                    slice = reader.as_slice(10_000, 4).unwrap();
                    refused(MemoryMappedFile::open_rw(&path).await);
                    refused(MemoryMappedFile::open_or_create(&path, 10).await);
                    assert_eq!(slice, b"LLLL");
                    drop(slice);
                }
                "bytes" => {
                    bytes = reader.bytes(0, 1).unwrap();
                    refused(MemoryMappedFile::open_rw(&path).await);
                    drop(bytes);
                }
                _ => {
                    let clone = reader.clone();
                    clone.as_slice_bytes(0, 1).unwrap();
                    refused(MemoryMappedFile::open_rw(&path).await);
                    refused(MemoryMappedFile::open_rw(&path).await);
                    drop((clone, reader));
                    drop(MemoryMappedFile::open_rw(&path).await.unwrap());
                    continue;
                }
            }
            let writer = MemoryMappedFile::open_rw(&path).await.unwrap();
            writer.update_region(0, b"NEW!").await.unwrap();
            assert_eq!(reader.as_slice(0, 5).unwrap(), b"NEW!L");
        }
        // A file of the upper layer is like any other.
        let path = overlay.disk.path("upper");
        fs::write(&path, pattern(10_000)).unwrap();
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let view = reader.as_slice(0, 10).unwrap();
        let writer = MemoryMappedFile::open_rw(&path).await.unwrap();
        writer.update_region(10, b"x").await.unwrap();
        assert!(!writer.try_update_region(5, b"x").await.unwrap());
        assert_eq!(view, &pattern(10)[..]);
        assert_eq!(reader.as_slice(10, 1).unwrap(), b"x");
    });
}

/// What logrotate's `copytruncate` does to a log.
fn cut(path: &Path, len: u64) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(len).unwrap();
}

fn assert_truncated<T>(result: mmap_io::Result<T>) {
    let result = result.map(drop);
    assert!(
        matches!(result, Err(MmapIoError::Truncated { .. })),
        "{result:?}"
    );
}

#[test]
fn cut_file_reopens_beside_view() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    join_with_timeout("opening a log that was cut", async move {
        fs::write(&path, pattern(65_536)).unwrap();
        let old = MemoryMappedFile::open_ro(&path).await.unwrap();
        let bytes = old.bytes(0, 4096).unwrap();
        let page = bytes.slice(..100);
        drop(old);

        cut(&path, 100);
        for _ in 0..2 {
            let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
            assert_eq!(reader.len(), 100);
            assert_eq!(reader.slice(0, 100).await.unwrap(), &pattern(100)[..]);
        }
        assert_eq!(MemoryMappedFile::open_rw(&path).await.unwrap().len(), 100);

        cut(&path, 0);
        assert_eq!(MemoryMappedFile::open_ro(&path).await.unwrap().len(), 0);
        for _ in 0..2 {
            let refused = MemoryMappedFile::open_rw(&path).await.map(drop);
            assert!(
                matches!(refused, Err(MmapIoError::ResizeFailed(_))),
                "{refused:?}"
            );
        }
        // What it adds would be seen in the view.
        let mut created = Box::pin(MemoryMappedFile::open_or_create(&path, 5000));
        let spare = MemoryMappedFile::open_ro(&path).await.unwrap();
        assert!(poll_once(&mut created).await.is_none());
        for _ in 0..3 {
            assert_eq!(spare.refresh().await.unwrap(), 0);
            assert!(poll_once(&mut created).await.is_none(), "it did not wait");
        }
        drop((bytes, page));
        let created = created.await.unwrap();
        assert_eq!((created.len(), spare.len()), (5000, 5000));
        created
            .update_region_async(4990, b"0123456789")
            .await
            .unwrap();
        assert_eq!(fs::read(&path).unwrap()[4990..], *b"0123456789");
    });
}

#[test]
fn refresh_adopts_changed_length() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    join_with_timeout("taking note of a length", async move {
        let file = MemoryMappedFile::create_rw(&path, 65_536).await.unwrap();
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        file.flush().await.unwrap();
        file.update_region(10, b"stays").await.unwrap();
        file.update_region(50_000, b"goes").await.unwrap();
        let view = reader.as_slice(40_000, 10).unwrap();

        cut(&path, 8192);
        assert_truncated(file.update_region(9000, b"x").await);
        assert_truncated(file.resize(70_000).await);
        assert_eq!(file.len(), 65_536);
        assert_eq!(reader.refresh().await.unwrap(), 8192);
        assert_eq!((file.len(), file.pending_bytes()), (8192, 5));

        // Once, and to all who wait for that flush.
        assert_truncated(file.flush().await);
        file.flush().await.unwrap();
        file.update_region_async(20, b"durable").await.unwrap();
        assert!(file.last_flush_error().is_none());
        let outside = file.update_region(9000, b"x").await;
        assert!(
            matches!(outside, Err(MmapIoError::OutOfBounds { .. })),
            "{outside:?}"
        );

        // Growth that covers nothing of the view waits for none.
        file.resize(16_384).await.unwrap();
        let mut resized = Box::pin(file.resize(65_536));
        let mut grown = Box::pin(file.grow_to(50_000));
        assert_waits(&file, 0, &mut resized).await;
        assert_waits(&file, 0, &mut grown).await;
        drop(resized);
        assert_waits(&file, 0, &mut grown).await;
        drop(view);
        assert_eq!(with_timeout(grown).await.unwrap(), 50_000);
        assert!(fs::read(&path).unwrap()[8192..] == [0; 50_000 - 8192]);

        // Another process appends.
        cut(&path, 100_000);
        assert_eq!(file.refresh().await.unwrap(), 100_000);
        assert_eq!(reader.as_slice(99_990, 10).unwrap(), [0; 10]);
    });
}

#[test]
fn growth_after_cut_adopts_regrown_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    join_with_timeout("growing after a cut", async move {
        let file = MemoryMappedFile::create_rw(&path, 8192).await.unwrap();
        let view = file.as_slice(0, 4096).unwrap();
        cut(&path, 100);
        assert_eq!(file.refresh().await.unwrap(), 100);
        let mut grown = Box::pin(file.grow_to(5000));
        assert!(poll_once(&mut grown).await.is_none());
        assert_eq!(file.refresh().await.unwrap(), 100);
        assert!(poll_once(&mut grown).await.is_none(), "it did not wait");
        // Another process is faster than the view.
        cut(&path, 20_000);
        assert_eq!(file.refresh().await.unwrap(), 20_000);
        drop(view);
        assert_eq!(grown.await.unwrap(), 20_000);
    });
}

#[test]
fn background_flush_keeps_truncation_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    join_with_timeout("flushing in the background", async move {
        let file = MemoryMappedFile::builder(&path)
            .size(65_536)
            .flush_policy(mmap_io::FlushPolicy::EveryMillis(1))
            .create()
            .await
            .unwrap();
        let quiet = MemoryMappedFile::open_rw(&path).await.unwrap();
        quiet.update_region(50_000, b"goes").await.unwrap();
        cut(&path, 8192);
        quiet.refresh().await.unwrap();
        let flushes = file.stats().flushes;
        file.update_region(0, b"in the background").await.unwrap();
        wait_until(&file, |stats| {
            stats.flushes > flushes && stats.pending_bytes == 0
        })
        .await;
        assert_truncated(quiet.update_region_async(0, b"durable").await);
        quiet.update_region_async(0, b"durable").await.unwrap();
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
