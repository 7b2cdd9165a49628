//! Private pages over a file: what a writable copy-on-write handle and its clones share.
//!
//! They are an [`OpenFile`] of their own, which the registry does not know, with a private map, a
//! lease table and a queue. So everything else works on them as on any file. Their *origin* is the
//! `OpenFile` of the file: pages that were never stored to show it, and the first store to a page
//! copies it. Three rules follow:
//!
//! 1. Each lease comes with a shared lease on the origin ([`crate::lease::Under`]). So no write to
//!    the file changes bytes under a view, no store copies a page with half of such a write, and a
//!    shrink of the file waits for the views of the tail that it cuts.
//! 2. A write needs the lease on the origin before it makes the pages writable, since that copies
//!    them. The drain does not wait for the lease: the write is deferred like one that a view
//!    blocks, and the [`Watch`] has the queue try it again. Nothing waits for the private pages
//!    while it holds a lease on the origin.
//! 3. A cut of the file takes the private pages behind the cut as well: the kernel discards them.
//!    So the length never grows, and the origin lowers it with each cut, before the file is cut
//!    ([`cut_private`](OpenFile::cut_private)): a reader that finds its pages missing then sees the
//!    new length. The cut has its exclusive lease until then: otherwise a file that grows again
//!    would show zeroes where private bytes were.
//!
//! A copy-on-write handle that may not write has no private pages, and is an ordinary reader of the
//! file.
//!
//! Alternative not taken: one lease, in a table of the origin that all share, with the file's
//! writers looking through the tables of the private pages. Reads would be as fast as those of a
//! file, and a write would need its lease in several tables at once, with a way back from each.

use std::fs::File;
use std::future::Future;
use std::io::{Seek, SeekFrom, Write};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Wake, Waker};

use super::{HandleRef, OpenFile, OwnedLease};
use crate::error::Result;
use crate::lease::{Companions, Conflict, Hold, Lease, LeaseHost, Refused, Under};
use crate::map::{Backing, Map, Protection};
use crate::queue::Queue;
use crate::range::{check_size, ByteRange, PageRange};
use crate::residency;
use crate::sync::lock;
use crate::sys::{self, FsTraits};
use crate::wakers::scope;

/// How many bytes of private pages are copied into another file at a time; those that are all
/// zeroes become holes.
const PIECE: u64 = 64 << 10;

/// The file that private pages are copies of, and what they hold of it.
#[derive(Debug)]
pub(super) struct Origin {
    file: Arc<OpenFile>,
    /// Makes the private pages a user of the file, while they have users themselves.
    in_use: Mutex<Option<HandleRef>>,
    companions: Companions,
    watch: Mutex<Option<Watch>>,
}

/// Waits for the end of a lease on the origin that blocks operations of the private pages. There is
/// one for all operations, so that operations which were withdrawn leave nothing behind.
struct Watch {
    /// A hull of the pages that blocked operations need.
    hull: ByteRange,
    /// Keeps the waker registered; not polled again.
    _listening: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Origin {
    /// Called when the private pages have got a user.
    pub(super) fn begin_use(&self) {
        // In a scope, since a new user of the file wakes the openings that wait for its end: their
        // wakers run without the lock.
        scope(|| {
            lock(&self.in_use).get_or_insert_with(|| HandleRef::new(self.file.clone()));
        });
    }

    /// Called when the private pages have perhaps lost their last user; `users` counts them. A job
    /// may keep the pages for a moment longer.
    pub(super) fn end_use(&self, users: &AtomicUsize) {
        let mut in_use = lock(&self.in_use);
        // Under the lock: a new user counts itself first, and then finds what this leaves.
        let ended = match users.load(Ordering::SeqCst) {
            0 => in_use.take(),
            _ => None,
        };
        drop(in_use);
        drop(ended);
    }

    pub(super) fn under(&self) -> Under<'_> {
        Under {
            file: &*self.file,
            companions: &self.companions,
        }
    }

