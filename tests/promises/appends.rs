//! Appends: no two overlap, none is torn, and none touches what another process has appended.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_lite::future::{poll_once, zip};
use mmap_io::{FlushPolicy, MemoryMappedFile, MmapIoError, MmapMode};

use crate::common::child::{child, child_dir};
use crate::common::disk::{assert_full, Disk};
use crate::common::probe::{can_trace, end_of_step, trace};
use crate::common::{
    assert_waits, block_on, on_a_disk, rt_test, wait_until, with_timeout, HeldQueue,
};

/// A record that tells who wrote it, and that shows if a part of it is missing.
fn record(writer: u32, number: u32) -> Vec<u8> {
    let len = 20 + (writer * 31 + number * 17) as usize % 300;
    let mut record = vec![b'a' + writer as u8 % 26; len];
    record[..10].copy_from_slice(&[len.to_le_bytes()[..2].to_vec(), vec![0; 8]].concat());
    record[2..6].copy_from_slice(&writer.to_le_bytes());
    record[6..10].copy_from_slice(&number.to_le_bytes());
    record
}

/// Cuts a log into its records, which are whole, and returns their offsets, writers and numbers.
fn records(log: &[u8]) -> BTreeMap<u64, (u32, u32)> {
    let mut found = BTreeMap::new();
    let mut at = 0;
    while at < log.len() {
        let len = u16::from_le_bytes([log[at], log[at + 1]]) as usize;
        let number = |from: usize| u32::from_le_bytes(log[from..from + 4].try_into().unwrap());
        let (writer, number) = (number(at + 2), number(at + 6));
        assert_eq!(log[at..at + len], record(writer, number), "at {at}");
        found.insert(at as u64, (writer, number));
        at += len;
    }
    found
}

/// Creates a log that holds one record, of writer 0.
async fn log(dir: &Path) -> (std::path::PathBuf, MemoryMappedFile) {
    let path = dir.join("log");
    fs::write(&path, record(0, 0)).unwrap();
    let log = MemoryMappedFile::open_rw(&path).await.unwrap();
    (path, log)
}

rt_test!(tasks_never_overlap, |dir| {
    const TASKS: u32 = 64;
    const EACH: u32 = 40;
    let (path, log) = log(dir).await;
    let mut tasks: Vec<_> = (1..=TASKS)
        .map(|writer| {
            let log = log.clone();
            Box::pin(async move {
                let mut offsets = Vec::new();
                for number in 0..EACH {
                    let data = record(writer, number);
                    let offset = match number % 8 {
                        0 => log.append_async(&data).await.unwrap(),
                        _ => log.append(&data).await.unwrap(),
                    };
                    assert_eq!(log.as_slice(offset, data.len() as u64).unwrap(), data[..]);
                    offsets.push((offset, (writer, number)));
                }
                offsets
            })
        })
        .collect();
    let mut expected = BTreeMap::from([(0, (0, 0))]);
    while !tasks.is_empty() {
        let mut left = Vec::new();
        for mut task in tasks {
            match poll_once(&mut task).await {
                Some(offsets) => expected.extend(offsets),
                None => left.push(task),
            }
        }
        tasks = left;
        futures_lite::future::yield_now().await;
    }
    assert_eq!(expected.len() as u32, TASKS * EACH + 1);
    assert_eq!(records(&fs::read(&path).unwrap()), expected);
    assert_eq!(fs::metadata(&path).unwrap().len(), log.len());
    assert_eq!(records(&log.as_slice(0, log.len()).unwrap()), expected);
});

rt_test!(order_is_that_of_the_first_polls, |dir| {
    let (_, log) = log(dir).await;
    let start = log.len();
    let held = HeldQueue::new(&log, 5);
    let mut first = Box::pin(log.append(b"first"));
    let mut shrink = Box::pin(log.resize(start));
    let mut second = Box::pin(log.append(b"second"));
    let mut third = Box::pin(log.append_at(start + 6, b"third"));
    let mut grow = Box::pin(log.grow_to(start + 20));
    let mut last = Box::pin(log.append(b"last"));
    assert!(poll_once(&mut first).await.is_none());
    assert!(poll_once(&mut shrink).await.is_none());
    assert!(poll_once(&mut second).await.is_none());
    assert!(poll_once(&mut third).await.is_none());
    assert!(poll_once(&mut grow).await.is_none());
    assert!(poll_once(&mut last).await.is_none());
    held.release().await;
    assert_eq!(first.await.unwrap(), start);
    shrink.await.unwrap();
    assert_eq!(second.await.unwrap(), start);
    assert!(third.await.unwrap());
    assert!(grow.await.unwrap() >= start + 20);
    assert_eq!(last.await.unwrap(), start + 20);
    let tail = log.as_slice(start, 24).unwrap();
    assert_eq!(tail, b"secondthird\0\0\0\0\0\0\0\0\0last");
});

