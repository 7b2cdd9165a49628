//! The length of a file, and copies of all of it.

use std::fs;

use mmap_io::{MemoryMappedFile, MmapIoError};

use crate::common::{assert_waits, pattern};
use crate::{assert_outside, block_on, refused, Rig, LEN, TOO_LARGE};

#[test]
fn resize() {
    block_on(async {
        let rig = Rig::new().await;
        for file in [&rig.reader, &rig.cow, &rig.private] {
            for size in [0, 5, TOO_LARGE] {
                refused!(file.resize(size).await, MmapIoError::InvalidMode(_));
            }
        }
        for size in [0, TOO_LARGE, u64::MAX] {
            let error = rig.file.resize(size).await.unwrap_err();
            assert!(matches!(error, MmapIoError::ResizeFailed(_)), "{error:?}");
            assert!(error.to_string().contains(&size.to_string()), "{error}");
        }
        assert_eq!(rig.file.len(), LEN);
        // Growing waits for no view, and adds zeroes.
        let view = rig.file.as_slice(0, LEN).unwrap();
        rig.file.resize(LEN + 5).await.unwrap();
        assert_eq!(rig.reader.as_slice(LEN, 5).unwrap(), [0; 5]);
        drop(view);
        // Shrinking waits for the views of what is cut off.
        let kept = rig.file.as_slice(0, 5).unwrap();
        let cut = rig.file.as_slice(10, 1).unwrap();
        let mut shrink = Box::pin(rig.file.resize(10));
        assert_waits(&rig.file, 7, &mut shrink).await;
        drop(cut);
        shrink.await.unwrap();
        assert_outside(rig.reader.as_slice(10, 1), (10, 1), 10);
        assert_eq!(fs::metadata(&rig.path).unwrap().len(), 10);
        drop(kept);
    });
}

#[test]
fn grow_to() {
    block_on(async {
        let rig = Rig::new().await;
        for file in [&rig.reader, &rig.cow, &rig.private] {
            refused!(file.grow_to(5).await, MmapIoError::InvalidMode(_));
        }
        for size in [0, TOO_LARGE] {
            refused!(rig.file.grow_to(size).await, MmapIoError::ResizeFailed(_));
        }
        let _view = rig.file.as_slice(0, LEN).unwrap();
        assert_eq!(rig.file.grow_to(5).await.unwrap(), LEN);
        assert_eq!(rig.file.grow_to(LEN + 5).await.unwrap(), LEN + 5);
        assert_eq!(rig.reader.as_slice(LEN, 5).unwrap(), [0; 5]);
        // What another process has appended stays.
        append_outside(&rig, b"outside");
        assert_eq!(rig.file.grow_to(LEN + 6).await.unwrap(), LEN + 12);
        assert_eq!(rig.reader.as_slice(LEN + 5, 7).unwrap(), b"outside");
    });
}

fn append_outside(rig: &Rig, bytes: &[u8]) {
    use std::io::Write;
    let mut plain = fs::File::options().append(true).open(&rig.path).unwrap();
    plain.write_all(bytes).unwrap();
}

#[test]
fn refresh() {
    block_on(async {
        let rig = Rig::new().await;
        for file in rig.all() {
            assert_eq!(file.refresh().await.unwrap(), LEN);
        }
        let _view = rig.file.as_slice(0, 10).unwrap();
        append_outside(&rig, b"outside");
        assert_eq!(rig.file.len(), LEN);
        assert_eq!(rig.reader.refresh().await.unwrap(), LEN + 7);
        assert_eq!(rig.file.as_slice(LEN, 7).unwrap(), b"outside");
        // A cut as well; until then it is an error of what needs the bytes.
        let plain = fs::File::options().write(true).open(&rig.path).unwrap();
        plain.set_len(10).unwrap();
        refused!(
            rig.reader.slice(0, LEN).await,
            MmapIoError::Truncated { .. }
        );
        assert_eq!(rig.file.refresh().await.unwrap(), 10);
        assert_outside(rig.reader.slice(0, LEN).await, (0, LEN), 10);
        assert_eq!(rig.private.refresh().await.unwrap(), 10);
    });
}

#[test]
fn copy_to() {
    block_on(async {
        let rig = Rig::new().await;
        rig.private.update_region(0, b"private").await.unwrap();
        for file in rig.all() {
            let copy = rig.path_of("copy");
            // Views do not stop it.
            let _view = file.as_slice(0, LEN).unwrap();
            assert_eq!(file.copy_to(&copy).await.unwrap(), LEN);
            let copied = fs::read(&copy).unwrap();
            assert_eq!(*file.as_slice(0, LEN).unwrap(), copied);
        }
        for file in [&rig.file, &rig.reader] {
            refused!(file.copy_to(&rig.path).await, MmapIoError::Busy { .. });
        }
        let mapped = rig.path_of("mapped");
        let other = MemoryMappedFile::create_rw(&mapped, 5).await.unwrap();
        let error = rig.file.copy_to(&mapped).await.unwrap_err();
        assert!(matches!(error, MmapIoError::Busy { .. }), "{error:?}");
        assert!(error.to_string().contains(mapped.to_str().unwrap()));
        assert_eq!(other.as_slice(0, 5).unwrap(), [0; 5]);
        let nowhere = rig.file.copy_to(rig.path_of("no/directory")).await;
        refused!(nowhere, MmapIoError::Io(_));
        assert!(fs::read(&rig.path).unwrap() == pattern(LEN as usize));
    });
}
