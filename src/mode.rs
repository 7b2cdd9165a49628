//! How a file is mapped, and what each way permits.

use crate::error::{MmapIoError, Result};

/// How a file is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MmapMode {
    /// A read-only mapping of an existing file.
    ReadOnly,
    /// A mapping for reading and writing, shared with every other mapping of the file.
    ReadWrite,
    /// Private pages over a file that must exist. Reserved: the crate cannot map so yet, and
    /// everything that opens a file in this mode fails with
    /// [`InvalidMode`](MmapIoError::InvalidMode).
    CopyOnWrite,
}

impl MmapMode {
    /// Fails unless the mode permits to change the file.
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
            Self::ReadOnly | Self::ReadWrite => Ok(()),
            Self::CopyOnWrite => Err(MmapIoError::invalid_mode(
                "this version of the crate cannot map a file copy-on-write",
            )),
        }
    }
}

/// Whether the pages of a file are made resident when it is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TouchHint {
    /// Pages come in when they are asked for.
    #[default]
    Never,
    /// Every page is read in, on the pool, before the open resolves.
    Eager,
    /// The same as [`Never`](Self::Never); kept for its name.
    Lazy,
}
