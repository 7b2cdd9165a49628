//! What copy-on-write handles answer: how they are opened, what the read-only kind refuses, and
//! what the writable kind does, none of which reaches the file.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use mmap_io::{
    copy_mmap, load_mmap, FlushPolicy, MemoryMappedFile, MmapIoError, MmapMode, Result, TouchHint,
};

use crate::common::{block_on, pattern, rt_test};

const LEN: u64 = 20_000;

fn file_in(dir: &Path) -> PathBuf {
    let path = dir.join("data");
    fs::write(&path, pattern(LEN as usize)).unwrap();
    path
}

fn is_invalid<T>(result: Result<T>) -> bool {
    matches!(result, Err(MmapIoError::InvalidMode(_)))
}

fn is_out<T>(result: Result<T>) -> bool {
    matches!(result, Err(MmapIoError::OutOfBounds { total: LEN, .. }))
}

rt_test!(private_writes_never_reach_the_file, |dir| {
    let path = file_in(dir);
    let private = MemoryMappedFile::open_cow_writable(&path).await.unwrap();
    let clone = private.clone();
    let other = MemoryMappedFile::open_cow_writable(&path).await.unwrap();
    let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
    let mut expected = pattern(LEN as usize);
    let mut expect =
        |at: usize, bytes: &[u8]| expected[at..at + bytes.len()].copy_from_slice(bytes);

    private.update_region(10, b"update").await.unwrap();
    expect(10, b"update");
    private.update_region_async(100, b"durable").await.unwrap();
    expect(100, b"durable");
    let regions: [(u64, &[u8]); 2] = [(200, b"first"), (9_000, b"second")];
    private.update_regions(&regions).await.unwrap();
    private.update_regions_async(&regions).await.unwrap();
    expect(200, b"first");
    expect(9_000, b"second");
    let large = vec![7; 9_000];
    private
        .write_bytes(10_000, Bytes::from(large.clone()))
        .await
        .unwrap();
    private
        .write_bytes_async(10_000, Bytes::from(large.clone()))
        .await
        .unwrap();
    expect(10_000, &large);
    // From its own mapping.
    let own = private.bytes(9_000, 6).unwrap();
    private.write_bytes(9_003, own).await.unwrap();
    expect(9_003, b"second");
    assert!(private.try_update_region(300, b"tried").await.unwrap());
    expect(300, b"tried");
    let mut view = private.as_slice_mut(400, 4).await.unwrap();
    view.copy_from_slice(b"view");
    view.commit().await.unwrap();
    expect(400, b"view");
    private
        .try_as_slice_mut(500, 4)
        .unwrap()
        .unwrap()
        .copy_from_slice(b"view");
    expect(500, b"view");
    // SAFETY: no view and no operation is under way, and the store is inside the file.
    unsafe { private.as_mut_ptr().unwrap().add(600).write(b'p') };
    expect(600, b"p");
    mmap_io::update_region(&private, 700, b"free")
        .await
        .unwrap();
    expect(700, b"free");

    for handle in [&private, &clone] {
        assert_eq!(handle.slice(0, LEN).await.unwrap(), expected[..]);
        let mut copied = vec![0; LEN as usize];
        handle.read_into(0, &mut copied).await.unwrap();
        assert!(copied == expected);
    }
    for handle in [&other, &reader] {
        assert_eq!(
            handle.slice(0, LEN).await.unwrap(),
            pattern(LEN as usize)[..]
        );
    }
    private.flush().await.unwrap();
    assert_eq!(private.pending_bytes(), 0);
    private.evict(0, LEN).await.unwrap();
    assert_eq!(private.as_slice(0, LEN).unwrap(), expected[..]);
    assert_eq!(fs::read(&path).unwrap(), pattern(LEN as usize));

    // A copy is of what the handle shows, and of nothing else.
    let copy = dir.join("copy");
    assert_eq!(private.copy_to(&copy).await.unwrap(), LEN);
    assert!(fs::read(&copy).unwrap() == expected);
    copy_mmap(&path, &copy).await.unwrap();
    assert_eq!(fs::read(&copy).unwrap(), pattern(LEN as usize));

    // The pages live as long as their `Bytes`.
    let bytes = private.bytes(0, LEN).unwrap();
    drop((private, clone));
    assert!(bytes == expected);
});

