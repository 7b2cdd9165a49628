//! The handle, and what can be asked of it. Its operations are in the files beside, one for each
//! concern.

// The page of `MemoryMappedFile` lists the methods in the order of these lines; the methods of this
// file come last. The empty lines keep `rustfmt` from sorting them.
mod builder;
mod open;

#[cfg(feature = "cow")]
#[cfg_attr(docsrs, doc(cfg(feature = "cow")))]
mod cow;

#[allow(unsafe_code)]
mod read;

#[allow(unsafe_code)]
mod bytes;

mod pinned;

mod regions;

mod read_ahead;

#[cfg(feature = "iterator")]
#[cfg_attr(docsrs, doc(cfg(feature = "iterator")))]
mod iterate;

mod write;

mod append;

#[cfg(feature = "iterator")]
#[cfg_attr(docsrs, doc(cfg(feature = "iterator")))]
mod iterate_mut;

mod flush;

mod resize;

mod pages;

#[cfg(feature = "advise")]
#[allow(unsafe_code)]
mod advise;

#[cfg(feature = "locking")]
#[cfg_attr(docsrs, doc(cfg(feature = "locking")))]
mod page_lock;

mod copy;

mod huge;

mod at_path;

#[allow(unsafe_code)]
mod raw;

use std::fmt;
use std::fs::{File, Metadata};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[cfg(all(feature = "watch", any(unix, windows)))]
pub(crate) use self::at_path::is_absent;
pub use self::builder::MemoryMappedFileBuilder;
#[cfg(feature = "iterator")]
pub use self::iterate::{ChunkIterator, OwnedChunkIterator};
#[cfg(feature = "iterator")]
pub use self::iterate_mut::ChunkIteratorMut;
use self::pinned::PinnedRanges;
pub(crate) use self::read_ahead::ReadAhead;
use crate::descriptor::Descriptor;
use crate::error::{MmapIoError, Result, Subject};
use crate::fairness::operation;
use crate::flush::FlushPolicy;
use crate::lease::{LeaseHost, Leases, Under};
use crate::map::Protection;
use crate::mode::MmapMode;
use crate::offload::offload;
use crate::open_file::{HandleRef, OpenFile};
use crate::range::ByteRange;
use crate::sys;

/// A handle on a memory-mapped file.
///
/// A handle is a reference: clones share the file, its mode and its policy. Handles that are
/// opened on the same file, also by different paths, share their leases, so that no write through
/// one handle changes a view of another handle.
///
/// Methods that may block are `async` and run on the [`blocking`](https://docs.rs/blocking) pool,
/// under any runtime or none. The other methods never wait, except where they say so.
///
/// An operation on the pool costs the way there and back, 20 to 40 us, besides what it does. A
/// durable operation costs a flush of the disk as well, from some 100 us to milliseconds, which
/// operations that wait at the same time share. The crate page has tables of what each
/// [read](crate#which-read) and [write](crate#which-write) costs.
///
/// # Ranges
///
/// Offsets and lengths are `u64`, in bytes. A range that does not lie inside the file is refused as
/// a whole, and is never cut short. Every method checks its arguments in this order, before it
/// changes anything:
/// 1. A range of no bytes is accepted at any offset, in any mode and under any view, and does
///    nothing (atomic views check the mode, the alignment and the bounds of no words as well).
/// 2. [`InvalidMode`](MmapIoError::InvalidMode): what the handle may do.
/// 3. [`Misaligned`](MmapIoError::Misaligned): the alignment of atomic words.
/// 4. [`OutOfBounds`](MmapIoError::OutOfBounds): the length of the file.
/// 5. [`Busy`](MmapIoError::Busy), or the wait, for what overlaps the range.
///
/// A file has at most 128 TiB (2 GiB - 1 on 32-bit platforms).
///
/// Dropping the last handle and the last `Bytes` closes the file. Where closing may take time, as
/// for a file that may be written, a thread of the pool closes it after the drop;
/// [`close`](Self::close)`().await` returns when that is done.
///
/// # Examples
///
/// ```
/// # futures_lite::future::block_on(async {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("data");
/// use mmap_io::MemoryMappedFile;
///
/// let file = MemoryMappedFile::create_rw(&path, 1 << 20).await?;
/// file.update_region_async(4096, b"durable when this returns").await?;
/// assert_eq!(file.as_slice(4096, 7)?, b"durable");
/// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[doc(alias = "mmap")]
#[derive(Clone)]
pub struct MemoryMappedFile {
    pub(crate) handle: Arc<Handle>,
    /// A copy of what a read needs of the handle, so that a loop of reads keeps it in registers.
    shared: Arc<OpenFile>,
    protection: Protection,
    /// A copy of [`OpenFile::is_private`], for the same reason.
    is_private: bool,
}

