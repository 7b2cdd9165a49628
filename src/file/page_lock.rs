//! Locking pages in memory.

use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::{Handle, MemoryMappedFile};
use crate::error::{MmapIoError, Result, Subject};
use crate::fairness::operation;
use crate::offload::{check, offload_read_in};
use crate::range::{ByteRange, MAX_LEN};

impl MemoryMappedFile {
    /// Reads the pages of a range into memory, and keeps them there until they are unlocked.
    ///
    /// A touch of a locked page never waits for the disk.
    /// [`touch_pages_range`](Self::touch_pages_range) reads pages in as well, but they may leave
    /// memory again at any time. Nothing is locked for good that another process cuts off.
    ///
    /// Whole pages are locked: those that hold the range. They stay locked
    /// - until [`unlock`](Self::unlock) or [`unlock_all`](Self::unlock_all), through any handle on
    ///   the file: locks belong to the file and do not nest, so that one `unlock` ends any number
    ///   of locks on a page;
    /// - until the last handle and the last view of the file are gone;
    /// - until a shrink cuts them off. Bytes that are added later are not locked.
    ///
    /// A file that grows keeps its pages locked. If it outgrows its mapping, the pages are locked
    /// in the new one before the file grows, which takes about 0.3 us for each page; if the system
    /// refuses that, the growth fails with [`ResizeFailed`](MmapIoError::ResizeFailed).
    ///
    /// Locked memory is memory that nothing else can use. [`evict`](Self::evict) leaves locked
    /// pages where they are. A child process does not inherit the locks.
    ///
    /// # Errors
    ///
    /// After any of them, no page is locked that was not locked before.
    /// - [`LockFailed`](MmapIoError::LockFailed): the process may not lock that much
    ///   (`RLIMIT_MEMLOCK` on Unix), or there is not enough memory. Where handles that read and
    ///   handles that write lock the same page, it counts twice.
    /// - [`InvalidMode`](MmapIoError::InvalidMode): a copy-on-write handle that may write.
    /// - [`OutOfBounds`](MmapIoError::OutOfBounds), [`Truncated`](MmapIoError::Truncated) or
    ///   [`Io`](MmapIoError::Io), as for [`slice`](Self::slice).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws an operation that has not started; an operation that has
    /// started runs to completion, and the pages are locked then.
    ///
    /// # Platform-specific behavior
    ///
    /// [`mlock(2)`] on Unix. `VirtualLock` on Windows, which permits a little less than the minimum
    /// working set of the process: some 30 pages, unless the program calls
    /// `SetProcessWorkingSetSize`.
    ///
    /// [`mlock(2)`]: https://man7.org/linux/man-pages/man2/mlock.2.html
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # std::fs::write(dir.path().join("index"), vec![1; 1 << 20])?;
    /// use mmap_io::{MemoryMappedFile, MmapIoError};
    ///
    /// let index = MemoryMappedFile::open_ro(dir.path().join("index")).await?;
    /// match index.lock(0, 16 << 10).await {
    ///     Ok(()) => {}
    ///     Err(MmapIoError::LockFailed(error)) => eprintln!("reads may wait: {error}"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// assert_eq!(index.as_slice(10_000, 1)?, [1]);
    /// index.unlock_all().await?;
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    #[doc(alias = "mlock")]
    #[doc(alias = "VirtualLock")]
    pub fn lock(&self, offset: u64, len: u64) -> impl Future<Output = Result<()>> + Send + 'static {
        let handle = self.handle.clone();
        operation("locking", (offset, len), async move {
            if len > 0 {
                handle.require_lockable()?;
            }
            match handle.range(offset, len)? {
                Some(range) => handle.lock_pages(range).await,
                None => Ok(()),
            }
        })
    }

    /// Reads every page of the file into memory, and keeps the pages there; see
    /// [`lock`](Self::lock).
    ///
    /// Bytes that are added to the file later are not locked.
    ///
    /// # Errors
    ///
    /// Those of [`lock`](Self::lock).
    ///
    /// # Cancel safety
    ///
    /// As [`lock`](Self::lock).
    #[doc(alias = "mlock")]
    pub fn lock_all(&self) -> impl Future<Output = Result<()>> + Send + 'static {
        let handle = self.handle.clone();
        operation("locking the file", Subject::Nothing, async move {
            loop {
                match handle.shared.len() {
                    0 => return Ok(()),
                    len => {
                        handle.require_lockable()?;
                        match handle.lock_pages(ByteRange::between(0, len)).await {
                            // A shrink went first.
                            Err(MmapIoError::OutOfBounds { .. }) => {}
                            locked => return locked,
                        }
                    }
                }
            }
        })
    }

    /// Lets the pages of a range leave memory again, whichever handle has locked them.
    ///
    /// All pages that hold a byte of the range are unlocked. It is no error if they are not locked.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`](MmapIoError::OutOfBounds), or [`UnlockFailed`](MmapIoError::UnlockFailed) if
    /// the system refuses; then a part of the range may be unlocked.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws an operation that has not started; an operation that has
    /// started runs to completion.
    #[doc(alias = "munlock")]
    pub fn unlock(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        let handle = self.handle.clone();
        operation("unlocking", (offset, len), async move {
            match handle.range(offset, len)? {
                Some(range) => handle.unlock_pages(range).await,
                None => Ok(()),
            }
        })
    }

    /// Lets all locked pages of the file leave memory again; see [`unlock`](Self::unlock).
    ///
    /// # Errors
    ///
    /// [`UnlockFailed`](MmapIoError::UnlockFailed), as for [`unlock`](Self::unlock).
    ///
    /// # Cancel safety
    ///
    /// As [`unlock`](Self::unlock).
    #[doc(alias = "munlock")]
    pub fn unlock_all(&self) -> impl Future<Output = Result<()>> + Send + 'static {
        let handle = self.handle.clone();
        operation("unlocking the file", Subject::Nothing, async move {
            handle.unlock_pages(ByteRange::between(0, MAX_LEN)).await
        })
    }
}

impl Handle {
    /// Fails for private pages: `mlock` would copy all of them, perhaps in the middle of a write to
    /// the file.
    fn require_lockable(&self) -> Result<()> {
        match self.shared.is_private() {
            true => Err(MmapIoError::invalid_mode(
                "a lock would copy every page of a copy-on-write handle",
            )),
            false => Ok(()),
        }
    }

    async fn lock_pages(&self, range: ByteRange) -> Result<()> {
        // Before the locks below, which may stay locked forever in a forked child.
        check()?;
        let (turn, protection) = (self.shared.page_lock_turn().await, self.protection());
        let shared = Arc::clone(&self.shared);
        // Relaxed: a counter.
        shared.counters.hops.fetch_add(1, Ordering::Relaxed);
        offload_read_in(move || shared.lock_pages(&turn, protection, range)).await
    }

    async fn unlock_pages(&self, range: ByteRange) -> Result<()> {
        check()?;
        let turn = self.shared.page_lock_turn().await;
        self.run_on_pool(move |shared| shared.unlock_pages(&turn, range))
            .await
    }
}
