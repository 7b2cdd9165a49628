//! Measures that an operation is not slowed by what else happens in the file: views held elsewhere,
//! more tasks, and writes during reads.

use std::hint::black_box;
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::future;
use hdrhistogram::Histogram;
use mmap_io::MemoryMappedFile;
use tokio::task::JoinHandle;

use crate::fixture::{
    file, map_read_range, offset_list, offsets, ours_written_once, same_bytes, stream, AFTER,
    BEFORE, FILE_LEN, MIB,
};
use crate::harness::{task, tasks, Bench, Result, Sample};
use crate::report::{Goal, Line};
use crate::writes::{small_writes, update, LEN};

/// F19: the cost of an operation beside a growing number of operations that do not overlap it.
pub(crate) fn growth(bench: &Bench) -> Result<Vec<Line>> {
    let mut lines = growth_of_writes(bench)?;
    lines.push(read_between_views(bench)?);
    lines.push(write_beside_waiting_readers(bench)?);
    lines.push(read_beside_blocked_writes(bench)?);
    // Last, because the effect of its threads on the file would persist.
    lines.push(write_after_a_peak(bench)?);
    Ok(lines)
}

/// Small writes while more and more views are held elsewhere, and from more and more tasks.
fn growth_of_writes(bench: &Bench) -> Result<Vec<Line>> {
    let paths = [
        file(bench, "a", FILE_LEN)?,
        file(bench, "b", FILE_LEN)?,
        file(bench, "c", FILE_LEN)?,
    ];
    let [a, b, c] = [
        ours_written_once(bench, &paths[0])?,
        ours_written_once(bench, &paths[1])?,
        ours_written_once(bench, &paths[2])?,
    ];

    let [one, hundred, ten_thousand] = bench.interleave([
        &mut |round| update_beside_views(bench, &a, 1, round),
        &mut |round| update_beside_views(bench, &b, 100, round),
        &mut |round| update_beside_views(bench, &c, 10_000, round),
    ])?;
    same_bytes([&paths[0], &paths[1], &paths[2]])?;

    // The same streams of offsets for both, four times as many to a task where there are fewer.
    let each = bench.amount(16, 4);
    let writes = 4_096 * each;
    let [few, many] = bench.interleave([
        &mut |round| {
            let few = |task| {
                let four = task * 4..task * 4 + 4;
                update(
                    a.clone(),
                    four.flat_map(move |task| small_writes(round, task, each)),
                )
            };
            tasks(&bench.multi, writes, 1_024, few)
        },
        &mut |round| {
            let many = |task| update(b.clone(), small_writes(round, task, each));
            tasks(&bench.multi, writes, 4_096, many)
        },
    ])?;
    same_bytes([&paths[0], &paths[1]])?;

    let goal = Goal::AtMost(2.0);
    Ok(vec![
        Line::times("update_beside_100_views", hundred, one, "1 view", goal),
        Line::times(
            "update_beside_10000_views",
            ten_thousand,
            one,
            "1 view",
            goal,
        ),
        Line::times(
            "update_4096_tasks",
            many,
            few,
            "1,024 tasks",
            Goal::AtMost(1.5),
        ),
    ])
}

/// One task writes to the upper half of the file while `views` views of the lower one are held.
fn update_beside_views(
    bench: &Bench,
    map: &MemoryMappedFile,
    views: u64,
    round: u64,
) -> Result<Sample> {
    let half = FILE_LEN / 2;
    let count = bench.amount(2_000, 500);
    let held = (0..views)
        .map(|view| Ok(map.as_slice(view * (half / views), LEN)?))
        .collect::<Result<Vec<_>>>()?;
    let writes = offsets(stream(round, 0), half..FILE_LEN, LEN).take(count as usize);
    let sample = task(&bench.multi, count, update(map.clone(), writes))?;
    for (view, slice) in held.iter().enumerate() {
        let offset = view as u64 * (half / views);
        if !BEFORE.matches(offset, slice) {
            return Err(format!("the view at {offset} changed").into());
        }
    }
    Ok(sample)
}

