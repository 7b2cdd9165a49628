//! A ticker that shares the executor's thread with the work that is measured.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::time::interval;

use crate::Outcome;

const TICK: Duration = Duration::from_millis(1);

/// What was seen of the executor while it did its work.
pub(crate) struct Turn {
    pub(crate) elapsed: Duration,
    /// How late each tick was, in nanoseconds.
    pub(crate) late: Vec<u64>,
    pub(crate) major_faults: Option<u64>,
}

/// Runs `work` as a task beside a ticker. The runtime has no thread but the calling one.
pub(crate) fn beside_ticker<T: Send + 'static>(
    runtime: &Runtime,
    work: impl Future<Output = Outcome<T>> + Send + 'static,
) -> Outcome<(T, Turn)> {
    runtime.block_on(async {
        let end = Arc::new(OnceLock::new());
        let ticker = tokio::spawn(tick(Arc::clone(&end)));
        let faults_before = major_faults();
        let start = Instant::now();
        let result = tokio::spawn(work).await??;
        let elapsed = end.get_or_init(Instant::now).duration_since(start);
        let faults = major_faults().zip(faults_before);
        let turn = Turn {
            elapsed,
            late: ticker.await?,
            major_faults: faults.map(|(after, before)| after - before),
        };
        Ok((result, turn))
    })
}

/// Returns how late each tick was that was due before the end. When the executor had no time for a
/// while, all ticks that were due then count.
async fn tick(end: Arc<OnceLock<Instant>>) -> Vec<u64> {
    let mut ticks = interval(TICK);
    // The first one is due at once.
    ticks.tick().await;
    let mut late = Vec::new();
    loop {
        let due = ticks.tick().await.into_std();
        if end.get().is_some_and(|end| due > *end) {
            break;
        }
        late.push(due.elapsed().as_nanos() as u64);
    }
    // tokio rounds the times up to its own milliseconds, all of them by the same amount, by which
    // even the most punctual tick is late.
    let rounding = late.iter().min().copied().unwrap_or(0);
    late.iter_mut().for_each(|late| *late -= rounding);
    late
}

/// How often the calling thread waited for the disk in the place of an access to memory.
#[cfg(target_os = "linux")]
fn major_faults() -> Option<u64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: `usage` has room for what is written to it.
    let result = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    // SAFETY: after a success the structure is filled in.
    (result == 0).then(|| unsafe { usage.assume_init() }.ru_majflt as u64)
}

/// Other systems count for the whole process only.
#[cfg(not(target_os = "linux"))]
fn major_faults() -> Option<u64> {
    None
}
