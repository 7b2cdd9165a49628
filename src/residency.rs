//! Checks whether pages are in memory, and reads them in with an error instead of a signal.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{MmapIoError, Result};
use crate::map::{find_mapped, Backing, Map};
use crate::range::{ByteRange, PageRange};
use crate::sys::{self, Advice, CacheHint, FsTraits, Run};

/// The most bytes of one populate call, during which the kernel holds the address space's lock.
const STEP: u64 = 8 << 20;

/// The same for writing, which may allocate a block for each page.
const WRITE_STEP: u64 = 1 << 20;

/// The largest folio, a group of pages that the kernel manages as one: at most this many bytes, and
/// its start is a multiple of this.
const LARGEST_FOLIO: usize = 2 << 20;

/// The most bytes that are probed on the thread that polls: their 1,024 pages take up to 50 us. 64
/// MiB would take up to 800 us, while a job on the pool takes 20 to 40 us.
const PROBE: u64 = 4 << 20;

/// How many times the system is asked for a range at most.
const PREFETCHES: usize = 4;

/// Whether the system may be asked which pages are in memory.
static PROBES: AtomicBool = AtomicBool::new(true);

/// From now on no handle asks the system which pages are in memory.
pub(crate) fn stop_probing() {
    // Relaxed: the caller makes other threads see it before it forbids the calls.
    PROBES.store(false, Ordering::Relaxed);
}

/// Whether the system is asked about the pages of a range of this length.
pub(crate) fn is_asked(range: ByteRange) -> bool {
    range.len() <= PROBE && probes()
}

fn probes() -> bool {
    PROBES.load(Ordering::Relaxed)
}

/// Whether every page of the range is in the page cache, and can be touched. Neither waits nor
/// reads; `false` when in doubt.
///
/// Only `mincore` knows whether a page has been read in, but it reports all pages as resident to a
/// process that neither owns nor may write the file; the process's capabilities at each call decide
/// that. `cachestat` refuses such a process, but also counts pages whose read is not complete. So
/// both are asked. Early kernels with `cachestat` refused no process, so its count matters as well.
///
/// `run` must be the pages of `range`; no byte of them is touched.
pub(crate) fn is_resident(
    run: Run,
    backing: &Backing,
    fs_traits: FsTraits,
    range: ByteRange,
) -> bool {
    if !is_asked(range) {
        return false;
    }
    let Some(file) = backing.file() else {
        return is_cached(run);
    };
    if !fs_traits.is_local {
        return false;
    }
    let pages = range.to_pages(sys::page_size());
    let may_trust = match count_cached(file, fs_traits, pages) {
        Some(Some(cached)) => cached >= pages.len() / sys::page_size() as u64,
        Some(None) => true,
        None => false,
    };
    // After another process has truncated the file in the middle of a large folio, the folio may
    // stay in the cache: its last pages are reported as resident, but touching them raises a
    // signal.
    may_trust
        && is_cached(run)
        && sys::known_len(file).is_ok_and(|file_len| range.end() <= file_len)
}

/// Whether every page of the range is in the page cache, or is being read in. Takes a fraction of the
/// time of [`is_resident`], whose arguments it has, since `mincore` looks each page up that the
/// process has not touched.
pub(crate) fn is_cached_or_read(
    run: Run,
    backing: &Backing,
    fs_traits: FsTraits,
    range: ByteRange,
) -> bool {
    let pages = range.to_pages(sys::page_size());
    let file = backing
        .file()
        .filter(|_| fs_traits.is_local && is_asked(range));
    match file.and_then(|file| count_cached(file, fs_traits, pages)) {
        Some(Some(cached)) => cached >= pages.len() / sys::page_size() as u64,
        _ => is_resident(run, backing, fs_traits, range),
    }
}

/// Returns how many of the pages `cachestat` counts. `Some(None)` if it does not count, and `mincore`
/// may be trusted; `None` if the system tells this process nothing of the file.
fn count_cached(file: &File, fs_traits: FsTraits, pages: PageRange) -> Option<Option<u64>> {
    match sys::cached_pages(file, pages.start(), pages.len()) {
        Ok(Some(count)) if !fs_traits.copies_up => Some(Some(count.cached)),
        Ok(_) => sys::is_owner(file).then_some(None),
        Err(_) => None,
    }
}

