//! What counts of a copy that met the end of the file.

use std::fs;
use std::future::poll_fn;
use std::hint::black_box;

use futures_lite::future::block_on;

use super::*;

const LEN: u64 = 100_000;

/// The file is cut, and mapped again, between the copy of its bytes and the look at what they were:
/// zeroes in place of lost pages.
#[test]
fn copy_of_lost_bytes_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, vec![1; LEN as usize]).unwrap();
    let other = fs::File::options().write(true).open(&path).unwrap();
    block_on(async {
        let file = MemoryMappedFile::open_ro(&path).await.unwrap();
        let mut reader = file.reader();
        reader.set_position(LEN - 10_000);
        // As a `ReadBuf` of tokio keeps it.
        let mut filled = Vec::new();
        let mut is_cut = false;
        let read = poll_fn(|context| {
            reader.poll_copy(context, 10_000, |at, bytes| {
                if !is_cut {
                    is_cut = true;
                    other.set_len(4096).unwrap();
                    black_box(bytes[9_999]);
                    block_on(file.refresh()).unwrap();
                }
                filled.truncate(at);
                filled.extend_from_slice(bytes);
            })
        });
        assert_eq!(read.await.unwrap(), 0, "the file ends before");
        assert!(is_cut);
        assert_eq!(filled, []);
    });
}
