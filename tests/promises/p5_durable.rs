//! Durable means durable, as far as a running system shows it: when a durable call returns, no page
//! of its range is dirty or being written back, the calls that make it so were made, and a process
//! that maps the file then sees the bytes. (A power cut shows the rest.)

#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mmap_io::{FlushPolicy, MemoryMappedFile};

use crate::common::child::{child, child_dir, Child};
use crate::common::probe::{can_trace, end_of_step, trace, Probe};
use crate::common::{at_once, block_on, on_a_disk, pattern, skip};

/// Changes a range without making it durable, shows that the probe sees it, and runs what is to
/// make it durable.
macro_rules! assert_cleans {
    ($probe:ident, $file:ident, $offset:expr, $len:expr, $durable:expr) => {
        let data = vec![7; $len];
        $file.update_region($offset, &data).await.unwrap();
        assert!(!$probe.is_clean(), "the probe sees nothing");
        $durable.await.unwrap();
        assert!($probe.is_clean(), stringify!($durable));
        assert_eq!($file.pending_bytes(), 0, stringify!($durable));
    };
}

#[test]
fn durable_calls_leave_no_dirty_page() {
    let dir = on_a_disk();
    block_on(async {
        let path = dir.path().join("data");
        let file = MemoryMappedFile::create_rw(&path, 1 << 20).await.unwrap();
        let probe = Probe::new(&path);
        file.update_region(0, &[1; 1 << 20]).await.unwrap();
        if probe.is_clean() {
            return skip(
                "durable_calls_leave_no_dirty_page",
                "neither cachestat(2) nor smaps sees a dirty page",
            );
        }
        file.flush().await.unwrap();
        assert!(probe.is_clean());

        // Ranges that begin and end inside of pages, and in several.
        assert_cleans!(probe, file, 0, 1, file.update_region_async(0, b"x"));
        assert_cleans!(probe, file, 4095, 2, file.update_region_async(4095, b"xx"));
        assert_cleans!(
            probe,
            file,
            100_000,
            9000,
            file.update_region_async(100_000, &[1; 9000])
        );
        assert_cleans!(
            probe,
            file,
            500_000,
            9000,
            file.write_bytes_async(500_000, vec![1; 9000].into())
        );
        let (first, last): (&[u8], &[u8]) = (b"first", b"last");
        assert_cleans!(
            probe,
            file,
            0,
            1 << 20,
            file.update_regions_async(&[((1 << 20) - 4, last), (0, first)])
        );
        assert_cleans!(probe, file, 40_960, 4096, file.flush_range(40_960, 4096));
        assert_cleans!(probe, file, 4000, 200, file.flush_range(4000, 200));
        assert_cleans!(probe, file, 12_287, 2, file.flush_range_async(12_287, 2));
        assert_cleans!(probe, file, 0, 1 << 20, file.flush());
        assert_cleans!(probe, file, (1 << 20) - 1, 1, file.flush_async());
        assert_cleans!(probe, file, 5000, 1, mmap_io::flush(&file));
        assert_cleans!(probe, file, 5000, 1, file.clone().close());
        // Through another handle.
        let other = MemoryMappedFile::open_rw(&path).await.unwrap();
        assert_cleans!(probe, file, 70_000, 1, other.flush());

        // Stores through views and pointers.
        let mut view = file.as_slice_mut(8000, 5000).await.unwrap();
        view.fill(3);
        assert!(!probe.is_clean());
        view.commit().await.unwrap();
        assert!(probe.is_clean());
        file.as_slice_mut(8000, 5000).await.unwrap().fill(4);
        assert_eq!((probe.is_clean(), file.pending_bytes()), (false, 5000));
        file.flush().await.unwrap();
        assert_eq!((probe.is_clean(), file.pending_bytes()), (true, 0));
        // SAFETY: nobody looks at the byte.
        unsafe { file.as_mut_ptr().unwrap().add(200_000).write(1) };
        assert!(!probe.is_clean());
        file.flush().await.unwrap();
        assert!(probe.is_clean());

        // After a change of the length.
        file.resize(3 << 20).await.unwrap();
        let (middle, end) = (2 << 20, (3 << 20) - 1);
        assert_cleans!(
            probe,
            file,
            middle,
            9,
            file.update_region_async(middle, b"nine byte")
        );
        assert_cleans!(probe, file, end, 1, file.flush_range(end, 1));
        file.resize(1 << 20).await.unwrap();
        assert_cleans!(probe, file, 0, 1 << 20, file.flush());
    });
}

#[test]
fn policy_always_leaves_no_dirty_page() {
    let dir = on_a_disk();
    block_on(async {
        let path = dir.path().join("data");
        let file = MemoryMappedFile::builder(&path)
            .size(100_000)
            .flush_policy(FlushPolicy::Always)
            .create()
            .await
            .unwrap();
        let probe = Probe::new(&path);
        let is_durable = || probe.is_clean() && file.pending_bytes() == 0;
        file.update_region(0, &[1; 100_000]).await.unwrap();
        assert!(is_durable());
        file.update_region(99_999, b"x").await.unwrap();
        assert!(is_durable());
        let regions: [(u64, &[u8]); 2] = [(0, b"x"), (50_000, b"y")];
        file.update_regions(&regions).await.unwrap();
        assert!(is_durable());
        file.write_bytes(4095, vec![1, 2].into()).await.unwrap();
        assert!(is_durable());
        assert!(file.try_update_region(20_000, b"x").await.unwrap());
        assert!(is_durable());
        // The policy is the handle's.
        let lazy = MemoryMappedFile::open_rw(&path).await.unwrap();
        lazy.update_region(0, b"x").await.unwrap();
        assert!(!is_durable());
        // Close reports it for the last handle, too.
        drop(file);
        lazy.close().await.unwrap();
        assert!(probe.is_clean());
    });
}