/// What the clones of a handle share.
pub(crate) struct Handle {
    pub(crate) shared: HandleRef,
    pub(crate) mode: MmapMode,
    pub(crate) policy: FlushPolicy,
    path: PathBuf,
    /// The same path, made absolute.
    pub(crate) location: PathBuf,
    was_created: bool,
    /// The ranges that [`MemoryMappedFile::as_slice_bytes`] has returned.
    pinned: Mutex<PinnedRanges>,
}

/// Counters and queue lengths of a file, which [`MemoryMappedFile::stats`] returns.
///
/// They cover all handles of the file together, except that a writable copy-on-write handle and its
/// clones have their own. `mapped_bytes`, `pending_bytes`, `queued_writes`,
/// `queued_bytes`, `oldest_blocked` and `views` are values of the moment; everything else counts
/// from the time the file was opened by its first handle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Bytes of the file that are mapped, once for each protection in use.
    pub mapped_bytes: u64,
    /// Distinct bytes written and not flushed.
    pub pending_bytes: u64,
    /// Writes and other exclusive operations that wait in the queue.
    pub queued_writes: usize,
    /// Bytes of data that the queued writes hold.
    pub queued_bytes: usize,
    /// How long the oldest write that a view blocks has been waiting.
    pub oldest_blocked: Option<Duration>,
    /// Views that are alive: slices, mutable slices, atomic views, `Bytes`.
    pub views: usize,
    /// Writes applied.
    pub updates: u64,
    /// Those of them that were applied where they were polled, without a job on the thread pool.
    pub inline_updates: u64,
    /// Flushes run.
    pub flushes: u64,
    /// Durable operations that those flushes have completed; many operations share a flush.
    pub flushed_waiters: u64,
    /// Jobs given to the thread pool.
    pub pool_hops: u64,
    /// Times a range that a reader asked for was in memory already. Reads of more than 4 MiB, or of
    /// more than 16 ranges, are not looked at, and count neither here nor as misses.
    pub resident_hits: u64,
    /// Times such a range had to be read in.
    pub resident_misses: u64,
    /// Bytes of the ranges that were read in, resident parts included.
    pub bytes_read_in: u64,
    /// Time that reads have waited for their pages, the wait for a thread of the pool included.
    pub read_in_time: Duration,
    /// Writes that failed.
    pub write_errors: u64,
    /// Flushes that failed: 0 or 1, since the first error sticks to the file.
    pub flush_errors: u64,
}

impl MemoryMappedFile {
    /// Returns the mode of the mapping.
    pub fn mode(&self) -> MmapMode {
        self.handle.mode
    }

    /// Returns `true` if writes through the handle go to private pages: if it is a writable
    /// [`CopyOnWrite`](MmapMode::CopyOnWrite) handle.
    pub fn is_cow_writable(&self) -> bool {
        self.is_private
    }