/// Whether the system has left pages as dirty as a store to them has made them, so that those which
/// were made writable are so still ([`WritablePages`](crate::writable_pages)). Pages of memory are
/// never cleaned; they have to be there. Neither waits nor reads; `None` if the system does not tell.
///
/// `run` must be the pages; no byte of them is touched.
pub(crate) fn are_dirty(
    run: Run,
    backing: &Backing,
    fs_traits: FsTraits,
    pages: PageRange,
) -> Option<bool> {
    if !probes() {
        return None;
    }
    let file = match backing {
        // Those of the file systems that are coherent are known to be counted, and to be local.
        Backing::File(file) if fs_traits.coherent_writes => file,
        Backing::File(_) | Backing::Private(_) => return None,
        Backing::Memory => return sys::resident(run).ok(),
    };
    let count = sys::cached_pages(file, pages.start(), pages.len()).ok()??;
    let counted = match fs_traits.in_memory {
        true => count.cached,
        false => count.dirty,
    };
    Some(counted >= pages.len() / sys::page_size() as u64)
}

/// Whether every page of the run is in the page cache. No I/O; `false` when in doubt.
fn is_cached(run: Run) -> bool {
    sys::resident(run).unwrap_or(false)
}

/// Whether every page of the run may be in the page cache: `true` if the system may not be asked.
pub(crate) fn may_be_cached(run: Run) -> bool {
    !probes() || is_cached(run)
}

/// Reads the pages of all ranges into memory: the disk is asked for all of them at once, and then each
/// is waited for. Blocks.
///
/// Without the first step, the system reads up to 8 MiB around a single page, and reads pages that
/// are far from each other one after the other; after `MADV_RANDOM` neighbours as well.
///
/// # Errors
///
/// Those of [`populate_read`]; the pages of some ranges may be in memory then.
pub(crate) fn read_in(map: &Map, backing: &Backing, ranges: &[ByteRange]) -> Result<()> {
    let page_size = sys::page_size();
    let pages = ranges.iter().map(|range| range.to_pages(page_size));
    let pages = PageRange::merged(pages);
    pages.into_iter().for_each(|run| ask_for(map, backing, run));
    ranges
        .iter()
        .try_for_each(|range| populate_read(map, backing, *range))
}

/// Reads the pages of a range into memory, through the descriptor first. Blocks.
///
/// Only for a descriptor that is read in order does the system read ahead in ever larger steps and
/// folios: to ask for the pages, or to populate them, takes up to twice the time.
///
/// # Errors
///
/// Those of [`populate_read`].
pub(crate) fn read_in_order(map: &Map, backing: &Backing, range: ByteRange) -> Result<()> {
    if let Some(file) = backing.file() {
        // Errors are found again.
        let _ = read_one_byte_a_page(file, range.to_pages(sys::page_size()));
    }
    populate_read(map, backing, range)
}

/// Asks the disk for pages without waiting for them. They are inside the file.
pub(crate) fn ask_for(map: &Map, backing: &Backing, pages: PageRange) {
    if backing.file().is_some() {
        // SAFETY: the pages are inside the live map, as `Map::run` checks, and the map is a shared
        // one of a file; the advice changes no byte.
        // A hint: who needs the pages reads them in afterwards.
        let _ = unsafe { sys::advise(map.run(pages), Advice::WillNeed) };
    }
}

/// Starts reading the pages of the range, and does not wait for them. The system drops a part of the
/// request while memory is short; as long as it tells, it is asked for that part again, a few times.
///
/// # Errors
///
/// That of the system.
pub(crate) fn prefetch(file: &File, fs_traits: FsTraits, range: ByteRange) -> io::Result<()> {
    let pages = range.to_pages(sys::page_size());
    let wanted = pages.len() / sys::page_size() as u64;
    for _ in 0..PREFETCHES {
        sys::cache_hint(file, range.start(), range.len(), CacheHint::WillNeed)?;
        let counted = probes().then(|| count_cached(file, fs_traits, pages));
        if counted
            .flatten()
            .flatten()
            .map_or(true, |cached| cached >= wanted)
        {
            break;
        }
    }
    Ok(())
}

/// Returns those of the pages that are not in the page cache; all of them, where the system does
/// not tell.
pub(crate) fn absent(
    map: &Map,
    backing: &Backing,
    fs_traits: FsTraits,
    pages: PageRange,
) -> Vec<PageRange> {
    let page_size = sys::page_size() as u64;
    let Some(file) = backing.file() else {
        return Vec::new();
    };
    let counted = probes().then(|| count_cached(file, fs_traits, pages));
    match counted.flatten() {
        None | Some(Some(0)) => return vec![pages],
        Some(Some(cached)) if cached >= pages.len() / page_size => return Vec::new(),
        Some(_) => {}
    }
    let absent = |page: &PageRange| !is_cached(map.run(*page));
    PageRange::merged(pages.steps(page_size).filter(absent))
}

