//! Measures many tasks that each read a file: the experiment of "Async hazard: mmap is secretly
//! blocking IO" (<https://huonw.github.io/blog/2024/08/async-hazard-mmap>).

use std::path::PathBuf;
use std::time::Duration;

use tokio::task::{spawn_blocking, JoinHandle};

use crate::fixture::{file, map_read, MIB};
use crate::harness::{Bench, Result, Side};
use crate::os;
use crate::report::{Goal, Line};
use crate::stall::idle;
use crate::ticker::{beside_ticker, Lateness, Turn};
use crate::whole_file::{by_reads, by_stream, by_touching, PIECE};

const FILES: u64 = 8;

/// One byte of this many is looked at, so that the work is reading.
const STEP: usize = 512;

/// The longest time for which an idle runtime is looked at in a round.
const IDLE: Duration = Duration::from_millis(500);

/// F30: the time to read all files, and the lateness of a ticker on the same thread.
pub(crate) fn async_hazard(bench: &Bench) -> Result<Vec<Line>> {
    let len = bench.amount(256 * MIB, 16 * MIB);
    let paths = (0..FILES)
        .map(|number| file(bench, &format!("file{number}"), len))
        .collect::<Result<Vec<_>>>()?;
    let cold = measure(bench, &paths, State::Cold)?;
    let hot = measure(bench, &paths, State::Hot)?;

    let name = |state| format!("hazard_{state}_{}M", FILES * len / MIB);
    let informs = Goal::Speedup;
    let mut lines = cold.lines(
        &name("cold"),
        [Goal::AtMost(1.0), informs, informs],
        Goal::AtMost(1.0),
    );
    lines.extend(hot.lines(
        &name("hot"),
        [informs, informs, Goal::AtMost(1.2)],
        Goal::Slowdown,
    ));
    Ok(lines)
}

/// Where the files are when a turn begins.
#[derive(Clone, Copy)]
enum State {
    Cold,
    Hot,
}

/// The results of the ways in one state: of ours first.
struct Measured {
    times: [f64; 4],
    late: [Lateness; 4],
    late_idle: Lateness,
}

impl Measured {
    /// One line for the time against each other way, and for the lateness against an idle runtime
    /// and against those ways that run on the executor.
    fn lines(&self, name: &str, times: [Goal; 3], late: Goal) -> Vec<Line> {
        let peers = ["tokio::fs", "memmap2", "memmap2 on threads"];
        let [ours, others @ ..] = self.times;
        let others = others.into_iter().zip(peers).zip(times);
        let mut lines: Vec<_> = others
            .map(|((other, peer), goal)| Line::times(name, ours, other, peer, goal))
            .collect();

        let tick = format!("{name}_tick_p999");
        let [ours, reads, touching, _] = self.late.each_ref().map(Lateness::p999);
        let line = |other, peer, goal| Line::times(&tick, ours, other, peer, goal);
        let informs = Goal::Slowdown;
        lines.push(line(self.late_idle.p999() + 1e6, "idle + 1 ms", late));
        lines.push(line(reads, peers[0], informs));
        lines.push(line(touching, peers[1], informs));
        lines
    }
}

fn measure(bench: &Bench, paths: &[PathBuf], state: State) -> Result<Measured> {
    let new = Lateness::new;
    let mut late = [new()?, new()?, new()?, new()?];
    let mut late_idle = new()?;
    let turn = |way, late: &mut Lateness| {
        if let State::Cold = state {
            paths.iter().try_for_each(|path| os::drop_cached(path))?;
        }
        let turn = read_all(bench, paths, way)?;
        late.add(&turn)?;
        Ok(turn.sample())
    };
    let [ours, reads, touching, threads] = &mut late;
    let sides: [Side<'_>; 4] = [
        &mut |_| {
            let sample = turn(Way::Ours, ours)?;
            let time = Duration::from_nanos(sample.value as u64).min(IDLE);
            late_idle.add(&idle(bench, time)?)?;
            Ok(sample)
        },
        &mut |_| turn(Way::Reads, reads),
        &mut |_| turn(Way::Touching, touching),
        &mut |_| turn(Way::Threads, threads),
    ];
    let times = match state {
        State::Cold => bench.interleave_cold(bench.amount(3, 1), sides)?,
        State::Hot => bench.interleave_slow(sides)?,
    };
    Ok(Measured {
        times,
        late,
        late_idle,
    })
}

/// How a task reads its file.
#[derive(Clone, Copy)]
enum Way {
    Ours,
    Reads,
    /// On the executor, which waits for the disk.
    Touching,
    /// On a blocking thread for each file.
    Threads,
}

/// Opens and reads all files at the same time, a task for each.
fn read_all(bench: &Bench, paths: &[PathBuf], way: Way) -> Result<Turn> {
    let paths = paths.to_vec();
    beside_ticker(&bench.current, async move {
        let tasks: Vec<JoinHandle<Result<u64>>> = paths
            .into_iter()
            .map(|path| match way {
                Way::Ours => tokio::spawn(by_ours(path)),
                Way::Reads => tokio::spawn(async move { by_reads(&path, look).await }),
                Way::Touching => {
                    tokio::spawn(async move { by_touching(map_read(&path)?, look).await })
                }
                Way::Threads => spawn_blocking(move || Ok(look(&map_read(&path)?))),
            })
            .collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await??;
        }
        Ok(sum)
    })
}

async fn by_ours(path: PathBuf) -> Result<u64> {
    let map = mmap_io::MemoryMappedFile::open_ro(&path).await?;
    let sum = by_stream(map.stream(.., PIECE)?, look).await?;
    // It ends when the file is unmapped, as the drop of a mapping does.
    map.close().await?;
    Ok(sum)
}

fn look(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .step_by(STEP)
        .map(|byte| u64::from(*byte))
        .sum()
}
