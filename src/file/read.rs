//! Reading: zero-copy views, at once or when their pages are in memory, and copies.

use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::sync::MutexGuard;

use super::pinned::PinnedRanges;
use super::MemoryMappedFile;
use crate::error::{MmapIoError, Result};
use crate::fairness::{copied, operation, viewed};
use crate::fault_guard::IS_ON;
use crate::lease::{
    briefly, shared_briefly, try_shared, until_granted, CopyLease, Hold, Kind, Lease, LeaseHost,
    Refused, Token,
};
use crate::map::{no_bytes, Protection};
use crate::offload::check;
use crate::open_file::OpenFile;
use crate::range::ByteRange;
use crate::residency::{self, room_for_copy};
use crate::sync::lock;
use crate::sys;
use crate::view::MappedSlice;

/// The most ranges of a read whose pages the system is asked about on the thread that polls: for each
/// it takes 3 us.
const MOST_ASKED: usize = 16;

impl MemoryMappedFile {
    /// Returns a zero-copy view of a range, without reading its pages into memory.
    ///
    /// Costs no allocation, no lock and no system call. The bytes may not be resident: then the
    /// first touch of each page blocks the thread. [`slice`](Self::slice) reads the pages in
    /// before.
    ///
    /// # Errors
    ///
    /// - [`OutOfBounds`](MmapIoError::OutOfBounds)
    /// - [`Busy`](MmapIoError::Busy): a [`MappedSliceMut`](crate::MappedSliceMut) or an atomic view
    ///   overlaps the range, or a write of more than 1 MiB is being applied to it.
    ///   [`slice`](Self::slice) waits for all of them.
    ///
    /// # Blocking
    ///
    /// Waits for a write of at most 1 MiB that is being applied to these bytes right now: a matter
    /// of microseconds. A write that a steady stream of readers has kept out may hold off new
    /// readers of its range for up to 1 ms, at most once every 100 ms.
    /// [`try_as_slice`](Self::try_as_slice) waits for neither.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 100).await?;
    /// file.update_region(10, b"hello").await?;
    /// let slice = file.as_slice(10, 5)?;
    /// assert_eq!(slice, b"hello");
    /// assert!(file.as_slice(98, 5).is_err());  // out of bounds
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// Records of a fixed layout can be used in place, for example with `zerocopy`. The offset
    /// decides the alignment, as for [`bytes`](Self::bytes):
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let file = mmap_io::create_mmap(dir.path().join("data"), 4096).await?;
    /// use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
    ///
    /// #[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
    /// #[repr(C)]
    /// struct Record {
    ///     key: u64,
    ///     value: u64,
    /// }
    ///
    /// let record = Record { key: 7, value: 49 };
    /// file.update_region(160, record.as_bytes()).await?;
    ///
    /// let slice = file.as_slice(128, 64)?;
    /// let records = <[Record]>::ref_from_bytes(&slice).expect("aligned, and whole records");
    /// assert_eq!(records.len(), 4);
    /// assert_eq!((records[2].key, records[2].value), (7, 49));
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    #[inline(always)]
    pub fn as_slice(&self, offset: u64, len: u64) -> Result<MappedSlice<'_>> {
        loop {
            let slice = self.slice_or(offset, len, |shared, range| {
                #[cold]
                fn wait(shared: &OpenFile, range: ByteRange) -> Option<Token> {
                    shared_briefly(shared, Hold::Slot, range).ok()
                }
                wait(shared, range)
            });
            if let Some(slice) = slice {
                return Ok(slice);
            }
            if let Some(error) = self.lease_error(offset, len) {
                return Err(*error);
            }
        }
    }

    /// Returns a zero-copy view of a range, or `None` instead of waiting.
    ///
    /// It differs from [`as_slice`](Self::as_slice) where that method waits, or returns `Busy`:
    /// here both are `None`. The bytes may not be resident.
    ///
    /// # Errors
    ///
    /// [`OutOfBounds`](MmapIoError::OutOfBounds)
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 100).await?;
    /// let view = file.as_slice_mut(0, 10).await?;
    /// assert!(file.try_as_slice(0, 5)?.is_none());  // `view` overlaps it
    /// assert!(file.try_as_slice(50, 5)?.is_some());
    /// drop(view);
    /// assert!(file.try_as_slice(0, 5)?.is_some());
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    #[inline(always)]
    pub fn try_as_slice(&self, offset: u64, len: u64) -> Result<Option<MappedSlice<'_>>> {
        let slice = self.slice_or(offset, len, |shared, range| {
            #[cold]
            fn look_again(shared: &OpenFile, range: ByteRange) -> Option<Token> {
                range.check(shared.len()).ok()?;
                try_shared(shared, Hold::Slot, range).ok()
            }
            look_again(shared, range)
        });
        match slice {
            Some(slice) => Ok(Some(slice)),
            None => match self.no_view(offset, len) {
                Some(error) => Err(*error),
                None => Ok(None),
            },
        }
    }

    /// Takes a shared lease, without a lock if possible and else by `slow_path`, and returns the
    /// view. After `None`, [`lease_error`](Self::lease_error) works out the error.
    #[inline(always)]
    fn slice_or(
        &self,
        offset: u64,
        len: u64,
        slow_path: impl FnOnce(&OpenFile, ByteRange) -> Option<Token>,
    ) -> Option<MappedSlice<'_>> {
        if len == 0 {
            return Some(MappedSlice::EMPTY);
        }
        let range = ByteRange::between(offset, offset.checked_add(len)?);
        let lease = match self.is_private {
            false => Lease::shared_or(&*self.shared, range, slow_path)?,
            true => Lease::of(&*self.shared, slow_path(&self.shared, range)?),
        };
        // Only now: without the lease, a shrink could cut the range off after the check.
        let span = self.shared.span_within(self.protection, range)?;
        Some(MappedSlice::new(span, lease))
    }

    /// The error for a lease that was not granted, boxed so that it is returned in a register.
    /// `None` if the lease is granted now: a cut refused it, and the file has grown again.
    #[cold]
    fn lease_error(&self, offset: u64, len: u64) -> Option<Box<MmapIoError>> {
        if let Some(error) = self.no_view(offset, len) {
            return Some(error);
        }
        let range = ByteRange::between(offset, offset + len);
        let lease = Lease::shared_briefly(&*self.shared, Hold::Slot, range);
        lease.err().map(Box::new)
    }

    /// The error of a range that is out of bounds, or of lost pages, boxed for the same reason.
    #[cold]
    fn no_view(&self, offset: u64, len: u64) -> Option<Box<MmapIoError>> {
        let range = ByteRange::new(offset, len, self.len());
        let whole = range.and_then(|_| self.shared.check_whole(self.protection));
        whole.err().map(Box::new)
    }

    /// Returns a `&[u8]` that stays valid as long as the handle, which may not write, is borrowed.
    ///
    /// The range stays leased until the last clone of the handle is dropped, so that a write
    /// through another handle that overlaps the range waits until then. To ask for the same range
    /// again costs no further lease, and ranges that touch each other share a lease. A call that
    /// fails keeps no lease.
    ///
    /// # Errors
    ///
    /// - [`InvalidMode`](MmapIoError::InvalidMode): the handle may write, also private pages, and
    ///   its writes would wait for its own view.
    /// - Those of [`as_slice`](Self::as_slice).
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
    /// let (some, bytes): (&[u8], &[u8]) = (file.as_slice_bytes(0, 4)?, file.as_slice_bytes(5, 5)?);
    /// assert_eq!((some, bytes), (&b"some"[..], &b"bytes"[..]));
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn as_slice_bytes(&self, offset: u64, len: u64) -> Result<&[u8]> {
        if len == 0 {
            return Ok(no_bytes());
        }
        if self.handle.may_write() {
            return Err(MmapIoError::invalid_mode(
                "a handle that may write would wait for its own view",
            ));
        }
        let range = ByteRange::new(offset, len, self.len())?;
        self.shared.check_whole(self.protection)?;
        let span = loop {
            let Some(all) = self.pinned(range)?.missing(range) else {
                break self.shared.span(self.protection, range)?;
            };
            // Outside the lock, since it may wait. What was leased before may have been cut off.
            let attempt = |_| try_shared(&*self.shared, Hold::Entry, all);
            let token = briefly(&*self.shared, range, all, attempt)?;
            let lease = Lease::of(self.shared.clone(), token);
            // Before the lease is kept: a call that fails keeps none.
            let span = self.shared.span(self.protection, range)?;
            // What it returns is dropped outside the lock: the end of a lease may call wakers.
            let pinned = self.pinned(range)?.pin(all, lease);
            if pinned.is_ok() {
                break span;
            }
        };
        // SAFETY: every byte of the range is under a lease that lives as long as the handle,
        // which `self` borrows, and the handle keeps the map.
        Ok(unsafe { span.as_slice() })
    }

    /// Locks the ranges that [`as_slice_bytes`](Self::as_slice_bytes) has returned.
    fn pinned(&self, range: ByteRange) -> Result<MutexGuard<'_, PinnedRanges>> {
        match sys::is_forked() {
            false => Ok(lock(&self.handle.pinned)),
            // In a forked child the lock may never be free.
            true => self.handle.pinned.try_lock().map_err(|_| range.busy()),
        }
    }

    /// Returns a zero-copy view of a range after reading its pages into memory.
    ///
    /// The pages are read in on the pool if they are not in memory. If a range of at most 4 MiB on
    /// a local file system is all in memory, there is no hop to the pool (a few microseconds for 64
    /// KiB); a larger range always hops. Waits for a write that is being applied to the range, and
    /// for a [`MappedSliceMut`](crate::MappedSliceMut) or an atomic view that overlaps it.
    ///
    /// # Errors
    ///
    /// - [`OutOfBounds`](MmapIoError::OutOfBounds)
    /// - [`Truncated`](MmapIoError::Truncated): another process has cut off bytes of the range.
    /// - [`Io`](MmapIoError::Io): the pages cannot be read.
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
    /// let slice = file.slice(5, 5).await?;
    /// assert_eq!(slice, b"bytes");
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub async fn slice(&self, offset: u64, len: u64) -> Result<MappedSlice<'_>> {
        operation("reading", (offset, len), self.resident_slice(offset, len)).await
    }

    /// What [`slice`](Self::slice) resolves to.
    async fn resident_slice(&self, offset: u64, len: u64) -> Result<MappedSlice<'_>> {
        let Some(range) = self.handle.range(offset, len)? else {
            return Ok(MappedSlice::EMPTY);
        };
        let lease = self
            .resident_lease(&*self.shared, Hold::Slot, range)
            .await?;
        let span = self.shared.span(self.protection, range)?;
        Ok(MappedSlice::new(span, lease))
    }

    /// Takes a shared lease, over pages that are resident when it is granted.
    pub(super) async fn resident_lease<H>(
        &self,
        host: H,
        hold: Hold,
        range: ByteRange,
    ) -> Result<Lease<H>>
    where
        H: Deref + Clone,
        H::Target: LeaseHost + Sized,
    {
        self.resident(range, || Lease::try_shared(host.clone(), hold, range))
            .await
    }

    /// Takes the leases of a copy, over pages that are resident when they are granted. The caller
    /// copies in the same poll: until the leases end, they may block a thread that makes an atomic
    /// view.
    async fn resident_copy_lease(&self, range: ByteRange) -> Result<CopyLease<&OpenFile>> {
        self.resident(range, || CopyLease::try_new(&*self.shared, range))
            .await
    }

    /// Reads a range in, and waits until nothing conflicts with a copy of it.
    pub(crate) async fn read_in_to_copy(self, offset: u64, len: u64) -> Result<()> {
        operation("reading", (offset, len), async {
            let range = ByteRange::new(offset, len, self.len())?;
            self.resident_copy_lease(range).await.map(drop)
        })
        .await
    }

    /// Returns what `attempt` grants, over pages that are resident then.
    async fn resident<T>(
        &self,
        range: ByteRange,
        mut attempt: impl FnMut() -> Result<T, Refused>,
    ) -> Result<T> {
        check()?;
        loop {
            self.make_resident(range).await?;
            if let Ok(lease) = attempt() {
                return Ok(lease);
            }
            let lease = until_granted(&*self.shared, range, &mut attempt).await?;
            // The wait may have been long enough for the system to take the pages out of memory.
            range.check(self.len())?;
            if self.is_resident(range) {
                return Ok(lease);
            }
        }
    }

    /// Reads the pages of a range in, unless they are in memory.
    pub(super) async fn make_resident(&self, range: ByteRange) -> Result<()> {
        self.make_all_resident(&[range]).await
    }

    /// Reads the pages of all ranges in that are not in memory.
    pub(super) async fn make_all_resident(&self, ranges: &[ByteRange]) -> Result<()> {
        // For many ranges the questions would take longer than the hop.
        let total = ByteRange::total_len(ranges);
        let is_asked =
            ranges.len() <= MOST_ASKED && residency::is_asked(ByteRange::between(0, total));
        let missing = ranges.iter();
        let missing = missing.filter(|range| !(is_asked && self.is_resident(**range)));
        let missing: Vec<ByteRange> = missing.copied().collect();
        let counters = &self.shared.counters;
        let hits = (ranges.len() - missing.len()) as u64;
        counters.resident_hits.fetch_add(hits, Ordering::Relaxed);
        if missing.is_empty() {
            viewed(total);
            return Ok(());
        }
        let misses = if is_asked { missing.len() as u64 } else { 0 };
        counters
            .resident_misses
            .fetch_add(misses, Ordering::Relaxed);
        self.read_in(missing).await
    }

    /// Reads the pages of ranges in, on the pool.
    async fn read_in(&self, ranges: Vec<ByteRange>) -> Result<()> {
        let protection = self.protection;
        let bytes = ByteRange::total_len(&ranges);
        self.shared
            .read_in_on_pool(bytes, move |shared| shared.read_in(protection, &ranges))
            .await
    }

    fn is_resident(&self, range: ByteRange) -> bool {
        self.shared.is_resident(self.protection, range)
    }

    /// Copies a range into `buffer`, after reading its pages into memory.
    ///
    /// The pages are made resident as by [`slice`](Self::slice), and then the thread that polls
    /// copies them. The copy delays no later write, and no other process can change it.
    ///
    /// It does not wait for atomic views (feature `atomic`): it copies their words by relaxed atomic
    /// loads. No word is torn, but one copy may have words of different moments. The other bytes
    /// show each write whole or not at all. Through a writable copy-on-write handle it does wait for
    /// an atomic view of the file.
    ///
    /// # Errors
    ///
    /// Those of [`slice`](Self::slice). What is in `buffer` then is unspecified.
    ///
    /// # Cancel safety
    ///
    /// The bytes are copied in the last poll, all of them.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # std::fs::write(dir.path().join("data"), b"some bytes")?;
    /// let file = mmap_io::MemoryMappedFile::open_ro(dir.path().join("data")).await?;
    /// let mut buffer = [0; 5];
    /// file.read_into(5, &mut buffer).await?;
    /// assert_eq!(&buffer, b"bytes");
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub async fn read_into(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let len = buffer.len() as u64;
        operation("reading", (offset, len), async {
            let Some(range) = self.handle.range(offset, len)? else {
                return Ok(());
            };
            let lease = self.resident_copy_lease(range).await?;
            let mut rest = &mut buffer[..];
            self.copy_out(&lease, range, |bytes| {
                let (next, after) = std::mem::take(&mut rest).split_at_mut(bytes.len());
                next.copy_from_slice(bytes);
                rest = after;
            })?;
            copied(len);
            Ok(())
        })
        .await
    }

    /// Passes the bytes of a range to `take`, piece by piece in their order. The range is the one
    /// that `lease` was taken for, or its beginning.
    ///
    /// # Errors
    ///
    /// `OutOfBounds` if a shrink came before the lease; then `take` was not called. `Faulted` if a
    /// page of the file was lost, or `OutOfBounds` if it was cut off and the file was mapped again;
    /// then `take` may have got zeroes.
    pub(crate) fn copy_out<H>(
        &self,
        lease: &CopyLease<H>,
        range: ByteRange,
        mut take: impl FnMut(&[u8]),
    ) -> Result<()>
    where
        H: Deref + Clone,
        H::Target: LeaseHost + Sized,
    {
        // A file with bytes in atomic use has a writable map. The words are read through it, since
        // some 32-bit processors store to a word to load its 8 bytes at once.
        let protection = match lease {
            CopyLease::Plain(_) => self.protection,
            CopyLease::Parts(_) => Protection::ReadWrite,
        };
        let span = self.shared.span(protection, range)?;
        lease.each_part(range, |kind, part| {
            let span = span.part((part.start() - range.start()) as usize, part.len() as usize);
            match kind {
                Kind::Shared | Kind::Exclusive => {
                    // SAFETY: a lease on the part is held during this call, and its host keeps the
                    // map.
                    take(unsafe { span.as_slice() });
                }
                Kind::Atomic4 => {
                    // SAFETY: `lease` has a lease of this kind on the words of the part, and its
                    // host keeps the map, which is writable.
                    unsafe { span.load_words::<4>(&mut take) };
                }
                Kind::Atomic8 => {
                    // SAFETY: as for words of 4 bytes.
                    unsafe { span.load_words::<8>(&mut take) };
                }
            }
        });
        // The copy may be one of the zeroes that replace a lost page.
        self.shared.check_whole(self.protection)?;
        // If the file was mapped again after that, the range lies outside by now.
        match IS_ON {
            true => range.check(self.shared.len()),
            false => Ok(()),
        }
    }

    /// Returns a copy of a range, without reading its pages into memory; waits as
    /// [`as_slice`](Self::as_slice) does.
    #[cfg_attr(not(feature = "iterator"), allow(dead_code))]
    pub(super) fn copy_now(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        let Some(range) = self.handle.range(offset, len)? else {
            return Ok(Vec::new());
        };
        let mut copy = room_for_copy(len as usize)?;
        let lease = CopyLease::briefly(&*self.shared, range)?;
        self.copy_out(&lease, range, |bytes| copy.extend_from_slice(bytes))?;
        Ok(copy)
    }
}

#[cfg(all(test, unix, not(mmap_io_loom)))]
mod tests {
    use futures_lite::future::block_on;

    use super::*;
    use crate::sys;

    #[test]
    fn forked_child_waits_for_no_lock_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let file = block_on(MemoryMappedFile::create_rw(&path, 100)).unwrap();
        block_on(file.update_region(0, b"pending")).unwrap();
        let reader = block_on(MemoryMappedFile::open_ro(&path)).unwrap();
        let mut view = Some(block_on(file.as_slice_mut(10, 10)).unwrap());
        let is_right = {
            let _dirty = file.handle.shared.dirty().lock();
            let _pinned = lock(&reader.handle.pinned);
            sys::in_fork(|| {
                drop(view.take().map(|view| view.commit()));
                file.pending_bytes() == 0
                    && file.stats().pending_bytes == 0
                    && reader.as_slice_bytes(0, 7).is_err()
            })
        };
        assert!(is_right);
        drop(view);
        assert_eq!(file.pending_bytes(), 17);
    }
}
