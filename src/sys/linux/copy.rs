//! Copies files inside the kernel.

use std::fs::File;
use std::io;
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
/// the kernel if possible ([`copy_file_range(2)`]), and holes stay holes. It neither uses nor moves
/// the position of a descriptor.
///
/// # Errors
///
/// `EFBIG` past the process's limit on file sizes, where writing would raise `SIGXFSZ`;
/// `UnexpectedEof` if the source is shorter.
///
/// [`copy_file_range(2)`]: https://man7.org/linux/man-pages/man2/copy_file_range.2.html
pub(crate) fn copy_contents(source: &File, destination: &File, len: u64) -> io::Result<()> {
    crate::sys::unix::check_file_limit(len)?;
    // A second descriptor, with a position of its own. If it is refused, the whole file is treated
    // as data.
    let finder = File::open(format!("/proc/self/fd/{}", source.as_raw_fd())).ok();
    let mut end = 0;
    while let Some(data) = next_data(finder.as_ref(), end, len)? {
        copy_range(source, destination, data.0, data.1)?;
        end = data.1;
    }
    match end < len {
        true => destination.set_len(len),
        false => Ok(()),
    }
}

/// Returns the start and end of the next data of a file between `start` and `len`; `None` if only a
/// hole follows ([`lseek(2)`], `SEEK_DATA`, which also finds pages that are not on the disk yet).
///
/// # Errors
///
/// `UnexpectedEof` if the file is shorter.
///
/// [`lseek(2)`]: https://man7.org/linux/man-pages/man2/lseek.2.html
fn next_data(finder: Option<&File>, start: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    if start >= len {
        return Ok(None);
    }
    let Some(finder) = finder else {
        return Ok(Some((start, len)));
    };
    let seek = |from: u64, whence| {
        // SAFETY: the call takes no pointer, and `finder` keeps the descriptor open.
        let at = unsafe { libc::lseek64(finder.as_raw_fd(), from as libc::off64_t, whence) };
        u64::try_from(at).map_err(|_| io::Error::last_os_error())
    };
    let data = match seek(start, libc::SEEK_DATA) {
        Ok(data) => data,
        // No data follows; or `start` is past the end.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            return match crate::sys::file_len(finder)? >= len {
                true => Ok(None),
                false => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
        // The file system does not support the call.
        Err(_) => return Ok(Some((start, len))),
    };
    if data >= len {
        return Ok(None);
    }
    let hole = seek(data, libc::SEEK_HOLE).unwrap_or(len);
    Ok(Some((data, hole.min(len))))
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
