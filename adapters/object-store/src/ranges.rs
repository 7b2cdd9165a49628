//! Reads many ranges of a mapped file with one call and few leases.

use std::ops::Range;

use bytes::Bytes;
use mmap_io::{MemoryMappedFile, Result};

/// Ranges that are not further apart than this share a lease: to look whether its pages are in
/// memory takes as long as to look at these pages as well.
const GAP: u64 = 64 << 10;

/// No run becomes longer than this by a range that does not overlap it.
const RUN: u64 = 1 << 20;

/// Returns the bytes of each range, in their order. `wrap` is applied to what the map gives out.
pub(crate) async fn read(
    file: &MemoryMappedFile,
    ranges: &[Range<u64>],
    wrap: impl Fn(Bytes) -> Bytes,
) -> Result<Vec<Bytes>> {
    let runs = runs(ranges);
    let regions: Vec<(u64, u64)> = runs
        .iter()
        .map(|run| (run.start, run.end - run.start))
        .collect();
    let read = file.read_regions(&regions).await?;
    let read: Vec<Bytes> = read.into_iter().map(wrap).collect();
    let part = |range: &Range<u64>| {
        if range.is_empty() {
            return Bytes::new();
        }
        // A run begins behind the end of the one before, so the last that does not begin behind
        // the range contains it.
        let run = runs.partition_point(|run| run.start <= range.start) - 1;
        let start = runs[run].start;
        read[run].slice((range.start - start) as usize..(range.end - start) as usize)
    };
    Ok(ranges.iter().map(part).collect())
}

/// Returns sorted runs that together contain all ranges, each of them whole in one run.
fn runs(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let filled = ranges.iter().filter(|range| !range.is_empty());
    let mut sorted: Vec<Range<u64>> = filled.cloned().collect();
    sorted.sort_unstable_by_key(|range| range.start);
    let mut runs: Vec<Range<u64>> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match runs.last_mut() {
            Some(run) if range.start < run.end || joins(run, &range) => {
                run.end = run.end.max(range.end);
            }
            _ => runs.push(range),
        }
    }
    runs
}

fn joins(run: &Range<u64>, next: &Range<u64>) -> bool {
    next.start - run.end <= GAP && next.end - run.start <= RUN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_contain_every_range_once() {
        let near = [200..300, 0..100, 250..260, 90..100, 40..40];
        assert_eq!(runs(&near), [0..300]);
        let far = [GAP + 101..GAP + 200, 0..100];
        assert_eq!(runs(&far), [0..100, GAP + 101..GAP + 200]);
        // Touching ranges stay apart where the run would become long; overlapping ones do not.
        let long = [0..RUN, RUN..RUN + 10, RUN + 5..RUN + 20];
        assert_eq!(runs(&long), [0..RUN, RUN..RUN + 20]);
        assert_eq!(runs(&[0..RUN, 5..RUN + 1]), [0..RUN + 1]);
        assert_eq!(runs(&[]), []);
    }

    #[test]
    fn ranges_keep_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
        std::fs::write(dir.path().join("data"), &content).unwrap();
        futures_lite::future::block_on(async {
            let file = MemoryMappedFile::open_ro(dir.path().join("data"))
                .await
                .unwrap();
            let ranges = [
                2_000_000..2_000_100,
                0..10,
                5..7,
                9..9,
                5..3_000_000,
                100..200,
            ];
            let read = read(&file, &ranges, |bytes| bytes).await.unwrap();
            for (range, bytes) in ranges.into_iter().zip(read) {
                assert_eq!(bytes, content[range.start as usize..range.end as usize]);
            }
        });
    }
}