rt_test!(every_opening_takes_the_mode, |dir| {
    let path = file_in(dir);
    let mode = MmapMode::CopyOnWrite;
    let builder = || MemoryMappedFile::builder(&path).mode(mode).size(10);
    let read_only = fs::File::open(&path).unwrap();
    let opened = [
        MemoryMappedFile::open_cow(&path).await,
        builder().open().await,
        builder().create().await,
        builder().open_or_create().await,
        builder()
            .cow_writable(false)
            .touch_hint(TouchHint::Eager)
            .open()
            .await,
        load_mmap(&path, mode).await,
        MemoryMappedFile::from_file(read_only, mode, &path).await,
    ];
    for file in opened {
        let file = file.unwrap();
        assert_eq!(
            (file.mode(), file.is_cow_writable(), file.len()),
            (mode, false, LEN)
        );
        assert_eq!(file.as_slice_bytes(0, LEN).unwrap(), pattern(LEN as usize));
    }
    let writable = || builder().cow_writable(true);
    let opened = [
        MemoryMappedFile::open_cow_writable(&path).await,
        writable().open().await,
        writable().create().await,
        writable()
            .flush_policy(FlushPolicy::Always)
            .open_or_create()
            .await,
        writable()
            .touch_hint(TouchHint::Eager)
            .write_buffer(100)
            .open()
            .await,
    ];
    for file in opened {
        let file = file.unwrap();
        assert_eq!(
            (file.mode(), file.is_cow_writable(), file.len()),
            (mode, true, LEN)
        );
        assert_eq!(file.flush_policy(), FlushPolicy::Never);
        file.update_region(0, b"private").await.unwrap();
        assert!(file.is_at_path().await.unwrap());
        assert_eq!(file.metadata().await.unwrap().len(), LEN);
    }
    assert!(is_invalid(builder().create_new().await));
    assert!(is_invalid(writable().create_new().await));
    for mode in [MmapMode::ReadOnly, MmapMode::ReadWrite] {
        let builder = MemoryMappedFile::builder(&path).mode(mode);
        assert!(!builder
            .cow_writable(true)
            .open()
            .await
            .unwrap()
            .is_cow_writable());
    }

    let missing = dir.join("missing");
    let empty = dir.join("empty");
    fs::write(&empty, b"").unwrap();
    for writable in [false, true] {
        let builder = |path| {
            let builder = MemoryMappedFile::builder(path).mode(mode).size(10);
            builder.cow_writable(writable)
        };
        let refused = builder(&missing).open_or_create().await;
        assert!(matches!(refused, Err(MmapIoError::Io(_))));
        assert!(!missing.exists());
        for refused in [builder(&empty).open().await, builder(&empty).create().await] {
            assert!(matches!(refused, Err(MmapIoError::ResizeFailed(_))));
        }
        let directory = builder(&dir.to_path_buf()).open().await;
        assert!(matches!(directory, Err(MmapIoError::Io(_))));
    }
    assert_eq!(fs::read(&path).unwrap(), pattern(LEN as usize));
});

#[test]
fn read_only_kind_refuses_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = file_in(dir.path());
    block_on(async {
        let file = MemoryMappedFile::open_cow(&path).await.unwrap();
        for at in [0, LEN - 1, u64::MAX] {
            assert!(is_invalid(file.update_region(at, b"x").await));
            assert!(is_invalid(file.update_region_async(at, b"x").await));
            assert!(is_invalid(file.update_regions(&[(at, b"x")]).await));
            assert!(is_invalid(
                file.write_bytes(at, Bytes::from_static(b"x")).await
            ));
            assert!(is_invalid(file.try_update_region(at, b"x").await));
            assert!(is_invalid(file.as_slice_mut(at, 1).await));
            assert!(is_invalid(file.try_as_slice_mut(at, 1)));
            file.update_region(at, b"").await.unwrap();
            assert_eq!(file.as_slice_mut(at, 0).await.unwrap().len(), 0);
        }
        // SAFETY: no pointer is returned.
        assert!(is_invalid(unsafe { file.as_mut_ptr() }));
        assert!(is_invalid(file.resize(10).await) && is_invalid(file.grow_to(LEN + 1).await));

        // Slices for the life of the handle, which other handles of the mode do not mind.
        let all = file.as_slice_bytes(0, LEN).unwrap();
        let some = file.as_slice_bytes(100, 5_000).unwrap();
        let private = MemoryMappedFile::open_cow_writable(&path).await.unwrap();
        private.update_region(50, &[1; 9_000]).await.unwrap();
        assert_eq!(all, pattern(LEN as usize));
        assert_eq!(some, &pattern(LEN as usize)[100..5_100]);
        // It follows the file, as a reader does.
        let writer = MemoryMappedFile::open_rw(&path).await.unwrap();
        assert!(!writer.try_update_region(150, b"x").await.unwrap());
        writer.resize(2 * LEN).await.unwrap();
        assert_eq!(file.len(), 2 * LEN);
    });
}