/// Small reads in the middle of a file, with no view and with a mutable one at each end.
fn read_between_views(bench: &Bench) -> Result<Line> {
    const VIEW: u64 = 4096;
    let path = file(bench, "between", FILE_LEN)?;
    let map = ours_written_once(bench, &path)?;
    let middle = FILE_LEN / 4..FILE_LEN / 4 * 3;
    let offsets = offset_list(bench.amount(1 << 20, 1 << 18), middle, LEN);
    let turn = || {
        let start = Instant::now();
        let mut sum = 0;
        for &offset in &offsets {
            sum += u64::from(black_box(map.as_slice(offset, LEN)?[0]));
        }
        let elapsed = start.elapsed();
        Ok(Sample::per_operation(elapsed, offsets.len() as u64, sum))
    };
    let [quiet, between] = bench.interleave([&mut |_| turn(), &mut |_| {
        let views = [0, FILE_LEN - VIEW].map(|at| bench.multi.block_on(map.as_slice_mut(at, VIEW)));
        let sample = turn();
        for view in views {
            drop(view?);
        }
        sample
    }])?;
    let goal = Goal::AtMost(1.5);
    Ok(Line::times(
        "read_between_views",
        between,
        quiet,
        "no view",
        goal,
    ))
}

/// Small writes while tasks wait to read a range that has a mutable view.
fn write_beside_waiting_readers(bench: &Bench) -> Result<Line> {
    let (viewed, waiting) = (4096, 1_000);
    let path = file(bench, "waiting", FILE_LEN)?;
    let map = ours_written_once(bench, &path)?;
    let count = bench.amount(2_000, 500);
    let turn = |round, waiting: u64| {
        let view = bench.multi.block_on(map.as_slice_mut(0, viewed))?;
        let readers: Vec<_> = (0..waiting)
            .map(|reader| {
                let map = map.clone();
                bench.multi.spawn(async move {
                    let slice = map.slice(reader % viewed, 1).await?;
                    Result::Ok(u64::from(slice[0]))
                })
            })
            .collect();
        // By then each task has been polled, and its job on the pool, if any, has ended.
        thread::sleep(Duration::from_millis(100));
        if readers.iter().any(JoinHandle::is_finished) {
            return Err("a reader did not wait for the view".into());
        }
        let writes = offsets(stream(round, 0), FILE_LEN / 2..FILE_LEN, LEN).take(count as usize);
        let sample = task(&bench.multi, count, update(map.clone(), writes));
        drop(view);
        for reader in readers {
            bench.multi.block_on(reader)??;
        }
        sample
    };
    let [beside, quiet] = bench.interleave([&mut |round| turn(round, waiting), &mut |round| {
        turn(round, 0)
    }])?;
    Ok(Line::times(
        "update_beside_waiting_readers",
        beside,
        quiet,
        "none waiting",
        Goal::AtMost(1.3),
    ))
}

/// The slowest thousandth of small reads while writes of other bytes wait for a view, and one write
/// after the other of those bytes gives up; the same with no writes that wait.
fn read_beside_blocked_writes(bench: &Bench) -> Result<Line> {
    const BLOCKED: u64 = 16 * MIB;
    let path = file(bench, "blocked", FILE_LEN)?;
    let map = ours_written_once(bench, &path)?;
    let offsets = offset_list(bench.amount(1 << 20, 1 << 17), FILE_LEN / 2..FILE_LEN, LEN);
    let turn = |waiting: u64| {
        let view = map.bytes(0, BLOCKED)?;
        let mut writes: Vec<_> = (0..waiting)
            .map(|write| {
                let at = write * LEN % BLOCKED;
                Box::pin(map.write_bytes(at, BEFORE.bytes_at(at, LEN)))
            })
            .collect();
        future::block_on(async {
            for write in &mut writes {
                if future::poll_once(write).await.is_some() {
                    return Err("the write went through a view".into());
                }
            }
            Result::Ok(())
        })?;
        let stop = AtomicBool::new(false);
        let sample = thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let gives_up = map.write_bytes(0, BEFORE.bytes_at(0, LEN));
                    future::block_on(future::poll_once(gives_up));
                    thread::sleep(Duration::from_millis(1));
                }
            });
            let sample = slowest_thousandth(&offsets, |offset| Ok(map.as_slice(offset, LEN)?[0]));
            stop.store(true, Ordering::Relaxed);
            sample
        })?;
        drop(view);
        for write in writes {
            future::block_on(write)?;
        }
        Ok(sample)
    };
    let [blocked, quiet] = bench.interleave_slow([&mut |_| turn(50_000), &mut |_| turn(0)])?;
    let goal = Goal::AtMost(3.0);
    Ok(Line::times(
        "read_p999_beside_blocked_writes",
        blocked,
        quiet,
        "none blocked",
        goal,
    ))
}

