//! One mapping of a file, and the only module that turns its address into a slice.
//!
//! A [`Map`] is never turned into `&mut [u8]` as a whole (`memmap2::MmapMut` would do that in its
//! `DerefMut`): such a reference aliases every live view, even if it is never used. What leaves
//! this module is a [`Span`], a bare address and length, with two `unsafe` methods that make a
//! slice of it.
//!
//! A map reserves address space past the end of its file, so that the file can grow inside the map
//! and nothing moves. The crate never accesses memory there: bounds come from the length of the
//! file, never from the length of the map.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::ptr::NonNull;
use std::sync::atomic::{compiler_fence, AtomicU32, AtomicU64, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use memmap2::{MmapOptions, MmapRaw};

use crate::descriptor::Descriptor;
use crate::error::MmapIoError;
use crate::fault_guard::Guarded;
use crate::range::{ByteRange, PageRange};
use crate::sync::lock;
use crate::sys::{self, Advice};
use crate::writable_pages::WritablePages;

/// Whether maps reserve address space past the end of their file. A 32-bit platform has none to
/// spare.
pub(crate) const RESERVES: bool = sys::CAN_MAP_PAST_END && cfg!(target_pointer_width = "64");

/// The least address space that is reserved for a file, in bytes.
const LEAST_RESERVATION: u64 = 1 << 20;

/// What a mapping may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    Read,
    ReadWrite,
}

/// Where the bytes of an open file are kept.
#[derive(Clone, Debug)]
pub(crate) enum Backing {
    /// In the file, which stores through the map change.
    File(Arc<Descriptor>),
    /// In the map's own copies of pages that were stored to; everywhere else in the file, which
    /// stores through the map do not change.
    Private(Arc<Descriptor>),
    /// In the map alone: anonymous memory, which is freed with the map.
    Memory,
}

impl Backing {
    /// Returns the file that the map shows.
    pub(crate) fn file(&self) -> Option<&File> {
        self.descriptor().map(|file| &***file)
    }

    /// Returns the file that stores through the map change.
    pub(crate) fn stored_file(&self) -> Option<&File> {
        match self {
            Self::File(file) => Some(file),
            Self::Private(_) | Self::Memory => None,
        }
    }

    pub(crate) fn descriptor(&self) -> Option<&Arc<Descriptor>> {
        match self {
            Self::File(file) | Self::Private(file) => Some(file),
            Self::Memory => None,
        }
    }
}

/// One mapping: a shared mapping of a file, private pages over a file, or private memory.
#[derive(Debug)]
pub(crate) struct Map {
    raw: MmapRaw,
    backing: Backing,
    writable: WritablePages,
    guarded: Guarded,
}

impl Map {
    /// Maps the first `len` bytes of `backing`, and reserves address space for the file to grow:
    /// as much as the file has or, where that much is unavailable (a huge file, `RLIMIT_AS`), a
    /// half or an eighth of it.
    ///
    /// Where nothing can be reserved (a 32-bit address space, a platform that does not map past the
    /// end of a file) exactly `len` bytes are mapped; `len` must not be 0 then.
    ///
    /// Anonymous memory and private pages get exactly `len` bytes: they do not grow. Private pages
    /// can always be written, whatever the protection.
    pub(crate) fn new(backing: &Backing, len: u64, protection: Protection) -> io::Result<Self> {
        let file = match backing {
            Backing::File(file) => file,
            Backing::Private(file) => return Self::private(file, len, backing),
            Backing::Memory => return Self::memory(len),
        };
        let listed = |raw| Self::listed(raw, backing.clone(), protection);
        if RESERVES {
            let double = len.saturating_mul(2).max(LEAST_RESERVATION);
            let double = double.checked_next_power_of_two().unwrap_or(len);
            for reservation in [double, len + len / 2, len + len / 8] {
                if let Ok(raw) = Self::exact(file, reservation, protection) {
                    return Ok(listed(raw));
                }
            }
        }
        Self::exact(file, len, protection).map(listed)
    }

    fn memory(len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let raw = MmapRaw::from(MmapOptions::new().len(len).map_anon()?);
        Ok(Self::listed(raw, Backing::Memory, Protection::ReadWrite))
    }

