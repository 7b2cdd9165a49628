//! Sandboxes refuse system calls: every operation works nevertheless, or returns an error.
//!
//! Each call is refused in a process of its own, by a filter that the pool's threads inherit.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use mmap_io::{MemoryMappedFile, MmapIoError, MmapMode};

use crate::common::child::{child, child_dir};
use crate::common::{block_on, on_a_disk, pattern};

const MIB: u64 = 1 << 20;
const CACHESTAT: libc::c_long = 451;

/// The calls that the crate makes and can do without. Calls that open, map, cut and sync are not
/// among them.
const CALLS: [(&str, libc::c_long); 17] = [
    ("fallocate", libc::SYS_fallocate),
    ("sync_file_range", libc::SYS_sync_file_range),
    ("copy_file_range", libc::SYS_copy_file_range),
    ("mincore", libc::SYS_mincore),
    ("cachestat", CACHESTAT),
    ("membarrier", libc::SYS_membarrier),
    ("madvise", libc::SYS_madvise),
    ("process_madvise", libc::SYS_process_madvise),
    ("statx", libc::SYS_statx),
    ("ioctl", libc::SYS_ioctl),
    ("fadvise64", libc::SYS_fadvise64),
    ("faccessat2", libc::SYS_faccessat2),
    ("pwritev2", libc::SYS_pwritev2),
    ("utimensat", libc::SYS_utimensat),
    ("prlimit64", libc::SYS_prlimit64),
    ("fstatfs", libc::SYS_fstatfs),
    ("lseek", libc::SYS_lseek),
];

/// What `replace` can do without: the new file then lacks what the calls would give it.
const ATTRIBUTE_CALLS: [(&str, libc::c_long); 5] = [
    ("fchown", libc::SYS_fchown),
    ("fremovexattr", libc::SYS_fremovexattr),
    ("llistxattr", libc::SYS_llistxattr),
    ("lgetxattr", libc::SYS_lgetxattr),
    ("fsetxattr", libc::SYS_fsetxattr),
];

const ERRNO: u32 = 0x0005_0000;

/// From now on a call fails with `errno`, on this thread and those that it starts.
pub(crate) fn refuse(call: libc::c_long, errno: libc::c_int) {
    filter(call, None, ERRNO | errno as u32);
}

/// From now on a call kills the process.
fn kill_for(call: libc::c_long) {
    const KILL_PROCESS: u32 = 0x8000_0000;
    filter(call, None, KILL_PROCESS);
}

/// From now on this thread, and those that it starts, find a kernel that does not know how to
/// populate pages, as before Linux 5.14.
pub(crate) fn refuse_populating() {
    const INVALID: u32 = ERRNO | libc::EINVAL as u32;
    /// `madvise(address, length, advice)`
    const ADVICE: u32 = 2;
    for advice in [libc::MADV_POPULATE_READ, libc::MADV_POPULATE_WRITE] {
        filter(libc::SYS_madvise, Some((ADVICE, advice as u32)), INVALID);
    }
    filter(libc::SYS_process_madvise, None, INVALID);
}

