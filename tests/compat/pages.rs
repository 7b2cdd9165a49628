//! Pages: reading them in, advice, locks, and taking them out of memory.

use mmap_io::advise::MmapAdvice;
use mmap_io::utils::page_size;
use mmap_io::MmapIoError;

use crate::{
    assert_busy, assert_outside, block_on, checks_range, refused, Rig, ANYWHERE, LEN, OUTSIDE,
};

#[test]
fn touch_pages() {
    block_on(async {
        let rig = Rig::new().await;
        // Nothing that is live stops it.
        let _word = rig.file.atomic_u32(0).unwrap();
        for file in rig.all() {
            let before = file.stats();
            file.touch_pages().await.unwrap();
            let after = file.stats();
            let looked = after.resident_hits + after.resident_misses;
            assert_eq!(looked, before.resident_hits + before.resident_misses + 1);
        }
    });
}

#[test]
fn touch_pages_range() {
    block_on(async {
        let rig = Rig::new().await;
        checks_range!(rig, |file, offset, len| file
            .touch_pages_range(offset, len)
            .await);
        let _word = rig.file.atomic_u32(0).unwrap();
        for file in rig.all() {
            file.touch_pages_range(1, 5).await.unwrap();
        }
    });
}

#[test]
fn prefetch_range() {
    block_on(async {
        let rig = Rig::new().await;
        checks_range!(rig, |file, offset, len| file
            .prefetch_range(offset, len)
            .await);
        let _word = rig.file.atomic_u32(0).unwrap();
        for file in rig.all() {
            file.prefetch_range(1, 5).await.unwrap();
        }
    });
}

#[test]
fn evict() {
    block_on(async {
        let rig = Rig::new().await;
        checks_range!(rig, |file, offset, len| file.evict(offset, len).await);
        rig.file.flush().await.unwrap();
        rig.file.update_region(5, b"written").await.unwrap();
        rig.file.evict(0, LEN).await.unwrap();
        assert_eq!(rig.file.pending_bytes(), 0, "it flushes");
        for file in [&rig.reader, &rig.cow, &rig.file] {
            file.evict(0, LEN).await.unwrap();
            assert_eq!(file.slice(4, 9).await.unwrap(), b"\x04written\x0c");
        }
    });
}

#[test]
fn advise() {
    block_on(async {
        let rig = Rig::new().await;
        for advice in [
            MmapAdvice::Normal,
            MmapAdvice::Random,
            MmapAdvice::Sequential,
            MmapAdvice::WillNeed,
            MmapAdvice::DontNeed,
            MmapAdvice::Cold,
            MmapAdvice::PageOut,
            MmapAdvice::HugePage,
            MmapAdvice::NoHugePage,
        ] {
            checks_range!(rig, |file, offset, len| file
                .advise(offset, len, advice)
                .await);
            // It changes no byte of a file, and no view stops it.
            for file in [&rig.file, &rig.reader, &rig.cow] {
                let view = file.as_slice(100, 100).unwrap();
                match file.advise(101, 5, advice).await {
                    // A kernel without huge pages knows no advice about them.
                    Err(MmapIoError::AdviceFailed(_)) => {
                        let about_huge = [MmapAdvice::HugePage, MmapAdvice::NoHugePage];
                        assert!(about_huge.contains(&advice), "{advice:?}");
                    }
                    advised => advised.unwrap(),
                }
                assert_eq!(view[..2], [100, 101]);
            }
        }
        // Private copies are thrown away, by whole pages, if nothing looks at them.
        let dont_need = || rig.private.advise(5000, 1, MmapAdvice::DontNeed);
        let start = (page_size() as u64) * (5000 / page_size() as u64);
        rig.private.update_region(start, b"mine").await.unwrap();
        let view = rig.private.as_slice(start, 4).unwrap();
        assert_busy(dont_need().await, (5000, 1));
        assert_eq!(view, b"mine");
        drop(view);
        dont_need().await.unwrap();
        let file = rig.file.as_slice(start, 4).unwrap();
        assert_eq!(rig.private.as_slice(start, 4).unwrap(), file);
    });
}

#[test]
fn lock() {
    block_on(async {
        let rig = Rig::new().await;
        let _view = rig.file.as_slice_mut(0, 10).await.unwrap();
        for file in rig.all() {
            for offset in ANYWHERE {
                file.lock(offset, 0).await.unwrap();
                file.unlock(offset, 0).await.unwrap();
            }
            for range @ (offset, len) in OUTSIDE {
                match file.is_cow_writable() {
                    true => refused!(file.lock(offset, len).await, MmapIoError::InvalidMode(_)),
                    false => assert_outside(file.lock(offset, len).await, range, LEN),
                }
                assert_outside(file.unlock(offset, len).await, range, LEN);
            }
        }
        for file in [&rig.file, &rig.reader, &rig.cow] {
            // Locks do not nest, and what was never locked may be unlocked.
            file.lock(5, 1).await.unwrap();
            file.lock(6, 1).await.unwrap();
            file.unlock(7, 1).await.unwrap();
            file.unlock(7, 1).await.unwrap();
        }
        refused!(rig.private.lock(0, 1).await, MmapIoError::InvalidMode(_));
        rig.private.unlock(0, 1).await.unwrap();
    });
}

#[test]
fn lock_all() {
    block_on(async {
        let rig = Rig::new().await;
        for file in [&rig.file, &rig.reader, &rig.cow] {
            file.unlock_all().await.unwrap();
            file.lock_all().await.unwrap();
            file.lock_all().await.unwrap();
            file.unlock_all().await.unwrap();
        }
        refused!(rig.private.lock_all().await, MmapIoError::InvalidMode(_));
        // A file without bytes has no pages.
        let path = rig.path_of("empty");
        std::fs::write(&path, b"").unwrap();
        let empty = mmap_io::MemoryMappedFile::open_ro(&path).await.unwrap();
        empty.lock_all().await.unwrap();
        empty.unlock_all().await.unwrap();
    });
}
