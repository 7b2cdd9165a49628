//! Functions over paths, segments, and the helpers.

use std::fs;
use std::io::ErrorKind;
use std::sync::Arc;

use mmap_io::manager::r#async::{copy_mmap_async, create_mmap_async, delete_mmap_async};
use mmap_io::utils::{self, align_up, ensure_in_bounds, slice_range};
use mmap_io::{
    copy_mmap, create_mmap, delete_mmap, flush, load_mmap, replace, update_region, write_mmap,
};
use mmap_io::{MemoryMappedFile, MmapIoError, MmapMode, Segment, SegmentMut};

use crate::common::child::{child, child_dir};
use crate::common::pattern;
use crate::{assert_outside, block_on, refused, Rig, ANYWHERE, LEN, OUTSIDE, TOO_LARGE};

#[test]
fn create_and_delete() {
    block_on(async {
        let rig = Rig::new().await;
        let new = rig.path_of("new");
        for size in [0, TOO_LARGE] {
            refused!(create_mmap(&new, size).await, MmapIoError::ResizeFailed(_));
            let created = create_mmap_async(&new, size).await;
            refused!(created, MmapIoError::ResizeFailed(_));
        }
        refused!(create_mmap(&rig.path, 5).await, MmapIoError::Busy { .. });
        refused!(
            create_mmap_async(&rig.path, 5).await,
            MmapIoError::Busy { .. }
        );
        let file = create_mmap(&new, 5).await.unwrap();
        assert_eq!((file.mode(), file.len()), (MmapMode::ReadWrite, 5));
        // Open mappings live on.
        delete_mmap(&new).await.unwrap();
        assert!(!new.exists());
        file.update_region(0, b"alive").await.unwrap();
        assert_eq!(file.as_slice(0, 5).unwrap(), b"alive");
        create_mmap_async(&new, 6).await.unwrap();
        assert_eq!(fs::metadata(&new).unwrap().len(), 6);
        delete_mmap_async(&new).await.unwrap();
        for deleted in [delete_mmap(&new).await, delete_mmap_async(&new).await] {
            assert_eq!(deleted.unwrap_err().io_kind(), Some(ErrorKind::NotFound));
        }
    });
}

#[test]
fn load() {
    block_on(async {
        let rig = Rig::new().await;
        for mode in [
            MmapMode::ReadOnly,
            MmapMode::ReadWrite,
            MmapMode::CopyOnWrite,
        ] {
            let file = load_mmap(&rig.path, mode).await.unwrap();
            assert_eq!((file.mode(), file.is_cow_writable()), (mode, false));
            let missing = load_mmap(rig.path_of("missing"), mode).await;
            assert_eq!(missing.unwrap_err().io_kind(), Some(ErrorKind::NotFound));
        }
    });
}

#[test]
fn write_and_flush() {
    block_on(async {
        let rig = Rig::new().await;
        write_mmap(&rig.path, 5, b"written").await.unwrap();
        assert_eq!(rig.reader.as_slice(5, 7).unwrap(), b"written");
        assert_eq!(rig.file.pending_bytes(), 7, "it is not durable");
        assert_outside(write_mmap(&rig.path, LEN, b"x").await, (LEN, 1), LEN);
        write_mmap(&rig.path, u64::MAX, b"").await.unwrap();
        let missing = write_mmap(rig.path_of("missing"), 0, b"x").await;
        refused!(missing, MmapIoError::Io(_));

        update_region(&rig.file, 0, b"x").await.unwrap();
        refused!(
            update_region(&rig.reader, 0, b"x").await,
            MmapIoError::InvalidMode(_)
        );
        assert_outside(update_region(&rig.file, LEN, b"x").await, (LEN, 1), LEN);
        update_region(&rig.reader, LEN + 1, b"").await.unwrap();
        assert_eq!(rig.file.pending_bytes(), 8);
        for file in rig.all() {
            flush(file).await.unwrap();
        }
        assert_eq!(rig.file.pending_bytes(), 0);
    });
}

#[test]
fn copy() {
    block_on(async {
        let rig = Rig::new().await;
        let content = pattern(LEN as usize);
        let copy = rig.path_of("copy");
        for copied in [
            copy_mmap(&rig.path, copy.clone()).await,
            copy_mmap_async(rig.path.as_path(), &copy).await,
        ] {
            copied.unwrap();
            assert!(fs::read(&copy).unwrap() == content);
        }
        let (here, there) = (&rig.path, rig.path_of("mapped"));
        let _mapped = create_mmap(&there, 5).await.unwrap();
        for (from, to) in [(here, &there), (here, here)] {
            refused!(copy_mmap(from, to).await, MmapIoError::Busy { .. });
            refused!(copy_mmap_async(from, to).await, MmapIoError::Busy { .. });
        }
        // A file that is not mapped, onto itself.
        refused!(copy_mmap(&copy, &copy).await, MmapIoError::Busy { .. });
        assert!(fs::read(&copy).unwrap() == content && fs::read(here).unwrap() == content);
        let missing = copy_mmap(&rig.path_of("missing"), &copy).await;
        assert_eq!(missing.unwrap_err().io_kind(), Some(ErrorKind::NotFound));
    });
}

