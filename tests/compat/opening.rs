//! Ways to open and create a file, and to let it go.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;

use mmap_io::{MemoryMappedFile, MmapIoError, MmapMode};

use crate::common::pattern;
use crate::{block_on, refused, Rig, LEN, TOO_LARGE};

#[test]
fn create_rw() {
    block_on(async {
        let rig = Rig::new().await;
        let new = rig.path_of("new");
        // The size comes before everything about the path.
        for size in [0, TOO_LARGE, u64::MAX] {
            for path in [&new, &rig.path, &rig.path_of("no/directory")] {
                let created = MemoryMappedFile::create_rw(path, size).await;
                refused!(created, MmapIoError::ResizeFailed(_));
            }
        }
        assert!(!new.exists());
        let file = MemoryMappedFile::create_rw(&new, 1 << 20).await.unwrap();
        assert_eq!((file.mode(), file.len()), (MmapMode::ReadWrite, 1 << 20));
        let blocks = fs::metadata(&new).unwrap().blocks();
        assert!(blocks * 512 <= 64 << 10, "it is sparse");
        file.close().await.unwrap();

        fs::write(&new, b"content").unwrap();
        let file = MemoryMappedFile::create_rw(&new, 5).await.unwrap();
        assert_eq!(file.as_slice(0, 5).unwrap(), [0; 5]);

        let error = MemoryMappedFile::create_rw(&rig.path, 5).await.unwrap_err();
        assert!(matches!(&error, MmapIoError::Busy { path: Some(path), .. } if **path == rig.path));
        assert!(error.to_string().contains(rig.path.to_str().unwrap()));
        assert!(fs::read(&rig.path).unwrap() == pattern(LEN as usize));

        let irregular = MemoryMappedFile::create_rw(rig.dir.path(), 5).await;
        refused!(irregular, MmapIoError::Io(_));
        let nowhere = MemoryMappedFile::create_rw(rig.path_of("no/directory"), 5).await;
        assert_eq!(nowhere.unwrap_err().io_kind(), Some(ErrorKind::NotFound));
    });
}

#[test]
fn open_ro() {
    block_on(async {
        let rig = Rig::new().await;
        let file = MemoryMappedFile::open_ro(&rig.path).await.unwrap();
        assert_eq!((file.mode(), file.len()), (MmapMode::ReadOnly, LEN));
        refused!(
            file.update_region(0, b"x").await,
            MmapIoError::InvalidMode(_)
        );

        let path = rig.path_of("empty");
        fs::write(&path, b"").unwrap();
        let empty = MemoryMappedFile::open_ro(&path).await.unwrap();
        assert!(empty.is_empty() && empty.as_slice(0, 0).unwrap().is_empty());

        let missing = rig.path_of("missing");
        let error = MemoryMappedFile::open_ro(&missing).await.unwrap_err();
        assert_eq!(error.io_kind(), Some(ErrorKind::NotFound));
        let message = error.to_string();
        assert!(message.starts_with("opening "), "{message}");
        assert!(message.contains(missing.to_str().unwrap()), "{message}");
        assert!(
            message.ends_with(&error.io_error().unwrap().to_string()),
            "{message}"
        );
    });
}

#[test]
fn open_rw() {
    block_on(async {
        let rig = Rig::new().await;
        let file = MemoryMappedFile::open_rw(&rig.path).await.unwrap();
        assert_eq!((file.mode(), file.len()), (MmapMode::ReadWrite, LEN));
        file.update_region(0, b"seen by all").await.unwrap();
        assert_eq!(rig.reader.as_slice(0, 11).unwrap(), b"seen by all");

        let path = rig.path_of("empty");
        fs::write(&path, b"").unwrap();
        let empty = MemoryMappedFile::open_rw(&path).await;
        refused!(empty, MmapIoError::ResizeFailed(_));
        let missing = MemoryMappedFile::open_rw(rig.path_of("missing")).await;
        assert_eq!(missing.unwrap_err().io_kind(), Some(ErrorKind::NotFound));
    });
}

#[test]
fn open_or_create() {
    block_on(async {
        let rig = Rig::new().await;
        let there = MemoryMappedFile::open_or_create(&rig.path, 5)
            .await
            .unwrap();
        assert_eq!((there.len(), there.was_created()), (LEN, false));
        assert_eq!(there.as_slice(1, 2).unwrap(), [1, 2]);

        let new = rig.path_of("new");
        for size in [0, TOO_LARGE] {
            let created = MemoryMappedFile::open_or_create(&new, size).await;
            refused!(created, MmapIoError::ResizeFailed(_));
        }
        assert!(!new.exists());
        let created = MemoryMappedFile::open_or_create(&new, 5).await.unwrap();
        assert_eq!((created.len(), created.was_created()), (5, true));
        // The second opening gets what is there, whatever size it asks for.
        created.update_region(0, b"first").await.unwrap();
        let second = MemoryMappedFile::open_or_create(&new, 9).await.unwrap();
        assert_eq!((second.len(), second.was_created()), (5, false));
        assert_eq!(second.as_slice(0, 5).unwrap(), b"first");

        let path = rig.path_of("empty");
        fs::write(&path, b"").unwrap();
        let extended = MemoryMappedFile::open_or_create(&path, 5).await.unwrap();
        assert_eq!((extended.len(), extended.was_created()), (5, false));
    });
}

