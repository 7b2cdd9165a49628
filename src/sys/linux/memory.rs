//! Calls about the pages of mappings: which are resident, and reading or writing them back.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::io::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys::unix::{madvise, msync, page_size};
use crate::sys::{Advice, CachedPages, Run};

/// The calling thread as a process file descriptor (`pidfd_open(2)`), since Linux 6.15.
const PIDFD_SELF: libc::c_int = -10_000;

/// The most runs that one call of `process_madvise(2)` accepts (`IOV_MAX`).
const RUNS_A_CALL: usize = 1024;

/// Most bytes of one request to read pages ahead. The kernel cuts a longer one to what the device
/// reads ahead at most, and says that it was done; 128 KiB is the least of the usual limits
/// (`/sys/block/*/queue/read_ahead_kb`).
pub(super) const READ_AHEAD: u64 = 128 << 10;

/// Most bytes of one call that goes through the pages, during which the kernel holds the address
/// space's lock: a fault of another thread may have to wait for it.
const PAGES_STEP: usize = 8 << 20;

/// Faults in the pages of a run for reading ([`madvise(2)`], `MADV_POPULATE_READ`, Linux 5.14).
/// Returns `false` if the kernel does not have the call, or a filter refuses it.
///
/// # Errors
///
/// `EFAULT` if a load would raise `SIGBUS`: past the end of the file, or after a failed read.
///
/// # Safety
///
/// The run lies in one live, readable mapping.
///
/// [`madvise(2)`]: https://man7.org/linux/man-pages/man2/madvise.2.html
pub(crate) unsafe fn try_populate_read(run: Run) -> io::Result<bool> {
    loop {
        // SAFETY: the run lies in one live mapping, by this function's contract; populating
        // discards nothing.
        match unsafe { madvise(run.addr, run.len, libc::MADV_POPULATE_READ) } {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if crate::sys::is_refused(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

/// Makes the pages of every run writable: allocates the blocks of holes, and changes no byte
/// ([`madvise(2)`], `MADV_POPULATE_WRITE`, Linux 5.14). Returns how many of the runs are writable:
/// fewer than all if the kernel does not have the call, or a filter refuses it.
///
/// If the kernel accepts it (Linux 6.15), one [`process_madvise(2)`] on this process takes all
/// runs: a batch of 1,024 scattered pages then costs 245 ns for each page, instead of 640 ns with
/// one call for each.
///
/// # Errors
///
/// The index of the run that failed, and why: `EFAULT` if a store would raise `SIGBUS` (no space
/// for a hole, past the end of the file, a failed read).
///
/// # Safety
///
/// Every run lies in one live, writable mapping.
///
/// [`madvise(2)`]: https://man7.org/linux/man-pages/man2/madvise.2.html
/// [`process_madvise(2)`]: https://man7.org/linux/man-pages/man2/process_madvise.2.html
pub(crate) unsafe fn try_populate_write(runs: &[Run]) -> Result<usize, (usize, io::Error)> {
    let mut done = 0;
    if runs.len() > 1 {
        // SAFETY: the contract of `populate_write_vectored` is that of this function.
        done = unsafe { populate_write_vectored(runs) };
    }
    while done < runs.len() {
        let run = runs[done];
        // SAFETY: the run lies in one live mapping, by this function's contract; populating
        // discards nothing.
        match unsafe { madvise(run.addr, run.len, libc::MADV_POPULATE_WRITE) } {
            Ok(()) => done += 1,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if crate::sys::is_refused(&error) => break,
            Err(error) => return Err((done, error)),
        }
    }
    Ok(done)
}

/// Makes the pages of the first runs writable by `process_madvise(2)`, and returns how many runs
/// are done. The caller handles the remaining runs one by one, and finds the error there.
///
/// # Safety
///
/// The same as for [`try_populate_write`].
unsafe fn populate_write_vectored(runs: &[Run]) -> usize {
    static REFUSED: AtomicBool = AtomicBool::new(false);
    // Relaxed: a stale answer costs one refused call.
    if REFUSED.load(Ordering::Relaxed) {
        return 0;
    }
    let mut done = 0;
    for batch in runs.chunks(RUNS_A_CALL) {
        // SAFETY: `batch` is live for the call, and `Run` has the layout of `iovec` (pointer,
        // length; `repr(C)`); every run lies in a live mapping, by this function's contract.
        let populated = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                PIDFD_SELF,
                batch.as_ptr().cast::<libc::iovec>(),
                batch.len(),
                libc::MADV_POPULATE_WRITE,
                0,
            )
        };
        let mut populated = match usize::try_from(populated) {
            Ok(bytes) => bytes,
            Err(_) => {
                // Either the kernel does not support the call (ENOSYS, EBADF, EINVAL), or it is
                // refused (EPERM): then it is not made again. Or the first run of the batch failed
                // (EFAULT, ENOMEM, EINTR): then the next batch may succeed.
                let error = io::Error::last_os_error().raw_os_error();
                if !matches!(error, Some(libc::EFAULT | libc::ENOMEM | libc::EINTR)) {
                    REFUSED.store(true, Ordering::Relaxed);
                }
                return done;
            }
        };
        for run in batch {
            if populated < run.len {
                return done;
            }
            populated -= run.len;
            done += 1;
        }
    }
    done
}

/// Whether every page of the run is in the page cache ([`mincore(2)`]). No I/O; about 0.6 us for
/// 64 KiB. The run is not accessed, and may be unmapped at any time, which returns an error.
///
/// [`mincore(2)`]: https://man7.org/linux/man-pages/man2/mincore.2.html
pub(crate) fn resident(run: Run) -> io::Result<bool> {
    const PAGES_A_CALL: usize = 1024;
    let page = page_size();
    let mut present = [0_u8; PAGES_A_CALL];
    let mut at = 0;
    while at < run.len {
        let len = (run.len - at).min(PAGES_A_CALL * page);
        let addr = run.addr.wrapping_add(at);
        // SAFETY: `present` has a byte for each page of `len`; the kernel accesses no byte of the
        // run.
        if unsafe { libc::mincore(addr.cast(), len, present.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let pages = len.div_ceil(page);
        if present[..pages].iter().any(|byte| byte & 1 == 0) {
            return Ok(false);
        }
        at += len;
    }
    Ok(true)
}

/// Returns how many pages of a file range are in the page cache, pages included whose read is not
/// complete, and how many of them are dirty ([`cachestat(2)`], Linux 6.5; 0.3 us). `None` if the kernel does not have the call.
///
/// # Errors
///
/// `EPERM` if the kernel hides the cache of other users' files from this process; in that case
/// [`resident`] returns `true` for every page.
///
/// [`cachestat(2)`]: https://www.kernel.org/doc/html/latest/mm/cachestat.html
pub(crate) fn cached_pages(file: &File, offset: u64, len: u64) -> io::Result<Option<CachedPages>> {
    const SYS_CACHESTAT: libc::c_long = 451;
    static IS_MISSING: AtomicBool = AtomicBool::new(false);
    // Relaxed: a stale answer costs one refused call.
    if IS_MISSING.load(Ordering::Relaxed) {
        return Ok(None);
    }
    // `struct cachestat` from `linux/mman.h`; the numbers of cached and of dirty pages come first.
    let mut counts = [0_u64; 5];
    let range = [offset, len];
    // SAFETY: both arrays are live for the call and have the sizes of the kernel's structures, and
    // `file` keeps the descriptor open.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            range.as_ptr(),
            counts.as_mut_ptr(),
            0,
        )
    };
    if result == 0 {
        let [cached, dirty, ..] = counts;
        return Ok(Some(CachedPages { cached, dirty }));
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENOSYS) {
        IS_MISSING.store(true, Ordering::Relaxed);
        return Ok(None);
    }
    Err(error)
}

/// Whether huge pages hold a part of a run ([`proc_pid_smaps(5)`]). Blocks: the kernel walks
/// through the pages of every mapping of the process up to that one. The run is not accessed.
///
/// # Errors
///
/// `/proc` is not mounted.
///
/// [`proc_pid_smaps(5)`]: https://man7.org/linux/man-pages/man5/proc_pid_smaps.5.html
pub(crate) fn has_huge_pages(run: Run) -> io::Result<Option<bool>> {
    let start = run.addr as u64;
    let end = start + run.len as u64;
    let smaps = BufReader::new(File::open("/proc/self/smaps")?);
    has_huge_pages_in(smaps, start, end).map(Some)
}

/// Whether huge pages hold a part of the addresses `start..end`, according to a text. The text has
/// a line for each mapping, `from-to permissions ..`, in the order of the addresses, followed by
/// lines of the form `Name: kilobytes kB`.
fn has_huge_pages_in(mut smaps: impl BufRead, start: u64, end: u64) -> io::Result<bool> {
    let address = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut is_inside = false;
    let mut line = Vec::new();
    // Not read as UTF-8: the text contains paths.
    while smaps.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        let mut words = text.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        let mapping = first.split_once('-');
        let mapping = mapping.and_then(|(from, to)| address(from).zip(address(to)));
        if let Some((from, to)) = mapping {
            if from >= end {
                break;
            }
            is_inside = to > start;
        } else if is_inside {
            let bytes = words.next().and_then(|word| word.parse().ok());
            let bytes = bytes.map_or(0, |kilobytes: u64| kilobytes << 10);
            let is_huge = match first {
                "AnonHugePages:" | "ShmemPmdMapped:" | "FilePmdMapped:" => bytes > 0,
                "KernelPageSize:" => bytes > page_size() as u64,
                _ => false,
            };
            if is_huge {
                return Ok(true);
            }
        }
        line.clear();
    }
    Ok(false)
}

/// Makes a range of a shared mapping durable, and flushes the drive's cache: `msync` with `MS_SYNC`
/// calls the file system's own `fdatasync` for the range.
///
/// # Safety
///
/// The run lies in one live shared mapping of `file`.
pub(crate) unsafe fn sync_range(_file: &File, run: Run) -> io::Result<()> {
    // SAFETY: the run lies in one live mapping, by this function's contract, and begins at a page
    // boundary, as every `Run` does.
    unsafe { msync(run.addr, run.len) }
}

/// Gives advice about a range ([`madvise(2)`]). A hint that the kernel does not know is ignored.
///
/// # Safety
///
/// The run lies in one live mapping. That is a shared mapping of a file, whose discarded pages come
/// back from the file; or the advice is none that discards pages.
///
/// [`madvise(2)`]: https://man7.org/linux/man-pages/man2/madvise.2.html
#[cfg_attr(not(feature = "advise"), allow(dead_code))]
pub(crate) unsafe fn advise(run: Run, advice: Advice) -> io::Result<()> {
    let (code, is_hint) = match advice {
        Advice::Normal => (libc::MADV_NORMAL, false),
        Advice::Random => (libc::MADV_RANDOM, false),
        Advice::Sequential => (libc::MADV_SEQUENTIAL, false),
        Advice::WillNeed => (libc::MADV_WILLNEED, false),
        Advice::DontNeed => (libc::MADV_DONTNEED, false),
        Advice::Cold => (libc::MADV_COLD, true),
        Advice::PageOut => (libc::MADV_PAGEOUT, true),
        Advice::HugePage => (libc::MADV_HUGEPAGE, true),
        Advice::NoHugePage => (libc::MADV_NOHUGEPAGE, true),
    };
    let piece = match advice {
        Advice::WillNeed => READ_AHEAD as usize,
        Advice::DontNeed | Advice::Cold | Advice::PageOut => PAGES_STEP,
        Advice::Normal
        | Advice::Random
        | Advice::Sequential
        | Advice::HugePage
        | Advice::NoHugePage => run.len.max(1),
    };
    for at in (0..run.len).step_by(piece) {
        let (addr, len) = (run.addr.wrapping_add(at), piece.min(run.len - at));
        // SAFETY: the run lies in one live mapping, by this function's contract, and a page that is
        // discarded is read from the file again.
        match unsafe { madvise(addr, len, code) } {
            Err(error) if is_hint && error.raw_os_error() == Some(libc::EINVAL) => {}
            result => result?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::has_huge_pages_in;

    #[test]
    fn huge_pages_are_found_in_smaps() {
        let smaps = b"\
00400000-00600000 r-xp 00000000 08:02 17 /a/na-me \xff
Size:               2048 kB
KernelPageSize:        4 kB
AnonHugePages:         0 kB
FilePmdMapped:         0 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0000800000 rw-p 00000000 00:00 0
KernelPageSize:        4 kB
AnonHugePages:      4096 kB
VmFlags: rd wr
7f0000800000-7f0000a00000 rw-s 00000000 00:0f 3 /dev/hugepages/x
KernelPageSize:     2048 kB
7f0000a00000-7f0000c00000 rw-s 00000000 00:10 4 /dev/shm/x
KernelPageSize:        4 kB
ShmemPmdMapped:     2048 kB
";
        for (start, end, expected) in [
            (0x0040_0000, 0x0060_0000, false),
            (0x0000_0000, 0x0040_0000, false),
            (0x7f00_0000_0000, 0x7f00_0010_0000, true),
            (0x7f00_0080_0000, 0x7f00_00a0_0000, true),
            (0x7f00_00a0_0000, 0x7f00_00a0_1000, true),
            (0x7f00_00c0_0000, 0x7f00_00d0_0000, false),
        ] {
            let found = has_huge_pages_in(&smaps[..], start, end).unwrap();
            assert_eq!(found, expected, "{start:x}-{end:x}");
        }
    }
}
