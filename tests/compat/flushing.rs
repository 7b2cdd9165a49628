//! Flushes, and the policies that ask for them.

use mmap_io::flush::FlushPolicy;
use mmap_io::{MemoryMappedFile, MmapMode};

use crate::common::wait_until;
use crate::{assert_outside, block_on, checks_range, Rig, ANYWHERE, LEN, OUTSIDE};

/// A file with five pending bytes at its start, and five at 1000.
async fn pending() -> Rig {
    let rig = Rig::new().await;
    let regions: [(u64, &[u8]); 2] = [(0, b"first"), (1000, b"after")];
    rig.file.update_regions(&regions).await.unwrap();
    assert_eq!(rig.file.pending_bytes(), 10);
    rig
}

#[test]
fn flush() {
    block_on(async {
        let rig = pending().await;
        for file in rig.all() {
            // What does not write has nothing to flush.
            let pending = rig.file.pending_bytes();
            file.flush().await.unwrap();
            let flushed = file.mode() == MmapMode::ReadWrite;
            assert_eq!(rig.file.pending_bytes(), if flushed { 0 } else { pending });
        }
        // Views do not stop it.
        let _view = rig.file.bytes(0, LEN).unwrap();
        rig.file.flush().await.unwrap();
        assert_eq!(rig.file.stats().flushes, 1, "nothing was pending any more");
    });
}

#[test]
fn flush_async() {
    block_on(async {
        let rig = pending().await;
        for file in rig.all() {
            file.flush_async().await.unwrap();
        }
        assert_eq!(rig.file.pending_bytes(), 0);
    });
}

#[test]
fn flush_range() {
    block_on(async {
        let rig = pending().await;
        checks_range!(rig, |file, offset, len| file.flush_range(offset, len).await);
        let rig = pending().await;
        rig.file.flush_range(0, 3).await.unwrap();
        assert_eq!(rig.file.pending_bytes(), 7);
        rig.file.flush_range(900, 1000).await.unwrap();
        assert_eq!(rig.file.pending_bytes(), 2);
    });
}

#[test]
fn flush_range_async() {
    block_on(async {
        let rig = pending().await;
        checks_range!(rig, |file, offset, len| file
            .flush_range_async(offset, len)
            .await);
        let rig = pending().await;
        rig.file.flush_range_async(0, 5).await.unwrap();
        assert_eq!(rig.file.pending_bytes(), 5);
    });
}

#[test]
fn schedule_flush() {
    block_on(async {
        let rig = pending().await;
        for file in rig.all() {
            file.schedule_flush().await.unwrap();
        }
        assert_eq!(rig.file.pending_bytes(), 10, "it makes nothing durable");
    });
}

#[test]
fn schedule_flush_range() {
    block_on(async {
        let rig = pending().await;
        checks_range!(rig, |file, offset, len| file
            .schedule_flush_range(offset, len)
            .await);
        let rig = pending().await;
        rig.file.schedule_flush_range(0, 5).await.unwrap();
        assert_eq!(rig.file.pending_bytes(), 10, "it makes nothing durable");
    });
}

#[test]
fn policies() {
    block_on(async {
        // After each of four writes of 10 bytes: how many bytes are pending.
        for (policy, pending) in [
            (FlushPolicy::Never, [10, 20, 30, 40]),
            (FlushPolicy::Manual, [10, 20, 30, 40]),
            (FlushPolicy::Always, [0, 0, 0, 0]),
            (FlushPolicy::EveryBytes(15), [10, 0, 10, 0]),
            (FlushPolicy::EveryBytes(0), [10, 20, 30, 40]),
            (FlushPolicy::EveryWrites(3), [10, 20, 0, 10]),
            (FlushPolicy::EveryWrites(0), [10, 20, 30, 40]),
            (FlushPolicy::EveryMillis(0), [10, 20, 30, 40]),
        ] {
            let rig = Rig::new().await;
            let builder = MemoryMappedFile::builder(&rig.path).mode(MmapMode::ReadWrite);
            let file = builder.flush_policy(policy).open().await.unwrap();
            for (write, expected) in pending.into_iter().enumerate() {
                let offset = 100 * write as u64;
                file.update_region(offset, &[1; 10]).await.unwrap();
                assert_eq!(file.pending_bytes(), expected, "{policy:?}, write {write}");
            }
        }
        let rig = Rig::new().await;
        let builder = MemoryMappedFile::builder(&rig.path).mode(MmapMode::ReadWrite);
        let policy = FlushPolicy::EveryMillis(1);
        let file = builder.flush_policy(policy).open().await.unwrap();
        file.update_region(0, b"later").await.unwrap();
        wait_until(&file, |stats| stats.pending_bytes == 0).await;
    });
}
