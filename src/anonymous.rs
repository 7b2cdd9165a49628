//! Memory without a file, under the same leases and the same queue.

use std::fmt;
use std::future::Future;

use bytes::Bytes;

#[cfg(doc)]
use crate::error::MmapIoError;
use crate::error::Result;
use crate::file::{MemoryMappedFile, Stats};
use crate::open_file::{HandleRef, OpenFile};
use crate::range::check_size;
use crate::view::{MappedSlice, MappedSliceMut};

/// A mapping of anonymous memory, all of it 0 at first: what [`MemoryMappedFile`] is, without a
/// file.
///
/// Clones share it, and it is gone with the last of them and of its `Bytes`. Pages take memory when
/// they are first written. Everything else is as for a file: views keep their bytes, writes wait
/// for the views they overlap and are whole or not there, also if their futures are dropped.
///
/// # Examples
///
/// ```
/// # futures_lite::future::block_on(async {
/// use mmap_io::AnonymousMmap;
///
/// let scratch = AnonymousMmap::new(1 << 20)?;
/// scratch.update_region(4096, b"hello").await?;
/// assert_eq!(scratch.as_slice(4096, 6)?, b"hello\0");
/// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct AnonymousMmap(MemoryMappedFile);

impl AnonymousMmap {
    /// Maps `size` bytes: 1 to 128 TiB (2 GiB - 1 on 32-bit platforms), as far as the address space
    /// and the system's rules for overcommitted memory allow.
    ///
    /// # Errors
    ///
    /// - [`ResizeFailed`](MmapIoError::ResizeFailed): size 0 or too large.
    /// - [`Io`](MmapIoError::Io): the system refuses.
    pub fn new(size: u64) -> Result<Self> {
        check_size(size)?;
        let open = OpenFile::anonymous(size)?;
        Ok(Self(MemoryMappedFile::of_memory(HandleRef::new(open))))
    }

    /// Returns the length in bytes; it never changes.
    #[inline]
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Returns `false`: there is at least one byte.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns counters and queue lengths; see [`MemoryMappedFile::stats`]. Nothing is ever
    /// pending.
    pub fn stats(&self) -> Stats {
        self.0.stats()
    }

    /// Returns a zero-copy view of a range; see [`MemoryMappedFile::as_slice`].
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Blocking
    ///
    /// As there.
    #[inline]
    pub fn as_slice(&self, offset: u64, len: u64) -> Result<MappedSlice<'_>> {
        self.0.as_slice(offset, len)
    }

    /// Returns a zero-copy view of a range, or `None` instead of waiting; see
    /// [`MemoryMappedFile::try_as_slice`].
    ///
    /// # Errors
    ///
    /// As there.
    #[inline]
    pub fn try_as_slice(&self, offset: u64, len: u64) -> Result<Option<MappedSlice<'_>>> {
        self.0.try_as_slice(offset, len)
    }

    /// Returns a zero-copy view of a range whose pages are in memory; see
    /// [`MemoryMappedFile::slice`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn slice(&self, offset: u64, len: u64) -> Result<MappedSlice<'_>> {
        self.0.slice(offset, len).await
    }

    /// Returns a `Bytes` that points into the memory and may outlive the handle; see
    /// [`MemoryMappedFile::bytes`].
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Blocking
    ///
    /// As there.
    pub fn bytes(&self, offset: u64, len: u64) -> Result<Bytes> {
        self.0.bytes(offset, len)
    }

    /// Returns a `Bytes` whose pages are in memory; see [`MemoryMappedFile::read_bytes`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn read_bytes(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<Bytes>> + Send + 'static {
        self.0.read_bytes(offset, len)
    }

    /// Copies bytes into `buffer`; see [`MemoryMappedFile::read_into`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn read_into(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.0.read_into(offset, buffer).await
    }

    /// Writes `data` at `offset`; see [Writing](MemoryMappedFile#writing).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn update_region(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.0.update_region(offset, data).await
    }

    /// Writes many ranges as one operation; see [`MemoryMappedFile::update_regions`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn update_regions(&self, regions: &[(u64, &[u8])]) -> Result<()> {
        self.0.update_regions(regions).await
    }

    /// Writes `data` without copying it first; see [`MemoryMappedFile::write_bytes`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn write_bytes(
        &self,
        offset: u64,
        data: Bytes,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        self.0.write_bytes(offset, data)
    }

    /// Writes `data`, or returns `false` instead of waiting; see
    /// [`MemoryMappedFile::try_update_region`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn try_update_region(&self, offset: u64, data: &[u8]) -> Result<bool> {
        self.0.try_update_region(offset, data).await
    }

    /// Waits for exclusive access to a range and returns a mutable view of it; see
    /// [`MemoryMappedFile::as_slice_mut`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn as_slice_mut(&self, offset: u64, len: u64) -> Result<MappedSliceMut<'_>> {
        self.0.as_slice_mut(offset, len).await
    }

    /// The same as [`as_slice_mut`](Self::as_slice_mut), under its old name.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn as_mut_slice(&self, offset: u64, len: u64) -> Result<MappedSliceMut<'_>> {
        self.as_slice_mut(offset, len).await
    }

    /// Returns a mutable view of a range, or `None` instead of waiting; see
    /// [`MemoryMappedFile::try_as_slice_mut`].
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Blocking
    ///
    /// As there.
    pub fn try_as_slice_mut(&self, offset: u64, len: u64) -> Result<Option<MappedSliceMut<'_>>> {
        self.0.try_as_slice_mut(offset, len)
    }

    /// The same as [`try_as_slice_mut`](Self::try_as_slice_mut), under its old name.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Blocking
    ///
    /// As there.
    pub fn try_as_mut_slice(&self, offset: u64, len: u64) -> Result<Option<MappedSliceMut<'_>>> {
        self.try_as_slice_mut(offset, len)
    }

    /// Returns whether huge pages hold a part of the memory; see
    /// [`MemoryMappedFile::is_hugepage_backed`]. Memory of the process that the system keeps
    /// together with this one counts.
    pub fn is_hugepage_backed(&self) -> impl Future<Output = Option<bool>> + Send + 'static {
        self.0.is_hugepage_backed()
    }

    /// Returns the address of the first byte; it never changes.
    ///
    /// # Safety
    ///
    /// What is read through the pointer is not protected by a lease. Until the last read through
    /// it, the caller makes sure that
    /// - the mapping, or a clone of it, lives;
    /// - the bytes are below [`len`](Self::len);
    /// - nothing writes to the bytes: no operation, no view, and no other pointer.
    pub unsafe fn as_ptr(&self) -> *const u8 {
        self.0.base().cast_const()
    }

    /// Returns the address of the first byte, to write through; it never changes.
    ///
    /// # Safety
    ///
    /// As for [`as_ptr`](Self::as_ptr); and until the last store through the pointer, nothing looks
    /// at the bytes, through this crate or otherwise, unless all sides use atomic operations.
    pub unsafe fn as_mut_ptr(&self) -> *mut u8 {
        self.0.base()
    }
}

impl fmt::Debug for AnonymousMmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnonymousMmap")
            .field("len", &self.len())
            .finish()
    }
}
