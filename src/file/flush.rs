//! Flushing, write-back and eviction through a handle.

use std::future::Future;
use std::sync::Arc;

use super::{Handle, MemoryMappedFile};
use crate::commit::{Flush, Started};
use crate::error::{MmapIoError, Result, Subject};
use crate::fairness::operation;
use crate::mode::MmapMode;
use crate::offload::{check, offload};
use crate::range::ByteRange;
use crate::sys;

/// # Flushing
///
/// A read-only or copy-on-write handle has nothing to flush: its flushes check their range and do
/// nothing.
impl MemoryMappedFile {
    /// Makes all completed writes to the file durable, of every handle and view.
    ///
    /// It covers what was written before the call: the bytes, the length, and the name that the
    /// file was opened by. Writes that are still queued are not covered. Where nothing was written
    /// since the last flush, it resolves at once, without a system call.
    /// [`schedule_flush`](Self::schedule_flush) only starts to write back.
    ///
    /// # Errors
    ///
    /// - [`FlushFailed`](MmapIoError::FlushFailed), now or of an earlier flush: what a failed flush
    ///   has lost, no later flush can bring back.
    /// - [`Truncated`](MmapIoError::Truncated): another process has cut off written bytes.
    /// - [`Faulted`](MmapIoError::Faulted): a page was lost, with the feature `fault-guard`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not stop a flush that has started.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 4096).await?;
    /// file.update_region(0, b"one").await?;
    /// file.update_region(100, b"two").await?;
    /// assert_eq!(file.pending_bytes(), 6);
    /// file.flush().await?;  // both survive a power cut
    /// assert_eq!(file.pending_bytes(), 0);
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    #[doc(alias = "durable")]
    #[doc(alias = "fsync")]
    #[doc(alias = "msync")]
    pub fn flush(&self) -> impl Future<Output = Result<()>> + Send + 'static {
        let handle = self.handle.clone();
        operation("flushing", Subject::Nothing, async move {
            handle.flush(Flush::of_everything).await
        })
    }

    /// Makes the completed writes to a range durable; [`flush`](Self::flush) covers all the file.
    ///
    /// The length and the name of the file become durable too.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`](MmapIoError::OutOfBounds), or those of [`flush`](Self::flush).
    ///
    /// # Cancel safety
    ///
    /// As [`flush`](Self::flush).
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 4096).await?;
    /// file.update_regions(&[(0, b"one"), (4000, b"two")]).await?;
    /// file.flush_range(0, 100).await?;
    /// assert_eq!(file.pending_bytes(), 3);  // the second range
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    #[doc(alias = "durable")]
    #[doc(alias = "msync")]
    pub fn flush_range(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        let handle = self.handle.clone();
        operation("flushing", (offset, len), async move {
            let Some(range) = handle.range(offset, len)? else {
                return Ok(());
            };
            handle.flush(|| Flush::of(range)).await
        })
    }

    /// Makes all completed writes durable: [`flush`](Self::flush) under its old name.
    ///
    /// # Errors
    ///
    /// Those of [`flush`](Self::flush).
    ///
    /// # Cancel safety
    ///
    /// As [`flush`](Self::flush).
    pub fn flush_async(&self) -> impl Future<Output = Result<()>> + Send + 'static {
        self.flush()
    }

    /// Makes a range durable: [`flush_range`](Self::flush_range) under its old name.
    ///
    /// # Errors
    ///
    /// Those of [`flush_range`](Self::flush_range).
    ///
    /// # Cancel safety
    ///
    /// As [`flush`](Self::flush).
    pub fn flush_range_async(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        self.flush_range(offset, len)
    }

    /// Flushes the file, drops the handle and reports any flush error.
    ///
    /// Dropping a handle reports none. If this is the last handle, the file is unmapped when the
    /// future resolves.
    ///
    /// # Errors
    ///
    /// Those of [`flush`](Self::flush).
    ///
    /// # Cancel safety
    ///
    /// As [`flush`](Self::flush).
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 4096).await?;
    /// file.update_region(0, b"data").await?;
    /// file.close().await?;  // durable, or an error
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub async fn close(self) -> Result<()> {
        operation("closing", Subject::Nothing, async move {
            let flush = self.handle.start_flush(Flush::of_everything);
            let flushed = match &flush {
                Ok(Some(flush)) => flush.ended().await,
                Ok(None) => Ok(()),
                Err(error) => Err(error.clone()),
            };
            // Closing the last descriptor may block; it is over when this resolves. The job does not
            // count as a use of the file.
            let open = Arc::clone(&self.handle.shared);
            drop(self);
            let closed = offload(move || {
                drop(open);
                Ok::<_, MmapIoError>(())
            });
            let closed = closed.await;
            if let Ok(Some(flush)) = flush {
                flush.taken();
            }
            // If both have failed, what a failed flush has lost matters more.
            flushed.and(closed)
        })
        .await
    }

    /// Starts writing dirty pages to disk without waiting; not durable.
    ///
    /// A later [`flush`](Self::flush) makes them durable, and then has less to do. What is
    /// [pending](Self::pending_bytes) stays pending.
    ///
    /// # Errors
    ///
    /// [`Io`](MmapIoError::Io), if the system refuses.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws an operation that has not started; an operation that has
    /// started runs to completion, and harms nothing.
    ///
    /// # Platform-specific behavior
    ///
    /// [`sync_file_range(2)`] on Linux, if no filter of system calls refuses it; nothing elsewhere.
    ///
    /// [`sync_file_range(2)`]: https://man7.org/linux/man-pages/man2/sync_file_range.2.html
    pub fn schedule_flush(&self) -> impl Future<Output = Result<()>> + Send + 'static {
        let handle = self.handle.clone();
        operation("writing back", Subject::Nothing, async move {
            let all = ByteRange::between(0, handle.shared.len());
            handle.start_writeback(all).await
        })
    }

    /// Starts writing the dirty pages of a range to disk without waiting; not durable.
    ///
    /// See [`schedule_flush`](Self::schedule_flush).
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`](MmapIoError::OutOfBounds), or [`Io`](MmapIoError::Io).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws an operation that has not started; an operation that has
    /// started runs to completion, and harms nothing.
    pub fn schedule_flush_range(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        let handle = self.handle.clone();
        operation("writing back", (offset, len), async move {
            let Some(range) = handle.range(offset, len)? else {
                return Ok(());
            };
            handle.start_writeback(range).await
        })
    }

    /// Flushes a range and drops its pages from the page cache.
    ///
    /// It is for bytes that will not be read again soon, so that they take no memory from other
    /// bytes. A read-only handle flushes nothing, and drops the pages that are clean.
    ///
    /// It is a hint: pages that another process has mapped, or that are dirtied in the meantime,
    /// stay, and so do private copies of pages. The pages of every view stay too, since they were
    /// perhaps read in to be touched without waiting; the pages of a view that is made in the
    /// meantime may go.
    ///
    /// # Errors
    ///
    /// Those of [`flush_range`](Self::flush_range), or [`AdviceFailed`](MmapIoError::AdviceFailed).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops no work that has started, and harms nothing.
    ///
    /// # Platform-specific behavior
    ///
    /// `madvise(MADV_DONTNEED)` and `posix_fadvise(POSIX_FADV_DONTNEED)` on Linux; elsewhere only
    /// the flush.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 4096).await?;
    /// file.update_region(0, b"seldom read").await?;
    /// file.evict(0, 4096).await?;
    /// assert_eq!(file.slice(0, 6).await?, b"seldom");  // from the disk again
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn evict(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        let flushed = self.flush_range(offset, len);
        let handle = self.handle.clone();
        operation("evicting", (offset, len), async move {
            flushed.await?;
            if len == 0 {
                return Ok(());
            }
            let file = handle.file().clone();
            let range = ByteRange::between(offset, offset + len);
            let evicted = handle.run_on_pool(move |shared| {
                let evicted = shared.evict(&file, range).map(drop);
                evicted.map_err(MmapIoError::advice_failed)
            });
            evicted.await
        })
    }
}

impl Handle {
    async fn flush(&self, flush: impl FnOnce() -> Flush) -> Result<()> {
        match self.start_flush(flush)? {
            Some(flush) => flush.done().await,
            None => Ok(()),
        }
    }

    /// Starts a flush, unless there is nothing to do.
    fn start_flush(&self, flush: impl FnOnce() -> Flush) -> Result<Option<Started>> {
        self.shared.check_whole(self.protection())?;
        match self.mode {
            MmapMode::ReadOnly | MmapMode::CopyOnWrite => Ok(None),
            MmapMode::ReadWrite => {
                check()?;
                let losses = self.shared.losses();
                let is_durable = self.shared.is_durable(losses);
                Ok((!is_durable).then(|| self.shared.start(flush(), losses)))
            }
        }
    }

    async fn start_writeback(&self, range: ByteRange) -> Result<()> {
        if self.mode != MmapMode::ReadWrite {
            return Ok(());
        }
        self.shared.check_whole(self.protection())?;
        let file = self.file().clone();
        let (offset, len) = (range.start(), range.len());
        let started = self.run_on_pool(move |shared| {
            shared.while_not_writable(range, || sys::start_writeback(&file, offset, len))
        });
        match started.await {
            // It is a hint: a filter of system calls may refuse it.
            Err(error) if sys::is_refused(&error) => Ok(()),
            started => Ok(started?),
        }
    }
}