/// Reads the pages of the range into memory. Blocks.
///
/// # Errors
///
/// `Truncated` if the file has become shorter, or the error of the read.
pub(crate) fn populate_read(map: &Map, backing: &Backing, range: ByteRange) -> Result<()> {
    for step in range.to_pages(sys::page_size()).steps(STEP) {
        let run = map.run(step);
        // Where the system cannot populate, a read past the end of the file is no error.
        check_length(backing.file(), &[range])?;
        // SAFETY: `Map::run` has checked that the pages are inside the map, which is borrowed and
        // so live.
        if let Err(error) = unsafe { read_pages(run, backing, step) } {
            check_length(backing.file(), &[range])?;
            let reason = backing.file().and_then(|file| read_error(file, step));
            if let Some(reason) = reason {
                return Err(MmapIoError::from(reason));
            }
            // The pages can be read by other means, so the cause may have been temporary.
            // SAFETY: as above.
            if unsafe { read_pages(run, backing, step) }.is_err() {
                return Err(MmapIoError::from(unreadable(error)));
            }
        }
    }
    // If the file now ends inside a page, that page can be touched, though bytes of it are lost.
    check_length(backing.file(), &[range])
}

/// Reads the pages of a run in, which are `pages` of `backing`. Blocks.
///
/// Where the system cannot populate, it reads a byte of each page through the descriptor, and
/// touches none: a shrink waits for leases, and this caller may have none; a page that was cut off
/// a moment ago would raise a signal. A byte past the end of the file is no error, and the caller
/// has to check the length. Where the descriptor reads no single bytes either, it asks for the pages
/// without waiting for them.
///
/// # Safety
///
/// The run lies in one live, readable mapping.
unsafe fn read_pages(run: Run, backing: &Backing, pages: PageRange) -> io::Result<()> {
    let Some(file) = backing.file() else {
        // SAFETY: the run is mapped, by this function's contract; no process can cut memory.
        return unsafe { sys::populate_read(run) };
    };
    // SAFETY: the run is mapped, by this function's contract.
    if unsafe { sys::try_populate_read(run) }? || read_one_byte_a_page(file, pages)? {
        return Ok(());
    }
    // SAFETY: as above; the advice changes no byte. A refused hint leaves the pages where they are.
    let _ = unsafe { sys::advise(run, Advice::WillNeed) };
    Ok(())
}

/// Makes the pages of runs writable, which are `steps` of `backing`; returns whether they are.
/// Where the system cannot populate, they are read in as by [`read_pages`]. Blocks.
///
/// # Errors
///
/// The index of the run that failed, and why.
///
/// # Safety
///
/// Every run lies in one live, writable mapping.
unsafe fn write_pages(
    runs: &[Run],
    backing: &Backing,
    steps: &[PageRange],
) -> Result<bool, (usize, io::Error)> {
    // SAFETY: the runs are mapped, by this function's contract.
    let done = unsafe { sys::try_populate_write(runs) }?;
    for (index, run) in runs.iter().enumerate().skip(done) {
        // SAFETY: as above.
        let read = unsafe { read_pages(*run, backing, steps[index]) };
        read.map_err(|error| (index, error))?;
    }
    Ok(done == runs.len())
}

/// Whether stores to the pages do not fault, as far as the system tells; `None` if it does not. If
/// it has cleaned one of them, the pages around it are forgotten.
pub(crate) fn stay_writable(
    map: &Map,
    backing: &Backing,
    fs_traits: FsTraits,
    pages: PageRange,
) -> Option<bool> {
    let are_dirty = are_dirty(map.run(pages), backing, fs_traits, pages)?;
    if !are_dirty {
        map.writable().forget(pages.into());
    }
    Some(are_dirty && map.writable().contain(pages))
}

