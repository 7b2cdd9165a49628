//! The store: what its versions share, and what users set and ask.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use futures_lite::future::yield_now;
use mmap_io::{MemoryMappedFile, MmapMode};

use crate::cache::Cache;
use crate::drops::DropOnPool;
use crate::generation::{ETags, Generation, Opened};
use crate::openings::Openings;

/// The longest object that `get` answers as one chunk.
const ONE_CHUNK: u64 = 64 << 20;

/// After how many reads of the store that found a map one yields to the other tasks of its thread:
/// a loop of them would not do so by itself.
const YIELD_AFTER: u64 = 128;

/// An object store over a local directory whose reads are zero-copy `Bytes` of mapped files.
///
/// It implements `object_store::ObjectStore`, of version 0.14 with the feature `v0_14` (default)
/// and of version 0.13 with `v0_13`; with both features, both. It behaves as `object_store`'s
/// `LocalFileSystem`, which does everything except reads: paths, preconditions, tags and errors are
/// the same, and both may be used on one directory.
///
/// - `get` of a [bounded] range, and `get_ranges`, return each range as one `Bytes` that points into
///   the map, after its pages were read into memory. What collects them copies nothing. `get` of a
///   whole object, or of a range to its end, does that up to [64 MiB](Self::with_one_chunk_limit); a
///   longer one comes in chunks of 4 MiB, the next of which is read in while the caller uses one.
/// - A map is made when an object is first read, and kept for later reads. Every read looks where
///   the path leads to: an object that was replaced is seen at once, and so is a permission that
///   was revoked. A new hard link, as `copy` makes one, and every other change of the file's status
///   make the next read map the object anew.
/// - The maps are bounded [in number](Self::with_max_maps) and [in
///   bytes](Self::with_max_mapped_bytes); those that were not used for the longest time go first. A
///   map that is not kept any more lives on as long as a `Bytes` of it, and counts until then. Where
///   the bounds leave no room for an object, it is read into memory of its own.
/// - Under any runtime or none, reads never block the thread that polls. Neither do `put`, `copy`,
///   `rename`, `list_with_delimiter`, and the start of an upload of several parts. Listings,
///   deletions, and the parts and the end of such an upload are those of `LocalFileSystem`: under
///   tokio they run on its pool, elsewhere on the thread that polls. An upload that is dropped
///   before its end is removed in the background.
/// - Only files are objects: a read of a FIFO, a socket or a device is `NotFound`.
///   `LocalFileSystem` would open a FIFO, and wait until another program opens it as well.
///
/// [bounded]: https://docs.rs/object_store/latest/object_store/enum.GetRange.html
///
/// Clones share the maps.
///
/// # What holds a map
///
/// A `Bytes` keeps its file mapped, and delays writes of *this process* to its range through
/// [`MemoryMappedFile`], until its last clone is dropped. Values that were decoded without a copy,
/// as strings of arrow can be, hold it as well. Objects never change in place through an object
/// store, so readers are not concerned: a new object gets a new file.
///
/// An object that is deleted or replaced through this store gives its disk blocks free when the
/// last `Bytes` of it is dropped. If another program deletes it, its map may hold the blocks until it
/// is asked for again, or evicted.
///
/// # Files that other programs change
///
/// No program may change an object in place while `Bytes` of it live, as for all files of
/// [`mmap_io`](mmap_io#safety-and-other-processes). If a file was cut, a read of what is gone is an
/// error; bytes of a view that are touched after another program has cut them off raise `SIGBUS`.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "v0_14")]
/// # futures_lite::future::block_on(async {
/// # use object_store_0_14 as object_store;
/// # let dir = tempfile::tempdir()?;
/// use mmap_io_object_store::MappedFileSystem;
/// use object_store::{path::Path, ObjectStore, ObjectStoreExt};
///
/// let store = MappedFileSystem::new_with_prefix(dir.path())?;
/// let location = Path::from("table/part-0");
/// store.put(&location, "some bytes".into()).await?;
///
/// let parts = store.get_ranges(&location, &[0..4, 5..10]).await?;
/// assert_eq!(parts, ["some", "bytes"]);
/// assert_eq!(store.stats().maps, 1);
/// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct MappedFileSystem {
    pub(crate) shared: Arc<Shared>,
    #[cfg(feature = "v0_13")]
    pub(crate) local_0_13: object_store_0_13::local::LocalFileSystem,
    #[cfg(feature = "v0_14")]
    pub(crate) local_0_14: object_store_0_14::local::LocalFileSystem,
}

/// What clones share.
#[derive(Debug)]
pub(crate) struct Shared {
    root: PathBuf,
    pub(crate) cache: Cache,
    pub(crate) openings: Openings,
    one_chunk: AtomicU64,
}

/// Counters of a store, which [`MappedFileSystem::stats`] returns.
///
/// `maps`, `mapped_bytes` and `cached` are values of the moment; everything else counts from the time
/// the store was made. Clones share them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStats {
    /// Maps that exist, those included that only `Bytes` keep.
    pub maps: usize,
    /// Bytes of the objects that are mapped. They take memory when they are read, and the system
    /// can take it back.
    pub mapped_bytes: u64,
    /// Maps that are kept for later reads.
    pub cached: usize,
    /// Reads that found a map.
    pub hits: u64,
    /// Objects that were mapped.
    pub mapped: u64,
    /// Maps that were dropped to make room.
    pub evicted: u64,
    /// Reads of objects for which there was no room; each was a copy.
    pub unmapped_reads: u64,
}

