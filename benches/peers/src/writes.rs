//! Measures writes that need not be durable: of many tasks, of one task, and in large pieces.

use bytes::Bytes;
use mmap_io_sync::MemoryMappedFile as SyncFile;
use tokio::runtime::Runtime;
use tokio::task::spawn_blocking;

use crate::fixture::{
    file, offsets, ours_written_once, same_bytes, stream, sync_written_once, SharedMap, AFTER,
    BEFORE, FILE_LEN, MIB,
};
use crate::harness::{task, tasks, Bench, Result};
use crate::report::{Goal, Line};

/// The length of a small write.
pub(crate) const LEN: u64 = 64;

/// How many ranges one `update_regions` takes.
const BATCH: usize = 64;

/// F9: many tasks, each of which waits for every one of its writes.
pub(crate) fn many_tasks(bench: &Bench) -> Result<Vec<Line>> {
    let paths = [
        file(bench, "ours", FILE_LEN)?,
        file(bench, "sync", FILE_LEN)?,
    ];
    let ours = ours_written_once(bench, &paths[0])?;
    let sync = sync_written_once(&paths[1])?;
    let total = bench.amount(32_768, 8_192);

    let compare = |runtime: &Runtime, count: u64| {
        let each = total / count;
        bench.interleave([
            &mut |round| {
                let ours = |task| update(ours.clone(), small_writes(round, task, each));
                tasks(runtime, total, count, ours)
            },
            &mut |round| {
                let sync = |task| update_on_tokio(sync.clone(), small_writes(round, task, each));
                tasks(runtime, total, count, sync)
            },
        ])
    };
    let mut lines = Vec::new();
    for (runtime, suffix, targets) in variants(bench, [Goal::Faster(6.0), Goal::Faster(10.0)]) {
        for (count, goal) in [64, 1_024].into_iter().zip(targets) {
            let [ours, sync] = compare(runtime, count)?;
            let name = format!("update_{count}_tasks{suffix}");
            lines.push(Line::times(
                name,
                ours,
                sync,
                "spawn_blocking(mmap-io 1.1)",
                goal,
            ));
        }
    }
    same_bytes([&paths[0], &paths[1]])?;
    Ok(lines)
}

