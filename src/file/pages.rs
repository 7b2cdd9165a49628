//! Reading pages into memory ahead of their use.

use std::future::Future;

use super::MemoryMappedFile;
use crate::error::{MmapIoError, Result, Subject};
use crate::fairness::operation;
use crate::range::ByteRange;

impl MemoryMappedFile {
    /// Reads every page of the file into memory, and waits for that.
    ///
    /// They may leave memory again at any time: nothing keeps them there.
    ///
    /// # Errors
    ///
    /// [`Truncated`](MmapIoError::Truncated) or [`Io`](MmapIoError::Io), as for
    /// [`slice`](Self::slice).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws an operation that has not started; an operation that has
    /// started runs to completion, and harms nothing.
    #[doc(alias = "populate")]
    pub fn touch_pages(&self) -> impl Future<Output = Result<()>> + Send + 'static {
        let file = self.clone();
        operation("reading the file in", Subject::Nothing, async move {
            match file.len() {
                0 => Ok(()),
                len => file.make_resident(ByteRange::between(0, len)).await,
            }
        })
    }

    /// Reads the pages of a range into memory, and waits for that.
    ///
    /// [`prefetch_range`](Self::prefetch_range) only starts to read; [`slice`](Self::slice) reads
    /// and returns a view.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`](MmapIoError::OutOfBounds), [`Truncated`](MmapIoError::Truncated) or
    /// [`Io`](MmapIoError::Io).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops no work that has started, and harms nothing.
    #[doc(alias = "populate")]
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

    /// Starts reading the pages of a range into memory without waiting.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`](MmapIoError::OutOfBounds), or [`AdviceFailed`](MmapIoError::AdviceFailed).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws an operation that has not started; an operation that has
    /// started runs to completion, and harms nothing.
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
            let Some(range) = handle.range(offset, len)? else {
                return Ok(());
            };
            let protection = handle.protection();
            handle
                .run_on_pool(move |shared| shared.prefetch(protection, range))
                .await
                .map_err(MmapIoError::advice_failed)
        })
    }
}
