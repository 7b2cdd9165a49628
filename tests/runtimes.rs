//! Every operation under every runtime, checked against plain reads of the file.

mod common;

use std::future::Future;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use bytes::Bytes;
use common::operations::{operations, Fixture};
use common::{is_quiet, pattern, patterned, rt_test, wait_until};
use mmap_io::{
    manager, AnonymousMmap, FlushPolicy, MemoryMappedFile, MmapIoError, MmapMode, TouchHint,
};

rt_test!(opens, |dir| {
    let path = dir.join("new");
    let file = MemoryMappedFile::create_rw(&path, 5000).await.unwrap();
    assert_eq!((file.len(), file.mode()), (5000, MmapMode::ReadWrite));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 5000);
    file.update_region(0, b"x").await.unwrap();
    drop(file);
    for mode in [MmapMode::ReadOnly, MmapMode::ReadWrite] {
        let file = mmap_io::load_mmap(&path, mode).await.unwrap();
        assert_eq!(file.as_slice(0, 2).unwrap(), b"x\0");
        let plain = std::fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let again = MemoryMappedFile::from_file(plain, mode, "name")
            .await
            .unwrap();
        assert_eq!(again.path(), std::path::Path::new("name"));
        assert_eq!(again.current_len().unwrap(), 5000);
    }
    assert!(MemoryMappedFile::open_ro(&path).await.is_ok());
    assert!(MemoryMappedFile::open_rw(&path).await.is_ok());
    let kept = MemoryMappedFile::open_or_create(&path, 7).await.unwrap();
    assert_eq!(kept.len(), 5000);
    let made = MemoryMappedFile::builder(dir.join("made"))
        .size(4096)
        .preallocate(true)
        .touch_hint(TouchHint::Eager)
        .flush_policy(FlushPolicy::Always)
        .create_new()
        .await
        .unwrap();
    assert_eq!(made.flush_policy(), FlushPolicy::Always);
    std::fs::write(dir.join("empty"), b"").unwrap();
    let empty = MemoryMappedFile::open_ro(dir.join("empty")).await.unwrap();
    assert!(empty.is_empty());
    let extended = MemoryMappedFile::open_or_create(dir.join("empty"), 10)
        .await
        .unwrap();
    assert_eq!((extended.len(), empty.len()), (10, 10));
    mmap_io::delete_mmap(&path).await.unwrap();
    assert!(!path.exists());
    assert_eq!(kept.as_slice(0, 1).unwrap(), b"x");
});

rt_test!(reads, |dir| {
    let (_, file) = patterned(dir, 100_000).await;
    let expected = pattern(100_000);
    let reader = MemoryMappedFile::open_ro(file.path()).await.unwrap();
    for handle in [&file, &reader] {
        for (offset, len) in [(0, 1), (4095, 2), (99_999, 1), (0, 100_000), (70_000, 0)] {
            let want = &expected[offset..offset + len];
            let (offset, len) = (offset as u64, len as u64);
            assert_eq!(handle.as_slice(offset, len).unwrap(), want);
            assert_eq!(handle.try_as_slice(offset, len).unwrap().unwrap(), want);
            assert_eq!(handle.slice(offset, len).await.unwrap(), want);
            assert_eq!(handle.bytes(offset, len).unwrap(), want);
            assert_eq!(handle.read_bytes(offset, len).await.unwrap(), want);
            let mut buffer = vec![0; len as usize];
            handle.read_into(offset, &mut buffer).await.unwrap();
            assert_eq!(buffer, want);
        }
    }
    assert_eq!(reader.as_slice_bytes(10, 20).unwrap(), &expected[10..30]);
    assert!(matches!(
        file.as_slice_bytes(10, 20),
        Err(MmapIoError::InvalidMode(_))
    ));
    assert_eq!(Bytes::from(file.as_slice(1, 2).unwrap()), &expected[1..3]);
    file.touch_pages().await.unwrap();
    file.touch_pages_range(5, 10).await.unwrap();
    file.prefetch_range(5, 10).await.unwrap();
    #[cfg(feature = "advise")]
    file.advise(5, 10, mmap_io::MmapAdvice::Sequential)
        .await
        .unwrap();
    assert_eq!(file.as_fd().as_raw_fd(), file.as_raw_fd());
    // SAFETY: nothing writes, and the byte is inside the file.
    assert_eq!(unsafe { *file.as_ptr().add(7) }, expected[7]);
});

