//! Words that an atomic view cannot have: the checks, in their order.

use std::fmt::Debug;

use mmap_io::{AnonymousMmap, MemoryMappedFile, MmapIoError, Result};

use super::Before;
use crate::assert_error;
use crate::common::{block_on, patterned};

fn misaligned<T: Debug>(result: Result<T>, size: u64, at: u64) {
    let error = result.unwrap_err();
    let told = match error {
        MmapIoError::Misaligned { required, offset } => (required, offset),
        error => panic!("{error:?}"),
    };
    assert_eq!(told, (size, at));
    let message = error.to_string();
    assert!(message.contains(&size.to_string()) && message.contains(&at.to_string()));
}

fn outside<T: Debug>(result: Result<T>, at: u64, bytes: u64) {
    match result.unwrap_err() {
        MmapIoError::OutOfBounds { offset, len, total } => {
            assert_eq!((offset, len, total), (at, bytes, 1000));
        }
        error => panic!("{error:?}"),
    }
}

#[test]
fn bad_words_are_refused_in_order() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        // A view of everything: what is found before it is not `Busy`.
        let view = file.bytes(0, 1000).unwrap();
        let before = Before::new(&path, &file);
        // The mode first, whatever else is wrong.
        for offset in [0, 1, 2000, u64::MAX] {
            assert_error!(reader.atomic_u32(offset), MmapIoError::InvalidMode(_));
            assert_error!(reader.atomic_u64(offset), MmapIoError::InvalidMode(_));
            for count in [0, 1, usize::MAX] {
                let narrow = reader.atomic_u32_slice(offset, count);
                assert_error!(narrow, MmapIoError::InvalidMode(_));
                let wide = reader.atomic_u64_slice(offset, count);
                assert_error!(wide, MmapIoError::InvalidMode(_));
            }
        }
        let error = reader.atomic_u32(0).unwrap_err().to_string();
        assert!(
            error.contains("atomic view") && error.contains("read-only"),
            "{error}"
        );
        // Then the alignment, also of no words, and outside the file.
        for offset in [1, 2, 7, 999, 1001, u64::MAX] {
            misaligned(file.atomic_u32(offset), 4, offset);
            misaligned(file.atomic_u64(offset), 8, offset);
            for count in [0, 1, usize::MAX] {
                misaligned(file.atomic_u32_slice(offset, count), 4, offset);
                misaligned(file.atomic_u64_slice(offset, count), 8, offset);
            }
        }
        misaligned(file.atomic_u64(4), 8, 4);
        // Then the bounds.
        let last = u64::MAX - 7;
        for offset in [1000, 1008, 200 << 40, last] {
            outside(file.atomic_u32(offset), offset, 4);
            outside(file.atomic_u64(offset), offset, 8);
        }
        for offset in [1008, last] {
            outside(file.atomic_u32_slice(offset, 0), offset, 0);
            outside(file.atomic_u64_slice(offset, 0), offset, 0);
        }
        outside(file.atomic_u64_slice(0, 126), 0, 1008);
        outside(file.atomic_u32_slice(996, 2), 996, 8);
        // With 64 bits, more bytes than a number can say.
        let (many, most) = (1 << (usize::BITS - 2), usize::MAX);
        let bytes = |size: u64, count: usize| size.saturating_mul(count as u64);
        outside(file.atomic_u32_slice(8, many), 8, bytes(4, many));
        outside(file.atomic_u64_slice(8, most), 8, bytes(8, most));
        // Then what overlaps it. Nothing overlaps no words.
        assert_error!(
            file.atomic_u32(996),
            MmapIoError::Busy {
                offset: 996,
                len: 4,
                ..
            }
        );
        assert_error!(
            file.atomic_u64_slice(0, 125),
            MmapIoError::Busy { len: 1000, .. }
        );
        for offset in [0, 8, 1000] {
            assert!(file.atomic_u32_slice(offset, 0).unwrap().is_empty());
            assert!(file.atomic_u64_slice(offset, 0).unwrap().is_empty());
        }
        before.assert_unchanged(&file);
        drop(view);
        assert_eq!(file.atomic_u64_slice(0, 125).unwrap().len(), 125);

        let memory = AnonymousMmap::new(1000).unwrap();
        misaligned(memory.atomic_u32(2), 4, 2);
        misaligned(memory.atomic_u64_slice(4, 0), 8, 4);
        outside(memory.atomic_u64(1000), 1000, 8);
        outside(memory.atomic_u32_slice(0, 251), 0, 1004);
        let _view = memory.as_slice(0, 1).unwrap();
        assert_error!(memory.atomic_u32(0), MmapIoError::Busy { .. });
    });
}
