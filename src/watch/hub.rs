//! The one place that asks the system for notifications, for all watches of the process.
//!
//! The system allows few listeners to a user (128 instances of `inotify(7)`), so all watches share
//! one, and its thread. It listens to the *directories* of the watched files: a file that is
//! replaced is another file, and only its directory tells. Events of other files in the directory
//! are dropped here.
//!
//! Two locks. [`NOTIFIER`] is held while the system is asked, which may wait for the thread that
//! delivers. So that thread takes only [`WATCHES`], which is never held for longer than a look, and
//! it runs nothing that could take `NOTIFIER`: the drop of a [`Subscription`] leaves that to a job
//! of the pool.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::mem;
use std::ops::{Bound, Deref};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use notify::event::{EventKind, MetadataKind, ModifyKind, RenameMode};
use notify::{
    Config, ErrorKind, PollWatcher, RecommendedWatcher, RecursiveMode, Watcher, WatcherKind,
};

use super::{ChangeKind, Watch};
use crate::completion::contain;
use crate::file::is_absent;
use crate::offload::spawn;
use crate::sync::lock;
use crate::sys::{self, FileId};

/// How often the directories are read where the system cannot report changes in them.
const POLL_EVERY: Duration = Duration::from_secs(1);

/// The watches, by the paths of the watched files, which contain no symbolic link.
static WATCHES: Mutex<BTreeMap<PathBuf, Vec<Arc<Watch>>>> = Mutex::new(BTreeMap::new());

/// The listener of the process; `None` while nothing is watched.
static NOTIFIER: Mutex<Option<Notifier>> = Mutex::new(None);

struct Notifier {
    watcher: Box<dyn Watcher + Send>,
    /// The directories that it listens to, by their paths; which ones they were, if that is known.
    directories: BTreeMap<PathBuf, Option<FileId>>,
    /// Those of them in which changes may have been missed.
    unsure: BTreeSet<PathBuf>,
}

/// A watch that ends when it is dropped, without blocking the thread.
#[derive(Debug)]
pub(super) struct Subscription(Arc<Watch>);

/// Begins to watch the file at `path`. Blocks the thread.
pub(super) fn subscribe(path: &Path) -> io::Result<Subscription> {
    let path = fs::canonicalize(path)?;
    let Some(directory) = path.parent() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let watch = Arc::new(Watch::new(path.clone()));
    lock(&WATCHES)
        .entry(path.clone())
        .or_default()
        .push(watch.clone());
    let subscription = Subscription(watch);
    listen(directory)?;
    // It may have been removed before the system began to listen.
    fs::symlink_metadata(&path)?;
    Ok(subscription)
}

impl Subscription {
    pub(super) fn clone_source(&self) -> Arc<Watch> {
        self.0.clone()
    }
}

impl Deref for Subscription {
    type Target = Watch;

    fn deref(&self) -> &Watch {
        &self.0
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if sys::is_forked() {
            return;
        }
        let mut watches = lock(&WATCHES);
        if let Some(same_path) = watches.get_mut(self.path()) {
            same_path.retain(|watch| !Arc::ptr_eq(watch, &self.0));
            if same_path.is_empty() {
                watches.remove(self.path());
            }
        }
        drop(watches);
        // If it cannot run, the job after the next watch does its work.
        let _ = spawn(unlisten);
    }
}

/// Has the system report the changes in a directory. Also if it does so already: the directory may
/// be another one than before.
fn listen(directory: &Path) -> io::Result<()> {
    let mut notifier = lock(&NOTIFIER);
    let mut listening = match notifier.take() {
        Some(listening) => listening,
        None => Notifier::start()?,
    };
    let result = listening.listen(directory);
    listening.put_back(notifier);
    result
}

/// Listens to the directory that is at a path now, if there is one.
fn relisten(directory: &Path) {
    let mut notifier = lock(&NOTIFIER);
    if let Some(mut listening) = notifier.take() {
        if listening.directories.contains_key(directory) {
            listening.end(&[directory.to_path_buf()]);
            let _ = listening.listen(directory);
        }
        listening.put_back(notifier);
    }
}

/// Stops listening to the directories without watches.
fn unlisten() {
    let mut notifier = lock(&NOTIFIER);
    if let Some(mut listening) = notifier.take() {
        // Under the lock, so that no watch can begin in between.
        let in_use: BTreeSet<PathBuf> = {
            let watches = lock(&WATCHES);
            let directories = watches.keys().filter_map(|path| path.parent());
            directories.map(Path::to_path_buf).collect()
        };
        listening.keep(&in_use);
        listening.put_back(notifier);
    }
}

