//! A reader over the file, for decoders and parsers: futures-io's traits, and tokio's.

#[cfg(all(test, target_os = "linux", feature = "fault-guard", not(mmap_io_loom)))]
mod tests;

use std::fmt;
use std::io::{self, SeekFrom};
use std::ops::{Range, RangeBounds};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{ready, Context, Poll};

use bytes::Bytes;
use futures_lite::{AsyncBufRead, AsyncRead, AsyncSeek};

use crate::boxed::Boxed;
use crate::error::{MmapIoError, Result};
use crate::fairness::copied;
use crate::fault_guard::IS_ON;
use crate::file::{Handle, MemoryMappedFile, ReadAhead};
use crate::lease::CopyLease;
use crate::offload::check;
use crate::range::ByteRange;
use crate::residency;

/// Most bytes that one read copies, and that a reader of a writable handle buffers.
const PIECE: u64 = 64 << 10;

/// How many bytes at a time are read in for a reader that goes on where it has read last.
const IN_ORDER: u64 = 256 << 10;

impl MemoryMappedFile {
    /// Returns a reader over the whole file, which begins at its first byte.
    ///
    /// It reads up to the length that the file has when it reads. See [`MmapReader`].
    pub fn reader(&self) -> MmapReader {
        MmapReader::new(self.clone(), 0, None)
    }

    /// Returns a reader over a range; position 0 is the start of the range.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`](crate::MmapIoError::OutOfBounds): the range does not lie inside the file.
    /// One that goes to the end of the file has to begin there at the latest.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # std::fs::write(dir.path().join("data"), b"some bytes")?;
    /// let file = mmap_io::MemoryMappedFile::open_ro(dir.path().join("data")).await?;
    /// use futures_lite::AsyncReadExt;
    ///
    /// let mut last = String::new();
    /// file.reader_range(5..)?.read_to_string(&mut last).await?;
    /// assert_eq!(last, "bytes");
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn reader_range(&self, range: impl RangeBounds<u64>) -> Result<MmapReader> {
        let range = ByteRange::resolve(range, self.len())?;
        Ok(MmapReader::new(
            self.clone(),
            range.start(),
            Some(range.end()),
        ))
    }
}

/// A reader over a file or a part of it; see [`MemoryMappedFile::reader`].
///
/// It implements `AsyncRead`, `AsyncBufRead` and `AsyncSeek` of futures-io, and those of tokio with
/// the feature `tokio`. It owns a clone of the handle. Pages that are not in memory are read in on the
/// pool before they are touched. Positions are those of a [`std::io::Cursor`]: any may be set, and
/// there is nothing to read past the end. Reads that follow each other read ahead, as a
/// [stream](MemoryMappedFile::stream) does.
///
/// An idle reader holds no lease. `fill_buf` lends the mapping on a read-only handle, under a lease
/// that ends when what was lent is consumed or read; on a writable handle it lends a copy of at
/// most 64 KiB, so that a write of bytes that the reader has buffered never waits for the reader.
/// Bytes that an atomic view shows are copied as [`read_into`](MemoryMappedFile::read_into) copies
/// them, also on a read-only handle.
///
/// # Examples
///
/// ```
/// # futures_lite::future::block_on(async {
/// # let dir = tempfile::tempdir()?;
/// # std::fs::write(dir.path().join("data"), b"one\ntwo\n")?;
/// use futures_lite::{AsyncBufReadExt, StreamExt};
///
/// let file = mmap_io::MemoryMappedFile::open_ro(dir.path().join("data")).await?;
/// let mut lines = file.reader().lines();
/// assert_eq!(lines.next().await.unwrap()?, "one");
/// assert_eq!(lines.next().await.unwrap()?, "two");
/// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
pub struct MmapReader {
    file: MemoryMappedFile,
    /// First byte of the range.
    start: u64,
    /// End of the range; `None` for that of the file.
    end: Option<u64>,
    position: u64,
    /// What `fill_buf` lends, from `position` on.
    buffered: Bytes,
    /// Whether that is a part of the mapping, and no copy. Then it may be cut off, or leave memory,
    /// at any time.
    is_mapped: bool,
    /// Whether `poll_fill_buf` of futures-io has answered. futures-lite calls it once more then, and
    /// panics without a second answer.
    has_answered: bool,
    /// The bytes at `position`, being read in.
    reading: Option<Reading>,
    read_ahead: Arc<ReadAhead>,
    /// The part of the file that was read last, or read in for the reads to come.
    recent: Range<u64>,
}

/// What is being read in, and from which position on.
struct Reading {
    position: u64,
    len: u64,
    future: Boxed<Result<()>>,
}

/// Bytes of the file that are in memory, and leased for a copy.
struct Ready {
    range: ByteRange,
    lease: CopyLease<Arc<Handle>>,
}

