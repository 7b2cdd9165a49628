//! A write waits only for views that overlap it; growing waits for none, shrinking for those of the
//! tail.

use futures_lite::future::poll_once;

use crate::common::{alone, is_quiet, pattern, patterned, until};

#[test]
fn a_write_waits_for_what_overlaps_it_and_for_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    alone(async {
        let (_, file) = patterned(dir.path(), 100_000).await;
        for kind in 0..3 {
            let slice = (kind == 0).then(|| file.as_slice(1000, 1000).unwrap());
            let bytes = (kind == 1).then(|| file.bytes(1000, 1000).unwrap());
            let mutable = match kind {
                2 => Some(file.as_slice_mut(1000, 1000).await.unwrap()),
                _ => None,
            };
            for (at, len) in [(0, 1000), (2000, 1000), (90_000, 5000)] {
                file.update_region(at, &vec![1; len]).await.unwrap();
            }
            for (at, len) in [(999, 2), (1999, 2), (1500, 1), (0, 100_000)] {
                assert!(poll_once(file.update_region(at, &vec![2; len]))
                    .await
                    .is_none());
                assert!(!file.try_update_region(at, &vec![2; len]).await.unwrap());
            }
            file.resize(200_000).await.unwrap();
            file.resize(2000).await.unwrap();
            let mut shrink = Box::pin(file.resize(1999));
            assert!(poll_once(&mut shrink).await.is_none());
            drop((slice, bytes, mutable));
            shrink.await.unwrap();
            file.resize(100_000).await.unwrap();
            until(&file, is_quiet).await;
        }
    });
}

#[test]
fn a_view_stays_good_whatever_happens_to_its_handle() {
    let dir = tempfile::tempdir().unwrap();
    alone(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let mut views = Vec::new();
        for size in [1 << 20, 5 << 20, 50 << 20] {
            views.push(file.bytes(0, 1000).unwrap());
            file.resize(size).await.unwrap();
        }
        drop(file);
        std::fs::remove_file(path).unwrap();
        assert!(views.iter().all(|view| *view == pattern(1000)));
    });
}
