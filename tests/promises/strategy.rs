//! Whether a write goes through the map or through the descriptor, every reader sees the same
//! bytes: through this handle, through another handle, or without this crate. And what holds for
//! small writes holds for large ones: a full disk is found before the first byte changes, a
//! truncated file is not made longer again, and a reader sees all of a write or nothing.

use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use mmap_io::{MemoryMappedFile, MmapIoError, MmapMode};

use crate::common::child::{child, child_dir};
use crate::common::disk::{assert_full, truncate, Disk, MIB};
use crate::common::probe::{can_trace, trace};
use crate::common::{block_on, on_a_disk, pattern, skip};

mod evict;
mod model;

fn data(len: usize, seed: u8) -> Vec<u8> {
    let mut data = pattern(len);
    data.iter_mut().for_each(|byte| *byte ^= seed);
    data
}

#[test]
fn large_write_ends_are_exact() {
    let dir = on_a_disk();
    block_on(async {
        // Ends on and beside page boundaries, on cold pages with other bytes around them.
        let path = dir.path().join("data");
        let mut model = pattern(1 << 20);
        fs::write(&path, &model).unwrap();
        let file = MemoryMappedFile::open_rw(&path).await.unwrap();
        for (number, start) in [4095, 4096, 4097, 8191, 8192, 0, 1].into_iter().enumerate() {
            for end in [
                8193,
                12_287,
                12_288,
                12_289,
                299_999,
                303_104,
                (1 << 20) - 1,
                1 << 20,
            ] {
                if number % 2 == 0 {
                    file.evict(0, 1 << 20).await.unwrap();
                }
                let data = data(end - start, (number as u8 * 31) ^ end as u8);
                file.update_region(start as u64, &data).await.unwrap();
                model[start..end].copy_from_slice(&data);
                assert!(fs::read(&path).unwrap() == model, "{start}..{end}");
                assert!(
                    file.as_slice(0, 1 << 20).unwrap() == model[..],
                    "{start}..{end}"
                );
            }
        }
    });
}

