//! Opening files copy-on-write.

use std::future::Future;
use std::path::Path;

use super::MemoryMappedFile;
#[cfg(doc)]
use crate::error::MmapIoError;
use crate::error::Result;
use crate::mode::MmapMode;

/// # Copy-on-write
///
/// What a writable copy-on-write handle writes stays in private copies of pages: it never reaches
/// the file, and is gone with the last clone of the handle and its last `Bytes`. Clones share the
/// private pages; another opening has its own.
///
/// Pages that were not written show the file, also what is written to it later. A page is copied as
/// a whole by the first write to it, and from then on it shows no change of the file. An operation
/// that was withdrawn, or has failed, may have copied pages without changing them.
/// [`advise`](Self::advise) with `DontNeed` throws copies away. Copies take memory, as
/// [`AnonymousMmap`](crate::AnonymousMmap) does, and no disk.
///
/// Since pages show the file, a view of the handle counts as a view of the file too: a write to
/// these bytes through another handle waits for it, and a shrink of the file waits for the views of
/// the part that is cut off. A write or a mutable view of the handle waits for writes and mutable
/// views of the file in the same pages, and blocks those of others while it lasts. So
/// [deadlocks](crate#deadlocks) are possible with views of the file as with those of the handle.
/// While an atomic view of the file lives, copies of its bytes through the handle wait for its end
/// ([`read_into`](Self::read_into), [`reader`](Self::reader)) or are `Busy` (`chunks_owned`);
/// beside an atomic view of the handle they are made.
///
/// The handle does not grow with the file. If the file is cut, the handle is cut as well, and what
/// was written behind the cut is lost: the system discards such copies.
///
/// A view costs two short locks, more than a view of a file.
impl MemoryMappedFile {
    /// Opens an existing file copy-on-write, for reading only.
    ///
    /// Nothing can be written through such a handle, so it shows the file, and does what a handle
    /// of [`open_ro`](Self::open_ro) does, except that the file must not be empty.
    /// [`open_cow_writable`](Self::open_cow_writable) opens a handle that may write.
    ///
    /// # Errors
    ///
    /// Those of [`open`](crate::MemoryMappedFileBuilder::open).
    ///
    /// # Cancel safety
    ///
    /// As [`open`](crate::MemoryMappedFileBuilder::open).
    pub fn open_cow(path: impl AsRef<Path>) -> impl Future<Output = Result<Self>> + Send + 'static {
        Self::builder(path).mode(MmapMode::CopyOnWrite).open()
    }

    /// Opens an existing file copy-on-write, for reading, and for writing to private pages.
    ///
    /// See [Copy-on-write](#copy-on-write). The permission to read the file is enough. Each call
    /// gets private pages of its own.
    ///
    /// # Errors
    ///
    /// - [`Io`](MmapIoError::Io): the system refuses a private mapping, as it may for a large file
    ///   where memory must not be overcommitted.
    /// - Those of [`open`](crate::MemoryMappedFileBuilder::open).
    ///
    /// # Cancel safety
    ///
    /// As [`open`](crate::MemoryMappedFileBuilder::open).
    ///
    /// # Platform-specific behavior
    ///
    /// `MAP_PRIVATE` of [`mmap(2)`] on Unix, where POSIX leaves open whether pages that were not
    /// written show later changes of the file; on Linux they do. `FILE_MAP_COPY` on Windows.
    ///
    /// [`mmap(2)`]: https://man7.org/linux/man-pages/man2/mmap.2.html
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("template");
    /// # std::fs::write(&path, b"Dear NAME")?;
    /// use mmap_io::MemoryMappedFile;
    ///
    /// let letter = MemoryMappedFile::open_cow_writable(&path).await?;
    /// letter.update_region(5, b"Ada!").await?;
    /// assert_eq!(letter.slice(0, 9).await?, b"Dear Ada!");
    /// assert_eq!(std::fs::read(&path)?, b"Dear NAME");
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn open_cow_writable(
        path: impl AsRef<Path>,
    ) -> impl Future<Output = Result<Self>> + Send + 'static {
        let builder = Self::builder(path).mode(MmapMode::CopyOnWrite);
        builder.cow_writable(true).open()
    }
}
