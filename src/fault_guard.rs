//! The fault guard (feature `fault-guard`): a page of a map that the system cannot provide becomes
//! a page of zeroes, and the operations on the file fail from then on. Without the feature, and on
//! platforms without a guard, nothing here does anything.
//!
//! The handler of `SIGBUS` has to tell a map of this crate from everything else, and to make the
//! loss known, while it may allocate nothing and lock nothing. So every map has a *slot* in memory
//! that is never freed, and the handler reads the slots' atomics only:
//!
//! 1. A thread touches a page that is lost: another process has cut it off, its read has failed, or
//!    it is a hole and the disk is full. The handler finds the slot of the map. The slot belongs to
//!    that map until the handler returns, since a live map is being touched. Of the other slots,
//!    each may change at any time: `version` tells whether what was read of one belongs together.
//! 2. The handler looks at the file. Another process may have emptied it and written it anew in the
//!    meantime: if the page is there by now, the thread touches it again, and nothing is lost.
//! 3. The handler notes in the slot what is lost: everything behind the end of the file, or one
//!    page. Then it removes the addresses of the file's maps ([`Bases`]). A read loads such an
//!    address anyway, so the guard costs it nothing: without an address it looks for the reason.
//! 4. The handler replaces the lost pages by zeroes, and the thread goes on. No thread reads a zero
//!    from such a page before the loss is noted, so a copy that looks afterwards finds it.
//!
//! A signal handler runs in the thread that has touched the page. So to that thread only the
//! compiler could reorder the copy and the look ([`OpenFile::check_whole`] has a fence for that).
//! To other threads, the call that replaces the pages orders them.
//!
//! [`OpenFile::check_whole`]: crate::open_file::OpenFile::check_whole

use std::array;
use std::fs::File;
use std::iter::successors;
use std::ptr::null_mut;
use std::sync::atomic::{
    fence, AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};
use std::sync::Mutex;

use crate::error::MmapIoError;
use crate::sync::lock;
use crate::sys::{self, Run};

/// Whether lost pages are replaced.
pub(crate) const IS_ON: bool = cfg!(feature = "fault-guard") && sys::CAN_GUARD_FAULTS;

/// How many pages of the process are replaced one by one. Each may split a mapping in three, and a
/// process has a limited number of mappings (on Linux usually 65,530). A map that loses more pages
/// than that loses all pages behind them as well.
const SINGLE_PAGES: u32 = 4096;

/// How many times the handler looks at most whether a page inside the file is there by now. Where
/// the disk has room, another process would have to cut the file and make it longer again between two
/// looks.
const LOOKS: u32 = 16;

/// How many times a page of one map is touched again where the system only tells by that whether it
/// is there.
const BLIND_TRIES: u32 = 64;

const SLOTS_A_CHUNK: usize = 64;
const NONE: u64 = u64::MAX;

/// The addresses of the current maps of a file, by protection. The handler makes them null when a
/// page is lost.
pub(crate) type Bases = [AtomicPtr<u8>; 2];

/// What is lost of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Another process has cut the file at this offset; [`NONE`] if it has not.
    cut_at: u64,
    /// The first page inside the file that the system could not provide; [`NONE`] if there is none.
    broken_at: u64,
}

impl Lost {
    pub(crate) const NOTHING: Self = Self {
        cut_at: NONE,
        broken_at: NONE,
    };

    pub(crate) fn is_nothing(self) -> bool {
        self == Self::NOTHING
    }

    /// Returns what is lost here or there.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            cut_at: self.cut_at.min(other.cut_at),
            broken_at: self.broken_at.min(other.broken_at),
        }
    }

    /// Whether the file is as damaged as the map: then a new map of it would be no better.
    pub(crate) fn is_of_the_file(self) -> bool {
        self.broken_at != NONE
    }

    /// Returns the first byte that is lost if nothing but a cut is.
    pub(crate) fn cut_at(self) -> u64 {
        self.cut_at
    }

    /// Returns the offset of the first lost page.
    fn first_page(self) -> u64 {
        let page_size = sys::page_size() as u64;
        let cut_page = self.cut_at.checked_next_multiple_of(page_size);
        cut_page.unwrap_or(NONE).min(self.broken_at)
    }

    pub(crate) fn error(self) -> MmapIoError {
        MmapIoError::Faulted {
            offset: self.first_page(),
        }
    }
}

/// A map that the handler knows, until [`end`](Self::end).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guarded(Option<&'static Slot>);

