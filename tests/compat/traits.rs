//! What can be sent to another thread, and where the types and functions are found.

use std::any::{type_name, TypeId};
use std::future::Future;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::atomic::{AtomicU32, AtomicU64};

use mmap_io::manager::r#async::{copy_mmap_async, create_mmap_async, delete_mmap_async};
use mmap_io::{
    AnonymousMmap, AtomicSliceView, AtomicView, ChangeEvent, ChangeKind, ChunkIterator,
    ChunkIteratorMut, FlushPolicy, Lock, MappedSlice, MappedSliceMut, MemoryMappedFile,
    MemoryMappedFileBuilder, MmapAdvice, MmapBody, MmapIoError, MmapMode, MmapReader, MmapStream,
    OwnedChunkIterator, Segment, SegmentMut, Stats, TouchHint, WatchHandle, WatchStream,
};

use crate::{block_on, Rig};

fn shareable<T: Send + Sync + Unpin + std::fmt::Debug>() {}
fn cloneable<T: Send + Sync + Unpin + std::fmt::Debug + Clone>() {}
fn plain<T: Copy + Eq + Send + Sync + UnwindSafe + RefUnwindSafe + std::fmt::Debug>() {}

#[test]
fn types() {
    cloneable::<MemoryMappedFile>();
    cloneable::<MemoryMappedFileBuilder>();
    cloneable::<AnonymousMmap>();
    cloneable::<Segment>();
    cloneable::<SegmentMut>();
    cloneable::<ChunkIterator<'_>>();
    cloneable::<OwnedChunkIterator<'_>>();
    cloneable::<MmapIoError>();
    cloneable::<mmap_io::Cause>();
    cloneable::<ChangeEvent>();
    shareable::<ChunkIteratorMut<'_>>();
    shareable::<MappedSlice<'_>>();
    shareable::<MappedSliceMut<'_>>();
    shareable::<AtomicView<'_, AtomicU32>>();
    shareable::<AtomicView<'_, AtomicU64>>();
    shareable::<AtomicSliceView<'_, AtomicU32>>();
    shareable::<AtomicSliceView<'_, AtomicU64>>();
    shareable::<MmapReader>();
    shareable::<MmapStream>();
    shareable::<MmapBody>();
    shareable::<WatchHandle>();
    shareable::<WatchStream>();
    plain::<MmapMode>();
    plain::<TouchHint>();
    plain::<FlushPolicy>();
    plain::<MmapAdvice>();
    plain::<Lock>();
    plain::<ChangeKind>();
    plain::<Stats>();
}

/// Expects two paths to lead to one type.
fn same<A: 'static, B: 'static>() {
    let (one, other) = (type_name::<A>(), type_name::<B>());
    assert_eq!(TypeId::of::<A>(), TypeId::of::<B>(), "{one}, {other}");
}

#[test]
fn old_paths() {
    same::<mmap_io::advise::MmapAdvice, MmapAdvice>();
    same::<mmap_io::anonymous::AnonymousMmap, AnonymousMmap>();
    same::<mmap_io::atomic::AtomicView<'static, AtomicU32>, AtomicView<'static, AtomicU32>>();
    type Words = AtomicSliceView<'static, AtomicU64>;
    same::<mmap_io::atomic::AtomicSliceView<'static, AtomicU64>, Words>();
    same::<mmap_io::errors::Cause, mmap_io::Cause>();
    same::<mmap_io::errors::MmapIoError, MmapIoError>();
    same::<mmap_io::errors::Result<u8>, mmap_io::Result<u8>>();
    same::<mmap_io::Result<u8>, std::result::Result<u8, MmapIoError>>();
    same::<mmap_io::flush::FlushPolicy, FlushPolicy>();
    same::<mmap_io::iterator::ChunkIterator<'static>, ChunkIterator<'static>>();
    same::<mmap_io::iterator::ChunkIteratorMut<'static>, ChunkIteratorMut<'static>>();
    same::<mmap_io::iterator::OwnedChunkIterator<'static>, OwnedChunkIterator<'static>>();
    same::<mmap_io::mmap::MappedSlice<'static>, MappedSlice<'static>>();
    same::<mmap_io::mmap::MappedSliceMut<'static>, MappedSliceMut<'static>>();
    same::<mmap_io::mmap::MemoryMappedFile, MemoryMappedFile>();
    same::<mmap_io::mmap::MemoryMappedFileBuilder, MemoryMappedFileBuilder>();
    same::<mmap_io::mmap::MmapMode, MmapMode>();
    same::<mmap_io::mmap::MmapReader, MmapReader>();
    same::<mmap_io::mmap::Stats, Stats>();
    same::<mmap_io::mmap::TouchHint, TouchHint>();
    same::<mmap_io::segment::Segment, Segment>();
    same::<mmap_io::segment::SegmentMut, SegmentMut>();
    same::<mmap_io::watch::ChangeEvent, ChangeEvent>();
    same::<mmap_io::watch::ChangeKind, ChangeKind>();
    same::<mmap_io::watch::WatchHandle, WatchHandle>();
    same::<mmap_io::watch::WatchStream, WatchStream>();
}

