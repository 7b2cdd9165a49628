//! The tests under object_store 0.13.

use object_store_0_13 as object_store;

#[path = "bounds.rs"]
mod bounds;
#[path = "files.rs"]
mod files;
#[path = "reads.rs"]
mod reads;
#[path = "suite.rs"]
mod suite;
