//! Changing the whole file in place, in pieces of one size.

use std::fmt;
use std::sync::Arc;

use super::MemoryMappedFile;
#[cfg(doc)]
use crate::error::MmapIoError;
use crate::error::{Result, Subject};
use crate::fairness::{operation, step};
use crate::map::{Map, Protection};
use crate::offload::check;
use crate::queue::{Action, Op, Outcome, Queue};
use crate::range::ByteRange;
use crate::view::MappedSliceMut;

/// How many bytes are made writable by one job on the pool: such a job takes a millisecond or so
/// where the pages are in memory, and the way there and back 20 to 40 us.
const STEP: u64 = 4 << 20;

impl MemoryMappedFile {
    /// Returns what changes the file in pieces of `chunk_size` bytes; the last may be shorter.
    ///
    /// The length is that at the time of the call. Nothing happens before
    /// [`for_each_mut`](ChunkIteratorMut::for_each_mut) is polled.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 10_000).await?;
    /// let mut sum = 0;
    /// file.chunks_mut(4096)
    ///     .for_each_mut(|offset, chunk| {
    ///         chunk.fill(1);
    ///         sum += offset;
    ///         Ok(())
    ///     })
    ///     .await?;
    /// assert_eq!(sum, 4096 + 8192);
    /// assert_eq!(file.as_slice(9999, 1)?, [1]);
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn chunks_mut(&self, chunk_size: usize) -> ChunkIteratorMut<'_> {
        ChunkIteratorMut {
            file: self,
            chunk_size: chunk_size as u64,
            len: self.len(),
        }
    }
}

/// Calls a closure with one chunk of a file after the other; see [`MemoryMappedFile::chunks_mut`].
#[must_use = "nothing is changed before `for_each_mut` is awaited"]
pub struct ChunkIteratorMut<'a> {
    file: &'a MemoryMappedFile,
    chunk_size: u64,
    /// Length of the file when the iteration was asked for.
    len: u64,
}

