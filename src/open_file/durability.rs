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
use crate::error::MmapIoError;
use crate::flush::{Due, FlushPolicy, Taken};
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
    /// has taken what it covers out of what is pending and owed; it is running still when that is
    /// asked last, or has ended, well or not.
    pub(crate) fn is_durable(&self) -> bool {
        !self.written_by_address.load(Ordering::Relaxed)
            && !self.hot.leases.has_writing_views()
            && self.pending.bytes() == 0
            && lock(&self.owed).is_nothing()
            && lock(&self.lost).is_none()
            && self.commits.are_idle()
            && self.commits.failure().is_none()
    }

    /// Counts what was written through a view, and starts what the policy asks for.
    pub(crate) fn wrote_view(self: &Arc<Self>, range: ByteRange, policy: FlushPolicy) {
        if sys::is_forked() {
            return;
        }
        self.start_due(self.pending.wrote(&[range], policy), range);
    }

    /// Starts what the policy asks for because of bytes that were counted before.
    pub(crate) fn start_late(self: &Arc<Self>, range: ByteRange, policy: FlushPolicy) {
        self.start_due(self.pending.due(policy), range);
    }

    fn start_due(self: &Arc<Self>, due: Due, range: ByteRange) {
        match due {
            Due::Nothing | Due::Alarmed => {}
            Due::Write => drop(self.start(Flush::of(range).unheeded())),
            Due::Everything => drop(self.start(Flush::of_everything().unheeded())),
            Due::Alarm(_) => self.set_alarm(),
        }
    }

    /// The alarm was changed: the timer is told. If the last user has gone meanwhile, nobody will
    /// hurry it any more.
    pub(super) fn set_alarm(self: &Arc<Self>) {
        // SeqCst: the last user counts down before it looks for an alarm, and this was set before;
        // one of the two sees the other.
        if self.users.load(Ordering::SeqCst) == 0 {
            self.pending.hurry(Instant::now());
        }
        TIMER.update(self);
    }

    /// The file was opened for writing by `path`, and that name may not be durable yet, whether it
    /// was this process that gave it or another one.
    ///
    /// A path, and not a descriptor of the directory: it is wanted once, and only by those who ask
    /// for durability.
    pub(crate) fn owes_its_name(&self, path: &Path) {
        // Where the process is when the name is made durable does not matter.
        let path = match path.is_relative().then(env::current_dir) {
            Some(Ok(here)) => here.join(path),
            _ => path.to_path_buf(),
        };
        let mut owed = lock(&self.owed);
        if !owed.names.contains(&path) {
            owed.names.push(path);
        }
    }

    pub(crate) fn owes_its_length(&self) {
        lock(&self.owed).length = true;
    }

    /// Takes the alarm down if there is nothing to flush: it would keep the file, and the timer.
    pub(super) fn settle(&self) {
        if self.pending.settle() {
            // Whoever flushes or cuts the file holds it.
            if let Some(this) = self.this.upgrade() {
                TIMER.update(&this);
            }
        }
    }

    /// Fails if bytes that were written here are gone because somebody else has cut the file.
    fn lost_to_others(&self, file: &File, taken: &Taken<'_>) -> io::Result<()> {
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

    fn flushed(&self, taken: Taken<'_>, result: io::Result<()>) -> io::Result<()> {
        let result = taken.flushed(result);
        self.settle();
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
        let file = mapped.and_then(|mapped| Some((mapped.habits, mapped.backing.file()?)));
        let Some((habits, file)) = file else {
            return Ok(());
        };
        let owed = std::mem::take(&mut *lock(&self.owed));
        // Not the length: it may be cut right now, and come back if that fails.
        let map = self.map(Protection::ReadWrite);
        let len = map.as_deref().map_or(0, Map::capacity);
        let inside =
            |range: &ByteRange| ByteRange::between(range.start().min(len), range.end().min(len));
        let ranges: Vec<ByteRange> = match extent {
            Extent::Everything => vec![ByteRange::between(0, len)],
            Extent::Ranges(ranges) => ranges.iter().map(inside).collect(),
        };
        let writeback = Writeback::of(ranges, habits);
        let covers = writeback.as_ref().map_or(&[][..], Writeback::covers);
        let taken = self.pending.take(covers);
        let lost = self.lost_to_others(file, &taken);
        let result = lost.and_then(|()| {
            if self.touch_mtime.load(Ordering::Relaxed) && taken.end().is_some() {
                // Before the sync, which may then cover it. The bytes are no less durable without.
                let _ = sys::touch_mtime(file);
            }
            match (&writeback, &map) {
                // All of the file: no call makes the length durable and leaves bytes alone.
                _ if owed.length => sys::sync_file(file),
                (Some(writeback), Some(map)) => writeback.run(map, file),
                _ => Ok(()),
            }?;
            // After what they are the names of.
            let mut names = owed.names.iter();
            names.try_for_each(|path| sys::sync_name(file, path))
        });
        self.flushed(taken, result)
    }
}

impl Alarmed for OpenFile {
    fn alarm(&self) -> Option<Instant> {
        self.pending.alarm()
    }

    fn ring(self: &Arc<Self>, at: Instant) {
        if !self.pending.ring(at) {
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
