//! The length and the name of a file are durable as well, by the system calls that `strace` shows.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use futures_lite::future::poll_once;
use mmap_io::MemoryMappedFile;

use crate::common::child::{child, child_dir, Child};
use crate::common::probe::{can_trace, end_of_step, trace};
use crate::common::{block_on, on_a_disk, pattern, skip};

/// The system calls for durability that a child made in one of its steps, as `strace` saw them.
struct Step(Vec<String>);

impl Step {
    /// Whether `file` was synced: its content, and its length if that had changed.
    fn synced(&self, file: &Path) -> bool {
        let name = format!("<{}>", file.display());
        let by_name = |line: &String| line.contains("sync(") && line.contains(&name);
        self.0.iter().any(by_name)
    }

    /// Whether the whole file system was synced.
    fn synced_all(&self) -> bool {
        self.0.iter().any(|line| line.contains("syncfs("))
    }

    fn wrote_back(&self) -> bool {
        let waits = |line: &String| line.contains("msync(") && line.contains("MS_SYNC");
        self.0.iter().any(waits)
    }
}

/// Runs a child under `strace`, and tells its steps apart; `None` where that cannot be done.
fn traced(child: Child, dir: &Path) -> Option<Vec<Step>> {
    if !can_trace(child.test()) {
        return None;
    }
    let calls = "-etrace=fsync,fdatasync,syncfs,msync,sync_file_range";
    let trace = trace(child, dir, &["-y", calls]);
    assert!(!trace.contains("MS_ASYNC"), "{trace}");
    let mut steps = vec![Step(Vec::new())];
    for line in trace.lines() {
        if line.contains("sync(-1") {
            steps.push(Step(Vec::new()));
        } else if line.contains("sync") {
            steps.last_mut().unwrap().0.push(line.to_owned());
        }
    }
    Some(steps)
}

