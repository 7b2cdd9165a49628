//! Attributes, full disks, limits, and a process that is killed.

use std::ffi::CString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{chown, MetadataExt, PermissionsExt};
use std::os::unix::io::AsRawFd;
use std::path::PathBuf;
use std::process::Stdio;

use mmap_io::MmapIoError;

use super::*;
use crate::common::child::{child, child_dir};
use crate::common::disk::{assert_full, truncate, Disk, MIB};
use crate::common::{on_a_disk, skip};

const ACL: &str = "system.posix_acl_access";
const DEFAULT_ACL: &str = "system.posix_acl_default";

/// The temporary files in a directory.
fn temporary(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let is_temporary = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let random = name.strip_prefix(".mmap-io-replace-");
        random.is_some_and(|random| random.len() == 16)
    };
    entries.filter(is_temporary).collect()
}

fn is_root() -> bool {
    // SAFETY: the call takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Returns `false` if the file system has no such attributes.
fn set_attribute(path: &Path, name: &str, value: &[u8]) -> bool {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let name = CString::new(name).unwrap();
    let (path, name, at) = (path.as_ptr(), name.as_ptr(), value.as_ptr().cast());
    // SAFETY: both names are live C strings, and `value` has as many bytes as the call is told.
    unsafe { libc::setxattr(path, name, at, value.len(), 0) == 0 }
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let name = CString::new(name).unwrap();
    let mut value = vec![0; 1 << 16];
    let (path, name, at) = (path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast());
    // SAFETY: both names are live C strings, and `value` has as many bytes as the call is told.
    let len = unsafe { libc::getxattr(path, name, at, value.len()) };
    value.truncate(usize::try_from(len).ok()?);
    Some(value)
}

/// An access control list that lets one more user read.
fn acl(user: u32) -> Vec<u8> {
    const NONE: u32 = u32::MAX;
    let entries: [(u16, u16, u32); 5] = [
        (0x01, 6, NONE),
        (0x02, 4, user),
        (0x04, 0, NONE),
        (0x10, 4, NONE),
        (0x20, 0, NONE),
    ];
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        acl.extend(tag.to_le_bytes());
        acl.extend(rights.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

#[test]
fn replace_keeps_attributes() {
    let dir = on_a_disk();
    let path = dir.path().join("data");
    fs::write(&path, "old").unwrap();
    if !set_attribute(&path, "user.kind", b"index") {
        return skip("replace_keeps_attributes", "no attributes on this disk");
    }
    let large = vec![7; 1000];
    assert!(set_attribute(&path, "user.large", &large));
    assert!(set_attribute(&path, "user.empty", b""));
    let has_acl = set_attribute(&path, ACL, &acl(1234));
    let mode = fs::metadata(&path).unwrap().mode();
    block_on(replace(&path, "new")).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(attribute(&path, "user.kind").unwrap(), b"index");
    assert_eq!(attribute(&path, "user.large").unwrap(), large);
    assert_eq!(attribute(&path, "user.empty").unwrap(), b"");
    assert_eq!(fs::metadata(&path).unwrap().mode(), mode);
    if has_acl {
        assert_eq!(attribute(&path, ACL).unwrap(), acl(1234));
    }
}

/// A directory can have a list for the files that are created in it; the old file is older.
#[test]
fn default_acl_lets_in_no_others() {
    let dir = on_a_disk();
    let path = dir.path().join("data");
    fs::write(&path, "old").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
    if !set_attribute(dir.path(), DEFAULT_ACL, &acl(1234)) {
        return skip("default_acl_lets_in_no_others", "no access control lists");
    }
    let other = dir.path().join("other");
    fs::write(&other, "").unwrap();
    assert!(attribute(&other, ACL).is_some());
    block_on(replace(&path, "new")).unwrap();
    assert_eq!(attribute(&path, ACL), None);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o660);
}

#[test]
fn root_keeps_the_owner() {
    if !is_root() {
        return skip("root_keeps_the_owner", "needs root, to give files away");
    }
    let dir = on_a_disk();
    let path = dir.path().join("data");
    fs::write(&path, "old").unwrap();
    chown(&path, Some(1234), Some(5678)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6750)).unwrap();
    block_on(replace(&path, "new")).unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (1234, 5678));
    assert_eq!(metadata.mode() & 0o7777, 0o6750);
}

