//! Functions over paths, under the names of the synchronous crate.

use std::future::Future;
use std::path::Path;

use crate::error::{Result, Subject};
use crate::fairness::operation;
use crate::file::MemoryMappedFile;
use crate::mode::MmapMode;
use crate::offload::offload;
use crate::opening::absolute;

pub use crate::replace::replace;

/// Creates a file of `size` bytes, or truncates an existing one; see
/// [`MemoryMappedFile::create_rw`].
///
/// # Errors
///
/// Those of [`MemoryMappedFile::create_rw`].
///
/// # Cancel safety
///
/// As [`MemoryMappedFile::create_rw`].
pub fn create_mmap(
    path: impl AsRef<Path>,
    size: u64,
) -> impl Future<Output = Result<MemoryMappedFile>> + Send + 'static {
    MemoryMappedFile::create_rw(path, size)
}

/// Opens an existing file in a mode; see [`MemoryMappedFile::builder`].
///
/// # Errors
///
/// Those of [`open`](crate::MemoryMappedFileBuilder::open).
///
/// # Cancel safety
///
/// As [`open`](crate::MemoryMappedFileBuilder::open).
pub fn load_mmap(
    path: impl AsRef<Path>,
    mode: MmapMode,
) -> impl Future<Output = Result<MemoryMappedFile>> + Send + 'static {
    MemoryMappedFile::builder(path).mode(mode).open()
}

/// Opens an existing file and writes `data` at `offset`; not durable.
///
/// A program that writes more than once keeps a handle instead.
///
/// # Errors
///
/// Those of [`MemoryMappedFile::open_rw`] and [`MemoryMappedFile::update_region`].
///
/// # Cancel safety
///
/// As [`MemoryMappedFile::update_region`]: the write is not applied later if it has not started.
pub fn write_mmap(
    path: impl AsRef<Path>,
    offset: u64,
    data: &[u8],
) -> impl Future<Output = Result<()>> + Send + '_ {
    let file = MemoryMappedFile::open_rw(path);
    async move { file.await?.update_region(offset, data).await }
}

/// Writes `data` at `offset` through a handle; see [`MemoryMappedFile::update_region`].
///
/// # Errors
///
/// Those of [`MemoryMappedFile::update_region`].
///
/// # Cancel safety
///
/// As [`MemoryMappedFile::update_region`].
pub async fn update_region(file: &MemoryMappedFile, offset: u64, data: &[u8]) -> Result<()> {
    file.update_region(offset, data).await
}

/// Makes all completed writes to a file durable; see [`MemoryMappedFile::flush`].
///
/// # Errors
///
/// Those of [`MemoryMappedFile::flush`].
///
/// # Cancel safety
///
/// As [`MemoryMappedFile::flush`].
pub fn flush(file: &MemoryMappedFile) -> impl Future<Output = Result<()>> + Send + 'static {
    file.flush()
}

/// Copies a file by its path; see [`MemoryMappedFile::copy_to`].
///
/// # Errors
///
/// Those of [`MemoryMappedFile::open_ro`] and [`MemoryMappedFile::copy_to`].
///
/// # Cancel safety
///
/// As [`MemoryMappedFile::copy_to`].
pub fn copy_mmap(
    source: impl AsRef<Path>,
    destination: impl AsRef<Path>,
) -> impl Future<Output = Result<()>> + Send + 'static {
    let source = MemoryMappedFile::open_ro(source);
    let destination = absolute(destination.as_ref());
    async move { source.await?.copy_to(destination).await.map(|_| ()) }
}

/// Removes a file; on Unix, open handles on it go on working.
///
/// # Errors
///
/// [`Io`](crate::MmapIoError::Io), as of [`std::fs::remove_file`].
///
/// # Cancel safety
///
/// Dropping the future withdraws an operation that has not started; an operation that has started
/// runs to completion.
pub fn delete_mmap(path: impl AsRef<Path>) -> impl Future<Output = Result<()>> + Send + 'static {
    let location = absolute(path.as_ref());
    operation("deleting", Subject::from(path.as_ref()), async move {
        Ok(offload(move || std::fs::remove_file(location)).await?)
    })
}

/// Three of these functions under the names of their async forms in the synchronous crate.
pub mod r#async {
    use std::future::Future;
    use std::path::Path;

    use crate::error::Result;
    use crate::file::MemoryMappedFile;

    /// Creates a file: [`create_mmap`](super::create_mmap) under its old name.
    ///
    /// # Errors
    ///
    /// Those of [`create_mmap`](super::create_mmap).
    ///
    /// # Cancel safety
    ///
    /// As [`create_mmap`](super::create_mmap).
    pub fn create_mmap_async(
        path: impl AsRef<Path>,
        size: u64,
    ) -> impl Future<Output = Result<MemoryMappedFile>> + Send + 'static {
        super::create_mmap(path, size)
    }

    /// Copies a file: [`copy_mmap`](super::copy_mmap) under its old name.
    ///
    /// # Errors
    ///
    /// Those of [`copy_mmap`](super::copy_mmap).
    ///
    /// # Cancel safety
    ///
    /// As [`copy_mmap`](super::copy_mmap).
    pub fn copy_mmap_async(
        source: impl AsRef<Path>,
        destination: impl AsRef<Path>,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        super::copy_mmap(source, destination)
    }

    /// Removes a file: [`delete_mmap`](super::delete_mmap) under its old name.
    ///
    /// # Errors
    ///
    /// Those of [`delete_mmap`](super::delete_mmap).
    ///
    /// # Cancel safety
    ///
    /// As [`delete_mmap`](super::delete_mmap).
    pub fn delete_mmap_async(
        path: impl AsRef<Path>,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        super::delete_mmap(path)
    }
}
