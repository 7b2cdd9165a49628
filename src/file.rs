//! The handle, and reading through it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, Metadata};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::descriptor::Descriptor;
use crate::error::{MmapIoError, Result, Subject};
use crate::fairness::{copied, operation};
use crate::flush::FlushPolicy;
use crate::lease::{try_shared, wait, wait_briefly, Lease, LeaseHost, Leases, Token};
use crate::map::{no_bytes, Protection};
use crate::mode::MmapMode;
use crate::offload::{check, offload};
use crate::open_file::{OpenFile, OwnedLease, User};
use crate::range::ByteRange;
use crate::residency;
use crate::sys;
use crate::view::MappedSlice;

/// A memory-mapped file.
///
/// A handle is a reference: clones share the file, its mode and its policy. Handles that are
/// opened on the same file, by whatever path, know of each other, so that no view of one is
/// changed by a write of another.
///
/// Methods that may block are `async` and run on the [`blocking`](https://docs.rs/blocking) pool,
/// under any runtime or none. The others never wait, except where they say so.
///
/// Dropping the last handle and the last `Bytes` closes the file. Where that may take time, as it
/// does for a file that may be written, it goes on on the pool after the drop;
/// [`close`](Self::close)`().await` ends after it.
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
#[derive(Clone)]
pub struct MemoryMappedFile {
    pub(crate) handle: Arc<Handle>,
    /// What a read needs of the handle, here so that a loop of reads keeps it in registers.
    open: Arc<OpenFile>,
    protection: Protection,
}

/// What the clones of a handle share.
pub(crate) struct Handle {
    pub(crate) open: User,
    pub(crate) mode: MmapMode,
    pub(crate) policy: FlushPolicy,
    path: PathBuf,
    /// The same, from the root on.
    location: PathBuf,
    /// What [`MemoryMappedFile::as_slice_bytes`] has given out.
    kept: Mutex<Kept>,
}

/// Ranges that stay leased: by their start, with their end. No two of them touch: those that would
/// are one, so that a scan in small steps keeps one lease.
#[derive(Default)]
struct Kept(BTreeMap<u64, (u64, OwnedLease)>);

impl Kept {
    /// The ranges that share a byte with `range` or touch it.
    fn touching(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> + '_ {
        let up_to = self.0.range(..=range.end()).rev();
        let up_to = up_to.map(|(start, (end, _))| ByteRange::between(*start, *end));
        up_to.take_while(move |other| other.end() >= range.start())
    }

    /// Makes sure that `range` is leased, by what `lease` gets.
    fn keep(
        &mut self,
        range: ByteRange,
        lease: impl FnOnce(ByteRange) -> Result<OwnedLease>,
    ) -> Result<()> {
        if self.touching(range).any(|other| other.contains(range)) {
            return Ok(());
        }
        let joined: Vec<ByteRange> = self.touching(range).collect();
        let all = joined.iter().copied().fold(range, ByteRange::hull);
        // The new lease is there before those that it stands for go.
        let lease = lease(all)?;
        for other in joined {
            self.0.remove(&other.start());
        }
        self.0.insert(all.start(), (all.end(), lease));
        Ok(())
    }
}

/// What a file is doing; see [`MemoryMappedFile::stats`].
///
/// For all handles of the file together. `mapped_bytes`, `pending_bytes`, `queued_writes`,
/// `queued_bytes`, `oldest_blocked` and `views` are of the moment; everything else counts from the
/// time the file was opened by its first handle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Bytes of the file that are mapped, once for each protection in use.
    pub mapped_bytes: u64,
    /// Distinct bytes written and not flushed.
    pub pending_bytes: u64,
    /// Writes and other exclusive operations that wait in the queue.
    pub queued_writes: usize,
    /// Bytes of data that those writes hold.
    pub queued_bytes: usize,
    /// How long the oldest write that is held up by a view has been waiting.
    pub oldest_blocked: Option<Duration>,
    /// Views that are out: slices, mutable slices, `Bytes`.
    pub views: usize,
    /// Writes applied.
    pub updates: u64,
    /// Flushes run.
    pub flushes: u64,
    /// Durable operations served by those flushes.
    pub flushed_waiters: u64,
    /// Jobs given to the thread pool.
    pub pool_hops: u64,
    /// Times a range asked for was resident already. Ranges of more than 4 MiB are not looked at, and
    /// count neither here nor as misses.
    pub resident_hits: u64,
    /// Times it had to be read in.
    pub resident_misses: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Flushes that failed: 0, or 1, since the error sticks.
    pub flush_errors: u64,
}

