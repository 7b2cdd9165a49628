//! Bodies: all of the bytes, none but those, in whatever pieces; and an end when the file is cut.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_lite::future::{block_on, poll_fn, poll_once};
use http::{Request, StatusCode};
use http_body::Body;
use mmap_io::MemoryMappedFile;
use mmap_io_http::{MappedDir, MappedFile, ResponseBody};
use tower::ServiceExt;

use crate::client::{get, receive, send};
use crate::server::boxed;
use crate::{both, pattern, settled};

both!(pieces_of_a_large_file, |start| {
    let dir = tempfile::tempdir().unwrap();
    let content = pattern(3_000_017);
    settled(&dir.path().join("a"), &content);
    for chunk in [1 << 10, 4096, 1_000_000, 1 << 22] {
        let service = MappedDir::new(dir.path()).with_buf_chunk_size(chunk);
        let server = start(boxed(service));
        let range = |range: &str| get(server.address, "/a", &[("range", range)]);
        let whole = get(server.address, "/a", &[]);
        assert!(whole.body == content && whole.is_whole());
        let middle = range("bytes=999999-2000001");
        assert!(middle.body == content[999_999..=2_000_001] && middle.is_whole());
        let parts = range("bytes=2000000-2999999,5-5,-17");
        assert!(parts.is_whole());
        let parts = parts.parts();
        let expected = [2_000_000..3_000_000, 5..6, 3_000_000..3_000_017];
        assert_eq!(parts.len(), expected.len());
        for ((content_type, content_range, part), range) in parts.into_iter().zip(expected) {
            assert_eq!(content_type, "application/octet-stream");
            let (first, last) = (range.start, range.end - 1);
            assert_eq!(content_range, format!("bytes {first}-{last}/3000017"));
            assert!(part == content[range]);
        }
    }
});

/// Frame lengths of a body, and its error.
fn frames(body: ResponseBody) -> (Vec<usize>, Option<std::io::Error>) {
    let mut body = Box::pin(body);
    let mut lens = Vec::new();
    block_on(async {
        loop {
            let expected = body.size_hint().exact().unwrap();
            match poll_fn(|context| body.as_mut().poll_frame(context)).await {
                Some(Ok(frame)) => {
                    let len = frame.into_data().unwrap().len();
                    assert_eq!(body.size_hint().exact(), Some(expected - len as u64));
                    lens.push(len);
                }
                Some(Err(error)) => {
                    let next = poll_fn(|context| body.as_mut().poll_frame(context)).await;
                    assert!(next.is_none());
                    return (lens, Some(error));
                }
                None => return (lens, None),
            }
            assert_eq!(body.is_end_stream(), body.size_hint().exact() == Some(0));
        }
    })
}

fn ask(path: &Path, chunk: usize, range: &str) -> (StatusCode, Pin<Box<ResponseBody>>) {
    let service = MappedFile::new(path).with_buf_chunk_size(chunk);
    let request = Request::get("/").header("range", range).body(()).unwrap();
    let response = block_on(service.oneshot(request)).unwrap();
    (response.status(), Box::pin(response.into_body()))
}

#[test]
fn frames_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    settled(&path, &pattern(10_000));
    let lens = |chunk, range| frames(*Pin::into_inner(ask(&path, chunk, range).1)).0;
    assert_eq!(lens(4096, "bytes=0-"), [4096, 4096, 1808]);
    assert_eq!(lens(4096, "bytes=100-4195"), [4096]);
    assert_eq!(lens(4096, "bytes=100-4196"), [4096, 1]);
    assert_eq!(lens(1 << 20, "bytes=0-"), [10_000]);
    let several = lens(1000, "bytes=0-2499,5000-5000");
    assert_eq!(several[1..4], [1000, 1000, 500]);
    assert_eq!(several[5], 1);
}

// A file that is mapped, whose path and pages are in the caches of the system, needs no thread of
// the pool.
#[cfg(target_os = "linux")]
#[test]
fn hot_file_is_ready_at_once() {
    let dir = tempfile::tempdir().unwrap();
    settled(&dir.path().join("sub/a"), &pattern(10_000));
    let service = MappedDir::new(dir.path());
    let ask = |target| {
        let request = Request::get(target).body(()).unwrap();
        service.clone().oneshot(request)
    };
    assert_eq!(block_on(ask("/sub/a")).unwrap().status(), 200);
    // A look-up in the caches fails if a file system is mounted just then.
    let attempts = (0..1000).find_map(|_| block_on(poll_once(ask("/sub/a"))));
    let (lens, _) = frames(attempts.expect("ready").unwrap().into_body());
    assert_eq!(lens, [10_000]);
    assert_eq!(block_on(ask("/missing")).unwrap().status(), 404);
    let attempts = (0..1000).find_map(|_| block_on(poll_once(ask("/missing"))));
    assert_eq!(attempts.expect("ready").unwrap().status(), 404);
}