rt_test!(append_at_needs_the_expected_length, |dir| {
    let (path, log) = log(dir).await;
    let start = log.len();
    assert!(!log.append_at(start - 1, b"no").await.unwrap());
    assert!(!log.append_at(start + 1, b"no").await.unwrap());
    // One of two wins.
    let both = zip(log.append_at(start, b"one"), log.append_at(start, b"two")).await;
    assert_ne!(both.0.unwrap(), both.1.unwrap());
    assert_eq!(log.len(), start + 3);
    // What another process has appended counts.
    let mut other = OpenOptions::new().append(true).open(&path).unwrap();
    other.write_all(b"other").unwrap();
    assert!(!log.append_at(start + 3, b"no").await.unwrap());
    assert_eq!(log.len(), start + 8);
    assert!(log.append_at(start + 8, b"yes").await.unwrap());
    assert_eq!(log.as_slice(start + 3, 8).unwrap(), b"otheryes");
});

rt_test!(bad_appends_are_errors, |dir| {
    let (path, log) = log(dir).await;
    let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
    for refused in [reader.append(b"x").await, reader.append_async(b"x").await] {
        assert!(matches!(refused, Err(MmapIoError::InvalidMode(_))));
    }
    let refused = reader.append_at(0, b"x").await;
    assert!(matches!(refused, Err(MmapIoError::InvalidMode(_))));
    let len = log.len();
    for handle in [&reader, &log] {
        assert_eq!(handle.append(b"").await.unwrap(), len);
        assert!(handle.append_at(len, b"").await.unwrap());
        assert!(!handle.append_at(len + 1, b"").await.unwrap());
    }
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(5)
        .unwrap();
    let cut = log.append(b"x").await;
    assert!(matches!(cut, Err(MmapIoError::Truncated { .. })), "{cut:?}");
    assert_eq!(fs::metadata(&path).unwrap().len(), 5);
    log.refresh().await.unwrap();
    assert_eq!(log.append(b"x").await.unwrap(), 5);
});

rt_test!(appends_count_for_the_flush_policy, |dir| {
    let path = dir.join("log");
    fs::write(&path, b"header").unwrap();
    let builder = MemoryMappedFile::builder(&path).mode(MmapMode::ReadWrite);
    let log = builder.flush_policy(FlushPolicy::EveryBytes(100));
    let log = log.open().await.unwrap();
    log.append(&[1; 60]).await.unwrap();
    assert_eq!(log.pending_bytes(), 60);
    log.append(&[2; 39]).await.unwrap();
    assert_eq!(log.pending_bytes(), 99);
    log.append(&[3; 1]).await.unwrap();
    assert_eq!(log.pending_bytes(), 0);
    log.append(&[4; 50]).await.unwrap();
    log.append_async(&[5; 1]).await.unwrap();
    assert_eq!(log.pending_bytes(), 50);
});

rt_test!(dropped_append_is_withdrawn, |dir| {
    let (path, log) = log(dir).await;
    let before = fs::read(&path).unwrap();
    let held = HeldQueue::new(&log, before.len() as u64 - 1);
    let mut dropped = Box::pin(log.append(b"never"));
    assert!(poll_once(&mut dropped).await.is_none());
    let mut kept = Box::pin(log.append(b"kept"));
    assert!(poll_once(&mut kept).await.is_none());
    drop(dropped);
    held.release().await;
    assert_eq!(kept.await.unwrap(), before.len() as u64);
    assert!(fs::read(&path).unwrap().ends_with(b"kept"));
    assert_eq!(log.len(), before.len() as u64 + 4);
});

