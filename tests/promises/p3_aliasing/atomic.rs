//! Words in atomic use: nothing but atomics of their size touches them, through whichever handle,
//! and copies of them are made of whole words.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_lite::{AsyncBufReadExt, AsyncReadExt};
use mmap_io::{AnonymousMmap, AtomicView, MemoryMappedFile, MmapIoError, Result};

use super::{link_twice, open_again};
use crate::common::{
    assert_waits, block_on, is_quiet, pattern, patterned, poll_once, wait_until, with_timeout,
};

fn is_busy<T>(result: Result<T>) -> bool {
    match result {
        Ok(_) => false,
        Err(MmapIoError::Busy { .. }) => true,
        Err(error) => panic!("{error:?}"),
    }
}

#[test]
fn atomic_view_excludes_other_uses() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let (hard_link, soft_link) = link_twice(&path);
        let mut others = open_again(&path, &hard_link, &soft_link).await;
        let reader = others.pop().unwrap();
        others.push(file.clone());
        let word = file.atomic_u64(8).unwrap();
        let before = word.load(Ordering::Relaxed);
        for other in &others {
            for (at, len) in [(8, 8), (0, 9), (15, 100), (10, 1), (0, 1000)] {
                assert!(other.try_as_slice_mut(at, len).unwrap().is_none());
                let data = vec![1; len as usize];
                assert!(!other.try_update_region(at, &data).await.unwrap());
                assert!(poll_once(other.update_region(at, &data)).await.is_none());
                assert!(poll_once(other.as_slice_mut(at, len)).await.is_none());
            }
            assert!(poll_once(other.resize(15)).await.is_none());
            assert!(is_busy(other.atomic_u32(8)) && is_busy(other.atomic_u32(12)));
            assert!(is_busy(other.atomic_u32_slice(0, 3)));
            assert!(!is_busy(other.atomic_u32_slice(0, 2)) && !is_busy(other.atomic_u32(16)));
            // Of the same size, it shares the word.
            let same = other.atomic_u64(8).unwrap();
            let more = other.atomic_u64_slice(0, 100).unwrap();
            same.fetch_add(1, Ordering::Relaxed);
            more[1].fetch_add(1, Ordering::Relaxed);
            assert!(is_busy(other.atomic_u32(400)));
        }
        let counted = 2 * others.len() as u64;
        assert_eq!(word.load(Ordering::Relaxed), before + counted);
        for other in others.iter().chain([&reader]) {
            for (at, len) in [(8, 8), (0, 9), (15, 100), (10, 1), (0, 1000)] {
                assert!(is_busy(other.as_slice(at, len)) && is_busy(other.bytes(at, len)));
                assert!(other.try_as_slice(at, len).unwrap().is_none());
                assert!(poll_once(other.slice(at, len)).await.is_none());
                assert!(poll_once(other.read_bytes(at, len)).await.is_none());
            }
            assert_eq!(other.as_slice(0, 8).unwrap(), pattern(8)[..]);
            assert_eq!(other.as_slice(16, 984).unwrap(), pattern(1000)[16..]);
        }
        assert!(is_busy(reader.as_slice_bytes(8, 1)));
        drop(word);
        assert!(!is_busy(others[0].atomic_u32(8)));
        assert!(!is_busy(reader.as_slice(0, 1000)));
        wait_until(&file, is_quiet).await;
    });
}

