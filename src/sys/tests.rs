//! Tests of the Linux backend against the kernel that they run on.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::os::unix::io::AsRawFd;

use memmap2::{MmapOptions, MmapRaw};

use super::*;

fn sparse(pages: usize) -> (File, MmapRaw) {
    let file = tempfile::tempfile().unwrap();
    file.set_len((pages * page_size()) as u64).unwrap();
    let map = MmapOptions::new().map_raw(&file).unwrap();
    (file, map)
}

fn run(map: &MmapRaw, page: usize, pages: usize) -> Run {
    Run {
        addr: map.as_mut_ptr().wrapping_add(page * page_size()),
        len: pages * page_size(),
    }
}

#[test]
fn populate_write_allocates_and_keeps_bytes() {
    let (file, map) = sparse(64);
    let runs = [run(&map, 0, 1), run(&map, 7, 2), run(&map, 40, 1)];
    // SAFETY: the runs are inside the live, writable map, and inside the file.
    let done = unsafe { try_populate_write(&runs) }.unwrap();
    assert_eq!(done, runs.len());
    file.sync_all().unwrap();
    assert!(file.metadata().unwrap().blocks() > 0);
    assert!(resident(runs[1]).unwrap());
    let content = std::io::read_to_string(&file).unwrap();
    assert!(content.bytes().all(|byte| byte == 0));
}

#[test]
fn populate_error_names_run_past_end() {
    let (file, map) = sparse(64);
    file.set_len(page_size() as u64).unwrap();
    for runs in [
        vec![run(&map, 0, 1), run(&map, 20, 1), run(&map, 0, 1)],
        vec![run(&map, 0, 1), run(&map, 0, 2)],
    ] {
        // SAFETY: the runs are inside the live, writable map; a page past the end of the file is
        // reported as an error.
        let (index, error) = unsafe { try_populate_write(&runs) }.unwrap_err();
        assert_eq!((index, error.raw_os_error()), (1, Some(libc::EFAULT)));
    }
    // SAFETY: the run is inside the live map; as above for the page past the end.
    let error = unsafe { populate_read(run(&map, 3, 1)) }.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
}

#[test]
fn barrier_is_available() {
    assert!(register_barrier());
    barrier().unwrap();
}

#[test]
fn clean_pages_leave_cache_on_hint() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let file = File::create_new(dir.path().join("data")).unwrap();
    let len = 4 << 20;
    std::io::Write::write_all(&mut &file, &vec![1; len]).unwrap();
    start_writeback(&file, 0, len as u64).unwrap();
    sync_file(&file).unwrap();
    let map = MmapOptions::new()
        .len(len)
        .map_raw_read_only(&file)
        .unwrap();
    let all = run(&map, 0, len / page_size());
    assert!(resident(all).unwrap());
    cache_hint(&file, 0, len as u64, CacheHint::DontNeed).unwrap();
    assert!(!resident(all).unwrap());
    cache_hint(&file, 0, len as u64, CacheHint::WillNeed).unwrap();
    // SAFETY: the run is inside the live map, and inside the file.
    unsafe { populate_read(all) }.unwrap();
    assert!(resident(all).unwrap());
}

#[test]
fn allocate_keeps_length() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(100).unwrap();
    allocate(&file, 0, 1 << 20).unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.len(), 100);
    assert!(metadata.blocks() * 512 >= 1 << 20);
}

#[test]
fn copy_contents_ignores_positions() {
    let source = tempfile::tempfile().unwrap();
    let data: Vec<u8> = (0..100_000_u32).map(|at| at as u8).collect();
    std::io::Write::write_all(&mut &source, &data).unwrap();
    let destination = tempfile::tempfile().unwrap();
    copy_contents(&source, &destination, data.len() as u64).unwrap();
    // The position of `destination` is still at its start.
    let mut copy = Vec::new();
    std::io::Read::read_to_end(&mut &destination, &mut copy).unwrap();
    assert!(copy == data);
    let error = copy_contents(&source, &destination, 1 << 20).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}

#[test]
fn search_for_data_advances_whatever_it_is_told() {
    let nowhere = || std::io::Error::from_raw_os_error(libc::ENXIO);
    let found = |data: Option<u64>, hole: Option<u64>| {
        let seek = |_, whence| match whence {
            libc::SEEK_DATA => data.ok_or_else(nowhere),
            _ => hole.ok_or_else(nowhere),
        };
        next_data(seek, 10, 100)
    };
    assert_eq!(found(Some(20), Some(30)), Some(20..30));
    assert_eq!(found(Some(20), Some(200)), Some(20..100));
    assert_eq!(found(Some(20), None), Some(20..100));
    assert_eq!(found(None, None), None);
    assert_eq!(found(Some(100), Some(200)), None);
    // A hole where the data is, or before it; and data before the start.
    assert_eq!(found(Some(20), Some(20)), Some(20..100));
    assert_eq!(found(Some(20), Some(5)), Some(20..100));
    assert_eq!(found(Some(5), Some(8)), Some(10..100));
    assert_eq!(found(Some(5), Some(15)), Some(10..15));
}

