//! What page faults on an executor cost, and how to read a mapped file without them.
//!
//! ```text
//! cargo run --release --example async_hazard [-- OPTIONS]
//!
//!   --files N     number of files, each with a task of its own: 8
//!   --mib N       length of a file in MiB: 32
//!   --rounds N    how often each way reads all files: 3
//!   --dir DIR     where the files are, for as long as it runs: beside the executable
//!   --svg FILE    the chart: async_hazard.svg beside the executable
//! ```
//!
//! The experiment of "Async hazard: mmap is secretly blocking IO"
//! (<https://huonw.github.io/blog/2024/08/async-hazard-mmap>, there with `--mib 256`), with this
//! crate beside the others. The tasks of a runtime with one thread read a file each and look at
//! every 512th byte; once with nothing in memory, once with everything. On the same thread a ticker
//! is due every millisecond: a task that waits for the disk without `.await` delays it, as it would
//! delay every other request that a service is working on.
//!
//! If two ways find other bytes, the program ends with an error.

mod cache;
mod chart;
mod ticker;
mod ways;

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::runtime::{self, Runtime};

use ticker::{beside_ticker, Turn};
use ways::{look, Way};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// The upper ends of the histogram's columns, in milliseconds; the last one has none.
const COLUMNS: [f64; 8] = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0];

fn main() -> Outcome {
    let options = Options::parse(std::env::args().skip(1))?;
    let directory = tempfile::Builder::new()
        .prefix("async_hazard-")
        .tempdir_in(&options.dir)?;
    let (paths, sum) = write_files(directory.path(), &options)?;
    println!(
        "{} files of {} MiB in {}, every {}th byte of them; medians of {} rounds",
        options.files,
        options.mib,
        options.dir.display(),
        ways::STEP,
        options.rounds
    );

    let runtime = runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let mut results = Vec::new();
    for state in [State::Cold, State::Hot] {
        if let (State::Cold, Some(problem)) = (state, cache::problem(&paths[0])?) {
            println!("\ncold      skipped: {problem}");
            continue;
        }
        let rows = measure(&runtime, &paths, sum, state, options.rounds)?;
        print_times(state, options.bytes(), &rows);
        print_histogram(state, &rows);
        results.push((state, rows));
    }
    std::fs::write(&options.svg, chart::svg(options.bytes(), &results))?;
    println!("\nchart     {}", options.svg.display());
    Ok(())
}

/// Where the bytes are when a turn begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// On the disk.
    Cold,
    /// In memory.
    Hot,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Hot => "hot",
        }
    }
}

/// What was measured of one way, or of a runtime that does nothing.
struct Row {
    /// `None` for the runtime that does nothing.
    way: Option<Way>,
    /// How long it took to read all files, for each round.
    times: Vec<Duration>,
    /// How late the ticker was, in nanoseconds.
    late: Histogram<u64>,
    /// How often the executor's thread waited for the disk in the place of an access to memory;
    /// unknown on some systems.
    major_faults: Option<u64>,
}

impl Row {
    fn new(way: Option<Way>) -> Outcome<Self> {
        Ok(Self {
            way,
            times: Vec::new(),
            late: Histogram::new(3)?,
            major_faults: Some(0),
        })
    }

    fn add(&mut self, turn: Turn) -> Outcome {
        self.times.push(turn.elapsed);
        for late in turn.late {
            self.late.record(late)?;
        }
        self.major_faults = self.major_faults.zip(turn.major_faults).map(|(a, b)| a + b);
        Ok(())
    }

    fn name(&self) -> &'static str {
        self.way.map_or("idle runtime", Way::name)
    }

    /// The median time to read all files.
    fn seconds(&self) -> f64 {
        let mut times = self.times.clone();
        times.sort();
        times[times.len() / 2].as_secs_f64()
    }

    /// The lateness that this part of the ticks does not exceed, in milliseconds.
    fn late(&self, quantile: f64) -> f64 {
        self.late.value_at_quantile(quantile) as f64 / 1e6
    }
}

