//! Asks whether the system keeps a mapping in huge pages.

use std::future::Future;
use std::io;
use std::ptr;

use super::MemoryMappedFile;
#[cfg(doc)]
use super::MemoryMappedFileBuilder;
use crate::error::Subject;
use crate::fairness::operation;
use crate::range::{ByteRange, PageRange};
use crate::sys::{self, Run};

impl MemoryMappedFile {
    /// Returns `true` if huge pages hold a part of the mapping; `None` where that is unknown.
    ///
    /// It depends on the file system, on what has been touched, and on what was asked for
    /// ([`huge_pages`](MemoryMappedFileBuilder#method.huge_pages) of the builder); a file that is
    /// smaller than a huge page has none. The system looks through the mappings of the whole
    /// process for it, on the pool: meant for diagnosis.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    ///
    /// # Platform-specific behavior
    ///
    /// Reads [`/proc/self/smaps`] on Linux; `None` elsewhere.
    ///
    /// [`/proc/self/smaps`]: https://man7.org/linux/man-pages/man5/proc_pid_smaps.5.html
    pub fn is_hugepage_backed(&self) -> impl Future<Output = Option<bool>> + Send + 'static {
        let (handle, protection) = (self.handle.clone(), self.protection);
        let looking = async move {
            let asked = handle.run_on_pool(move |shared| -> io::Result<Option<bool>> {
                let all = ByteRange::between(0, shared.len());
                let pages = all.to_pages(sys::page_size());
                // The map lives until its address has been looked for. An empty file may have none.
                let map = shared.map_within(protection, all).ok();
                let none = Run::at(ptr::null_mut(), PageRange::EMPTY);
                sys::has_huge_pages(map.as_ref().map_or(none, |map| map.run(pages)))
            });
            Ok(asked.await.ok().flatten())
        };
        let looked = operation("looking for huge pages", Subject::Nothing, looking);
        async move { looked.await.ok().flatten() }
    }
}
