//! The builder: every way to open or create a file, and its options.

use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::MemoryMappedFile;
use crate::advisory_lock::Lock;
use crate::descriptor::Descriptor;
#[cfg(doc)]
use crate::error::MmapIoError;
use crate::error::{Result, Subject};
use crate::fairness::operation;
use crate::flush::FlushPolicy;
use crate::mode::{MmapMode, TouchHint};
use crate::offload::{check, offload_for};
use crate::open_file::{HandleRef, OpenFile};
use crate::opening::{absolute, Attempt, OpenMode, Opening};
use crate::sys;

/// Opens or creates a file with options.
///
/// [`MemoryMappedFile::builder`] makes a builder; [`create`](Self::create),
/// [`create_new`](Self::create_new), [`open`](Self::open) or
/// [`open_or_create`](Self::open_or_create) opens the file. Every option counts in each of them,
/// except that [`open`](Self::open) ignores [`size`](Self::size), which is for files without bytes.
///
/// # Examples
///
/// ```
/// # futures_lite::future::block_on(async {
/// # let dir = tempfile::tempdir()?;
/// use mmap_io::{FlushPolicy, MemoryMappedFile};
///
/// let file = MemoryMappedFile::builder(dir.path().join("log"))
///     .size(1 << 20)
///     .preallocate(true)
///     .flush_policy(FlushPolicy::Always)
///     .open_or_create()
///     .await?;
/// assert_eq!(file.len(), 1 << 20);
/// file.update_region(0, b"durable, by the policy").await?;
///
/// // Every handle has a mode and a policy of its own.
/// let reader = MemoryMappedFile::builder(file.path()).open().await?;
/// assert_eq!(reader.as_slice(0, 7)?, b"durable");
/// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it opens"]
pub struct MemoryMappedFileBuilder {
    path: PathBuf,
    size: u64,
    mode: Option<MmapMode>,
    policy: FlushPolicy,
    touch: TouchHint,
    preallocate: bool,
    touch_mtime: bool,
    cow_writable: bool,
    write_buffer: Option<usize>,
    huge_pages: bool,
    advisory_lock: Option<Lock>,
    permissions: u32,
}

