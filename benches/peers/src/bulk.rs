//! Measures writes of a whole file: over pages that are not in memory, and into a new file.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::spawn_blocking;

use crate::fixture::{
    file, map_read, offsets, ours, same_bytes, stream, sync, Pattern, AFTER, BEFORE, KIB, MIB,
};
use crate::harness::{task, tasks, timed, Bench, Result, Sample};
use crate::os;
use crate::report::{Goal, Line};

const PAGE: u64 = 4 * KIB;
const TASKS: u64 = 64;

/// F11: whole blocks over a file of which no page is in memory, so that what is overwritten need
/// not be read, against the synchronous crate on tokio's blocking threads.
pub(crate) fn overwrite_cold(bench: &Bench) -> Result<Vec<Line>> {
    let len = bench.amount(256 * MIB, 32 * MIB);
    let paths = [
        file(bench, "ours", len)?,
        file(bench, "sync", len)?,
        file(bench, "plain", len)?,
    ];
    let blocks = len / MIB;
    let each = bench.amount(128, 16);

    let [ours_in_order, sync_in_order, plain_in_order] = bench.interleave_slow([
        &mut |round| {
            ours_cold(bench, &paths[0], |map| {
                let writes = (0..blocks).map(move |block| (block * MIB, MIB));
                let write = write_each(map, contents(round), writes);
                task(&bench.multi, blocks, write)
            })
        },
        &mut |round| {
            sync_cold(&paths[1], |map| {
                let writes = (0..blocks).map(move |block| (block * MIB, MIB));
                let write = sync_write_each(map, contents(round), writes);
                task(&bench.multi, blocks, write)
            })
        },
        &mut |round| {
            os::drop_cached(&paths[2])?;
            let file = Arc::new(File::options().write(true).open(&paths[2])?);
            let writes = (0..blocks).map(move |block| (block * MIB, MIB));
            let write = plain_write_each(file, contents(round), writes);
            task(&bench.multi, blocks, write)
        },
    ])?;
    same_bytes([&paths[0], &paths[1], &paths[2]])?;

    let count = TASKS * each;
    let writes = |round, task| {
        offsets(stream(round, task), 0..len, PAGE)
            .take(each as usize)
            .map(|offset| (offset - offset % PAGE, PAGE))
    };
    let [ours_random, sync_random] = bench.interleave_slow([
        &mut |round| {
            ours_cold(bench, &paths[0], |map| {
                tasks(&bench.multi, count, TASKS, |task| {
                    write_each(map.clone(), contents(round), writes(round, task))
                })
            })
        },
        &mut |round| {
            sync_cold(&paths[1], |map| {
                tasks(&bench.multi, count, TASKS, |task| {
                    sync_write_each(map.clone(), contents(round), writes(round, task))
                })
            })
        },
    ])?;
    same_bytes([&paths[0], &paths[1]])?;

    let peer = "spawn_blocking(mmap-io 1.1)";
    Ok(vec![
        Line::times(
            "overwrite_cold_1M_in_order",
            ours_in_order,
            sync_in_order,
            peer,
            Goal::Faster(2.5),
        ),
        Line::times(
            "overwrite_cold_1M_in_order_vs_pwrite",
            ours_in_order,
            plain_in_order,
            "unblock(pwrite)",
            Goal::Faster(0.75),
        ),
        Line::times(
            "overwrite_cold_4K_random",
            ours_random,
            sync_random,
            peer,
            Goal::Faster(5.5),
        ),
    ])
}

