//! Measures appends: of many tasks that wait for each of them, durable or not, and of one task.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mmap_io::MemoryMappedFile;
use tokio::task::spawn_blocking;

use crate::harness::{tasks, Bench, Result, Sample};
use crate::report::{Goal, Line};

/// The length of a record.
const LEN: usize = 64;

/// What both logs begin with, since a mapped file has at least a byte.
const HEADER: [u8; LEN] = [0; LEN];

/// The two logs, ours and that of plain descriptors.
struct Logs {
    paths: [PathBuf; 2],
    ours: MemoryMappedFile,
    plain: Arc<File>,
}

/// F31: appends of 64 bytes to a log.
pub(crate) fn append(bench: &Bench) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (name, count, is_durable, goal) in [
        ("append_durable_64_tasks", 64, true, Goal::Faster(6.0)),
        ("append_64_tasks", 64, false, Goal::Faster(5.0)),
        ("append_1_task", 1, false, Goal::Faster(0.8)),
    ] {
        let logs = Logs::new(bench, name)?;
        let total = match is_durable {
            true => bench.amount(4_096, 1_024),
            false => bench.amount(16_384, 4_096),
        };
        let [ours, plain] = bench.interleave([
            &mut |_| logs.append_ours(bench, count, total / count, is_durable),
            &mut |_| logs.append_plain(bench, count, total / count, is_durable),
        ])?;
        logs.check()?;
        let peer = match is_durable {
            true => "spawn_blocking(O_APPEND write + sync_data)",
            false => "spawn_blocking(O_APPEND write)",
        };
        lines.push(Line::times(name, ours, plain, peer, goal));
    }
    Ok(lines)
}

fn record(task: u64, number: u64) -> [u8; LEN] {
    let mut record = [task as u8 + 1; LEN];
    record[..8].copy_from_slice(&number.to_le_bytes());
    record
}

impl Logs {
    fn new(bench: &Bench, name: &str) -> Result<Self> {
        let paths = ["ours", "plain"].map(|side| bench.dir().join(format!("{name}-{side}")));
        for path in &paths {
            std::fs::write(path, HEADER)?;
            File::open(path)?.sync_all()?;
        }
        let ours = bench.multi.block_on(MemoryMappedFile::open_rw(&paths[0]))?;
        let plain = Arc::new(OpenOptions::new().append(true).open(&paths[1])?);
        Ok(Self { paths, ours, plain })
    }

    fn append_ours(
        &self,
        bench: &Bench,
        count: u64,
        each: u64,
        is_durable: bool,
    ) -> Result<Sample> {
        let append = |task| {
            let log = self.ours.clone();
            async move {
                for number in 0..each {
                    let record = record(task, number);
                    match is_durable {
                        true => log.append_async(&record).await?,
                        false => log.append(&record).await?,
                    };
                }
                Ok(each)
            }
        };
        tasks(&bench.multi, count * each, count, append)
    }

    fn append_plain(
        &self,
        bench: &Bench,
        count: u64,
        each: u64,
        is_durable: bool,
    ) -> Result<Sample> {
        let append = |task| {
            let log = self.plain.clone();
            async move {
                for number in 0..each {
                    let (log, record) = (log.clone(), record(task, number));
                    spawn_blocking(move || {
                        (&*log).write_all(&record)?;
                        match is_durable {
                            true => log.sync_data(),
                            false => Ok(()),
                        }
                    })
                    .await??;
                }
                Ok(each)
            }
        };
        tasks(&bench.multi, count * each, count, append)
    }

    /// Fails unless both logs hold the same records, in whatever order.
    fn check(&self) -> Result<()> {
        let [ours, plain] = [sorted(&self.paths[0])?, sorted(&self.paths[1])?];
        if ours != plain {
            return Err("the logs do not hold the same records".into());
        }
        Ok(())
    }
}

/// The records of a log.
fn sorted(path: &Path) -> Result<Vec<Vec<u8>>> {
    let mut records: Vec<_> = std::fs::read(path)?
        .chunks(LEN)
        .map(<[u8]>::to_vec)
        .collect();
    records.sort_unstable();
    Ok(records)
}
