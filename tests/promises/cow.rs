//! Copy-on-write handles keep the promises together with the file that shows through them: no view
//! of either changes, writes wait in order across both, and a cut leaves neither with pages that
//! have gone.
//!
//! What could break: a view of unwritten pages that a write to the file changes; a page that is
//! copied in the middle of such a write; a write that waits for the file and is never tried again;
//! private bytes that turn into zeroes when the file is cut and grows again.

mod model;
#[cfg(all(target_os = "linux", feature = "iterator"))]
mod remote;

use std::fs;
use std::future::Future;
use std::path::Path;

use bytes::Bytes;
use futures_lite::future::poll_once;
use mmap_io::utils::page_size;
use mmap_io::{MemoryMappedFile, MmapIoError};

use crate::common::{
    assert_waits, block_on, is_quiet, pattern, rt_test, wait_until, wait_until_examined,
    with_timeout, HeldQueue,
};

fn page() -> u64 {
    page_size() as u64
}

/// A file of four pages, each byte 1, with a handle on the file and one on private pages.
async fn opened(dir: &Path) -> (MemoryMappedFile, MemoryMappedFile) {
    let path = dir.join("data");
    fs::write(&path, vec![1; 4 * page_size()]).unwrap();
    let file = MemoryMappedFile::open_rw(&path).await.unwrap();
    let private = MemoryMappedFile::open_cow_writable(&path).await.unwrap();
    (file, private)
}

/// Whether the write of one byte at `offset` would have to wait.
async fn is_blocked(file: &MemoryMappedFile, offset: u64) -> bool {
    !with_timeout(file.try_update_region(offset, b"?"))
        .await
        .unwrap()
}

rt_test!(views_keep_writes_off_the_file, |dir| {
    let (file, private) = opened(dir).await;
    let slice = private.as_slice(10, 10).unwrap();
    let awaited = private.slice(10, 10).await.unwrap();
    let bytes = private.bytes(10, 10).unwrap();
    let read = private.read_bytes(10, 10).await.unwrap();
    let many = private.slices(&[(10, 5), (15, 5)]).await.unwrap();
    assert!(is_blocked(&file, 10).await && is_blocked(&file, 19).await);
    // Beside the views, in the same page.
    assert!(!is_blocked(&file, 9).await && !is_blocked(&file, 20).await);
    let mut write = Box::pin(file.update_region(5, &[2; 10]));
    assert_waits(&file, 3 * page(), &mut write).await;
    assert_eq!(slice, [1; 10]);
    assert_eq!(*read, [1; 10]);
    drop((slice, awaited, bytes, read));
    assert!(poll_once(&mut write).await.is_none());
    drop(many);
    with_timeout(write).await.unwrap();
    assert_eq!(private.as_slice(10, 10).unwrap()[..5], [2; 5]);

    // A clone, and the `Bytes` of a handle that is gone, keep it off as well.
    let bytes = private.clone().bytes(100, 10).unwrap();
    drop(private);
    assert!(is_blocked(&file, 100).await);
    drop(bytes);
    assert!(!is_blocked(&file, 100).await);
    wait_until(&file, is_quiet).await;
});

rt_test!(file_view_blocks_private_views, |dir| {
    let (file, private) = opened(dir).await;
    let mut view = file.as_slice_mut(10, 10).await.unwrap();
    let is_busy = |result: mmap_io::Result<()>| matches!(result, Err(MmapIoError::Busy { .. }));
    assert!(is_busy(private.as_slice(15, 10).map(drop)));
    assert!(is_busy(private.bytes(0, 11).map(drop)));
    assert!(private.try_as_slice(19, 1).unwrap().is_none());
    assert!(private.try_as_slice(20, 1).unwrap().is_some());
    assert_eq!(private.as_slice(0, 10).unwrap(), [1; 10]);
    let mut reads = Box::pin(private.slices(&[(0, 5), (15, 1)]));
    let mut read = Box::pin(private.slice(15, 10));
    let mut copy = Box::pin(private.read_bytes(0, 100));
    let mut buffer = [0; 30];
    let mut into = Box::pin(private.read_into(0, &mut buffer));
    assert!(poll_once(&mut reads).await.is_none());
    assert!(poll_once(&mut read).await.is_none());
    assert!(poll_once(&mut copy).await.is_none());
    assert!(poll_once(&mut into).await.is_none());
    view.fill(2);
    drop(view);
    let expected = [[1; 10], [2; 10], [1; 10]].concat();
    assert_eq!(with_timeout(read).await.unwrap(), expected[15..25]);
    assert_eq!(with_timeout(copy).await.unwrap()[..30], expected);
    assert_eq!(with_timeout(reads).await.unwrap()[1], [2]);
    with_timeout(into).await.unwrap();
    assert_eq!(buffer[..], expected);
    assert_eq!(private.as_slice(0, 30).unwrap(), expected[..]);
});

