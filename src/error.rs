//! The crate's error type.

use std::error::Error;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The result of this crate's operations.
pub type Result<T, E = MmapIoError> = std::result::Result<T, E>;

/// Why an operation on a mapped file failed.
///
/// The message is a sentence that names the operation, the path or the range, and what the system
/// said; [`source`](Error::source) goes on below that, so that a chain of errors says nothing
/// twice. [`io_error`](Self::io_error), [`io_kind`](Self::io_kind) and
/// [`raw_os_error`](Self::raw_os_error) return the system's own error, so that a caller can tell a
/// full disk from a failing disk.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MmapIoError {
    /// The operating system refused a call.
    #[error(transparent)]
    Io(Cause),

    /// The mode of the handle, or of the descriptor behind it, does not permit the operation.
    #[error(transparent)]
    InvalidMode(Cause),

    /// The range does not lie inside the file.
    #[error("{len} bytes at offset {offset} are out of bounds: there are {total} bytes")]
    OutOfBounds {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Length of the file in bytes when it was looked at.
        total: u64,
    },

    /// The offset is not a multiple of what the access requires.
    #[error("offset {offset} is not a multiple of {required}")]
    Misaligned {
        /// Required alignment in bytes.
        required: u64,
        /// The offset given.
        offset: u64,
    },

    /// A live view or a running write conflicts with the operation, or the path is mapped in this
    /// process.
    #[error("{}", Busy { offset: *offset, len: *len, path: path.as_deref().map(PathBuf::as_path) })]
    #[non_exhaustive]
    Busy {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// The path that was to be created or overwritten, if the operation was about a path.
        path: Option<Arc<PathBuf>>,
    },

    /// A flush failed. The error sticks to the file: every later durable operation reports it,
    /// until the last handle and `Bytes` of the file are gone.
    #[error(transparent)]
    FlushFailed(Cause),

    /// The file cannot be given that size.
    #[error(transparent)]
    ResizeFailed(Cause),

    /// The operating system refused the advice.
    #[error(transparent)]
    AdviceFailed(Cause),

    /// Locking failed: pages in memory, or an advisory lock on the file. The kind of the cause is
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if another process has the advisory lock.
    #[error(transparent)]
    LockFailed(Cause),

    /// The operating system refused to unlock pages.
    #[error(transparent)]
    UnlockFailed(Cause),

    /// The file cannot be watched.
    #[error(transparent)]
    WatchFailed(Cause),

    /// The file is shorter than it was: another process truncated it.
    #[error("{len} bytes at offset {offset} are gone: the file was truncated to {file_len} bytes")]
    Truncated {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Length of the file in bytes as it is now.
        file_len: u64,
    },

    /// A page of the file was lost while it was in use, and the
    /// [fault guard](crate#the-fault-guard) (feature `fault-guard`) has replaced it by zeroes.
    ///
    /// Every operation on the file fails until the file is mapped again: by
    /// [`refresh`](crate::MemoryMappedFile::refresh) or an opening, if another process has cut the
    /// file; otherwise after its last handle and view are gone.
    #[error("the mapping lost the page at offset {offset}")]
    Faulted {
        /// Offset of the first lost page in bytes; 0 in a child that was forked off.
        offset: u64,
    },
}

impl MmapIoError {
    /// Returns the operating system's error number, if that is where the error comes from.
    ///
    /// ```
    /// let error = mmap_io::MmapIoError::from(std::io::Error::from_raw_os_error(28));
    /// assert_eq!(error.raw_os_error(), Some(28));
    /// ```
    pub fn raw_os_error(&self) -> Option<i32> {
        self.io_error()?.raw_os_error()
    }