impl MemoryMappedFile {
    /// Returns the mode of the mapping.
    pub fn mode(&self) -> MmapMode {
        self.handle.mode
    }

    /// Returns `true` if writes through the handle go to private pages; no file can be mapped so
    /// yet, see [`MmapMode::CopyOnWrite`].
    pub fn is_cow_writable(&self) -> bool {
        false
    }

    /// Returns the length of the file in bytes.
    #[inline]
    pub fn len(&self) -> u64 {
        self.handle.open.len()
    }

    /// Returns `true` if the file has no bytes, which only a read-only handle can see.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the same as [`len`](Self::len), under its old name.
    ///
    /// # Errors
    ///
    /// None.
    pub fn current_len(&self) -> Result<u64> {
        Ok(self.len())
    }

    /// Returns the path that the file was opened by.
    pub fn path(&self) -> &Path {
        &self.handle.path
    }

    /// Returns the policy by which writes through this handle are flushed; that of a handle that
    /// does not write is [`Never`](FlushPolicy::Never).
    pub fn flush_policy(&self) -> FlushPolicy {
        self.handle.policy
    }

    /// Returns the number of distinct bytes that were written through any handle on the file and
    /// not flushed. A byte that is being flushed counts until the flush has succeeded. 0 for a
    /// read-only handle. Of thousands of ranges far from each other, whole pages are counted.
    pub fn pending_bytes(&self) -> u64 {
        match self.handle.mode {
            MmapMode::ReadWrite => self.handle.open.pending().bytes(),
            MmapMode::ReadOnly | MmapMode::CopyOnWrite => 0,
        }
    }

    /// Returns the flush error that sticks to the file, if there is one: every durable operation
    /// fails with it until the last handle and `Bytes` of the file are gone.
    pub fn last_flush_error(&self) -> Option<MmapIoError> {
        self.handle.open.commits().failure()
    }

    /// Returns counters and queue lengths. Takes short locks; meant for metrics, not for hot paths.
    pub fn stats(&self) -> Stats {
        let open = &self.handle.open;
        let backlog = open.queue().backlog();
        let commits = open.commits();
        // Relaxed: nothing follows from a counter.
        let drains = open.queue().drains.load(Ordering::Relaxed);
        Stats {
            mapped_bytes: open.mapped_bytes(),
            pending_bytes: open.pending().bytes(),
            queued_writes: backlog.operations,
            queued_bytes: backlog.bytes as usize,
            oldest_blocked: backlog.oldest,
            views: open.leases().count(),
            updates: open.counters.writes.load(Ordering::Relaxed),
            flushes: commits.flushes.load(Ordering::Relaxed),
            flushed_waiters: commits.served.load(Ordering::Relaxed),
            pool_hops: drains + open.counters.hops.load(Ordering::Relaxed),
            resident_hits: open.counters.resident_hits.load(Ordering::Relaxed),
            resident_misses: open.counters.resident_misses.load(Ordering::Relaxed),
            write_errors: open.counters.write_errors.load(Ordering::Relaxed),
            flush_errors: u64::from(commits.failure().is_some()),
        }
    }