#[test]
fn writable_kind_checks_like_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = file_in(dir.path());
    block_on(async {
        let file = MemoryMappedFile::open_cow_writable(&path).await.unwrap();
        assert!(is_out(file.update_region(LEN, b"x").await));
        assert!(is_out(file.update_region(u64::MAX, b"xx").await));
        assert!(is_out(
            file.update_regions(&[(0, b"x"), (LEN - 1, b"xx")]).await
        ));
        assert!(is_out(file.as_slice_mut(LEN - 1, 2).await));
        assert!(is_out(file.try_as_slice_mut(LEN, 1)));
        assert!(is_out(file.as_slice(LEN - 1, 2)) && is_out(file.slice(LEN - 1, 2).await));
        assert!(is_out(file.try_as_slice(u64::MAX, 1)) && is_out(file.bytes(0, LEN + 1)));
        assert!(is_invalid(file.as_slice_bytes(0, 1)));
        assert_eq!(file.as_slice_bytes(u64::MAX, 0).unwrap(), b"");
        for size in [0, 10, LEN, 2 * LEN] {
            assert!(is_invalid(file.resize(size).await) && is_invalid(file.grow_to(size).await));
        }
        // Nothing to flush; ranges are checked all the same.
        file.update_region(LEN - 4, b"last").await.unwrap();
        file.flush_range(0, LEN).await.unwrap();
        file.flush_range_async(u64::MAX, 0).await.unwrap();
        file.schedule_flush().await.unwrap();
        file.schedule_flush_range(5, LEN - 5).await.unwrap();
        assert!(is_out(file.flush_range(0, LEN + 1).await));
        assert!(is_out(file.schedule_flush_range(LEN, 1).await));
        assert!(is_out(file.evict(1, LEN).await));
        file.touch_pages().await.unwrap();
        file.prefetch_range(0, LEN).await.unwrap();
        assert_eq!((file.pending_bytes(), file.stats().flushes), (0, 0));
        assert!(file.last_flush_error().is_none());
        assert_eq!(file.as_slice(LEN - 4, 4).unwrap(), b"last");
        let kept = file.unmap().unwrap();
        assert_eq!(kept.metadata().unwrap().len(), LEN);
    });
    assert_eq!(fs::read(&path).unwrap(), pattern(LEN as usize));
}

#[test]
#[cfg(feature = "iterator")]
fn readers_see_private_pages() {
    use futures_lite::{AsyncBufReadExt, AsyncReadExt, StreamExt};

    let dir = tempfile::tempdir().unwrap();
    let path = file_in(dir.path());
    block_on(async {
        let file = MemoryMappedFile::open_cow_writable(&path).await.unwrap();
        let mut expected = pattern(LEN as usize);
        expected[5_000..5_100].fill(b'!');
        file.update_region(5_000, &[b'!'; 100]).await.unwrap();
        let chunks: Result<Vec<_>> = file.chunks(3_000).collect();
        let chunks = chunks.unwrap();
        assert!(chunks.iter().flat_map(|chunk| chunk.iter()).eq(&expected));
        drop(chunks);
        let mut streamed = Vec::new();
        let mut stream = file.stream(.., 3_000).unwrap();
        while let Some(bytes) = stream.next().await {
            streamed.extend_from_slice(&bytes.unwrap());
        }
        assert!(streamed == expected);
        let mut reader = file.reader();
        let mut read = Vec::new();
        reader.read_to_end(&mut read).await.unwrap();
        assert!(read == expected);
        // What it has buffered blocks no write.
        reader.set_position(0);
        assert_eq!(reader.fill_buf().await.unwrap()[0], 0);
        assert!(file.try_update_region(0, b"x").await.unwrap());
    });
}

