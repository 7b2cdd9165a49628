//! Measures small reads without a query: 100 calls of `get_ranges`, one after the other.

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use datafusion::object_store::local::LocalFileSystem;
use datafusion::object_store::path::Path;
use datafusion::object_store::ObjectStore;
use mmap_io_object_store::MappedFileSystem;

use crate::report::{self, median};
use crate::Outcome;

const CALLS: usize = 100;
const ROUNDS: usize = 101;

/// The bytes of one range.
const LEN: u64 = 4096;

pub(crate) async fn measure(
    mapped: &MappedFileSystem,
    local: &LocalFileSystem,
    files: &[(PathBuf, u64)],
) -> Outcome<()> {
    let (path, len) = files.iter().max_by_key(|(_, len)| *len).ok_or("no file")?;
    let last = len.saturating_sub(LEN);
    let object = Path::from_absolute_path(path)?;
    let mut random = fastrand::Rng::with_seed(29);
    for count in [1, 4] {
        let starts = (0..CALLS * count).map(|_| random.u64(..=last));
        let ranges: Vec<Range<u64>> = starts.map(|start| start..(start + LEN).min(*len)).collect();
        let calls: Vec<&[Range<u64>]> = ranges.chunks(count).collect();
        for ranges in &calls {
            let expected = local.get_ranges(&object, ranges).await?;
            if mapped.get_ranges(&object, ranges).await? != expected {
                return Err(format!("the bytes of {ranges:?} differ").into());
            }
        }
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            times[0].push(time(mapped, &object, &calls).await?);
            times[1].push(time(local, &object, &calls).await?);
        }
        let name = format!("{CALLS} get_ranges of {count}");
        report::times_faster(&name, times.map(median), 5.0);
    }
    Ok(())
}

async fn time(
    store: &dyn ObjectStore,
    object: &Path,
    calls: &[&[Range<u64>]],
) -> Outcome<Duration> {
    let clock = Instant::now();
    for ranges in calls {
        store.get_ranges(object, ranges).await?;
    }
    Ok(clock.elapsed())
}