    /// Takes a shared lease on the pages of each range. `None` if that has to wait: then the queue
    /// of `private` tries the operation again when it may succeed.
    fn hold(&self, private: &Arc<OpenFile>, ranges: &[ByteRange]) -> Option<Vec<OwnedLease>> {
        let page_size = sys::page_size();
        let pages = PageRange::merged(ranges.iter().map(|range| range.to_pages(page_size)));
        let lease = |pages: &PageRange| {
            Lease::try_shared(Arc::clone(&self.file), Hold::Work, (*pages).into())
        };
        let all = || pages.iter().map(lease).collect::<Result<Vec<_>, Refused>>();
        if let Ok(leases) = all() {
            return Some(leases);
        }
        let hull = pages.iter().copied().map(ByteRange::from);
        let hull = hull.reduce(ByteRange::hull)?;
        self.watch(private, hull);
        // Once more: the lease may have ended before the watch began.
        match all() {
            Ok(leases) => Some(leases),
            Err((conflict, _)) => {
                // A gate lasts at most a millisecond, and its end tells no listener.
                if let Conflict::Gate(_) = conflict {
                    Queue::restart(private, hull);
                }
                None
            }
        }
    }

    /// Watches `pages` together with what is watched already. Only the drain of `private` calls it.
    fn watch(&self, private: &Arc<OpenFile>, pages: ByteRange) {
        let hull = match &*lock(&self.watch) {
            Some(watch) => watch.hull.hull(pages),
            None => pages,
        };
        let retry = Arc::new(Retry {
            private: Arc::downgrade(private),
            hull,
        });
        let file = Arc::clone(&self.file);
        let mut listening = Box::pin(async move { file.leases().listen(hull).await });
        // The new watch begins before the old one ends, and no lock is held, since the poll may
        // wake `retry`.
        let waker = Waker::from(retry.clone());
        if listening
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_ready()
        {
            return retry.wake();
        }
        let watch = Watch {
            hull,
            _listening: listening,
        };
        let old = lock(&self.watch).replace(watch);
        drop(old);
    }
}

/// Has the queue of private pages try its blocked operations again.
struct Retry {
    private: Weak<OpenFile>,
    hull: ByteRange,
}

impl Wake for Retry {
    fn wake(self: Arc<Self>) {
        // Without a reference there is no operation: each keeps the pages.
        let Some(private) = self.private.upgrade() else {
            return;
        };
        // This may be a later watch than that of this waker: then its operations are tried as well,
        // and watch again.
        let watch = private
            .origin
            .as_ref()
            .and_then(|origin| lock(&origin.watch).take());
        let hull = watch.as_ref().map_or(self.hull, |watch| watch.hull);
        Queue::restart(&private, self.hull.hull(hull));
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("hull", &self.hull)
            .finish_non_exhaustive()
    }
}

/// A cut of the private pages over a file. While it lives, no private pages are opened: they would
/// get a length that an [`undo`](Self::undo) does not know of.
#[must_use]
pub(super) struct PrivateCut<'a> {
    /// Dropped first, since the references below may be the last ones.
    #[allow(dead_code)]
    all: MutexGuard<'a, Vec<Weak<OpenFile>>>,
    /// All private pages, with their lengths before the cut.
    lengths: Vec<(Arc<OpenFile>, u64)>,
}

impl PrivateCut<'_> {
    /// Gives the pages their lengths back, because the file was not cut.
    pub(super) fn undo(self) {
        for (private, len) in &self.lengths {
            // Release: as every store of a length. Only cuts change it, and there is one at a time.
            private.hot.len.store(*len, Ordering::Release);
        }
    }
}

impl OpenFile {
    /// Maps private pages over all of a file, for reading and writing. Blocks.
    ///
    /// # Errors
    ///
    /// `ResizeFailed` if the file is empty, `Io` if the system refuses the map.
    pub(crate) fn private_pages(file: &Arc<Self>) -> Result<Arc<Self>> {
        let shown = file.mapped[Protection::Read as usize].get();
        let shown = shown.expect("the handle has mapped the file to read it");
        // Where files are copied up, the current map is the one that shows the file.
        let current = shown.current();
        let backing = current.as_deref().map_or(&shown.backing, Map::backing);
        let descriptor = backing.descriptor().expect("it maps a file").clone();
        let fs_traits = FsTraits {
            // A write to the descriptor would not show in a page that was copied.
            coherent_writes: false,
            ..shown.fs_traits
        };
        let (private, len) = {
            // Under this lock, so that a cut either shows in the length here, or finds the pages.
            let mut all = lock(&file.private);
            let len = file.len();
            check_size(len)?;
            let origin = Origin {
                file: file.clone(),
                in_use: Mutex::default(),
                companions: Companions::new(),
                watch: Mutex::default(),
            };
            let private = Self::new(None, Some(origin), len);
            all.retain(|other| other.strong_count() > 0);
            all.push(Arc::downgrade(&private));
            (private, len)
        };
        let backing = Backing::Private(descriptor);
        // Not its length of now: a cut may have lowered that, and may still be refused.
        let map = Map::new(&backing, len, Protection::ReadWrite)?;
        private
            .huge_pages
            .store(file.huge_pages.load(Ordering::Relaxed), Ordering::Relaxed);
        private.set_map(Some(map), backing, fs_traits, Protection::ReadWrite);
        Ok(private)
    }

