//! Making a file durable: when it is asked for, when a policy says so, and what it owes.

use std::env;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Instant;

use super::OpenFile;
use crate::commit::{Commits, Durable, Extent, Flush, Waiter};
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

/// The files that are flushed in the background.
pub(super) static TIMER: Timer<OpenFile> = Timer::new();

impl OpenFile {
    /// Starts a flush, whether or not somebody waits for it; its error sticks.
    pub(crate) fn start(self: &Arc<Self>, flush: Flush) -> Arc<Flush> {
        let flush = Arc::new(flush);
        match check() {
            Ok(()) => {
                self.commits.add(flush.clone(), false);
                Commits::start(self);
            }
            // Its future was not polled yet: there is nothing to wake.
            Err(error) => drop(flush.acknowledge(Err(error.into()))),
        }
        flush
    }

    /// Whether a flush has nothing to do: all that was written is durable, the length and the name as
    /// well, and no store may have been made since that was not counted. Asks nothing of the system.
    ///
    /// The order matters. A view is counted as written before its lease ends. A flush that is running
    /// has taken what it covers out of what is pending and unsynced; it is running still when that is
    /// asked last, or has ended, well or not.
    pub(crate) fn is_durable(&self) -> bool {
        !self.written_by_address.load(Ordering::Relaxed)
            && !self.hot.leases.has_writing_views()
            && self.dirty.bytes() == 0
            && lock(&self.unsynced).is_nothing()
            && lock(&self.lost).is_none()
            && self.commits.are_idle()
            && self.commits.failure().is_none()
    }

    /// Counts what was written through a view, and starts what the policy asks for.
    pub(crate) fn record_view_write(self: &Arc<Self>, range: ByteRange, policy: FlushPolicy) {
        if sys::is_forked() {
            return;
        }
        self.start_due(self.dirty.record(&[range], policy), range);
    }

    /// Starts what the policy asks for because of bytes that were counted before.
    pub(crate) fn start_late(self: &Arc<Self>, range: ByteRange, policy: FlushPolicy) {
        self.start_due(self.dirty.due(policy), range);
    }

    fn start_due(self: &Arc<Self>, due: FlushDue, range: ByteRange) {
        match due {
            FlushDue::None | FlushDue::TimerArmed => {}
            FlushDue::ThisWrite => drop(self.start(Flush::of(range).unheeded())),
            FlushDue::AllDirty => drop(self.start(Flush::of_everything().unheeded())),
            FlushDue::ArmTimer(_) => self.set_alarm(),
        }
    }

    /// The alarm was changed: the timer is told. If the last user has gone meanwhile, nobody will
    /// hurry it any more.
    pub(super) fn set_alarm(self: &Arc<Self>) {
        // SeqCst: the last user counts down before it looks for an alarm, and this was set before;
        // one of the two sees the other.
        if self.users.load(Ordering::SeqCst) == 0 {
            self.dirty.bring_alarm_forward(Instant::now());
        }
        TIMER.update(self);
    }

    /// The file was opened for writing by `path`, and that name may not be durable yet, whether it
    /// was this process that gave it or another one.
    ///
    /// A path, and not a descriptor of the directory: it is wanted once, and only by those who ask
    /// for durability.
    pub(crate) fn mark_name_unsynced(&self, path: &Path) {
        // Where the process is when the name is made durable does not matter.
        let path = match path.is_relative().then(env::current_dir) {
            Some(Ok(here)) => here.join(path),
            _ => path.to_path_buf(),
        };
        let mut unsynced = lock(&self.unsynced);
        if !unsynced.names.contains(&path) {
            unsynced.names.push(path);
        }
    }

    pub(crate) fn mark_length_unsynced(&self) {
        lock(&self.unsynced).length = true;
    }

    /// Takes the alarm down if there is nothing to flush: it would keep the file, and the timer.
    pub(super) fn cancel_alarm_if_clean(&self) {
        if self.dirty.cancel_alarm_if_clean() {
            // Whoever flushes or cuts the file holds it.
            if let Some(this) = self.this.upgrade() {
                TIMER.update(&this);
            }
        }
    }

    /// Fails if bytes that were written here are gone because somebody else has cut the file.
    fn check_no_outside_cut(&self, file: &File, taken: &InFlight<'_>) -> io::Result<()> {
        let Some(end) = taken.end() else {
            return Ok(());
        };
        // A cut of our own, or growth behind it, may come in between.
        let (cuts, before) = (self.cuts(), self.len());
        let file_len = sys::file_len(file)?;
        let expected = before.min(self.len()).min(end);
        if file_len < expected && self.cuts() == cuts {
            let lost = format!("the file was truncated to {file_len} bytes by somebody else");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, lost));
        }
        Ok(())
    }

    fn complete(&self, taken: InFlight<'_>, result: io::Result<()>) -> io::Result<()> {
        let result = taken.complete(result);
        self.cancel_alarm_if_clean();
        result
    }
}

impl Durable for OpenFile {
    fn commits(&self) -> &Commits {
        &self.commits
    }

    fn take_lost(&self) -> Option<MmapIoError> {
        lock(&self.lost).take()
    }

    fn flush(&self, extent: Extent<'_>) -> io::Result<()> {
        let mapped = self.mapped[Protection::ReadWrite as usize].get();
        let file = mapped.and_then(|mapped| Some((mapped.fs_traits, mapped.backing.file()?)));
        let Some((fs_traits, file)) = file else {
            return Ok(());
        };
        let unsynced = std::mem::take(&mut *lock(&self.unsynced));
        // Not the length: it may be cut right now, and come back if that fails.
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
        let taken = self.dirty.take(covers);
        let lost = self.check_no_outside_cut(file, &taken);
        let result = lost.and_then(|()| {
            if self.touch_mtime.load(Ordering::Relaxed) && taken.end().is_some() {
                // Before the sync, which may then cover it. The bytes are no less durable without.
                let _ = sys::touch_mtime(file);
            }
            match (&writeback, &map) {
                // All of the file: no call makes the length durable and leaves bytes alone.
                _ if unsynced.length => sys::sync_file(file),
                (Some(writeback), Some(map)) => writeback.run(map, file),
                _ => Ok(()),
            }?;
            // After what they are the names of.
            let mut names = unsynced.names.iter();
            names.try_for_each(|path| sys::sync_name(file, path))
        });
        self.complete(taken, result)
    }
}

impl Alarmed for OpenFile {
    fn alarm(&self) -> Option<Instant> {
        self.dirty.alarm()
    }

    fn ring(self: &Arc<Self>, at: Instant) {
        if !self.dirty.take_alarm(at) {
            return;
        }
        let flush = Flush::of_everything().unheeded();
        self.commits.add(Arc::new(flush), true);
        if let Some(turn) = Commits::turn(self) {
            // Once, here: a thread for each file that is due would be many.
            turn.run(1);
        }
    }
}
