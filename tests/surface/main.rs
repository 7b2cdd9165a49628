//! What is no promise of its own, but is relied on: the names of the synchronous crate, what may be
//! sent to another thread, what a read or a write costs, how openings meet each other, and that the
//! log of the example keeps what it acknowledges.
//!
//! A binary apart from `promises`, because `allocations` counts what the allocator is asked for.

#[path = "../common/mod.rs"]
mod common;

mod allocations;
mod auto_traits;
mod durable_log;
#[cfg(target_os = "linux")]
mod kill;
mod old_names;
mod openings;
