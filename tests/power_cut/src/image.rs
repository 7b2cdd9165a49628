//! Makes images of what a power cut may leave on a disk.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use fastrand::Rng;

use crate::disk::{Blocks, Snapshot};

/// Which of the volatile writes are in an image.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Survivors {
    /// None: what a flush covered, and nothing else.
    Barrier,
    All,
    /// Each block of each write with this probability.
    Some(f64),
}

/// The images to check of one moment. If no write is volatile they are all the same.
pub(crate) fn images_of(snapshot: &Snapshot, rng: &mut Rng) -> Vec<Survivors> {
    match snapshot.volatile.len() {
        0 => vec![Survivors::Barrier],
        1 => vec![Survivors::Barrier, Survivors::All],
        _ => vec![
            Survivors::Barrier,
            Survivors::All,
            Survivors::Some(0.5),
            Survivors::Some(rng.f64()),
        ],
    }
}

/// The disk after the cut.
pub(crate) fn cut(snapshot: &Snapshot, survivors: Survivors, rng: &mut Rng) -> Blocks {
    let mut blocks = snapshot.durable.clone();
    for piece in &snapshot.volatile {
        let survives = match survivors {
            Survivors::Barrier => false,
            Survivors::All => true,
            Survivors::Some(share) => rng.f64() < share,
        };
        if survives {
            blocks.apply(piece);
        }
    }
    blocks
}

/// Writes an image into a file in memory, which is freed when it is closed.
pub(crate) fn to_file(blocks: &Blocks) -> Result<File> {
    const NAME: &CStr = c"image";
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(NAME.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error()).context("memfd_create");
    }
    // SAFETY: `memfd_create` has just returned the descriptor, and nothing else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(blocks.len())?;
    for (offset, block) in blocks.iter() {
        file.write_all_at(block, offset)?;
    }
    Ok(file)
}
