//! Changing the length of a file, and taking note of a length that another process has given it.

use std::fs::File;
use std::io;
use std::sync::atomic::{fence, Ordering};
use std::sync::{Arc, OnceLock};

use super::OpenFile;
use crate::error::{MmapIoError, Result};
use crate::lease::{Asks, Kind, Lease};
use crate::map::{Map, Protection};
use crate::range::{ByteRange, MAX_LEN};
use crate::residency;
use crate::sync::lock;
use crate::sys;

impl OpenFile {
    /// Gives the file a new length; `false` while views of the tail block that. Nothing is done any
    /// more if `starts` says that the operation was withdrawn.
    pub(super) fn resize(
        self: &Arc<Self>,
        new_len: u64,
        starts: impl FnOnce() -> bool,
    ) -> Result<bool> {
        let len = self.len();
        if new_len > len {
            return self.grow(new_len, Longer::Refused, starts);
        }
        let file = self.writable_file()?;
        residency::check_length(Some(file), &[ByteRange::between(0, len)])?;
        if new_len == len {
            starts();
            return Ok(true);
        }
        let tail = ByteRange::between(new_len, len);
        let lease = Lease::try_acquire(self.clone(), Kind::Exclusive, tail, Asks::Queue)?;
        let Some(lease) = lease else {
            return Ok(false);
        };
        if !starts() {
            return Ok(true);
        }
        // The length first: no reader may look past it when the pages go. One that waits for the
        // tail knows now that it has gone, and need not wait for the file system.
        self.hot.len.store(new_len, Ordering::Release);
        self.hot.leases.recheck(tail);
        // SeqCst: a reader that has seen the old length before this, and asks again after a page
        // was gone, sees the count.
        self.cuts.fetch_add(1, Ordering::SeqCst);
        if let Err(error) = file.set_len(new_len) {
            self.hot.len.store(len, Ordering::Release);
            return Err(MmapIoError::resize_failed(error));
        }
        self.dirty.truncate(new_len);
        self.cancel_alarm_if_clean();
        self.mark_length_unsynced();
        drop(lease);
        Ok(true)
    }

    /// Makes the file at least `min` bytes long. One that another process has made longer than it is
    /// known to be is taken as it is, and never cut: see [`Longer`] for what is said of that.
    ///
    /// All that can fail is done before the file grows, so that there is nothing to take back: that
    /// would be a cut.
    ///
    /// Growth waits for no view, unless another process has cut the file under one: `false` while such
    /// a view shows bytes that are to be added. Nothing is done any more if `starts` says that the
    /// operation was withdrawn.
    pub(super) fn grow(
        self: &Arc<Self>,
        min: u64,
        longer: Longer,
        starts: impl FnOnce() -> bool,
    ) -> Result<bool> {
        let file = self.writable_file()?;
        let file_len = self.file_len(file)?;
        if file_len >= min {
            if starts() {
                self.adopt(file_len)?;
            }
            return match longer {
                Longer::Refused if file_len > min => Err(resize_failed(format!(
                    "the file cannot grow to {min} bytes: another process has made it {file_len} \
                     bytes long"
                ))),
                Longer::Refused | Longer::Welcome => Ok(true),
            };
        }
        // Relaxed: the drain alone looks at it.
        let shown = min.min(self.shown_end.load(Ordering::Relaxed));
        let _under_views = if shown > file_len {
            let grown = ByteRange::between(file_len, shown);
            // Release: who ends a lease that is marked for this sees `shown_end`.
            fence(Ordering::Release);
            match Lease::try_acquire(&**self, Kind::Exclusive, grown, Asks::Queue)? {
                Some(lease) => Some(lease),
                None => return Ok(false),
            }
        } else {
            None
        };
        if !starts() {
            return Ok(true);
        }
        let grow = || {
            if self.preallocate.load(Ordering::Relaxed) {
                sys::preallocate(file, file_len, min - file_len)?;
            }
            self.cover(min, || {
                self.clear_tail(ByteRange::between(file_len, min))?;
                // Before a write past the old end can be made, and flushed.
                self.mark_length_unsynced();
                sys::extend(file, min)
            })
        };
        grow().map_err(MmapIoError::resize_failed)?;
        Ok(true)
    }

    /// Gives the file its first bytes, unless it has some; as [`grow`](Self::grow) does.
    pub(super) fn set_len_if_empty(
        self: &Arc<Self>,
        len: u64,
        starts: impl FnOnce() -> bool,
    ) -> Result<bool> {
        self.adopt_file_len()?;
        match self.len() {
            0 => self.grow(len, Longer::Welcome, starts),
            _ => Ok(true),
        }
    }

    /// Takes note of the length that another process has given the file. Waits for no view.
    pub(super) fn adopt_file_len(&self) -> Result<()> {
        let mapped = self.mapped.iter().find_map(OnceLock::get);
        let Some(file) = mapped.and_then(|mapped| mapped.backing.file()) else {
            return Ok(());
        };
        let file_len = mappable_len(file)?;
        match file_len < self.len() {
            true => {
                self.adopt_cut(file_len);
                Ok(())
            }
            false => self.adopt(file_len),
        }
    }

