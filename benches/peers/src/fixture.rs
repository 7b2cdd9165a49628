//! The files, the offsets and the bytes that all figures use.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use bytes::Bytes;
use memmap2::{Mmap, MmapMut, MmapOptions};

use crate::harness::{Bench, Result};

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;

/// The length of a file, unless a figure says otherwise.
pub(crate) const FILE_LEN: u64 = 64 * MIB;

/// The one seed that every offset comes from.
const SEED: u64 = 0x6d6d_6170_2d69_6f21;

/// Random offsets at which `len` bytes lie inside `span`; the same ones for the same [`stream`].
pub(crate) fn offsets(stream: u64, span: Range<u64>, len: u64) -> impl Iterator<Item = u64> {
    let mut rng = fastrand::Rng::with_seed(SEED ^ stream);
    std::iter::repeat_with(move || rng.u64(span.start..=span.end - len))
}

/// Returns `count` of these offsets, the same ones every time.
pub(crate) fn offset_list(count: u64, span: Range<u64>, len: u64) -> Vec<u64> {
    offsets(0, span, len).take(count as usize).collect()
}

/// The number of the stream of offsets that a task uses in a round.
pub(crate) fn stream(round: u64, task: u64) -> u64 {
    round << 32 | task
}

/// File contents in which every byte is a function of its position. Overlapping writes then leave
/// the same bytes in any order, so that the files of two sides can be compared even if many tasks
/// write at the same time.
pub(crate) struct Pattern(Bytes);

/// What files hold to begin with.
pub(crate) static BEFORE: LazyLock<Pattern> = LazyLock::new(|| Pattern::new(1));

/// What figures write into them.
pub(crate) static AFTER: LazyLock<Pattern> = LazyLock::new(|| Pattern::new(2));

impl Pattern {
    /// A prime, so that neighbouring pages differ.
    const PERIOD: u64 = 4_099;

    /// The longest piece that [`at`](Self::at) can give.
    const LONGEST: u64 = 16 * MIB;

    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(SEED ^ seed);
        let period: Vec<u8> = std::iter::repeat_with(|| rng.u8(..))
            .take(Self::PERIOD as usize)
            .collect();
        let bytes = period
            .iter()
            .copied()
            .cycle()
            .take((Self::PERIOD + Self::LONGEST) as usize);
        Self(bytes.collect())
    }

    /// The `len` bytes that belong at `offset`.
    pub(crate) fn at(&self, offset: u64, len: u64) -> &[u8] {
        &self.0[Self::range(offset, len)]
    }

    /// The same, as an array that a closure can own.
    pub(crate) fn array_at<const N: usize>(&self, offset: u64) -> [u8; N] {
        self.at(offset, N as u64)
            .try_into()
            .expect("`at` gives as many bytes as asked for")
    }

    /// The same, as `Bytes` that share the pattern's memory.
    pub(crate) fn bytes_at(&self, offset: u64, len: u64) -> Bytes {
        self.0.slice(Self::range(offset, len))
    }

    /// Whether `bytes` are those that belong at `offset`.
    pub(crate) fn matches(&self, offset: u64, bytes: &[u8]) -> bool {
        let mut pieces = pieces(bytes.len() as u64, Self::LONGEST);
        pieces.all(|(start, len)| {
            bytes[start as usize..][..len as usize] == *self.at(offset + start, len)
        })
    }

    fn range(offset: u64, len: u64) -> Range<usize> {
        let start = (offset % Self::PERIOD) as usize;
        start..start + len as usize
    }
}

/// Creates a file of `len` bytes of [`BEFORE`]: durable, so that no write-back of it runs beside
/// what is measured, and hot, because it has just been written.
pub(crate) fn file(bench: &Bench, name: &str, len: u64) -> Result<PathBuf> {
    let path = bench.dir().join(name);
    let mut file = File::create(&path)?;
    for (offset, len) in pieces(len, MIB) {
        file.write_all(BEFORE.at(offset, len))?;
    }
    file.sync_all()?;
    Ok(path)
}

/// Writes all `len` bytes once through `write`, so that a mapping's pages are mapped and writable
/// before anything is measured.
fn write_once(len: u64, mut write: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    pieces(len, 64 * KIB).try_for_each(|(offset, len)| write(offset, BEFORE.at(offset, len)))
}

/// Fails unless the files hold the same bytes.
pub(crate) fn same_bytes<const N: usize>(paths: [&Path; N]) -> Result<()> {
    let maps = paths
        .iter()
        .map(|path| map_read(path))
        .collect::<Result<Vec<_>>>()?;
    for (pair, names) in maps.windows(2).zip(paths.windows(2)) {
        if pair[0][..] != pair[1][..] {
            let (a, b) = (names[0].display(), names[1].display());
            return Err(format!("{a} and {b} differ").into());
        }
    }
    Ok(())
}

