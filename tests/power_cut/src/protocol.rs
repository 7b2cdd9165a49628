//! The protocol between the writer and the checker: where a record lies, what it contains, and how
//! the writer reports what it has done.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use anyhow::{bail, Context, Error};

/// Room for one record, twice: its versions take turns, so that the acknowledged one is not
/// touched while the next is written (which a power cut may tear).
pub(crate) const SLOT: u64 = 2 * HALF;
const HALF: u64 = 8192;

/// One version of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) file: u64,
    pub(crate) slot: u64,
    /// Counts the versions, from 1.
    pub(crate) version: u64,
}

impl Record {
    /// Where it lies in its file: at odd offsets, within a page or across two or three.
    pub(crate) fn range(&self) -> Range<u64> {
        let half = self.version % 2;
        let mut random = Random::new([self.file, self.slot, half]);
        let start = self.slot * SLOT + half * HALF + random.next() % 1000;
        start..start + 40 + random.next() % 7000
    }

    /// Its version, then what only this record has.
    pub(crate) fn content(&self) -> Vec<u8> {
        let range = self.range();
        let mut random = Random::new([self.file, self.slot, self.version]);
        let mut content = self.version.to_le_bytes().to_vec();
        while content.len() < (range.end - range.start) as usize {
            content.extend(random.next().to_le_bytes());
        }
        content.truncate((range.end - range.start) as usize);
        content
    }

    /// Whether the file holds this version in full, or a later one.
    pub(crate) fn is_in(&self, file: &[u8]) -> bool {
        [self.version, self.version + 1].iter().any(|version| {
            let half = Self {
                version: *version,
                ..*self
            };
            let range = half.range();
            let Some(found) = file.get(range.start as usize..range.end as usize) else {
                return false;
            };
            let later = u64::from_le_bytes(found[..8].try_into().expect("eight bytes"));
            let later = Self {
                version: later,
                ..*self
            };
            later.version >= self.version && later.range() == range && later.content() == found
        })
    }
}

/// What one append adds to a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) log: u64,
    /// Counts the processes that append to the log, from 0.
    pub(crate) life: u64,
    pub(crate) task: u64,
    /// Counts the appends of a task in a life, from 0; each begins when the one before is durable.
    pub(crate) nth: u64,
}

impl Entry {
    /// Its numbers, then what only this entry has.
    pub(crate) fn payload(&self) -> Vec<u8> {
        let numbers = [self.life, self.task, self.nth];
        let mut payload = numbers.map(u64::to_le_bytes).concat();
        let mut random = Random::new([self.log, self.life << 32 | self.task, self.nth]);
        let len = payload.len() + (random.next() % 7000) as usize;
        while payload.len() < len {
            payload.extend(random.next().to_le_bytes());
        }
        payload.truncate(len);
        payload
    }

    /// Whose payload this is, all of it.
    pub(crate) fn of(log: u64, payload: &[u8]) -> Option<Self> {
        let number = |at: usize| {
            let bytes = payload.get(8 * at..8 * (at + 1))?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let entry = Self {
            log,
            life: number(0)?,
            task: number(1)?,
            nth: number(2)?,
        };
        (entry.payload() == payload).then_some(entry)
    }
}

/// One version of a file that is replaced as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) file: u64,
    /// Counts from 0; each is begun when the one before is durable.
    pub(crate) number: u64,
}

impl Version {
    /// Its number, then what only this version has.
    pub(crate) fn content(&self) -> Vec<u8> {
        let mut random = Random::new([self.file, self.number, 0]);
        let len = 8 + (random.next() % 30_000) as usize;
        let mut content = self.number.to_le_bytes().to_vec();
        while content.len() < len {
            content.extend(random.next().to_le_bytes());
        }
        content.truncate(len);
        content
    }

    /// Which version of the file this is, all of it.
    pub(crate) fn of(file: u64, content: &[u8]) -> Option<Self> {
        let number = u64::from_le_bytes(content.get(..8)?.try_into().ok()?);
        let version = Self { file, number };
        (version.content() == content).then_some(version)
    }
}

pub(crate) fn replaced_name(file: u64) -> String {
    format!("replaced-{file}")
}

/// Bytes of a file with that many slots; no multiple of anything.
pub(crate) fn file_len(file: u64, slots: u64) -> u64 {
    slots * SLOT + 1 + file % 4001
}

pub(crate) fn file_name(file: u64) -> String {
    format!("file-{file}")
}

pub(crate) fn log_name(log: u64) -> String {
    format!("log-{log}")
}

/// What the writer reports, one line for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// The file is about to have this length, or has it already.
    Length { file: u64, len: u64 },
    /// The file's name and this length are durable.
    Named { file: u64, len: u64 },
    /// The record is durable, and so are the file's name and this length.
    Durable { record: Record, len: u64 },
    /// The entry is durable, and so are the log's name and all before that position.
    Appended { entry: Entry, position: u64 },
    /// The version has replaced all versions before, and is durable.
    Replaced(Version),
    /// The file, or the log, is about to be removed.
    Gone { file: u64 },
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { file, len } => write!(f, "length {file} {len}"),
            Self::Named { file, len } => write!(f, "named {file} {len}"),
            Self::Durable { record, len } => {
                let Record {
                    file,
                    slot,
                    version,
                } = record;
                write!(f, "durable {file} {slot} {version} {len}")
            }
            Self::Appended { entry, position } => {
                let Entry {
                    log,
                    life,
                    task,
                    nth,
                } = entry;
                write!(f, "appended {log} {life} {task} {nth} {position}")
            }
            Self::Replaced(Version { file, number }) => write!(f, "replaced {file} {number}"),
            Self::Gone { file } => write!(f, "gone {file}"),
        }
    }
}

impl FromStr for Message {
    type Err = Error;

    fn from_str(line: &str) -> Result<Self, Error> {
        let mut words = line.split(' ');
        let kind = words.next().unwrap_or_default();
        let numbers: Result<Vec<u64>, _> = words.map(str::parse).collect();
        let numbers = numbers.with_context(|| format!("no message: {line:?}"))?;
        Ok(match (kind, numbers[..].as_ref()) {
            ("length", &[file, len]) => Self::Length { file, len },
            ("named", &[file, len]) => Self::Named { file, len },
            ("durable", &[file, slot, version, len]) => Self::Durable {
                record: Record {
                    file,
                    slot,
                    version,
                },
                len,
            },
            ("appended", &[log, life, task, nth, position]) => Self::Appended {
                entry: Entry {
                    log,
                    life,
                    task,
                    nth,
                },
                position,
            },
            ("replaced", &[file, number]) => Self::Replaced(Version { file, number }),
            ("gone", &[file]) => Self::Gone { file },
            _ => bail!("no message: {line:?}"),
        })
    }
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn new(seeds: [u64; 3]) -> Self {
        let mut random = Self(0);
        for seed in seeds {
            random.0 ^= seed;
            random.0 = random.next();
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}