    fn private(file: &File, len: u64, backing: &Backing) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut options = MmapOptions::new();
        // Most files of this kind get few private pages. Without this option the system could
        // refuse a file that is larger than its memory.
        options.len(len).no_reserve_swap();
        // SAFETY: the map becomes a raw one at once: no reference to its bytes is made here, and
        // `Span` makes one only under a lease.
        let raw = MmapRaw::from(unsafe { options.map_copy(file) }?);
        Ok(Self::listed(raw, backing.clone(), Protection::ReadWrite))
    }

    fn exact(file: &File, len: u64, protection: Protection) -> io::Result<MmapRaw> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut options = MmapOptions::new();
        options.len(len);
        match protection {
            Protection::Read => options.map_raw_read_only(file),
            Protection::ReadWrite => options.map_raw(file),
        }
    }

    fn listed(raw: MmapRaw, backing: Backing, protection: Protection) -> Self {
        let is_stored = backing.stored_file().is_some() && protection == Protection::ReadWrite;
        let guarded = Guarded::new(raw.as_ptr(), raw.len(), backing.file(), is_stored);
        let listed = (raw.len(), backing.clone(), guarded);
        maps().insert(raw.as_ptr() as usize, listed);
        Self {
            raw,
            backing,
            guarded,
            writable: WritablePages::default(),
        }
    }

    /// Returns what the map shows.
    pub(crate) fn backing(&self) -> &Backing {
        &self.backing
    }

    /// Returns the pages that a store does not fault on.
    pub(crate) fn writable(&self) -> &WritablePages {
        &self.writable
    }

    /// Returns what the fault guard knows of the map.
    pub(crate) fn guarded(&self) -> Guarded {
        self.guarded
    }

    /// Replaces the pages that lie behind the first `len` bytes by zeroes: the map never shows the
    /// file there again. Returns `false` if the system refuses.
    ///
    /// # Safety
    ///
    /// The file was `len` bytes long a moment ago, and no writer of this process uses the map.
    pub(crate) unsafe fn hide_behind(&self, len: u64) -> bool {
        let page_size = sys::page_size() as u64;
        let [start, end] = [len, self.capacity()].map(|at| at.next_multiple_of(page_size));
        let hidden = ByteRange::between(start.min(end), end);
        // SAFETY: `run` has checked that the pages are inside this map, which is live. A view of
        // them may exist, which was made before another process has cut them off; whatever it reads
        // there is up to that process.
        hidden.is_empty()
            || unsafe { sys::replace_by_zeroes(self.run(hidden.to_pages(page_size as usize))) }
    }

    /// Returns the length of the map in bytes; only those inside the file may be accessed.
    pub(crate) fn capacity(&self) -> u64 {
        self.raw.len() as u64
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.raw.as_mut_ptr()
    }

    /// Returns the address of a range.
    ///
    /// # Panics
    ///
    /// If the range is not inside the map.
    pub(crate) fn span(&self, range: ByteRange) -> Span {
        assert!(range.end() <= self.capacity());
        // SAFETY: `MmapRaw` holds a mapping, and a mapping is never at address 0.
        let base = unsafe { NonNull::new_unchecked(self.raw.as_mut_ptr()) };
        // SAFETY: the range is inside this map, as was just checked, and `self` is live.
        unsafe { Span::in_map(base, range) }
    }

    /// Asks the system to use huge pages for this map. That is a hint, and the map works without.
    pub(crate) fn use_huge_pages(&self) {
        let all = ByteRange::between(0, self.capacity()).to_pages(sys::page_size());
        // SAFETY: `run` has checked that the pages are inside this map, which is live; the advice
        // discards no page.
        let _ = unsafe { sys::advise(self.run(all), Advice::HugePage) };
    }

    /// Returns the address of whole pages, for the calls of [`sys`]. The pages are inside this map:
    /// the callers' SAFETY comments rely on that.
    ///
    /// The last page may end past the length that was asked for, since the system maps whole pages.
    ///
    /// # Panics
    ///
    /// If the pages are not inside the map.
    pub(crate) fn run(&self, pages: PageRange) -> sys::Run {
        let capacity = self.capacity().next_multiple_of(sys::page_size() as u64);
        assert!(
            pages.start() <= pages.end() && pages.end() <= capacity,
            "pages {}..{} are not inside a map of {capacity} bytes",
            pages.start(),
            pages.end()
        );
        sys::Run::at(self.as_ptr(), pages)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // Before another mapping can get the address: `raw` is unmapped after this body.
        self.guarded.end();
        // A forked child copies nothing, and the lock may stay locked there forever.
        if !sys::is_forked() {
            maps().remove(&(self.raw.as_ptr() as usize));
        }
    }
}

