//! What `flush` and `flush_range` promise to others: a process that maps the file afterwards, with
//! this crate or in any other way, sees the bytes. It is this binary again, as a child.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mmap_io::{FlushPolicy, MemoryMappedFile};

#[path = "common/mod.rs"]
mod common;

use common::{alone, pattern};

const LEN: u64 = 3_000_000;
const FIRST: (u64, usize) = (100, 50_000);
const SECOND: (u64, usize) = (2_400_007, 500_000);

/// Where the child finds the file, and where it leaves what it has seen.
const CHILD: &str = "MMAP_IO_TEST_CHILD";

/// The file as another process sees it: through a mapping of this crate, and by a plain read,
/// which are the same.
fn seen_from_outside(dir: &Path) -> Vec<u8> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--test-threads=1", "child"])
        .env(CHILD, dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let mapped = fs::read(dir.join("mapped")).unwrap();
    let read = fs::read(dir.join("read")).unwrap();
    assert!(mapped == read, "the two ways differ");
    mapped
}

#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else {
        return;
    };
    alone(async {
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

fn on_a_disk() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

async fn write_both(file: &MemoryMappedFile) {
    for (offset, len) in [FIRST, SECOND] {
        file.update_region(offset, &pattern(len)).await.unwrap();
    }
}

#[test]
fn a_flush_shows_both_regions() {
    let dir = on_a_disk();
    alone(async {
        let path = dir.path().join("data");
        let file = MemoryMappedFile::create_rw(&path, LEN).await.unwrap();
        write_both(&file).await;
        file.flush().await.unwrap();
        let seen = seen_from_outside(dir.path());
        assert_eq!(seen.len() as u64, LEN);
        assert_seen(&seen, FIRST);
        assert_seen(&seen, SECOND);
        // And nothing else.
        let between = FIRST.0 as usize + FIRST.1..SECOND.0 as usize;
        assert!(seen[between].iter().all(|byte| *byte == 0));
        assert!(seen[..FIRST.0 as usize].iter().all(|byte| *byte == 0));
    });
}

#[test]
fn a_flush_of_a_range_shows_the_range_and_a_later_flush_the_rest() {
    let dir = on_a_disk();
    alone(async {
        let path = dir.path().join("data");
        let file = MemoryMappedFile::create_rw(&path, LEN).await.unwrap();
        // What a created file owes is paid before.
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
fn views_and_policies_show_theirs() {
    let dir = on_a_disk();
    alone(async {
        let path = dir.path().join("data");
        let file = MemoryMappedFile::builder(&path)
            .size(LEN)
            .flush_policy(FlushPolicy::EveryBytes(FIRST.1 + SECOND.1))
            .create()
            .await
            .unwrap();
        // The second crosses the threshold, and brings the first along.
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
