//! Copies files inside the kernel.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::io::AsRawFd;

/// Makes `destination` share the blocks of `source`; returns `false` if the file system does not
/// support that ([`ioctl_ficlone(2)`]).
///
/// [`ioctl_ficlone(2)`]: https://man7.org/linux/man-pages/man2/ioctl_ficlone.2.html
pub(crate) fn clone_file(source: &File, destination: &File) -> bool {
    // SAFETY: `FICLONE` takes a descriptor and no pointer, and the borrowed files keep both open.
    unsafe { libc::ioctl(destination.as_raw_fd(), libc::FICLONE, source.as_raw_fd()) == 0 }
}

/// Copies the first `len` bytes of `source` to `destination`, which is empty. Data is copied inside
/// the kernel if possible ([`copy_file_range(2)`]). Holes stay holes where the system tells them
/// from pages that are not on the disk yet ([`lseek(2)`], `SEEK_DATA`). It neither uses nor moves
/// the position of a descriptor.
///
/// # Errors
///
/// `EFBIG` past the process's limit on file sizes, where writing would raise `SIGXFSZ`;
/// `UnexpectedEof` if the source is shorter.
///
/// [`copy_file_range(2)`]: https://man7.org/linux/man-pages/man2/copy_file_range.2.html
/// [`lseek(2)`]: https://man7.org/linux/man-pages/man2/lseek.2.html
pub(crate) fn copy_contents(source: &File, destination: &File, len: u64) -> io::Result<()> {
    crate::sys::unix::check_file_limit(len)?;
    // A second descriptor, with a position of its own. If it is refused, the whole file is treated
    // as data.
    let reopen = || File::open(format!("/proc/self/fd/{}", source.as_raw_fd())).ok();
    let finder = super::seeks_in_cache(source).then(reopen).flatten();
    let Some(finder) = finder else {
        return copy_range(source, destination, 0, len);
    };
    let seek = |from: u64, whence| {
        // SAFETY: the call takes no pointer, and `finder` keeps the descriptor open.
        let at = unsafe { libc::lseek64(finder.as_raw_fd(), from as libc::off64_t, whence) };
        u64::try_from(at).map_err(|_| io::Error::last_os_error())
    };
    let mut end = 0;
    while let Some(data) = next_data(seek, end, len) {
        copy_range(source, destination, data.start, data.end)?;
        end = data.end;
    }
    if end == len {
        return Ok(());
    }
    // Either a hole follows, or the end of the file.
    match super::file_len(source)? >= len {
        true => destination.set_len(len),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Returns the next data of a file between `start` and `len`, by means of `lseek(2)`; `None` if
/// there is none. The data ends behind `start` whatever the calls return, so that a loop ends.
pub(in crate::sys) fn next_data(
    seek: impl Fn(u64, libc::c_int) -> io::Result<u64>,
    start: u64,
    len: u64,
) -> Option<Range<u64>> {
    if start >= len {
        return None;
    }
    let data = match seek(start, libc::SEEK_DATA) {
        Ok(data) => data.max(start),
        // No data follows; or `start` is past the end.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return None,
        // The file system does not support the call.
        Err(_) => return Some(start..len),
    };
    if data >= len {
        return None;
    }
    let hole = seek(data, libc::SEEK_HOLE).ok();
    let hole = hole.filter(|hole| *hole > data).unwrap_or(len);
    Some(data..hole.min(len))
}

/// Copies bytes `start..end` of `source` to the same place in `destination`.
fn copy_range(source: &File, destination: &File, start: u64, end: u64) -> io::Result<()> {
    let mut done = start;
    while done < end {
        let (mut from, mut to) = (done as libc::off64_t, done as libc::off64_t);
        // SAFETY: `from` and `to` are live for the call, and the borrowed files keep both
        // descriptors open.
        let copied = unsafe {
            libc::syscall(
                libc::SYS_copy_file_range,
                source.as_raw_fd(),
                &mut from,
                destination.as_raw_fd(),
                &mut to,
                usize::try_from(end - done)
                    .unwrap_or(usize::MAX)
                    .min(1 << 30),
                0,
            )
        };
        match copied {
            1.. => done += copied as u64,
            // Some file systems do nothing, and return that they copied no byte. If instead the
            // source has ended, copying through memory fails with `UnexpectedEof`.
            0 => return crate::sys::unix::copy_through_memory(source, destination, done, end),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                // The call is unavailable between these two file systems, or refused. If the disk
                // is failing, copying through memory reports that as well.
                error
                    if crate::sys::is_refused(&error)
                        || matches!(
                            error.raw_os_error(),
                            Some(
                                libc::EXDEV
                                    | libc::EBADF
                                    | libc::EIO
                                    | libc::ETXTBSY
                                    | libc::EOVERFLOW
                            )
                        ) =>
                {
                    return crate::sys::unix::copy_through_memory(source, destination, done, end);
                }
                error => return Err(error),
            },
        }
    }
    Ok(())
}