rt_test!(file_view_blocks_private_writes, |dir| {
    let (file, private) = opened(dir).await;
    let spare = 3 * page();
    let view = file.as_slice_mut(10, 10).await.unwrap();
    // Other bytes of the same page: a store would copy the bytes of the view.
    assert!(is_blocked(&private, 100).await);
    assert!(private.try_as_slice_mut(100, 1).unwrap().is_none());
    let mut write = Box::pin(private.update_region(100, b"write"));
    let regions = [(2 * page(), &b"many"[..]), (200, b"many")];
    let mut many = Box::pin(private.update_regions(&regions));
    let mut owned = Box::pin(private.write_bytes(300, Bytes::from_static(b"owned")));
    let mut mutable = Box::pin(private.as_slice_mut(400, 5));
    assert_waits(&private, spare, &mut write).await;
    assert_waits(&private, spare, &mut many).await;
    assert_waits(&private, spare, &mut owned).await;
    assert_waits(&private, spare, &mut mutable).await;
    // All or nothing: the other range of `many` is free, and not written.
    assert_eq!(private.as_slice(2 * page(), 4).unwrap(), [1; 4]);
    // Readers of the page go on.
    assert_eq!(private.as_slice(100, 5).unwrap(), [1; 5]);
    drop(view);
    with_timeout(write).await.unwrap();
    with_timeout(many).await.unwrap();
    with_timeout(owned).await.unwrap();
    with_timeout(mutable)
        .await
        .unwrap()
        .copy_from_slice(b"view!");
    for (at, bytes) in [
        (100, "write"),
        (200, "many"),
        (300, "owned"),
        (400, "view!"),
    ] {
        assert_eq!(
            private.as_slice(at, bytes.len() as u64).unwrap(),
            bytes.as_bytes()
        );
    }
    assert!(file
        .as_slice(0, 4 * page())
        .unwrap()
        .iter()
        .all(|byte| *byte == 1));
    wait_until(&file, is_quiet).await;
    wait_until(&private, is_quiet).await;
});

rt_test!(mutable_view_holds_its_pages, |dir| {
    let (file, private) = opened(dir).await;
    // The first finds its page unwritten, and copies it with its first store.
    let late = private.try_as_slice_mut(10, 10).unwrap().unwrap();
    let early = private.as_slice_mut(page() + 10, 10).await.unwrap();
    for (mut view, start) in [(late, 0), (early, page())] {
        assert!(is_blocked(&file, start + 5).await);
        assert!(is_blocked(&file, start + page() - 1).await);
        assert!(file.try_as_slice_mut(start + 30, 1).unwrap().is_none());
        assert_eq!(file.as_slice(start, page()).unwrap().len(), page_size());
        let mut write = Box::pin(file.update_region(start + 20, &[2; 10]));
        assert_waits(&file, 3 * page(), &mut write).await;
        view.fill(3);
        drop(view);
        with_timeout(write).await.unwrap();
        let expected = [[3; 10], [1; 10]].concat();
        assert_eq!(private.as_slice(start + 10, 20).unwrap(), expected[..]);
    }
});

#[test]
fn copied_page_no_longer_shows_the_file() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (file, private) = opened(dir.path()).await;
        let path = file.path();
        let other = MemoryMappedFile::open_cow_writable(path).await.unwrap();
        private.update_region(10, b"private").await.unwrap();
        file.update_region(0, &[2; 100]).await.unwrap();
        file.update_region(page(), &vec![2; 2 * page_size()])
            .await
            .unwrap();
        let expected = [&[1; 10][..], b"private", &[1; 10]].concat();
        assert_eq!(private.as_slice(0, 27).unwrap(), expected[..]);
        assert_eq!(other.as_slice(0, 100).unwrap(), [2; 100]);
        for handle in [&private, &other] {
            assert_eq!(handle.as_slice(page(), 1).unwrap(), [2]);
            assert_eq!(handle.slice(3 * page() - 1, 2).await.unwrap(), [2, 1]);
        }
        assert_eq!(fs::read(path).unwrap()[..100], [2; 100]);
    });
}