// Views neither block an append nor see a part of it.
rt_test!(views_do_not_block_and_see_whole_records, |dir| {
    let (_, log) = log(dir).await;
    let all = log.bytes(0, log.len()).unwrap();
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                let len = log.len();
                records(&log.as_slice(0, len).unwrap());
            }
        });
        block_on(async {
            for number in 1..300 {
                log.append(&record(1, number)).await.unwrap();
            }
        });
        end.store(true, Ordering::Relaxed);
    });
    assert_eq!(all, record(0, 0));
});

/// Views of bytes that another process has cut off would show what is appended in their place.
#[test]
fn views_of_cut_bytes_block() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let path = dir.path().join("log");
        fs::write(&path, [7; 9000]).unwrap();
        let log = MemoryMappedFile::open_rw(&path).await.unwrap();
        let view = log.bytes(4000, 3000).unwrap();
        let other = OpenOptions::new().write(true).open(&path).unwrap();
        other.set_len(5000).unwrap();
        assert_eq!(log.refresh().await.unwrap(), 5000);
        let mut append = Box::pin(log.append(&[8; 10]));
        assert!(poll_once(&mut append).await.is_none());
        wait_until(&log, |stats| stats.oldest_blocked.is_some()).await;
        assert_waits(&log, 0, &mut append).await;
        drop(view);
        assert_eq!(with_timeout(append).await.unwrap(), 5000);
        assert_eq!(log.as_slice(5000, 10).unwrap(), [8; 10]);
    });
}

/// Another process appends at the same time: each finds its own records whole.
#[test]
fn processes_never_overlap() {
    const EACH: u32 = 2_000;
    let dir = on_a_disk();
    let path = dir.path().join("log");
    fs::write(&path, record(0, 0)).unwrap();
    let mut expected = BTreeMap::new();
    let log = block_on(MemoryMappedFile::open_rw(&path)).unwrap();
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| child!(appending_child).dir(dir.path()).passes());
        scope.spawn(|| {
            let mut at = 0;
            while !end.load(Ordering::Relaxed) {
                let len = log.len();
                records(&log.as_slice(at, len - at).unwrap());
                at = len;
            }
        });
        block_on(async {
            for number in 0..EACH {
                let (first, second) = (record(1, number), record(2, number));
                let (first, second) = zip(log.append(&first), log.append(&second)).await;
                expected.insert(first.unwrap(), (1, number));
                expected.insert(second.unwrap(), (2, number));
            }
        });
        end.store(true, Ordering::Relaxed);
    });
    let mut found = records(&fs::read(&path).unwrap());
    let others = found.iter().filter(|(_, (writer, _))| *writer == 3);
    assert_eq!(others.count() as u32, EACH);
    found.retain(|_, (writer, _)| [1, 2].contains(writer));
    assert_eq!(found, expected);
}

#[test]
fn appending_child() {
    const EACH: u32 = 2_000;
    let Some(dir) = child_dir() else { return };
    let mut log = OpenOptions::new()
        .append(true)
        .open(dir.join("log"))
        .unwrap();
    for number in 0..EACH {
        log.write_all(&record(3, number)).unwrap();
    }
}

/// A descriptor that writes synchronously is not written through: the map is used.
#[test]
fn appends_go_through_map_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, record(0, 0)).unwrap();
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DSYNC);
    let file = options.open(&path).unwrap();
    block_on(async {
        let log = MemoryMappedFile::from_file(file, MmapMode::ReadWrite, &path);
        let log = log.await.unwrap();
        let mut expected = BTreeMap::from([(0, (0, 0))]);
        for number in 0..100 {
            let offset = log.append(&record(1, number)).await.unwrap();
            expected.insert(offset, (1, number));
        }
        assert_eq!(records(&fs::read(&path).unwrap()), expected);
        assert_eq!(records(&log.as_slice(0, log.len()).unwrap()), expected);
    });
}

