//! Behaviour that programs rely on and that is no promise of its own: the names of the synchronous
//! crate, which types and futures can be sent to another thread, the cost of a read and a write,
//! openings at the same time, who created a file, copy-on-write handles, changing and replacing all of
//! a file, a writer that is killed, advice and huge pages, locks on pages and on files, the log of the
//! example, the recipes of the crate page, the watches, and what a subscriber of `tracing` is told.
//!
//! `allocations` replaces the allocator: another reason for a binary apart from `promises`.

#[path = "../common/mod.rs"]
mod common;

#[cfg(feature = "advise")]
#[cfg(target_os = "linux")]
mod advice;
#[cfg(feature = "advisory-lock")]
#[cfg(target_os = "linux")]
mod advisory_locks;
mod allocations;
mod auto_traits;
#[cfg(feature = "http-body")]
mod body;
#[cfg(feature = "iterator")]
mod chunks_mut;
#[cfg(feature = "cow")]
mod cow;
mod created;
#[cfg(target_os = "linux")]
mod drop_behind;
mod durable_log;
#[cfg(feature = "hugepages")]
#[cfg(target_os = "linux")]
mod huge_pages;
#[cfg(target_os = "linux")]
mod kill;
mod old_names;
mod openings;
#[cfg(feature = "locking")]
#[cfg(target_os = "linux")]
mod page_locks;
#[cfg(target_os = "linux")]
mod reads;
#[cfg(not(mmap_io_cross))]
mod recipes;
mod replace;
mod segments;
#[cfg(feature = "tracing")]
mod tracing;
#[cfg(all(unix, feature = "watch"))]
mod watch;
