//! Handles on one file, opened in any way, share its leases; and no file is created or copied over
//! a mapped one.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Barrier;

use bytes::Bytes;
use futures_lite::future::poll_once;
use mmap_io::{MemoryMappedFile, MmapIoError};

use super::{link_twice, open_again, poll_until_woken};
use crate::common::child::{child, child_dir};
use crate::common::{block_on, pattern, patterned};

#[test]
fn all_handles_share_leases() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let (hard_link, soft_link) = link_twice(&path);
        let mut others = open_again(&path, &hard_link, &soft_link).await;
        let reader = others.pop().unwrap();
        others.push(file.clone());
        let slice = reader.as_slice(0, 10).unwrap();
        let bytes = others[0].bytes(5, 10).unwrap();
        for other in &others {
            assert!(!other.try_update_region(5, b"x").await.unwrap());
            assert!(other.try_as_slice_mut(0, 6).unwrap().is_none());
            assert!(poll_once(other.update_region(5, b"x")).await.is_none());
            assert!(poll_once(other.update_regions(&[(500, b"x"), (5, b"x")]))
                .await
                .is_none());
            assert!(poll_once(other.write_bytes(5, Bytes::from_static(b"x")))
                .await
                .is_none());
            assert!(poll_once(other.as_slice_mut(5, 1)).await.is_none());
            assert!(poll_once(other.resize(5)).await.is_none());
        }
        assert_eq!(slice, &pattern(10)[..]);
        assert_eq!(bytes, pattern(15)[5..]);
        drop(slice);

        // Respects the view, and is no error.
        let data = [7; 20];
        let mut write = Box::pin(mmap_io::write_mmap(&soft_link, 0, &data));
        while file.stats().oldest_blocked.is_none() {
            assert!(poll_once(&mut write).await.is_none());
            std::thread::yield_now();
        }
        assert_eq!(bytes, pattern(15)[5..]);
        drop(bytes);
        write.await.unwrap();
        assert_eq!(reader.as_slice(0, 20).unwrap(), [7; 20]);

        // No reader sees bytes that a mutable view may change.
        let view = file.as_slice_mut(100, 100).await.unwrap();
        for other in others.iter().chain([&reader]) {
            assert!(matches!(
                other.as_slice(150, 100),
                Err(MmapIoError::Busy {
                    offset: 150,
                    len: 100,
                    ..
                })
            ));
            assert!(other.try_as_slice(199, 1).unwrap().is_none());
            assert!(matches!(other.bytes(0, 101), Err(MmapIoError::Busy { .. })));
            assert!(poll_once(other.slice(100, 1)).await.is_none());
            assert!(poll_once(other.read_bytes(0, 1000)).await.is_none());
            assert!(poll_once(other.read_into(100, &mut [0])).await.is_none());
            assert_eq!(other.as_slice(200, 1).unwrap().len(), 1);
        }
        assert!(matches!(
            reader.as_slice_bytes(199, 1),
            Err(MmapIoError::Busy { .. })
        ));
        drop(view);
    });
}

#[test]
fn borrowed_bytes_block_until_reader_drops() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 10_000).await;
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let clone = reader.clone();
        let borrowed = reader.as_slice_bytes(100, 5000).unwrap();
        let again = clone.as_slice_bytes(50, 100).unwrap();
        assert!(!file.try_update_region(60, b"x").await.unwrap());
        let mut write = Box::pin(file.update_region(5000, &[1; 200]));
        assert!(poll_once(&mut write).await.is_none());
        file.update_region(5300, b"beside it").await.unwrap();
        assert_eq!(*borrowed, pattern(5100)[100..]);
        assert_eq!(*again, pattern(150)[50..]);
        drop(clone);
        assert!(poll_once(&mut write).await.is_none());
        drop(reader);
        write.await.unwrap();
    });
}

