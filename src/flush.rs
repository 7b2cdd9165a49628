//! The policy that says when written bytes are flushed without a request.

/// Says when a write is made durable without an explicit flush.
///
/// Under every policy, [`flush`](crate::MemoryMappedFile::flush) and the writes whose names end in
/// `_async` are durable when they return. The default is [`Never`](Self::Never): then nothing else
/// is.
///
/// A policy bounds what a power cut may take. A process that is killed loses no write that has
/// returned, under any policy; see [What survives](crate#what-survives).
///
/// # Examples
///
/// ```
/// # futures_lite::future::block_on(async {
/// # let dir = tempfile::tempdir()?;
/// use mmap_io::{FlushPolicy, MemoryMappedFile};
///
/// let file = MemoryMappedFile::builder(dir.path().join("data"))
///     .size(4096)
///     .flush_policy(FlushPolicy::EveryWrites(2))
///     .create()
///     .await?;
/// file.update_region(0, b"one").await?;
/// assert_eq!(file.pending_bytes(), 3);
/// file.update_region(3, b"two").await?;  // returns after the flush of both
/// assert_eq!(file.pending_bytes(), 0);
/// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[doc(alias = "durable")]
#[doc(alias = "fsync")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FlushPolicy {
    /// Flushes only on request.
    #[default]
    Never,
    /// Flushes only on request, as [`Never`](Self::Never) does; documents that the caller flushes.
    Manual,
    /// Flushes with every write, before it returns.
    Always,
    /// Flushes everything once at least this many bytes have been written since the last flush; a
    /// byte that is written again counts again. The write that reaches the threshold returns after
    /// that flush. A flush of a part of the file takes off what it covered. 0 disables the policy.
    EveryBytes(usize),
    /// Flushes everything with every n-th write since the last flush of the whole file; that write
    /// returns after the flush. 0 disables the policy.
    EveryWrites(usize),
    /// Flushes everything in the background, at most this many milliseconds after the first write
    /// that is not flushed. 0 disables the policy.
    ///
    /// A single job on the thread pool serves all files of the process and ends when no file has
    /// unflushed bytes. It flushes two files at a time; a file that takes longer than 100 ms holds
    /// up no other, as long as such files are fewer than half of the pool's threads.
    ///
    /// Dropping the last handle starts the flush at once, so that nothing is lost
    /// ([`close`](crate::MemoryMappedFile::close) waits for it as well). The error of a background
    /// flush is returned by the next durable operation, by the next write under this policy, and by
    /// [`last_flush_error`](crate::MemoryMappedFile::last_flush_error).
    EveryMillis(u64),
}