impl Guarded {
    /// Lets the handler know of a map at `addr`, of `len` bytes from the beginning of `file`.
    /// `is_stored` says whether stores through the map go to the file.
    pub(crate) fn new(addr: *const u8, len: usize, file: Option<&File>, is_stored: bool) -> Self {
        if !IS_ON {
            return Self(None);
        }
        // This also asks for the page size, which the handler uses, before the handler can run.
        let len = len.next_multiple_of(sys::page_size());
        sys::guard_faults(rescue);
        let slot = free_slot();
        let file = file.map_or(-1, sys::file_number);
        slot.fill(addr as usize, len, file, is_stored);
        Self(Some(slot))
    }

    /// Forgets the map. Called before it is unmapped: another mapping may get its address.
    pub(crate) fn end(self) {
        let Some(slot) = self.0 else {
            return;
        };
        slot.clear();
        // A forked child makes no maps, and a lock may stay locked there forever.
        if !sys::is_forked() {
            lock(&FREE).push(slot);
        }
    }

    /// From now on a loss in this map is a loss of the file: it removes the addresses in `bases`.
    ///
    /// # Safety
    ///
    /// `bases` lives until [`detach`](Self::detach); or as long as memory of the map is accessed.
    pub(crate) unsafe fn attach(self, bases: &Bases) {
        if let Some(slot) = self.0 {
            let bases = bases as *const Bases;
            // SeqCst, as all accesses that `OpenFile::settle` argues about.
            slot.bases.store(bases.cast_mut(), Ordering::SeqCst);
        }
    }

    /// From now on a loss in this map is not a loss of the file: the map shows an earlier state.
    pub(crate) fn detach(self) {
        if let Some(slot) = self.0 {
            slot.bases.store(null_mut(), Ordering::SeqCst);
        }
    }

    /// Returns what the map has lost, unless it is detached.
    pub(crate) fn lost_of_the_file(self) -> Lost {
        match self.0 {
            Some(slot) if !slot.bases.load(Ordering::SeqCst).is_null() => slot.lost(),
            _ => Lost::NOTHING,
        }
    }

    /// Fails if the map has lost a page before `end`.
    pub(crate) fn check_before(self, end: u64) -> Result<(), MmapIoError> {
        let lost = self.0.map_or(Lost::NOTHING, Slot::lost);
        match lost.cut_at.min(lost.broken_at) < end {
            true => Err(lost.error()),
            false => Ok(()),
        }
    }
}

/// What the handler knows of one map. Only the owner of the map stores to the first five fields;
/// `version` is odd before and while it does, and while the slot is free.
#[derive(Debug)]
struct Slot {
    version: AtomicUsize,
    start: AtomicUsize,
    /// The first address behind the map's last page.
    end: AtomicUsize,
    /// The number of the map's descriptor; negative for anonymous memory.
    file: AtomicI32,
    /// Whether stores through the map go to the file.
    is_stored: AtomicBool,
    /// The addresses to remove; null if no file uses the map.
    bases: AtomicPtr<Bases>,
    cut_at: AtomicU64,
    broken_at: AtomicU64,
    /// How many pages were replaced one by one.
    singles: AtomicU32,
    /// How many times a page was touched again without knowing whether it is there.
    blind_tries: AtomicU32,
}

impl Slot {
    fn new() -> Self {
        Self {
            version: AtomicUsize::new(1),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            file: AtomicI32::new(-1),
            is_stored: AtomicBool::new(false),
            bases: AtomicPtr::default(),
            cut_at: AtomicU64::new(NONE),
            broken_at: AtomicU64::new(NONE),
            singles: AtomicU32::new(0),
            blind_tries: AtomicU32::new(0),
        }
    }

    fn fill(&self, start: usize, len: usize, file: i32, is_stored: bool) {
        // Release: pairs with the fence in `covers`. Who reads a new value sees the odd version, or
        // a later one.
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(start + len, Ordering::Relaxed);
        self.file.store(file, Ordering::Relaxed);
        self.is_stored.store(is_stored, Ordering::Relaxed);
        self.bases.store(null_mut(), Ordering::Relaxed);
        self.cut_at.store(NONE, Ordering::Relaxed);
        self.broken_at.store(NONE, Ordering::Relaxed);
        self.singles.store(0, Ordering::Relaxed);
        self.blind_tries.store(0, Ordering::Relaxed);
        // Release: pairs with the load in `covers`.
        self.version.fetch_add(1, Ordering::Release);
    }

