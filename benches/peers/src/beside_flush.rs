//! A flush must not hold up the writes to the file that it flushes.

use std::fs::File;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use hdrhistogram::Histogram;
use mmap_io::MemoryMappedFile;

use crate::fixture::{
    file, offsets, ours_written_once, stream, SharedMap, AFTER, BEFORE, FILE_LEN, MIB,
};
use crate::harness::{Bench, Result, Sample};
use crate::report::{Goal, Line};
use crate::writes::LEN;

/// F21: the slowest hundredth of small writes anywhere in a file of which every page is dirty,
/// while all of it is flushed, and while nothing is.
pub(crate) fn write_beside_flush(bench: &Bench) -> Result<Vec<Line>> {
    let paths = [
        file(bench, "ours", FILE_LEN)?,
        file(bench, "raw", FILE_LEN)?,
    ];
    let ours = ours_written_once(bench, &paths[0])?;
    let raw = Raw {
        map: SharedMap::written_once(&paths[1])?,
        file: Arc::new(File::open(&paths[1])?),
    };
    let count = bench.amount(4_000, 400);

    let measure_ours = |beside, round| measure(bench, &ours, &paths[0], beside, round, count);
    let measure_raw = |beside, round| measure(bench, &raw, &paths[1], beside, round, count);
    let [quiet, flushed, raw_quiet, raw_flushed] = bench.interleave_slow([
        &mut |round| measure_ours(Beside::Nothing, round),
        &mut |round| measure_ours(Beside::Flush, round),
        &mut |round| measure_raw(Beside::Nothing, round),
        &mut |round| measure_raw(Beside::Flush, round),
    ])?;

    // By hand, with nothing kept apart: what of it is the machine's, and the file system's.
    let peers = ["no flush", "unblock(memcpy) beside sync_data"];
    Ok(vec![
        Line::times(
            "write_p99_beside_flush",
            flushed,
            quiet,
            peers[0],
            Goal::AtMost(3.0),
        ),
        Line::times(
            "write_p99_quiet_vs_raw",
            quiet,
            raw_quiet,
            "unblock(memcpy)",
            Goal::Slowdown,
        ),
        Line::times(
            "write_p99_beside_flush_vs_raw",
            flushed,
            raw_flushed,
            peers[1],
            Goal::Slowdown,
        ),
    ])
}

/// What goes on while writes are measured.
#[derive(Clone, Copy)]
enum Beside {
    Nothing,
    Flush,
}

/// A file that one task writes to while another one flushes it.
trait Target: Clone + Send + Sync + 'static {
    fn write(&self, offset: u64, data: &'static [u8]) -> impl Future<Output = Result<()>> + Send;

    fn flush(self) -> impl Future<Output = Result<()>> + Send;
}

impl Target for MemoryMappedFile {
    async fn write(&self, offset: u64, data: &'static [u8]) -> Result<()> {
        Ok(self.update_region(offset, data).await?)
    }

    async fn flush(self) -> Result<()> {
        Ok(MemoryMappedFile::flush(&self).await?)
    }
}

/// The same by hand.
#[derive(Clone)]
struct Raw {
    map: SharedMap,
    file: Arc<File>,
}

impl Target for Raw {
    async fn write(&self, offset: u64, data: &'static [u8]) -> Result<()> {
        let map = self.map.clone();
        blocking::unblock(move || map.write(offset, data)).await;
        Ok(())
    }

    async fn flush(self) -> Result<()> {
        Ok(blocking::unblock(move || self.file.sync_data()).await?)
    }
}

/// Makes `count` small writes and gives the latency that one in a hundred passes. The work is the
/// number of those that are found in the file afterwards.
fn measure(
    bench: &Bench,
    target: &impl Target,
    path: &Path,
    beside: Beside,
    round: u64,
    count: u64,
) -> Result<Sample> {
    let (target, file) = (target.clone(), File::open(path)?);
    let mut writes = offsets(stream(round, 0), 0..FILE_LEN, LEN).take(count as usize);
    let task = bench.multi.spawn(async move {
        let mut latencies = Histogram::<u64>::new_with_max(10_000_000_000, 3)?;
        let mut found = 0;
        while latencies.len() < count {
            dirty(&target).await?;
            let flush = match beside {
                Beside::Nothing => None,
                Beside::Flush => Some(tokio::spawn(target.clone().flush())),
            };
            let mut written = Vec::new();
            for offset in writes.by_ref() {
                let start = Instant::now();
                target.write(offset, AFTER.at(offset, LEN)).await?;
                latencies.saturating_record(start.elapsed().as_nanos() as u64);
                written.push(offset);
                if flush.as_ref().is_some_and(|flush| flush.is_finished()) {
                    break;
                }
            }
            if let Some(flush) = flush {
                flush.await??;
            }
            found += count_written(&file, &written)?;
        }
        Ok(Sample {
            value: latencies.value_at_quantile(0.99) as f64,
            work: found,
        })
    });
    bench.multi.block_on(task)?
}

/// Writes all of the file, so that there is all of it to flush.
async fn dirty(target: &impl Target) -> Result<()> {
    for offset in (0..FILE_LEN).step_by(MIB as usize) {
        target.write(offset, BEFORE.at(offset, MIB)).await?;
    }
    Ok(())
}

/// At how many of the offsets the file holds what was written.
fn count_written(file: &File, offsets: &[u64]) -> Result<u64> {
    let mut count = 0;
    for &offset in offsets {
        let mut bytes = [0; LEN as usize];
        file.read_exact_at(&mut bytes, offset)?;
        count += u64::from(AFTER.matches(offset, &bytes));
    }
    Ok(count)
}
