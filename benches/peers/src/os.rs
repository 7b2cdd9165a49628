//! Asks the operating system which pages are cached or mapped, how much memory and how many threads
//! there are, and how often a thread waited for the disk; evicts pages, and raises limits. Linux
//! only; elsewhere the figures that need it report that.

pub(crate) use imp::{
    advise_random, cached, drop_cached, is_mapped, major_faults, peak_resident, raise_descriptors,
    reset_peak_resident, resident, sync, sync_all, threads,
};

#[cfg(target_os = "linux")]
mod imp {
    use std::fs::{self, File};
    use std::io;
    use std::mem::MaybeUninit;
    use std::os::fd::AsRawFd;
    use std::path::Path;
    use std::thread;
    use std::time::{Duration, Instant};

    use crate::fixture::map_read;
    use crate::harness::Result;

    /// Writes the file back and takes all of it out of the page cache, or fails.
    ///
    /// Mapped pages stay in the cache, so no mapping of the file may exist. One that ends within a
    /// moment is waited for: a pool may still have to do that.
    pub(crate) fn drop_cached(path: &Path) -> Result<()> {
        let file = File::open(path)?;
        file.sync_all()?;
        let patience = Instant::now() + Duration::from_secs(10);
        loop {
            advise(&file, libc::POSIX_FADV_DONTNEED)?;
            match cached_pages(path)? {
                0 => return Ok(()),
                pages if Instant::now() > patience => {
                    return Err(format!("{pages} pages of {} stay cached", path.display()).into());
                }
                _ => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Announces that reads through the descriptor are at random places: the kernel then reads what
    /// is asked for, and no more.
    pub(crate) fn advise_random(file: &File) -> Result<()> {
        advise(file, libc::POSIX_FADV_RANDOM)
    }

    /// Gives advice about the whole file.
    fn advise(file: &File, advice: libc::c_int) -> Result<()> {
        // SAFETY: no memory is passed, and the descriptor is open.
        match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, advice) } {
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

    /// How much of a file is in the page cache, in bytes (`cachestat(2)`).
    pub(crate) fn cached(file: &File) -> Result<u64> {
        const SYS_CACHESTAT: libc::c_long = 451;
        const PAGE: u64 = 4_096;
        // Of a length of 0 bytes, all that follows is meant. The number of pages comes first.
        let (whole_file, mut counts) = ([0_u64; 2], [0_u64; 5]);
        // SAFETY: both arrays are live for the call and have the sizes of the kernel's structures.
        let result = unsafe {
            libc::syscall(
                SYS_CACHESTAT,
                file.as_raw_fd(),
                whole_file.as_ptr(),
                counts.as_mut_ptr(),
                0,
            )
        };
        match result {
            0 => Ok(counts[0] * PAGE),
            _ => Err(format!("cachestat(2), Linux 6.5: {}", io::Error::last_os_error()).into()),
        }
    }

    /// How much memory this process has, in bytes: its own, and what it has mapped of files.
    pub(crate) fn resident() -> Result<u64> {
        memory("VmRSS:")
    }

    /// The most that it had at a time since [`reset_peak_resident`].
    pub(crate) fn peak_resident() -> Result<u64> {
        memory("VmHWM:")
    }

    pub(crate) fn reset_peak_resident() -> Result<()> {
        Ok(fs::write("/proc/self/clear_refs", "5")?)
    }

    fn memory(what: &str) -> Result<u64> {
        let status = fs::read_to_string("/proc/self/status")?;
        let value = status.lines().find_map(|line| line.strip_prefix(what));
        let kib = value.and_then(|value| value.trim().strip_suffix(" kB"));
        Ok(kib
            .ok_or(format!("no {what} in {status}"))?
            .parse::<u64>()?
            << 10)
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

    /// Writes back everything that is dirty.
    pub(crate) fn sync() -> Result<()> {
        // SAFETY: it takes no argument.
        unsafe { libc::sync() };
        Ok(())
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

    pub(crate) fn cached(_file: &File) -> Result<u64> {
        Err(ELSEWHERE.into())
    }

    pub(crate) fn resident() -> Result<u64> {
        Err(ELSEWHERE.into())
    }

    pub(crate) fn peak_resident() -> Result<u64> {
        Err(ELSEWHERE.into())
    }

    pub(crate) fn reset_peak_resident() -> Result<()> {
        Err(ELSEWHERE.into())
    }

    pub(crate) fn is_mapped(_path: &Path) -> Result<bool> {
        Err(ELSEWHERE.into())
    }

    pub(crate) fn sync_all(_dir: &Path) -> Result<()> {
        Err(ELSEWHERE.into())
    }

    pub(crate) fn sync() -> Result<()> {
        Err(ELSEWHERE.into())
    }

    pub(crate) fn threads() -> Result<u64> {
        Err(ELSEWHERE.into())
    }

    pub(crate) fn raise_descriptors(_count: u64) -> Result<()> {
        Err(ELSEWHERE.into())
    }
}
