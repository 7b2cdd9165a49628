//! Anonymous memory, with the same leases and the same queue as a file.

use std::fmt;
use std::future::Future;
#[cfg(feature = "atomic")]
use std::sync::atomic::{AtomicU32, AtomicU64};

use bytes::Bytes;

#[cfg(feature = "atomic")]
use crate::atomic::{AtomicSliceView, AtomicView};

#[cfg(doc)]
use crate::error::MmapIoError;
use crate::error::Result;
use crate::file::{MemoryMappedFile, Stats};
use crate::open_file::{HandleRef, OpenFile};
use crate::range::check_size;
use crate::view::{MappedSlice, MappedSliceMut};

/// A mapping of anonymous memory, which begins as zeroes: a [`MemoryMappedFile`] without a file.
///
/// Clones share the memory; it is freed with the last clone and the last of its `Bytes`. Pages take
/// memory when they are first written. Everything else is as for a file: views keep their bytes;
/// writes wait for the views that they overlap, and are all or nothing, even if their futures are
/// dropped.
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
#[doc(alias = "mmap")]
#[derive(Clone)]
pub struct AnonymousMmap(MemoryMappedFile);

impl AnonymousMmap {
    /// Maps `size` bytes of zeroes.
    ///
    /// The size is 1 byte to 128 TiB (2 GiB - 1 on 32-bit platforms), as far as the address space
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

    /// Maps `size` bytes of zeroes, and asks the system to keep them in huge pages.
    ///
    /// Fewer and larger pages take less time to look up, for random accesses to much memory. The
    /// first touch of a huge page (2 MiB on most machines) makes the system zero and take all of
    /// it. Only huge pages that lie completely inside the mapping are used; the length stays as it
    /// was asked for. Where the system has no huge page to give, normal pages are used:
    /// [`is_hugepage_backed`](Self::is_hugepage_backed) tells.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new); none for want of huge pages.
    ///
    /// # Platform-specific behavior
    ///
    /// [`madvise(2)`] with `MADV_HUGEPAGE` on Linux; the same as [`new`](Self::new) elsewhere.
    ///
    /// [`madvise(2)`]: https://man7.org/linux/man-pages/man2/madvise.2.html
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// use mmap_io::AnonymousMmap;
    ///
    /// let table = AnonymousMmap::with_huge_pages(8 << 20)?;
    /// table.update_region(5 << 20, b"entry").await?;
    /// if table.is_hugepage_backed().await != Some(true) {
    ///     eprintln!("normal pages");
    /// }
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    #[cfg(feature = "hugepages")]
    #[cfg_attr(docsrs, doc(cfg(feature = "hugepages")))]
    #[doc(alias = "MADV_HUGEPAGE")]
    pub fn with_huge_pages(size: u64) -> Result<Self> {
        let mapping = Self::new(size)?;
        mapping.0.handle.shared.use_huge_pages();
        Ok(mapping)
    }

    /// Returns the length in bytes; it never changes.
    #[inline]
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Returns `false`: an anonymous mapping has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns counters and queue lengths; see [`MemoryMappedFile::stats`].
    ///
    /// `pending_bytes` is always 0: there is nothing to flush.
    pub fn stats(&self) -> Stats {
        self.0.stats()
    }