/// Makes the pages of all ranges writable: allocates the blocks of holes, or copies the pages of a
/// private map, and changes no byte. Blocks.
///
/// # Errors
///
/// See [`Unpopulated`]. The pages of some ranges may have become writable.
pub(crate) fn populate_write(
    map: &Map,
    backing: &Backing,
    fs_traits: FsTraits,
    ranges: impl Iterator<Item = ByteRange> + Clone,
) -> Result<(), Unpopulated> {
    let page_size = sys::page_size();
    let pages = ranges.clone().map(|range| range.to_pages(page_size));
    let mut pages = PageRange::merged(pages);
    let mut is_told = true;
    pages.retain(|pages| {
        let stay = stay_writable(map, backing, fs_traits, *pages);
        is_told &= stay.is_some();
        stay != Some(true)
    });
    let steps = pages.iter().flat_map(|pages| pages.steps(WRITE_STEP));
    let steps: Vec<PageRange> = steps.collect();
    let runs: Vec<_> = steps.iter().map(|step| map.run(*step)).collect();
    let began = is_told.then(|| map.writable().begin(&pages));
    // SAFETY: `Map::run` has checked that the pages are inside the map, which is borrowed and so
    // live; the callers pass the map of a handle that may write.
    let are_writable = unsafe { write_pages(&runs, backing, &steps) };
    let ranges = || ranges.clone().collect::<Vec<ByteRange>>();
    let are_writable = are_writable.map_err(|(index, error)| {
        let ranges = ranges();
        if let Err(truncated) = check_length(backing.file(), &ranges) {
            return Unpopulated::Explained(truncated);
        }
        let step = steps[index];
        // Populating reports only `EFAULT`; reading and allocating the pages tells the cause.
        let file = match backing {
            Backing::File(file) => file,
            // The copies of the pages take memory, and no blocks of the file.
            Backing::Private(file) => {
                let read = read_one_byte_a_page(file, step).err();
                let cause = read.unwrap_or_else(|| unreadable(error));
                return Unpopulated::Explained(MmapIoError::from(cause));
            }
            Backing::Memory => return Unpopulated::Explained(MmapIoError::from(error)),
        };
        match read_one_byte_a_page(file, step).and_then(|_| allocate(file, step)) {
            Err(reason) => Unpopulated::Explained(MmapIoError::from(reason)),
            Ok(()) => Unpopulated::Unexplained(store_error(file, step)),
        }
    })?;
    if !are_writable {
        return check_length(backing.file(), &ranges()).map_err(Unpopulated::Explained);
    }
    if let Some(began) = began {
        let writable = map.writable();
        pages.iter().for_each(|pages| writable.add(*pages, began));
    }
    Ok(())
}

/// Makes the pages of a range writable, like [`populate_write`], but first checks that the disk has
/// room for the whole range, so that a failure allocates nothing. Blocks.
///
/// # Errors
///
/// `Truncated` if the file has become shorter, or the error of reading or allocating the pages.
pub(crate) fn make_writable(
    map: &Map,
    backing: &Backing,
    fs_traits: FsTraits,
    range: ByteRange,
) -> Result<()> {
    if let Some(file) = backing.stored_file() {
        sys::check_room(file, range.start(), range.len())?;
    }
    let populate = || populate_write(map, backing, fs_traits, std::iter::once(range));
    match populate() {
        // Finding out the cause has allocated the blocks that were missing.
        Err(Unpopulated::Unexplained(_)) => Ok(populate()?),
        populated => Ok(populated?),
    }
}

/// Why pages could not be made writable.
#[derive(Debug)]
pub(crate) enum Unpopulated {
    /// `Truncated` if the file has become shorter, or the error of reading or allocating the pages.
    Explained(MmapIoError),
    /// The pages can be read, and have their blocks, so a write through the descriptor may work.
    /// The error is for a caller that cannot try that.
    Unexplained(MmapIoError),
}

impl From<Unpopulated> for MmapIoError {
    fn from(unpopulated: Unpopulated) -> Self {
        match unpopulated {
            Unpopulated::Explained(error) | Unpopulated::Unexplained(error) => error,
        }
    }
}

/// Returns why the pages could not be read in, where populating them reports only `EFAULT`.
fn read_error(file: &File, pages: PageRange) -> Option<io::Error> {
    if let Err(error) = read_one_byte_a_page(file, pages) {
        return Some(error);
    }
    // On tmpfs, reading a hole through a map allocates a page, which a full file system refuses.
    allocate(file, pages).err().filter(sys::is_disk_full)
}

/// Replaces `EFAULT`, which would tell the user of a bad address.
fn unreadable(error: io::Error) -> io::Error {
    match sys::is_fault(&error) {
        true => io::Error::other("the pages cannot be read through a mapping"),
        false => error,
    }
}

