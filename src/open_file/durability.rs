//! Makes a file durable: on request, by a flush policy, or by the timer.

use std::env;
use std::fs::File;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Instant;

use super::resize::truncated;
use super::{OpenFile, OwnedLease};
use crate::commit::{Commits, Durable, Extent, Flush, Loss, Started, Waiter};
use crate::dirty::{FlushDue, InFlight};
use crate::error::MmapIoError;
use crate::flush::FlushPolicy;
use crate::map::{Map, Protection};
use crate::offload::check;
use crate::range::ByteRange;
use crate::sync::lock;
use crate::sys;
use crate::timer::{Alarmed, Timer};
use crate::writeback::Writeback;

/// The timer of the background flushes.
pub(super) static TIMER: Timer<OpenFile> = Timer::new();

impl OpenFile {
    /// Starts a flush of bytes that were written when there had been `losses`, as
    /// [`losses`](Self::losses) counts them. It runs even if no task waits for it. Its error sticks
    /// to the file.
    pub(crate) fn start(self: &Arc<Self>, flush: Flush, losses: u64) -> Started {
        let flush = Arc::new(flush);
        match check() {
            Ok(()) => {
                self.commits.add(flush.clone(), false, losses);
                Commits::start(self);
            }
            // The future was not polled yet, so there is no task to wake.
            Err(error) => drop(flush.acknowledge(Err(error.into()))),
        }
        Started::new(flush)
    }

    /// Returns how many times bytes that were not durable have been lost. Asked for before bytes
    /// are recorded as dirty, or while the drain is held off, it tells a later flush of them
    /// whether they may be gone.
    pub(crate) fn losses(&self) -> u64 {
        if sys::is_forked() {
            // The lock may stay locked forever there, and nothing is flushed.
            return 0;
        }
        lock(&self.losses).count()
    }

    /// Whether a flush has nothing to do: everything that was written is durable, so are the length
    /// and the names, and no uncounted store is possible. Nor is there a loss to be told of, or one
    /// since there were `losses`. Makes no system call.
    ///
    /// The order of the checks matters. A mutable view is recorded as dirty before its lease ends,
    /// so the leases are checked before the dirty ranges. A running flush has already removed what
    /// it covers from the dirty ranges and the unsynced metadata, so the commits are checked after
    /// those: then the flush either is still running, or has ended, and its failure shows. So does a
    /// loss that it has found, or one of bytes that are not dirty any more, if that is checked last.
    pub(crate) fn is_durable(&self, losses: u64) -> bool {
        let is_without_loss = || {
            let now = lock(&self.losses);
            !now.is_untold() && now.count() == losses
        };
        !self.written_by_address.load(Ordering::Relaxed)
            && !self.hot.leases.has_writing_views()
            && self.dirty.bytes() == 0
            && lock(&self.unsynced).is_nothing()
            && self.commits.are_idle()
            && self.commits.failure().is_none()
            && is_without_loss()
    }

    /// Records what was written through a view under `lease` as dirty, and starts the flush that the
    /// policy asks for.
    pub(crate) fn record_view_write(
        self: &Arc<Self>,
        lease: &OwnedLease,
        range: ByteRange,
        policy: FlushPolicy,
    ) {
        if sys::is_forked() {
            return;
        }
        // The stores were made without a look at the pages.
        self.forget_writable(range);
        self.start_due(self.record_under_lease(lease, range, policy), range);
    }

    /// Records the whole file as dirty, for a caller that gets its address, and sets the alarm that
    /// the policy asks for.
    pub(crate) fn record_address_given(self: &Arc<Self>, policy: FlushPolicy) {
        if sys::is_forked() {
            return;
        }
        self.forget_writable(ByteRange::between(0, u64::MAX));
        let due = {
            // No lease keeps the file from being cut. Under both locks, since a cut lowers the
            // length and takes its tail out of the dirty ranges: by this process in that order, by
            // another one under the first lock. So no byte behind the end is recorded for good.
            let _losses = lock(&self.losses);
            let mut dirty = self.dirty.lock();
            dirty.record(&[ByteRange::between(0, self.len())], policy)
        };
        self.set_alarm_if_due(&[due]);
    }

