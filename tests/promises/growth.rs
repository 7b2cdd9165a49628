//! Growing beside other processes: bytes that they append are never cut, bytes that growth uncovers
//! are zero, and a growth that fails removes nothing.
//!
//! A plain handle of the standard library stands for another process here: the crate cannot tell
//! them apart.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use mmap_io::{MemoryMappedFile, MmapIoError};

#[cfg(unix)]
use crate::common::child::{child, child_dir};
use crate::common::on_a_disk;
use crate::common::{block_on, eventually, pattern, poll_once, rt_test, skip, with_timeout};
#[cfg(unix)]
use crate::common::{patterned, HeldQueue};

/// Appends as another process would.
fn append(path: &Path, len: usize) {
    let mut other = OpenOptions::new().append(true).open(path).unwrap();
    other.write_all(&vec![b'p'; len]).unwrap();
}

fn assert_kept(path: &Path, appended: std::ops::Range<usize>) {
    let content = fs::read(path).unwrap();
    assert!(content.len() >= appended.end, "cut to {}", content.len());
    assert!(content[appended].iter().all(|byte| *byte == b'p'));
}

rt_test!(resize_keeps_appended_bytes, |dir| {
    let path = dir.join("data");
    for (appended, new_len) in [(100, 150), (20_000, 10_000), (100, 5000), (50, 150)] {
        fs::write(&path, pattern(100)).unwrap();
        let file = MemoryMappedFile::open_rw(&path).await.unwrap();
        append(&path, appended);
        let there = 100 + appended as u64;
        let resized = file.resize(new_len).await;
        match new_len < there {
            true => {
                let error = resized.unwrap_err();
                assert!(matches!(error, MmapIoError::ResizeFailed(_)), "{error:?}");
                let message = error.to_string();
                assert!(message.contains(&new_len.to_string()), "{message}");
                assert!(message.contains(&there.to_string()), "{message}");
                assert_eq!(file.len(), there);
            }
            false => {
                resized.unwrap();
                assert_eq!(file.len(), new_len);
            }
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), file.len());
        assert_kept(&path, 100..100 + appended);
        assert_eq!(file.as_slice(0, 100).unwrap(), &*pattern(100));
        let tail = file.as_slice(there, file.len() - there).unwrap();
        assert!(tail.iter().all(|byte| *byte == 0));
    }
});

rt_test!(resize_to_known_length_is_noop, |dir| {
    let path = dir.join("data");
    fs::write(&path, pattern(100)).unwrap();
    let file = MemoryMappedFile::open_rw(&path).await.unwrap();
    append(&path, 30);
    file.resize(100).await.unwrap();
    assert_eq!(file.len(), 100);
    assert_kept(&path, 100..130);
});

rt_test!(grow_to_adopts_longer_file, |dir| {
    let path = dir.join("data");
    fs::write(&path, pattern(100)).unwrap();
    let file = MemoryMappedFile::open_rw(&path).await.unwrap();
    assert_eq!(file.grow_to(40).await.unwrap(), 100);
    append(&path, 20_000);
    assert_eq!(file.grow_to(5000).await.unwrap(), 20_100);
    assert_eq!(file.as_slice(20_099, 1).unwrap(), b"p");
    assert_eq!(file.grow_to(3 << 20).await.unwrap(), 3 << 20);
    assert_kept(&path, 100..20_100);
    file.update_region(20_095, b"over the old end")
        .await
        .unwrap();
    assert_eq!(file.as_slice(20_095, 16).unwrap(), b"over the old end");
    assert_eq!(fs::metadata(&path).unwrap().len(), 3 << 20);
});

rt_test!(grow_to_checks_mode_and_size, |dir| {
    let path = dir.join("data");
    fs::write(&path, pattern(100)).unwrap();
    let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
    let refused = reader.grow_to(200).await;
    assert!(matches!(refused, Err(MmapIoError::InvalidMode(_))));
    let file = MemoryMappedFile::open_rw(&path).await.unwrap();
    for size in [0, u64::MAX] {
        let refused = file.grow_to(size).await;
        assert!(matches!(refused, Err(MmapIoError::ResizeFailed(_))));
    }
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(50)
        .unwrap();
    let cut = file.grow_to(200).await;
    assert!(matches!(cut, Err(MmapIoError::Truncated { .. })), "{cut:?}");
    assert_eq!(fs::metadata(&path).unwrap().len(), 50);
});

