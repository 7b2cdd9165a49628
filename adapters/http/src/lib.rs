//! Memory-mapped files behind HTTP: [`MappedDir`] serves a directory, [`MappedFile`] one file.
//!
//! Both are tower services without a runtime: they run under axum, under hyper with any executor,
//! and in a test without a socket. The bytes of a body point into the mapping and are not copied;
//! no page fault and no look-up of a path blocks an executor thread.
//!
//! ```
//! # async fn example() -> std::io::Result<()> {
//! use mmap_io_http::{MappedDir, MappedFile};
//!
//! let files = MappedDir::new("assets").not_found_service(MappedFile::new("assets/404.html"));
//! let app = axum::Router::<()>::new().fallback_service(files);
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
//! axum::serve(listener, app).await
//! # }
//! ```
//!
//! The names are those of tower-http's `ServeDir` and `ServeFile`, so that a program moves over by
//! the name of the type.
//!
//! # What it answers
//!
//! What [RFC 9110] says, for GET and HEAD:
//!
//! | status | when |
//! |---|---|
//! | 200 | the whole file; also if a range is malformed, or ranges overlap, are more than 64, would take no less than the file, or are several of a compressed file |
//! | 206 | one range, or several as `multipart/byteranges` |
//! | 304 | `If-None-Match` or `If-Modified-Since` says that the client has the file |
//! | 307 | a directory without a slash at the end of its path |
//! | 404 | no file is there, or the path is refused |
//! | 405 | another method |
//! | 412 | `If-Match` or `If-Unmodified-Since` says that the file is not the one that the client means |
//! | 416 | a range with no byte inside the file |
//! | 500 | the file cannot be opened or read |
//! | 503 | the file is busy for a moment; with `Retry-After` |
//!
//! `If-Range` permits ranges only with the strong tag of the file. So a client that resumes a
//! download gets the rest of the same file or the whole of the new one, and never joins two.
//!
//! # Tags and dates
//!
//! The entity tag is made of the inode, the time of modification in nanoseconds, and the length. It
//! is strong, and there is a `Last-Modified`, if no other state of the file can have the same ones.
//! There are two exceptions: the file was modified within the last 2 s (or has a time in the
//! future), or [this process may write to
//! it](mmap_io::MemoryMappedFile::is_mapped_for_writing), or could at a moment since it was mapped:
//! such stores move the time late. Then the tag is weak and changes with each response, and there is
//! no date: the file is served whole or in ranges as any other, but not as "not modified".
//!
//! What another process stores through a mapping of its own moves the time late as well, and no
//! server can see that. Replace files by renaming, with [`mmap_io::replace`] for example.
//!
//! # Paths
//!
//! A path names a file below the root or it gets a 404. `..`, `.`, empty components, separators
//! that are encoded, backslashes and NUL are refused, in whatever spelling. On Linux the kernel
//! keeps the look-up below the root while it opens the file (`openat2` with `RESOLVE_BENEATH`);
//! elsewhere, and where a sandbox refuses that call, the path is walked component by component,
//! without links. So what is renamed or linked during a request leads to no other file. Links are
//! followed only with
//! [`follow_symlinks`](MappedDir::follow_symlinks), and never out of the root. FIFOs, sockets and
//! devices are not opened.
//!
//! # What stays mapped
//!
//! Files stay mapped between requests, within [limits](MappedDir::cache_limits). Each request looks
//! the path up again and compares device, inode, length and time of modification: a file that was
//! replaced is seen at once. Where the system has path and file in its caches (on Linux 5.12 and
//! later, on a local file system), that takes some microseconds on the thread that polls and cannot
//! block; else it takes a hop to the pool of the `blocking` crate.
//!
//! # Slow clients, writers, and files that are cut
//!
//! A body has frames of [at most 256 KiB](MappedDir::with_buf_chunk_size). A client that reads
//! slowly holds the one or two frames that the server has taken. They delay writes of this process
//! that overlap them, and nothing else.
//!
//! If another process cuts the file, the body ends with an error, and the client sees that it is
//! incomplete. The frames in the server's hand are the exception: they show bytes that are gone. A
//! server that gives them to the kernel gets an error from it. A server that *copies* them in this
//! process gets the signal `SIGBUS`, which ends it. So:
//!
//! - axum and hyper over tokio's sockets do not copy (HTTP/1);
//! - with hyper over other sockets, set `http1::Builder::writev(true)`;
//! - TLS and compression copy. Behind them, serve files that are replaced by renaming and not cut.
//!
//! # Platforms
//!
//! Unix; tested on Linux.
//!
//! # Features
//!
//! | feature | what it adds |
//! |---|---|
//! | `backend` | `MmapBackend`: mapped files for tower-http's `ServeDir` |
//!
//! [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(unix))]
compile_error!("mmap-io-http opens files relative to a directory, as only Unix does");

// Each module uses only modules above it.

// What requests say: paths, conditions, ranges, encodings.
mod encoding;
mod range;
mod request_path;

// Files: where they are, which state they are in, which of them are mapped.
mod lookup;

mod validators;

mod conditional;

mod cache;

mod files;

// Responses.
mod multipart;

mod body;
mod future;
mod response;

// The services.
mod dir;
mod file;

#[cfg(feature = "backend")]
mod backend;

#[cfg(feature = "backend")]
#[cfg_attr(docsrs, doc(cfg(feature = "backend")))]
pub use crate::backend::{MmapBackend, MmapBackendFile, MmapMetadata};
pub use crate::body::ResponseBody;
pub use crate::dir::{MappedDir, NoFallback};
pub use crate::file::MappedFile;
pub use crate::future::ResponseFuture;

/// The examples of the README, so that they are compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
