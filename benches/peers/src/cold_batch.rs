//! Measures scattered pages that are not in memory.

use std::fs::File;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use mmap_io::{MemoryMappedFile, MmapAdvice};
use tokio::task::{spawn_blocking, JoinHandle};

use crate::fixture::{file, offsets, stream, total, KIB, MIB};
use crate::harness::{task, Bench, Result, Sample};
use crate::os;
use crate::report::{Goal, Line};

const PAGE: u64 = 4 * KIB;
const PAGES: u64 = 512;

/// F26: `read_regions` of random pages, against one `read_bytes` after the other, and against reads
/// on blocking threads, all at once. Both also with the advice that accesses are random, without
/// which the system reads the neighbours as well.
pub(crate) fn cold_batch(bench: &Bench) -> Result<Vec<Line>> {
    let len = bench.amount(1_024 * MIB, 128 * MIB);
    let path = file(bench, "file", len)?;

    let batch = |round, advice| ours(bench, &path, advice, |map| batch(map, pages(round, len)));
    let each = |round, advice| {
        ours(bench, &path, advice, |map| {
            one_by_one(map, pages(round, len))
        })
    };
    let plain = |round, advice| {
        os::drop_cached(&path)?;
        let file = File::open(&path)?;
        if let MmapAdvice::Random = advice {
            os::advise_random(&file)?;
        }
        task(&bench.multi, PAGES, joined(file, pages(round, len)))
    };
    let (normal, random) = (MmapAdvice::Normal, MmapAdvice::Random);
    let [ours, each, plain, ours_random, each_random, plain_random] = bench.interleave_slow([
        &mut |round| batch(round, normal),
        &mut |round| each(round, normal),
        &mut |round| plain(round, normal),
        &mut |round| batch(round, random),
        &mut |round| each(round, random),
        &mut |round| plain(round, random),
    ])?;

    let name = |what| format!("cold_batch_4K{what}");
    let one_by_one = "read_bytes, one after the other";
    let joined = "spawn_blocking(pread), joined";
    let line = |what, ours, other, peer, times| {
        Line::times(name(what), ours, other, peer, Goal::Faster(times))
    };
    Ok(vec![
        line("", ours, each, one_by_one, 5.0),
        line("_vs_pread", ours, plain, joined, 1.0),
        line("_random", ours_random, each_random, one_by_one, 5.0),
        line("_random_vs_pread", ours_random, plain_random, joined, 1.0),
    ])
}

/// Has a task read pages of our mapping, of which none is in memory.
fn ours<F>(
    bench: &Bench,
    path: &Path,
    advice: MmapAdvice,
    read: impl FnOnce(MemoryMappedFile) -> F,
) -> Result<Sample>
where
    F: Future<Output = Result<u64>> + Send + 'static,
{
    os::drop_cached(path)?;
    let map = bench.multi.block_on(MemoryMappedFile::open_ro(path))?;
    bench.multi.block_on(map.advise(0, map.len(), advice))?;
    let sample = task(&bench.multi, PAGES, read(map.clone()))?;
    // Mapped pages would stay in the cache.
    bench.multi.block_on(map.close())?;
    Ok(sample)
}

async fn batch(map: MemoryMappedFile, pages: impl Iterator<Item = u64>) -> Result<u64> {
    let regions: Vec<_> = pages.map(|offset| (offset, PAGE)).collect();
    let pages = map.read_regions(&regions).await?;
    Ok(pages.iter().map(|page| total(page)).sum())
}

async fn one_by_one(map: MemoryMappedFile, pages: impl Iterator<Item = u64>) -> Result<u64> {
    let mut sum = 0;
    for offset in pages {
        sum += total(&map.read_bytes(offset, PAGE).await?);
    }
    Ok(sum)
}

async fn joined(file: File, pages: impl Iterator<Item = u64>) -> Result<u64> {
    let file = Arc::new(file);
    let reads: Vec<JoinHandle<Result<u64>>> = pages
        .map(|offset| {
            let file = Arc::clone(&file);
            spawn_blocking(move || {
                let mut page = [0; PAGE as usize];
                file.read_exact_at(&mut page, offset)?;
                Ok(total(&page))
            })
        })
        .collect();
    let mut sum = 0;
    for read in reads {
        sum += read.await??;
    }
    Ok(sum)
}

/// The pages that are read in a round.
fn pages(round: u64, len: u64) -> impl Iterator<Item = u64> + Send {
    offsets(stream(round, 0), 0..len, PAGE)
        .map(|offset| offset - offset % PAGE)
        .take(PAGES as usize)
}
