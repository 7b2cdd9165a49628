//! Directories: which file a path names, and what answers when it names none.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use http::{Request, Response, StatusCode};
use mmap_io_http::{MappedDir, MappedFile};

use crate::client::{get, request};
use crate::server::boxed;
use crate::{both, settled};

/// A site, and a secret beside its root.
fn site(dir: &Path) -> std::path::PathBuf {
    let root = dir.join("site");
    settled(&dir.join("secret"), b"secret");
    settled(&root.join("index.html"), b"top");
    settled(&root.join("a.txt"), b"text");
    settled(&root.join("a b\u{e4}.txt"), b"blank");
    settled(&root.join("sub/index.html"), b"sub");
    settled(&root.join("sub/b.js"), b"script");
    settled(&root.join("x:y/index.html"), b"colon");
    settled(&root.join(".hidden"), b"hidden");
    std::fs::create_dir(root.join("bare")).unwrap();
    root
}

both!(paths_and_types, |start| {
    let dir = tempfile::tempdir().unwrap();
    let server = start(boxed(MappedDir::new(site(dir.path()))));
    for (target, content, content_type) in [
        ("/", "top", "text/html"),
        ("/index.html", "top", "text/html"),
        ("/a.txt", "text", "text/plain"),
        ("/a.txt?query=/../..", "text", "text/plain"),
        ("/%61.txt", "text", "text/plain"),
        ("/a%20b%C3%A4.txt", "blank", "text/plain"),
        ("/sub/", "sub", "text/html"),
        ("/sub/b.js", "script", "text/javascript"),
        ("/.hidden", "hidden", "application/octet-stream"),
    ] {
        let answer = get(server.address, target, &[]);
        assert_eq!(answer.status, 200, "{target}");
        assert_eq!(answer.body, content.as_bytes(), "{target}");
        assert_eq!(
            answer.header("content-type"),
            Some(content_type),
            "{target}"
        );
    }
});

both!(paths_out_of_the_root, |start| {
    let dir = tempfile::tempdir().unwrap();
    let server = start(boxed(MappedDir::new(site(dir.path()))));
    for target in [
        "/../secret",
        "/sub/../../secret",
        "/%2e%2e/secret",
        "/.%2e/secret",
        "/%2E%2E%2Fsecret",
        "/..%2fsecret",
        "/..%5csecret",
        "/sub/..%2f..%2fsecret",
        "/%252e%252e/secret",
        "//secret",
        "/.//../secret",
        "/sub/../a.txt",
        "/./a.txt",
        "/a.txt%00",
        "/a.txt%00.html",
        "/sub%2fb.js",
        "/a.txt/",
        "/a.txt/b",
        "/missing",
        "/missing/",
        "/bare/",
        &format!("/{}", "x".repeat(300)),
        &format!("/{}a.txt", "sub/../".repeat(500)),
    ] {
        let answer = get(server.address, target, &[]);
        assert_eq!(answer.status, 404, "{target}");
        assert!(answer.body.is_empty(), "{target}");
    }
    let absolute = dir.path().join("secret");
    assert_eq!(
        get(server.address, absolute.to_str().unwrap(), &[]).status,
        404
    );
});

both!(redirects, |start| {
    let dir = tempfile::tempdir().unwrap();
    let root = site(dir.path());
    let server = start(boxed(MappedDir::new(&root)));
    for (target, location) in [
        ("/sub", "./sub/"),
        ("/sub?a=b", "./sub/?a=b"),
        ("/bare", "./bare/"),
        ("/x:y", "./x:y/"),
        ("/%73ub", "./%73ub/"),
    ] {
        let answer = get(server.address, target, &[]);
        assert_eq!(answer.status, 307, "{target}");
        assert_eq!(answer.header("location"), Some(location), "{target}");
    }
    let server = start(boxed(
        MappedDir::new(&root).redirect_to_trailing_slash(false),
    ));
    assert_eq!(get(server.address, "/sub", &[]).body, b"sub");
    let server = start(boxed(
        MappedDir::new(&root).append_index_html_on_directories(false),
    ));
    for target in ["/", "/sub", "/sub/"] {
        assert_eq!(get(server.address, target, &[]).status, 404, "{target}");
    }
    assert_eq!(get(server.address, "/sub/index.html", &[]).body, b"sub");
});

