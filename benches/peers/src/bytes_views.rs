//! Measures `Bytes`, which pass on a part of the file without copying it.

use std::hint::black_box;

use bytes::Bytes;

use crate::alloc::allocations;
use crate::fixture::{file, map_read, offset_list, FILE_LEN, KIB};
use crate::harness::{timed, Bench, Result, Sample};
use crate::report::{Goal, Line};

const LEN: u64 = 64 * KIB;

/// F22: `bytes` and drop, and `clone` and `slice` of one, against a copy of the same length.
pub(crate) fn bytes(bench: &Bench) -> Result<Vec<Line>> {
    let path = file(bench, "file", FILE_LEN)?;
    let ours = bench
        .multi
        .block_on(mmap_io::MemoryMappedFile::open_rw(&path))?;
    let raw = map_read(&path)?;
    let whole = ours.bytes(0, FILE_LEN)?;
    let offsets = offset_list(bench.amount(50_000, 10_000), 0..FILE_LEN, LEN);

    // No byte is read here: fetching it from memory would cost more than the view.
    let turn = |make: &dyn Fn(u64) -> Result<Bytes>| -> Result<Sample> {
        let (elapsed, sum) = timed(|| {
            let mut sum = 0;
            for &offset in &offsets {
                sum += black_box(make(offset)?).len() as u64;
            }
            Ok(sum)
        })?;
        Ok(Sample::per_operation(elapsed, offsets.len() as u64, sum))
    };
    let view = |offset| Ok(ours.bytes(offset, LEN)?);
    let part = |offset: u64| {
        Ok(whole
            .clone()
            .slice(offset as usize..(offset + LEN) as usize))
    };
    let copy = |offset: u64| {
        Ok(Bytes::copy_from_slice(
            &raw[offset as usize..][..LEN as usize],
        ))
    };

    let [viewed, shared, copied] =
        bench.interleave([&mut |_| turn(&view), &mut |_| turn(&part), &mut |_| {
            turn(&copy)
        }])?;

    for &offset in offsets.iter().take(100) {
        let copy = copy(offset)?;
        if view(offset)? != copy || part(offset)? != copy {
            return Err(format!("other bytes at {offset}").into());
        }
    }

    let mut parts = Ok(());
    let allocated = allocations(|| {
        parts = offsets
            .iter()
            .try_for_each(|&offset| part(offset).map(|bytes| drop(black_box(bytes))));
    });
    parts?;
    let goal = Goal::Faster(20.0);
    Ok(vec![
        Line::times("bytes_64K", viewed, copied, "Bytes::copy_from_slice", goal),
        Line::times(
            "bytes_clone_slice_64K",
            shared,
            copied,
            "Bytes::copy_from_slice",
            goal,
        ),
        Line::count("bytes_clone_slice_allocations", allocated, 0),
    ])
}
