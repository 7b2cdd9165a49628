//! Memory-mapped files for async Rust.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(unsafe_code)]

mod completion;
mod error;
mod mode;
mod range;
mod sync;

#[allow(unsafe_code)]
mod sys;

#[allow(unsafe_code)]
mod map;

#[allow(unsafe_code)]
mod lease;

mod offload;

#[allow(unsafe_code)]
mod residency;

mod commit;
pub mod flush;

#[allow(unsafe_code)]
mod queue;

mod registry;

#[allow(unsafe_code)]
mod open_file;

#[allow(unsafe_code)]
mod view;

#[allow(unsafe_code)]
mod file;

mod write;

mod opening;

mod builder;

#[cfg(feature = "advise")]
#[cfg_attr(docsrs, doc(cfg(feature = "advise")))]
#[allow(unsafe_code)]
pub mod advise;

#[allow(unsafe_code)]
mod bytes;

mod copy;

pub mod manager;
pub mod utils;

#[cfg(feature = "advise")]
pub use crate::advise::MmapAdvice;
pub use crate::builder::MemoryMappedFileBuilder;
pub use crate::error::{MmapIoError, Result};
pub use crate::file::{MemoryMappedFile, Stats};
pub use crate::flush::FlushPolicy;
pub use crate::manager::{
    copy_mmap, create_mmap, delete_mmap, flush, load_mmap, update_region, write_mmap,
};
pub use crate::mode::{MmapMode, TouchHint};
pub use crate::view::{MappedSlice, MappedSliceMut};
