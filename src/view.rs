//! Views: bytes of a file, together with the lease that protects them.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytes::Bytes;

use crate::commit::Flush;
use crate::error::Result;
use crate::fairness::operation;
use crate::flush::FlushPolicy;
use crate::lease::Lease;
use crate::map::Span;
use crate::open_file::{HandleRef, OpenFile, OwnedLease};
use crate::range::ByteRange;

/// A zero-copy view of bytes of a mapped file, for reading.
///
/// While it lives, no write of this process changes the bytes and no shrink takes them away; a
/// write that overlaps them waits. It costs no allocation and no lock; only when a thread has more
/// than 16 views at a time, each further view costs a short lock.
///
/// A task that holds a view and awaits a write that overlaps it waits forever; see
/// [Deadlocks](crate#deadlocks).
///
/// # Examples
///
/// ```
/// # futures_lite::future::block_on(async {
/// # let dir = tempfile::tempdir()?;
/// let file = mmap_io::create_mmap(dir.path().join("data"), 64).await?;
/// file.update_region(8, b"bytes").await?;
/// let slice = file.as_slice(8, 5)?;
/// assert_eq!(slice, b"bytes");
/// assert!(slice.starts_with(b"by"));
/// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
pub struct MappedSlice<'a> {
    span: Span,
    /// `None` for no bytes. A reference to the bytes is not kept beside it: in the drop, it would
    /// outlive its lease for a moment.
    _lease: Option<Lease<&'a OpenFile>>,
    bytes: PhantomData<&'a [u8]>,
}

impl<'a> MappedSlice<'a> {
    pub(crate) const EMPTY: Self = Self {
        span: Span::EMPTY,
        _lease: None,
        bytes: PhantomData,
    };

    /// Makes a view of `span`, which lies in the current map of the lease's host, and under the
    /// lease.
    pub(crate) fn new(span: Span, lease: Lease<&'a OpenFile>) -> Self {
        Self {
            span,
            _lease: Some(lease),
            bytes: PhantomData,
        }
    }

    /// Returns the bytes, for as long as the view is borrowed; the same as dereferencing it.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        self
    }
}

impl Deref for MappedSlice<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the shared lease is held for as long as `self` is borrowed, and its host keeps
        // the map.
        unsafe { self.span.as_slice() }
    }
}

impl AsRef<[u8]> for MappedSlice<'_> {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// Shows the length and the first 32 bytes.
impl fmt::Debug for MappedSlice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedSlice")
            .field("len", &self.len())
            .field("bytes", &Beginning(self))
            .finish()
    }
}

impl Eq for MappedSlice<'_> {}

impl PartialEq for MappedSlice<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl PartialEq<[u8]> for MappedSlice<'_> {
    fn eq(&self, other: &[u8]) -> bool {
        **self == *other
    }
}

impl PartialEq<&[u8]> for MappedSlice<'_> {
    fn eq(&self, other: &&[u8]) -> bool {
        **self == **other
    }
}

impl<const N: usize> PartialEq<[u8; N]> for MappedSlice<'_> {
    fn eq(&self, other: &[u8; N]) -> bool {
        **self == *other
    }
}

impl<const N: usize> PartialEq<&[u8; N]> for MappedSlice<'_> {
    fn eq(&self, other: &&[u8; N]) -> bool {
        **self == **other
    }
}

/// Copies the bytes; [`MemoryMappedFile::bytes`](crate::MemoryMappedFile::bytes) does not.
impl From<MappedSlice<'_>> for Bytes {
    fn from(slice: MappedSlice<'_>) -> Self {
        Self::from(&slice)
    }
}

/// Copies the bytes; [`MemoryMappedFile::bytes`](crate::MemoryMappedFile::bytes) does not.
impl From<&MappedSlice<'_>> for Bytes {
    fn from(slice: &MappedSlice<'_>) -> Self {
        Self::copy_from_slice(slice)
    }
}

