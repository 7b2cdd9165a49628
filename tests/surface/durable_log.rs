//! The log of the example `durable_log` keeps what it acknowledges: through kills, torn and stale
//! records, growth under readers, and appends that are given up. It stands on P4 (readers hold up
//! no append), P5 (durable), P7 (cancel) and P8 (order), and shows a mistake in any of them.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use bytes::Bytes;
use futures_lite::future::{poll_once, yield_now};
use mmap_io::MemoryMappedFile;

use self::log::{Log, LogError, Position, MAX_PAYLOAD};
use crate::common::{block_on, wait_until};

mod kills;
mod recovery;

#[path = "../../examples/durable_log/log.rs"]
mod log;

/// The sizes of the record at the start of each life, and of every header.
const OPENING: usize = 24;

const HEADER: usize = 16;

/// A log and the task of its writer.
type Opened = (Log, smol::Task<Result<(), LogError>>);

type Appending<'a> = Pin<Box<dyn Future<Output = Result<Position, LogError>> + 'a>>;

async fn open(path: &Path) -> Opened {
    let (log, writer) = Log::open(path).await.unwrap();
    (log, smol::spawn(writer.run()))
}

async fn close((log, writer): Opened) {
    drop(log);
    writer.await.unwrap();
}

/// Opens the log for one life, appends the payloads, and returns their positions.
async fn live(path: &Path, payloads: &[&[u8]]) -> Vec<Position> {
    let opened = open(path).await;
    let mut positions = Vec::new();
    for payload in payloads {
        positions.push(opened.0.append(payload).await.unwrap());
    }
    close(opened).await;
    positions
}

async fn payloads(path: &Path) -> Vec<Bytes> {
    let records = Log::scan(path).await.unwrap();
    records.into_iter().map(|(_, payload)| payload).collect()
}

#[test]
fn read_accepts_only_record_positions() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    block_on(async {
        let opened = open(&path).await;
        let log = &opened.0;
        let first = log.append(b"first").await.unwrap();
        // A record inside a record does not count.
        let start = first.0 as usize;
        let image = std::fs::read(&path).unwrap()[start..start + HEADER + 5].to_vec();
        let second = log.append(&image).await.unwrap();
        for at in 0..log.durable_len() + 20 {
            match (log.read(Position(at)).await, at) {
                (Ok(found), at) if at == first.0 => assert_eq!(found, "first"),
                (Ok(found), at) if at == second.0 => assert_eq!(found, image),
                // The opening record counts as one.
                (Ok(found), 8) => assert_eq!(found[..], [0; 8]),
                (Err(LogError::NoRecord(_)), _) => {}
                (other, at) => panic!("at {at}: {other:?}"),
            }
        }
        let (once, again) = (log.read(first).await.unwrap(), log.read(first).await);
        assert_eq!(
            once.as_ptr(),
            again.unwrap().as_ptr(),
            "expected both reads to return the same address, but one was copied"
        );
        close(opened).await;
        assert_eq!(once, "first");
    });
}

#[test]
fn log_grows_under_held_records() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    block_on(async {
        let opened = open(&path).await;
        let log = &opened.0;
        let mut records = log.records();
        let mut held = Vec::new();
        let before = std::fs::metadata(&path).unwrap().len();
        for number in 0..200_u64 {
            let mut payload = number.to_le_bytes().to_vec();
            payload.resize(10_000, number as u8);
            // Everything that was appended is under a view, up to its last byte.
            let position = log.append(&payload).await.unwrap();
            let read = log.read(position).await.unwrap();
            let (found, streamed) = records.next().await.unwrap().unwrap();
            assert_eq!(found, position);
            assert!(records.next().await.unwrap().is_none());
            held.push((payload, read, streamed));
        }
        let after = std::fs::metadata(&path).unwrap().len();
        assert!(after >= 16 * before && after.is_power_of_two(), "{after}");
        for (payload, read, streamed) in &held {
            assert!(read == payload && streamed == payload);
        }
        drop(records);
        close(opened).await;
        let expected = held.iter().map(|(payload, ..)| payload);
        assert!(payloads(&path).await.iter().eq(expected));
    });
}

