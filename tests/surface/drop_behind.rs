//! Streams that drop what they have passed: memory stays bounded, and nothing leaves memory that was
//! there before, is being looked at, or is not yet written out.

use std::path::PathBuf;

use futures_lite::StreamExt;
use mmap_io::{MemoryMappedFile, MmapStream};

use crate::common::probe::{cached, can_probe};
use crate::common::{block_on, eventually, on_a_disk, pattern, patterned, skip};

const MIB: usize = 1 << 20;
const LEN: usize = 16 * MIB;
const CHUNK: usize = 256 << 10;
const PAGES_OF_CHUNK: usize = CHUNK / 4096;

/// Runs a test on a file of [`LEN`] bytes that is not in memory, and its content.
fn with_cold_file(test: &str, body: impl FnOnce(PathBuf, MemoryMappedFile, Vec<u8>)) {
    let dir = on_a_disk();
    if !can_probe(test, dir.path()) {
        return;
    }
    let (path, file) = block_on(async {
        let (path, file) = patterned(dir.path(), LEN).await;
        file.flush().await.unwrap();
        file.evict(0, LEN as u64).await.unwrap();
        (path, file)
    });
    assert_eq!(cached(&path, 0, LEN), 0);
    body(path, file, pattern(LEN));
}

fn stream(file: &MemoryMappedFile) -> MmapStream {
    file.stream(.., CHUNK).unwrap().drop_behind(true)
}

/// Reads the rest of a stream, item by item, and calls `each` while it has the item.
async fn scan(mut stream: MmapStream, content: &[u8], mut each: impl FnMut(usize)) {
    let mut at = content.len() - stream.remaining() as usize;
    while let Some(item) = stream.next().await {
        let item = item.unwrap();
        assert_eq!(item, content[at..at + item.len()]);
        each(at);
        at += item.len();
    }
    assert_eq!(at, content.len());
}

#[test]
fn page_cache_stays_bounded() {
    with_cold_file("page_cache_stays_bounded", |path, file, content| {
        let mut most = 0;
        block_on(scan(stream(&file), &content, |_| {
            most = most.max(cached(&path, 0, LEN));
        }));
        // The item, the one before, and what the disk was asked for.
        let bound = 4 * PAGES_OF_CHUNK + 2 * MIB / 4096;
        assert!(most <= bound, "{most} pages were in memory");
        eventually("the rest is dropped", || cached(&path, 0, LEN) == 0);
    });
}

#[test]
fn pages_stay_by_default() {
    with_cold_file("pages_stay_by_default", |path, file, content| {
        let stream = file.stream(.., CHUNK).unwrap();
        block_on(scan(stream, &content, |_| ()));
        assert_eq!(cached(&path, 0, LEN), LEN / 4096);
    });
}

#[test]
fn pages_that_were_there_stay() {
    with_cold_file("pages_that_were_there_stay", |path, file, content| {
        let kept = [(MIB, 10_000), (5 * MIB + 4096, 4096), (9 * MIB, 2 * MIB)];
        for (offset, len) in kept {
            block_on(file.touch_pages_range(offset as u64, len as u64)).unwrap();
        }
        let before = kept.map(|(offset, len)| cached(&path, offset, len));
        let all = cached(&path, 0, LEN);
        block_on(scan(stream(&file), &content, |_| ()));
        eventually("the others are dropped", || cached(&path, 0, LEN) <= all);
        let after = kept.map(|(offset, len)| cached(&path, offset, len));
        assert_eq!(after, before);
        assert_eq!(cached(&path, 0, LEN), all);
    });
}

/// The system tells root of the files of others as well.
#[test]
fn pages_of_foreign_files_stay() {
    with_cold_file("pages_of_foreign_files_stay", |path, file, content| {
        if let Err(error) = std::os::unix::fs::chown(&path, Some(12_345), None) {
            let reason = format!("no file of another user: {error}");
            return skip("pages_of_foreign_files_stay", &reason);
        }
        block_on(file.touch_pages_range(5 * MIB as u64, 4096)).unwrap();
        block_on(scan(stream(&file), &content, |_| ()));
        eventually("the others are dropped", || cached(&path, 0, LEN) <= 1);
        assert_eq!(cached(&path, 5 * MIB, 4096), 1);
    });
}

#[test]
fn pages_of_views_stay_while_they_live() {
    with_cold_file("pages_of_views_stay", |path, file, content| {
        block_on(async {
            let mut stream = stream(&file);
            let first = stream.next().await.unwrap().unwrap();
            // Its pages were brought into memory by the stream, not by the view.
            let second = stream.next().await.unwrap().unwrap();
            let view = file.slice(CHUNK as u64, 5000).await.unwrap();
            drop(second);
            let mut at = 2 * CHUNK;
            while at < LEN / 2 {
                at += stream.next().await.unwrap().unwrap().len();
                assert_eq!(cached(&path, 0, CHUNK), PAGES_OF_CHUNK);
                assert_eq!(cached(&path, CHUNK, 5000), 2);
            }
            assert_eq!(first, content[..CHUNK]);
            assert_eq!(view, content[CHUNK..CHUNK + 5000]);
            drop((first, view));
            scan(stream, &content, |_| ()).await;
            eventually("all is dropped", || cached(&path, 0, LEN) == 0);
        });
    });
}

#[test]
fn bytes_not_written_out_stay() {
    with_cold_file("bytes_not_written_out_stay", |path, file, mut content| {
        block_on(async {
            let mut stream = stream(&file);
            let read = stream.next().await.unwrap().unwrap().len();
            file.update_region(100, b"not flushed").await.unwrap();
            content[100..111].copy_from_slice(b"not flushed");
            assert_eq!(stream.remaining(), (LEN - read) as u64);
            scan(stream, &content, |_| ()).await;
            // A page may belong to a large folio, which is dropped as a whole or not at all.
            let rest = 2 * MIB;
            eventually("others are dropped", || {
                cached(&path, rest, LEN - rest) == 0
            });
            assert_eq!(std::fs::read(&path).unwrap(), content);
            file.flush().await.unwrap();
        });
    });
}

#[test]
fn dropped_stream_drops_what_it_read() {
    with_cold_file("dropped_stream_drops_what_it_read", |path, file, _| {
        let item = block_on(async {
            let mut stream = stream(&file);
            for _ in 0..3 {
                stream.next().await.unwrap().unwrap();
            }
            stream.next().await.unwrap().unwrap()
        });
        // Pages beyond the item may still be on their way into memory.
        eventually("only the item is left", || cached(&path, 0, 3 * CHUNK) == 0);
        assert_eq!(cached(&path, 3 * CHUNK, CHUNK), PAGES_OF_CHUNK);
        drop(item);
        // Neither the stream nor its jobs keep the handle.
        drop(file.unmap().unwrap());
    });
}