both!(files_that_are_none, |start| {
    let dir = tempfile::tempdir().unwrap();
    let root = site(dir.path());
    // A reader of a FIFO waits for a writer.
    let made = std::process::Command::new("mkfifo")
        .arg(root.join("fifo"))
        .status()
        .unwrap();
    assert!(made.success());
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    let closed = root.join("closed");
    settled(&closed, b"closed");
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o000)).unwrap();
    let server = start(boxed(MappedDir::new(&root)));
    for target in ["/fifo", "/socket"] {
        assert_eq!(get(server.address, target, &[]).status, 404, "{target}");
    }
    // Root may read it.
    let readable = std::fs::read(&closed).is_ok();
    let status = if readable { 200 } else { 404 };
    assert_eq!(get(server.address, "/closed", &[]).status, status);
    let server = start(boxed(MappedDir::new(dir.path().join("missing"))));
    assert_eq!(get(server.address, "/", &[]).status, 404);
    let server = start(boxed(MappedFile::new(&root)));
    assert_eq!(get(server.address, "/", &[]).status, 404);
});

// A file that stays mapped is not served any longer than it may be read.
both!(revoked_permission, |start| {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    settled(&path, b"content");
    let server = start(boxed(MappedDir::new(dir.path())));
    let first = get(server.address, "/a", &[]);
    let tag = first.header("etag").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).unwrap();
    // Root may read it.
    let (status, same) = match std::fs::read(&path) {
        Ok(_) => (200, 304),
        Err(_) => (404, 404),
    };
    assert_eq!(get(server.address, "/a", &[]).status, status);
    // The content is the same.
    let answer = get(server.address, "/a", &[("if-none-match", tag)]);
    assert_eq!(answer.status, same);
});

/// A service that answers with what it is asked.
fn echo() -> impl tower::Service<
    Request<()>,
    Response = Response<http_body_util::Full<bytes::Bytes>>,
    Error = std::convert::Infallible,
    Future: Send + 'static,
> + Clone
       + Send
       + Sync
       + 'static {
    tower::service_fn(|request: Request<()>| async move {
        let text = format!("{} {}", request.method(), request.uri());
        let mut response = Response::new(http_body_util::Full::from(text));
        *response.status_mut() = StatusCode::CREATED;
        Ok(response)
    })
}

both!(fallbacks, |start| {
    let dir = tempfile::tempdir().unwrap();
    let root = site(dir.path());
    let server = start(boxed(MappedDir::new(&root).fallback(echo())));
    assert_eq!(get(server.address, "/a.txt", &[]).body, b"text");
    for target in ["/missing?query", "/../secret", "/bare/"] {
        let answer = get(server.address, target, &[]);
        assert_eq!(answer.status, 201);
        assert_eq!(answer.body, format!("GET {target}").as_bytes());
    }
    assert_eq!(request(server.address, "POST", "/missing", &[]).status, 405);
    assert_eq!(
        get(server.address, "/a.txt", &[("range", "bytes=9-")]).status,
        416
    );

    let service = MappedDir::new(&root)
        .fallback(echo())
        .call_fallback_on_method_not_allowed(true);
    let server = start(boxed(service));
    let answer = request(server.address, "POST", "/a.txt", &[]);
    assert_eq!((answer.status, &*answer.body), (201, &b"POST /a.txt"[..]));

    let page = MappedFile::new(root.join("a.txt"));
    let server = start(boxed(MappedDir::new(&root).not_found_service(page.clone())));
    let answer = get(server.address, "/missing", &[]);
    assert_eq!((answer.status, &*answer.body), (404, &b"text"[..]));
    // The client does not have a file that is not there.
    let tag = answer.header("etag").unwrap();
    let date = answer.header("last-modified").unwrap();
    for header in [
        ("range", "bytes=0-1"),
        ("range", "bytes=9-"),
        ("if-none-match", tag),
        ("if-modified-since", date),
        ("if-match", "\"other\""),
        ("if-unmodified-since", crate::rfc::BEFORE),
    ] {
        let answer = get(server.address, "/missing", &[header]);
        let whole = (404, &b"text"[..], None);
        let range = answer.header("content-range");
        assert_eq!((answer.status, &*answer.body, range), whole, "{header:?}");
    }
    // The page of an application, for all of its paths.
    let server = start(boxed(MappedDir::new(&root).fallback(page)));
    let answer = get(server.address, "/missing", &[]);
    assert_eq!((answer.status, &*answer.body), (200, &b"text"[..]));
});

