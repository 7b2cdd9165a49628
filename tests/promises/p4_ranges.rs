//! A write waits only for views that overlap it; growing waits for no view, shrinking for views of
//! the tail. What could break: a border that is off by one, a coarse comparison by pages or by the
//! 32 KiB blocks of the lease table that is taken as exact, and a view of a map that has been
//! outgrown.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use bytes::Bytes;
use futures_lite::future::{or, poll_once, yield_now};
use mmap_io::{MappedSlice, MappedSliceMut, MemoryMappedFile, MmapIoError, MmapMode};

use crate::common::{
    assert_waits, block_on, is_quiet, pattern, patterned, wait_until, with_timeout,
};

const BLOCK: u64 = 32 << 10;
const LEN: u64 = 5 * BLOCK;

type Waiting<'a> = Pin<Box<dyn Future<Output = mmap_io::Result<()>> + 'a>>;

/// A view of one kind or another.
#[allow(dead_code)] // They exist to be dropped.
enum View<'a> {
    Slice(MappedSlice<'a>),
    Resident(MappedSlice<'a>),
    Bytes(Bytes),
    Mutable(MappedSliceMut<'a>),
}

impl<'a> View<'a> {
    const KINDS: usize = 4;

    async fn new(kind: usize, file: &'a MemoryMappedFile, at: u64, len: u64) -> Self {
        match kind {
            0 => Self::Slice(file.as_slice(at, len).unwrap()),
            1 => Self::Resident(file.slice(at, len).await.unwrap()),
            2 => Self::Bytes(file.bytes(at, len).unwrap()),
            _ => Self::Mutable(file.as_slice_mut(at, len).await.unwrap()),
        }
    }

    fn is_mutable(&self) -> bool {
        matches!(self, Self::Mutable(_))
    }
}

/// Offsets and lengths of views around the borders of pages and blocks. None has the first byte or
/// the last.
fn places() -> impl Iterator<Item = (u64, u64)> {
    let starts = [1, 4095, 4096, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK];
    let lens = [1, 2, 4096, BLOCK, BLOCK + 1];
    let pairs = starts
        .into_iter()
        .flat_map(move |at| lens.map(|len| (at, len)));
    pairs.filter(|(at, len)| at + len < LEN)
}

#[test]
fn write_waits_only_for_overlap() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), LEN as usize).await;
        let other = MemoryMappedFile::open_rw(&path).await.unwrap();
        for (turn, (at, len)) in places().enumerate() {
            let end = at + len;
            // The first two are its neighbours, with no gap; the others are the whole free ranges.
            let free = [(at - 1, 1), (end, 1), (0, at), (end, LEN - end)];
            let taken = [(at - 1, 2), (end - 1, 2), (at, 1), (end - 1, 1), (0, LEN)];
            for kind in 0..View::KINDS {
                let view = View::new(kind, &file, at, len).await;
                for (at, len) in free {
                    let data = vec![kind as u8; len as usize];
                    with_timeout(other.update_region(at, &data)).await.unwrap();
                    assert!(other.try_update_region(at, &data).await.unwrap());
                    drop(with_timeout(other.as_slice_mut(at, len)).await.unwrap());
                    drop(other.try_as_slice_mut(at, len).unwrap().unwrap());
                    drop(other.try_as_slice(at, len).unwrap().unwrap());
                    drop(with_timeout(other.slice(at, len)).await.unwrap());
                }
                for (at, len) in taken {
                    let data = vec![kind as u8; len as usize];
                    assert!(!other.try_update_region(at, &data).await.unwrap());
                    assert!(other.try_as_slice_mut(at, len).unwrap().is_none());
                    let reads = other.try_as_slice(at, len).unwrap().is_some();
                    assert_eq!(reads, !view.is_mutable());
                }
                // One write that waits, each time.
                let (wanted, len) = taken[turn % taken.len()];
                let data = vec![7; len as usize];
                let mut write = Box::pin(other.update_region(wanted, &data));
                let spare = if at > 1 { 0 } else { LEN - 1 };
                if (wanted..wanted + len).contains(&spare) {
                    assert!(poll_once(&mut write).await.is_none());
                    wait_until(&file, |stats| stats.oldest_blocked.is_some()).await;
                } else {
                    assert_waits(&other, spare, &mut write).await;
                }
                drop(view);
                with_timeout(write).await.unwrap();
                wait_until(&file, is_quiet).await;
                let written = file.as_slice(wanted, len).unwrap();
                assert!(written.iter().all(|byte| *byte == 7));
            }
        }
    });
}

