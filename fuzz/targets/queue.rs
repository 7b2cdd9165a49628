//! The queue: writes, appends, resizes and mutable views that views block, with a small write
//! buffer, and futures that are dropped.

#![no_main]

mod support;

#[path = "../../tests/common/model/mod.rs"]
mod model;

use self::model::ops::Record;
use self::support::{pattern, records, with_timeout};

/// Kinds of operations, by the numbers that they are decoded from: what is queued, the views that
/// block it, and the ends of both.
const KINDS: [u8; 16] = [0, 6, 10, 11, 12, 13, 14, 24, 28, 29, 32, 33, 36, 47, 62, 63];

/// Makes an operation one of the queue, and drops its future more often than the model does.
fn queued(record: Record) -> Record {
    let [kind, which, a, b, c, d, byte, flags] = record;
    let is_dropped = byte % 3 == 0;
    let flags = if is_dropped { flags | 7 } else { flags & !7 };
    let kind = KINDS[usize::from(kind) % KINDS.len()];
    [kind, which, a, b, c, d, byte, flags]
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((buffer, input)) = input.split_first() else {
        return;
    };
    let records: Vec<_> = records(input).into_iter().map(queued).collect();
    let dir = tempfile::tempdir().unwrap();
    let run = model::run(dir.path(), &records, usize::from(*buffer) * 64);
    futures_lite::future::block_on(run);
});
