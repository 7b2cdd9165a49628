//! Shows what a service does with a mapped file, and prints one line for each step.
//!
//! ```text
//! cargo run --release --example quickstart [FILE]
//! ```
//!
//! The file (by default this crate's `Cargo.lock`) is only read. Every step is checked against
//! plain `std::fs` reads; a mismatch ends the program with an error.

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use bytes::Bytes;
use futures_lite::future;
use mmap_io::{MemoryMappedFile, MmapIoError};

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> Outcome {
    // Any executor will do: tokio, smol, async-std, or none.
    future::block_on(run())
}

async fn run() -> Outcome {
    let source = std::env::args_os().nth(1).map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock"),
        PathBuf::from,
    );
    let content = std::fs::read(&source)?;
    if content.is_empty() {
        return Err("the file has no bytes".into());
    }
    let len = content.len() as u64;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("store");
    println!("source    {}: {len} bytes", source.display());

    let clock = Instant::now();
    let store = MemoryMappedFile::create_rw(&path, len).await?;
    println!("create    {len} bytes, sparse, in {:?}", clock.elapsed());

    let clock = Instant::now();
    store.write_bytes(0, Bytes::from(content.clone())).await?;
    println!("write     {len} bytes in {:?}", clock.elapsed());

    let clock = Instant::now();
    let head = &content[..content.len().min(64)];
    store.update_region_async(0, head).await?;
    check("durable write", &std::fs::read(&path)?, &content)?;
    let took = clock.elapsed();
    println!(
        "durable   {} bytes survive a power cut, in {took:?}",
        head.len()
    );

    let slice = store.slice(0, len).await?;
    check("zero-copy read", &slice, &content)?;
    let lines = slice.split(|byte| *byte == b'\n').count();
    println!("read      {lines} lines, in place");
    drop(slice);

    let body = store.bytes(0, len)?;
    let half = body.slice(..body.len() / 2);
    check("bytes", &half, &content[..content.len() / 2])?;
    println!(
        "bytes     {} of {} handed on without a copy",
        half.len(),
        body.len()
    );

    // The `Bytes` are still alive: a write over them waits, and nothing else does.
    let is_written = store.try_update_region(0, b"x").await?;
    if is_written {
        return Err("a write went through under a live view".into());
    }
    println!("lease     a write over live bytes is held back");

    store.resize(4 * len).await?;
    store.update_region(3 * len, head).await?;
    check("bytes after growth", &body, &content)?;
    println!(
        "resize    to {} bytes under {} live ones",
        store.len(),
        body.len()
    );
    drop((half, body));

    let parts: Vec<(u64, &[u8])> = content
        .chunks(1000)
        .enumerate()
        .map(|(index, chunk)| (len + index as u64 * 1000, chunk))
        .collect();
    store.update_regions_async(&parts).await?;
    println!("regions   {} ranges in one durable operation", parts.len());

    let copy = directory.path().join("copy");
    let clock = Instant::now();
    let copied = store.copy_to(&copy).await?;
    println!("copy      {copied} bytes in {:?}", clock.elapsed());

    match store.update_region(4 * len, b"too far").await {
        Err(error @ MmapIoError::OutOfBounds { .. }) => println!("error     {error}"),
        other => return Err(format!("a write past the end: {other:?}").into()),
    }

    let stats = store.stats();
    println!(
        "stats     {} writes, {} flushes, {} jobs on the pool, {} bytes pending",
        stats.updates, stats.flushes, stats.pool_hops, stats.pending_bytes
    );
    store.close().await?;

    let mut expected = content.clone();
    expected.extend_from_slice(&content);
    expected.resize(3 * content.len(), 0);
    expected.extend_from_slice(head);
    expected.resize(4 * content.len(), 0);
    check("store", &std::fs::read(&path)?, &expected)?;
    check("copy", &std::fs::read(&copy)?, &expected)?;
    println!("verified  both files, byte for byte, by std::fs::read");
    Ok(())
}

fn check(what: &str, found: &[u8], expected: &[u8]) -> Outcome {
    match found == expected {
        true => Ok(()),
        false => Err(format!("{what}: the bytes differ").into()),
    }
}
