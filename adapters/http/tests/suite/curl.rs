//! What `curl` makes of it.

use std::path::Path;
use std::process::{Command, Output};

use mmap_io_http::MappedDir;

use crate::server::{boxed, Server};
use crate::{both, pattern, settled, skip};

/// Runs curl; `None` if there is none.
fn curl(server: &Server, arguments: &[&str]) -> Option<Output> {
    let url = format!("http://{}/a", server.address);
    let curl = Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--max-time",
            "60",
            "--noproxy",
            "*",
        ])
        .args(arguments)
        .arg(url)
        .output();
    match curl {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            skip("curl", "there is no curl");
            None
        }
        output => Some(output.unwrap()),
    }
}

fn site(dir: &Path) -> Vec<u8> {
    let content = pattern(1_000_000);
    settled(&dir.join("a"), &content);
    content
}

both!(ranges, |start| {
    let dir = tempfile::tempdir().unwrap();
    let content = site(dir.path());
    let server = start(boxed(MappedDir::new(dir.path())));
    let Some(whole) = curl(&server, &["--fail"]) else {
        return;
    };
    assert!(whole.status.success() && whole.stdout == content);
    for (range, expected) in [
        ("0-99", &content[..100]),
        ("999990-", &content[999_990..]),
        ("-5", &content[999_995..]),
    ] {
        let part = curl(&server, &["--fail", "--range", range]).unwrap();
        assert!(part.status.success());
        assert_eq!(part.stdout, expected, "{range}");
    }
    let parts = curl(&server, &["--fail", "--range", "0-9,100-109"]).unwrap();
    let text = String::from_utf8_lossy(&parts.stdout).into_owned();
    assert!(text.contains("Content-Range: bytes 0-9/1000000"), "{text}");
    assert!(
        text.contains("Content-Range: bytes 100-109/1000000"),
        "{text}"
    );
    let head = curl(&server, &["--fail", "--head"]).unwrap();
    let head = String::from_utf8(head.stdout).unwrap().to_ascii_lowercase();
    assert!(head.contains("content-length: 1000000"), "{head}");
    assert!(head.contains("accept-ranges: bytes"), "{head}");
});

both!(resumed_download, |start| {
    let dir = tempfile::tempdir().unwrap();
    let content = site(dir.path());
    let server = start(boxed(MappedDir::new(dir.path())));
    let output = dir.path().join("output");
    let path = output.to_str().unwrap();
    std::fs::write(&output, &content[..333_333]).unwrap();
    let resume = ["--fail", "--continue-at", "-", "--output", path];
    let Some(resumed) = curl(&server, &resume) else {
        return;
    };
    assert!(resumed.status.success(), "{resumed:?}");
    assert!(std::fs::read(&output).unwrap() == content);

    // Replaced before it is resumed: curl does not join the two.
    let head = curl(&server, &["--head"]).unwrap();
    let head = String::from_utf8(head.stdout).unwrap();
    let tag = head
        .lines()
        .find_map(|line| line.strip_prefix("etag: "))
        .unwrap();
    let if_range = format!("If-Range: {tag}");
    let next = dir.path().join("next");
    settled(&next, &vec![b'x'; 1_000_000]);
    std::fs::rename(next, dir.path().join("a")).unwrap();
    std::fs::write(&output, &content[..333_333]).unwrap();
    let resume = [&["--header", &if_range], &resume[..]].concat();
    let resumed = curl(&server, &resume).unwrap();
    // 33: the server has sent the whole file.
    assert_eq!(resumed.status.code(), Some(33), "{resumed:?}");
    assert!(std::fs::read(&output).unwrap() == content[..333_333]);
});

both!(conditional, |start| {
    let dir = tempfile::tempdir().unwrap();
    let content = site(dir.path());
    let server = start(boxed(MappedDir::new(dir.path())));
    let tags = dir.path().join("tags");
    let tags = tags.to_str().unwrap();
    let status = ["--write-out", "%{stderr}%{http_code}"];
    let run = |arguments: &[&str]| {
        let output = curl(&server, &[&status, arguments].concat())?;
        Some((String::from_utf8(output.stderr).unwrap(), output.stdout))
    };
    let Some((status, body)) = run(&["--etag-save", tags]) else {
        return;
    };
    assert!(status == "200" && body == content);
    let (status, body) = run(&["--etag-compare", tags]).unwrap();
    assert_eq!((&*status, &*body), ("304", &b""[..]));
    let path = dir.path().join("a");
    let (status, body) = run(&["--time-cond", path.to_str().unwrap()]).unwrap();
    assert_eq!((&*status, &*body), ("304", &b""[..]));
    let next = dir.path().join("next");
    settled(&next, b"next");
    std::fs::rename(next, path).unwrap();
    let (status, body) = run(&["--etag-compare", tags]).unwrap();
    assert_eq!((&*status, &*body), ("200", &b"next"[..]));
});
