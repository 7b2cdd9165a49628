//! What the queue has a file do: writes, leases, and changes of its length.

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use super::{ignore_poison, OpenFile, OwnedLease};
use crate::commit::Commits;
use crate::error::{MmapIoError, Result};
use crate::lease::{Kind, Lease};
use crate::map::{Map, Protection};
use crate::offload::ROUNDS;
use crate::queue::{apply_writes, Action, Drain, Ended, Op, Outcome, Queue, Site};
use crate::range::{ByteRange, MAX_LEN};
use crate::residency;
use crate::sys;

impl Drain for OpenFile {
    type Lease = OwnedLease;

    fn queue(&self) -> &Queue<OwnedLease> {
        &self.queue
    }

    fn apply(
        self: &Arc<Self>,
        batch: &[Arc<Op<OwnedLease>>],
        ended: &mut Ended<OwnedLease>,
    ) -> Vec<Arc<Op<OwnedLease>>> {
        let op = match batch {
            [op] => op,
            writes => return self.write(writes, ended),
        };
        let range = op.ranges[0];
        let outcome = match op.action {
            Action::Write(_) | Action::TryWrite(_) => return self.write(batch, ended),
            Action::Lease(kind) => self
                .lease(kind, range)
                .map(|lease| lease.map(Outcome::Leased)),
            Action::FirstLength if self.len() > 0 => Ok(Some(Outcome::Done)),
            Action::Resize | Action::FirstLength => self
                .resize(range.start(), || self.queue.begin(op).is_some())
                .map(|resized| resized.then_some(Outcome::Done)),
            Action::AdoptLength => self.adopt_length().map(|()| Some(Outcome::Done)),
        };
        match outcome.transpose() {
            Some(outcome) => {
                self.queue.finish(op, outcome, ended);
                Vec::new()
            }
            None => batch.to_vec(),
        }
    }

    fn lingers(&self) -> bool {
        self.commits.lingers()
    }

    fn is_left_to_do(&self) -> bool {
        self.commits.are_due()
    }

    fn hand_on(self: &Arc<Self>) {
        Commits::start(self);
    }

    fn finish(self: Arc<Self>) {
        // The drain's own thread is awake, and saves a durable write the second hop.
        if let Some(turn) = Commits::turn(&self) {
            drop(self);
            turn.run(ROUNDS);
        }
    }
}

impl OpenFile {
    /// Applies writes, or defers them.
    fn write(
        self: &Arc<Self>,
        batch: &[Arc<Op<OwnedLease>>],
        ended: &mut Ended<OwnedLease>,
    ) -> Vec<Arc<Op<OwnedLease>>> {
        let (mapped, map) = match (self.writable(), self.map(Protection::ReadWrite)) {
            (Ok(mapped), Some(map)) => (mapped, map),
            _ => unreachable!("a write comes from a handle that may write a file with bytes"),
        };
        let site = Site {
            backing: &mapped.backing,
            map,
            len: self.len(),
            coherent: match mapped.habits.coherent_writes {
                true => mapped.backing.file(),
                false => None,
            },
            leases: &self.hot.leases,
            pending: &self.pending,
            commits: &self.commits,
            last_gate: &self.last_gate,
        };
        let applied = apply_writes(&site, &self.queue, batch, ended);
        let counters = &self.counters;
        counters.writes.fetch_add(applied.writes, Ordering::Relaxed);
        counters
            .write_errors
            .fetch_add(applied.errors, Ordering::Relaxed);
        if applied.alarm {
            self.set_alarm();
        }
        applied.deferred
    }

    /// Grants a view or a snapshot; `None` while something is in the way.
    fn lease(self: &Arc<Self>, kind: Kind, range: ByteRange) -> Result<Option<OwnedLease>> {
        range.check(self.len())?;
        if kind == Kind::Exclusive {
            let (mapped, map) = (self.writable()?, self.map(Protection::ReadWrite));
            residency::check_length(mapped.backing.file(), &[range])?;
            if let Some(map) = map {
                residency::populate_write(map, &mapped.backing, std::iter::once(range))?;
            }
        }
        Ok(Lease::try_acquire(self.clone(), kind, range, true)?)
    }

