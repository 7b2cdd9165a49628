//! A file that was cut is mapped again, by a shorter map.

use std::fs::File;
use std::sync::mpsc;

use mmap_io::{MemoryMappedFile, MmapAdvice, MmapIoError};

use super::{in_a_child, PAGE};
use crate::common::child::child;
use crate::common::disk::{truncate, MIB};
use crate::common::{block_on, poll_once, with_timeout};

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
