//! A file that was cut is mapped again, by a shorter map: beside an operation that waits for the
//! pool, and with locked pages.

use std::fs::{self, File};
use std::sync::mpsc;

use futures_lite::{AsyncBufReadExt, AsyncReadExt};
use mmap_io::{MemoryMappedFile, MmapAdvice, MmapIoError};

use super::{in_a_child, PAGE};
use crate::common::child::child;
use crate::common::disk::{truncate, MIB};
use crate::common::{block_on, pattern, poll_once, with_timeout};
use crate::refused_calls::refuse;

const LEN: u64 = 64 * MIB;

/// Behind everything that a map of a file of one page reserves.
const FAR: u64 = 32 * MIB;

#[test]
fn advice_waits_while_file_is_mapped_again() {
    let this = child!(advice_waits_while_file_is_mapped_again);
    in_a_child(this.one_pool_thread(), |dir| {
        block_on(async {
            let path = dir.join("data");
            File::create(&path).unwrap().set_len(LEN).unwrap();
            let file = MemoryMappedFile::open_ro(&path).await.unwrap();
            let view = file.bytes(FAR, 1).unwrap();
            // The only thread of the pool, until the sender is dropped.
            let (gate, opens) = mpsc::channel::<()>();
            blocking::unblock(move || opens.recv()).detach();
            let mut refreshed = Box::pin(file.refresh());
            assert!(poll_once(&mut refreshed).await.is_none());
            let mut advised = Box::pin(file.advise(FAR, 1, MmapAdvice::Random));
            assert!(poll_once(&mut advised).await.is_none());
            truncate(&path, PAGE);
            assert_eq!(view[0], 0);
            drop(gate);
            assert_eq!(with_timeout(refreshed).await.unwrap(), PAGE);
            let refused = with_timeout(advised).await.unwrap_err();
            assert!(
                matches!(
                    refused,
                    MmapIoError::OutOfBounds {
                        offset: FAR,
                        len: 1,
                        total: PAGE
                    }
                ),
                "{refused:?}"
            );
            file.advise(0, PAGE, MmapAdvice::Random).await.unwrap();
        });
    });
}

/// A number of bytes in `/proc/self/status`.
fn of_this_process(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = line.unwrap().trim_start_matches(':').trim();
    let kilobytes = kilobytes.trim_end_matches(" kB").parse::<u64>();
    kilobytes.unwrap() << 10
}

/// The system has room for one new map, and not for two.
#[test]
fn pages_stay_locked_if_second_map_is_refused() {
    in_a_child(child!(pages_stay_locked_if_second_map_is_refused), |dir| {
        block_on(async {
            let path = dir.join("data");
            File::create(&path).unwrap().set_len(LEN).unwrap();
            let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
            let writer = MemoryMappedFile::open_rw(&path).await.unwrap();
            reader.lock(0, PAGE).await.unwrap();
            let view = reader.bytes(LEN - 1, 1).unwrap();
            truncate(&path, FAR);
            assert_eq!(view[0], 0);
            let limit_address_space = |most: libc::rlim_t| {
                let limit = libc::rlimit {
                    rlim_cur: most,
                    rlim_max: libc::RLIM_INFINITY,
                };
                // SAFETY: the structure is live for the call.
                assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
            };
            assert_eq!(of_this_process("VmLck"), PAGE);
            // The first map reserves an eighth of the file; what is left is for small allocations.
            // Without a timeout here, which would start a thread.
            let most = of_this_process("VmSize") + FAR + FAR / 4;
            limit_address_space(most as libc::rlim_t);
            let refused = reader.refresh().await.unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::ENOMEM), "{refused:?}");
            assert_eq!(of_this_process("VmLck"), PAGE);
            limit_address_space(libc::RLIM_INFINITY);
            assert_eq!(with_timeout(reader.refresh()).await.unwrap(), FAR);
            assert_eq!(of_this_process("VmLck"), PAGE);
            writer.update_region(0, b"goes on").await.unwrap();
            reader.unlock_all().await.unwrap();
            assert_eq!(of_this_process("VmLck"), 0);
        });
    });
}

/// Pages that were cut off, and could not be unlocked, are not looked for in the new map.
#[test]
fn lost_pages_that_stay_locked_hold_nothing_up() {
    in_a_child(child!(lost_pages_that_stay_locked_hold_nothing_up), |dir| {
        // Before the pool has a thread.
        refuse(libc::SYS_munlock, libc::ENOMEM);
        block_on(async {
            let path = dir.join("data");
            fs::write(&path, vec![1; LEN as usize]).unwrap();
            let file = MemoryMappedFile::open_ro(&path).await.unwrap();
            file.lock(FAR, PAGE).await.unwrap();
            let view = file.bytes(FAR + PAGE, 1).unwrap();
            truncate(&path, PAGE);
            assert_eq!(view[0], 0);
            assert_eq!(with_timeout(file.refresh()).await.unwrap(), PAGE);
            assert_eq!(file.slice(0, 1).await.unwrap(), [1]);
        });
    });
}

/// The buffer of a reader shows the file itself, and so the zeroes of a page that was lost.
#[test]
fn reader_does_not_go_on_with_lost_buffer() {
    in_a_child(child!(reader_does_not_go_on_with_lost_buffer), |dir| {
        block_on(async {
            let path = dir.join("data");
            fs::write(&path, pattern(60_000)).unwrap();
            let file = MemoryMappedFile::open_ro(&path).await.unwrap();
            let view = file.bytes(50_000, 1).unwrap();
            let mut readers = [file.reader(), file.reader()];
            for reader in &mut readers {
                assert_eq!(reader.fill_buf().await.unwrap(), pattern(60_000));
                reader.consume(20_000);
            }
            truncate(&path, PAGE);
            assert_eq!(view[0], 0);
            let errors = [
                readers[0].fill_buf().await.map(drop).unwrap_err(),
                readers[1].read(&mut [0; 10]).await.map(drop).unwrap_err(),
            ];
            for error in errors {
                let cause = error.get_ref().unwrap().downcast_ref();
                assert!(
                    matches!(cause, Some(MmapIoError::Faulted { .. })),
                    "{error:?}"
                );
            }
        });
    });
}
