//! Huge pages: what the kernel is told of a mapping, and that it is of use where the kernel has
//! huge pages.

use std::fs;
use std::os::unix::fs::MetadataExt;

#[cfg(feature = "cow")]
use mmap_io::MmapMode;
use mmap_io::{AnonymousMmap, MemoryMappedFile, MmapIoError};

use crate::common::disk::{Disk, MIB};
use crate::common::probe::{has_flag, has_huge_pages};
use crate::common::{block_on, patterned, skip};

const HUGE: u64 = 2 * MIB;

/// Whether memory of this process gets a huge page at this moment, without the crate.
fn gets_huge_page() -> bool {
    let map = memmap2::MmapMut::map_anon(32 * MIB as usize).unwrap();
    map.advise(memmap2::Advice::HugePage).unwrap();
    let addr = map.as_ptr().cast_mut();
    for at in (0..map.len()).step_by(4096) {
        // SAFETY: the byte is in the live map, which nothing else uses.
        unsafe { addr.add(at).write_volatile(1) };
    }
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let huge = smaps
        .lines()
        .filter(|line| line.starts_with("AnonHugePages:"));
    { huge }.any(|line| !line.ends_with(" 0 kB"))
}

fn base(file: &MemoryMappedFile) -> *const u8 {
    // SAFETY: nothing is read through the pointer.
    unsafe { file.as_ptr() }
}

#[test]
fn anonymous_memory_gets_huge_pages() {
    let test = "anonymous_memory_gets_huge_pages";
    if !has_huge_pages(test) {
        return;
    }
    block_on(async {
        let huge = AnonymousMmap::with_huge_pages(16 * HUGE).unwrap();
        let plain = AnonymousMmap::new(16 * HUGE).unwrap();
        // SAFETY: nothing is read through the pointers.
        let (huge_base, plain_base) = unsafe { (huge.as_ptr(), plain.as_ptr()) };
        assert!(has_flag(huge_base, "hg") && !has_flag(plain_base, "hg"));
        for at in 0..16 {
            let text = format!("page {at}");
            huge.update_region(at * HUGE, text.as_bytes())
                .await
                .unwrap();
            let seen = huge.slice(at * HUGE, text.len() as u64).await.unwrap();
            assert_eq!(seen, text.as_bytes());
        }
        match huge.is_hugepage_backed().await {
            Some(true) => {}
            other if gets_huge_page() => panic!("no huge page: {other:?}"),
            _ => skip(test, "memory is too fragmented for a huge page"),
        }
    });
}

#[test]
fn huge_pages_never_fail_an_opening() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let small = AnonymousMmap::with_huge_pages(4097).unwrap();
        assert_eq!(small.len(), 4097);
        small.update_region(4090, b"to the").await.unwrap();
        for size in [0, u64::MAX] {
            let refused = AnonymousMmap::with_huge_pages(size);
            assert!(matches!(refused, Err(MmapIoError::ResizeFailed(_))));
        }
        let path = dir.path().join("data");
        let builder = || MemoryMappedFile::builder(&path).huge_pages(true);
        let file = builder().size(4097).create().await.unwrap();
        assert_eq!(file.len(), 4097);
        assert!(file.is_hugepage_backed().await.is_some());
        file.resize(64 * MIB).await.unwrap();
        file.update_region(60 * MIB, b"sparse").await.unwrap();
        assert_eq!(file.slice(60 * MIB, 7).await.unwrap(), b"sparse\0");
        let blocks = file.metadata().await.unwrap().blocks();
        assert!(blocks * 512 < 16 * MIB, "{blocks} blocks");
        let reader = builder().open().await.unwrap();
        assert_eq!(reader.slice(60 * MIB, 6).await.unwrap(), b"sparse");
    });
}

#[test]
fn every_map_is_for_huge_pages() {
    if !has_huge_pages("every_map_is_for_huge_pages") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, plain) = patterned(dir.path(), 100_000).await;
        assert!(!has_flag(base(&plain), "hg"));
        let reader = MemoryMappedFile::builder(&path).huge_pages(true).open();
        let reader = reader.await.unwrap();
        // It holds for the file.
        assert!(has_flag(base(&plain), "hg") && has_flag(base(&reader), "hg"));
        let before = base(&reader);
        plain.resize(64 * MIB).await.unwrap();
        assert_ne!(base(&reader), before);
        assert!(has_flag(base(&plain), "hg") && has_flag(base(&reader), "hg"));
        // Maps that are made later are for huge pages, too.
        let path = dir.path().join("other");
        let writer = MemoryMappedFile::builder(&path).size(100).huge_pages(true);
        let _writer = writer.create().await.unwrap();
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        assert!(has_flag(base(&reader), "hg"));
        let off = MemoryMappedFile::builder(dir.path().join("off")).size(100);
        let off = off.huge_pages(true).huge_pages(false).create();
        assert!(!has_flag(base(&off.await.unwrap()), "hg"));
    });
}

/// On a tmpfs that gives huge pages on request, and on one that always does.
#[test]
fn tmpfs_gives_huge_pages() {
    let test = "tmpfs_gives_huge_pages";
    if !has_huge_pages(test) {
        return;
    }
    for (option, asks, expected) in [
        ("advise", true, true),
        ("advise", false, false),
        ("always", false, true),
    ] {
        let options = format!("huge={option}");
        let Some(disk) = Disk::tmpfs_with(test, 64 * MIB, &options) else {
            return;
        };
        block_on(async {
            let path = disk.path("data");
            let file = MemoryMappedFile::builder(&path).size(32 * MIB);
            let file = file.huge_pages(asks).create().await.unwrap();
            for at in 0..16 {
                file.update_region(at * HUGE, b"touched").await.unwrap();
            }
            match file.is_hugepage_backed().await {
                Some(is_huge) if is_huge == expected => {}
                Some(false) if !gets_huge_page() => {
                    skip(test, "memory is too fragmented for a huge page");
                }
                other => panic!("{option}, asked {asks}: {other:?}"),
            }
            assert_eq!(file.slice(30 * MIB, 7).await.unwrap(), b"touched");
        });
    }
}

#[cfg(feature = "cow")]
#[test]
fn private_pages_are_for_huge_pages() {
    if !has_huge_pages("private_pages_are_for_huge_pages") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, [1; 10_000]).unwrap();
    block_on(async {
        for asks in [false, true] {
            let private = MemoryMappedFile::builder(&path).mode(MmapMode::CopyOnWrite);
            let private = private.cow_writable(true).huge_pages(asks).open();
            let private = private.await.unwrap();
            assert_eq!(has_flag(base(&private), "hg"), asks);
            private.update_region(0, b"private").await.unwrap();
            assert_eq!(private.as_slice(0, 8).unwrap(), b"private\x01");
            assert_eq!(fs::read(&path).unwrap(), [1; 10_000]);
        }
    });
}
