//! The promises of the crate, a file each.

#[path = "../common/mod.rs"]
mod common;

mod allocations;
mod auto_traits;
mod copies;
mod durable_log;
mod fairness;
mod forked;
mod growth;
mod kill;
mod neighbours;
mod old_names;
mod openings;
mod p10_errors;
mod p11_readers;
mod p1_never_blocks;
mod p2_pool;
mod p3_aliasing;
mod p4_ranges;
mod p5_durable;
mod p6_sticky;
mod p7_cancel;
mod p8_order;
mod p9_bounded;
mod policies;
mod refused_calls;
#[cfg(target_os = "linux")]
mod remote;
mod strategy;
mod wakers;