impl MmapReader {
    fn new(file: MemoryMappedFile, start: u64, end: Option<u64>) -> Self {
        Self {
            read_ahead: ReadAhead::new(&file, start),
            recent: start..start,
            file,
            start,
            end,
            position: 0,
            buffered: Bytes::new(),
            is_mapped: false,
            has_answered: false,
            reading: None,
        }
    }

    /// Returns the position: the offset in the range of the next byte to be read.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Sets the position. Any may be set: there is nothing to read past the end.
    pub fn set_position(&mut self, position: u64) {
        self.has_answered = false;
        if position != self.position {
            self.position = position;
            self.buffered = Bytes::new();
        }
    }

    /// Length of the range in bytes.
    fn len(&self) -> u64 {
        let end = self.end.unwrap_or_else(|| self.file.len());
        end.saturating_sub(self.start)
    }

    /// The next bytes, at most `most`; none at the end. The caller copies them in the same poll:
    /// until the lease ends, it may block a thread that makes an atomic view.
    fn poll_ready(
        &mut self,
        context: &mut Context<'_>,
        most: u64,
    ) -> Poll<io::Result<Option<Ready>>> {
        loop {
            // Loaded once: the file may be resized at any time.
            let (position, total) = (self.position, self.len());
            let len = most.min(total.saturating_sub(position));
            // It may have been asked for before, perhaps with another length.
            let goes_on = |reading: &Reading| {
                reading.position == position && (reading.len == 0) == (len == 0)
            };
            if !self.reading.as_ref().is_some_and(goes_on) {
                self.reading = Some(self.begin(position, len, total));
            }
            let reading = self.reading.as_mut().expect("set above");
            let len = len.min(reading.len);
            let read = ready!(reading.future.poll(context));
            self.reading = None;
            match read {
                Err(error) if self.is_cut(&error) => continue,
                read => read?,
            }
            if len == 0 {
                return Poll::Ready(Ok(None));
            }
            let start = self.start + position;
            let range = ByteRange::between(start, start + len);
            // Only now, since the future may yield to other tasks after it has waited. A writer may
            // have come first; then it waits once more.
            if let Ok(lease) = CopyLease::try_new(self.file.handle.clone(), range) {
                return Poll::Ready(Ok(Some(Ready { range, lease })));
            }
        }
    }

    /// Whether an operation has failed since the file was cut after its length had been loaded. A
    /// reader of the whole file goes on with what is left.
    fn is_cut(&self, error: &MmapIoError) -> bool {
        self.end.is_none() && matches!(error, MmapIoError::OutOfBounds { .. })
    }

    /// Begins to read bytes of a range of `total` bytes. If they continue what was read last, more is
    /// read in than that.
    fn begin(&mut self, position: u64, len: u64, total: u64) -> Reading {
        let file = self.file.clone();
        if len == 0 {
            // An operation as well: a loop that follows the file is to yield at its end.
            return Reading {
                position,
                len,
                future: Boxed::new(async move { file.read_bytes(0, 0).await.map(drop) }),
            };
        }
        let (at, end) = (self.start + position, self.start + total);
        let mut advancing = None;
        if !(self.recent.start..=self.recent.end).contains(&at) {
            self.recent = at..at + len;
        } else if at + len > self.recent.end {
            let piece = ByteRange::between(self.recent.end, end.min(at + IN_ORDER));
            self.recent.end = piece.end();
            advancing = self.read_ahead.advance(piece, end);
        }
        Reading {
            position,
            len,
            future: Boxed::new(async move {
                if let Some(advancing) = advancing {
                    advancing.await;
                }
                file.read_in_to_copy(at, len).await
            }),
        }
    }

    /// Passes the next bytes to `copy`, at most `most`, piece by piece, each with its place among
    /// them. At place 0 it begins again: what it has passed before does not count then.
    fn poll_copy(
        &mut self,
        context: &mut Context<'_>,
        most: usize,
        mut copy: impl FnMut(usize, &[u8]),
    ) -> Poll<io::Result<usize>> {
        self.has_answered = false;
        if !self.buffered.is_empty() && !self.is_mapped {
            let len = most.min(self.buffered.len());
            copy(0, &self.buffered[..len]);
            copied(len as u64);
            self.advance(len);
            return Poll::Ready(Ok(len));
        }
        let most = (most as u64).min(PIECE);
        loop {
            let Some(Ready { range, lease }) = ready!(self.poll_ready(context, most))? else {
                return Poll::Ready(Ok(0));
            };
            let mut at = 0;
            let copied_out = self.file.copy_out(&lease, range, |bytes| {
                copy(at, bytes);
                at += bytes.len();
            });
            if copied_out.is_err() {
                // Nothing of it counts, whatever comes next.
                copy(0, &[]);
            }
            match copied_out {
                Err(error) if self.is_cut(&error) => continue,
                done => done?,
            }
            copied(range.len());
            self.pass(range.len());
            return Poll::Ready(Ok(range.len() as usize));
        }
    }

