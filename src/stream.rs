//! Streams of `Bytes`: a range of the file, piece by piece, each in memory before it is yielded.

use std::fmt;
use std::future::Future;
use std::ops::RangeBounds;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_lite::Stream;

use crate::error::Result;
use crate::file::MemoryMappedFile;
use crate::range::ByteRange;

/// A future of a piece, or of its pages.
type Boxed<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

impl MemoryMappedFile {
    /// Returns a stream of zero-copy `Bytes` over a range, `chunk` bytes each; the last may be shorter.
    ///
    /// Each item is in memory when it is yielded, as [`read_bytes`](Self::read_bytes) has it; while the
    /// caller uses it, the next one is read in, and no more than that. The stream owns a clone of the
    /// handle, and holds no lease itself: an item delays writes that overlap it until it is dropped.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`](crate::MmapIoError::OutOfBounds): the range does not lie inside the file. An
    /// item is an error of [`read_bytes`](Self::read_bytes); the stream ends after it.
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
            reading: None,
            ahead: None,
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
    /// The next piece.
    reading: Option<Boxed<Bytes>>,
    /// The pages of the next piece, being read in.
    ahead: Option<Boxed<()>>,
}

impl MmapStream {
    /// Length of the next piece in bytes; 0 at the end.
    fn next_len(&self) -> u64 {
        self.chunk.min(self.end - self.next)
    }

    /// Returns the number of bytes that are still to be yielded.
    pub fn remaining(&self) -> u64 {
        self.end - self.next
    }

    /// Starts reading the next piece in.
    fn read_ahead(&mut self) {
        if self.next == self.end {
            return;
        }
        let mut ahead: Boxed<()> =
            Box::pin(self.file.touch_pages_range(self.next, self.next_len()));
        // It starts now. This task is not to be woken for it: it asks again when it is polled.
        let polled = ahead.as_mut().poll(&mut Context::from_waker(noop_waker()));
        self.ahead = polled.is_pending().then_some(ahead);
    }
}

fn noop_waker() -> &'static Waker {
    use std::sync::{Arc, OnceLock};
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
        if let Some(ahead) = &mut this.ahead {
            // Its error comes from the piece itself, which is read in again.
            let _ = std::task::ready!(ahead.as_mut().poll(context));
            this.ahead = None;
        }
        let (next, len) = (this.next, this.next_len());
        let file = &this.file;
        let reading = this
            .reading
            .get_or_insert_with(|| Box::pin(file.read_bytes(next, len)));
        let read = std::task::ready!(reading.as_mut().poll(context));
        this.reading = None;
        match &read {
            Ok(_) => {
                this.next += len;
                this.read_ahead();
            }
            Err(_) => this.next = this.end,
        }
        Poll::Ready(Some(read))
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
