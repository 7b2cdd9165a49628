//! What holds for every `Bytes` of a file: it is the mapping itself, at an address that its offset
//! decides, and it keeps nothing but its own bytes from being written. What could break: a copy on
//! some path, an alignment that only most ranges have, and a lease or a map that ends too early.

use std::fs;
use std::mem::align_of;

use bytes::Bytes;
use futures_lite::StreamExt;
use mmap_io::{MemoryMappedFile, MmapMode};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Ref};

use crate::common::child::{child, with_one_pool_thread};
use crate::common::operations::BusyPool;
use crate::common::{
    assert_waits, block_on, eventually, pattern, patterned, rt_test, wait_until, with_timeout,
};

const LEN: usize = 100_000;

/// The `Bytes` that each read gives of a range of more than 0 bytes, all at the same time.
async fn all_bytes(file: &MemoryMappedFile, at: u64, len: u64) -> Vec<(&'static str, Bytes)> {
    let mut regions = file.read_regions(&[(0, 1), (at, len)]).await.unwrap();
    let mut stream = file.stream(at..at + len, usize::MAX).unwrap();
    vec![
        ("bytes", file.bytes(at, len).unwrap()),
        ("read_bytes", file.read_bytes(at, len).await.unwrap()),
        ("read_regions", regions.remove(1)),
        ("stream", stream.next().await.unwrap().unwrap()),
    ]
}

rt_test!(bytes_are_the_mapping, |dir| {
    let (path, writer) = patterned(dir, LEN).await;
    let reader = MemoryMappedFile::open_ro(path).await.unwrap();
    for file in [&writer, &reader] {
        let base = file.as_slice(0, 1).unwrap().as_ptr() as usize;
        assert_eq!(base % mmap_io::utils::page_size(), 0);
        for (at, len) in [(0, LEN), (1, 1), (4095, 2), (4096, 4096), (LEN - 1, 1)] {
            let view = file.as_slice(at as u64, len as u64).unwrap();
            assert_eq!(view.as_ptr() as usize, base + at);
            for (name, bytes) in all_bytes(file, at as u64, len as u64).await {
                assert_eq!(bytes.as_ptr() as usize, base + at, "{name}");
                assert_eq!(bytes, pattern(LEN)[at..at + len], "{name}");
                let part = bytes.clone().slice(len / 2..);
                assert_eq!(part.as_ptr() as usize, base + at + len / 2, "{name}");
            }
        }
    }
    // A writable handle and a read-only one have a mapping each.
    let both = [&writer, &reader].map(|file| file.bytes(0, 10).unwrap().as_ptr());
    assert_ne!(both[0], both[1]);
});

rt_test!(lent_buffer_is_the_mapping, |dir| {
    use futures_lite::AsyncBufReadExt;
    let (path, writer) = patterned(dir, LEN).await;
    let reader = MemoryMappedFile::open_ro(path).await.unwrap();
    for (file, is_lent) in [(&reader, true), (&writer, false)] {
        let view = file.as_slice(500, 10).unwrap();
        let mut reader = file.reader_range(500..).unwrap();
        let buffer = reader.fill_buf().await.unwrap();
        assert_eq!(buffer[..10], *view);
        assert_eq!(buffer.as_ptr() == view.as_ptr(), is_lent);
    }
});

rt_test!(bytes_delay_only_overlapping_writes, |dir| {
    let (_, file) = patterned(dir, LEN).await;
    let (at, len) = (5000, 3000);
    for kind in 0..4 {
        let (name, whole) = all_bytes(&file, at, len).await.swap_remove(kind);
        // A part keeps the lease of the whole.
        let part = whole.clone().slice(1000..1001);
        drop(whole);
        wait_until(&file, |stats| stats.views == 1).await;
        for (at, len) in [(at - 1, 1), (at + len, 1), (0, at), (at + len, 10_000)] {
            let data = vec![7; len as usize];
            with_timeout(file.update_region(at, &data)).await.unwrap();
        }
        for at in [at, at + 1000, at + len - 1] {
            assert!(!file.try_update_region(at, b"x").await.unwrap(), "{name}");
        }
        let mut write = Box::pin(file.update_region(at + len - 1, b"xy"));
        assert_waits(&file, 0, &mut write).await;
        assert_eq!(part, pattern(LEN)[6000..6001]);
        drop(part);
        with_timeout(write).await.unwrap();
    }
});

rt_test!(bytes_survive_all_that_made_them, |dir| {
    for mode in [MmapMode::ReadOnly, MmapMode::ReadWrite] {
        let (path, writer) = patterned(dir, LEN).await;
        let builder = MemoryMappedFile::builder(&path).mode(mode);
        let file = builder.open().await.unwrap();
        let all = all_bytes(&file, 4000, 50_000).await;
        let is_whole = |step: &str| {
            for (name, bytes) in &all {
                assert_eq!(*bytes, pattern(LEN)[4000..54_000], "{name} after {step}");
            }
        };
        // Inside the reserved address space, and far beyond it.
        for size in [LEN + 1, 2 << 20, 40 << 20] {
            with_timeout(writer.resize(size as u64)).await.unwrap();
            with_timeout(writer.update_region(LEN as u64, b"x"))
                .await
                .unwrap();
            is_whole("growth");
        }
        // The lease stands, also against a handle that comes later.
        with_timeout(writer.resize(54_000)).await.unwrap();
        drop((file, writer));
        is_whole("the drop of every handle");
        let again = MemoryMappedFile::open_rw(&path).await.unwrap();
        assert!(!again.try_update_region(53_999, b"x").await.unwrap());
        drop(again);
        fs::remove_file(&path).unwrap();
        is_whole("unlink");
        fs::write(&path, b"another file").unwrap();
        is_whole("a new file of that name");
    }
});