    /// Records what was written through a view under `lease` as dirty, and starts the flush that the
    /// policy asks for. The future waits for that flush, as a write does.
    #[cfg(feature = "iterator")]
    pub(crate) fn record_write(
        self: &Arc<Self>,
        lease: &OwnedLease,
        range: ByteRange,
        policy: FlushPolicy,
    ) -> impl Future<Output = Result<(), MmapIoError>> + Send + 'static {
        // In a forked child any of the locks may stay locked forever.
        let flushed = check().map(|()| {
            self.forget_writable(range);
            let losses = self.losses();
            let due = self.record_under_lease(lease, range, policy);
            self.finish_write(due, range, losses)
        });
        async move { flushed?.await }
    }

    /// Records bytes as dirty that were written under a lease which the caller still holds. Bytes
    /// behind the end of the file are lost: no cut of this process happens under a lease, so another
    /// process has cut them off. So are bytes that were behind its end before, while the lease
    /// lived; but those may have been stored again since then.
    fn record_under_lease(
        &self,
        lease: &OwnedLease,
        range: ByteRange,
        policy: FlushPolicy,
    ) -> FlushDue {
        let is_faulted = self.check_maps().is_err();
        // Together, so that a cut that is adopted finds the bytes in the set, or this finds the cut.
        let mut losses = lock(&self.losses);
        let len = match is_faulted {
            // What was stored to zeroes is found to be lost when the file is mapped again.
            true => u64::MAX,
            false => self.len(),
        };
        let inside = ByteRange::between(range.start().min(len), range.end().min(len));
        let end = lease.cut_at().map_or(len, |cut_at| cut_at.min(len));
        if end < range.end() && !self.is_private() {
            let gone = ByteRange::between(range.start().max(end), range.end());
            losses.add(truncated(gone, end));
        }
        self.dirty.record(&[inside], policy)
    }

    /// Starts the flush that is due after a write of `range`, before which there had been `losses`.
    /// The future waits for it.
    pub(crate) fn finish_write(
        self: &Arc<Self>,
        due: FlushDue,
        range: ByteRange,
        losses: u64,
    ) -> impl Future<Output = Result<(), MmapIoError>> + Send + 'static {
        let whole = self.check_maps();
        let flush = match due {
            FlushDue::None => whole.map(|()| None),
            FlushDue::ThisWrite => Ok(Some(self.start(Flush::of(range), losses))),
            FlushDue::AllDirty => Ok(Some(self.start(Flush::of_everything(), losses))),
            due @ (FlushDue::ArmTimer(_) | FlushDue::TimerArmed) => {
                self.set_alarm_if_due(&[due]);
                // It is not awaited; but after a failed flush no later one can succeed.
                whole.and(self.commits.failure().map_or(Ok(None), Err))
            }
        };
        async move {
            match flush? {
                Some(flush) => flush.done().await,
                None => Ok(()),
            }
        }
    }

    /// Starts the flush that the policy asks for because of bytes that were recorded before.
    pub(crate) fn start_late(self: &Arc<Self>, range: ByteRange, policy: FlushPolicy) {
        if sys::is_forked() {
            return;
        }
        self.start_due(self.dirty.due(policy), range);
    }

    fn start_due(self: &Arc<Self>, due: FlushDue, range: ByteRange) {
        // No future waits for the flush, so that it tells of no loss.
        let start = |flush: Flush| drop(self.start(flush.unheeded(), 0));
        match due {
            FlushDue::None | FlushDue::TimerArmed => {}
            FlushDue::ThisWrite => start(Flush::of(range)),
            FlushDue::AllDirty => start(Flush::of_everything()),
            FlushDue::ArmTimer(_) => self.set_alarm(),
        }
    }

    /// Tells the timer of an alarm that a recorded write has set. Also after a write that has failed:
    /// later writes rely on the alarm.
    pub(super) fn set_alarm_if_due(self: &Arc<Self>, due: &[FlushDue]) {
        if due.iter().any(|due| matches!(due, FlushDue::ArmTimer(_))) {
            self.set_alarm();
        }
    }

    /// Tells the timer that the alarm has changed. If the last user has already gone, its drop can
    /// no longer bring the flush forward, so that is done here.
    pub(super) fn set_alarm(self: &Arc<Self>) {
        // SeqCst: the caller has set the alarm and loads the count here; the last user decrements
        // the count and then looks for an alarm. At least one of the two sees what the other did.
        if self.users.load(Ordering::SeqCst) == 0 {
            self.dirty.bring_alarm_forward(Instant::now());
        }
        TIMER.update(self);
    }

    /// Notes that the file was opened for writing by `path`. The name may not be durable yet,
    /// whether this process or another one has created it.
    ///
    /// Keeps the path instead of a descriptor of the directory: the directory is needed once, and
    /// only if the caller asks for durability.
    pub(crate) fn mark_name_unsynced(&self, path: &Path) {
        // Absolute, since the process may change its current directory before the flush.
        let path = match path.is_relative().then(env::current_dir) {
            Some(Ok(here)) => here.join(path),
            _ => path.to_path_buf(),
        };
        self.name.set(&path);
        let mut unsynced = lock(&self.unsynced);
        if !unsynced.names.contains(&path) {
            unsynced.names.push(path);
        }
    }

    pub(crate) fn mark_length_unsynced(&self) {
        lock(&self.unsynced).length = true;
    }

    /// Removes the alarm if there is nothing to flush: it would keep the file open, and the timer
    /// job running.
    pub(super) fn cancel_alarm_if_clean(&self) {
        if self.dirty.cancel_alarm_if_clean() {
            // This succeeds, since a job that flushes or cuts the file holds an `Arc` of it.
            if let Some(this) = self.this.upgrade() {
                TIMER.update(&this);
            }
        }
    }

    /// Fails if another process has cut off bytes that were written here and are being flushed.
    /// `cuts` and `before` are what the count of cuts and the length were when the bytes were taken.
    fn check_no_outside_cut(
        &self,
        file: &File,
        taken: &InFlight<'_>,
        (cuts, before): (u64, u64),
    ) -> io::Result<()> {
        let Some(end) = taken.end() else {
            return Ok(());
        };
        // This process may itself cut the file, or grow it again, between these calls. A cut of
        // another process that is adopted in between has found the bytes that were taken.
        let file_len = sys::file_len(file)?;
        let expected = before.min(self.len()).min(end);
        if file_len < expected && self.cuts() == cuts {
            let lost = format!("another process has truncated the file to {file_len} bytes");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, lost));
        }
        Ok(())
    }

    fn complete(&self, taken: InFlight<'_>, result: io::Result<()>) -> io::Result<()> {
        if self.has_lost_pages() {
            // What was stored to pages that are lost has not reached the file. It is dirty no more,
            // so it is not found to be lost when the file is mapped again.
            let lost = self.settle();
            if taken.end().is_some_and(|end| lost.cut_at() < end) {
                lock(&self.losses).add(lost.error());
            }
        }
        let result = taken.complete(result);
        self.cancel_alarm_if_clean();
        result
    }
}

