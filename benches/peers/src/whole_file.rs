//! Ways to read a whole file, piece by piece. `look` gets each piece, and the sum of its results is
//! returned.

use std::path::Path;

use futures_lite::StreamExt;
use memmap2::Mmap;
use mmap_io::MmapStream;
use tokio::io::AsyncReadExt;

use crate::fixture::KIB;
use crate::harness::Result;

/// The length of a piece.
pub(crate) const PIECE: usize = 256 * KIB as usize;

/// By our stream.
pub(crate) async fn by_stream(mut stream: MmapStream, look: fn(&[u8]) -> u64) -> Result<u64> {
    let mut sum = 0;
    while let Some(piece) = stream.next().await {
        sum += look(&piece?);
    }
    Ok(sum)
}

/// By `tokio::fs`.
pub(crate) async fn by_reads(path: &Path, look: fn(&[u8]) -> u64) -> Result<u64> {
    let mut file = tokio::fs::File::open(path).await?;
    let mut buffer = vec![0; PIECE];
    let mut sum = 0;
    loop {
        let len = file.read(&mut buffer).await?;
        if len == 0 {
            return Ok(sum);
        }
        sum += look(&buffer[..len]);
    }
}

/// By a mapping whose pages are read in when they are touched. It gives the other tasks a turn
/// after each piece, as the other ways do when they wait.
pub(crate) async fn by_touching(map: Mmap, look: fn(&[u8]) -> u64) -> Result<u64> {
    let mut sum = 0;
    for piece in map.chunks(PIECE) {
        sum += look(piece);
        tokio::task::yield_now().await;
    }
    Ok(sum)
}