#[test]
fn last_bytes_unmap_on_the_pool() {
    with_one_pool_thread(child!(last_bytes_unmap_on_the_pool), || {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let (path, file) = patterned(dir.path(), 8 << 20).await;
            file.touch_pages().await.unwrap();
            let is_mapped = || {
                let maps = fs::read_to_string("/proc/self/maps").unwrap();
                maps.contains(path.to_str().unwrap())
            };
            let bytes = file.bytes(100, 100).unwrap();
            let part = bytes.slice(50..);
            drop((file, bytes));
            let busy = BusyPool::new();
            drop(part);
            assert!(
                is_mapped(),
                "the thread that dropped the last part unmapped"
            );
            drop(busy);
            eventually("the pool unmaps the file", || !is_mapped());
        });
    });
}

/// A record as programs lay it out in files.
#[derive(Debug, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Record {
    key: u64,
    value: u64,
}

rt_test!(offset_decides_alignment, |dir| {
    let (_, file) = patterned(dir, LEN).await;
    // Of a `u64` it is 4 on some 32-bit platforms.
    let is_aligned = |at: u64, alignment: usize| at % alignment as u64 == 0;
    for at in (0..64).chain(4090..4104) {
        for (name, bytes) in all_bytes(&file, at, 160).await {
            let bytes: &[u8] = &bytes;
            assert_eq!(
                bytemuck::try_cast_slice::<_, u16>(bytes).is_ok(),
                is_aligned(at, align_of::<u16>())
            );
            assert_eq!(
                bytemuck::try_cast_slice::<_, u64>(bytes).is_ok(),
                is_aligned(at, align_of::<u64>())
            );
            assert_eq!(
                bytemuck::try_cast_slice::<_, u128>(bytes).is_ok(),
                is_aligned(at, align_of::<u128>())
            );
            let records = <[Record]>::ref_from_bytes(bytes);
            let is_aligned = is_aligned(at, align_of::<Record>());
            assert_eq!(records.is_ok(), is_aligned, "{name} at {at}");
        }
    }
    let bytes = file.bytes(4096, 32).unwrap();
    let records = <[Record]>::ref_from_bytes(&bytes).unwrap();
    let word = |at: usize| u64::from_ne_bytes(pattern(LEN)[at..at + 8].try_into().unwrap());
    let expected = [4096, 4112].map(|at| Record {
        key: word(at),
        value: word(at + 8),
    });
    assert_eq!(*records, expected);
});

rt_test!(empty_views_can_be_cast, |dir| {
    let (path, writer) = patterned(dir, LEN).await;
    let reader = MemoryMappedFile::open_ro(path).await.unwrap();
    let can_be_cast = |name: &str, empty: &[u8]| {
        // Panics if the address is not a multiple of 16.
        assert!(bytemuck::cast_slice::<_, u128>(empty).is_empty(), "{name}");
        let records = Ref::<_, [Record]>::from_bytes(empty);
        assert!(Ref::into_ref(records.unwrap()).is_empty(), "{name}");
    };
    for file in [&writer, &reader] {
        for at in [0, 1, LEN as u64, u64::MAX] {
            can_be_cast("as_slice", &file.as_slice(at, 0).unwrap());
            can_be_cast("slice", &file.slice(at, 0).await.unwrap());
            can_be_cast("bytes", &file.bytes(at, 0).unwrap());
            can_be_cast("read_bytes", &file.read_bytes(at, 0).await.unwrap());
            let regions = [(1, 1), (at, 0)];
            can_be_cast(
                "read_regions",
                &file.read_regions(&regions).await.unwrap()[1],
            );
            can_be_cast("slices", &file.slices(&regions).await.unwrap()[1]);
        }
        can_be_cast("clone", &file.bytes(1, 0).unwrap().clone());
    }
    can_be_cast("as_slice_bytes", reader.as_slice_bytes(1, 0).unwrap());
});

rt_test!(try_into_mut_fails, |dir| {
    let (_, file) = patterned(dir, 100).await;
    let bytes = file.bytes(0, 100).unwrap();
    // Also as the only one, since the memory is that of the file.
    let bytes = bytes.try_into_mut().unwrap_err();
    let mut copy = Vec::from(bytes);
    copy[0] = 77;
    assert_eq!(file.as_slice(0, 100).unwrap(), &pattern(100)[..]);
    // A copy holds no lease.
    assert!(file.try_update_region(0, b"x").await.unwrap());
});
