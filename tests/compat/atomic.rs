//! Words of a file as atomics.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use mmap_io::{AtomicSliceView, AtomicView, MemoryMappedFile, MmapIoError, Result};

use crate::common::assert_waits;
use crate::{assert_busy, assert_names, assert_outside, block_on, refused, Rig, LEN};

/// Checks the order of the checks: mode, alignment, bounds, overlap. `view` asks for a number of
/// words of a size at an offset.
fn check(
    rig: &Rig,
    size: u64,
    counts: &[u64],
    view: impl Fn(&MemoryMappedFile, u64, u64) -> Result<()>,
) {
    let views = rig.writers().map(|file| file.bytes(0, LEN).unwrap());
    for count in counts.iter().copied() {
        let len = size * count;
        for file in rig.non_writers() {
            for offset in [0, 1, LEN + size, u64::MAX] {
                refused!(view(file, offset, count), MmapIoError::InvalidMode(_));
            }
        }
        for file in rig.writers() {
            for at in [1, size - 1, LEN + 1, u64::MAX] {
                let error = view(file, at, count).unwrap_err();
                let MmapIoError::Misaligned { required, offset } = error else {
                    panic!("expected Misaligned, found {error:?}");
                };
                assert_eq!((required, offset), (size, at));
                assert_names(&error, &[size, at]);
            }
            for offset in [LEN + size, 1 << 63] {
                assert_outside(view(file, offset, count), (offset, len), LEN);
            }
            match count {
                // No words overlap nothing, and may begin at the end.
                0 => view(file, LEN, 0).unwrap(),
                _ => {
                    assert_outside(view(file, LEN, count), (LEN, len), LEN);
                    assert_busy(view(file, 0, count), (0, len));
                }
            }
        }
    }
    drop(views);
}

#[test]
fn atomic_u32() {
    block_on(async {
        let rig = Rig::new().await;
        check(&rig, 4, &[1], |file, offset, _| {
            file.atomic_u32(offset).map(drop)
        });
        // What is stored in private pages does not show in the file: those first.
        for file in [&rig.private, &rig.file] {
            let word: AtomicView<'_, AtomicU32> = file.atomic_u32(4).unwrap();
            assert_eq!(word.load(Ordering::Relaxed).to_ne_bytes(), [4, 5, 6, 7]);
            // Views of one size overlap each other, and exclude the other size and plain views.
            let same = file.atomic_u32(4).unwrap();
            same.store(42, Ordering::Relaxed);
            assert_eq!(word.load(Ordering::Relaxed), 42);
            assert_busy(file.atomic_u64(0), (0, 8));
            assert_busy(file.as_slice(7, 1), (7, 1));
            assert!(!file.try_update_region(7, b"x").await.unwrap());
            let shown = format!("{word:?}");
            assert!(
                shown.contains("offset: 4") && shown.contains("42"),
                "{shown}"
            );
        }
        // Dropping the view of a file counts its bytes as written.
        assert_eq!(
            (rig.file.pending_bytes(), rig.private.pending_bytes()),
            (4, 0)
        );
        assert_eq!(rig.reader.as_slice(4, 4).unwrap(), &42_u32.to_ne_bytes());
    });
}

#[test]
fn atomic_u64() {
    block_on(async {
        let rig = Rig::new().await;
        check(&rig, 8, &[1], |file, offset, _| {
            file.atomic_u64(offset).map(drop)
        });
        let word: AtomicView<'_, AtomicU64> = rig.file.atomic_u64(8).unwrap();
        word.store(1, Ordering::Relaxed);
        // Through another handle, and while it lives.
        let other = MemoryMappedFile::open_rw(&rig.path).await.unwrap();
        other.atomic_u64(8).unwrap().fetch_add(1, Ordering::Relaxed);
        assert_eq!(word.load(Ordering::Relaxed), 2);
        assert_busy(other.atomic_u32(12), (12, 4));
        let mut copy = [0; 8];
        rig.reader.read_into(8, &mut copy).await.unwrap();
        assert_eq!(u64::from_ne_bytes(copy), 2);
        // It outlives growth, and a shrink over it waits.
        rig.file.resize(LEN * 2).await.unwrap();
        let mut shrink = Box::pin(rig.file.resize(12));
        assert_waits(&rig.file, 0, &mut shrink).await;
        drop(word);
        shrink.await.unwrap();
        assert_outside(rig.file.atomic_u64(8), (8, 8), 12);
        rig.file.atomic_u32(8).unwrap();
    });
}

#[test]
fn atomic_u32_slice() {
    block_on(async {
        let rig = Rig::new().await;
        check(&rig, 4, &[0, 1, 3], |file, offset, count| {
            file.atomic_u32_slice(offset, count as usize).map(drop)
        });
        let too_long = rig.file.atomic_u32_slice(4, usize::MAX);
        assert_outside(too_long, (4, u64::MAX), LEN);
        let words: AtomicSliceView<'_, AtomicU32> = rig.file.atomic_u32_slice(4, 3).unwrap();
        assert_eq!(words.len(), 3);
        words[2].store(u32::from_ne_bytes(*b"last"), Ordering::Relaxed);
        let shown = format!("{words:?}");
        assert!(
            shown.contains("offset: 4") && shown.contains('3'),
            "{shown}"
        );
        drop(words);
        assert_eq!(rig.file.pending_bytes(), 12);
        assert_eq!(rig.reader.as_slice(12, 4).unwrap(), b"last");
    });
}

#[test]
fn atomic_u64_slice() {
    block_on(async {
        let rig = Rig::new().await;
        check(&rig, 8, &[0, 1, 3], |file, offset, count| {
            file.atomic_u64_slice(offset, count as usize).map(drop)
        });
        let words: AtomicSliceView<'_, AtomicU64> = rig.file.atomic_u64_slice(8, 3).unwrap();
        words
            .iter()
            .for_each(|word| word.store(7, Ordering::Relaxed));
        assert_busy(rig.file.atomic_u32_slice(0, 3), (0, 12));
        rig.file.atomic_u32_slice(0, 2).unwrap();
        rig.file.atomic_u64_slice(16, 100).unwrap();
        drop(words);
        assert_eq!(rig.file.as_slice(24, 8).unwrap(), &7_u64.to_ne_bytes());
    });
}
