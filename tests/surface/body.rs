//! Bodies of HTTP messages: exact lengths, no copies, and an end after an error.

use http_body::Body;
use http_body_util::BodyExt;
use mmap_io::{MemoryMappedFile, MmapBody};

use crate::common::{block_on, pattern, patterned, rt_test, with_timeout};

const LEN: usize = 600_000;

fn exact(body: &MmapBody) -> u64 {
    body.size_hint().exact().unwrap()
}

rt_test!(body_has_the_bytes_and_the_length_of_its_range, |dir| {
    let (_, file) = patterned(dir, LEN).await;
    let content = pattern(LEN);
    for (start, end) in [(0, LEN), (100, 100), (1, LEN), (5000, 300_000), (LEN, LEN)] {
        let mut body = file.body(start as u64..end as u64).unwrap();
        let mut at = start;
        while let Some(frame) = with_timeout(body.frame()).await {
            let data = frame.unwrap().into_data().unwrap();
            assert_eq!(data, content[at..at + data.len()]);
            let view = file.as_slice(at as u64, data.len() as u64).unwrap();
            assert_eq!(data.as_ptr(), view.as_ptr());
            at += data.len();
            assert_eq!(exact(&body), (end - at) as u64);
            assert_eq!(body.is_end_stream(), at == end);
        }
        assert_eq!(at, end);
        assert!(body.frame().await.is_none());
    }
    assert!(file.body(..LEN as u64 + 1).is_err());
});

#[cfg(target_os = "linux")]
#[test]
fn body_ends_after_an_error() {
    use crate::common::disk::truncate;
    use mmap_io::MmapIoError;

    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), LEN).await;
        let mut body = file.body(..).unwrap().drop_behind(true);
        assert_eq!(exact(&body), LEN as u64);
        body.frame().await.unwrap().unwrap();
        truncate(&path, 300_000);
        let error = body.frame().await.unwrap().unwrap_err();
        assert!(matches!(error, MmapIoError::Truncated { .. }), "{error:?}");
        assert!(body.frame().await.is_none() && body.is_end_stream());
    });
}

#[test]
fn body_may_be_boxed_and_sent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    std::fs::write(&path, b"some bytes").unwrap();
    let collected = block_on(async {
        let file = MemoryMappedFile::open_ro(&path).await.unwrap();
        let body = file.body(5..).unwrap().boxed();
        drop(file);
        let collect = std::thread::spawn(|| block_on(body.collect()));
        collect.join().unwrap().unwrap()
    });
    assert_eq!(collected.to_bytes(), "bytes");
}
