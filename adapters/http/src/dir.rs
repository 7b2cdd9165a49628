//! The service of a directory.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::path::Path;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{
    HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE,
    LOCATION, RANGE,
};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body::Body;
use tower_service::Service;

use crate::body::ResponseBody;
use crate::cache::Limits;
use crate::encoding::Encoding;
use crate::files::Files;
use crate::future::ResponseFuture;
use crate::lookup::{Root, Symlinks};
use crate::request_path::RequestPath;
use crate::response::{content_type, is_allowed, method_not_allowed, status, Server};

/// Serves the files of a directory and of the directories below it.
///
/// A tower `Service` for any runtime; clones share their mapped files. See the
/// [crate page](crate) for what it answers.
///
/// # Examples
///
/// ```
/// # async fn example() -> std::io::Result<()> {
/// use mmap_io_http::{MappedDir, MappedFile};
///
/// let files = MappedDir::new("assets").not_found_service(MappedFile::new("assets/404.html"));
/// let app = axum::Router::<()>::new().fallback_service(files);
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// axum::serve(listener, app).await
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct MappedDir<F = NoFallback> {
    site: Site,
    fallback: Option<F>,
    on_fallback: OnFallback,
}

/// The directory, and how paths of requests become paths of files.
#[derive(Clone, Debug)]
struct Site {
    server: Server,
    appends_index: bool,
    redirects: bool,
}

/// The headers by which a client asks for a part of a file, or for one that it does not have. A
/// response that is none of success ignores them (RFC 9110, sections 13.2.1 and 14.2).
const CONDITIONS: [HeaderName; 6] = [
    IF_MATCH,
    IF_NONE_MATCH,
    IF_MODIFIED_SINCE,
    IF_UNMODIFIED_SINCE,
    IF_RANGE,
    RANGE,
];

/// What a fallback is called for, and what its response becomes.
#[derive(Clone, Copy, Debug, Default)]
struct OnFallback {
    for_other_methods: bool,
    sets_not_found: bool,
}

impl MappedDir {
    /// Makes a service of the directory at `root`.
    ///
    /// The directory is looked up for each request, and links in `root` itself are followed: it may
    /// be a link that is moved from one release to the next.
    pub fn new(root: impl AsRef<Path>) -> Self {
        let root = Root::Directory {
            path: root.as_ref().to_path_buf(),
            symlinks: Symlinks::Refuse,
        };
        Self {
            site: Site {
                server: Server::new(Files::new(root, Limits::default())),
                appends_index: true,
                redirects: true,
            },
            fallback: None,
            on_fallback: OnFallback::default(),
        }
    }
}

impl<F> MappedDir<F> {
    /// Chooses whether a request for a directory gets its `index.html`; it does by default.
    pub fn append_index_html_on_directories(mut self, append: bool) -> Self {
        self.site.appends_index = append;
        self
    }

    /// Chooses whether a request for a directory without a slash at its end is redirected to the
    /// path with the slash, so that relative links of the page work; it is by default.
    ///
    /// The redirect is relative: it is right below whatever path the service is mounted at.
    /// Without it, the request gets the `index.html` at once.
    pub fn redirect_to_trailing_slash(mut self, redirect: bool) -> Self {
        self.site.redirects = redirect;
        self
    }

    /// Chooses whether symbolic links below the root are followed, where they lead to files below
    /// the root; they are not by default.
    ///
    /// A link that leads out of the root, or is absolute, is never followed.
    ///
    /// # Platform-specific behavior
    ///
    /// Only [`openat2(2)`] (Linux 5.6) follows links safely. Where the system lacks it, or a
    /// sandbox refuses it, no link is followed.
    ///
    /// [`openat2(2)`]: https://man7.org/linux/man-pages/man2/openat2.2.html
    pub fn follow_symlinks(self, follow: bool) -> Self {
        let symlinks = match follow {
            true => Symlinks::Follow,
            false => Symlinks::Refuse,
        };
        let root = match self.site.server.files.root().clone() {
            Root::Directory { path, .. } => Root::Directory { path, symlinks },
            root => root,
        };
        let limits = self.site.server.files.limits();
        self.with_files(Files::new(root, limits))
    }

    /// Sets how many files stay mapped between requests, and how many bytes they have in all; 256
    /// files and 64 GiB by default (256 MiB on 32-bit platforms).
    ///
    /// The file that was used least recently goes first. Each has a descriptor. The bytes are
    /// addresses and not memory: the system decides which pages stay in memory. With 0 files, each
    /// request maps its file anew.
    ///
    /// A file that was removed goes when its path is asked for, or by these limits; its disk space
    /// is free after that.
    pub fn cache_limits(self, files: usize, bytes: u64) -> Self {
        let root = self.site.server.files.root().clone();
        self.with_files(Files::new(root, Limits { files, bytes }))
    }

    /// Looks for files compressed by gzip: if the client accepts it, a request for `page.html` gets
    /// `page.html.gz`, if that is there.
    ///
    /// Of several encodings the client gets the one that it prefers; of those that it likes
    /// equally, the first of Brotli, Zstandard, gzip, deflate. Ranges and entity tags are those of
    /// the compressed file.
    pub fn precompressed_gzip(self) -> Self {
        self.with(Encoding::Gzip)
    }

    /// Looks for files compressed by Brotli, with the suffix `.br`, as
    /// [`precompressed_gzip`](Self::precompressed_gzip) does.
    pub fn precompressed_br(self) -> Self {
        self.with(Encoding::Brotli)
    }

    /// Looks for files compressed by deflate, with the suffix `.zz`, as
    /// [`precompressed_gzip`](Self::precompressed_gzip) does.
    pub fn precompressed_deflate(self) -> Self {
        self.with(Encoding::Deflate)
    }

