//! The interpreter that calls the crate.

use std::fs;
use std::future::Future;
use std::io::SeekFrom;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, StreamExt};
use mmap_io::{
    FlushPolicy, MappedSlice, MappedSliceMut, MemoryMappedFile, MmapIoError, MmapMode, Result,
    Segment, SegmentMut,
};

use super::ops::{Change, Durability, Look, Place, Upkeep, Way};

/// One file, its names, and the handles on it.
pub(crate) struct Real {
    pub(crate) path: PathBuf,
    pub(crate) names: Vec<PathBuf>,
    /// Those that may write, then those that may not.
    pub(crate) handles: Vec<MemoryMappedFile>,
    pub(crate) writers: usize,
}

pub(crate) enum Outcome<'a> {
    Done,
    Is(bool),
    /// An offset or a length.
    Number(u64),
    Mutable(MappedSliceMut<'a>),
}

/// What a look shows, and from where on.
pub(crate) enum Got<'a> {
    Slice(u64, MappedSlice<'a>),
    Bytes(u64, Bytes),
    Copy(u64, Vec<u8>),
}

pub(crate) type Running<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

impl Real {
    /// Creates the file below `dir`, and opens it in every way.
    pub(crate) async fn new(dir: &Path, content: &[u8], write_buffer: usize) -> Self {
        let path = dir.join("data");
        fs::write(&path, content).unwrap();
        let hard_link = dir.join("hard");
        fs::hard_link(&path, &hard_link).unwrap();
        let soft_link = dir.join("soft");
        symlink(&path, &soft_link).unwrap();
        let mut both = fs::File::options();
        let plain = both.read(true).write(true).open(&path).unwrap();
        let open = |path: &Path, policy| {
            let builder = MemoryMappedFile::builder(path).mode(MmapMode::ReadWrite);
            builder.flush_policy(policy).open()
        };
        let first = MemoryMappedFile::builder(&path).mode(MmapMode::ReadWrite);
        let mut handles = vec![
            first.write_buffer(write_buffer).open().await.unwrap(),
            open(&hard_link, FlushPolicy::EveryBytes(20_000))
                .await
                .unwrap(),
            open(&soft_link, FlushPolicy::EveryWrites(9)).await.unwrap(),
            MemoryMappedFile::open_or_create(&path, 1).await.unwrap(),
            MemoryMappedFile::from_file(plain, MmapMode::ReadWrite, "")
                .await
                .unwrap(),
        ];
        let writers = handles.len();
        handles.push(MemoryMappedFile::open_ro(&path).await.unwrap());
        handles.push(MemoryMappedFile::open_cow(&path).await.unwrap());
        Self {
            names: vec![path.clone(), hard_link, soft_link],
            path,
            handles,
            writers,
        }
    }

    /// Begins a change; nothing happens before the first poll. `expected_len` is for `append_at`.
    pub(crate) fn change(
        &self,
        handle: usize,
        change: &Change,
        expected_len: u64,
    ) -> Running<'_, Outcome<'_>> {
        let file = &self.handles[handle];
        let filled = |len: u64, byte: u8| vec![byte; len as usize];
        match change.clone() {
            Change::Write(way, places, byte) => self.write(file, way, places, byte),
            Change::WriteOwn(from, to, len) => Box::pin(async move {
                let data = file.bytes(from, len)?;
                done(file.write_bytes(to, data).await)
            }),
            Change::Mutable((at, len), _) => {
                Box::pin(async move { file.as_slice_mut(at, len).await.map(Outcome::Mutable) })
            }
            Change::TryMutable((at, len), _) => Box::pin(async move {
                let view = file.try_as_slice_mut(at, len)?;
                Ok(view.map_or(Outcome::Is(false), Outcome::Mutable))
            }),
            Change::EachChunk { chunk, byte, stop } => each_chunk(file, chunk, byte, stop),
            Change::Append(durability, len, byte) => Box::pin(async move {
                let data = filled(len, byte);
                let at = match durability {
                    Durability::ByPolicy => file.append(&data).await,
                    Durability::Durable => file.append_async(&data).await,
                };
                at.map(Outcome::Number)
            }),
            Change::AppendAt(_, len, byte) => Box::pin(async move {
                let data = filled(len, byte);
                file.append_at(expected_len, &data).await.map(Outcome::Is)
            }),
            Change::Resize(size) => {
                let resize = file.resize(size);
                Box::pin(async move { done(resize.await) })
            }
            Change::GrowTo(min) => {
                let grow = file.grow_to(min);
                Box::pin(async move { grow.await.map(Outcome::Number) })
            }
            Change::Refresh => {
                let refresh = file.refresh();
                Box::pin(async move { refresh.await.map(Outcome::Number) })
            }
            Change::Copy => {
                let copy = file.copy_to(self.copy());
                Box::pin(async move { copy.await.map(Outcome::Number) })
            }
        }
    }