#[test]
fn reader_sees_concurrent_appends_in_order() {
    const TASKS: u64 = 8;
    const EACH: u64 = 300;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    runtime.block_on(async {
        let (log, writer) = Log::open(&path).await.unwrap();
        let log = std::sync::Arc::new(log);
        let writer = tokio::spawn(writer.run());
        for task in 0..TASKS {
            let log = log.clone();
            tokio::spawn(async move {
                for number in 0..EACH {
                    let mut payload = [task.to_le_bytes(), number.to_le_bytes()].concat();
                    payload.resize(16 + (number % 1000) as usize, task as u8);
                    log.append(&payload).await.unwrap();
                }
            });
        }
        let mut records = log.records();
        let mut next = [0; TASKS as usize];
        while next != [EACH; TASKS as usize] {
            let Some((position, record)) = records.next().await.unwrap() else {
                records.more().await.unwrap();
                continue;
            };
            let word = |at| u64::from_le_bytes(record[at..at + 8].try_into().unwrap());
            let (task, number) = (word(0), word(8));
            assert_eq!(number, next[task as usize]);
            assert!(record[16..].iter().all(|byte| *byte == task as u8));
            assert_eq!(log.read(position).await.unwrap(), record);
            next[task as usize] += 1;
        }
        drop(records);
        drop(log);
        writer.await.unwrap().unwrap();
    });
}

/// A log whose writer is blocked by a view of the bytes that it writes next.
struct HeldUp {
    file: MemoryMappedFile,
    _view: Bytes,
}

impl HeldUp {
    /// The writer takes the first append after this, and cannot complete it.
    async fn new(log: &Log, path: &PathBuf) -> Self {
        let file = MemoryMappedFile::open_rw(path).await.unwrap();
        let _view = file.bytes(log.durable_len(), 1).unwrap();
        Self { file, _view }
    }

    /// Waits until the writer has tried.
    async fn is_felt(&self) {
        wait_until(&self.file, |stats| stats.oldest_blocked.is_some()).await;
    }
}

async fn begin<'a>(log: &'a Log, payload: &'a [u8]) -> Appending<'a> {
    let mut append: Appending<'a> = Box::pin(log.append(payload));
    assert!(poll_once(&mut append).await.is_none());
    append
}

#[test]
fn appends_during_flush_share_next_flush() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    block_on(async {
        let opened = open(&path).await;
        let log = &opened.0;
        let held_up = HeldUp::new(log, &path).await;
        let flushes = log.stats().flushes;
        let first = begin(log, b"first").await;
        held_up.is_felt().await;
        let mut others = Vec::new();
        for _ in 0..64 {
            others.push(begin(log, b"other").await);
        }
        assert_eq!(log.stats().flushes, flushes);
        drop(held_up);
        let mut last = first.await.unwrap();
        for other in others {
            let position = other.await.unwrap();
            assert!(
                position > last,
                "expected positions in the order of the appends"
            );
            last = position;
        }
        assert_eq!(log.stats().flushes, flushes + 2);
        close(opened).await;
    });
}

#[test]
fn dropped_append_leaves_no_hole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    block_on(async {
        let opened = open(&path).await;
        let log = &opened.0;
        let held_up = HeldUp::new(log, &path).await;
        // One append that the writer has taken, and others behind it, at the start and in the
        // middle.
        let first = begin(log, b"given up 1").await;
        held_up.is_felt().await;
        let second = begin(log, b"given up 2").await;
        let third = begin(log, b"third").await;
        let fourth = begin(log, b"given up 4").await;
        let fifth = begin(log, b"fifth").await;
        drop((first, second, fourth));
        drop(held_up);
        let third = third.await.unwrap();
        let fifth = fifth.await.unwrap();
        assert_eq!(log.read(third).await.unwrap(), "third");
        assert_eq!(log.read(fifth).await.unwrap(), "fifth");
        close(opened).await;
        let expected = ["given up 1", "given up 2", "third", "given up 4", "fifth"];
        assert_eq!(payloads(&path).await, expected);
    });
}

