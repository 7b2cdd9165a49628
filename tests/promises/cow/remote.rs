//! Private pages over a file whose server holds its answers back, so that a cut or a copy of pages
//! is under way for as long as a test wants. See [`with_fuse`].

use std::future::Future;
use std::pin::pin;

use super::*;
use crate::common::child::child;
use crate::common::eventually;
use crate::common::fuse::{with_fuse, Fuse, READ, SETATTR};

const LEN: u64 = 1 << 20;

/// Makes a test out of a body that gets a file system with a file of [`LEN`] bytes.
macro_rules! fuse_test {
    ($name:ident, |$fuse:ident| $body:block) => {
        #[test]
        fn $name() {
            let files = [("data", LEN as usize)];
            with_fuse(child!($name), &files, |$fuse| block_on(async { $body }));
        }
    };
}

/// A thread of the pool waits for the server here, and a single one would be all there are.
fn is_single_threaded() -> bool {
    std::env::var("BLOCKING_MAX_THREADS").is_ok_and(|threads| threads == "1")
}

async fn open_both(fuse: &Fuse) -> (MemoryMappedFile, MemoryMappedFile) {
    let path = fuse.path("data");
    let file = MemoryMappedFile::open_rw(&path).await.unwrap();
    let private = MemoryMappedFile::open_cow_writable(&path).await.unwrap();
    (file, private)
}

/// Polls a future that does not end, until something is so.
fn poll_until<F: Future + Unpin>(future: &mut F, what: &str, is_so: impl Fn() -> bool) {
    eventually(what, || {
        assert!(block_on(poll_once(&mut *future)).is_none());
        is_so()
    });
}

fuse_test!(private_length_falls_before_the_file_is_cut, |fuse| {
    let (file, private) = open_both(fuse).await;
    let held = fuse.hold(&[SETATTR]);
    let mut shrink = Box::pin(file.resize(page()));
    poll_until(&mut shrink, "the file is being cut", || {
        held.is_waited_for()
    });
    assert_eq!((file.len(), private.len()), (page(), page()));
    for handle in [&file, &private] {
        let refused = handle.as_slice(page(), 1).map(drop);
        assert!(matches!(refused, Err(MmapIoError::OutOfBounds { .. })));
        let refused = handle.slice(page(), 1).await.map(drop);
        assert!(matches!(refused, Err(MmapIoError::OutOfBounds { .. })));
    }
    drop(held);
    with_timeout(shrink).await.unwrap();
    assert_eq!((file.len(), private.len()), (page(), page()));
});

fuse_test!(refused_cut_shortens_no_private_pages, |fuse| {
    if is_single_threaded() {
        return;
    }
    let (file, private) = open_both(fuse).await;
    // Pages that were opened when the file was short stay as they are.
    file.resize(2 * page()).await.unwrap();
    let short = MemoryMappedFile::open_cow_writable(file.path())
        .await
        .unwrap();
    file.resize(LEN).await.unwrap();
    let longer = MemoryMappedFile::open_cow_writable(file.path())
        .await
        .unwrap();
    let lengths = || [&file, &private, &short, &longer].map(MemoryMappedFile::len);
    let before = [LEN, 2 * page(), 2 * page(), LEN];
    assert_eq!(lengths(), before);
    let held = fuse.hold(&[SETATTR]);
    let mut shrink = Box::pin(file.resize(page()));
    poll_until(&mut shrink, "the file is being cut", || {
        held.is_waited_for()
    });
    fuse.refuse(SETATTR, libc::EIO);
    drop(held);
    let refused = with_timeout(shrink).await;
    assert!(matches!(refused, Err(MmapIoError::ResizeFailed(_))));
    assert_eq!(lengths(), before);
    for handle in [&file, &longer] {
        let slice = with_timeout(handle.slice(LEN - 10, 10)).await.unwrap();
        assert_eq!(slice, [0; 10]);
    }
});

fuse_test!(dropped_chunks_hold_the_file_until_their_job_ends, |fuse| {
    let (file, private) = open_both(fuse).await;
    let held = fuse.hold(&[READ]);
    {
        let mut changing = pin!(private.chunks_mut(4096).for_each_mut(|_, _| Ok(())));
        poll_until(&mut changing, "the pages are being copied", || {
            held.is_waited_for()
        });
    }
    // The view is gone. The job copies pages of the file, which must not change until it ends.
    assert_eq!((file.stats().views, private.stats().views), (1, 0));
    drop(held);
    wait_until(&file, is_quiet).await;
});

fuse_test!(creation_waits_for_a_dropped_view, |fuse| {
    if is_single_threaded() {
        return;
    }
    let (file, private) = open_both(fuse).await;
    let path = file.path().to_path_buf();
    let held = fuse.hold(&[READ]);
    {
        let mut view = pin!(private.as_slice_mut(0, LEN));
        poll_until(&mut view, "the pages are being copied", || {
            held.is_waited_for()
        });
    }
    drop((file, private));
    let mut creating = Box::pin(MemoryMappedFile::create_rw(&path, 10));
    for _ in 0..1_000 {
        let created = poll_once(&mut creating).await;
        assert!(
            created.is_none(),
            "{:?}",
            created.map(|file| file.map(drop))
        );
        std::thread::yield_now();
    }
    drop(held);
    assert_eq!(with_timeout(creating).await.unwrap().len(), 10);
});