#[test]
fn blocked_writes_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (file, private) = opened(dir.path()).await;
        let spare = 3 * page();
        // Examined one by one, and all together.
        for together in [false, true] {
            let view = file.as_slice_mut(page(), 1).await.unwrap();
            let held = together.then(|| HeldQueue::new(&private, spare));
            // The first needs both pages. The second needs the first page alone, which is free.
            let mut first = Box::pin(private.update_region(page() - 10, &[2; 20]));
            let mut second = Box::pin(private.update_region(page() - 10, &[3; 5]));
            let mut third = Box::pin(private.as_slice_mut(page() - 6, 2));
            assert!(poll_once(&mut first).await.is_none());
            if !together {
                wait_until_examined(&private, spare).await;
            }
            assert!(poll_once(&mut second).await.is_none());
            assert!(poll_once(&mut third).await.is_none());
            if let Some(held) = held {
                held.release().await;
            }
            assert_waits(&private, spare, &mut first).await;
            assert_waits(&private, spare, &mut second).await;
            assert_waits(&private, spare, &mut third).await;
            assert!(!is_blocked(&private, page() - 11).await);
            drop(view);
            with_timeout(third).await.unwrap().fill(4);
            with_timeout(second).await.unwrap();
            with_timeout(first).await.unwrap();
            let written = private.as_slice(page() - 10, 20).unwrap();
            assert_eq!(*written, [&[3; 4][..], &[4; 2], &[2; 14]].concat());
        }
    });
}

/// Polls an operation that waits for the file until the queue has examined it, and drops it.
async fn drop_while_blocked<T>(private: &MemoryMappedFile, operation: impl Future<Output = T>) {
    let mut operation = Box::pin(operation);
    assert_waits(private, 3 * page(), &mut operation).await;
}

#[test]
fn dropped_future_withdraws_blocked_write() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (file, private) = opened(dir.path()).await;
        let view = file.as_slice_mut(0, 1).await.unwrap();
        for _ in 0..3 {
            drop_while_blocked(&private, private.update_region(10, b"dropped")).await;
            drop_while_blocked(&private, private.as_slice_mut(10, 7)).await;
            drop_while_blocked(&private, private.write_bytes(10, Bytes::from_static(b"x"))).await;
            drop_while_blocked(&private, private.slice(0, 1)).await;
            // Dropped at the first poll; a copy is of all bytes.
            assert!(poll_once(private.copy_to(dir.path().join("copy")))
                .await
                .is_none());
            assert!(poll_once(private.update_region(10, b"dropped"))
                .await
                .is_none());
        }
        // It waits behind a withdrawn write, and for the file.
        let first = Box::pin(private.update_region(10, b"dropped"));
        let mut second = Box::pin(private.update_region(12, b"written"));
        drop_while_blocked(&private, first).await;
        assert_waits(&private, 3 * page(), &mut second).await;
        drop(view);
        with_timeout(second).await.unwrap();
        assert_eq!(
            private.as_slice(8, 12).unwrap(),
            b"\x01\x01\x01\x01written\x01"
        );
        for handle in [&file, &private] {
            wait_until(handle, is_quiet).await;
        }
        let copy = dir.path().join("copy");
        assert!(!copy.exists());
        // Nothing is left that could block a write to the file.
        file.update_region(0, &vec![5; 4 * page_size()])
            .await
            .unwrap();
    });
}

#[test]
fn dropped_handle_ends_blocked_write() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (file, private) = opened(dir.path()).await;
        let view = file.as_slice_mut(0, 1).await.unwrap();
        let mut write = Box::pin(private.write_bytes(10, Bytes::from_static(b"x")));
        assert_waits(&private, 3 * page(), &mut write).await;
        drop(private);
        drop(write);
        drop(view);
        wait_until(&file, is_quiet).await;
        // Not even the private pages are left.
        let path = file.path().to_path_buf();
        drop(file);
        with_timeout(MemoryMappedFile::create_rw(&path, 10))
            .await
            .unwrap();
    });
}

