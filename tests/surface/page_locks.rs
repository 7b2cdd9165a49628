//! Pages that are locked in memory: which pages they are, as the kernel tells, after growing,
//! shrinking and failures as well.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use mmap_io::{MemoryMappedFile, MmapIoError};

use crate::common::child::{child, child_dir};
use crate::common::disk::truncate;
use crate::common::probe::{areas, cached, has_flag};
use crate::common::{block_on, on_a_disk, pattern, patterned, poll_once, rt_test, with_timeout};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

/// The pages of the file that are locked, in the map of this handle.
fn locked(file: &MemoryMappedFile) -> BTreeSet<u64> {
    // SAFETY: nothing is read through the pointer.
    let base = unsafe { file.as_ptr() } as usize;
    let end = base + file.len().next_multiple_of(PAGE) as usize;
    let mut pages = BTreeSet::new();
    for area in areas() {
        if area.flags.iter().any(|flag| flag == "lo") {
            let (start, end) = (area.addresses.start.max(base), area.addresses.end.min(end));
            let of_area = (start..end).step_by(PAGE as usize);
            pages.extend(of_area.map(|at| (at - base) as u64 / PAGE));
        }
    }
    pages
}

fn pages(range: std::ops::Range<u64>) -> BTreeSet<u64> {
    range.collect()
}

rt_test!(locks_hold_whole_pages, |dir| {
    let (path, file) = patterned(dir, 40_000).await;
    file.lock(5000, 4000).await.unwrap();
    assert_eq!(locked(&file), pages(1..3));
    assert_eq!(file.as_slice(5000, 10).unwrap(), &pattern(5010)[5000..]);
    // They do not nest, and belong to the file.
    file.lock(8191, 1).await.unwrap();
    file.unlock(8191, 1).await.unwrap();
    assert_eq!(locked(&file), pages(2..3));
    let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
    reader.lock_all().await.unwrap();
    assert_eq!(locked(&reader), pages(0..10));
    assert_eq!(locked(&file), pages(2..3));
    reader.unlock_all().await.unwrap();
    assert_eq!((locked(&reader), locked(&file)), (pages(0..0), pages(0..0)));
    // What is not locked can be unlocked as well.
    file.unlock(0, 40_000).await.unwrap();
    file.unlock_all().await.unwrap();
    // And a lock of the whole file ends at its end.
    file.lock_all().await.unwrap();
    assert_eq!(locked(&file), pages(0..10));
    let empty = dir.join("empty");
    fs::write(&empty, "").unwrap();
    let empty = MemoryMappedFile::open_ro(&empty).await.unwrap();
    empty.lock_all().await.unwrap();
    empty.lock(0, 0).await.unwrap();
    empty.unlock_all().await.unwrap();
});

/// Against a model: growing keeps locks, in new maps too, and shrinking ends them.
#[test]
fn locks_follow_the_file() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let path = dir.path().join("data");
        let file = MemoryMappedFile::create_rw(&path, MIB).await.unwrap();
        let mut expected = BTreeSet::new();
        let mut seed = 7_u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        let mut bases = BTreeSet::new();
        let mut view = None;
        for step in 0..50 {
            let len = file.len();
            let offset = random(len.min(MIB));
            let bytes = 1 + random((len - offset).min(200_000));
            let (first, last) = (offset / PAGE, (offset + bytes - 1) / PAGE);
            match random(4) {
                0 | 1 => {
                    file.lock(offset, bytes).await.unwrap();
                    expected.extend(first..=last);
                }
                2 => {
                    file.unlock(offset, bytes).await.unwrap();
                    expected.retain(|page| !(first..=last).contains(page));
                }
                _ => {
                    // A view of the first byte keeps the maps that are outgrown.
                    view = (step % 2 == 0).then(|| file.bytes(0, 1).unwrap());
                    let len = 1 + random(MIB << (step / 6));
                    file.resize(len).await.unwrap();
                    expected.retain(|page| *page < len.div_ceil(PAGE));
                }
            }
            // SAFETY: nothing is read through the pointer.
            bases.insert(unsafe { file.as_ptr() } as usize);
            assert_eq!(locked(&file), expected, "step {step}");
        }
        drop(view);
        assert!(bases.len() > 2, "the file did not outgrow its map");
        // A map that a view keeps has no locks any more.
        file.lock(0, 1).await.unwrap();
        let _view = file.bytes(0, 1).unwrap();
        // SAFETY: nothing is read through the pointer.
        let before = unsafe { file.as_ptr() };
        assert!(has_flag(before, "lo"));
        file.resize(1024 * MIB).await.unwrap();
        assert!(!has_flag(before, "lo"));
        assert!(locked(&file).contains(&0));
    });
}

#[test]
fn evict_leaves_locked_pages() {
    let dir = on_a_disk();
    block_on(async {
        const LEN: u64 = 8 * MIB;
        let (path, file) = patterned(dir.path(), LEN as usize).await;
        file.lock(8 * PAGE, 4 * PAGE).await.unwrap();
        file.flush().await.unwrap();
        file.evict(0, LEN).await.unwrap();
        assert_eq!(cached(&path, 8 * PAGE as usize, 4 * PAGE as usize), 4);
        // The kernel may keep up to 2 MiB with a locked page, as one folio.
        let left = cached(&path, 0, LEN as usize);
        assert!(left < 1000, "{left} of 2048 pages are left");
        file.unlock_all().await.unwrap();
        file.evict(0, LEN).await.unwrap();
        assert_eq!(cached(&path, 8 * PAGE as usize, 4 * PAGE as usize), 0);
    });
}