    /// Returns a zero-copy view of a range, without reading pages in.
    ///
    /// Costs no allocation, no lock and no system call. The bytes may not be resident: then the
    /// first touch of each page blocks the thread; [`slice`](Self::slice) makes sure before.
    ///
    /// # Errors
    ///
    /// - [`OutOfBounds`](MmapIoError::OutOfBounds)
    /// - [`Busy`](MmapIoError::Busy): a [`MappedSliceMut`](crate::MappedSliceMut) overlaps the
    ///   range, or a write of more than 1 MiB is being applied to it. [`slice`](Self::slice) waits
    ///   for both.
    ///
    /// # Blocking
    ///
    /// Waits for a write of at most 1 MiB that is being applied to these bytes right now: a matter
    /// of microseconds. A write that a steady stream of readers has kept out may hold off new
    /// readers of its range for up to 1 ms, at most once every 100 ms.
    /// [`try_as_slice`](Self::try_as_slice) waits for neither.
    #[inline(always)]
    pub fn as_slice(&self, offset: u64, len: u64) -> Result<MappedSlice<'_>> {
        loop {
            let slice = self.slice_or(offset, len, |open, range| {
                #[cold]
                fn wait(open: &OpenFile, range: ByteRange) -> Option<Token> {
                    let attempt = || try_shared(open, range);
                    wait_briefly(open.leases(), range, || open.len(), attempt).ok()
                }
                wait(open, range)
            });
            if let Some(slice) = slice {
                return Ok(slice);
            }
            if let Some(refusal) = self.refusal(offset, len) {
                return Err(*refusal);
            }
        }
    }

    /// Returns a zero-copy view of a range, or `None` instead of waiting.
    ///
    /// As [`as_slice`](Self::as_slice), but never waits: `None` where that would wait, or say
    /// `Busy`.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`](MmapIoError::OutOfBounds)
    #[inline(always)]
    pub fn try_as_slice(&self, offset: u64, len: u64) -> Result<Option<MappedSlice<'_>>> {
        let slice = self.slice_or(offset, len, |open, range| {
            #[cold]
            fn look_again(open: &OpenFile, range: ByteRange) -> Option<Token> {
                range.check(open.len()).ok()?;
                try_shared(open, range).ok()
            }
            look_again(open, range)
        });
        match slice {
            Some(slice) => Ok(Some(slice)),
            None => match self.out_of_bounds(offset, len) {
                Some(error) => Err(*error),
                None => Ok(None),
            },
        }
    }

    /// Returns a `&[u8]` that stays valid as long as the read-only handle.
    ///
    /// The range stays leased until the last clone of the handle is dropped, so that a write of
    /// another handle that overlaps it waits until then. Ranges asked for again cost nothing
    /// more, and ranges that touch each other share a lease. A call that fails keeps nothing.
    ///
    /// # Errors
    ///
    /// - [`InvalidMode`](MmapIoError::InvalidMode): the handle may write, and its writes would
    ///   wait for its own view.
    /// - Those of [`as_slice`](Self::as_slice).
    ///
    /// # Blocking
    ///
    /// As [`as_slice`](Self::as_slice).
    pub fn as_slice_bytes(&self, offset: u64, len: u64) -> Result<&[u8]> {
        if len == 0 {
            return Ok(no_bytes());
        }
        if self.handle.mode != MmapMode::ReadOnly {
            return Err(MmapIoError::invalid_mode(
                "a handle that may write would wait for its own view",
            ));
        }
        let open = &self.open;
        let range = ByteRange::new(offset, len, open.len())?;
        let mut kept = self
            .handle
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        kept.keep(range, |all| {
            let attempt = || Lease::try_owned(open.clone(), all);
            let lease = wait_briefly(open.leases(), all, || open.len(), attempt);
            // The caller asked for `range`.
            lease.map_err(|error| match error {
                MmapIoError::OutOfBounds { total, .. } => range.out_of_bounds(total),
                _ => range.busy(),
            })
        })?;
        drop(kept);
        let span = open.span(self.protection(), range)?;
        // SAFETY: every byte of the range is under a lease that lives as long as the handle,
        // which `self` borrows, and the handle keeps the map.
        Ok(unsafe { span.as_slice() })
    }

    /// Returns a zero-copy view of a range after reading its pages into memory.
    ///
    /// The pages are read in on the pool if they are not in memory. If all of at most 4 MiB are, on
    /// a local file system, there is no hop to the pool (about 1 us for 64 KiB); a larger range
    /// always hops. Waits for a write that is being applied to the range, and for a
    /// [`MappedSliceMut`](crate::MappedSliceMut) that overlaps it.
    ///
    /// # Errors
    ///
    /// - [`OutOfBounds`](MmapIoError::OutOfBounds)
    /// - [`Truncated`](MmapIoError::Truncated): another process has cut off bytes of the range.
    /// - [`Io`](MmapIoError::Io): the pages cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind but pages that are resident.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # std::fs::write(dir.path().join("data"), b"some bytes")?;
    /// let file = mmap_io::MemoryMappedFile::open_ro(dir.path().join("data")).await?;
    /// let slice = file.slice(5, 5).await?;
    /// assert_eq!(slice, b"bytes");
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub async fn slice(&self, offset: u64, len: u64) -> Result<MappedSlice<'_>> {
        operation("reading", (offset, len), self.resident_slice(offset, len)).await
    }

    /// Copies bytes of the file into `buffer`.
    ///
    /// The pages are made resident as by [`slice`](Self::slice), and then copied by the thread
    /// that polls.
    ///
    /// # Errors
    ///
    /// Those of [`slice`](Self::slice); then nothing was copied.
    ///
    /// # Cancel safety
    ///
    /// The bytes are copied in the last poll, all of them.
    pub async fn read_into(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let len = buffer.len() as u64;
        operation("reading", (offset, len), async {
            let slice = self.resident_slice(offset, len).await?;
            buffer.copy_from_slice(&slice);
            copied(buffer.len());
            Ok(())
        })
        .await
    }

    /// Returns what the file system knows of the file, through the descriptor: length, times,
    /// permissions, whatever has become of the path.
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
            Ok(handle.hop(move |_| file.metadata()).await?)
        })
    }

    /// Returns whether the path that the file was opened by still names this file: it was neither
    /// removed nor replaced by another one.
    ///
    /// A handle of a file that is gone goes on working; what is written to it is lost with the last
    /// handle.
    ///
    /// # Errors
    ///
    /// [`Io`](MmapIoError::Io): the path cannot be looked up, for another reason than that there is
    /// nothing.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("data");
    /// let file = mmap_io::create_mmap(&path, 100).await?;
    /// assert!(file.is_at_path().await?);
    /// std::fs::remove_file(&path)?;
    /// assert!(!file.is_at_path().await?);
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn is_at_path(&self) -> impl Future<Output = Result<bool>> + Send + 'static {
        let handle = self.handle.clone();
        let path = Subject::from(&handle.path);
        operation("looking up", path, async move {
            let (file, location) = (handle.file().clone(), handle.location.clone());
            let looked = handle.hop(move |_| match sys::file_id_at(&location) {
                Ok(there) => Ok(there == sys::file_info(&file)?.id),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                Err(error) => Err(error),
            });
            Ok(looked.await?)
        })
    }

    /// Makes every page of the file resident.
    ///
    /// # Errors
    ///
    /// [`Truncated`](MmapIoError::Truncated) or [`Io`](MmapIoError::Io), as for
    /// [`slice`](Self::slice).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws what has not started; what has runs to its end, and harms
    /// nothing.
    pub fn touch_pages(&self) -> impl Future<Output = Result<()>> + Send + 'static {
        let file = self.clone();
        operation("reading the file in", Subject::Nothing, async move {
            match file.len() {
                0 => Ok(()),
                len => file.make_resident(ByteRange::between(0, len)).await,
            }
        })
    }

    /// Makes the pages of a range resident.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`](MmapIoError::OutOfBounds), [`Truncated`](MmapIoError::Truncated) or
    /// [`Io`](MmapIoError::Io).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops nothing that has started, and harms nothing.
    pub fn touch_pages_range(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        let file = self.clone();
        operation("reading in", (offset, len), async move {
            let Some(range) = file.handle.range(offset, len)? else {
                return Ok(());
            };
            file.make_resident(range).await
        })
    }

    /// Starts reading the pages of a range in, and does not wait for them.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`](MmapIoError::OutOfBounds), or [`AdviceFailed`](MmapIoError::AdviceFailed).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws what has not started; what has runs to its end, and harms
    /// nothing.
    ///
    /// # Platform-specific behavior
    ///
    /// `posix_fadvise(POSIX_FADV_WILLNEED)` on Linux; elsewhere a hint that may do nothing.
    pub fn prefetch_range(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        let handle = self.handle.clone();
        operation("prefetching", (offset, len), async move {
            if handle.range(offset, len)?.is_none() {
                return Ok(());
            }
            let file = handle.file().clone();
            handle
                .hop(move |_| sys::cache_hint(&file, offset, len, sys::CacheHint::WillNeed))
                .await
                .map_err(MmapIoError::advice_failed)
        })
    }

    /// Returns the address of the first byte of the file; null if the file is empty and was never
    /// anything else.
    ///
    /// # Safety
    ///
    /// What is read through the pointer is not protected by a lease. Until the last read through
    /// it, the caller makes sure that
    /// - the handle, or a clone of it, lives;
    /// - the file does not grow: growing may map it elsewhere, and unmap what was outgrown;
    /// - the bytes are below [`len`](Self::len), and neither a shrink here nor another process cuts
    ///   them off (that would raise `SIGBUS`);
    /// - nothing writes to the bytes: no operation or view of this process, and no other process.
    pub unsafe fn as_ptr(&self) -> *const u8 {
        self.base().cast_const()
    }

    /// Returns the address of the first byte of the file, to write through. Counts every byte of
    /// the file as written, once: stores that come after a flush are covered by an explicit
    /// [`flush`](Self::flush) alone, and [`EveryMillis`](FlushPolicy::EveryMillis) asks for the
    /// address to be taken again for each round of stores.
    ///
    /// # Errors
    ///
    /// [`InvalidMode`](MmapIoError::InvalidMode) unless the handle is read-write.
    ///
    /// # Safety
    ///
    /// As for [`as_ptr`](Self::as_ptr); and until the last store through the pointer, nothing looks
    /// at the bytes, through this crate or otherwise, unless all sides use atomic operations. A
    /// store may raise `SIGBUS` where [`update_region`](Self::update_region) reports a full disk.
    pub unsafe fn as_mut_ptr(&self) -> Result<*mut u8> {
        self.handle.mode.require_write()?;
        let open = &self.handle.open;
        // Of the policies, the background alone comes after the stores.
        let policy = match self.handle.policy {
            policy @ FlushPolicy::EveryMillis(_) => policy,
            _ => FlushPolicy::Never,
        };
        open.gives_address_to_write();
        open.wrote_view(ByteRange::between(0, open.len()), policy);
        Ok(open.base(Protection::ReadWrite))
    }

    pub(crate) fn protection(&self) -> Protection {
        self.protection
    }

    /// Where the current map begins. An address, and no access.
    pub(crate) fn base(&self) -> *mut u8 {
        self.open.base(self.protection)
    }

    /// A shared slice: on the fast path, or under a lease that `slowly` gets. `None` has a reason
    /// that [`refusal`](Self::refusal) finds.
    #[inline(always)]
    fn slice_or(
        &self,
        offset: u64,
        len: u64,
        slowly: impl FnOnce(&OpenFile, ByteRange) -> Option<Token>,
    ) -> Option<MappedSlice<'_>> {
        if len == 0 {
            return Some(MappedSlice::EMPTY);
        }
        let range = ByteRange::between(offset, offset.checked_add(len)?);
        let lease = Lease::shared_or(&*self.open, range, slowly)?;
        // Only now: before, a shrink could have slipped in between.
        let span = self.open.span_within(self.protection, range)?;
        Some(MappedSlice::new(span, lease))
    }

    /// Why there was no lease for a range, in a box, so that it comes in a register. `None` if
    /// there is one now: what refused it was a cut, and the file has grown again.
    #[cold]
    fn refusal(&self, offset: u64, len: u64) -> Option<Box<MmapIoError>> {
        let range = match ByteRange::new(offset, len, self.len()) {
            Ok(range) => range,
            Err(error) => return Some(Box::new(error)),
        };
        let open: &OpenFile = &self.open;
        let attempt = || Lease::try_shared(open, range);
        let lease = wait_briefly(open.leases(), range, || open.len(), attempt);
        lease.err().map(Box::new)
    }

    /// The error of a range that is out of bounds, in a box as above.
    #[cold]
    fn out_of_bounds(&self, offset: u64, len: u64) -> Option<Box<MmapIoError>> {
        ByteRange::new(offset, len, self.len()).err().map(Box::new)
    }

    /// What [`slice`](Self::slice) resolves to.
    async fn resident_slice(&self, offset: u64, len: u64) -> Result<MappedSlice<'_>> {
        if len == 0 {
            return Ok(MappedSlice::EMPTY);
        }
        let open: &OpenFile = &self.open;
        let range = ByteRange::new(offset, len, open.len())?;
        let lease = self
            .resident_lease(range, || Lease::try_shared(open, range))
            .await?;
        let span = open.span(self.protection(), range)?;
        Ok(MappedSlice::new(span, lease))
    }

    /// A lease that `attempt` gets, over pages that are resident when it is there.
    pub(crate) async fn resident_lease<T>(
        &self,
        range: ByteRange,
        attempt: impl Fn() -> Result<T, crate::lease::Conflict>,
    ) -> Result<T> {
        check()?;
        loop {
            self.make_resident(range).await?;
            if let Ok(lease) = attempt() {
                return Ok(lease);
            }
            let lease = wait(self.handle.open.leases(), range, &attempt).await;
            // That may have taken long enough for the pages to go again.
            range.check(self.len())?;
            if self.is_resident(range) {
                return Ok(lease);
            }
        }
    }

    pub(crate) async fn make_resident(&self, range: ByteRange) -> Result<()> {
        let counters = &self.open.counters;
        if self.is_resident(range) {
            counters.resident_hits.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        if residency::is_asked(range) {
            counters.resident_misses.fetch_add(1, Ordering::Relaxed);
        }
        let protection = self.protection;
        self.handle
            .hop(move |open| open.read_in(protection, range))
            .await
    }

    fn is_resident(&self, range: ByteRange) -> bool {
        self.open.is_resident(self.protection, range)
    }
}

