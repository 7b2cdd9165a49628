//! What the model needs of its surroundings.

#![allow(dead_code)] // No target uses all of it.

use std::future::Future;

/// The most records that one input is read as: later ones would find nothing new.
const RECORDS: usize = 120;

pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// libFuzzer ends what hangs.
pub(crate) async fn with_timeout<T>(future: impl Future<Output = T>) -> T {
    future.await
}

/// The records of an input.
pub(crate) fn records(input: &[u8]) -> Vec<[u8; 8]> {
    let records = input.chunks_exact(8).take(RECORDS);
    records.map(|record| record.try_into().unwrap()).collect()
}