#[test]
fn append_can_be_dropped_after_any_poll() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    block_on(async {
        let opened = open(&path).await;
        let log = &opened.0;
        let mut kept = Vec::new();
        for polls in 0..60 {
            let payload = vec![polls as u8; 3000];
            let mut append: Appending<'_> = Box::pin(log.append(&payload));
            for _ in 0..polls {
                if poll_once(&mut append).await.is_some() {
                    break;
                }
                std::thread::yield_now();
                yield_now().await;
            }
            drop(append);
            kept.push(
                log.append(format!("kept {polls}").as_bytes())
                    .await
                    .unwrap(),
            );
        }
        close(opened).await;
        let mut found = Log::scan(&path).await.unwrap();
        found.retain(|(_, payload)| {
            let is_whole = payload.len() == 3000 && payload.iter().all(|byte| *byte == payload[0]);
            assert!(is_whole || payload.starts_with(b"kept "));
            !is_whole
        });
        let positions: Vec<Position> = found.iter().map(|(position, _)| *position).collect();
        assert_eq!(positions, kept);
        for (polls, (_, payload)) in found.iter().enumerate() {
            assert_eq!(payload, format!("kept {polls}").as_bytes());
        }
    });
}

#[test]
fn dropped_appends_do_not_pile_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    block_on(async {
        let opened = open(&path).await;
        let log = &opened.0;
        let held_up = HeldUp::new(log, &path).await;
        let first = begin(log, b"first").await;
        held_up.is_felt().await;
        let large = vec![1; MAX_PAYLOAD];
        for _ in 0..50 {
            drop(begin(log, &large).await);
        }
        // This append waits for room, and gets it.
        let last = begin(log, b"last").await;
        drop(held_up);
        first.await.unwrap();
        last.await.unwrap();
        close(opened).await;
        let found = payloads(&path).await.len();
        assert!((3..10).contains(&found), "{found} records");
    });
}

#[test]
fn append_fails_without_writer_task() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    block_on(async {
        let (log, writer) = Log::open(&path).await.unwrap();
        let waiting = begin(&log, b"waiting").await;
        drop(writer);
        assert!(matches!(waiting.await, Err(LogError::Stopped)));
        assert!(matches!(log.append(b"x").await, Err(LogError::Stopped)));
        drop(log);
        assert!(payloads(&path).await.is_empty());
    });
}

/// Nothing is appended after a write that failed: it would lie behind a hole.
#[cfg(target_os = "linux")]
#[test]
fn failed_write_stops_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    block_on(async {
        let (log, writer) = open(&path).await;
        let kept = log.append(b"kept").await.unwrap();
        let outside = std::fs::File::options().write(true).open(&path).unwrap();
        let len = outside.metadata().unwrap().len();
        outside.set_len(log.durable_len()).unwrap();
        let refused = log.append(b"lost").await;
        assert!(matches!(refused, Err(LogError::File(_))), "{refused:?}");
        // Not even when writing would be possible again.
        outside.set_len(len).unwrap();
        let refused = log.append(b"never").await;
        assert!(matches!(refused, Err(LogError::File(_))), "{refused:?}");
        assert!(matches!(writer.await, Err(LogError::File(_))));
        assert_eq!(log.read(kept).await.unwrap(), "kept");
        drop(log);

        let opened = open(&path).await;
        assert_eq!(opened.0.recovered(), 1);
        opened.0.append(b"on").await.unwrap();
        close(opened).await;
        assert_eq!(payloads(&path).await, ["kept", "on"]);
    });
}
