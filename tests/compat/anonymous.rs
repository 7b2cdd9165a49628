//! Anonymous memory: the operations of a file that need no file.

use std::sync::atomic::Ordering;

use mmap_io::{AnonymousMmap, MmapIoError};

use crate::common::poll_once;
use crate::{assert_busy, assert_outside, block_on, refused, ANYWHERE, LEN, OUTSIDE, TOO_LARGE};

fn memory() -> AnonymousMmap {
    AnonymousMmap::new(LEN).unwrap()
}

#[test]
fn new() {
    for size in [0, TOO_LARGE, u64::MAX] {
        refused!(AnonymousMmap::new(size), MmapIoError::ResizeFailed(_));
        let huge = AnonymousMmap::with_huge_pages(size);
        refused!(huge, MmapIoError::ResizeFailed(_));
    }
    for memory in [memory(), AnonymousMmap::with_huge_pages(LEN).unwrap()] {
        assert_eq!((memory.len(), memory.is_empty()), (LEN, false));
        assert!(memory
            .as_slice(0, LEN)
            .unwrap()
            .iter()
            .all(|byte| *byte == 0));
        let shown = format!("{memory:?}");
        assert!(
            shown.contains("AnonymousMmap") && shown.contains("10000"),
            "{shown}"
        );
        let backed = block_on(memory.is_hugepage_backed());
        assert_eq!(backed.is_some(), cfg!(target_os = "linux"));
        // A clone is the same memory.
        block_on(memory.clone().update_region(0, b"x")).unwrap();
        assert_eq!(memory.as_slice(0, 1).unwrap(), b"x");
        let stats = memory.stats();
        assert_eq!((stats.updates, stats.pending_bytes), (1, 0));
    }
}

#[test]
fn reads() {
    let memory = memory();
    block_on(async {
        memory.update_region(5, b"bytes").await.unwrap();
        assert_eq!(memory.as_slice(5, 5).unwrap(), b"bytes");
        assert_eq!(memory.try_as_slice(5, 5).unwrap().unwrap(), b"bytes");
        assert_eq!(memory.slice(5, 5).await.unwrap(), b"bytes");
        assert_eq!(memory.bytes(5, 5).unwrap(), "bytes");
        assert_eq!(memory.read_bytes(5, 5).await.unwrap(), "bytes");
        let mut buffer = [0; 5];
        memory.read_into(5, &mut buffer).await.unwrap();
        assert_eq!(&buffer, b"bytes");

        let mutable = memory.as_slice_mut(0, LEN).await.unwrap();
        for offset in ANYWHERE {
            assert!(memory.as_slice(offset, 0).unwrap().is_empty());
            assert!(memory.try_as_slice(offset, 0).unwrap().is_some());
            assert!(memory.slice(offset, 0).await.unwrap().is_empty());
            assert!(memory.bytes(offset, 0).unwrap().is_empty());
            assert!(memory.read_bytes(offset, 0).await.unwrap().is_empty());
            memory.read_into(offset, &mut []).await.unwrap();
        }
        for range @ (offset, len) in OUTSIDE {
            assert_outside(memory.as_slice(offset, len), range, LEN);
            assert_outside(memory.try_as_slice(offset, len), range, LEN);
            assert_outside(memory.slice(offset, len).await, range, LEN);
            assert_outside(memory.bytes(offset, len), range, LEN);
            assert_outside(memory.read_bytes(offset, len).await, range, LEN);
            let mut buffer = vec![0; len as usize];
            assert_outside(memory.read_into(offset, &mut buffer).await, range, LEN);
        }
        assert_busy(memory.as_slice(5, 2), (5, 2));
        assert_busy(memory.bytes(5, 2), (5, 2));
        assert!(memory.try_as_slice(5, 2).unwrap().is_none());
        drop(mutable);
        // The bytes outlive the handle.
        let bytes = memory.bytes(5, 5).unwrap();
        drop(memory);
        assert_eq!(bytes, "bytes");
    });
}