    /// Returns a zero-copy view of a range, without reading its pages into memory; see
    /// [`MemoryMappedFile::as_slice`].
    ///
    /// # Errors
    ///
    /// Same as [`MemoryMappedFile::as_slice`].
    ///
    /// # Blocking
    ///
    /// Same as [`MemoryMappedFile::as_slice`].
    #[inline]
    pub fn as_slice(&self, offset: u64, len: u64) -> Result<MappedSlice<'_>> {
        self.0.as_slice(offset, len)
    }

    /// Returns a zero-copy view of a range, or `None` instead of waiting; see
    /// [`MemoryMappedFile::try_as_slice`].
    ///
    /// # Errors
    ///
    /// Same as [`MemoryMappedFile::try_as_slice`].
    #[inline]
    pub fn try_as_slice(&self, offset: u64, len: u64) -> Result<Option<MappedSlice<'_>>> {
        self.0.try_as_slice(offset, len)
    }

    /// Returns a zero-copy view of a range after bringing its pages into memory; see
    /// [`MemoryMappedFile::slice`].
    ///
    /// # Errors
    ///
    /// Same as [`MemoryMappedFile::slice`].
    ///
    /// # Cancel safety
    ///
    /// Same as [`MemoryMappedFile::slice`].
    pub async fn slice(&self, offset: u64, len: u64) -> Result<MappedSlice<'_>> {
        self.0.slice(offset, len).await
    }

    /// Returns a `Bytes` that points into the memory and may outlive the handle; see
    /// [`MemoryMappedFile::bytes`].
    ///
    /// # Errors
    ///
    /// Same as [`MemoryMappedFile::bytes`].
    ///
    /// # Blocking
    ///
    /// Same as [`MemoryMappedFile::bytes`].
    pub fn bytes(&self, offset: u64, len: u64) -> Result<Bytes> {
        self.0.bytes(offset, len)
    }

    /// Returns a `Bytes` into the memory after bringing its pages into memory; see
    /// [`MemoryMappedFile::read_bytes`].
    ///
    /// # Errors
    ///
    /// Same as [`MemoryMappedFile::read_bytes`].
    ///
    /// # Cancel safety
    ///
    /// Same as [`MemoryMappedFile::read_bytes`].
    pub fn read_bytes(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<Bytes>> + Send + 'static {
        self.0.read_bytes(offset, len)
    }

    /// Copies a range into `buffer`; see [`MemoryMappedFile::read_into`].
    ///
    /// # Errors
    ///
    /// Same as [`MemoryMappedFile::read_into`].
    ///
    /// # Cancel safety
    ///
    /// Same as [`MemoryMappedFile::read_into`].
    pub async fn read_into(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.0.read_into(offset, buffer).await
    }

    /// Writes `data` at `offset`; visible to all readers on return; see
    /// [`MemoryMappedFile::update_region`].
    ///
    /// # Errors
    ///
    /// Same as [`MemoryMappedFile::update_region`].
    ///
    /// # Cancel safety
    ///
    /// Same as [`MemoryMappedFile::update_region`].
    pub async fn update_region(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.0.update_region(offset, data).await
    }

    /// Writes several ranges as one operation; see [`MemoryMappedFile::update_regions`].
    ///
    /// # Errors
    ///
    /// Same as [`MemoryMappedFile::update_regions`].
    ///
    /// # Cancel safety
    ///
    /// Same as [`MemoryMappedFile::update_regions`].
    pub async fn update_regions(&self, regions: &[(u64, &[u8])]) -> Result<()> {
        self.0.update_regions(regions).await
    }

    /// Writes `data` at `offset` without copying it first; see
    /// [`MemoryMappedFile::write_bytes`].
    ///
    /// # Errors
    ///
    /// Same as [`MemoryMappedFile::write_bytes`].
    ///
    /// # Cancel safety
    ///
    /// Same as [`MemoryMappedFile::write_bytes`].
    pub fn write_bytes(
        &self,
        offset: u64,
        data: Bytes,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        self.0.write_bytes(offset, data)
    }

    /// Writes `data` at `offset`, or returns `false` instead of waiting; see
    /// [`MemoryMappedFile::try_update_region`].
    ///
    /// # Errors
    ///
    /// Same as [`MemoryMappedFile::try_update_region`].
    ///
    /// # Cancel safety
    ///
    /// Same as [`MemoryMappedFile::try_update_region`].
    pub async fn try_update_region(&self, offset: u64, data: &[u8]) -> Result<bool> {
        self.0.try_update_region(offset, data).await
    }

    /// Waits for exclusive access to a range and returns a mutable view of it; see
    /// [`MemoryMappedFile::as_slice_mut`].
    ///
    /// # Errors
    ///
    /// Same as [`MemoryMappedFile::as_slice_mut`].
    ///
    /// # Cancel safety
    ///
    /// Same as [`MemoryMappedFile::as_slice_mut`].
    pub async fn as_slice_mut(&self, offset: u64, len: u64) -> Result<MappedSliceMut<'_>> {
        self.0.as_slice_mut(offset, len).await
    }

    /// Returns a mutable view of a range: [`as_slice_mut`](Self::as_slice_mut) under its old name.
    ///
    /// # Errors
    ///
    /// Same as [`MemoryMappedFile::as_slice_mut`].
    ///
    /// # Cancel safety
    ///
    /// Same as [`MemoryMappedFile::as_slice_mut`].
    pub async fn as_mut_slice(&self, offset: u64, len: u64) -> Result<MappedSliceMut<'_>> {
        self.as_slice_mut(offset, len).await
    }

    /// Returns a mutable view of a range, or `None` instead of waiting; see
    /// [`MemoryMappedFile::try_as_slice_mut`].
    ///
    /// # Errors
    ///
    /// Same as [`MemoryMappedFile::try_as_slice_mut`].
    ///
    /// # Blocking
    ///
    /// Same as [`MemoryMappedFile::try_as_slice_mut`].
    pub fn try_as_slice_mut(&self, offset: u64, len: u64) -> Result<Option<MappedSliceMut<'_>>> {
        self.0.try_as_slice_mut(offset, len)
    }

    /// Returns a mutable view or `None`: [`try_as_slice_mut`](Self::try_as_slice_mut) under its old
    /// name.
    ///
    /// # Errors
    ///
    /// Same as [`MemoryMappedFile::try_as_slice_mut`].
    ///
    /// # Blocking
    ///
    /// Same as [`MemoryMappedFile::try_as_slice_mut`].
    pub fn try_as_mut_slice(&self, offset: u64, len: u64) -> Result<Option<MappedSliceMut<'_>>> {
        self.try_as_slice_mut(offset, len)
    }

    /// Returns a view of the 4 bytes at `offset` as an atomic word; see
    /// [`MemoryMappedFile::atomic_u32`].
    ///
    /// # Errors
    ///
    /// Same as [`MemoryMappedFile::atomic_u32`].
    ///
    /// # Blocking
    ///
    /// Same as [`MemoryMappedFile::atomic_u32`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::atomic::Ordering;
    ///
    /// let memory = mmap_io::AnonymousMmap::new(4096)?;
    /// let ready = memory.atomic_u32(0)?;
    /// ready.store(1, Ordering::Release);
    /// # Ok::<_, mmap_io::MmapIoError>(())
    /// ```
    #[cfg(feature = "atomic")]
    #[cfg_attr(docsrs, doc(cfg(feature = "atomic")))]
    pub fn atomic_u32(&self, offset: u64) -> Result<AtomicView<'_, AtomicU32>> {
        self.0.atomic_u32(offset)
    }

    /// Returns a view of the 8 bytes at `offset` as an atomic word; see
    /// [`MemoryMappedFile::atomic_u64`].
    ///
    /// # Errors
    ///
    /// Same as [`MemoryMappedFile::atomic_u64`].
    ///
    /// # Blocking
    ///
    /// Same as [`MemoryMappedFile::atomic_u64`].
    #[cfg(feature = "atomic")]
    #[cfg_attr(docsrs, doc(cfg(feature = "atomic")))]
    pub fn atomic_u64(&self, offset: u64) -> Result<AtomicView<'_, AtomicU64>> {
        self.0.atomic_u64(offset)
    }

    /// Returns a view of `count` words of 4 bytes each, the first of them at `offset`; see
    /// [`MemoryMappedFile::atomic_u32_slice`].
    ///
    /// # Errors
    ///
    /// Same as [`MemoryMappedFile::atomic_u32_slice`].
    ///
    /// # Blocking
    ///
    /// Same as [`MemoryMappedFile::atomic_u32_slice`].
    #[cfg(feature = "atomic")]
    #[cfg_attr(docsrs, doc(cfg(feature = "atomic")))]
    pub fn atomic_u32_slice(
        &self,
        offset: u64,
        count: usize,
    ) -> Result<AtomicSliceView<'_, AtomicU32>> {
        self.0.atomic_u32_slice(offset, count)
    }

    /// Returns a view of `count` words of 8 bytes each, the first of them at `offset`; see
    /// [`MemoryMappedFile::atomic_u64_slice`].
    ///
    /// # Errors
    ///
    /// Same as [`MemoryMappedFile::atomic_u64_slice`].
    ///
    /// # Blocking
    ///
    /// Same as [`MemoryMappedFile::atomic_u64_slice`].
    #[cfg(feature = "atomic")]
    #[cfg_attr(docsrs, doc(cfg(feature = "atomic")))]
    pub fn atomic_u64_slice(
        &self,
        offset: u64,
        count: usize,
    ) -> Result<AtomicSliceView<'_, AtomicU64>> {
        self.0.atomic_u64_slice(offset, count)
    }

    /// Returns `true` if huge pages hold a part of the memory; see
    /// [`MemoryMappedFile::is_hugepage_backed`].
    ///
    /// The system may keep other anonymous memory of the process in one area with this mapping;
    /// then that memory counts as well.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub fn is_hugepage_backed(&self) -> impl Future<Output = Option<bool>> + Send + 'static {
        self.0.is_hugepage_backed()
    }

    /// Returns a raw pointer to the first byte, for reading; it never changes.
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

    /// Returns a raw pointer to the first byte, for writing; it never changes.
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