#[test]
fn concurrent_durable_writes_are_clean() {
    let dir = on_a_disk();
    let path = dir.path().join("data");
    let file = block_on(MemoryMappedFile::create_rw(&path, 4 << 12)).unwrap();
    let probe = Probe::new(&path);
    if probe.unwritten(0, 0).is_none() {
        return skip(
            "concurrent_durable_writes_are_clean",
            "no cachestat(2) in this kernel",
        );
    }
    // Each has a page of its own, so that it sees whether the flush it shared was the right one:
    // one that ran when its bytes came may have passed them already.
    std::thread::scope(|threads| {
        for page in 0..4 {
            let (file, probe) = (&file, &probe);
            threads.spawn(move || {
                for turn in 0..100_u8 {
                    let data = [turn; 100];
                    block_on(file.update_region_async(page << 12, &data)).unwrap();
                    assert_eq!(probe.unwritten(page << 12, 1), Some(0));
                }
            });
        }
    });
    let stats = file.stats();
    assert!(stats.flushes <= stats.flushed_waiters);
}

#[test]
fn other_process_sees_flushed_bytes() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let path = dir.path().join("data");
        let file = MemoryMappedFile::create_rw(&path, 100_000).await.unwrap();
        file.update_region(100, &pattern(5000)).await.unwrap();
        file.update_region(90_000, &pattern(10_000)).await.unwrap();
        let seen = || {
            child!(reading_child).dir(dir.path()).passes();
            fs::read(dir.path().join("seen")).unwrap()
        };
        file.flush_range(100, 5000).await.unwrap();
        assert_eq!(seen()[100..5100], pattern(5000));
        file.flush().await.unwrap();
        let both = seen();
        assert_eq!(both[100..5100], pattern(5000));
        assert_eq!(both[90_000..], pattern(10_000));
        file.update_region_async(50_000, b"durable").await.unwrap();
        assert_eq!(seen()[50_000..50_007], *b"durable");
        file.resize(200_000).await.unwrap();
        file.update_region_async(199_993, b"durable").await.unwrap();
        assert_eq!(seen()[199_993..], *b"durable");
    });
}

#[test]
fn reading_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    block_on(async {
        let file = MemoryMappedFile::open_ro(dir.join("data")).await.unwrap();
        let content = file.as_slice(0, file.len()).unwrap();
        fs::write(dir.join("seen"), content).unwrap();
    });
}

/// What the child did for durability in one of its steps, as `strace` saw it.
struct Step(Vec<String>);

impl Step {
    /// Whether `file` was synced: its content, and its length if that had changed.
    fn synced(&self, file: &Path) -> bool {
        let name = format!("<{}>", file.display());
        let by_name = |line: &String| line.contains("sync(") && line.contains(&name);
        self.0.iter().any(by_name)
    }

    /// Whether all of the file system was synced, and nothing less that has a name.
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
        } else if line.contains("sync") && !line.contains("resumed>") {
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
    // Whatever process created it may have gone before its name was durable.
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
            // The last job of the handle before may not have gone yet.
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
    // Either it says that it cannot, or it does it.
    if dir.join("claimed").exists() {
        assert!(steps[0].synced(&dir), "{:?}", steps[0].0);
    } else if dir.join("refused").exists() {
        assert!(!dir.join("new").exists());
    }
}

/// Takes all descriptors that the process may have, but for some.
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
    // One is left, for the file itself.
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

/// In a directory where the process may create files, and not look (as a spool for all users).
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

#[test]
fn clean_file_flush_is_noop() {
    let dir = on_a_disk();
    let path = dir.path().join("data");
    let file = block_on(MemoryMappedFile::create_rw(&path, 100_000)).unwrap();
    let flushes = || file.stats().flushes;
    let assert_done = |does: bool| {
        let before = (flushes(), file.stats().pool_hops);
        if does {
            block_on(file.flush()).unwrap();
            assert_eq!(flushes(), before.0 + 1);
            return;
        }
        at_once(file.flush()).unwrap();
        at_once(file.flush_range(10, 10)).unwrap();
        assert_eq!((flushes(), file.stats().pool_hops), before);
    };
    // The length and the name are owed.
    assert_done(true);
    assert_done(false);
    block_on(file.update_region(0, b"x")).unwrap();
    assert_done(true);
    assert_done(false);
    // Stores through a view count, before and after it ends.
    let mut view = block_on(file.as_slice_mut(0, 10)).unwrap();
    view[0] = b'y';
    assert_done(true);
    view[1] = b'y';
    assert_done(true);
    drop(view);
    assert_done(true);
    assert_done(false);
    block_on(file.resize(200_000)).unwrap();
    assert_done(true);
    assert_done(false);
    // Another handle opens it, and answers for its name.
    drop(block_on(MemoryMappedFile::open_rw(&path)).unwrap());
    assert_done(true);
    assert_done(false);
    // Stores by address are not seen.
    // SAFETY: nothing else looks at the bytes until the last store.
    let address = unsafe { file.as_mut_ptr() }.unwrap();
    for value in [b'a', b'b'] {
        // SAFETY: the file is longer, and its handle lives.
        unsafe { address.write_volatile(value) };
        assert_done(true);
    }
}