    /// Returns the kind of the I/O error that caused this one, if there is one.
    ///
    /// ```
    /// let error = mmap_io::MmapIoError::from(std::io::Error::from(std::io::ErrorKind::NotFound));
    /// assert_eq!(error.io_kind(), Some(std::io::ErrorKind::NotFound));
    /// ```
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        Some(self.io_error()?.kind())
    }

    /// Returns the I/O error that caused this one, if there is one.
    pub fn io_error(&self) -> Option<&io::Error> {
        self.cause().map(|cause| &**cause)
    }

    fn cause(&self) -> Option<&Cause> {
        match self {
            Self::Io(cause)
            | Self::InvalidMode(cause)
            | Self::FlushFailed(cause)
            | Self::ResizeFailed(cause)
            | Self::AdviceFailed(cause)
            | Self::LockFailed(cause)
            | Self::UnlockFailed(cause)
            | Self::WatchFailed(cause) => Some(cause),
            Self::OutOfBounds { .. }
            | Self::Misaligned { .. }
            | Self::Busy { .. }
            | Self::Truncated { .. }
            | Self::Faulted { .. } => None,
        }
    }

    /// Adds the operation that met the error, unless code closer to its origin has named one.
    pub(crate) fn during(mut self, operation: &'static str, subject: impl Into<Subject>) -> Self {
        match &mut self {
            Self::Io(cause)
            | Self::InvalidMode(cause)
            | Self::FlushFailed(cause)
            | Self::ResizeFailed(cause)
            | Self::AdviceFailed(cause)
            | Self::LockFailed(cause)
            | Self::UnlockFailed(cause)
            | Self::WatchFailed(cause) => cause.add_context(|| Context {
                operation,
                subject: subject.into(),
            }),
            Self::Busy { path, .. } => {
                if let (None, Subject::Path(busy)) = (&path, subject.into()) {
                    *path = Some(busy);
                }
            }
            Self::OutOfBounds { .. }
            | Self::Misaligned { .. }
            | Self::Truncated { .. }
            | Self::Faulted { .. } => {}
        }
        self
    }

    /// Makes the error of an operation that a mode, or a descriptor, does not permit.
    pub(crate) fn invalid_mode(problem: &'static str) -> Self {
        Self::InvalidMode(io::Error::new(io::ErrorKind::PermissionDenied, problem).into())
    }

    /// Makes the error of `len` bytes for whose copy there is no memory.
    pub(crate) fn no_memory(len: u64) -> Self {
        let problem = format!("there is no memory for a copy of the {len} bytes");
        io::Error::new(io::ErrorKind::OutOfMemory, problem).into()
    }

    /// Makes the error of a size that the file cannot be given.
    pub(crate) fn resize_failed(cause: impl Into<Cause>) -> Self {
        Self::ResizeFailed(cause.into())
    }

    /// Makes the error of a lock that the process did not get, on pages or on a file.
    pub(crate) fn lock_failed(cause: impl Into<Cause>) -> Self {
        Self::LockFailed(cause.into())
    }

    /// Makes the error of advice that the system refused.
    pub(crate) fn advice_failed(cause: impl Into<Cause>) -> Self {
        Self::AdviceFailed(cause.into())
    }
}

impl From<io::Error> for MmapIoError {
    fn from(error: io::Error) -> Self {
        Self::Io(error.into())
    }
}

/// Keeps the kind, and the whole error inside, which [`io::Error::get_ref`] reaches.
impl From<MmapIoError> for io::Error {
    fn from(error: MmapIoError) -> Self {
        let kind = error.io_kind().unwrap_or(match error {
            MmapIoError::OutOfBounds { .. } | MmapIoError::Misaligned { .. } => {
                io::ErrorKind::InvalidInput
            }
            MmapIoError::Busy { .. } => io::ErrorKind::WouldBlock,
            MmapIoError::Truncated { .. } => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::Other,
        });
        Self::new(kind, error)
    }
}

/// An [`io::Error`], and the operation that met it.
///
/// Its message is the whole sentence, of which the `io::Error`'s message is the end. Clones share
/// the `io::Error`.
#[derive(Clone, Debug)]
pub struct Cause(Arc<Met>);

/// Behind one pointer, so that errors are small: see [`MmapIoError`]'s size.
#[derive(Debug)]
struct Met {
    error: Arc<io::Error>,
    context: Option<Context>,
}

/// A read returns its view, or an error, in registers only if the error is no larger than that:
/// with one of 56 bytes a read of 25 ns takes 35.
const _: () = assert!(std::mem::size_of::<MmapIoError>() <= 32);

#[derive(Clone, Debug)]
struct Context {
    operation: &'static str,
    subject: Subject,
}

/// What an operation was about: what its error message names.
#[derive(Clone, Debug)]
pub(crate) enum Subject {
    Nothing,
    Path(Arc<PathBuf>),
    /// An offset and a number of bytes.
    Bytes(u64, u64),
    /// A length in bytes.
    Len(u64),
}

impl Deref for Cause {
    type Target = io::Error;

    fn deref(&self) -> &io::Error {
        &self.0.error
    }
}

impl Cause {
    /// Names the operation that met the error, unless code closer to its origin has done so.
    /// Clones stay as they are.
    fn add_context(&mut self, context: impl FnOnce() -> Context) {
        if self.0.context.is_none() {
            self.0 = Arc::new(Met {
                error: self.0.error.clone(),
                context: Some(context()),
            });
        }
    }
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        Self(Arc::new(Met {
            error: Arc::new(error),
            context: None,
        }))
    }
}

