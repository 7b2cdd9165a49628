//! Runs the sides of a figure in turns, and takes the median of each.

use std::cell::Cell;
use std::error::Error;
use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::runtime::{self, Runtime};

/// The error that ends a figure early: an operation failed, or two sides did different work.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// What a figure runs on: a directory on disk, the runtimes, and how much work to do.
pub(crate) struct Bench {
    dir: TempDir,
    /// A runtime with two workers, on every machine.
    pub(crate) multi: Runtime,
    /// A runtime with one thread, for the variants that are printed without a target.
    pub(crate) current: Runtime,
    quick: bool,
    rounds: Cell<u64>,
}

/// The result of one turn of one side.
pub(crate) struct Sample {
    /// What is compared, mostly nanoseconds an operation.
    pub(crate) value: f64,
    /// The amount of work: the figure is valid only if every side returns the same number.
    pub(crate) work: u64,
}

/// One side of a comparison; called with the number of the round, which all sides share and no
/// other round of the figure has, so that each round can do something else.
pub(crate) type Side<'a> = &'a mut dyn FnMut(u64) -> Result<Sample>;

impl Bench {
    pub(crate) fn new(quick: bool) -> Result<Self> {
        // Beside the executable, which is inside the target directory and so on a disk.
        let exe = std::env::current_exe()?;
        let target = exe.parent().ok_or("the executable has no directory")?;
        let dir = tempfile::Builder::new()
            .prefix("peers-")
            .tempdir_in(target)?;
        if is_in_memory(dir.path())? {
            return Err(format!("{} is not on a disk", dir.path().display()).into());
        }
        Ok(Self {
            dir,
            multi: runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_time()
                .build()?,
            current: runtime::Builder::new_current_thread()
                .enable_time()
                .build()?,
            quick,
            rounds: Cell::new(0),
        })
    }

    /// The figure's own directory, gone when it ends.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// How much of something to do: `full`, or `quick` under `--quick`.
    pub(crate) fn amount(&self, full: u64, quick: u64) -> u64 {
        if self.quick {
            quick
        } else {
            full
        }
    }

    /// Lets the sides take turns and gives the median of each. A first round warms up and is not
    /// counted, but checked like the others: in every round all sides report the same work.
    pub(crate) fn interleave<const N: usize>(&self, sides: [Side<'_>; N]) -> Result<[f64; N]> {
        self.interleave_rounds(1, self.amount(7, 3), sides)
    }

    /// The same in fewer rounds, for sides whose turns take long.
    pub(crate) fn interleave_slow<const N: usize>(&self, sides: [Side<'_>; N]) -> Result<[f64; N]> {
        self.interleave_rounds(1, self.amount(5, 1), sides)
    }

    /// The same for sides that each begin with nothing in memory: no round warms up.
    pub(crate) fn interleave_cold<const N: usize>(
        &self,
        rounds: u64,
        sides: [Side<'_>; N],
    ) -> Result<[f64; N]> {
        self.interleave_rounds(0, rounds, sides)
    }

    fn interleave_rounds<const N: usize>(
        &self,
        warm_up: u64,
        counted: u64,
        mut sides: [Side<'_>; N],
    ) -> Result<[f64; N]> {
        let mut values: [Vec<f64>; N] = std::array::from_fn(|_| Vec::new());
        for number in 0..warm_up + counted {
            let round = self.rounds.replace(self.rounds.get() + 1);
            let mut work = None;
            for (side, values) in sides.iter_mut().zip(&mut values) {
                let sample = side(round)?;
                let expected = *work.get_or_insert(sample.work);
                if sample.work != expected {
                    return Err(format!("work differs: {} and {expected}", sample.work).into());
                }
                if number >= warm_up {
                    values.push(sample.value);
                }
            }
        }
        Ok(values.map(median))
    }
}

impl Sample {
    /// Nanoseconds an operation.
    pub(crate) fn per_operation(elapsed: Duration, operations: u64, work: u64) -> Self {
        Self {
            value: elapsed.as_nanos() as f64 / operations as f64,
            work,
        }
    }
}

/// Runs `work` and returns how long it took.
pub(crate) fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let start = Instant::now();
    let value = work()?;
    Ok((start.elapsed(), value))
}

/// Spawns `future`, which does that many operations, and waits for it. It returns what it did.
pub(crate) fn task(
    runtime: &Runtime,
    operations: u64,
    future: impl Future<Output = Result<u64>> + Send + 'static,
) -> Result<Sample> {
    let (elapsed, work) = timed(|| runtime.block_on(runtime.spawn(future))?)?;
    Ok(Sample::per_operation(elapsed, operations, work))
}

/// The same with `count` tasks, which do that many operations among them, all at once.
pub(crate) fn tasks<F>(
    runtime: &Runtime,
    operations: u64,
    count: u64,
    future: impl Fn(u64) -> F,
) -> Result<Sample>
where
    F: Future<Output = Result<u64>> + Send + 'static,
{
    let (elapsed, work) = timed(|| {
        let spawned: Vec<_> = (0..count)
            .map(|number| runtime.spawn(future(number)))
            .collect();
        runtime.block_on(async {
            let mut sum = 0u64;
            for handle in spawned {
                sum = sum.wrapping_add(handle.await??);
            }
            Ok(sum)
        })
    })?;
    Ok(Sample::per_operation(elapsed, operations, work))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        (values[middle - 1] + values[middle]) / 2.0
    }
}

/// Whether `path` lies on a file system without a disk behind it, where every figure about
/// files would mislead.
#[cfg(target_os = "linux")]
fn is_in_memory(path: &Path) -> Result<bool> {
    use std::ffi::CString;
    use std::mem::MaybeUninit;
    use std::os::unix::ffi::OsStrExt;

    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut stat = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `path` ends in a NUL, and `stat` has room for what is written to it.
    if unsafe { libc::statfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: `statfs` succeeded, so it filled the structure in.
    let kind = unsafe { stat.assume_init() }.f_type;
    Ok(kind == libc::TMPFS_MAGIC)
}

#[cfg(not(target_os = "linux"))]
fn is_in_memory(_path: &Path) -> Result<bool> {
    Ok(false)
}
