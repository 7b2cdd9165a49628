//! Watching a file for changes that other programs, or other handles, make.
//!
//! A watch belongs to a path, not to a handle: it goes on when the file at the path is replaced,
//! and when the handle that it was made from is dropped. The `hub` notes what has happened; the
//! callback's own thread, or the task that polls the stream, takes it from there. In between, one
//! event of each kind is kept at most, so that a slow consumer costs no memory.

mod hub;

use std::fmt;
use std::future::Future;
use std::mem;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{ready, Context, Poll};
use std::thread::{self, JoinHandle};

use futures_lite::Stream;

use self::hub::Subscription;
use crate::completion::contain;
use crate::error::{MmapIoError, Result, Subject};
use crate::fairness::operation;
use crate::file::MemoryMappedFile;
use crate::offload::offload;
use crate::sync::lock;
use crate::sys;
use crate::wakers::{Event, EventListener};

/// # Watching
///
/// A watch reports what happens to the path by which the file was opened, symbolic links resolved:
/// writes, changes of the length, new attributes, removal. It also notices a new file at the path,
/// which is how many editors save: they rename a new file over the old one, or move the old one
/// away and create a new one. The mapping goes on showing the old file then; see
/// [`is_at_path`](Self::is_at_path).
///
/// What is not reported:
/// - **Stores through a mapping**, of this process or another one, and so most writes of this
///   crate. They reach watchers at write-back at the earliest, on Linux not even then. With
///   [`touch_mtime`](crate::MemoryMappedFileBuilder::touch_mtime) each flush of something that was
///   written is reported as [`Modified`](ChangeKind::Modified), to every process that watches.
/// - Changes on a network file system that another machine makes.
/// - Changes made through another name of the file (a hard link), and a symbolic link or a
///   directory on the way to the file that starts to lead elsewhere.
/// - On Linux, where a directory is mounted at several places (a bind mount), and this process
///   watches files in it by paths of more than one: changes, to the watches of all of these places
///   but one.
///
/// Equal events that come before the first of them was received become one event. Which bytes have
/// changed is not known. On Linux the watch uses `inotify(7)`: one instance for all watches of the
/// process, and one of its watches for each directory. On macOS, changes can be missed in the
/// moment in which another watch begins or ends. On the BSDs the directory is read once a second.
impl MemoryMappedFile {
    /// Calls `callback` for every change of the file, on a thread of its own, until the handle that
    /// it returns is dropped.
    ///
    /// Changes that are made after this returns are reported. The watch does not keep the file
    /// open. A callback may take its time, may panic (later changes are still reported), and may
    /// drop the handle. In an async program [`watch_stream`](Self::watch_stream) needs no thread.
    ///
    /// # Errors
    ///
    /// - [`WatchFailed`](MmapIoError::WatchFailed): no file is at the path, its directory cannot be
    ///   read, the system's limit of watches is reached, or no thread can be started.
    /// - [`Io`](MmapIoError::Io): the pool cannot run a job.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the watch.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("settings");
    /// # std::fs::write(&path, "old")?;
    /// let file = mmap_io::MemoryMappedFile::open_ro(&path).await?;
    /// let (sender, changes) = std::sync::mpsc::channel();
    /// let watch = file
    ///     .watch(move |event| drop(sender.send(event.kind)))
    ///     .await?;
    /// std::fs::write(&path, "new")?;
    /// assert_eq!(changes.recv()?, mmap_io::watch::ChangeKind::Modified);
    /// drop(watch); // The callback is not called any more.
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    #[doc(alias = "notify")]
    #[doc(alias = "inotify")]
    pub fn watch<F>(
        &self,
        callback: F,
    ) -> impl Future<Output = Result<WatchHandle>> + Send + 'static
    where
        F: FnMut(ChangeEvent) + Send + 'static,
    {
        let path = self.handle.location.clone();
        operation("watching", Subject::from(&path), async move {
            let watch = subscribe(path).await?;
            let source = watch.clone_source();
            let thread = thread::Builder::new()
                .name("mmap-io watch".into())
                .spawn(move || source.call(callback))
                .map_err(failed)?;
            Ok(WatchHandle {
                watch,
                thread: Some(thread),
            })
        })
    }

