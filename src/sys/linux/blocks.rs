//! Reserves disk blocks, so that a full disk is found before a write changes anything.

use std::fs::File;
use std::io;
use std::os::unix::io::AsRawFd;

use crate::sys::unix::{free_space, uninterrupted};

/// Makes sure that a file range has its blocks, if the file system can tell or reserve them:
/// queries the extents (`FS_IOC_FIEMAP`, 1 us), and reserves the range (`fallocate(2)`) if a block
/// is missing. The query comes first because `fallocate` writes to the journal even if it has
/// nothing to do, and the next sync would then wait for the journal.
///
/// # Errors
///
/// `ENOSPC` on a full disk.
pub(crate) fn reserve(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let mut blocks = Blocks::from(offset);
    let asked = for_each_extent(file, offset, len, |start, end, flags| {
        blocks.add(start, end, flags) && blocks.end < offset + len
    });
    if asked.is_ok() && blocks.end >= offset + len {
        return Ok(());
    }
    if blocks.are_shared {
        // Replaces `allocate` on file systems that support it (xfs).
        let mode = libc::FALLOC_FL_UNSHARE_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        match fallocate(file, mode, offset, len) {
            Err(error) if crate::sys::is_refused(&error) => {}
            result => return result,
        }
    }
    match allocate(file, offset, len) {
        Err(error) if crate::sys::is_refused(&error) => Ok(()),
        result => result,
    }
}

/// How far the extents of a file reach without a gap and without a shared block.
#[derive(Debug)]
pub(in crate::sys) struct Blocks {
    pub(in crate::sys) end: u64,
    /// Whether the next extent shares its blocks with another file: a write needs new blocks, and
    /// may find none (btrfs, reflinked xfs).
    pub(in crate::sys) are_shared: bool,
}

/// `FIEMAP_EXTENT_SHARED` from `linux/fiemap.h`.
pub(in crate::sys) const EXTENT_SHARED: u32 = 0x2000;

impl Blocks {
    /// Adds the next extent; returns `false` if the reach ends before it.
    pub(in crate::sys) fn add(&mut self, start: u64, end: u64, flags: u32) -> bool {
        let follows = start <= self.end;
        self.are_shared = follows && flags & EXTENT_SHARED != 0;
        let goes_on = follows && !self.are_shared;
        if goes_on {
            self.end = end;
        }
        goes_on
    }
}

impl From<u64> for Blocks {
    fn from(start: u64) -> Self {
        Self {
            end: start,
            are_shared: false,
        }
    }
}

/// Fails with `ENOSPC` if the disk has no room for the holes of a file range. It does not know
/// quotas, and does not reserve the room: another process may take it.
///
/// If the extents of the file cannot be queried, all of its blocks are assumed to lie in the range.
/// A range of at most 8 MiB is not checked: a failure in the middle of it wastes little space.
pub(crate) fn check_room(file: &File, offset: u64, len: u64) -> io::Result<()> {
    const UNCHECKED: u64 = 8 << 20;
    if len <= UNCHECKED {
        return Ok(());
    }
    let mut allocated = 0;
    let asked = for_each_extent(file, offset, len, |start, end, flags| {
        if flags & EXTENT_SHARED == 0 {
            allocated += end.min(offset + len).saturating_sub(start.max(offset));
        }
        true
    });
    if asked.is_err() {
        allocated = crate::sys::allocated(file)?;
    }
    match free_space(file) {
        Some(free) if len.saturating_sub(allocated) > free => {
            Err(io::Error::from_raw_os_error(libc::ENOSPC))
        }
        _ => Ok(()),
    }
}