/// A dropped future of a growth that waits for its turn does not grow the file later.
#[test]
fn dropped_growth_is_withdrawn() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, pattern(100)).unwrap();
    block_on(async {
        let file = MemoryMappedFile::open_rw(&path).await.unwrap();
        // A shrink that waits for a view blocks later changes of the length.
        let view = file.bytes(60, 10).unwrap();
        let mut shrink = Box::pin(file.resize(50));
        assert!(poll_once(&mut shrink).await.is_none());
        let mut grow = Box::pin(file.grow_to(500));
        assert!(poll_once(&mut grow).await.is_none());
        drop(grow);
        drop(view);
        with_timeout(shrink).await.unwrap();
        with_timeout(file.update_region(0, b"-")).await.unwrap();
        assert_eq!(file.len(), 50);
        assert_eq!(fs::metadata(&path).unwrap().len(), 50);
    });
}

#[cfg(target_os = "linux")]
mod on_linux {
    use std::io::Seek;
    use std::os::fd::AsRawFd;
    use std::sync::atomic::{AtomicBool, Ordering};

    use mmap_io::MmapMode;

    use super::*;
    use crate::common::disk::{assert_full, Disk, MIB};

    /// Stores over what is left of the page in which a file ends, through a map of its own.
    fn store_past_end(path: &Path) {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let end = file.metadata().unwrap().len() as usize;
        let len = end.next_multiple_of(4096);
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        // SAFETY: `end` is inside the page in which the file ends.
        let tail = unsafe { base.cast::<u8>().add(end) };
        // SAFETY: the bytes up to `len` are in the same page.
        unsafe { tail.write_bytes(0xee, len - end) };
        // SAFETY: nothing points into the mapping any more.
        assert_eq!(unsafe { libc::munmap(base, len) }, 0);
    }

    fn growth_uncovers_zeroes(dir: &Path) {
        block_on(async {
            for opened_before in [true, false] {
                for new_len in [200, 4096, 1 << 20, 3 << 20] {
                    let path = dir.join(format!("{opened_before}-{new_len}"));
                    fs::write(&path, pattern(100)).unwrap();
                    let open = || MemoryMappedFile::open_rw(&path);
                    let before = match opened_before {
                        true => Some(open().await.unwrap()),
                        false => None,
                    };
                    store_past_end(&path);
                    let file = match before {
                        Some(file) => file,
                        None => open().await.unwrap(),
                    };
                    file.resize(new_len).await.unwrap();
                    let mut expected = pattern(100);
                    expected.resize(new_len as usize, 0);
                    assert_eq!(fs::read(&path).unwrap(), expected);
                    assert_eq!(file.as_slice(0, new_len).unwrap(), &*expected);
                }
            }
        });
    }

    #[test]
    fn growth_on_disk_uncovers_zeroes() {
        let dir = on_a_disk();
        growth_uncovers_zeroes(dir.path());
    }

    /// A tmpfs keeps what was stored past the end of a file.
    #[test]
    fn growth_in_memory_uncovers_zeroes() {
        if let Some(disk) = Disk::tmpfs("growth_in_memory_uncovers_zeroes", 32 * MIB) {
            growth_uncovers_zeroes(&disk.path(""));
        }
    }

    /// There is no room for the blocks: the length stays, here and in the file, and a peer's bytes.
    #[test]
    fn failed_growth_cuts_nothing() {
        let Some(disk) = Disk::tmpfs("failed_growth_cuts_nothing", 4 * MIB) else {
            return;
        };
        let path = disk.path("data");
        block_on(async {
            let builder = MemoryMappedFile::builder(&path).size(100).preallocate(true);
            let file = builder.create().await.unwrap();
            append(&path, 1000);
            assert_full(file.resize(64 * MIB).await);
            assert_full(file.grow_to(64 * MIB).await);
            assert_eq!(file.len(), 100);
            assert_kept(&path, 100..1100);
            assert_eq!(fs::metadata(&path).unwrap().len(), 1100);
            // The next operation that examines the length sees it.
            assert_eq!(file.grow_to(1).await.unwrap(), 1100);
        });
    }