    /// Looks for files compressed by Zstandard, with the suffix `.zst`, as
    /// [`precompressed_gzip`](Self::precompressed_gzip) does.
    pub fn precompressed_zstd(self) -> Self {
        self.with(Encoding::Zstd)
    }

    /// Sets the most bytes of one frame of a body; 256 KiB by default.
    ///
    /// A client that reads slowly holds one or two frames. Larger frames cost less work for each
    /// byte.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn with_buf_chunk_size(mut self, bytes: usize) -> Self {
        self.site.server = self.site.server.with_chunk(bytes);
        self
    }

    /// Sets a service that answers requests for which there is no file.
    ///
    /// It gets the request as it is, and its response is not changed.
    /// [`not_found_service`](Self::not_found_service) makes it a 404.
    pub fn fallback<F2>(self, fallback: F2) -> MappedDir<F2> {
        MappedDir {
            site: self.site,
            fallback: Some(fallback),
            on_fallback: OnFallback {
                sets_not_found: false,
                ..self.on_fallback
            },
        }
    }

    /// Sets a service that answers requests for which there is no file, and makes its responses
    /// 404s.
    ///
    /// It gets the request without ranges and conditions, so that each 404 has the whole page.
    pub fn not_found_service<F2>(self, service: F2) -> MappedDir<F2> {
        let mut this = self.fallback(service);
        this.on_fallback.sets_not_found = true;
        this
    }

    /// Chooses whether the fallback also answers requests that are neither GET nor HEAD; by default
    /// they get a 405.
    pub fn call_fallback_on_method_not_allowed(mut self, call: bool) -> Self {
        self.on_fallback.for_other_methods = call;
        self
    }

    fn with(mut self, encoding: Encoding) -> Self {
        self.site.server = self.site.server.with(encoding);
        self
    }

    fn with_files(mut self, files: Files) -> Self {
        self.site.server.files = files.into();
        self
    }
}

impl Site {
    /// Answers a GET or HEAD request.
    ///
    /// # Errors
    ///
    /// `NotFound`: the path is refused, or names no file. Otherwise the file cannot be read.
    async fn answer(&self, request: &Parts) -> io::Result<Response<ResponseBody>> {
        let not_found = || io::Error::from(io::ErrorKind::NotFound);
        let path = RequestPath::parse(request.uri.path()).ok_or_else(not_found)?;
        if !path.names_directory {
            let content_type = content_type(&path.relative);
            let served = self
                .server
                .serve(request, &path.relative, content_type)
                .await?;
            if let Some(response) = served {
                return Ok(response);
            }
            if self.appends_index && self.redirects {
                return redirect(&request.uri).ok_or_else(not_found);
            }
        }
        if !self.appends_index {
            return Err(not_found());
        }
        let index = path.relative.join("index.html");
        let content_type = content_type(&index);
        let served = self.server.serve(request, &index, content_type).await?;
        served.ok_or_else(not_found)
    }
}

/// Redirects to the same path with a slash at its end.
///
/// The reference is relative, and `./` keeps a colon in the name from looking like a scheme.
fn redirect(uri: &Uri) -> Option<Response<ResponseBody>> {
    let (_, name) = uri.path().rsplit_once('/').unwrap_or(("", uri.path()));
    let location = match uri.query() {
        Some(query) => format!("./{name}/?{query}"),
        None => format!("./{name}/"),
    };
    let mut response = status(StatusCode::TEMPORARY_REDIRECT);
    let location = HeaderValue::try_from(location).ok()?;
    response.headers_mut().insert(LOCATION, location);
    Some(response)
}

impl<F, B, FallbackBody> Service<Request<B>> for MappedDir<F>
where
    F: Service<Request<B>, Response = Response<FallbackBody>, Error = Infallible>,
    F: Clone + Send + 'static,
    F::Future: Send + 'static,
    B: Send + 'static,
    FallbackBody: Body<Data = Bytes> + Send + 'static,
    FallbackBody::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        match &mut self.fallback {
            Some(fallback) => fallback.poll_ready(context),
            None => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        // The one that is ready; a clone need not be.
        let fallback = self.fallback.as_mut().map(|fallback| {
            let clone = fallback.clone();
            std::mem::replace(fallback, clone)
        });
        let (site, on_fallback) = (self.site.clone(), self.on_fallback);
        let (request, body) = request.into_parts();
        ResponseFuture::new(async move {
            let is_allowed = is_allowed(&request.method);
            let response = match is_allowed {
                true => match site.answer(&request).await {
                    Ok(response) => return response,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        site.server.not_found()
                    }
                    Err(error) => return site.server.failed(&error),
                },
                false => method_not_allowed(),
            };
            let (true, Some(mut fallback)) =
                (is_allowed || on_fallback.for_other_methods, fallback)
            else {
                return response;
            };
            let mut request = Request::from_parts(request, body);
            if on_fallback.sets_not_found {
                for condition in CONDITIONS {
                    request.headers_mut().remove(condition);
                }
            }
            let response = match fallback.call(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            let mut response = response.map(ResponseBody::other);
            if on_fallback.sets_not_found {
                *response.status_mut() = StatusCode::NOT_FOUND;
            }
            response
        })
    }
}

/// The fallback of a [`MappedDir`] that has none: there is no value of it.
#[derive(Clone, Copy, Debug)]
pub enum NoFallback {}

impl<B> Service<Request<B>> for NoFallback {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        match *self {}
    }

    fn call(&mut self, _: Request<B>) -> ResponseFuture {
        match *self {}
    }
}