#[cfg(feature = "atomic")]
#[test]
fn atomic_view_blocks_only_its_words() {
    use std::sync::atomic::Ordering;

    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), LEN as usize).await;
        let other = MemoryMappedFile::open_rw(&path).await.unwrap();
        for (at, count) in [
            (8, 1),
            (4088, 1),
            (4088, 2),
            (BLOCK - 8, 2),
            (BLOCK, 4096),
            (BLOCK + 8, 8192),
        ] {
            let end = at + count * 8;
            let words = file.atomic_u64_slice(at, count as usize).unwrap();
            for (at, len) in [(at - 1, 1), (end, 1), (0, at), (end, LEN - end)] {
                let data = vec![1; len as usize];
                with_timeout(other.update_region(at, &data)).await.unwrap();
                drop(with_timeout(other.as_slice_mut(at, len)).await.unwrap());
                drop(other.try_as_slice(at, len).unwrap().unwrap());
                drop(other.bytes(at, len).unwrap());
            }
            // Neighbours of the other size.
            let before = other.atomic_u32(at - 4).unwrap();
            let after = other.atomic_u32(end).unwrap();
            for word in words.iter() {
                word.store(u64::MAX, Ordering::Relaxed);
            }
            before.store(2, Ordering::Relaxed);
            after.store(3, Ordering::Relaxed);
            drop((words, before, after));
            let slice = file.as_slice(at - 4, end - at + 8).unwrap();
            assert_eq!(slice[..4], 2_u32.to_ne_bytes());
            assert!(slice[4..slice.len() - 4].iter().all(|byte| *byte == 0xff));
            assert_eq!(slice[slice.len() - 4..], 3_u32.to_ne_bytes());
        }
    });
}

#[test]
fn growing_waits_for_no_view() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 9_000).await;
        let slice = file.as_slice(0, 3_000).unwrap();
        let bytes = file.bytes(3_000, 3_000).unwrap();
        let mut mutable = file.as_slice_mut(6_000, 3_000).await.unwrap();
        // A growth does not wait for its turn behind this write.
        let mut write = Box::pin(file.update_region(0, &[1; 9_000]));
        assert!(poll_once(&mut write).await.is_none());
        wait_until(&file, |stats| stats.oldest_blocked.is_some()).await;
        // Inside the address space that was reserved, and beyond it, again and again.
        for size in [9_001, 500_000, 1 << 20, (1 << 20) + 1, 9 << 20, 40 << 20] {
            with_timeout(file.resize(size)).await.unwrap();
            assert_eq!(file.len(), size);
            // The new bytes are zero, and can be used like the rest.
            assert_eq!(file.as_slice(size - 1, 1).unwrap(), [0]);
            with_timeout(file.update_region(size - 1, b"x"))
                .await
                .unwrap();
            with_timeout(file.update_region(size - 1, &[0]))
                .await
                .unwrap();
            assert_eq!(slice, &pattern(9_000)[..3_000]);
            assert_eq!(bytes, pattern(9_000)[3_000..6_000]);
            assert_eq!(mutable[..], pattern(9_000)[6_000..]);
        }
        // A store through an old map is seen through the new one.
        mutable.fill(9);
        drop(mutable);
        assert_eq!(file.as_slice(6_000, 3_000).unwrap(), [9; 3_000]);
        assert!(poll_once(&mut write).await.is_none());
        drop((slice, bytes));
        with_timeout(write).await.unwrap();
    });
}

#[test]
fn shrinking_waits_only_for_tail_views() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), LEN as usize).await;
        for new_len in [1, 4095, 4096, 4097, BLOCK, BLOCK + 1, LEN - 1] {
            for kind in 0..View::KINDS {
                // All bytes that stay are viewed, up to the last.
                let kept = View::new(kind, &file, 0, new_len).await;
                with_timeout(file.resize(new_len)).await.unwrap();
                assert_eq!(file.len(), new_len);
                with_timeout(file.resize(LEN)).await.unwrap();
                drop(kept);
                for (at, len) in [(new_len, 1), (LEN - 1, 1), (new_len - 1, 2)] {
                    let view = View::new(kind, &file, at, len).await;
                    let mut shrink = Box::pin(file.resize(new_len));
                    if at > 0 {
                        assert_waits(&file, 0, &mut shrink).await;
                    } else {
                        assert!(poll_once(&mut shrink).await.is_none());
                        wait_until(&file, |stats| stats.oldest_blocked.is_some()).await;
                    }
                    assert_eq!(file.len(), LEN);
                    drop(view);
                    with_timeout(shrink).await.unwrap();
                    assert_eq!(file.len(), new_len);
                    with_timeout(file.resize(LEN)).await.unwrap();
                }
                wait_until(&file, is_quiet).await;
            }
        }
    });
}

