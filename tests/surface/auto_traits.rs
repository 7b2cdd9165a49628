//! What is `Send`, `Sync` and `'static`: every public type and every future, so that all of it can
//! be spawned. A view is bound to its handle and no more; a future is bound to what it borrows.

use std::fmt::Debug;
use std::future::Future;
use std::panic::{RefUnwindSafe, UnwindSafe};

use bytes::Bytes;
use mmap_io::{
    manager, FlushPolicy, MappedSlice, MappedSliceMut, MemoryMappedFile, MemoryMappedFileBuilder,
    MmapIoError, MmapMode, Segment, SegmentMut, Stats, TouchHint,
};

const fn shared<T: Send + Sync + Unpin + Debug>() {}
const fn owned<T: Send + Sync + Unpin + Debug + 'static>() {}
const fn plain<T: Copy + Eq + UnwindSafe + RefUnwindSafe + 'static>() {}

const _: () = {
    owned::<MemoryMappedFile>();
    owned::<MemoryMappedFileBuilder>();
    owned::<mmap_io::AnonymousMmap>();
    owned::<mmap_io::MmapReader>();
    owned::<mmap_io::MmapStream>();
    #[cfg(feature = "http-body")]
    owned::<mmap_io::MmapBody>();
    owned::<MmapIoError>();
    owned::<mmap_io::Cause>();
    owned::<mmap_io::Result<MemoryMappedFile>>();
    owned::<Segment>();
    owned::<SegmentMut>();
    owned::<Stats>();
    owned::<FlushPolicy>();
    owned::<MmapMode>();
    owned::<TouchHint>();
    plain::<Stats>();
    plain::<FlushPolicy>();
    plain::<MmapMode>();
    plain::<TouchHint>();
    #[cfg(feature = "advise")]
    owned::<mmap_io::MmapAdvice>();
    #[cfg(feature = "watch")]
    owned::<mmap_io::WatchHandle>();
    #[cfg(feature = "watch")]
    owned::<mmap_io::WatchStream>();
    #[cfg(feature = "watch")]
    owned::<mmap_io::ChangeEvent>();
    #[cfg(feature = "watch")]
    plain::<mmap_io::ChangeKind>();
    #[cfg(feature = "advise")]
    plain::<mmap_io::MmapAdvice>();
    #[cfg(feature = "advisory-lock")]
    owned::<mmap_io::Lock>();
    #[cfg(feature = "advisory-lock")]
    plain::<mmap_io::Lock>();
};

/// For every lifetime of the handle, not only for `'static`.
#[allow(dead_code)] // It only has to compile.
fn views<'a>(_: &'a MemoryMappedFile) {
    shared::<MappedSlice<'a>>();
    shared::<MappedSliceMut<'a>>();
    #[cfg(feature = "atomic")]
    {
        use std::sync::atomic::{AtomicU32, AtomicU64};
        shared::<mmap_io::AtomicView<'a, AtomicU32>>();
        shared::<mmap_io::AtomicView<'a, AtomicU64>>();
        shared::<mmap_io::atomic::AtomicSliceView<'a, AtomicU32>>();
        shared::<mmap_io::atomic::AtomicSliceView<'a, AtomicU64>>();
    }
    #[cfg(feature = "iterator")]
    {
        shared::<mmap_io::ChunkIterator<'a>>();
        shared::<mmap_io::OwnedChunkIterator<'a>>();
        shared::<mmap_io::ChunkIteratorMut<'a>>();
    }
}

fn sendable<F: Future + Send>(_: F) {}
fn spawnable<F: Future + Send + 'static>(_: F) {}

