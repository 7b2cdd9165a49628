//! Asks the operating system which pages are cached or mapped, how many threads exist, and how
//! often one waited for the disk; evicts pages, and raises limits. Linux only; elsewhere the figures
//! that need it report that.

pub(crate) use imp::{
    advise_random, drop_cached, is_mapped, major_faults, raise_descriptors, sync_all, threads,
};

#[cfg(target_os = "linux")]
mod imp {
    use std::fs::{self, File};
    use std::io;
    use std::mem::MaybeUninit;
    use std::os::fd::AsRawFd;
    use std::path::Path;

    use crate::fixture::map_read;
    use crate::harness::Result;

    /// Writes the file back and takes all of it out of the page cache, or fails.
    ///
    /// Mapped pages stay in the cache, so no mapping of the file may exist.
    pub(crate) fn drop_cached(path: &Path) -> Result<()> {
        let file = File::open(path)?;
        file.sync_all()?;
        // SAFETY: no memory is passed, and the descriptor is open.
        let error =
            unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error).into());
        }
        match cached_pages(path)? {
            0 => Ok(()),
            pages => Err(format!("{pages} pages of {} stay cached", path.display()).into()),
        }
    }

    /// Announces that reads through the descriptor are at random places: the kernel then reads what
    /// is asked for, and no more.
    pub(crate) fn advise_random(file: &File) -> Result<()> {
        // SAFETY: no memory is passed, and the descriptor is open.
        match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error).into()),
        }
    }

    /// How often an access to memory made the calling thread wait for the disk.
    pub(crate) fn major_faults() -> Result<u64> {
        let mut usage = MaybeUninit::<libc::rusage>::uninit();
        // SAFETY: `usage` has room for what is written to it.
        if unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error().into());
        }
        // SAFETY: `getrusage` succeeded, so it filled the structure in.
        Ok(unsafe { usage.assume_init() }.ru_majflt as u64)
    }

    fn cached_pages(path: &Path) -> Result<usize> {
        let map = map_read(path)?;
        let mut pages = vec![0u8; map.len().div_ceil(4_096)];
        // SAFETY: the range is the mapping's own, and the vector has a byte for each page of it.
        let code = unsafe {
            libc::mincore(
                map.as_ptr().cast_mut().cast(),
                map.len(),
                pages.as_mut_ptr(),
            )
        };
        if code != 0 {
            return Err(io::Error::last_os_error().into());
        }
        Ok(pages.iter().filter(|page| **page & 1 == 1).count())
    }

    /// Whether this process has the file mapped.
    pub(crate) fn is_mapped(path: &Path) -> Result<bool> {
        let path = path.to_str().ok_or("the path is not UTF-8")?;
        let maps = fs::read_to_string("/proc/self/maps")?;
        Ok(maps.lines().any(|line| line.ends_with(path)))
    }

    /// Writes back everything that is dirty on the file system of `dir`.
    pub(crate) fn sync_all(dir: &Path) -> Result<()> {
        let dir = File::open(dir)?;
        // SAFETY: no memory is passed, and the descriptor is open.
        match unsafe { libc::syncfs(dir.as_raw_fd()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error().into()),
        }
    }

    /// Number of threads of this process.
    pub(crate) fn threads() -> Result<u64> {
        Ok(fs::read_dir("/proc/self/task")?.count() as u64)
    }

    /// Raises the limit of open descriptors to at least `count`, if the process may.
    pub(crate) fn raise_descriptors(count: u64) -> Result<()> {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: `limit` has room for what is written to it.
        if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
            return Err(io::Error::last_os_error().into());
        }
        if limit.rlim_cur >= count {
            return Ok(());
        }
        limit.rlim_cur = count;
        limit.rlim_max = limit.rlim_max.max(count);
        // SAFETY: `limit` is read, and nothing else.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
            let error = io::Error::last_os_error();
            return Err(format!("no {count} descriptors for this process: {error}").into());
        }
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use std::fs::File;
    use std::path::Path;

    use crate::harness::Result;

    const ELSEWHERE: &str = "this figure needs Linux";

    pub(crate) fn drop_cached(_path: &Path) -> Result<()> {
        Err(ELSEWHERE.into())
    }

    pub(crate) fn advise_random(_file: &File) -> Result<()> {
        Err(ELSEWHERE.into())
    }

    pub(crate) fn major_faults() -> Result<u64> {
        Err(ELSEWHERE.into())
    }

    pub(crate) fn is_mapped(_path: &Path) -> Result<bool> {
        Err(ELSEWHERE.into())
    }

    pub(crate) fn sync_all(_dir: &Path) -> Result<()> {
        Err(ELSEWHERE.into())
    }

    pub(crate) fn threads() -> Result<u64> {
        Err(ELSEWHERE.into())
    }

    pub(crate) fn raise_descriptors(_count: u64) -> Result<()> {
        Err(ELSEWHERE.into())
    }
}