    /// Where copies go.
    pub(crate) fn copy(&self) -> PathBuf {
        self.path.with_file_name("copy")
    }

    fn write<'a>(
        &'a self,
        file: &'a MemoryMappedFile,
        way: Way,
        places: Vec<Place>,
        byte: u8,
    ) -> Running<'a, Outcome<'a>> {
        let (at, len) = places[0];
        let data = vec![byte; len as usize];
        match way {
            Way::Region(Durability::ByPolicy) => {
                Box::pin(async move { done(file.update_region(at, &data).await) })
            }
            Way::Region(Durability::Durable) => {
                Box::pin(async move { done(file.update_region_async(at, &data).await) })
            }
            Way::Regions(durability) => Box::pin(async move {
                let data: Vec<_> = (0..)
                    .zip(&places)
                    .map(|(number, (_, len))| vec![byte.wrapping_add(number); *len as usize])
                    .collect();
                let parts = places.iter().zip(&data);
                let parts: Vec<_> = parts.map(|((at, _), data)| (*at, &data[..])).collect();
                done(match durability {
                    Durability::ByPolicy => file.update_regions(&parts).await,
                    Durability::Durable => file.update_regions_async(&parts).await,
                })
            }),
            Way::Bytes(Durability::ByPolicy) => {
                let write = file.write_bytes(at, data.into());
                Box::pin(async move { done(write.await) })
            }
            Way::Bytes(Durability::Durable) => {
                let write = file.write_bytes_async(at, data.into());
                Box::pin(async move { done(write.await) })
            }
            Way::Manager => {
                Box::pin(async move { done(mmap_io::update_region(file, at, &data).await) })
            }
            Way::Path => {
                Box::pin(async move { done(mmap_io::write_mmap(&self.path, at, &data).await) })
            }
            Way::Segment => Box::pin(async move {
                let segment = SegmentMut::new(Arc::new(file.clone()), at, len)?;
                done(segment.write(&data).await)
            }),
            Way::Try => Box::pin(async move {
                let written = file.try_update_region(at, &data).await;
                written.map(Outcome::Is)
            }),
        }
    }

    /// Looks at bytes. The future of a look that does not wait is ready at its first poll.
    pub(crate) fn look(
        &self,
        handle: usize,
        look: Look,
        (at, len): Place,
    ) -> Running<'_, Vec<Got<'_>>> {
        let file = &self.handles[handle];
        let halves = [(at, len / 2), (at + len / 2, len - len / 2)];
        Box::pin(async move {
            match look {
                Look::AsSlice => Ok(vec![Got::Slice(at, file.as_slice(at, len)?)]),
                Look::TrySlice => {
                    let slice = file.try_as_slice(at, len)?;
                    Ok(slice.into_iter().map(|it| Got::Slice(at, it)).collect())
                }
                Look::Bytes => Ok(vec![Got::Bytes(at, file.bytes(at, len)?)]),
                Look::Segment => {
                    let segment = Segment::new(Arc::new(file.clone()), at, len)?;
                    let copy = segment.as_slice()?.to_vec();
                    Ok(vec![Got::Copy(at, copy)])
                }
                Look::Pinned => {
                    let own = MemoryMappedFile::open_ro(&self.path).await?;
                    let copy = own.as_slice_bytes(at, len)?.to_vec();
                    Ok(vec![Got::Copy(at, copy)])
                }
                Look::Chunks(size) => {
                    let chunks = file.chunks(size as usize).enumerate();
                    let chunks = chunks.map(|(number, chunk)| {
                        let copy = chunk?.to_vec();
                        Ok(Got::Copy(number as u64 * size, copy))
                    });
                    chunks.collect()
                }
                Look::ChunksOwned(size) => {
                    let chunks = file.chunks_owned(size as usize).enumerate();
                    let chunks =
                        chunks.map(|(number, chunk)| Ok(Got::Copy(number as u64 * size, chunk?)));
                    chunks.collect()
                }
                Look::Slice => Ok(vec![Got::Slice(at, file.slice(at, len).await?)]),
                Look::Slices => {
                    let slices = file.slices(&halves).await?.into_iter().zip(halves);
                    Ok(slices.map(|(it, (at, _))| Got::Slice(at, it)).collect())
                }
                Look::ReadBytes => Ok(vec![Got::Bytes(at, file.read_bytes(at, len).await?)]),
                Look::ReadRegions => {
                    let parts = file.read_regions(&halves).await?.into_iter().zip(halves);
                    Ok(parts.map(|(it, (at, _))| Got::Bytes(at, it)).collect())
                }
                Look::ReadInto => {
                    let mut copy = vec![0x55; len as usize];
                    file.read_into(at, &mut copy).await?;
                    Ok(vec![Got::Copy(at, copy)])
                }
                Look::Stream(size) => {
                    // The pieces are of different moments.
                    let mut stream = file.stream(at..at + len, size as usize)?;
                    let (mut pieces, mut at) = (Vec::new(), at);
                    while let Some(piece) = stream.next().await {
                        let piece = piece?.to_vec();
                        let end = at + piece.len() as u64;
                        pieces.push(Got::Copy(at, piece));
                        at = end;
                    }
                    Ok(pieces)
                }
                Look::Reader => {
                    let mut reader = file.reader_range(at..at + len)?;
                    reader.seek(SeekFrom::Start(len / 2)).await?;
                    let mut copy = vec![0x55; (len - len / 2) as usize];
                    reader.read_exact(&mut copy).await?;
                    Ok(vec![Got::Copy(at + len / 2, copy)])
                }
                Look::FillBuf => {
                    let mut reader = file.reader_range(at..at + len)?;
                    let copy = reader.fill_buf().await?.to_vec();
                    Ok(vec![Got::Copy(at, copy)])
                }
            }
        })
    }

    pub(crate) fn keep(&self, handle: usize, upkeep: Upkeep, (at, len): Place) -> Running<'_, ()> {
        let file = &self.handles[handle];
        match upkeep {
            Upkeep::Flush => Box::pin(file.flush()),
            Upkeep::FlushRange => Box::pin(file.flush_range(at, len)),
            Upkeep::ScheduleFlush => Box::pin(file.schedule_flush()),
            Upkeep::ScheduleFlushRange => Box::pin(file.schedule_flush_range(at, len)),
            Upkeep::TouchPages => Box::pin(file.touch_pages()),
            Upkeep::TouchRange => Box::pin(file.touch_pages_range(at, len)),
            Upkeep::Prefetch => Box::pin(file.prefetch_range(at, len)),
            Upkeep::Advise(which) => {
                use mmap_io::MmapAdvice::*;
                let advice = [
                    Normal, Random, Sequential, WillNeed, DontNeed, Cold, PageOut,
                ];
                let advice = file.advise(at, len, advice[which % advice.len()]);
                Box::pin(async move {
                    match advice.await {
                        // Some are refused for pages that are locked.
                        Err(MmapIoError::AdviceFailed(_)) => Ok(()),
                        result => result,
                    }
                })
            }
            Upkeep::Evict => Box::pin(file.evict(at, len)),
            Upkeep::Lock => Box::pin(file.lock(at, len)),
            Upkeep::Unlock => Box::pin(file.unlock(at, len)),
            Upkeep::Metadata => Box::pin(async move {
                let len = file.metadata().await?.len();
                assert_eq!(len, fs::metadata(&self.path).unwrap().len());
                let has_path = !file.path().as_os_str().is_empty();
                assert!(!has_path || file.is_at_path().await?);
                Ok(())
            }),
            Upkeep::Reopen => Box::pin(async move {
                let again = MemoryMappedFile::open_rw(&self.path).await?;
                again.close().await
            }),
        }
    }

    /// Tries to create the file anew, or to copy onto it, by one of its names.
    pub(crate) async fn claim(&self, handle: usize, which: usize) -> Result<()> {
        let name = &self.names[which % self.names.len()];
        match which % 4 {
            0 => MemoryMappedFile::create_rw(name, 10).await.map(drop),
            1 => self.handles[handle].copy_to(name).await.map(drop),
            2 => mmap_io::copy_mmap(&self.names[0], name).await,
            _ => MemoryMappedFile::builder(name)
                .size(10)
                .create()
                .await
                .map(drop),
        }
    }
}

impl Real {
    /// Whether such a claim opens the file first, which takes note of its length.
    pub(crate) fn claim_opens(which: usize) -> bool {
        which % 4 == 2
    }
}

fn done(result: Result<()>) -> Result<Outcome<'static>> {
    result.map(|()| Outcome::Done)
}

fn each_chunk(
    file: &MemoryMappedFile,
    chunk: u64,
    byte: u8,
    stop: u64,
) -> Running<'_, Outcome<'_>> {
    let mut number = 0;
    let change = move |_, bytes: &mut [u8]| {
        bytes[0] = byte;
        number += 1;
        if number <= stop {
            Ok(())
        } else {
            Err(())
        }
    };
    Box::pin(async move {
        let each = file.chunks_mut(chunk as usize).for_each_mut_legacy(change);
        Ok(Outcome::Is(each.await?.is_ok()))
    })
}
