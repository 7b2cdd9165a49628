//! Applies a small write on the thread that polls it, if it is certain that nothing there can block.
//!
//! A store to a page that is in memory, mapped and dirty takes some nanoseconds, and a job on the
//! pool takes 10 to 30 us, during which the task sleeps. So a write does without the job if
//!
//! - no operation is queued, so that the write overtakes none ([`Turn`]);
//! - its pages can be stored to without a fault ([`WritablePages`](crate::writable_pages)), and no
//!   flush of this file, which would clean them, runs or is queued;
//! - the file is as long as it is known to be;
//! - its leases need no fence, and no view conflicts with them.
//!
//! What answers these questions does not block: locks that are held for a moment, and two system
//! calls about a file that is known to be local (0.6 us). If one of the answers is no, the write
//! goes to the queue as any other, and the drain makes its pages writable.
//!
//! Between the last question and the store, the system may clean a page. The store then waits for
//! the file system, as any store to a mapping may; that has the odds of a microsecond.

use std::hint::black_box;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::{OpenFile, OwnedLease};
use crate::completion::contain;
use crate::dirty::FlushDue;
use crate::error::Result;
use crate::fairness::copied;
use crate::flush::FlushPolicy;
use crate::offload::check;
use crate::queue::{Action, Outcome, Queue, Ranges, Source, Turn};
use crate::residency;
use crate::sys;
use crate::writable_pages::around;

/// The most bytes that are copied where a write is polled.
const MOST_BYTES: u64 = 64 << 10;

/// The most ranges of such a write. For each the system is asked about its pages.
const MOST_RANGES: usize = 64;

impl OpenFile {
    /// Writes `source` to `ranges`, one range after the other: at the first poll if nothing can
    /// block, else through the queue.
    ///
    /// # Cancel safety
    ///
    /// As for [`Queue::write`].
    pub(crate) async fn write(
        self: &Arc<Self>,
        ranges: Ranges,
        action: Action,
        source: Source<'_>,
    ) -> Result<Outcome<OwnedLease>> {
        let Some(due) = self.write_here(&ranges, action, &source) else {
            return Queue::write(self, ranges, action, source).await;
        };
        // The owner of a `Bytes` may panic, and the write is done.
        contain(|| drop(source));
        match due? {
            (FlushDue::None, _) => Ok(Outcome::Done),
            (due, losses) => {
                let done = self.finish_write(due, ranges.hull(), losses).await;
                done.map(|()| Outcome::Done)
            }
        }
    }

