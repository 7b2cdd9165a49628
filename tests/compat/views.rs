//! What the views themselves can do.

use bytes::Bytes;
use mmap_io::{MappedSlice, MappedSliceMut};

use crate::{block_on, Rig, LEN};

#[test]
fn mapped_slice() {
    block_on(async {
        let rig = Rig::new().await;
        let view: MappedSlice<'_> = rig.reader.as_slice(10, 3).unwrap();
        let plain: &[u8] = view.as_slice();
        assert_eq!(
            (plain, view.as_ref(), &*view),
            (&[10, 11, 12][..], plain, plain)
        );
        // It can be compared with everything that is bytes.
        assert_eq!(view, rig.file.as_slice(10, 3).unwrap());
        assert_eq!(view, *plain);
        assert_eq!(view, plain);
        assert_eq!(view, [10, 11, 12]);
        assert_eq!(view, &[10, 11, 12]);
        assert_ne!(view, [10, 11]);
        // The copies delay no write.
        let copy = Bytes::from(&view);
        assert_eq!(copy, view.as_slice());
        assert_ne!(copy.as_ptr(), view.as_ptr());
        assert_eq!(Bytes::from(view), copy);
        assert!(rig.file.try_update_region(10, b"x").await.unwrap());
        let shown = format!("{:?}", rig.reader.as_slice(0, LEN).unwrap());
        assert!(shown.starts_with("MappedSlice"), "{shown}");
        assert!(shown.contains("len: 10000") && shown.len() < 400, "{shown}");
    });
}

#[test]
fn mapped_slice_mut() {
    block_on(async {
        let rig = Rig::new().await;
        let mut view: MappedSliceMut<'_> = rig.file.as_slice_mut(10, 3).await.unwrap();
        let shown = format!("{view:?}");
        assert!(shown.starts_with("MappedSliceMut"), "{shown}");
        assert!(
            shown.contains("offset: 10") && shown.contains("len: 3"),
            "{shown}"
        );
        assert_eq!(view.as_ref(), [10, 11, 12]);
        view.as_mut()[0] = b'a';
        view[1] = b'b';
        assert_eq!(rig.file.pending_bytes(), 0);
        drop(view);
        // All of its bytes count as written.
        assert_eq!(rig.file.pending_bytes(), 3);
        assert_eq!(rig.reader.as_slice(10, 3).unwrap(), b"ab\x0c");
    });
}

#[test]
fn commit() {
    block_on(async {
        let rig = Rig::new().await;
        rig.file.update_region(1000, b"other").await.unwrap();
        let mut view = rig.file.as_slice_mut(10, 3).await.unwrap();
        view.fill(b'x');
        view.commit().await.unwrap();
        // It flushes what the view covers.
        assert_eq!(rig.file.pending_bytes(), 5);
        assert_eq!(rig.reader.as_slice(10, 3).unwrap(), b"xxx");
        for file in rig.all() {
            let empty = file.as_slice_mut(u64::MAX, 0).await.unwrap();
            empty.commit().await.unwrap();
        }
        let private = rig.private.as_slice_mut(0, 1).await.unwrap();
        private.commit().await.unwrap();
    });
}
