//! Takes the times of the queries: both stores in turn, in one run.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::object_store::local::LocalFileSystem;
use datafusion::object_store::ObjectStore;
use datafusion::prelude::SessionContext;
use mmap_io_object_store::MappedFileSystem;

use crate::queries::{Query, QUERIES};
use crate::report::{self, median};
use crate::{check, run, session, Outcome};

/// Queries that take less together than this are repeated more often than asked for.
const ENOUGH: Duration = Duration::from_secs(2);
const MOST_ROUNDS: usize = 101;

/// How long a map may last after its session: it is unmapped on a pool.
const PATIENCE: Duration = Duration::from_secs(10);

/// Measures a query whose files are in memory, and returns its result.
pub(crate) async fn hot(
    query: &Query,
    mapped: &SessionContext,
    local: &SessionContext,
    rounds: usize,
) -> Outcome<String> {
    // The first run of each reads the files into memory, and maps them.
    let result = run(local, query).await?;
    check(query, &run(mapped, query).await?, &result)?;
    let sessions = [mapped, local];
    let mut times = [Vec::new(), Vec::new()];
    let clock = Instant::now();
    while times[0].len() < rounds
        || (clock.elapsed() < ENOUGH && times[0].len() < MOST_ROUNDS.max(rounds))
    {
        for store in in_turn(times[0].len()) {
            let clock = Instant::now();
            let found = run(sessions[store], query).await?;
            times[store].push(clock.elapsed());
            check(query, &found, &result)?;
        }
    }
    report::at_most(
        &format!("hot {}", query.name),
        times.map(median),
        Some(1.02),
    );
    Ok(result)
}

/// Measures each query in new sessions, the tables' files not in memory.
pub(crate) async fn cold(
    data: &Path,
    files: &[(PathBuf, u64)],
    expected: &[String],
    rounds: usize,
) -> Outcome<()> {
    let mut sums = [Duration::ZERO; 2];
    for (query, expected) in QUERIES.iter().zip(expected) {
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..rounds {
            for store in in_turn(round) {
                evict(data, files).await?;
                let read_before = read_from_disk()?;
                let clock = Instant::now();
                let store_of_round: Arc<dyn ObjectStore> = match store {
                    0 => Arc::new(MappedFileSystem::new()),
                    _ => Arc::new(LocalFileSystem::new()),
                };
                let session = session(store_of_round, data).await?;
                let found = run(&session, query).await?;
                times[store].push(clock.elapsed());
                check(query, &found, expected)?;
                if read_from_disk()? == read_before {
                    return Err("the files stay in memory: `--data` must be on a disk".into());
                }
            }
        }
        let medians = times.map(median);
        for (sum, median) in sums.iter_mut().zip(medians) {
            *sum += median;
        }
        report::at_most(&format!("cold {}", query.name), medians, None);
    }
    report::at_most("cold in sum", sums, Some(1.0));
    Ok(())
}

/// The order of the two stores in a round: neither is always the first.
fn in_turn(round: usize) -> [usize; 2] {
    match round % 2 {
        0 => [0, 1],
        _ => [1, 0],
    }
}

/// Drops the files from memory. They were synced when they were made, so their pages are clean; and
/// pages of a map stay in memory, so the maps of the sessions before are waited for.
async fn evict(data: &Path, files: &[(PathBuf, u64)]) -> Outcome<()> {
    let directory = data.display().to_string();
    let clock = Instant::now();
    while std::fs::read_to_string("/proc/self/maps")?.contains(&directory) {
        if clock.elapsed() > PATIENCE {
            return Err("a file is still mapped after its session".into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for (path, _) in files {
        rustix::fs::fadvise(File::open(path)?, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}

/// Returns how many bytes the disk has read for this process
/// ([`proc_pid_io(5)`](https://man7.org/linux/man-pages/man5/proc_pid_io.5.html)).
fn read_from_disk() -> Outcome<u64> {
    let counters = std::fs::read_to_string("/proc/self/io")?;
    let read = counters
        .lines()
        .find_map(|line| line.strip_prefix("read_bytes: "));
    Ok(read.ok_or("no read_bytes in /proc/self/io")?.parse()?)
}