    /// Whether these are private pages over a file.
    pub(crate) fn is_private(&self) -> bool {
        self.origin.is_some()
    }

    /// Returns the file itself: for private pages their origin.
    pub(crate) fn file_itself(self: &Arc<Self>) -> Arc<Self> {
        match &self.origin {
            Some(origin) => Arc::clone(&origin.file),
            None => self.clone(),
        }
    }

    /// Takes what an operation on `ranges` needs of the origin, for its duration; nothing if these
    /// are no private pages. `None` if that has to wait: then the operation is tried again later.
    pub(super) fn hold_origin(self: &Arc<Self>, ranges: &[ByteRange]) -> Option<Vec<OwnedLease>> {
        match &self.origin {
            Some(origin) => origin.hold(self, ranges),
            None => Some(Vec::new()),
        }
    }

    /// Takes what a job on the pages of `range` needs of the origin; nothing if these are no
    /// private pages. The caller has an exclusive lease on the range, which the job may outlast.
    #[cfg_attr(not(feature = "iterator"), allow(dead_code))]
    pub(crate) fn hold_origin_again(&self, range: ByteRange) -> Option<OwnedLease> {
        let origin = self.origin.as_ref()?;
        // Under the companion of the caller's lease.
        let pages = range.to_pages(sys::page_size());
        let file = Arc::clone(&origin.file);
        Some(Lease::shared_again(file, Hold::Work, pages.into()))
    }

    /// Cuts the private pages over this file, which is being cut to `len` bytes. The caller has an
    /// exclusive lease on what is cut off, unless another process has cut it.
    pub(super) fn cut_private(&self, len: u64) -> PrivateCut<'_> {
        let all = lock(&self.private);
        let lengths: Vec<(Arc<Self>, u64)> = all
            .iter()
            .filter_map(Weak::upgrade)
            .map(|private| {
                // Release: as every store of a length.
                let old = private.hot.len.fetch_min(len, Ordering::Release);
                if len < old {
                    private.cuts.fetch_add(1, Ordering::SeqCst);
                    private.hot.leases.recheck(ByteRange::between(len, old));
                }
                (private, old)
            })
            .collect();
        PrivateCut { all, lengths }
    }

    /// Copies the first `len` bytes of private pages into an empty file. Blocks.
    ///
    /// # Panics
    ///
    /// If `snapshot` is not a lease on these pages.
    ///
    /// # Errors
    ///
    /// Those of reading the pages and of writing the file.
    pub(crate) fn copy_private(
        &self,
        mut destination: &File,
        len: u64,
        snapshot: &OwnedLease,
    ) -> Result<()> {
        assert!(std::ptr::eq(&**snapshot.host(), self));
        let mapped = self.writable()?;
        let map = self.map(Protection::ReadWrite);
        let map = map.expect("private pages have a map");
        destination.set_len(len)?;
        let mut start = 0;
        while start < len {
            let range = ByteRange::between(start, len.min(start + PIECE));
            residency::populate_read(&map, &mapped.backing, range)?;
            // SAFETY: `map` keeps the map live, and the snapshot's shared lease, which covers all
            // bytes below its length, keeps every writer off.
            let bytes = unsafe { map.span(range).as_slice() };
            if bytes.iter().any(|byte| *byte != 0) {
                destination.seek(SeekFrom::Start(start))?;
                destination.write_all(bytes)?;
            }
            start = range.end();
        }
        self.check_maps()
    }
}
