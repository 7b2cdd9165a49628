//! `ServeDir` over mapped files, with `ServeDir` over tokio's files as its oracle.

use mmap_io_http::{MappedDir, MmapBackend};
use tower_http::services::ServeDir;

use crate::client::{get, request, Answer};
use crate::server::{axum_tokio, boxed};
use crate::{both, pattern, settled};

/// All that a client can see, without the date of the answer.
fn seen(answer: &Answer) -> (u16, Vec<Option<&str>>, &[u8]) {
    let names = [
        "content-type",
        "content-length",
        "content-range",
        "content-encoding",
        "accept-ranges",
        "etag",
        "last-modified",
        "location",
        "vary",
    ];
    let headers = names.into_iter().map(|name| answer.header(name)).collect();
    (answer.status, headers, &answer.body)
}

#[test]
fn as_serve_dir() {
    let dir = tempfile::tempdir().unwrap();
    let content = pattern(1_000_000);
    settled(&dir.path().join("a.txt"), &content);
    settled(&dir.path().join("a.txt.gz"), b"gzip");
    settled(&dir.path().join("empty"), b"");
    settled(&dir.path().join("sub/index.html"), b"index");
    // Nothing is below it: all is the fallback's.
    let nothing = || MappedDir::new(dir.path().join("nothing"));
    let mapped = ServeDir::with_backend(dir.path(), MmapBackend::new()).precompressed_gzip();
    let plain = ServeDir::new(dir.path()).precompressed_gzip();
    let mapped = axum_tokio(boxed(nothing().fallback(mapped)));
    let plain = axum_tokio(boxed(nothing().fallback(plain)));
    let tag = get(plain.address, "/a.txt", &[]);
    let tag = tag.header("etag").unwrap();
    for target in [
        "/a.txt",
        "/empty",
        "/sub",
        "/sub/",
        "/missing",
        "/a.txt/b",
        "/../a.txt",
    ] {
        for headers in [
            vec![],
            vec![("range", "bytes=10-99999")],
            vec![("range", "bytes=-10")],
            vec![("range", "bytes=9999999-")],
            vec![("if-none-match", tag)],
            vec![("if-match", "\"other\"")],
            vec![("accept-encoding", "gzip")],
        ] {
            for method in ["GET", "HEAD"] {
                let ours = request(mapped.address, method, target, &headers);
                let theirs = request(plain.address, method, target, &headers);
                assert!(
                    seen(&ours) == seen(&theirs),
                    "{method} {target} {headers:?}"
                );
            }
        }
    }
}

// Without tokio's runtime as well.
both!(any_runtime, |start| {
    let dir = tempfile::tempdir().unwrap();
    let content = pattern(1_000_000);
    settled(&dir.path().join("a"), &content);
    let service = ServeDir::with_backend(dir.path(), MmapBackend::new());
    let nothing = MappedDir::new(dir.path().join("nothing"));
    let server = start(boxed(nothing.fallback(service)));
    assert!(get(server.address, "/a", &[]).body == content);
    let part = get(server.address, "/a", &[("range", "bytes=500000-")]);
    assert!(part.status == 206 && part.body == content[500_000..]);
    // Replaced: seen at once.
    settled(&dir.path().join("next"), b"next");
    std::fs::rename(dir.path().join("next"), dir.path().join("a")).unwrap();
    assert_eq!(get(server.address, "/a", &[]).body, b"next");
});
