//! Bytes of a mapping as the data of a write: to the same file, and to another.

use bytes::Bytes;
use futures_lite::future::{poll_once, zip};
use mmap_io::MemoryMappedFile;

use crate::common::{block_on, is_quiet, pattern, patterned, wait_until};

#[test]
fn mapped_source_keeps_write_order() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 10_000).await;
        for round in 0..100 {
            // The mapped bytes are copied first, on the pool; the data of the write behind them is
            // not.
            let mapped = file.bytes(5000, 10).unwrap();
            let first = file.write_bytes(0, mapped);
            let data = [round; 10];
            let second = file.update_region(0, &data);
            let (first, second) = zip(first, second).await;
            first.and(second).unwrap();
            assert_eq!(file.as_slice(0, 10).unwrap(), [round; 10]);
        }
        // Nor does the lease on a source block the operation that it waits for: the first write
        // waits for the source of the second, and the second for the first.
        let mapped = file.bytes(5, 1).unwrap();
        let mut first = Box::pin(file.update_region(0, &[1; 10]));
        assert!(poll_once(&mut first).await.is_none());
        let second = file.write_bytes(9, mapped);
        let (first, second) = zip(first, second).await;
        first.and(second).unwrap();
        assert_eq!(file.as_slice(0, 9).unwrap(), [1; 9]);
        wait_until(&file, is_quiet).await;
    });
}

#[test]
fn panicking_owner_blocks_nothing() {
    struct Owner(Bytes);

    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Owner {
        fn drop(&mut self) {
            panic!("an owner of the test's own");
        }
    }

    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 10_000).await;
        for data in [
            file.bytes(0, 100).unwrap(),
            Bytes::from_static(b"elsewhere"),
        ] {
            let data = Bytes::from_owner(Owner(data));
            file.write_bytes(5000, data).await.unwrap();
            file.update_region(5000, b"later").await.unwrap();
        }
        wait_until(&file, is_quiet).await;
    });
}

#[test]
fn bytes_can_be_written_to_own_file() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 10_000).await;
        let other = MemoryMappedFile::open_ro(&path).await.unwrap();
        // Onto themselves: the only view that conflicts is the one that is moved in.
        for handle in [&file, &other] {
            let same = handle.bytes(100, 5000).unwrap();
            file.write_bytes(100, same).await.unwrap();
            let part = handle.bytes(0, 10_000).unwrap().slice(500..600);
            file.write_bytes_async(550, part).await.unwrap();
        }
        let mut expected = pattern(10_000);
        expected.copy_within(500..600, 550);
        expected.copy_within(500..600, 550);
        assert_eq!(file.as_slice(0, 10_000).unwrap(), &expected[..]);

        // Another clone of them blocks the write, as any view does.
        let bytes = file.bytes(0, 100).unwrap();
        let mut write = Box::pin(file.write_bytes(50, bytes.clone()));
        while file.stats().oldest_blocked.is_none() {
            assert!(poll_once(&mut write).await.is_none());
            std::thread::yield_now();
        }
        assert!(poll_once(&mut write).await.is_none());
        assert_eq!(bytes, expected[..100]);
        drop(bytes);
        write.await.unwrap();
        expected.copy_within(0..100, 50);
        assert_eq!(file.as_slice(0, 10_000).unwrap(), &expected[..]);
    });
}

#[test]
fn two_files_can_swap_bytes() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, one) = patterned(dir.path(), 1000).await;
        let two = MemoryMappedFile::create_rw(dir.path().join("two"), 1000)
            .await
            .unwrap();
        // Each is the source of the other: neither may wait for the other's view of it.
        let (from_one, from_two) = (one.bytes(0, 1000).unwrap(), two.bytes(0, 1000).unwrap());
        let swap = zip(two.write_bytes(0, from_one), one.write_bytes(0, from_two));
        let (first, second) = swap.await;
        first.and(second).unwrap();
        assert_eq!(two.as_slice(0, 1000).unwrap(), &pattern(1000)[..]);
        assert_eq!(one.as_slice(0, 1000).unwrap(), [0; 1000]);
        // The same within one file.
        let (low, high) = (two.bytes(0, 500).unwrap(), two.bytes(500, 500).unwrap());
        let (first, second) = zip(two.write_bytes(500, low), two.write_bytes(0, high)).await;
        first.and(second).unwrap();
        let mut expected = pattern(1000);
        expected.rotate_left(500);
        assert_eq!(two.as_slice(0, 1000).unwrap(), &expected[..]);
    });
}
