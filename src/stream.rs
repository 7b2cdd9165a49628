//! Streams of `Bytes`: a range of the file, piece by piece, each in memory before it is yielded.

use std::fmt;
use std::ops::RangeBounds;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{ready, Context, Poll, Waker};

use bytes::Bytes;
use futures_lite::Stream;

use crate::boxed::Boxed;
use crate::error::Result;
use crate::file::{MemoryMappedFile, ReadAhead};
use crate::range::ByteRange;

impl MemoryMappedFile {
    /// Returns a stream of zero-copy `Bytes` over a range, `chunk` bytes each; the last may be shorter.
    ///
    /// Each item is in memory when it is yielded, as [`read_bytes`](Self::read_bytes) has it; while the
    /// caller uses it, the next one is read in, and the system reads ahead of that as it does for
    /// every file that is read in order. The stream owns a clone of the handle, and holds no lease
    /// itself: an item delays writes that overlap it until it is dropped.
    /// [`MmapStream::drop_behind`] bounds the memory of long scans.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`](crate::MmapIoError::OutOfBounds): the range does not lie inside the file.
    /// One that goes to the end of the file has to begin there at the latest.
    /// An item is an error of [`read_bytes`](Self::read_bytes); the stream ends after it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the stream leaves nothing behind but pages that are resident.
    ///
    /// # Panics
    ///
    /// If `chunk` is 0.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # std::fs::write(dir.path().join("data"), b"some bytes")?;
    /// use futures_lite::StreamExt;
    ///
    /// let file = mmap_io::MemoryMappedFile::open_ro(dir.path().join("data")).await?;
    /// let mut stream = file.stream(5.., 3)?;
    /// assert_eq!(stream.next().await.unwrap()?, "byt");
    /// assert_eq!(stream.next().await.unwrap()?, "es");
    /// assert!(stream.next().await.is_none());
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn stream(&self, range: impl RangeBounds<u64>, chunk: usize) -> Result<MmapStream> {
        assert!(chunk > 0, "a stream of chunks of 0 bytes would not end");
        let range = ByteRange::resolve(range, self.len())?;
        Ok(MmapStream {
            file: self.clone(),
            next: range.start(),
            end: range.end(),
            chunk: chunk as u64,
            read_ahead: ReadAhead::new(self, range.start()),
            has_begun: false,
            advancing: None,
            reading: None,
        })
    }
}

/// A stream over a range of a file; see [`MemoryMappedFile::stream`].
#[must_use = "streams do nothing unless polled"]
pub struct MmapStream {
    file: MemoryMappedFile,
    /// First byte of the next piece.
    next: u64,
    end: u64,
    chunk: u64,
    read_ahead: Arc<ReadAhead>,
    /// Whether the first piece was asked for.
    has_begun: bool,
    /// The next piece, being read in.
    advancing: Option<Boxed<()>>,
    /// The next piece, being made ready to be leased.
    reading: Option<Boxed<Result<()>>>,
}

impl MmapStream {
    /// Chooses whether pages leave memory when the stream has passed them. By default they stay.
    ///
    /// With it, a scan of a file that is larger than memory keeps the size of the process and of the
    /// page cache bounded, and does not drive out the pages that others use. A page is dropped when
    /// the stream yields a later item and no view shows the page. Pages that were in the page
    /// cache before the stream came to them stay, where the system tells (it does not tell a
    /// process that neither owns nor may write the file), and pages that are not yet written out
    /// stay. When the stream is dropped, it drops the rest of what it has read, but not the
    /// pages whose read has not ended.
    ///
    /// Nothing is lost: a page that is dropped is read again when it is touched.
    pub fn drop_behind(self, drop_behind: bool) -> Self {
        self.read_ahead.set_drop_behind(drop_behind);
        self
    }

    /// Length of the next piece in bytes; 0 at the end.
    fn next_len(&self) -> u64 {
        self.chunk.min(self.end - self.next)
    }

    /// Returns the number of bytes that are still to be yielded.
    pub fn remaining(&self) -> u64 {
        self.end - self.next
    }

    /// Starts reading the next piece in.
    fn advance(&mut self) {
        let piece = ByteRange::between(self.next, self.next + self.next_len());
        if piece.is_empty() {
            return;
        }
        let advancing = self.read_ahead.advance(piece, self.end);
        self.advancing = advancing.and_then(|advancing| {
            let mut advancing = Boxed::new(advancing);
            // It begins now. This task is not to be woken for it yet: the task polls again when it
            // wants the piece.
            let context = &mut Context::from_waker(noop_waker());
            advancing.poll(context).is_pending().then_some(advancing)
        });
    }
}

fn noop_waker() -> &'static Waker {
    use std::sync::OnceLock;
    use std::task::Wake;
    struct Noop;
    impl Wake for Noop {
        fn wake(self: Arc<Self>) {}
    }
    static NOOP: OnceLock<Waker> = OnceLock::new();
    NOOP.get_or_init(|| Waker::from(Arc::new(Noop)))
}

impl Stream for MmapStream {
    type Item = Result<Bytes>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes>>> {
        let this = &mut *self;
        if this.next == this.end {
            return Poll::Ready(None);
        }
        if !std::mem::replace(&mut this.has_begun, true) {
            this.advance();
        }
        if let Some(advancing) = &mut this.advancing {
            ready!(advancing.poll(context));
            this.advancing = None;
        }
        let (next, len) = (this.next, this.next_len());
        let range = ByteRange::between(next, next + len);
        loop {
            let file = &this.file;
            let reading = this
                .reading
                .get_or_insert_with(|| Boxed::new(file.clone().read_in_to_lend(next, len)));
            let read = ready!(reading.poll(context));
            this.reading = None;
            // Only now, since the future may yield to other tasks after it has waited, and an idle
            // stream holds no lease. A writer may have come first; then it waits once more.
            let leased = read.and_then(|()| file.try_bytes(range));
            let Some(item) = leased.transpose() else {
                continue;
            };
            match &item {
                Ok(_) => {
                    this.next += len;
                    this.advance();
                }
                Err(_) => this.next = this.end,
            }
            return Poll::Ready(Some(item));
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.remaining().div_ceil(self.chunk) as usize;
        // An error ends it.
        (left.min(1), Some(left))
    }
}

impl fmt::Debug for MmapStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmapStream")
            .field("file", &self.file)
            .field("next", &self.next)
            .field("end", &self.end)
            .field("chunk", &self.chunk)
            .finish_non_exhaustive()
    }
}