#[test]
fn full_disk_is_an_error_before_the_first_byte() {
    const MIB: u64 = 1 << 20;
    let test = "full_disk_is_an_error_before_the_first_byte";
    let dir = on_a_disk();
    let ext4 = Disk::ext4(test, &dir.path().join("image"), 32 * MIB);
    for disk in [ext4, Disk::tmpfs(test, 16 * MIB)].into_iter().flatten() {
        block_on(async {
            let (path, log) = log(&disk.path("")).await;
            let before = fs::read(&path).unwrap();
            let filler = disk.fill();
            assert_full(log.append(&vec![1; 4 << 20]).await);
            assert_full(log.append_async(&vec![1; 4 << 20]).await);
            assert_eq!(fs::read(&path).unwrap(), before);
            assert_eq!(log.len(), before.len() as u64);
            disk.free(&filler);
            let appended = log.append(&vec![1; 4 << 20]).await.unwrap();
            assert_eq!(appended, before.len() as u64);
        });
    }
}

/// The last page of the file has no block, so that the write itself finds the full disk.
#[test]
fn full_disk_is_an_error_in_a_hole_at_the_end() {
    const MIB: u64 = 1 << 20;
    let test = "full_disk_is_an_error_in_a_hole_at_the_end";
    let dir = on_a_disk();
    let ext4 = Disk::ext4(test, &dir.path().join("image"), 32 * MIB);
    for disk in [ext4, Disk::tmpfs(test, 16 * MIB)].into_iter().flatten() {
        let path = disk.path("sparse");
        fs::File::create(&path).unwrap().set_len(10).unwrap();
        block_on(async {
            let log = MemoryMappedFile::open_rw(&path).await.unwrap();
            let filler = disk.fill();
            for len in [10, 3 * 4096] {
                assert_full(log.append(&vec![1; len]).await);
                assert_full(log.append_async(&vec![1; len]).await);
                assert_eq!(fs::read(&path).unwrap(), [0; 10]);
                assert_eq!(log.len(), 10);
                assert_eq!(log.pending_bytes(), 0);
            }
            disk.free(&filler);
            assert_eq!(log.append(&[1; 10]).await.unwrap(), 10);
            assert_eq!(fs::read(&path).unwrap()[10..], [1; 10]);
            assert_eq!(log.pending_bytes(), 10);
            log.flush().await.unwrap();
            assert_eq!(log.pending_bytes(), 0);
        });
    }
}

#[test]
fn failed_append_leaves_the_timer_armed() {
    const MIB: u64 = 1 << 20;
    let test = "failed_append_leaves_the_timer_armed";
    let Some(disk) = Disk::tmpfs(test, 16 * MIB) else {
        return;
    };
    let path = disk.path("sparse");
    fs::File::create(&path).unwrap().set_len(10).unwrap();
    block_on(async {
        let builder = MemoryMappedFile::builder(&path).mode(MmapMode::ReadWrite);
        let builder = builder.flush_policy(FlushPolicy::EveryMillis(1));
        let log = builder.open().await.unwrap();
        let filler = disk.fill();
        assert_full(log.append(&[1; 10]).await);
        disk.free(&filler);
        log.append(&[1; 10]).await.unwrap();
        wait_until(&log, |stats| stats.pending_bytes == 0).await;
        assert!(log.stats().flushes > 0);
    });
}

/// An append for which there is no room fails alone.
#[test]
fn full_disk_fails_no_other_append() {
    const MIB: u64 = 1 << 20;
    let test = "full_disk_fails_no_other_append";
    let dir = on_a_disk();
    let ext4 = Disk::ext4(test, &dir.path().join("image"), 32 * MIB);
    for disk in [ext4, Disk::tmpfs(test, 16 * MIB)].into_iter().flatten() {
        block_on(async {
            let (_, log) = log(&disk.path("")).await;
            let start = log.len();
            let filler = disk.fill();
            let file = OpenOptions::new().write(true).open(&filler).unwrap();
            file.set_len(file.metadata().unwrap().len() - MIB / 4)
                .unwrap();
            file.sync_all().unwrap();
            let held = HeldQueue::new(&log, 0);
            let mut small = Box::pin(log.append(&[1; 10]));
            let mut large = Box::pin(log.append(&[2; 900 << 10]));
            let mut last = Box::pin(log.append_async(&[3; 10]));
            assert!(poll_once(&mut small).await.is_none());
            assert!(poll_once(&mut large).await.is_none());
            assert!(poll_once(&mut last).await.is_none());
            held.release().await;
            assert_eq!(small.await.unwrap(), start);
            assert_full(large.await);
            assert_eq!(last.await.unwrap(), start + 10);
            assert_eq!(log.len(), start + 20);
            assert_eq!(log.as_slice(start + 10, 10).unwrap(), [3; 10]);
        });
    }
}