/// The address and length of bytes in a map: no reference, and no right to access them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    addr: NonNull<u8>,
    len: usize,
}

// SAFETY: the address alone accesses nothing; the methods that make a slice of it are `unsafe`, and
// their contracts do not depend on the calling thread.
unsafe impl Send for Span {}
// SAFETY: as for `Send`.
unsafe impl Sync for Span {}

impl Span {
    /// A span of no bytes, which is not in any map. Its address is a multiple of every page size,
    /// like the address of a map: code that casts the bytes of a file to a wider type may check
    /// the alignment before the length.
    pub(crate) const EMPTY: Self = Self {
        addr: NonNull::<LargestPage>::dangling().cast(),
        len: 0,
    };

    /// Returns the address of a range of the map that begins at `base`.
    ///
    /// # Safety
    ///
    /// The range is inside a map that is at `base`, or was there: this is an address, and no access.
    #[inline]
    pub(crate) unsafe fn in_map(base: NonNull<u8>, range: ByteRange) -> Self {
        let addr = base.as_ptr().wrapping_add(range.start() as usize);
        Self {
            // SAFETY: `addr` is inside a map or at its end, by this method's contract, and no map
            // is at address 0.
            addr: unsafe { NonNull::new_unchecked(addr) },
            len: range.len() as usize,
        }
    }

    /// Returns the bytes.
    ///
    /// # Safety
    ///
    /// For as long as `'a`:
    /// - the map is live, and the bytes are in pages that the file has;
    /// - a lease keeps every writer of this process off the bytes.
    #[inline]
    pub(crate) unsafe fn as_slice<'a>(self) -> &'a [u8] {
        // SAFETY: the span is inside a map that the caller keeps live, and the caller's lease keeps
        // writers off it.
        unsafe { std::slice::from_raw_parts(self.addr.as_ptr(), self.len) }
    }

    /// Returns the bytes for writing.
    ///
    /// # Safety
    ///
    /// For as long as `'a`:
    /// - the map is live and writable, and the bytes are in pages that the file has;
    /// - an exclusive lease keeps every other view of this process off the bytes, and there is no
    ///   other slice made under the same lease.
    #[inline]
    pub(crate) unsafe fn as_mut_slice<'a>(self) -> &'a mut [u8] {
        // SAFETY: the span is inside a writable map that the caller keeps live, and the caller's
        // exclusive lease keeps every other view off it.
        unsafe { std::slice::from_raw_parts_mut(self.addr.as_ptr(), self.len) }
    }

    /// Returns a part of the span: `len` bytes that begin `offset` bytes after its start.
    ///
    /// # Panics
    ///
    /// If the part is not inside the span.
    pub(crate) fn part(self, offset: usize, len: usize) -> Self {
        assert!(offset <= self.len && len <= self.len - offset);
        let addr = self.addr.as_ptr().wrapping_add(offset);
        Self {
            // SAFETY: `addr` is inside the span or at its end, as was just checked, and no span
            // wraps around to address 0.
            addr: unsafe { NonNull::new_unchecked(addr) },
            len,
        }
    }

    /// Returns the bytes as words.
    ///
    /// # Safety
    ///
    /// - `T` is `AtomicU32` or `AtomicU64`, and the span is a whole number of aligned `T`.
    /// - For as long as `'a`, the map is live and writable, and the bytes are in pages that the
    ///   file has.
    /// - For as long as `'a`, an atomic lease for words of this size keeps all other uses in this
    ///   process off the bytes.
    #[inline]
    #[cfg_attr(not(feature = "atomic"), allow(dead_code))]
    pub(crate) unsafe fn as_words<'a, T>(self) -> &'a [T] {
        debug_assert_eq!(self.addr.as_ptr() as usize % size_of::<T>(), 0);
        debug_assert_eq!(self.len % size_of::<T>(), 0);
        let words = self.addr.as_ptr().cast::<T>();
        // SAFETY: aligned, and inside a map that the caller keeps live. Every value is one of `T`,
        // and while the lease lives, this process changes it only through atomics of its size.
        unsafe { std::slice::from_raw_parts(words, self.len / size_of::<T>()) }
    }

