//! The service of one file.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};

use http::{HeaderValue, Request, Response};
use tower_service::Service;

use crate::body::ResponseBody;
use crate::cache::Limits;
use crate::encoding::Encoding;
use crate::files::Files;
use crate::future::ResponseFuture;
use crate::lookup::Root;
use crate::response::{content_type, is_allowed, method_not_allowed, Server};

/// Serves one file, whatever the path of the request is.
///
/// It answers GET and HEAD requests as [`MappedDir`](crate::MappedDir) does. The path is the
/// caller's choice: symbolic links are followed. It is looked up for each request, so a file that
/// is replaced is seen at once.
///
/// # Examples
///
/// ```
/// # async fn example() -> std::io::Result<()> {
/// use mmap_io_http::MappedFile;
///
/// let app = axum::Router::<()>::new()
///     .route_service("/film", MappedFile::new("films/film.mp4"));
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// axum::serve(listener, app).await
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct MappedFile {
    server: Server,
    path: PathBuf,
    content_type: HeaderValue,
}

impl MappedFile {
    /// Makes a service of the file at `path`, with the content type of its extension.
    ///
    /// The file is not opened before the first request.
    pub fn new(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref().to_path_buf();
        Self {
            server: Server::new(Files::new(Root::Anywhere, Limits::default())),
            content_type: content_type(&path),
            path,
        }
    }

    /// Makes a service of the file at `path`, with this content type.
    pub fn new_with_mime(path: impl AsRef<Path>, content_type: HeaderValue) -> Self {
        Self {
            content_type,
            ..Self::new(path)
        }
    }

    /// Looks for the file compressed by gzip, as
    /// [`MappedDir::precompressed_gzip`](crate::MappedDir::precompressed_gzip) does.
    pub fn precompressed_gzip(self) -> Self {
        self.with(Encoding::Gzip)
    }

    /// Looks for the file compressed by Brotli, as
    /// [`MappedDir::precompressed_br`](crate::MappedDir::precompressed_br) does.
    pub fn precompressed_br(self) -> Self {
        self.with(Encoding::Brotli)
    }

    /// Looks for the file compressed by deflate, as
    /// [`MappedDir::precompressed_deflate`](crate::MappedDir::precompressed_deflate) does.
    pub fn precompressed_deflate(self) -> Self {
        self.with(Encoding::Deflate)
    }

    /// Looks for the file compressed by Zstandard, as
    /// [`MappedDir::precompressed_zstd`](crate::MappedDir::precompressed_zstd) does.
    pub fn precompressed_zstd(self) -> Self {
        self.with(Encoding::Zstd)
    }

    /// Sets the most bytes of one frame of a body, as
    /// [`MappedDir::with_buf_chunk_size`](crate::MappedDir::with_buf_chunk_size) does.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn with_buf_chunk_size(self, bytes: usize) -> Self {
        let server = self.server.with_chunk(bytes);
        Self { server, ..self }
    }

    fn with(self, encoding: Encoding) -> Self {
        let server = self.server.with(encoding);
        Self { server, ..self }
    }
}

impl<B> Service<Request<B>> for MappedFile {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        let this = self.clone();
        let (request, _) = request.into_parts();
        ResponseFuture::new(async move {
            if !is_allowed(&request.method) {
                return method_not_allowed();
            }
            match this
                .server
                .serve(&request, &this.path, this.content_type)
                .await
            {
                Ok(Some(response)) => response,
                Ok(None) => this.server.not_found(),
                Err(error) => this.server.failed(&error),
            }
        })
    }
}
