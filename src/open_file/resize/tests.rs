use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use futures_lite::future::block_on;

use super::*;
use crate::descriptor::Descriptor;
use crate::file::MemoryMappedFile;
use crate::open_file::Source;

/// Stores over the rest of the page in which a file ends, as another process could through a map.
fn store_past_end(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let file_len = file.metadata().unwrap().len();
    let mut options = memmap2::MmapOptions::new();
    let map = options.len(sys::page_size()).map_raw(&file).unwrap();
    for at in file_len as usize..sys::page_size() {
        let byte = map.as_mut_ptr().wrapping_add(at);
        // SAFETY: the byte is in the page of the live, writable map that holds the end of the file.
        unsafe { byte.write_volatile(0xee) };
    }
}

/// Another process appends after growth has looked at the length, and before it clears the tail.
#[test]
fn clearing_keeps_what_another_process_has_appended() {
    for has_stores in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        fs::write(&path, [1; 100]).unwrap();
        let file = block_on(MemoryMappedFile::open_rw(&path)).unwrap();
        let open: &Arc<OpenFile> = &file.handle.shared;
        if has_stores {
            store_past_end(&path);
        }
        let mut other = OpenOptions::new().append(true).open(&path).unwrap();
        other.write_all(&[7; 50]).unwrap();
        open.map_ahead(1000).unwrap();
        open.clear_tail(ByteRange::between(100, 1000)).unwrap();
        let mut expected = [[1; 50], [1; 50], [7; 50]].concat();
        assert_eq!(fs::read(&path).unwrap(), expected);
        // What lies behind the appended bytes is zero.
        other.set_len(1000).unwrap();
        expected.resize(1000, 0);
        assert_eq!(fs::read(&path).unwrap(), expected);
    }
}

/// Another process overwrites what it stored there, while the bytes are cleared.
#[test]
fn clearing_keeps_bytes_that_have_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, [1; 6]).unwrap();
    let file = block_on(MemoryMappedFile::open_rw(&path)).unwrap();
    let open: &Arc<OpenFile> = &file.handle.shared;
    let map = open.map(Protection::ReadWrite).unwrap();
    let span = map.span(ByteRange::between(0, 6));
    // SAFETY: the map is live and writable, and the file has the bytes; only this test uses them.
    unsafe { span.clear_unchanged(&[1, 0, 2, 1, 1, 7]) };
    assert_eq!(fs::read(&path).unwrap(), [0, 1, 1, 0, 0, 1]);
}

/// An opening maps the file for reading after a cut has begun, which is refused then.
#[test]
fn refused_cut_leaves_no_short_map() {
    const LEN: u64 = 10 << 20;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let file = block_on(MemoryMappedFile::create_rw(&path, LEN)).unwrap();
    let open: &Arc<OpenFile> = &file.handle.shared;
    let fs_traits = open.writable().unwrap().fs_traits;
    let reader = Descriptor::new(File::open(&path).unwrap());
    let refused = open.shorten(ByteRange::between(1000, LEN), || {
        assert_eq!(open.len(), 1000);
        let source = Source::new(&reader, fs_traits, Protection::Read);
        open.attach(source, Protection::Read).unwrap();
        Err(io::ErrorKind::PermissionDenied.into())
    });
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(open.len(), LEN);
    assert!(open.map(Protection::Read).unwrap().capacity() >= LEN);
}
