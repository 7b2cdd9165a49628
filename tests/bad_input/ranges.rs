//! Ranges outside the file, ranges of no bytes, and lengths that a file cannot have.

use std::fs::{self, File};

use mmap_io::utils::{align_up, ensure_in_bounds, page_size, slice_range};
use mmap_io::{AnonymousMmap, MemoryMappedFile, MmapIoError, MmapMode, Result, TouchHint};

use super::{Before, TOO_LARGE};
use crate::common::{block_on, pattern, patterned};
use crate::{assert_error, assert_kind};

#[test]
fn ranges_outside_file_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let before = Before::new(&path, &file);
        let outside = |(offset, len): (u64, u64), result: Result<()>| {
            let error = result.unwrap_err();
            let told = match error {
                MmapIoError::OutOfBounds { offset, len, total } => (offset, len, total),
                error => panic!("{error:?}"),
            };
            assert_eq!(told, (offset, len, 1000));
            let message = error.to_string();
            for number in [offset, len, 1000] {
                assert!(message.contains(&number.to_string()), "{message}");
            }
            assert_eq!((error.io_kind(), error.raw_os_error()), (None, None));
        };
        for range @ (offset, len) in [
            (1000, 1),
            (999, 2),
            (0, 1001),
            (5000, 1),
            (u64::MAX, 1),
            (u64::MAX, 2),
            (1, u64::MAX),
            (u64::MAX, u64::MAX),
            (1 << 63, 1 << 63),
            (200 << 40, 1),
        ] {
            for file in [&file, &reader] {
                outside(range, file.as_slice(offset, len).map(drop));
                outside(range, file.try_as_slice(offset, len).map(drop));
                outside(range, file.slice(offset, len).await.map(drop));
                outside(range, file.bytes(offset, len).map(drop));
                outside(range, file.read_bytes(offset, len).await.map(drop));
                outside(range, file.flush_range(offset, len).await);
                outside(range, file.flush_range_async(offset, len).await);
                outside(range, file.touch_pages_range(offset, len).await);
                outside(range, file.prefetch_range(offset, len).await);
                #[cfg(feature = "advise")]
                for advice in [mmap_io::MmapAdvice::Normal, mmap_io::MmapAdvice::DontNeed] {
                    outside(range, file.advise(offset, len, advice).await);
                }
                #[cfg(feature = "locking")]
                {
                    outside(range, file.lock(offset, len).await);
                    outside(range, file.unlock(offset, len).await);
                }
            }
            outside(range, reader.as_slice_bytes(offset, len).map(drop));
            outside(range, file.as_slice_mut(offset, len).await.map(drop));
            outside(range, file.try_as_slice_mut(offset, len).map(drop));
        }
        let data = [7; 3];
        for offset in [998, 1000, 5000, u64::MAX - 2, u64::MAX, 200 << 40] {
            let range = (offset, 3);
            outside(range, file.update_region(offset, &data).await);
            outside(range, file.update_region_async(offset, &data).await);
            outside(range, file.try_update_region(offset, &data).await.map(drop));
            let bytes = || data.to_vec().into();
            outside(range, file.write_bytes(offset, bytes()).await);
            outside(range, file.write_bytes_async(offset, bytes()).await);
            outside(range, mmap_io::update_region(&file, offset, &data).await);
            let second = [(0, &data[..]), (offset, &data[..])];
            outside(range, file.update_regions(&second).await);
            outside(range, file.update_regions_async(&second).await);
            let mut buffer = *b"as";
            let range = (offset, 2);
            if offset > 998 {
                outside(range, file.read_into(offset, &mut buffer).await);
                outside(range, reader.read_into(offset, &mut buffer).await);
            }
            assert_eq!(&buffer, b"as");
        }
        before.assert_unchanged(&file);
        outside((1000, 1), mmap_io::write_mmap(&path, 1000, b"x").await);
        assert!(fs::read(&path).unwrap() == pattern(1000));
    });
}

