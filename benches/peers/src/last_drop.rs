//! Measures the drop of a large mapping, whose page table must be freed.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::fixture::{file, map_read, MIB};
use crate::harness::{timed, Bench, Result, Sample};
use crate::os;
use crate::report::{Goal, Line};

const PAGE: usize = 4_096;

/// F24: how long the last drop of a mapping occupies the executor, with every page mapped.
pub(crate) fn last_drop(bench: &Bench) -> Result<Vec<Line>> {
    let len = bench.amount(1_024 * MIB, 128 * MIB);
    let path = file(bench, "file", len)?;

    let [ours, raw] = bench.interleave([
        &mut |_| {
            let map = bench
                .multi
                .block_on(mmap_io::MemoryMappedFile::open_ro(&path))?;
            let sum = touch(&map.as_slice(0, len)?);
            drop_on_executor(bench, &path, map, sum)
        },
        &mut |_| {
            let map = map_read(&path)?;
            let sum = touch(&map);
            drop_on_executor(bench, &path, map, sum)
        },
    ])?;
    Ok(vec![Line::times(
        format!("last_drop_{}M", len / MIB),
        ours,
        raw,
        "memmap2",
        Goal::AtMost(0.05),
    )])
}

/// Reads one byte of every page, which maps it.
fn touch(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .step_by(PAGE)
        .map(|byte| u64::from(*byte))
        .sum()
}

/// Drops `map` in a task, and waits until the mapping is gone.
fn drop_on_executor(
    bench: &Bench,
    path: &Path,
    map: impl Send + 'static,
    work: u64,
) -> Result<Sample> {
    let dropped = async move {
        timed(|| {
            drop(map);
            Ok(())
        })
    };
    let (elapsed, ()) = bench.multi.block_on(bench.multi.spawn(dropped))??;
    let patience = Instant::now() + Duration::from_secs(10);
    while os::is_mapped(path)? {
        if Instant::now() > patience {
            return Err("the mapping outlives its last handle".into());
        }
        thread::yield_now();
    }
    Ok(Sample::per_operation(elapsed, 1, work))
}
