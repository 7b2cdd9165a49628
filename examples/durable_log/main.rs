//! A durable append log, shared by 64 tasks: see `log.rs` for how it works.
//!
//! ```text
//! cargo run --release --example durable_log
//! ```
//!
//! Prints one line for each step. If an acknowledged record is not found again, whole and in order,
//! the program ends with an error.

mod log;

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use futures_lite::future::poll_once;
use log::{Log, Position};
use tokio::task::JoinSet;

const TASKS: u64 = 64;
const RECORDS_EACH: u64 = 250;
const RECORDS: u64 = TASKS * RECORDS_EACH;

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// The position of an acknowledged record, and its payload.
type Acknowledged = (Position, Vec<u8>);

#[tokio::main]
async fn main() -> Outcome {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("log");
    let mut acknowledged = append(&path).await?;
    acknowledged.sort();
    recover(&path, &acknowledged).await?;
    tear(&path, &acknowledged).await
}

/// The first life of the log: many tasks append, and one reads.
async fn append(path: &Path) -> Outcome<Vec<Acknowledged>> {
    let (log, writer) = Log::open(path).await?;
    let log = Arc::new(log);
    let writer = tokio::spawn(writer.run());
    println!("open      a new log, {} records", log.recovered());

    let clock = Instant::now();
    let flushes_before = log.stats().flushes;
    let reader = tokio::spawn(read_along(log.clone()));
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let log = log.clone();
        tasks.spawn(async move {
            let mut acknowledged = Vec::new();
            for number in 0..RECORDS_EACH {
                let payload = payload(task, number);
                acknowledged.push((log.append(&payload).await?, payload));
            }
            Outcome::Ok(acknowledged)
        });
    }
    let mut acknowledged = Vec::new();
    while let Some(joined) = tasks.join_next().await {
        acknowledged.extend(joined??);
    }
    let took = clock.elapsed();
    let flushes = log.stats().flushes - flushes_before;
    println!(
        "append    {RECORDS} records by {TASKS} tasks in {took:.1?}: {flushes} flushes, {:.1} \
         records a flush",
        RECORDS as f64 / flushes as f64
    );
    let read = reader.await??;
    println!("read      {read} bytes in place by a concurrent reader");

    // An append whose future is dropped leaves no hole before the next one.
    let given_up = poll_once(log.append(b"given up")).await;
    let payload = b"after one that was given up".to_vec();
    acknowledged.push((log.append(&payload).await?, payload));
    println!(
        "cancel    one append {}, the next went on",
        match given_up {
            Some(_) => "ended before it could be dropped",
            None => "was dropped",
        }
    );

    let len = log.durable_len();
    println!("close     {len} bytes of records");
    drop(Arc::into_inner(log).ok_or("the log is still in use")?);
    writer.await??;
    Ok(acknowledged)
}

/// Reads every record as it becomes durable, while keeping a view of the first one.
async fn read_along(log: Arc<Log>) -> Outcome<usize> {
    let mut records = log.records();
    let (mut first, mut bytes) = (None, 0);
    let mut count = 0;
    while count < RECORDS {
        match records.next().await? {
            Some((position, record)) => {
                bytes += record.len();
                count += 1;
                first.get_or_insert((position, record));
            }
            None => records.more().await?,
        }
    }
    let (position, record) = first.ok_or("no record")?;
    check("the first record", &log.read(position).await?, &record)?;
    Ok(bytes)
}

/// The second life of the log: recovery finds every acknowledged record.
async fn recover(path: &Path, acknowledged: &[Acknowledged]) -> Outcome {
    let clock = Instant::now();
    let (log, writer) = Log::open(path).await?;
    let writer = tokio::spawn(writer.run());
    println!(
        "reopen    {} records recovered in {:.1?}",
        log.recovered(),
        clock.elapsed()
    );
    for (position, payload) in acknowledged {
        check("a record", &log.read(*position).await?, payload)?;
    }
    let mut records = log.records();
    let mut next = [0; TASKS as usize];
    while let Some((_, record)) = records.next().await? {
        let Some((task, number)) = task_and_number(&record) else {
            continue;
        };
        if number != next[task] {
            return Err(format!(
                "task {task}: found record {number}, expected {}",
                next[task]
            )
            .into());
        }
        next[task] += 1;
    }
    drop(records);
    if next != [RECORDS_EACH; TASKS as usize] {
        return Err("records are missing".into());
    }
    println!(
        "verified  {} acknowledged records, whole and in order",
        acknowledged.len()
    );
    drop(log);
    Ok(writer.await??)
}

/// Corrupts the last record, as a power cut could before the record was acknowledged.
async fn tear(path: &Path, acknowledged: &[Acknowledged]) -> Outcome {
    let before = Log::scan(path).await?.len();
    let (last, _) = acknowledged.last().ok_or("no record")?;
    let mut bytes = std::fs::read(path)?;
    bytes[last.0 as usize + 20] ^= 1;
    std::fs::write(path, bytes)?;
    let after = Log::scan(path).await?.len();
    if after != before - 1 {
        return Err(format!("{after} records of {before} are left").into());
    }
    println!("torn      one bit of the last record: the {after} before it are left");
    Ok(())
}

fn payload(task: u64, number: u64) -> Vec<u8> {
    let mut payload = [task.to_le_bytes(), number.to_le_bytes()].concat();
    payload.resize(32 + (number % 200) as usize, task as u8);
    payload
}

fn task_and_number(payload: &[u8]) -> Option<(usize, u64)> {
    let task = u64::from_le_bytes(payload.get(..8)?.try_into().ok()?);
    let number = u64::from_le_bytes(payload.get(8..16)?.try_into().ok()?);
    (task < TASKS).then_some((task as usize, number))
}

fn check(what: &str, found: &[u8], expected: &[u8]) -> Outcome {
    match found == expected {
        true => Ok(()),
        false => Err(format!("{what}: the bytes differ").into()),
    }
}