#[test]
fn empty_range_is_valid_at_any_offset() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let empty_path = dir.path().join("empty");
        fs::write(&empty_path, b"").unwrap();
        let empty = MemoryMappedFile::open_ro(&empty_path).await.unwrap();
        // Not even a view of the whole file blocks them.
        let view = file.bytes(0, 1000).unwrap();
        for (path, file) in [(&path, &file), (&path, &reader), (&empty_path, &empty)] {
            let before = Before::new(path, file);
            for offset in [0, 500, 1000, 1001, u64::MAX] {
                assert!(file.as_slice(offset, 0).unwrap().is_empty());
                assert!(file.try_as_slice(offset, 0).unwrap().unwrap().is_empty());
                assert!(file.as_slice_bytes(offset, 0).unwrap().is_empty());
                assert!(file.slice(offset, 0).await.unwrap().is_empty());
                assert!(file.bytes(offset, 0).unwrap().is_empty());
                assert!(file.read_bytes(offset, 0).await.unwrap().is_empty());
                file.read_into(offset, &mut []).await.unwrap();
                file.update_region(offset, b"").await.unwrap();
                file.update_region_async(offset, b"").await.unwrap();
                let regions: [(u64, &[u8]); 2] = [(offset, b""), (0, b"")];
                file.update_regions(&regions).await.unwrap();
                file.update_regions_async(&regions).await.unwrap();
                file.write_bytes(offset, Vec::new().into()).await.unwrap();
                file.write_bytes_async(offset, Vec::new().into())
                    .await
                    .unwrap();
                assert!(file.try_update_region(offset, b"").await.unwrap());
                let mut view = file.as_slice_mut(offset, 0).await.unwrap();
                assert!(view.is_empty() && view.as_mut().is_empty());
                view.commit().await.unwrap();
                let view = file.try_as_slice_mut(offset, 0).unwrap();
                assert!(view.unwrap().is_empty());
                file.flush_range(offset, 0).await.unwrap();
                file.flush_range_async(offset, 0).await.unwrap();
                file.touch_pages_range(offset, 0).await.unwrap();
                file.prefetch_range(offset, 0).await.unwrap();
                #[cfg(feature = "advise")]
                file.advise(offset, 0, mmap_io::MmapAdvice::DontNeed)
                    .await
                    .unwrap();
                #[cfg(feature = "locking")]
                {
                    file.lock(offset, 0).await.unwrap();
                    file.unlock(offset, 0).await.unwrap();
                }
            }
            file.update_regions(&[]).await.unwrap();
            file.update_regions_async(&[]).await.unwrap();
            before.assert_unchanged(file);
        }
        drop(view);
        // Beside some bytes, those count.
        file.update_regions(&[(u64::MAX, b""), (0, b"x")])
            .await
            .unwrap();
        assert_eq!(file.as_slice(0, 1).unwrap(), b"x");
    });
}

#[test]
fn empty_views_are_page_aligned() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let anonymous = AnonymousMmap::new(1000).unwrap();
        let assert_aligned = |view: &[u8]| assert_eq!(view.as_ptr() as usize % (64 << 10), 0);
        for offset in [0, 7, 1000, 2000] {
            for file in [&file, &reader] {
                assert_aligned(&file.as_slice(offset, 0).unwrap());
                assert_aligned(&file.try_as_slice(offset, 0).unwrap().unwrap());
                assert_aligned(&file.slice(offset, 0).await.unwrap());
                assert_aligned(&file.bytes(offset, 0).unwrap());
                assert_aligned(&file.read_bytes(offset, 0).await.unwrap());
            }
            assert_aligned(reader.as_slice_bytes(offset, 0).unwrap());
            assert_aligned(&file.as_slice_mut(offset, 0).await.unwrap());
            assert_aligned(&file.try_as_slice_mut(offset, 0).unwrap().unwrap());
            assert_aligned(&anonymous.as_slice(offset, 0).unwrap());
        }
    });
}

#[test]
fn empty_file_needs_a_first_length() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty");
    fs::write(&path, b"").unwrap();
    block_on(async {
        let file = MemoryMappedFile::open_ro(&path).await.unwrap();
        assert!(file.is_empty());
        assert_eq!(file.current_len().unwrap(), 0);
        assert_error!(
            file.as_slice(0, 1),
            MmapIoError::OutOfBounds {
                offset: 0,
                len: 1,
                total: 0
            }
        );
        assert_error!(file.slice(0, 1).await, MmapIoError::OutOfBounds { .. });
        file.touch_pages().await.unwrap();
        file.flush().await.unwrap();
        let copy = dir.path().join("copy");
        assert_eq!(file.copy_to(&copy).await.unwrap(), 0);
        assert_eq!(fs::read(&copy).unwrap(), b"");
        let eager = MemoryMappedFile::builder(&path).touch_hint(TouchHint::Eager);
        assert!(eager.open().await.unwrap().is_empty());

        // A writable mapping needs at least one byte, whether the file is open already or not.
        for keep_open in [true, false] {
            let _open = keep_open.then(|| file.clone());
            let writable = || MemoryMappedFile::builder(&path).mode(MmapMode::ReadWrite);
            assert_error!(
                MemoryMappedFile::open_rw(&path).await,
                MmapIoError::ResizeFailed(_)
            );
            assert_error!(writable().open().await, MmapIoError::ResizeFailed(_));
            assert_error!(
                mmap_io::load_mmap(&path, MmapMode::ReadWrite).await,
                MmapIoError::ResizeFailed(_)
            );
            assert_error!(
                writable().open_or_create().await,
                MmapIoError::ResizeFailed(_)
            );
            assert_error!(
                MemoryMappedFile::open_or_create(&path, TOO_LARGE).await,
                MmapIoError::ResizeFailed(_)
            );
            assert_error!(
                mmap_io::write_mmap(&path, 0, b"x").await,
                MmapIoError::ResizeFailed(_)
            );
            let plain = File::options().read(true).write(true).open(&path).unwrap();
            assert_error!(
                MemoryMappedFile::from_file(plain, MmapMode::ReadWrite, &path).await,
                MmapIoError::ResizeFailed(_)
            );
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        // In a mode that does not write, nothing is given to it either.
        let read_only = MemoryMappedFile::builder(&path).size(10);
        let read_only = read_only.mode(MmapMode::ReadOnly);
        assert!(read_only.clone().create().await.unwrap().is_empty());
        assert!(read_only.open_or_create().await.unwrap().is_empty());
        // The reader sees the bytes that the file gets here.
        let grown = MemoryMappedFile::open_or_create(&path, 10).await.unwrap();
        assert_eq!((grown.len(), file.len()), (10, 10));
        assert_eq!(file.as_slice(0, 10).unwrap(), [0; 10]);
    });
}

