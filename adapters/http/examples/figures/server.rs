//! The servers that are compared: the same but for the service.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use axum::extract::Request;
use axum::response::IntoResponse;
use axum::serve::ListenerExt;
use axum::Router;
use mmap_io_http::{MappedDir, MappedFile};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tower::Service;
use tower_http::services::{ServeDir, ServeFile};

/// A server on a port of its own, which ends when this is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    _runtime: Runtime,
}

impl Server {
    pub(crate) fn mapped(path: &Path) -> io::Result<Self> {
        Self::start(MappedFile::new(path))
    }

    pub(crate) fn plain(path: &Path) -> io::Result<Self> {
        Self::start(ServeFile::new(path))
    }

    pub(crate) fn mapped_directory(path: &Path) -> io::Result<Self> {
        Self::start(MappedDir::new(path))
    }

    pub(crate) fn plain_directory(path: &Path) -> io::Result<Self> {
        Self::start(ServeDir::new(path))
    }

    fn start<S>(service: S) -> io::Result<Self>
    where
        S: Service<Request, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Response: IntoResponse,
        S::Future: Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let listener = listener.tap_io(|stream| {
            // It fails for a client that has gone.
            let _ = stream.set_nodelay(true);
        });
        let app = Router::new().fallback_service(service);
        runtime.spawn(async move { axum::serve(listener, app).await });
        Ok(Self {
            address,
            _runtime: runtime,
        })
    }
}