/// Returns why pages that have their blocks cannot be stored to: a large folio needs the blocks of
/// its other pages as well, and the disk may have no room for those.
fn store_error(file: &File, pages: PageRange) -> MmapIoError {
    let folios = ByteRange::from(pages).to_pages(LARGEST_FOLIO);
    let inside = sys::file_len(file).map(|len| {
        let end = folios.end().min(len);
        ByteRange::between(folios.start().min(end), end).to_pages(sys::page_size())
    });
    let allocated = inside.and_then(|pages| allocate(file, pages));
    let refused = || io::Error::other("the pages cannot be stored to through a mapping");
    MmapIoError::from(allocated.err().unwrap_or_else(refused))
}

/// Reserves the blocks of pages, on platforms where that leaves their bytes unchanged.
fn allocate(file: &File, pages: PageRange) -> io::Result<()> {
    if !sys::ALLOCATE_KEEPS_BYTES || pages.len() == 0 {
        return Ok(());
    }
    match sys::allocate(file, pages.start(), pages.len()) {
        Err(error) if sys::is_refused(&error) => Ok(()),
        allocated => allocated,
    }
}

/// Fails if there is a file, and it is too short for one of the ranges.
///
/// # Errors
///
/// `Truncated`, or `Io` if the system does not tell the length.
pub(crate) fn check_length(file: Option<&File>, ranges: &[ByteRange]) -> Result<()> {
    let Some(file) = file else {
        return Ok(());
    };
    let file_len = sys::file_len(file)?;
    match ranges.iter().find(|range| range.end() > file_len) {
        Some(range) => Err(MmapIoError::Truncated {
            offset: range.start(),
            len: range.len(),
            file_len,
        }),
        None => Ok(()),
    }
}

/// Whether bytes lie in a map of this crate.
pub(crate) fn is_mapped(data: &[u8]) -> bool {
    find_mapped(data).is_some()
}

/// Reads the pages of bytes in, if they lie in a map of this crate. Blocks.
///
/// # Errors
///
/// `Truncated` if their file has become shorter, the error of reading the pages, or `Faulted` if
/// they were lost.
pub(crate) fn read_in_mapped(data: &[u8]) -> Result<()> {
    let Some(place) = find_mapped(data) else {
        return Ok(());
    };
    let pages = place.range.to_pages(sys::page_size());
    // SAFETY: `find_mapped` returns the pages of one map that hold `data`, and the view behind
    // `data` keeps that map live.
    let populated = unsafe { read_pages(place.run, &place.backing, pages) };
    check_length(place.backing.file(), &[place.range])?;
    populated.map_err(unreadable)?;
    place.check_whole()
}

/// Fails with `Faulted` if bytes that lie in a map of this crate were lost before they were used,
/// which is when the caller calls this.
pub(crate) fn check_mapped(data: &[u8]) -> Result<()> {
    find_mapped(data).map_or(Ok(()), |place| place.check_whole())
}

/// Copies bytes, after reading their pages in if they lie in a map of this crate. Blocks.
///
/// # Errors
///
/// Those of [`read_in_mapped`], and of [`room_for_copy`].
pub(crate) fn copy_mapped(data: &[u8]) -> Result<Box<[u8]>> {
    let mut copy = room_for_copy(data.len())?;
    read_in_mapped(data)?;
    copy.extend_from_slice(data);
    check_mapped(data)?;
    Ok(copy.into())
}

/// Returns an empty vector with room for exactly `len` bytes, which may be those of a view of a file
/// that is larger than the memory.
///
/// # Errors
///
/// `Io` with `OutOfMemory`.
pub(crate) fn room_for_copy(len: usize) -> Result<Vec<u8>> {
    let mut copy = Vec::new();
    let reserved = copy.try_reserve_exact(len);
    reserved.map_err(|_| MmapIoError::no_memory(len as u64))?;
    Ok(copy)
}

/// Reads a byte of each page that the file has. Returns `false` if the descriptor reads no single
/// bytes: one for direct I/O (`O_DIRECT`) reads whole blocks, past the page cache.
#[cfg(unix)]
fn read_one_byte_a_page(file: &File, pages: PageRange) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    for page in pages.steps(sys::page_size() as u64) {
        // Unlike `read_at`, this goes on after a signal.
        match file.read_exact_at(&mut [0], page.start()) {
            // The file ends before the page.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(false),
            read => read?,
        }
    }
    Ok(true)
}

#[cfg(not(unix))]
fn read_one_byte_a_page(_file: &File, _pages: PageRange) -> io::Result<bool> {
    Ok(true)
}