#[test]
fn access_and_info_of_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    std::fs::write(&path, b"x").unwrap();
    let read = File::open(&path).unwrap();
    let access = access(&read).unwrap();
    assert!(access.read && !access.write && !access.append);
    let append = std::fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap();
    let access = super::access(&append).unwrap();
    assert!(!access.read && access.write && access.append);
    let (one, other) = (file_info(&read).unwrap(), file_info(&append).unwrap());
    assert_eq!(one.id, other.id);
    assert!(
        one.is_regular
            && !file_info(&File::open(dir.path()).unwrap())
                .unwrap()
                .is_regular
    );
}

#[test]
fn write_at_ignores_o_append() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(10_000).unwrap();
    // SAFETY: the call takes no pointer, and `file` keeps the descriptor open.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_APPEND) };
    if write_without_appending(&file, b"known", 0).is_err() {
        // Before Linux 6.9.
        return;
    }
    write_at(&file, b"here", 100).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 10_000);
    let mut found = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, 100).unwrap();
    assert_eq!(&found, b"here");
}

#[test]
fn refusal_about_one_file_concerns_no_other() {
    // SAFETY: the name is live and ends in a zero byte.
    let sealed =
        unsafe { libc::memfd_create(b"sealed\0".as_ptr().cast(), libc::MFD_ALLOW_SEALING) };
    assert!(sealed >= 0);
    // SAFETY: the descriptor is new, and nothing else owns it.
    let sealed = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(sealed) };
    sealed.set_len(10_000).unwrap();
    // SAFETY: the call takes no pointer, and `sealed` keeps the descriptor open.
    unsafe { libc::fcntl(sealed.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) };
    let refused = write_at(&sealed, b"here", 100).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    write_at_ignores_o_append();
}

#[test]
fn shared_blocks_do_not_count_as_reserved() {
    const LAST: u32 = 1;
    let mut blocks = Blocks::from(100);
    assert!(blocks.add(0, 200, 0) && blocks.add(200, 300, LAST));
    assert!(!blocks.add(300, 400, LAST | EXTENT_SHARED) && blocks.are_shared);
    assert_eq!(blocks.end, 300);
    // With a hole before the extent.
    let mut blocks = Blocks::from(100);
    assert!(!blocks.add(101, 200, EXTENT_SHARED) && !blocks.are_shared);
    assert_eq!(blocks.end, 100);
}

/// Also where the C library counts the bytes of files with 32 bits.
#[test]
fn growth_sees_locks_of_64_bits() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        options.open(dir.path().join("data")).unwrap()
    };
    let (peer, file) = (open(), open());
    let blocked = [(0, 0), (1 << 40, 0), (i64::MAX - 1, 1)];
    let free = [(0, 1 << 40), ((1 << 31) - 2, 1)];
    for (start, len) in blocked {
        linux::set_lock(&peer, libc::F_WRLCK, start, len).unwrap();
        let error = linux::extend_under_lock(&file, 100).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "{start} {len}");
        linux::set_lock(&peer, libc::F_UNLCK, 0, 0).unwrap();
    }
    for (count, (start, len)) in (1..).zip(free) {
        linux::set_lock(&peer, libc::F_WRLCK, start, len).unwrap();
        linux::extend_under_lock(&file, 100 * count).unwrap();
        assert_eq!(file_len(&file).unwrap(), 100 * count);
        linux::set_lock(&peer, libc::F_UNLCK, 0, 0).unwrap();
    }
}

#[test]
fn interrupted_call_is_made_again() {
    let fail_with = |errno| {
        // SAFETY: the pointer is that of the thread's own variable.
        unsafe { *libc::__errno_location() = errno };
        -1
    };
    let mut results = [libc::EINTR, libc::EINTR, 0].into_iter();
    let result = unix::uninterrupted(|| match results.next().unwrap() {
        0 => 7,
        errno => fail_with(errno),
    });
    assert_eq!(result.unwrap(), 7);
    let mut results = [libc::EINTR, libc::EIO].into_iter();
    let failed = unix::uninterrupted(|| fail_with(results.next().unwrap()));
    assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::EIO));
}