impl ChunkIteratorMut<'_> {
    /// Calls `change` with the offset and the bytes of each chunk, from the first to the last, and
    /// stops at the first error.
    ///
    /// The call has one exclusive view of all chunks, as
    /// [`as_slice_mut`](MemoryMappedFile::as_slice_mut) returns it: it waits for the views that
    /// overlap them and takes its turn among the writes, and until it ends other reads and writes
    /// of the bytes wait or are `Busy`. So `change` must not wait for an operation on the file.
    ///
    /// The thread that polls runs `change`, which need not be `Send`, and may borrow; the future is
    /// `Send` if `change` is. The pages of a chunk are made writable before that, on the pool, in
    /// steps of at most 4 MiB, so that `change` waits for no disk, and a full disk is an error. The
    /// call yields to the other tasks of its thread at each step, after 128 chunks, and after
    /// 64 KiB; but not within a chunk. With chunks of 0 bytes, `change` is never called.
    ///
    /// The chunks that `change` was called with count as one write, whether or not it failed or
    /// panicked. The handle's [`FlushPolicy`](crate::FlushPolicy) says when that write is durable.
    ///
    /// # Errors
    ///
    /// - [`InvalidMode`](MmapIoError::InvalidMode) unless the handle is read-write, or
    ///   copy-on-write and writable; even if there is no chunk.
    /// - [`OutOfBounds`](MmapIoError::OutOfBounds): the file was shrunk in the meantime.
    /// - [`Truncated`](MmapIoError::Truncated): another process has cut off bytes of the step.
    /// - [`Io`](MmapIoError::Io): the disk is full, or a page cannot be read. The chunks before
    ///   stay changed.
    /// - [`FlushFailed`](MmapIoError::FlushFailed), if the policy flushes.
    /// - What `change` returns, as it is.
    ///
    /// # Panics
    ///
    /// If `change` panics: polling the future panics as well. The view ends first.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws the call if it waits for its turn. After that, the drop keeps
    /// the chunks that were changed, and leaves the others as they were: this operation is not all
    /// or nothing, as writes are.
    pub async fn for_each_mut<F>(self, change: F) -> Result<()>
    where
        F: FnMut(u64, &mut [u8]) -> Result<()>,
    {
        self.change_each(change).await?
    }

    /// Calls `change` with each chunk, as [`for_each_mut`](Self::for_each_mut) does, and returns
    /// its error inside `Ok`: the shape that the synchronous crate has.
    ///
    /// # Errors
    ///
    /// Those of [`for_each_mut`](Self::for_each_mut), except for what `change` returns.
    ///
    /// # Panics
    ///
    /// As [`for_each_mut`](Self::for_each_mut).
    ///
    /// # Cancel safety
    ///
    /// As [`for_each_mut`](Self::for_each_mut).
    pub async fn for_each_mut_legacy<F, E>(self, change: F) -> Result<Result<(), E>>
    where
        F: FnMut(u64, &mut [u8]) -> Result<(), E>,
    {
        self.change_each(change).await
    }

    async fn change_each<F, E>(self, mut change: F) -> Result<Result<(), E>>
    where
        F: FnMut(u64, &mut [u8]) -> Result<(), E>,
    {
        operation("changing the chunks", Subject::Nothing, async move {
            self.file.handle.require_write()?;
            if self.chunk_size == 0 || self.len == 0 {
                return Ok(Ok(()));
            }
            let (mut view, map) = self.lease().await?;
            let (mut start, mut writable) = (0, 0);
            while start < self.len {
                let end = self.len.min(start.saturating_add(self.chunk_size));
                while writable < end {
                    writable = self.make_writable(&map, writable).await?;
                }
                // The bytes count as written from here on, whatever `change` does.
                let chunk = view.hand_out(ByteRange::between(start, end));
                if let Err(error) = change(start, chunk) {
                    return Ok(Err(error));
                }
                step(end - start).await;
                start = end;
            }
            view.finish().await?;
            Ok(Ok(()))
        })
        .await
    }

    /// Waits for exclusive access to all chunks. Returns a view of them, and the map that it lies
    /// in: growing the file may make another map the current one.
    async fn lease(&self) -> Result<(MappedSliceMut<'_>, Arc<Map>)> {
        let range = self.file.writable_range(0, self.len)?;
        let shared = &self.file.handle.shared;
        let op = Op::new(range, Action::LeaseUnpopulated);
        let lease = match Queue::submit(shared, op).await? {
            Outcome::Leased(lease) => lease,
            Outcome::Done | Outcome::Appended(_) | Outcome::InUse => {
                unreachable!("a view ends in a lease or an error")
            }
        };
        // A shrink may have gone first.
        let map = shared.map_within(Protection::ReadWrite, range)?;
        let view = MappedSliceMut::of_nothing_yet(map.span(range), lease, self.file.handle.policy);
        Ok((view, map))
    }

    /// Makes the pages of the next step writable, and returns where the step ends.
    async fn make_writable(&self, map: &Arc<Map>, start: u64) -> Result<u64> {
        let end = self.len.min(start + STEP);
        let (map, pages) = (map.clone(), ByteRange::between(start, end));
        let handle = &self.file.handle;
        // In a forked child a lock of the origin may stay locked forever.
        check()?;
        // The job may outlast this future and its view: until then no write to the file changes a
        // private page that the job has copied half.
        let held = handle.shared.hold_origin_again(pages);
        let made = handle.run_on_pool(move |shared| {
            let _held = held;
            shared.make_range_writable(&map, pages)
        });
        made.await.map(|()| end)
    }
}

impl fmt::Debug for ChunkIteratorMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkIteratorMut")
            .field("chunk_size", &self.chunk_size)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, unix, not(mmap_io_loom)))]
mod tests {
    use std::cell::Cell;

    use futures_lite::future::{block_on, poll_once};

    use super::*;
    use crate::sys;

    #[test]
    fn forked_child_waits_for_no_lock_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = MemoryMappedFile::create_rw(dir.path().join("data"), 1000);
        let file = block_on(file).unwrap();
        let changed = Cell::new(0);
        let change = |_, chunk: &mut [u8]| {
            chunk[0] = 1;
            changed.set(changed.get() + 1);
            Ok(())
        };
        // It yields after a number of chunks. By then it waits for no job, which the child has not.
        let mut each = Box::pin(file.chunks_mut(1).for_each_mut(change));
        while changed.get() == 0 {
            assert!(block_on(poll_once(&mut each)).is_none());
        }
        let mut each = Some(each);
        let is_refused = {
            let _dirty = file.handle.shared.dirty().lock();
            sys::in_fork(|| each.take().is_some_and(|each| block_on(each).is_err()))
        };
        assert!(is_refused);
        block_on(each.unwrap()).unwrap();
        assert_eq!(changed.get(), 1000);
    }
}
