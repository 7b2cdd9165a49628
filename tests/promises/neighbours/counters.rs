//! Two processes count in the words of one file.

use std::fs;
use std::sync::atomic::Ordering;

use mmap_io::MemoryMappedFile;

use crate::common::block_on;
use crate::common::child::{abort_if_stuck, child, child_dir};

const TURNS: u64 = 100_000;

/// Counts in both words, in a process that has its own mapping.
fn count(file: &MemoryMappedFile) {
    let wide = file.atomic_u64(8).unwrap();
    let narrow = file.atomic_u32(4096).unwrap();
    for _ in 0..TURNS {
        wide.fetch_add(1, Ordering::Relaxed);
        narrow.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn processes_count_together() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let file = block_on(MemoryMappedFile::create_rw(&path, 8192)).unwrap();
    let flag = file.atomic_u32(0).unwrap();
    std::thread::scope(|scope| {
        let child = scope.spawn(|| child!(counting_child).dir(dir.path()).passes());
        // Both begin together.
        while flag.load(Ordering::Acquire) == 0 && !child.is_finished() {
            std::thread::yield_now();
        }
        flag.store(2, Ordering::Release);
        count(&file);
        child.join().unwrap();
    });
    drop(flag);
    block_on(file.close()).unwrap();
    let content = fs::read(&path).unwrap();
    assert_eq!(content[8..16], (2 * TURNS).to_ne_bytes());
    assert_eq!(content[4096..4100], (2 * TURNS as u32).to_ne_bytes());
}

#[test]
fn counting_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    abort_if_stuck();
    let file = block_on(MemoryMappedFile::open_rw(dir.join("data"))).unwrap();
    let flag = file.atomic_u32(0).unwrap();
    flag.store(1, Ordering::Release);
    while flag.load(Ordering::Acquire) == 1 {
        std::thread::yield_now();
    }
    count(&file);
}
