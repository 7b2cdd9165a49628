use futures_lite::future::block_on;

use super::*;
use crate::file::MemoryMappedFile;

/// A reader has loaded the length; then the file is cut, and mapped again by a shorter map.
#[cfg(all(target_os = "linux", feature = "fault-guard"))]
#[test]
fn span_is_inside_map_that_replaced_longer_one() {
    const LEN: u64 = 64 << 20;
    const CUT: u64 = 4096;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let cut = File::create(&path).unwrap();
    cut.set_len(LEN).unwrap();
    let file = block_on(MemoryMappedFile::open_ro(&path)).unwrap();
    let open: &Arc<OpenFile> = &file.handle.shared;
    let before = open.map(Protection::Read).unwrap();
    let view = file.bytes(LEN - 1, 1).unwrap();
    let range = ByteRange::between(LEN - 10, LEN);
    let span = open.span_within_calling(Protection::Read, range, || {
        cut.set_len(CUT).unwrap();
        assert_eq!(view[0], 0);
        open.adopt_file_len().unwrap();
    });
    let after = open.map(Protection::Read).unwrap();
    assert!(after.capacity() < before.capacity());
    assert!(span.is_none(), "{span:?} is not inside {after:?}");
    let left = ByteRange::between(0, CUT);
    assert!(open.span_within(Protection::Read, left).is_some());
}

#[test]
fn pages_made_writable_beside_eviction_are_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let file = MemoryMappedFile::create_rw(dir.path().join("data"), 20_000);
    let file = block_on(file).unwrap();
    let shared: &Arc<OpenFile> = &file.handle.shared;
    let map = shared.map(Protection::ReadWrite).unwrap();
    let mapped = shared.writable().unwrap();
    let pages = ByteRange::between(0, 1).to_pages(sys::page_size());
    let add = || map.writable().add(pages, map.writable().begin(&[pages]));
    add();
    thread::scope(|threads| {
        // The eviction forgets the pages, and waits before it unmaps them.
        let locked = lock(&mapped.locked);
        let descriptor = shared.descriptor(Protection::ReadWrite);
        let evicts = threads.spawn(move || shared.evict(descriptor, pages.into()));
        while map.writable().contain(pages) {
            thread::yield_now();
        }
        // The drain does that.
        add();
        drop(locked);
        evicts.join().unwrap().unwrap();
    });
    assert!(!map.writable().contain(pages));
}