#[test]
fn plain_views_exclude_atomic_views() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let other = MemoryMappedFile::open_rw(&path).await.unwrap();
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let check = |what: &str| {
            assert!(is_busy(other.atomic_u32(8)), "{what}");
            assert!(is_busy(other.atomic_u64(8)), "{what}");
            assert!(is_busy(other.atomic_u32_slice(0, 250)), "{what}");
            assert!(is_busy(other.atomic_u64_slice(8, 1)), "{what}");
            // Words that touch it, and no words.
            assert!(!is_busy(other.atomic_u64(0)) && !is_busy(other.atomic_u64(16)));
            assert!(!is_busy(other.atomic_u32_slice(8, 0)));
        };
        let view = reader.as_slice(8, 8).unwrap();
        check("a slice");
        drop(view);
        let view = reader.bytes(8, 8).unwrap();
        check("Bytes");
        drop(view);
        let view = file.as_slice_mut(8, 8).await.unwrap();
        check("a mutable view");
        drop(view);
        assert!(!is_busy(other.atomic_u64_slice(0, 125)));
        reader.as_slice_bytes(8, 8).unwrap();
        check("as_slice_bytes");
    });
}

#[test]
fn readers_and_writers_wait_for_atomic_view() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 1000).await;
        let word = file.atomic_u32(100).unwrap();
        let mut slice = Box::pin(file.slice(90, 20));
        assert!(poll_once(&mut slice).await.is_none());
        word.store(u32::from_ne_bytes(*b"word"), Ordering::Relaxed);
        drop(word);
        let slice = with_timeout(slice).await.unwrap();
        assert_eq!(slice[10..14], *b"word");
        drop(slice);

        let word = file.atomic_u32(100).unwrap();
        let mut write = Box::pin(file.update_region(103, b"x"));
        assert_waits(&file, 0, &mut write).await;
        // No atomic view waits for a write that waits.
        assert!(!is_busy(file.atomic_u32_slice(100, 10)));
        drop(word);
        with_timeout(write).await.unwrap();

        let word = file.atomic_u32(996).unwrap();
        let mut shrink = Box::pin(file.resize(999));
        assert_waits(&file, 0, &mut shrink).await;
        drop(word);
        with_timeout(shrink).await.unwrap();
        let error = file.atomic_u32(996).unwrap_err();
        assert!(matches!(error, MmapIoError::OutOfBounds { total: 999, .. }));
    });
}

#[test]
fn atomic_view_outlives_growth() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 16).await;
        let word = file.atomic_u64(8).unwrap();
        // The file is mapped elsewhere.
        for size in [4096, 40 << 20, 200 << 20] {
            file.resize(size).await.unwrap();
            word.store(size, Ordering::Relaxed);
            let again = file.atomic_u64(8).unwrap();
            assert_eq!(again.swap(1, Ordering::Relaxed), size);
            assert_eq!(word.load(Ordering::Relaxed), 1);
        }
        assert_eq!(fs::read(&path).unwrap()[8..16], 1_u64.to_ne_bytes());
        drop(word);
        // Half a word is left.
        file.resize(12).await.unwrap();
        let error = file.atomic_u64(8).unwrap_err();
        assert!(matches!(error, MmapIoError::OutOfBounds { total: 12, .. }));
        let half = 1_u64.to_ne_bytes()[..4].try_into().unwrap();
        let word = file.atomic_u32(8).unwrap();
        assert_eq!(word.load(Ordering::Relaxed), u32::from_ne_bytes(half));
    });
}

/// Copies a range in every way, and passes each copy to `check` with its name.
async fn copy_in_every_way(
    file: &MemoryMappedFile,
    (at, len): (u64, usize),
    mut check: impl FnMut(&str, &[u8]),
) {
    let mut copy = vec![0; len];
    file.read_into(at, &mut copy).await.unwrap();
    check("read_into", &copy);
    let reader = || file.reader_range(at..at + len as u64).unwrap();
    copy.clear();
    reader().read_to_end(&mut copy).await.unwrap();
    check("read", &copy);
    copy.clear();
    let mut buffered = reader();
    loop {
        let some = buffered.fill_buf().await.unwrap();
        if some.is_empty() {
            break;
        }
        copy.extend(some);
        let used = some.len();
        buffered.consume(used);
    }
    check("fill_buf", &copy);
    #[cfg(feature = "iterator")]
    {
        let whole: Vec<u8> = file.chunks_owned(100).flat_map(Result::unwrap).collect();
        check("chunks_owned", &whole[at as usize..at as usize + len]);
        let whole: Vec<u8> =
            file.chunks_owned(100)
                .rev()
                .map(Result::unwrap)
                .fold(Vec::new(), |rest, mut chunk| {
                    chunk.extend(rest);
                    chunk
                });
        check("chunks_owned", &whole[at as usize..at as usize + len]);
    }
}

