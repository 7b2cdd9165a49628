//! An append log to which many tasks append durably at the same time, sharing their flushes.
//!
//! The file consists of the 8 bytes of [`MAGIC`], records without a gap, and zeroes after them. A
//! record consists of its length (4 bytes), its checksum (4), the number of its life (8), all
//! little-endian, and the payload.
//!
//! Recovery finds every acknowledged record, because
//!
//! - **there are no holes.** Recovery stops at the first bad record, so no record may be
//!   acknowledged before all earlier ones are durable. Appends only add to a batch in memory; a
//!   single writer writes the batches one after the other. Dropping the future of an append does
//!   not remove its record, and a failed write ends the log: nothing is written after it.
//! - **a torn record is detected.** The checksum covers the length, the life, the payload and the
//!   position. A record that a power cut tears was never acknowledged.
//! - **old records do not come back.** There may be whole records after a torn one, and a new
//!   record of the right length would connect them to the log again. So each *life* of the log,
//!   from one open to the next, has a random number, and begins with a record that names the life
//!   before it. A record of any other life ends the log.
//! - **recovered records are flushed.** A process that was killed may leave records in the page
//!   cache that were never durable. They are made durable before anything is appended after them.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher as _};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use crc32fast::Hasher;
use event_listener::Event;
use futures_lite::future::yield_now;
use mmap_io::{MemoryMappedFile, MmapIoError, Stats};

/// The first bytes of a log, so that no other file is mistaken for a log and overwritten.
const MAGIC: [u8; 8] = *b"mmaplog1";

/// The length in bytes of a record before its payload.
const HEADER: usize = 16;

/// The largest payload in bytes. Recovery treats a larger one as a bad record.
pub(crate) const MAX_PAYLOAD: usize = 1 << 20;

/// Appends wait while the batch has at least this many bytes.
const MAX_BATCH: usize = 4 << 20;

/// The length of a new log in bytes.
const FIRST_LEN: u64 = 64 << 10;

/// How many bytes a sequential reader leases at a time.
const WINDOW: u64 = 1 << 20;

pub(crate) type Result<T, E = LogError> = std::result::Result<T, E>;

/// Where a record begins, in bytes from the start of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position(pub(crate) u64);

#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("the file cannot be read or written")]
    File(#[source] Arc<MmapIoError>),
    #[error("a payload of {0} bytes is larger than {MAX_PAYLOAD}")]
    TooLarge(usize),
    #[error("the file is not a log")]
    NotALog,
    #[error("no good record at {0:?}")]
    NoRecord(Position),
    #[error("the log's writer is no longer running")]
    Stopped,
}

impl From<MmapIoError> for LogError {
    fn from(error: MmapIoError) -> Self {
        Self::File(Arc::new(error))
    }
}

/// A log that is open for appending. A file must be opened only once at a time.
#[derive(Debug)]
pub(crate) struct Log {
    shared: Arc<Shared>,
    recovered: u64,
}

#[derive(Debug)]
struct Shared {
    file: MemoryMappedFile,
    life: u64,
    state: Mutex<State>,
    /// Notified when there is a batch to write, or the log was dropped.
    work: Event,
    /// Notified when a batch was written, or no more will be.
    progress: Event,
}

#[derive(Debug)]
struct State {
    /// Records that the writer has not taken yet.
    batch: BytesMut,
    /// The offset of the batch, which is the end of what the writer has taken.
    start: u64,
    /// Everything before this offset is durable.
    durable: u64,
    /// Whether the log was dropped; the writer then ends after the last batch.
    is_closed: bool,
    /// Why nothing is written any more.
    ended: Option<LogError>,
}