impl Durable for OpenFile {
    fn commits(&self) -> &Commits {
        &self.commits
    }

    fn check(&self) -> Result<(), MmapIoError> {
        self.check_maps()
    }

    fn last_loss(&self) -> Option<Arc<Loss>> {
        lock(&self.losses).last()
    }

    fn flush(&self, extent: Extent<'_>) -> io::Result<()> {
        let mapped = self.mapped[Protection::ReadWrite as usize].get();
        let file =
            mapped.and_then(|mapped| Some((mapped.fs_traits, mapped.backing.stored_file()?)));
        let Some((fs_traits, file)) = file else {
            return Ok(());
        };
        let unsynced = std::mem::take(&mut *lock(&self.unsynced));
        // The map's capacity and not the file's length: a cut that is being made lowers the length,
        // and restores it if it fails.
        let map = self.map(Protection::ReadWrite);
        let len = map.as_deref().map_or(0, Map::capacity);
        let inside =
            |range: &ByteRange| ByteRange::between(range.start().min(len), range.end().min(len));
        let ranges: Vec<ByteRange> = match extent {
            Extent::Everything => vec![ByteRange::between(0, len)],
            Extent::Ranges(ranges) => ranges.iter().map(inside).collect(),
        };
        let writeback = Writeback::of(ranges, fs_traits);
        let covers = writeback.as_ref().map_or(&[][..], Writeback::covers);
        let (taken, state) = {
            // Together; see `adopt_cut`.
            let _losses = lock(&self.losses);
            (self.dirty.take(covers), (self.cuts(), self.len()))
        };
        let cleaned = covers.iter().copied().reduce(ByteRange::hull);
        let cleaned = cleaned.filter(|_| !unsynced.length);
        let cleaned = cleaned.unwrap_or_else(|| ByteRange::between(0, len));
        self.forget_writable(cleaned);
        let lost = self.check_no_outside_cut(file, &taken, state);
        let result = lost.and_then(|()| {
            if self.touch_mtime.load(Ordering::Relaxed) && taken.end().is_some() {
                // Before the sync, so that the sync may cover it. An error is ignored: the bytes
                // are durable without the new time.
                let _ = sys::touch_mtime(file);
            }
            match (&writeback, &map) {
                // The whole file: no call makes only the length durable.
                _ if unsynced.length => sys::sync_file(file),
                (Some(writeback), Some(map)) => writeback.run(map, file),
                _ => Ok(()),
            }?;
            // The names are synced last, so that no durable name leads to a file whose content is
            // not durable.
            let mut names = unsynced.names.iter();
            names.try_for_each(|path| sys::sync_name(file, path))
        });
        // Again: the drain may have made pages writable, before the flush cleaned them.
        self.forget_writable(cleaned);
        self.complete(taken, result)
    }
}

impl Alarmed for OpenFile {
    fn alarm(&self) -> Option<Instant> {
        self.dirty.alarm()
    }

    fn ring(self: &Arc<Self>, at: Instant) {
        // A file that cannot be flushed at present keeps its alarm until it is mapped again.
        if self.check_maps().is_err() || !self.dirty.take_alarm(at) {
            return;
        }
        let flush = Flush::of_everything().unheeded();
        self.commits.add(Arc::new(flush), true, 0);
        if let Some(turn) = Commits::turn(self) {
            // One round, on the ringer's own thread: a job for each due file would be too many.
            turn.run(1);
        }
    }
}
