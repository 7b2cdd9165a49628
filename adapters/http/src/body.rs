//! The body of a response: a file or parts of it, without a copy, or that of a fallback.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{ready, Context, Poll};

use bytes::Bytes;
use futures_lite::{Stream, StreamExt};
use http_body::{Body, Frame, SizeHint};
use mmap_io::{MemoryMappedFile, MmapStream};

use crate::multipart::Piece;

/// The body of a response of [`MappedDir`](crate::MappedDir) or [`MappedFile`](crate::MappedFile).
///
/// The bytes of a file are not copied: each frame points into the mapping, is in memory when it is
/// yielded, and is at most as long as
/// [`with_buf_chunk_size`](crate::MappedDir::with_buf_chunk_size) says; the next one is read in
/// while one is sent. The length is exact. A client that reads slowly holds the frames that the
/// server has taken, and nothing else.
///
/// # Errors
///
/// A frame is an error if the file cannot be read, or was cut by another process. The server then
/// closes the connection before the end of the body, so that the client sees that it is incomplete.
#[must_use = "bodies do nothing unless polled"]
pub struct ResponseBody(Kind);

enum Kind {
    /// Bytes that are here, or none.
    Bytes(Bytes),
    Pieces(Box<Pieces>),
    Other(Pin<Box<dyn Body<Data = Bytes, Error = io::Error> + Send>>),
}

/// Parts of a file, and what stands between them.
struct Pieces {
    file: MemoryMappedFile,
    chunk: usize,
    /// The first frame, which is there before the head of the response.
    first: Option<Bytes>,
    /// The rest of the piece that is being sent.
    current: Option<MmapStream>,
    next: VecDeque<Piece>,
    /// Bytes that are still to be yielded.
    remaining: u64,
}

impl ResponseBody {
    pub(crate) fn empty() -> Self {
        Self(Kind::Bytes(Bytes::new()))
    }

    /// A range of a file. Waits for the first frame, so that an error can still become a status.
    pub(crate) async fn range(
        file: &MemoryMappedFile,
        range: Range<u64>,
        chunk: usize,
    ) -> io::Result<Self> {
        let len = range.end - range.start;
        if len <= chunk as u64 {
            return Ok(Self(Kind::Bytes(file.read_bytes(range.start, len).await?)));
        }
        let mut stream = file.stream(range, chunk)?;
        let first = stream.next().await.transpose()?;
        Ok(Self(Kind::Pieces(Box::new(Pieces {
            file: file.clone(),
            chunk,
            first,
            current: Some(stream),
            next: VecDeque::new(),
            remaining: len,
        }))))
    }

    /// Several pieces, one after the other.
    pub(crate) fn pieces(file: &MemoryMappedFile, pieces: Vec<Piece>, chunk: usize) -> Self {
        Self(Kind::Pieces(Box::new(Pieces {
            file: file.clone(),
            chunk,
            first: None,
            current: None,
            remaining: pieces.iter().map(Piece::len).sum(),
            next: pieces.into(),
        })))
    }

    /// The body of another service.
    pub(crate) fn other<B>(body: B) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        Self(Kind::Other(Box::pin(Other(Box::pin(body)))))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut self.0 {
            Kind::Bytes(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Kind::Pieces(pieces) => {
                let bytes = ready!(pieces.poll_next(context));
                Poll::Ready(bytes.map(|bytes| bytes.map(Frame::data)))
            }
            Kind::Other(body) => body.as_mut().poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Bytes(bytes) => bytes.is_empty(),
            Kind::Pieces(pieces) => pieces.remaining == 0,
            Kind::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Pieces(pieces) => SizeHint::with_exact(pieces.remaining),
            Kind::Other(body) => body.size_hint(),
        }
    }
}

impl Pieces {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let next = ready!(self.poll_bytes(context));
        match &next {
            Some(Ok(bytes)) => self.remaining -= bytes.len() as u64,
            // Nothing comes after an error.
            Some(Err(_)) | None => {
                self.current = None;
                self.next.clear();
            }
        }
        Poll::Ready(next)
    }

    fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        loop {
            if let Some(current) = &mut self.current {
                match ready!(Pin::new(current).poll_next(context)) {
                    Some(bytes) => return Poll::Ready(Some(bytes.map_err(io::Error::from))),
                    None => self.current = None,
                }
            }
            match self.next.pop_front() {
                Some(Piece::Text(text)) => return Poll::Ready(Some(Ok(text))),
                Some(Piece::Range(range)) => match self.file.stream(range, self.chunk) {
                    Ok(stream) => self.current = Some(stream),
                    Err(error) => return Poll::Ready(Some(Err(error.into()))),
                },
                None => return Poll::Ready(None),
            }
        }
    }
}

/// A body whose errors become those of a [`ResponseBody`].
struct Other<B>(Pin<Box<B>>);

impl<B> Body for Other<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let frame = ready!(self.0.as_mut().poll_frame(context));
        let into_io = |error: Box<dyn Error + Send + Sync>| match error.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(error) => io::Error::other(error),
        };
        Poll::Ready(frame.map(|frame| frame.map_err(|error| into_io(error.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody")
            .field("size_hint", &self.size_hint())
            .finish_non_exhaustive()
    }
}