/// Lets the ways take turns, so that no other load of the machine hits one of them alone.
fn measure(
    runtime: &Runtime,
    paths: &[PathBuf],
    sum: u64,
    state: State,
    rounds: u32,
) -> Outcome<Vec<Row>> {
    let mut idle = Row::new(None)?;
    let mut rows = Vec::new();
    for way in Way::ALL {
        rows.push(Row::new(Some(way))?);
    }
    if state == State::Hot {
        cache::fill(paths)?;
    }
    for _ in 0..rounds {
        for (way, row) in Way::ALL.into_iter().zip(&mut rows) {
            if state == State::Cold {
                cache::empty(paths)?;
            }
            let paths = paths.to_vec();
            let (found, turn) = beside_ticker(runtime, way.read_all(paths))?;
            if found != sum {
                return Err(format!("{} found other bytes", way.name()).into());
            }
            row.add(turn)?;
        }
        let time = rows[0].times[rows[0].times.len() - 1];
        let sleep = async move {
            tokio::time::sleep(time).await;
            Ok(())
        };
        let ((), turn) = beside_ticker(runtime, sleep)?;
        idle.add(turn)?;
    }
    rows.push(idle);
    Ok(rows)
}

fn print_times(state: State, bytes: u64, rows: &[Row]) {
    println!(
        "\n{:<22} {:>9} {:>9}   tick late by: p50, p99, p99.9, most {:>12}",
        state.name(),
        "time",
        "speed",
        "major faults"
    );
    for row in rows {
        let (time, speed) = match row.way {
            None => (String::new(), String::new()),
            Some(_) => (
                format!("{:.0} ms", row.seconds() * 1e3),
                format!("{:.2} GB/s", bytes as f64 / row.seconds() / 1e9),
            ),
        };
        let faults = row
            .major_faults
            .map_or("?".into(), |faults| faults.to_string());
        println!(
            "{:<22} {time:>9} {speed:>9} {:>9.2} {:>8.2} {:>8.2} {:>8.2} ms {faults:>12}",
            row.name(),
            row.late(0.5),
            row.late(0.99),
            row.late(0.999),
            row.late(1.0),
        );
    }
}

/// Prints how many ticks were how late.
fn print_histogram(state: State, rows: &[Row]) {
    print!("\n{:<22}", format!("{}: ticks late by", state.name()));
    COLUMNS
        .iter()
        .for_each(|end| print!(" {:>8}", format!("<{end} ms")));
    println!(" {:>8}", "more");
    for row in rows {
        print!("{:<22}", row.name());
        let mut from = 0;
        for end in COLUMNS.map(|end| (end * 1e6) as u64) {
            print!(" {:>8}", row.late.count_between(from, end - 1));
            from = end;
        }
        println!(" {:>8}", row.late.count_between(from, u64::MAX));
    }
}

/// Writes the files, and returns the sum of the bytes that a reader looks at.
fn write_files(directory: &Path, options: &Options) -> Outcome<(Vec<PathBuf>, u64)> {
    const BLOCK: usize = 1 << 20;
    let mut paths = Vec::new();
    let mut sum = 0;
    for number in 0..options.files {
        let mut state = number + 1;
        let block: Vec<u8> = (0..BLOCK)
            .map(|_| {
                // A linear congruential generator; its high bits are the better ones.
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        let path = directory.join(format!("file{number}"));
        let mut file = File::create(&path)?;
        for _ in 0..options.mib {
            file.write_all(&block)?;
        }
        // Pages that are not on the disk yet could not be taken out of memory.
        file.sync_all()?;
        sum += look(&block) * options.mib;
        paths.push(path);
    }
    Ok((paths, sum))
}

struct Options {
    files: u64,
    mib: u64,
    rounds: u32,
    dir: PathBuf,
    svg: PathBuf,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Outcome<Self> {
        // In the target directory, which is seldom on a file system in memory, as `/tmp` may be.
        let executable = std::env::current_exe()?;
        let dir = executable
            .parent()
            .ok_or("the executable has no directory")?;
        let mut options = Self {
            files: 8,
            mib: 32,
            rounds: 3,
            dir: dir.to_path_buf(),
            svg: dir.join("async_hazard.svg"),
        };
        while let Some(name) = args.next() {
            let value = args.next().ok_or(format!("{name} needs a value"))?;
            match &*name {
                "--files" => options.files = value.parse()?,
                "--mib" => options.mib = value.parse()?,
                "--rounds" => options.rounds = value.parse()?,
                "--dir" => options.dir = value.into(),
                "--svg" => options.svg = value.into(),
                _ => return Err(format!("no option {name}").into()),
            }
        }
        match options.files.min(options.mib).min(options.rounds.into()) {
            0 => Err("files, MiB and rounds are at least 1 each".into()),
            _ => Ok(options),
        }
    }

    /// Length of all files together.
    fn bytes(&self) -> u64 {
        self.files * (self.mib << 20)
    }
}
