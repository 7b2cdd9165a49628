//! The child that writes: it makes bytes durable as its scenario says, and reports when they
//! are.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use bytes::Bytes;
use mmap_io::MemoryMappedFile;

use crate::protocol::{file_len, file_name, Message, Record, SLOT};
use crate::scenario::{Scenario, BYTES, TASKS, WRITES};

/// Files that stay when they are full; older ones are removed.
pub(crate) const KEPT: usize = 6;

/// Writes one file after the other, until it is killed.
pub(crate) fn run(scenario: Scenario, directory: &Path) -> Result<()> {
    smol::block_on(async {
        let mut full = VecDeque::new();
        for id in 0.. {
            let target = Target::create(scenario, directory, id).await?;
            target.fill(scenario).await.context(scenario.name())?;
            full.push_back(target.path.clone());
            drop(target);
            if full.len() > KEPT {
                tell(&[Message::Gone {
                    file: id - KEPT as u64,
                }])?;
                std::fs::remove_file(full.pop_front().expect("there are more"))?;
            }
        }
        Ok(())
    })
}

/// In one write, so that the lines of two tasks do not mix.
pub(crate) fn tell(messages: &[Message]) -> io::Result<()> {
    let lines: String = messages.iter().map(|it| format!("{it}\n")).collect();
    let mut output = io::stdout().lock();
    output.write_all(lines.as_bytes())?;
    output.flush()
}

/// The file that is being written.
#[derive(Clone)]
struct Target {
    id: u64,
    path: PathBuf,
    file: MemoryMappedFile,
}

impl Target {
    async fn create(scenario: Scenario, directory: &Path, id: u64) -> Result<Self> {
        let path = directory.join(file_name(id));
        let len = match scenario {
            Scenario::Append => SLOT,
            _ => file_len(id, scenario.slots()),
        };
        tell(&[Message::Length { file: id, len }])?;
        let file = MemoryMappedFile::builder(&path)
            .size(len)
            .flush_policy(scenario.policy())
            .create()
            .await
            .context("create")?;
        Ok(Self { id, path, file })
    }