#[test]
fn cut_ends_the_wait_of_readers() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), LEN as usize).await;
        let other = match cfg!(feature = "cow") {
            #[cfg(feature = "cow")]
            true => MemoryMappedFile::open_cow_writable(&path).await.unwrap(),
            _ => MemoryMappedFile::open_ro(&path).await.unwrap(),
        };
        let view = file.as_slice_mut(0, 10).await.unwrap();
        let mut buffers = [vec![0; LEN as usize], vec![0; LEN as usize]];
        let mut reads: Vec<Waiting<'_>> = Vec::new();
        for (handle, buffer) in [&file, &other].into_iter().zip(&mut buffers) {
            reads.push(Box::pin(async { handle.slice(0, LEN).await.map(drop) }));
            reads.push(Box::pin(async {
                handle.read_bytes(0, LEN).await.map(drop)
            }));
            reads.push(Box::pin(async { handle.read_into(0, buffer).await }));
            reads.push(Box::pin(async {
                handle.slices(&[(0, LEN)]).await.map(drop)
            }));
            reads.push(Box::pin(async {
                handle.read_regions(&[(0, LEN)]).await.map(drop)
            }));
        }
        for read in &mut reads {
            assert!(poll_once(read).await.is_none());
        }
        with_timeout(file.resize(BLOCK)).await.unwrap();
        for read in reads {
            let refused = with_timeout(read).await;
            assert!(matches!(
                refused,
                Err(MmapIoError::OutOfBounds { total: BLOCK, .. })
            ));
        }
        drop(view);
    });
}

#[test]
fn bytes_outlive_resize_drop_and_replace() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 9_000).await;
        let mut views = Vec::new();
        for size in [1 << 20, 5 << 20, 50 << 20, 10_000, 3 << 20, 9_000] {
            views.push(file.bytes(0, 9_000).unwrap());
            with_timeout(file.resize(size)).await.unwrap();
        }
        let are_whole = |views: &[Bytes]| views.iter().all(|view| *view == pattern(9_000));
        assert!(are_whole(&views));
        drop(file);
        assert!(are_whole(&views));

        // The file is still in use: a handle that is opened now waits for the views.
        let again = MemoryMappedFile::open_rw(&path).await.unwrap();
        assert!(!again.try_update_region(8_999, b"x").await.unwrap());
        let mut write = Box::pin(again.update_region(0, b"x"));
        assert!(poll_once(&mut write).await.is_none());
        wait_until(&again, |stats| stats.oldest_blocked.is_some()).await;
        let busy = MemoryMappedFile::create_rw(&path, 10).await.unwrap_err();
        assert!(matches!(busy, MmapIoError::Busy { .. }), "{busy:?}");
        drop(write);
        drop(again);

        // Another file has its name.
        std::fs::remove_file(&path).unwrap();
        let new = MemoryMappedFile::create_rw(&path, 9_000).await.unwrap();
        with_timeout(new.update_region_async(0, &[1; 9_000]))
            .await
            .unwrap();
        assert!(are_whole(&views));
        // In parts, by other threads, one after the other.
        let part = views[0].slice(4_000..5_000);
        std::thread::spawn(move || drop(views)).join().unwrap();
        assert_eq!(part, pattern(9_000)[4_000..5_000]);
        drop(new);
        assert_eq!(part, pattern(9_000)[4_000..5_000]);
    });
}

#[test]
fn slices_survive_growth_and_shrinking() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 9_000).await;
        let expected = pattern(9_000);
        let mut slices = Vec::new();
        let mut mutable = file.as_slice_mut(8_000, 1_000).await.unwrap();
        for size in [2 << 20, 9_000, 9 << 20, 10_000, 33 << 20] {
            slices.push(file.as_slice(100, 5_000).unwrap());
            with_timeout(file.resize(size)).await.unwrap();
            with_timeout(file.update_region(5_100, &[1; 100]))
                .await
                .unwrap();
            mutable[..10].copy_from_slice(&[2; 10]);
            assert!(slices.iter().all(|slice| *slice == expected[100..5_100]));
        }
        std::fs::remove_file(path).unwrap();
        assert!(slices.iter().all(|slice| *slice == expected[100..5_100]));
        drop(mutable);
        assert_eq!(file.as_slice(8_000, 10).unwrap(), [2; 10]);
    });
}

