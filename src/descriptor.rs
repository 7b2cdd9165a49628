//! An open file, whose close is kept off the threads that poll.

use std::fs::File;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use crate::offload::release;
use crate::sys;

/// A descriptor that is closed on the pool where that may block.
///
/// The last close of a file may write it out (ext4 after a truncation, network file systems), free
/// its blocks (a file without a name), or ask a server.
#[derive(Debug)]
pub(crate) struct Descriptor {
    /// Present until the drop.
    file: Option<File>,
    /// The file is known to be local, and has nothing to be written out.
    is_quick: AtomicBool,
}

impl Descriptor {
    pub(crate) fn new(file: File) -> Arc<Self> {
        Arc::new(Self {
            file: Some(file),
            is_quick: AtomicBool::new(false),
        })
    }

    /// Takes note that the file is local, and has nothing to be written out: it is in memory, or the
    /// descriptor is only read through. Closing it blocks only if the file has no name any more.
    pub(crate) fn writes_nothing_out(&self) {
        // Relaxed: it is stored before the descriptor is shared, and a stale answer costs a hop.
        self.is_quick.store(true, Ordering::Relaxed);
    }

    /// Whether closing it may block.
    pub(crate) fn may_block(&self) -> bool {
        let is_linked = || sys::is_linked(self).unwrap_or(false);
        !(self.is_quick.load(Ordering::Relaxed) && is_linked())
    }
}

impl Deref for Descriptor {
    type Target = File;

    fn deref(&self) -> &File {
        self.file.as_ref().expect("present until the drop")
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        let may_block = self.may_block();
        let file = self.file.take();
        match may_block {
            true => release(file),
            false => drop(file),
        }
    }
}