impl MemoryMappedFile {
    pub(crate) fn new(
        open: User,
        mode: MmapMode,
        policy: FlushPolicy,
        path: PathBuf,
        location: PathBuf,
    ) -> Self {
        Self::of(Arc::new(Handle {
            open,
            mode,
            policy,
            path,
            location,
            kept: Mutex::default(),
        }))
    }

    /// The handle behind anonymous memory.
    pub(crate) fn of_memory(open: User) -> Self {
        Self::of(Arc::new(Handle {
            open,
            mode: MmapMode::ReadWrite,
            policy: FlushPolicy::Never,
            path: PathBuf::new(),
            location: PathBuf::new(),
            kept: Mutex::default(),
        }))
    }

    fn of(handle: Arc<Handle>) -> Self {
        Self {
            open: Arc::clone(&handle.open),
            protection: handle.protection(),
            handle,
        }
    }

    /// Unmaps the file and returns its descriptor, if this is the last clone of the handle and none
    /// of its `Bytes` is alive.
    ///
    /// Writes are not flushed; [`close`](Self::close) does that. Other handles that were opened
    /// on the file keep it mapped for themselves.
    ///
    /// # Errors
    ///
    /// The handle itself, while clones or `Bytes` live, or if the process has no descriptor left.
    pub fn unmap(self) -> Result<File, Self> {
        let handle = Arc::try_unwrap(self.handle).map_err(Self::of)?;
        // The file's own jobs may still hold the descriptor for a moment.
        match handle.file().try_clone() {
            Ok(file) => Ok(file),
            Err(_) => Err(Self::of(Arc::new(handle))),
        }
    }
}