/// F10: one task, write by write, 64 of them at a time, and one behind the other; and write by write
/// beside a flush every 100 ms, each of which cleans all pages.
pub(crate) fn one_task(bench: &Bench) -> Result<Vec<Line>> {
    let paths = [
        file(bench, "single", FILE_LEN)?,
        file(bench, "batch", FILE_LEN)?,
        file(bench, "unblock", FILE_LEN)?,
        file(bench, "spawn_blocking", FILE_LEN)?,
        file(bench, "bare", FILE_LEN)?,
        file(bench, "in_order", FILE_LEN)?,
        file(bench, "in_order_unblock", FILE_LEN)?,
        file(bench, "flushed", FILE_LEN)?,
    ];
    let single = ours_written_once(bench, &paths[0])?;
    let batch = ours_written_once(bench, &paths[1])?;
    let unblock = sync_written_once(&paths[2])?;
    let tokio = sync_written_once(&paths[3])?;
    let bare = sync_written_once(&paths[4])?;
    let in_order = ours_written_once(bench, &paths[5])?;
    let in_order_sync = sync_written_once(&paths[6])?;
    let flushed = bench.multi.block_on(
        mmap_io::MemoryMappedFile::builder(&paths[7])
            .mode(mmap_io::MmapMode::ReadWrite)
            .flush_policy(mmap_io::FlushPolicy::EveryMillis(100))
            .open(),
    )?;
    let count = bench.amount(6_144, 2_048);

    let compare = |runtime: &Runtime| {
        let writes = |round| small_writes(round, 0, count);
        // From where the last round ended.
        let next =
            |round: u64| (0..count).map(move |index| (round * count + index) * LEN % FILE_LEN);
        bench.interleave([
            &mut |round| task(runtime, count, update(single.clone(), writes(round))),
            &mut |round| task(runtime, count, update_batches(batch.clone(), writes(round))),
            &mut |round| {
                task(
                    runtime,
                    count,
                    update_on_blocking(unblock.clone(), writes(round)),
                )
            },
            &mut |round| {
                task(
                    runtime,
                    count,
                    update_on_tokio(tokio.clone(), writes(round)),
                )
            },
            &mut |round| {
                task(
                    runtime,
                    count,
                    update_without_hop(bare.clone(), writes(round)),
                )
            },
            &mut |round| task(runtime, count, update(in_order.clone(), next(round))),
            &mut |round| {
                task(
                    runtime,
                    count,
                    update_on_blocking(in_order_sync.clone(), next(round)),
                )
            },
            &mut |round| task(runtime, count, update(flushed.clone(), writes(round))),
        ])
    };
    let mut lines = Vec::new();
    for (runtime, suffix, targets) in variants(bench, [Goal::Faster(10.0), Goal::Faster(30.0)]) {
        let [single, batch, unblock, tokio, bare, in_order, in_order_sync, flushed] =
            compare(runtime)?;
        let named = |name| format!("{name}{suffix}");
        let peers = ["unblock(mmap-io 1.1)", "spawn_blocking(mmap-io 1.1)"];
        lines.extend([
            Line::times(
                named("update_1_task"),
                single,
                unblock,
                peers[0],
                targets[0],
            ),
            Line::times(
                named("update_1_task_vs_tokio"),
                single,
                tokio,
                peers[1],
                Goal::Slowdown,
            ),
            Line::times(
                named("update_1_task_vs_no_hop"),
                single,
                bare,
                "mmap-io 1.1, no hop",
                Goal::Slowdown,
            ),
            Line::times(
                named("update_every_100_ms"),
                flushed,
                unblock,
                peers[0],
                Goal::Slowdown,
            ),
            Line::times(
                named("update_in_order"),
                in_order,
                in_order_sync,
                peers[0],
                targets[0],
            ),
            Line::times(
                named("update_regions_64"),
                batch,
                unblock,
                peers[0],
                targets[1],
            ),
        ]);
    }
    same_bytes([
        &paths[0], &paths[1], &paths[2], &paths[3], &paths[4], &paths[7],
    ])?;
    same_bytes([&paths[5], &paths[6]])?;
    Ok(lines)
}

/// F12: 1 MiB at a time over pages that are resident and dirty, against a copy on the pool.
pub(crate) fn overwrite_hot(bench: &Bench) -> Result<Vec<Line>> {
    let paths = [
        file(bench, "write_bytes", FILE_LEN)?,
        file(bench, "hop", FILE_LEN)?,
        file(bench, "update_region", FILE_LEN)?,
        file(bench, "copy_and_hop", FILE_LEN)?,
    ];
    let bytes = ours_written_once(bench, &paths[0])?;
    let hop = SharedMap::written_once(&paths[1])?;
    let region = ours_written_once(bench, &paths[2])?;
    let copy = SharedMap::written_once(&paths[3])?;
    let count = bench.amount(512, 128);

    let [bytes, hop, region, copy] = bench.interleave([
        &mut |round| {
            let map = bytes.clone();
            task(&bench.multi, count, async move {
                for (offset, data) in blocks(round, count) {
                    map.write_bytes(offset, data).await?;
                }
                Ok(count)
            })
        },
        &mut |round| {
            let map = hop.clone();
            task(&bench.multi, count, async move {
                for (offset, data) in blocks(round, count) {
                    let map = map.clone();
                    blocking::unblock(move || map.write(offset, &data)).await;
                }
                Ok(count)
            })
        },
        &mut |round| {
            let map = region.clone();
            task(&bench.multi, count, async move {
                for (offset, data) in blocks(round, count) {
                    map.update_region(offset, &data).await?;
                }
                Ok(count)
            })
        },
        &mut |round| {
            let map = copy.clone();
            task(&bench.multi, count, async move {
                for (offset, data) in blocks(round, count) {
                    let (map, data) = (map.clone(), data.to_vec());
                    blocking::unblock(move || map.write(offset, &data)).await;
                }
                Ok(count)
            })
        },
    ])?;
    same_bytes([&paths[0], &paths[1], &paths[2], &paths[3]])?;
    let goal = Goal::AtMost(1.2);
    Ok(vec![
        Line::times("write_bytes_1M", bytes, hop, "unblock(memcpy)", goal),
        Line::times(
            "update_region_1M",
            region,
            copy,
            "to_vec + unblock(memcpy)",
            goal,
        ),
    ])
}

