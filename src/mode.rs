//! The modes in which a file is mapped, and what each of them permits.

use crate::error::{MmapIoError, Result};

/// Says whether a file is mapped for reading, or for writing as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MmapMode {
    /// A read-only mapping of an existing file.
    ReadOnly,
    /// A mapping for reading and writing, shared with every other mapping of the file.
    ReadWrite,
    /// A mapping of an existing file whose writes stay in private copies of pages and never reach
    /// the file.
    ///
    /// It reads only, unless
    /// [`cow_writable`](crate::MemoryMappedFileBuilder::cow_writable) lets it write. The file must
    /// not be empty. Needs the feature `cow`: without it, opening a file in this mode fails with
    /// [`InvalidMode`](MmapIoError::InvalidMode).
    CopyOnWrite,
}

impl MmapMode {
    /// Fails unless the mode permits changes of the file.
    #[inline]
    pub(crate) fn require_write(self) -> Result<()> {
        match self {
            Self::ReadWrite => Ok(()),
            Self::ReadOnly => Err(MmapIoError::invalid_mode("the handle is read-only")),
            Self::CopyOnWrite => Err(MmapIoError::invalid_mode("the handle is copy-on-write")),
        }
    }

    /// Fails unless files can be mapped in the mode.
    pub(crate) fn require_available(self) -> Result<()> {
        match self {
            Self::CopyOnWrite if !cfg!(feature = "cow") => Err(MmapIoError::invalid_mode(
                "to map a file copy-on-write, enable the feature `cow` of mmap-io",
            )),
            Self::ReadOnly | Self::ReadWrite | Self::CopyOnWrite => Ok(()),
        }
    }
}

/// Says whether the pages of a file are read into memory when it is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TouchHint {
    /// Reads a page in when an operation or a touch needs it.
    #[default]
    Never,
    /// Reads every page in, on the pool, before the open resolves.
    #[doc(alias = "populate")]
    Eager,
    /// The same as [`Never`](Self::Never); kept for its name.
    Lazy,
}
