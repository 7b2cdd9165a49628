//! Changing the length of the file, and taking note of the length that another process gave it.

use std::future::Future;

use super::MemoryMappedFile;
#[cfg(doc)]
use crate::error::MmapIoError;
use crate::error::{Result, Subject};
use crate::fairness::operation;
use crate::queue::{Action, Op, Queue};
use crate::range::{check_size, ByteRange};

impl MemoryMappedFile {
    /// Changes the length of the file, longer or shorter.
    ///
    /// Growing waits for no view; shrinking waits for the views of the part that is cut off. If
    /// another process has shortened the file, and [`refresh`](Self::refresh) has taken note of
    /// that, growing over the lost bytes waits for the views of them.
    ///
    /// It takes its turn among the writes: writes submitted before it see the old length. The bytes
    /// that are added are zeroes, except for bytes that another process has appended before:
    /// growing does not cut them, and [`grow_to`](Self::grow_to) takes them as they are. Bytes that
    /// another process stored past the end through a mapping, without making the file longer, are
    /// cleared.
    ///
    /// # Errors
    ///
    /// - [`InvalidMode`](MmapIoError::InvalidMode) unless the handle is read-write.
    /// - [`ResizeFailed`](MmapIoError::ResizeFailed): size 0, more than 128 TiB (2 GiB - 1 on
    ///   32-bit platforms), or the system's refusal; then the length is what it was, although reads
    ///   of the part to be cut off may have been out of bounds in the meantime. Also if the file
    ///   was to grow and another process has made it longer than that: then the length is what the
    ///   other process has made it.
    /// - [`Truncated`](MmapIoError::Truncated): another process has shortened the file, and
    ///   [`refresh`](Self::refresh) was not called since.
    ///
    /// # Cancel safety
    ///
    /// As for a write.
    ///
    /// # Platform-specific behavior
    ///
    /// Linux grows the file by reserving its last block ([`fallocate(2)`]), which cannot cut it; every
    /// Unix cuts it by [`ftruncate(2)`]. Windows cuts no file that is mapped, as this one is: there a
    /// shorter length is `ResizeFailed`.
    ///
    /// [`fallocate(2)`]: https://man7.org/linux/man-pages/man2/fallocate.2.html
    /// [`ftruncate(2)`]: https://man7.org/linux/man-pages/man2/ftruncate.2.html
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 100).await?;
    /// let before = file.as_slice(0, 100)?;
    /// file.resize(1 << 20).await?;
    /// assert_eq!(file.len(), 1 << 20);
    /// assert_eq!(before, [0; 100]);
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn resize(&self, new_size: u64) -> impl Future<Output = Result<()>> + Send + 'static {
        let handle = self.handle.clone();
        operation("resizing to", Subject::Len(new_size), async move {
            handle.mode.require_write()?;
            check_size(new_size)?;
            let op = Op::new(ByteRange::between(new_size, u64::MAX), Action::Resize);
            Queue::submit(&handle.shared, op).await?;
            Ok(())
        })
    }

    /// Makes the file at least `min` bytes long, and returns its length; never shrinks it.
    ///
    /// A file that is longer, also because another process has appended to it, stays as long as it
    /// is. [`append`](Self::append) grows the file and writes in one step.
    ///
    /// Growing fills with zeroes, and takes its turn and waits, as [`resize`](Self::resize) does.
    ///
    /// # Errors
    ///
    /// Those of [`resize`](Self::resize).
    ///
    /// # Cancel safety
    ///
    /// As for a write.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 100).await?;
    /// assert_eq!(file.grow_to(4096).await?, 4096);
    /// assert_eq!(file.grow_to(10).await?, 4096);
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn grow_to(&self, min: u64) -> impl Future<Output = Result<u64>> + Send + 'static {
        let handle = self.handle.clone();
        operation("growing to", Subject::Len(min), async move {
            handle.mode.require_write()?;
            check_size(min)?;
            let op = Op::new(ByteRange::between(min, u64::MAX), Action::GrowTo);
            Queue::submit(&handle.shared, op).await?;
            Ok(handle.shared.len())
        })
    }

    /// Takes note of the length that another process has given the file, and returns it.
    ///
    /// Opening the file once more does the same. It waits for no view. Views of bytes that another
    /// process has cut off stay; touching such a byte raises `SIGBUS`, until the file is as long
    /// again. If the [fault guard](crate#the-fault-guard) has replaced such pages, the file is
    /// mapped again. If some of those bytes were written here and not flushed, then the next durable
    /// operation fails, once, and so does each that is waiting: with
    /// [`Truncated`](MmapIoError::Truncated), or with [`Faulted`](MmapIoError::Faulted) if they were
    /// stored to replaced pages.
    ///
    /// # Errors
    ///
    /// - [`ResizeFailed`](MmapIoError::ResizeFailed): it is longer than can be mapped.
    /// - [`Io`](MmapIoError::Io): the length cannot be asked for.
    /// - [`Faulted`](MmapIoError::Faulted): a page inside the file was lost, or a page was lost and
    ///   a view exists through which its holder may write.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws an operation that has not started; an operation that has
    /// started runs to completion, and harms nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("log");
    /// # std::fs::write(&path, "first")?;
    /// let log = mmap_io::MemoryMappedFile::open_ro(&path).await?;
    /// std::fs::write(&path, "first, second")?;
    /// assert_eq!(log.len(), 5);
    /// assert_eq!(log.refresh().await?, 13);
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn refresh(&self) -> impl Future<Output = Result<u64>> + Send + 'static {
        let handle = self.handle.clone();
        operation("asking for the length", Subject::Nothing, async move {
            let op = Op::new(ByteRange::EMPTY, Action::AdoptFileLen);
            // Private pages learn of a cut from the file.
            Queue::submit(&handle.shared.file_itself(), op).await?;
            handle.shared.check_whole(handle.protection())?;
            Ok(handle.shared.len())
        })
    }
}