    /// Passes the bytes to `take`, piece by piece in their order, as relaxed loads of whole words
    /// of `WORD` bytes find them. The span may begin and end inside a word.
    ///
    /// # Safety
    ///
    /// During the call:
    /// - the map is live and writable, and the bytes are in pages that the file has;
    /// - an atomic lease for words of this size, 4 or 8 bytes, is held on the words that contain
    ///   the bytes.
    pub(crate) unsafe fn load_words<const WORD: usize>(self, take: &mut impl FnMut(&[u8])) {
        const PIECE: usize = 256;
        let load = |at: *mut u8, word: &mut [u8]| match WORD {
            4 => {
                // SAFETY: an aligned word of the page of a byte of the span, which is live, and
                // all uses of which are atomic and of this size, by this method's contract.
                let value = unsafe { AtomicU32::from_ptr(at.cast()) };
                word.copy_from_slice(&value.load(Ordering::Relaxed).to_ne_bytes());
            }
            8 => {
                // SAFETY: as for 4 bytes.
                let value = unsafe { AtomicU64::from_ptr(at.cast()) };
                word.copy_from_slice(&value.load(Ordering::Relaxed).to_ne_bytes());
            }
            _ => unreachable!("words have 4 or 8 bytes"),
        };
        let before = self.addr.as_ptr() as usize % WORD;
        let first = self.addr.as_ptr().wrapping_sub(before);
        // Offsets from the first word.
        let (mut at, end) = (before, before + self.len);
        let mut piece = [0; PIECE];
        while at < end {
            let start = at / WORD * WORD;
            let words = (end - start).next_multiple_of(WORD).min(PIECE);
            for (place, word) in piece[..words].chunks_exact_mut(WORD).enumerate() {
                load(first.wrapping_add(start + place * WORD), word);
            }
            let next = end.min(start + words);
            take(&piece[at - start..next - start]);
            at = next;
        }
    }

