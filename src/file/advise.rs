//! Advice to the kernel about how a range will be used.

use std::future::Future;

use super::MemoryMappedFile;
use crate::advise::MmapAdvice;
use crate::error::{MmapIoError, Result};
use crate::fairness::operation;
use crate::sys;

impl MemoryMappedFile {
    /// Tells the kernel how a range will be used; changes no byte.
    ///
    /// The start of the range is rounded down to a page, and the end up. It is a hint:
    /// [`touch_pages_range`](Self::touch_pages_range) reads pages in, and [`evict`](Self::evict)
    /// takes them out of memory.
    ///
    /// It is about the mapping of this handle, which all handles that may do the same with the file
    /// share. A file that outgrows its mapping gets a new one, for which the advice has to be given
    /// again.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`](MmapIoError::OutOfBounds), or [`AdviceFailed`](MmapIoError::AdviceFailed) if
    /// the system refuses: it does not take pages out of the mapping that are
    /// [locked](Self#method.lock).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws an operation that has not started; an operation that has
    /// started runs to completion, and harms nothing.
    ///
    /// # Platform-specific behavior
    ///
    /// `madvise` on Unix, where [`MmapAdvice::Cold`] and the hints after it are ignored except on
    /// Linux; on Windows only [`MmapAdvice::WillNeed`] does anything.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # std::fs::write(dir.path().join("data"), vec![1; 1 << 20])?;
    /// use mmap_io::{MemoryMappedFile, MmapAdvice};
    ///
    /// let file = MemoryMappedFile::open_ro(dir.path().join("data")).await?;
    /// file.advise(0, file.len(), MmapAdvice::Random).await?;  // no read-ahead
    /// assert_eq!(file.slice(700_000, 1).await?, [1]);
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    #[doc(alias = "madvise")]
    pub fn advise(
        &self,
        offset: u64,
        len: u64,
        advice: MmapAdvice,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        let handle = self.handle.clone();
        operation("advising about", (offset, len), async move {
            let Some(range) = handle.range(offset, len)? else {
                return Ok(());
            };
            let protection = handle.protection();
            let advised = handle.run_on_pool(move |shared| {
                let Some(map) = shared.map(protection) else {
                    return Ok(());
                };
                let run = map.run(range.to_pages(sys::page_size()));
                // SAFETY: the range is inside the file, so its pages are inside the live map,
                // which is a shared one of a file.
                unsafe { sys::advise(run, advice.into()) }
            });
            advised.await.map_err(MmapIoError::advice_failed)
        })
    }
}
