//! Flushing through a handle, and the way out of memory.

use std::future::Future;
use std::io;

use super::{Handle, MemoryMappedFile};
use crate::commit::Flush;
use crate::error::{MmapIoError, Result, Subject};
use crate::fairness::operation;
use crate::lease::LeaseHost;
use crate::mode::MmapMode;
use crate::offload::{check, offload};
use crate::range::{ByteRange, PageRange};
use crate::sys::{self, CacheHint};

/// # Flushing
///
/// A read-only handle has nothing to flush: its flushes check their range and do nothing.
impl MemoryMappedFile {
    /// Makes everything durable that was written before the call, through whatever handle or view
    /// of the file: the bytes, the length, and the name that the file was opened by.
    ///
    /// Writes that are still queued are not covered. Read-only handles have nothing to flush. Where
    /// nothing was written since the last flush, it resolves at once, and asks nothing of the system.
    ///
    /// # Errors
    ///
    /// [`FlushFailed`](MmapIoError::FlushFailed), now or of an earlier flush: what a failed flush
    /// has lost, no later one can bring back.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not stop a flush that has started.
    pub fn flush(&self) -> impl Future<Output = Result<()>> + Send + 'static {
        let handle = self.handle.clone();
        operation("flushing", Subject::Nothing, async move {
            handle.flush(Flush::of_everything()).await
        })
    }

    /// Makes a range durable; see [`flush`](Self::flush).
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`](MmapIoError::OutOfBounds), or
    /// [`FlushFailed`](MmapIoError::FlushFailed).
    ///
    /// # Cancel safety
    ///
    /// As [`flush`](Self::flush).
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
            handle.flush(Flush::of(range)).await
        })
    }

    /// The same as [`flush`](Self::flush), under its old name.
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

    /// The same as [`flush_range`](Self::flush_range), under its old name.
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

    /// Flushes, unmaps (if this is the last handle), and reports errors. Dropping a handle reports
    /// none.
    ///
    /// # Errors
    ///
    /// [`FlushFailed`](MmapIoError::FlushFailed), now or of an earlier flush.
    ///
    /// # Cancel safety
    ///
    /// As [`flush`](Self::flush).
    pub async fn close(self) -> Result<()> {
        let flushed = self.flush().await;
        // The last close may block, and is over when this resolves.
        offload(move || {
            drop(self);
            Ok::<_, MmapIoError>(())
        })
        .await?;
        flushed
    }

    /// Starts writing everything back that was written before, and does not wait for it. Not
    /// durable: that is what [`flush`](Self::flush) is for, which then has less to do.
    ///
    /// What is [pending](Self::pending_bytes) stays so.
    ///
    /// # Errors
    ///
    /// [`Io`](MmapIoError::Io), if the system refuses.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws what has not started; what has runs to its end, and harms
    /// nothing.
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

    /// Starts writing a range back; see [`schedule_flush`](Self::schedule_flush).
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`](MmapIoError::OutOfBounds), or [`Io`](MmapIoError::Io).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws what has not started; what has runs to its end, and harms
    /// nothing.
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

    /// Flushes a range, and drops its pages from the page cache: for what will not be read again
    /// soon, so that it takes no memory from what will. A read-only handle flushes nothing, and
    /// drops the pages that are clean.
    ///
    /// A hint: pages that another process has mapped, or that are dirtied meanwhile, stay. So do the
    /// pages of every view, whose bytes were perhaps read in to be touched without waiting; those of a
    /// view that is made meanwhile may go.
    ///
    /// # Errors
    ///
    /// Those of [`flush_range`](Self::flush_range), or [`AdviceFailed`](MmapIoError::AdviceFailed).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops nothing that has started, and harms nothing.
    ///
    /// # Platform-specific behavior
    ///
    /// `madvise(MADV_DONTNEED)` and `posix_fadvise(POSIX_FADV_DONTNEED)` on Linux; elsewhere only
    /// the flush.
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
            let evicted = handle.run_on_pool(move |shared| {
                // A shrink may have gone first.
                let end = (offset + len).min(shared.len());
                let range = ByteRange::between(offset.min(end), end);
                let page_size = sys::page_size();
                let leased = shared.leases().leased(range).into_iter();
                let leased = PageRange::merged(leased.map(|range| range.to_pages(page_size)));
                for pages in range.to_pages(page_size).without(&leased) {
                    shared.unmap_pages(pages.into())?;
                    sys::cache_hint(&file, pages.start(), pages.len(), CacheHint::DontNeed)?;
                }
                Ok::<_, io::Error>(())
            });
            evicted.await.map_err(MmapIoError::advice_failed)
        })
    }
}

impl Handle {
    async fn flush(&self, flush: Flush) -> Result<()> {
        match self.mode {
            MmapMode::ReadOnly | MmapMode::CopyOnWrite => Ok(()),
            MmapMode::ReadWrite => {
                check()?;
                match self.shared.is_durable() {
                    true => Ok(()),
                    false => self.shared.start(flush).done().await,
                }
            }
        }
    }

    async fn start_writeback(&self, range: ByteRange) -> Result<()> {
        if self.mode != MmapMode::ReadWrite {
            return Ok(());
        }
        let file = self.file().clone();
        let (offset, len) = (range.start(), range.len());
        let started = self.run_on_pool(move |_| sys::start_writeback(&file, offset, len));
        match started.await {
            // It is a hint.
            Err(error) if sys::is_refused(&error) => Ok(()),
            started => Ok(started?),
        }
    }
}
