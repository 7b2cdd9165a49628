//! Writes, mutable views and appends.

use std::fs;

use bytes::Bytes;
use mmap_io::{MappedSliceMut, MmapIoError};

use crate::common::{assert_waits, poll_once};
use crate::{assert_outside, block_on, checks_write, data, refused, Rig, ANYWHERE, LEN, OUTSIDE};

#[test]
fn update_region() {
    block_on(async {
        let rig = Rig::new().await;
        checks_write!(rig, |file, offset, len| file
            .update_region(offset, &data(len))
            .await);
        rig.file.update_region(5, b"visible").await.unwrap();
        assert_eq!(rig.reader.as_slice(4, 9).unwrap(), b"\x04visible\x0c");
        assert_eq!(rig.file.pending_bytes(), 7);
        // It waits for the views that overlap it.
        let view = rig.reader.as_slice(5, 1).unwrap();
        let mut write = Box::pin(rig.file.update_region(0, b"waited"));
        assert_waits(&rig.file, 100, &mut write).await;
        drop(view);
        write.await.unwrap();
        assert_eq!(rig.reader.as_slice(0, 6).unwrap(), b"waited");
    });
}

#[test]
fn update_region_async() {
    block_on(async {
        let rig = Rig::new().await;
        checks_write!(rig, |file, offset, len| file
            .update_region_async(offset, &data(len))
            .await);
        rig.file.update_region_async(5, b"durable").await.unwrap();
        assert_eq!(rig.reader.as_slice(5, 7).unwrap(), b"durable");
        assert_eq!(rig.file.pending_bytes(), 0);
        assert_eq!(rig.file.stats().flushed_waiters, 1);
    });
}

#[test]
fn update_regions() {
    block_on(async {
        let rig = Rig::new().await;
        checks_write!(rig, |file, offset, len| file
            .update_regions(&[(offset, &data(len)), (offset, b"")])
            .await);
        for file in rig.all() {
            file.update_regions(&[]).await.unwrap();
        }
        // Later ranges over earlier ones, and all or none.
        rig.file
            .update_regions(&[(0, b"aaaa"), (2, b"bb"), (100, b"c")])
            .await
            .unwrap();
        assert_eq!(rig.reader.as_slice(0, 4).unwrap(), b"aabb");
        let one_outside = rig.file.update_regions(&[(0, b"x"), (LEN, b"x")]).await;
        assert_outside(one_outside, (LEN, 1), LEN);
        assert_eq!(rig.reader.as_slice(0, 1).unwrap(), b"a");
        let view = rig.reader.as_slice(100, 1).unwrap();
        let mut write = Box::pin(rig.file.update_regions(&[(0, b"x"), (100, b"x")]));
        assert_waits(&rig.file, 200, &mut write).await;
        assert_eq!(rig.reader.as_slice(0, 1).unwrap(), b"a");
        drop(view);
        write.await.unwrap();
    });
}

#[test]
fn update_regions_async() {
    block_on(async {
        let rig = Rig::new().await;
        checks_write!(rig, |file, offset, len| file
            .update_regions_async(&[(offset, &data(len)), (offset, b"")])
            .await);
        let regions: [(u64, &[u8]); 2] = [(0, b"one"), (9000, b"two")];
        rig.file.update_regions_async(&regions).await.unwrap();
        assert_eq!(rig.reader.as_slice(9000, 3).unwrap(), b"two");
        assert_eq!(rig.file.pending_bytes(), 0);
    });
}

#[test]
fn write_bytes() {
    block_on(async {
        let rig = Rig::new().await;
        checks_write!(rig, |file, offset, len| file
            .write_bytes(offset, data(len).into())
            .await);
        rig.file.write_bytes(5, "owned".into()).await.unwrap();
        assert_eq!(rig.reader.as_slice(5, 5).unwrap(), b"owned");
        assert_eq!(rig.file.pending_bytes(), 5);
        // The bytes may be a view of the place that they are written to.
        let own: Bytes = rig.file.bytes(5, 5).unwrap();
        rig.file.write_bytes(7, own).await.unwrap();
        assert_eq!(rig.reader.as_slice(5, 7).unwrap(), b"owowned");
    });
}

#[test]
fn write_bytes_async() {
    block_on(async {
        let rig = Rig::new().await;
        checks_write!(rig, |file, offset, len| file
            .write_bytes_async(offset, data(len).into())
            .await);
        rig.file.write_bytes_async(5, "owned".into()).await.unwrap();
        assert_eq!(rig.reader.as_slice(5, 5).unwrap(), b"owned");
        assert_eq!(rig.file.pending_bytes(), 0);
    });
}

#[test]
fn try_update_region() {
    block_on(async {
        let rig = Rig::new().await;
        checks_write!(rig, |file, offset, len| file
            .try_update_region(offset, &data(len))
            .await
            .map(|is_written| assert!(is_written)));
        assert!(rig.file.try_update_region(0, b"new").await.unwrap());
        let view = rig.reader.as_slice(2, 1).unwrap();
        assert!(!rig.file.try_update_region(0, b"old").await.unwrap());
        // Nor does it pass an operation that was submitted before.
        let mut write = Box::pin(rig.file.update_region(0, b"earlier"));
        assert!(poll_once(&mut write).await.is_none());
        assert!(!rig.file.try_update_region(6, b"x").await.unwrap());
        drop(view);
        write.await.unwrap();
        assert_eq!(rig.reader.as_slice(0, 7).unwrap(), b"earlier");
    });
}

