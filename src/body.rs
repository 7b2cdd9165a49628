//! A file, or a part of it, as the body of an HTTP message.

use std::ops::RangeBounds;
use std::pin::Pin;
use std::task::{ready, Context, Poll};

use bytes::Bytes;
use futures_lite::Stream;
use http_body::{Body, Frame, SizeHint};

use crate::error::{MmapIoError, Result};
use crate::file::MemoryMappedFile;
use crate::stream::MmapStream;

/// Bytes of one frame.
const FRAME: usize = 256 << 10;

impl MemoryMappedFile {
    /// Returns a range as the body of an HTTP message, for hyper, axum and tower.
    ///
    /// The bytes are not copied: each frame points into the mapping, is in memory when it is yielded,
    /// and has at most 256 KiB. The length is exact, so that the message gets a `Content-Length`. The
    /// body reads ahead as a [`stream`](Self::stream) does.
    ///
    /// A slow client holds at most the frames that the server has taken: they delay writes that
    /// overlap them, and nothing else.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`](crate::MmapIoError::OutOfBounds): the range does not lie inside the file.
    /// One that goes to the end of the file has to begin there at the latest. A
    /// frame is an error of [`read_bytes`](Self::read_bytes); the body ends after it, so that the
    /// server closes the connection and the client sees that the content is incomplete.
    ///
    /// # Cancel safety
    ///
    /// Dropping the body leaves nothing behind but pages that are resident.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # std::fs::write(dir.path().join("data"), b"some bytes")?;
    /// use http_body_util::BodyExt;
    ///
    /// let file = mmap_io::MemoryMappedFile::open_ro(dir.path().join("data")).await?;
    /// let response = http::Response::new(file.body(5..)?);
    /// let content = response.into_body().collect().await?.to_bytes();
    /// assert_eq!(content, "bytes");
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    #[cfg_attr(docsrs, doc(cfg(feature = "http-body")))]
    pub fn body(&self, range: impl RangeBounds<u64>) -> Result<MmapBody> {
        Ok(MmapBody(self.stream(range, FRAME)?))
    }
}

/// The body of an HTTP message; see [`MemoryMappedFile::body`].
#[derive(Debug)]
#[must_use = "bodies do nothing unless polled"]
pub struct MmapBody(MmapStream);

impl MmapBody {
    /// Chooses whether pages leave memory when they have been sent; see
    /// [`MmapStream::drop_behind`].
    pub fn drop_behind(self, drop_behind: bool) -> Self {
        Self(self.0.drop_behind(drop_behind))
    }
}

impl Body for MmapBody {
    type Data = Bytes;
    type Error = MmapIoError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>>>> {
        let item = ready!(Pin::new(&mut self.0).poll_next(context));
        Poll::Ready(item.map(|bytes| bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.remaining() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.remaining())
    }
}
