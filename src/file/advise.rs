//! Advising the system how a range will be used.

use std::future::Future;

use super::MemoryMappedFile;
use crate::advise::MmapAdvice;
use crate::error::{MmapIoError, Result};
use crate::fairness::operation;
use crate::sys;

impl MemoryMappedFile {
    /// Advises the kernel about a range, whose start is widened to a page.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`](MmapIoError::OutOfBounds), or
    /// [`AdviceFailed`](MmapIoError::AdviceFailed).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws what has not started; what has runs to its end, and harms
    /// nothing.
    ///
    /// # Platform-specific behavior
    ///
    /// `madvise` on Unix; on Windows only `WillNeed` does anything.
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