// Another process has cut the file.
#[test]
fn cut_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    for range in ["bytes=0-", "bytes=0-49999,60000-"] {
        settled(&path, &pattern(100_000));
        let (status, body) = ask(&path, 10_000, range);
        assert_eq!(status, 206);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(20_000)
            .unwrap();
        let (lens, error) = frames(*Pin::into_inner(body));
        let sent = lens.iter().sum::<usize>();
        assert!((20_000..30_000).contains(&sent), "{lens:?}");
        println!("{}", error.unwrap());
    }
}

both!(cut_file_ends_the_body, |start| {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let len = 64 << 20;
    fs::write(&path, b"").unwrap();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(len)
        .unwrap();
    let server = start(boxed(MappedDir::new(dir.path())));
    let mut slow = send(server.address, "GET", "/a", &[]);
    let mut begin = [0; 9];
    slow.read_exact(&mut begin).unwrap();
    assert_eq!(&begin, b"HTTP/1.1 ");
    // The server cannot have sent more than the socket takes.
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(100)
        .unwrap();
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest);
    assert!((rest.len() as u64) < len, "{}", rest.len());
    // The server lives.
    let answer = get(server.address, "/a", &[]);
    assert_eq!((answer.status, answer.body.len()), (200, 100));
});

const BLOCK: usize = 1 << 20;
const BLOCKS: usize = 200;

/// A block that no other block is like.
fn block(index: usize) -> Vec<u8> {
    let mut block = vec![index as u8; BLOCK];
    for (page, bytes) in block.chunks_mut(4096).enumerate() {
        bytes[..8].copy_from_slice(&((index << 8 | page) as u64).to_le_bytes());
    }
    block
}

both!(download_beside_writes, |start| {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let mut file = File::create(&path).unwrap();
    for index in 0..BLOCKS {
        file.write_all(&block(index)).unwrap();
    }
    let tail = (BLOCKS * BLOCK) as u64;
    file.set_len(tail + BLOCK as u64).unwrap();
    drop(file);
    let writer = block_on(MemoryMappedFile::open_rw(&path)).unwrap();
    let server = start(boxed(MappedDir::new(dir.path())));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writes = scope.spawn(|| {
            let mut writes = 0;
            while !done.load(Ordering::Relaxed) {
                let offset = tail + writes % (BLOCK as u64 - 64);
                block_on(writer.update_region(offset, &[writes as u8; 64])).unwrap();
                writes += 1;
            }
            writes
        });
        let range = format!("bytes=0-{}", tail - 1);
        let mut download = send(server.address, "GET", "/a", &[("range", &range)]);
        let head = read_head(&mut download);
        assert!(head.contains(&format!("content-length: {tail}")), "{head}");
        let before = writer.stats().updates;
        let mut received = vec![0; BLOCK];
        for index in 0..BLOCKS {
            download.read_exact(&mut received).unwrap();
            assert!(received == block(index), "block {index}");
        }
        assert_eq!(download.read(&mut received).unwrap(), 0);
        assert!(writer.stats().updates > before);
        done.store(true, Ordering::Relaxed);
        println!("{} writes", writes.join().unwrap());
    });
});

fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

// Dropped at any point, a response leaves nothing behind.
both!(clients_that_leave, |start| {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let content = pattern(4 << 20);
    fs::write(&path, &content).unwrap();
    let server = start(boxed(MappedDir::new(dir.path())));
    for read in [0, 1, 100, 100_000] {
        let mut client = send(server.address, "GET", "/a", &[]);
        client.read_exact(&mut vec![0; read]).unwrap();
    }
    let writer = block_on(MemoryMappedFile::open_rw(&path)).unwrap();
    block_on(writer.update_region(0, &vec![7; 4 << 20])).unwrap();
    let answer = receive(send(server.address, "GET", "/a", &[]));
    assert!(answer.body == vec![7; 4 << 20]);
});
