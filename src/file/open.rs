//! Opening and creating files, under the names of the synchronous crate; the builder does the work.

use std::fs::File;
use std::future::Future;
use std::path::Path;

use super::{MemoryMappedFile, MemoryMappedFileBuilder};
#[cfg(doc)]
use crate::error::MmapIoError;
use crate::error::Result;
use crate::mode::MmapMode;

impl MemoryMappedFile {
    /// Returns a builder that opens or creates `path` with options.
    pub fn builder(path: impl AsRef<Path>) -> MemoryMappedFileBuilder {
        MemoryMappedFileBuilder::new(path.as_ref())
    }

    /// Creates a file of `size` bytes for reading and writing; truncates an existing file.
    ///
    /// The file is sparse: its blocks are allocated when they are written.
    /// [`open_or_create`](Self::open_or_create) keeps an existing file, and
    /// [`create_new`](MemoryMappedFileBuilder::create_new) fails.
    ///
    /// # Errors
    ///
    /// Those of [`create`](MemoryMappedFileBuilder::create).
    ///
    /// # Cancel safety
    ///
    /// As [`create`](MemoryMappedFileBuilder::create).
    pub fn create_rw(
        path: impl AsRef<Path>,
        size: u64,
    ) -> impl Future<Output = Result<Self>> + Send + 'static {
        Self::builder(path).size(size).create()
    }

    /// Opens an existing file for reading; it may be empty.
    ///
    /// # Errors
    ///
    /// Those of [`open`](MemoryMappedFileBuilder::open).
    ///
    /// # Cancel safety
    ///
    /// As [`open`](MemoryMappedFileBuilder::open).
    pub fn open_ro(path: impl AsRef<Path>) -> impl Future<Output = Result<Self>> + Send + 'static {
        Self::builder(path).open()
    }

    /// Opens an existing file for reading and writing; it must not be empty.
    ///
    /// # Errors
    ///
    /// Those of [`open`](MemoryMappedFileBuilder::open).
    ///
    /// # Cancel safety
    ///
    /// As [`open`](MemoryMappedFileBuilder::open).
    pub fn open_rw(path: impl AsRef<Path>) -> impl Future<Output = Result<Self>> + Send + 'static {
        Self::builder(path).mode(MmapMode::ReadWrite).open()
    }

    /// Opens a file for reading and writing, or creates it with `default_size` bytes.
    ///
    /// An existing file is never truncated, emptied or removed; if it is empty, it gets that
    /// many bytes.
    ///
    /// # Errors
    ///
    /// Those of [`open_or_create`](MemoryMappedFileBuilder::open_or_create).
    ///
    /// # Cancel safety
    ///
    /// As [`create`](MemoryMappedFileBuilder::create).
    pub fn open_or_create(
        path: impl AsRef<Path>,
        default_size: u64,
    ) -> impl Future<Output = Result<Self>> + Send + 'static {
        Self::builder(path).size(default_size).open_or_create()
    }

    /// Maps a file that is open already.
    ///
    /// The path is only for [`path`](Self::path): that the file has a name, and that the name is
    /// durable, is the caller's business.
    ///
    /// # Errors
    ///
    /// - [`InvalidMode`](MmapIoError::InvalidMode): the descriptor does not permit the mode, or
    ///   appends.
    /// - Those of [`open`](MemoryMappedFileBuilder::open).
    ///
    /// # Cancel safety
    ///
    /// As [`open`](MemoryMappedFileBuilder::open).
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # std::fs::write(dir.path().join("data"), b"some bytes")?;
    /// use mmap_io::{MemoryMappedFile, MmapMode};
    ///
    /// let plain = std::fs::File::open(dir.path().join("data"))?;
    /// let file = MemoryMappedFile::from_file(plain, MmapMode::ReadOnly, "data").await?;
    /// assert_eq!(file.as_slice(0, 4)?, b"some");
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    #[doc(alias = "mmap")]
    pub fn from_file(
        file: File,
        mode: MmapMode,
        path: impl AsRef<Path>,
    ) -> impl Future<Output = Result<Self>> + Send + 'static {
        Self::builder(path).mode(mode).open_descriptor(file)
    }
}
