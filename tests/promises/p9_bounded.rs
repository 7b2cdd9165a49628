//! Queued write data is bounded, first come, first served.

use std::future::Future;
use std::pin::Pin;

use futures_lite::future::poll_once;
use mmap_io::{MemoryMappedFile, MmapMode};

use crate::common::{alone, is_quiet, patterned, until};

#[test]
fn writers_wait_for_room_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    alone(async {
        let (path, file) = patterned(dir.path(), 10_000).await;
        drop(file);
        let file = MemoryMappedFile::builder(&path)
            .mode(MmapMode::ReadWrite)
            .write_buffer(1000)
            .open()
            .await
            .unwrap();
        let view = file.bytes(0, 10_000).unwrap();
        let mut writers: Vec<Pin<Box<dyn Future<Output = _>>>> = Vec::new();
        for turn in 0..50 {
            let writer = file.clone();
            writers.push(Box::pin(async move {
                writer.update_region(0, &[turn; 300]).await
            }));
            assert!(poll_once(writers.last_mut().unwrap()).await.is_none());
            assert!(file.stats().queued_bytes <= 1000);
        }
        assert_eq!(file.stats().queued_bytes, 900);
        // Two that leave give their place to the next.
        drop(writers.drain(..2));
        for writer in &mut writers {
            assert!(poll_once(writer).await.is_none());
        }
        assert_eq!(file.stats().queued_bytes, 900);
        drop(view);
        for writer in writers {
            writer.await.unwrap();
        }
        assert_eq!(file.as_slice(0, 300).unwrap(), [49; 300]);
        // One that is larger than the buffer goes alone.
        file.update_region(0, &[7; 5000]).await.unwrap();
        until(&file, is_quiet).await;
    });
}
