//! Raw pointers to the mapped bytes.

use super::MemoryMappedFile;
#[cfg(doc)]
use crate::error::MmapIoError;
use crate::error::Result;
use crate::fault_guard::IS_ON;
use crate::flush::FlushPolicy;
use crate::map::Protection;

impl MemoryMappedFile {
    /// Returns a raw pointer to the first byte of the file, for reading.
    ///
    /// It may be null, and points to no byte, if the file is empty.
    ///
    /// # Safety
    ///
    /// What is read through the pointer is not protected by a lease. Until the last read through
    /// it, the caller makes sure that
    /// - the handle, or a clone of it, lives;
    /// - the file does not grow, and no page of it was lost ([`Faulted`](MmapIoError::Faulted)):
    ///   growing, `refresh` and openings may map it elsewhere then, and unmap the old mapping;
    /// - the bytes are below [`len`](Self::len), and neither a shrink here nor another process cuts
    ///   them off (that would raise `SIGBUS`);
    /// - nothing writes to the bytes: no operation or view of this process, and no other process.
    pub unsafe fn as_ptr(&self) -> *const u8 {
        self.base().cast_const()
    }

    /// Returns a raw pointer for writing, and marks the whole file as unflushed.
    ///
    /// The mark is set once: only an explicit [`flush`](Self::flush) covers stores that come after
    /// a flush. Under [`EveryMillis`](FlushPolicy::EveryMillis), take the pointer again for each
    /// round of stores.
    ///
    /// # Errors
    ///
    /// - [`InvalidMode`](MmapIoError::InvalidMode), unless the handle is read-write, or
    ///   copy-on-write and writable.
    /// - [`Faulted`](MmapIoError::Faulted)
    ///
    /// # Safety
    ///
    /// As for [`as_ptr`](Self::as_ptr); and until the last store through the pointer, nothing looks
    /// at the bytes, through this crate or otherwise, unless all sides use atomic operations. A
    /// store may raise `SIGBUS` where [`update_region`](Self::update_region) reports a full disk.
    pub unsafe fn as_mut_ptr(&self) -> Result<*mut u8> {
        self.handle.require_write()?;
        self.shared.check_whole(Protection::ReadWrite)?;
        let shared = &self.handle.shared;
        // Of the policies, only the background flush comes after the stores.
        let policy = match self.handle.policy {
            policy @ FlushPolicy::EveryMillis(_) => policy,
            _ => FlushPolicy::Never,
        };
        shared.gives_address_to_write();
        shared.record_address_given(policy);
        Ok(self.base())
    }

    /// Where the current map begins: an address, without any access.
    pub(crate) fn base(&self) -> *mut u8 {
        let base = self.shared.base(self.protection);
        if !IS_ON || !base.is_null() {
            return base;
        }
        // The fault guard has removed the address: a page was lost.
        let map = self.shared.map(self.protection);
        map.map_or(base, |map| map.as_ptr())
    }
}
