//! Spans and warnings for subscribers of `tracing`. Without the feature all of this is empty, and
//! costs nothing.
//!
//! A subscriber is foreign code: it may block, panic, or use files through this crate. So it is
//! called only where no lock and no lease is held: by the future that the caller polls, and by a
//! job of the pool that does nothing else. The threads that work on an operation in between only
//! note times in its [`Phase`].

#[cfg(feature = "tracing")]
pub(crate) use self::on::{may_warn, operation, warn_blocked, Name, Phase};

#[cfg(not(feature = "tracing"))]
pub(crate) use self::off::{may_warn, operation, warn_blocked, Name, Phase};

use std::fmt;
use std::path::Path;
use std::time::Duration;

use crate::range::ByteRange;

pub(crate) const IS_ON: bool = cfg!(feature = "tracing");

/// An operation that has been blocked for long.
#[derive(Debug)]
pub(crate) struct Blocked<'a> {
    /// What it is, with its article.
    pub(crate) operation: &'static str,
    pub(crate) file: Option<&'a Path>,
    pub(crate) ranges: &'a [ByteRange],
    pub(crate) since: Duration,
    /// The leases that conflict with it, merged. If there are none, an earlier operation does.
    pub(crate) leases: &'a [ByteRange],
    /// How many other operations on the file have been blocked as long.
    pub(crate) others: usize,
}

/// Displays the first of several ranges.
struct Ranges<'a>(&'a [ByteRange]);

/// How many ranges are displayed.
const FIRST: usize = 8;

impl fmt::Display for Ranges<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.0.iter().take(FIRST).enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{}..", range.start())?;
            if range.end() < u64::MAX {
                write!(f, "{}", range.end())?;
            }
        }
        match self.0.len().saturating_sub(FIRST) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

impl fmt::Display for Blocked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at bytes {}", self.operation, Ranges(self.ranges))?;
        if let Some(file) = self.file {
            write!(f, " of {}", file.display())?;
        }
        write!(f, " has been blocked for {} ms", self.since.as_millis())?;
        match self.leases {
            [] => write!(f, " by an earlier operation"),
            leases => write!(f, " by views of bytes {}", Ranges(leases)),
        }?;
        match self.others {
            0 => Ok(()),
            others => write!(f, ", and {others} other operations as long"),
        }
    }
}

#[cfg(feature = "tracing")]
mod on {
    use std::cell::Cell;
    use std::future::{poll_fn, Future};
    use std::path::{Path, PathBuf};
    use std::pin::pin;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::sync::{Arc, OnceLock};
    use std::time::Instant;