#[test]
fn impossible_sizes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new");
    block_on(async {
        let (data, file) = patterned(dir.path(), 1000).await;
        let kept = dir.path().join("kept");
        fs::write(&kept, b"content").unwrap();
        for size in [0, TOO_LARGE, u64::MAX] {
            for path in [&path, &kept, &data] {
                // Before the file system is touched, and before anything else about the path.
                let builder = || MemoryMappedFile::builder(path).size(size);
                for created in [
                    MemoryMappedFile::create_rw(path, size).await,
                    mmap_io::create_mmap(path, size).await,
                    builder().create().await,
                    builder().preallocate(true).create().await,
                    builder().create_new().await,
                ] {
                    assert_error!(created, MmapIoError::ResizeFailed(_));
                }
            }
            assert_kind!(MemoryMappedFile::create_rw(&path, size).await, InvalidInput);
            assert_error!(
                MemoryMappedFile::open_or_create(&path, size).await,
                MmapIoError::ResizeFailed(_)
            );
            assert_error!(file.resize(size).await, MmapIoError::ResizeFailed(_));
            // The file has a size already, which is kept.
            let there = MemoryMappedFile::open_or_create(&kept, size).await;
            assert_eq!(there.unwrap().len(), 7);
        }
        assert_error!(
            MemoryMappedFile::builder(&path).create().await,
            MmapIoError::ResizeFailed(_)
        );
        assert_error!(
            MemoryMappedFile::builder(&path).open_or_create().await,
            MmapIoError::ResizeFailed(_)
        );
        assert!(!path.exists());
        assert_eq!(fs::read(&kept).unwrap(), b"content");
        assert!(fs::read(&data).unwrap() == pattern(1000) && file.len() == 1000);
    });
}

#[test]
fn utils_check_and_align() {
    assert!(page_size().is_power_of_two());
    for (value, alignment, aligned) in [
        (0, 4096, 0),
        (1, 4096, 4096),
        (4096, 4096, 4096),
        (4097, 4096, 8192),
        (5, 0, 5),
        (5, 1, 5),
        (7, 3, 9),
        (u64::MAX, 1, u64::MAX),
        // Saturating.
        (u64::MAX, 4096, u64::MAX),
        (u64::MAX - 4094, 4096, u64::MAX),
        (u64::MAX - 4095, 4096, u64::MAX - 4095),
    ] {
        assert_eq!(align_up(value, alignment), aligned, "{value} {alignment}");
    }
    for (offset, len, total, fits) in [
        (0, 0, 0, true),
        (5, 5, 10, true),
        (10, 0, 10, true),
        (5, 6, 10, false),
        (11, 0, 10, false),
        (1, u64::MAX, u64::MAX, false),
        (u64::MAX, 1, u64::MAX, false),
        (0, u64::MAX, u64::MAX, true),
    ] {
        assert_eq!(ensure_in_bounds(offset, len, total).is_ok(), fits);
        let range = slice_range(offset, len, total).ok();
        // With 32 bits, not even a range inside `total` may fit into memory.
        let expected = fits.then(|| Some((offset as usize, usize::try_from(offset + len).ok()?)));
        assert_eq!(range, expected.flatten());
    }
    for error in [
        ensure_in_bounds(5, 6, 10).unwrap_err(),
        slice_range(5, 6, 10).unwrap_err(),
    ] {
        assert_error!(
            Err::<(), _>(&error),
            MmapIoError::OutOfBounds {
                offset: 5,
                len: 6,
                total: 10
            }
        );
        let message = error.to_string();
        assert!(["5", "6", "10"]
            .iter()
            .all(|number| message.contains(number)));
    }
}