/// F13: from no file to a full and durable one. The two peers do it on this thread, without a job
/// on a pool.
pub(crate) fn fill_fresh(bench: &Bench) -> Result<Vec<Line>> {
    let len = bench.amount(256 * MIB, 32 * MIB);
    let path = bench.dir().join("file");

    // The file is compared and removed before the next side begins.
    let turn = |fill: &dyn Fn() -> Result<()>| -> Result<Sample> {
        let (elapsed, ()) = timed(fill)?;
        if path.metadata()?.len() != len || !AFTER.matches(0, &map_read(&path)?) {
            return Err("the file does not hold what was written".into());
        }
        fs::remove_file(&path)?;
        Ok(Sample::per_operation(elapsed, 1, len))
    };
    let blocks = || (0..len / MIB).map(|block| block * MIB);
    let [ours, sync, plain] = bench.interleave_slow([
        &mut |_| {
            turn(&|| {
                bench.multi.block_on(async {
                    let map = mmap_io::MemoryMappedFile::create_rw(&path, len).await?;
                    for offset in blocks() {
                        map.write_bytes(offset, AFTER.bytes_at(offset, MIB)).await?;
                    }
                    Ok(map.flush().await?)
                })
            })
        },
        &mut |_| {
            turn(&|| {
                let map = mmap_io_sync::MemoryMappedFile::create_rw(&path, len)?;
                for offset in blocks() {
                    map.update_region(offset, AFTER.at(offset, MIB))?;
                }
                Ok(map.flush()?)
            })
        },
        &mut |_| {
            turn(&|| {
                let mut file = File::create(&path)?;
                for offset in blocks() {
                    file.write_all(AFTER.at(offset, MIB))?;
                }
                Ok(file.sync_data()?)
            })
        },
    ])?;
    let name = format!("fill_fresh_{}M", len / MIB);
    Ok(vec![
        Line::times(&name, ours, sync, "mmap-io 1.1", Goal::Faster(1.5)),
        Line::times(
            format!("{name}_vs_file"),
            ours,
            plain,
            "write_all + sync_data",
            Goal::AtMost(1.1),
        ),
    ])
}

/// Calls `measure` with our mapping of a file of which no page is in memory.
fn ours_cold(
    bench: &Bench,
    path: &Path,
    measure: impl FnOnce(mmap_io::MemoryMappedFile) -> Result<Sample>,
) -> Result<Sample> {
    os::drop_cached(path)?;
    let map = ours(bench, path)?;
    let sample = measure(map.clone())?;
    // The file is unmapped, and can be dropped from the cache again, only after this has ended.
    bench.multi.block_on(map.close())?;
    Ok(sample)
}

/// The same with the mapping of the synchronous crate.
fn sync_cold(
    path: &Path,
    measure: impl FnOnce(mmap_io_sync::MemoryMappedFile) -> Result<Sample>,
) -> Result<Sample> {
    os::drop_cached(path)?;
    measure(sync(path)?)
}

/// The work of one of our tasks: offset and length of each write. Returns the bytes written.
async fn write_each(
    map: mmap_io::MemoryMappedFile,
    contents: &'static Pattern,
    writes: impl Iterator<Item = (u64, u64)>,
) -> Result<u64> {
    let mut written = 0;
    for (offset, len) in writes {
        map.write_bytes(offset, contents.bytes_at(offset, len))
            .await?;
        written += len;
    }
    Ok(written)
}

/// The same with the synchronous crate, on the blocking threads of tokio.
async fn sync_write_each(
    map: mmap_io_sync::MemoryMappedFile,
    contents: &'static Pattern,
    writes: impl Iterator<Item = (u64, u64)>,
) -> Result<u64> {
    let mut written = 0;
    for (offset, len) in writes {
        let (map, data): (_, Bytes) = (map.clone(), contents.bytes_at(offset, len));
        spawn_blocking(move || map.update_region(offset, &data)).await??;
        written += len;
    }
    Ok(written)
}

/// The same through a descriptor, on the pool of `blocking`.
async fn plain_write_each(
    file: Arc<File>,
    contents: &'static Pattern,
    writes: impl Iterator<Item = (u64, u64)>,
) -> Result<u64> {
    let mut written = 0;
    for (offset, len) in writes {
        let (file, data) = (Arc::clone(&file), contents.bytes_at(offset, len));
        blocking::unblock(move || file.write_all_at(&data, offset)).await?;
        written += len;
    }
    Ok(written)
}

/// What is written in a round, which differs from the bytes of the round before.
fn contents(round: u64) -> &'static Pattern {
    [&*AFTER, &*BEFORE][round as usize % 2]
}