impl Log {
    /// Opens a log, or creates it, and finds the end of its good records. Nothing is appended
    /// before the [`Writer`] runs: spawn it.
    pub(crate) async fn open(path: impl AsRef<Path>) -> Result<(Self, Writer)> {
        let file = MemoryMappedFile::open_or_create(path, FIRST_LEN).await?;
        let mut recovered = 0;
        let mut opening = BytesMut::new();
        let mut start = 0;
        let mut last_life = 0;
        if is_log(&file).await? {
            let mut cursor = Cursor::first(&file);
            while cursor.next(file.len()).await?.is_some() {
                recovered += 1;
            }
            // The cursor is dropped before the write below, which would wait for its window.
            (start, last_life) = (cursor.offset, cursor.life);
        } else {
            opening.put_slice(&MAGIC);
        }
        // The keys of a `RandomState` are random; 0 stands for the life before the first one.
        let life = RandomState::new().build_hasher().finish().max(1);
        let offset = start + opening.len() as u64;
        Record::new(life, &last_life.to_le_bytes())?.place(offset, &mut opening);
        let end = start + opening.len() as u64;
        make_room(&file, end).await?;
        file.write_bytes(start, opening.freeze()).await?;
        file.flush().await?;

        let shared = Arc::new(Shared {
            file,
            life,
            state: Mutex::new(State {
                batch: BytesMut::new(),
                start: end,
                durable: end,
                is_closed: false,
                ended: None,
            }),
            work: Event::new(),
            progress: Event::new(),
        });
        let writer = Writer(shared.clone());
        Ok((Self { shared, recovered }, writer))
    }

    /// Appends a record. When this returns, the record and all records before it are durable.
    ///
    /// Dropping the future after its first poll does not remove the record: it may be in the log or
    /// not, as if its acknowledgment were lost.
    pub(crate) async fn append(&self, payload: &[u8]) -> Result<Position> {
        let record = Record::new(self.shared.life, payload)?;
        let (position, end) = self.shared.until(|state| state.place(&record)).await?;
        self.shared.work.notify(1);
        let is_durable = |state: &mut State| (state.durable >= end).then_some(());
        self.shared.until(is_durable).await?;
        Ok(position)
    }

    /// Returns the payload of one record, without copying it. It delays no append, and may outlive
    /// the log.
    pub(crate) async fn read(&self, position: Position) -> Result<Bytes> {
        let mut cursor = Cursor::at(&self.shared.file, position);
        let record = cursor.record(self.durable_len()).await?;
        let (_, payload) = record.ok_or(LogError::NoRecord(position))?;
        Ok(payload)
    }