#[test]
fn reader_sees_whole_large_writes() {
    let dir = on_a_disk();
    let path = dir.path().join("data");
    let (offset, len) = (4000, 300_000);
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    let file = block_on(MemoryMappedFile::open_rw(&path)).unwrap();
    let reader = block_on(MemoryMappedFile::open_ro(&path)).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for reader in [&file, &reader] {
            let is_over = &is_over;
            threads.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let seen = block_on(reader.slice(offset, len)).unwrap();
                    // All bytes are equal. The view is short, so that the writer gets its turn.
                    assert!(
                        seen[1..] == seen[..seen.len() - 1],
                        "a reader saw a part of a write"
                    );
                    drop(seen);
                    std::thread::yield_now();
                }
            });
        }
        for turn in 0..60_u32 {
            let data = vec![turn as u8; len as usize];
            match turn % 3 {
                0 => block_on(file.update_region(offset, &data)).unwrap(),
                _ => block_on(file.write_bytes(offset, data.into())).unwrap(),
            }
            if turn % 20 == 0 {
                block_on(file.flush()).unwrap();
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

async fn large_writes_on_a_full(disk: Disk) {
    let path = disk.path("data");
    let file = MemoryMappedFile::create_rw(&path, 10 * MIB).await.unwrap();
    let mut content = vec![0; 10 << 20];
    content[..400_000].copy_from_slice(&pattern(400_000));
    file.update_region_async(0, &content[..400_000])
        .await
        .unwrap();
    let filler = disk.fill();
    // Into a hole, and across the end of the written bytes into a hole.
    let large = vec![9; 600_000];
    let huge = vec![9; 9 << 20];
    for (offset, data) in [
        (2 * MIB, &large),
        (300_001, &large),
        (0, &huge),
        (777, &huge),
    ] {
        assert_full(file.update_region(offset, data).await);
        assert_full(file.update_region_async(offset, data).await);
        assert_full(file.write_bytes(offset, data.clone().into()).await);
        assert_full(file.try_update_region(offset, data).await);
        // The first of them would fit.
        let regions: [(u64, &[u8]); 2] = [(0, &data[..400_000]), (MIB, data)];
        assert_full(file.update_regions(&regions).await);
        let regions: [(u64, &[u8]); 2] = [(MIB, data), (0, &data[..400_000])];
        assert_full(file.update_regions(&regions).await);
        assert!(fs::read(&path).unwrap() == content, "{offset}");
        assert!(file.as_slice(0, 400_000).unwrap() == content[..400_000]);
        assert_eq!(file.pending_bytes(), 0);
    }
    // Bytes that have blocks can be overwritten, in every way of writing.
    for seed in 1..4 {
        let new = data(390_000, seed);
        file.update_region(5000, &new).await.unwrap();
        content[5000..395_000].copy_from_slice(&new);
        assert!(fs::read(&path).unwrap() == content);
        file.flush().await.unwrap();
    }
    disk.free(&filler);
    file.update_region_async(300_001, &large[..300_000])
        .await
        .unwrap();
    content[300_001..600_001].copy_from_slice(&large[..300_000]);
    assert!(fs::read(&path).unwrap() == content);
}

#[test]
fn large_write_finds_full_tmpfs_first() {
    if let Some(disk) = Disk::tmpfs("large_write_finds_full_tmpfs_first", MIB) {
        block_on(large_writes_on_a_full(disk));
    }
}

#[test]
fn large_write_finds_full_ext4_first() {
    let dir = tempfile::tempdir().unwrap();
    if let Some(disk) = Disk::ext4(
        "large_write_finds_full_ext4_first",
        &dir.path().join("image"),
        4 * MIB,
    ) {
        block_on(large_writes_on_a_full(disk));
    }
}

#[test]
fn large_write_never_reextends_file() {
    let dir = on_a_disk();
    block_on(async {
        let path = dir.path().join("data");
        fs::write(&path, pattern(2 << 20)).unwrap();
        let file = MemoryMappedFile::open_rw(&path).await.unwrap();
        truncate(&path, 500_001);
        let data = vec![9; 1 << 20];
        let gone = |result: mmap_io::Result<()>, offset: u64| {
            let error = result.unwrap_err();
            let expected = matches!(
                error,
                MmapIoError::Truncated { offset: at, file_len: 500_001, .. } if at == offset
            );
            assert!(expected, "{error:?}");
        };
        for offset in [0, 499_999, 500_001, MIB - 1, MIB] {
            gone(file.update_region(offset, &data).await, offset);
            gone(file.update_region_async(offset, &data).await, offset);
            let bytes = data.clone().into();
            gone(file.write_bytes(offset, bytes).await, offset);
            let regions: [(u64, &[u8]); 2] = [(0, &data[..300_000]), (offset, &data)];
            gone(file.update_regions(&regions).await, offset);
            let tried = file.try_update_region(offset, &data).await;
            gone(tried.map(drop), offset);
        }
        assert!(fs::read(&path).unwrap() == pattern(500_001));
        // What is left can be written, to its last byte.
        file.update_region(100_001, &data[..400_000]).await.unwrap();
        let content = fs::read(&path).unwrap();
        assert!(content[..100_001] == pattern(100_001));
        assert!(content[100_001..] == data[..400_000]);
    });
}

/// A handle on a descriptor that goes around the page cache; `None` where there is none.
async fn direct(path: &Path) -> Option<MemoryMappedFile> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    match options.open(path) {
        Ok(file) => {
            let file = MemoryMappedFile::from_file(file, MmapMode::ReadWrite, path);
            Some(file.await.unwrap())
        }
        Err(error) => {
            skip(
                "no_pwrite_through_o_direct_descriptor",
                &format!("O_DIRECT: {error}"),
            );
            None
        }
    }
}

#[test]
fn no_pwrite_through_o_direct_descriptor() {
    let dir = on_a_disk();
    block_on(async {
        let path = dir.path().join("data");
        let mut content = pattern(2 << 20);
        fs::write(&path, &content).unwrap();
        let Some(file) = direct(&path).await else {
            return;
        };
        // The map belongs to that descriptor, whichever handle uses it.
        let other = MemoryMappedFile::open_rw(&path).await.unwrap();
        for (turn, offset) in [0, 1, 4095, 4096, 700_001, MIB].into_iter().enumerate() {
            let handle = [&file, &other][turn % 2];
            let data = data(1 << 20, turn as u8 + 1);
            handle.update_region(offset, &data).await.unwrap();
            let offset = offset as usize;
            content[offset..offset + (1 << 20)].copy_from_slice(&data);
            assert!(file.as_slice(0, 2 << 20).unwrap() == content[..]);
            assert!(other.as_slice(0, 2 << 20).unwrap() == content[..]);
            assert!(fs::read(&path).unwrap() == content);
        }
        file.evict(0, 2 << 20).await.unwrap();
        file.update_region_async(5, &content[..MIB as usize])
            .await
            .unwrap();
        content.copy_within(..MIB as usize, 5);
        assert!(fs::read(&path).unwrap() == content);
    });
    let test = "no_pwrite_through_o_direct_descriptor";
    if !can_trace(test) {
        return;
    }
    let calls = "-etrace=pwrite64,pwritev2";
    let trace = trace(child!(traced_child), dir.path(), &["-y", calls]);
    assert!(!trace.contains("/around>"), "{trace}");
    // And another one is.
    let is_there = trace.contains("/usual>");
    let probed = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(is_there || !probed.contains(" ext4 "), "{trace}");
}

#[test]
fn traced_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    block_on(async {
        fs::write(dir.join("around"), vec![1; 2 << 20]).unwrap();
        fs::write(dir.join("usual"), vec![1; 2 << 20]).unwrap();
        let usual = MemoryMappedFile::open_rw(dir.join("usual")).await.unwrap();
        usual.update_region(0, &vec![2; 1 << 20]).await.unwrap();
        if let Some(around) = direct(&dir.join("around")).await {
            around.update_region(0, &vec![2; 1 << 20]).await.unwrap();
        }
    });
}

