//! A ticker on the one thread of an executor: it runs late when other work occupies the thread.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::runtime::Runtime;
use tokio::time::interval;

use crate::harness::{Result, Sample};
use crate::os;

const TICK: Duration = Duration::from_millis(1);

/// What was seen of an executor while it did its work.
pub(crate) struct Turn {
    pub(crate) elapsed: Duration,
    /// What the work returned.
    pub(crate) work: u64,
    /// How late each tick was, in nanoseconds.
    late: Vec<u64>,
    /// How often the executor's thread waited for the disk, in the place of a memory access.
    pub(crate) major_faults: u64,
}

impl Turn {
    pub(crate) fn ticks(&self) -> u64 {
        self.late.len() as u64
    }

    /// The time that all of the work took.
    pub(crate) fn sample(&self) -> Sample {
        Sample::per_operation(self.elapsed, 1, self.work)
    }
}

/// How late ticks were, of several turns.
pub(crate) struct Lateness(Histogram<u64>);

impl Lateness {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Histogram::new(3)?))
    }

    pub(crate) fn add(&mut self, turn: &Turn) -> Result<()> {
        for late in &turn.late {
            self.0.record(*late)?;
        }
        Ok(())
    }

    /// The lateness, in nanoseconds, that one tick in a thousand exceeds.
    pub(crate) fn p999(&self) -> f64 {
        self.0.value_at_quantile(0.999) as f64
    }
}

/// Runs `work` as a task beside a ticker. The runtime has no thread but the calling one.
pub(crate) fn beside_ticker(
    runtime: &Runtime,
    work: impl Future<Output = Result<u64>> + Send + 'static,
) -> Result<Turn> {
    runtime.block_on(async {
        let end = Arc::new(OnceLock::new());
        let ticker = tokio::spawn(tick(Arc::clone(&end)));
        let faults_before = os::major_faults()?;
        let start = Instant::now();
        let work = tokio::spawn(work).await??;
        let elapsed = end.get_or_init(Instant::now).duration_since(start);
        let major_faults = os::major_faults()? - faults_before;
        Ok(Turn {
            elapsed,
            work,
            late: ticker.await?,
            major_faults,
        })
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