/// Appends that wait together are one call, and one flush.
#[test]
fn batch_is_one_call() {
    let dir = on_a_disk();
    if !can_trace("batch_is_one_call") {
        return;
    }
    let calls = [
        "-e",
        "trace=pwritev2,fdatasync,fsync,msync,sync_file_range,ftruncate",
    ];
    let trace = trace(child!(batch_child), dir.path(), &calls);
    let steps: Vec<&str> = trace.split("fsync(-1").collect();
    let count = |step: usize, call: &str| steps[step].matches(call).count();
    assert_eq!(count(1, "pwritev2("), 1, "{trace}");
    assert_eq!(count(1, "sync"), 0, "{trace}");
    assert_eq!(count(2, "pwritev2("), 1, "{trace}");
    assert_eq!(count(2, "fdatasync(") + count(2, "fsync("), 1, "{trace}");
    assert_eq!(trace.matches("ftruncate(").count(), 0, "{trace}");
}

#[test]
fn batch_child() {
    let Some(dir) = child_dir() else { return };
    block_on(async {
        let (_, log) = log(&dir).await;
        // The first one opens a descriptor, and makes the name durable.
        log.append_async(b"first").await.unwrap();
        for is_durable in [false, true] {
            let held = HeldQueue::new(&log, 0);
            let mut appends: Vec<_> = (0..50)
                .map(|number| {
                    let log = &log;
                    Box::pin(async move {
                        match is_durable {
                            true => log.append_async(&[number; 10]).await,
                            false => log.append(&[number; 10]).await,
                        }
                    })
                })
                .collect();
            for append in &mut appends {
                assert!(poll_once(append).await.is_none());
            }
            end_of_step();
            held.release().await;
            for append in appends {
                append.await.unwrap();
            }
        }
        end_of_step();
    });
}

/// The descriptor that a caller has taken keeps its position.
#[test]
fn position_of_the_caller_is_kept() {
    use std::io::{Read, Seek};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, b"header").unwrap();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    block_on(async {
        let same = file.try_clone().unwrap();
        let log = MemoryMappedFile::from_file(same, MmapMode::ReadWrite, &path);
        let log = log.await.unwrap();
        file.seek(std::io::SeekFrom::Start(3)).unwrap();
        assert_eq!(log.append(b"one").await.unwrap(), 6);
        assert_eq!(log.append(b"two").await.unwrap(), 9);
        let mut rest = String::new();
        file.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "deronetwo");
    });
}

/// A process without a free descriptor cannot append behind what another process appends. That is
/// an error of the one append, and the next append finds the descriptors that are free by then.
#[test]
fn missing_descriptor_fails_one_append() {
    let dir = on_a_disk();
    child!(starved_child).dir(dir.path()).passes();
}

#[test]
fn starved_child() {
    let Some(dir) = child_dir() else { return };
    let limit = libc::rlimit {
        rlim_cur: 100,
        rlim_max: 100,
    };
    // SAFETY: `limit` is live for the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    block_on(async {
        let (path, log) = log(&dir.canonicalize().unwrap()).await;
        let start = log.len();
        let mut taken = Vec::new();
        while let Ok(file) = fs::File::open("/dev/null") {
            taken.push(file);
        }
        let refused = log.append(b"no").await;
        assert!(matches!(refused, Err(MmapIoError::Io(_))), "{refused:?}");
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EMFILE));
        assert_eq!(fs::metadata(&path).unwrap().len(), start);
        drop(taken);
        assert_eq!(log.append(b"yes").await.unwrap(), start);
        // That of the map, and that of the appends.
        let descriptors = fs::read_dir("/proc/self/fd").unwrap();
        let paths = descriptors.map(|found| fs::read_link(found.unwrap().path()));
        assert_eq!(
            paths
                .filter(|to| to.as_ref().is_ok_and(|to| *to == path))
                .count(),
            2
        );
    });
}