#[test]
fn descriptor_flags_set_later_count() {
    use std::os::fd::AsRawFd;
    let dir = on_a_disk();
    block_on(async {
        for flag in [libc::O_APPEND, libc::O_DIRECT] {
            let path = dir.path().join("data");
            fs::write(&path, vec![1; 4 << 20]).unwrap();
            let file = OpenOptions::new().read(true).write(true).open(&path);
            let file = MemoryMappedFile::from_file(file.unwrap(), MmapMode::ReadWrite, &path);
            let file = file.await.unwrap();
            // SAFETY: the call takes no pointer.
            let set = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flag) };
            assert_eq!(set, 0);
            file.update_region_async(0, &[7; 1 << 20]).await.unwrap();
            assert_eq!(file.as_slice(0, 1 << 20).unwrap(), [7; 1 << 20]);
            assert_eq!(fs::metadata(&path).unwrap().len(), 4 << 20);
        }
    });
}

#[test]
fn raw_pointer_does_not_hide_full_disk() {
    let Some(disk) = Disk::tmpfs("raw_pointer_does_not_hide_full_disk", 2 * MIB) else {
        return;
    };
    block_on(async {
        let path = disk.path("data");
        let file = MemoryMappedFile::create_rw(&path, 16 * MIB).await.unwrap();
        for marked in [false, true] {
            if marked {
                // Counts every byte as written, and allocates none.
                // SAFETY: nothing is done with the pointer.
                unsafe { file.as_mut_ptr() }.unwrap();
            }
            assert_full(file.update_region(100, &[9; 8 << 20]).await);
            assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
        }
    });
}

#[test]
fn file_size_limit_is_an_error() {
    let dir = on_a_disk();
    fs::write(dir.path().join("data"), vec![0; 8 << 20]).unwrap();
    child!(limited_child).dir(dir.path()).passes();
}

#[test]
fn limited_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let limit = libc::rlimit {
        rlim_cur: 1 << 20,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the structure is live for the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
    block_on(async {
        let file = MemoryMappedFile::open_rw(dir.join("data")).await.unwrap();
        // Inside the file there is no limit for a mapping.
        file.update_region(4 << 20, &[1; 1 << 20]).await.unwrap();
        assert_eq!(file.as_slice(4 << 20, 1 << 20).unwrap(), [1; 1 << 20]);
        let grown = file.resize(16 << 20).await;
        assert_eq!(grown.unwrap_err().raw_os_error(), Some(libc::EFBIG));
        assert_eq!(file.len(), 8 << 20);
        file.resize(7 << 20).await.unwrap();
        let created = MemoryMappedFile::create_rw(dir.join("new"), 2 << 20).await;
        assert_eq!(created.unwrap_err().raw_os_error(), Some(libc::EFBIG));
        assert!(!dir.join("new").exists());
    });
}

/// A seal against future writes refuses every call that writes, and lets the maps be that are there.
#[test]
fn sealed_memory_is_written_through_map() {
    let flags = libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC;
    // SAFETY: the name is live and ends in a zero byte.
    let memory = unsafe { libc::memfd_create(c"sealed".as_ptr(), flags) };
    assert!(memory >= 0);
    // SAFETY: the descriptor is new, and nothing else owns it.
    let memory = unsafe { <fs::File as std::os::fd::FromRawFd>::from_raw_fd(memory) };
    memory.set_len(4 * MIB).unwrap();
    let other = memory.try_clone().unwrap();
    block_on(async {
        let file = MemoryMappedFile::from_file(memory, MmapMode::ReadWrite, "sealed");
        let file = file.await.unwrap();
        // SAFETY: the call takes no pointer, and `other` keeps the descriptor open.
        let sealed = unsafe {
            let (number, seal) = (other.as_raw_fd(), libc::F_SEAL_FUTURE_WRITE);
            libc::fcntl(number, libc::F_ADD_SEALS, seal)
        };
        assert_eq!(sealed, 0, "{}", std::io::Error::last_os_error());
        file.update_region(0, &vec![1; MIB as usize]).await.unwrap();
        file.update_region_async(2 * MIB, &vec![2; MIB as usize])
            .await
            .unwrap();
        for (at, byte) in [(0, 1), (MIB, 0), (2 * MIB, 2), (3 * MIB, 0)] {
            let slice = file.slice(at, MIB).await.unwrap();
            assert!(slice.iter().all(|found| *found == byte));
        }
    });
}