    /// Returns a reader of all records, from the first one on.
    pub(crate) fn records(&self) -> Records<'_> {
        let cursor = Cursor::first(&self.shared.file);
        Records { log: self, cursor }
    }

    /// Returns the good records of a file, which is not changed.
    pub(crate) async fn scan(path: impl AsRef<Path>) -> Result<Vec<(Position, Bytes)>> {
        let file = MemoryMappedFile::open_ro(path).await?;
        let mut records = Vec::new();
        if is_log(&file).await? {
            let mut cursor = Cursor::first(&file);
            while let Some(record) = cursor.next(file.len()).await? {
                records.push(record);
            }
        }
        Ok(records)
    }

    /// Returns how many records [`open`](Self::open) has found.
    pub(crate) fn recovered(&self) -> u64 {
        self.recovered
    }

    /// Returns the length of the durable part of the log in bytes.
    pub(crate) fn durable_len(&self) -> u64 {
        self.shared.state().durable
    }

    pub(crate) fn stats(&self) -> Stats {
        self.shared.file.stats()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.shared.state().is_closed = true;
        self.shared.work.notify(1);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` returns `Some`, or the log has ended.
    async fn until<T>(&self, look: impl Fn(&mut State) -> Option<T>) -> Result<T> {
        loop {
            // Listens before it looks, so that it misses no notification.
            let progress = self.progress.listen();
            {
                let mut state = self.state();
                if let Some(found) = look(&mut state) {
                    return Ok(found);
                }
                if let Some(ended) = &state.ended {
                    return Err(ended.clone());
                }
            }
            progress.await;
        }
    }
}

impl State {
    /// Adds a record to the batch if there is room; returns where it begins and ends.
    fn place(&mut self, record: &Record<'_>) -> Option<(Position, u64)> {
        if self.ended.is_some() || self.batch.len() >= MAX_BATCH {
            return None;
        }
        let offset = self.start + self.batch.len() as u64;
        record.place(offset, &mut self.batch);
        Some((Position(offset), self.start + self.batch.len() as u64))
    }

    /// Takes the batch, and returns its offset.
    fn take(&mut self) -> (u64, Bytes) {
        let batch = self.batch.split().freeze();
        let offset = self.start;
        self.start += batch.len() as u64;
        (offset, batch)
    }
}

/// The task that writes the batches. It is separate from the appends: if an append wrote them, one
/// that is kept and not polled would stop all other appends.
#[derive(Debug)]
#[must_use = "no append ends unless the writer runs"]
pub(crate) struct Writer(Arc<Shared>);

impl Writer {
    /// Writes batch after batch, until the log is dropped and everything is written, or a write
    /// fails. Every append that was not acknowledged before, and every later one, then returns the
    /// error of that write.
    pub(crate) async fn run(self) -> Result<()> {
        let shared = &*self.0;
        loop {
            let work = shared.work.listen();
            // A task that was just acknowledged and appends again at once can share the next flush.
            // A flush is expensive, and one round of the executor is not.
            yield_now().await;
            let (offset, batch) = shared.state().take();
            if batch.is_empty() {
                if shared.state().is_closed {
                    return Ok(());
                }
                work.await;
                continue;
            }
            let end = offset + batch.len() as u64;
            let written = async {
                make_room(&shared.file, end).await?;
                shared.file.write_bytes_async(offset, batch).await
            };
            if let Err(error) = written.await {
                let error = LogError::from(error);
                shared.state().ended = Some(error.clone());
                return Err(error);
            }
            shared.state().durable = end;
            shared.progress.notify(usize::MAX);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.state().ended.get_or_insert(LogError::Stopped);
        self.0.progress.notify(usize::MAX);
    }
}

/// Doubles the length of the file if needed, so that it seldom grows. Views stay where they are,
/// and growth does not wait for them.
async fn make_room(file: &MemoryMappedFile, end: u64) -> Result<(), MmapIoError> {
    match end > file.len() {
        true => file.resize(end.next_power_of_two()).await,
        false => Ok(()),
    }
}

/// Whether the file holds a log; `false` for a new file, which is all zeroes.
async fn is_log(file: &MemoryMappedFile) -> Result<bool> {
    let mut magic = [0; MAGIC.len()];
    if file.len() < magic.len() as u64 {
        return Err(LogError::NotALog);
    }
    file.read_into(0, &mut magic).await?;
    match magic {
        MAGIC => Ok(true),
        [0, 0, 0, 0, 0, 0, 0, 0] => Ok(false),
        _ => Err(LogError::NotALog),
    }
}

/// A record that has no position yet.
struct Record<'a> {
    life: u64,
    payload: &'a [u8],
    /// The checksum of everything but the position, so that it is computed before the lock is
    /// taken.
    checksum: Hasher,
}

impl<'a> Record<'a> {
    fn new(life: u64, payload: &'a [u8]) -> Result<Self> {
        if payload.len() > MAX_PAYLOAD {
            return Err(LogError::TooLarge(payload.len()));
        }
        let mut checksum = Hasher::new();
        checksum.update(&(payload.len() as u32).to_le_bytes());
        checksum.update(&life.to_le_bytes());
        checksum.update(payload);
        Ok(Self {
            life,
            payload,
            checksum,
        })
    }

    fn checksum_at(&self, offset: u64) -> u32 {
        let mut checksum = self.checksum.clone();
        checksum.update(&offset.to_le_bytes());
        checksum.finalize()
    }

    fn place(&self, offset: u64, batch: &mut BytesMut) {
        batch.put_u32_le(self.payload.len() as u32);
        batch.put_u32_le(self.checksum_at(offset));
        batch.put_u64_le(self.life);
        batch.put_slice(self.payload);
    }
}

/// Reads the records of a log one after the other, while tasks append to it.
#[derive(Debug)]
pub(crate) struct Records<'a> {
    log: &'a Log,
    cursor: Cursor,
}

impl Records<'_> {
    /// Returns the next record; `None` at the end of the durable part, where more may follow later.
    pub(crate) async fn next(&mut self) -> Result<Option<(Position, Bytes)>> {
        let end = self.log.durable_len();
        let record = self.cursor.next(end).await?;
        // Everything before `end` was good when it was written, so a bad record is an error.
        match record.is_none() && self.cursor.offset < end {
            true => Err(LogError::NoRecord(Position(self.cursor.offset))),
            false => Ok(record),
        }
    }

    /// Waits until there is another record.
    pub(crate) async fn more(&self) -> Result<()> {
        let seen = self.cursor.offset;
        let is_behind = |state: &mut State| (state.durable > seen).then_some(());
        self.log.shared.until(is_behind).await
    }
}

/// A place between two records.
#[derive(Debug)]
struct Cursor {
    file: MemoryMappedFile,
    offset: u64,
    /// The life of the previous record.
    life: u64,
    window: Bytes,
    window_offset: u64,
    /// The least number of bytes to lease, so that records share a lease.
    stride: u64,
}

impl Cursor {
    fn first(file: &MemoryMappedFile) -> Self {
        Self {
            stride: WINDOW,
            ..Self::at(file, Position(MAGIC.len() as u64))
        }
    }

    fn at(file: &MemoryMappedFile, position: Position) -> Self {
        Self {
            file: file.clone(),
            offset: position.0,
            life: 0,
            window: Bytes::new(),
            window_offset: 0,
            stride: 0,
        }
    }

    /// Advances past the next record before `limit`, and returns it; stays if no record of the log
    /// follows.
    async fn next(&mut self, limit: u64) -> Result<Option<(Position, Bytes)>> {
        while let Some((life, payload)) = self.record(limit).await? {
            let begins_life = life != self.life && payload[..] == self.life.to_le_bytes();
            if life != self.life && !begins_life {
                break;
            }
            let position = Position(self.offset);
            self.life = life;
            self.offset += (HEADER + payload.len()) as u64;
            if !begins_life {
                return Ok(Some((position, payload)));
            }
        }
        Ok(None)
    }

    /// Returns the life and the payload of the record at the cursor, if it is whole.
    async fn record(&mut self, limit: u64) -> Result<Option<(u64, Bytes)>> {
        let Some(mut header) = self.peek(HEADER, limit).await? else {
            return Ok(None);
        };
        let len = header.get_u32_le() as usize;
        let checksum = header.get_u32_le();
        let life = header.get_u64_le();
        if len > MAX_PAYLOAD {
            return Ok(None);
        }
        let Some(record) = self.peek(HEADER + len, limit).await? else {
            return Ok(None);
        };
        let payload = record.slice(HEADER..);
        let is_good = Record::new(life, &payload)?.checksum_at(self.offset) == checksum;
        Ok(is_good.then_some((life, payload)))
    }

    /// Returns the `len` bytes at the cursor, unless they reach past `limit`.
    async fn peek(&mut self, len: usize, limit: u64) -> Result<Option<Bytes>> {
        let len = len as u64;
        if limit.saturating_sub(self.offset) < len {
            return Ok(None);
        }
        let is_inside = self.offset >= self.window_offset
            && self.offset + len <= self.window_offset + self.window.len() as u64;
        if !is_inside {
            let leased = len.max(self.stride).min(limit - self.offset);
            self.window = self.file.read_bytes(self.offset, leased).await?;
            self.window_offset = self.offset;
        }
        let from = (self.offset - self.window_offset) as usize;
        Ok(Some(self.window.slice(from..from + len as usize)))
    }
}
