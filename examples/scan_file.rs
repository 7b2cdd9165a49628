//! Scans a large file with all processors at once, without a copy of it.
//!
//! ```text
//! cargo run --release --example scan_file [FILE [WORD]]
//! ```
//!
//! Counts how often a word occurs in a file: by default `error` in the executable of cargo, which
//! has some tens of MiB. Each task takes one piece of the file after the other. The result is
//! compared with that of a plain read.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Instant;

use mmap_io::MemoryMappedFile;
use tokio::task::JoinSet;

/// The length of a piece in bytes.
const PIECE: u64 = 1 << 20;

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Outcome {
    let mut arguments = std::env::args_os().skip(1);
    let path = match arguments.next() {
        Some(path) => PathBuf::from(path),
        // Cargo tells where it is; a program that was started without it scans itself.
        None => std::env::var_os("CARGO").map_or_else(std::env::current_exe, |at| Ok(at.into()))?,
    };
    let word = arguments.next().unwrap_or("error".into());
    let word: Arc<[u8]> = word.as_encoded_bytes().into();
    if word.is_empty() {
        return Err("the word has no bytes".into());
    }

    let clock = Instant::now();
    let file = MemoryMappedFile::open_ro(&path).await?;
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..std::thread::available_parallelism()?.get() {
        tasks.spawn(scan(file.clone(), word.clone(), next.clone()));
    }
    let (mut found, mut shares) = (0, Vec::new());
    while let Some(task) = tasks.join_next().await {
        let (matches, pieces) = task??;
        found += matches;
        shares.push(pieces);
    }
    report("mapped", file.len(), clock);
    println!(
        "tasks     {} of them, which took {shares:?} pieces of 1 MiB",
        shares.len()
    );

    let clock = Instant::now();
    let expected = plain_count(&path, &word)?;
    report("plain", file.len(), clock);
    if found != expected {
        return Err(format!("found {found} matches; a plain read has {expected}").into());
    }
    println!("verified  {found} matches, by a plain read");
    Ok(())
}

/// Takes pieces of the file until none is left; returns the number of matches, and of pieces.
async fn scan(
    file: MemoryMappedFile,
    word: Arc<[u8]>,
    next: Arc<AtomicU64>,
) -> Outcome<(usize, u64)> {
    let (mut matches, mut pieces) = (0, 0);
    loop {
        let start = next.fetch_add(PIECE, Ordering::Relaxed);
        if start >= file.len() {
            return Ok((matches, pieces));
        }
        // A match belongs to the piece in which it begins, and may end in the next piece.
        let end = file.len().min(start + PIECE + word.len() as u64 - 1);
        // In memory when this resolves: a cold file does not stop the tasks of this thread.
        let piece = file.slice(start, end - start).await?;
        matches += count(&piece, &word);
        pieces += 1;
    }
}

fn count(bytes: &[u8], word: &[u8]) -> usize {
    let windows = bytes.windows(word.len());
    windows.filter(|window| *window == word).count()
}

fn plain_count(path: &Path, word: &[u8]) -> Outcome<usize> {
    Ok(count(&std::fs::read(path)?, word))
}

fn report(what: &str, len: u64, clock: Instant) {
    let took = clock.elapsed();
    let speed = len as f64 / took.as_secs_f64() / f64::from(1 << 20);
    println!("{what:9} {len} bytes in {took:.1?}: {speed:.0} MiB a second");
}
