//! Watches: what is reported and what is not, how often, to whom, and when a watch ends.
//!
//! The changes are made as another program makes them: through `std::fs`.

use std::fs::{self, Permissions};
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::sync::{Arc, Mutex};
use std::thread;

use futures_lite::StreamExt;
use mmap_io::watch::{ChangeEvent, ChangeKind, WatchHandle, WatchStream};
use mmap_io::{MemoryMappedFile, MmapIoError};

#[cfg(target_os = "linux")]
use crate::common::child::child_dir;
use crate::common::child::{child, with_one_pool_thread};
use crate::common::{block_on, eventually, patterned, poll_once, rt_test, with_timeout, TIMEOUT};

use ChangeKind::{Metadata, Modified, Removed};

async fn next(changes: &mut WatchStream) -> ChangeKind {
    with_timeout(changes.next()).await.unwrap().kind
}

/// Takes events until one is of `kind`.
async fn until(changes: &mut WatchStream, kind: ChangeKind) {
    while next(changes).await != kind {}
}

/// Everything that is there to be taken.
async fn rest(changes: &mut WatchStream) -> Vec<ChangeKind> {
    let mut rest = Vec::new();
    while let Some(event) = poll_once(changes.next()).await {
        rest.push(event.unwrap().kind);
    }
    rest
}

/// A watch whose callback sends what it gets.
async fn sending(file: &MemoryMappedFile) -> (WatchHandle, Receiver<ChangeEvent>) {
    let (sender, events) = mpsc::channel();
    let callback = move |event| drop(sender.send(event));
    (file.watch(callback).await.unwrap(), events)
}

fn write(path: &Path, bytes: &[u8]) {
    use std::io::Write;
    let file = fs::File::options().write(true).open(path);
    file.unwrap().write_all(bytes).unwrap();
}

fn set_len(path: &Path, len: u64) {
    let file = fs::File::options().write(true).open(path);
    file.unwrap().set_len(len).unwrap();
}

/// Saves a file as editors do that rename a new file over the old one.
fn rename_over(path: &Path) {
    let new = path.with_extension("new");
    fs::write(&new, b"saved").unwrap();
    fs::rename(new, path).unwrap();
}

/// Changes the permissions, and nothing else.
fn change_mode(path: &Path) {
    let mode = fs::metadata(path).unwrap().permissions().mode();
    fs::set_permissions(path, Permissions::from_mode(mode ^ 0o010)).unwrap();
}

type Change = (&'static str, fn(&Path), ChangeKind);

const CHANGES: [Change; 7] = [
    ("write", |path| write(path, b"new"), Modified),
    ("extend", |path| set_len(path, 2000), Modified),
    ("truncate", |path| set_len(path, 10), Modified),
    ("change mode", change_mode, Metadata),
    ("remove", |path| fs::remove_file(path).unwrap(), Removed),
    ("rename over", rename_over, Modified),
    (
        "rename away",
        |path| fs::rename(path, path.with_extension("old")).unwrap(),
        Removed,
    ),
];

rt_test!(each_change_is_reported, |dir| {
    for (name, change, kind) in CHANGES {
        let dir = dir.join(name);
        fs::create_dir(&dir).unwrap();
        let (path, file) = patterned(&dir, 1000).await;
        let mut changes = file.watch_stream().await.unwrap();
        let (_watch, events) = sending(&file).await;
        change(&path);
        assert_eq!(next(&mut changes).await, kind, "{name}");
        let event = events.recv_timeout(TIMEOUT).unwrap();
        let expected = ChangeEvent {
            offset: None,
            len: None,
            kind,
        };
        assert_eq!(event, expected, "{name}");
    }
});

#[test]
fn other_files_and_reads_are_silent() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let mut changes = file.watch_stream().await.unwrap();
        for name in ["data2", "dat", "DATA.new"] {
            let other = dir.path().join(name);
            fs::write(&other, b"other").unwrap();
            change_mode(&other);
            fs::rename(&other, dir.path().join("moved")).unwrap();
            fs::remove_file(dir.path().join("moved")).unwrap();
        }
        fs::create_dir(dir.path().join("directory")).unwrap();
        fs::remove_dir(dir.path().join("directory")).unwrap();
        fs::read(&path).unwrap();
        file.read_bytes(0, 1000).await.unwrap();
        // The system reports in order.
        fs::remove_file(&path).unwrap();
        assert_eq!(next(&mut changes).await, Removed);
        assert_eq!(rest(&mut changes).await, []);
    });
}

