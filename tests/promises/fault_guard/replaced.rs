//! What replaces lost pages, and where the system has no room for all of it.

use std::fs::{self, File};
use std::hint::black_box;

use mmap_io::MemoryMappedFile;

use super::{assert_faulted, in_a_child, PAGE};
use crate::common::child::child;
use crate::common::disk::{truncate, Disk, MIB};
use crate::common::{block_on, pattern, patterned};
use crate::refused_calls::refuse;

/// A process has a limited number of mappings (65,530), and pages that are replaced one by one
/// split a mapping.
#[test]
fn many_lost_pages_are_survived() {
    const PAGES: u64 = 100_000;
    in_a_child(child!(many_lost_pages_are_survived), |dir| {
        block_on(async {
            // Behind the end of a file.
            let path = dir.join("data");
            File::create(&path).unwrap().set_len(PAGES * PAGE).unwrap();
            let file = MemoryMappedFile::open_ro(&path).await.unwrap();
            let view = file.bytes(0, PAGES * PAGE).unwrap();
            truncate(&path, 10);
            for page in 0..PAGES {
                assert_eq!(black_box(view[(page * PAGE) as usize]), 0);
            }
            assert_faulted(file.slice(0, 1).await, PAGE);
            assert_eq!(file.refresh().await.unwrap(), 10);
            // Every second page of a file of holes, on a file system that is full.
            let Some(disk) = Disk::tmpfs("many_lost_pages_are_survived", MIB) else {
                return;
            };
            let path = disk.path("data");
            File::create(&path).unwrap().set_len(PAGES * PAGE).unwrap();
            let file = MemoryMappedFile::open_rw(&path).await.unwrap();
            file.update_region(PAGE, b"good").await.unwrap();
            let view = file.bytes(0, PAGES * PAGE).unwrap();
            disk.fill();
            for page in (0..PAGES).step_by(2) {
                assert_eq!(black_box(view[(page * PAGE) as usize]), 0);
            }
            assert_eq!(view[PAGE as usize..][..4], *b"good");
            assert_faulted(file.flush().await, 0);
            drop((view, file));
            // The mappings are free again.
            let (path, file) = patterned(dir, 10_000).await;
            let view = file.bytes(0, 10_000).unwrap();
            truncate(&path, 0);
            assert_eq!(view[0], 0);
        });
    });
}

/// The zeroes for all pages that are lost do not fit into the address space at once.
#[test]
fn lost_pages_are_replaced_in_parts() {
    // Room is left for threads that are starting.
    let this = child!(lost_pages_are_replaced_in_parts).one_pool_thread();
    in_a_child(this, |dir| {
        block_on(async {
            const LEN: u64 = 1 << 30;
            let path = dir.join("data");
            File::create(&path).unwrap().set_len(LEN).unwrap();
            let file = MemoryMappedFile::open_ro(&path).await.unwrap();
            let view = file.bytes(0, LEN).unwrap();
            limit_address_space(700 * MIB);
            truncate(&path, 4096);
            for page in (1..LEN / PAGE).step_by(99) {
                assert_eq!(black_box(view[(page * PAGE) as usize]), 0);
            }
            assert_faulted(file.slice(0, 1).await, PAGE);
        });
    });
}

/// Limits the address space of this process to what it has mapped, and `more` bytes.
fn limit_address_space(more: u64) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let mapped: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    let limit = libc::rlimit {
        rlim_cur: (mapped << 10) + more,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the limits are live for the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
}

#[test]
fn lost_pages_are_replaced_where_none_can_be_moved() {
    in_a_child(
        child!(lost_pages_are_replaced_where_none_can_be_moved),
        |dir| {
            refuse(libc::SYS_mremap, libc::EPERM);
            block_on(async {
                let (path, file) = patterned(dir, 100_000).await;
                let view = file.bytes(0, 100_000).unwrap();
                truncate(&path, 5000);
                assert_eq!(view[..5000], pattern(5000));
                assert!(view[8192..].iter().all(|byte| *byte == 0));
                assert_faulted(file.slice(0, 1).await, 8192);
            });
        },
    );
}