impl Notifier {
    fn start() -> io::Result<Self> {
        let watcher: Box<dyn Watcher + Send> = match RecommendedWatcher::kind() {
            // It reports only which files are in a directory, not what happens to them.
            WatcherKind::Kqueue => {
                let config = Config::default().with_poll_interval(POLL_EVERY);
                Box::new(PollWatcher::new(deliver, config).map_err(io_error)?)
            }
            _ => Box::new(RecommendedWatcher::new(deliver, Config::default()).map_err(io_error)?),
        };
        Ok(Self {
            watcher,
            directories: BTreeMap::new(),
            unsure: BTreeSet::new(),
        })
    }

    /// Listens to a directory.
    ///
    /// `inotify(7)` knows a directory that has several paths only once, and its changes are
    /// reported by the path that was asked for last. A directory has two while it is being moved:
    /// its old one leads elsewhere, and the files there are looked at.
    fn listen(&mut self, directory: &Path) -> io::Result<()> {
        let id = sys::file_id_at(directory).ok();
        self.ask(|watcher| watcher.watch(directory, RecursiveMode::NonRecursive))?;
        self.directories.insert(directory.to_path_buf(), id);
        let same = self.same_as(id.as_slice()).into_iter();
        let others = same.filter(|other| other != directory);
        self.unsure.extend(others);
        Ok(())
    }

    /// The paths by which it is known to listen to one of the directories.
    fn same_as(&self, ids: &[FileId]) -> Vec<PathBuf> {
        let is_one = |id: &Option<FileId>| id.is_some_and(|id| ids.contains(&id));
        let same = self.directories.iter().filter(|(_, id)| is_one(id));
        same.map(|(directory, _)| directory.clone()).collect()
    }

    fn keep(&mut self, in_use: &BTreeSet<PathBuf>) {
        let listened = self.directories.keys();
        let unused = listened.filter(|directory| !in_use.contains(*directory));
        let unused: Vec<PathBuf> = unused.cloned().collect();
        self.end(&unused);
    }

    /// Stops listening to directories.
    ///
    /// The system then stops for all paths of those directories, so it is asked again for the
    /// others.
    fn end(&mut self, directories: &[PathBuf]) {
        let mut ended = Vec::new();
        for directory in directories {
            ended.extend(self.directories.remove(directory).flatten());
            // It fails if the directory is gone, and then there is nothing to do.
            let _ = self.ask(|watcher| watcher.unwatch(directory));
        }
        for directory in self.same_as(&ended) {
            let _ = self.listen(&directory);
            self.unsure.insert(directory);
        }
    }

    /// Calls the watcher. If its thread could not be started or has ended, the call panics, and so
    /// would its drop: then it is replaced by one that does nothing.
    fn ask(&mut self, call: impl FnOnce(&mut dyn Watcher) -> notify::Result<()>) -> io::Result<()> {
        match contain(|| call(&mut *self.watcher)) {
            Some(result) => result.map_err(io_error),
            None => {
                self.directories.clear();
                mem::forget(mem::replace(
                    &mut self.watcher,
                    Box::new(notify::NullWatcher),
                ));
                Err(io::Error::other("the thread that listens does not run"))
            }
        }
    }

    /// Puts the listener back, unless it listens to nothing, and has the files looked at whose
    /// changes it may have missed.
    fn put_back(mut self, mut notifier: MutexGuard<'_, Option<Self>>) {
        let unsure = mem::take(&mut self.unsure);
        *notifier = self.if_needed();
        drop(notifier);
        for directory in &unsure {
            let below = below(directory).into_iter();
            let inside = below.filter(|watch| watch.path().parent() == Some(directory));
            inside.for_each(|watch| look(&watch));
        }
    }

    /// Returns the listener, or ends it if it listens to nothing.
    fn if_needed(self) -> Option<Self> {
        if self.directories.is_empty() {
            contain(|| drop(self));
            return None;
        }
        Some(self)
    }
}

/// Notes an event for the watches that it is about. Runs on the thread of the watcher.
fn deliver(event: notify::Result<notify::Event>) {
    let event = match event {
        Ok(event) if !event.need_rescan() => event,
        // Events were lost.
        _ => {
            let all: Vec<_> = lock(&WATCHES).values().flatten().cloned().collect();
            return all.iter().for_each(look);
        }
    };
    let Some(seen) = Seen::of(&event.kind) else {
        return;
    };
    for path in &event.paths {
        let about = lock(&WATCHES).get(path).cloned();
        for watch in about.iter().flatten() {
            match seen {
                Seen::Sure(kind) => watch.note(kind),
                Seen::Something => look(watch),
            }
        }
        if about.is_none() && matches!(seen, Seen::Sure(ChangeKind::Removed) | Seen::Something) {
            look_below(path);
        }
    }
}

/// Looks at the watched files in a directory that was removed or moved away, if it is one, and
/// listens to the directory that has taken its place.
fn look_below(directory: &Path) {
    let below = below(directory);
    if below.is_empty() {
        return;
    }
    let directory = directory.to_path_buf();
    // If the pool cannot run the job, the watches go on as they are.
    let _ = spawn(move || {
        relisten(&directory);
        below.iter().for_each(look);
    });
}