    /// Returns `true` if the file is mapped for writing in this process: if another handle, or this
    /// one, has been opened on it that may write to the file.
    ///
    /// It stays `true` until the last handle and view of the file are gone, also if those that write
    /// go before. Until then, a time of modification may be older than the content: stores through a
    /// mapping move it late ([details](crate#the-time-of-modification)). A writable
    /// [`CopyOnWrite`](MmapMode::CopyOnWrite) handle does not write to the file, and does not count.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("data");
    /// # std::fs::write(&path, b"some bytes")?;
    /// use mmap_io::MemoryMappedFile;
    ///
    /// let reader = MemoryMappedFile::open_ro(&path).await?;
    /// assert!(!reader.is_mapped_for_writing());
    /// let writer = MemoryMappedFile::open_rw(&path).await?;
    /// assert!(reader.is_mapped_for_writing());
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn is_mapped_for_writing(&self) -> bool {
        self.shared.file_itself().is_mapped_for_writing()
    }

    /// Returns the length of the file in bytes.
    ///
    /// A writable [`CopyOnWrite`](MmapMode::CopyOnWrite) handle keeps the length at which it was
    /// opened when the file grows, and follows the file when it is cut.
    #[inline]
    pub fn len(&self) -> u64 {
        self.handle.shared.len()
    }

    /// Returns `true` if the file has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the length of the file in bytes: [`len`](Self::len) under its old name.
    ///
    /// # Errors
    ///
    /// None.
    pub fn current_len(&self) -> Result<u64> {
        Ok(self.len())
    }

    /// Returns the path that was used to open the file.
    pub fn path(&self) -> &Path {
        &self.handle.path
    }

    /// Returns `true` if the call that opened this handle created the file, and `false` if the file
    /// was there.
    ///
    /// Of several processes and tasks that [open or create](Self::open_or_create) a file at the
    /// same time, one creates it; only where the path is a symbolic link to a file that is not
    /// there, several may be told that they did. A file that was there without bytes, for example
    /// since its creator has not given it its length yet, or has crashed before, was not created.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("data");
    /// use mmap_io::MemoryMappedFile;
    ///
    /// let file = MemoryMappedFile::open_or_create(&path, 4096).await?;
    /// if file.was_created() {
    ///     file.update_region_async(0, b"header").await?;
    /// }
    /// let again = MemoryMappedFile::open_or_create(&path, 4096).await?;
    /// assert!(file.was_created() && !again.was_created());
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn was_created(&self) -> bool {
        self.handle.was_created
    }

    /// Returns the policy by which writes through this handle are flushed;
    /// [`Never`](FlushPolicy::Never) for a read-only or copy-on-write handle.
    pub fn flush_policy(&self) -> FlushPolicy {
        self.handle.policy
    }

    /// Returns the number of distinct bytes that are written and not flushed, through any handle
    /// on the file; 0 for a read-only or copy-on-write handle.
    ///
    /// A byte that is being flushed counts until the flush has succeeded. Of thousands of ranges
    /// far from each other, whole pages are counted, or larger pieces.
    pub fn pending_bytes(&self) -> u64 {
        match self.handle.mode {
            // In a forked child the lock may stay locked forever.
            MmapMode::ReadWrite if !sys::is_forked() => self.handle.shared.dirty().bytes(),
            MmapMode::ReadWrite | MmapMode::ReadOnly | MmapMode::CopyOnWrite => 0,
        }
    }

    /// Returns the error of the first failed flush, if any, which sticks to the file.
    ///
    /// Every durable operation fails with it until the last handle and `Bytes` of the file are
    /// gone: what a failed flush has lost, no later flush can bring back.
    pub fn last_flush_error(&self) -> Option<MmapIoError> {
        self.handle.shared.commits().failure()
    }

