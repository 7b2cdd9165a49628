//! The block of slots of each thread.

use std::cell::Cell;

use super::fence::ProcessFences;
use super::slots::{Block, Blocks};
use crate::sys;

/// The blocks of slots of all threads in the process.
pub(super) static BLOCKS: Blocks = Blocks::new();

thread_local! {
    /// This thread's block. It has no destructor, so that it can be read at any time.
    pub(super) static THREAD_BLOCK: Cell<Option<&'static Block>> = const { Cell::new(None) };
    /// Hands the block back when the thread ends.
    static HAND_BACK: HandBack = const { HandBack };
}

struct HandBack;

impl Drop for HandBack {
    fn drop(&mut self) {
        // This thread takes no slot in the block after this: `claim_block` finds this value
        // destroyed.
        if let Some(block) = THREAD_BLOCK.take() {
            block.hand_back();
        }
    }
}

/// Returns the block of this thread, if it can have one.
#[inline]
pub(super) fn thread_block() -> Option<&'static Block> {
    THREAD_BLOCK.get().or_else(claim_block)
}

/// Claims a block for this thread. Returns `None` while the thread-local values of the thread are
/// being destroyed, and where the fences that slots need are unavailable.
#[cold]
fn claim_block() -> Option<&'static Block> {
    HAND_BACK.try_with(|_| ()).ok()?;
    // A forked child has no writers to fence against, and the thread that decides this may exist
    // only in the parent.
    if !sys::is_forked() && !ProcessFences::can_be_light() {
        return None;
    }
    let block = BLOCKS.claim::<ProcessFences>();
    THREAD_BLOCK.set(Some(block));
    Some(block)
}
