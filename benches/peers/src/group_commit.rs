//! Measures durable writes of many tasks at the same time, which can share flushes.
//!
//! The sides take turns in one file, as in [`durable`](crate::durable).

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use seekable_async_file::common::SyncIOAsyncAdapter;
use seekable_async_file::file::FileIO;
use seekable_async_file::{SeekableAsyncFile, SeekableAsyncFileMetrics, WriteRequest};
use tokio::runtime::Runtime;
use tokio::task::spawn_blocking;

use crate::durable::{Log, LEN};
use crate::fixture::{
    file, map_read, offsets, ours_written_once, stream, sync_written_once, SharedMap, AFTER,
    BEFORE, FILE_LEN, MIB,
};
use crate::harness::{tasks, timed, Bench, Result, Sample};
use crate::report::{Goal, Line};

const TASKS: u64 = 64;
const PAGE: u64 = 4_096;

/// F6: 64 tasks append records to one log, each waiting for its own to be durable.
pub(crate) fn many_tasks(bench: &Bench) -> Result<Vec<Line>> {
    let path = file(bench, "log", FILE_LEN)?;
    let ours = ours_written_once(bench, &path)?;
    let sync = sync_written_once(&path)?;
    let raw = SharedMap::written_once(&path)?;
    let file = Arc::new(File::options().write(true).open(&path)?);
    bench.multi.block_on(ours.flush())?;
    let each = bench.amount(32, 4);
    let count = TASKS * each;
    let log = Log::default();

    let compare = |runtime: &Runtime| {
        let delayed = runtime.block_on(delayed_sync(&path));
        let syncs = runtime.spawn({
            let delayed = delayed.clone();
            async move { delayed.start_delayed_data_sync_background_loop().await }
        });
        let times = bench.interleave([
            &mut |_| {
                let records = log.append(count);
                tasks(runtime, count, TASKS, |task| {
                    append(ours.clone(), records_of(&records, task))
                })
            },
            &mut |_| {
                let records = log.append(count);
                tasks(runtime, count, TASKS, |task| {
                    append_with_delay(delayed.clone(), records_of(&records, task))
                })
            },
            &mut |_| {
                let records = log.append(count);
                tasks(runtime, count, TASKS, |task| {
                    append_sync(sync.clone(), records_of(&records, task))
                })
            },
            &mut |_| {
                let records = log.append(count);
                tasks(runtime, count, TASKS, |task| {
                    append_to_file(Arc::clone(&file), records_of(&records, task))
                })
            },
            &mut |_| append_at_once(&raw, log.append(count)),
        ]);
        syncs.abort();
        times
    };
    let mut lines = Vec::new();
    let goals = [25.0, 6.0, 2.0, 0.65].map(Goal::Faster);
    for (runtime, suffix, goals) in [
        (&bench.multi, "", goals),
        (
            &bench.current,
            "_current_thread",
            goals.map(Goal::without_target),
        ),
    ] {
        let [ours, delayed, sync, file, bare] = compare(runtime)?;
        let peers = [
            ("", sync, "mmap-io 1.1"),
            ("_vs_file", file, "spawn_blocking(write + sync_data)"),
            ("_vs_delayed_sync", delayed, "seekable-async-file"),
            ("_vs_ceiling", bare, "64 memcpys + msync"),
        ];
        lines.extend(
            peers
                .into_iter()
                .zip(goals)
                .map(|((against, other, peer), goal)| {
                    let name = format!("durable_64_tasks{against}{suffix}");
                    Line::times(name, ours, other, peer, goal)
                }),
        );
    }
    log.check(&path)?;
    Ok(lines)
}

/// F8: the same at random pages of a larger file, where there is less to share.
pub(crate) fn scattered(bench: &Bench) -> Result<Vec<Line>> {
    let len = bench.amount(256 * MIB, 64 * MIB);
    let path = file(bench, "file", len)?;
    let ours = ours_written_once(bench, &path)?;
    let sync = sync_written_once(&path)?;
    bench.multi.block_on(ours.flush())?;
    let each = bench.amount(8, 2);
    let count = TASKS * each;
    let pages = |round, task| {
        offsets(stream(round, task), 0..len, PAGE)
            .take(each as usize)
            .map(|offset| offset - offset % PAGE)
    };

    // Both sides write to the same pages, but to different bytes of them.
    let mut rounds = 0;
    let [ours, sync] = bench.interleave([
        &mut |round| {
            rounds = round + 1;
            tasks(&bench.multi, count, TASKS, |task| {
                append(ours.clone(), pages(round, task))
            })
        },
        &mut |round| {
            tasks(&bench.multi, count, TASKS, |task| {
                let theirs = pages(round, task).map(|page| page + PAGE / 2);
                append_sync(sync.clone(), theirs)
            })
        },
    ])?;

    let written = (0..rounds)
        .flat_map(|round| (0..TASKS).map(move |task| (round, task)))
        .flat_map(|(round, task)| pages(round, task))
        .collect();
    check_pages(&path, &written)?;
    Ok(vec![Line::times(
        "durable_scattered",
        ours,
        sync,
        "mmap-io 1.1",
        Goal::Faster(1.0),
    )])
}