#[test]
fn replace_files() {
    block_on(async {
        let rig = Rig::new().await;
        // Views of the old file stay, and block nothing.
        let view = rig.reader.as_slice(1, 2).unwrap();
        replace(&rig.path, "the new content").await.unwrap();
        assert_eq!(fs::read(&rig.path).unwrap(), b"the new content");
        assert_eq!(view, [1, 2]);
        assert!(!rig.file.is_at_path().await.unwrap());
        // A file that is not there is created, and anything that becomes `Bytes` is content.
        let new = rig.path_of("new");
        mmap_io::manager::replace(&new, vec![1, 2]).await.unwrap();
        assert_eq!(fs::read(&new).unwrap(), [1, 2]);
        replace(&new, "").await.unwrap();
        assert_eq!(fs::read(&new).unwrap(), b"");
        refused!(replace(rig.dir.path(), "x").await, MmapIoError::Io(_));
    });
}

#[test]
fn segment() {
    block_on(async {
        let rig = Rig::new().await;
        for file in rig.all() {
            let parent = Arc::new(file.clone());
            for range @ (offset, len) in OUTSIDE {
                assert_outside(Segment::new(parent.clone(), offset, len), range, LEN);
            }
            for offset in ANYWHERE {
                let empty = Segment::new(parent.clone(), offset, 0).unwrap();
                assert!(empty.is_empty() && empty.is_valid());
                assert!(empty.as_slice().unwrap().is_empty());
            }
            let segment = Segment::new(parent, 5, 3).unwrap();
            assert_eq!((segment.offset(), segment.len()), (5, 3));
            assert_eq!(segment.parent().path(), rig.path);
            assert_eq!(segment.clone().as_slice().unwrap(), [5, 6, 7]);
            assert!(format!("{segment:?}").starts_with("Segment {"));
        }
        let last = Segment::new(Arc::new(rig.reader), LEN - 2, 2).unwrap();
        rig.file.resize(LEN - 1).await.unwrap();
        assert!(!last.is_valid());
        assert_outside(last.as_slice(), (LEN - 2, 2), LEN - 1);
        rig.file.resize(LEN).await.unwrap();
        assert!(last.is_valid());
    });
}

#[test]
fn segment_mut() {
    block_on(async {
        let rig = Rig::new().await;
        for file in rig.all() {
            let parent = Arc::new(file.clone());
            for range @ (offset, len) in OUTSIDE {
                assert_outside(SegmentMut::new(parent.clone(), offset, len), range, LEN);
            }
            let empty = SegmentMut::new(parent.clone(), u64::MAX, 0).unwrap();
            assert!(empty.is_empty() && empty.is_valid());
            assert!(empty.as_slice_mut().await.unwrap().is_empty());
            let segment = SegmentMut::new(parent, 5, 3).unwrap();
            assert_eq!((segment.offset(), segment.len()), (5, 3));
            assert_eq!(segment.parent().path(), rig.path);
            assert!(format!("{segment:?}").starts_with("SegmentMut {"));
            // No bytes, then the mode, then the segment's length.
            segment.write(b"").await.unwrap();
            if file.mode() == MmapMode::ReadWrite || file.is_cow_writable() {
                assert_outside(segment.write(b"long").await, (0, 4), 3);
                segment.write(b"ab").await.unwrap();
                segment.clone().as_slice_mut().await.unwrap()[1..].fill(b'c');
                assert_eq!(file.as_slice(4, 5).unwrap(), b"\x04acc\x08");
            } else {
                for data in [&b"ab"[..], b"long"] {
                    refused!(segment.write(data).await, MmapIoError::InvalidMode(_));
                }
                refused!(segment.as_slice_mut().await, MmapIoError::InvalidMode(_));
            }
        }
        // The whole segment counts, even if the data would fit.
        let last = SegmentMut::new(Arc::new(rig.file.clone()), LEN - 2, 2).unwrap();
        rig.file.resize(LEN - 1).await.unwrap();
        assert!(!last.is_valid());
        assert_outside(last.write(b"x").await, (LEN - 2, 2), LEN - 1);
        assert_outside(last.as_slice_mut().await, (LEN - 2, 2), LEN - 1);
    });
}

#[test]
fn helpers() {
    assert!(utils::page_size().is_power_of_two());
    for (value, alignment, expected) in [
        (0, 8, 0),
        (1, 8, 8),
        (8, 8, 8),
        (9, 3, 9),
        (9, 0, 9),
        (u64::MAX, 8, u64::MAX),
        (u64::MAX - 7, 8, u64::MAX - 7),
    ] {
        assert_eq!(align_up(value, alignment), expected);
    }
    for (offset, len) in [(0, 0), (0, LEN), (LEN, 0), (5, 7)] {
        ensure_in_bounds(offset, len, LEN).unwrap();
        let (start, end): (usize, usize) = slice_range(offset, len, LEN).unwrap();
        assert_eq!((start as u64, end as u64), (offset, offset + len));
    }
    for range @ (offset, len) in OUTSIDE.into_iter().chain([(LEN + 1, 0)]) {
        assert_outside(ensure_in_bounds(offset, len, LEN), range, LEN);
        assert_outside(slice_range(offset, len, LEN), range, LEN);
    }
}

#[test]
fn stop_probing() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("data"), pattern(LEN as usize)).unwrap();
    // In a process of its own, since it cannot be undone.
    child!(stop_probing_child).dir(dir.path()).passes();
}

#[test]
fn stop_probing_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    utils::stop_probing_residency();
    block_on(async {
        let file = MemoryMappedFile::open_ro(dir.join("data")).await.unwrap();
        // Every read hops to the pool.
        for _ in 0..2 {
            let hops = file.stats().pool_hops;
            assert_eq!(file.slice(5, 2).await.unwrap(), [5, 6]);
            assert_eq!(file.stats().pool_hops, hops + 1);
        }
    });
}