rt_test!(writes, |dir| {
    let (path, file) = patterned(dir, 20_000).await;
    let mut expected = pattern(20_000);
    let mut write = |at: usize, data: &[u8]| expected[at..at + data.len()].copy_from_slice(data);
    file.update_region(1, b"one").await.unwrap();
    write(1, b"one");
    file.update_region_async(5000, b"two").await.unwrap();
    write(5000, b"two");
    file.update_regions(&[(8000, b"aaaa"), (8002, b"bb"), (0, b"")])
        .await
        .unwrap();
    write(8000, b"aabb");
    file.update_regions_async(&[(12_000, b"cc"), (15_000, b"dd")])
        .await
        .unwrap();
    write(12_000, b"cc");
    write(15_000, b"dd");
    file.write_bytes(16_000, Bytes::from_static(b"ee"))
        .await
        .unwrap();
    write(16_000, b"ee");
    file.write_bytes_async(16_010, file.bytes(16_000, 2).unwrap())
        .await
        .unwrap();
    write(16_010, b"ee");
    assert!(file.try_update_region(17_000, b"ff").await.unwrap());
    write(17_000, b"ff");
    file.as_slice_mut(18_000, 2)
        .await
        .unwrap()
        .copy_from_slice(b"gg");
    write(18_000, b"gg");
    let mut view = file.try_as_slice_mut(19_000, 2).unwrap().unwrap();
    assert!(matches!(
        file.as_slice(19_001, 1),
        Err(MmapIoError::Busy { .. })
    ));
    assert!(file.try_as_slice(19_001, 1).unwrap().is_none());
    assert!(!file.try_update_region(19_000, b"no").await.unwrap());
    view.copy_from_slice(b"hh");
    view.commit().await.unwrap();
    write(19_000, b"hh");
    assert_eq!(std::fs::read(&path).unwrap(), expected);
    // What is written through a source in its own way does not wait for itself.
    let own = file.bytes(0, 100).unwrap();
    file.write_bytes(0, own).await.unwrap();
    assert!(file.pending_bytes() > 0);
    file.flush().await.unwrap();
    assert_eq!(file.pending_bytes(), 0);
    file.update_region(0, b"zz").await.unwrap();
    file.flush_range(1, 1).await.unwrap();
    assert_eq!(file.pending_bytes(), 1);
    file.flush_async().await.unwrap();
    file.flush_range_async(0, 5).await.unwrap();
    // SAFETY: nothing reads the byte, which is inside the file.
    unsafe { *file.as_mut_ptr().unwrap() = b'y' };
    assert_eq!(file.pending_bytes(), 20_000);
    file.close().await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap()[..2], *b"yz");
});

rt_test!(sizes_and_copies, |dir| {
    let (path, file) = patterned(dir, 5000).await;
    let view = file.as_slice(0, 5000).unwrap();
    for size in [5001, 1 << 20, 5 << 20, 40 << 20] {
        file.resize(size).await.unwrap();
        assert_eq!(
            (file.len(), std::fs::metadata(&path).unwrap().len()),
            (size, size)
        );
        assert_eq!(view, &pattern(5000)[..]);
        file.update_region(size - 1, b"!").await.unwrap();
    }
    drop(view);
    file.resize(3000).await.unwrap();
    assert!(file.as_slice(2999, 2).is_err());
    file.resize(6000).await.unwrap();
    assert_eq!(file.as_slice(3000, 3000).unwrap(), &[0; 3000][..]);
    let copy = dir.join("copy");
    std::fs::write(&copy, vec![9; 9000]).unwrap();
    assert_eq!(file.copy_to(&copy).await.unwrap(), 6000);
    assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(&path).unwrap());
    mmap_io::copy_mmap(&path, dir.join("other")).await.unwrap();
    assert_eq!(
        std::fs::read(dir.join("other")).unwrap(),
        std::fs::read(&path).unwrap()
    );
    for target in [&path, &dir.join(".").join("data")] {
        let refused = file.copy_to(target).await;
        assert!(
            matches!(refused, Err(MmapIoError::Busy { .. })),
            "{refused:?}"
        );
    }
    let bytes = file.bytes(0, 1).unwrap();
    let clone = file.clone();
    let file = file.unmap().unwrap_err();
    drop(clone);
    let file = file.unmap().unwrap_err();
    drop(bytes);
    assert_eq!(file.unmap().unwrap().metadata().unwrap().len(), 6000);
});