/// An exclusive view of bytes of a mapped file, for changing them in place.
///
/// While it lives, no other view or operation of this process sees the bytes:
/// [`as_slice`](crate::MemoryMappedFile::as_slice) of them is `Busy`, and an operation that is
/// awaited waits; see [Deadlocks](crate#deadlocks). Dropping the view counts all its bytes as
/// written, and starts the flush that the handle's [`FlushPolicy`](crate::FlushPolicy) asks for
/// after a write, without waiting for its end. [`commit`](Self::commit) makes them durable.
///
/// # Examples
///
/// ```
/// # futures_lite::future::block_on(async {
/// # let dir = tempfile::tempdir()?;
/// let file = mmap_io::create_mmap(dir.path().join("data"), 64).await?;
/// let mut slice = file.as_slice_mut(0, 5).await?;
/// slice.copy_from_slice(b"bytes");
/// slice.commit().await?;
/// assert_eq!(file.as_slice(0, 5)?, b"bytes");
/// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
pub struct MappedSliceMut<'a> {
    span: Span,
    range: ByteRange,
    /// `None` for no bytes.
    lease: Option<OwnedLease>,
    policy: FlushPolicy,
    bytes: PhantomData<&'a mut [u8]>,
}

impl MappedSliceMut<'_> {
    pub(crate) const EMPTY: Self = Self {
        span: Span::EMPTY,
        range: ByteRange::EMPTY,
        lease: None,
        policy: FlushPolicy::Never,
        bytes: PhantomData,
    };

    /// Makes a view of `range`, which is under the exclusive lease, at `span` in the current
    /// writable map of the lease's host.
    pub(crate) fn new(
        span: Span,
        range: ByteRange,
        lease: OwnedLease,
        policy: FlushPolicy,
    ) -> Self {
        Self {
            span,
            range,
            lease: Some(lease),
            policy,
            bytes: PhantomData,
        }
    }

    /// Drops the view and makes its bytes durable.
    ///
    /// # Errors
    ///
    /// Those of [`flush`](crate::MemoryMappedFile::flush).
    ///
    /// # Cancel safety
    ///
    /// The view ends when this is called, and the bytes are written. Dropping the future before it
    /// is polled is like dropping the view: the flush that the policy asks for is started. Dropping
    /// it later does not stop the flush.
    #[doc(alias = "durable")]
    pub fn commit(mut self) -> impl Future<Output = Result<()>> + Send + 'static {
        // The flush below covers the bytes: the policy need not flush them again.
        let policy = std::mem::replace(&mut self.policy, FlushPolicy::Never);
        let lease = self.lease.as_ref();
        let uncommitted = lease.map(|lease| Uncommitted {
            open: HandleRef::new(lease.host().clone()),
            range: self.range,
            policy,
            losses: lease.host().losses(),
        });
        let subject = (self.range.start(), self.range.len());
        drop(self);
        operation("flushing", subject, async move {
            let Some(mut uncommitted) = uncommitted else {
                return Ok(());
            };
            uncommitted.policy = FlushPolicy::Never;
            let flush = Flush::of(uncommitted.range);
            let flush = uncommitted.open.start(flush, uncommitted.losses);
            flush.done().await
        })
    }
}

/// A view whose bytes are handed out piece by piece.
#[cfg(feature = "iterator")]
impl MappedSliceMut<'_> {
    /// Makes a view of the first bytes of the file, none of which counts as written yet. `span` is
    /// under the exclusive lease, in a writable map of the lease's host.
    pub(crate) fn of_nothing_yet(span: Span, lease: OwnedLease, policy: FlushPolicy) -> Self {
        Self::new(span, ByteRange::EMPTY, lease, policy)
    }

    /// Returns bytes of a view that was made [`of_nothing_yet`](Self::of_nothing_yet), and counts
    /// them as written from now on.
    pub(crate) fn hand_out(&mut self, range: ByteRange) -> &mut [u8] {
        self.range = self.range.hull(range);
        &mut self[range.start() as usize..range.end() as usize]
    }

    /// Ends the view, and waits for the flush that the policy asks for after a write.
    pub(crate) fn finish(mut self) -> impl Future<Output = Result<()>> + Send + 'static {
        let range = std::mem::replace(&mut self.range, ByteRange::EMPTY);
        // Before the lease ends, as in the drop.
        let flushed = match &self.lease {
            Some(lease) if !range.is_empty() => {
                Some(lease.host().record_write(lease, range, self.policy))
            }
            _ => None,
        };
        drop(self);
        async move {
            match flushed {
                Some(flushed) => flushed.await,
                None => Ok(()),
            }
        }
    }
}

