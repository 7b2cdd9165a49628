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
        let file = self.clone();
        let ranges = self.ranges(regions);
        operation("reading several ranges", Subject::Nothing, async move {
            let ranges = ranges?;
            let leases = file
                .resident_leases(file.handle.clone(), Hold::Entry, &ranges)
                .await?;
            let mut leases = leases.into_iter();
            let bytes = ranges.into_iter().map(|range| match range {
                ByteRange::EMPTY => Ok(Bytes::from_static(no_bytes())),
                range => {
                    let lease = leases.next().expect("one for each range with bytes");
                    file.leased_bytes(range, lease)
                }
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
    pub async fn slices(&self, regions: &[(u64, u64)]) -> Result<Vec<MappedSlice<'_>>> {
        operation("reading several ranges", Subject::Nothing, async {
            let ranges = self.ranges(regions)?;
            let leases = self
                .resident_leases(&*self.shared, Hold::Slot, &ranges)
                .await?;
            let mut leases = leases.into_iter();
            let slices = ranges.into_iter().map(|range| match range {
                ByteRange::EMPTY => Ok(MappedSlice::EMPTY),
                range => {
                    let lease = leases.next().expect("one for each range with bytes");
                    let span = self.shared.span(self.protection, range)?;
                    Ok(MappedSlice::new(span, lease))
                }
            });
            slices.collect()
        })
        .await
    }

    /// The ranges, if all of them are inside the file; those of no bytes are accepted anywhere.
    fn ranges(&self, regions: &[(u64, u64)]) -> Result<Vec<ByteRange>> {
        let range = |(offset, len): &(u64, u64)| match len {
            0 => Ok(ByteRange::EMPTY),
            len => ByteRange::new(*offset, *len, self.len()),
        };
        regions.iter().map(range).collect()
    }

    /// A shared lease on each range that has bytes, over pages that are resident when all are there.
    async fn resident_leases<H>(
        &self,
        host: H,
        hold: Hold,
        ranges: &[ByteRange],
    ) -> Result<Vec<Lease<H>>>
    where
        H: Deref + Clone,
        H::Target: LeaseHost + Sized,
    {
        check()?;
        let ranges: Vec<ByteRange> = ranges.iter().copied().filter(|r| !r.is_empty()).collect();
        loop {
            self.make_all_resident(&ranges).await?;
            let mut leases = Vec::with_capacity(ranges.len());
            let conflict = ranges.iter().find(|range| {
                let lease = Lease::try_shared(host.clone(), hold, **range);
                lease.map(|lease| leases.push(lease)).is_err()
            });
            let Some(conflict) = conflict else {
                return Ok(leases);
            };
            // Without the others: what it waits for may wait for one of them.
            drop(leases);
            drop(Lease::shared(host.clone(), hold, *conflict).await);
            ranges
                .iter()
                .try_for_each(|range| range.check(self.len()))?;
        }
    }
}