#[test]
fn multi_range_write_holds_none_while_blocked() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), LEN as usize).await;
        let before = pattern(LEN as usize);
        let ranges = [(100, 50), (BLOCK - 10, 20), (3 * BLOCK, 100)];
        let data = [7; 100];
        let parts = ranges.map(|(at, len)| (at, &data[..len as usize]));
        let mut in_the_way: Vec<_> = ranges
            .iter()
            .map(|(at, len)| file.bytes(at + len - 1, 1).unwrap())
            .collect();
        let mut write = Box::pin(file.update_regions(&parts));
        assert_waits(&file, 0, &mut write).await;
        while let Some(last) = in_the_way.pop() {
            // Readers of the other ranges proceed, and nothing is written yet.
            for (at, len) in ranges {
                let expected = &before[at as usize..(at + len) as usize];
                assert_eq!(file.as_slice(at, len).unwrap(), expected);
                let slice = with_timeout(file.slice(at, len)).await.unwrap();
                assert_eq!(slice, expected);
            }
            // Bytes between its ranges do not belong to it.
            with_timeout(file.update_region(150, b"x")).await.unwrap();
            with_timeout(file.update_region(BLOCK + 10, b"x"))
                .await
                .unwrap();
            assert!(
                poll_once(&mut write).await.is_none(),
                "expected the write to wait for the views that are left"
            );
            drop(last);
        }
        with_timeout(write).await.unwrap();
        for (at, len) in ranges {
            let written = file.as_slice(at, len).unwrap();
            assert!(written.iter().all(|byte| *byte == 7));
        }
    });
}

#[test]
fn blocked_writes_leave_buffer_to_others() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, _) = patterned(dir.path(), 10_000).await;
        let builder = MemoryMappedFile::builder(path).mode(MmapMode::ReadWrite);
        let file = builder.write_buffer(1000).open().await.unwrap();
        let view = file.bytes(0, 10).unwrap();
        // Enough to fill the buffer several times.
        let mut blocked: Vec<_> = (0..10)
            .map(|byte| Box::pin(file.update_region(0, &[[1; 700], [2; 700]][byte % 2])))
            .collect();
        for write in &mut blocked {
            assert!(poll_once(write).await.is_none());
        }
        for byte in 0..20 {
            let data = vec![byte; 1000];
            let others = async {
                file.update_region(5000, &data).await?;
                file.write_bytes(6000, data.clone().into()).await?;
                let parts: [(u64, &[u8]); 2] = [(7000, &data[..500]), (8000, &data[..500])];
                file.update_regions(&parts).await
            };
            // Each belongs to a task, which polls it when there is room for it.
            let tasks = async {
                loop {
                    for write in &mut blocked {
                        assert!(poll_once(write).await.is_none());
                    }
                    yield_now().await;
                }
            };
            with_timeout(or(others, tasks)).await.unwrap();
        }
        drop(view);
        for write in blocked {
            with_timeout(write).await.unwrap();
        }
        assert_eq!(file.as_slice(0, 700).unwrap(), [2; 700]);
        assert_eq!(file.as_slice(5000, 2000).unwrap(), [19; 2000]);
    });
}

/// Counts how often it is woken.
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn blocked_reader_ignores_disjoint_writes() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), LEN as usize).await;
        let view = file.as_slice_mut(0, 4096).await.unwrap();
        let other_view = file.as_slice_mut(4096, 100).await.unwrap();
        let woken = Arc::new(Woken(AtomicUsize::new(0)));
        let waker = Waker::from(woken.clone());
        let mut reader = Box::pin(file.slice(4000, 50));
        let mut wakes = 0;
        for byte in 0..50 {
            assert!(reader
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending());
            file.update_region(2 * BLOCK + byte, b"other bytes")
                .await
                .unwrap();
            wakes += woken.0.swap(0, Ordering::SeqCst);
        }
        drop(other_view);
        file.resize(3 * BLOCK).await.unwrap();
        wakes += woken.0.load(Ordering::SeqCst);
        // It may return from the pool, and find its pages resident.
        assert!(wakes <= 2, "expected at most 2 wake-ups, found {wakes}");
        drop(view);
        with_timeout(reader).await.unwrap();
    });
}