impl From<io::ErrorKind> for Cause {
    fn from(kind: io::ErrorKind) -> Self {
        io::Error::from(kind).into()
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Context { operation, subject }) = &self.0.context {
            write!(f, "{operation}")?;
            match subject {
                Subject::Nothing => {}
                Subject::Path(path) => write!(f, " {}", path.display())?,
                Subject::Bytes(offset, len) => write!(f, " {len} bytes at offset {offset}")?,
                Subject::Len(len) => write!(f, " {len} bytes")?,
            }
            write!(f, " failed: ")?;
        }
        self.0.error.fmt(f)
    }
}

impl Error for Cause {
    /// Below the `io::Error`, whose message is part of this one's.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.error.source()
    }
}

impl From<&Path> for Subject {
    fn from(path: &Path) -> Self {
        Self::Path(Arc::new(path.into()))
    }
}

impl From<&PathBuf> for Subject {
    fn from(path: &PathBuf) -> Self {
        Self::Path(Arc::new(path.clone()))
    }
}

impl From<(u64, u64)> for Subject {
    fn from((offset, len): (u64, u64)) -> Self {
        Self::Bytes(offset, len)
    }
}

/// Writes the message of [`MmapIoError::Busy`].
struct Busy<'a> {
    offset: u64,
    len: u64,
    path: Option<&'a Path>,
}

impl fmt::Display for Busy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, len, path } = self;
        match path {
            Some(path) => write!(f, "{} is mapped in this process", path.display()),
            None => write!(
                f,
                "{len} bytes at offset {offset} are in use by a live view"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::range::ByteRange;

    fn denied() -> io::Error {
        io::Error::new(
            io::ErrorKind::PermissionDenied,
            io::Error::from(io::ErrorKind::NotConnected),
        )
    }

    #[test]
    fn a_chain_says_nothing_twice() {
        let path = Path::new("/a/file");
        let error = MmapIoError::from(denied()).during("opening", path);
        let inner = io::Error::from(io::ErrorKind::NotConnected);
        assert_eq!(
            error.to_string(),
            format!("opening /a/file failed: {inner}")
        );
        // The inner error has no message of its own below that.
        assert!(error.source().is_none());
        assert_eq!(error.io_kind(), Some(io::ErrorKind::PermissionDenied));
        let bare = MmapIoError::from(io::Error::from_raw_os_error(2));
        assert_eq!(
            bare.to_string(),
            io::Error::from_raw_os_error(2).to_string()
        );
    }

    #[test]
    fn the_innermost_operation_is_named() {
        let error = MmapIoError::from(io::Error::from_raw_os_error(28));
        let error = error.during("writing", (10, 4));
        let error = error.during("opening", Path::new("elsewhere"));
        let cause = io::Error::from_raw_os_error(28);
        let message = format!("writing 4 bytes at offset 10 failed: {cause}");
        assert_eq!(error.to_string(), message);
        assert_eq!(error.clone().raw_os_error(), Some(28));
    }

    #[test]
    fn messages_name_the_numbers() {
        let error = MmapIoError::OutOfBounds {
            offset: 90,
            len: 20,
            total: 100,
        };
        assert_eq!(
            error.to_string(),
            "20 bytes at offset 90 are out of bounds: there are 100 bytes"
        );
        assert_eq!(error.io_kind(), None);
        let busy = ByteRange::between(5, 8).busy();
        assert_eq!(
            busy.to_string(),
            "3 bytes at offset 5 are in use by a live view"
        );
        let busy = busy.during("creating", Path::new("/a/file"));
        assert_eq!(busy.to_string(), "/a/file is mapped in this process");
    }

    #[test]
    fn an_io_error_keeps_the_kind_and_the_whole() {
        let error = MmapIoError::from(io::Error::from(io::ErrorKind::NotFound));
        let plain = io::Error::from(error.during("opening", Path::new("x")));
        assert_eq!(plain.kind(), io::ErrorKind::NotFound);
        let inner = plain.get_ref().unwrap().downcast_ref::<MmapIoError>();
        assert!(matches!(inner, Some(MmapIoError::Io(_))));
        assert!(plain.to_string().starts_with("opening x failed: "));
        let bounds = io::Error::from(ByteRange::between(0, 9).out_of_bounds(5));
        assert_eq!(bounds.kind(), io::ErrorKind::InvalidInput);
    }
}