#[test]
fn manager_paths() {
    let rig = block_on(Rig::new());
    let path = rig.path_of("new");
    // Futures that are never polled do nothing.
    spawnable(mmap_io::manager::create_mmap(&path, 5));
    spawnable(mmap_io::manager::copy_mmap(&rig.path, &path));
    spawnable(mmap_io::manager::delete_mmap(&rig.path));
    spawnable(mmap_io::manager::flush(&rig.file));
    sendable(mmap_io::manager::update_region(&rig.file, 0, b"x"));
    sendable(mmap_io::manager::write_mmap(&rig.path, 0, b"x"));
    let mode = MmapMode::ReadOnly;
    let loaded = block_on(mmap_io::manager::load_mmap(&rig.path, mode)).unwrap();
    assert_eq!(loaded.as_slice(0, 2).unwrap(), [0, 1]);
    assert!(!path.exists());
}

fn sendable<T>(_: impl Future<Output = T> + Send) {}
fn spawnable<T: Send + 'static>(_: impl Future<Output = T> + Send + 'static) {}

/// What borrows nothing can be spawned: none of these keeps the path, the handle or the builder.
#[test]
fn spawnable_futures() {
    let rig = block_on(Rig::new());
    let file = &rig.file;
    {
        let path = rig.path_of("new");
        let plain = std::fs::File::open(&rig.path).unwrap();
        let builder = || MemoryMappedFile::builder(&path);
        spawnable(MemoryMappedFile::create_rw(&path, 5));
        spawnable(MemoryMappedFile::open_ro(&path));
        spawnable(MemoryMappedFile::open_rw(&path));
        spawnable(MemoryMappedFile::open_or_create(&path, 5));
        spawnable(MemoryMappedFile::open_cow(&path));
        spawnable(MemoryMappedFile::open_cow_writable(&path));
        spawnable(MemoryMappedFile::from_file(
            plain,
            MmapMode::ReadOnly,
            &path,
        ));
        spawnable(builder().create());
        spawnable(builder().create_new());
        spawnable(builder().open());
        spawnable(builder().open_or_create());
        spawnable(file.copy_to(&path));
        spawnable(create_mmap_async(&path, 5));
        spawnable(copy_mmap_async(&path, &path));
        spawnable(delete_mmap_async(&path));
        spawnable(mmap_io::replace(&path, "x"));
    }
    spawnable(file.read_bytes(0, 1));
    spawnable(file.read_regions(&[(0, 1)]));
    spawnable(file.write_bytes(0, "x".into()));
    spawnable(file.write_bytes_async(0, "x".into()));
    spawnable(file.flush());
    spawnable(file.flush_range(0, 1));
    spawnable(file.flush_async());
    spawnable(file.flush_range_async(0, 1));
    spawnable(file.schedule_flush());
    spawnable(file.schedule_flush_range(0, 1));
    spawnable(file.evict(0, 1));
    spawnable(file.resize(5));
    spawnable(file.grow_to(5));
    spawnable(file.refresh());
    spawnable(file.metadata());
    spawnable(file.is_at_path());
    spawnable(file.is_hugepage_backed());
    spawnable(file.touch_pages());
    spawnable(file.touch_pages_range(0, 1));
    spawnable(file.prefetch_range(0, 1));
    spawnable(file.advise(0, 1, MmapAdvice::Normal));
    spawnable(file.lock(0, 1));
    spawnable(file.lock_all());
    spawnable(file.unlock(0, 1));
    spawnable(file.unlock_all());
    spawnable(file.watch(|_| ()));
    spawnable(file.watch_stream());
    spawnable(file.clone().close());
    spawnable(file.try_as_slice_mut(0, 1).unwrap().unwrap().commit());
    assert!(!rig.path_of("new").exists(), "nothing was polled");
    assert_eq!(file.len(), crate::LEN);
}

/// What borrows the handle or the data can go to another thread as well.
#[test]
fn sendable_futures() {
    let rig = block_on(Rig::new());
    let file = &rig.file;
    sendable(file.slice(0, 1));
    sendable(file.slices(&[(0, 1)]));
    sendable(file.read_into(0, &mut [0]));
    sendable(file.update_region(0, b"x"));
    sendable(file.update_region_async(0, b"x"));
    sendable(file.update_regions(&[(0, b"x")]));
    sendable(file.update_regions_async(&[(0, b"x")]));
    sendable(file.try_update_region(0, b"x"));
    sendable(file.append(b"x"));
    sendable(file.append_async(b"x"));
    sendable(file.append_at(0, b"x"));
    sendable(file.as_slice_mut(0, 1));
    sendable(file.chunks_mut(1).for_each_mut(|_, _| Ok(())));
    let legacy = file.chunks_mut(1);
    sendable(legacy.for_each_mut_legacy(|_, _| Ok::<_, ()>(())));
    let segment = SegmentMut::new(file.clone().into(), 0, 1).unwrap();
    sendable(segment.as_slice_mut());
    sendable(segment.write(b"x"));
    sendable(mmap_io::update_region(file, 0, b"x"));
    sendable(mmap_io::write_mmap(&rig.path, 0, b"x"));
    assert_eq!(file.stats().updates, 0, "nothing was polled");
}
