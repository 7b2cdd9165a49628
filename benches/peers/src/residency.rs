//! Measures the cost of making sure that pages are in memory when they already are.

use std::sync::Arc;

use tokio::task::spawn_blocking;

use crate::fixture::{file, map_read, offsets, ours_written_once, stream, FILE_LEN, KIB};
use crate::harness::{task, Bench, Result};
use crate::report::{Goal, Line};

const LEN: u64 = 64 * KIB;
const PAGE: usize = 4096;

/// F15: `slice` of hot pages, against touching them on a blocking thread.
pub(crate) fn slice_resident(bench: &Bench) -> Result<Vec<Line>> {
    let path = file(bench, "file", FILE_LEN)?;
    let ours = ours_written_once(bench, &path)?;
    let raw = Arc::new(map_read(&path)?);
    let count = bench.amount(4_000, 1_000);

    let [ours, other] = bench.interleave([
        &mut |round| {
            let map = ours.clone();
            task(&bench.multi, count, async move {
                let mut sum = 0;
                for offset in reads(round, count) {
                    sum += touch(&map.slice(offset, LEN).await?);
                }
                Ok(sum)
            })
        },
        &mut |round| {
            let map = Arc::clone(&raw);
            task(&bench.multi, count, async move {
                let mut sum = 0;
                for offset in reads(round, count) {
                    let map = Arc::clone(&map);
                    let range = offset as usize..(offset + LEN) as usize;
                    sum += spawn_blocking(move || touch(&map[range])).await?;
                }
                Ok(sum)
            })
        },
    ])?;
    Ok(vec![Line::times(
        "slice_64K_hot",
        ours,
        other,
        "spawn_blocking(touch)",
        Goal::Faster(10.0),
    )])
}

/// Reads one byte of every page.
fn touch(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .step_by(PAGE)
        .map(|byte| u64::from(*byte))
        .sum()
}

fn reads(round: u64, count: u64) -> impl Iterator<Item = u64> {
    offsets(stream(round, 0), 0..FILE_LEN, LEN).take(count as usize)
}
