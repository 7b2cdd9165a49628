//! Files that change: each request sees the file that is there, and no client joins two of them.

use std::fs;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use futures_lite::future::block_on;
use mmap_io::MemoryMappedFile;
use mmap_io_http::MappedDir;

use crate::client::{get, Answer};
use crate::rfc::DATE;
use crate::server::{boxed, Server};
use crate::{both, modified, pattern, set_modified, settled};

fn tag(answer: &Answer) -> String {
    answer.header("etag").unwrap().to_string()
}

fn replace(dir: &Path, content: &[u8]) {
    let temporary = dir.join("temporary");
    settled(&temporary, content);
    fs::rename(temporary, dir.join("a")).unwrap();
}

/// Asks for the rest of a file whose tag this was.
fn resume(server: &Server, tag: &str, from: usize) -> Answer {
    let range = format!("bytes={from}-");
    get(
        server.address,
        "/a",
        &[("range", &range), ("if-range", tag)],
    )
}

both!(rename_is_seen_at_once, |start| {
    let dir = tempfile::tempdir().unwrap();
    replace(dir.path(), &[b'1'; 1000]);
    let server = start(boxed(MappedDir::new(dir.path())));
    for round in b'1'..=b'9' {
        let answer = get(server.address, "/a", &[]);
        assert_eq!(answer.body, [round; 1000]);
        let old = tag(&answer);
        let rest = resume(&server, &old, 500);
        assert_eq!((rest.status, &*rest.body), (206, &[round; 500][..]));
        // Of the same length and the same time.
        replace(dir.path(), &[round + 1; 1000]);
        let rest = resume(&server, &old, 500);
        assert_eq!((rest.status, &*rest.body), (200, &[round + 1; 1000][..]));
        let answer = get(server.address, "/a", &[("if-none-match", &old)]);
        assert_eq!(answer.status, 200);
        let answer = get(server.address, "/a", &[("if-match", &old)]);
        assert_eq!(answer.status, 412);
    }
    fs::remove_file(dir.path().join("a")).unwrap();
    assert_eq!(get(server.address, "/a", &[]).status, 404);
});

both!(changes_in_place, |start| {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    settled(&path, &[b'1'; 1000]);
    let server = start(boxed(MappedDir::new(dir.path())));
    let first = get(server.address, "/a", &[]);
    // Longer, shorter, of the same length.
    for (second, content) in [vec![b'2'; 2000], vec![b'3'; 10], vec![b'4'; 10]]
        .iter()
        .enumerate()
    {
        fs::write(&path, content).unwrap();
        set_modified(&path, modified() + Duration::from_secs(second as u64 + 1));
        let answer = get(server.address, "/a", &[("if-none-match", &tag(&first))]);
        assert_eq!(answer.status, 200);
        assert!(answer.is_whole());
        assert_eq!(&answer.body, content);
        let rest = resume(&server, &tag(&answer), 5);
        assert_eq!((rest.status, &*rest.body), (206, &content[5..]));
    }
});

// The time of modification does not yet tell this state from the next.
both!(weak_while_recent, |start| {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    settled(&path, &[b'1'; 1000]);
    let server = start(boxed(MappedDir::new(dir.path())));
    let check = |time| {
        set_modified(&path, time);
        let answer = get(server.address, "/a", &[]);
        let weak = tag(&answer);
        assert!(weak.starts_with("W/"), "{weak}");
        assert_eq!(answer.header("last-modified"), None);
        // Another state with the same time.
        fs::write(&path, [b'2'; 1000]).unwrap();
        set_modified(&path, time);
        let rest = resume(&server, &weak, 500);
        assert_eq!((rest.status, &*rest.body), (200, &[b'2'; 1000][..]));
        for (header, status) in [("if-none-match", 200), ("if-match", 412)] {
            assert_eq!(get(server.address, "/a", &[(header, &weak)]).status, status);
        }
        let date = httpdate::fmt_http_date(time);
        let answer = get(server.address, "/a", &[("if-modified-since", &date)]);
        assert_eq!(answer.status, 200);
        for date in [&*date, DATE] {
            let headers = [("range", "bytes=500-"), ("if-unmodified-since", date)];
            assert_eq!(get(server.address, "/a", &headers).status, 412, "{date}");
        }
    };
    // Again, if the time was no longer recent at the end.
    let now = loop {
        let now = SystemTime::now();
        let checked = catch_unwind(AssertUnwindSafe(|| check(now)));
        if now.elapsed().unwrap() < Duration::from_secs(1) {
            checked.unwrap();
            break now;
        }
    };
    // It holds also for times to come.
    check(now + Duration::from_secs(3600));
    set_modified(&path, now - Duration::from_secs(10));
    assert!(!tag(&get(server.address, "/a", &[])).starts_with("W/"));
});

// Stores through a map move the time of modification late.
both!(weak_while_written_here, |start| {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    settled(&path, &[b'1'; 1000]);
    let server = start(boxed(MappedDir::new(dir.path())));
    let old = tag(&get(server.address, "/a", &[]));
    let writer = block_on(MemoryMappedFile::open_rw(&path)).unwrap();
    block_on(writer.update_region(0, &[b'2'; 600])).unwrap();
    set_modified(&path, modified());
    let answer = get(server.address, "/a", &[("if-none-match", &old)]);
    // It is the same inode, length and time.
    let weak = tag(&answer);
    assert!(weak.starts_with("W/"), "{weak}");
    assert!(weak.contains(old.trim_matches('"')), "{weak} {old}");
    let rest = resume(&server, &old, 500);
    assert_eq!(rest.status, 200);
    assert_eq!(rest.body[..600], [b'2'; 600]);
    let rest = resume(&server, &weak, 500);
    assert_eq!(rest.status, 200);
    let headers = [("range", "bytes=500-"), ("if-unmodified-since", DATE)];
    assert_eq!(get(server.address, "/a", &headers).status, 412);
});

/// How many files below a directory this process has open.
fn open_files(dir: &Path) -> usize {
    let targets = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| entry.ok());
    // A descriptor may be closed in between.
    let targets = targets.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.filter(|target| target.starts_with(dir)).count()
}

both!(bounded_cache, |start| {
    let dir = tempfile::tempdir().unwrap();
    let content = pattern(5000);
    for name in 0..20 {
        settled(&dir.path().join(name.to_string()), &content[name..]);
    }
    for (files, bytes, most) in [
        (0, 0, 0),
        (3, 1 << 20, 3),
        (100, 12_000, 2),
        (100, 1 << 20, 20),
    ] {
        let server = start(boxed(MappedDir::new(dir.path()).cache_limits(files, bytes)));
        for round in 0..3 {
            for name in 0..20 {
                let answer = get(server.address, &format!("/{name}"), &[]);
                assert_eq!(answer.body, content[name..], "{round}");
            }
        }
        // What is let go is closed by the pool.
        let end = Instant::now() + Duration::from_secs(30);
        while open_files(dir.path()) != most {
            assert!(
                Instant::now() < end,
                "{} instead of {most}",
                open_files(dir.path())
            );
            std::thread::yield_now();
        }
    }
});
