//! Changes a file for a try, in private pages that never reach it.
//!
//! ```text
//! cargo run --release --features cow --example cow_sandbox [FILE]
//! ```
//!
//! The file (by default this crate's `Cargo.lock`) is only read. A sandbox of it blanks all its
//! digits, throws that away, blanks the digits of half of the lines, and saves what it then shows.
//! Every state is compared with a plain computation.

use std::error::Error;
use std::path::PathBuf;

use futures_lite::future::block_on;
use mmap_io::{MemoryMappedFile, MmapAdvice};

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> Outcome {
    let default = || concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock").into();
    block_on(run(std::env::args_os()
        .nth(1)
        .map_or_else(default, PathBuf::from)))
}

async fn run(source: PathBuf) -> Outcome {
    let content = std::fs::read(&source)?;
    let len = content.len() as u64;
    // The permission to read the file is enough. Each sandbox has private pages of its own.
    let sandbox = MemoryMappedFile::open_cow_writable(&source).await?;
    let other = MemoryMappedFile::open_cow_writable(&source).await?;
    println!(
        "open      two sandboxes of {}: {len} bytes",
        source.display()
    );

    // A try that goes too far: every digit of the file, in place.
    let blanked = blank(&mut sandbox.as_slice_mut(0, len).await?);
    let mut expected = content.clone();
    blank(&mut expected);
    check("the sandbox", &sandbox.slice(0, len).await?, &expected)?;
    check("the other sandbox", &other.slice(0, len).await?, &content)?;
    check("the file", &std::fs::read(&source)?, &content)?;
    println!("try       {blanked} digits are blank here, and nowhere else");

    // Throws the private pages away. They show the file again.
    sandbox.advise(0, len, MmapAdvice::DontNeed).await?;
    check("the sandbox", &sandbox.slice(0, len).await?, &content)?;
    println!("discard   the sandbox shows the file again");

    // The second try: the digits of every other line.
    let mut expected = content.clone();
    let lines = expected.split_mut(|byte| *byte == b'\n');
    let blanked: usize = lines.step_by(2).map(blank).sum();
    let mut start = 0;
    for (number, line) in content.split(|byte| *byte == b'\n').enumerate() {
        if number % 2 == 0 {
            let mut line = line.to_vec();
            blank(&mut line);
            sandbox.update_region(start, &line).await?;
        }
        start += line.len() as u64 + 1;
    }
    check("the sandbox", &sandbox.slice(0, len).await?, &expected)?;
    println!("try       {blanked} digits, line by line");

    let directory = tempfile::tempdir()?;
    let saved = directory.path().join("saved");
    let copied = sandbox.copy_to(&saved).await?;
    check("the saved file", &std::fs::read(&saved)?, &expected)?;
    println!("save      what the sandbox shows, as a new file of {copied} bytes");

    drop((sandbox, other));
    check("the file", &std::fs::read(&source)?, &content)?;
    println!("verified  the file is as it was");
    Ok(())
}

/// Replaces each digit by a dot, and returns how many there were.
fn blank(text: &mut [u8]) -> usize {
    let digits = text.iter_mut().filter(|byte| byte.is_ascii_digit());
    digits.map(|digit| *digit = b'.').count()
}

fn check(what: &str, found: &[u8], expected: &[u8]) -> Outcome {
    match found == expected {
        true => Ok(()),
        false => Err(format!("{what}: the bytes differ").into()),
    }
}
