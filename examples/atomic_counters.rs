//! Several processes count in one file, by atomic words of it.
//!
//! ```text
//! cargo run --release --features atomic --example atomic_counters [FILE]
//! ```
//!
//! Four processes count how often each value occurs among the bytes of a file (by default this
//! program's own executable), a quarter of it each, in one table of 256 words. The table is then
//! compared with a plain count.

use std::error::Error;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::Ordering;
use std::time::Instant;

use futures_lite::future::block_on;
use mmap_io::MemoryMappedFile;

const PROCESSES: u64 = 4;

const VALUES: usize = 256;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> Outcome {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match &arguments[..] {
        [] => block_on(run(&std::env::current_exe()?)),
        [source] => block_on(run(source.as_ref())),
        [part, table, source] => {
            let part = part.to_str().ok_or("no number")?.parse()?;
            block_on(count(part, table.as_ref(), source.as_ref()))
        }
        _ => Err("expected at most one file".into()),
    }
}

/// What the first process does: it starts the others, and looks at what they have counted.
async fn run(source: &Path) -> Outcome {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("table");
    let table = MemoryMappedFile::create_rw(&path, 8 * VALUES as u64).await?;
    let counters = table.atomic_u64_slice(0, VALUES)?;
    let counted = || -> u64 {
        counters
            .iter()
            .map(|word| word.load(Ordering::Relaxed))
            .sum()
    };

    let clock = Instant::now();
    let children: Vec<Child> = (0..PROCESSES)
        .map(|part| start(part, &path, source))
        .collect::<Outcome<_>>()?;
    println!("start     {PROCESSES} processes");
    for mut child in children {
        let status = child.wait()?;
        if !status.success() {
            return Err(format!("a process that counts has failed: {status}").into());
        }
        println!("ended     a process; counted so far: {}", counted());
    }
    println!("counted   in {:.1?}", clock.elapsed());

    let mut expected = [0_u64; VALUES];
    for byte in std::fs::read(source)? {
        expected[usize::from(byte)] += 1;
    }
    let found = counters.iter().map(|word| word.load(Ordering::Relaxed));
    if !found.eq(expected) {
        return Err("the table differs from a plain count".into());
    }
    println!("verified  {} bytes, by a plain count", counted());

    // The words are ordinary bytes of the file, in the byte order of the processor.
    drop(counters);
    table.flush().await?;
    let words: Vec<u8> = expected.iter().flat_map(|n| n.to_ne_bytes()).collect();
    if std::fs::read(&path)? != words {
        return Err("the file differs from the table".into());
    }
    println!("durable   {} bytes of counters", words.len());
    Ok(())
}

fn start(part: u64, table: &Path, source: &Path) -> Outcome<Child> {
    let part = part.to_string();
    let arguments: [&OsStr; 3] = [part.as_ref(), table.as_ref(), source.as_ref()];
    let program = std::env::current_exe()?;
    Ok(Command::new(program).args(arguments).spawn()?)
}

/// What each of the other processes does: it counts the bytes of its part.
async fn count(part: u64, table: &Path, source: &Path) -> Outcome {
    let source = MemoryMappedFile::open_ro(source).await?;
    let at = |part| source.len() * part / PROCESSES;
    let bytes = source.slice(at(part), at(part + 1) - at(part)).await?;

    let table = MemoryMappedFile::open_rw(table).await?;
    let counters = table.atomic_u64_slice(0, VALUES)?;
    for byte in bytes.iter() {
        // The counts depend on no other memory, so no order is needed between them.
        counters[usize::from(*byte)].fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
