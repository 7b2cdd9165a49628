//! The maps are bounded, also while many tasks read, and every read is of one whole object.

use std::fs;

use futures_lite::future::block_on;
use mmap_io_object_store::MappedFileSystem;
use tempfile::TempDir;

use super::object_store::{path::Path, ObjectStore, ObjectStoreExt};

/// A store of `count` objects of 10,000 bytes, each filled with its number.
fn store(count: u8) -> (TempDir, MappedFileSystem) {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..count {
        fs::write(dir.path().join(number.to_string()), [number; 10_000]).unwrap();
    }
    let store = MappedFileSystem::new_with_prefix(dir.path()).unwrap();
    (dir, store)
}

fn location(number: u8) -> Path {
    Path::from(number.to_string())
}

#[test]
fn least_recently_used_map_goes_first() {
    let (_dir, store) = store(4);
    let store = store.with_max_maps(3);
    block_on(async {
        let read = async |number| {
            let bytes = store.get_range(&location(number), 0..10).await.unwrap();
            assert_eq!(bytes, [number; 10][..]);
        };
        for number in [0, 1, 2, 0, 3] {
            read(number).await;
        }
        let stats = store.stats();
        assert_eq!((stats.maps, stats.cached, stats.evicted), (3, 3, 1));
        assert_eq!((stats.mapped, stats.hits), (4, 1));
        assert_eq!(stats.mapped_bytes, 30_000);
        // 1 has gone; the others have not.
        for number in [0, 2, 3] {
            read(number).await;
        }
        assert_eq!(store.stats().hits, 4);
        read(1).await;
        assert_eq!(store.stats().mapped, 5);
    });
}

#[test]
fn map_in_use_is_not_evicted() {
    let (_dir, store) = store(4);
    let store = store.with_max_mapped_bytes(25_000);
    block_on(async {
        let first = store.get_range(&location(0), 0..10).await.unwrap();
        let second = store.get_range(&location(1), 0..10).await.unwrap();
        // No room: a copy.
        let copy = store.get_range(&location(2), 0..10_000).await.unwrap();
        assert_eq!(copy, [2; 10_000][..]);
        let copies = store.get_ranges(&location(2), &[5..10, 0..7]).await;
        assert_eq!(copies.unwrap(), [&[2; 5][..], &[2; 7]]);
        let stats = store.stats();
        assert_eq!((stats.maps, stats.evicted, stats.unmapped_reads), (2, 0, 2));
        drop(second);
        store.get_range(&location(2), 0..10).await.unwrap();
        let stats = store.stats();
        assert_eq!((stats.maps, stats.evicted, stats.unmapped_reads), (2, 1, 2));
        // The one in use is still there, though it is the oldest.
        let again = store.get_range(&location(0), 0..10).await.unwrap();
        assert_eq!(again.as_ptr(), first.as_ptr());
    });
}

#[test]
fn too_large_object_evicts_nothing() {
    let (dir, store) = store(2);
    let store = store.with_max_mapped_bytes(25_000);
    fs::write(dir.path().join("large"), vec![9; 25_001]).unwrap();
    block_on(async {
        for number in [0, 1] {
            store.get_range(&location(number), 0..10).await.unwrap();
        }
        let large = store.get(&Path::from("large")).await.unwrap();
        assert_eq!(large.bytes().await.unwrap(), vec![9; 25_001]);
        let stats = store.stats();
        assert_eq!((stats.maps, stats.evicted, stats.unmapped_reads), (2, 0, 1));
    });
}

#[test]
fn evicted_bytes_stay_readable() {
    let (_dir, store) = store(3);
    let store = store.with_max_maps(1);
    block_on(async {
        let first = store.get_range(&location(0), 0..10_000).await.unwrap();
        // Replaced, it leaves the cache, and counts as long as its bytes live.
        store.put(&location(0), "new".into()).await.unwrap();
        assert_eq!((store.stats().maps, store.stats().cached), (1, 0));
        store.get_range(&location(1), 0..10).await.unwrap();
        assert_eq!((store.stats().maps, store.stats().unmapped_reads), (1, 1));
        assert_eq!(first, [0; 10_000][..]);
        drop(first);
        store.get_range(&location(1), 0..10).await.unwrap();
        assert_eq!((store.stats().maps, store.stats().unmapped_reads), (1, 1));
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .build()
        .unwrap()
}

#[test]
fn tasks_that_come_together_share_a_map() {
    let (_dir, store) = store(1);
    runtime().block_on(async {
        let tasks = (0..64).map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.get_range(&location(0), 0..10_000).await.unwrap() })
        });
        let mut read = Vec::new();
        for task in tasks.collect::<Vec<_>>() {
            read.push(task.await.unwrap());
        }
        let shared = read[0].as_ptr();
        assert!(read.iter().all(|bytes| bytes.as_ptr() == shared));
        let stats = store.stats();
        assert_eq!((stats.maps, stats.mapped, stats.hits), (1, 1, 63));
    });
}

#[test]
fn bounds_hold_while_many_tasks_read() {
    let (_dir, store) = store(20);
    let store = store.with_max_maps(5).with_max_mapped_bytes(45_000);
    runtime().block_on(async {
        let tasks = (0..32_u32).map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                for round in 0..20 {
                    let number = ((task * 7 + round * 3) % 20) as u8;
                    let parts = [0..100, 9_000..9_500];
                    let parts = store.get_ranges(&location(number), &parts).await.unwrap();
                    let stats = store.stats();
                    assert!(stats.maps <= 4, "{stats:?}");
                    assert!(stats.mapped_bytes <= 45_000, "{stats:?}");
                    tokio::task::yield_now().await;
                    assert_eq!(parts, [&[number; 100][..], &[number; 500]]);
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        let stats = store.stats();
        assert!(
            stats.hits + stats.mapped + stats.unmapped_reads == 640,
            "{stats:?}"
        );
        assert_eq!(stats.maps, stats.cached);
    });
}

#[test]
fn reads_see_one_object_while_it_is_replaced() {
    let (_dir, store) = store(1);
    runtime().block_on(async {
        let writer = tokio::spawn({
            let store = store.clone();
            async move {
                for round in 1..=60_u8 {
                    let payload = vec![round; 10_000 + usize::from(round)];
                    store.put(&location(0), payload.into()).await.unwrap();
                }
            }
        });
        let readers = (0..4).map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut last = 0;
                while last < 60 {
                    let result = store.get(&location(0)).await.unwrap();
                    let size = result.meta.size;
                    let bytes = result.bytes().await.unwrap();
                    assert_eq!(bytes.len() as u64, size);
                    let round = bytes[0];
                    assert!(round >= last, "{round} was read after {last}");
                    assert!(bytes.iter().all(|byte| *byte == round));
                    last = round;
                }
            })
        });
        for reader in readers.collect::<Vec<_>>() {
            reader.await.unwrap();
        }
        writer.await.unwrap();
        // None, if a reader has mapped the last object before its put returned, and dropped what was
        // mapped.
        assert!(store.stats().maps <= 1);
    });
}