both!(precompressed, |start| {
    let dir = tempfile::tempdir().unwrap();
    let root = site(dir.path());
    settled(&root.join("a.txt.gz"), b"text as gzip");
    settled(&root.join("a.txt.br"), b"text as brotli");
    settled(&root.join("only.css.gz"), b"style as gzip");
    settled(&root.join("sub.gz"), b"an archive of the directory");
    let service = MappedDir::new(&root)
        .precompressed_gzip()
        .precompressed_br();
    let server = start(boxed(service));
    let accepting = |target: &str, accepted: &str| {
        let answer = get(server.address, target, &[("accept-encoding", accepted)]);
        let encoding = answer.header("content-encoding").map(String::from);
        (answer, encoding)
    };
    let (answer, encoding) = accepting("/a.txt", "gzip");
    assert_eq!(
        (&*answer.body, encoding.as_deref()),
        (&b"text as gzip"[..], Some("gzip"))
    );
    assert_eq!(answer.header("content-type"), Some("text/plain"));
    assert_eq!(answer.header("vary"), Some("accept-encoding"));
    let gzip_tag = answer.header("etag").map(String::from);
    let (answer, encoding) = accepting("/a.txt", "gzip, br");
    assert_eq!(
        (&*answer.body, encoding.as_deref()),
        (&b"text as brotli"[..], Some("br"))
    );
    assert_ne!(answer.header("etag").map(String::from), gzip_tag);
    let (answer, encoding) = accepting("/a.txt", "zstd");
    assert_eq!((&*answer.body, encoding), (&b"text"[..], None));
    assert_eq!(answer.header("vary"), Some("accept-encoding"));
    // There is only the compressed one.
    assert_eq!(accepting("/only.css", "gzip").0.body, b"style as gzip");
    let (answer, _) = accepting("/only.css", "br");
    assert_eq!(answer.status, 404);
    assert_eq!(answer.header("vary"), Some("accept-encoding"));
    // A directory is not its archive.
    assert_eq!(accepting("/sub", "gzip").0.status, 307);
    assert_eq!(accepting("/sub/", "gzip").0.body, b"sub");
    // Ranges are those of the compressed file.
    let headers = [("accept-encoding", "gzip"), ("range", "bytes=-4")];
    let answer = get(server.address, "/a.txt", &headers);
    assert_eq!((answer.status, &*answer.body), (206, &b"gzip"[..]));
    // `Content-Encoding` would be that of all parts together.
    let large = vec![b'x'; 10_000];
    settled(&root.join("large.txt.gz"), &large);
    let headers = [("accept-encoding", "gzip"), ("range", "bytes=0-9,20-29")];
    let answer = get(server.address, "/large.txt", &headers);
    assert_eq!((answer.status, answer.body.len()), (200, 10_000));
    assert_eq!(answer.header("content-encoding"), Some("gzip"));

    let file = MappedFile::new(root.join("a.txt")).precompressed_gzip();
    let server = start(boxed(file));
    let answer = get(server.address, "/", &[("accept-encoding", "gzip")]);
    assert_eq!(answer.body, b"text as gzip");
});
