//! Durable writes: small ones, one after the other in a region, as in a log.

use crate::fixture::{file, ours_written_once, same_bytes, SharedMap, AFTER, FILE_LEN};
use crate::harness::{task, Bench, Result};
use crate::report::{Goal, Line};

const LEN: u64 = 64;

/// F7: one task that waits for each of its records, against the `msync` it could do by hand.
pub(crate) fn one_task(bench: &Bench) -> Result<Vec<Line>> {
    let paths = [
        file(bench, "ours", FILE_LEN)?,
        file(bench, "memmap2", FILE_LEN)?,
    ];
    let ours = ours_written_once(bench, &paths[0])?;
    let raw = SharedMap::written_once(&paths[1])?;
    bench.multi.block_on(ours.flush())?;
    raw.flush()?;
    let count = bench.amount(400, 100);

    let [ours, raw] = bench.interleave([
        &mut |round| {
            let map = ours.clone();
            task(&bench.multi, count, async move {
                for offset in records(round, count) {
                    map.update_region_async(offset, AFTER.at(offset, LEN))
                        .await?;
                }
                Ok(count)
            })
        },
        &mut |round| {
            let map = raw.clone();
            task(&bench.multi, count, async move {
                for offset in records(round, count) {
                    let (map, data) = (map.clone(), AFTER.array_at::<{ LEN as usize }>(offset));
                    blocking::unblock(move || map.write_durably(offset, &data)).await?;
                }
                Ok(count)
            })
        },
    ])?;
    same_bytes([&paths[0], &paths[1]])?;
    Ok(vec![Line::times(
        "durable_1_task",
        ours,
        raw,
        "unblock(memcpy + msync)",
        Goal::AtMost(1.2),
    )])
}

/// Where the records of a round lie: behind those of the rounds before.
fn records(round: u64, count: u64) -> impl Iterator<Item = u64> {
    (round * count..(round + 1) * count).map(|record| record * LEN)
}
