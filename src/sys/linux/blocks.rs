//! Blocks on the disk: reserving them, and finding a full disk before a write does.

use std::fs::File;
use std::io;
use std::os::unix::io::AsRawFd;

use crate::sys::unix::free_space;

/// Makes sure that the blocks of a file range are there, where the file system can say or do so:
/// asks for its extents (`FS_IOC_FIEMAP`, 1 us), and reserves them (`fallocate(2)`) if one is
/// missing. Asking first spares the journal, which `fallocate` writes to even if there is nothing
/// to do, and then the next sync has to wait for it.
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
        // Takes the place of `allocate` where the file system knows it (xfs).
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

/// How far the extents of a file reach without a gap, each of them with blocks of its own.
#[derive(Debug)]
pub(in crate::sys) struct Blocks {
    pub(in crate::sys) end: u64,
    /// The extent that comes next shares its blocks with another file: a write takes new ones, and may
    /// find none (btrfs, reflinked xfs).
    pub(in crate::sys) are_shared: bool,
}

/// `FIEMAP_EXTENT_SHARED` of `linux/fiemap.h`.
pub(in crate::sys) const EXTENT_SHARED: u32 = 0x2000;

impl Blocks {
    /// Adds the next extent; says whether it goes on.
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

/// Fails with `ENOSPC` if the disk has no room for the holes of a file range. Knows no quota, and
/// nothing of what others take meanwhile.
///
/// Where the extents of a file cannot be asked for, its blocks are taken to lie in the range. A range
/// of at most 8 MiB has room without asking: what is taken in vain is little.
pub(crate) fn check_room(file: &File, offset: u64, len: u64) -> io::Result<()> {
    const UNASKED: u64 = 8 << 20;
    if len <= UNASKED {
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
/// (`FS_IOC_FIEMAP`), in order, until it says `false`; those at the ends may reach past the range. A delayed allocation
/// counts: it is promised.
///
/// `lseek(2)` with `SEEK_HOLE` would tell holes as well, but moves the position of the descriptor,
/// which may be the caller's.
///
/// # Errors
///
/// `EOPNOTSUPP` or `ENOTTY` where the file system cannot say.
fn for_each_extent(
    file: &File,
    offset: u64,
    len: u64,
    mut visit: impl FnMut(u64, u64, u32) -> bool,
) -> io::Result<()> {
    /// `struct fiemap` of `linux/fiemap.h`, with room for some extents.
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
    /// `_IOWR('f', 11, struct fiemap)`, of the 32 bytes before the extents.
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
        // SAFETY: `map` is live for the call and has room for as many extents as it says, and
        // `file` keeps the descriptor open.
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

/// [`allocate`] leaves what is there as it is, wherever it is called for.
pub(crate) const ALLOCATE_KEEPS_BYTES: bool = true;

/// Reserves blocks for a file range without changing its length or a byte ([`fallocate(2)`],
/// `FALLOC_FL_KEEP_SIZE`).
///
/// # Errors
///
/// `ENOSPC` on a full disk, `EOPNOTSUPP` where the file system cannot.
///
/// [`fallocate(2)`]: https://man7.org/linux/man-pages/man2/fallocate.2.html
pub(crate) fn allocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    /// At most so much a call: one that a signal interrupts starts over.
    const PIECE: u64 = 64 << 20;
    const LEAST_PIECE: u64 = 1 << 20;
    // Asked first: ext4 keeps what it has allocated before it finds that there is no more.
    check_room(file, offset, len)?;
    let (mut piece, mut done) = (PIECE, 0);
    while done < len {
        let next = piece.min(len - done);
        match try_fallocate(file, libc::FALLOC_FL_KEEP_SIZE, offset + done, next) {
            Ok(()) => done += next,
            // Where signals come faster than that much is allocated (a profiler, tmpfs), less is.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                piece = (piece / 2).max(LEAST_PIECE);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The same, for a caller that asked for it.
///
/// # Errors
///
/// `Unsupported`, in words, where the file system cannot, or a filter of system calls refuses it.
/// Writing zeroes instead would not do: they would be written over what another process appends.
pub(crate) fn preallocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    allocate(file, offset, len).map_err(|error| match crate::sys::is_refused(&error) {
        true => io::Error::new(
            io::ErrorKind::Unsupported,
            "blocks cannot be reserved on this file system",
        ),
        false => error,
    })
}

/// Makes a file `len` bytes long, unless it is longer, by a call that cannot cut what another
/// process appends meanwhile: the block of the last byte is reserved ([`fallocate(2)`]), and the
/// bytes before it are a hole.
///
/// Where the file system has no such call, the file is grown by `ftruncate` after a second look,
/// under a lock of this open file description that is tried and never waited for
/// ([`fcntl_locking(2)`], `F_OFD_SETLK`).
///
/// # Errors
///
/// `ENOSPC` on a full disk, `EFBIG` past the process's limit on file sizes, `EAGAIN` if another
/// process, or a lock of this one, holds the file where the lock is needed.
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

fn extend_under_lock(file: &File, len: u64) -> io::Result<()> {
    let lock = |kind: libc::c_int| {
        let mut whole = std::mem::MaybeUninit::<libc::flock>::zeroed();
        // SAFETY: all-zero bytes are a valid `flock`: from the start to the end of the file.
        let whole = unsafe { whole.assume_init_mut() };
        whole.l_type = kind as libc::c_short;
        // SAFETY: `whole` is live for the call, and `file` keeps the descriptor open.
        match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &*whole) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    match lock(libc::F_WRLCK) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            return Err(error);
        }
        // A file system without locks leaves the second look alone.
        Ok(()) | Err(_) => {}
    }
    let extended = match crate::sys::file_len(file) {
        Ok(file_len) if file_len >= len => Ok(()),
        Ok(_) => file.set_len(len),
        Err(error) => Err(error),
    };
    let _ = lock(libc::F_UNLCK);
    extended
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
        libc::fallocate(
            file.as_raw_fd(),
            mode,
            offset as libc::off_t,
            len as libc::off_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