    use tracing::field::Empty;
    use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};
    use tracing::{debug_span, span_enabled, warn, Level, Span};

    use super::{Blocked, Ranges};
    use crate::error::Subject;

    const TARGET: &str = "mmap_io";

    /// When the parts of an operation were submitted, and began and ended to run. All accesses are
    /// Relaxed: the completion of an operation orders them, and what comes later is not reported.
    #[derive(Debug, Default)]
    struct Times {
        is_submitted: AtomicBool,
        /// Nanoseconds of waiting until a thread of the pool began, over all parts that began.
        waited: AtomicU64,
        /// Nanoseconds of the parts from there to their ends.
        ran: AtomicU64,
    }

    thread_local! {
        /// The operation that this thread polls.
        static CURRENT: Cell<Option<Arc<Times>>> = const { Cell::new(None) };
    }

    /// Runs one operation of the public API. If it submits something to the pool, it gets a span
    /// that lasts until its future is done or dropped.
    pub(crate) async fn operation<T>(
        name: &'static str,
        subject: &(impl Into<Subject> + Clone),
        work: impl Future<Output = T>,
    ) -> T {
        if !span_enabled!(target: TARGET, Level::DEBUG) {
            return work.await;
        }
        let times = Arc::new(Times::default());
        let mut traced: Option<Traced> = None;
        let mut work = pin!(work);
        poll_fn(|context| {
            let polled = {
                let _span = traced.as_ref().map(|traced| traced.span.enter());
                let _current = Polled::enter(times.clone());
                work.as_mut().poll(context)
            };
            if traced.is_none() && times.is_submitted.load(Ordering::Relaxed) {
                let (times, subject) = (times.clone(), subject.clone().into());
                traced = Some(Traced::new(name, &subject, times));
            }
            polled
        })
        .await
    }

    /// Marks the thread while it polls an operation.
    struct Polled {
        outer: Option<Arc<Times>>,
    }

    impl Polled {
        fn enter(times: Arc<Times>) -> Self {
            let outer = CURRENT.try_with(|current| current.replace(Some(times)));
            Self {
                outer: outer.ok().flatten(),
            }
        }
    }

    impl Drop for Polled {
        fn drop(&mut self) {
            let _ = CURRENT.try_with(|current| current.set(self.outer.take()));
        }
    }

    /// The span of an operation, whose times are recorded when it is dropped.
    struct Traced {
        span: Span,
        times: Arc<Times>,
    }

    impl Traced {
        fn new(name: &'static str, subject: &Subject, times: Arc<Times>) -> Self {
            let span = debug_span!(
                target: TARGET,
                "operation",
                operation = name,
                path = Empty,
                offset = Empty,
                len = Empty,
                waited_us = Empty,
                ran_us = Empty,
            );
            match subject {
                Subject::Nothing => {}
                Subject::Path(path) => {
                    span.record("path", tracing::field::display(path.display()));
                }
                Subject::Bytes(offset, len) => {
                    span.record("offset", offset);
                    span.record("len", len);
                }
                Subject::Len(len) => {
                    span.record("len", len);
                }
            }
            Self { span, times }
        }
    }

    impl Drop for Traced {
        fn drop(&mut self) {
            let micros = |nanos: &AtomicU64| nanos.load(Ordering::Relaxed) / 1000;
            self.span.record("waited_us", micros(&self.times.waited));
            self.span.record("ran_us", micros(&self.times.ran));
        }
    }

    /// Something that an operation has submitted to the pool, or to the queue of a file.
    #[derive(Debug)]
    pub(crate) struct Phase(Option<Part>);

    #[derive(Debug)]
    struct Part {
        times: Arc<Times>,
        submitted: Instant,
        /// Nanoseconds from the submission until it began to run; [`NEVER`] before that.
        began: AtomicU64,
        has_ended: AtomicBool,
    }

    const NEVER: u64 = u64::MAX;

    impl Phase {
        /// Notes that the operation which this thread polls submits something now.
        pub(crate) fn submit() -> Self {
            let current = CURRENT.try_with(|current| {
                let times = current.take();
                current.set(times.clone());
                times
            });
            let times = current.ok().flatten();
            Self(times.map(|times| {
                times.is_submitted.store(true, Ordering::Relaxed);
                Part {
                    times,
                    submitted: Instant::now(),
                    began: AtomicU64::new(NEVER),
                    has_ended: AtomicBool::new(false),
                }
            }))
        }

        /// Notes that it begins to run. If it is deferred and begins again, that counts.
        pub(crate) fn begin(&self) {
            if let Some(part) = &self.0 {
                let began = part.submitted.elapsed().as_nanos() as u64;
                part.began.store(began, Ordering::Relaxed);
            }
        }

        /// Notes that it has ended. Only the first call counts.
        pub(crate) fn end(&self) {
            let Some(part) = &self.0 else {
                return;
            };
            if part.has_ended.swap(true, Ordering::Relaxed) {
                return;
            }
            let all = part.submitted.elapsed().as_nanos() as u64;
            let waited = all.min(part.began.load(Ordering::Relaxed));
            part.times.waited.fetch_add(waited, Ordering::Relaxed);
            part.times.ran.fetch_add(all - waited, Ordering::Relaxed);
        }

        /// Returns the job with its beginning and its end noted.
        pub(crate) fn around<T>(self, job: impl FnOnce() -> T) -> impl FnOnce() -> T {
            move || {
                self.begin();
                let result = job();
                self.end();
                result
            }
        }
    }

    /// A path of a file, for warnings.
    #[derive(Debug)]
    pub(crate) struct Name(OnceLock<PathBuf>);

    impl Name {
        pub(crate) fn new() -> Self {
            Self(OnceLock::new())
        }

        /// Takes the first path that is given.
        pub(crate) fn set(&self, path: &Path) {
            self.0.get_or_init(|| path.to_path_buf());
        }

        pub(crate) fn get(&self) -> Option<&Path> {
            self.0.get().map(PathBuf::as_path)
        }
    }

    /// Whether a subscriber may want warnings. Calls no subscriber: the drain asks this.
    pub(crate) fn may_warn() -> bool {
        Level::WARN <= STATIC_MAX_LEVEL && Level::WARN <= LevelFilter::current()
    }

    /// Warns of an operation that has been blocked for long, if a subscriber wants it.
    pub(crate) fn warn_blocked(blocked: &Blocked<'_>) {
        warn!(
            target: TARGET,
            path = blocked.file.map(|file| tracing::field::display(file.display())),
            ranges = %Ranges(blocked.ranges),
            blocked_ms = blocked.since.as_millis() as u64,
            views = %Ranges(blocked.leases),
            others = blocked.others,
            "{blocked}"
        );
    }
}

#[cfg(not(feature = "tracing"))]
mod off {
    use std::future::Future;
    use std::path::Path;

    use super::Blocked;

    #[inline(always)]
    pub(crate) fn operation<F: Future>(_: &'static str, _: &impl Sized, work: F) -> F {
        work
    }

    #[derive(Debug)]
    pub(crate) struct Phase;

    impl Phase {
        #[inline(always)]
        pub(crate) fn submit() -> Self {
            Self
        }

        #[inline(always)]
        pub(crate) fn begin(&self) {}

        #[inline(always)]
        pub(crate) fn end(&self) {}

        #[inline(always)]
        pub(crate) fn around<J>(self, job: J) -> J {
            job
        }
    }

    #[derive(Debug)]
    pub(crate) struct Name;

    impl Name {
        #[inline(always)]
        pub(crate) fn new() -> Self {
            Self
        }

        #[inline(always)]
        pub(crate) fn set(&self, _: &Path) {}

        #[inline(always)]
        pub(crate) fn get(&self) -> Option<&Path> {
            None
        }
    }

    #[inline(always)]
    pub(crate) fn may_warn() -> bool {
        false
    }

    #[inline(always)]
    pub(crate) fn warn_blocked(_: &Blocked<'_>) {}
}
