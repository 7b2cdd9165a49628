//! The program of docs/COMPAT.md, as it was written for the synchronous crate.

extern crate mmap_io_sync as mmap_io;

include!("../../../tests/compat/programs/before.rs");