#[test]
fn length_and_name_are_synced_once() {
    let dir = on_a_disk();
    let dir = dir.path().canonicalize().unwrap();
    fs::write(dir.join("old"), pattern(10_000)).unwrap();
    fs::write(dir.join("empty"), b"").unwrap();
    fs::create_dir(dir.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(dir.join("elsewhere/target"), dir.join("link")).unwrap();
    let Some(steps) = traced(child!(traced_child), &dir) else {
        return;
    };
    let mut steps = steps.iter();
    let mut step = |what: &str| {
        let step = steps.next().unwrap();
        println!("{what}: {:#?}", step.0);
        step
    };
    let (new, old) = (dir.join("new"), dir.join("old"));

    assert!(step("created, and written, not durably").0.is_empty());
    let first = step("first durable write");
    assert!(first.synced(&new) && first.synced(&dir));
    for what in ["second durable write", "flush of a range", "commit"] {
        let later = step(what);
        assert!(later.wrote_back() || later.synced(&new));
        assert!(!later.synced(&dir));
    }
    for what in ["grown", "shrunk"] {
        assert!(step(what).0.is_empty());
        let first = step("first durable operation on it");
        assert!(first.synced(&new));
        let second = step("second durable operation on it");
        assert!(second.wrote_back() || second.synced(&new));
        assert!(!first.synced(&dir) && !second.synced(&dir));
    }
    // The process that created the file may have ended before the name was durable.
    for what in ["a file that was there", "the same, through another handle"] {
        let first = step(what);
        assert!(first.wrote_back() || first.synced(&old));
        assert!(first.synced(&dir));
        let second = step("second durable write to it");
        assert!(second.wrote_back() && !second.synced(&dir));
    }
    let created_over = step("created over it");
    assert!(created_over.synced(&old) && created_over.synced(&dir));
    let given_a_length = step("an empty file was given its first length");
    assert!(given_a_length.synced(&dir.join("empty")) && given_a_length.synced(&dir));
    for name in ["a", "b"] {
        let created = step("created in another way");
        assert!(created.synced(&dir.join(name)) && created.synced(&dir));
    }
    let linked = step("created through a link that dangled");
    assert!(linked.synced(&dir.join("elsewhere/target")));
    assert!(linked.synced(&dir.join("elsewhere")));
    let relative = step("opened by a relative path, from elsewhere by now");
    assert!(relative.synced(&dir) && !relative.synced_all());
    let moved = step("moved since it was opened");
    assert!(moved.synced(&dir.join("moved")) && moved.synced_all());
    let removed = step("removed since it was opened");
    assert!(!removed.synced(&dir) && !removed.synced_all());
    let given = step("given as a descriptor");
    assert!(!given.synced(&dir) && !given.synced_all());
    assert!(step("without a descriptor for the directory").synced_all());
    assert!(step("read-only").0.is_empty());
}

#[test]
fn traced_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    block_on(async {
        let path = dir.join("new");
        let file = MemoryMappedFile::create_rw(&path, 100_000).await.unwrap();
        file.update_region(0, b"x").await.unwrap();
        end_of_step();
        file.update_region_async(50_000, b"x").await.unwrap();
        end_of_step();
        file.update_region_async(60_000, b"x").await.unwrap();
        end_of_step();
        file.update_region(0, b"x").await.unwrap();
        file.flush_range(0, 1).await.unwrap();
        end_of_step();
        let view = file.as_slice_mut(0, 10).await.unwrap();
        view.commit().await.unwrap();
        end_of_step();
        for size in [200_000, 90_000] {
            file.resize(size).await.unwrap();
            end_of_step();
            file.update_region_async(0, b"x").await.unwrap();
            end_of_step();
            file.update_region(0, b"x").await.unwrap();
            file.flush().await.unwrap();
            end_of_step();
        }
        let old = MemoryMappedFile::open_rw(dir.join("old")).await.unwrap();
        for _ in 0..2 {
            let handle = MemoryMappedFile::open_rw(dir.join("old")).await.unwrap();
            for _ in 0..2 {
                handle.update_region_async(0, b"x").await.unwrap();
                end_of_step();
            }
        }
        drop(old);
        let old = loop {
            // The last job of the previous handle may still hold the file.
            match MemoryMappedFile::create_rw(dir.join("old"), 10).await {
                Err(mmap_io::MmapIoError::Busy { .. }) => std::thread::yield_now(),
                old => break old.unwrap(),
            }
        };
        old.flush().await.unwrap();
        end_of_step();
        for (name, builder_method) in [("empty", true), ("a", true), ("b", false)] {
            let builder = MemoryMappedFile::builder(dir.join(name)).size(10);
            let file = match builder_method {
                true => builder.open_or_create().await.unwrap(),
                false => builder.create_new().await.unwrap(),
            };
            file.update_region_async(0, b"x").await.unwrap();
            end_of_step();
        }
        let file = MemoryMappedFile::create_rw(dir.join("link"), 10)
            .await
            .unwrap();
        file.flush().await.unwrap();
        end_of_step();
        std::env::set_current_dir(&dir).unwrap();
        let file = MemoryMappedFile::open_rw("old").await.unwrap();
        std::env::set_current_dir("/").unwrap();
        file.flush().await.unwrap();
        end_of_step();
        let name = dir.join("moving");
        let file = MemoryMappedFile::create_rw(&name, 10).await.unwrap();
        fs::rename(&name, dir.join("moved")).unwrap();
        file.flush().await.unwrap();
        end_of_step();
        let file = MemoryMappedFile::create_rw(&name, 10).await.unwrap();
        fs::remove_file(&name).unwrap();
        file.flush().await.unwrap();
        end_of_step();
        let given = File::options().read(true).write(true).open(&path).unwrap();
        let file = MemoryMappedFile::from_file(given, mmap_io::MmapMode::ReadWrite, &path);
        file.await.unwrap().flush().await.unwrap();
        end_of_step();
        let file = MemoryMappedFile::open_rw(&path).await.unwrap();
        let mut taken = take_descriptors(0);
        file.flush().await.unwrap();
        end_of_step();
        taken.clear();
        let file = MemoryMappedFile::open_ro(&path).await.unwrap();
        file.flush().await.unwrap();
        file.flush_range(0, 10).await.unwrap();
        file.close().await.unwrap();
        end_of_step();
    });
}

#[test]
fn fd_exhaustion_does_not_skip_directory_sync() {
    let dir = on_a_disk();
    let dir = dir.path().canonicalize().unwrap();
    let Some(steps) = traced(child!(poor_child), &dir) else {
        return;
    };
    // It either returns an error or syncs the directory.
    if dir.join("claimed").exists() {
        assert!(steps[0].synced(&dir), "{:?}", steps[0].0);
    } else if dir.join("refused").exists() {
        assert!(!dir.join("new").exists());
    }
}

