//! Changes the length of a file, and adopts a length that another process has given it.

use std::fs::File;
use std::io;
use std::iter::once;
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
use crate::wakers::scope;

impl OpenFile {
    /// Gives the file a new length; returns `false` while views of the tail block that. Changes
    /// nothing if `starts` returns `false`, because the operation was withdrawn.
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
        // The wakers of the readers that learn of the cut run when the lease has ended: a waker may
        // ask for bytes of the tail, and wait for the lease that its own thread has. Readers that
        // block a thread learn of the cut at once.
        scope(|| {
            let lease = Lease::try_acquire(self.clone(), Kind::Exclusive, tail, Asks::Queue)?;
            let Some(_lease) = lease else {
                return Ok(false);
            };
            if starts() {
                self.cut(file, tail)?;
            }
            Ok(true)
        })
    }

    /// Cuts `tail` off the file. The caller has an exclusive lease on it.
    fn cut(&self, file: &File, tail: ByteRange) -> Result<()> {
        let new_len = tail.start();
        self.shorten(tail, || file.set_len(new_len))
            .map_err(MmapIoError::resize_failed)?;
        self.forget_writable(ByteRange::between(new_len.saturating_sub(1), u64::MAX));
        self.unlock_past(new_len);
        self.dirty.truncate(new_len);
        self.cancel_alarm_if_clean();
        self.mark_length_unsynced();
        Ok(())
    }

    /// Lowers the lengths by `tail`, and cuts the file by `cut_file`. If that is refused, the lengths
    /// are what they were.
    fn shorten(
        &self,
        tail: ByteRange,
        cut_file: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        // Not shorter, since the tail may come back.
        *lock(&self.len_to_map) = tail.end();
        // The lengths first: no reader may access the tail when its pages go. And a thread that
        // waits for the tail learns now that it has gone, without waiting for the file system.
        let private = self.cut_private(tail.start());
        self.hot.len.store(tail.start(), Ordering::Release);
        self.hot.leases.recheck(tail);
        // SeqCst, and before the file is cut: a reader that has loaded the old length, and then
        // found a page missing, sees the new count.
        self.cuts.fetch_add(1, Ordering::SeqCst);
        let is_cut = cut_file();
        if is_cut.is_ok() {
            drop(private);
        } else {
            self.hot.len.store(tail.end(), Ordering::Release);
            private.undo();
        }
        *lock(&self.len_to_map) = 0;
        is_cut
    }

    /// Makes the file at least `min` bytes long. A file that another process has extended past
    /// `min` keeps its length, and is never cut; [`Longer`] decides whether that is an error.
    ///
    /// Everything that can fail is done before the file grows, so that growth never has to be
    /// undone: that would be a cut. Where maps cannot reach past the end, a map that fails leaves the
    /// file longer than is known, as if another process had extended it.
    ///
    /// Growth waits for no view, unless another process has cut the file under a view: returns
    /// `false` while such a view shows bytes that are to be added. Changes nothing if `starts`
    /// returns `false`, because the operation was withdrawn.
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
        let Some(_under_views) = self.lease_shown(ByteRange::between(file_len, min))? else {
            return Ok(false);
        };
        if !starts() {
            return Ok(true);
        }
        let grow = || {
            self.extend_before_map(file, min)?;
            self.cover(min, || {
                if self.preallocate.load(Ordering::Relaxed) {
                    sys::preallocate(file, file_len, min - file_len)?;
                }
                self.clear_tail(ByteRange::between(file_len, min))?;
                sys::extend(file, min)?;
                // After the file has its new length, since a flush may run beside this that syncs the
                // old one; and before a writer can see the new one.
                self.mark_length_unsynced();
                Ok(min)
            })
        };
        grow().map_err(MmapIoError::resize_failed)?;
        Ok(true)
    }

    /// Leases those of the bytes that are to be added to the file that views may show, because
    /// another process has cut them off. `Some(None)` if there are none, and `None` while views
    /// block it.
    pub(super) fn lease_shown<'a>(
        self: &'a Arc<Self>,
        added: ByteRange,
    ) -> Result<Option<Option<Lease<&'a Self>>>> {
        // Relaxed: only the drain stores it, and this is the drain.
        let shown = added.end().min(self.shown_end.load(Ordering::Relaxed));
        if shown <= added.start() {
            return Ok(Some(None));
        }
        let shown = ByteRange::between(added.start(), shown);
        // Release: pairs with the fence in `restart`. A thread that ends a lease which was marked
        // by the attempt below sees `shown_end`.
        fence(Ordering::Release);
        let lease = Lease::try_acquire(&**self, Kind::Exclusive, shown, Asks::Queue)?;
        Ok(lease.map(Some))
    }

    /// Gives an empty file its first bytes, like [`grow`](Self::grow).
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

    /// Adopts the length that another process has given the file, and maps the file again if pages
    /// were lost by that. Waits for no view.
    pub(super) fn adopt_file_len(&self) -> Result<()> {
        let mapped = self.mapped.iter().find_map(OnceLock::get);
        let Some(file) = mapped.and_then(|mapped| mapped.backing.file()) else {
            return Ok(());
        };
        let file_len = mappable_len(file)?;
        match file_len < self.len() {
            true => self.adopt_cut(file_len),
            false => self.adopt(file_len)?,
        }
        self.map_again()
    }

    /// Adopts a cut that another process has made. Views of the bytes that were cut off keep their
    /// leases: their memory is still mapped, and would show the file again if it grew. So growth
    /// waits for those views.
    fn adopt_cut(&self, file_len: u64) {
        // Relaxed: only the drain stores and loads it, except for `restart`; see its fence.
        let len = self.len();
        self.shown_end.fetch_max(len, Ordering::Relaxed);
        {
            let mut losses = lock(&self.losses);
            // Under the lock, and the dirty ranges first: bytes that are recorded or flushed at this
            // moment are found here, or found to be lost there.
            let dirty = self.dirty.truncate(file_len);
            self.hot.len.store(file_len, Ordering::Release);
            // After the length, with which a view that has its lease later is compared. What was
            // stored through a view counts as written, and more may be stored; when the view ends,
            // the file may be as long again.
            let cut = ByteRange::between(file_len, len);
            let is_written = self.hot.leases.note_cut(cut);
            if let Some(gone) = dirty.or(is_written.then_some(cut)) {
                losses.add(truncated(gone, file_len));
            }
            // SeqCst: as for a cut that `resize` makes.
            self.cuts.fetch_add(1, Ordering::SeqCst);
        }
        // In a scope, so that no waker runs under the lock of the private pages.
        scope(|| drop(self.cut_private(file_len)));
        self.hot.leases.recheck(ByteRange::between(file_len, len));
        self.forget_writable(ByteRange::between(file_len.saturating_sub(1), u64::MAX));
        self.unlock_past(file_len);
        self.cancel_alarm_if_clean();
        self.mark_length_unsynced();
    }

    pub(super) fn adopt(&self, file_len: u64) -> Result<()> {
        match file_len > self.len() {
            true => self
                .cover(file_len, || {
                    // The process that has made the file longer need not have made that durable.
                    self.mark_length_unsynced();
                    Ok(file_len)
                })
                .map(drop)
                .map_err(MmapIoError::resize_failed),
            false => Ok(()),
        }
    }

    /// Returns the actual length of the file.
    ///
    /// # Errors
    ///
    /// `Truncated` if it is shorter than the known length, `ResizeFailed` if it cannot be mapped.
    pub(super) fn file_len(&self, file: &File) -> Result<u64> {
        residency::check_length(Some(file), &[ByteRange::between(0, self.len())])?;
        mappable_len(file)
    }

    /// Makes the file longer where no map can reach past its end. Elsewhere that comes after all that
    /// can fail.
    pub(super) fn extend_before_map(&self, file: &File, len: u64) -> io::Result<()> {
        match sys::CAN_MAP_PAST_END {
            true => Ok(()),
            false => sys::extend(file, len),
        }
    }

    /// Makes maps that cover `len`, and lets `grow_file` make the file longer. Then raises the known
    /// length to the length that `grow_file` returns, if the maps cover it. Otherwise, or if anything
    /// fails, the known length stays: a part of the new bytes would be half of an append.
    ///
    /// `grow_file` may take as long as the disk or the server; no lock is held then. Only the drain
    /// calls this.
    pub(super) fn cover(
        &self,
        len: u64,
        grow_file: impl FnOnce() -> io::Result<u64>,
    ) -> io::Result<u64> {
        self.map_ahead(len)?;
        // The end of the file is in the last of its pages, which growth may change.
        self.forget_writable(ByteRange::between(self.len().saturating_sub(1), u64::MAX));
        let reached = grow_file();
        let mut len_to_map = lock(&self.len_to_map);
        *len_to_map = 0;
        let reached = reached?;
        // An opening may have added a map since, which reserves less than the others.
        let mapped = self.mapped.iter().filter_map(OnceLock::get);
        let covered = mapped.map(|mapped| mapped.current().map_or(0, |map| map.capacity()));
        if covered.min().map_or(true, |covered| reached <= covered) {
            // Release: pairs with the load in `len`. A thread that sees this length also sees maps
            // that cover it.
            self.hot.len.store(reached, Ordering::Release);
        }
        // If the fence fails, the outgrown maps stay.
        let _ = self.forget_outgrown();
        Ok(reached)
    }

    /// Makes maps that cover `len`. Until the known length is raised, openings make no shorter ones.
    fn map_ahead(&self, len: u64) -> io::Result<()> {
        let mut len_to_map = lock(&self.len_to_map);
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
                // Outgrown maps may occupy the address space that is missing.
                self.forget_outgrown()?;
                Map::new(backing, len, protection).map_err(|_| error)
            })?;
            self.replace_map(mapped, protection, map)?;
        }
        *len_to_map = len;
        Ok(())
    }

    /// Zeroes the part of `grown` that lies in the last page of the file; `grown` begins at the end
    /// of the file. Another process may have stored bytes there through a map, and growth would
    /// make them part of the file.
    ///
    /// Another process may append at the same moment: its bytes are in the page before the file has
    /// its new length. The system holds the lock of the file from before the first to after the
    /// second. So this function looks at the bytes, waits for that lock, and asks for the length
    /// again: if it is the same, no byte that was not zero is of an append. Bytes that have changed
    /// since then are left as they are. What remains: an append of those moments that writes the
    /// very value which is cleared there, and all appends on file systems that refuse to reserve a
    /// block, since without that call this function does not wait for the lock.
    ///
    /// The caller, which is the drain, guarantees that the maps cover `grown`, and that no view of
    /// this process lies there: either none can, or growth holds an exclusive lease there.
    pub(super) fn clear_tail(&self, grown: ByteRange) -> io::Result<()> {
        let file = self.writable_file()?;
        let mapped = self.writable()?;
        let Some(map) = self.map(Protection::ReadWrite) else {
            return Ok(());
        };
        // The caller adds what failed, and its callers ask for the error of the system.
        let bare = |error: MmapIoError| match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => error.into(),
        };
        let page_size = sys::page_size() as u64;
        let mut file_len = grown.start();
        while file_len < grown.end() && file_len % page_size != 0 {
            let page_end = file_len.next_multiple_of(page_size);
            let tail = ByteRange::between(file_len, page_end.min(grown.end()));
            let last_byte = ByteRange::between(file_len - 1, file_len);
            residency::populate_read(&map, &mapped.backing, last_byte).map_err(bare)?;
            let span = map.span(tail);
            // SAFETY: `map` keeps the map live, and the page holds the last byte of the file, and
            // was just read in. Only the drain writes past the known end, and this is the drain; so
            // no writer of this process has these bytes.
            let seen = unsafe { span.as_slice() }.to_vec();
            if seen.iter().all(|byte| *byte == 0) {
                break;
            }
            if sys::ALLOCATE_KEEPS_BYTES {
                // The block is there, or storing to the page would need it.
                match sys::allocate(file, last_byte.start(), 1) {
                    Err(error) if sys::is_refused(&error) => {}
                    waited => waited?,
                }
            }
            let known = std::mem::replace(&mut file_len, sys::file_len(file)?);
            if known < file_len {
                // The bytes are of the other process, but not those behind its end.
                continue;
            }
            let fs_traits = mapped.fs_traits;
            residency::populate_write(&map, &mapped.backing, fs_traits, once(last_byte))
                .map_err(|error| bare(error.into()))?;
            // SAFETY: as for `as_slice`, and the map is writable; no reader of this process has
            // these bytes either, as the caller guarantees.
            unsafe { span.clear_unchanged(&seen) };
            // Growth may change whether a store to the page faults.
            self.forget_writable(last_byte);
            break;
        }
        Ok(self.check_maps()?)
    }

    /// Returns the descriptor that may change the file.
    ///
    /// # Errors
    ///
    /// `InvalidMode` for anonymous memory, or if no handle may write the file.
    pub(super) fn writable_file(&self) -> Result<&File> {
        let file = self.writable()?.backing.stored_file();
        file.ok_or_else(|| MmapIoError::invalid_mode("memory has a fixed size"))
    }
}

/// Whether growth fails if another process has made the file longer than requested.
#[derive(Clone, Copy, Debug)]
pub(super) enum Longer {
    /// It fails: the caller asked for exactly that length.
    Refused,
    /// It succeeds: the caller asked for at least that length.
    Welcome,
}

/// Returns the actual length of a file.
///
/// # Errors
///
/// `ResizeFailed` if it is too long to be mapped.
fn mappable_len(file: &File) -> Result<u64> {
    let file_len = sys::file_len(file)?;
    match file_len > MAX_LEN {
        true => Err(resize_failed(format!(
            "{file_len} bytes are more than can be mapped"
        ))),
        false => Ok(file_len),
    }
}

/// The error for bytes that another process has cut off before they were durable.
pub(super) fn truncated(gone: ByteRange, file_len: u64) -> MmapIoError {
    MmapIoError::Truncated {
        offset: gone.start(),
        len: gone.len(),
        file_len,
    }
}

fn resize_failed(problem: String) -> MmapIoError {
    MmapIoError::resize_failed(io::Error::new(io::ErrorKind::InvalidInput, problem))
}

#[cfg(all(test, unix, not(mmap_io_loom)))]
mod tests;