/// Calls `visit` with the start, the end and the flags of each extent of a file range
/// (`FS_IOC_FIEMAP`), in order, until it returns `false`. The first and the last extent may reach
/// past the range. A delayed allocation counts as an extent, since the file system has reserved its
/// space.
///
/// `lseek(2)` with `SEEK_HOLE` would find holes as well, but it moves the position of the
/// descriptor, which the user may rely on.
///
/// # Errors
///
/// `EOPNOTSUPP` or `ENOTTY` if the file system does not support the query.
fn for_each_extent(
    file: &File,
    offset: u64,
    len: u64,
    mut visit: impl FnMut(u64, u64, u32) -> bool,
) -> io::Result<()> {
    /// `struct fiemap` from `linux/fiemap.h`, with room for some extents.
    #[repr(C)]
    struct Fiemap {
        start: u64,
        length: u64,
        flags: u32,
        mapped_extents: u32,
        extent_count: u32,
        reserved: u32,
        extents: [Extent; EXTENTS],
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Extent {
        logical: u64,
        physical: u64,
        length: u64,
        reserved: [u64; 2],
        flags: u32,
        reserved_too: [u32; 3],
    }
    const EXTENTS: usize = 16;
    /// `_IOWR('f', 11, struct fiemap)`, with the size of the 32 bytes before the extents.
    const FS_IOC_FIEMAP: u32 = 0xc020_660b;
    let none = Extent {
        logical: 0,
        physical: 0,
        length: 0,
        reserved: [0; 2],
        flags: 0,
        reserved_too: [0; 3],
    };
    let (mut start, end) = (offset, offset + len);
    while start < end {
        let mut map = Fiemap {
            start,
            length: end - start,
            flags: 0,
            mapped_extents: 0,
            extent_count: EXTENTS as u32,
            reserved: 0,
            extents: [none; EXTENTS],
        };
        // SAFETY: `map` is live for the call, has the kernel's layout, and has room for the
        // `extent_count` extents that it announces; `file` keeps the descriptor open.
        if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP as _, &mut map) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let extents = &map.extents[..EXTENTS.min(map.mapped_extents as usize)];
        for extent in extents {
            let extent_end = extent.logical.saturating_add(extent.length);
            if !visit(extent.logical, extent_end, extent.flags) {
                return Ok(());
            }
            start = start.max(extent_end);
        }
        if extents.len() < EXTENTS {
            return Ok(());
        }
    }
    Ok(())
}

/// [`allocate`] changes no byte, so it may be called for any range.
pub(crate) const ALLOCATE_KEEPS_BYTES: bool = true;

