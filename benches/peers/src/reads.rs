//! Measures small reads: the cost of getting 64 bytes and reading one of them.

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use crate::fixture::{file, map_read, map_write, offset_list, MIB};
use crate::harness::{timed, Bench, Result, Sample};
use crate::report::{Goal, Line};

const SPAN: u64 = 16 * MIB;
const LEN: u64 = 64;

/// F1: `as_slice` on a read-write mapping against indexing one of `memmap2`.
pub(crate) fn read_write_mapping(bench: &Bench) -> Result<Vec<Line>> {
    let path = file(bench, "file", SPAN)?;
    let ours = bench
        .multi
        .block_on(mmap_io::MemoryMappedFile::open_rw(&path))?;
    let raw = map_write(&path)?;
    let reads = Reads::new(bench);

    let [ours, other] = bench.interleave([
        &mut |_| reads.turn(|offset| Ok(ours.as_slice(offset, LEN)?[0])),
        &mut |_| reads.turn(|offset| Ok(raw[range(offset)][0])),
    ])?;
    Ok(vec![Line::times(
        "read_64B_rw",
        ours,
        other,
        "memmap2",
        Goal::AtMost(2.0),
    )])
}

/// F2: the same against the synchronous crate, which locks the mapping.
pub(crate) fn read_write_mapping_vs_sync(bench: &Bench) -> Result<Vec<Line>> {
    let path = file(bench, "file", SPAN)?;
    let ours = bench
        .multi
        .block_on(mmap_io::MemoryMappedFile::open_rw(&path))?;
    let sync = mmap_io_sync::MemoryMappedFile::open_rw(&path)?;
    let reads = Reads::new(bench);

    let [ours, other] = bench.interleave([
        &mut |_| reads.turn(|offset| Ok(ours.as_slice(offset, LEN)?[0])),
        &mut |_| reads.turn(|offset| Ok(sync.as_slice(offset, LEN)?[0])),
    ])?;
    Ok(vec![Line::times(
        "read_64B_rw_vs_sync",
        ours,
        other,
        "mmap-io 1.1",
        Goal::Faster(10.0),
    )])
}

/// F3: the same on read-only mappings, of all three.
pub(crate) fn read_only_mapping(bench: &Bench) -> Result<Vec<Line>> {
    let path = file(bench, "file", SPAN)?;
    let ours = bench
        .multi
        .block_on(mmap_io::MemoryMappedFile::open_ro(&path))?;
    let raw = map_read(&path)?;
    let sync = mmap_io_sync::MemoryMappedFile::open_ro(&path)?;
    let reads = Reads::new(bench);

    let [ours, raw, sync] = bench.interleave([
        &mut |_| reads.turn(|offset| Ok(ours.as_slice(offset, LEN)?[0])),
        &mut |_| reads.turn(|offset| Ok(raw[range(offset)][0])),
        &mut |_| reads.turn(|offset| Ok(sync.as_slice(offset, LEN)?[0])),
    ])?;
    Ok(vec![
        Line::times("read_64B_ro", ours, raw, "memmap2", Goal::AtMost(2.0)),
        Line::times(
            "read_64B_ro_vs_sync",
            ours,
            sync,
            "mmap-io 1.1",
            Goal::Faster(1.0),
        ),
    ])
}

/// F4: the gain of all cores over one, against that of `memmap2`.
pub(crate) fn threads(bench: &Bench) -> Result<Vec<Line>> {
    let path = file(bench, "file", SPAN)?;
    let ours = bench
        .multi
        .block_on(mmap_io::MemoryMappedFile::open_rw(&path))?;
    let raw = map_write(&path)?;
    let reads = Reads::new(bench);
    let cores = thread::available_parallelism()?.get();
    let ours = |offset| Ok(ours.as_slice(offset, LEN)?[0]);
    let raw = |offset| Ok(raw[range(offset)][0]);

    let [ours_one, ours_all, raw_one, raw_all] = bench.interleave([
        &mut |_| reads.turn_on_threads(1, ours),
        &mut |_| reads.turn_on_threads(cores, ours),
        &mut |_| reads.turn_on_threads(1, raw),
        &mut |_| reads.turn_on_threads(cores, raw),
    ])?;
    let gain = |one: f64, all: f64| cores as f64 * one / all;
    let (ours, raw) = (gain(ours_one, ours_all), gain(raw_one, raw_all));
    Ok(vec![Line::factors(
        "read_threads",
        ours,
        raw,
        "memmap2",
        Goal::Share(0.9),
    )])
}

/// The reads that every turn of these figures makes.
struct Reads {
    offsets: Vec<u64>,
    passes: u64,
}

impl Reads {
    fn new(bench: &Bench) -> Self {
        Self {
            offsets: offset_list(1 << 20, 0..SPAN, LEN),
            passes: bench.amount(4, 1),
        }
    }

    /// One turn on this thread.
    fn turn(&self, first_byte: impl Fn(u64) -> Result<u8>) -> Result<Sample> {
        let (elapsed, sum) = timed(|| self.sum_from(0, first_byte))?;
        Ok(self.sample(elapsed, sum))
    }

    /// One turn on each of `count` threads at the same time; the slowest one counts.
    fn turn_on_threads(
        &self,
        count: usize,
        first_byte: impl Fn(u64) -> Result<u8> + Copy + Sync,
    ) -> Result<Sample> {
        let barrier = Barrier::new(count);
        let read = |number: usize| {
            barrier.wait();
            // Each thread begins elsewhere, so that one does not fetch cache lines for another.
            timed(|| self.sum_from(number * self.offsets.len() / count, first_byte))
        };
        let results: Vec<Result<(Duration, u64)>> = thread::scope(|scope| {
            let read = &read;
            let threads: Vec<_> = (0..count)
                .map(|number| scope.spawn(move || read(number)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("a reader panicked"))
                .collect()
        });
        let mut slowest = Duration::ZERO;
        let mut sums = Vec::new();
        for result in results {
            let (elapsed, sum) = result?;
            slowest = slowest.max(elapsed);
            sums.push(sum);
        }
        if sums.iter().any(|sum| *sum != sums[0]) {
            return Err(format!("threads read different bytes: {sums:?}").into());
        }
        Ok(self.sample(slowest, sums[0]))
    }

    /// Reads at all offsets, beginning with the one numbered `first`, and sums the bytes up.
    #[inline]
    fn sum_from(&self, first: usize, first_byte: impl Fn(u64) -> Result<u8>) -> Result<u64> {
        let (head, tail) = self.offsets.split_at(first);
        let mut sum = 0;
        for _ in 0..self.passes {
            for offsets in [tail, head] {
                for &offset in offsets {
                    sum += u64::from(first_byte(offset)?);
                }
            }
        }
        Ok(black_box(sum))
    }

    fn sample(&self, elapsed: Duration, sum: u64) -> Sample {
        Sample::per_operation(elapsed, self.passes * self.offsets.len() as u64, sum)
    }
}

#[inline]
fn range(offset: u64) -> std::ops::Range<usize> {
    offset as usize..(offset + LEN) as usize
}
