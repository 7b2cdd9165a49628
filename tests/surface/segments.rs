//! Segments: ranges that own their handle, and are checked against the length at each call.

use std::sync::Arc;

use mmap_io::segment::{Segment, SegmentMut};
use mmap_io::{MemoryMappedFile, MmapIoError};

use crate::common::{assert_waits, block_on, patterned, rt_test};

async fn shared(dir: &std::path::Path, len: usize) -> Arc<MemoryMappedFile> {
    Arc::new(patterned(dir, len).await.1)
}

rt_test!(segments_read_and_write, |dir| {
    let file = shared(dir, 10_000).await;
    let segment = SegmentMut::new(file.clone(), 5000, 10).unwrap();
    let reader = Segment::new(file.clone(), 5000, 10).unwrap();
    segment.write(b"12345").await.unwrap();
    let rest: Vec<u8> = (5005..5010).map(|at| (at % 251) as u8).collect();
    assert_eq!(reader.as_slice().unwrap()[..5], *b"12345");
    assert_eq!(reader.as_slice().unwrap()[5..], rest);
    segment.as_slice_mut().await.unwrap().fill(b'x');
    assert_eq!(file.as_slice(4999, 12).unwrap()[1..11], [b'x'; 10]);
    assert_eq!(file.as_slice(4999, 1).unwrap(), [(4999 % 251) as u8]);
    // The clone of a segment outlives it and the caller's handle.
    let clone = segment.clone();
    drop((file, segment, reader));
    clone.write(b"y").await.unwrap();
    assert_eq!(clone.parent().as_slice(5000, 2).unwrap(), b"yx");
});

#[test]
#[cfg_attr(windows, ignore = "Windows cuts no mapped file")]
fn segment_is_checked_at_each_call() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = shared(dir.path(), 1000).await;
        let segment = Segment::new(file.clone(), 900, 100).unwrap();
        let writer = SegmentMut::new(file.clone(), 900, 100).unwrap();
        file.resize(950).await.unwrap();
        assert!(!segment.is_valid() && !writer.is_valid());
        let cut = (900, 100, 950);
        assert_eq!(out_of_bounds(segment.as_slice()), cut);
        assert_eq!(out_of_bounds(writer.as_slice_mut().await), cut);
        // The data would fit, the segment does not.
        assert_eq!(out_of_bounds(writer.write(b"data").await), cut);
        writer.write(b"").await.unwrap();
        file.resize(2000).await.unwrap();
        assert!(segment.is_valid() && writer.is_valid());
        writer.write(b"data").await.unwrap();
        assert_eq!(segment.as_slice().unwrap()[..4], *b"data");
        assert_eq!((segment.offset(), segment.len()), (900, 100));
    });
}

#[track_caller]
fn out_of_bounds<T>(result: mmap_io::Result<T>) -> (u64, u64, u64) {
    match result.map(drop) {
        Err(MmapIoError::OutOfBounds { offset, len, total }) => (offset, len, total),
        other => panic!("expected OutOfBounds, found {other:?}"),
    }
}

#[test]
#[cfg_attr(windows, ignore = "Windows cuts no mapped file")]
fn segment_errors_come_in_order() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = shared(dir.path(), 1000).await;
        for (offset, len) in [(0, 1001), (1000, 1), (u64::MAX, 1), (1, u64::MAX)] {
            let found = out_of_bounds(Segment::new(file.clone(), offset, len));
            assert_eq!(found, (offset, len, 1000));
            let found = out_of_bounds(SegmentMut::new(file.clone(), offset, len));
            assert_eq!(found, (offset, len, 1000));
        }
        let reader = MemoryMappedFile::open_ro(file.path()).await.unwrap();
        let segment = SegmentMut::new(Arc::new(reader), 990, 10).unwrap();
        let writer = SegmentMut::new(file.clone(), 990, 10).unwrap();
        // The mode, then the length of the segment, then that of the file.
        file.resize(995).await.unwrap();
        for len in [10, 11] {
            let refused = segment.write(&vec![0; len]).await;
            assert!(matches!(refused, Err(MmapIoError::InvalidMode(_))));
        }
        assert_eq!(out_of_bounds(writer.write(&[0; 11]).await), (0, 11, 10));
        assert_eq!(out_of_bounds(writer.write(&[0; 10]).await), (990, 10, 995));
        let refused = segment.as_slice_mut().await.map(drop);
        assert!(matches!(refused, Err(MmapIoError::InvalidMode(_))));
        segment.write(b"").await.unwrap();
    });
}

#[test]
fn empty_segment_lies_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = shared(dir.path(), 1000).await;
        for offset in [0, 1000, u64::MAX] {
            let segment = Segment::new(file.clone(), offset, 0).unwrap();
            assert!(segment.is_empty() && segment.is_valid());
            assert_eq!(segment.as_slice().unwrap(), b"");
            let segment = SegmentMut::new(file.clone(), offset, 0).unwrap();
            assert!(segment.is_empty() && segment.is_valid());
            assert_eq!(segment.as_slice_mut().await.unwrap().len(), 0);
            segment.write(b"").await.unwrap();
            assert_eq!(out_of_bounds(segment.write(b"x").await), (0, 1, 0));
        }
    });
}

#[test]
fn segment_holds_no_lease() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = shared(dir.path(), 1000).await;
        let segments: Vec<_> = (0..10)
            .map(|at| SegmentMut::new(file.clone(), at * 100, 100).unwrap())
            .collect();
        assert_eq!(file.stats().views, 0);
        // A write waits for the views of its own bytes alone.
        let view = file.bytes(500, 100).unwrap();
        segments[4].write(&[1; 100]).await.unwrap();
        segments[6].write(&[1; 100]).await.unwrap();
        let mut write = Box::pin(segments[5].write(&[1; 100]));
        assert_waits(&file, 0, &mut write).await;
        drop(view);
        write.await.unwrap();
        assert_eq!(file.as_slice(400, 300).unwrap(), [1; 300]);
    });
}

#[test]
fn segments_show_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let file = block_on(shared(dir.path(), 100));
    let segment = Segment::new(file.clone(), 10, 5).unwrap();
    let shown = format!("{segment:?}");
    assert!(shown.starts_with("Segment {"), "{shown}");
    assert!(shown.ends_with("offset: 10, len: 5 }"), "{shown}");
    let shown = format!("{:?}", SegmentMut::new(file, 10, 5).unwrap());
    assert!(shown.starts_with("SegmentMut {"), "{shown}");
}