    /// Returns a stream of the changes of the file.
    ///
    /// Changes that are made after this returns are reported. The stream does not keep the file
    /// open, and has no thread of its own. It does not end by itself, also not when the file is
    /// removed: another file may take its place. Dropping the stream ends the watch.
    ///
    /// # Errors
    ///
    /// - [`WatchFailed`](MmapIoError::WatchFailed): no file is at the path, its directory cannot be
    ///   read, or the system's limit of watches is reached.
    /// - [`Io`](MmapIoError::Io): the pool cannot run a job.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the watch. Between two items nothing is lost.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("settings");
    /// # std::fs::write(&path, "old")?;
    /// use futures_lite::StreamExt;
    /// use mmap_io::watch::ChangeKind;
    ///
    /// let file = mmap_io::MemoryMappedFile::open_ro(&path).await?;
    /// let mut changes = file.watch_stream().await?;
    /// // As editors save:
    /// std::fs::write(path.with_extension("new"), "new")?;
    /// std::fs::rename(path.with_extension("new"), &path)?;
    /// assert_eq!(changes.next().await.unwrap().kind, ChangeKind::Modified);
    /// assert!(!file.is_at_path().await?);
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn watch_stream(&self) -> impl Future<Output = Result<WatchStream>> + Send + 'static {
        let path = self.handle.location.clone();
        operation("watching", Subject::from(&path), async move {
            Ok(WatchStream {
                watch: subscribe(path).await?,
                listener: None,
            })
        })
    }
}

async fn subscribe(path: PathBuf) -> Result<Subscription> {
    offload(move || hub::subscribe(&path).map_err(failed)).await
}

fn failed(error: std::io::Error) -> MmapIoError {
    MmapIoError::WatchFailed(error.into())
}

/// A change of a watched file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeEvent {
    /// Offset of the changed bytes; `None` so far, since no system tells it.
    pub offset: Option<u64>,
    /// Number of changed bytes; `None` so far, since no system tells it.
    pub len: Option<u64>,
    /// What has happened.
    pub kind: ChangeKind,
}

/// What has happened to a watched file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChangeKind {
    /// The content or the length has changed, or another file has taken the place of the file. Also
    /// reported where the system has lost track of its reports, so that anything may have changed.
    Modified,
    /// Permissions, owner, times or the number of links have changed.
    Metadata,
    /// No file is at the path any more: the file was removed or moved away. If another file takes
    /// its place, that is reported as [`Modified`](Self::Modified).
    Removed,
}

/// A running watch with a callback; see [`MemoryMappedFile::watch`].
///
/// # Blocking
///
/// Dropping the handle ends the watch. It waits for a call of the callback that is running, so that
/// the callback is not called afterwards; the callback must not wait for the thread that drops the
/// handle. If the callback itself drops the handle, there is no wait.
#[derive(Debug)]
#[must_use = "dropping the handle ends the watch"]
pub struct WatchHandle {
    watch: Subscription,
    /// Present until the drop.
    thread: Option<JoinHandle<()>>,
}

impl WatchHandle {
    /// Returns `true` if a file is at the watched path: if the last change was not
    /// [`Removed`](ChangeKind::Removed).
    pub fn is_active(&self) -> bool {
        // In a forked child, which no watch reports to, the lock may never be free.
        !sys::is_forked() && self.watch.is_there()
    }
}

impl Drop for WatchHandle {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        // A forked child has no thread to wait for, and a lock may stay locked there forever.
        if sys::is_forked() {
            return;
        }
        self.watch.end();
        if thread.thread().id() != thread::current().id() {
            // It does not panic: the panics of the callback are contained.
            let _ = thread.join();
        }
    }
}

/// A stream of the changes of a file; see [`MemoryMappedFile::watch_stream`].
#[derive(Debug)]
#[must_use = "dropping the stream ends the watch"]
pub struct WatchStream {
    watch: Subscription,
    /// Present while the stream waits.
    listener: Option<EventListener>,
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        // The drop of a listener takes a lock, which may stay locked forever in a forked child.
        if sys::is_forked() {
            mem::forget(self.listener.take());
        }
    }
}

impl Stream for WatchStream {
    type Item = ChangeEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<ChangeEvent>> {
        let Self { watch, listener } = &mut *self;
        if sys::is_forked() {
            return Poll::Ready(None);
        }
        loop {
            if let Some(event) = watch.take() {
                *listener = None;
                return Poll::Ready(Some(event));
            }
            match listener {
                // Listen first, then look once more.
                None => *listener = Some(watch.changed.listen()),
                Some(listening) => {
                    ready!(Pin::new(listening).poll(context));
                    *listener = None;
                }
            }
        }
    }
}

