//! Iterating over the file in pieces of one size.

use std::fmt;
use std::iter::FusedIterator;

use super::MemoryMappedFile;
use crate::error::Result;
use crate::sys;
use crate::view::MappedSlice;

impl MemoryMappedFile {
    /// Returns an iterator over zero-copy views of `chunk_size` bytes each; the last may be shorter.
    ///
    /// The length is that at the time of the call. Each item is what [`as_slice`](Self::as_slice)
    /// returns for its range: it allocates nothing, keeps only its own bytes leased, and may outlive
    /// the iterator. 0 bytes a chunk yield nothing. For pages that are not in memory, use
    /// [`stream`](Self::stream).
    ///
    /// # Errors
    ///
    /// Each item is one of its own: those of [`as_slice`](Self::as_slice).
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # std::fs::write(dir.path().join("data"), b"some bytes")?;
    /// let file = mmap_io::MemoryMappedFile::open_ro(dir.path().join("data")).await?;
    /// for chunk in file.chunks(4) {
    ///     println!("{:?}", chunk?);
    /// }
    /// let last = file.chunks(4).next_back().unwrap()?;
    /// assert_eq!(last, b"es");
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn chunks(&self, chunk_size: usize) -> ChunkIterator<'_> {
        ChunkIterator::new(self, chunk_size as u64)
    }

    /// Returns an iterator over zero-copy views of one page each; the last may be shorter.
    ///
    /// Otherwise the same as [`chunks`](Self::chunks) of [`page_size`](crate::utils::page_size)
    /// bytes.
    ///
    /// # Errors
    ///
    /// As for [`chunks`](Self::chunks).
    pub fn pages(&self) -> ChunkIterator<'_> {
        ChunkIterator::new(self, sys::page_size() as u64)
    }

    /// Returns an iterator over copies of `chunk_size` bytes each; the last may be shorter.
    ///
    /// An item holds no lease: it delays no write. Bytes that an atomic view shows are copied as
    /// [`read_into`](Self::read_into) copies them. Otherwise the same as [`chunks`](Self::chunks).
    ///
    /// # Errors
    ///
    /// As for [`chunks`](Self::chunks); an atomic view is no reason for `Busy`, unless it is one of
    /// the file below a writable copy-on-write handle.
    pub fn chunks_owned(&self, chunk_size: usize) -> OwnedChunkIterator<'_> {
        OwnedChunkIterator(self.chunks(chunk_size))
    }

    /// Returns an iterator over copies of one page each; the last may be shorter.
    ///
    /// # Errors
    ///
    /// As for [`chunks_owned`](Self::chunks_owned).
    pub fn pages_owned(&self) -> OwnedChunkIterator<'_> {
        OwnedChunkIterator(self.pages())
    }
}

/// An iterator over views of a file; see [`MemoryMappedFile::chunks`].
#[derive(Clone)]
#[must_use = "iterators do nothing unless consumed"]
pub struct ChunkIterator<'a> {
    file: &'a MemoryMappedFile,
    chunk_size: u64,
    /// Length of the file when the iteration began.
    len: u64,
    /// The next chunk, by number, and the one after the last.
    next: u64,
    end: u64,
}

impl<'a> ChunkIterator<'a> {
    fn new(file: &'a MemoryMappedFile, chunk_size: u64) -> Self {
        let len = file.len();
        let end = match chunk_size {
            0 => 0,
            size => len.div_ceil(size),
        };
        Self {
            file,
            chunk_size,
            len,
            next: 0,
            end,
        }
    }

    /// The offset and the length of a chunk.
    fn place(&self, number: u64) -> (u64, u64) {
        let start = number * self.chunk_size;
        (start, self.chunk_size.min(self.len - start))
    }

    fn chunk(&self, number: u64) -> Result<MappedSlice<'a>> {
        let (start, len) = self.place(number);
        self.file.as_slice(start, len)
    }

    fn copy_of(&self, number: u64) -> Result<Vec<u8>> {
        let (start, len) = self.place(number);
        self.file.copy_now(start, len)
    }

    /// Takes the number of a chunk from the front, after others that are skipped.
    #[inline]
    fn advance(&mut self, skipped: usize) -> Option<u64> {
        let number = self.next.saturating_add(skipped as u64).min(self.end);
        self.next = (number + 1).min(self.end);
        (number < self.end).then_some(number)
    }

    /// Takes the number of a chunk from the back, after others that are skipped.
    fn advance_back(&mut self, skipped: usize) -> Option<u64> {
        let end = self.end.saturating_sub(skipped as u64).max(self.next);
        self.end = end.saturating_sub(1).max(self.next);
        (end > self.next).then_some(self.end)
    }
}

impl<'a> Iterator for ChunkIterator<'a> {
    type Item = Result<MappedSlice<'a>>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.nth(0)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // A file of more than 2^32 chunks of one byte on a 32-bit platform cannot be mapped.
        let left = (self.end - self.next) as usize;
        (left, Some(left))
    }

    #[inline]
    fn nth(&mut self, skipped: usize) -> Option<Self::Item> {
        self.advance(skipped).map(|number| self.chunk(number))
    }
}

impl DoubleEndedIterator for ChunkIterator<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.nth_back(0)
    }

    fn nth_back(&mut self, skipped: usize) -> Option<Self::Item> {
        self.advance_back(skipped).map(|number| self.chunk(number))
    }
}

impl ExactSizeIterator for ChunkIterator<'_> {}
impl FusedIterator for ChunkIterator<'_> {}

impl fmt::Debug for ChunkIterator<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkIterator")
            .field("chunk_size", &self.chunk_size)
            .field("next", &self.next)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

/// An iterator over copies of pieces of a file; see [`MemoryMappedFile::chunks_owned`].
#[derive(Clone, Debug)]
#[must_use = "iterators do nothing unless consumed"]
pub struct OwnedChunkIterator<'a>(ChunkIterator<'a>);

impl Iterator for OwnedChunkIterator<'_> {
    type Item = Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.nth(0)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }

    fn nth(&mut self, skipped: usize) -> Option<Self::Item> {
        self.0.advance(skipped).map(|number| self.0.copy_of(number))
    }
}

impl DoubleEndedIterator for OwnedChunkIterator<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.nth_back(0)
    }

    fn nth_back(&mut self, skipped: usize) -> Option<Self::Item> {
        self.0
            .advance_back(skipped)
            .map(|number| self.0.copy_of(number))
    }
}

impl ExactSizeIterator for OwnedChunkIterator<'_> {}
impl FusedIterator for OwnedChunkIterator<'_> {}
