//! The ranges of which a handle has lent slices that are as long-lived as the handle.

use std::collections::BTreeMap;

use crate::open_file::OwnedLease;
use crate::range::ByteRange;

/// Ranges that stay leased: by their start, with their end. No two of them touch each other: ranges
/// that would are merged, so that a scan in small steps keeps one lease.
#[derive(Default)]
pub(super) struct PinnedRanges(BTreeMap<u64, (u64, OwnedLease)>);

impl PinnedRanges {
    /// The ranges that share a byte with `range` or touch it.
    fn touching(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> + '_ {
        let up_to = self.0.range(..=range.end()).rev();
        let up_to = up_to.map(|(start, (end, _))| ByteRange::between(*start, *end));
        up_to.take_while(move |other| other.end() >= range.start())
    }

    /// Returns the range to be leased so that `range` is: with the ranges that it touches. `None`
    /// if it is leased.
    pub(super) fn missing(&self, range: ByteRange) -> Option<ByteRange> {
        let is_leased = self.touching(range).any(|other| other.contains(range));
        (!is_leased).then(|| self.touching(range).fold(range, ByteRange::hull))
    }

    /// Keeps the lease on a range, and returns the leases that it replaces. Returns the new lease
    /// if it cannot replace all that it touches: another thread has taken one of them since.
    pub(super) fn pin(
        &mut self,
        range: ByteRange,
        lease: OwnedLease,
    ) -> Result<Vec<OwnedLease>, OwnedLease> {
        let joined: Vec<ByteRange> = self.touching(range).collect();
        if !joined.iter().all(|other| range.contains(*other)) {
            return Err(lease);
        }
        let replaced = joined
            .iter()
            .filter_map(|other| self.0.remove(&other.start()));
        let replaced = replaced.map(|(_, lease)| lease).collect();
        self.0.insert(range.start(), (range.end(), lease));
        Ok(replaced)
    }
}

#[cfg(all(test, not(mmap_io_loom)))]
mod tests {
    use std::sync::{mpsc, Arc};
    use std::thread;
    use std::time::Duration;

    use futures_lite::future::block_on;

    use super::*;
    use crate::file::MemoryMappedFile;
    use crate::lease::{Asks, Kind, Lease};
    use crate::open_file::OpenFile;
    use crate::sync::lock;

    /// A call that waits for a lease which ends soon holds up no call that is about other bytes.
    #[test]
    fn borrowed_slice_does_not_wait_for_another() {
        const TIMEOUT: Duration = Duration::from_secs(60);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        std::fs::write(&path, vec![7; 10_000]).unwrap();
        let file = block_on(MemoryMappedFile::open_ro(&path)).unwrap();
        let open: &Arc<OpenFile> = &file.handle.shared;
        file.as_slice_bytes(0, 10).unwrap();
        let range = ByteRange::between(10, 20);
        let lease = Lease::try_acquire(open.clone(), Kind::Exclusive, range, Asks::Queue);
        let lease = lease.unwrap().unwrap();
        thread::scope(|scope| {
            let (begin, begins) = mpsc::channel();
            let clone = file.clone();
            let waiting = scope.spawn(move || {
                begin.send(()).unwrap();
                clone.as_slice_bytes(10, 20).map(<[u8]>::to_vec)
            });
            begins.recv().unwrap();
            let (sender, lent) = mpsc::channel();
            let clone = file.clone();
            scope.spawn(move || {
                for at in 0..2000 {
                    sender
                        .send(clone.as_slice_bytes(100 + 2 * at, 1).unwrap()[0])
                        .unwrap();
                    thread::yield_now();
                }
            });
            for _ in 0..2000 {
                assert_eq!(lent.recv_timeout(TIMEOUT), Ok(7));
            }
            assert!(!waiting.is_finished());
            drop(lease);
            assert_eq!(waiting.join().unwrap().unwrap(), [7; 20]);
        });
        // Those that touch each other share a lease.
        assert_eq!(file.stats().views, 2001);
        assert_eq!(file.as_slice_bytes(0, 5000).unwrap().len(), 5000);
        assert_eq!(file.stats().views, 1);
    }

    /// Several threads extend each other's ranges.
    #[test]
    fn borrowed_slices_grow_together_from_all_sides() {
        const LEN: u64 = 2000;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        std::fs::write(&path, vec![7; LEN as usize]).unwrap();
        let file = block_on(MemoryMappedFile::open_ro(&path)).unwrap();
        thread::scope(|scope| {
            for first in 0..4 {
                let file = file.clone();
                scope.spawn(move || {
                    for at in (first..LEN).step_by(4) {
                        assert_eq!(file.as_slice_bytes(at, 1).unwrap(), [7]);
                    }
                });
            }
        });
        assert_eq!(lock(&file.handle.pinned).0.len(), 1);
        assert_eq!(file.stats().views, 1);
        assert!(lock(&file.handle.pinned)
            .missing(ByteRange::between(0, LEN))
            .is_none());
    }
}