/// What was noticed at a path, until the consumer takes it.
struct Watch {
    path: PathBuf,
    state: Mutex<State>,
    /// Notified when the state has changed.
    changed: Event,
}

#[derive(Debug)]
struct State {
    /// Each kind at most once, by its last occurrence. So the last one of `Modified` and `Removed`
    /// tells whether a file is there.
    pending: Vec<ChangeKind>,
    /// A file is at the path.
    is_there: bool,
    /// How many times a file was noticed there, or its absence.
    sightings: u64,
    /// The consumer is gone.
    is_over: bool,
}

impl Watch {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            state: Mutex::new(State {
                pending: Vec::new(),
                is_there: true,
                sightings: 0,
                is_over: false,
            }),
            changed: Event::new(),
        }
    }

    fn path(&self) -> &Path {
        &self.path
    }

    /// Notes a change. Takes a short lock, and calls wakers after that.
    fn note(&self, kind: ChangeKind) {
        self.note_if(kind, |_| true);
    }

    /// Notes a change, unless a file or its absence was noticed since there were `sightings`.
    fn note_unless_seen(&self, kind: ChangeKind, sightings: u64) {
        self.note_if(kind, |state| state.sightings == sightings);
    }

    fn note_if(&self, kind: ChangeKind, condition: impl FnOnce(&State) -> bool) {
        {
            let mut state = lock(&self.state);
            if !condition(&state) {
                return;
            }
            let was_there = state.is_there;
            if kind != ChangeKind::Metadata {
                state.sightings += 1;
                state.is_there = kind == ChangeKind::Modified;
            }
            if !was_there && kind != ChangeKind::Modified {
                // The removal was noted before.
                return;
            }
            state.pending.retain(|other| *other != kind);
            state.pending.push(kind);
        }
        self.changed.notify();
    }

    fn sightings(&self) -> u64 {
        lock(&self.state).sightings
    }

    fn is_there(&self) -> bool {
        lock(&self.state).is_there
    }

    fn take(&self) -> Option<ChangeEvent> {
        let mut state = lock(&self.state);
        let kind = (!state.pending.is_empty()).then(|| state.pending.remove(0))?;
        Some(ChangeEvent {
            offset: None,
            len: None,
            kind,
        })
    }

    /// Calls the callback for every change, until the consumer is gone.
    fn call(&self, mut callback: impl FnMut(ChangeEvent)) {
        loop {
            // Listen first, then look.
            let changed = self.changed.listen();
            if lock(&self.state).is_over {
                break;
            }
            match self.take() {
                Some(event) => drop(contain(|| callback(event))),
                None => changed.wait(None),
            }
        }
        // Foreign code as well: what it has captured is dropped.
        contain(|| drop(callback));
    }

    /// Has [`call`](Self::call) return.
    fn end(&self) {
        lock(&self.state).is_over = true;
        self.changed.notify();
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(mmap_io_loom)))]
mod tests {
    use super::ChangeKind::{Metadata, Modified, Removed};
    use super::*;

    fn pending(watch: &Watch) -> Vec<ChangeKind> {
        std::iter::from_fn(|| watch.take())
            .map(|event| event.kind)
            .collect()
    }

    #[test]
    fn removal_is_reported_once() {
        let watch = Watch::new(PathBuf::from("data"));
        watch.note(Removed);
        assert_eq!(pending(&watch), [Removed]);
        watch.note(Removed);
        watch.note(Metadata);
        assert_eq!(pending(&watch), []);
        watch.note(Modified);
        watch.note(Removed);
        assert_eq!(pending(&watch), [Modified, Removed]);
    }

    #[test]
    fn late_look_does_not_count() {
        let watch = Watch::new(PathBuf::from("data"));
        let before = watch.sightings();
        watch.note(Metadata);
        watch.note_unless_seen(Removed, before);
        assert_eq!(pending(&watch), [Metadata, Removed]);
        watch.note(Modified);
        watch.note_unless_seen(Removed, before);
        assert_eq!(pending(&watch), [Modified]);
        assert!(watch.is_there());
    }
}
