//! Measures operations on whole files: copying one, and opening and closing one.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::fixture::{file, map_write, same_bytes, FILE_LEN, MIB};
use crate::harness::{task, timed, Bench, Result, Sample};
use crate::report::{Goal, Line};

/// F17: `copy_mmap` against `std::fs::copy`, both to a file that does not exist yet.
pub(crate) fn copy(bench: &Bench) -> Result<Vec<Line>> {
    let len = bench.amount(256 * MIB, 64 * MIB);
    let source = file(bench, "source", len)?;
    let target = bench.dir().join("target");

    // The copy is compared and removed before the other side begins, so that its dirty pages are
    // never written back beside a measurement.
    let turn = |copy: &dyn Fn() -> Result<()>| -> Result<Sample> {
        let (elapsed, ()) = timed(copy)?;
        same_bytes([&source, &target])?;
        fs::remove_file(&target)?;
        Ok(Sample::per_operation(elapsed, 1, len))
    };
    let [ours, other] = bench.interleave([
        &mut |_| {
            turn(&|| {
                Ok(bench
                    .multi
                    .block_on(mmap_io::copy_mmap(&source, &target))
                    .map(drop)?)
            })
        },
        &mut |_| turn(&|| Ok(fs::copy(&source, &target).map(drop)?)),
    ])?;
    let name = format!("copy_{}M", len / MIB);
    Ok(vec![Line::times(
        name,
        ours,
        other,
        "std::fs::copy",
        Goal::AtMost(1.15),
    )])
}

/// F23: opening a file, reading a byte and dropping it again.
pub(crate) fn open_close(bench: &Bench) -> Result<Vec<Line>> {
    let path: Arc<Path> = file(bench, "file", FILE_LEN)?.into();
    let count = bench.amount(1_000, 250);

    let [ours, other] = bench.interleave([
        &mut |_| {
            let path = Arc::clone(&path);
            task(&bench.multi, count, async move {
                let mut sum = 0;
                for offset in 0..count {
                    let map = mmap_io::MemoryMappedFile::open_rw(&path).await?;
                    sum += u64::from(map.as_slice(offset, 1)?[0]);
                }
                Ok(sum)
            })
        },
        &mut |_| {
            let path = Arc::clone(&path);
            task(&bench.multi, count, async move {
                let mut sum = 0;
                for offset in 0..count as usize {
                    let path = Arc::clone(&path);
                    let map = blocking::unblock(move || map_write(&path)).await?;
                    sum += u64::from(map[offset]);
                }
                Ok(sum)
            })
        },
    ])?;
    Ok(vec![Line::times(
        "open_close_rw",
        ours,
        other,
        "unblock(memmap2)",
        Goal::AtMost(2.0),
    )])
}
