//! The page cache: taking files out of it, and reading them into it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::Outcome;

/// Takes files out of memory. Mapped pages stay, so no mapping of the files may exist; one that ends
/// within a moment is waited for: a pool may still have to do that.
pub(crate) fn empty(paths: &[PathBuf]) -> Outcome {
    let patience = Instant::now() + Duration::from_secs(10);
    for path in paths {
        while let Some(problem) = problem(path)? {
            if Instant::now() > patience {
                return Err(problem.into());
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

/// Reads files into memory.
pub(crate) fn fill(paths: &[PathBuf]) -> Outcome {
    for path in paths {
        io::copy(&mut File::open(path)?, &mut io::sink())?;
    }
    Ok(())
}

/// Takes a file out of memory, and tells what keeps it there, if anything does.
#[cfg(target_os = "linux")]
pub(crate) fn problem(path: &Path) -> Outcome<Option<String>> {
    evict(&File::open(path)?)?;
    let left = cached_pages(path)?;
    Ok((left > 0).then(|| {
        format!("{left} pages of a file stay in memory; `--dir` may name a directory on a disk")
    }))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn problem(_path: &Path) -> Outcome<Option<String>> {
    Ok(Some(
        "this system has no call that takes a file out of memory".into(),
    ))
}

/// See [`posix_fadvise(2)`](https://man7.org/linux/man-pages/man2/posix_fadvise.2.html).
#[cfg(target_os = "linux")]
fn evict(file: &File) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    // SAFETY: the call takes no pointer, and `file` keeps the descriptor open.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Returns how many pages of a file are in memory. See
/// [`mincore(2)`](https://man7.org/linux/man-pages/man2/mincore.2.html).
#[cfg(target_os = "linux")]
fn cached_pages(path: &Path) -> io::Result<usize> {
    // SAFETY: nothing is read through the mapping.
    let map = unsafe { memmap2::Mmap::map(&File::open(path)?) }?;
    let mut pages = vec![0_u8; map.len().div_ceil(mmap_io::utils::page_size())];
    let addr = map.as_ptr().cast_mut().cast();
    // SAFETY: the range is that of the live mapping, and the vector has a byte for each page of it.
    match unsafe { libc::mincore(addr, map.len(), pages.as_mut_ptr()) } {
        0 => Ok(pages.iter().filter(|page| **page & 1 == 1).count()),
        _ => Err(io::Error::last_os_error()),
    }
}