    /// Takes note that another process has cut the file. The views of what is gone stay leased: their
    /// memory is mapped still, and shows the file again if it grows, which therefore waits for them.
    fn adopt_cut(&self, file_len: u64) {
        // Relaxed: the drain alone looks at it.
        let len = self.len();
        self.shown_end.fetch_max(len, Ordering::Relaxed);
        self.hot.len.store(file_len, Ordering::Release);
        self.hot.leases.recheck(ByteRange::between(file_len, len));
        // As for a cut that is made here.
        self.cuts.fetch_add(1, Ordering::SeqCst);
        if let Some(gone) = self.dirty.truncate(file_len) {
            lock(&self.lost).get_or_insert(MmapIoError::Truncated {
                offset: gone.start(),
                len: gone.len(),
                file_len,
            });
        }
        self.cancel_alarm_if_clean();
        self.mark_length_unsynced();
    }

    fn adopt(&self, file_len: u64) -> Result<()> {
        match file_len > self.len() {
            true => self
                .cover(file_len, || Ok(()))
                .map_err(MmapIoError::resize_failed),
            false => Ok(()),
        }
    }

    /// Length of the file as it is.
    ///
    /// # Errors
    ///
    /// `Truncated` if it is shorter than it is known to be, `ResizeFailed` if it is too long.
    fn file_len(&self, file: &File) -> Result<u64> {
        residency::check_length(Some(file), &[ByteRange::between(0, self.len())])?;
        mappable_len(file)
    }

    /// Moves the end of the mapped bytes to `len`, after the maps cover them and `grow_file` has made
    /// the file that long. If anything fails, the end stays.
    fn cover(&self, len: u64, grow_file: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let _remap = lock(&self.remap);
        for protection in [Protection::Read, Protection::ReadWrite] {
            let Some(mapped) = self.mapped[protection as usize].get() else {
                continue;
            };
            let current = mapped.current();
            if current.as_ref().is_some_and(|map| map.capacity() >= len) {
                continue;
            }
            let backing = current.as_deref().map_or(&mapped.backing, Map::backing);
            let map = Map::new(backing, len, protection).or_else(|error| {
                // What was outgrown may have left no address space.
                self.forget_outgrown()?;
                Map::new(backing, len, protection).map_err(|_| error)
            })?;
            let map = Arc::new(map);
            self.make_current(protection, &map);
            lock(&mapped.maps).push(map);
        }
        grow_file()?;
        // Release: pairs with the load in `len`. A thread that sees the length sees maps that cover
        // it.
        self.hot.len.store(len, Ordering::Release);
        // Without a fence all of them stay.
        let _ = self.forget_outgrown();
        Ok(())
    }

    /// Clears what stands behind the end of the file in its last page, as far as `grown` goes, which
    /// begins at that end: another process may have stored there through a map, and growth would
    /// uncover it.
    ///
    /// No view of this process lies past the end, or growth has an exclusive lease there; and the maps
    /// cover what is to be grown.
    fn clear_tail(&self, grown: ByteRange) -> io::Result<()> {
        let page = sys::page_size();
        let last = ByteRange::between(grown.start(), grown.start()).to_pages(page);
        let tail = ByteRange::between(grown.start(), last.end().min(grown.end()));
        let Some(map) = self.map(Protection::ReadWrite).filter(|_| !tail.is_empty()) else {
            return Ok(());
        };
        let run = map.run(tail.to_pages(page));
        // SAFETY: the page holds the last byte of the file, unless another process cuts it right now,
        // and the live map covers it.
        unsafe { sys::populate_read(run) }?;
        let span = map.span(tail);
        // SAFETY: the map lives, and no writer of this process has a lease past the end; growth
        // takes its turn among the writers.
        let is_clear = unsafe { span.as_slice() }.iter().all(|byte| *byte == 0);
        if !is_clear {
            // SAFETY: as for reading; this map is writable.
            unsafe { sys::populate_write(&[run]) }.map_err(|(_, error)| error)?;
            // SAFETY: as above, and no reader of this process has a lease past the end either.
            unsafe { span.copy_from(&vec![0; tail.len() as usize]) };
        }
        Ok(())
    }

    /// The file, if it is one, through a descriptor that may change it.
    fn writable_file(&self) -> Result<&File> {
        let file = self.writable()?.backing.file();
        file.ok_or_else(|| MmapIoError::invalid_mode("memory has a fixed size"))
    }
}

/// What is said of a file that is longer already than it is to grow.
#[derive(Clone, Copy, Debug)]
pub(super) enum Longer {
    /// An error: the caller asked for that length.
    Refused,
    /// Nothing: the caller asked for at least that length.
    Welcome,
}

/// Length of a file as it is.
///
/// # Errors
///
/// `ResizeFailed` if it is too long.
fn mappable_len(file: &File) -> Result<u64> {
    let file_len = sys::file_len(file)?;
    match file_len > MAX_LEN {
        true => Err(resize_failed(format!(
            "{file_len} bytes are more than can be mapped"
        ))),
        false => Ok(file_len),
    }
}

fn resize_failed(problem: String) -> MmapIoError {
    MmapIoError::resize_failed(io::Error::new(io::ErrorKind::InvalidInput, problem))
}