#[test]
fn new_group_gets_no_more_rights() {
    if !is_root() {
        return skip(
            "new_group_gets_no_more_rights",
            "needs root, to be another user",
        );
    }
    let dir = on_a_disk();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let files = [
        ("secret", 0, 0o640, 0o600),
        ("public", 0, 0o664, 0o644),
        ("special", 0, 0o6775, 0o755),
        // The child is in this group, and keeps it.
        ("shared", 5678, 0o2660, 0o660),
    ];
    for (name, group, mode, _) in files {
        let path = dir.path().join(name);
        fs::write(&path, "old").unwrap();
        chown(&path, Some(0), Some(group)).unwrap();
        set_attribute(&path, ACL, &acl(999));
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    child!(other_users_child).dir(dir.path()).passes();
    for (name, group, _, expected) in files {
        let path = dir.path().join(name);
        assert_eq!(fs::read(&path).unwrap(), b"new", "{name}");
        let metadata = fs::metadata(&path).unwrap();
        let group = if group == 0 { 4321 } else { group };
        assert_eq!((metadata.uid(), metadata.gid()), (4321, group), "{name}");
        assert_eq!(metadata.mode() & 0o7777, expected, "{name}");
        assert_eq!(attribute(&path, ACL).is_some(), group == 5678, "{name}");
    }
}

/// The name of the new file has to become durable in another way then.
#[test]
fn directory_need_not_be_readable() {
    if !is_root() {
        return skip(
            "directory_need_not_be_readable",
            "needs root, to be another user",
        );
    }
    let dir = on_a_disk();
    let path = dir.path().join("secret");
    fs::write(&path, "old").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o333)).unwrap();
    child!(other_users_child).dir(dir.path()).passes();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(temporary(dir.path()), Vec::<PathBuf>::new());
}

/// Closing any descriptor of the old file would release them.
#[test]
fn replace_releases_no_locks() {
    let dir = tempfile::tempdir().unwrap();
    let (path, link) = (dir.path().join("data"), dir.path().join("link"));
    fs::write(&path, "old").unwrap();
    fs::hard_link(&path, &link).unwrap();
    let locked = fs::File::options().write(true).open(&path).unwrap();
    // SAFETY: the lock is live for the call, and `locked` keeps the descriptor open.
    let set = unsafe { libc::fcntl(locked.as_raw_fd(), libc::F_SETLK, &write_lock()) };
    assert_eq!(set, 0);
    block_on(replace(&path, "new")).unwrap();
    let printed = child!(lock_finding_child).dir(dir.path()).passes();
    assert!(printed.contains("it is locked"), "{printed}");
    drop(locked);
}

fn write_lock() -> libc::flock {
    // SAFETY: all-zero bytes are a valid `flock`: the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock
}

#[test]
fn lock_finding_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let file = fs::File::options()
        .write(true)
        .open(dir.join("link"))
        .unwrap();
    let mut lock = write_lock();
    // SAFETY: the lock is live for the call, and `file` keeps the descriptor open.
    let asked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &mut lock) };
    assert_eq!(asked, 0);
    if lock.l_type == libc::F_WRLCK as libc::c_short {
        println!("it is locked");
    }
}

/// Replaces files as a user who may neither give files away nor keep their group.
#[test]
fn other_users_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    // SAFETY: the calls take no pointer but that to one live group.
    unsafe {
        assert_eq!(libc::setgroups(1, &5678), 0);
        assert_eq!(libc::setresgid(4321, 4321, 4321), 0);
        assert_eq!(libc::setresuid(4321, 4321, 4321), 0);
    }
    for name in ["secret", "public", "special", "shared"] {
        if dir.join(name).exists() {
            block_on(replace(dir.join(name), "new")).unwrap();
        }
    }
}