#[test]
fn watch_goes_on_after_replacement() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let mut changes = file.watch_stream().await.unwrap();
        let (watch, events) = sending(&file).await;
        assert!(watch.is_active());
        rename_over(&path);
        until(&mut changes, Modified).await;
        change_mode(&path);
        until(&mut changes, Metadata).await;
        // As editors do that keep the old file, and create a new one.
        fs::rename(&path, dir.path().join("data~")).unwrap();
        until(&mut changes, Removed).await;
        while events.recv_timeout(TIMEOUT).unwrap().kind != Removed {}
        assert!(!watch.is_active());
        fs::write(&path, b"saved").unwrap();
        until(&mut changes, Modified).await;
        while events.recv_timeout(TIMEOUT).unwrap().kind != Modified {}
        assert!(watch.is_active());
        // The file that was moved away is not watched any more.
        write(&dir.path().join("data~"), b"old");
        fs::remove_file(dir.path().join("data~")).unwrap();
        fs::remove_file(&path).unwrap();
        until(&mut changes, Removed).await;
        assert_eq!(rest(&mut changes).await, []);
    });
}

#[test]
fn replaced_directory_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let release = dir.path().join("release");
        fs::create_dir(&release).unwrap();
        let (path, file) = patterned(&release, 1000).await;
        let mut changes = file.watch_stream().await.unwrap();
        fs::rename(&release, dir.path().join("former")).unwrap();
        assert_eq!(next(&mut changes).await, Removed);
        // Where the file is now does not matter.
        write(&dir.path().join("former/data"), b"old");
        fs::create_dir(&release).unwrap();
        fs::write(&path, b"new").unwrap();
        // Who opens the file again has the new directory watched, for all.
        let file = MemoryMappedFile::open_ro(&path).await.unwrap();
        let _again = file.watch_stream().await.unwrap();
        assert_eq!(rest(&mut changes).await, []);
        write(&path, b"newer");
        assert_eq!(next(&mut changes).await, Modified);
    });
}

#[test]
fn slow_stream_gets_last_of_each_kind() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let mut slow = file.watch_stream().await.unwrap();
        let mut fast = file.watch_stream().await.unwrap();
        for _ in 0..100 {
            write(&path, b"new");
            fs::remove_file(&path).unwrap();
            until(&mut fast, Removed).await;
            fs::write(&path, b"new").unwrap();
            until(&mut fast, Modified).await;
        }
        change_mode(&path);
        until(&mut fast, Metadata).await;
        drop(fast);
        assert_eq!(rest(&mut slow).await, [Removed, Modified, Metadata]);
    });
}

#[test]
fn watch_outlives_handle() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let mut changes = file.watch_stream().await.unwrap();
        let (_watch, events) = sending(&file).await;
        file.close().await.unwrap();
        // The file is closed: another one may be created in its place.
        let file = MemoryMappedFile::create_rw(&path, 10).await.unwrap();
        assert_eq!(next(&mut changes).await, Modified);
        assert_eq!(events.recv_timeout(TIMEOUT).unwrap().kind, Modified);
        drop(file);
        fs::remove_file(&path).unwrap();
        until(&mut changes, Removed).await;
    });
}

#[test]
fn missing_file_cannot_be_watched() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        fs::remove_file(&path).unwrap();
        let errors = [
            file.watch(|_| ()).await.unwrap_err(),
            file.watch_stream().await.unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, MmapIoError::WatchFailed(_)), "{error:?}");
            assert_eq!(error.io_kind(), Some(std::io::ErrorKind::NotFound));
            let begin = format!("watching {} failed: ", path.display());
            assert!(error.to_string().starts_with(&begin), "{error}");
        }
    });
}

#[test]
fn symbolic_link_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        fs::create_dir(dir.path().join("target")).unwrap();
        let (path, _) = patterned(&dir.path().join("target"), 1000).await;
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        let file = MemoryMappedFile::open_ro(&link).await.unwrap();
        let mut changes = file.watch_stream().await.unwrap();
        rename_over(&path);
        assert_eq!(next(&mut changes).await, Modified);
    });
}

#[test]
fn touched_mtime_makes_flush_visible() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, _) = patterned(dir.path(), 1000).await;
        let builder = MemoryMappedFile::builder(&path).mode(mmap_io::MmapMode::ReadWrite);
        let file = builder.touch_mtime(true).open().await.unwrap();
        let mut changes = file.watch_stream().await.unwrap();
        file.update_region_async(0, b"new").await.unwrap();
        until(&mut changes, Modified).await;
    });
}

