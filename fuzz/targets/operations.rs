//! Every operation of the surface, compared with a `Vec<u8>`.

#![no_main]

mod support;

#[path = "../../tests/common/model/mod.rs"]
mod model;

use self::support::{pattern, records, with_timeout};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let dir = tempfile::tempdir().unwrap();
    let records = records(input);
    let run = model::run(dir.path(), &records, 1 << 20);
    futures_lite::future::block_on(run);
});
