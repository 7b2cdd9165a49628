//! Atomic views: words of a mapped file that threads and processes change at the same time.
//!
//! They are made by [`MemoryMappedFile::atomic_u32`], [`atomic_u64`](MemoryMappedFile::atomic_u64),
//! and their siblings for many words.

use std::fmt;
use std::marker::PhantomData;
use std::mem::size_of;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::Arc;

use crate::error::{MmapIoError, Result};
use crate::file::MemoryMappedFile;
use crate::flush::FlushPolicy;
use crate::lease::{Kind, Lease};
use crate::map::{Protection, Span};
use crate::offload::check;
use crate::open_file::OwnedLease;
use crate::range::ByteRange;

/// # Atomic views
///
/// Words of the file as atomics of the standard library: several threads may hold views of the same
/// words, and other processes may map the same file and use atomics of the same size on them. A
/// word is in the byte order of the processor. All stores are seen at once; they are durable after a
/// [`flush`](Self::flush) that begins later. Dropping a view counts its bytes as written, as
/// dropping a [`MappedSliceMut`](crate::MappedSliceMut) does, and starts the flush that the
/// [`FlushPolicy`] asks for after a write, without waiting for its end.
///
/// The views of one word all have the same size. While one of them lives:
/// - views of the same size may overlap it, through any handle of this process;
/// - a view of the other size, [`as_slice`](Self::as_slice) and [`bytes`](Self::bytes) of its bytes
///   are [`Busy`](MmapIoError::Busy); [`slice`](Self::slice) and [`read_bytes`](Self::read_bytes)
///   wait until the last view is dropped, and so do writes and shrinks that overlap it;
/// - [`read_into`](Self::read_into), [`reader`](Self::reader) and `chunks_owned` copy its bytes by
///   relaxed atomic loads: no word is torn, and the words of one copy may be of different moments.
///   Not so through a writable copy-on-write handle if the view is one of the file itself: there
///   the first two wait for it, and `chunks_owned` is `Busy`.
///
/// A view outlives growth of the file. Making one takes short locks, so a loop of operations on a
/// word had better keep its view.
///
/// # Errors
///
/// In this order:
/// - [`InvalidMode`](MmapIoError::InvalidMode) unless the handle is read-write, or copy-on-write
///   and writable.
/// - [`Misaligned`](MmapIoError::Misaligned): the offset is not a multiple of the size of a word,
///   which is 4 or 8 bytes.
/// - [`OutOfBounds`](MmapIoError::OutOfBounds)
/// - [`Busy`](MmapIoError::Busy): a view that is not atomic, or an atomic view of the other size,
///   overlaps the words; or a write of more than 1 MiB is being applied to them; or one through a
///   writable copy-on-write handle to their pages.
/// - [`Io`](MmapIoError::Io): the system refuses a memory barrier.
///
/// # Blocking
///
/// Making a view runs a memory barrier on all threads of the process (0.3 to 20 us, milliseconds at
/// worst), unless a live view of the same size contains the words, or they were written or in atomic
/// use shortly before. It also waits for what ends within moments: a write of at most 1 MiB that is
/// being applied to the words, a copy of at most 1 MiB that `read_into`, a reader or `chunks_owned`
/// is making of them, and for up to 1 ms for a write that views have kept out.
///
/// The words may not be in memory: then the first touch of each page blocks the thread, and a store
/// to a hole of a sparse file raises `SIGBUS` if the disk is full.
/// [`touch_pages_range`](Self::touch_pages_range) reads the pages in before, and
/// [`preallocate`](crate::MemoryMappedFileBuilder::preallocate) leaves no holes.
impl MemoryMappedFile {
    /// Returns a view of the 4 bytes at `offset` as an atomic word; see
    /// [Atomic views](#atomic-views).
    ///
    /// # Errors
    ///
    /// See [Atomic views](#atomic-views).
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// use std::sync::atomic::Ordering;
    ///
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 4096).await?;
    /// let ready = file.atomic_u32(64)?;
    /// ready.store(1, Ordering::Release);
    /// assert_eq!(ready.swap(0, Ordering::AcqRel), 1);
    /// assert!(file.atomic_u32(66).is_err());  // misaligned
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn atomic_u32(&self, offset: u64) -> Result<AtomicView<'_, AtomicU32>> {
        self.words(Kind::Atomic4, offset, 1).map(AtomicView)
    }

    /// Returns a view of the 8 bytes at `offset` as an atomic word; see
    /// [Atomic views](#atomic-views).
    ///
    /// # Errors
    ///
    /// See [Atomic views](#atomic-views).
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// use std::sync::atomic::Ordering;
    ///
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 4096).await?;
    /// let counter = file.atomic_u64(8)?;
    /// std::thread::scope(|scope| {
    ///     for _ in 0..2 {
    ///         scope.spawn(|| counter.fetch_add(1, Ordering::Relaxed));
    ///     }
    /// });
    /// // A copy may be made while the view lives.
    /// let mut bytes = [0; 8];
    /// file.read_into(8, &mut bytes).await?;
    /// assert_eq!(u64::from_ne_bytes(bytes), 2);
    /// drop(counter);
    /// file.flush().await?;
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn atomic_u64(&self, offset: u64) -> Result<AtomicView<'_, AtomicU64>> {
        self.words(Kind::Atomic8, offset, 1).map(AtomicView)
    }

    /// Returns a view of `count` words of 4 bytes each, the first of them at `offset`; see
    /// [Atomic views](#atomic-views).
    ///
    /// A view of no words holds nothing and conflicts with nothing; its offset must be aligned, and
    /// at most the length of the file.
    ///
    /// # Errors
    ///
    /// See [Atomic views](#atomic-views).
    pub fn atomic_u32_slice(
        &self,
        offset: u64,
        count: usize,
    ) -> Result<AtomicSliceView<'_, AtomicU32>> {
        self.words(Kind::Atomic4, offset, count)
            .map(AtomicSliceView)
    }

    /// Returns a view of `count` words of 8 bytes each, the first of them at `offset`; see
    /// [Atomic views](#atomic-views).
    ///
    /// A view of no words holds nothing and conflicts with nothing; its offset must be aligned, and
    /// at most the length of the file.
    ///
    /// # Errors
    ///
    /// See [Atomic views](#atomic-views).
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// use std::sync::atomic::Ordering;
    ///
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 4096).await?;
    /// let histogram = file.atomic_u64_slice(0, 16)?;
    /// for value in [3, 5, 3] {
    ///     histogram[value].fetch_add(1, Ordering::Relaxed);
    /// }
    /// let total: u64 = histogram.iter().map(|word| word.load(Ordering::Relaxed)).sum();
    /// assert_eq!(total, 3);
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn atomic_u64_slice(
        &self,
        offset: u64,
        count: usize,
    ) -> Result<AtomicSliceView<'_, AtomicU64>> {
        self.words(Kind::Atomic8, offset, count)
            .map(AtomicSliceView)
    }

    /// `T` has the size that `kind` is for.
    fn words<T>(&self, kind: Kind, offset: u64, count: usize) -> Result<Words<'_, T>> {
        let size = size_of::<T>() as u64;
        let len = size.saturating_mul(count as u64);
        let words = || {
            self.handle.require_write()?;
            check()?;
            if offset % size != 0 {
                return Err(MmapIoError::Misaligned {
                    required: size,
                    offset,
                });
            }
            let range = ByteRange::new(offset, len, self.len())?;
            if range.is_empty() {
                return Ok(Words::new(Span::EMPTY, range, None, FlushPolicy::Never));
            }
            let shared = &self.handle.shared;
            shared.check_whole(Protection::ReadWrite)?;
            let lease = Lease::atomic_briefly(Arc::clone(shared), kind, range)?;
            // A shrink may have gone first.
            let span = shared.span(Protection::ReadWrite, range)?;
            Ok(Words::new(span, range, Some(lease), self.handle.policy))
        };
        words().map_err(|error| error.during("getting an atomic view of", (offset, len)))
    }
}

