//! Measures thousands of files that are all flushed by a timer.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::alloc::HeapWatch;
use crate::fixture::{AFTER, BEFORE};
use crate::harness::{Bench, Result};
use crate::os;
use crate::report::{Goal, Line};

const FILE_LEN: u64 = 4_096;
const LEN: u64 = 64;

/// How long after a write its file may stay dirty.
const DEADLINE: Duration = Duration::from_millis(100);

/// How long it takes to write to each file once.
const CYCLE: Duration = Duration::from_secs(10);

/// More than the time after which an idle thread leaves the pool of `blocking`.
const POOL_IDLE: Duration = Duration::from_millis(750);

/// The number of descriptors for everything but the files.
const SPARE: u64 = 500;

/// F18: 10,000 mappings flushed every 100 ms, of which a tenth is written to each second. The peer,
/// with one thread for each mapping, is measured with fewer mappings.
pub(crate) fn many_files(bench: &Bench) -> Result<Vec<Line>> {
    let count = bench.amount(10_000, 1_000);
    let time = bench.amount(1, 10) as u32;
    let few = count / 20;
    os::raise_descriptors(count + few + SPARE)?;
    let paths = files(bench, count + few)?;
    let (paths, few_paths) = paths.split_at(count as usize);

    let ours = serve(paths, CYCLE / time, |path| Ours::open(bench, path))?;
    let sync = serve(few_paths, CYCLE / 10, Sync::open)?;

    let name = |what| format!("many_files_{count}_{what}");
    Ok(vec![
        Line::count(name("threads"), ours.threads, 3),
        Line::count(name("heap_a_file"), ours.heap / count, 5 * 1_024 - 1),
        Line::times(
            name("latest_flush"),
            ours.latest.as_nanos() as f64,
            DEADLINE.as_nanos() as f64,
            "its deadline",
            Goal::AtMost(2.0),
        ),
        Line::times(
            name("latest_flush_vs_sync"),
            ours.latest.as_nanos() as f64,
            sync.latest.as_nanos() as f64,
            "mmap-io 1.1, fewer files",
            Goal::Slowdown,
        ),
        Line::factors(
            name("threads_a_file"),
            ours.threads as f64 / count as f64,
            sync.threads as f64 / few as f64,
            "mmap-io 1.1, fewer files",
            Goal::Slowdown,
        ),
    ])
}

/// A file that is flushed [`DEADLINE`] after a write.
trait Served {
    fn write(&self, offset: u64, data: &[u8]) -> Result<()>;

    fn is_dirty(&self) -> bool;
}

struct Ours<'a> {
    bench: &'a Bench,
    map: mmap_io::MemoryMappedFile,
    /// What had been made durable before the last write.
    flushed_before: Cell<u64>,
}

impl<'a> Ours<'a> {
    fn open(bench: &'a Bench, path: &Path) -> Result<Self> {
        let open = mmap_io::MemoryMappedFile::builder(path)
            .mode(mmap_io::MmapMode::ReadWrite)
            .flush_policy(mmap_io::FlushPolicy::EveryMillis(
                DEADLINE.as_millis() as u64
            ))
            .open();
        let map = bench.multi.block_on(open)?;
        Ok(Self {
            bench,
            map,
            flushed_before: Cell::new(0),
        })
    }
}

impl Served for Ours<'_> {
    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.flushed_before.set(self.map.stats().flushed_waiters);
        let write = self.map.update_region(offset, data);
        Ok(self.bench.multi.block_on(write)?)
    }

    /// Whether the flush has not ended yet. Pending bytes alone do not tell: they are 0 as soon as
    /// it begins.
    fn is_dirty(&self) -> bool {
        let stats = self.map.stats();
        stats.pending_bytes > 0 || stats.flushed_waiters == self.flushed_before.get()
    }
}

struct Sync(mmap_io_sync::MemoryMappedFile);

impl Sync {
    fn open(path: &Path) -> Result<Self> {
        let policy = mmap_io_sync::flush::FlushPolicy::EveryMillis(DEADLINE.as_millis() as u64);
        Ok(Self(
            mmap_io_sync::MemoryMappedFile::builder(path)
                .mode(mmap_io_sync::MmapMode::ReadWrite)
                .flush_policy(policy)
                .open()?,
        ))
    }
}

impl Served for Sync {
    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        Ok(self.0.update_region(offset, data)?)
    }

    /// Whether the flush has not begun yet; its end cannot be observed.
    fn is_dirty(&self) -> bool {
        self.0.pending_bytes() > 0
    }
}

/// The resources that serving the files took.
struct Cost {
    /// The most threads at a time, without those that existed before.
    threads: u64,
    /// Bytes of heap.
    heap: u64,
    /// The longest that a file stayed dirty.
    latest: Duration,
}

/// Opens all files and writes to one after the other for `time`, at a pace that would reach each
/// once a [`CYCLE`]. Fails unless they hold then what was written.
fn serve<F: Served>(
    paths: &[PathBuf],
    time: Duration,
    open: impl Fn(&Path) -> Result<F>,
) -> Result<Cost> {
    let count = paths.len() as u32;
    let writes = (time.as_nanos() / (CYCLE / count).as_nanos()) as usize;
    let mut dirty: VecDeque<(usize, Instant)> = VecDeque::with_capacity(paths.len());
    let mut maps = Vec::with_capacity(paths.len());
    // Allocated before the measurement, so that it does not count as heap of the files.
    let record = AFTER.at(0, LEN);
    // The whole process shares the pool: waits until idle threads of earlier work have ended.
    thread::sleep(POOL_IDLE);
    let threads_before = os::threads()?;
    let heap = HeapWatch::start();

    for path in paths {
        maps.push(open(path)?);
    }
    let mut served = Cost {
        threads: 0,
        heap: heap.grown(),
        latest: Duration::ZERO,
    };
    let start = Instant::now();
    let mut written = 0;
    while written < writes || !dirty.is_empty() {
        if written < writes && start.elapsed() >= CYCLE / count * written as u32 {
            let number = written % maps.len();
            maps[number].write(0, record)?;
            dirty.push_back((number, Instant::now()));
            written += 1;
            served.threads = served
                .threads
                .max(os::threads()?.saturating_sub(threads_before));
        } else {
            thread::sleep(Duration::from_micros(500));
        }
        dirty.retain(|(number, since)| {
            served.latest = served.latest.max(since.elapsed());
            maps[*number].is_dirty()
        });
        if served.latest > CYCLE {
            return Err("a file is never flushed".into());
        }
    }
    served.heap = served.heap.max(heap.grown());
    drop(maps);

    for (number, path) in paths.iter().enumerate() {
        let bytes = fs::read(path)?;
        let (record, rest) = bytes.split_at(LEN as usize);
        let contents = if number < writes { &AFTER } else { &BEFORE };
        if !contents.matches(0, record) || !BEFORE.matches(LEN, rest) {
            return Err(format!("other bytes in {}", path.display()).into());
        }
    }
    Ok(served)
}

/// That many small files, durable.
fn files(bench: &Bench, count: u64) -> Result<Vec<PathBuf>> {
    let paths: Vec<_> = (0..count)
        .map(|number| bench.dir().join(number.to_string()))
        .collect();
    for path in &paths {
        fs::write(path, BEFORE.at(0, FILE_LEN))?;
    }
    os::sync_all(bench.dir())?;
    Ok(paths)
}