    fn clear(&self) {
        self.version.fetch_add(1, Ordering::Relaxed);
        // Its pages are unmapped next. Relaxed: a count.
        let singles = self.singles.load(Ordering::Relaxed);
        REPLACED.fetch_sub(singles, Ordering::Relaxed);
    }

    /// Whether the slot is that of a live map which has the address.
    fn covers(&self, addr: usize) -> bool {
        // Acquire: pairs with the end of `fill`.
        let version = self.version.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Relaxed);
        let end = self.end.load(Ordering::Relaxed);
        // Acquire: pairs with the fence in `fill`.
        fence(Ordering::Acquire);
        let is_whole = version % 2 == 0 && self.version.load(Ordering::Relaxed) == version;
        is_whole && (start..end).contains(&addr)
    }

    fn lost(&self) -> Lost {
        Lost {
            cut_at: self.cut_at.load(Ordering::SeqCst),
            broken_at: self.broken_at.load(Ordering::SeqCst),
        }
    }

    /// Replaces the page at `addr`, which is in this slot's live map, and what is lost with it; or
    /// leaves it as it is if nothing is lost. Returns whether the page may be touched again.
    fn rescue(&self, addr: usize) -> bool {
        let page_size = sys::page_size();
        let start = self.start.load(Ordering::Relaxed);
        let end = self.end.load(Ordering::Relaxed);
        let page = addr - addr % page_size;
        let offset = (page - start) as u64;
        let (from, to) = match self.look(page, offset) {
            Found::There => return true,
            // All pages behind the end are lost with this one.
            Found::CutAt(file_len) => {
                self.cut_at.fetch_min(file_len, Ordering::SeqCst);
                let cut = (file_len as usize).next_multiple_of(page_size);
                (start + cut, end)
            }
            // Of the other pages nothing is known; so they stay, as long as that is possible.
            Found::Broken => {
                self.broken_at.fetch_min(offset, Ordering::SeqCst);
                match self.takes_single() {
                    true => (page, page + page_size),
                    false => (page, end),
                }
            }
        };
        // SAFETY: by `attach`, the addresses live as long as memory of the map is accessed, which
        // is what this thread is doing.
        if let Some(bases) = unsafe { self.bases.load(Ordering::SeqCst).as_ref() } {
            for base in bases {
                base.store(null_mut(), Ordering::SeqCst);
            }
        }
        // Fewer pages behind this one, if the system has no room for all.
        let fewer = successors(Some(to - page), |len| {
            (*len > page_size).then(|| (len / 2).next_multiple_of(page_size))
        });
        replace(from, to) || { fewer }.any(|len| replace(page, page + len))
    }

    /// Finds out what has become of the page at an address, which is at `offset` in the file.
    fn look(&self, page: usize, offset: u64) -> Found {
        let file = self.file.load(Ordering::Relaxed);
        // The error of a map that has lost a page for good stays, whatever is found of another.
        // Relaxed: a count of looks depends on it, and nothing else.
        let looks = match self.broken_at.load(Ordering::Relaxed) {
            NONE => LOOKS,
            _ => 1,
        };
        for look in 1..=looks {
            let file_len = match file {
                0.. => sys::len_of_number(file),
                _ => None,
            };
            match file_len {
                Some(file_len) if file_len <= offset => return Found::CutAt(file_len),
                None => break,
                // The device may take long to fail: it is asked once.
                Some(_) if looks == 1 || look == 1 && sys::is_unreadable(file, offset) => break,
                Some(_) if self.provides(page) => return Found::There,
                Some(_) => {}
            }
        }
        Found::Broken
    }

    /// Whether the system provides the page at an address, for every access that the map is made
    /// for; or whether it is worth a try, where the system does not tell.
    fn provides(&self, page: usize) -> bool {
        let run = Run {
            addr: page as *mut u8,
            len: sys::page_size(),
        };
        let is_populated = match self.is_stored.load(Ordering::Relaxed) {
            // SAFETY: the page is inside a live map, which a thread is touching, and the map is
            // writable.
            true => match unsafe { sys::try_populate_write(&[run]) } {
                Ok(done) => Ok(done == 1),
                // A hole on a full disk can be read, but not stored to; a store will be here again.
                // SAFETY: as above; every map is readable.
                Err(_) => unsafe { sys::try_populate_read(run) }.map(|_| false),
            },
            // SAFETY: as above.
            false => unsafe { sys::try_populate_read(run) },
        };
        // Relaxed: a count.
        let may_try = || self.blind_tries.fetch_add(1, Ordering::Relaxed) < BLIND_TRIES;
        is_populated.is_ok_and(|is_populated| is_populated || may_try())
    }

    /// Whether a page may still be replaced alone; counts it.
    fn takes_single(&self) -> bool {
        // Relaxed: a count, which other threads may exceed by one each.
        if REPLACED.load(Ordering::Relaxed) >= SINGLE_PAGES {
            return false;
        }
        REPLACED.fetch_add(1, Ordering::Relaxed);
        self.singles.fetch_add(1, Ordering::Relaxed);
        true
    }
}

