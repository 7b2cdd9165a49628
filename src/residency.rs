//! Whether pages are in memory, and bringing them there with an error instead of a signal.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{MmapIoError, Result};
use crate::map::{find_mapped, Backing, Map};
use crate::range::{ByteRange, PageRange};
use crate::sys::{self, FsTraits, Run};

/// Most bytes that one populate call asks for: it holds the address space's lock meanwhile.
const STEP: u64 = 8 << 20;

/// The same for writing, which may allocate a block for each page.
const WRITE_STEP: u64 = 1 << 20;

/// Pages that the kernel keeps together are at most that many bytes, and begin at a multiple of it.
const LARGEST_FOLIO: usize = 2 << 20;

/// Most bytes that are probed on the thread that polls: 1,024 pages take it up to 50 us. 64 MiB would
/// take up to 800, where a hop takes 20 to 40.
const PROBE: u64 = 4 << 20;

/// Whether the system may be asked what is in memory.
static PROBES: AtomicBool = AtomicBool::new(true);

/// Has the system never be asked again what is in memory, by whatever handle.
pub(crate) fn stop_probing() {
    // Relaxed: the caller has other threads see it before a call would be punished.
    PROBES.store(false, Ordering::Relaxed);
}

/// Whether the system is asked about a range of so many bytes.
pub(crate) fn is_asked(range: ByteRange) -> bool {
    range.len() <= PROBE && probes()
}

fn probes() -> bool {
    PROBES.load(Ordering::Relaxed)
}

/// Whether every page of the range is in the page cache, and can be touched. Neither waits nor reads;
/// "no" when in doubt.
///
/// `mincore` alone knows whether a page has been read in, but calls all pages resident for a process
/// that neither owns nor may write the file, decided at each call by its capabilities. `cachestat`
/// refuses such a process, but counts pages whose read is on its way. So both are asked; and
/// `cachestat` of early kernels refused no process, so its count matters, too.
///
/// `run` are the pages of `range`; no byte of them is touched.
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
    let may_trust = match sys::cached_pages(file, pages.start(), pages.len()) {
        Ok(Some(cached)) if !fs_traits.copies_up => cached >= pages.len() / sys::page_size() as u64,
        Ok(_) => sys::is_owner(file),
        Err(_) => false,
    };
    // A large folio may stay in the cache after another process has truncated the file in its
    // middle; its last pages look resident, and raise a signal.
    may_trust
        && is_cached(run)
        && sys::known_len(file).is_ok_and(|file_len| range.end() <= file_len)
}

/// Whether every page of the run is in the page cache. No I/O; "no" when in doubt.
fn is_cached(run: Run) -> bool {
    sys::resident(run).unwrap_or(false)
}

/// The same; "yes" where the system is not asked.
pub(crate) fn may_be_cached(run: Run) -> bool {
    !probes() || is_cached(run)
}

/// Reads the pages of the range in. Blocks.
///
/// # Errors
///
/// `Truncated` if the file has become shorter, or the error that reading met.
pub(crate) fn populate_read(map: &Map, backing: &Backing, range: ByteRange) -> Result<()> {
    for step in range.to_pages(sys::page_size()).steps(STEP) {
        // SAFETY: the range is inside the file, so its pages are inside the live map.
        if let Err(error) = unsafe { sys::populate_read(map.run(step)) } {
            check_length(backing.file(), &[range])?;
            let reason = backing.file().and_then(|file| why_not_read(file, step));
            if let Some(reason) = reason {
                return Err(MmapIoError::from(reason));
            }
            // Whatever it was, it may be over.
            // SAFETY: as above.
            if unsafe { sys::populate_read(map.run(step)) }.is_err() {
                return Err(MmapIoError::from(unreadable(error)));
            }
        }
    }
    // A page that the file now ends in can be touched, and is lost all the same.
    check_length(backing.file(), &[range])
}

/// Makes the pages of all ranges writable, allocating holes, without changing a byte. Blocks.
///
/// # Errors
///
/// See [`Unpopulated`]; the pages of some ranges may be writable then.
pub(crate) fn populate_write(
    map: &Map,
    backing: &Backing,
    ranges: impl Iterator<Item = ByteRange> + Clone,
) -> Result<(), Unpopulated> {
    let page_size = sys::page_size();
    let pages = ranges.clone().map(|range| range.to_pages(page_size));
    let pages = PageRange::merged(pages).into_iter();
    let steps: Vec<PageRange> = pages.flat_map(|pages| pages.steps(WRITE_STEP)).collect();
    let runs: Vec<_> = steps.iter().map(|step| map.run(*step)).collect();
    // SAFETY: the ranges are inside the file, so their pages are inside the live, writable map.
    unsafe { sys::populate_write(&runs) }.map_err(|(index, error)| {
        let ranges: Vec<ByteRange> = ranges.collect();
        if let Err(truncated) = check_length(backing.file(), &ranges) {
            return Unpopulated::Explained(truncated);
        }
        let Some(file) = backing.file() else {
            return Unpopulated::Explained(MmapIoError::from(error));
        };
        // Populating says only `EFAULT`; asking in other ways says why.
        let step = steps[index];
        match read_one_byte_a_page(file, step).and_then(|()| allocate(file, step)) {
            Err(reason) => Unpopulated::Explained(MmapIoError::from(reason)),
            Ok(()) => Unpopulated::Unexplained(why_not_stored(file, step)),
        }
    })
}

