//! What can be asked of a handle without reading the file's bytes.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;

use mmap_io::{FlushPolicy, MemoryMappedFile, MmapMode, Stats};

use crate::common::{poll_once, wait_until_examined};
use crate::{block_on, Rig, LEN};

#[test]
fn handle() {
    block_on(async {
        let rig = Rig::new().await;
        assert_eq!(rig.file.mode(), MmapMode::ReadWrite);
        assert_eq!(rig.reader.mode(), MmapMode::ReadOnly);
        assert_eq!(rig.cow.mode(), MmapMode::CopyOnWrite);
        for file in rig.all() {
            assert_eq!(file.path(), rig.path);
            assert_eq!((file.len(), file.is_empty()), (LEN, false));
            assert_eq!(file.current_len().unwrap(), LEN);
            assert_eq!(file.flush_policy(), FlushPolicy::Never);
            assert!(!file.was_created());
            let shown = format!("{file:?}");
            let (path, mode) = (format!("{:?}", rig.path), format!("{:?}", file.mode()));
            for part in [path, mode, LEN.to_string()] {
                assert!(shown.contains(&part), "{part}: {shown}");
            }
        }
        let is_private = rig.all().map(|file| file.is_cow_writable());
        assert_eq!(is_private, [false, false, false, true]);
        // A clone is the same handle.
        let clone = rig.file.clone();
        rig.file.resize(5).await.unwrap();
        assert_eq!((clone.len(), rig.reader.len()), (5, 5));
    });
}

#[test]
fn descriptors() {
    block_on(async {
        let rig = Rig::new().await;
        let file = fs::File::from(rig.file.as_fd().try_clone_to_owned().unwrap());
        let there = fs::metadata(&rig.path).unwrap();
        assert_eq!(file.metadata().unwrap().ino(), there.ino());
        assert_eq!(rig.file.as_raw_fd(), rig.file.as_fd().as_raw_fd());
    });
}

#[test]
fn pending_bytes() {
    block_on(async {
        let rig = Rig::new().await;
        // Distinct bytes, through any handle on the file that may write.
        rig.file.update_region(0, &[1; 10]).await.unwrap();
        rig.file.update_region(5, &[1; 10]).await.unwrap();
        rig.private.update_region(100, &[1; 10]).await.unwrap();
        let pending = rig.all().map(|file| file.pending_bytes());
        assert_eq!(pending, [15, 0, 0, 0]);
        rig.file.flush_range(0, 5).await.unwrap();
        assert_eq!(rig.file.pending_bytes(), 10);
        rig.file.flush().await.unwrap();
        assert_eq!(rig.file.pending_bytes(), 0);
    });
}

#[test]
fn is_hugepage_backed() {
    block_on(async {
        let rig = Rig::new().await;
        for file in rig.all() {
            let found = file.is_hugepage_backed().await;
            assert_ne!(found, Some(true), "a small file");
            assert_eq!(found.is_some(), cfg!(target_os = "linux"));
        }
    });
}

#[test]
fn last_flush_error() {
    block_on(async {
        let rig = Rig::new().await;
        rig.file.update_region_async(0, b"x").await.unwrap();
        for file in rig.all() {
            assert!(file.last_flush_error().is_none());
            assert_eq!(file.stats().flush_errors, 0);
        }
    });
}

#[test]
fn metadata() {
    block_on(async {
        let rig = Rig::new().await;
        let there = fs::metadata(&rig.path).unwrap();
        fs::remove_file(&rig.path).unwrap();
        for file in rig.all() {
            let metadata: fs::Metadata = file.metadata().await.unwrap();
            assert_eq!((metadata.ino(), metadata.len()), (there.ino(), LEN));
        }
    });
}

#[test]
fn is_at_path() {
    block_on(async {
        let rig = Rig::new().await;
        assert!(rig.file.is_at_path().await.unwrap());
        fs::rename(&rig.path, rig.path_of("moved")).unwrap();
        assert!(!rig.file.is_at_path().await.unwrap());
        fs::write(&rig.path, b"another file").unwrap();
        assert!(!rig.file.is_at_path().await.unwrap());
        fs::rename(rig.path_of("moved"), &rig.path).unwrap();
        assert!(rig.file.is_at_path().await.unwrap());
    });
}

#[test]
fn is_mapped_for_writing() {
    block_on(async {
        let rig = Rig::new().await;
        assert!(rig.file.is_mapped_for_writing());
        let path = rig.path_of("apart");
        fs::write(&path, b"some bytes").unwrap();
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        assert!(!reader.is_mapped_for_writing());
        drop(MemoryMappedFile::open_rw(&path).await.unwrap());
        assert!(reader.is_mapped_for_writing());
    });
}

#[test]
fn stats() {
    block_on(async {
        let rig = Rig::new().await;
        let before = rig.file.stats();
        assert!(before.mapped_bytes >= LEN, "{before:?}");
        assert_eq!((before.views, before.updates, before.flushes), (0, 0, 0));
        assert_eq!(before.oldest_blocked, None);

        let view = rig.file.as_slice(0, 10).unwrap();
        let mut blocked = Box::pin(rig.file.update_region(0, b"later"));
        assert!(poll_once(&mut blocked).await.is_none());
        wait_until_examined(&rig.file, 100).await;
        let stats = rig.file.stats();
        assert_eq!(
            (stats.views, stats.queued_writes, stats.queued_bytes),
            (1, 1, 5)
        );
        assert!(stats.oldest_blocked.is_some() && stats.pool_hops > before.pool_hops);
        assert_eq!((stats.updates, stats.pending_bytes), (1, 1));
        drop(view);
        blocked.await.unwrap();
        rig.file.flush().await.unwrap();
        rig.file.slice(0, 10).await.unwrap();

        let after = rig.file.stats();
        assert_eq!(
            (after.queued_writes, after.queued_bytes, after.views),
            (0, 0, 0)
        );
        assert_eq!(
            (after.updates, after.pending_bytes, after.flushes),
            (2, 0, 1)
        );
        assert_eq!(after.flushed_waiters, 1);
        let reads = after.resident_hits + after.resident_misses;
        assert!(reads > before.resident_hits + before.resident_misses);
        assert_eq!(after.bytes_read_in > 0, after.resident_misses > 0);
        assert_eq!(after.read_in_time.is_zero(), after.resident_misses == 0);
        assert_eq!((after.write_errors, after.flush_errors), (0, 0));
        assert_eq!(
            rig.reader.stats(),
            after,
            "the handles of a file share them"
        );
        assert_eq!(
            rig.private.stats().updates,
            0,
            "private pages have their own"
        );
        assert_eq!(Stats::default().updates, 0);
        // A write that completes where it is first polled is counted apart as well.
        let mut write = Box::pin(rig.file.update_region(0, b"inline"));
        let first = poll_once(&mut write).await;
        let is_inline = u64::from(first.is_some());
        if first.is_none() {
            write.await.unwrap();
        }
        let stats = rig.file.stats();
        assert_eq!(stats.inline_updates, after.inline_updates + is_inline);
        assert_eq!(stats.updates, after.updates + 1);
    });
}
