//! Ends the process if it makes no progress for too long.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Records the time of each step.
#[derive(Clone)]
pub(crate) struct Watchdog {
    since: Instant,
    /// Milliseconds of the last pat.
    patted: Arc<AtomicU64>,
}

impl Watchdog {
    pub(crate) fn start(patience: Duration) -> Self {
        let watchdog = Self {
            since: Instant::now(),
            patted: Arc::default(),
        };
        let watched = watchdog.clone();
        std::thread::spawn(move || loop {
            std::thread::sleep(Duration::from_secs(1));
            // Relaxed: a short delay does not matter.
            let patted = Duration::from_millis(watched.patted.load(Ordering::Relaxed));
            if watched.since.elapsed() > patted + patience {
                eprintln!("power_cut: nothing has happened for {patience:?}");
                // No clean-up, which may hang as well: the kernel removes the mounts when the
                // process has ended.
                // SAFETY: the call takes no pointer, and ends the process.
                unsafe { libc::_exit(1) };
            }
        });
        watchdog
    }

    pub(crate) fn pat(&self) {
        let now = self.since.elapsed().as_millis() as u64;
        self.patted.store(now, Ordering::Relaxed);
    }
}
