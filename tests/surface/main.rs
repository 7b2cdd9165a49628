//! Behaviour that programs rely on and that is no promise of its own: the names of the synchronous
//! crate, which types and futures can be sent to another thread, the cost of a read and a write,
//! openings at the same time, who created a file, changing and replacing all of one, a writer that
//! is killed, the log of the example, and the recipes of the crate page.
//!
//! `allocations` replaces the allocator: another reason for a binary apart from `promises`.

#[path = "../common/mod.rs"]
mod common;

mod allocations;
mod auto_traits;
#[cfg(feature = "http-body")]
mod body;
#[cfg(feature = "iterator")]
mod chunks_mut;
mod created;
#[cfg(target_os = "linux")]
mod drop_behind;
mod durable_log;
#[cfg(target_os = "linux")]
mod kill;
mod old_names;
mod openings;
#[cfg(target_os = "linux")]
mod reads;
mod recipes;
mod replace;
mod segments;
