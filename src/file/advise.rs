//! Advice to the kernel about how a range will be used.

use std::future::Future;
use std::sync::Arc;

use super::MemoryMappedFile;
use crate::advise::MmapAdvice;
use crate::error::{MmapIoError, Result};
use crate::fairness::operation;
use crate::lease::{Asks, Kind, Lease};
use crate::map::Protection;
use crate::open_file::OpenFile;
use crate::range::ByteRange;
use crate::sys;

impl MemoryMappedFile {
    /// Tells the kernel how a range will be used; changes no byte of a file.
    ///
    /// `DontNeed` throws the private copies of a writable
    /// [`CopyOnWrite`](crate::MmapMode::CopyOnWrite) handle away: whole pages show the file again.
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
    /// - [`OutOfBounds`](MmapIoError::OutOfBounds)
    /// - [`Busy`](MmapIoError::Busy): a view or an operation overlaps a page whose private copy
    ///   would be thrown away.
    /// - [`AdviceFailed`](MmapIoError::AdviceFailed): the system refuses; it does not take pages out
    ///   of the mapping that are [locked](Self#method.lock).
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
                if advice == MmapAdvice::DontNeed && shared.is_private() {
                    return discard_copies(shared, range);
                }
                let map = shared.map_within(protection, range)?;
                let pages = range.to_pages(sys::page_size());
                let advised = shared.while_not_writable(range, || {
                    // SAFETY: `Map::run` has checked that the pages are inside the map, which `map`
                    // keeps live. It is a shared map of a file, or the advice discards no private
                    // copy.
                    unsafe { sys::advise(map.run(pages), advice.into()) }
                });
                advised.map_err(MmapIoError::advice_failed)
            });
            advised.await
        })
    }
}

/// Throws the private copies of the pages of a range away, so that the pages show the file again.
/// Blocks.
///
/// # Errors
///
/// `Busy` if a view or an operation overlaps one of the pages.
fn discard_copies(private: &Arc<OpenFile>, range: ByteRange) -> Result<()> {
    let pages = range.to_pages(sys::page_size());
    let bytes = ByteRange::from(pages);
    if private.queue().overlaps(bytes) {
        return Err(range.busy());
    }
    // Alone: it does not matter here whether the file is being written.
    let lease = Lease::try_acquire_alone(private.clone(), Kind::Exclusive, bytes, Asks::Queue)?;
    let _lease = lease.ok_or_else(|| range.busy())?;
    let Some(map) = private.map(Protection::ReadWrite) else {
        return Ok(());
    };
    // SAFETY: `Map::run` has checked that the pages are inside the map, which `map` keeps live. The
    // exclusive lease keeps every view and every other operation off the bytes.
    unsafe { sys::advise(map.run(pages), sys::Advice::DontNeed) }
        .map_err(MmapIoError::advice_failed)
}
