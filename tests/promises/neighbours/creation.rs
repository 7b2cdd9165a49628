//! Creating and reserving beside other processes: a failure removes and empties none of their
//! files.

use std::fs::{self, File};
use std::os::unix::fs::{symlink, MetadataExt};
use std::process::Command;

use mmap_io::MemoryMappedFile;

use super::{beside, exchange};
use crate::common::child::{child, child_dir};
use crate::common::disk::{assert_full, Disk, MIB};
use crate::common::probe::{can_trace, trace};
use crate::common::{block_on, join_with_timeout, on_a_disk, pattern, skip};

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
        // A call that always creates removes the file that it has made, and leaves a file that
        // existed before.
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
        // Whichever process set the length first.
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

/// The preallocation fails in one process after another process has opened, written and flushed.
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
        // Without reserving it works: the crate makes a file longer under a lock there.
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

/// A signal makes the kernel restart a call, and some file systems undo what the call had reserved.
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
            // Removes the file that the other thread may have created there.
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

/// The kernel's protection of files in directories that every user may write to
/// (`fs.protected_regular`) checks only openings with `O_CREAT`.
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
        // `O_PATH` opens nothing.
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
