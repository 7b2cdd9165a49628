//! Measures that a scan of a cold file leaves the memory to others.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use mmap_io::MemoryMappedFile;

use crate::fixture::{file, total, MIB};
use crate::harness::{task, Bench, Result, Sample};
use crate::os;
use crate::report::{Goal, Line};
use crate::whole_file::{by_reads, by_stream, PIECE};

/// Time between two looks at the page cache, each of which takes some 0.1 ms.
const PAUSE: Duration = Duration::from_millis(10);

/// F27: `stream` with `drop_behind` over a cold file, against `tokio::fs`; and the most memory that
/// the process, and the file in the page cache, take up at any time.
pub(crate) fn bounded_memory(bench: &Bench) -> Result<Vec<Line>> {
    let len = bench.amount(4_096 * MIB, 256 * MIB);
    let path = file(bench, "file", len)?;
    let mut most = Memory::default();

    let [ours, plain] = bench.interleave_cold(
        bench.amount(2, 1),
        [
            &mut |_| {
                os::drop_cached(&path)?;
                let map = bench.multi.block_on(MemoryMappedFile::open_ro(&path))?;
                let stream = map.stream(.., PIECE)?.drop_behind(true);
                let read = by_stream(stream, total);
                let sample = most.watch(&path, || task(&bench.multi, 1, read))?;
                // Mapped pages would stay in the cache.
                bench.multi.block_on(map.close())?;
                Ok(sample)
            },
            &mut |_| {
                os::drop_cached(&path)?;
                let owned = path.clone();
                let read = async move { by_reads(&owned, total).await };
                task(&bench.multi, 1, read)
            },
        ],
    )?;

    let name = |what| format!("bounded_memory_{}M{what}", len / MIB);
    let count = |what, bytes: u64, mib| Line::count(name(what), bytes.div_ceil(MIB), mib);
    Ok(vec![
        Line::times(name(""), ours, plain, "tokio::fs", Goal::Faster(1.0)),
        count("_rss_mib", most.resident, 32),
        count("_cache_mib", most.cached, 64),
    ])
}

/// The most memory that was seen, in bytes.
#[derive(Default)]
struct Memory {
    /// What the process had beside what it had to begin with.
    resident: u64,
    /// What the file had in the page cache.
    cached: u64,
}

impl Memory {
    /// Runs `work`, and takes note of how much memory it takes up.
    fn watch(&mut self, path: &Path, work: impl FnOnce() -> Result<Sample>) -> Result<Sample> {
        let file = File::open(path)?;
        let has_ended = AtomicBool::new(false);
        os::reset_peak_resident()?;
        let before = os::resident()?;
        let (sample, cached) = thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut most = 0;
                while !has_ended.load(Ordering::Relaxed) {
                    most = os::cached(&file)?.max(most);
                    thread::sleep(PAUSE);
                }
                Result::Ok(most)
            });
            let sample = work();
            has_ended.store(true, Ordering::Relaxed);
            (sample, watcher.join().expect("the watcher panicked"))
        });
        let peak = os::peak_resident()?;
        self.resident = self.resident.max(peak.saturating_sub(before));
        self.cached = self.cached.max(cached?);
        sample
    }
}