/// Answers a call with `action`, on this thread and those that it starts; with `argument`, only
/// where the argument of that index has that value.
fn filter(call: libc::c_long, argument: Option<(u32, u32)>, action: u32) {
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    let step = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    // `struct seccomp_data`: the number of the call is at 0, the arguments have 8 bytes each.
    let low_word = if cfg!(target_endian = "little") { 0 } else { 4 };
    let argument = argument.map(|(index, value)| (16 + 8 * index + low_word, value));
    let mut steps = Vec::new();
    for (at, value) in argument.into_iter().chain([(0, call as u32)]) {
        let to_the_end = if at == 0 { 1 } else { 3 };
        steps.push(step(LOAD, 0, at));
        steps.push(step(JUMP_IF_EQUAL, to_the_end, value));
    }
    steps.extend([step(RETURN, 0, action), step(RETURN, 0, ALLOW)]);
    let program = libc::sock_fprog {
        len: steps.len() as u16,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: the call takes no pointer.
    let no_new = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(no_new, 0);
    // SAFETY: the program and its steps are live for the call.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, 2, &program) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// Only advice may fail because a call is refused.
fn may_be_refused(advised: mmap_io::Result<()>, errno: libc::c_int) {
    match advised {
        Err(MmapIoError::AdviceFailed(error)) => assert_eq!(error.raw_os_error(), Some(errno)),
        advised => advised.unwrap(),
    }
}

async fn everything(dir: &Path, errno: libc::c_int) {
    let path = dir.join("data");
    let mut content = vec![0; 64 << 20];
    let builder = MemoryMappedFile::builder(&path).size(64 * MIB);
    let file = builder.touch_mtime(true).create().await.unwrap();
    let mut write = |at: usize, data: &[u8]| content[at..at + data.len()].copy_from_slice(data);

    // Small and large writes, into holes and over written bytes.
    for _ in 0..2 {
        let (small, large) = (pattern(100), pattern(MIB as usize));
        file.update_region(10, &small).await.unwrap();
        write(10, &small);
        file.update_region(5 * MIB + 7, &large).await.unwrap();
        write((5 * MIB + 7) as usize, &large);
        file.update_regions(&[(20 * MIB, &small), (30 * MIB, &large)])
            .await
            .unwrap();
        write((20 * MIB) as usize, &small);
        write((30 * MIB) as usize, &large);
        let far: &[(u64, &[u8])] = &[(0, b"near"), (60 * MIB, b"far")];
        file.update_regions_async(far).await.unwrap();
        write(0, b"near");
        write((60 * MIB) as usize, b"far");
        file.update_region_async(5, b"later").await.unwrap();
        write(5, b"later");
        file.schedule_flush().await.unwrap();
        file.flush().await.unwrap();
    }
    let mut view = file.as_slice_mut(40 * MIB, 9 * MIB).await.unwrap();
    view.fill(3);
    write((40 * MIB) as usize, &view);
    view.commit().await.unwrap();

    may_be_refused(file.prefetch_range(0, 64 * MIB).await, errno);
    may_be_refused(file.evict(0, 64 * MIB).await, errno);
    assert!(*file.slice(0, 64 * MIB).await.unwrap() == *content);
    assert_eq!(file.read_bytes(60 * MIB, 3).await.unwrap(), "far");
    file.touch_pages().await.unwrap();

    assert_eq!(file.copy_to(dir.join("copy")).await.unwrap(), 64 * MIB);
    assert!(fs::read(dir.join("copy")).unwrap() == content);

    assert_eq!(file.grow_to(70 * MIB).await.unwrap(), 70 * MIB);
    file.resize(1000).await.unwrap();
    drop(MemoryMappedFile::open_rw(&path).await.unwrap());
    let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
    assert_eq!(*reader.slice(0, 1000).await.unwrap(), content[..1000]);
    assert_eq!(file.last_flush_error().map(|error| error.to_string()), None);
    file.close().await.unwrap();
}

#[test]
fn operations_work_without_optional_calls() {
    for (name, _) in CALLS {
        for errno in [libc::EPERM, libc::ENOSYS] {
            if (name, errno) == ("statx", libc::EPERM) {
                // The standard library asks for metadata that way, and takes this for the answer.
                continue;
            }
            let dir = on_a_disk();
            let order = format!("{name} {errno}");
            fs::write(dir.path().join("refused"), order).unwrap();
            println!("{name}, {errno}");
            let printed = child!(refusing_child).dir(dir.path()).passes();
            assert!(printed.contains("works without"), "{printed}");
        }
    }
}

#[test]
fn refusing_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let order = fs::read_to_string(dir.join("refused")).unwrap();
    let (name, errno) = order.split_once(' ').unwrap();
    let errno = errno.parse().unwrap();
    let call = CALLS.iter().find(|(known, _)| *known == name).unwrap().1;
    refuse(call, errno);
    block_on(everything(&dir, errno));
    println!("works without {name}");
}

#[test]
fn replace_works_without_attributes() {
    for (name, _) in ATTRIBUTE_CALLS {
        for errno in [libc::EPERM, libc::ENOSYS] {
            let dir = on_a_disk();
            let path = dir.path().join("data");
            fs::write(&path, "old").unwrap();
            // Where the process may not do this, fewer attributes have to be kept.
            let _ = std::os::unix::fs::chown(&path, Some(1234), Some(1234));
            let file = CString::new(path.to_str().unwrap()).unwrap();
            // SAFETY: both names are live C strings, and the value has one byte.
            unsafe {
                libc::setxattr(
                    file.as_ptr(),
                    c"user.kind".as_ptr(),
                    b"1".as_ptr().cast(),
                    1,
                    0,
                )
            };
            fs::write(dir.path().join("refused"), format!("{name} {errno}")).unwrap();
            println!("{name}, {errno}");
            child!(replacing_child).dir(dir.path()).passes();
            assert_eq!(fs::read(&path).unwrap(), b"new");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        }
    }
}

#[test]
fn replacing_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let order = fs::read_to_string(dir.join("refused")).unwrap();
    let (name, errno) = order.split_once(' ').unwrap();
    let errno = errno.parse().unwrap();
    let mut calls = ATTRIBUTE_CALLS.iter();
    refuse(calls.find(|(known, _)| *known == name).unwrap().1, errno);
    block_on(mmap_io::replace(dir.join("data"), "new")).unwrap();
}

#[test]
fn operations_work_without_populate() {
    let dir = on_a_disk();
    let printed = child!(unpopulating_child).dir(dir.path()).passes();
    assert!(printed.contains("works without"), "{printed}");
}