/// Small writes before and after many threads have read at a time.
fn write_after_a_peak(bench: &Bench) -> Result<Line> {
    let threads = bench.amount(3_000, 1_000) as usize;
    let path = file(bench, "peak", FILE_LEN)?;
    let map = ours_written_once(bench, &path)?;
    let count = bench.amount(2_000, 500);
    let mut turn = |round| {
        let writes = offsets(stream(round, 0), 0..FILE_LEN, LEN).take(count as usize);
        task(&bench.multi, count, update(map.clone(), writes))
    };
    let [before] = bench.interleave([&mut turn])?;
    // The threads sleep until the gate is opened.
    let gate = RwLock::new(());
    let (read, closed) = (AtomicUsize::new(0), gate.write());
    let reader = || {
        drop(map.as_slice(0, LEN));
        read.fetch_add(1, Ordering::Relaxed);
        drop(gate.read());
    };
    thread::scope(|scope| {
        let spawn = |_| {
            let thread = thread::Builder::new().stack_size(64 << 10);
            thread.spawn_scoped(scope, reader).map(drop)
        };
        let spawned = (0..threads).try_for_each(spawn);
        while spawned.is_ok() && read.load(Ordering::Relaxed) < threads {
            thread::sleep(Duration::from_millis(1));
        }
        // Opened also if the machine could not start all of the threads.
        drop(closed);
        spawned
    })?;
    let [after] = bench.interleave([&mut turn])?;
    Ok(Line::times(
        "update_after_a_peak_of_threads",
        after,
        before,
        "before it",
        Goal::AtMost(1.5),
    ))
}

/// Where F20 reads. Small writes go to both sides of it, large ones above them.
const READS: Range<u64> = 16 * MIB..32 * MIB;
const SMALL_WRITES: [Range<u64>; 2] = [0..16 * MIB, 32 * MIB..48 * MIB];
const LARGE_WRITE: Range<u64> = 48 * MIB..64 * MIB;

/// F20: the slowest thousandth of small reads, in quiet, beside writes elsewhere in the file, and
/// under a write of the very range that a `Bytes` keeps from being applied.
pub(crate) fn read_beside_writes(bench: &Bench) -> Result<Vec<Line>> {
    let path = file(bench, "file", FILE_LEN)?;
    let map = ours_written_once(bench, &path)?;
    let mapped = map_read_range(&path, READS)?;
    let offsets = offset_list(bench.amount(1 << 20, 1 << 18), READS, LEN);

    let ours = || slowest_thousandth(&offsets, |offset| Ok(map.as_slice(offset, LEN)?[0]));
    let raw = || {
        slowest_thousandth(&offsets, |offset| {
            let start = (offset - READS.start) as usize;
            Ok(mapped[start..start + LEN as usize][0])
        })
    };
    let [quiet, beside, raw_quiet, raw_beside, under] = bench.interleave_slow([
        &mut |_| ours(),
        &mut |_| beside_writes(bench, &map, ours),
        &mut |_| raw(),
        &mut |_| beside_writes(bench, &map, raw),
        &mut |_| under_blocked_write(&map, ours),
    ])?;
    let (offset, len) = (LARGE_WRITE.start, LARGE_WRITE.end - LARGE_WRITE.start);
    if !AFTER.matches(offset, &map.as_slice(offset, len)?) {
        return Err("a large write was not applied in full".into());
    }

    // `memmap2`, which does not separate reads and writes, shows the part of the latency that is
    // due to the machine: three busy threads share two cores and the memory.
    let goal = Goal::AtMost(3.0);
    Ok(vec![
        Line::times("read_p999_beside_writes", beside, quiet, "no writes", goal),
        Line::times(
            "read_p999_under_blocked_write",
            under,
            quiet,
            "no writes",
            goal,
        ),
        Line::times(
            "read_p999_quiet_vs_raw",
            quiet,
            raw_quiet,
            "memmap2",
            Goal::Slowdown,
        ),
        Line::times(
            "read_p999_beside_writes_vs_raw",
            beside,
            raw_beside,
            "memmap2",
            Goal::Slowdown,
        ),
    ])
}