/// Makes the pages of a range writable, as [`populate_write`] does; a range that the disk has no room
/// for is refused before any of it is allocated. Blocks.
///
/// # Errors
///
/// `Truncated` if the file has become shorter, or the error that reading or allocating met.
pub(crate) fn make_writable(map: &Map, backing: &Backing, range: ByteRange) -> Result<()> {
    if let Some(file) = backing.file() {
        sys::check_room(file, range.start(), range.len())?;
    }
    let populate = || populate_write(map, backing, std::iter::once(range));
    match populate() {
        // The blocks that were missing have been allocated since.
        Err(Unpopulated::Unexplained(_)) => Ok(populate()?),
        populated => Ok(populated?),
    }
}

/// Why pages could not be made writable.
#[derive(Debug)]
pub(crate) enum Unpopulated {
    /// `Truncated` if the file has become shorter, or what reading or allocating the pages met.
    Explained(MmapIoError),
    /// The pages can be read, and have their blocks: a write through the descriptor may work. The
    /// error is for where it cannot be tried.
    Unexplained(MmapIoError),
}

impl From<Unpopulated> for MmapIoError {
    fn from(unpopulated: Unpopulated) -> Self {
        match unpopulated {
            Unpopulated::Explained(error) | Unpopulated::Unexplained(error) => error,
        }
    }
}

/// What reading the pages in met: populating says only `EFAULT`.
fn why_not_read(file: &File, pages: PageRange) -> Option<io::Error> {
    if let Err(error) = read_one_byte_a_page(file, pages) {
        return Some(error);
    }
    // A hole takes a page when it is read through a map, where the file is memory (tmpfs).
    allocate(file, pages).err().filter(sys::is_disk_full)
}

/// What is said instead of `EFAULT`, which names an address of ours.
fn unreadable(error: io::Error) -> io::Error {
    match sys::is_fault(&error) {
        true => io::Error::other("the pages cannot be read through a mapping"),
        false => error,
    }
}

/// Why pages that have their blocks cannot be stored to: a large folio wants the blocks of its other
/// pages as well, and there may be no room for those.
fn why_not_stored(file: &File, pages: PageRange) -> MmapIoError {
    let folios = ByteRange::from(pages).to_pages(LARGEST_FOLIO);
    let inside = sys::file_len(file).map(|len| {
        let end = folios.end().min(len);
        ByteRange::between(folios.start().min(end), end).to_pages(sys::page_size())
    });
    let allocated = inside.and_then(|pages| allocate(file, pages));
    let refused = || io::Error::other("the pages cannot be stored to through a mapping");
    MmapIoError::from(allocated.err().unwrap_or_else(refused))
}

/// Reserves the blocks of pages that may hold bytes, where that can be done and leaves them alone.
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
/// `Truncated`, or `Io` if the length cannot be had.
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

/// Whether bytes lie in a map of ours.
pub(crate) fn is_mapped(data: &[u8]) -> bool {
    find_mapped(data).is_some()
}

/// An owned copy of bytes that lie in a map of ours. Blocks.
///
/// # Errors
///
/// `Truncated` if their file has become shorter, or what reading the pages in met.
pub(crate) fn copy_mapped(data: &[u8]) -> Result<Box<[u8]>> {
    if let Some(place) = find_mapped(data) {
        // SAFETY: the pages hold `data`, which lives, and with it its map.
        let populated = unsafe { sys::populate_read(place.run) };
        check_length(place.backing.file(), &[place.range])?;
        populated.map_err(unreadable)?;
    }
    Ok(data.into())
}

#[cfg(unix)]
fn read_one_byte_a_page(file: &File, pages: PageRange) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut byte = [0];
    for page in pages.steps(sys::page_size() as u64) {
        file.read_at(&mut byte, page.start())?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn read_one_byte_a_page(_file: &File, _pages: PageRange) -> io::Result<()> {
    Ok(())
}