#[test]
fn every_future_is_send() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let file = crate::common::block_on(MemoryMappedFile::create_rw(&path, 100)).unwrap();

    // What borrows nothing. The path is not borrowed either.
    {
        let path = dir.path().join("other");
        let builder = || MemoryMappedFile::builder(&path).size(1);
        spawnable(MemoryMappedFile::create_rw(&path, 1));
        spawnable(MemoryMappedFile::open_ro(&path));
        spawnable(MemoryMappedFile::open_rw(&path));
        spawnable(MemoryMappedFile::open_or_create(&path, 1));
        let plain = std::fs::File::open(file.path()).unwrap();
        spawnable(MemoryMappedFile::from_file(
            plain,
            MmapMode::ReadOnly,
            &path,
        ));
        #[cfg(feature = "cow")]
        {
            spawnable(MemoryMappedFile::open_cow(&path));
            spawnable(MemoryMappedFile::open_cow_writable(&path));
        }
        spawnable(builder().create());
        spawnable(builder().create_new());
        spawnable(builder().open());
        spawnable(builder().open_or_create());
        spawnable(mmap_io::create_mmap(&path, 1));
        spawnable(mmap_io::load_mmap(&path, MmapMode::ReadOnly));
        spawnable(mmap_io::copy_mmap(&path, &path));
        spawnable(mmap_io::delete_mmap(&path));
        spawnable(mmap_io::replace(&path, "new"));
        spawnable(manager::r#async::create_mmap_async(&path, 1));
        spawnable(manager::r#async::copy_mmap_async(&path, &path));
        spawnable(manager::r#async::delete_mmap_async(&path));
        spawnable(file.copy_to(&path));
    }
    spawnable(file.write_bytes(0, Bytes::new()));
    spawnable(file.is_hugepage_backed());
    spawnable(file.write_bytes_async(0, Bytes::new()));
    spawnable(file.flush());
    spawnable(file.flush_range(0, 1));
    spawnable(file.flush_async());
    spawnable(file.flush_range_async(0, 1));
    spawnable(mmap_io::flush(&file));
    spawnable(file.schedule_flush());
    spawnable(file.schedule_flush_range(0, 1));
    spawnable(file.resize(10));
    spawnable(file.grow_to(10));
    spawnable(file.refresh());
    spawnable(file.metadata());
    spawnable(file.is_at_path());
    spawnable(file.read_bytes(0, 1));
    spawnable(file.read_regions(&[(0, 1)]));
    spawnable(file.evict(0, 1));
    spawnable(file.touch_pages());
    spawnable(file.touch_pages_range(0, 1));
    spawnable(file.prefetch_range(0, 1));
    #[cfg(feature = "advise")]
    spawnable(file.advise(0, 1, mmap_io::MmapAdvice::Normal));
    #[cfg(feature = "locking")]
    {
        spawnable(file.lock(0, 1));
        spawnable(file.lock_all());
        spawnable(file.unlock(0, 1));
        spawnable(file.unlock_all());
    }
    #[cfg(feature = "watch")]
    spawnable(file.watch(|_| ()));
    #[cfg(feature = "watch")]
    spawnable(file.watch_stream());
    spawnable(file.clone().close());
    let view = file.try_as_slice_mut(0, 1).unwrap().unwrap();
    spawnable(view.commit());

    // What borrows the handle, or the caller's data.
    let data = [0];
    sendable(file.slice(0, 1));
    sendable(file.read_into(0, &mut [0]));
    sendable(file.update_region(0, &data));
    sendable(file.update_region_async(0, &data));
    sendable(file.update_regions(&[(0, &data)]));
    sendable(file.update_regions_async(&[(0, &data)]));
    sendable(file.try_update_region(0, &data));
    sendable(file.append(&data));
    sendable(file.append_async(&data));
    sendable(file.append_at(0, &data));
    sendable(file.slices(&[(0, 1)]));
    sendable(file.as_slice_mut(0, 1));
    #[cfg(feature = "iterator")]
    {
        sendable(file.chunks_mut(1).for_each_mut(|_, _| Ok(())));
        sendable(
            file.chunks_mut(1)
                .for_each_mut_legacy(|_, _| Ok::<_, ()>(())),
        );
    }
    let memory = mmap_io::AnonymousMmap::new(10).unwrap();
    sendable(memory.update_region(0, &data));
    sendable(memory.as_slice_mut(0, 1));
    sendable(memory.read_into(0, &mut [0]));
    let segment = SegmentMut::new(std::sync::Arc::new(file.clone()), 0, 1).unwrap();
    sendable(segment.as_slice_mut());
    sendable(segment.write(&data));
    sendable(mmap_io::update_region(&file, 0, &data));
    sendable(mmap_io::write_mmap(&path, 0, &data));
    assert!(!dir.path().join("other").exists(), "nothing was polled");
}
