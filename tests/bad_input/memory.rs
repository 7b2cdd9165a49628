//! Writes of more data than there is memory for a copy: errors, and other writes go on.

use std::fs;
use std::pin::pin;

use futures_lite::future::poll_once;
use mmap_io::{MemoryMappedFile, MmapIoError};

use crate::common::child::{abort_if_stuck, child, child_dir};
use crate::common::{block_on, skip, with_timeout, HeldQueue};
use crate::{assert_error, assert_kind};

/// Each part of the data is in a file, and all of it is more than any memory can have.
#[test]
fn data_beyond_all_memory_is_an_error() {
    const LEN: u64 = 8 << 40;
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = match MemoryMappedFile::create_rw(dir.path().join("data"), LEN).await {
            Ok(file) => file,
            Err(error) => return skip("data_beyond_all_memory_is_an_error", &error.to_string()),
        };
        let view = file.as_slice(0, LEN).unwrap();
        let mut regions = vec![(0, &view[..]); 1 << 20];
        assert_kind!(file.update_regions(&regions).await, OutOfMemory);
        assert_kind!(file.update_regions_async(&regions).await, OutOfMemory);
        assert_eq!(file.stats().write_errors, 2);
        // What is wrong with one of its ranges comes first.
        regions.push((LEN, b"x"));
        assert_error!(
            file.update_regions(&regions).await,
            MmapIoError::OutOfBounds { .. }
        );
        drop(regions);
        drop(view);
        // It has taken no room from other writes.
        with_timeout(file.update_region(0, &vec![1; 1 << 20]))
            .await
            .unwrap();
    });
}

#[test]
fn data_without_memory_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    child!(little_memory_child).dir(dir.path()).passes();
}

#[test]
fn little_memory_child() {
    const LEN: u64 = 1 << 40;
    let Some(dir) = child_dir() else {
        return;
    };
    abort_if_stuck();
    block_on(async {
        let create = |name| {
            let builder = MemoryMappedFile::builder(dir.join(name)).write_buffer(10_000);
            builder.size(LEN).create()
        };
        let (source, file) = match (create("source").await, create("data").await) {
            (Ok(source), Ok(file)) => (source, file),
            (Err(error), _) | (_, Err(error)) => {
                return skip("data_without_memory_is_an_error", &error.to_string());
            }
        };
        let view = source.as_slice(0, LEN).unwrap();
        file.update_region(0, b"x").await.unwrap();
        // As much again as a test needs, and not as much as the data has.
        let status = fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = status.split(' ').next().unwrap().parse().unwrap();
        let most = pages * mmap_io::utils::page_size() as u64 + (LEN >> 4);
        let limit = libc::rlimit {
            rlim_cur: most,
            rlim_max: most,
        };
        // SAFETY: the structure is live for the call.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);

        let parts: [(u64, &[u8]); 2] = [(0, b"x"), (0, &view)];
        assert_kind!(file.update_region(0, &view).await, OutOfMemory);
        assert_kind!(file.update_region_async(0, &view).await, OutOfMemory);
        assert_kind!(file.try_update_region(0, &view).await, OutOfMemory);
        assert_kind!(file.update_regions(&parts).await, OutOfMemory);
        assert_kind!(file.append(&view).await, OutOfMemory);
        // These bytes are in a map, so that they are copied by a thread of the pool.
        let bytes = source.bytes(0, LEN).unwrap();
        assert_kind!(file.write_bytes(0, bytes).await, OutOfMemory);
        #[cfg(feature = "iterator")]
        assert_kind!(
            source.chunks_owned(LEN as usize).next().unwrap(),
            OutOfMemory
        );

        // One finds no room at first, so its data is to be copied later. What waits behind it is
        // applied.
        let held = HeldQueue::new(&file, LEN - 1);
        let first = file.update_region(0, &[1; 9_000]);
        let second = file.update_region(5_000, &view[5_000..]);
        let third = file.update_region(8_000, &[3; 9_000]);
        let (mut first, mut second, mut third) = (pin!(first), pin!(second), pin!(third));
        assert!(poll_once(first.as_mut()).await.is_none());
        assert!(poll_once(second.as_mut()).await.is_none());
        assert!(poll_once(third.as_mut()).await.is_none());
        held.release().await;
        with_timeout(first).await.unwrap();
        assert_kind!(with_timeout(second).await, OutOfMemory);
        with_timeout(third).await.unwrap();
        assert_eq!(file.slice(7_999, 2).await.unwrap(), &[1, 3]);
        let stats = file.stats();
        assert_eq!((stats.queued_writes, stats.queued_bytes), (0, 0));
    });
}
