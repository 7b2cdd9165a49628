//! The page cache: taking files out of it, and reading them into it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::Outcome;

/// Takes files out of memory. No mapping of them may exist, since mapped pages stay.
pub(crate) fn empty(paths: &[PathBuf]) -> Outcome {
    for path in paths {
        evict(path)?;
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

/// Why files in the directory of this file cannot be taken out of memory, if they cannot.
#[cfg(target_os = "linux")]
pub(crate) fn problem(path: &Path) -> Outcome<Option<String>> {
    evict(path)?;
    // SAFETY: nothing is read through the mapping.
    let map = unsafe { memmap2::Mmap::map(&File::open(path)?) }?;
    let mut pages = vec![0_u8; map.len().div_ceil(mmap_io::utils::page_size())];
    let addr = map.as_ptr().cast_mut().cast();
    // SAFETY: the range is that of the live mapping, and the vector has a byte for each page of it.
    if unsafe { libc::mincore(addr, map.len(), pages.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    let left = pages.iter().filter(|page| **page & 1 == 1).count();
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
fn evict(path: &Path) -> Outcome {
    use std::os::fd::AsRawFd;

    let file = File::open(path)?;
    // SAFETY: the call takes no pointer, and `file` keeps the descriptor open.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error).into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn evict(_path: &Path) -> Outcome {
    Ok(())
}