/// The watches of files in a directory and in those inside it.
fn below(directory: &Path) -> Vec<Arc<Watch>> {
    let watches = lock(&WATCHES);
    let from_here = (Bound::Included(directory), Bound::Unbounded);
    let below = watches.range::<Path, _>(from_here);
    let below = below.take_while(|(path, _)| path.starts_with(directory));
    below.flat_map(|(_, same)| same.clone()).collect()
}

/// Looks whether a file is at the path, and notes that. Asking may block, so the pool does it.
fn look(watch: &Arc<Watch>) {
    let sightings = watch.sightings();
    let looking = watch.clone();
    let looked = spawn(move || {
        let kind = match fs::symlink_metadata(looking.path()) {
            Err(error) if is_absent(looking.path(), &error) => ChangeKind::Removed,
            _ => ChangeKind::Modified,
        };
        // What was noted since is newer.
        looking.note_unless_seen(kind, sightings);
    });
    if looked.is_err() {
        watch.note(ChangeKind::Modified);
    }
}

/// What an event tells.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    Sure(ChangeKind),
    /// Something has happened to the path, and the file may be gone.
    Something,
}

impl Seen {
    /// Returns `None` for an event that changes nothing.
    fn of(kind: &EventKind) -> Option<Self> {
        // macOS puts everything that has happened in a while into one event.
        let is_ordered = RecommendedWatcher::kind() != WatcherKind::Fsevent;
        Some(match kind {
            EventKind::Access(_) => return None,
            // Two events have told it before.
            EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => return None,
            EventKind::Modify(ModifyKind::Name(RenameMode::From)) | EventKind::Remove(_)
                if is_ordered =>
            {
                Self::Sure(ChangeKind::Removed)
            }
            EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(RenameMode::To))
                if is_ordered =>
            {
                Self::Sure(ChangeKind::Modified)
            }
            // So does polling report a change of the content.
            EventKind::Modify(ModifyKind::Metadata(MetadataKind::WriteTime)) => {
                Self::Sure(ChangeKind::Modified)
            }
            EventKind::Modify(ModifyKind::Metadata(_)) => Self::Sure(ChangeKind::Metadata),
            EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Any | ModifyKind::Other) => {
                Self::Sure(ChangeKind::Modified)
            }
            EventKind::Any
            | EventKind::Other
            | EventKind::Create(_)
            | EventKind::Remove(_)
            | EventKind::Modify(ModifyKind::Name(_)) => Self::Something,
        })
    }
}

fn io_error(error: notify::Error) -> io::Error {
    match error.kind {
        ErrorKind::Io(error) => error,
        ErrorKind::PathNotFound => io::ErrorKind::NotFound.into(),
        ErrorKind::MaxFilesWatch => io::Error::other("the limit of watched directories is reached"),
        _ => io::Error::other(error),
    }
}

#[cfg(all(test, not(mmap_io_loom)))]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Sends the directories that it is asked to watch.
    struct Asked(mpsc::Sender<PathBuf>);

    impl Watcher for Asked {
        fn new<F: notify::EventHandler>(_: F, _: Config) -> notify::Result<Self> {
            unreachable!("the test makes it")
        }

        fn watch(&mut self, directory: &Path, _: RecursiveMode) -> notify::Result<()> {
            self.0.send(directory.to_path_buf()).unwrap();
            Ok(())
        }

        fn unwatch(&mut self, _: &Path) -> notify::Result<()> {
            Ok(())
        }

        fn kind() -> WatcherKind {
            WatcherKind::NullWatcher
        }
    }

    /// A directory whose identity is unknown is not taken for every other one.
    #[test]
    fn only_paths_of_same_directory_are_watched_again() {
        let id = |index| Some(FileId { volume: 1, index });
        let (sender, asked) = mpsc::channel();
        let directories = [
            ("/unknown", None),
            ("/unknown too", None),
            ("/ended", id(1)),
            ("/same", id(1)),
            ("/other", id(2)),
        ];
        let directories = directories.map(|(path, id)| (PathBuf::from(path), id));
        let mut notifier = Notifier {
            watcher: Box::new(Asked(sender)),
            directories: BTreeMap::from(directories),
            unsure: BTreeSet::new(),
        };
        notifier.end(&["/unknown".into()]);
        assert!(asked.try_recv().is_err());
        assert!(notifier.unsure.is_empty());
        notifier.end(&["/ended".into()]);
        assert_eq!(asked.try_recv().unwrap(), Path::new("/same"));
        assert!(asked.try_recv().is_err());
        assert_eq!(notifier.unsure, BTreeSet::from(["/same".into()]));
    }
}
