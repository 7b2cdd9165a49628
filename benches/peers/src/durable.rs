//! Measures durable writes: small ones, one after the other in a region, as in a log.
//!
//! The sides take turns in *one* file. On a virtual disk the same `msync` may take 1.4 times as
//! long in one file as in another, depending on where each lies; the difference between the sides
//! is smaller than that.

use std::cell::Cell;
use std::ops::Range;
use std::path::Path;

use crate::fixture::{file, map_read, ours_written_once, SharedMap, AFTER, BEFORE, FILE_LEN};
use crate::harness::{task, Bench, Result};
use crate::report::{Goal, Line};

/// The length of a record.
pub(crate) const LEN: u64 = 64;

/// F7: one task that waits for each of its records, against the `msync` it could do by hand.
pub(crate) fn one_task(bench: &Bench) -> Result<Vec<Line>> {
    let path = file(bench, "log", FILE_LEN)?;
    let ours = ours_written_once(bench, &path)?;
    let raw = SharedMap::written_once(&path)?;
    bench.multi.block_on(ours.flush())?;
    let count = bench.amount(400, 100);
    let log = Log::default();

    let [ours, raw] = bench.interleave([
        &mut |_| {
            let (map, records) = (ours.clone(), log.append(count));
            task(&bench.multi, count, async move {
                for offset in records.step_by(LEN as usize) {
                    map.update_region_async(offset, AFTER.at(offset, LEN))
                        .await?;
                }
                Ok(count)
            })
        },
        &mut |_| {
            let (map, records) = (raw.clone(), log.append(count));
            task(&bench.multi, count, async move {
                for offset in records.step_by(LEN as usize) {
                    let (map, data) = (map.clone(), AFTER.array_at::<{ LEN as usize }>(offset));
                    blocking::unblock(move || map.write_durably(offset, &data)).await?;
                }
                Ok(count)
            })
        },
    ])?;
    log.check(&path)?;
    Ok(vec![Line::times(
        "durable_1_task",
        ours,
        raw,
        "unblock(memcpy + msync)",
        Goal::AtMost(1.2),
    )])
}

/// A region at the start of a file, which the sides write in turns, record after record.
#[derive(Default)]
pub(crate) struct Log {
    len: Cell<u64>,
}

impl Log {
    /// Where the next `count` records go.
    pub(crate) fn append(&self, count: u64) -> Range<u64> {
        let start = self.len.get();
        self.len.set(start + count * LEN);
        start..self.len.get()
    }

    /// Fails unless every record is there, and nothing behind them has changed.
    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        let (map, len) = (map_read(path)?, self.len.get());
        let (records, rest) = map.split_at(len as usize);
        if !AFTER.matches(0, records) || !BEFORE.matches(len, rest) {
            return Err("the log does not hold what was written".into());
        }
        Ok(())
    }
}
