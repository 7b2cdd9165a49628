//! What stands at a location: a file that may have other names and other permissions by now, or
//! something that is no file.

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

#[test]
fn one_file_is_an_object_under_each_of_its_names() {
    let (dir, path, store) = store();
    let [object, other] = ["object", "other"].map(Path::from);
    fs::hard_link(&path, dir.path().join("other")).unwrap();
    block_on(async {
        let whole = async |location| {
            let bytes = store.get_range(location, 0..10_000).await.unwrap();
            assert_eq!(bytes, CONTENT[..]);
            let head = store.head(location).await.unwrap();
            assert_eq!(head.location, *location);
            (head.e_tag, bytes)
        };
        let (tag, first) = whole(&object).await;
        let (other_tag, second) = whole(&other).await;
        assert_eq!(tag, other_tag);
        assert_eq!((store.stats().mapped, store.stats().cached), (2, 2));

        // The end of one name is not the end of the other, nor of what was read.
        store.put(&object, "new".into()).await.unwrap();
        let new = store.get(&object).await.unwrap().bytes().await.unwrap();
        assert_eq!(new, "new");
        assert_eq!(whole(&other).await.0, tag);
        store.delete(&other).await.unwrap();
        assert!(store.head(&other).await.is_err());
        assert_eq!(first, CONTENT[..]);
        assert_eq!(second, first);
        drop((first, second));
        assert_eq!((store.stats().maps, store.stats().cached), (1, 1));

        // A copy is a second name as well.
        store.copy(&object, &other).await.unwrap();
        let copy = store.get_range(&other, 0..3).await.unwrap();
        store.put(&object, "newer".into()).await.unwrap();
        assert_eq!(copy, "new");
        assert_eq!(store.get_range(&other, 0..3).await.unwrap(), "new");
    });
}

#[test]
#[cfg(target_os = "linux")]
fn only_files_are_objects() {
    use std::future::Future;
    use std::os::unix::{fs::symlink, net::UnixListener};
    use std::time::Duration;

    use super::object_store::{Error, ObjectStore};
    use futures_lite::future::or;
    use futures_lite::StreamExt;
    use rustix::fs::{mkfifoat, Mode, CWD};

    // What a future resolves to that must end.
    async fn soon<T>(future: impl Future<Output = T>) -> T {
        let limit = async {
            smol::Timer::after(Duration::from_secs(20)).await;
            panic!("it does not end");
        };
        or(future, limit).await
    }

    let (dir, path, store) = store();
    block_on(async {
        store.get_range(&object(), 0..1).await.unwrap();
        fs::remove_file(&path).unwrap();
        mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
        symlink(&path, dir.path().join("link")).unwrap();
        symlink("/dev/null", dir.path().join("device")).unwrap();
        let _socket = UnixListener::bind(dir.path().join("socket")).unwrap();
        for location in ["object", "link", "device", "socket"].map(Path::from) {
            let errors = [
                soon(store.get(&location)).await.unwrap_err(),
                soon(store.head(&location)).await.unwrap_err(),
                soon(store.get_ranges(&location, &[0..1]))
                    .await
                    .unwrap_err(),
            ];
            for error in errors {
                assert!(matches!(error, Error::NotFound { .. }), "{error}");
                assert!(error.to_string().contains(location.as_ref()), "{error}");
            }
        }
        assert_eq!(store.list(None).count().await, 0);
        assert_eq!((store.stats().mapped, store.stats().maps), (1, 0));
    });
}
