//! Symbolic links: none leaves the root, whether links are followed or not.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use mmap_io_http::{MappedDir, MappedFile};

use crate::client::get;
use crate::server::boxed;
use crate::{both, settled, skip};

/// Whether the system has `openat2`, without which no link is followed.
fn can_follow() -> bool {
    use rustix::fs::{openat2, Mode, OFlags, ResolveFlags, CWD};
    openat2(CWD, ".", OFlags::PATH, Mode::empty(), ResolveFlags::empty()).is_ok()
}

both!(links, |start| {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    settled(&dir.path().join("secret"), b"secret");
    settled(&root.join("a"), b"content");
    settled(&root.join("sub/b"), b"below");
    symlink("a", root.join("inside")).unwrap();
    symlink("sub", root.join("subdirectory")).unwrap();
    symlink("../a", root.join("sub/up")).unwrap();
    symlink("../secret", root.join("outside")).unwrap();
    symlink("..", root.join("parent")).unwrap();
    symlink("sub/../../secret", root.join("detour")).unwrap();
    symlink(root.join("a"), root.join("absolute")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    symlink("/proc/self/root", root.join("magic")).unwrap();
    let never = [
        "/outside",
        "/parent/secret",
        "/detour",
        "/absolute",
        "/loop",
    ];

    let server = start(boxed(MappedDir::new(&root)));
    for target in never
        .into_iter()
        .chain(["/inside", "/subdirectory/b", "/sub/up"])
    {
        assert_eq!(get(server.address, target, &[]).status, 404, "{target}");
    }
    assert_eq!(get(server.address, "/sub/b", &[]).body, b"below");

    let server = start(boxed(MappedDir::new(&root).follow_symlinks(true)));
    for target in never.into_iter().chain(["/magic/etc/hostname"]) {
        assert_eq!(get(server.address, target, &[]).status, 404, "{target}");
    }
    if !can_follow() {
        return skip("links", "the system has no openat2");
    }
    for (target, content) in [
        ("/inside", "content"),
        ("/subdirectory/b", "below"),
        ("/sub/up", "content"),
    ] {
        assert_eq!(
            get(server.address, target, &[]).body,
            content.as_bytes(),
            "{target}"
        );
    }
});

// The root and the path of a file are the caller's choice.
both!(links_to_the_root, |start| {
    let dir = tempfile::tempdir().unwrap();
    let release = |name: &str| dir.path().join(name);
    settled(&release("1/a"), b"first");
    settled(&release("2/a"), b"second");
    let current = release("current");
    symlink("1", &current).unwrap();
    let directory = start(boxed(MappedDir::new(&current)));
    let file = start(boxed(MappedFile::new(current.join("a"))));
    for content in ["first", "second"] {
        assert_eq!(get(directory.address, "/a", &[]).body, content.as_bytes());
        assert_eq!(get(file.address, "/", &[]).body, content.as_bytes());
        symlink("2", release("next")).unwrap();
        fs::rename(release("next"), &current).unwrap();
    }
});

// Check and use are one call: a directory that becomes a link in between leads nowhere.
both!(directory_becomes_a_link, |start| {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    settled(&dir.path().join("outside/a"), b"secret");
    settled(&root.join("real/a"), b"content");
    symlink("../outside", root.join("link")).unwrap();
    let (real, link, name) = (root.join("real"), root.join("link"), root.join("name"));
    let service = MappedDir::new(&root)
        .follow_symlinks(true)
        .cache_limits(0, 0);
    let server = start(boxed(service));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for target in [&real, &link] {
                    fs::rename(target, &name).unwrap();
                    fs::rename(&name, target).unwrap();
                }
            }
        });
        let mut served = 0;
        for _ in 0..300 {
            let answer = get(server.address, "/name/a", &[]);
            assert_ne!(answer.body, b"secret");
            served += u32::from(answer.status == 200);
        }
        done.store(true, Ordering::Relaxed);
        println!("served {served} times");
    });
});
