//! Measures that a flush does not delay writes to the file that it flushes.

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

/// Nanoseconds from one write to the next at a steady pace: about the time of one write.
const PACE: u64 = 50_000;

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
    let count = bench.amount(2_000, 400);

    let ours = |of, beside, round| measure(bench, (&ours, &paths[0]), of, beside, round, count);
    let raw = |of, beside, round| measure(bench, (&raw, &paths[1]), of, beside, round, count);
    let [quiet, flushed, quiet_time, flushed_time, raw_time] = bench.interleave_slow([
        &mut |round| ours(Of::Writes, Beside::Nothing, round),
        &mut |round| ours(Of::Writes, Beside::Flush, round),
        &mut |round| ours(Of::Time, Beside::Nothing, round),
        &mut |round| ours(Of::Time, Beside::Flush, round),
        &mut |round| raw(Of::Time, Beside::Flush, round),
    ])?;

    // By hand, without any leases: the part of the latency that is due to the machine and the file
    // system.
    let by_hand = "unblock(memcpy) beside sync_data";
    let informs = Goal::Slowdown;
    Ok(vec![
        Line::times(
            "write_p99_beside_flush",
            flushed,
            quiet,
            "no flush",
            informs,
        ),
        Line::times(
            "write_p99_of_time_beside_flush",
            flushed_time,
            quiet_time,
            "no flush",
            informs,
        ),
        Line::times(
            "write_p99_of_time_beside_flush_vs_raw",
            flushed_time,
            raw_time,
            by_hand,
            Goal::AtMost(0.8),
        ),
    ])
}

/// Of which writes the slowest hundredth is taken.
#[derive(Clone, Copy)]
enum Of {
    /// Of the writes that were made, one after the other. If a flush delays writes, few writes are
    /// made during it, and else many.
    Writes,
    /// Of the writes that would have been made at a steady pace.
    Time,
}

/// What happens while writes are measured.
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

/// Makes `count` small writes and returns the latency that one in a hundred exceeds. The work is
/// the number of writes that are found in the file afterwards.
fn measure(
    bench: &Bench,
    (target, path): (&impl Target, &Path),
    of: Of,
    beside: Beside,
    round: u64,
    count: u64,
) -> Result<Sample> {
    let (target, file) = (target.clone(), File::open(path)?);
    let mut writes = offsets(stream(round, 0), 0..FILE_LEN, LEN).take(count as usize);
    let task = bench.multi.spawn(async move {
        let mut latencies = Histogram::<u64>::new_with_max(10_000_000_000, 3)?;
        let (mut made, mut found) = (0, 0);
        while made < count {
            dirty(&target).await?;
            let flush = match beside {
                Beside::Nothing => None,
                Beside::Flush => Some(tokio::spawn(target.clone().flush())),
            };
            let mut written = Vec::new();
            for offset in writes.by_ref() {
                let start = Instant::now();
                target.write(offset, AFTER.at(offset, LEN)).await?;
                let elapsed = start.elapsed().as_nanos() as u64;
                match of {
                    Of::Writes => latencies.saturating_record(elapsed),
                    Of::Time => latencies.record_correct(elapsed, PACE)?,
                }
                written.push(offset);
                if flush.as_ref().is_some_and(|flush| flush.is_finished()) {
                    break;
                }
            }
            if let Some(flush) = flush {
                flush.await??;
            }
            made += written.len() as u64;
            found += count_written(&file, &written)?;
        }
        Ok(Sample {
            value: latencies.value_at_quantile(0.99) as f64,
            work: found,
        })
    });
    bench.multi.block_on(task)?
}

/// Writes the whole file, so that all of it has to be flushed.
async fn dirty(target: &impl Target) -> Result<()> {
    for offset in (0..FILE_LEN).step_by(MIB as usize) {
        target.write(offset, BEFORE.at(offset, MIB)).await?;
    }
    Ok(())
}

/// Returns at how many of the offsets the file holds what was written.
fn count_written(file: &File, offsets: &[u64]) -> Result<u64> {
    let mut count = 0;
    for &offset in offsets {
        let mut bytes = [0; LEN as usize];
        file.read_exact_at(&mut bytes, offset)?;
        count += u64::from(AFTER.matches(offset, &bytes));
    }
    Ok(count)
}