    /// Returns counters and queue lengths of the file, for metrics.
    ///
    /// Takes short locks: not meant for hot paths.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 4096).await?;
    /// let view = file.as_slice(0, 10)?;
    /// file.update_region(10, b"data").await?;
    /// let stats = file.stats();
    /// assert_eq!((stats.views, stats.updates, stats.pending_bytes), (1, 1, 4));
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn stats(&self) -> Stats {
        let shared = &self.handle.shared;
        let (backlog, pending, views) = match sys::is_forked() {
            false => (
                shared.queue().backlog(),
                shared.dirty().bytes(),
                shared.leases().count(),
            ),
            // The locks may stay locked forever.
            true => Default::default(),
        };
        let commits = shared.commits();
        // Relaxed: nothing follows from a counter.
        let drains = shared.queue().drains.load(Ordering::Relaxed);
        let inline = shared.counters.inline_writes.load(Ordering::Relaxed);
        let failed = shared.queue().failed_writes.load(Ordering::Relaxed);
        Stats {
            mapped_bytes: shared.mapped_bytes(),
            pending_bytes: pending,
            queued_writes: backlog.operations,
            queued_bytes: backlog.bytes as usize,
            oldest_blocked: backlog.oldest,
            views,
            updates: shared.counters.writes.load(Ordering::Relaxed) + inline,
            inline_updates: inline,
            flushes: commits.flushes.load(Ordering::Relaxed),
            flushed_waiters: commits.served.load(Ordering::Relaxed),
            pool_hops: drains + shared.counters.hops.load(Ordering::Relaxed),
            resident_hits: shared.counters.resident_hits.load(Ordering::Relaxed),
            resident_misses: shared.counters.resident_misses.load(Ordering::Relaxed),
            bytes_read_in: shared.counters.bytes_read_in.load(Ordering::Relaxed),
            read_in_time: Duration::from_nanos(
                shared.counters.read_in_nanos.load(Ordering::Relaxed),
            ),
            write_errors: shared.counters.write_errors.load(Ordering::Relaxed) + failed,
            flush_errors: u64::from(commits.failure().is_some()),
        }
    }

    /// Returns the length, times and permissions of the file, from the file system.
    ///
    /// The system is asked through the descriptor, so a path that was removed or replaced does not
    /// matter.
    ///
    /// # Errors
    ///
    /// [`Io`](MmapIoError::Io), as of [`File::metadata`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub fn metadata(&self) -> impl Future<Output = Result<Metadata>> + Send + 'static {
        let handle = self.handle.clone();
        operation("asking for the metadata", Subject::Nothing, async move {
            let file = handle.file().clone();
            Ok(handle.run_on_pool(move |_| file.metadata()).await?)
        })
    }
}

impl MemoryMappedFile {
    pub(crate) fn new(
        shared: HandleRef,
        mode: MmapMode,
        policy: FlushPolicy,
        path: PathBuf,
        location: PathBuf,
        was_created: bool,
    ) -> Self {
        Self::of(Arc::new(Handle {
            shared,
            mode,
            policy,
            path,
            location,
            was_created,
            pinned: Mutex::default(),
        }))
    }

    /// Makes the handle behind anonymous memory.
    pub(crate) fn of_memory(shared: HandleRef) -> Self {
        Self::of(Arc::new(Handle {
            shared,
            mode: MmapMode::ReadWrite,
            policy: FlushPolicy::Never,
            path: PathBuf::new(),
            location: PathBuf::new(),
            was_created: false,
            pinned: Mutex::default(),
        }))
    }

    fn of(handle: Arc<Handle>) -> Self {
        Self {
            shared: Arc::clone(&handle.shared),
            protection: handle.protection(),
            is_private: handle.shared.is_private(),
            handle,
        }
    }

    /// Unmaps the file without a flush and returns its descriptor, or the handle if it is in use.
    ///
    /// It is in use while another clone of the handle, or a `Bytes` made through it, is alive.
    /// Writes are not flushed; [`close`](Self::close) does that. Other handles that were opened
    /// on the file keep it mapped for themselves.
    ///
    /// # Errors
    ///
    /// The handle itself, while clones of it or `Bytes` are alive, or if the process has no
    /// descriptor left.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 4096).await?;
    /// let plain = file.unmap().map_err(|_| "the handle is in use")?;
    /// assert_eq!(plain.metadata()?.len(), 4096);
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn unmap(self) -> Result<File, Self> {
        let handle = Arc::try_unwrap(self.handle).map_err(Self::of)?;
        // A copy of the descriptor, since the file's own jobs may still hold it for a moment.
        match handle.file().try_clone() {
            Ok(file) => Ok(file),
            Err(_) => Err(Self::of(Arc::new(handle))),
        }
    }
}

