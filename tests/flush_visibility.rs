//! What `flush` and `flush_range` promise to other processes: a process that maps the file
//! afterwards, with this crate or in any other way, sees the bytes. The other process is a child of
//! this binary.

use std::fs;
use std::path::Path;

use mmap_io::{FlushPolicy, MemoryMappedFile};

#[path = "common/mod.rs"]
mod common;

use common::child::{child, child_dir};
use common::{block_on, on_a_disk, pattern};

const LEN: u64 = 3_000_000;
const FIRST: (u64, usize) = (100, 50_000);
const SECOND: (u64, usize) = (2_400_007, 500_000);

/// The file as another process sees it: through a mapping of this crate, and by a plain read,
/// which are the same.
fn seen_from_outside(dir: &Path) -> Vec<u8> {
    child!(reading_child).dir(dir).passes();
    let mapped = fs::read(dir.join("mapped")).unwrap();
    let read = fs::read(dir.join("read")).unwrap();
    assert!(mapped == read, "the mapping and a plain read differ");
    mapped
}

#[test]
fn reading_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    block_on(async {
        let path = dir.join("data");
        let file = MemoryMappedFile::open_ro(&path).await.unwrap();
        let content = file.as_slice(0, file.len()).unwrap();
        fs::write(dir.join("mapped"), content).unwrap();
        fs::write(dir.join("read"), fs::read(&path).unwrap()).unwrap();
    });
}

#[track_caller]
fn assert_seen(seen: &[u8], (offset, len): (u64, usize)) {
    let region = &seen[offset as usize..][..len];
    assert!(region == pattern(len), "{offset}, {len}");
}

async fn write_both(file: &MemoryMappedFile) {
    for (offset, len) in [FIRST, SECOND] {
        file.update_region(offset, &pattern(len)).await.unwrap();
    }
}

#[test]
fn flush_shows_all_writes() {
    let dir = on_a_disk();
    block_on(async {
        let path = dir.path().join("data");
        let file = MemoryMappedFile::create_rw(&path, LEN).await.unwrap();
        write_both(&file).await;
        file.flush().await.unwrap();
        let seen = seen_from_outside(dir.path());
        assert_eq!(seen.len() as u64, LEN);
        assert_seen(&seen, FIRST);
        assert_seen(&seen, SECOND);
        // No other byte has changed.
        let between = FIRST.0 as usize + FIRST.1..SECOND.0 as usize;
        assert!(seen[between].iter().all(|byte| *byte == 0));
        assert!(seen[..FIRST.0 as usize].iter().all(|byte| *byte == 0));
    });
}

#[test]
fn flush_range_shows_its_range() {
    let dir = on_a_disk();
    block_on(async {
        let path = dir.path().join("data");
        let file = MemoryMappedFile::create_rw(&path, LEN).await.unwrap();
        // A created file has to sync its length and name first.
        file.flush().await.unwrap();
        write_both(&file).await;
        file.flush_range(FIRST.0, FIRST.1 as u64).await.unwrap();
        assert_seen(&seen_from_outside(dir.path()), FIRST);
        assert_eq!(file.pending_bytes(), SECOND.1 as u64);
        file.flush().await.unwrap();
        let seen = seen_from_outside(dir.path());
        assert_seen(&seen, FIRST);
        assert_seen(&seen, SECOND);
        assert_eq!(file.pending_bytes(), 0);
    });
}

#[test]
fn commit_and_policy_flush_are_visible() {
    let dir = on_a_disk();
    block_on(async {
        let path = dir.path().join("data");
        let file = MemoryMappedFile::builder(&path)
            .size(LEN)
            .flush_policy(FlushPolicy::EveryBytes(FIRST.1 + SECOND.1))
            .create()
            .await
            .unwrap();
        // The second write crosses the threshold, and its flush covers the first.
        write_both(&file).await;
        assert_eq!(file.pending_bytes(), 0);
        let seen = seen_from_outside(dir.path());
        assert_seen(&seen, FIRST);
        assert_seen(&seen, SECOND);
        let mut view = file.as_slice_mut(1_000_000, 10_000).await.unwrap();
        view.copy_from_slice(&pattern(10_000));
        view.commit().await.unwrap();
        assert_seen(&seen_from_outside(dir.path()), (1_000_000, 10_000));
        // After a change of the length.
        file.resize(LEN + 10_000).await.unwrap();
        file.update_region_async(LEN, &pattern(10_000))
            .await
            .unwrap();
        let seen = seen_from_outside(dir.path());
        assert_eq!(seen.len() as u64, LEN + 10_000);
        assert_seen(&seen, (LEN, 10_000));
    });
}