#[test]
fn unpopulating_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    refuse_populating();
    block_on(everything(&dir, libc::EINVAL));
    block_on(async {
        // The pages are only read, so that a store to one may fault.
        let file = MemoryMappedFile::create_rw(dir.join("more"), 8192).await;
        let file = file.unwrap();
        // Many, since a write is queued while the job of the one before has not quite ended.
        for _ in 0..100 {
            file.update_region(10, b"small").await.unwrap();
        }
        assert_eq!(file.stats().inline_updates, 0);
    });
    println!("works without populating");
}

/// A descriptor for direct I/O reads whole blocks only.
#[test]
fn direct_descriptor_works_without_populate() {
    let dir = on_a_disk();
    fs::write(dir.path().join("data"), pattern(MIB as usize)).unwrap();
    let printed = child!(direct_child).dir(dir.path()).passes();
    assert!(printed.contains("works without"), "{printed}");
}

#[test]
fn direct_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let path = dir.join("data");
    let mut options = File::options();
    let options = options.read(true).write(true);
    let direct = match options.custom_flags(libc::O_DIRECT).open(&path) {
        Ok(direct) => direct,
        Err(error) => return println!("works without direct I/O: {error}"),
    };
    refuse_populating();
    block_on(async {
        let file = MemoryMappedFile::from_file(direct, MmapMode::ReadWrite, &path);
        let file = file.await.unwrap();
        file.evict(0, MIB).await.unwrap();
        file.touch_pages().await.unwrap();
        file.evict(0, MIB).await.unwrap();
        assert_eq!(*file.slice(0, MIB).await.unwrap(), pattern(MIB as usize));
        file.update_region_async(100, b"written").await.unwrap();
        file.append(b"appended").await.unwrap();
        let there = fs::read(&path).unwrap();
        assert_eq!(there[100..107], *b"written");
        assert_eq!(there[MIB as usize..], *b"appended");
    });
    println!("works without populating");
}

/// A shrink of this process waits for leases, and a read that goes on has none yet.
#[test]
fn shrink_beside_reads_works_without_populate() {
    let dir = on_a_disk();
    let printed = child!(shrinking_child)
        .dir(dir.path())
        .usual_pool()
        .passes();
    assert!(printed.contains("works without"), "{printed}");
}

#[test]
fn shrinking_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    refuse_populating();
    let file = block_on(MemoryMappedFile::create_rw(dir.join("data"), 64 * MIB)).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                block_on(file.touch_pages()).unwrap();
            }
        });
        block_on(async {
            for _ in 0..50 {
                file.resize(4096).await.unwrap();
                file.grow_to(64 * MIB).await.unwrap();
            }
        });
        is_over.store(true, Ordering::Relaxed);
    });
    println!("works without populating");
}

#[test]
fn stopped_probing_makes_no_probe_call() {
    let dir = on_a_disk();
    let printed = child!(unprobing_child).dir(dir.path()).passes();
    assert!(printed.contains("works without"), "{printed}");
}

#[test]
fn unprobing_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    mmap_io::utils::stop_probing_residency();
    kill_for(libc::SYS_mincore);
    kill_for(CACHESTAT);
    block_on(everything(&dir, 0));
    block_on(async {
        let memory = mmap_io::AnonymousMmap::new(100_000).unwrap();
        assert_eq!(memory.slice(0, 10).await.unwrap(), [0; 10]);
        // Every read hops.
        let file = MemoryMappedFile::create_rw(dir.join("more"), 8192)
            .await
            .unwrap();
        for _ in 0..3 {
            let before = file.stats().pool_hops;
            file.slice(0, 10).await.unwrap();
            assert_eq!(file.stats().pool_hops, before + 1);
        }
    });
    println!("works without mincore and cachestat");
}

/// A program that gives its descriptor away keeps the locks that it has set through it.
#[test]
fn growth_under_lock_keeps_locks_of_descriptor() {
    let dir = on_a_disk();
    fs::write(dir.path().join("data"), pattern(1000)).unwrap();
    child!(growing_child).dir(dir.path()).passes();
}

#[test]
fn growing_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    refuse(libc::SYS_fallocate, libc::ENOSYS);
    let path = dir.join("data");
    let open = || File::options().read(true).write(true).open(&path).unwrap();
    let (file, other) = (open(), open());
    let lock = |file: &File, command| {
        // SAFETY: all-zero bytes are a valid `flock`.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = libc::F_WRLCK as libc::c_short;
        lock.l_len = 100;
        // SAFETY: `lock` is live for the call, and `file` keeps the descriptor open.
        let done = unsafe { libc::fcntl(file.as_raw_fd(), command, &mut lock) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        lock.l_type != libc::F_UNLCK as libc::c_short
    };
    lock(&file, libc::F_OFD_SETLK);
    assert!(lock(&other, libc::F_OFD_GETLK));
    block_on(async {
        let mapped = MemoryMappedFile::from_file(file, MmapMode::ReadWrite, &path);
        let mapped = mapped.await.unwrap();
        assert_eq!(mapped.grow_to(20_000).await.unwrap(), 20_000);
        assert!(lock(&other, libc::F_OFD_GETLK));
        drop(mapped);
    });
}