#[test]
fn private_pages_keep_the_file_in_use() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (file, private) = opened(dir.path()).await;
        let path = file.path().to_path_buf();
        drop(file);
        let refused = MemoryMappedFile::create_rw(&path, 10).await;
        assert!(matches!(refused, Err(MmapIoError::Busy { .. })));
        // A later handle shares the leases.
        let file = MemoryMappedFile::open_rw(&path).await.unwrap();
        let slice = private.as_slice(0, 10).unwrap();
        assert!(is_blocked(&file, 5).await);
        drop(slice);
        drop(file);
        // A view is a use without a handle.
        let bytes = private.bytes(0, 10).unwrap();
        private.close().await.unwrap();
        let refused = MemoryMappedFile::create_rw(&path, 10).await;
        assert!(matches!(refused, Err(MmapIoError::Busy { .. })));
        drop(bytes);
        let created = with_timeout(MemoryMappedFile::create_rw(&path, 10)).await;
        assert_eq!(created.unwrap().len(), 10);
    });
}

#[test]
fn shrink_waits_for_views_of_the_tail() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (file, private) = opened(dir.path()).await;
        private.update_region(3 * page(), b"copied").await.unwrap();
        let cut = page() + 100;
        for at in [2 * page(), 3 * page()] {
            let slice = private.as_slice(at, 6).unwrap();
            let mut shrink = Box::pin(file.resize(cut));
            assert_waits(&file, 0, &mut shrink).await;
            assert_eq!(private.len(), 4 * page());
            assert!(slice[0] == 1 || slice == b"copied");
        }
        let kept = private.as_slice(0, cut).unwrap();
        private.update_region(cut + 1, b"lost").await.unwrap();
        with_timeout(file.resize(cut)).await.unwrap();
        assert_eq!(kept.len() as u64, cut);
        // What was cut is gone, also when the file grows again.
        for _ in 0..2 {
            assert_eq!(private.len(), cut);
            let is_out = |result: mmap_io::Result<()>| match result {
                Err(MmapIoError::OutOfBounds { total, .. }) => total == cut,
                _ => false,
            };
            assert!(is_out(private.as_slice(cut - 1, 2).map(drop)));
            assert!(is_out(private.slice(3 * page(), 6).await.map(drop)));
            assert!(is_out(private.bytes(cut, 1).map(drop)));
            assert!(is_out(private.update_region(cut, b"x").await));
            assert!(is_out(private.as_slice_mut(cut, 1).await.map(drop)));
            assert!(is_out(private.try_as_slice_mut(cut, 1).map(drop)));
            drop(private.slice(0, cut).await.unwrap());
            file.resize(4 * page()).await.unwrap();
        }
        let again = MemoryMappedFile::open_cow_writable(file.path())
            .await
            .unwrap();
        assert_eq!(again.len(), 4 * page());
    });
}

#[cfg(target_os = "linux")]
#[test]
fn refused_cut_changes_no_length() {
    use std::os::fd::{AsRawFd, FromRawFd};

    // SAFETY: the name is a string, and lives for the call.
    let memory =
        unsafe { libc::memfd_create(b"sealed\0".as_ptr().cast(), libc::MFD_ALLOW_SEALING) };
    assert!(memory >= 0);
    // SAFETY: the descriptor is new, and nothing else owns it.
    let memory = unsafe { fs::File::from_raw_fd(memory) };
    memory.set_len(2 * page()).unwrap();
    // SAFETY: the descriptor is open, and the call takes no pointer.
    let sealed = unsafe { libc::fcntl(memory.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) };
    assert_eq!(sealed, 0);
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    block_on(async {
        let file = MemoryMappedFile::open_rw(&path).await.unwrap();
        let private = MemoryMappedFile::open_cow_writable(&path).await.unwrap();
        private.update_region(page(), b"private").await.unwrap();
        let refused = file.resize(page()).await;
        assert!(matches!(refused, Err(MmapIoError::ResizeFailed(_))));
        for (handle, expected) in [(&file, [0; 7]), (&private, *b"private")] {
            assert_eq!(handle.len(), 2 * page());
            assert_eq!(handle.slice(page(), 7).await.unwrap(), expected);
        }
        file.update_region(2 * page() - 1, b"x").await.unwrap();
        assert_eq!(private.as_slice(page(), 7).unwrap(), b"private");
    });
}

