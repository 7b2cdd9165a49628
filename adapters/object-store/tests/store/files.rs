//! What stands at a location: a file that may have other names and other permissions by now.

use std::fs::{self, File};
use std::path::PathBuf;

use futures_lite::future::block_on;
use mmap_io_object_store::MappedFileSystem;
use tempfile::TempDir;

use super::object_store::{path::Path, ObjectStoreExt};

const CONTENT: [u8; 10_000] = [7; 10_000];

/// A store with one object.
fn store() -> (TempDir, PathBuf, MappedFileSystem) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("object");
    fs::write(&path, CONTENT).unwrap();
    let store = MappedFileSystem::new_with_prefix(dir.path()).unwrap();
    (dir, path, store)
}

fn object() -> Path {
    Path::from("object")
}

#[test]
#[cfg(unix)]
fn revoked_permission_is_seen_at_once() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    let (_dir, path, store) = store();
    block_on(async {
        store.get_range(&object(), 0..10).await.unwrap();
        let changed = || {
            let metadata = fs::metadata(&path).unwrap();
            (metadata.ctime(), metadata.ctime_nsec())
        };
        // The clock of the file system moves in steps of some milliseconds.
        let before = changed();
        while changed() == before {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        }
        let read = store.get_range(&object(), 0..10).await;
        match File::open(&path) {
            // Root may read it all the same, but the store has asked.
            Ok(_) => {
                assert_eq!(read.unwrap(), CONTENT[..10]);
                assert_eq!(store.stats().mapped, 2);
            }
            Err(_) => assert!(read.is_err()),
        }
    });
}