/// The work of one of our tasks: a small write at each offset. Returns the number of writes.
pub(crate) async fn update(
    map: mmap_io::MemoryMappedFile,
    offsets: impl Iterator<Item = u64>,
) -> Result<u64> {
    let mut count = 0;
    for offset in offsets {
        map.update_region(offset, AFTER.at(offset, LEN)).await?;
        count += 1;
    }
    Ok(count)
}

/// The same, [`BATCH`] of them in one operation.
async fn update_batches(
    map: mmap_io::MemoryMappedFile,
    offsets: impl Iterator<Item = u64>,
) -> Result<u64> {
    let mut writes = offsets.map(|offset| (offset, AFTER.at(offset, LEN)));
    let mut batch = Vec::with_capacity(BATCH);
    let mut count = 0;
    loop {
        batch.clear();
        batch.extend(writes.by_ref().take(BATCH));
        if batch.is_empty() {
            return Ok(count);
        }
        map.update_regions(&batch).await?;
        count += batch.len() as u64;
    }
}

/// The same with the synchronous crate, on the blocking threads of tokio.
async fn update_on_tokio(map: SyncFile, offsets: impl Iterator<Item = u64>) -> Result<u64> {
    let mut count = 0;
    for offset in offsets {
        let (map, data) = (map.clone(), AFTER.array_at::<{ LEN as usize }>(offset));
        spawn_blocking(move || map.update_region(offset, &data)).await??;
        count += 1;
    }
    Ok(count)
}

/// The same on the pool of `blocking`.
async fn update_on_blocking(map: SyncFile, offsets: impl Iterator<Item = u64>) -> Result<u64> {
    let mut count = 0;
    for offset in offsets {
        let (map, data) = (map.clone(), AFTER.array_at::<{ LEN as usize }>(offset));
        blocking::unblock(move || map.update_region(offset, &data)).await?;
        count += 1;
    }
    Ok(count)
}

/// The same on the thread that polls.
async fn update_without_hop(map: SyncFile, offsets: impl Iterator<Item = u64>) -> Result<u64> {
    let mut count = 0;
    for offset in offsets {
        map.update_region(offset, AFTER.at(offset, LEN))?;
        count += 1;
    }
    Ok(count)
}

/// Where a task writes in a round.
pub(crate) fn small_writes(round: u64, task: u64, count: u64) -> impl Iterator<Item = u64> {
    offsets(stream(round, task), 0..FILE_LEN, LEN).take(count as usize)
}

/// The file in blocks of 1 MiB, from its start and repeatedly, with other contents than in the
/// round before.
fn blocks(round: u64, count: u64) -> impl Iterator<Item = (u64, Bytes)> {
    let contents = [&AFTER, &BEFORE][round as usize % 2];
    (0..count)
        .map(|block| block * MIB % FILE_LEN)
        .map(|offset| (offset, contents.bytes_at(offset, MIB)))
}

/// Both kinds of runtime: the one that has targets, and the one printed for comparison.
fn variants(bench: &Bench, goals: [Goal; 2]) -> [(&Runtime, &'static str, [Goal; 2]); 2] {
    [
        (&bench.multi, "", goals),
        (
            &bench.current,
            "_current_thread",
            goals.map(Goal::without_target),
        ),
    ]
}