#[test]
fn full_disk_leaves_old_file() {
    let image = tempfile::tempdir().unwrap();
    let image = image.path().join("image");
    let test = "full_disk_leaves_old_file";
    let disks = [
        Disk::tmpfs(test, 4 * MIB),
        Disk::ext4(test, &image, 8 * MIB),
    ];
    for disk in disks.into_iter().flatten() {
        let path = disk.path("data");
        fs::write(&path, pattern(1000)).unwrap();
        let dir = path.parent().unwrap();
        let before = entries(dir);
        block_on(async {
            let old = MemoryMappedFile::open_rw(&path).await.unwrap();
            assert_full(replace(&path, vec![1; 9 << 20]).await);
            // Here the disk looks large enough before, and is full in the middle.
            disk.fill();
            assert_full(replace(&path, vec![1; 1 << 20]).await);
            assert_eq!(fs::read(&path).unwrap(), pattern(1000));
            assert!(old.is_at_path().await.unwrap());
        });
        assert_eq!(temporary(dir), Vec::<PathBuf>::new());
        assert_eq!(entries(dir), before + 1);
    }
}

#[test]
fn truncated_content_leaves_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config");
    fs::write(&path, "old").unwrap();
    block_on(async {
        let (source, file) = patterned(dir.path(), 100_000).await;
        let content = file.bytes(50_000, 50_000).unwrap();
        truncate(&source, 60_000);
        let error = replace(&path, content).await.unwrap_err();
        assert!(matches!(error, MmapIoError::Truncated { .. }), "{error:?}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
    });
    assert_eq!(entries(dir.path()), 2);
}

/// Writing past the limit would end the process by a signal.
#[test]
fn limit_on_file_size_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    child!(limited_child).dir(dir.path()).passes();
    assert_eq!(fs::read(dir.path().join("data")).unwrap(), [1; 1000]);
    assert_eq!(entries(dir.path()), 1);
}

#[test]
fn limited_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let limit = libc::rlimit {
        rlim_cur: 10_000,
        rlim_max: 10_000,
    };
    // SAFETY: the limit is live for the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
    block_on(replace(dir.join("data"), vec![1; 1000])).unwrap();
    let refused = block_on(replace(dir.join("data"), vec![2; 10_001])).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EFBIG));
}

/// The content that is put there in the n-th replacement.
fn version(number: u64) -> Vec<u8> {
    let mut content = number.to_le_bytes().to_vec();
    content.resize(8 + (number as usize * 77_777) % 300_000, number as u8);
    content
}

#[test]
fn replacing_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let first: u64 = std::env::var("MMAP_IO_TEST_FIRST")
        .unwrap()
        .parse()
        .unwrap();
    for number in first.. {
        block_on(replace(dir.join("data"), version(number))).unwrap();
        let mut output = std::io::stdout();
        output
            .write_all(format!("\nreplaced {number}\n").as_bytes())
            .unwrap();
        output.flush().unwrap();
    }
}

#[test]
fn killed_replace_leaves_whole_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, version(0)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut last = 0;
    for round in 0..15 {
        let child = child!(replacing_child).dir(dir.path());
        let child = child.env("MMAP_IO_TEST_FIRST", &(last + 1).to_string());
        let mut child = child.command().stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut acknowledged = |line: &str| {
            let number = line
                .strip_prefix("replaced ")
                .and_then(|number| number.strip_suffix('\n'));
            number
                .map(|number| last = number.parse().unwrap())
                .is_some()
        };
        let (mut heard, mut line) = (0, String::new());
        while heard < 1 + round * 5 % 13 {
            line.clear();
            assert!(
                output.read_line(&mut line).unwrap() > 0,
                "the child has ended"
            );
            heard += usize::from(acknowledged(&line));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        line.clear();
        output.read_to_string(&mut line).unwrap();
        line.split_inclusive('\n').for_each(|line| {
            acknowledged(line);
        });
        let found = fs::read(&path).unwrap();
        let number = u64::from_le_bytes(found[..8].try_into().unwrap());
        // The next one may have been put there without a word.
        assert!([last, last + 1].contains(&number), "{number} after {last}");
        assert!(found == version(number), "version {number} is not whole");
        for left in temporary(dir.path()) {
            // Until it is whole, the process's own user alone can open it.
            let is_private = fs::metadata(&left).unwrap().mode() & 0o777 == 0o600;
            assert!(is_private || fs::read(&left).unwrap() == version(last + 1));
            fs::remove_file(left).unwrap();
        }
        assert_eq!(entries(dir.path()), 1);
        last = number;
    }
}
