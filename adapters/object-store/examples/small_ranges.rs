//! Measures small reads of a file in memory: this store beside `LocalFileSystem`.
//!
//! ```text
//! cargo run --release --example small_ranges
//! ```
//!
//! Each line is the median of interleaved rounds under tokio with two worker threads. The bytes of
//! both stores are compared before anything is measured.

use std::error::Error;
use std::ops::Range;
use std::time::{Duration, Instant};

use mmap_io_object_store::MappedFileSystem;
use object_store_0_14::local::LocalFileSystem;
use object_store_0_14::path::Path;
use object_store_0_14::{ObjectStore, ObjectStoreExt};

const LEN: u64 = 256 << 20;
const ROUNDS: usize = 301;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// One way to read the ranges.
#[derive(Clone, Copy)]
enum Way {
    /// All with one call.
    Together,
    /// A call for each, one after the other.
    OneByOne,
}

fn main() -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()?;
    // On a worker thread, as the tasks of a service are.
    let run = runtime.spawn(async { run().await.map_err(|error| error.to_string()) });
    Ok(runtime.block_on(run)??)
}

async fn run() -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let mut random = fastrand::Rng::with_seed(7);
    let content: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
        .take(1 << 20)
        .collect();
    std::fs::write(
        dir.path().join("object"),
        content.repeat((LEN >> 20) as usize),
    )?;
    let mapped = MappedFileSystem::new_with_prefix(dir.path())?;
    let local = LocalFileSystem::new_with_prefix(dir.path())?;

    let mut scattered = |count, len| -> Vec<Range<u64>> {
        let starts = std::iter::repeat_with(|| random.u64(..LEN - len)).take(count);
        starts.map(|start| start..start + len).collect()
    };
    let cases = [
        (
            "100 ranges of 64 bytes, scattered, one call",
            scattered(100, 64),
            Way::Together,
        ),
        (
            "100 ranges of 64 bytes, scattered, 100 calls",
            scattered(100, 64),
            Way::OneByOne,
        ),
        (
            "100 ranges of 8 KiB, one after the other, one call",
            (0..100).map(|at| (at << 14)..(at << 14) + 8192).collect(),
            Way::Together,
        ),
        ("1 range of 64 KiB", scattered(1, 64 << 10), Way::Together),
        ("1 range of 1 MiB", scattered(1, 1 << 20), Way::Together),
    ];
    println!(
        "{:52} {:>12} {:>12} {:>7}",
        "hot", "mapped", "local", "ratio"
    );
    for (name, ranges, way) in cases {
        let object = Path::from("object");
        let expected = local.get_ranges(&object, &ranges).await?;
        if mapped.get_ranges(&object, &ranges).await? != expected {
            return Err(format!("{name}: the bytes differ").into());
        }
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(time(&mapped, &ranges, way).await?);
            theirs.push(time(&local, &ranges, way).await?);
        }
        let (ours, theirs) = (median(ours), median(theirs));
        let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
        println!("{name:52} {ours:>12.1?} {theirs:>12.1?} {ratio:>6.1}x");
    }
    println!("{:?}", mapped.stats());
    Ok(())
}

async fn time(store: &dyn ObjectStore, ranges: &[Range<u64>], way: Way) -> Outcome<Duration> {
    let object = Path::from("object");
    let clock = Instant::now();
    match way {
        Way::Together => drop(store.get_ranges(&object, ranges).await?),
        Way::OneByOne => {
            for range in ranges {
                store.get_range(&object, range.clone()).await?;
            }
        }
    }
    Ok(clock.elapsed())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
