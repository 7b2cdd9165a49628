//! Segments: ranges of a file that own a reference to its handle.

use std::fmt;
use std::sync::Arc;

#[cfg(doc)]
use crate::error::MmapIoError;
use crate::error::Result;
use crate::fairness::operation;
use crate::file::MemoryMappedFile;
use crate::range::ByteRange;
use crate::view::{MappedSlice, MappedSliceMut};

/// A range of a file for reading, which can be kept and cloned without borrowing the handle.
///
/// A segment holds a counted reference to its handle, an offset and a length; it holds no lease.
/// Each call checks the range against the length that the file has then: after a shrink a segment
/// may lie outside the file, and after growing back it works again.
///
/// # Examples
///
/// ```
/// # futures_lite::future::block_on(async {
/// # let dir = tempfile::tempdir()?;
/// # std::fs::write(dir.path().join("data"), b"header, body")?;
/// use std::sync::Arc;
/// use mmap_io::{MemoryMappedFile, Segment};
///
/// let file = Arc::new(MemoryMappedFile::open_ro(dir.path().join("data")).await?);
/// let body = Segment::new(file, 8, 4)?;
/// let reading = std::thread::spawn(move || body.as_slice().map(|slice| slice.to_vec()));
/// assert_eq!(reading.join().unwrap()?, b"body");
/// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct Segment {
    parent: Arc<MemoryMappedFile>,
    offset: u64,
    len: u64,
}

impl Segment {
    /// Makes a segment of `len` bytes at `offset`; 0 bytes may lie anywhere.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`](MmapIoError::OutOfBounds).
    pub fn new(parent: Arc<MemoryMappedFile>, offset: u64, len: u64) -> Result<Self> {
        let segment = Self {
            parent,
            offset,
            len,
        };
        segment.check()?;
        Ok(segment)
    }

    /// Returns a zero-copy view of the whole segment; see [`MemoryMappedFile::as_slice`].
    ///
    /// # Errors
    ///
    /// Those of [`MemoryMappedFile::as_slice`].
    ///
    /// # Blocking
    ///
    /// As [`MemoryMappedFile::as_slice`].
    pub fn as_slice(&self) -> Result<MappedSlice<'_>> {
        self.parent.as_slice(self.offset, self.len)
    }

    /// Returns the length of the segment in bytes, whether or not it lies inside the file.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns `true` if the segment has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the offset of the first byte in the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the handle on the file.
    pub fn parent(&self) -> &MemoryMappedFile {
        &self.parent
    }

    /// Returns `true` if the whole segment lies inside the file, as the file is now.
    pub fn is_valid(&self) -> bool {
        self.check().is_ok()
    }

    fn check(&self) -> Result<()> {
        match self.len {
            0 => Ok(()),
            len => ByteRange::new(self.offset, len, self.parent.len()).map(|_| ()),
        }
    }

    fn show(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name)
            .field("path", &self.parent.path())
            .field("offset", &self.offset)
            .field("len", &self.len)
            .finish()
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.show("Segment", f)
    }
}

/// A range of a file for writing, which can be kept and cloned without borrowing the handle.
///
/// The same as [`Segment`], for a handle that may write. It holds no lease either: clones, other
/// segments and the handle may write to the same bytes, one after the other.
///
/// # Examples
///
/// ```
/// # futures_lite::future::block_on(async {
/// # let dir = tempfile::tempdir()?;
/// use std::sync::Arc;
/// use mmap_io::{MemoryMappedFile, SegmentMut};
///
/// let file = MemoryMappedFile::create_rw(dir.path().join("data"), 100).await?;
/// let record = SegmentMut::new(Arc::new(file.clone()), 10, 5)?;
/// record.write(b"one").await?;
/// record.as_slice_mut().await?[3..].fill(b'!');
/// assert_eq!(file.as_slice(10, 5)?, b"one!!");
/// assert!(record.write(b"longer").await.is_err());
/// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct SegmentMut(Segment);

impl SegmentMut {
    /// Makes a segment of `len` bytes at `offset`; 0 bytes may lie anywhere.
    ///
    /// The mode of the handle is checked when the segment is written to.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`](MmapIoError::OutOfBounds).
    pub fn new(parent: Arc<MemoryMappedFile>, offset: u64, len: u64) -> Result<Self> {
        Segment::new(parent, offset, len).map(Self)
    }

    /// Waits for exclusive access and returns a mutable view of the whole segment; see
    /// [`MemoryMappedFile::as_slice_mut`].
    ///
    /// # Errors
    ///
    /// Those of [`MemoryMappedFile::as_slice_mut`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub async fn as_slice_mut(&self) -> Result<MappedSliceMut<'_>> {
        self.parent().as_slice_mut(self.offset(), self.len()).await
    }

    /// Writes `data` at the start of the segment, and leaves the rest of it; see
    /// [`MemoryMappedFile::update_region`].
    ///
    /// # Errors
    ///
    /// - [`OutOfBounds`](MmapIoError::OutOfBounds): `data` is longer than the segment, or the
    ///   segment does not lie inside the file, even if `data` would.
    /// - Those of [`MemoryMappedFile::update_region`].
    ///
    /// # Cancel safety
    ///
    /// As [`MemoryMappedFile::update_region`].
    pub async fn write(&self, data: &[u8]) -> Result<()> {
        let (offset, len) = (self.offset(), data.len() as u64);
        operation("writing", (offset, len), async {
            if data.is_empty() {
                return Ok(());
            }
            self.parent().handle.require_write()?;
            ByteRange::new(0, len, self.len())?;
            self.parent().writable_range(offset, self.len())?;
            self.parent().update_region(offset, data).await
        })
        .await
    }

    /// Returns the length of the segment in bytes, whether or not it lies inside the file.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Returns `true` if the segment has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the offset of the first byte in the file.
    pub fn offset(&self) -> u64 {
        self.0.offset()
    }

    /// Returns the handle on the file.
    pub fn parent(&self) -> &MemoryMappedFile {
        self.0.parent()
    }

    /// Returns `true` if the whole segment lies inside the file, as the file is now.
    pub fn is_valid(&self) -> bool {
        self.0.is_valid()
    }
}

impl fmt::Debug for SegmentMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.show("SegmentMut", f)
    }
}