#[test]
#[cfg_attr(windows, ignore = "on Windows the advice does nothing")]
#[cfg(feature = "advise")]
fn dont_need_shows_the_file_again() {
    use mmap_io::MmapAdvice;

    let dir = tempfile::tempdir().unwrap();
    let path = file_in(dir.path());
    let page = mmap_io::utils::page_size() as u64;
    block_on(async {
        let file = MemoryMappedFile::open_cow_writable(&path).await.unwrap();
        file.update_region(0, &vec![1; 2 * page as usize])
            .await
            .unwrap();
        let discard = |at, len| file.advise(at, len, MmapAdvice::DontNeed);
        let is_busy = |result| matches!(result, Err(MmapIoError::Busy { .. }));
        // The page of the range counts, and so does every view of it.
        let slice = file.as_slice(page - 1, 1).unwrap();
        assert!(is_busy(discard(0, 1).await));
        drop(slice);
        let bytes = file.bytes(10, 1).unwrap();
        assert!(is_busy(discard(100, page).await));
        drop(bytes);
        let view = file.as_slice_mut(0, 10).await.unwrap();
        assert!(is_busy(discard(5_000 % page, 1).await));
        drop(view);
        for advice in [MmapAdvice::WillNeed, MmapAdvice::Cold, MmapAdvice::PageOut] {
            let slice = file.as_slice(0, 10).unwrap();
            file.advise(0, LEN, advice).await.unwrap();
            assert_eq!(slice, [1; 10]);
        }
        assert!(is_out(discard(LEN, 1).await));
        discard(u64::MAX, 0).await.unwrap();
        let beside = file.as_slice(page, 1).unwrap();
        discard(page - 1, 1).await.unwrap();
        assert_eq!(file.as_slice(0, page).unwrap(), pattern(page as usize)[..]);
        assert_eq!(beside, [1]);
        drop(beside);
        discard(0, LEN).await.unwrap();
        assert_eq!(file.slice(0, LEN).await.unwrap(), pattern(LEN as usize)[..]);

        // The file's own pages are there again in any case, and no view notices.
        let reader = MemoryMappedFile::open_cow(&path).await.unwrap();
        let slice = reader.as_slice(0, LEN).unwrap();
        reader.advise(0, LEN, MmapAdvice::DontNeed).await.unwrap();
        assert_eq!(slice, pattern(LEN as usize)[..]);
        drop(slice);
        // Of the file itself a view may be held, and then shows up in the pages.
        file.update_region(0, b"x").await.unwrap();
        let writer = MemoryMappedFile::open_rw(&path).await.unwrap();
        let mut view = writer.as_slice_mut(0, 10).await.unwrap();
        view.fill(9);
        discard(0, 1).await.unwrap();
        drop(view);
        assert_eq!(file.as_slice(0, 10).unwrap(), [9; 10]);
    });
}

#[test]
#[cfg(target_os = "linux")]
fn copy_keeps_holes() {
    use std::os::unix::fs::MetadataExt;

    let dir = crate::common::on_a_disk();
    let path = dir.path().join("sparse");
    fs::File::create(&path).unwrap().set_len(8 << 20).unwrap();
    block_on(async {
        let file = MemoryMappedFile::open_cow_writable(&path).await.unwrap();
        file.update_region(5 << 20, b"private").await.unwrap();
        let copy = dir.path().join("copy");
        file.copy_to(&copy).await.unwrap();
        let copied = fs::read(&copy).unwrap();
        assert_eq!(&copied[5 << 20..][..7], b"private");
        assert_eq!(copied.iter().filter(|byte| **byte != 0).count(), 7);
        assert!(fs::metadata(&copy).unwrap().blocks() * 512 < 1 << 20);
        // Not even a block of the file was allocated.
        assert_eq!(fs::metadata(&path).unwrap().blocks(), 0);
    });
}

