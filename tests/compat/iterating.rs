//! Iteration in pieces of one size.

use std::iter::FusedIterator;

use mmap_io::utils::page_size;
use mmap_io::{ChunkIterator, ChunkIteratorMut, MmapIoError, OwnedChunkIterator};

use crate::common::{pattern, poll_once};
use crate::{assert_busy, block_on, refused, Rig, LEN};

/// Checks what the iterators have in common.
fn check<I, T: AsRef<[u8]>>(iterate: impl Fn(usize) -> I)
where
    I: Iterator<Item = mmap_io::Result<T>>
        + ExactSizeIterator
        + DoubleEndedIterator
        + FusedIterator,
{
    let whole = pattern(LEN as usize);
    for size in [1000, 4096, LEN as usize, usize::MAX] {
        let expected: Vec<&[u8]> = whole.chunks(size).collect();
        let mut chunks = iterate(size);
        for left in (0..expected.len()).rev() {
            let chunk = chunks.next().unwrap().unwrap();
            assert_eq!(chunk.as_ref(), expected[expected.len() - 1 - left]);
            assert_eq!(
                (chunks.len(), chunks.size_hint()),
                (left, (left, Some(left)))
            );
        }
        assert!(chunks.next().is_none() && chunks.next_back().is_none());
        let backwards = iterate(size)
            .rev()
            .map(|chunk| chunk.unwrap().as_ref().to_vec());
        assert!(backwards.eq(expected.into_iter().rev()));
    }
    assert_eq!((iterate(0).len(), iterate(0).count()), (0, 0));
}

#[test]
fn chunks() {
    block_on(async {
        let rig = Rig::new().await;
        for file in rig.all() {
            check(|size| -> ChunkIterator<'_> { file.chunks(size) });
        }
        // Each item keeps its own bytes, and an item whose bytes are busy is an error.
        let last = rig.reader.chunks(4096).next_back().unwrap().unwrap();
        let _mutable = rig.file.as_slice_mut(0, 4096).await.unwrap();
        assert_busy(rig.reader.chunks(4096).next().unwrap(), (0, 4096));
        assert!(!rig.file.try_update_region(8192, b"x").await.unwrap());
        drop(last);
        assert!(rig.file.try_update_region(8192, b"x").await.unwrap());
    });
}

#[test]
fn pages() {
    block_on(async {
        let rig = Rig::new().await;
        let whole = pattern(LEN as usize);
        for file in rig.all() {
            let pages: ChunkIterator<'_> = file.pages();
            let pages = pages.map(|page| page.unwrap().to_vec());
            assert!(pages.eq(whole.chunks(page_size())));
        }
    });
}

#[test]
fn chunks_owned() {
    block_on(async {
        let rig = Rig::new().await;
        for file in rig.all() {
            check(|size| -> OwnedChunkIterator<'_> { file.chunks_owned(size) });
        }
        // A copy delays no write, and works under atomic views.
        let _word = rig.file.atomic_u32(0).unwrap();
        let first: Vec<u8> = rig.reader.chunks_owned(4096).next().unwrap().unwrap();
        assert_eq!(first[..4], [0, 1, 2, 3]);
        assert!(rig.file.try_update_region(4, b"x").await.unwrap());
    });
}

#[test]
fn pages_owned() {
    block_on(async {
        let rig = Rig::new().await;
        let whole = pattern(LEN as usize);
        for file in rig.all() {
            let pages: OwnedChunkIterator<'_> = file.pages_owned();
            assert!(pages.map(Result::unwrap).eq(whole.chunks(page_size())));
        }
    });
}

#[test]
fn for_each_mut() {
    block_on(async {
        let rig = Rig::new().await;
        for file in rig.non_writers() {
            for size in [0, 4096] {
                let chunks: ChunkIteratorMut<'_> = file.chunks_mut(size);
                let changed = chunks.for_each_mut(|_, _| panic!("not called")).await;
                refused!(changed, MmapIoError::InvalidMode(_));
            }
        }
        for file in rig.writers() {
            let none = file.chunks_mut(0);
            none.for_each_mut(|_, _| panic!("not called"))
                .await
                .unwrap();
            // The closure borrows, and need not be `Send`.
            let mut seen = Vec::new();
            let not_send = std::rc::Rc::new(1_u8);
            let changed = file.chunks_mut(4096).for_each_mut(|offset, chunk| {
                seen.push((offset, chunk.len()));
                chunk.fill(*not_send);
                Ok(())
            });
            changed.await.unwrap();
            assert_eq!(seen, [(0, 4096), (4096, 4096), (8192, 1808)]);
            assert!(file.as_slice(0, LEN).unwrap().iter().all(|byte| *byte == 1));
            // It stops at the first error, which it returns as it is; what was done stays.
            let changed = file.chunks_mut(4096).for_each_mut(|offset, chunk| {
                chunk.fill(2);
                match offset {
                    0 => Ok(()),
                    offset => Err(MmapIoError::Misaligned {
                        required: 3,
                        offset,
                    }),
                }
            });
            let error = changed.await.unwrap_err();
            assert!(matches!(error, MmapIoError::Misaligned { required: 3, .. }));
            assert_eq!(file.as_slice(8191, 2).unwrap(), [2, 1]);
        }
        assert_eq!(rig.file.pending_bytes(), LEN);
        // One exclusive view: it waits for all others.
        let view = rig.file.as_slice(LEN - 1, 1).unwrap();
        let mut changing = Box::pin(rig.file.chunks_mut(4096).for_each_mut(|_, _| Ok(())));
        assert!(poll_once(&mut changing).await.is_none());
        drop(view);
        changing.await.unwrap();
    });
}

#[test]
fn for_each_mut_legacy() {
    block_on(async {
        let rig = Rig::new().await;
        let chunks = rig.reader.chunks_mut(0);
        let changed = chunks.for_each_mut_legacy(|_, _| Ok::<_, ()>(())).await;
        refused!(changed, MmapIoError::InvalidMode(_));
        for file in rig.writers() {
            let chunks = file.chunks_mut(4096);
            let changed = chunks.for_each_mut_legacy(|offset, chunk| {
                chunk[0] = 7;
                match offset {
                    0 => Ok(()),
                    offset => Err(format!("stopped at {offset}")),
                }
            });
            // The error of the closure is inside `Ok`.
            let stopped: Result<(), String> = changed.await.unwrap();
            assert_eq!(stopped, Err("stopped at 4096".into()));
            assert_eq!(file.as_slice(0, 1).unwrap(), [7]);
            assert_eq!(file.as_slice(8192, 1).unwrap(), [160]);
            let chunks = file.chunks_mut(4096);
            let changed = chunks.for_each_mut_legacy(|_, _| Ok::<_, ()>(())).await;
            assert_eq!(changed.unwrap(), Ok(()));
        }
    });
}
