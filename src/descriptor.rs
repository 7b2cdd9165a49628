//! A descriptor whose close, which may block, never runs on an executor thread.

use std::fs::File;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use crate::offload::release;
use crate::sys;

/// A descriptor that is closed on the pool if the close may block.
///
/// The last close of a file may write its data out (ext4 after a truncation, network file systems),
/// free its blocks (a file without a name), or ask a server.
#[derive(Debug)]
pub(crate) struct Descriptor {
    /// `None` only inside the drop.
    file: Option<File>,
    /// The file is known to be local, and its close writes nothing out.
    is_quick: AtomicBool,
}

impl Descriptor {
    pub(crate) fn new(file: File) -> Arc<Self> {
        Arc::new(Self {
            file: Some(file),
            is_quick: AtomicBool::new(false),
        })
    }

    /// Notes that the file is local and that its close writes nothing out: the file is in memory,
    /// or this descriptor only reads. Then the close blocks only if the file no longer has a name.
    pub(crate) fn writes_nothing_out(&self) {
        // Relaxed: this runs before the descriptor is shared, and a stale `false` only costs a job
        // on the pool.
        self.is_quick.store(true, Ordering::Relaxed);
    }

    /// Whether closing the descriptor may block.
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
