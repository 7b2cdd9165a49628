//! Overlapping operations take effect in the order of submission.

use futures_lite::future::{poll_once, zip};

use crate::common::{alone, patterned};

#[test]
fn what_overlaps_keeps_its_order_and_what_does_not_goes_ahead() {
    let dir = tempfile::tempdir().unwrap();
    alone(async {
        let (_, file) = patterned(dir.path(), 1000).await;
        file.update_region(0, &[0; 1000]).await.unwrap();
        let view = file.as_slice(0, 10).unwrap();
        // `first` meets the view, `second` meets `first`, `third` meets `second`.
        let mut first = Box::pin(file.update_region(5, &[1; 20]));
        let mut second = Box::pin(file.update_region(20, &[2; 20]));
        let mut third = Box::pin(file.update_region(35, &[3; 20]));
        assert!(poll_once(&mut first).await.is_none());
        assert!(poll_once(&mut second).await.is_none());
        assert!(poll_once(&mut third).await.is_none());
        file.update_region(100, &[9; 10]).await.unwrap();
        assert!(poll_once(&mut third).await.is_none());
        assert_eq!(file.as_slice(10, 90).unwrap(), [0; 90]);
        drop(view);
        third.await.unwrap();
        // The other two went before it.
        let mut expected = [0; 100];
        expected[5..25].fill(1);
        expected[20..40].fill(2);
        expected[35..55].fill(3);
        assert_eq!(file.as_slice(0, 100).unwrap(), expected);
        let (first, second) = zip(first, second).await;
        first.and(second).unwrap();
    });
}

#[test]
fn views_resizes_and_snapshots_take_their_turn() {
    let dir = tempfile::tempdir().unwrap();
    alone(async {
        let (_, file) = patterned(dir.path(), 1000).await;
        file.update_region(0, &[0; 1000]).await.unwrap();
        let blocker = file.bytes(900, 1).unwrap();
        let copy = dir.path().join("copy");
        let mut write = Box::pin(file.update_region(890, &[1; 20]));
        assert!(poll_once(&mut write).await.is_none());
        let mut shrink = Box::pin(file.resize(895));
        assert!(poll_once(&mut shrink).await.is_none());
        let mut late = Box::pin(file.update_region(899, &[2; 5]));
        assert!(poll_once(&mut late).await.is_none());
        let mut grow = Box::pin(file.resize(2000));
        assert!(poll_once(&mut grow).await.is_none());
        drop(blocker);
        grow.await.unwrap();
        write.await.unwrap();
        shrink.await.unwrap();
        // It was submitted before the growth: what it was to write was cut off.
        assert!(late.await.is_err());
        assert_eq!(file.len(), 2000);
        assert_eq!(
            file.as_slice(890, 10).unwrap(),
            [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
        );
        file.copy_to(&copy).await.unwrap();
        assert_eq!(
            std::fs::read(copy).unwrap(),
            &file.as_slice(0, 2000).unwrap()[..]
        );
    });
}
