//! The store for object_store 0.14.

#[path = "implementation.rs"]
mod implementation;

use std::ops::Range;

use object_store_0_14 as object_store;

use self::object_store::local::LocalFileSystem;
use self::object_store::{GetResult, GetResultPayload, ObjectMeta};
use crate::store::MappedFileSystem;

/// The place of this version's tag among those of a generation.
const E_TAG: usize = 1;

fn local(store: &MappedFileSystem) -> &LocalFileSystem {
    &store.local_0_14
}

fn get_result(payload: GetResultPayload, meta: ObjectMeta, range: Range<u64>) -> GetResult {
    GetResult {
        payload,
        meta,
        range,
        attributes: Default::default(),
        extensions: Default::default(),
    }
}
