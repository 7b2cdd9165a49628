//! Replacing a file at once: a reader finds the old content or the new, whole, and so does the next
//! process after this one was killed.

#[cfg(target_os = "linux")]
mod linux;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use bytes::Bytes;
use mmap_io::{replace, MemoryMappedFile};

use crate::common::child::{child, with_one_pool_thread};
#[cfg(not(windows))]
use crate::common::rt_test;
use crate::common::{block_on, pattern, patterned, poll_once, TIMEOUT};

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

// Windows replaces no mapped file.
#[cfg(not(windows))]
rt_test!(replace_leaves_old_mapping, |dir| {
    let (path, old) = patterned(dir, 10_000).await;
    let view = old.bytes(9000, 1000).unwrap();
    replace(&path, vec![1; 5000]).await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), [1; 5000]);
    assert_eq!(view, pattern(10_000)[9000..]);
    assert_eq!(old.len(), 10_000);
    #[cfg(unix)]
    assert!(!old.is_at_path().await.unwrap());
    // The old file goes on, and the new one does not notice.
    old.update_region_async(0, &[2; 100]).await.unwrap();
    old.resize(20_000).await.unwrap();
    assert_eq!(old.as_slice(0, 100).unwrap(), [2; 100]);
    let new = MemoryMappedFile::open_rw(&path).await.unwrap();
    assert_eq!(new.as_slice(0, 5000).unwrap(), [1; 5000]);
    assert!(new.is_at_path().await.unwrap());
    mmap_io::manager::replace(&path, "another").await.unwrap();
    new.update_region(0, b"new").await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"another");
    assert_eq!(entries(dir), 1);
});

#[test]
fn replace_creates_missing_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    block_on(async {
        replace(&path, "new").await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        replace(&path, Bytes::new()).await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        replace(&path, b"static".as_slice()).await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"static");
    });
    assert_eq!(entries(dir.path()), 1);
}

#[test]
#[cfg_attr(windows, ignore = "Windows replaces no mapped file")]
fn replace_waits_for_no_view() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let mut view = file.as_slice_mut(0, 1000).await.unwrap();
        replace(&path, "new").await.unwrap();
        view.fill(1);
        view.commit().await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    });
}

/// The content of the new file is a view of the old one.
#[test]
#[cfg_attr(windows, ignore = "Windows replaces no mapped file")]
fn content_may_lie_in_old_mapping() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, old) = patterned(dir.path(), 100_000).await;
        replace(&path, old.bytes(1, 99_998).unwrap()).await.unwrap();
        assert!(fs::read(&path).unwrap() == pattern(100_000)[1..99_999]);
        // The view has ended.
        old.update_region(0, &[0; 100_000]).await.unwrap();
        assert!(fs::read(&path).unwrap() == pattern(100_000)[1..99_999]);
    });
}

#[test]
#[cfg_attr(windows, ignore = "Windows replaces no mapped file")]
fn concurrent_replaces_stay_whole() {
    const TASKS: u8 = 4;
    const ROUNDS: u8 = 25;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let content = |task: u8, round: u8| {
        let len = 1 + usize::from(round) * 1009 + usize::from(task) * 5003;
        vec![task * ROUNDS + round; len]
    };
    let is_whole = |found: &[u8]| {
        let first = found.first().copied().unwrap_or(u8::MAX);
        found == content(first / ROUNDS, first % ROUNDS)
    };
    block_on(replace(&path, content(0, 0))).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers = [(); 2].map(|()| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let file = block_on(MemoryMappedFile::open_ro(&path)).unwrap();
                    assert!(is_whole(&file.as_slice(0, file.len()).unwrap()));
                }
            })
        });
        let writers: Vec<_> = (0..TASKS)
            .map(|task| {
                let path = &path;
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        block_on(replace(path, content(task, round))).unwrap();
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|task| task.join().unwrap());
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|task| task.join().unwrap());
    });
    let last = fs::read(&path).unwrap();
    assert!(is_whole(&last) && last[0] % ROUNDS == ROUNDS - 1);
    assert_eq!(entries(dir.path()), 1);
}

