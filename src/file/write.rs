//! Writing: copies of the caller's data into the file, and mutable views.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;

use super::MemoryMappedFile;
use crate::error::{MmapIoError, Result, Subject};
use crate::fairness::operation;
use crate::flush::FlushPolicy;
use crate::lease::{Asks, Kind, Lease};
use crate::map::Protection;
use crate::offload::check;
use crate::open_file::OwnedLease;
use crate::queue::{Action, Op, Outcome, Payload, Queue, Ranges, Source};
use crate::range::ByteRange;
use crate::residency;
use crate::view::MappedSliceMut;

/// # Writing
///
/// A write is one operation: a reader sees all of it or nothing, and it is applied whole or not at
/// all, even if its future is dropped. Writes that overlap take effect in the order in which they
/// were first polled, whether or not there is room in the
/// [write buffer](crate::MemoryMappedFileBuilder::write_buffer) then. A write waits for the views
/// that overlap it, and for nothing else but its turn and room for its data.
///
/// If there is no room, the write's own future submits the data later, when its task is woken
/// because there is room. A task that has polled such a write, and then awaits a later write
/// without polling the first again, may wait forever.
///
/// # Writes without a hop
///
/// A write of at most 64 KiB in at most 64 ranges is applied by the thread that polls it, without a
/// job on the thread pool, if nothing there can block: no operation and no flush of the file is
/// queued or running, no view overlaps the write, and the pages can be stored to without a page
/// fault. The last is known on Linux 6.5 and later, for files on ext4, xfs, btrfs and tmpfs, and
/// for anonymous memory: a page is as it was left by an earlier write of this process, and is not
/// flushed. The first write to a page, and the first after each flush, makes a hop.
/// [`Stats::inline_updates`](crate::Stats::inline_updates) counts these writes. Durable writes always
/// hop; so do all writes to a file after [`as_mut_ptr`](Self::as_mut_ptr), and writes near a live
/// mutable or atomic view.
///
/// The system may clean a page in the microsecond between the last question and the store, and so may
/// another process that stores to a page of the same group (up to 2 MiB): then the store waits for
/// the file system, as any store to a mapping may.
///
/// # Errors of writes
///
/// A write of no bytes is `Ok`, at any offset and through any handle. All other writes fail with
/// - [`InvalidMode`](MmapIoError::InvalidMode) unless the handle is read-write, or copy-on-write
///   and writable;
/// - [`OutOfBounds`](MmapIoError::OutOfBounds); a shrink that was submitted earlier counts;
/// - [`Truncated`](MmapIoError::Truncated) if another process has cut off bytes of the range;
/// - [`Io`](MmapIoError::Io) on a full disk (before the first byte changes), when a page cannot be
///   read, or when there is no memory for the copy of the data;
/// - [`FlushFailed`](MmapIoError::FlushFailed), if the write is to be durable: the bytes are in
///   place, and may be lost.
///
/// After any other error the content of the range is unspecified.
///
/// # Cancel safety
///
/// Dropping the future of a write withdraws it if it has not started: it is not applied later. A
/// write that has started runs to completion.
impl MemoryMappedFile {
    /// Writes `data` at `offset`; visible to all readers on return.
    ///
    /// The handle's [`FlushPolicy`] says when the write is durable: by default, not before a
    /// [`flush`](Self::flush). [`update_region_async`](Self::update_region_async) makes it durable.
    ///
    /// A write of at most 64 KiB completes at its first poll, in about a microsecond, if its pages
    /// were written before and have not been flushed since, and nothing that was submitted earlier
    /// waits; see [Writing](#writing). Every other write makes a hop to the thread pool (10 to 40
    /// us). The thread that polls copies the data; from about 256 KiB on,
    /// [`write_bytes`](Self::write_bytes) is better.
    ///
    /// # Errors
    ///
    /// See [Writing](#writing).
    ///
    /// # Cancel safety
    ///
    /// See [Writing](#writing).
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 100).await?;
    /// file.update_region(10, b"hello").await?;
    /// assert!(file.update_region(98, b"hello").await.is_err());
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub async fn update_region(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.update(offset, data, self.handle.policy).await
    }

    /// Writes `data` at `offset` and makes it durable before returning.
    ///
    /// Then the bytes survive a power cut, and so do the length of the file and the name that it
    /// was opened by. Which names of a file are left to the caller is said under
    /// [Paths and names](crate#paths-and-names).
    ///
    /// Writes that wait at the same time share one flush.
    ///
    /// # Errors
    ///
    /// See [Writing](#writing).
    ///
    /// # Cancel safety
    ///
    /// See [Writing](#writing).
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 4096).await?;
    /// file.update_region_async(0, b"survives a power cut").await?;
    /// assert_eq!(file.pending_bytes(), 0);
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    #[doc(alias = "durable")]
    #[doc(alias = "fsync")]
    pub async fn update_region_async(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.update(offset, data, FlushPolicy::Always).await
    }

    /// Writes several ranges as one operation: a reader sees all of them or none.
    ///
    /// Where the ranges overlap, the later range in the list wins. The handle's [`FlushPolicy`]
    /// says when the write is durable.
    ///
    /// # Errors
    ///
    /// See [Writing](#writing).
    ///
    /// # Cancel safety
    ///
    /// See [Writing](#writing).
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 100).await?;
    /// file.update_regions(&[(0, b"key"), (50, b"value")]).await?;
    /// assert_eq!(file.as_slice(50, 5)?, b"value");
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub async fn update_regions(&self, regions: &[(u64, &[u8])]) -> Result<()> {
        self.update_all(regions, self.handle.policy).await
    }

    /// Writes several ranges as one operation and makes them durable before returning.
    ///
    /// One flush serves all the ranges. A power cut before the return may leave some of them, or
    /// parts of them.
    ///
    /// # Errors
    ///
    /// See [Writing](#writing).
    ///
    /// # Cancel safety
    ///
    /// See [Writing](#writing).
    #[doc(alias = "durable")]
    pub async fn update_regions_async(&self, regions: &[(u64, &[u8])]) -> Result<()> {
        self.update_all(regions, FlushPolicy::Always).await
    }

    /// Writes `data` at `offset` without copying it first; visible to all readers on return.
    ///
    /// It differs from [`update_region`](Self::update_region) in that the data is owned: no thread
    /// that polls copies it, and the future is `'static`.
    ///
    /// Bytes that lie in a mapping of this crate are an exception: a thread of the pool copies
    /// them, and drops them before the write waits for any view. That copy is kept while views
    /// block the write, even if the write buffer has no room for it; in that case other writes wait
    /// until the buffer has room.
    ///
    /// # Errors
    ///
    /// See [Writing](#writing).
    ///
    /// # Cancel safety
    ///
    /// See [Writing](#writing).
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 1 << 20).await?;
    /// let upload = bytes::Bytes::from(vec![7; 1 << 20]);
    /// file.write_bytes(0, upload.clone()).await?;
    /// assert_eq!(file.slice(0, 1 << 20).await?, &upload[..]);
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn write_bytes(
        &self,
        offset: u64,
        data: Bytes,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        let policy = self.handle.policy;
        self.clone().write_owned(offset, data, policy)
    }

    /// Writes `data` at `offset` without copying it first, and makes it durable before returning.
    ///
    /// The same as [`write_bytes`](Self::write_bytes), with the promise of
    /// [`update_region_async`](Self::update_region_async).
    ///
    /// # Errors
    ///
    /// See [Writing](#writing).
    ///
    /// # Cancel safety
    ///
    /// See [Writing](#writing).
    #[doc(alias = "durable")]
    pub fn write_bytes_async(
        &self,
        offset: u64,
        data: Bytes,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        self.clone().write_owned(offset, data, FlushPolicy::Always)
    }

    /// Writes `data` at `offset`, or returns `false` if the write would have to wait.
    ///
    /// It would wait for a view, for an earlier operation, or for room in the
    /// [write buffer](crate::MemoryMappedFileBuilder::write_buffer). After `false` nothing was
    /// written, and nothing will be. It flushes as the [`FlushPolicy`] says.
    ///
    /// # Errors
    ///
    /// See [Writing](#writing).
    ///
    /// # Cancel safety
    ///
    /// See [Writing](#writing).
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 4096).await?;
    /// let view = file.as_slice(0, 10)?;
    /// assert!(!file.try_update_region(5, b"new").await?);  // `view` overlaps it
    /// drop(view);
    /// assert!(file.try_update_region(5, b"new").await?);
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub async fn try_update_region(&self, offset: u64, data: &[u8]) -> Result<bool> {
        let len = data.len() as u64;
        operation("writing", (offset, len), async {
            if data.is_empty() {
                return Ok(true);
            }
            let range = self.writable_range(offset, len)?;
            let action = Action::TryWrite(self.handle.policy);
            let (ranges, source) = (Ranges::One([range]), Source::Slice(data));
            let outcome = self.handle.shared.write(ranges, action, source).await?;
            Ok(!matches!(outcome, Outcome::InUse))
        })
        .await
    }

    /// Waits for exclusive access to a range and returns a mutable view of it.
    ///
    /// The pages of the view are in memory. The call waits for views that overlap the range, and
    /// takes its turn among the writes. While the view lives, reads and writes of its bytes are
    /// `Busy` or wait, so keep it for a short time. Dropping it counts its bytes as written;
    /// [`commit`](MappedSliceMut::commit) makes them durable.
    ///
    /// # Errors
    ///
    /// Those of [Writing](#writing), except for the flush.
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
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 4096).await?;
    /// let mut view = file.as_slice_mut(0, 5).await?;
    /// view.copy_from_slice(b"hello");
    /// view[0] = b'j';
    /// drop(view);  // or `view.commit().await?`
    /// assert_eq!(file.as_slice(0, 5)?, b"jello");
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub async fn as_slice_mut(&self, offset: u64, len: u64) -> Result<MappedSliceMut<'_>> {
        operation("getting a mutable view of", (offset, len), async {
            if len == 0 {
                return Ok(MappedSliceMut::EMPTY);
            }
            let range = self.writable_range(offset, len)?;
            let op = Op::new(range, Action::Lease(Kind::Exclusive));
            match Queue::submit(&self.handle.shared, op).await? {
                Outcome::Leased(lease) => self.slice_mut(range, lease),
                Outcome::Done | Outcome::Appended(_) | Outcome::InUse => {
                    unreachable!("a view ends in a lease or an error")
                }
            }
        })
        .await
    }

    /// Returns a mutable view of a range, or `None` if a view or an earlier operation overlaps it.
    ///
    /// It differs from [`as_slice_mut`](Self::as_slice_mut) in that it does not wait, and that the
    /// pages may not be in memory.
    ///
    /// # Errors
    ///
    /// [`InvalidMode`](MmapIoError::InvalidMode), [`OutOfBounds`](MmapIoError::OutOfBounds), or
    /// [`Io`](MmapIoError::Io) if the system refuses a memory barrier.
    ///
    /// # Blocking
    ///
    /// Waits for no view and no operation, but runs a memory barrier on all threads of the process:
    /// 0.3 to 20 us, milliseconds at worst. [`as_slice_mut`](Self::as_slice_mut) does that on the
    /// pool.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 4096).await?;
    /// let mut view = file.try_as_slice_mut(0, 3)?.expect("nothing overlaps it");
    /// view.copy_from_slice(b"new");
    /// assert!(file.try_as_slice_mut(2, 1)?.is_none());  // `view` overlaps it
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn try_as_slice_mut(&self, offset: u64, len: u64) -> Result<Option<MappedSliceMut<'_>>> {
        if len == 0 {
            return Ok(Some(MappedSliceMut::EMPTY));
        }
        let lease = || {
            let range = self.writable_range(offset, len)?;
            let shared = &self.handle.shared;
            if shared.queue().overlaps(range) {
                return Ok(None);
            }
            let lease =
                Lease::try_acquire(Arc::clone(shared), Kind::Exclusive, range, Asks::Caller)?;
            lease.map(|lease| self.slice_mut(range, lease)).transpose()
        };
        lease()
            .map_err(|error: MmapIoError| error.during("getting a mutable view of", (offset, len)))
    }

    async fn update(&self, offset: u64, data: &[u8], policy: FlushPolicy) -> Result<()> {
        let len = data.len() as u64;
        operation("writing", (offset, len), async {
            if data.is_empty() {
                return Ok(());
            }
            let range = self.writable_range(offset, len)?;
            self.write(Ranges::One([range]), policy, Source::Slice(data))
                .await
        })
        .await
    }

    async fn update_all(&self, regions: &[(u64, &[u8])], policy: FlushPolicy) -> Result<()> {
        operation("writing several ranges", Subject::Nothing, async {
            let ranges: Result<Box<[ByteRange]>> = regions
                .iter()
                .filter(|(_, data)| !data.is_empty())
                .map(|(offset, data)| self.writable_range(*offset, data.len() as u64))
                .collect();
            let ranges = ranges?;
            if ranges.is_empty() {
                return Ok(());
            }
            let ranges = Ranges::of_parts(ranges).map_err(|error| {
                self.handle.shared.count_failed_write();
                error
            })?;
            self.write(ranges, policy, Source::Parts(regions)).await
        })
        .await
    }

    async fn write_owned(self, offset: u64, data: Bytes, policy: FlushPolicy) -> Result<()> {
        let len = data.len() as u64;
        operation("writing", (offset, len), async move {
            if data.is_empty() {
                return Ok(());
            }
            let range = self.writable_range(offset, len)?;
            let payload = match residency::is_mapped(&data) {
                true => Payload::Mapped(data),
                false => Payload::Shared(data),
            };
            self.write(Ranges::One([range]), policy, Source::Payload(payload))
                .await
        })
        .await
    }

    async fn write(&self, ranges: Ranges, policy: FlushPolicy, source: Source<'_>) -> Result<()> {
        let shared = &self.handle.shared;
        shared.write(ranges, Action::Write(policy), source).await?;
        Ok(())
    }

    /// Returns the range, if the handle may write and the range is inside the file.
    pub(crate) fn writable_range(&self, offset: u64, len: u64) -> Result<ByteRange> {
        self.handle.require_write()?;
        check()?;
        let range = ByteRange::new(offset, len, self.len())?;
        self.handle.shared.check_whole(Protection::ReadWrite)?;
        Ok(range)
    }

    fn slice_mut(&self, range: ByteRange, lease: OwnedLease) -> Result<MappedSliceMut<'_>> {
        // A shrink may have gone first.
        let span = self.handle.shared.span(Protection::ReadWrite, range)?;
        Ok(MappedSliceMut::new(span, range, lease, self.handle.policy))
    }
}