/// A callback that says when it is called, and returns when it is let go.
struct Slow {
    watch: WatchHandle,
    entered: Receiver<thread::Thread>,
    release: Sender<()>,
}

impl Slow {
    async fn new(file: &MemoryMappedFile) -> Self {
        let (enter, entered) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let callback = move |_| {
            enter.send(thread::current()).unwrap();
            let _ = released.recv_timeout(TIMEOUT);
        };
        Self {
            watch: file.watch(callback).await.unwrap(),
            entered,
            release,
        }
    }
}

#[test]
fn slow_callback_holds_up_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let slow = Slow::new(&file).await;
        let (watch, events) = sending(&file).await;
        let mut changes = file.watch_stream().await.unwrap();
        write(&path, b"new");
        let runs_on = slow.entered.recv_timeout(TIMEOUT).unwrap();
        assert_eq!(runs_on.name(), Some("mmap-io watch"));
        assert_ne!(runs_on.id(), thread::current().id());
        assert_eq!(next(&mut changes).await, Modified);
        assert_eq!(events.recv_timeout(TIMEOUT).unwrap().kind, Modified);
        // The pool as well is free, for other watches too.
        with_timeout(file.update_region_async(0, b"newer"))
            .await
            .unwrap();
        drop((watch, changes));
        drop(sending(&file).await);
        drop(slow.release);
    });
}

#[test]
fn drop_waits_for_running_callback() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let mut changes = file.watch_stream().await.unwrap();
        let Slow {
            watch,
            entered,
            release,
        } = Slow::new(&file).await;
        write(&path, b"new");
        entered.recv_timeout(TIMEOUT).unwrap();
        until(&mut changes, Modified).await;
        let is_released = Arc::new(AtomicBool::new(false));
        let dropper = {
            let is_released = is_released.clone();
            thread::spawn(move || {
                drop(watch);
                assert!(is_released.load(Ordering::SeqCst), "the drop did not wait");
            })
        };
        // A drop that does not wait has time to return.
        change_mode(&path);
        until(&mut changes, Metadata).await;
        is_released.store(true, Ordering::SeqCst);
        drop(release);
        dropper.join().unwrap();
    });
}

#[test]
fn no_callback_after_drop() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let mut changes = file.watch_stream().await.unwrap();
        let is_late = Arc::new(AtomicBool::new(false));
        for _ in 0..50 {
            let is_dropped = Arc::new(AtomicBool::new(false));
            let (sender, calls) = mpsc::channel();
            let callback = {
                let (is_late, is_dropped) = (is_late.clone(), is_dropped.clone());
                move |_| {
                    let _ = sender.send(());
                    thread::yield_now();
                    is_late.fetch_or(is_dropped.load(Ordering::SeqCst), Ordering::SeqCst);
                }
            };
            let watch = file.watch(callback).await.unwrap();
            write(&path, b"new");
            calls.recv_timeout(TIMEOUT).unwrap();
            change_mode(&path);
            drop(watch);
            is_dropped.store(true, Ordering::SeqCst);
            until(&mut changes, Metadata).await;
            // The callback is gone, its sender with it.
            while calls.try_recv().is_ok() {}
            assert_eq!(calls.try_recv(), Err(TryRecvError::Disconnected));
        }
        assert!(!is_late.load(Ordering::SeqCst), "called after the drop");
    });
}

#[test]
fn callback_may_drop_its_handle() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let own: Arc<Mutex<Option<WatchHandle>>> = Arc::default();
        let (sender, calls) = mpsc::channel();
        let callback = {
            let own = own.clone();
            move |_| {
                drop(own.lock().unwrap().take());
                sender.send(()).unwrap();
            }
        };
        let watch = with_timeout(file.watch(callback)).await.unwrap();
        *own.lock().unwrap() = Some(watch);
        write(&path, b"new");
        calls.recv_timeout(TIMEOUT).unwrap();
        write(&path, b"newer");
        // The thread ends and drops the callback without another call.
        let end = calls.recv_timeout(TIMEOUT);
        assert_eq!(end, Err(RecvTimeoutError::Disconnected));
    });
}