    /// Zeroes those bytes that still are what they were in `seen`. A byte that another process changes
    /// at the same time keeps its new value.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    ///
    /// # Safety
    ///
    /// The same as for [`as_mut_slice`](Self::as_mut_slice), during the call.
    pub(crate) unsafe fn clear_unchanged(self, seen: &[u8]) {
        assert_eq!(self.len, seen.len(), "a span is cleared as a whole");
        for (at, seen) in seen.iter().enumerate() {
            let byte = self.addr.as_ptr().wrapping_add(at);
            // SAFETY: the byte is inside the span, as was just checked, which is in a live, writable
            // map and leased, by this method's contract.
            let byte = unsafe { AtomicU8::from_ptr(byte) };
            // Relaxed: no other memory depends on it.
            let _ = byte.compare_exchange(*seen, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Copies `data` over the bytes.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    ///
    /// # Safety
    ///
    /// The same as for [`as_mut_slice`](Self::as_mut_slice), during the call. `data` may lie in the
    /// same map only if it does not overlap the span.
    pub(crate) unsafe fn copy_from(self, data: &[u8]) {
        assert_eq!(self.len, data.len(), "a span is overwritten as a whole");
        // SAFETY: both have `self.len` bytes, as was just checked; by this method's contract the
        // span is writable and leased, and does not overlap `data`.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.addr.as_ptr(), self.len) }
    }
}

/// Has the alignment of the largest page of any platform.
#[repr(align(65536))]
struct LargestPage;

/// Returns an empty slice at the address of [`Span::EMPTY`].
pub(crate) fn no_bytes() -> &'static [u8] {
    // SAFETY: the span is not null, aligned and empty; a slice of no bytes needs neither a map nor
    // a lease.
    unsafe { Span::EMPTY.as_slice() }
}

/// Bytes that lie in one of this crate's maps.
#[derive(Debug)]
pub(crate) struct Place {
    /// The pages that hold the bytes.
    pub(crate) run: sys::Run,
    pub(crate) backing: Backing,
    /// The range of the backing file or memory that the bytes are.
    pub(crate) range: ByteRange,
    guarded: Guarded,
}

impl Place {
    /// Fails with `Faulted` if a page of the bytes, or one before them, was lost.
    pub(crate) fn check_whole(&self) -> Result<(), MmapIoError> {
        // Not before the caller's accesses to the bytes.
        compiler_fence(Ordering::SeqCst);
        self.guarded.check_before(self.range.end())
    }
}

/// Returns where `data` lies, if it is in one of this crate's maps.
///
/// Such bytes may not be read on an executor thread, since that may fault; and a write that takes
/// its data from them could wait for its own source.
pub(crate) fn find_mapped(data: &[u8]) -> Option<Place> {
    let start = data.as_ptr() as usize;
    let (base, backing, guarded) = {
        let maps = maps();
        let (base, (capacity, backing, guarded)) = maps.range(..=start).next_back()?;
        if data.is_empty() || start - base >= *capacity {
            return None;
        }
        (*base, backing.clone(), *guarded)
    };
    let page = sys::page_size();
    let before = start % page;
    let offset = (start - base) as u64;
    Some(Place {
        run: sys::Run {
            addr: data.as_ptr().cast_mut().wrapping_sub(before),
            len: (before + data.len()).next_multiple_of(page),
        },
        backing,
        range: ByteRange::between(offset, offset + data.len() as u64),
        guarded,
    })
}

/// The length of a map, what it shows, and what the fault guard knows of it.
type Listed = (usize, Backing, Guarded);

/// Every live map of the process, by its address.
fn maps() -> MutexGuard<'static, BTreeMap<usize, Listed>> {
    static MAPS: Mutex<BTreeMap<usize, Listed>> = Mutex::new(BTreeMap::new());
    // A poisoned lock is no problem: nothing panics while the tree is being changed.
    lock(&MAPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_reserves_space_past_end() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(5000).unwrap();
        let file = Backing::File(Descriptor::new(file));
        let map = Map::new(&file, 5000, Protection::ReadWrite).unwrap();
        assert!(map.capacity() >= 5000);
        if RESERVES {
            assert_eq!(map.capacity(), LEAST_RESERVATION);
        }
        let span = map.span(ByteRange::between(4990, 5000));
        // SAFETY: the map is live and writable, the bytes are inside the file, and this test is
        // the only user of both.
        unsafe { span.copy_from(b"0123456789") };
        // SAFETY: as above.
        assert_eq!(unsafe { span.as_slice() }, b"0123456789");
    }

    #[test]
    fn find_mapped_recognises_own_maps() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(9000).unwrap();
        let file = Backing::File(Descriptor::new(file));
        let map = Map::new(&file, 9000, Protection::Read).unwrap();
        // SAFETY: the map is live until the end of the test, the bytes are inside the file, and
        // nothing writes to it.
        let inside = unsafe { map.span(ByteRange::between(5000, 9000)).as_slice() };
        let place = find_mapped(inside).unwrap();
        assert_eq!(place.run.addr as usize % sys::page_size(), 0);
        assert!(place.run.len >= 4000);
        assert_eq!(place.range, ByteRange::between(5000, 9000));
        assert!(find_mapped(b"elsewhere").is_none());
    }

    #[cfg(all(unix, not(mmap_io_loom)))]
    #[test]
    fn forked_child_drops_map_while_list_is_locked() {
        let mut map = Some(Map::new(&Backing::Memory, 4096, Protection::ReadWrite).unwrap());
        let is_dropped = {
            let _locked = maps();
            sys::in_fork(|| {
                map = None;
                true
            })
        };
        assert!(is_dropped);
    }

    #[test]
    fn words_are_loaded_as_bytes() {
        let map = Map::new(&Backing::Memory, 4096, Protection::ReadWrite).unwrap();
        let content: Vec<u8> = (0..2000_u32).map(|at| at as u8).collect();
        // SAFETY: the map is live and writable, and this test is the only user of it.
        unsafe { map.span(ByteRange::between(0, 2000)).copy_from(&content) };
        for start in (0..17).chain([1000, 1999]) {
            for len in [
                0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 255, 256, 257, 264, 700,
            ] {
                let end = (start + len).min(2000);
                let range = ByteRange::between(start as u64, end as u64);
                let (mut by_four, mut by_eight) = (Vec::<u8>::new(), Vec::<u8>::new());
                // SAFETY: as above.
                unsafe {
                    map.span(range)
                        .load_words::<4>(&mut |some| by_four.extend(some))
                };
                // SAFETY: as above.
                unsafe {
                    map.span(range)
                        .load_words::<8>(&mut |some| by_eight.extend(some))
                };
                assert!(by_four == content[start..end], "{range:?}");
                assert!(by_eight == content[start..end], "{range:?}");
            }
        }
    }
}
