//! The promises of the crate. The files that test each of them are named behind it:
//!
//! - P1 **Never blocks the executor**: no thread that polls does I/O or waits for a lease
//!   (`p1_never_blocks`, `fairness`, `inline_writes`; `remote`, where the server does not answer).
//! - P2 **No pool thread waits** for a view, a lease or another job (`p2_pool`).
//! - P3 **No aliasing inside a process**: no view changes while it is held, whatever is called,
//!   through any handle (`p3_aliasing`).
//! - P4 **Range-precise**: an operation waits only for what overlaps it (`p4_ranges`, `growth`).
//! - P5 **Durable means durable**: when a durable call returns, the bytes, the length and the name
//!   survive a power cut (`p5_durable`, `policies`; `tests/power_cut` cuts the power).
//! - P6 **A failed flush is never forgotten** (`p6_sticky`).
//! - P7 **All or nothing, and safe to cancel**: a dropped future withdraws its operation, or the
//!   operation runs to completion (`p7_cancel`, `wakers`).
//! - P8 **Order**: overlapping operations take effect in the order of submission, each of them
//!   whole (`p8_order`, `strategy`, `appends`).
//! - P9 **Bounded**: the data of queued writes has a limit, and one timer serves all files
//!   (`p9_bounded`, `policies`).
//! - P10 **Errors, not signals**: a full or failing disk, and a file that another process has cut,
//!   is an `Err` (`p10_errors`, `refused_calls`, `forked`; `fault_guard`, where the feature of that
//!   name is on). Another process is an ordinary neighbour, whose files and bytes stay
//!   (`neighbours`, `growth`, `copies`).
//! - P11 **No reader waits for a waiting writer**, and short reads do not starve the writer
//!   (`p11_readers`).
//!
//! `model` runs random operations of all kinds against P3, P4, P7 and P8 together.

#[path = "../common/mod.rs"]
mod common;

#[cfg(target_os = "linux")]
mod appends;
mod copies;
#[cfg(feature = "cow")]
mod cow;
mod fairness;
#[cfg(all(target_os = "linux", feature = "fault-guard"))]
mod fault_guard;
#[cfg(target_os = "linux")]
mod forked;
mod growth;
#[cfg(target_os = "linux")]
mod inline_writes;
#[cfg(all(
    target_os = "linux",
    feature = "advise",
    feature = "atomic",
    feature = "cow",
    feature = "iterator",
    feature = "locking"
))]
mod model;
#[cfg(target_os = "linux")]
mod neighbours;
#[cfg(target_os = "linux")]
mod p10_errors;
mod p11_readers;
mod p1_never_blocks;
mod p2_pool;
mod p3_aliasing;
mod p4_ranges;
#[cfg(target_os = "linux")]
mod p5_durable;
#[cfg(target_os = "linux")]
mod p6_sticky;
mod p7_cancel;
mod p8_order;
mod p9_bounded;
#[cfg(target_os = "linux")]
mod policies;
#[cfg(target_os = "linux")]
mod refused_calls;
#[cfg(target_os = "linux")]
mod remote;
#[cfg(target_os = "linux")]
mod strategy;
mod wakers;
