//! Random operations of the whole surface, compared with a `Vec<u8>`, under every runtime.
//!
//! A failure prints the operations, which proptest has made few. `PROPTEST_RNG_SEED` chooses the
//! operations, at random if it is not a number, and `MODEL_CASES` makes a run longer.

mod concurrent;

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

use crate::common::model::ops::{Record, Step};
use crate::common::{model, on_each_runtime, BlockOn, TIMEOUT};

/// Few, since an operation takes a while; see `MODEL_CASES`.
const CASES: u32 = 24;

/// Runs `check` on many values of `strategy`, and prints the seed.
fn check_many<S: Strategy>(cases: u32, strategy: S, check: impl Fn(S::Value)) {
    let given = std::env::var("MODEL_CASES");
    let mut config = ProptestConfig {
        cases: given.map_or(cases, |cases| cases.parse().unwrap()),
        failure_persistence: None,
        max_shrink_time: 2 * TIMEOUT.as_millis() as u32,
        ..ProptestConfig::default()
    };
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(rand_seed());
    }
    println!("PROPTEST_RNG_SEED={}", config.rng_seed);
    let test = |value| {
        check(value);
        Ok(())
    };
    TestRunner::new(config).run(&strategy, test).unwrap();
}

/// The standard library's hasher has random keys.
fn rand_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

/// Operations that print themselves.
#[derive(Clone)]
struct Records(Vec<Record>);

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{:?}", self.0)?;
        let steps = self.0.iter().copied().map(Step::decode);
        f.debug_list().entries(steps).finish()
    }
}

fn records() -> impl Strategy<Value = Records> {
    proptest::collection::vec(any::<Record>(), 1..100).prop_map(Records)
}

fn surface_matches_vec(block_on: BlockOn) {
    // Room for all data, for some of it, and for no more than one write.
    let buffer = prop_oneof![Just(1 << 20), Just(8_000), Just(0)];
    check_many(CASES, (records(), buffer), |(records, buffer)| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_path_buf();
        block_on(Box::pin(async move {
            model::run(&path, &records.0, buffer).await;
        }));
    });
}

on_each_runtime!(surface, surface_matches_vec);

/// Runs the operations once, with room for all data.
fn check_records(records: &[Record]) {
    let dir = tempfile::tempdir().unwrap();
    crate::common::block_on(model::run(dir.path(), records, 1 << 20));
}

/// The first of the ranges has no bytes, and lies past the end.
#[test]
fn empty_range_past_the_end() {
    check_records(&[[10, 0, 129, 0, 97, 168, 14, 77]]);
}

/// A slice of bytes 5,000 to 5,100, an append of another process, and a write by the path, of which
/// the end was appended and the beginning is shown.
#[test]
fn write_by_path_of_shown_and_appended_bytes() {
    check_records(&[
        [0, 0, 0x13, 0x88, 0, 100, 0, 0],
        [45, 0, 0, 0, 1, 0x2b, 9, 0],
        [10, 0, 0x13, 0x24, 0x0c, 0x80, 7, 0xb0],
    ]);
}

/// When the slice is dropped, the file shrinks and grows again at once: the chunks may be found to
/// be inside before the model has seen the growth.
#[test]
fn chunks_behind_shrink_and_growth() {
    let shrink_and_grow = [
        // A slice that blocks the shrink to 898 bytes.
        [0, 244, 189, 57, 114, 161, 47, 70],
        [226, 80, 3, 130, 104, 154, 164, 209],
        [95, 85, 156, 53, 41, 248, 121, 184],
        [231, 51, 69, 34, 155, 91, 35, 128],
        [159, 240, 188, 124, 147, 5, 216, 58],
        [8, 71, 201, 93, 191, 113, 232, 60],
        // The growth, the chunks, and a write behind them.
        [225, 197, 125, 39, 223, 1, 181, 253],
        [156, 98, 111, 85, 38, 226, 76, 100],
        [214, 186, 47, 3, 92, 166, 201, 104],
    ];
    for _ in 0..30 {
        check_records(&shrink_and_grow);
    }
}
