//! The crate's error type.

use std::io;
use std::sync::Arc;

/// The result of this crate's operations.
pub type Result<T, E = MmapIoError> = std::result::Result<T, E>;

/// Why an operation on a mapped file failed.
///
/// The cause, where there is one, is kept as [`source`](std::error::Error::source); the message
/// does not repeat it. [`raw_os_error`](Self::raw_os_error) and [`io_kind`](Self::io_kind) reach
/// through to it, so that a caller can tell a full disk from a bad one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MmapIoError {
    /// The operating system refused a call.
    #[error("I/O error")]
    Io(#[from] io::Error),

    /// The mode of the mapping, or of the descriptor behind it, does not permit the operation.
    #[error("not permitted in this mode: {0}")]
    InvalidMode(&'static str),

    /// The range does not lie inside the file.
    #[error("{len} bytes at offset {offset} are out of bounds of {total} bytes")]
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

    /// A live view, or a live mapping of the path, is in the way.
    #[error("{len} bytes at offset {offset} are in use")]
    Busy {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
    },

    /// A flush failed. The error sticks to the file: every later durable operation reports it,
    /// until the last handle and `Bytes` of the file are gone.
    #[error("flush failed")]
    FlushFailed(#[source] Arc<io::Error>),

    /// The file cannot be given that size.
    #[error("resize failed")]
    ResizeFailed(#[source] io::Error),

    /// The operating system refused the advice.
    #[error("advice failed")]
    AdviceFailed(#[source] io::Error),

    /// Locking failed: pages in memory, or an advisory lock on the file.
    #[error("lock failed")]
    LockFailed(#[source] io::Error),

    /// Unlocking failed.
    #[error("unlock failed")]
    UnlockFailed(#[source] io::Error),

    /// The file cannot be watched.
    #[error("watch failed")]
    WatchFailed(#[source] io::Error),

    /// The file is shorter than it was: somebody else truncated it.
    #[error("{len} bytes at offset {offset} are gone: the file was truncated to {file_len} bytes")]
    Truncated {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Length of the file in bytes as it is now.
        file_len: u64,
    },

    /// A page of the mapping was lost while it was in use, and the mapping is poisoned.
    #[error("the mapping lost the page at offset {offset}")]
    Faulted {
        /// Offset of the first lost page in bytes.
        offset: u64,
    },
}

impl MmapIoError {
    /// The operating system's error number, if that is where the error comes from.
    ///
    /// ```
    /// let error = mmap_io::MmapIoError::from(std::io::Error::from_raw_os_error(28));
    /// assert_eq!(error.raw_os_error(), Some(28));
    /// ```
    pub fn raw_os_error(&self) -> Option<i32> {
        self.io_cause()?.raw_os_error()
    }

    /// The kind of the I/O error that caused this one, if there is one.
    ///
    /// ```
    /// let error = mmap_io::MmapIoError::from(std::io::Error::from(std::io::ErrorKind::NotFound));
    /// assert_eq!(error.io_kind(), Some(std::io::ErrorKind::NotFound));
    /// ```
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        Some(self.io_cause()?.kind())
    }

    fn io_cause(&self) -> Option<&io::Error> {
        match self {
            Self::FlushFailed(cause) => Some(cause),
            Self::Io(cause)
            | Self::ResizeFailed(cause)
            | Self::AdviceFailed(cause)
            | Self::LockFailed(cause)
            | Self::UnlockFailed(cause)
            | Self::WatchFailed(cause) => Some(cause),
            Self::InvalidMode(_)
            | Self::OutOfBounds { .. }
            | Self::Misaligned { .. }
            | Self::Busy { .. }
            | Self::Truncated { .. }
            | Self::Faulted { .. } => None,
        }
    }
}

/// The same error once more, for several waiters of one thing that failed.
pub(crate) fn again(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(
        || io::Error::new(error.kind(), error.to_string()),
        io::Error::from_raw_os_error,
    )
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn the_cause_stays_reachable_and_out_of_the_message() {
        let cause = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = MmapIoError::FlushFailed(Arc::new(cause));
        assert_eq!(error.to_string(), "flush failed");
        assert_eq!(error.io_kind(), Some(io::ErrorKind::PermissionDenied));
        assert!(error.source().is_some());
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
            "20 bytes at offset 90 are out of bounds of 100 bytes"
        );
        assert_eq!(error.io_kind(), None);
    }
}
