//! Who created a file, and with which permissions.

use std::fs;
use std::sync::Barrier;

use mmap_io::{MemoryMappedFile, MmapMode};

use crate::common::block_on;

#[test]
fn was_created_tells_creations() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    block_on(async {
        let (one, two) = (at("one"), at("two"));
        let file = MemoryMappedFile::create_rw(&one, 100).await.unwrap();
        assert!(file.was_created() && file.clone().was_created());
        let same = MemoryMappedFile::open_or_create(&one, 100).await.unwrap();
        let reader = MemoryMappedFile::open_ro(&one).await.unwrap();
        let writer = MemoryMappedFile::open_rw(&one).await.unwrap();
        assert!(!same.was_created() && !reader.was_created() && !writer.was_created());
        drop((file, same, reader, writer));
        let emptied = MemoryMappedFile::create_rw(&one, 100).await.unwrap();
        assert!(!emptied.was_created());

        let file = MemoryMappedFile::open_or_create(&two, 100).await.unwrap();
        assert!(file.was_created());
        file.close().await.unwrap();
        let again = MemoryMappedFile::open_or_create(&two, 100).await.unwrap();
        assert!(!again.was_created());

        let builder = MemoryMappedFile::builder(at("three")).size(10);
        assert!(builder.create_new().await.unwrap().was_created());

        // It was there, though without bytes.
        fs::write(at("empty"), "").unwrap();
        let empty = MemoryMappedFile::open_or_create(at("empty"), 10).await;
        assert!(!empty.unwrap().was_created());

        let plain = fs::File::open(&one).unwrap();
        let file = MemoryMappedFile::from_file(plain, MmapMode::ReadOnly, &one).await;
        assert!(!file.unwrap().was_created());
    });
}

#[cfg(unix)]
#[test]
fn link_to_nothing_creates_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    block_on(async {
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        let file = MemoryMappedFile::open_or_create(at("link"), 10).await;
        assert!(file.unwrap().was_created());
        let file = MemoryMappedFile::open_or_create(at("link"), 10).await;
        assert!(!file.unwrap().was_created());
        fs::remove_file(at("file")).unwrap();
        let file = MemoryMappedFile::create_rw(at("link"), 10).await;
        assert!(file.unwrap().was_created());
    });
}

#[test]
fn one_of_many_tasks_creates() {
    const TASKS: usize = 4;
    let dir = tempfile::tempdir().unwrap();
    let start = Barrier::new(TASKS);
    for round in 0..50 {
        let path = dir.path().join(round.to_string());
        let open = || {
            start.wait();
            block_on(MemoryMappedFile::open_or_create(&path, 5000)).unwrap()
        };
        let files: Vec<_> = std::thread::scope(|scope| {
            let tasks: Vec<_> = (0..TASKS).map(|_| scope.spawn(open)).collect();
            let opened = tasks.into_iter().map(|task| task.join().unwrap());
            opened.collect()
        });
        assert_eq!(files.iter().filter(|file| file.was_created()).count(), 1);
        assert!(files.iter().all(|file| file.len() == 5000));
    }
}

#[cfg(target_os = "linux")]
mod processes {
    use super::*;
    use crate::common::child::{child, child_dir};

    const FILES: usize = 100;

    #[test]
    fn one_of_many_processes_creates() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| child!(creating_child).dir(dir.path()).passes());
            }
        });
        for number in 0..FILES {
            let creators = fs::read_dir(dir.path()).unwrap().filter(|entry| {
                let name = entry.as_ref().unwrap().file_name();
                let name = name.to_str().unwrap();
                name.starts_with(&format!("{number}-"))
            });
            assert_eq!(creators.count(), 1, "file {number}");
        }
    }

    /// Leaves a mark for each file that it created.
    #[test]
    fn creating_child() {
        let Some(dir) = child_dir() else {
            return;
        };
        for number in 0..FILES {
            let path = dir.join(number.to_string());
            let file = block_on(MemoryMappedFile::open_or_create(path, 100)).unwrap();
            if file.was_created() {
                let mark = dir.join(format!("{number}-{}", std::process::id()));
                fs::write(mark, "").unwrap();
            }
        }
    }
}

#[cfg(unix)]
mod permissions {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn permissions_count_in_each_terminal() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        block_on(async {
            for bits in [0o600, 0o640, 0o400, 0o7600] {
                let builder = |name: &str| {
                    let path = at(&format!("{name}-{bits:o}"));
                    let builder = MemoryMappedFile::builder(&path).size(10);
                    (builder.unix_permissions(bits), path)
                };
                let expected = bits & 0o777 & !umask(dir.path());
                let (create, path) = builder("create");
                create.create().await.unwrap();
                assert_eq!(mode(&path), expected);
                let (create_new, path) = builder("create_new");
                create_new.create_new().await.unwrap();
                assert_eq!(mode(&path), expected);
                let (open_or_create, path) = builder("open_or_create");
                open_or_create.open_or_create().await.unwrap();
                assert_eq!(mode(&path), expected);
            }
            // Without the option it is as for every program.
            MemoryMappedFile::create_rw(at("usual"), 10).await.unwrap();
            assert_eq!(mode(&at("usual")), 0o666 & !umask(dir.path()));
        });
    }

    /// The bits that the process takes away from new files.
    fn umask(dir: &Path) -> u32 {
        let plain = dir.join("plain");
        fs::write(&plain, "").unwrap();
        0o666 & !mode(&plain)
    }

    #[test]
    fn existing_file_keeps_permissions() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        fs::write(&path, "there").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let builder = || {
            MemoryMappedFile::builder(&path)
                .size(5)
                .unix_permissions(0o600)
        };
        block_on(async {
            builder().open_or_create().await.unwrap();
            builder().mode(MmapMode::ReadWrite).open().await.unwrap();
            builder().create().await.unwrap();
        });
        assert_eq!(mode(&path), 0o644);
    }

    /// Another process could open the file in a moment in which it is open to all.
    #[test]
    fn permissions_hold_from_first_moment() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut seen = 0;
                while !stop.load(Ordering::Relaxed) {
                    if let Ok(metadata) = fs::metadata(&path) {
                        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
                        seen += 1;
                    }
                }
                seen
            });
            let builder = || {
                MemoryMappedFile::builder(&path)
                    .size(10)
                    .unix_permissions(0o600)
            };
            for round in 0..300 {
                match round % 3 {
                    0 => block_on(builder().create()).unwrap(),
                    1 => block_on(builder().create_new()).unwrap(),
                    _ => block_on(builder().open_or_create()).unwrap(),
                };
                fs::remove_file(&path).unwrap();
            }
            stop.store(true, Ordering::Relaxed);
            watcher.join().unwrap();
        });
    }
}
