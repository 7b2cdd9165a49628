//! `Bytes` that point into the mapping, for hyper and axum, without a copy.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;

use super::{Handle, MemoryMappedFile};
use crate::error::Result;
use crate::fairness::operation;
use crate::lease::{Hold, Lease};
use crate::map::{no_bytes, Span};
use crate::range::ByteRange;

impl MemoryMappedFile {
    /// Returns a `Bytes` that points into the mapping and may outlive the handle.
    ///
    /// It holds the range's lease and keeps the file mapped until the last of it is dropped, clones
    /// and parts included: until then, writes that overlap the range wait, and readers do not. A
    /// part (`Bytes::slice`) keeps the lease of the whole range. `Bytes::from(&slice)` of a
    /// [`MappedSlice`](crate::MappedSlice) is a copy, which delays no write. Costs one allocation
    /// and a short lock; clones and parts cost neither.
    ///
    /// The bytes may not be resident; [`read_bytes`](Self::read_bytes) reads them in before.
    ///
    /// # Alignment
    ///
    /// The mapping begins at the start of a page, so the offset decides the alignment: at an offset
    /// that is a multiple of 8 the bytes can be used as `&[u64]`. A view of no bytes has the
    /// alignment of a page, whatever its offset. Both hold for every view of this crate.
    ///
    /// # What touches every byte
    ///
    /// The memory belongs to the file: `Bytes::try_into_mut` fails, and `Vec::from` and
    /// `BytesMut::from` copy all of it. A copy touches each page on the thread that makes it, and
    /// so do TLS, compression and checksums. A page that is not in memory then blocks that thread,
    /// which [`read_bytes`](Self::read_bytes) avoids. A page that another process has cut off
    /// raises `SIGBUS`, which ends the program (unless the [fault guard](crate#the-fault-guard) is
    /// on); a socket without TLS fails with `EFAULT` instead, since there the kernel reads the
    /// bytes. Where that may happen, give such code a copy of
    /// [`read_into`](Self::read_into): see the
    /// [recipe](crate#tls-compression-and-other-code-that-touches-every-byte).
    ///
    /// # Errors
    ///
    /// Those of [`as_slice`](Self::as_slice).
    ///
    /// # Blocking
    ///
    /// As [`as_slice`](Self::as_slice).
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # std::fs::write(dir.path().join("data"), b"some bytes")?;
    /// let file = mmap_io::MemoryMappedFile::open_ro(dir.path().join("data")).await?;
    /// let bytes = file.bytes(5, 5)?;
    /// drop(file);
    /// assert_eq!(bytes, "bytes");
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// Values that `rkyv` has archived can be used in place:
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let file = mmap_io::create_mmap(dir.path().join("data"), 4096).await?;
    /// use rkyv::rancor::Error;
    ///
    /// #[derive(rkyv::Archive, rkyv::Serialize)]
    /// struct Entry {
    ///     name: String,
    ///     sizes: Vec<u64>,
    /// }
    ///
    /// let entry = Entry { name: "first".into(), sizes: vec![4, 2] };
    /// let archived = rkyv::to_bytes::<Error>(&entry)?;
    /// // An archive needs an offset that is a multiple of 16 at most.
    /// file.update_region(64, &archived).await?;
    ///
    /// let bytes = file.bytes(64, archived.len() as u64)?;
    /// let entry = rkyv::access::<ArchivedEntry, Error>(&bytes)?;  // checks, and copies nothing
    /// assert_eq!(entry.name, "first");
    /// assert_eq!(entry.sizes[1], 2);
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn bytes(&self, offset: u64, len: u64) -> Result<Bytes> {
        let Some(range) = self.handle.range(offset, len)? else {
            return Ok(Bytes::from_static(no_bytes()));
        };
        let lease = Lease::shared_briefly(self.handle.clone(), Hold::Entry, range)?;
        self.leased_bytes(range, lease)
    }

    /// Returns a `Bytes` into the mapping after reading its pages into memory.
    ///
    /// It is what [`bytes`](Self::bytes) returns, not a copy: writes that overlap it wait until its
    /// last clone is dropped. Waits as [`slice`](Self::slice) does.
    ///
    /// # Errors
    ///
    /// Those of [`slice`](Self::slice).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind but pages that are resident.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # std::fs::write(dir.path().join("data"), b"some bytes")?;
    /// let file = mmap_io::MemoryMappedFile::open_ro(dir.path().join("data")).await?;
    /// let bytes = file.read_bytes(5, 5).await?;
    /// drop(file);
    /// assert_eq!(bytes, "bytes");
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn read_bytes(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<Bytes>> + Send + 'static {
        let file = self.clone();
        operation("reading", (offset, len), async move {
            let Some(range) = file.handle.range(offset, len)? else {
                return Ok(Bytes::from_static(no_bytes()));
            };
            let lease = file
                .resident_lease(file.handle.clone(), Hold::Entry, range)
                .await?;
            file.leased_bytes(range, lease)
        })
    }

    /// Reads a range in, and waits until nothing conflicts with a view of it.
    pub(crate) async fn read_in_to_lend(self, offset: u64, len: u64) -> Result<()> {
        operation("reading", (offset, len), async {
            let Some(range) = self.handle.range(offset, len)? else {
                return Ok(());
            };
            let lease = self.resident_lease(&*self.shared, Hold::Copy, range);
            lease.await.map(drop)
        })
        .await
    }

    /// Returns the same `Bytes`, or `None` if anything conflicts with their lease.
    pub(crate) fn try_bytes(&self, range: ByteRange) -> Result<Option<Bytes>> {
        match Lease::try_shared(self.handle.clone(), Hold::Entry, range) {
            Ok(lease) => self.leased_bytes(range, lease).map(Some),
            Err(_) => Ok(None),
        }
    }

    pub(super) fn leased_bytes(
        &self,
        range: ByteRange,
        lease: Lease<Arc<Handle>>,
    ) -> Result<Bytes> {
        let span = self.shared.span(self.protection, range)?;
        Ok(Bytes::from_owner(Leased {
            span,
            _lease: lease,
        }))
    }
}

/// What a `Bytes` owns: a lease, and through it the handle, which keeps the map.
struct Leased {
    span: Span,
    _lease: Lease<Arc<Handle>>,
}

impl AsRef<[u8]> for Leased {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the shared lease is held for as long as `self` lives, and its host keeps the
        // map; the address stays the same wherever `self` is moved.
        unsafe { self.span.as_slice() }
    }
}

impl fmt::Debug for Leased {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leased").finish_non_exhaustive()
    }
}