/// Reads one byte at each offset and returns the latency that one in a thousand reads exceeds.
fn slowest_thousandth(offsets: &[u64], first_byte: impl Fn(u64) -> Result<u8>) -> Result<Sample> {
    let mut latencies = Histogram::<u64>::new_with_max(1_000_000_000, 3)?;
    let mut sum = 0;
    for &offset in offsets {
        let start = Instant::now();
        let byte = black_box(first_byte(offset)?);
        let elapsed = start.elapsed();
        sum += u64::from(byte);
        latencies.saturating_record(elapsed.as_nanos() as u64);
    }
    Ok(Sample {
        value: latencies.value_at_quantile(0.999) as f64,
        work: sum,
    })
}

/// Measures while one task makes small writes and another one large writes, without a pause.
fn beside_writes(
    bench: &Bench,
    map: &MemoryMappedFile,
    measure: impl FnOnce() -> Result<Sample>,
) -> Result<Sample> {
    let [below, above] = SMALL_WRITES.map(|span| offsets(0, span, LEN));
    let small = below.zip(above).flat_map(|(below, above)| [below, above]);
    let small = Writer::spawn(bench, map, small.map(|offset| (offset, LEN)));
    let large = (LARGE_WRITE.start, LARGE_WRITE.end - LARGE_WRITE.start);
    let large = Writer::spawn(bench, map, std::iter::repeat(large));
    small.wait_until_started();
    large.wait_until_started();
    let sample = measure();
    // Both tasks are awaited, even if the reads have failed.
    let written = [small.stop(bench), large.stop(bench)];
    for count in written {
        if count? == 0 {
            return Err("nothing was written beside the reads".into());
        }
    }
    sample
}

/// A task that writes again and again until it is told to stop.
struct Writer {
    started: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<u64>>,
}

impl Writer {
    /// Takes the offset and the length of each write.
    fn spawn(
        bench: &Bench,
        map: &MemoryMappedFile,
        writes: impl Iterator<Item = (u64, u64)> + Send + 'static,
    ) -> Self {
        let [started, stop] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let (map, has_started, stopped) = (map.clone(), Arc::clone(&started), Arc::clone(&stop));
        let task = bench.multi.spawn(async move {
            let mut written = 0;
            for (offset, len) in writes.take_while(|_| !stopped.load(Ordering::Relaxed)) {
                map.write_bytes(offset, AFTER.bytes_at(offset, len)).await?;
                written += 1;
                has_started.store(true, Ordering::Relaxed);
            }
            Ok(written)
        });
        Self {
            started,
            stop,
            task,
        }
    }

    /// Waits until the first write has ended or failed, so that the reads do not end before it.
    fn wait_until_started(&self) {
        while !self.started.load(Ordering::Relaxed) && !self.task.is_finished() {
            thread::yield_now();
        }
    }

    /// Waits for the current write and returns the number of writes.
    fn stop(self, bench: &Bench) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        bench.multi.block_on(self.task)?
    }
}

/// Measures while a write of all that is read waits for a `Bytes` of its first byte. The write
/// changes nothing, so that all sides read the same.
fn under_blocked_write(
    map: &MemoryMappedFile,
    measure: impl FnOnce() -> Result<Sample>,
) -> Result<Sample> {
    let held = map.bytes(READS.start, 1)?;
    let data = BEFORE.bytes_at(READS.start, READS.end - READS.start);
    let mut write = pin!(map.write_bytes(READS.start, data));

    future::block_on(async {
        if future::poll_once(write.as_mut()).await.is_some() {
            return Err("the write went through a view".into());
        }
        // Applied after it, in the order of submission: by then the first write has been tried.
        let elsewhere = LARGE_WRITE.start;
        map.update_region(elsewhere, AFTER.at(elsewhere, LEN))
            .await?;
        Result::Ok(())
    })?;
    let sample = measure()?;
    if future::block_on(future::poll_once(write.as_mut())).is_some() {
        return Err("the write went through a view".into());
    }
    drop(held);
    future::block_on(write)?;
    Ok(sample)
}