rt_test!(many_tasks, |dir| {
    let file = Arc::new(
        MemoryMappedFile::create_rw(dir.join("data"), 64 * 100)
            .await
            .unwrap(),
    );
    let writes = (0..100_u64).map(|at| {
        let file = file.clone();
        async move {
            let data = [at as u8; 64];
            match at % 2 {
                0 => file.update_region(at * 64, &data).await,
                _ => file.update_region_async(at * 64, &data).await,
            }
        }
    });
    // All of them at once, on whatever thread polls.
    let mut writes: Vec<_> = writes.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        use std::task::Poll;
        writes.retain_mut(|write| match write.as_mut().poll(context) {
            Poll::Ready(result) => {
                result.unwrap();
                false
            }
            Poll::Pending => true,
        });
        if writes.is_empty() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    for (at, block) in std::fs::read(file.path()).unwrap().chunks(64).enumerate() {
        assert!(block.iter().all(|byte| *byte == at as u8));
    }
    wait_until(&file, is_quiet).await;
    assert_eq!(file.stats().updates, 100);
});

rt_test!(paths, |dir| {
    let path = dir.join("data");
    let file = mmap_io::create_mmap(&path, 5000).await.unwrap();
    mmap_io::update_region(&file, 0, b"first").await.unwrap();
    mmap_io::write_mmap(&path, 10, b"second").await.unwrap();
    assert_eq!(file.as_slice(0, 16).unwrap(), b"first\0\0\0\0\0second");
    assert_eq!(file.pending_bytes(), 11);
    mmap_io::flush(&file).await.unwrap();
    assert_eq!(file.pending_bytes(), 0);
    let busy = manager::create_mmap(&path, 10).await;
    assert!(matches!(busy, Err(MmapIoError::Busy { .. })), "{busy:?}");
    let copy = dir.join("copy");
    manager::copy_mmap(&path, &copy).await.unwrap();
    assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(&path).unwrap());
    file.close().await.unwrap();
    let read = mmap_io::load_mmap(&path, MmapMode::ReadOnly).await.unwrap();
    let refused = manager::update_region(&read, 0, b"x").await;
    assert!(matches!(refused, Err(MmapIoError::InvalidMode(_))));
    manager::flush(&read).await.unwrap();

    let small = dir.join("small");
    let made = manager::r#async::create_mmap_async(&small, 7).await;
    assert_eq!(made.unwrap().len(), 7);
    let other = dir.join("other");
    let copied = manager::r#async::copy_mmap_async(&small, &other).await;
    copied.unwrap();
    assert_eq!(std::fs::read(&other).unwrap(), [0; 7]);
    manager::r#async::delete_mmap_async(&small).await.unwrap();
    manager::delete_mmap(&other).await.unwrap();
    assert!(!small.exists() && !other.exists());
    let gone = mmap_io::delete_mmap(&other).await.unwrap_err();
    assert_eq!(gone.io_kind(), Some(std::io::ErrorKind::NotFound));
    assert_eq!(gone.raw_os_error(), Some(2));
});

