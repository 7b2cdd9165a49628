//! Object stores over mapped files: reads of a local directory without a copy.
//!
//! [`MappedFileSystem`] is an [`object_store`](https://docs.rs/object_store) for all that reads
//! through one: DataFusion, Ballista, parquet, lakes of tables. It behaves as `LocalFileSystem`,
//! and what it reads are `Bytes` of files that are mapped by [`mmap_io`], in memory before they are
//! returned: no copy, and no `open` for each read.
//!
//! On Linux a read whose data is in memory makes no hop to a pool of threads either, if it is of at
//! most 4 MiB and 16 runs. Ranges that are up to 64 KiB apart are one run, the gaps included, until
//! it is 1 MiB long.
//!
//! [`MappedParquet`] reads parquet files of this kind without an object store.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `v0_14` | yes | [`MappedFileSystem`] for object_store 0.14 |
//! | `v0_13` | no | [`MappedFileSystem`] for object_store 0.13, which DataFusion 55 uses |
//! | `parquet` | no | [`MappedParquet`], for parquet 60; needs Rust 1.88 |
//!
//! Features add up: with `v0_13` and `v0_14` the store implements both traits.
//!
//! # When not to use it
//!
//! For objects that are read once, from front to back, `LocalFileSystem` is as fast. Where the work
//! is decoding, as in scans of compressed columns, the way of reading hardly shows.

#[cfg(any(feature = "v0_13", feature = "v0_14"))]
mod cache;
#[cfg(any(feature = "v0_13", feature = "v0_14"))]
mod lookup;

#[cfg(any(feature = "v0_13", feature = "v0_14"))]
mod drops;
#[cfg(any(feature = "v0_13", feature = "v0_14"))]
mod generation;
#[cfg(any(feature = "v0_13", feature = "v0_14"))]
mod openings;
#[cfg(any(feature = "v0_13", feature = "v0_14", feature = "parquet"))]
mod ranges;
#[cfg(any(feature = "v0_13", feature = "v0_14"))]
mod streams;

#[cfg(any(feature = "v0_13", feature = "v0_14"))]
mod store;

#[cfg(feature = "v0_13")]
mod v0_13;
#[cfg(feature = "v0_14")]
mod v0_14;

#[cfg(feature = "parquet")]
mod parquet;

#[cfg(feature = "parquet")]
pub use crate::parquet::MappedParquet;
#[cfg(any(feature = "v0_13", feature = "v0_14"))]
pub use crate::store::{MappedFileSystem, StoreStats};