#[test]
fn failed_replace_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("directory")).unwrap();
    fs::write(at("file"), "old").unwrap();
    let kind = |name: &str| block_on(replace(at(name), "new")).unwrap_err().io_kind();
    assert_eq!(kind("directory"), Some(std::io::ErrorKind::InvalidInput));
    assert_eq!(kind("missing/file"), Some(std::io::ErrorKind::NotFound));
    assert!(kind("file/below").is_some());
    for name in ["new/", "new/."] {
        assert_eq!(kind(name), Some(std::io::ErrorKind::NotFound), "{name}");
    }
    // To Windows this is the directory itself.
    let is_missing = kind("new/..") == Some(std::io::ErrorKind::NotFound);
    assert_eq!(is_missing, cfg!(not(windows)));
    let nowhere = block_on(replace("", "new")).unwrap_err();
    assert_eq!(nowhere.io_kind(), Some(std::io::ErrorKind::NotFound));
    let message = block_on(replace(at("directory"), "new"))
        .unwrap_err()
        .to_string();
    assert!(message.starts_with("replacing "), "{message}");
    assert!(
        message.ends_with("directory failed: not a regular file"),
        "{message}"
    );
    assert_eq!(fs::read(at("file")).unwrap(), b"old");
    assert_eq!(entries(dir.path()), 2);
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn replace_keeps_permissions() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        fs::write(&path, "old").unwrap();
        for mode in [0o600, 0o644, 0o755, 0o444, 0o000, 0o4755, 0o666] {
            set_mode(&path, mode);
            block_on(replace(&path, "new")).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode);
        }
        // A file that replaces none has the permissions of every new file.
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        fs::write(&one, "").unwrap();
        block_on(replace(&two, "new")).unwrap();
        let mode = |path| fs::metadata(path).unwrap().mode();
        assert_eq!(mode(&one), mode(&two));
    }

    #[test]
    fn replace_follows_links() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["a", "b"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("b/file"), "old").unwrap();
        symlink("../a/second", at("b/first")).unwrap();
        symlink(at("b/file"), at("a/second")).unwrap();
        symlink("a", at("c")).unwrap();
        symlink("../b/new", at("a/nowhere")).unwrap();
        block_on(async {
            replace(at("b/first"), "new").await.unwrap();
            assert_eq!(fs::read(at("b/file")).unwrap(), b"new");
            assert!(at("b/first").is_symlink() && at("a/second").is_symlink());
            assert!(!at("b/file").is_symlink());
            // A link that leads nowhere, below a directory that is a link.
            replace(at("c/nowhere"), "there").await.unwrap();
            assert_eq!(fs::read(at("b/new")).unwrap(), b"there");
            assert!(at("a/nowhere").is_symlink() && !at("b/new").is_symlink());
            symlink("round", at("about")).unwrap();
            symlink("about", at("round")).unwrap();
            assert!(replace(at("about"), "new").await.is_err());
        });
        for (name, count) in [("a", 2), ("b", 3), ("", 5)] {
            assert_eq!(entries(&at(name)), count, "in {name:?}");
        }
    }

    #[test]
    fn hard_links_keep_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("data"), dir.path().join("link"));
        fs::write(&path, "old").unwrap();
        fs::hard_link(&path, &link).unwrap();
        block_on(replace(&path, "new")).unwrap();
        assert_eq!(fs::read(&link).unwrap(), b"old");
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().nlink(), 1);
    }

    #[test]
    fn replace_refuses_pipes() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        let refused = block_on(replace(&fifo, "new")).unwrap_err();
        assert_eq!(refused.io_kind(), Some(std::io::ErrorKind::InvalidInput));
        assert_eq!(entries(dir.path()), 1);
    }
}

/// Content whose owner panics when it is dropped, after it has told so.
fn panicking() -> (Bytes, mpsc::Receiver<()>) {
    struct Owner(mpsc::Sender<()>);

    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            b"new"
        }
    }

    impl Drop for Owner {
        fn drop(&mut self) {
            let _ = self.0.send(());
            panic!("as the test wants");
        }
    }

    let (sender, is_dropped) = mpsc::channel();
    (Bytes::from_owner(Owner(sender)), is_dropped)
}

#[test]
fn panicking_owner_fails_no_replace() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let (content, _is_dropped) = panicking();
    block_on(replace(&path, content)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
}

/// The pool drops a job that was withdrawn.
#[test]
fn panicking_owner_of_withdrawn_replace_aborts_nothing() {
    let this = child!(panicking_owner_of_withdrawn_replace_aborts_nothing);
    with_one_pool_thread(this, || {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let (begin, has_begun) = mpsc::channel();
        let (let_go, gate) = mpsc::channel::<()>();
        let busy = blocking::unblock(move || {
            begin.send(()).unwrap();
            let _ = gate.recv_timeout(TIMEOUT);
        });
        has_begun.recv_timeout(TIMEOUT).unwrap();
        let (content, is_dropped) = panicking();
        let mut replaced = Box::pin(replace(&path, content));
        assert!(block_on(poll_once(&mut replaced)).is_none());
        drop(replaced);
        drop(let_go);
        block_on(busy);
        is_dropped.recv_timeout(TIMEOUT).unwrap();
        // The only thread has done with the job when it does another one.
        block_on(blocking::unblock(|| ()));
        assert!(!path.exists());
    });
}
