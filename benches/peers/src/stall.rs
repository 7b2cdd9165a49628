//! Measures how long reading a cold file keeps an executor from its other tasks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::fixture::{file, map_read, total, MIB};
use crate::harness::{Bench, Result};
use crate::os;
use crate::report::{Goal, Line};
use crate::ticker::{beside_ticker, Lateness, Turn};
use crate::whole_file::{by_reads, by_stream, by_touching, PIECE};

/// F14: the lateness of a ticker beside a task that reads a cold file on the same thread.
pub(crate) fn stall(bench: &Bench) -> Result<Vec<Line>> {
    let len = bench.amount(512 * MIB, 64 * MIB);
    let ticks = bench.amount(5_000, 200);
    let path = file(bench, "file", len)?;

    // The first turn shows how many of them it takes.
    let rounds = ticks.div_ceil(ours(bench, &path)?.ticks().max(1));
    let [mut late, mut late_idle, mut late_raw, mut late_plain] = [
        Lateness::new()?,
        Lateness::new()?,
        Lateness::new()?,
        Lateness::new()?,
    ];
    let mut major_faults = 0;
    let [took, took_raw, took_plain] = bench.interleave_cold(
        rounds,
        [
            &mut |_| {
                let turn = ours(bench, &path)?;
                late.add(&turn)?;
                major_faults += turn.major_faults;
                late_idle.add(&idle(bench, turn.elapsed)?)?;
                Ok(turn.sample())
            },
            &mut |_| {
                os::drop_cached(&path)?;
                let map = map_read(&path)?;
                let turn = beside_ticker(&bench.current, by_touching(map, total))?;
                late_raw.add(&turn)?;
                Ok(turn.sample())
            },
            &mut |_| {
                os::drop_cached(&path)?;
                let path: PathBuf = path.clone();
                let reads = async move { by_reads(&path, total).await };
                let turn = beside_ticker(&bench.current, reads)?;
                late_plain.add(&turn)?;
                Ok(turn.sample())
            },
        ],
    )?;

    let read = format!("stall_read_{}M", len / MIB);
    let tick = "stall_tick_p999";
    let late = late.p999();
    let line = |other, peer, goal| Line::times(tick, late, other, peer, goal);
    Ok(vec![
        line(late_idle.p999() + 1e6, "idle + 1 ms", Goal::AtMost(1.0)),
        line(late_raw.p999(), "memmap2", Goal::AtMost(0.1)),
        line(late_plain.p999(), "tokio::fs", Goal::Slowdown),
        Line::count("stall_major_faults", major_faults, 0),
        Line::times(&read, took, took_plain, "tokio::fs", Goal::Faster(1.0)),
        Line::times(&read, took, took_raw, "memmap2", Goal::Speedup),
    ])
}

/// A turn with our stream.
fn ours(bench: &Bench, path: &Path) -> Result<Turn> {
    os::drop_cached(path)?;
    let map = bench
        .current
        .block_on(mmap_io::MemoryMappedFile::open_ro(path))?;
    let turn = beside_ticker(&bench.current, by_stream(map.stream(.., PIECE)?, total))?;
    // Mapped pages would stay in the cache.
    bench.current.block_on(map.close())?;
    Ok(turn)
}

/// A turn without any work.
pub(crate) fn idle(bench: &Bench, time: Duration) -> Result<Turn> {
    beside_ticker(&bench.current, async move {
        tokio::time::sleep(time).await;
        Ok(0)
    })
}
