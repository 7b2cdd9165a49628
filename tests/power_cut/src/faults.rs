//! Tests a failing disk: the error must reach every waiting task, and must never be forgotten.
//!
//! The kernel reports a failed write-back once, and the next `fsync` may succeed although the bytes
//! never got to the disk. A file that forgot the error would then acknowledge these bytes.

use std::future::Future;
use std::io::{self, BufRead};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use mmap_io::{FlushPolicy, MemoryMappedFile, MmapIoError, MmapMode};

use crate::child::Helper;
use crate::disk::{Fault, Request};
use crate::mount::FileSystem;
use crate::rig::Rig;

/// Arguments of the writer: whether a task awaits the flush that fails, or the timer made it.
pub(crate) const FOREGROUND: &str = "--faulty-writer";
pub(crate) const BACKGROUND: &str = "--faulty-writer-in-background";

/// A hang is a failure.
const PATIENCE: Duration = Duration::from_secs(30);

const TASKS: u64 = 10;
/// Bytes of each task's part of the file.
const PART: u64 = 16384;
/// The most writes of each task: every fault comes before that.
const WRITES: u64 = 500;

/// The faults to try.
pub(crate) fn all(quick: bool) -> Vec<Fault> {
    let nths: &[u32] = if quick { &[1, 4] } else { &[1, 2, 3, 5, 9, 17] };
    let mut faults = Vec::new();
    for request in [Request::Write, Request::Flush] {
        for stays in [false, true] {
            faults.extend(nths.iter().map(|nth| Fault {
                request,
                nth: *nth,
                stays,
            }));
        }
    }
    faults
}

/// Runs a writer on a disk that fails; returns whether a plain `fsync` forgets the error after the
/// disk was repaired.
pub(crate) fn fail_during(fault: Fault, mode: &str) -> Result<bool> {
    let rig = Rig::new(FileSystem::Ext4)?;
    let arguments = [mode.into(), rig.path().as_os_str().to_owned()];
    let mut writer = Helper::spawn(&arguments)?;
    expect(&mut writer, "ready")?;
    rig.disk.set_fault(Some(fault));
    writer.tell("go")?;
    expect(&mut writer, "failed")?;
    ensure!(rig.disk.faults_met() > 0, "the disk never failed");
    rig.disk.set_fault(None);
    writer.tell("go")?;
    let plain = writer.line(PATIENCE)?.context("the writer hangs")?;
    expect(&mut writer, "done")?;
    Ok(plain == "forgotten")
}

fn expect(writer: &mut Helper, word: &str) -> Result<()> {
    let line = writer.line(PATIENCE)?;
    let line = line.with_context(|| format!("the writer hangs before {word:?}"))?;
    ensure!(line == word, "the writer says {line:?} and not {word:?}");
    Ok(())
}

/// The writer: it reports every step, and then waits for the command to continue.
pub(crate) fn run(directory: &Path, is_background: bool) -> Result<()> {
    let path = directory.join("data");
    smol::block_on(async {
        let policy = match is_background {
            true => FlushPolicy::EveryMillis(1),
            false => FlushPolicy::Never,
        };
        let file = MemoryMappedFile::builder(&path)
            .size(TASKS * PART)
            .flush_policy(policy)
            .create()
            .await?;
        // Every block is allocated, so that it is data that fails and not the journal.
        let len = file.len() as usize;
        file.update_region(0, &vec![1; len]).await?;
        file.flush().await?;
        say_and_wait("ready")?;

        if is_background {
            file.update_region(0, &vec![2; len]).await?;
            while file.last_flush_error().is_none() {
                smol::Timer::after(Duration::from_millis(1)).await;
            }
            let next = file.update_region(0, b"x").await;
            must_be_failed("the next write with policy EveryMillis", next)?;
        } else {
            let failed = Arc::new(AtomicBool::new(false));
            let tasks: Vec<_> = (0..TASKS)
                .map(|task| smol::spawn(write_until_error(file.clone(), task, failed.clone())))
                .collect();
            for task in tasks {
                task.await?;
            }
        }
        must_be_failed("flush", file.flush().await)?;
        ensure!(file.last_flush_error().is_some(), "no last_flush_error");
        say_and_wait("failed")?;

        let plain = std::fs::File::open(&path)?.sync_all();
        println!("{}", plain.map_or("remembered", |()| "forgotten"));
        let clone = file.clone();
        drop(file);
        for _ in 0..3 {
            for (name, call) in calls(&clone, 0, 7) {
                must_be_failed(name, call.await)?;
            }
        }
        // Another handle on the same file must fail as well.
        let other = MemoryMappedFile::open_rw(&path).await?;
        must_be_failed("flush of another handle", other.flush().await)?;
        let always = MemoryMappedFile::builder(&path)
            .mode(MmapMode::ReadWrite)
            .flush_policy(FlushPolicy::Always)
            .open()
            .await?;
        must_be_failed(
            "a write with policy Always",
            always.update_region(0, b"x").await,
        )?;
        ensure!(clone.last_flush_error().is_some(), "no last_flush_error");
        println!("done");
        Ok(())
    })
}

/// Durable writes until one fails. Once any task has seen a failed flush, no call that starts
/// later may succeed.
async fn write_until_error(
    file: MemoryMappedFile,
    task: u64,
    failed: Arc<AtomicBool>,
) -> Result<()> {
    for round in 0..WRITES {
        let must_fail = failed.load(Ordering::SeqCst);
        let mut calls = calls(&file, task * PART, round as u8);
        let (name, call) = calls.swap_remove(task as usize % calls.len());
        match call.await {
            Ok(()) => ensure!(!must_fail, "{name} succeeds after a failed flush"),
            Err(error) => {
                if matches!(error, MmapIoError::FlushFailed(_)) {
                    failed.store(true, Ordering::SeqCst);
                }
                return Ok(());
            }
        }
    }
    anyhow::bail!("the disk has failed, and task {task} was told nothing")
}

type Call<'a> = Pin<Box<dyn Future<Output = mmap_io::Result<()>> + Send + 'a>>;

/// Every way to make a write at `offset` durable.
fn calls(file: &MemoryMappedFile, offset: u64, byte: u8) -> Vec<(&'static str, Call<'_>)> {
    const LEN: u64 = 5000;
    let data = vec![byte; LEN as usize];
    let again = data.clone();
    let bytes = bytes::Bytes::from(data.clone());
    vec![
        (
            "update_region_async",
            Box::pin(async move { file.update_region_async(offset, &data).await }),
        ),
        (
            "write_bytes_async",
            Box::pin(async move { file.write_bytes_async(offset, bytes).await }),
        ),
        (
            "flush",
            Box::pin(async move {
                file.update_region(offset, &again).await?;
                file.flush().await
            }),
        ),
        (
            "flush_range",
            Box::pin(async move {
                file.update_region(offset, &[byte; 100]).await?;
                file.flush_range(offset, 100).await
            }),
        ),
        (
            "commit",
            Box::pin(async move {
                let mut view = file.as_slice_mut(offset, LEN).await?;
                view.fill(byte);
                view.commit().await
            }),
        ),
    ]
}

fn must_be_failed(name: &str, result: mmap_io::Result<()>) -> Result<()> {
    ensure!(
        matches!(result, Err(MmapIoError::FlushFailed(_))),
        "{name} gives {result:?} after a failed flush"
    );
    Ok(())
}

fn say_and_wait(word: &str) -> Result<()> {
    println!("{word}");
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    ensure!(line == "go\n", "told {line:?}");
    Ok(())
}