/// What has become of a page that could not be touched.
enum Found {
    /// It is there by now.
    There,
    /// The file ends before it, at this offset.
    CutAt(u64),
    /// It is inside the file, and the system does not provide it.
    Broken,
}

/// How many pages of live maps were replaced one by one.
static REPLACED: AtomicU32 = AtomicU32::new(0);

/// Slots that are never freed. A list, to which chunks are added at the front.
struct Chunk {
    slots: [Slot; SLOTS_A_CHUNK],
    next: Option<&'static Chunk>,
}

static CHUNKS: AtomicPtr<Chunk> = AtomicPtr::new(null_mut());
/// The slots that no map has.
static FREE: Mutex<Vec<&'static Slot>> = Mutex::new(Vec::new());

fn chunks() -> Option<&'static Chunk> {
    // Acquire: pairs with the store in `free_slot`.
    // SAFETY: what is stored there is null or a leaked chunk.
    unsafe { CHUNKS.load(Ordering::Acquire).as_ref() }
}

fn free_slot() -> &'static Slot {
    let mut free = lock(&FREE);
    if let Some(slot) = free.pop() {
        return slot;
    }
    let chunk: &'static Chunk = Box::leak(Box::new(Chunk {
        slots: array::from_fn(|_| Slot::new()),
        next: chunks(),
    }));
    free.extend(&chunk.slots[1..]);
    // Release: pairs with the load in `chunks`. The lock on `FREE` is held: no chunk gets lost.
    CHUNKS.store((chunk as *const Chunk).cast_mut(), Ordering::Release);
    &chunk.slots[0]
}

/// Is called by the signal handler with the address that a thread has touched. Returns whether the
/// thread may touch it again.
fn rescue(addr: usize) -> bool {
    let mut next = chunks();
    while let Some(chunk) = next {
        if let Some(slot) = chunk.slots.iter().find(|slot| slot.covers(addr)) {
            return slot.rescue(addr);
        }
        next = chunk.next;
    }
    false
}

/// Replaces the pages from one address to another, both in one live map of a slot.
fn replace(from: usize, to: usize) -> bool {
    let run = Run {
        addr: from as *mut u8,
        len: to - from,
    };
    // SAFETY: the addresses are inside a map that a thread is touching, and so live. The pages are
    // lost: an access to any of them raises a signal, unless this is the last resort, or another
    // process has just made the file longer again; and the file's bytes were changed by that.
    unsafe { sys::replace_by_zeroes(run) }
}

#[cfg(all(test, not(mmap_io_loom)))]
mod tests {
    use super::*;

    #[test]
    fn lost_pages_are_merged() {
        let page = sys::page_size() as u64;
        let cut = Lost {
            cut_at: page + 1,
            broken_at: NONE,
        };
        let broken = Lost {
            cut_at: NONE,
            broken_at: page,
        };
        assert!(Lost::NOTHING.is_nothing() && !cut.is_nothing());
        assert_eq!(Lost::NOTHING.or(cut), cut);
        assert_eq!(cut.first_page(), 2 * page);
        assert_eq!(cut.or(broken).first_page(), page);
        assert!(cut.or(broken).is_of_the_file() && !cut.is_of_the_file());
    }

    #[test]
    fn slot_knows_its_own_map_only() {
        let slot = Slot::new();
        assert!(!slot.covers(0));
        slot.fill(0x1_0000, 0x1000, -1, false);
        let inside = [0xffff, 0x1_0000, 0x1_0fff, 0x1_1000].map(|addr| slot.covers(addr));
        assert_eq!(inside, [false, true, true, false]);
        slot.clear();
        assert!(!slot.covers(0x1_0000));
    }
}
