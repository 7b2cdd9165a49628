//! The payloads of `get`: streams of `Bytes` of a map, or of memory of their own.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use blocking::unblock;
use bytes::Bytes;
use futures_lite::stream::{self, Boxed, StreamExt};
use mmap_io::MmapIoError;

use crate::drops::DropOnPool;
use crate::generation::Generation;

/// The length of a chunk, where there are several.
const CHUNK: usize = 4 << 20;

/// Into how many bytes a stream is divided.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Chunks {
    /// All of it is one chunk: a caller that collects the stream copies nothing.
    One,
    /// Chunks of some MiB; the next is read in while the caller uses one.
    Several,
}

/// Streams a range of a map, which is read in when the stream is polled.
pub(crate) fn mapped(
    generation: &Arc<Generation>,
    range: Range<u64>,
    chunks: Chunks,
) -> Boxed<Result<Bytes, MmapIoError>> {
    let generation = Arc::clone(generation);
    match chunks {
        _ if range.is_empty() => stream::empty().boxed(),
        Chunks::One => stream::once_future(Box::pin(async move {
            let len = range.end - range.start;
            let bytes = generation.file.read_bytes(range.start, len).await?;
            Ok(generation.counted(bytes))
        }))
        .boxed(),
        Chunks::Several => match generation.file.stream(range, CHUNK) {
            Ok(pieces) => pieces
                .map(move |piece| Ok(generation.counted(piece?)))
                .boxed(),
            Err(error) => stream::once(Err(error)).boxed(),
        },
    }
}

/// Streams a range of a file that is not mapped, from copies.
pub(crate) fn copied(
    file: DropOnPool<File>,
    range: Range<u64>,
    chunks: Chunks,
) -> Boxed<Result<Bytes, io::Error>> {
    let chunk = match chunks {
        Chunks::One => range.end - range.start,
        Chunks::Several => CHUNK as u64,
    };
    let pieces = stream::try_unfold((Arc::new(file), range), move |(file, left)| async move {
        if left.is_empty() {
            return Ok(None);
        }
        let piece = left.start..left.end.min(left.start + chunk);
        let rest = piece.end..left.end;
        let source = Arc::clone(&file);
        let bytes = unblock(move || read_at(&source, piece)).await?;
        Ok(Some((bytes, (file, rest))))
    });
    pieces.boxed()
}

/// Blocks.
fn read_at(file: &File, range: Range<u64>) -> io::Result<Bytes> {
    let len = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    let mut buffer = vec![0; len];
    #[cfg(unix)]
    std::os::unix::fs::FileExt::read_exact_at(file, &mut buffer, range.start)?;
    #[cfg(not(unix))]
    {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = file;
        file.seek(SeekFrom::Start(range.start))?;
        file.read_exact(&mut buffer)?;
    }
    Ok(buffer.into())
}