#[test]
fn copies_are_made_under_atomic_views() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let words = file.atomic_u32_slice(100, 20).unwrap();
        let more = file.atomic_u32_slice(140, 15).unwrap();
        let wide = file.atomic_u64_slice(200, 3).unwrap();
        let last = file.atomic_u64(992).unwrap();
        let plain = file.as_slice(230, 10).unwrap();
        words[0].store(7, Ordering::Relaxed);
        more[14].store(8, Ordering::Relaxed);
        wide[1].store(9, Ordering::Relaxed);
        last.store(10, Ordering::Relaxed);
        let mut content = pattern(1000);
        content[100..104].copy_from_slice(&7_u32.to_ne_bytes());
        content[196..200].copy_from_slice(&8_u32.to_ne_bytes());
        content[208..216].copy_from_slice(&9_u64.to_ne_bytes());
        content[992..].copy_from_slice(&10_u64.to_ne_bytes());
        for handle in [&file, &reader] {
            for (at, len) in [
                (0, 1000),
                (101, 1),
                (99, 150),
                (102, 3),
                (205, 8),
                (990, 10),
            ] {
                let expected = &content[at as usize..at as usize + len];
                copy_in_every_way(handle, (at, len), |way, copy| {
                    assert!(copy == expected, "{way} of {len} bytes at {at}");
                })
                .await;
            }
        }
        // What has been copied is free again.
        assert_eq!(file.stats().views, 5);
        assert_eq!(plain, content[230..240]);
    });
}

