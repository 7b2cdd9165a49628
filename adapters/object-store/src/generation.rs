//! One mapping of one generation of an object: of the file that a path led to at one time.

use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use blocking::unblock;
use bytes::Bytes;
use mmap_io::MemoryMappedFile;

use crate::cache::Reservation;
use crate::drops::DropOnPool;
use crate::lookup;

/// What tells two generations of an object apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) modified: SystemTime,
    /// Seconds and nanoseconds of the last change of the content, the permissions, the owner or the
    /// names. The times of modification do not tell that a permission was revoked.
    pub(crate) changed: (i64, i64),
    pub(crate) len: u64,
}

impl Identity {
    #[cfg(unix)]
    pub(crate) fn of(metadata: &Metadata) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: metadata.modified()?,
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            len: metadata.len(),
        })
    }

    /// Where the standard library tells no more: by the times of creation and modification.
    #[cfg(not(unix))]
    pub(crate) fn of(metadata: &Metadata) -> io::Result<Self> {
        let created = metadata.created()?;
        let created = created.duration_since(SystemTime::UNIX_EPOCH);
        Ok(Self {
            device: 0,
            inode: created.map_or(0, |created| created.as_nanos() as u64),
            modified: metadata.modified()?,
            changed: (0, 0),
            len: metadata.len(),
        })
    }
}

/// A file that was opened to be mapped.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file: DropOnPool<File>,
    pub(crate) path: PathBuf,
    pub(crate) identity: Identity,
    may_ask: bool,
}

impl Opened {
    /// Asks what file it is. Blocks.
    pub(crate) fn new(file: File, path: PathBuf) -> io::Result<Self> {
        Ok(Self {
            identity: Identity::of(&file.metadata()?)?,
            may_ask: lookup::is_local(&file),
            file: DropOnPool::new(file),
            path,
        })
    }
}

/// The tags of one generation, in a place for each version of object_store: versions write them
/// differently. A version that did not map the object asks for its tag when it needs it.
pub(crate) type ETags = [OnceLock<Option<String>>; 2];

/// A mapped object. Every `Bytes` of it owns a reference.
#[derive(Debug)]
pub(crate) struct Generation {
    pub(crate) identity: Identity,
    pub(crate) e_tags: ETags,
    pub(crate) file: MemoryMappedFile,
    path: PathBuf,
    /// Whether the system may be asked on a thread that polls where the path leads to.
    may_ask: bool,
    /// After the map in the order of drops: what it stands for is gone then.
    _reservation: Reservation,
}

impl Generation {
    pub(crate) fn new(
        opened: Opened,
        e_tags: ETags,
        file: MemoryMappedFile,
        reservation: Reservation,
    ) -> Self {
        Self {
            identity: opened.identity,
            e_tags,
            file,
            path: opened.path,
            may_ask: opened.may_ask,
            _reservation: reservation,
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.identity.len
    }

    /// Whether the path still leads to this generation. If the names on the path are cached, and
    /// the file system is local, that is answered where the future is polled.
    pub(crate) async fn is_current(self: &Arc<Self>) -> bool {
        if self.may_ask {
            if let Some(found) = lookup::identity_at_once(&self.path) {
                return found == self.identity;
            }
        }
        let this = Arc::clone(self);
        unblock(move || this.is_at(&this.path)).await
    }

    /// Blocks.
    fn is_at(&self, path: &Path) -> bool {
        let found = std::fs::metadata(path).and_then(|metadata| Identity::of(&metadata));
        found.is_ok_and(|found| found == self.identity)
    }

    /// Makes `bytes` of this map count for it: they keep its place within the bounds.
    pub(crate) fn counted(self: &Arc<Self>, bytes: Bytes) -> Bytes {
        match bytes.is_empty() {
            true => bytes,
            false => Bytes::from_owner(Counted {
                bytes,
                _generation: Arc::clone(self),
            }),
        }
    }

    /// Gives the place within the bounds back.
    pub(crate) fn into_file(self) -> MemoryMappedFile {
        self.file
    }
}

/// What a `Bytes` of a map owns.
struct Counted {
    bytes: Bytes,
    _generation: Arc<Generation>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