#[test]
fn lock_of_truncated_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 20 << 20).await;
        file.lock(9 * MIB, 1).await.unwrap();
        truncate(&path, 12 * MIB);
        let refused = file.lock_all().await;
        assert!(
            matches!(refused, Err(MmapIoError::Truncated { file_len, .. }) if file_len == 12 * MIB),
            "{refused:?}"
        );
        // The steps before the failure are undone, and no lock that was there.
        assert_eq!(locked(&file), pages(9 * 256..9 * 256 + 1));
        file.lock(11 * MIB, MIB).await.unwrap();
        file.unlock(11 * MIB, MIB).await.unwrap();
        // Bytes that another process has cut off are not locked when they come back.
        file.lock(11 * MIB, MIB).await.unwrap();
        truncate(&path, 11 * MIB + PAGE);
        file.refresh().await.unwrap();
        file.resize(20 * MIB).await.unwrap();
        let mut expected = pages(11 * 256..11 * 256 + 1);
        expected.insert(9 * 256);
        assert_eq!(locked(&file), expected);
    });
}

#[test]
fn operations_at_once_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 100 * PAGE as usize).await;
        let mut running = Vec::new();
        for number in 0..60 {
            let lock = file.lock(number * PAGE, 2 * PAGE);
            let unlock = file.unlock(number * PAGE, PAGE);
            let (mut lock, mut unlock) = (Box::pin(lock), Box::pin(unlock));
            // Every third one is dropped when it has begun, or waits.
            let locked = poll_once(&mut lock).await;
            if number % 3 > 0 {
                running.push(smol::spawn(async move {
                    match locked {
                        Some(locked) => locked?,
                        None => lock.await?,
                    }
                    unlock.await
                }));
            } else {
                let _ = poll_once(&mut unlock).await;
            }
        }
        for operation in running {
            with_timeout(operation).await.unwrap();
        }
        with_timeout(file.unlock_all()).await.unwrap();
        assert_eq!(locked(&file), pages(0..0));
    });
}

/// Lets this thread, and those that it starts, lock `bytes` and no more.
fn limit_locks(bytes: u64) {
    let limit = libc::rlimit {
        rlim_cur: bytes as libc::rlim_t,
        rlim_max: bytes.max(MIB) as libc::rlim_t,
    };
    // SAFETY: `limit` is live for the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) }, 0);
    // `CAP_IPC_LOCK` stands above the limit; the headers are `struct __user_cap_header_struct` of
    // version 3, and the sets those of this thread.
    const CAP_IPC_LOCK: u32 = 14;
    let (header, mut sets) = ([0x2008_0522_u32, 0], [0_u32; 6]);
    // SAFETY: both arrays are live for the call and as large as version 3 says.
    let got = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) };
    assert_eq!(got, 0);
    sets[0] &= !(1 << CAP_IPC_LOCK);
    // SAFETY: as above.
    let set = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    assert_eq!(set, 0);
}

/// What the kernel counts as locked, of the whole process.
fn locked_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
    kilobytes.parse::<u64>().unwrap() << 10
}

fn assert_limited(refused: mmap_io::Result<()>, errno: i32) {
    assert!(
        matches!(refused, Err(MmapIoError::LockFailed(_))),
        "{refused:?}"
    );
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(errno));
}

#[test]
fn limit_on_locks_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    child!(limited_child).dir(dir.path()).passes();
}

#[test]
fn limited_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    // Before the pool has a thread.
    limit_locks(0);
    block_on(limited(&dir));
}

async fn limited(dir: &Path) {
    let (_, file) = patterned(dir, 16 << 20).await;
    assert_limited(file.lock(0, 1).await, libc::EPERM);
    file.unlock(0, 1).await.unwrap();
    file.unlock_all().await.unwrap();

    limit_locks(64 << 10);
    file.lock(10 * MIB, 4 << 10).await.unwrap();
    assert_limited(file.lock(10 * MIB, 128 << 10).await, libc::ENOMEM);
    assert_eq!(locked_bytes(), 4 << 10);
    file.lock(10 * MIB, 48 << 10).await.unwrap();
    assert_eq!(locked_bytes(), 48 << 10);
    let before = locked(&file);
    // The limit has no room for the locks of both maps, of which a view keeps the old one.
    let view = file.bytes(0, 1).unwrap();
    // SAFETY: nothing is read through the pointers.
    let base = unsafe { file.as_ptr() };
    file.resize(256 * MIB).await.unwrap();
    // SAFETY: as above.
    assert_ne!(base, unsafe { file.as_ptr() });
    assert_eq!(locked(&file), before);
    assert_eq!(locked_bytes(), 48 << 10);
    drop(view);
    // The limit is below what is locked: the locks cannot be kept.
    limit_locks(8 << 10);
    let refused = file.resize(1024 * MIB).await;
    assert!(
        matches!(refused, Err(MmapIoError::ResizeFailed(_))),
        "{refused:?}"
    );
    assert_eq!(file.len(), 256 * MIB);
    file.unlock_all().await.unwrap();
    assert_eq!(locked_bytes(), 0);
    file.resize(1024 * MIB).await.unwrap();
}