#[test]
fn waiting_reader_learns_of_a_cut() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (file, private) = opened(dir.path()).await;
        let view = private.as_slice_mut(3 * page(), 1).await.unwrap();
        let mut read = Box::pin(private.slice(3 * page(), 1));
        let mut write = Box::pin(private.update_region(3 * page(), b"x"));
        assert!(poll_once(&mut read).await.is_none());
        assert!(poll_once(&mut write).await.is_none());
        let mut shrink = Box::pin(file.resize(page()));
        assert!(poll_once(&mut shrink).await.is_none());
        drop(view);
        with_timeout(shrink).await.unwrap();
        // In time, or too late: either way they end.
        for result in [
            with_timeout(read).await.map(drop),
            with_timeout(write).await,
        ] {
            match result {
                Ok(()) | Err(MmapIoError::OutOfBounds { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(private.len(), page());
    });
}

#[cfg(feature = "atomic")]
#[test]
fn atomic_views_wait_for_private_copies() {
    use std::sync::atomic::{AtomicBool, Ordering};

    let dir = tempfile::tempdir().unwrap();
    let (file, private) = block_on(opened(dir.path()));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut copy = vec![0; 4 * page_size()];
            while !is_over.load(Ordering::Relaxed) {
                block_on(private.read_into(0, &mut copy)).unwrap();
            }
        });
        let views = || -> mmap_io::Result<()> {
            for _ in 0..2_000 {
                drop(private.atomic_u32(0)?);
                drop(file.atomic_u64(64)?);
            }
            Ok(())
        };
        let result = views();
        is_over.store(true, Ordering::Relaxed);
        result.unwrap();
    });
}

#[cfg(target_os = "linux")]
#[test]
fn cut_by_another_process_is_truncated() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (file, private) = opened(dir.path()).await;
        private.update_region(2 * page(), b"copied").await.unwrap();
        let outside = fs::OpenOptions::new()
            .write(true)
            .open(file.path())
            .unwrap();
        outside.set_len(page() + 100).unwrap();
        let is_truncated = |result: mmap_io::Result<()>| match result {
            Err(MmapIoError::Truncated { file_len, .. }) => file_len == page() + 100,
            _ => false,
        };
        for at in [page() + 99, 2 * page(), 3 * page()] {
            assert!(is_truncated(private.slice(at, 10).await.map(drop)));
            assert!(is_truncated(private.read_bytes(at, 10).await.map(drop)));
            assert!(is_truncated(private.update_region(at, b"longer").await));
            assert!(is_truncated(private.as_slice_mut(at, 10).await.map(drop)));
            assert!(is_truncated(private.touch_pages_range(at, 10).await));
        }
        assert!(is_truncated(
            private.copy_to(dir.path().join("copy")).await.map(drop)
        ));
        private.update_region(page() + 90, &[7; 10]).await.unwrap();
        assert_eq!(private.slice(page() + 90, 10).await.unwrap(), [7; 10]);
        // From then on it is out of bounds, and stays so.
        assert_eq!(private.refresh().await.unwrap(), page() + 100);
        outside.set_len(4 * page()).unwrap();
        assert_eq!(private.refresh().await.unwrap(), page() + 100);
        assert_eq!(file.len(), 4 * page());
        let beyond = private.update_region(2 * page(), b"x").await;
        assert!(matches!(beyond, Err(MmapIoError::OutOfBounds { .. })));
    });
}

#[test]
fn growth_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let path = dir.path().join("data");
        fs::write(&path, pattern(100)).unwrap();
        let file = MemoryMappedFile::open_rw(&path).await.unwrap();
        let private = MemoryMappedFile::open_cow_writable(&path).await.unwrap();
        let slice = private.as_slice(0, 100).unwrap();
        let view = private.try_as_slice_mut(50, 10);
        assert!(view.unwrap().is_none());
        // Growth waits for no view, also in the same page.
        with_timeout(file.resize(10 << 20)).await.unwrap();
        file.update_region(100, b"more").await.unwrap();
        assert_eq!(private.refresh().await.unwrap(), 100);
        assert_eq!(private.len(), 100);
        assert!(private.as_slice(99, 2).is_err());
        assert_eq!(slice, pattern(100)[..]);
    });
}