    /// Gives the file a new length; `false` while views of the tail are in the way. Nothing is
    /// done any more if `starts` says that the operation was withdrawn.
    fn resize(self: &Arc<Self>, new_len: u64, starts: impl FnOnce() -> bool) -> Result<bool> {
        let len = self.len();
        let backing = &self.writable()?.backing;
        residency::check_length(backing.file(), &[ByteRange::between(0, len)])?;
        let Some(file) = backing.file() else {
            return Err(MmapIoError::InvalidMode("memory has a fixed size"));
        };
        if new_len >= len {
            if !starts() {
                return Ok(true);
            }
            self.grow(len, new_len, file)
                .map_err(MmapIoError::ResizeFailed)?;
        } else {
            let tail = ByteRange::between(new_len, len);
            let Some(tail) = Lease::try_acquire(self.clone(), Kind::Exclusive, tail, true)? else {
                return Ok(false);
            };
            if !starts() {
                return Ok(true);
            }
            // The length first: nobody may look past it when the pages go.
            self.hot.len.store(new_len, Ordering::Release);
            // SeqCst: whoever has seen the old length before this, and asks again after a page
            // was gone, sees the count.
            self.cuts.fetch_add(1, Ordering::SeqCst);
            if let Err(error) = file.set_len(new_len) {
                self.hot.len.store(len, Ordering::Release);
                return Err(MmapIoError::ResizeFailed(error));
            }
            self.pending.truncate(new_len);
            self.settle();
            self.owes_its_length();
            drop(tail);
        }
        Ok(true)
    }

    fn grow(&self, len: u64, new_len: u64, file: &File) -> io::Result<()> {
        sys::set_len(file, new_len)?;
        // Before anybody can write, and flush, past the old end.
        self.owes_its_length();
        let reserve = || match self.preallocate.load(Ordering::Relaxed) {
            true if new_len > len => sys::allocate(file, len, new_len - len),
            _ => Ok(()),
        };
        reserve()
            .and_then(|()| self.extend(new_len))
            .map_err(|error| {
                // What cannot be had is not left half done; the file was that long before.
                let _ = file.set_len(len);
                error
            })
    }

    /// Moves the end of the file, which is that long already.
    fn extend(&self, len: u64) -> io::Result<()> {
        let _remap = ignore_poison(&self.remap);
        for protection in [Protection::Read, Protection::ReadWrite] {
            let Some(mapped) = self.mapped[protection as usize].get() else {
                continue;
            };
            let current = self.map(protection);
            if current.is_some_and(|map| map.capacity() >= len) {
                continue;
            }
            let backing = current.map_or(&mapped.backing, Map::backing);
            let map = Arc::new(Map::new(backing, len, protection)?);
            self.make_current(protection, &map);
            ignore_poison(&mapped.maps).push(map);
        }
        // Release: pairs with the load in `len`. Whoever sees the length sees maps that cover it.
        self.hot.len.store(len, Ordering::Release);
        Ok(())
    }

    /// Adopts what somebody else appended.
    fn adopt_length(&self) -> Result<()> {
        let mapped = self.mapped.iter().find_map(OnceLock::get);
        let Some(mapped) = mapped else {
            return Ok(());
        };
        residency::check_length(mapped.backing.file(), &[ByteRange::between(0, self.len())])?;
        let len = mapped
            .backing
            .file()
            .map_or(Ok(self.len()), sys::file_len)?;
        if len > MAX_LEN {
            return Err(MmapIoError::ResizeFailed(
                io::ErrorKind::InvalidInput.into(),
            ));
        }
        if len > self.len() {
            self.extend(len).map_err(MmapIoError::ResizeFailed)?;
        }
        Ok(())
    }
}