#[test]
fn as_slice_mut() {
    block_on(async {
        let rig = Rig::new().await;
        checks_write!(rig, |file, offset, len| file
            .as_slice_mut(offset, len)
            .await);
        let view: MappedSliceMut<'_> = rig.file.as_slice_mut(5, 5).await.unwrap();
        assert_eq!(*view, [5, 6, 7, 8, 9]);
        // It excludes everything that overlaps it.
        let mut second = Box::pin(rig.file.as_slice_mut(9, 1));
        assert_waits(&rig.file, 100, &mut second).await;
        drop(view);
        second.await.unwrap().fill(b'x');
        assert_eq!(rig.reader.as_slice(8, 3).unwrap(), b"\x08x\x0a");
    });
}

#[test]
fn try_as_slice_mut() {
    block_on(async {
        let rig = Rig::new().await;
        checks_write!(rig, |file, offset, len| file
            .try_as_slice_mut(offset, len)
            .map(|view| assert!(view.is_some())));
        let mut view = rig.file.try_as_slice_mut(0, 5).unwrap().unwrap();
        view.copy_from_slice(b"store");
        assert!(rig.file.try_as_slice_mut(4, 1).unwrap().is_none());
        drop(view);
        let view = rig.reader.as_slice(0, 5).unwrap();
        assert_eq!(view, b"store");
        assert!(rig.file.try_as_slice_mut(4, 1).unwrap().is_none());
        let mut write = Box::pin(rig.file.update_region(4, b"xyz"));
        assert_waits(&rig.file, 100, &mut write).await;
        assert!(rig.file.try_as_slice_mut(6, 1).unwrap().is_none());
        drop(view);
        write.await.unwrap();
    });
}

#[test]
fn as_mut_ptr() {
    block_on(async {
        let rig = Rig::new().await;
        for file in rig.non_writers() {
            // SAFETY: it is not used.
            refused!(unsafe { file.as_mut_ptr() }, MmapIoError::InvalidMode(_));
        }
        for file in rig.writers() {
            // SAFETY: nothing looks at the byte, and the file does not change its length.
            unsafe { file.as_mut_ptr().unwrap().add(7).write(b'x') };
            assert_eq!(file.as_slice(6, 3).unwrap(), b"\x06x\x08");
        }
        // Whatever is stored, all of the file counts as pending.
        assert_eq!(
            (rig.file.pending_bytes(), rig.private.pending_bytes()),
            (LEN, 0)
        );
    });
}

#[test]
fn append() {
    block_on(async {
        let rig = Rig::new().await;
        let held = rig.file.bytes(0, LEN).unwrap();
        for file in rig.all() {
            assert_eq!(file.append(b"").await.unwrap(), LEN);
        }
        for file in [&rig.reader, &rig.cow, &rig.private] {
            refused!(file.append(b"x").await, MmapIoError::InvalidMode(_));
        }
        // It waits for no view, and no two of them get the same place.
        let (one, two) = (rig.file.append(b"one"), rig.file.append(b"two"));
        let (one, two) = futures_lite::future::try_zip(one, two).await.unwrap();
        assert_eq!((one, two), (LEN, LEN + 3));
        assert_eq!(rig.reader.as_slice(LEN, 6).unwrap(), b"onetwo");
        assert_eq!((rig.file.len(), rig.file.pending_bytes()), (LEN + 6, 6));
        drop(held);
    });
}

#[test]
fn append_async() {
    block_on(async {
        let rig = Rig::new().await;
        for file in rig.all() {
            assert_eq!(file.append_async(b"").await.unwrap(), LEN);
        }
        refused!(
            rig.reader.append_async(b"x").await,
            MmapIoError::InvalidMode(_)
        );
        assert_eq!(rig.file.append_async(b"durable").await.unwrap(), LEN);
        assert_eq!(rig.reader.as_slice(LEN, 7).unwrap(), b"durable");
        assert_eq!(rig.file.pending_bytes(), 0);
    });
}

#[test]
fn append_at() {
    block_on(async {
        let rig = Rig::new().await;
        for file in rig.all() {
            assert!(file.append_at(LEN, b"").await.unwrap());
            assert!(!file.append_at(5, b"").await.unwrap());
        }
        refused!(
            rig.reader.append_at(LEN, b"x").await,
            MmapIoError::InvalidMode(_)
        );
        assert!(rig.file.append_at(LEN, b"one").await.unwrap());
        for expected in [0, LEN, LEN + 4, u64::MAX] {
            assert!(!rig.file.append_at(expected, b"two").await.unwrap());
        }
        assert_eq!(rig.file.len(), LEN + 3);
        assert_eq!(fs::metadata(&rig.path).unwrap().len(), LEN + 3);
    });
}