rt_test!(builders, |dir| {
    let path = dir.join("data");
    let builder = || MemoryMappedFile::builder(&path);
    assert!(builder().open().await.is_err());
    let file = builder()
        .size(5000)
        .mode(MmapMode::ReadWrite)
        .flush_policy(FlushPolicy::Always)
        .touch_hint(TouchHint::Lazy)
        .write_buffer(64)
        .create()
        .await
        .unwrap();
    assert_eq!(
        (file.mode(), file.flush_policy(), file.len()),
        (MmapMode::ReadWrite, FlushPolicy::Always, 5000)
    );
    // A write that is larger than the buffer is admitted alone.
    file.update_region(100, &[7; 1000]).await.unwrap();
    assert_eq!((file.pending_bytes(), file.stats().flushes), (0, 1));
    file.write_bytes(0, Bytes::from_static(b"xy"))
        .await
        .unwrap();
    assert!(file.try_update_region(2, b"z").await.unwrap());
    file.as_slice_mut(3, 1).await.unwrap().fill(b'!');
    file.flush().await.unwrap();
    assert_eq!(file.pending_bytes(), 0);
    assert!(file.last_flush_error().is_none());

    let there = builder().size(1).create_new().await.unwrap_err();
    assert_eq!(there.io_kind(), Some(std::io::ErrorKind::AlreadyExists));
    let read_only = builder().mode(MmapMode::ReadOnly);
    let refused = read_only.clone().create_new().await;
    assert!(matches!(refused, Err(MmapIoError::InvalidMode(_))));
    for read in [
        builder().open().await.unwrap(),
        read_only.clone().create().await.unwrap(),
        read_only.open_or_create().await.unwrap(),
    ] {
        assert_eq!((read.mode(), read.len()), (MmapMode::ReadOnly, 5000));
        assert_eq!(read.slice(0, 4).await.unwrap(), b"xyz!");
        read.flush().await.unwrap();
        read.flush_range(4999, 1).await.unwrap();
        assert!(read.flush_range(4999, 2).await.is_err());
        assert!(read.resize(1).await.is_err());
        assert!(read.as_slice_mut(0, 1).await.is_err());
    }
    drop(file);
    let truncated = builder().size(10).preallocate(true).create().await.unwrap();
    assert_eq!(truncated.as_slice(0, 10).unwrap(), [0; 10]);
});

#[cfg(feature = "advise")]
rt_test!(advice, |dir| {
    use mmap_io::MmapAdvice::*;

    let (_, file) = patterned(dir, 100_000).await;
    for advice in [
        Normal, Random, Sequential, WillNeed, DontNeed, Cold, PageOut, HugePage, NoHugePage,
    ] {
        file.advise(5000, 10, advice).await.unwrap();
        file.advise(0, 100_000, advice).await.unwrap();
        file.advise(100_001, 0, advice).await.unwrap();
        assert!(file.advise(99_999, 2, advice).await.is_err());
        let (seen, expected) = (file.slice(0, 100_000).await, pattern(100_000));
        assert_eq!(seen.unwrap(), &expected[..], "{advice:?}");
    }
});

rt_test!(stats, |dir| {
    let (_, file) = patterned(dir, 100_000).await;
    // The first flush of a handle is of the whole file.
    file.flush().await.unwrap();
    assert!(is_quiet(&file.stats()));
    let (slice, bytes) = (file.as_slice(0, 10).unwrap(), file.bytes(5, 10).unwrap());
    assert_eq!(file.stats().views, 2);
    let mut write = Box::pin(file.update_region(0, &[1; 300]));
    assert!(common::poll_once(&mut write).await.is_none());
    wait_until(&file, |stats| stats.oldest_blocked.is_some()).await;
    let stats = file.stats();
    assert_eq!((stats.queued_writes, stats.queued_bytes), (1, 300));
    assert_eq!((stats.updates, stats.mapped_bytes), (0, 100_000));
    drop((slice, bytes));
    write.await.unwrap();
    wait_until(&file, is_quiet).await;
    let stats = file.stats();
    assert_eq!((stats.updates, stats.pending_bytes), (1, 300));
    assert_eq!((stats.flushes, stats.flushed_waiters), (1, 1));
    file.update_region_async(0, b"x").await.unwrap();
    let stats = file.stats();
    assert_eq!((stats.updates, stats.pending_bytes), (2, 299));
    assert_eq!((stats.flushes, stats.flushed_waiters), (2, 2));
    assert_eq!((stats.write_errors, stats.flush_errors), (0, 0));
    // One job may serve all of them.
    assert!(stats.pool_hops >= 1);
});