    /// What another process appends is in the last page a moment before the file is longer.
    fn growth_beside_an_appender(preallocates: bool) {
        const RECORD: &[u8] = b"pppppppp";
        let dir = on_a_disk();
        let path = dir.path().join("data");
        fs::write(&path, b"head").unwrap();
        let is_over = AtomicBool::new(false);
        let appended = std::thread::scope(|threads| {
            let appender = threads.spawn(|| {
                let mut other = OpenOptions::new().append(true).open(&path).unwrap();
                let mut ends = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    other.write_all(RECORD).unwrap();
                    ends.push(other.stream_position().unwrap() as usize);
                }
                ends
            });
            block_on(async {
                let builder = MemoryMappedFile::builder(&path).mode(MmapMode::ReadWrite);
                let file = builder.preallocate(preallocates).open().await.unwrap();
                for _ in 0..300 {
                    let len = fs::metadata(&path).unwrap().len();
                    file.grow_to(len + 16).await.unwrap();
                }
            });
            is_over.store(true, Ordering::Relaxed);
            appender.join().unwrap()
        });
        let content = fs::read(&path).unwrap();
        let is_lost = |end: &&usize| &content[*end - RECORD.len()..**end] != RECORD;
        let lost = appended.iter().filter(is_lost).count();
        assert_eq!(lost, 0, "of {} records", appended.len());
    }

    #[test]
    fn growth_keeps_what_is_appended_meanwhile() {
        growth_beside_an_appender(false);
    }

    #[test]
    fn growth_with_preallocate_keeps_what_is_appended_meanwhile() {
        growth_beside_an_appender(true);
    }

    /// Two processes double the length of one file in turns, and write into what they made.
    #[test]
    fn processes_growing_in_turns_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        fs::write(&path, pattern(4096)).unwrap();
        let peer = File::options().write(true).open(&path).unwrap();
        block_on(async {
            let file = MemoryMappedFile::open_rw(&path).await.unwrap();
            for _ in 0..6 {
                let len = fs::metadata(&path).unwrap().len();
                peer.set_len(2 * len).unwrap();
                std::os::unix::fs::FileExt::write_all_at(&peer, b"peer", 2 * len - 4).unwrap();
                assert!(file.resize(len + 1).await.is_err());
                let grown = file.grow_to(3 * len).await.unwrap();
                assert_eq!(grown, 3 * len);
                assert_eq!(file.as_slice(2 * len - 4, 4).unwrap(), b"peer");
                file.update_region(3 * len - 4, b"ours").await.unwrap();
            }
        });
    }
}

/// A process with little address space may need it for the next file.
#[cfg(target_os = "linux")]
#[test]
fn last_drop_unmaps_large_tmpfs_file() {
    let test = "last_drop_unmaps_large_tmpfs_file";
    let dir = match tempfile::tempdir_in("/dev/shm") {
        Ok(dir) => dir,
        Err(error) => return skip(test, &format!("/dev/shm: {error}")),
    };
    let path = dir.path().join("large");
    let is_mapped = || {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        maps.contains(path.to_str().unwrap())
    };
    block_on(async {
        let mut at_once = 0;
        for _ in 0..10 {
            let file = MemoryMappedFile::create_rw(&path, 1 << 40).await.unwrap();
            file.update_region(1 << 39, &[1; 100_000]).await.unwrap();
            assert!(is_mapped());
            drop(file);
            at_once += u32::from(!is_mapped());
            // The job of the write may have been the last that had the file.
            eventually("the file is unmapped", || !is_mapped());
        }
        assert!(at_once > 0);
    });
}

/// An operation on the whole file takes the length that it finds when its turn comes.
#[cfg(unix)]
#[test]
fn shrink_goes_before_operations_on_the_whole_file() {
    let dir = tempfile::tempdir().unwrap();
    child!(shrinking_child)
        .dir(dir.path())
        .one_pool_thread()
        .passes();
}

#[cfg(unix)]
#[test]
fn shrinking_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    block_on(async {
        // So much that the pool is asked for it.
        let (_, file) = patterned(&dir, 8 << 20).await;
        let held = HeldQueue::new(&file, 0);
        let mut shrink = Box::pin(file.resize(6 << 20));
        let mut touch = Box::pin(file.touch_pages());
        assert!(poll_once(&mut shrink).await.is_none());
        assert!(poll_once(&mut touch).await.is_none());
        held.release().await;
        shrink.await.unwrap();
        touch.await.unwrap();
    });
    #[cfg(feature = "locking")]
    block_on(async {
        let file = MemoryMappedFile::open_rw(dir.join("data")).await.unwrap();
        let held = HeldQueue::new(&file, 0);
        let mut shrink = Box::pin(file.resize(10));
        let mut lock = Box::pin(file.lock_all());
        assert!(poll_once(&mut shrink).await.is_none());
        assert!(poll_once(&mut lock).await.is_none());
        held.release().await;
        shrink.await.unwrap();
        lock.await.unwrap();
    });
}
