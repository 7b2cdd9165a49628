//! Measures the cost of making sure that pages are in memory when they already are.

use std::sync::Arc;

use tokio::task::spawn_blocking;

use crate::fixture::{file, map_read, offsets, ours_written_once, stream, FILE_LEN, KIB};
use crate::harness::{task, Bench, Result};
use crate::report::{Goal, Line};

const PAGE: usize = 4096;

/// F15: `slice` of hot pages, against touching them on a blocking thread.
pub(crate) fn slice_resident(bench: &Bench) -> Result<Vec<Line>> {
    Ok(vec![
        slice_hot(bench, 4 * KIB, Goal::Faster(12.0))?,
        slice_hot(bench, 64 * KIB, Goal::Faster(10.0))?,
    ])
}

fn slice_hot(bench: &Bench, len: u64, goal: Goal) -> Result<Line> {
    let path = file(bench, "file", FILE_LEN)?;
    let ours = ours_written_once(bench, &path)?;
    let raw = Arc::new(map_read(&path)?);
    let count = bench.amount(4_000, 1_000);

    let [ours, other] = bench.interleave([
        &mut |round| {
            let map = ours.clone();
            task(&bench.multi, count, async move {
                let mut sum = 0;
                for offset in reads(round, count, len) {
                    sum += touch(&map.slice(offset, len).await?);
                }
                Ok(sum)
            })
        },
        &mut |round| {
            let map = Arc::clone(&raw);
            task(&bench.multi, count, async move {
                let mut sum = 0;
                for offset in reads(round, count, len) {
                    let map = Arc::clone(&map);
                    let range = offset as usize..(offset + len) as usize;
                    sum += spawn_blocking(move || touch(&map[range])).await?;
                }
                Ok(sum)
            })
        },
    ])?;
    let name = format!("slice_{}K_hot", len / KIB);
    Ok(Line::times(
        name,
        ours,
        other,
        "spawn_blocking(touch)",
        goal,
    ))
}

/// Reads one byte of every page.
fn touch(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .step_by(PAGE)
        .map(|byte| u64::from(*byte))
        .sum()
}

fn reads(round: u64, count: u64, len: u64) -> impl Iterator<Item = u64> {
    offsets(stream(round, 0), 0..FILE_LEN, len).take(count as usize)
}
