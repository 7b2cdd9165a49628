//! Reading many ranges as one operation.

use std::future::Future;
use std::ops::Deref;

use bytes::Bytes;

use super::MemoryMappedFile;
use crate::error::{Result, Subject};
use crate::fairness::operation;
use crate::lease::{Hold, Lease, LeaseHost};
use crate::map::no_bytes;
use crate::offload::check;
use crate::range::ByteRange;
use crate::view::MappedSlice;

impl MemoryMappedFile {
    /// Returns a `Bytes` for each of many ranges, as [`read_bytes`](Self::read_bytes) does for one.
    ///
    /// Each is an offset and a length in bytes. The order is kept, and ranges may overlap. The pages
    /// of all ranges that are not in memory are asked for together, with one trip to the pool: on a
    /// disk that takes many requests at a time, hundreds of scattered pages take little longer than
    /// one after the other takes for a few.
    ///
    /// At most 16 ranges, of at most 4 MiB together, make no trip if all of them are in memory (3 us
    /// for each range). More of them always make one.
    ///
    /// # Errors
    ///
    /// Those of [`slice`](Self::slice), for any of the ranges; then there is no `Bytes` at all.
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
    /// let parts = file.read_regions(&[(5, 5), (0, 4)]).await?;
    /// assert_eq!(parts, ["bytes", "some"]);
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn read_regions(
        &self,
        regions: &[(u64, u64)],
    ) -> impl Future<Output = Result<Vec<Bytes>>> + Send + 'static {
        let (file, regions) = (self.clone(), regions.to_vec());
        operation("reading several ranges", Subject::Nothing, async move {
            let ranges = file.ranges(&regions)?;
            let leased = file
                .resident_leases(file.handle.clone(), Hold::Entry, &ranges)
                .await?;
            let bytes = leased.into_iter().map(|leased| match leased {
                Some((range, lease)) => file.leased_bytes(range, lease),
                None => Ok(Bytes::from_static(no_bytes())),
            });
            bytes.collect()
        })
    }

    /// Returns a zero-copy view of each of many ranges, as [`slice`](Self::slice) does for one.
    ///
    /// The same as [`read_regions`](Self::read_regions), with views that are borrowed from the handle:
    /// up to 16 of them at a time take no lock.
    ///
    /// # Errors
    ///
    /// As for [`read_regions`](Self::read_regions).
    ///
    /// # Cancel safety
    ///
    /// As for [`read_regions`](Self::read_regions).
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # std::fs::write(dir.path().join("data"), b"some bytes")?;
    /// let file = mmap_io::MemoryMappedFile::open_ro(dir.path().join("data")).await?;
    /// let parts = file.slices(&[(5, 5), (0, 4)]).await?;
    /// assert_eq!(parts, [&b"bytes"[..], b"some"]);
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub async fn slices(&self, regions: &[(u64, u64)]) -> Result<Vec<MappedSlice<'_>>> {
        operation("reading several ranges", Subject::Nothing, async {
            let ranges = self.ranges(regions)?;
            let leased = self
                .resident_leases(&*self.shared, Hold::Slot, &ranges)
                .await?;
            let slices = leased.into_iter().map(|leased| match leased {
                Some((range, lease)) => {
                    let span = self.shared.span(self.protection, range)?;
                    Ok(MappedSlice::new(span, lease))
                }
                None => Ok(MappedSlice::EMPTY),
            });
            slices.collect()
        })
        .await
    }

    /// The ranges, if all of them are inside the file; `None` for no bytes, which are accepted
    /// anywhere.
    fn ranges(&self, regions: &[(u64, u64)]) -> Result<Vec<Option<ByteRange>>> {
        let regions = regions.iter();
        regions
            .map(|(offset, len)| self.handle.range(*offset, *len))
            .collect()
    }

    /// A shared lease on each range that has bytes, over pages that are resident when all are there.
    async fn resident_leases<H>(
        &self,
        host: H,
        hold: Hold,
        regions: &[Option<ByteRange>],
    ) -> Result<Vec<Option<(ByteRange, Lease<H>)>>>
    where
        H: Deref + Clone,
        H::Target: LeaseHost + Sized,
    {
        check()?;
        let ranges: Vec<ByteRange> = regions.iter().copied().flatten().collect();
        let lease = |range| match Lease::try_shared(host.clone(), hold, range) {
            Ok(lease) => Ok((range, lease)),
            Err(_) => Err(range),
        };
        loop {
            self.make_all_resident(&ranges).await?;
            let leased = regions.iter().map(|range| range.map(lease).transpose());
            let conflict = match leased.collect::<Result<_, ByteRange>>() {
                Ok(leased) => return Ok(leased),
                Err(conflict) => conflict,
            };
            // Without the leases on the other ranges, which `collect` has dropped: what it waits for
            // may wait for one of them.
            drop(Lease::shared(host.clone(), hold, conflict).await?);
            ranges
                .iter()
                .try_for_each(|range| range.check(self.len()))?;
        }
    }
}
