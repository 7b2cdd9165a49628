//! What leaves memory: evicted pages, and a write-back that is only started.

use std::fs;

use mmap_io::{FlushPolicy, MemoryMappedFile, MmapIoError};

use crate::common::probe::{cached, can_probe, Probe};
use crate::common::{block_on, on_a_disk, pattern};
use crate::policies::settled;

/// Evicts a range until all of it is out of memory: a page that the kernel is using stays.
async fn evict_all(file: &MemoryMappedFile, offset: u64, len: u64) {
    for _ in 0..1000 {
        file.evict(offset, len).await.unwrap();
        if cached(file.path(), offset as usize, len as usize) == 0 {
            return;
        }
    }
    panic!("{len} bytes at {offset} stay in memory");
}

#[test]
fn evict_drops_pages_and_keeps_content() {
    let dir = on_a_disk();
    if !can_probe("evict_drops_pages_and_keeps_content", dir.path()) {
        return;
    }
    block_on(async {
        let path = dir.path().join("data");
        let len = 8 << 20;
        let file = settled(&path, len, FlushPolicy::Never).await;
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let mut content = pattern(len);
        file.update_region(0, &content).await.unwrap();
        reader.touch_pages().await.unwrap();
        assert_eq!(cached(&path, 0, len), len / 4096);
        // Views keep their bytes, and `evict` does not wait for them; written bytes are not lost.
        let view = reader.as_slice(100, 1 << 20).unwrap();
        let bytes = file.bytes(3 << 20, 1 << 20).unwrap();
        assert!(view == content[100..100 + (1 << 20)] && bytes == content[3 << 20..4 << 20]);
        let mut written = file.as_slice_mut(6 << 20, 4096).await.unwrap();
        written[0] = content[6 << 20];
        // Away from the views' pages, which the kernel may keep together with their neighbours.
        evict_all(&file, 4 << 20, 2 << 20).await;
        file.evict(0, len as u64).await.unwrap();
        // The pages of views stay, since a thread that must not wait for the disk may touch them.
        assert_eq!(cached(&path, 0, 1 << 20), 256);
        assert_eq!(cached(&path, 3 << 20, 1 << 20), 256);
        assert_eq!(cached(&path, 6 << 20, 4096), 1);
        drop(written);
        assert_eq!(file.pending_bytes(), 4096);
        assert!(view == content[100..100 + (1 << 20)] && bytes == content[3 << 20..4 << 20]);
        drop((view, bytes));
        file.evict(0, len as u64).await.unwrap();
        assert_eq!(cached(&path, 0, len), 0);
        assert!(fs::read(&path).unwrap() == content);
        // After it grew: the maps that were outgrown hold no page either.
        file.resize(3 * len as u64).await.unwrap();
        content.resize(3 * len, 0);
        file.update_region(2 * len as u64 - 5, b"grown")
            .await
            .unwrap();
        content[2 * len - 5..2 * len].copy_from_slice(b"grown");
        file.touch_pages().await.unwrap();
        evict_all(&file, 0, 3 * len as u64).await;
        // A part goes, and the rest stays.
        file.touch_pages().await.unwrap();
        evict_all(&file, len as u64, len as u64).await;
        assert_eq!(cached(&path, 0, len), len / 4096);
        assert!(reader.read_bytes(0, 3 * len as u64).await.unwrap() == content[..]);
        // Without a right to flush, nothing that is dirty is thrown away.
        file.update_region(1000, b"dirty").await.unwrap();
        content[1000..1005].copy_from_slice(b"dirty");
        reader.evict(0, 3 * len as u64).await.unwrap();
        assert!(file.as_slice(0, 3 * len as u64).unwrap() == content[..]);
        assert!(fs::read(&path).unwrap() == content);
        file.evict(0, 0).await.unwrap();
        let out = file.evict(3 * len as u64, 1).await.unwrap_err();
        assert!(matches!(out, MmapIoError::OutOfBounds { .. }), "{out:?}");
    });
}

#[test]
fn schedule_flush_is_not_durable() {
    let dir = on_a_disk();
    if !can_probe("schedule_flush_is_not_durable", dir.path()) {
        return;
    }
    block_on(async {
        let path = dir.path().join("data");
        let file = settled(&path, 8 << 20, FlushPolicy::Never).await;
        let probe = Probe::new(&path);
        let mebibyte = vec![1; 1 << 20];
        // Again, if the system was just writing everything back.
        let mut rest = None;
        for _ in 0..100 {
            file.update_region(0, &mebibyte).await.unwrap();
            file.update_region(4 << 20, &mebibyte).await.unwrap();
            file.schedule_flush_range(0, 1 << 20).await.unwrap();
            rest = probe.unwritten(4 << 20, 1 << 20);
            if rest.is_none() || rest == Some(256) {
                break;
            }
        }
        assert_eq!((file.pending_bytes(), file.stats().flushes), (2 << 20, 0));
        if let Some(rest) = rest {
            assert_eq!(
                rest, 256,
                "expected only the requested range to be written back"
            );
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(15);
            while probe.unwritten(0, 1 << 20) != Some(0) {
                assert!(
                    std::time::Instant::now() < deadline,
                    "timed out; expected the range to be written back"
                );
                std::thread::yield_now();
            }
        }
        file.schedule_flush().await.unwrap();
        probe.wait_until_clean();
        // Written back is not durable: the bytes still have to be flushed.
        assert_eq!((file.pending_bytes(), file.stats().flushes), (2 << 20, 0));
        file.flush().await.unwrap();
        assert_eq!((file.pending_bytes(), file.stats().flushes), (0, 1));
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        file.update_region(0, b"x").await.unwrap();
        reader.schedule_flush().await.unwrap();
        assert_eq!(file.pending_bytes(), 1);
        let out = file.schedule_flush_range(8 << 20, 1).await.unwrap_err();
        assert!(matches!(out, MmapIoError::OutOfBounds { .. }), "{out:?}");
    });
}
