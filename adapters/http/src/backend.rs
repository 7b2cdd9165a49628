//! Mapped files under tower-http's `ServeDir`.

use std::future::Future;
use std::io::{self, SeekFrom};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use mmap_io::MmapReader;
use tokio::io::{AsyncRead, AsyncSeek, ReadBuf};
use tower_http::services::fs::{Backend, File, Metadata};

use crate::cache::Limits;
use crate::files::{Files, Opened};
use crate::lookup::{Found, Identity, Root};

/// Serves `ServeDir`'s files from mappings, for services that stay with `ServeDir`.
///
/// All that `ServeDir` does works as it does without it. Its body copies the bytes of a file once,
/// and so does this backend; it saves the hop to a pool for each piece, and the opening of the file
/// for each request. [`MappedDir`](crate::MappedDir) does not copy, and knows more of HTTP.
///
/// Clones share their mapped files, which are bounded as those of a
/// [`MappedDir`](crate::MappedDir::cache_limits) are by default.
///
/// # Examples
///
/// ```
/// use mmap_io_http::MmapBackend;
/// use tower_http::services::ServeDir;
///
/// let files = ServeDir::with_backend("assets", MmapBackend::new());
/// let app = axum::Router::<()>::new().fallback_service(files);
/// ```
#[derive(Clone, Debug)]
pub struct MmapBackend {
    files: Arc<Files>,
}

impl MmapBackend {
    /// Makes a backend without mapped files.
    pub fn new() -> Self {
        Self {
            files: Arc::new(Files::new(Root::Anywhere, Limits::default())),
        }
    }
}

impl Default for MmapBackend {
    fn default() -> Self {
        Self::new()
    }
}

type Boxed<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

impl Backend for MmapBackend {
    type File = MmapBackendFile;
    type Metadata = MmapMetadata;
    type OpenFuture = Boxed<MmapBackendFile>;
    type MetadataFuture = Boxed<MmapMetadata>;

    fn open(&self, path: PathBuf) -> Self::OpenFuture {
        let files = Arc::clone(&self.files);
        Box::pin(async move {
            match files.open(&path).await? {
                Opened::Directory => Err(io::ErrorKind::NotFound.into()),
                Opened::File(mapped) => Ok(MmapBackendFile {
                    reader: mapped.file.reader_range(..mapped.identity.len)?,
                    metadata: MmapMetadata(Found::File(mapped.identity)),
                }),
            }
        })
    }

    fn metadata(&self, path: PathBuf) -> Self::MetadataFuture {
        let files = Arc::clone(&self.files);
        Box::pin(async move { Ok(MmapMetadata(files.look_up(path).await?)) })
    }
}

/// A mapped file, as `ServeDir` reads it; see [`MmapBackend`].
#[derive(Debug)]
pub struct MmapBackendFile {
    reader: MmapReader,
    metadata: MmapMetadata,
}

impl File for MmapBackendFile {
    type Metadata = MmapMetadata;
    type MetadataFuture<'a> = std::future::Ready<io::Result<MmapMetadata>>;

    fn metadata(&self) -> Self::MetadataFuture<'_> {
        std::future::ready(Ok(self.metadata))
    }
}

impl AsyncRead for MmapBackendFile {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.reader), context, buffer)
    }
}

impl AsyncSeek for MmapBackendFile {
    fn start_seek(mut self: Pin<&mut Self>, position: SeekFrom) -> io::Result<()> {
        AsyncSeek::start_seek(Pin::new(&mut self.reader), position)
    }

    fn poll_complete(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<u64>> {
        AsyncSeek::poll_complete(Pin::new(&mut self.reader), context)
    }
}

/// What `ServeDir` asks about a path; see [`MmapBackend`].
#[derive(Clone, Copy, Debug)]
pub struct MmapMetadata(Found);

impl MmapMetadata {
    fn identity(&self) -> Option<&Identity> {
        match &self.0 {
            Found::File(identity) => Some(identity),
            Found::Directory => None,
        }
    }
}

impl Metadata for MmapMetadata {
    fn is_dir(&self) -> bool {
        self.identity().is_none()
    }

    fn modified(&self) -> io::Result<SystemTime> {
        let modified = self.identity().and_then(Identity::modified);
        modified.ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    fn len(&self) -> u64 {
        self.identity().map_or(0, |identity| identity.len)
    }
}
