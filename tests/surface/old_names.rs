//! Names that programs for the synchronous crate use: each exists, or is refused with a clear
//! error.

use std::fs;

use bytes::Bytes;
use mmap_io::anonymous::AnonymousMmap;
use mmap_io::errors::MmapIoError;
use mmap_io::mmap::{MappedSlice, MappedSliceMut, MemoryMappedFile, MmapMode};
use mmap_io::{load_mmap, utils};

use crate::common::{block_on, patterned};

#[test]
fn old_names_work() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 1000).await;
        let view: MappedSlice<'_> = file.as_slice(10, 5).unwrap();
        let bytes: &[u8] = view.as_slice();
        assert_eq!(bytes, [10, 11, 12, 13, 14]);
        assert_eq!(Bytes::from(&view), bytes);
        assert_eq!(view.as_ptr(), bytes.as_ptr());
        let range: (usize, usize) = utils::slice_range(10, 5, 1000).unwrap();
        assert_eq!(range, (10, 15));
        assert!(!file.is_cow_writable());

        let memory = AnonymousMmap::new(1000).unwrap();
        let mut view: MappedSliceMut<'_> = memory.try_as_mut_slice(0, 10).unwrap().unwrap();
        view.fill(7);
        assert!(memory.try_as_mut_slice(9, 1).unwrap().is_none());
        drop(view);
    });
}

#[test]
fn anonymous_pointers_reach_bytes() {
    let memory = AnonymousMmap::new(1000).unwrap();
    block_on(memory.update_region(10, b"before")).unwrap();
    // SAFETY: no operation and no view is under way, and the store is inside the memory.
    unsafe { memory.as_mut_ptr().add(10).write(b'B') };
    assert_eq!(memory.as_slice(10, 6).unwrap(), b"Before");
    // SAFETY: as above; nothing writes.
    let read = unsafe { memory.as_ptr().add(11).read() };
    assert_eq!(read, b'e');
}

#[test]
fn copy_on_write_mode_needs_its_feature() {
    if cfg!(feature = "cow") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (there, missing) = (dir.path().join("there"), dir.path().join("missing"));
    fs::write(&there, b"bytes").unwrap();
    let refused = |what: &str, opened: mmap_io::Result<MemoryMappedFile>| {
        let error = opened.expect_err(what);
        assert!(
            matches!(error, MmapIoError::InvalidMode(_)),
            "{what}: {error:?}"
        );
        assert!(error.to_string().contains("copy-on-write"), "{error}");
    };
    let mode = MmapMode::CopyOnWrite;
    for path in [&there, &missing] {
        let builder = || MemoryMappedFile::builder(path).mode(mode).size(100);
        refused("create", block_on(builder().create()));
        refused("create_new", block_on(builder().create_new()));
        refused("open", block_on(builder().open()));
        refused("open_or_create", block_on(builder().open_or_create()));
        refused("load_mmap", block_on(load_mmap(path, mode)));
        let file = fs::File::open(&there).unwrap();
        let opened = block_on(MemoryMappedFile::from_file(file, mode, path));
        refused("from_file", opened);
    }
    assert_eq!(fs::read(&there).unwrap(), b"bytes");
    assert!(!missing.exists());
}

#[test]
fn small_file_has_no_huge_pages() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 10_000).await;
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let empty = dir.path().join("empty");
        fs::write(&empty, b"").unwrap();
        let empty = MemoryMappedFile::open_ro(empty).await.unwrap();
        for file in [file, reader, empty] {
            file.touch_pages().await.unwrap();
            let expected = cfg!(target_os = "linux").then_some(false);
            assert_eq!(file.is_hugepage_backed().await, expected);
        }
        let memory = AnonymousMmap::new(10_000).unwrap();
        let answer = memory.is_hugepage_backed().await;
        assert_eq!(answer.is_some(), cfg!(target_os = "linux"));
    });
}