/// The bytes of a view that has ended, to be committed. If it is dropped before that, it starts the
/// flush that the policy asks for.
struct Uncommitted {
    open: HandleRef,
    range: ByteRange,
    policy: FlushPolicy,
    /// The number of losses before the bytes were counted as written.
    losses: u64,
}

impl Drop for Uncommitted {
    fn drop(&mut self) {
        self.open.start_late(self.range, self.policy);
    }
}

impl Deref for MappedSliceMut<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the exclusive lease is held for as long as `self` is borrowed, and its host
        // keeps the map.
        unsafe { self.span.as_slice() }
    }
}

impl DerefMut for MappedSliceMut<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `self` is borrowed mutably, so this is the only slice under the
        // lease.
        unsafe { self.span.as_mut_slice() }
    }
}

impl AsRef<[u8]> for MappedSliceMut<'_> {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for MappedSliceMut<'_> {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

/// Shows the offset in the file, the length and the first 32 bytes.
impl fmt::Debug for MappedSliceMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedSliceMut")
            .field("offset", &self.range.start())
            .field("len", &self.len())
            .field("bytes", &Beginning(self))
            .finish()
    }
}

impl Drop for MappedSliceMut<'_> {
    fn drop(&mut self) {
        // The bytes are counted before the lease ends, so that a later flush covers them.
        match &self.lease {
            Some(lease) if !self.range.is_empty() => {
                lease
                    .host()
                    .record_view_write(lease, self.range, self.policy);
            }
            _ => {}
        }
    }
}

/// Shows bytes as a literal: at most the first 32, and whether there are more.
struct Beginning<'a>(&'a [u8]);

impl fmt::Debug for Beginning<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 32;
        let (shown, more) = match self.0.len() {
            0..=MOST => (self.0, ""),
            _ => (&self.0[..MOST], ".."),
        };
        write!(f, "b\"{}\"{more}", shown.escape_ascii())
    }
}

#[cfg(all(test, not(mmap_io_loom)))]
mod tests {
    use crate::file::MemoryMappedFile;

    #[test]
    fn debug_shows_the_first_bytes() {
        let dir = tempfile::tempdir().unwrap();
        futures_lite::future::block_on(async {
            let path = dir.path().join("data");
            let file = MemoryMappedFile::create_rw(&path, 100).await.unwrap();
            file.update_region(0, b"say \"hello\"\n").await.unwrap();
            let shown = |offset, len| format!("{:?}", file.as_slice(offset, len).unwrap());
            assert_eq!(
                shown(0, 13),
                r#"MappedSlice { len: 13, bytes: b"say \"hello\"\n\x00" }"#
            );
            assert_eq!(shown(50, 0), r#"MappedSlice { len: 0, bytes: b"" }"#);
            let zeroes = r"\x00".repeat(32);
            let some = format!("MappedSlice {{ len: 32, bytes: b\"{zeroes}\" }}");
            assert_eq!(shown(20, 32), some);
            let more = format!("MappedSlice {{ len: 33, bytes: b\"{zeroes}\".. }}");
            assert_eq!(shown(20, 33), more);
            let view = file.as_slice_mut(5, 5).await.unwrap();
            let changed = r#"MappedSliceMut { offset: 5, len: 5, bytes: b"hello" }"#;
            assert_eq!(format!("{view:?}"), changed);
        });
    }
}