#[test]
#[cfg(target_os = "linux")]
fn cold_pages_are_read_on_the_pool() {
    use std::os::fd::AsRawFd;

    let dir = crate::common::on_a_disk();
    let path = file_in(dir.path());
    block_on(async {
        let file = MemoryMappedFile::open_cow_writable(&path).await.unwrap();
        let plain = fs::File::open(&path).unwrap();
        plain.sync_all().unwrap();
        // SAFETY: the descriptor is open.
        let evicted =
            unsafe { libc::posix_fadvise(plain.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        assert_eq!(evicted, 0);
        let slice = file.slice(0, LEN).await.unwrap();
        assert_eq!(slice, pattern(LEN as usize)[..]);
        let misses = file.stats().resident_misses;
        if misses == 0 {
            crate::common::skip(
                "cold_pages_are_read_on_the_pool",
                "the system kept the pages",
            );
            return;
        }
        drop(slice);
        // Now they are there: no hop.
        let hops = file.stats().pool_hops;
        drop(file.slice(0, LEN).await.unwrap());
        assert_eq!(
            (file.stats().resident_misses, file.stats().pool_hops),
            (misses, hops)
        );
    });
}

#[cfg(feature = "locking")]
#[test]
fn private_pages_cannot_be_locked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    std::fs::write(&path, [7; 5000]).unwrap();
    crate::common::block_on(async {
        let shared = MemoryMappedFile::open_cow(&path).await.unwrap();
        shared.lock(0, 100).await.unwrap();
        shared.unlock(0, 100).await.unwrap();
        let private = MemoryMappedFile::open_cow_writable(&path).await.unwrap();
        let refused = private.lock(0, 100).await;
        assert!(matches!(refused, Err(mmap_io::MmapIoError::InvalidMode(_))));
        let refused = private.lock_all().await;
        assert!(matches!(refused, Err(mmap_io::MmapIoError::InvalidMode(_))));
    });
}

#[cfg(feature = "iterator")]
#[test]
fn chunks_of_private_pages_change_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    std::fs::write(&path, [7; 10_000]).unwrap();
    crate::common::block_on(async {
        let private = MemoryMappedFile::open_cow_writable(&path).await.unwrap();
        let chunks = private.chunks_mut(3000);
        chunks
            .for_each_mut(|offset, chunk| {
                chunk.fill(offset as u8);
                Ok(())
            })
            .await
            .unwrap();
        assert_eq!(
            private.as_slice(3000, 3000).unwrap(),
            [3000_u64 as u8; 3000][..]
        );
        assert_eq!(private.pending_bytes(), 0);
        let shared = MemoryMappedFile::open_cow(&path).await.unwrap();
        let refused = shared.chunks_mut(3000).for_each_mut(|_, _| Ok(())).await;
        assert!(matches!(refused, Err(mmap_io::MmapIoError::InvalidMode(_))));
    });
    assert_eq!(std::fs::read(&path).unwrap(), [7; 10_000]);
}

#[cfg(feature = "atomic")]
#[test]
fn words_of_private_pages_are_private() {
    use std::sync::atomic::Ordering;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    std::fs::write(&path, [0; 10_000]).unwrap();
    crate::common::block_on(async {
        let file = MemoryMappedFile::open_rw(&path).await.unwrap();
        let private = MemoryMappedFile::open_cow_writable(&path).await.unwrap();
        let word = private.atomic_u64(4096).unwrap();
        word.fetch_add(7, Ordering::Relaxed);
        // Copies see it, plain views do not go with it, and a write to the page of the file waits.
        let mut copy = [0; 8];
        private.read_into(4096, &mut copy).await.unwrap();
        assert_eq!(u64::from_ne_bytes(copy), 7);
        assert!(private.as_slice(4096, 8).is_err());
        assert!(!file.try_update_region(5000, b"x").await.unwrap());
        assert!(file.try_update_region(0, b"x").await.unwrap());
        drop(word);
        assert!(file.try_update_region(5000, b"x").await.unwrap());
        assert_eq!(private.pending_bytes(), 0);
        assert_eq!(private.as_slice(4096, 1).unwrap(), [7_u64.to_ne_bytes()[0]]);
        assert_eq!(file.as_slice(4096, 8).unwrap(), [0; 8]);
        // While the file's own word is in atomic use, private pages wait.
        let word = file.atomic_u32(100).unwrap();
        assert!(private.as_slice(100, 4).is_err());
        drop(word);
        assert_eq!(private.as_slice(100, 4).unwrap(), [0; 4]);
        let shared = MemoryMappedFile::open_cow(&path).await.unwrap();
        let refused = shared.atomic_u32(0).map(drop);
        assert!(matches!(refused, Err(mmap_io::MmapIoError::InvalidMode(_))));
    });
}