#[cfg(feature = "atomic")]
rt_test!(atomics, |dir| {
    use std::sync::atomic::{AtomicU64, Ordering};

    let (path, file) = patterned(dir, 5000).await;
    let word = file.atomic_u64(4096).unwrap();
    word.store(0, Ordering::Relaxed);
    // A view may be held across an await, and sent.
    let count = |word: &AtomicU64| {
        word.fetch_add(1, Ordering::Relaxed);
    };
    file.update_region(0, b"beside it").await.unwrap();
    count(&word);
    file.resize(3 << 20).await.unwrap();
    count(&word);
    let mut copy = [0; 9];
    file.read_into(4095, &mut copy).await.unwrap();
    assert_eq!(copy[1..], 2_u64.to_ne_bytes());
    let mut reader = file.reader_range(4096..4104).unwrap();
    let mut copy = [0; 8];
    futures_lite::AsyncReadExt::read_exact(&mut reader, &mut copy)
        .await
        .unwrap();
    assert_eq!(copy, 2_u64.to_ne_bytes());
    let mut write = Box::pin(file.update_region(4103, b"x"));
    assert!(common::poll_once(&mut write).await.is_none());
    let mut slice = Box::pin(file.slice(4096, 8));
    assert!(common::poll_once(&mut slice).await.is_none());
    drop(word);
    drop(slice.await.unwrap());
    write.await.unwrap();
    assert_eq!(file.as_slice(4103, 1).unwrap(), b"x");
    file.close().await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap()[..9], *b"beside it");

    let memory = AnonymousMmap::new(4096).unwrap();
    let (narrow, wide) = (
        memory.atomic_u32(0).unwrap(),
        memory.atomic_u64_slice(8, 2).unwrap(),
    );
    narrow.store(3, Ordering::Relaxed);
    wide[1].store(4, Ordering::Relaxed);
    assert!(memory.atomic_u32_slice(16, 1).is_err() && memory.atomic_u64(0).is_err());
    assert!(common::poll_once(memory.slice(0, 4)).await.is_none());
    let mut copy = [0; 24];
    memory.read_into(0, &mut copy).await.unwrap();
    assert_eq!(copy[..4], 3_u32.to_ne_bytes());
    assert_eq!(copy[16..], 4_u64.to_ne_bytes());
    drop((narrow, wide));
    assert_eq!(memory.stats().pending_bytes, 0);
    assert_eq!(memory.as_slice(16, 8).unwrap(), 4_u64.to_ne_bytes());
});

rt_test!(memory, |dir| {
    let memory = AnonymousMmap::new(100_000).unwrap();
    assert_eq!((memory.len(), memory.is_empty()), (100_000, false));
    assert_eq!(memory.slice(0, 100_000).await.unwrap(), [0; 100_000]);
    memory.update_region(1, b"one").await.unwrap();
    memory
        .update_regions(&[(50_000, b"two"), (99_997, b"end")])
        .await
        .unwrap();
    let large = Bytes::from(vec![3; 20_000]);
    memory.write_bytes(60_000, large).await.unwrap();
    let from_itself = memory.bytes(60_000, 10_000).unwrap();
    memory.write_bytes(65_000, from_itself).await.unwrap();
    let view = memory.clone().read_bytes(0, 5).await.unwrap();
    assert!(!memory.try_update_region(4, b"x").await.unwrap());
    assert!(memory.try_as_slice_mut(0, 1).unwrap().is_none());
    memory.as_slice_mut(10, 3).await.unwrap().fill(1);
    memory.as_mut_slice(20, 3).await.unwrap().fill(2);
    // Nothing to flush, and no error for it.
    let committed = memory.as_slice_mut(30, 3).await.unwrap().commit();
    committed.await.unwrap();
    let stats = memory.stats();
    assert_eq!((stats.pending_bytes, stats.mapped_bytes), (0, 100_000));
    assert!(memory.try_as_slice(100_000, 1).is_err());
    assert!(memory.update_region(99_999, b"xx").await.is_err());
    let mut expected = vec![0; 100_000];
    for (at, data) in [(1, &b"one"[..]), (50_000, b"two"), (99_997, b"end")] {
        expected[at..at + 3].copy_from_slice(data);
    }
    expected[60_000..80_000].fill(3);
    expected[10..13].fill(1);
    expected[20..23].fill(2);
    let mut buffer = vec![9; 100_000];
    memory.read_into(0, &mut buffer).await.unwrap();
    assert!(buffer == expected);
    assert!(matches!(
        AnonymousMmap::new(0),
        Err(MmapIoError::ResizeFailed(_))
    ));
    drop(memory);
    assert_eq!(view, &expected[..5]);
    assert!(dir.read_dir().unwrap().next().is_none());
});