#[test]
fn create_and_copy_over_mapped_file_fail() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let (hard_link, soft_link) = link_twice(&path);
        let source = dir.path().join("source");
        fs::write(&source, b"another").unwrap();
        let other = MemoryMappedFile::open_ro(&source).await.unwrap();
        let assert_refused = || async {
            for name in [&path, &hard_link, &soft_link] {
                let builder = || MemoryMappedFile::builder(name).size(10);
                let refused = [
                    MemoryMappedFile::create_rw(name, 10).await.map(drop),
                    mmap_io::create_mmap(name, 2000).await.map(drop),
                    builder().preallocate(true).create().await.map(drop),
                    other.copy_to(name).await.map(drop),
                    mmap_io::copy_mmap(&source, name).await,
                    // Onto itself.
                    mmap_io::copy_mmap(&path, name).await,
                ];
                for result in refused {
                    assert!(
                        matches!(result, Err(MmapIoError::Busy { .. })),
                        "{result:?}"
                    );
                }
                let exists = builder().create_new().await.unwrap_err();
                assert_eq!(exists.io_kind(), Some(std::io::ErrorKind::AlreadyExists));
            }
            assert!(fs::read(&path).unwrap() == pattern(1000));
        };
        assert_refused().await;
        // A reader counts, and so do the `Bytes` that are left of one.
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        drop(file);
        assert_refused().await;
        let bytes = reader.bytes(0, 1000).unwrap();
        drop(reader);
        assert_refused().await;
        assert_eq!(bytes, pattern(1000));
        drop(bytes);

        // A copy onto itself is refused even if nothing else has mapped the file.
        let itself = mmap_io::copy_mmap(&path, &hard_link).await;
        assert!(matches!(itself, Err(MmapIoError::Busy { .. })));
        assert!(fs::read(&path).unwrap() == pattern(1000));
        mmap_io::copy_mmap(&source, &soft_link).await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"another");
        assert_eq!(
            MemoryMappedFile::create_rw(&path, 10).await.unwrap().len(),
            10
        );
    });
}

#[test]
fn path_is_free_after_close() {
    if std::env::var("BLOCKING_MAX_THREADS").is_ok_and(|threads| threads == "1") {
        // The test would block that thread.
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = block_on(patterned(dir.path(), 1000));
    let mut close = Box::pin(file.close());
    // The job that flushes is still waking this thread when close returns.
    let (release, closed) = poll_until_woken(close.as_mut());
    closed.unwrap_or_else(|| block_on(&mut close)).unwrap();
    drop(close);
    let created = block_on(MemoryMappedFile::create_rw(&path, 10));
    drop(release);
    assert_eq!(created.unwrap().len(), 10);
}

#[test]
fn new_file_under_old_name_is_separate() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, old) = patterned(dir.path(), 1000).await;
        let view = old.as_slice(0, 1000).unwrap();
        mmap_io::delete_mmap(&path).await.unwrap();
        let new = MemoryMappedFile::create_rw(&path, 500).await.unwrap();
        new.update_region(0, &[1; 500]).await.unwrap();
        assert_eq!(view, &pattern(1000)[..]);
        assert_eq!((old.len(), new.len()), (1000, 500));
        // And a file that is moved there.
        fs::write(dir.path().join("moved"), [2; 100]).unwrap();
        fs::rename(dir.path().join("moved"), &path).unwrap();
        let moved = MemoryMappedFile::open_rw(&path).await.unwrap();
        moved.update_region(0, &[3; 100]).await.unwrap();
        assert_eq!(new.as_slice(0, 500).unwrap(), [1; 500]);
        assert_eq!(view, &pattern(1000)[..]);
    });
}