#[test]
fn panicking_callback_is_called_again() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let (sender, events) = mpsc::channel();
        let callback = move |event: ChangeEvent| {
            sender.send(event.kind).unwrap();
            assert_ne!(event.kind, Metadata, "the callback panics on purpose");
        };
        let watch = file.watch(callback).await.unwrap();
        change_mode(&path);
        assert_eq!(events.recv_timeout(TIMEOUT).unwrap(), Metadata);
        fs::remove_file(&path).unwrap();
        assert_eq!(events.recv_timeout(TIMEOUT).unwrap(), Removed);
        drop(watch);
    });
}

/// The paths of the descriptors of `inotify(7)` that this process has.
#[cfg(target_os = "linux")]
fn instances() -> usize {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    let inotify = PathBuf::from("anon_inode:inotify");
    targets.filter(|target| *target == inotify).count()
}

/// More watches than a user may have instances of `inotify(7)`.
#[cfg(target_os = "linux")]
#[test]
fn many_watches_share_an_instance() {
    // Other tests watch as well, so this one needs a process of its own.
    let Some(dir) = child_dir() else {
        let dir = tempfile::tempdir().unwrap();
        let child = child!(many_watches_share_an_instance);
        child.dir(dir.path()).passes();
        return;
    };
    block_on(async {
        let mut watches = Vec::new();
        for number in 0..200 {
            let dir = dir.join(number.to_string());
            fs::create_dir(&dir).unwrap();
            let (path, file) = patterned(&dir, 10).await;
            watches.push((path, file.watch_stream().await.unwrap()));
        }
        assert_eq!(instances(), 1);
        for (path, changes) in &mut watches {
            write(path, b"new");
            assert_eq!(next(changes).await, Modified);
        }
        drop(watches);
        eventually("the instance is closed", || instances() == 0);
        // And it begins anew.
        let (path, file) = patterned(&dir, 10).await;
        let mut changes = file.watch_stream().await.unwrap();
        write(&path, b"new");
        assert_eq!(next(&mut changes).await, Modified);
    });
}

/// Holds up the only thread of the pool until the sender is dropped.
fn hold_pool() -> Sender<()> {
    let (gate, opens) = mpsc::channel::<()>();
    blocking::unblock(move || opens.recv()).detach();
    gate
}

/// The directory has two paths for a while: the one that it had, which is still listened to, and
/// its new one. The system knows only one directory.
#[test]
fn watch_of_moved_directory_outlives_that_of_its_old_path() {
    let this = child!(watch_of_moved_directory_outlives_that_of_its_old_path);
    with_one_pool_thread(this, || {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            for ends_by_drop in [false, true] {
                let (old, new) = (dir.path().join("old"), dir.path().join("new"));
                fs::create_dir(&new).unwrap();
                let (path, after) = patterned(&new, 1000).await;
                fs::rename(&new, &old).unwrap();
                let before = MemoryMappedFile::open_ro(old.join("data")).await.unwrap();
                let mut of_old = before.watch_stream().await.unwrap();

                let gate = hold_pool();
                let mut watching = Box::pin(after.watch_stream());
                assert!(poll_once(&mut watching).await.is_none());
                if ends_by_drop {
                    drop(of_old);
                    fs::rename(&old, &new).unwrap();
                    drop(gate);
                } else {
                    fs::rename(&old, &new).unwrap();
                    drop(gate);
                    until(&mut of_old, Removed).await;
                    drop(of_old);
                }
                let mut changes = with_timeout(watching).await.unwrap();
                // The only thread of the pool has done what was to be done for the old path.
                after.metadata().await.unwrap();
                rest(&mut changes).await;
                for _ in 0..2 {
                    write(&path, b"new");
                    until(&mut changes, Modified).await;
                    after.metadata().await.unwrap();
                }
                drop((changes, before, after));
                fs::remove_dir_all(&new).unwrap();
            }
        });
    });
}

#[test]
fn directory_that_became_a_file_has_no_file() {
    with_one_pool_thread(child!(directory_that_became_a_file_has_no_file), || {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let inner = dir.path().join("inner");
            fs::create_dir(&inner).unwrap();
            let (_, file) = patterned(&inner, 1000).await;
            let mut changes = file.watch_stream().await.unwrap();
            let gate = hold_pool();
            fs::rename(&inner, dir.path().join("former")).unwrap();
            fs::write(&inner, b"a file").unwrap();
            drop(gate);
            assert_eq!(next(&mut changes).await, Removed);
            assert!(!file.is_at_path().await.unwrap());
        });
    });
}