rt_test!(every_operation, |dir| {
    for operation in operations() {
        let fixture = Fixture::new(dir).await;
        // And again, over what the first has left.
        for _ in 0..2 {
            let result = (operation.run)(&fixture).await;
            assert!(result.is_ok(), "{}: {result:?}", operation.name);
        }
        fixture.settled().await;
        fixture.written();
    }
});

#[test]
fn slices_compare_and_print_as_bytes() {
    let dir = tempfile::tempdir().unwrap();
    common::block_on(async {
        let (path, file) = patterned(dir.path(), 100).await;
        let mut view = file.as_slice_mut(50, 3).await.unwrap();
        view.as_mut().copy_from_slice(b"abc");
        assert_eq!(view.as_ref(), b"abc");
        assert_eq!(&view[1..], b"bc");
        assert!(format!("{view:?}").contains("50"));
        drop(view);
        let slice = file.as_slice(50, 3).unwrap();
        assert_eq!(slice, *b"abc");
        assert_eq!(slice, b"abc");
        assert_eq!(slice, b"abc"[..]);
        assert_eq!(slice, &b"abc"[..]);
        assert_eq!(slice, file.slice(50, 3).await.unwrap());
        assert_ne!(slice, file.as_slice(51, 3).unwrap());
        assert_eq!(slice.as_ref().len(), 3);
        assert!(format!("{slice:?}").contains('3'));
        let shown = format!("{file:?}");
        let words = [path.to_str().unwrap(), "ReadWrite", "100"];
        assert!(words.iter().all(|word| shown.contains(word)), "{shown}");
    });
}

rt_test!(path_and_metadata_follow_the_file, |dir| {
    let path = dir.join("data");
    let file = mmap_io::create_mmap(&path, 100).await.unwrap();
    let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
    for handle in [&file, &reader] {
        assert!(handle.is_at_path().await.unwrap());
        assert_eq!(handle.metadata().await.unwrap().len(), 100);
    }
    file.resize(5000).await.unwrap();
    assert_eq!(reader.metadata().await.unwrap().len(), 5000);
    // Moved away, replaced, and gone.
    let elsewhere = dir.join("elsewhere");
    std::fs::rename(&path, &elsewhere).unwrap();
    assert!(!file.is_at_path().await.unwrap());
    std::fs::write(&path, b"another file").unwrap();
    assert!(!reader.is_at_path().await.unwrap());
    std::fs::rename(&elsewhere, &path).unwrap();
    assert!(file.is_at_path().await.unwrap());
    std::fs::remove_file(&path).unwrap();
    assert!(!file.is_at_path().await.unwrap());
    // A file where its directory was is not the file.
    let inner = dir.join("inner");
    std::fs::create_dir(&inner).unwrap();
    let lost = mmap_io::create_mmap(inner.join("data"), 100).await.unwrap();
    std::fs::remove_dir_all(&inner).unwrap();
    std::fs::write(&inner, b"a file").unwrap();
    assert!(!lost.is_at_path().await.unwrap());
    assert_eq!(file.metadata().await.unwrap().len(), 5000);
    file.update_region(0, b"lives on").await.unwrap();
});
