//! Views of bytes, and copies of them.

use bytes::Bytes;
use mmap_io::{MappedSlice, MmapIoError};

use crate::common::assert_waits;
use crate::{
    assert_busy, assert_outside, block_on, checks_range, refused, Rig, ANYWHERE, LEN, OUTSIDE,
};

#[test]
fn as_slice() {
    block_on(async {
        let rig = Rig::new().await;
        checks_range!(rig, |file, offset, len| file.as_slice(offset, len));
        for file in rig.all() {
            assert_eq!(file.as_slice(250, 3).unwrap(), [250, 0, 1]);
            assert_eq!(file.as_slice(0, LEN).unwrap().len() as u64, LEN);
        }
        // Readers share, and bytes that a mutable view has are busy at once.
        let _view = rig.file.as_slice(0, 20).unwrap();
        let _mutable = rig.file.as_slice_mut(20, 10).await.unwrap();
        for file in [&rig.file, &rig.reader, &rig.cow] {
            assert_eq!(file.as_slice(10, 10).unwrap()[0], 10);
            assert_busy(file.as_slice(29, 2), (29, 2));
            assert_eq!(file.as_slice(30, 1).unwrap(), [30]);
        }
        let _word = rig.file.atomic_u32(40).unwrap();
        assert_busy(rig.reader.as_slice(43, 1), (43, 1));
    });
}

#[test]
fn try_as_slice() {
    block_on(async {
        let rig = Rig::new().await;
        checks_range!(rig, |file, offset, len| file
            .try_as_slice(offset, len)
            .map(|view| assert!(view.is_some())));
        assert_eq!(rig.reader.try_as_slice(7, 2).unwrap().unwrap(), [7, 8]);
        let mutable = rig.file.as_slice_mut(0, 10).await.unwrap();
        assert!(rig.reader.try_as_slice(9, 2).unwrap().is_none());
        drop(mutable);
        let _word = rig.file.atomic_u64(0).unwrap();
        assert!(rig.reader.try_as_slice(7, 1).unwrap().is_none());
        assert!(rig.reader.try_as_slice(8, 1).unwrap().is_some());
    });
}

#[test]
fn as_slice_bytes() {
    block_on(async {
        let rig = Rig::new().await;
        let mutable = rig.file.as_slice_mut(0, LEN).await.unwrap();
        for file in rig.all() {
            for offset in ANYWHERE {
                assert!(file.as_slice_bytes(offset, 0).unwrap().is_empty());
            }
        }
        for (offset, len) in [(0, 1)].into_iter().chain(OUTSIDE) {
            for file in rig.writers() {
                let refused = file.as_slice_bytes(offset, len);
                refused!(refused, MmapIoError::InvalidMode(_));
            }
        }
        for range in OUTSIDE {
            for file in rig.non_writers() {
                assert_outside(file.as_slice_bytes(range.0, range.1), range, LEN);
            }
        }
        assert_busy(rig.reader.as_slice_bytes(5, 2), (5, 2));
        drop(mutable);
        // Plain references, many at once; the range stays leased as long as the handle.
        let (one, two): (&[u8], &[u8]) = (
            rig.reader.as_slice_bytes(5, 2).unwrap(),
            rig.reader.as_slice_bytes(6, 2).unwrap(),
        );
        assert_eq!((one, two), (&[5, 6][..], &[6, 7][..]));
        assert!(!rig.file.try_update_region(7, b"x").await.unwrap());
        drop(rig.reader);
        assert!(rig.file.try_update_region(7, b"x").await.unwrap());
    });
}

#[test]
fn slice() {
    block_on(async {
        let rig = Rig::new().await;
        checks_range!(rig, |file, offset, len| file.slice(offset, len).await);
        for file in rig.all() {
            assert_eq!(file.slice(250, 3).await.unwrap(), [250, 0, 1]);
        }
        let mutable = rig.file.as_slice_mut(0, 10).await.unwrap();
        let mut read = Box::pin(rig.reader.slice(9, 1));
        assert_waits(&rig.file, 100, &mut read).await;
        drop(mutable);
        assert_eq!(read.await.unwrap(), [9]);
        let word = rig.file.atomic_u32(0).unwrap();
        let mut read = Box::pin(rig.reader.slice(3, 2));
        assert_waits(&rig.file, 100, &mut read).await;
        drop(word);
        assert_eq!(read.await.unwrap(), [3, 4]);
    });
}