/// Reserves blocks for a file range; changes neither the length nor a byte ([`fallocate(2)`],
/// `FALLOC_FL_KEEP_SIZE`). A range that the caller has rounded up to whole pages may reach past the
/// process's limit on file sizes: the pages are reserved as far as the file may reach.
///
/// # Errors
///
/// `ENOSPC` on a full disk, `EOPNOTSUPP` if the file system does not support it, `EFBIG` if the
/// whole range is past the limit on file sizes.
///
/// [`fallocate(2)`]: https://man7.org/linux/man-pages/man2/fallocate.2.html
pub(crate) fn allocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    /// The most bytes of one call, since a call that a signal interrupts has to start over.
    const PIECE: u64 = 64 << 20;
    const LEAST_PIECE: u64 = 1 << 20;
    let len = within_limit(file, offset, len)?;
    // Checked first: if ext4 runs out of space, it keeps the blocks that it has already allocated.
    check_room(file, offset, len)?;
    let (mut piece, mut done) = (PIECE, 0);
    while done < len {
        let next = piece.min(len - done);
        match try_fallocate(file, libc::FALLOC_FL_KEEP_SIZE, offset + done, next) {
            Ok(()) => done += next,
            // Signals may come faster than a piece is allocated (a profiler, tmpfs): so the pieces
            // become smaller.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                piece = (piece / 2).max(LEAST_PIECE);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns the length of the part of a range that [`allocate`] may reserve. Past the limit on file
/// sizes, tmpfs and f2fs raise `SIGXFSZ` even if the length of the file is to stay; inside the file
/// there is no limit.
fn within_limit(file: &File, offset: u64, len: u64) -> io::Result<u64> {
    let (end, limit) = (offset + len, crate::sys::unix::file_limit());
    if end <= limit {
        return Ok(len);
    }
    let end = end.min(crate::sys::file_len(file)?.max(limit));
    match end > offset {
        true => Ok(end - offset),
        false => Err(io::Error::from_raw_os_error(libc::EFBIG)),
    }
}

/// Reserves blocks like [`allocate`], on request of the user.
///
/// # Errors
///
/// Those of [`allocate`], but `EFBIG` if any part past the end of the file is past the limit, and
/// `Unsupported` with an explanation if the file system does not support it, or a filter of system
/// calls refuses it. Writing zeroes instead is no alternative: they could overwrite what another
/// process appends.
pub(crate) fn preallocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    if within_limit(file, offset, len)? < len {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    allocate(file, offset, len).map_err(|error| match crate::sys::is_refused(&error) {
        true => io::Error::new(
            io::ErrorKind::Unsupported,
            "blocks cannot be reserved on this file system",
        ),
        false => error,
    })
}

/// Makes a file `len` bytes long, unless it is longer, by a call that cannot cut what another
/// process appends at the same time: reserves the block of the last byte ([`fallocate(2)`]), which
/// leaves the bytes before it as a hole.
///
/// If the file system does not support that, checks the length again and calls `ftruncate`, under a
/// lock of this open file description ([`fcntl_locking(2)`], `F_OFD_SETLK`). It never waits for the
/// lock.
///
/// # Errors
///
/// `ENOSPC` on a full disk; `EFBIG` past the process's limit on file sizes; `EAGAIN` or `EACCES` if
/// the lock is needed and conflicts with a lock, of another process or of this one, that reaches to
/// the end of every file.
///
/// [`fallocate(2)`]: https://man7.org/linux/man-pages/man2/fallocate.2.html
/// [`fcntl_locking(2)`]: https://man7.org/linux/man-pages/man2/F_OFD_SETLK.2const.html
pub(crate) fn extend(file: &File, len: u64) -> io::Result<()> {
    if crate::sys::file_len(file)? >= len {
        return Ok(());
    }
    crate::sys::unix::check_file_limit(len)?;
    match fallocate(file, 0, len - 1, 1) {
        Err(error) if crate::sys::is_refused(&error) => extend_under_lock(file, len),
        extended => extended,
    }
}

pub(in crate::sys) fn extend_under_lock(file: &File, len: u64) -> io::Result<()> {
    /// A byte that no file reaches. A lock on it conflicts with each lock on a whole file; but the
    /// ranges that the program itself has locked through this open file description stay locked.
    const FAR_BYTE: i64 = i64::MAX - 1;
    let lock = |kind| set_lock(file, kind, FAR_BYTE, 1);
    match lock(libc::F_WRLCK) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            return Err(error);
        }
        // On a file system without locks the second check has to do without one.
        Ok(_) | Err(_) => {}
    }
    let extended = match crate::sys::file_len(file) {
        Ok(file_len) if file_len >= len => Ok(()),
        Ok(_) => file.set_len(len),
        Err(error) => Err(error),
    };
    let _ = lock(libc::F_UNLCK);
    extended
}

/// Sets or removes a lock of an open file description, without waiting. A `len` of 0 reaches to the
/// end of every file.
///
/// The kernel's own call, with positions of 64 bits: the `fcntl` of a 32-bit C library may expect
/// 32 bits, as that of glibc does since 2.28.
pub(in crate::sys) fn set_lock(
    file: &File,
    kind: libc::c_int,
    start: i64,
    len: i64,
) -> io::Result<libc::c_int> {
    #[cfg(not(any(
        target_arch = "arm",
        target_arch = "mips",
        target_arch = "powerpc",
        target_arch = "x86"
    )))]
    use libc::SYS_fcntl as SYS_FCNTL;
    #[cfg(any(
        target_arch = "arm",
        target_arch = "mips",
        target_arch = "powerpc",
        target_arch = "x86"
    ))]
    use libc::SYS_fcntl64 as SYS_FCNTL;

    let mut lock = std::mem::MaybeUninit::<libc::flock64>::zeroed();
    // SAFETY: all-zero bytes are a valid `flock64`.
    let lock = unsafe { lock.assume_init_mut() };
    lock.l_type = kind as libc::c_short;
    (lock.l_start, lock.l_len) = (start, len);
    uninterrupted(|| {
        // SAFETY: `lock` is live for the call, and `file` keeps the descriptor open.
        let set = unsafe { libc::syscall(SYS_FCNTL, file.as_raw_fd(), libc::F_OFD_SETLK, &*lock) };
        set as libc::c_int
    })
}

fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    loop {
        match try_fallocate(file, mode, offset, len) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn try_fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: the call takes no pointer, and `file` keeps the descriptor open.
    let result = unsafe {
        libc::fallocate64(
            file.as_raw_fd(),
            mode,
            offset as libc::off64_t,
            len as libc::off64_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