    /// Buffers the next bytes, if none are buffered; none means the end.
    fn poll_buffer(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Err(error) = self.check_buffered() {
            self.buffered = Bytes::new();
            return Poll::Ready(Err(error.into()));
        }
        while self.buffered.is_empty() {
            let Some(Ready { range, lease }) = ready!(self.poll_ready(context, PIECE))? else {
                break;
            };
            match self.buffer(range, &lease) {
                Err(error) if self.is_cut(&error) => {}
                buffered => buffered?,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Buffers a range, which lies at the position.
    fn buffer(&mut self, range: ByteRange, lease: &CopyLease<Arc<Handle>>) -> Result<()> {
        let lent = match self.file.handle.may_write() {
            // Refused for bytes in atomic use, among others.
            false => self.file.try_bytes(range)?,
            true => None,
        };
        self.is_mapped = lent.is_some();
        self.buffered = match lent {
            Some(bytes) => bytes,
            None => {
                let mut copy = Vec::with_capacity(range.len() as usize);
                self.file
                    .copy_out(lease, range, |bytes| copy.extend_from_slice(bytes))?;
                copied(range.len());
                copy.into()
            }
        };
        Ok(())
    }

    /// Fails if what is buffered may show the zeroes of a page that was lost.
    fn check_buffered(&self) -> Result<()> {
        if !IS_ON || !self.is_mapped || self.buffered.is_empty() {
            return Ok(());
        }
        let handle = &self.file.handle;
        handle.shared.check_whole(handle.protection())?;
        let base = handle.shared.base(handle.protection()) as usize;
        let offset = (self.start + self.position) as usize;
        if self.buffered.as_ptr() as usize == base.wrapping_add(offset) {
            return Ok(());
        }
        // The file has another map by now: since it has grown, or since that map has lost a page.
        // In a forked child the list of maps may stay locked.
        check()?;
        residency::check_mapped(&self.buffered)
    }

    fn advance(&mut self, len: usize) {
        self.has_answered = false;
        // More than there is would be a mistake of the caller: nothing is skipped then.
        self.pass(len.min(self.buffered.len()) as u64);
    }

    /// Goes on behind the next `len` bytes.
    fn pass(&mut self, len: u64) {
        self.position += len;
        // The lease goes with the last of it.
        self.buffered = match usize::try_from(len) {
            Ok(len) if len < self.buffered.len() => self.buffered.slice(len..),
            _ => Bytes::new(),
        };
    }

    fn seek_to(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, offset) = match to {
            SeekFrom::Start(position) => {
                self.set_position(position);
                return Ok(position);
            }
            SeekFrom::End(offset) => (self.len(), offset),
            SeekFrom::Current(offset) => (self.position, offset),
        };
        let position = base.checked_add_signed(offset).ok_or_else(|| {
            let problem = "seeking to a position before the start";
            io::Error::new(io::ErrorKind::InvalidInput, problem)
        })?;
        self.set_position(position);
        Ok(position)
    }
}

impl AsyncRead for MmapReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let most = buffer.len();
        self.poll_copy(context, most, |at, bytes| {
            buffer[at..at + bytes.len()].copy_from_slice(bytes);
        })
    }
}

impl AsyncBufRead for MmapReader {
    fn poll_fill_buf(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if !std::mem::take(&mut this.has_answered) {
            ready!(this.poll_buffer(context))?;
            this.has_answered = true;
        } else if this.buffered.is_empty() {
            // The file may have grown since; but to be told that it ended is an answer, too.
            let _ = this.poll_buffer(context);
        }
        Poll::Ready(Ok(&this.buffered))
    }

    fn consume(mut self: Pin<&mut Self>, len: usize) {
        self.advance(len);
    }
}

impl AsyncSeek for MmapReader {
    fn poll_seek(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        to: SeekFrom,
    ) -> Poll<io::Result<u64>> {
        Poll::Ready(self.seek_to(to))
    }
}

#[cfg(feature = "tokio")]
#[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
mod tokio_traits {
    use tokio::io::{AsyncBufRead, AsyncRead, AsyncSeek, ReadBuf};

    use super::*;

    impl AsyncRead for MmapReader {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let (filled, most) = (buffer.filled().len(), buffer.remaining());
            ready!(self.poll_copy(context, most, |at, bytes| {
                buffer.set_filled(filled + at);
                buffer.put_slice(bytes);
            }))?;
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncBufRead for MmapReader {
        fn poll_fill_buf(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<io::Result<&[u8]>> {
            let this = self.get_mut();
            ready!(this.poll_buffer(context))?;
            Poll::Ready(Ok(&this.buffered))
        }

        fn consume(mut self: Pin<&mut Self>, len: usize) {
            self.advance(len);
        }
    }

    impl AsyncSeek for MmapReader {
        fn start_seek(mut self: Pin<&mut Self>, to: SeekFrom) -> io::Result<()> {
            self.seek_to(to).map(drop)
        }

        fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
            Poll::Ready(Ok(self.position))
        }
    }
}

impl fmt::Debug for MmapReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmapReader")
            .field("file", &self.file)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}
