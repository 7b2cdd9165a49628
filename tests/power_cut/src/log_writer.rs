//! The child that appends to logs. Every other log is killed and opened again in between.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{ensure, Context, Result};

use crate::log::Log;
use crate::protocol::{log_name, Entry, Message};
use crate::writer::{tell, KEPT};

pub(crate) const REBORN: &str = "--writer-of-log";

/// Tasks that append at the same time.
const TASKS: u64 = 8;
/// Appends of a task to one log, at least. A log doubles four times or so.
const APPENDS: u64 = 24;
/// Processes that append to a log that is killed.
const LIVES: u64 = 4;
/// Some batches are flushed in less, some take longer.
const LONGEST_MICROS_TO_LIVE: u64 = 1500;

/// Writes one log after the other, from this life of this log on, until it is killed.
pub(crate) fn run(directory: &Path, first_log: u64, mut life: u64) -> Result<()> {
    smol::block_on(async {
        for log in first_log.. {
            let lives = if log % 2 == 0 { LIVES } else { 1 };
            let path = directory.join(log_name(log));
            let (open, writer) = Log::open(&path).await.context("open")?;
            let writer = smol::spawn(writer.run());
            let open = Arc::new(open);
            let is_killed = life + 1 < lives;
            let appends = APPENDS / lives;
            let tasks = (0..TASKS).map(|task| {
                let first = Entry {
                    log,
                    life,
                    task,
                    nth: 0,
                };
                let goes_on = is_killed && task > 0;
                let appends = if goes_on { u64::MAX } else { appends };
                smol::spawn(append(open.clone(), first, appends))
            });
            for task in tasks.collect::<Vec<_>>() {
                task.await.context("append")?;
                if is_killed {
                    // Anywhere in the batch of those that go on.
                    let left = Duration::from_micros(fastrand::u64(..LONGEST_MICROS_TO_LIVE));
                    smol::Timer::after(left).await;
                    die_and_run(directory, log, life + 1)?;
                }
            }
            drop(open);
            writer.await.context("write")?;
            life = 0;
            if let Some(gone) = log.checked_sub(KEPT as u64) {
                tell(&[Message::Gone { file: gone }])?;
                std::fs::remove_file(directory.join(log_name(gone)))?;
            }
        }
        Ok(())
    })
}

async fn append(log: Arc<Log>, first: Entry, appends: u64) -> Result<()> {
    for nth in 0..appends {
        let entry = Entry { nth, ..first };
        let payload = entry.payload();
        let position = log.append(&payload).await?;
        ensure!(
            log.read(position).await? == payload,
            "what was appended is not read"
        );
        let position = position.0;
        tell(&[Message::Appended { entry, position }])?;
    }
    Ok(())
}

/// Replaces the process image (execve(2)). This ends the threads and the memory like a SIGKILL, but
/// the process that reads the pipe does not notice.
fn die_and_run(directory: &Path, log: u64, life: u64) -> io::Result<()> {
    // So that no line is cut in two.
    let _output = io::stdout().lock();
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(REBORN).arg(directory);
    Err(command.args([log, life].map(|it| it.to_string())).exec())
}