    async fn fill(&self, scenario: Scenario) -> Result<()> {
        let file = &self.file;
        let slots = scenario.slots();
        match scenario {
            Scenario::AfterCreate if self.id % 2 == 1 => {
                file.flush().await?;
                self.named()?;
            }
            Scenario::UpdateRegionAsync | Scenario::AfterCreate => {
                for slot in 0..slots {
                    let (record, offset, data) = self.record(slot, 1);
                    file.update_region_async(offset, &data).await?;
                    self.durable(&[record])?;
                }
            }
            Scenario::WriteBytesAsync => {
                for slot in 0..slots {
                    let (record, offset, data) = self.record(slot, 1);
                    file.write_bytes_async(offset, Bytes::from(data)).await?;
                    self.durable(&[record])?;
                }
            }
            Scenario::UpdateRegionsAsync => {
                for first in (0..slots).step_by(4) {
                    let parts: Vec<_> = (first..first + 4).map(|it| self.record(it, 1)).collect();
                    let regions: Vec<(u64, &[u8])> = parts
                        .iter()
                        .map(|(_, offset, data)| (*offset, data.as_slice()))
                        .collect();
                    file.update_regions_async(&regions).await?;
                    let records: Vec<_> = parts.iter().map(|(record, ..)| *record).collect();
                    self.durable(&records)?;
                }
            }
            Scenario::Flush => {
                for first in (0..slots).step_by(2) {
                    let records = [self.write(first).await?, self.write(first + 1).await?];
                    file.flush().await?;
                    self.durable(&records)?;
                }
            }
            Scenario::FlushRange => {
                for first in (0..slots).step_by(2) {
                    let records = [self.write(first).await?, self.write(first + 1).await?];
                    for record in records {
                        let range = record.range();
                        file.flush_range(range.start, range.end - range.start)
                            .await?;
                        self.durable(&[record])?;
                    }
                }
            }
            Scenario::Commit => {
                for slot in 0..slots {
                    let (record, offset, data) = self.record(slot, 1);
                    let mut view = file.as_slice_mut(offset, data.len() as u64).await?;
                    view.copy_from_slice(&data);
                    view.commit().await?;
                    self.durable(&[record])?;
                }
            }
            Scenario::PolicyAlways => {
                for slot in 0..slots {
                    let record = self.write(slot).await?;
                    self.durable(&[record])?;
                }
            }
            // The write that reaches the threshold makes all writes before it durable.
            Scenario::EveryBytes => {
                let (mut records, mut bytes) = (Vec::new(), 0);
                for slot in 0..slots {
                    let record = self.write(slot).await?;
                    records.push(record);
                    bytes += record.range().end - record.range().start;
                    if bytes >= BYTES as u64 {
                        self.durable(&std::mem::take(&mut records))?;
                        bytes = 0;
                    }
                }
            }
            Scenario::EveryWrites => {
                let mut records = Vec::new();
                for slot in 0..slots {
                    records.push(self.write(slot).await?);
                    if records.len() == WRITES {
                        self.durable(&std::mem::take(&mut records))?;
                    }
                }
            }
            Scenario::EveryMillis => {
                for first in (0..slots).step_by(2) {
                    let records = [self.write(first).await?, self.write(first + 1).await?];
                    while file.pending_bytes() > 0 {
                        smol::Timer::after(Duration::from_micros(200)).await;
                    }
                    self.durable(&records)?;
                }
            }
            Scenario::AfterGrow => {
                for slots in 1..=16 {
                    self.resize(slots).await?;
                    if slots % 3 == 0 {
                        file.flush().await?;
                        self.named()?;
                    }
                    let (record, offset, data) = self.record(slots - 1, 1);
                    file.update_region_async(offset, &data).await?;
                    self.durable(&[record])?;
                }
            }
            Scenario::AfterShrink => {
                for slots in (1..=slots).rev() {
                    self.resize(slots).await?;
                    if slots % 3 == 0 {
                        file.flush().await?;
                        self.named()?;
                    }
                    let record = self.write(slots - 1).await?;
                    file.flush().await?;
                    self.durable(&[record])?;
                }
            }
            Scenario::Overwrites => {
                for version in 1..=20 {
                    for slot in 0..slots {
                        let (record, offset, data) = self.record(slot, version);
                        file.update_region_async(offset, &data).await?;
                        self.durable(&[record])?;
                    }
                }
            }
            Scenario::ConcurrentTasks => {
                let tasks: Vec<_> = (0..TASKS)
                    .map(|task| smol::spawn(self.clone().every_nth_slot(task, slots)))
                    .collect();
                for task in tasks {
                    task.await?;
                }
            }
            Scenario::Append => {
                for slot in 1..slots {
                    let (record, offset, data) = self.record(slot, 1);
                    let mut whole = vec![0; SLOT as usize];
                    let start = (offset - slot * SLOT) as usize;
                    whole[start..][..data.len()].copy_from_slice(&data);
                    let len = (slot + 1) * SLOT;
                    tell(&[Message::Length { file: self.id, len }])?;
                    let appended = match slot % 3 {
                        0 => {
                            let appended = file.append(&whole).await?;
                            file.flush().await?;
                            appended
                        }
                        _ => file.append_async(&whole).await?,
                    };
                    ensure!(appended == slot * SLOT, "appended at {appended}");
                    self.durable(&[record])?;
                }
            }
            Scenario::DurableLog | Scenario::Replace => unreachable!("it has no slots"),
            Scenario::Control => {
                file.update_region(0, &vec![0; file.len() as usize]).await?;
                file.flush().await?;
                let plain = File::options().write(true).open(&self.path)?;
                for slot in 0..slots {
                    let record = self.write(slot).await?;
                    write_out(&plain, &record)?;
                    self.durable(&[record])?;
                }
            }
        }
        Ok(())
    }

    async fn every_nth_slot(self, first: u64, slots: u64) -> Result<()> {
        for slot in (first..slots).step_by(TASKS as usize) {
            let (record, offset, data) = self.record(slot, 1);
            self.file.update_region_async(offset, &data).await?;
            self.durable(&[record])?;
        }
        Ok(())
    }

    async fn resize(&self, slots: u64) -> Result<()> {
        let len = file_len(self.id, slots);
        tell(&[Message::Length { file: self.id, len }])?;
        self.file.resize(len).await.context("resize")
    }

    /// Writes without making it durable.
    async fn write(&self, slot: u64) -> Result<Record> {
        let (record, offset, data) = self.record(slot, 1);
        self.file.update_region(offset, &data).await?;
        Ok(record)
    }

    fn record(&self, slot: u64, version: u64) -> (Record, u64, Vec<u8>) {
        let record = Record {
            file: self.id,
            slot,
            version,
        };
        (record, record.range().start, record.content())
    }

    fn named(&self) -> io::Result<()> {
        tell(&[Message::Named {
            file: self.id,
            len: self.file.len(),
        }])
    }

    fn durable(&self, records: &[Record]) -> io::Result<()> {
        let len = self.file.len();
        let told = |record: &Record| Message::Durable {
            record: *record,
            len,
        };
        tell(&records.iter().map(told).collect::<Vec<_>>())
    }
}

/// Writes a record to the disk and waits for that, but does not flush the disk's cache
/// (sync_file_range(2)). The blocks are already allocated, so that only the flush is missing.
fn write_out(file: &File, record: &Record) -> io::Result<()> {
    let range = record.range();
    // SAFETY: the call takes no pointer.
    let result = unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            range.start as libc::off64_t,
            (range.end - range.start) as libc::off64_t,
            libc::SYNC_FILE_RANGE_WAIT_BEFORE
                | libc::SYNC_FILE_RANGE_WRITE
                | libc::SYNC_FILE_RANGE_WAIT_AFTER,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