    /// Applies a write on this thread. Returns the flush that its policy requires, with the number
    /// of [losses](Self::losses) before it, or `None` if the write has to be queued.
    ///
    /// # Errors
    ///
    /// `Faulted` if a page of the file was lost before its end.
    fn write_here(
        self: &Arc<Self>,
        ranges: &Ranges,
        action: Action,
        source: &Source<'_>,
    ) -> Option<Result<(FlushDue, u64)>> {
        let policy = match action {
            Action::Write(policy) | Action::TryWrite(policy) => policy,
            _ => return None,
        };
        // No overflow: see `Ranges`.
        let len = ranges.iter().map(|range| range.len()).sum::<u64>();
        if len > MOST_BYTES || ranges.len() > MOST_RANGES {
            return None;
        }
        // A durable write waits for the pool anyway.
        if matches!(policy, FlushPolicy::Always)
            || self.is_private()
            || self.written_by_address.load(Ordering::Relaxed)
            || source.parts().any(residency::is_mapped)
        {
            return None;
        }
        // The caller's bytes may themselves have to be read in. That happens before other
        // operations have to wait for this one.
        let bytes = source.parts().flat_map(one_byte_a_page);
        bytes.for_each(|byte| {
            black_box(*byte);
        });
        check().ok()?;
        let hull = ranges.hull();
        let way = Way::of_this_write();
        if way == Way::Queued {
            return None;
        }
        let _turn = Turn::take(self, hull)?;
        let is_quiet = self.commits.are_idle() && hull.end() <= self.len();
        if !is_quiet {
            return None;
        }
        let mapped = self.writable().ok()?;
        let map = mapped.current()?;
        if way == Way::MadeWritable {
            let ranges = ranges.iter().copied();
            residency::populate_write(&map, &mapped.backing, mapped.fs_traits, ranges).ok()?;
        }
        let mut last = None;
        for range in ranges.iter() {
            let pages = range.to_pages(sys::page_size());
            if last.replace(pages) != Some(pages) {
                let stay = residency::stay_writable(&map, &mapped.backing, mapped.fs_traits, pages);
                stay?.then_some(())?;
            }
        }
        if let Some(file) = mapped.backing.file() {
            sys::known_len(file).ok().filter(|len| hull.end() <= *len)?;
        }
        let lease = self.hot.leases.try_begin_unfenced(ranges, around(hull))?;
        for (range, part) in ranges.iter().zip(source.parts()) {
            // SAFETY: `map` keeps the map of `Protection::ReadWrite` live, and the range is inside
            // the file, whose length only the holder of the turn changes. `lease` is an exclusive
            // lease on it. `part` is in no map of this crate.
            unsafe { map.span(*range).copy_from(part) };
        }
        let due = self.dirty.record(ranges, policy);
        // Before the turn is over: a cut that is noted after it may take the bytes.
        let losses = match due {
            FlushDue::None => 0,
            _ => self.losses(),
        };
        // What went to a page that is lost has reached only zeroes. The file may be mapped again as
        // soon as the turn is over.
        let whole = self.check_maps();
        drop(lease);
        let counter = match whole {
            Ok(()) => &self.counters.inline_writes,
            Err(_) => {
                self.set_alarm_if_due(&[due]);
                &self.counters.write_errors
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
        copied(len);
        Some(whole.map(|()| (due, losses)))
    }
}

/// Returns a byte of each page that `data` lies in. A page has at least 4096 bytes.
fn one_byte_a_page(data: &[u8]) -> impl Iterator<Item = &u8> {
    // The last page may have less than a whole step of data that does not begin with a page.
    data.iter().step_by(4096).chain(data.last())
}

/// The way that a write takes. It is chosen only in tests, so that they exercise each way with every
/// operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Here, if nothing can block.
    Usual,
    /// Through the queue.
    Queued,
    /// Here, after making the pages writable, which may block.
    MadeWritable,
}

impl Way {
    #[cfg(not(debug_assertions))]
    fn of_this_write() -> Self {
        Self::Usual
    }

    /// As the variable `MMAP_IO_TEST_INLINE` says. Without debug assertions it is not looked at.
    #[cfg(debug_assertions)]
    fn of_this_write() -> Self {
        use std::sync::atomic::AtomicBool;
        use std::sync::OnceLock;
        static WAY: OnceLock<Option<String>> = OnceLock::new();
        static IS_ODD: AtomicBool = AtomicBool::new(false);
        let way = WAY.get_or_init(|| std::env::var("MMAP_IO_TEST_INLINE").ok());
        match way.as_deref() {
            Some("always") => Self::MadeWritable,
            Some("never") => Self::Queued,
            // Relaxed: any sequence will do.
            Some("mixed") if IS_ODD.fetch_xor(true, Ordering::Relaxed) => Self::Queued,
            Some("mixed") => Self::MadeWritable,
            _ => Self::Usual,
        }
    }
}

#[cfg(all(test, not(mmap_io_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_byte_of_every_page_is_touched() {
        let buffer = vec![0_u8; 5 * 4096];
        let page = |byte: &u8| byte as *const u8 as usize / 4096;
        for start in [0, 1, 4095, 4096] {
            for len in [1, 2, 4095, 4096, 4097, 8191, 8192, 8193] {
                let data = &buffer[start..start + len];
                let mut touched: Vec<_> = one_byte_a_page(data).map(page).collect();
                touched.dedup();
                let all: Vec<_> = (page(&data[0])..=page(&data[len - 1])).collect();
                assert_eq!(touched, all, "{len} bytes at {:p}", data.as_ptr());
            }
        }
    }
}
