//! Writing: copies of the caller's data, and mutable views.

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
/// all, whatever becomes of its future. Writes that overlap take effect in the order in which they
/// were first polled, whether or not there is room in the
/// [write buffer](crate::MemoryMappedFileBuilder::write_buffer) then. A write waits for the views that
/// overlap it, and for nothing else but its turn and room for its data.
///
/// A write that finds no room is brought in by its future, when its task is woken for that. A task
/// that has polled such a write, and then awaits a later one without polling the first again, may
/// wait for ever.
///
/// A write of no bytes is `Ok`, at any offset and through any handle. All other writes fail with
/// - [`InvalidMode`](MmapIoError::InvalidMode) unless the handle is read-write;
/// - [`OutOfBounds`](MmapIoError::OutOfBounds); a shrink that was submitted earlier counts;
/// - [`Truncated`](MmapIoError::Truncated) if another process has cut off bytes of the range;
/// - [`Io`](MmapIoError::Io) on a full disk (before the first byte changes), or when a page
///   cannot be read;
/// - [`FlushFailed`](MmapIoError::FlushFailed), if they are to be durable: the bytes are in place,
///   and may be lost.
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
    /// It is durable as the handle's [`FlushPolicy`] says: by default, not before a
    /// [`flush`](Self::flush).
    ///
    /// The data is copied by the thread that polls; from about 256 KiB on,
    /// [`write_bytes`](Self::write_bytes) is better.
    ///
    /// # Errors
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
    /// was opened by. What is left to the caller of a file's names is in
    /// [Safety and other processes](crate#safety-and-other-processes).
    ///
    /// Writes that wait at the same time share one flush.
    ///
    /// # Errors
    ///
    /// See [Writing](#writing).
    pub async fn update_region_async(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.update(offset, data, FlushPolicy::Always).await
    }

    /// Writes many ranges as one operation: all or none. Where they overlap, later ones win.
    ///
    /// # Errors
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

    /// Writes many ranges as one operation and makes them durable before returning, with one flush.
    ///
    /// # Errors
    ///
    /// See [Writing](#writing).
    pub async fn update_regions_async(&self, regions: &[(u64, &[u8])]) -> Result<()> {
        self.update_all(regions, FlushPolicy::Always).await
    }

    /// Writes `data` at `offset`, without copying it first.
    ///
    /// Bytes that lie in a mapping of this crate are copied, on the pool, and let go before the
    /// write waits for any view. That copy is kept while views block the write, also where the
    /// write buffer has no room for it: then other writes wait until it has.
    ///
    /// # Errors
    ///
    /// See [Writing](#writing).
    pub fn write_bytes(
        &self,
        offset: u64,
        data: Bytes,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        let policy = self.handle.policy;
        self.clone().write_owned(offset, data, policy)
    }

    /// Writes `data` at `offset` as [`write_bytes`](Self::write_bytes) does, durably.
    ///
    /// # Errors
    ///
    /// See [Writing](#writing).
    pub fn write_bytes_async(
        &self,
        offset: u64,
        data: Bytes,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        self.clone().write_owned(offset, data, FlushPolicy::Always)
    }

    /// Writes `data` at `offset`, or returns `false` if that would have to wait: for a view, for an
    /// earlier operation, or for room in the
    /// [write buffer](crate::MemoryMappedFileBuilder::write_buffer). Then nothing was written.
    ///
    /// # Errors
    ///
    /// See [Writing](#writing).
    ///
    /// # Cancel safety
    ///
    /// See [Writing](#writing).
    pub async fn try_update_region(&self, offset: u64, data: &[u8]) -> Result<bool> {
        let len = data.len() as u64;
        operation("writing", (offset, len), async {
            if data.is_empty() {
                return Ok(true);
            }
            let range = self.writable_range(offset, len)?;
            let action = Action::TryWrite(self.handle.policy);
            let (ranges, source) = (Ranges::One([range]), Source::Slice(data));
            let outcome = Queue::write(&self.handle.shared, ranges, action, source).await?;
            Ok(!matches!(outcome, Outcome::InUse))
        })
        .await
    }

    /// Waits for exclusive access to a range and returns a mutable view of it, with its pages in
    /// memory. It waits for views that overlap the range, and takes its turn among the writes.
    ///
    /// # Errors
    ///
    /// Those of [Writing](#writing), but for the flush.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub async fn as_slice_mut(&self, offset: u64, len: u64) -> Result<MappedSliceMut<'_>> {
        operation("getting a mutable view of", (offset, len), async {
            if len == 0 {
                return Ok(MappedSliceMut::EMPTY);
            }
            let range = self.writable_range(offset, len)?;
            let op = Op::new(range, Action::Lease(Kind::Exclusive));
            match Queue::submit(&self.handle.shared, op).await? {
                Outcome::Leased(lease) => self.slice_mut(range, lease),
                Outcome::Done | Outcome::InUse => {
                    unreachable!("a view ends in a lease or an error")
                }
            }
        })
        .await
    }

    /// Returns a mutable view of a range, or `None` if a view or an earlier operation overlaps it.
    /// Its pages may not be in memory.
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
            self.write(Ranges::Many(ranges), policy, Source::Parts(regions))
                .await
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
        Queue::write(&self.handle.shared, ranges, Action::Write(policy), source).await?;
        Ok(())
    }

    fn writable_range(&self, offset: u64, len: u64) -> Result<ByteRange> {
        self.handle.mode.require_write()?;
        check()?;
        ByteRange::new(offset, len, self.len())
    }

    fn slice_mut(&self, range: ByteRange, lease: OwnedLease) -> Result<MappedSliceMut<'_>> {
        // A shrink may have gone first.
        let span = self.handle.shared.span(Protection::ReadWrite, range)?;
        Ok(MappedSliceMut::new(span, range, lease, self.handle.policy))
    }
}
