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
            loop {
                match file.len() {
                    0 => return Ok(()),
                    len => match file.make_resident(ByteRange::between(0, len)).await {
                        // A shrink went first.
                        Err(MmapIoError::OutOfBounds { .. }) => {}
                        touched => return touched,
                    },
                }
            }
        })
    }

    /// Reads the pages of a range into memory, and waits for that.
    ///
    /// [`prefetch_range`](Self::prefetch_range) only starts to read; [`slice`](Self::slice) reads
    /// and returns a view. If they are in memory already, it costs what `slice` costs then.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`](MmapIoError::OutOfBounds), [`Truncated`](MmapIoError::Truncated) or
    /// [`Io`](MmapIoError::Io).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops no work that has started, and harms nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # std::fs::write(dir.path().join("data"), b"some bytes")?;
    /// let file = mmap_io::MemoryMappedFile::open_ro(dir.path().join("data")).await?;
    /// file.touch_pages_range(5, 5).await?;
    /// assert_eq!(file.as_slice(5, 5)?, b"bytes");  // waits for no disk, unless memory is short
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # std::fs::write(dir.path().join("data"), b"some bytes")?;
    /// let file = mmap_io::MemoryMappedFile::open_ro(dir.path().join("data")).await?;
    /// file.prefetch_range(5, 5).await?;
    /// // Other work, while the disk reads.
    /// assert_eq!(file.slice(5, 5).await?, b"bytes");
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
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
                .run_on_pool(move |shared| {
                    let started = shared.prefetch(protection, range);
                    started.map_err(MmapIoError::advice_failed)
                })
                .await
        })
    }
}