#[test]
fn bytes() {
    block_on(async {
        let rig = Rig::new().await;
        checks_range!(rig, |file, offset, len| file.bytes(offset, len));
        let mutable = rig.file.as_slice_mut(0, 10).await.unwrap();
        assert_busy(rig.reader.bytes(9, 2), (9, 2));
        drop(mutable);
        // It is the mapping itself, keeps its lease, and outlives the handle.
        let bytes: Bytes = rig.reader.bytes(10, 5).unwrap();
        let view = rig.reader.as_slice(10, 5).unwrap();
        assert_eq!(bytes.as_ptr(), view.as_ptr());
        drop(view);
        drop(rig.reader);
        assert_eq!(bytes, [10, 11, 12, 13, 14][..]);
        assert!(!rig.file.try_update_region(14, b"x").await.unwrap());
        assert!(rig.file.try_update_region(15, b"x").await.unwrap());
        let part = bytes.slice(..1);
        drop(bytes);
        assert!(!rig.file.try_update_region(14, b"x").await.unwrap());
        drop(part);
        assert!(rig.file.try_update_region(14, b"x").await.unwrap());
    });
}

#[test]
fn read_bytes() {
    block_on(async {
        let rig = Rig::new().await;
        checks_range!(rig, |file, offset, len| file.read_bytes(offset, len).await);
        // No copy: as long as it lives, a write that overlaps it waits.
        let bytes = rig.reader.read_bytes(10, 5).await.unwrap();
        assert_eq!(bytes, [10, 11, 12, 13, 14][..]);
        let mut write = Box::pin(rig.file.update_region(14, b"x"));
        assert_waits(&rig.file, 100, &mut write).await;
        drop(bytes);
        write.await.unwrap();
        let mutable = rig.file.as_slice_mut(0, 10).await.unwrap();
        let mut read = Box::pin(rig.reader.read_bytes(9, 1));
        assert_waits(&rig.file, 100, &mut read).await;
        drop(mutable);
        assert_eq!(read.await.unwrap(), [9][..]);
    });
}

#[test]
fn read_into() {
    block_on(async {
        let rig = Rig::new().await;
        checks_range!(rig, |file, offset, len| file
            .read_into(offset, &mut vec![0; len as usize])
            .await);
        let mut buffer = [0; 3];
        for file in rig.all() {
            file.read_into(250, &mut buffer).await.unwrap();
            assert_eq!(buffer, [250, 0, 1]);
        }
        // A copy delays no write, and works under atomic views.
        let word = rig.file.atomic_u32(100).unwrap();
        word.store(
            u32::from_ne_bytes(*b"word"),
            std::sync::atomic::Ordering::Relaxed,
        );
        let mut buffer = [0; 5];
        rig.reader.read_into(99, &mut buffer).await.unwrap();
        assert_eq!(&buffer, b"cword");
        assert!(rig.file.try_update_region(0, b"x").await.unwrap());
    });
}

#[test]
fn read_regions() {
    block_on(async {
        let rig = Rig::new().await;
        checks_range!(rig, |file, offset, len| file
            .read_regions(&[(offset, len), (offset, 0)])
            .await);
        for file in rig.all() {
            // The order is kept, and ranges may overlap.
            let read = file
                .read_regions(&[(9, 2), (0, 1), (10, 1), (LEN, 0)])
                .await;
            let expected: [&[u8]; 4] = [&[9, 10], &[0], &[10], &[]];
            assert_eq!(read.unwrap(), expected);
            assert!(file.read_regions(&[]).await.unwrap().is_empty());
            // All or an error.
            let one_outside = file.read_regions(&[(0, 1), (LEN, 1)]).await;
            assert_outside(one_outside, (LEN, 1), LEN);
            assert_eq!(file.stats().views, 0);
        }
    });
}

#[test]
fn slices() {
    block_on(async {
        let rig = Rig::new().await;
        checks_range!(rig, |file, offset, len| file
            .slices(&[(offset, len), (offset, 0)])
            .await);
        for file in rig.all() {
            let read: Vec<MappedSlice<'_>> = file.slices(&[(9, 2), (0, 1), (10, 1)]).await.unwrap();
            let expected: [&[u8]; 3] = [&[9, 10], &[0], &[10]];
            assert_eq!(read, expected);
            drop(read);
            assert_outside(file.slices(&[(0, 1), (LEN, 1)]).await, (LEN, 1), LEN);
            assert_eq!(file.stats().views, 0);
        }
    });
}

#[test]
fn as_ptr() {
    block_on(async {
        let rig = Rig::new().await;
        for file in rig.all() {
            // SAFETY: nothing writes to the byte, and the file does not change its length.
            let byte = unsafe { file.as_ptr().add(7).read() };
            assert_eq!(byte, 7);
        }
    });
}