impl MemoryMappedFileBuilder {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            size: 0,
            mode: None,
            policy: FlushPolicy::default(),
            touch: TouchHint::default(),
            preallocate: false,
            touch_mtime: false,
            cow_writable: false,
            write_buffer: None,
            huge_pages: false,
            advisory_lock: None,
            permissions: sys::FOR_ALL,
        }
    }

    /// Sets the size of a file that is created, in bytes: 1 to 128 TiB (2 GiB - 1 on 32-bit
    /// platforms).
    pub fn size(self, bytes: u64) -> Self {
        Self {
            size: bytes,
            ..self
        }
    }

    /// Sets whether the file is mapped for reading, for writing as well, or copy-on-write.
    ///
    /// By default [`open`](Self::open) maps it read-only, and every other way read-write.
    pub fn mode(self, mode: MmapMode) -> Self {
        Self {
            mode: Some(mode),
            ..self
        }
    }

    /// Sets when writes are flushed without a request; [`FlushPolicy::Never`] by default.
    ///
    /// A read-only or copy-on-write handle has no other policy.
    pub fn flush_policy(self, policy: FlushPolicy) -> Self {
        Self { policy, ..self }
    }

    /// Sets whether all pages are read into memory before the open resolves;
    /// [`TouchHint::Never`] by default.
    #[doc(alias = "populate")]
    pub fn touch_hint(self, touch: TouchHint) -> Self {
        Self { touch, ..self }
    }

    /// Sets whether disk blocks are reserved for the whole file, now and when it grows.
    ///
    /// Then a full disk is an error of the opening or the growing, and not of a later write. Off by
    /// default: files are sparse.
    ///
    /// # Platform-specific behavior
    ///
    /// `fallocate` on Linux, whose errors are reported; elsewhere zeroes are written. File systems
    /// without it (NFS before 4.2, ext4 without extents, some FUSE file systems) cannot reserve
    /// blocks, and the error says so. A disk that is too small is found before anything is taken
    /// from it. After another error, such as a quota, a file that was created here gives back the
    /// blocks reserved so far. A file that was to grow keeps such blocks past its end, and uses
    /// them when it grows: every call that gives them back could cut bytes that another process
    /// appends.
    pub fn preallocate(self, preallocate: bool) -> Self {
        Self {
            preallocate,
            ..self
        }
    }

    /// Sets whether each flush of written bytes sets the file's time of modification.
    ///
    /// It is for programs that compare that time, such as `rsync` and `make`. Off by default; it
    /// holds for the file, through all its handles, until the last handle is dropped.
    ///
    /// Small writes are stores through a mapping. Such stores move the time only when a page is
    /// stored to for the first time since it was written back, and on tmpfs never; large writes
    /// move it at once. The time itself is durable no sooner than the system writes it back. Where
    /// the process may not set it, it stays.
    pub fn touch_mtime(self, touch_mtime: bool) -> Self {
        Self {
            touch_mtime,
            ..self
        }
    }

    /// Sets whether a [`CopyOnWrite`](MmapMode::CopyOnWrite) handle may write its private pages;
    /// ignored in other modes.
    ///
    /// Off by default. See [`open_cow_writable`](MemoryMappedFile::open_cow_writable).
    #[cfg(feature = "cow")]
    #[cfg_attr(docsrs, doc(cfg(feature = "cow")))]
    pub fn cow_writable(self, cow_writable: bool) -> Self {
        Self {
            cow_writable,
            ..self
        }
    }

    /// Sets the limit on queued write data for the file, through all its handles; 64 MiB by
    /// default.
    ///
    /// It delays no write that has room. Writes beyond the limit keep their place in the order, and
    /// wait for room, first come, first served, before their data is copied. A write that is larger
    /// than the limit is admitted when nothing else is queued.
    ///
    /// A write counts its data, and some 400 bytes for itself and 128 for each of its ranges.
    ///
    /// A write that waits for a view, or for an earlier write that waits for a view, is counted
    /// separately, up to the same number of bytes, so that it takes no room from other writes.
    /// Therefore the file holds up to twice as many bytes.
    #[doc(alias = "max_queued_write_bytes")]
    pub fn write_buffer(self, bytes: usize) -> Self {
        Self {
            write_buffer: Some(bytes),
            ..self
        }
    }

    /// Sets the permissions of a file that is created; `0o666` by default.
    ///
    /// The file has them from the first moment, for example `0o600` for a secret. The process's
    /// `umask` takes bits away from them, and the special bits above `0o777` are not set. A file
    /// that exists keeps its permissions, also if [`create`](Self::create) truncates it;
    /// [`create_new`](Self::create_new) fails then.
    ///
    /// # Platform-specific behavior
    ///
    /// The mode of [`open(2)`] on Unix; elsewhere nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("keys");
    /// let keys = mmap_io::MemoryMappedFile::builder(&path)
    ///     .size(4096)
    ///     .unix_permissions(0o600)
    ///     .create_new()
    ///     .await?;
    /// # #[cfg(unix)] {
    /// use std::os::unix::fs::PermissionsExt;
    /// assert_eq!(keys.metadata().await?.permissions().mode() & 0o777, 0o600);
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// [`open(2)`]: https://man7.org/linux/man-pages/man2/open.2.html
    #[doc(alias = "mode")]
    #[doc(alias = "chmod")]
    pub fn unix_permissions(self, mode: u32) -> Self {
        Self {
            permissions: mode & 0o777,
            ..self
        }
    }

    /// Sets whether the system is asked to keep the mapping in huge pages.
    ///
    /// Fewer and larger pages take less time to look up, for random accesses to a large file that
    /// is in memory. Off by default; it holds for the file, through all its handles, until the last
    /// handle is dropped, and also when it grows.
    ///
    /// It is a hint and never an error. It changes neither the length nor the content of the file,
    /// and allocates nothing by itself; but a write to a hole may then take a whole huge page
    /// (2 MiB on most machines) instead of a normal one.
    /// [`is_hugepage_backed`](MemoryMappedFile::is_hugepage_backed) tells whether huge pages are in
    /// use.
    ///
    /// # Platform-specific behavior
    ///
    /// [`madvise(2)`] with `MADV_HUGEPAGE` on Linux, right after each mapping is made. It is of use
    /// on tmpfs that is mounted with `huge=advise`, `within_size` or `always`, and on file systems
    /// with large folios (ext4, xfs, btrfs of recent kernels) for files that are read. Elsewhere it
    /// does nothing.
    ///
    /// [`madvise(2)`]: https://man7.org/linux/man-pages/man2/madvise.2.html
    #[cfg(feature = "hugepages")]
    #[cfg_attr(docsrs, doc(cfg(feature = "hugepages")))]
    #[doc(alias = "MADV_HUGEPAGE")]
    pub fn huge_pages(self, huge_pages: bool) -> Self {
        Self { huge_pages, ..self }
    }

    /// Sets which advisory lock this process takes on the file, so that other processes know that
    /// it is in use; none by default.
    ///
    /// The lock is a convention: it stops only processes that ask for a lock themselves, by this
    /// crate, `flock(2)`, or `std::fs::File::lock`. The opening takes it before it changes the
    /// file, and never waits for it: if another process has a lock that conflicts, the opening
    /// fails.
    ///
    /// The lock belongs to the file, through all its handles, as leases do: handles of one process
    /// do not exclude each other. It is released when the last handle and the last view of the file
    /// are gone (after a drop perhaps by a thread of the pool;
    /// [`close`](MemoryMappedFile::close)`().await` waits for that), and when the process ends. An
    /// opening that fails, or whose future is dropped, keeps no lock, unless another one relies on
    /// it by then. A process that has a shared lock on a file cannot get an exclusive lock on it
    /// before that, but an exclusive lock is also good for handles that ask for a shared one.
    ///
    /// # Errors
    ///
    /// The opening fails with [`LockFailed`](MmapIoError::LockFailed) if the process does not get
    /// the lock. The kind of the cause is [`WouldBlock`](std::io::ErrorKind::WouldBlock) if another
    /// process has locked the file, or this process has, by a descriptor of its own or shared
    /// instead of exclusively. The file is not changed then.
    ///
    /// # Platform-specific behavior
    ///
    /// [`flock(2)`] on Unix, on an open file description of its own. Such a lock knows nothing of
    /// locks set by `fcntl(F_SETLK)` or `fcntl(F_OFD_SETLK)`, and they know nothing of it. The path
    /// is opened once more for it; closing that descriptor releases the locks that the process
    /// itself has set by `fcntl(F_SETLK)`, see [Locks on the file](crate#locks-on-the-file).
    ///
    /// On NFS, Linux turns the lock into a lock of the server on the whole file, as `fcntl` sets
    /// it: it holds between machines, conflicts with `fcntl` locks, and the exclusive one needs a
    /// handle that writes. Whether other network file systems pass locks on is up to them.
    ///
    /// On Windows, `LockFileEx` on one byte far past the end of the file, so that other handles can
    /// read and write the file.
    ///
    /// [`flock(2)`]: https://man7.org/linux/man-pages/man2/flock.2.html
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("store");
    /// use mmap_io::{Lock, MemoryMappedFile, MmapIoError};
    ///
    /// let store = MemoryMappedFile::builder(&path).size(4096).advisory_lock(Lock::Exclusive);
    /// let store = match store.open_or_create().await {
    ///     Err(MmapIoError::LockFailed(error)) => return Err(format!("in use: {error}").into()),
    ///     store => store?,
    /// };
    /// store.update_region(0, b"no other process that asks writes here").await?;
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    #[cfg(feature = "advisory-lock")]
    #[cfg_attr(docsrs, doc(cfg(feature = "advisory-lock")))]
    #[doc(alias = "flock")]
    pub fn advisory_lock(self, lock: Lock) -> Self {
        Self {
            advisory_lock: Some(lock),
            ..self
        }
    }

    /// Creates the file, or truncates an existing file; read-write by default.
    ///
    /// In a mode that does not write, the file is opened as it is. Links are followed, where the
    /// system permits that. [`create_new`](Self::create_new) fails if the file exists, and
    /// [`open_or_create`](Self::open_or_create) keeps it.
    ///
    /// If another process makes the file longer at the same time, it stays that long.
    ///
    /// # Errors
    ///
    /// - [`ResizeFailed`](MmapIoError::ResizeFailed): no [`size`](Self::size), or too large a one
    ///   (then the file system is not touched), or a disk that cannot hold it.
    /// - [`Busy`](MmapIoError::Busy): the file is mapped in this process.
    /// - [`Io`](MmapIoError::Io): it cannot be opened, or is no regular file.
    ///
    /// Every check that is possible is made before an existing file is truncated: only a full disk
    /// may leave it empty. A failure leaves no new file behind, unless another process has written
    /// to it, or has removed and created it in the meantime, or a link led to it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws the operation if it has not started. An operation that has
    /// started runs to completion, and may leave the file created.
    pub fn create(self) -> impl Future<Output = Result<MemoryMappedFile>> + Send + 'static {
        let how = match self.mode {
            None | Some(MmapMode::ReadWrite) => OpenMode::Create(absolute(&self.path), self.size),
            Some(MmapMode::ReadOnly | MmapMode::CopyOnWrite) => {
                OpenMode::Existing(absolute(&self.path))
            }
        };
        self.finish(how, MmapMode::ReadWrite)
    }

    /// Creates a new file, and fails if the path exists; read-write only.
    ///
    /// A link counts as existing, wherever it leads to.
    ///
    /// # Errors
    ///
    /// - [`InvalidMode`](MmapIoError::InvalidMode) in any other mode.
    /// - [`Io`](MmapIoError::Io) with the kind `AlreadyExists`.
    /// - Those of [`create`](Self::create).
    ///
    /// # Cancel safety
    ///
    /// As [`create`](Self::create).
    pub fn create_new(self) -> impl Future<Output = Result<MemoryMappedFile>> + Send + 'static {
        let how = OpenMode::CreateNew(absolute(&self.path), self.size);
        self.finish(how, MmapMode::ReadWrite)
    }

    /// Opens an existing file, and keeps its content; read-only by default.
    ///
    /// # Errors
    ///
    /// - [`ResizeFailed`](MmapIoError::ResizeFailed): the file is empty, and the mode is not
    ///   read-only; or its blocks cannot be [reserved](Self::preallocate).
    /// - [`Busy`](MmapIoError::Busy): the file was on the lower layer of an overlayfs, and this
    ///   process has views that still show the file there; see [Overlayfs](crate#overlayfs).
    /// - [`Io`](MmapIoError::Io): it cannot be opened, is no regular file, or cannot be read in
    ///   (with [`TouchHint::Eager`]).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the file unchanged, except for blocks that may have been
    /// [reserved](Self::preallocate).
    pub fn open(self) -> impl Future<Output = Result<MemoryMappedFile>> + Send + 'static {
        let how = OpenMode::Existing(absolute(&self.path));
        self.finish(how, MmapMode::ReadOnly)
    }

    /// Opens the file, or creates it; never truncates it; read-write by default.
    ///
    /// A file without bytes gets [`size`](Self::size) of them, or stays as long as another process
    /// has just made it. In a mode that does not write, the file must be there.
    /// [`was_created`](MemoryMappedFile::was_created) tells which it was.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open), and for a file without bytes those of
    /// [`create`](Self::create), except for `Busy`: a file that this process has mapped already is
    /// shared. A failure removes nothing: a file that was created may be left without bytes, since
    /// another process may have opened it.
    ///
    /// # Cancel safety
    ///
    /// As [`create`](Self::create).
    pub fn open_or_create(self) -> impl Future<Output = Result<MemoryMappedFile>> + Send + 'static {
        let how = match self.mode {
            None | Some(MmapMode::ReadWrite) => {
                OpenMode::OpenOrCreate(absolute(&self.path), self.size)
            }
            Some(MmapMode::ReadOnly | MmapMode::CopyOnWrite) => {
                OpenMode::Existing(absolute(&self.path))
            }
        };
        self.finish(how, MmapMode::ReadWrite)
    }

    /// Maps a file that is open already.
    pub(crate) fn open_descriptor(
        self,
        file: File,
    ) -> impl Future<Output = Result<MemoryMappedFile>> + Send + 'static {
        self.finish(
            OpenMode::Descriptor(Descriptor::new(file)),
            MmapMode::ReadOnly,
        )
    }

    fn finish(
        self,
        how: OpenMode,
        default: MmapMode,
    ) -> impl Future<Output = Result<MemoryMappedFile>> + Send + 'static {
        let name = match how {
            OpenMode::Create(..) | OpenMode::CreateNew(..) => "creating",
            OpenMode::OpenOrCreate(..) | OpenMode::Existing(_) | OpenMode::Descriptor(_) => {
                "opening"
            }
        };
        let location = absolute(&self.path);
        let opening = operation(name, Subject::from(&self.path), async move {
            let mode = self.mode.unwrap_or(default);
            mode.require_available()?;
            let opening = Opening {
                open_mode: how,
                mode,
                preallocate: self.preallocate,
                touch_mtime: self.touch_mtime,
                touch: self.touch,
                huge_pages: self.huge_pages,
                advisory_lock: self.advisory_lock,
                permissions: self.permissions,
            };
            opening.check()?;
            let mut again = None;
            let (mut open, opened) = loop {
                let (opening, what) = (opening.clone(), again.take());
                match offload_for(move || opening.attempt(what), Attempt::into_use).await? {
                    Attempt::Opened(open, opened) => break (open, opened),
                    Attempt::RetryAfter(listener, what) => {
                        again = Some(what);
                        listener.await;
                    }
                }
            };
            opened.finish(&open).await?;
            if mode == MmapMode::CopyOnWrite && self.cow_writable {
                let file = Arc::clone(&open);
                open = offload_for(move || OpenFile::private_pages(&file), HandleRef::new).await?;
            }
            if let Some(bytes) = self.write_buffer {
                open.queue().budget.set_limit(bytes);
            }
            let policy = match mode {
                MmapMode::ReadOnly | MmapMode::CopyOnWrite => FlushPolicy::Never,
                MmapMode::ReadWrite => self.policy,
            };
            let file =
                MemoryMappedFile::new(open, mode, policy, self.path, location, opened.is_new);
            if self.touch == TouchHint::Eager {
                file.touch_pages().await?;
            }
            Ok((file, opened))
        });
        async move {
            let (file, opened) = opening.await?;
            // In a forked child the lock of the place may stay locked forever.
            check()?;
            // After the last await: a future that is dropped keeps no lock.
            opened.keep_lock();
            Ok(file)
        }
    }
}