/// The records of one task: every 64th, so that at any time all tasks write side by side.
fn records_of(records: &Range<u64>, task: u64) -> impl Iterator<Item = u64> {
    (records.start + task * LEN..records.end).step_by((TASKS * LEN) as usize)
}

/// The work of one of our tasks: a durable write at each offset. Returns the number of writes.
async fn append(map: mmap_io::MemoryMappedFile, offsets: impl Iterator<Item = u64>) -> Result<u64> {
    let mut count = 0;
    for offset in offsets {
        map.update_region_async(offset, AFTER.at(offset, LEN))
            .await?;
        count += 1;
    }
    Ok(count)
}

/// The same with the synchronous crate, which uses the pool on its own.
async fn append_sync(
    map: mmap_io_sync::MemoryMappedFile,
    offsets: impl Iterator<Item = u64>,
) -> Result<u64> {
    let mut count = 0;
    for offset in offsets {
        map.update_region_async(offset, AFTER.at(offset, LEN))
            .await?;
        count += 1;
    }
    Ok(count)
}

/// The same without a mapping.
async fn append_to_file(file: Arc<File>, offsets: impl Iterator<Item = u64>) -> Result<u64> {
    let mut count = 0;
    for offset in offsets {
        let (file, data) = (
            Arc::clone(&file),
            AFTER.array_at::<{ LEN as usize }>(offset),
        );
        spawn_blocking(move || {
            file.write_all_at(&data, offset)?;
            file.sync_data()
        })
        .await??;
        count += 1;
    }
    Ok(count)
}

/// A file whose writers wait for a sync that serves all who wait, every 100 us at most. Its write-back
/// is what they share; the writes are jobs of tokio's pool.
async fn delayed_sync(path: &Path) -> SeekableAsyncFile {
    let io = SyncIOAsyncAdapter::new(Arc::new(FileIO::open(path, 0).await));
    let metrics = Arc::new(SeekableAsyncFileMetrics::default());
    SeekableAsyncFile::open(Arc::new(io), metrics, Duration::from_micros(100)).await
}

/// The work of one of our tasks through such a file.
async fn append_with_delay(
    file: SeekableAsyncFile,
    offsets: impl Iterator<Item = u64>,
) -> Result<u64> {
    let mut count = 0;
    for offset in offsets {
        let data = AFTER.array_at::<{ LEN as usize }>(offset);
        file.write_at_with_delayed_sync([WriteRequest::new(offset, data)])
            .await;
        count += 1;
    }
    Ok(count)
}

/// The lower bound for tasks that wait for each record: one thread that has 64 records ready.
fn append_at_once(map: &SharedMap, records: Range<u64>) -> Result<Sample> {
    let count = (records.end - records.start) / LEN;
    let (elapsed, ()) = timed(|| {
        for start in records.step_by((TASKS * LEN) as usize) {
            let records = (0..TASKS).map(|record| AFTER.at(start + record * LEN, LEN));
            map.write_all_durably(start, records)?;
        }
        Ok(())
    })?;
    Ok(Sample::per_operation(elapsed, count, count))
}

/// Fails unless both sides wrote to each of the pages, and nowhere else.
fn check_pages(path: &Path, written: &BTreeSet<u64>) -> Result<()> {
    let map = map_read(path)?;
    for (page, bytes) in (0..).step_by(PAGE as usize).zip(map.chunks(PAGE as usize)) {
        let halves = (page..).step_by(PAGE as usize / 2);
        for (start, half) in halves.zip(bytes.chunks(PAGE as usize / 2)) {
            let (record, rest) = half.split_at(LEN as usize);
            let holds = if written.contains(&page) {
                &AFTER
            } else {
                &BEFORE
            };
            if !holds.matches(start, record) || !BEFORE.matches(start + LEN, rest) {
                return Err(format!("other bytes at {start}").into());
            }
        }
    }
    Ok(())
}
