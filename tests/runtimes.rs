//! Every operation under every runtime, checked against plain reads of the file.

mod common;

use std::future::Future;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use bytes::Bytes;
use common::{is_quiet, pattern, patterned, rt_test, until};
use mmap_io::{FlushPolicy, MemoryMappedFile, MmapIoError, MmapMode, TouchHint};

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
    // SAFETY: nobody writes, and the byte is inside the file.
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
    // SAFETY: nobody looks at the byte, which is inside the file.
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
    until(&file, is_quiet).await;
    assert_eq!(file.stats().updates, 100);
});

#[test]
fn futures_and_types_are_what_they_should_be() {
    fn send<T: Send>(_: &T) {}
    fn spawnable<T: Send + 'static>(_: T) {}
    fn shared<T: Send + Sync>() {}
    shared::<MemoryMappedFile>();
    shared::<mmap_io::MappedSlice<'static>>();
    shared::<mmap_io::MappedSliceMut<'static>>();
    shared::<MmapIoError>();
    shared::<mmap_io::MemoryMappedFileBuilder>();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    common::alone(async {
        let file = MemoryMappedFile::create_rw(&path, 100).await.unwrap();
        spawnable(file.flush());
        spawnable(file.flush_range(0, 1));
        spawnable(file.resize(10));
        spawnable(file.write_bytes(0, Bytes::new()));
        spawnable(file.read_bytes(0, 1));
        spawnable(file.touch_pages());
        spawnable(file.copy_to("x"));
        spawnable(MemoryMappedFile::open_ro(&path));
        spawnable(file.clone().close());
        send(&file.slice(0, 1));
        send(&file.update_region(0, b"x"));
        send(&file.update_regions(&[(0, b"x")]));
        send(&file.as_slice_mut(0, 1));
        send(&file.read_into(0, &mut []));
        send(&mmap_io::write_mmap(&path, 0, b"x"));
    });
}