impl Handle {
    pub(crate) fn protection(&self) -> Protection {
        match self.mode {
            MmapMode::ReadOnly | MmapMode::CopyOnWrite => Protection::Read,
            MmapMode::ReadWrite => Protection::ReadWrite,
        }
    }

    /// The range, if it is inside the file; `None` for no bytes, which are accepted anywhere.
    pub(crate) fn range(&self, offset: u64, len: u64) -> Result<Option<ByteRange>> {
        match len {
            0 => Ok(None),
            len => ByteRange::new(offset, len, self.open.len()).map(Some),
        }
    }

    /// The descriptor of a file, which all handles share that map it in the same way.
    ///
    /// # Panics
    ///
    /// For memory, whose handle only [`AnonymousMmap`](crate::AnonymousMmap) has.
    pub(crate) fn file(&self) -> &Arc<Descriptor> {
        self.open.descriptor(self.protection())
    }

    /// Runs a job on the pool with the file, which it keeps open.
    pub(crate) fn hop<T, E>(
        &self,
        job: impl FnOnce(&OpenFile) -> Result<T, E> + Send + 'static,
    ) -> impl Future<Output = Result<T, E>> + Send + 'static
    where
        T: Send + 'static,
        E: From<io::Error> + Send + 'static,
    {
        let open = Arc::clone(&self.open);
        open.counters.hops.fetch_add(1, Ordering::Relaxed);
        offload(move || job(&open))
    }
}

impl LeaseHost for Handle {
    fn leases(&self) -> &Leases {
        self.open.leases()
    }

    fn restart(&self, gone: ByteRange) {
        self.open.restart(gone);
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
