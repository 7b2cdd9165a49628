//! Measures a scan of a file that is in memory.

use crate::alloc::allocations;
use crate::fixture::{file, map_read, total, KIB, MIB};
use crate::harness::{timed, Bench, Result, Sample};
use crate::report::{Goal, Line};

const CHUNK: usize = 4 * KIB as usize;

/// F5: `chunks`, each byte read, against the chunks of a slice of `memmap2`; and no allocation.
pub(crate) fn scan(bench: &Bench) -> Result<Vec<Line>> {
    let len = bench.amount(256 * MIB, 64 * MIB);
    let path = file(bench, "file", len)?;
    let map = bench
        .multi
        .block_on(mmap_io::MemoryMappedFile::open_ro(&path))?;
    let raw = map_read(&path)?;

    let scan_ours = || {
        let mut sum = 0;
        for chunk in map.chunks(CHUNK) {
            sum += total(&chunk?);
        }
        Ok(sum)
    };
    let scan_raw = || {
        let mut sum = 0;
        for chunk in raw.chunks(CHUNK) {
            sum += total(chunk);
        }
        Ok(sum)
    };
    let turn = |scan: &dyn Fn() -> Result<u64>| -> Result<Sample> {
        let (elapsed, sum) = timed(scan)?;
        Ok(Sample::per_operation(elapsed, len / CHUNK as u64, sum))
    };
    let [ours, other] = bench.interleave([&mut |_| turn(&scan_ours), &mut |_| turn(&scan_raw)])?;

    let mut scanned = Ok(0);
    let allocated = allocations(|| scanned = scan_ours());
    scanned?;
    Ok(vec![
        Line::times("scan_4K", ours, other, "memmap2", Goal::AtMost(1.05)),
        Line::count("scan_4K_allocations", allocated, 0),
    ])
}
