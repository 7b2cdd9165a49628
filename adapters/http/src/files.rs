//! Opens files for requests: looked up each time, mapped once.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mmap_io::{MemoryMappedFile, MmapMode};

use crate::cache::{Cache, Limits, Mapped};
use crate::lookup::{is_local, Found, Identity, Root};

/// How often a file that changes while it is opened is opened again.
const ATTEMPTS: usize = 4;

/// The files below a root, or at any path, and those of them that are mapped.
#[derive(Debug)]
pub(crate) struct Files {
    root: Root,
    cache: Cache,
}

/// What a path names, mapped if it is a file.
#[derive(Debug)]
pub(crate) enum Opened {
    File(Mapped),
    Directory,
}

/// What a thread of the pool has found.
enum Looked {
    Mapped(Mapped),
    Unmapped(Unmapped),
    Directory,
}

/// A file that was opened, to be mapped.
struct Unmapped {
    /// `None` once it is handed over to be mapped, or dropped.
    file: Option<File>,
    identity: Identity,
    is_local: bool,
}

/// The request may be given up right after the file was opened. To close it may block, and the thread
/// that drops the request is one of the executor.
impl Drop for Unmapped {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            blocking::unblock(move || drop(file)).detach();
        }
    }
}

impl Files {
    pub(crate) fn new(root: Root, limits: Limits) -> Self {
        Self {
            root,
            cache: Cache::new(limits),
        }
    }

    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    pub(crate) fn limits(&self) -> Limits {
        self.cache.limits()
    }

    /// Maps the file at a path, unless it is mapped and unchanged.
    ///
    /// For a file of a local file system that is mapped, and whose path the system has cached, this
    /// finishes where it is polled; else on the pool.
    ///
    /// # Errors
    ///
    /// `NotFound`: there is no file or directory, or none that may be served.
    pub(crate) async fn open(self: &Arc<Self>, path: &Path) -> io::Result<Opened> {
        match self.root.look_up_cached(path) {
            Some(Ok(Found::File(identity))) => match self.cache.find(path, &identity) {
                Some(mapped) if mapped.is_local => return Ok(Opened::File(mapped)),
                _ => {}
            },
            Some(Ok(Found::Directory)) => return Ok(Opened::Directory),
            Some(Err(error)) => {
                self.cache.remove(path);
                return Err(error);
            }
            None => {}
        }
        for _ in 0..ATTEMPTS {
            let (this, path) = (Arc::clone(self), path.to_path_buf());
            let (path, looked) = blocking::unblock(move || {
                let looked = this.look(&path);
                (path, looked)
            })
            .await;
            let unmapped = match looked? {
                Looked::Mapped(mapped) => return Ok(Opened::File(mapped)),
                Looked::Directory => return Ok(Opened::Directory),
                Looked::Unmapped(unmapped) => unmapped,
            };
            if let Some(mapped) = self.map(path, unmapped).await? {
                return Ok(Opened::File(mapped));
            }
        }
        Err(io::Error::other("the file is cut again and again"))
    }

    /// Looks a path up without mapping the file.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    #[cfg(feature = "backend")]
    pub(crate) async fn look_up(self: &Arc<Self>, path: PathBuf) -> io::Result<Found> {
        match self.root.look_up_cached(&path) {
            Some(Ok(Found::File(identity))) => match self.cache.find(&path, &identity) {
                Some(mapped) if mapped.is_local => return Ok(Found::File(identity)),
                _ => {}
            },
            Some(found) => return found,
            None => {}
        }
        let this = Arc::clone(self);
        blocking::unblock(move || this.root.look_up(&path)).await
    }

    /// Blocks.
    fn look(&self, path: &Path) -> io::Result<Looked> {
        let found = self.root.look_up(path);
        if found
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        {
            self.cache.remove(path);
        }
        let Found::File(identity) = found? else {
            return Ok(Looked::Directory);
        };
        if let Some(mapped) = self.cache.find(path, &identity) {
            return Ok(Looked::Mapped(mapped));
        }
        let (file, identity) = self.root.open(path)?;
        Ok(Looked::Unmapped(Unmapped {
            is_local: is_local(&file),
            file: Some(file),
            identity,
        }))
    }

    /// Maps a file that was opened; `None` if it is shorter by now.
    async fn map(&self, path: PathBuf, mut unmapped: Unmapped) -> io::Result<Option<Mapped>> {
        let file = unmapped.file.take().expect("taken once");
        let identity = unmapped.identity;
        let file = MemoryMappedFile::from_file(file, MmapMode::ReadOnly, &path).await?;
        if file.len() < identity.len {
            return Ok(None);
        }
        let mapped = Mapped {
            file,
            identity,
            is_local: unmapped.is_local,
        };
        self.cache.insert(path, mapped.clone());
        Ok(Some(mapped))
    }
}
