//! Knows what must be on the disk after a power cut, and checks whether it is.
//!
//! Only acknowledged bytes are required. The disk may hold any other bytes as well.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;

use crate::log::{Log, Position};
use crate::protocol::{
    file_len, file_name, log_name, replaced_name, Entry, Message, Record, Version,
};

/// What the writer has reported so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    files: BTreeMap<u64, Promised>,
    /// The entries of each log that are durable, by their positions.
    logs: BTreeMap<u64, BTreeMap<Position, Entry>>,
    /// The last version of each file that was replaced.
    replaced: BTreeMap<u64, Version>,
}

#[derive(Clone, Debug, Default)]
struct Promised {
    /// The last length that is durable. `None`: nothing is, the name neither.
    len: Option<u64>,
    /// Lengths that were announced since; the disk may have got that far.
    announced: Vec<u64>,
    /// The last version of each slot that is durable.
    versions: BTreeMap<u64, u64>,
}

/// The result of a check.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Records, and files for their names and lengths.
    pub(crate) checked: usize,
    pub(crate) losses: Vec<String>,
}

impl Ledger {
    pub(crate) fn note(&mut self, message: Message) {
        match message {
            Message::Length { file, len } => {
                let promised = self.files.entry(file).or_default();
                promised.announced.push(len);
                // Bytes that a shrink has cut off are no longer required.
                promised
                    .versions
                    .retain(|slot, _| file_len(0, *slot + 1) <= len);
            }
            Message::Named { file, len } => {
                self.name(file, len);
            }
            Message::Durable { record, len } => {
                let promised = self.name(record.file, len);
                let version = promised.versions.entry(record.slot).or_default();
                *version = record.version.max(*version);
            }
            Message::Appended { entry, position } => {
                let log = self.logs.entry(entry.log).or_default();
                log.insert(Position(position), entry);
            }
            Message::Replaced(version) => {
                self.replaced.insert(version.file, version);
            }
            Message::Gone { file } => {
                self.files.remove(&file);
                self.replaced.remove(&file);
                self.logs.remove(&file);
            }
        }
    }

    fn name(&mut self, file: u64, len: u64) -> &mut Promised {
        let promised = self.files.entry(file).or_default();
        promised.len = Some(len);
        promised.announced.clear();
        promised
    }

    /// Whether anything must be on the disk.
    pub(crate) fn promises(&self) -> bool {
        !self.logs.is_empty()
            || !self.replaced.is_empty()
            || self.files.values().any(|promised| promised.len.is_some())
    }

    /// Checks that everything acknowledged is under `root`.
    pub(crate) fn check(&self, root: &Path) -> Findings {
        let mut findings = Findings::default();
        for (file, promised) in &self.files {
            if let Some(len) = promised.len {
                findings.checked += 1 + promised.versions.len();
                promised.check(*file, len, root, &mut findings.losses);
            }
        }
        for (log, appended) in &self.logs {
            findings.checked += 1 + appended.len();
            check_log(*log, appended, root, &mut findings.losses);
        }
        for version in self.replaced.values() {
            findings.checked += 1;
            check_replaced(*version, root, &mut findings.losses);
        }
        findings
    }
}

impl Promised {
    fn check(&self, file: u64, len: u64, root: &Path, losses: &mut Vec<String>) {
        let name = file_name(file);
        let content = match std::fs::read(root.join(&name)) {
            Ok(content) => content,
            Err(error) => {
                losses.push(format!("{name} cannot be read: {error}"));
                return;
            }
        };
        let found = content.len() as u64;
        if found != len && !self.announced.contains(&found) {
            losses.push(format!("{name} has {found} bytes and not {len}"));
        }
        for (slot, version) in &self.versions {
            let record = Record {
                file,
                slot: *slot,
                version: *version,
            };
            if !record.is_in(&content) {
                losses.push(format!("{name} lacks slot {slot}, version {version}"));
            }
        }
    }
}

/// The file holds the version, or the next, which may have been put there without a word.
fn check_replaced(version: Version, root: &Path, losses: &mut Vec<String>) {
    let name = replaced_name(version.file);
    let found = match std::fs::read(root.join(&name)) {
        Ok(content) => Version::of(version.file, &content),
        Err(error) => {
            losses.push(format!("{name} cannot be read: {error}"));
            return;
        }
    };
    let is_kept = |found: Version| (version.number..=version.number + 1).contains(&found.number);
    if !found.is_some_and(is_kept) {
        losses.push(format!("{name} has {found:?} and not {version:?}"));
    }
}

/// A log may hold more entries than were acknowledged. But the entries of a task must follow one
/// another from its first on, and lives must be in order: a log has no holes and no invented
/// entries.
fn check_log(
    log: u64,
    appended: &BTreeMap<Position, Entry>,
    root: &Path,
    losses: &mut Vec<String>,
) {
    let name = log_name(log);
    let records = match smol::block_on(Log::scan(root.join(&name))) {
        Ok(records) => records,
        Err(error) => {
            losses.push(format!("{name} cannot be scanned: {error:?}"));
            return;
        }
    };
    let mut next_of_tasks = BTreeMap::new();
    let mut last_life = 0;
    for (position, payload) in &records {
        let Some(entry) = Entry::of(log, payload) else {
            losses.push(format!(
                "{name} has an entry that no task appended, at {position:?}"
            ));
            continue;
        };
        let next = next_of_tasks.entry((entry.life, entry.task)).or_insert(0);
        if entry.nth != *next || entry.life < last_life {
            losses.push(format!("{name} has {entry:?} too early or too late"));
        }
        *next = entry.nth + 1;
        last_life = entry.life;
    }
    let records: BTreeMap<Position, Bytes> = records.into_iter().collect();
    for (position, entry) in appended {
        let found = records.get(position);
        if found.is_none_or(|payload| payload[..] != entry.payload()) {
            losses.push(format!("{name} lacks {entry:?} at {position:?}"));
        }
    }
}