#[test]
fn writes() {
    let memory = memory();
    block_on(async {
        memory
            .update_regions(&[(0, b"aaaa"), (2, b"bb")])
            .await
            .unwrap();
        memory.write_bytes(4, "cc".into()).await.unwrap();
        assert!(memory.try_update_region(6, b"dd").await.unwrap());
        assert_eq!(memory.as_slice(0, 8).unwrap(), b"aabbccdd");

        let view = memory.bytes(0, LEN).unwrap();
        for offset in ANYWHERE {
            memory.update_region(offset, b"").await.unwrap();
            memory.update_regions(&[(offset, b"")]).await.unwrap();
            memory.write_bytes(offset, "".into()).await.unwrap();
            assert!(memory.try_update_region(offset, b"").await.unwrap());
        }
        for offset in [LEN, LEN - 1, u64::MAX] {
            let range = (offset, 2);
            assert_outside(memory.update_region(offset, b"xx").await, range, LEN);
            let regions: [(u64, &[u8]); 2] = [(0, b"x"), (offset, b"xx")];
            assert_outside(memory.update_regions(&regions).await, range, LEN);
            assert_outside(memory.write_bytes(offset, "xx".into()).await, range, LEN);
            let tried = memory.try_update_region(offset, b"xx").await;
            assert_outside(tried, range, LEN);
        }
        assert!(!memory.try_update_region(7, b"xx").await.unwrap());
        drop(view);
        assert_eq!(memory.as_slice(0, 1).unwrap(), b"a");
    });
}

#[test]
fn mutable_views() {
    let memory = memory();
    block_on(async {
        memory.as_slice_mut(0, 3).await.unwrap().fill(b'a');
        memory.as_mut_slice(1, 3).await.unwrap().fill(b'b');
        memory.try_as_slice_mut(2, 3).unwrap().unwrap().fill(b'c');
        let mut view = memory.try_as_mut_slice(3, 3).unwrap().unwrap();
        view.fill(b'd');
        assert!(memory.try_as_slice_mut(5, 1).unwrap().is_none());
        assert!(memory.try_as_mut_slice(5, 1).unwrap().is_none());
        view.commit().await.unwrap();
        assert_eq!(memory.as_slice(0, 6).unwrap(), b"abcddd");
        for range @ (offset, len) in OUTSIDE {
            assert_outside(memory.as_slice_mut(offset, len).await, range, LEN);
            assert_outside(memory.as_mut_slice(offset, len).await, range, LEN);
            assert_outside(memory.try_as_slice_mut(offset, len), range, LEN);
            assert_outside(memory.try_as_mut_slice(offset, len), range, LEN);
        }
        for offset in ANYWHERE {
            assert!(memory.as_slice_mut(offset, 0).await.unwrap().is_empty());
            assert!(memory.as_mut_slice(offset, 0).await.unwrap().is_empty());
            assert!(memory.try_as_slice_mut(offset, 0).unwrap().is_some());
            assert!(memory.try_as_mut_slice(offset, 0).unwrap().is_some());
        }
    });
}

#[test]
fn words() {
    let memory = memory();
    block_on(async {
        memory.atomic_u32(4).unwrap().store(1, Ordering::Relaxed);
        memory.atomic_u64(8).unwrap().store(2, Ordering::Relaxed);
        let small = memory.atomic_u32_slice(4, 1).unwrap();
        let large = memory.atomic_u64_slice(8, 2).unwrap();
        assert_eq!(small[0].load(Ordering::Relaxed), 1);
        assert_eq!(large[0].load(Ordering::Relaxed), 2);
        assert_busy(memory.atomic_u64(0), (0, 8));
        assert_busy(memory.as_slice(15, 1), (15, 1));
        refused!(
            memory.atomic_u32(2),
            MmapIoError::Misaligned {
                required: 4,
                offset: 2
            }
        );
        assert_outside(memory.atomic_u64_slice(LEN, 1), (LEN, 8), LEN);
        let mut write = Box::pin(memory.update_region(23, b"x"));
        assert!(poll_once(&mut write).await.is_none());
        drop(large);
        write.await.unwrap();
    });
}

#[test]
fn pointers() {
    let memory = memory();
    // SAFETY: the byte is inside the memory, which nothing else uses.
    unsafe { memory.as_mut_ptr().add(7).write(b'x') };
    // SAFETY: as above.
    let byte = unsafe { memory.as_ptr().add(7).read() };
    assert_eq!(byte, b'x');
}