impl MappedFileSystem {
    /// Makes a store of all files, whose locations are absolute paths without the first `/`.
    pub fn new() -> Self {
        Self {
            shared: Shared::new(PathBuf::from("/")),
            #[cfg(feature = "v0_13")]
            local_0_13: object_store_0_13::local::LocalFileSystem::new(),
            #[cfg(feature = "v0_14")]
            local_0_14: object_store_0_14::local::LocalFileSystem::new(),
        }
    }

    /// Makes a store of the files below a directory. Blocks while the directory is looked up.
    ///
    /// # Errors
    ///
    /// The directory does not exist.
    pub fn new_with_prefix(prefix: impl AsRef<Path>) -> std::io::Result<Self> {
        let prefix = prefix.as_ref();
        Ok(Self {
            #[cfg(feature = "v0_13")]
            local_0_13: object_store_0_13::local::LocalFileSystem::new_with_prefix(prefix)?,
            #[cfg(feature = "v0_14")]
            local_0_14: object_store_0_14::local::LocalFileSystem::new_with_prefix(prefix)?,
            shared: Shared::new(prefix.canonicalize()?),
        })
    }

    /// Chooses whether a directory is removed when the last object in it is deleted. By default it
    /// stays.
    pub fn with_automatic_cleanup(self, automatic_cleanup: bool) -> Self {
        Self {
            #[cfg(feature = "v0_13")]
            local_0_13: self.local_0_13.with_automatic_cleanup(automatic_cleanup),
            #[cfg(feature = "v0_14")]
            local_0_14: self.local_0_14.with_automatic_cleanup(automatic_cleanup),
            shared: self.shared,
        }
    }

    /// Sets how many maps there may be at a time; 512 by default. Clones are concerned as well.
    ///
    /// Each map takes a descriptor (`RLIMIT_NOFILE`), and at least one of the mappings that the
    /// system permits a process (65,530, in `/proc/sys/vm/max_map_count`). With 0, all reads are
    /// copies.
    pub fn with_max_maps(self, maps: usize) -> Self {
        self.shared.cache.set_max_maps(maps);
        self
    }

    /// Sets how many bytes the mapped objects may have together; by default 64 GiB, on 32-bit
    /// systems 512 MiB. Clones are concerned as well.
    ///
    /// Mapped bytes take address space. They take memory when they are read, as part of the page
    /// cache.
    pub fn with_max_mapped_bytes(self, bytes: u64) -> Self {
        self.shared.cache.set_max_bytes(bytes);
        self
    }

    /// Sets up to how many bytes `get` returns a whole object, or a range to its end, as one chunk;
    /// 64 MiB by default. Clones are concerned as well.
    pub fn with_one_chunk_limit(self, bytes: u64) -> Self {
        self.shared.one_chunk.store(bytes, Ordering::Relaxed);
        self
    }

    /// Returns counters, for metrics. Takes a short lock.
    pub fn stats(&self) -> StoreStats {
        let cache = &self.shared.cache;
        let counters = &cache.counters;
        let (maps, mapped_bytes, cached) = cache.usage();
        StoreStats {
            maps,
            mapped_bytes,
            cached,
            hits: counters.hits.load(Ordering::Relaxed),
            mapped: counters.mapped.load(Ordering::Relaxed),
            evicted: counters.evicted.load(Ordering::Relaxed),
            unmapped_reads: counters.unmapped_reads.load(Ordering::Relaxed),
        }
    }
}

impl Default for MappedFileSystem {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for MappedFileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MappedFileSystem({})", self.shared.root.display())
    }
}

impl Shared {
    fn new(root: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            root,
            cache: Cache::new(),
            openings: Openings::default(),
            one_chunk: AtomicU64::new(ONE_CHUNK),
        })
    }

    pub(crate) fn one_chunk(&self) -> u64 {
        self.one_chunk.load(Ordering::Relaxed)
    }

    /// Returns the map of an object, if there is one and the object is still the same.
    pub(crate) async fn current(&self, location: &str) -> Option<Arc<Generation>> {
        let generation = self.cache.get(location)?;
        if generation.is_current().await {
            let hits = self.cache.counters.hits.fetch_add(1, Ordering::Relaxed) + 1;
            if hits % YIELD_AFTER == 0 {
                yield_now().await;
            }
            return Some(generation);
        }
        tracing::debug!(location, "the object was replaced, changed or deleted");
        self.cache.forget_exactly(location, &generation);
        None
    }

    /// Maps an object that was opened, and keeps the map.
    ///
    /// # Errors
    ///
    /// The file, if there is no room for a map, or the system makes none.
    pub(crate) async fn map(
        &self,
        location: &str,
        opened: Opened,
        e_tags: ETags,
    ) -> Result<Arc<Generation>, DropOnPool<File>> {
        let len = opened.identity.len;
        let mapped = async {
            let reservation = self.cache.reserve(location, len)?;
            let file = opened.file.try_clone();
            let file = match file {
                Ok(file) => {
                    MemoryMappedFile::from_file(file, MmapMode::ReadOnly, &opened.path).await
                }
                Err(error) => Err(error.into()),
            };
            match file {
                Ok(file) if file.len() == len => Some((file, reservation)),
                // Another program has changed its length since.
                Ok(_) => None,
                Err(error) => {
                    tracing::warn!(location, %error, "the object cannot be mapped");
                    None
                }
            }
        };
        let Some((file, reservation)) = mapped.await else {
            let counters = &self.cache.counters;
            counters.unmapped_reads.fetch_add(1, Ordering::Relaxed);
            return Err(opened.file);
        };
        let generation = Arc::new(Generation::new(opened, e_tags, file, reservation));
        self.cache.insert(location, Arc::clone(&generation));
        self.cache.counters.mapped.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(location, bytes = len, "mapped an object");
        Ok(generation)
    }
}