/// Has threads store words whose two halves are equal, or whose four bytes are, while this one
/// copies them at odd places.
fn check_words(file: &MemoryMappedFile, mut copy: impl FnMut(u64, &mut [u8])) {
    const WIDE: std::ops::Range<usize> = 64..128;
    const NARROW: std::ops::Range<usize> = 128..192;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for seed in 0..2_u64 {
            let is_over = &is_over;
            threads.spawn(move || {
                let mut turn = seed;
                while !is_over.load(Ordering::Relaxed) {
                    turn = turn.wrapping_add(2);
                    // Views come and go, so that some copies find none.
                    let wide = file.atomic_u64_slice(64, 8).unwrap();
                    let narrow = file.atomic_u32_slice(128, 16).unwrap();
                    for word in wide.iter() {
                        word.store(turn % 251 * 0x0101_0101_0101_0101, Ordering::Relaxed);
                    }
                    for word in narrow.iter() {
                        word.store((turn % 251) as u32 * 0x0101_0101, Ordering::Relaxed);
                    }
                }
            });
        }
        for turn in 0..3000 {
            let at = turn % 80;
            let mut copied = vec![0; 250 - at];
            copy(at as u64, &mut copied);
            for (words, size) in [(WIDE, 8), (NARROW, 4)] {
                for word in words.step_by(size).filter(|word| *word >= at) {
                    let word = &copied[word - at..word - at + size];
                    if word.iter().any(|byte| *byte != word[0]) {
                        is_over.store(true, Ordering::Relaxed);
                        panic!("a copy has a part of a store: {word:?}");
                    }
                }
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn copied_words_are_never_torn() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let file = block_on(MemoryMappedFile::create_rw(&path, 4096)).unwrap();
    check_words(&file, |at, copied| {
        block_on(file.read_into(at, copied)).unwrap();
    });
    let reader = block_on(MemoryMappedFile::open_ro(&path)).unwrap();
    check_words(&file, |at, copied| {
        let mut reader = reader.reader_range(at..4096).unwrap();
        block_on(reader.read_exact(copied)).unwrap();
    });
}

/// A copy takes no right from an atomic view: no view is refused because a copy is being made.
#[test]
fn copies_refuse_no_atomic_view() {
    let memory = AnonymousMmap::new(1 << 16).unwrap();
    let is_over = AtomicBool::new(false);
    let copies = AtomicU64::new(0);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut copy = vec![0; 1 << 16];
            while !is_over.load(Ordering::Relaxed) {
                block_on(memory.read_into(0, &mut copy)).unwrap();
                copies.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut count = 0;
        while copies.load(Ordering::Relaxed) < 2000 {
            let added = memory
                .atomic_u64(64)
                .map(|word| word.fetch_add(1, Ordering::Relaxed));
            if added.is_err() {
                is_over.store(true, Ordering::Relaxed);
            }
            assert_eq!(added.unwrap(), count);
            count += 1;
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

/// A reader sees each write whole, also if there is an atomic view between its parts.
#[test]
fn copy_across_view_shows_whole_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let file = block_on(MemoryMappedFile::create_rw(&path, 4096)).unwrap();
    let word = file.atomic_u64(1024).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut turn = 0_u8;
            while !is_over.load(Ordering::Relaxed) {
                turn = turn.wrapping_add(1);
                let part = [turn; 100];
                block_on(file.update_regions(&[(900, &part), (1100, &part)])).unwrap();
            }
        });
        let mut copy = [0; 2048];
        for _ in 0..2000 {
            block_on(file.read_into(0, &mut copy)).unwrap();
            let parts = copy[900..1000].iter().chain(&copy[1100..1200]);
            if parts.clone().any(|byte| *byte != copy[900]) {
                is_over.store(true, Ordering::Relaxed);
                panic!("a copy has a part of a write");
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    drop(word);
}

/// Tasks count together, beside readers, and lose nothing.
#[test]
fn threads_count_together() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = block_on(async {
        let path = dir.path().join("data");
        let first = MemoryMappedFile::create_rw(&path, 4096).await.unwrap();
        (first, MemoryMappedFile::open_rw(&path).await.unwrap())
    });
    const TURNS: u64 = 2000;
    std::thread::scope(|threads| {
        for file in [&first, &second] {
            threads.spawn(move || {
                for _ in 0..TURNS {
                    file.atomic_u64(0).unwrap().fetch_add(1, Ordering::Relaxed);
                    file.atomic_u32(8).unwrap().fetch_add(1, Ordering::Relaxed);
                    drop(file.as_slice(16, 8).unwrap());
                }
            });
        }
    });
    let word: AtomicView<'_, AtomicU64> = first.atomic_u64(0).unwrap();
    assert_eq!(word.load(Ordering::Relaxed), 2 * TURNS);
    assert_eq!(format!("{word:?}"), "AtomicView { offset: 0, value: 4000 }");
    let narrow = first.atomic_u32_slice(8, 1).unwrap();
    assert_eq!(narrow[0].load(Ordering::Relaxed), 2 * TURNS as u32);
    assert_eq!(
        format!("{narrow:?}"),
        "AtomicSliceView { offset: 8, count: 1 }"
    );
}

/// A view keeps the lease, the map and the account of its bytes, wherever it is dropped.
#[test]
fn atomic_view_may_end_on_another_thread() {
    let dir = tempfile::tempdir().unwrap();
    let path: &Path = &dir.path().join("data");
    let file = block_on(MemoryMappedFile::create_rw(path, 4096)).unwrap();
    let word = file.atomic_u64(0).unwrap();
    std::thread::scope(|threads| {
        threads.spawn(move || {
            word.store(5, Ordering::Relaxed);
            drop(word);
        });
    });
    assert_eq!(file.as_slice(0, 8).unwrap(), 5_u64.to_ne_bytes());
    assert_eq!(file.pending_bytes(), 8);
}