impl Handle {
    pub(crate) fn protection(&self) -> Protection {
        match self.mode {
            MmapMode::ReadWrite => Protection::ReadWrite,
            MmapMode::CopyOnWrite if self.shared.is_private() => Protection::ReadWrite,
            MmapMode::ReadOnly | MmapMode::CopyOnWrite => Protection::Read,
        }
    }

    /// Whether the handle may write: the file, or private pages.
    pub(crate) fn may_write(&self) -> bool {
        self.protection() == Protection::ReadWrite
    }

    /// Fails unless the handle may write. What is about the file itself, such as its length,
    /// requires the mode instead.
    pub(crate) fn require_write(&self) -> Result<()> {
        match self.may_write() {
            true => Ok(()),
            false => self.mode.require_write(),
        }
    }

    /// The range, if it is inside the file; `None` for no bytes, which are accepted anywhere.
    pub(crate) fn range(&self, offset: u64, len: u64) -> Result<Option<ByteRange>> {
        match len {
            0 => Ok(None),
            len => {
                let range = ByteRange::new(offset, len, self.shared.len())?;
                self.shared.check_whole(self.protection())?;
                Ok(Some(range))
            }
        }
    }

    /// The descriptor of the file, which all handles with the same protection share.
    ///
    /// # Panics
    ///
    /// For anonymous memory, whose handle only [`AnonymousMmap`](crate::AnonymousMmap) has.
    pub(crate) fn file(&self) -> &Arc<Descriptor> {
        self.shared.descriptor(self.protection())
    }

    /// Runs a job on the pool with the file, which it keeps open.
    pub(crate) fn run_on_pool<T, E>(
        &self,
        job: impl FnOnce(&Arc<OpenFile>) -> Result<T, E> + Send + 'static,
    ) -> impl Future<Output = Result<T, E>> + Send + 'static
    where
        T: Send + 'static,
        E: From<io::Error> + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        shared.counters.hops.fetch_add(1, Ordering::Relaxed);
        offload(move || job(&shared))
    }
}

impl LeaseHost for Handle {
    fn leases(&self) -> &Leases {
        self.shared.leases()
    }

    fn len(&self) -> u64 {
        self.shared.len()
    }

    fn restart(&self, gone: ByteRange) {
        self.shared.restart(gone);
    }

    fn under(&self) -> Option<Under<'_>> {
        self.shared.under()
    }
}

impl fmt::Debug for MemoryMappedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryMappedFile")
            .field("path", &self.handle.path)
            .field("mode", &self.handle.mode)
            .field("len", &self.len())
            .finish()
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

#[cfg(unix)]
impl std::os::unix::io::AsFd for MemoryMappedFile {
    fn as_fd(&self) -> std::os::unix::io::BorrowedFd<'_> {
        self.handle.file().as_fd()
    }
}

#[cfg(unix)]
impl std::os::unix::io::AsRawFd for MemoryMappedFile {
    fn as_raw_fd(&self) -> std::os::unix::io::RawFd {
        self.handle.file().as_raw_fd()
    }
}

#[cfg(windows)]
impl std::os::windows::io::AsHandle for MemoryMappedFile {
    fn as_handle(&self) -> std::os::windows::io::BorrowedHandle<'_> {
        self.handle.file().as_handle()
    }
}

#[cfg(windows)]
impl std::os::windows::io::AsRawHandle for MemoryMappedFile {
    fn as_raw_handle(&self) -> std::os::windows::io::RawHandle {
        self.handle.file().as_raw_handle()
    }
}