#[test]
fn open_cow() {
    block_on(async {
        let rig = Rig::new().await;
        let cow = MemoryMappedFile::open_cow(&rig.path).await.unwrap();
        assert_eq!(cow.mode(), MmapMode::CopyOnWrite);
        assert!(!cow.is_cow_writable());
        refused!(
            cow.update_region(0, b"x").await,
            MmapIoError::InvalidMode(_)
        );
        // It shows the file, and follows its length.
        rig.file.update_region(0, b"shown").await.unwrap();
        assert_eq!(cow.as_slice(0, 5).unwrap(), b"shown");
        rig.file.resize(LEN + 1).await.unwrap();
        assert_eq!(cow.len(), LEN + 1);

        let path = rig.path_of("empty");
        fs::write(&path, b"").unwrap();
        refused!(
            MemoryMappedFile::open_cow(&path).await,
            MmapIoError::ResizeFailed(_)
        );
        let missing = MemoryMappedFile::open_cow(rig.path_of("missing")).await;
        assert_eq!(missing.unwrap_err().io_kind(), Some(ErrorKind::NotFound));
    });
}

#[test]
fn open_cow_writable() {
    block_on(async {
        let rig = Rig::new().await;
        let private = MemoryMappedFile::open_cow_writable(&rig.path)
            .await
            .unwrap();
        assert_eq!(private.mode(), MmapMode::CopyOnWrite);
        assert!(private.is_cow_writable());
        private.update_region(0, b"private").await.unwrap();
        assert_eq!(private.clone().as_slice(0, 7).unwrap(), b"private");
        for other in rig.all() {
            assert_eq!(other.as_slice(0, 3).unwrap(), [0, 1, 2]);
        }
        assert_eq!(private.pending_bytes(), 0);
        private.flush().await.unwrap();
        refused!(private.resize(5).await, MmapIoError::InvalidMode(_));
        refused!(private.lock(0, 1).await, MmapIoError::InvalidMode(_));
        // It keeps its length when the file grows, and not when the file is cut.
        rig.file.resize(LEN + 1).await.unwrap();
        assert_eq!(private.len(), LEN);

        let path = rig.path_of("empty");
        fs::write(&path, b"").unwrap();
        let empty = MemoryMappedFile::open_cow_writable(&path).await;
        refused!(empty, MmapIoError::ResizeFailed(_));
    });
}

#[test]
fn from_file() {
    block_on(async {
        let rig = Rig::new().await;
        let opened = |write| {
            File::options()
                .read(true)
                .write(write)
                .open(&rig.path)
                .unwrap()
        };
        for (write, mode, is_permitted) in [
            (false, MmapMode::ReadOnly, true),
            (true, MmapMode::ReadOnly, true),
            (false, MmapMode::ReadWrite, false),
            (true, MmapMode::ReadWrite, true),
            (false, MmapMode::CopyOnWrite, true),
        ] {
            // The path is for information alone.
            match MemoryMappedFile::from_file(opened(write), mode, "name").await {
                Ok(file) => {
                    assert!(is_permitted);
                    assert_eq!((file.mode(), file.len()), (mode, LEN));
                    assert_eq!(file.path(), std::path::Path::new("name"));
                }
                Err(error) => {
                    assert!(!is_permitted, "{error}");
                    assert!(matches!(error, MmapIoError::InvalidMode(_)), "{error:?}");
                }
            }
        }
        let directory = File::open(rig.dir.path()).unwrap();
        let irregular = MemoryMappedFile::from_file(directory, MmapMode::ReadOnly, "").await;
        refused!(irregular, MmapIoError::Io(_));
    });
}

#[test]
fn unmap() {
    block_on(async {
        let rig = Rig::new().await;
        let clone = rig.file.clone();
        let file = rig.file.unmap().expect_err("a clone lives");
        drop(clone);
        let bytes = file.bytes(0, 1).unwrap();
        let file = file.unmap().expect_err("a `Bytes` lives");
        drop(bytes);
        let descriptor: File = file.unmap().expect("nothing uses the handle");
        assert_eq!(descriptor.metadata().unwrap().len(), LEN);
        // Other handles keep their mapping.
        assert_eq!(rig.reader.as_slice(1, 1).unwrap(), [1]);
    });
}

#[test]
fn close() {
    block_on(async {
        let rig = Rig::new().await;
        let clone = rig.file.clone();
        rig.file.update_region(0, b"flushed").await.unwrap();
        assert_eq!(clone.pending_bytes(), 7);
        rig.file.close().await.unwrap();
        assert_eq!(clone.pending_bytes(), 0);
        for handle in [clone, rig.reader, rig.cow, rig.private] {
            handle.close().await.unwrap();
        }
        // Nothing maps the path any more.
        MemoryMappedFile::create_rw(&rig.path, 5).await.unwrap();
    });
}