/// Takes all descriptors that the process may have, except `left`.
fn take_descriptors(left: usize) -> Vec<File> {
    let limit = libc::rlimit {
        rlim_cur: 64,
        rlim_max: 64,
    };
    // SAFETY: the structure is live for the call.
    let limited = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    assert_eq!(limited, 0);
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    taken.truncate(taken.len() - left);
    taken
}

#[test]
fn poor_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    // One descriptor is left, for the file itself.
    let mut taken = take_descriptors(1);
    block_on(async {
        let file = MemoryMappedFile::create_rw(dir.join("new"), 10).await;
        taken.clear();
        let outcome = match file {
            Ok(file) if file.update_region_async(0, b"x").await.is_ok() => "claimed",
            Ok(_) => "failed",
            Err(_) => "refused",
        };
        fs::write(dir.join(outcome), b"").unwrap();
        end_of_step();
    });
}

/// In a directory in which the process may create files, but which it may not read (such as a spool
/// for all users).
#[test]
fn name_in_unreadable_directory_is_synced() {
    let test = "name_in_unreadable_directory_is_synced";
    // SAFETY: the call takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return skip(test, "needs root, to become another user");
    }
    let dir = on_a_disk();
    let spool = dir.path().join("spool");
    fs::create_dir(&spool).unwrap();
    for (dir, mode) in [(dir.path(), 0o755), (&spool, 0o1733)] {
        fs::set_permissions(dir, PermissionsExt::from_mode(mode)).unwrap();
    }
    let Some(steps) = traced(child!(spooling_child), dir.path()) else {
        return;
    };
    assert!(steps[0].synced_all(), "{:?}", steps[0].0);
    assert!(!steps[1].synced_all(), "{:?}", steps[1].0);
}

#[test]
fn spooling_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    // SAFETY: the calls take no pointer.
    let other = unsafe { libc::setgid(65534) == 0 && libc::setuid(65534) == 0 };
    assert!(other);
    block_on(async {
        let path = dir.join("spool/new");
        let file = MemoryMappedFile::create_rw(path, 10).await.unwrap();
        for _ in 0..2 {
            file.update_region_async(0, b"x").await.unwrap();
            end_of_step();
        }
    });
}

/// A flush that runs while a file is being made longer syncs the old length, and not the new one.
#[test]
fn length_is_synced_after_growth_beside_a_flush() {
    let dir = on_a_disk();
    if !can_trace("length_is_synced_after_growth_beside_a_flush") {
        return;
    }
    // The file stays short for a while after the growth has begun.
    let calls = [
        "-etrace=fallocate,fsync,fdatasync,msync",
        "-einject=fallocate:delay_enter=300000",
    ];
    let trace = trace(child!(growing_child), dir.path(), &calls);
    let steps: Vec<&str> = trace.split("fsync(-1").collect();
    assert_eq!(steps.len(), 3, "{trace}");
    assert!(steps[1].contains("sync("), "{trace}");
}

#[test]
fn growing_child() {
    let Some(dir) = child_dir() else { return };
    let path = dir.join("data");
    fs::write(&path, b"some bytes").unwrap();
    let is_growing = || {
        let number = format!("{} ", libc::SYS_fallocate);
        let threads = fs::read_dir("/proc/self/task").unwrap();
        let calls = threads.filter_map(|thread| fs::read(thread.ok()?.path().join("syscall")).ok());
        calls
            .into_iter()
            .any(|call| call.starts_with(number.as_bytes()))
    };
    block_on(async {
        let file = MemoryMappedFile::open_rw(&path).await.unwrap();
        file.flush().await.unwrap();
        let was_beside_growth = |attempt: u64| {
            let (file, path) = (&file, &path);
            async move {
                let len = file.len();
                let mut growth = Box::pin(file.resize(len + attempt));
                while poll_once(&mut growth).await.is_none() && !is_growing() {}
                file.flush().await.unwrap();
                let was_beside = fs::metadata(path).unwrap().len() == len;
                growth.await.unwrap();
                was_beside
            }
        };
        for attempt in 1.. {
            assert!(attempt < 10, "no flush ran beside a growth");
            if was_beside_growth(attempt).await {
                break;
            }
        }
        end_of_step();
        file.flush().await.unwrap();
        end_of_step();
    });
}