/// A view of one word of a mapped file as an atomic; see
/// [Atomic views](MemoryMappedFile#atomic-views).
///
/// It dereferences to [`AtomicU32`] or [`AtomicU64`].
pub struct AtomicView<'a, T>(Words<'a, T>);

impl<T> Deref for AtomicView<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0.as_slice()[0]
    }
}

/// Shows the offset in the file and the value.
impl<T: fmt::Debug> fmt::Debug for AtomicView<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AtomicView")
            .field("offset", &self.0.range.start())
            .field("value", &**self)
            .finish()
    }
}

/// A view of neighbouring words of a mapped file as atomics; see
/// [Atomic views](MemoryMappedFile#atomic-views).
///
/// It dereferences to a slice of [`AtomicU32`] or [`AtomicU64`].
pub struct AtomicSliceView<'a, T>(Words<'a, T>);

impl<T> Deref for AtomicSliceView<'_, T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        self.0.as_slice()
    }
}

/// Shows the offset in the file and the number of words.
impl<T> fmt::Debug for AtomicSliceView<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AtomicSliceView")
            .field("offset", &self.0.range.start())
            .field("count", &self.len())
            .finish()
    }
}

/// Words under an atomic lease. `T` is `AtomicU32` or `AtomicU64`.
struct Words<'a, T> {
    /// A whole number of aligned words.
    span: Span,
    range: ByteRange,
    /// `None` for no words.
    lease: Option<OwnedLease>,
    policy: FlushPolicy,
    words: PhantomData<&'a [T]>,
}

impl<T> Words<'_, T> {
    /// Makes a view of `range`, which is under the lease, at `span` in the current writable map of
    /// the lease's host.
    fn new(span: Span, range: ByteRange, lease: Option<OwnedLease>, policy: FlushPolicy) -> Self {
        Self {
            span,
            range,
            lease,
            policy,
            words: PhantomData,
        }
    }

    #[inline]
    fn as_slice(&self) -> &[T] {
        // SAFETY: `T` and the span are as the fields say. The atomic lease for words of this size
        // is held for as long as `self` is borrowed, and its host keeps the map.
        unsafe { self.span.as_words() }
    }
}

impl<T> Drop for Words<'_, T> {
    fn drop(&mut self) {
        // The bytes are counted before the lease ends, so that a later flush covers them.
        if let Some(lease) = &self.lease {
            lease
                .host()
                .record_view_write(lease, self.range, self.policy);
        }
    }
}