#[test]
fn copy_is_not_visible_until_whole() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 100_000).await;
        let copy_path = dir.path().join("copy");
        let view = file.as_slice_mut(50_000, 10).await.unwrap();
        let mut copy = Box::pin(file.copy_to(&copy_path));
        // The snapshot waits for the view, and does not claim the destination in the meantime.
        while file.stats().oldest_blocked.is_none() {
            assert!(poll_once(&mut copy).await.is_none());
            std::thread::yield_now();
        }
        assert!(!copy_path.exists());
        drop(view);
        // An opening that finds the copy finds all of it, at any moment; or it opens the file
        // before the copy claims it, and then the copy fails.
        let opener = std::thread::spawn(move || loop {
            match block_on(MemoryMappedFile::open_ro(&copy_path)) {
                Ok(opened) => break opened,
                Err(error) => assert_eq!(error.io_kind(), Some(std::io::ErrorKind::NotFound)),
            }
        });
        let copied = copy.await;
        let opened = opener.join().unwrap();
        match copied {
            Ok(len) => {
                assert_eq!((len, opened.len()), (100_000, 100_000));
                assert_eq!(opened.as_slice(0, len).unwrap(), pattern(100_000)[..]);
            }
            Err(error) => {
                assert!(matches!(error, MmapIoError::Busy { .. }), "{error:?}");
                assert!(opened.is_empty());
            }
        }
    });
}

/// Inode and length, by the handle's own descriptor.
fn identity(file: &MemoryMappedFile) -> (u64, u64) {
    let descriptor = file.as_fd().try_clone_to_owned().unwrap();
    let metadata = fs::File::from(descriptor).metadata().unwrap();
    (metadata.ino(), metadata.len())
}

#[test]
fn concurrent_opens_share_new_file() {
    let dir = tempfile::tempdir().unwrap();
    for turn in 0..1500 {
        let path = dir.path().join(turn.to_string());
        let start = Barrier::new(3);
        let opened: Vec<_> = std::thread::scope(|threads| {
            let openers: Vec<_> = (0..3)
                .map(|opener| {
                    let (path, start) = (&path, &start);
                    threads.spawn(move || {
                        start.wait();
                        match opener {
                            0 if turn % 2 == 0 => block_on(MemoryMappedFile::create_rw(path, 4096)),
                            _ => block_on(MemoryMappedFile::open_or_create(path, 4096)),
                        }
                    })
                })
                .collect();
            let opened = openers.into_iter().map(|opener| opener.join().unwrap());
            opened.collect()
        });
        for opened in opened {
            match opened {
                Ok(file) => {
                    let inode = fs::metadata(&path).expect("the file is gone").ino();
                    assert_eq!(
                        identity(&file),
                        (inode, 4096),
                        "the file was replaced after it was opened"
                    );
                }
                // `Busy` only if another opener has the file.
                Err(error) => assert!(matches!(error, MmapIoError::Busy { .. }), "{error:?}"),
            }
        }
    }
}

/// Between reading the length of a file and claiming the file, another thread may have created it
/// anew and closed it. To hit that moment takes luck, or a kernel that is slow to tell the length.
#[cfg(target_os = "linux")]
#[test]
fn handle_length_survives_racing_create() {
    use crate::common::probe::{can_trace, trace};

    if !can_trace("handle_length_survives_racing_create") {
        return;
    }
    let slow = [
        "-etrace=statx,fstat",
        "-einject=statx,fstat:delay_exit=1000",
    ];
    let dir = tempfile::tempdir().unwrap();
    trace(child!(opening_child), dir.path(), &slow);
}

#[test]
fn opening_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let path = dir.join("data");
    fs::write(&path, b"x").unwrap();
    std::thread::scope(|threads| {
        for opener in 0..4_u64 {
            let path = &path;
            threads.spawn(move || {
                for turn in 0..400 {
                    let opened = match opener {
                        0 | 1 => block_on(MemoryMappedFile::create_rw(path, 10 + turn)),
                        2 => block_on(MemoryMappedFile::open_rw(path)),
                        _ => block_on(MemoryMappedFile::open_ro(path)),
                    };
                    match opened {
                        // While it is open here, no other thread truncates it.
                        Ok(file) => assert_eq!(file.len(), identity(&file).1),
                        Err(MmapIoError::Busy { .. }) if opener < 2 => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
            });
        }
    });
}
