//! The ways to read a file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use futures_lite::StreamExt;
use memmap2::Mmap;
use mmap_io::MemoryMappedFile;
use tokio::io::AsyncReadExt;
use tokio::task::{spawn_blocking, yield_now, JoinHandle};

use crate::Outcome;

/// The length of what is read at a time.
const PIECE: usize = 256 << 10;

/// How many pieces `read_regions` is asked for at a time.
const BATCH: usize = 16;

/// One byte of this many is looked at, so that the work is reading.
pub(crate) const STEP: usize = 512;

/// Sums up the bytes that are looked at.
pub(crate) fn look(bytes: &[u8]) -> u64 {
    let looked_at = bytes.iter().step_by(STEP);
    looked_at.map(|byte| u64::from(*byte)).sum()
}

#[derive(Clone, Copy)]
pub(crate) enum Way {
    AsyncReads,
    ReadsOnThreads,
    Mmap,
    MmapOnThreads,
    Slice,
    Stream,
    ReadRegions,
}

impl Way {
    pub(crate) const ALL: [Self; 7] = [
        Self::AsyncReads,
        Self::ReadsOnThreads,
        Self::Mmap,
        Self::MmapOnThreads,
        Self::Slice,
        Self::Stream,
        Self::ReadRegions,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AsyncReads => "tokio::fs, tasks",
            Self::ReadsOnThreads => "std::fs, threads",
            Self::Mmap => "memmap2, tasks",
            Self::MmapOnThreads => "memmap2, threads",
            Self::Slice => "mmap-io slice",
            Self::Stream => "mmap-io stream",
            Self::ReadRegions => "mmap-io read_regions",
        }
    }

    /// Opens and reads all files at the same time, and returns the sum of what was looked at.
    pub(crate) async fn read_all(self, paths: Vec<PathBuf>) -> Outcome<u64> {
        let tasks: Vec<_> = paths.into_iter().map(|path| self.start(path)).collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await??;
        }
        Ok(sum)
    }

    fn start(self, path: PathBuf) -> JoinHandle<Outcome<u64>> {
        match self {
            Self::AsyncReads => tokio::spawn(async_reads(path)),
            Self::ReadsOnThreads => spawn_blocking(move || reads(&path)),
            Self::Mmap => tokio::spawn(mmap(path)),
            Self::MmapOnThreads => spawn_blocking(move || Ok(look(&map(&path)?))),
            Self::Slice => tokio::spawn(slice(path)),
            Self::Stream => tokio::spawn(stream(path)),
            Self::ReadRegions => tokio::spawn(read_regions(path)),
        }
    }
}

async fn async_reads(path: PathBuf) -> Outcome<u64> {
    let mut file = tokio::fs::File::open(path).await?;
    let mut buffer = vec![0; PIECE];
    let mut sum = 0;
    loop {
        match file.read(&mut buffer).await? {
            0 => return Ok(sum),
            len => sum += look(&buffer[..len]),
        }
    }
}

fn reads(path: &Path) -> Outcome<u64> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; PIECE];
    let mut sum = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(sum),
            len => sum += look(&buffer[..len]),
        }
    }
}

/// The hazard: it looks like memory, and the executor waits for the disk. It gives the other tasks
/// a turn after each piece, as the ways do that await something; without that, they would have none
/// until the end.
async fn mmap(path: PathBuf) -> Outcome<u64> {
    let map = map(&path)?;
    let mut sum = 0;
    for piece in map.chunks(PIECE) {
        sum += look(piece);
        yield_now().await;
    }
    Ok(sum)
}

fn map(path: &Path) -> Outcome<Mmap> {
    // SAFETY: nothing changes the file while the example runs.
    Ok(unsafe { Mmap::map(&File::open(path)?) }?)
}

async fn slice(path: PathBuf) -> Outcome<u64> {
    let file = MemoryMappedFile::open_ro(path).await?;
    let mut sum = 0;
    for (offset, len) in pieces(file.len()) {
        // The bytes are in memory when it resolves: to look at them does not wait.
        sum += look(&file.slice(offset, len).await?);
    }
    file.close().await?;
    Ok(sum)
}

async fn stream(path: PathBuf) -> Outcome<u64> {
    let file = MemoryMappedFile::open_ro(path).await?;
    let mut stream = file.stream(.., PIECE)?;
    let mut sum = 0;
    while let Some(piece) = stream.next().await {
        sum += look(&piece?);
    }
    drop(stream);
    file.close().await?;
    Ok(sum)
}

async fn read_regions(path: PathBuf) -> Outcome<u64> {
    let file = MemoryMappedFile::open_ro(path).await?;
    let mut sum = 0;
    let pieces: Vec<_> = pieces(file.len()).collect();
    for batch in pieces.chunks(BATCH) {
        let pieces = file.read_regions(batch).await?;
        sum += pieces.iter().map(|piece| look(piece)).sum::<u64>();
    }
    file.close().await?;
    Ok(sum)
}

/// Offset and length of each piece of a file.
fn pieces(len: u64) -> impl Iterator<Item = (u64, u64)> {
    let offsets = (0..len).step_by(PIECE);
    offsets.map(move |offset| (offset, (len - offset).min(PIECE as u64)))
}
