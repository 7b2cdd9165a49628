//! A ring buffer between two processes, in words of a file that both of them use as atomics.
//!
//! ```text
//! cargo run --release --features atomic --example ipc_ring
//! ```
//!
//! A process sends its executable to another one, through a ring of 8 KiB. When the ring is full
//! the sender waits, so that a slow receiver costs no memory. The copy is compared with it.

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mmap_io::MemoryMappedFile;

/// Words of the file: how many words were sent, how many were received (both in cache lines of
/// their own), and the ring.
const SENT: usize = 0;
const RECEIVED: usize = 16;
const RING: usize = 32;
const WORDS: usize = RING + CAPACITY as usize;
/// The number of words that the ring holds.
const CAPACITY: u64 = 1024;
/// How often a process waits for the other one, 50 us or more each time, before it gives up.
const PATIENCE: u64 = 100_000;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> Outcome {
    match std::env::args_os().nth(1) {
        None => smol::block_on(send()),
        Some(directory) => smol::block_on(receive(directory.as_ref())),
    }
}

async fn send() -> Outcome {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("ring");
    let file = MemoryMappedFile::create_rw(path, 8 * WORDS as u64).await?;
    let ring = file.atomic_u64_slice(0, WORDS)?;
    let program = std::env::current_exe()?;
    let content = std::fs::read(&program)?;
    let mut words = content.chunks(7).chain([&[][..]]).map(pack).peekable();

    // Nothing receives yet, so the ring fills up.
    let (mut sent, mut waits) = (0, 0);
    let mut fits = |word: &u64| try_send(&ring, &mut sent, *word);
    while words.next_if(&mut fits).is_some() {}
    println!("full      after {CAPACITY} words");
    let mut receiver = Command::new(program).arg(directory.path()).spawn()?;
    for word in words {
        waits += until(|| fits(&word).then_some(())).await?.1;
    }
    let status = receiver.wait()?;
    println!("sent      {sent} words; the sender waited {waits} times for room");
    if !status.success() || std::fs::read(directory.path().join("copy"))? != content {
        return Err(format!("what arrived is not what was sent; {status}").into());
    }
    println!("verified  {} bytes, by a plain read", content.len());
    Ok(())
}

async fn receive(directory: &Path) -> Outcome {
    let file = MemoryMappedFile::open_rw(directory.join("ring")).await?;
    let ring = file.atomic_u64_slice(0, WORDS)?;
    let (mut content, mut received) = (Vec::new(), 0);
    loop {
        let word = until(|| try_receive(&ring, &mut received)).await?.0;
        let [len, bytes @ ..] = word.to_le_bytes();
        content.extend_from_slice(&bytes[..usize::from(len)]);
        if len == 0 {
            return Ok(std::fs::write(directory.join("copy"), content)?);
        }
    }
}

/// Puts up to 7 bytes into a word, behind their number. A word without bytes is the last one.
fn pack(bytes: &[u8]) -> u64 {
    let mut word = [bytes.len() as u8; 8];
    word[1..=bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

fn try_send(ring: &[AtomicU64], sent: &mut u64, word: u64) -> bool {
    // Acquire: the receiver has read the word whose place this one takes.
    if *sent - ring[RECEIVED].load(Ordering::Acquire) == CAPACITY {
        return false;
    }
    ring[RING + (*sent % CAPACITY) as usize].store(word, Ordering::Relaxed);
    *sent += 1;
    // Release: a receiver that sees the number also sees the word.
    ring[SENT].store(*sent, Ordering::Release);
    true
}

fn try_receive(ring: &[AtomicU64], received: &mut u64) -> Option<u64> {
    // Both as above.
    if ring[SENT].load(Ordering::Acquire) == *received {
        return None;
    }
    let word = ring[RING + (*received % CAPACITY) as usize].load(Ordering::Relaxed);
    *received += 1;
    ring[RECEIVED].store(*received, Ordering::Release);
    Some(word)
}

/// Calls `step` until it returns something; returns that, and how often it waited in between. No
/// store to a file wakes another process, so it looks again after a moment.
async fn until<T>(mut step: impl FnMut() -> Option<T>) -> Outcome<(T, u64)> {
    for waits in 0..PATIENCE {
        match step() {
            Some(done) => return Ok((done, waits)),
            None => smol::Timer::after(Duration::from_micros(50)).await,
        };
    }
    Err("the other process does not go on".into())
}