/// `path` mapped read-only by `memmap2`.
pub(crate) fn map_read(path: &Path) -> Result<Mmap> {
    let len = path.metadata()?.len();
    map_read_range(path, 0..len)
}

/// A part of `path` mapped read-only by `memmap2`.
pub(crate) fn map_read_range(path: &Path, range: Range<u64>) -> Result<Mmap> {
    let mut options = MmapOptions::new();
    options
        .offset(range.start)
        .len((range.end - range.start) as usize);
    // SAFETY: the file is in the figure's own directory, and no figure changes the mapped bytes or
    // the file's length while it reads through this mapping.
    Ok(unsafe { options.map(&File::open(path)?) }?)
}

/// `path` mapped read-write by `memmap2`.
pub(crate) fn map_write(path: &Path) -> Result<MmapMut> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    // SAFETY: the file is in the figure's own directory, and no figure changes its length, or
    // writes to it in another way while it uses this mapping.
    Ok(unsafe { MmapMut::map_mut(&file) }?)
}

/// A `memmap2` mapping that jobs on a pool write to in turn, as a user would write it by hand. The
/// lock is never contended in a figure, and its cost is negligible beside that of a job.
#[derive(Clone)]
pub(crate) struct SharedMap(Arc<Mutex<MmapMut>>);

impl SharedMap {
    /// Maps `path` and writes all of it once.
    pub(crate) fn written_once(path: &Path) -> Result<Self> {
        let mut map = map_write(path)?;
        write_once(map.len() as u64, |offset, data| {
            copy_in(&mut map, offset, data);
            Ok(())
        })?;
        Ok(Self(Arc::new(Mutex::new(map))))
    }

    /// Copies `data` to `offset`.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        self.with(|map| copy_in(map, offset, data));
    }

    /// Copies `data` to `offset` and makes it durable.
    pub(crate) fn write_durably(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.with(|map| {
            copy_in(map, offset, data);
            map.flush_range(offset as usize, data.len())
        })
    }

    /// The same with neighbours, from `offset` on: each is copied on its own, then all become
    /// durable at once.
    pub(crate) fn write_all_durably<'a>(
        &self,
        offset: u64,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> std::io::Result<()> {
        self.with(|map| {
            let mut end = offset;
            for data in pieces {
                copy_in(map, end, data);
                end += data.len() as u64;
            }
            map.flush_range(offset as usize, (end - offset) as usize)
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut MmapMut) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Our mapping of `path`, read-write, flushed only when asked.
pub(crate) fn ours(bench: &Bench, path: &Path) -> Result<mmap_io::MemoryMappedFile> {
    let open = mmap_io::MemoryMappedFile::builder(path)
        .mode(mmap_io::MmapMode::ReadWrite)
        .flush_policy(mmap_io::FlushPolicy::Manual)
        .open();
    Ok(bench.multi.block_on(open)?)
}

/// The same, with all of it written once.
pub(crate) fn ours_written_once(bench: &Bench, path: &Path) -> Result<mmap_io::MemoryMappedFile> {
    let map = ours(bench, path)?;
    write_once(map.len(), |offset, data| {
        Ok(bench.multi.block_on(map.update_region(offset, data))?)
    })?;
    Ok(map)
}

/// The synchronous crate's mapping of `path`, read-write, flushed only when asked.
pub(crate) fn sync(path: &Path) -> Result<mmap_io_sync::MemoryMappedFile> {
    Ok(mmap_io_sync::MemoryMappedFile::builder(path)
        .mode(mmap_io_sync::MmapMode::ReadWrite)
        .flush_policy(mmap_io_sync::flush::FlushPolicy::Manual)
        .open()?)
}

/// The same, with all of it written once.
pub(crate) fn sync_written_once(path: &Path) -> Result<mmap_io_sync::MemoryMappedFile> {
    let map = sync(path)?;
    write_once(map.len(), |offset, data| {
        Ok(map.update_region(offset, data)?)
    })?;
    Ok(map)
}

/// The sum of all bytes. Never inlined, so that every side that reads bytes runs the same code.
#[inline(never)]
pub(crate) fn total(bytes: &[u8]) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte)).sum()
}

fn copy_in(map: &mut MmapMut, offset: u64, data: &[u8]) {
    map[offset as usize..][..data.len()].copy_from_slice(data);
}

/// The pieces of at most `step` bytes that make up `len` bytes: offset and length of each.
fn pieces(len: u64, step: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..len)
        .step_by(step as usize)
        .map(move |offset| (offset, step.min(len - offset)))
}
