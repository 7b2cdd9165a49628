//! Files on a file system that may be remote: no thread that polls a future or drops a handle waits
//! for the server, a slow server delays no file of another one, and what a server refuses is an
//! error.
//!
//! The server is the test's own ([`with_fuse`]). It does not answer late: it holds its answers back
//! until the test lets them go, so that nothing depends on time.

use std::fs::{self, File};
use std::future::Future;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::pin::Pin;
use std::sync::Mutex;
use std::task::Context;

use bytes::Bytes;
use mmap_io::{FlushPolicy, MemoryMappedFile, MmapIoError, MmapMode, Result};

use crate::common::child::child;
use crate::common::fuse::{
    with_fuse, Fuse, Kind, CREATE, FALLOCATE, FLUSH, FSYNC, GETATTR, LOOKUP, OPEN, READ, RELEASE,
    SETATTR, WRITE,
};
use crate::common::{
    block_on, eventually, join_with_timeout, pattern, poll_once, with_timeout, HeldQueue, TIMEOUT,
};

/// Bytes of the file `data`.
const LEN: u64 = 1 << 20;

/// Makes a test out of a body that gets a file system with two files of [`LEN`] and 8192 bytes.
macro_rules! fuse_test {
    ($name:ident, |$fuse:ident| $body:block) => {
        #[test]
        fn $name() {
            let files = [("data", LEN as usize), ("other", 8192)];
            with_fuse(child!($name), &files, |$fuse| block_on(async { $body }));
        }
    };
}

/// Whether the pool has a single thread. That thread would wait for the server, so a test of what
/// proceeds in the meantime makes no sense.
fn is_single_threaded() -> bool {
    std::env::var("BLOCKING_MAX_THREADS").is_ok_and(|threads| threads == "1")
}

async fn open_rw(fuse: &Fuse) -> MemoryMappedFile {
    MemoryMappedFile::open_rw(fuse.path("data")).await.unwrap()
}

async fn open_ro(fuse: &Fuse) -> MemoryMappedFile {
    MemoryMappedFile::open_ro(fuse.path("data")).await.unwrap()
}

/// Waits until the server has been told of the close of every file that was opened.
fn all_close(fuse: &Fuse) {
    eventually("every file is closed", || {
        fuse.count(RELEASE) == fuse.count(OPEN) + fuse.count(CREATE)
    });
}

type Running<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// Operations on separate ranges. The handles that they open are put into `opened`, since closing
/// is not tested here.
fn operations<'a>(
    fuse: &Fuse,
    file: &'a MemoryMappedFile,
    opened: &'a Mutex<Vec<MemoryMappedFile>>,
) -> Vec<(&'static str, Running<'a>)> {
    let path = fuse.path("data");
    let keep = |file| opened.lock().unwrap().push(file);
    macro_rules! operations {
        ($($name:literal: $operation:expr;)*) => {
            vec![$(($name, Box::pin(async move {
                let _ = $operation.await?;
                Ok(())
            }) as Running<'a>),)*]
        };
    }
    let mut buffer = [0; 5000];
    let data = bytes::Bytes::from_static(b"some bytes");
    let (owned, mapped) = (data.clone(), file.bytes(LEN - 100, 10).unwrap());
    let (existing, shared) = (path.clone(), path.clone());
    operations! {
        "slice": file.slice(0, 5000);
        "a long slice": file.slice(0, LEN / 2);
        "read_into": file.read_into(100, &mut buffer);
        "read_bytes": file.read_bytes(9000, 5000);
        "touch_pages": file.touch_pages();
        "touch_pages_range": file.touch_pages_range(5000, 5000);
        "prefetch_range": file.prefetch_range(5000, 5000);
        "update_region": file.update_region(LEN / 2, b"some bytes");
        "update_region_async": file.update_region_async(LEN / 2 + 10, b"some bytes");
        "update_regions": file.update_regions(&[(LEN / 2 + 20, b"one"), (LEN / 2 + 30, b"two")]);
        "append": file.append(b"some bytes");
        "append_async": file.append_async(b"some bytes");
        "append_at": file.append_at(LEN, b"some bytes");
        "write_bytes": file.write_bytes(LEN / 2 + 40, owned);
        "write_bytes of a mapping": file.write_bytes(LEN / 2 + 50, mapped);
        "write_bytes_async": file.write_bytes_async(LEN / 2 + 60, data);
        "try_update_region": file.try_update_region(LEN / 2 + 70, b"some bytes");
        "as_slice_mut": async { file.as_slice_mut(LEN / 2 + 80, 10).await.map(drop) };
        "commit": async { file.as_slice_mut(LEN / 2 + 90, 10).await?.commit().await };
        "flush": file.flush();
        "flush_range": file.flush_range(0, 5000);
        "schedule_flush": file.schedule_flush();
        "evict": file.evict(LEN - 5000, 5000);
        "open_ro": async { MemoryMappedFile::open_ro(path).await.map(keep) };
        "open_rw": async { MemoryMappedFile::open_rw(shared).await.map(keep) };
        "open_or_create": async {
            MemoryMappedFile::open_or_create(existing, 10).await.map(keep)
        };
        "resize": file.resize(LEN + 100);
        "grow_to": file.grow_to(LEN + 200);
    }
}

/// These take pages out of memory: a change of the length invalidates them all. A read that has its
/// pages, and is polled only then, reads them again.
const DROP_PAGES: [&str; 3] = ["evict", "resize", "grow_to"];

/// Polls every operation while the answers to requests of those kinds are held back.
async fn no_poll_asks(fuse: &Fuse, held: &[Kind]) {
    fuse.expire_attributes();
    let file = open_rw(fuse).await;
    let opened = Mutex::default();
    for drop_pages in [false, true] {
        file.touch_pages().await.unwrap();
        let mut running = operations(fuse, &file, &opened);
        running.retain(|(name, _)| DROP_PAGES.contains(name) == drop_pages);
        no_poll_of_these_asks(fuse, &file, held, running).await;
    }
}

async fn no_poll_of_these_asks(
    fuse: &Fuse,
    file: &MemoryMappedFile,
    held: &[Kind],
    mut running: Vec<(&str, Running<'_>)>,
) {
    let (all, len) = (running.len(), file.len());
    fuse.asked_here();
    let held = fuse.hold(held);
    for _ in 0..3 {
        let mut left = Vec::new();
        for (name, mut operation) in running {
            println!("{name}");
            match poll_once(&mut operation).await {
                Some(result) => result.unwrap(),
                None => left.push((name, operation)),
            }
            assert_eq!(fuse.asked_here(), [], "{name}");
        }
        running = left;
        // These need no server.
        assert_eq!(file.as_slice(100, 100).unwrap(), &pattern(200)[100..]);
        assert_eq!(file.bytes(100, 100).unwrap(), &pattern(200)[100..]);
        assert_eq!(file.len(), len);
    }
    assert!(
        running.len() > all / 2,
        "expected most operations to wait for the server"
    );
    drop(held);
    for (name, operation) in running {
        with_timeout(operation).await.unwrap();
        assert_eq!(fuse.asked_here(), [], "{name}, at its end");
    }
}

fuse_test!(polls_request_no_attributes, |fuse| {
    no_poll_asks(fuse, &[GETATTR]).await;
});

fuse_test!(polls_never_wait_for_server, |fuse| {
    let all = [
        LOOKUP, GETATTR, SETATTR, OPEN, READ, WRITE, FSYNC, FALLOCATE,
    ];
    no_poll_asks(fuse, &all).await;
});

/// Drops `value` while the server answers no close.
fn drop_waits_for_nothing<T>(fuse: &Fuse, what: &str, value: T) {
    println!("{what}");
    fuse.asked_here();
    let held = fuse.hold(&[FLUSH, RELEASE, WRITE, FSYNC]);
    drop(value);
    drop(held);
    assert_eq!(fuse.asked_here(), [], "the drop of {what} asked");
}

fuse_test!(drop_of_second_handle_does_not_wait, |fuse| {
    let (writer, reader) = (open_rw(fuse).await, open_ro(fuse).await);
    drop_waits_for_nothing(fuse, "a second reader", open_ro(fuse).await);
    drop_waits_for_nothing(fuse, "a second writer", open_rw(fuse).await);
    drop_waits_for_nothing(fuse, "the first reader", reader);
    drop_waits_for_nothing(fuse, "the first writer", writer);
    all_close(fuse);
});

fuse_test!(drop_of_last_handle_does_not_wait, |fuse| {
    drop_waits_for_nothing(fuse, "a reader", open_ro(fuse).await);
    drop_waits_for_nothing(fuse, "a writer", open_rw(fuse).await);
    let created = MemoryMappedFile::create_rw(fuse.path("created"), 5000).await;
    drop_waits_for_nothing(fuse, "a created file", created.unwrap());
    let plain = File::open(fuse.path("data")).unwrap();
    let adopted = MemoryMappedFile::from_file(plain, MmapMode::ReadOnly, "data").await;
    drop_waits_for_nothing(fuse, "an adopted descriptor", adopted.unwrap());
    all_close(fuse);
});

fuse_test!(drop_with_dirty_bytes_does_not_wait, |fuse| {
    const HOUR: u64 = 3_600_000;
    for policy in [FlushPolicy::Never, FlushPolicy::EveryMillis(HOUR)] {
        let builder = MemoryMappedFile::builder(fuse.path("data")).mode(MmapMode::ReadWrite);
        let file = builder.flush_policy(policy).open().await.unwrap();
        file.update_region(100, b"unflushed").await.unwrap();
        drop_waits_for_nothing(fuse, "a handle with unflushed writes", file);
        all_close(fuse);
        assert_eq!(&fuse.content("data")[100..109], b"unflushed");
    }
});

fuse_test!(drop_of_bytes_does_not_wait, |fuse| {
    for mode in [MmapMode::ReadOnly, MmapMode::ReadWrite] {
        let builder = MemoryMappedFile::builder(fuse.path("data")).mode(mode);
        let file = builder.open().await.unwrap();
        let bytes = file.read_bytes(100, 100).await.unwrap();
        let other = file.bytes(5000, 100).unwrap();
        drop_waits_for_nothing(fuse, "a handle beside its bytes", file);
        drop_waits_for_nothing(fuse, "bytes beside others", other);
        drop_waits_for_nothing(fuse, "the last bytes", bytes);
    }
    all_close(fuse);
});

fuse_test!(drop_of_views_does_not_wait, |fuse| {
    let builder = MemoryMappedFile::builder(fuse.path("data")).mode(MmapMode::ReadWrite);
    let file = builder
        .flush_policy(FlushPolicy::Always)
        .open()
        .await
        .unwrap();
    drop_waits_for_nothing(fuse, "a slice", file.slice(0, 100).await.unwrap());
    let mut view = file.as_slice_mut(0, 100).await.unwrap();
    view.fill(1);
    drop_waits_for_nothing(fuse, "a mutable slice", view);
    file.flush().await.unwrap();
    assert_eq!(fuse.content("data")[..100], [1; 100]);
});

fuse_test!(drop_of_open_future_does_not_wait, |fuse| {
    let (woken, waker) = parking::pair();
    let waker = waker.into();
    // First alone, then beside a handle whose descriptor it does not share.
    let mut first = None;
    loop {
        // Its job is over, and its result has not been taken.
        let opened = fuse.count(OPEN);
        let held = fuse.hold(&[OPEN]);
        let mut opening = Box::pin(MemoryMappedFile::open_ro(fuse.path("data")));
        let mut context = Context::from_waker(&waker);
        assert!(opening.as_mut().poll(&mut context).is_pending());
        eventually("it opens", || fuse.count(OPEN) > opened);
        drop(held);
        assert!(woken.park_timeout(TIMEOUT), "it is not open");
        drop_waits_for_nothing(fuse, "an opening that is over", opening);
        if first.is_some() {
            break;
        }

        // Its job is at work.
        let opened = fuse.count(OPEN);
        let held = fuse.hold(&[OPEN]);
        let mut opening = Box::pin(MemoryMappedFile::open_rw(fuse.path("data")));
        assert!(poll_once(&mut opening).await.is_none());
        eventually("it opens", || fuse.count(OPEN) > opened);
        drop_waits_for_nothing(fuse, "an opening at work", opening);
        drop(held);
        first = Some(open_rw(fuse).await);
    }
    drop_waits_for_nothing(fuse, "the other handle", first);
    all_close(fuse);
});

/// Closes a handle while the server does not answer.
async fn close_waits_elsewhere(fuse: &Fuse, file: MemoryMappedFile) {
    fuse.asked_here();
    let flushed = fuse.count(FLUSH);
    let held = fuse.hold(&[FLUSH]);
    let mut close = Box::pin(file.close());
    eventually("a thread closes it", || {
        assert!(
            block_on(poll_once(&mut close)).is_none(),
            "close completed before the file was closed"
        );
        fuse.count(FLUSH) > flushed
    });
    for _ in 0..10 {
        assert!(
            poll_once(&mut close).await.is_none(),
            "close completed before the file was closed"
        );
    }
    assert_eq!(fuse.asked_here(), [], "while it closes");
    drop(held);
    with_timeout(close).await.unwrap();
    assert_eq!(fuse.asked_here(), [], "when it is closed");
}

fuse_test!(close_resolves_after_file_is_closed, |fuse| {
    for _ in 0..5 {
        close_waits_elsewhere(fuse, open_ro(fuse).await).await;
        assert_eq!(fuse.count(RELEASE), fuse.count(OPEN));
        let file = open_rw(fuse).await;
        file.update_region(100, b"written").await.unwrap();
        close_waits_elsewhere(fuse, file).await;
        assert_eq!(fuse.count(RELEASE), fuse.count(OPEN));
    }
    assert_eq!(&fuse.content("data")[100..107], b"written");
});

fuse_test!(slow_flush_delays_no_other_file, |fuse| {
    if is_single_threaded() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("quick"), [0; 5000]).unwrap();
    let mut files = Vec::new();
    for path in [fuse.path("data"), dir.path().join("quick")] {
        let builder = MemoryMappedFile::builder(path).mode(MmapMode::ReadWrite);
        let builder = builder.flush_policy(FlushPolicy::EveryMillis(1));
        files.push(builder.open().await.unwrap());
    }
    let (slow, quick) = (&files[0], &files[1]);
    let held = fuse.hold(&[FSYNC]);
    slow.update_region(0, b"slow").await.unwrap();
    eventually("the slow one is flushed", || fuse.count(FSYNC) > 0);
    for _ in 0..5 {
        quick.update_region(0, b"quick").await.unwrap();
        eventually("the quick one is flushed", || quick.pending_bytes() == 0);
    }
    drop(held);
    eventually("the slow one is flushed", || slow.pending_bytes() == 0);
});

fuse_test!(appends_reach_the_server, |fuse| {
    let file = open_rw(fuse).await;
    let mut expected = pattern(LEN as usize);
    for number in 0..20 {
        let data = [number; 700];
        assert_eq!(file.append(&data).await.unwrap(), expected.len() as u64);
        expected.extend(data);
    }
    file.append_async(b"durable").await.unwrap();
    expected.extend(b"durable");
    assert_eq!(fuse.content("data"), expected);
    assert_eq!(file.as_slice(0, file.len()).unwrap(), expected[..]);
});

fuse_test!(withdrawn_append_leaves_no_gap, |fuse| {
    fuse.expire_attributes();
    let file = open_rw(fuse).await;
    // These are one batch, after what keeps the queue busy.
    let busy = HeldQueue::new(&file, 0);
    let mut first = Box::pin(file.append(b"first"));
    assert!(poll_once(&mut first).await.is_none());
    let mut withdrawn = Box::pin(file.append(b"withdrawn"));
    assert!(poll_once(&mut withdrawn).await.is_none());
    let mut last = Box::pin(file.append(b"last"));
    assert!(poll_once(&mut last).await.is_none());
    let held = fuse.hold(&[GETATTR]);
    busy.release().await;
    eventually("the batch asks for the length", || held.is_waited_for());
    drop(withdrawn);
    drop(held);
    assert_eq!(first.await.unwrap(), LEN);
    assert_eq!(last.await.unwrap(), LEN + 5);
    file.flush().await.unwrap();
    assert_eq!(fuse.content("data")[LEN as usize..], *b"firstlast");
    assert_eq!(file.len(), LEN + 9);
});

fuse_test!(file_without_links_opens_or_fails, |fuse| {
    fuse.set_links(0);
    for what in ["open_ro", "open_rw", "open_or_create", "create_rw"] {
        let path = fuse.path("data");
        let opened = join_with_timeout(what, async move {
            match what {
                "open_ro" => MemoryMappedFile::open_ro(path).await,
                "open_rw" => MemoryMappedFile::open_rw(path).await,
                "open_or_create" => MemoryMappedFile::open_or_create(path, LEN).await,
                _ => MemoryMappedFile::create_rw(path, LEN).await,
            }
        });
        if let Ok(file) = opened {
            assert_eq!(file.len(), LEN);
            file.slice(0, LEN).await.unwrap();
            file.close().await.unwrap();
        }
    }
});

/// The server is slow to reserve blocks, or to set a length. An opening of the file that is being
/// made longer ends nevertheless, and so leaves its thread of the pool to others.
#[test]
fn growth_leaves_pool_free() {
    type Grow = for<'a> fn(&'a MemoryMappedFile) -> Running<'a>;
    let resize: Grow = |file| Box::pin(file.resize(file.len() * 2));
    let append: Grow = |file| Box::pin(async { file.append(&[1; 9000]).await.map(drop) });
    let this = child!(growth_leaves_pool_free).usual_pool();
    with_fuse(this, &[("data", LEN as usize)], |fuse| {
        block_on(async {
            // The first request reserves the blocks, or else sets the length.
            for (grow, reserves) in [
                (resize, true),
                (append, true),
                (resize, false),
                (append, false),
            ] {
                let path = fuse.path("data");
                let builder = MemoryMappedFile::builder(&path).mode(MmapMode::ReadWrite);
                let file = builder.preallocate(reserves).open().await.unwrap();
                let old_len = file.len();
                let held = fuse.hold(&[FALLOCATE]);
                let mut growing = grow(&file);
                assert!(poll_once(&mut growing).await.is_none());
                eventually("the server is asked", || held.is_waited_for());
                // It maps the file, which no other handle has mapped for reading.
                let reader = with_timeout(MemoryMappedFile::open_ro(&path)).await;
                let reader = reader.unwrap();
                assert_eq!(reader.len(), old_len);
                assert!(poll_once(&mut growing).await.is_none());
                drop(held);
                with_timeout(growing).await.unwrap();
                // The reader's map covers what was added.
                let len = file.len();
                assert!(len > old_len);
                assert_eq!(reader.len(), len);
                file.update_region(len - 4, b"last").await.unwrap();
                assert_eq!(reader.slice(len - 4, 4).await.unwrap(), b"last");
                file.resize(LEN).await.unwrap();
                reader.close().await.unwrap();
                file.close().await.unwrap();
            }
        });
    });
}

/// The server is slow to reserve blocks for an opening that has taken an advisory lock. Openings that
/// ask for the lock as well end nevertheless, and so leave their threads of the pool to others.
#[cfg(feature = "advisory-lock")]
#[test]
fn locking_openings_leave_pool_free() {
    use mmap_io::Lock;

    let this = child!(locking_openings_leave_pool_free).usual_pool();
    with_fuse(this, &[("data", LEN as usize)], |fuse| {
        block_on(async {
            let path = fuse.path("data");
            let _reader = open_ro(fuse).await;
            let builder = || MemoryMappedFile::builder(&path).mode(MmapMode::ReadWrite);
            let held = fuse.hold(&[FALLOCATE]);
            let first = builder().preallocate(true).advisory_lock(Lock::Exclusive);
            let mut first = Box::pin(first.open());
            assert!(poll_once(&mut first).await.is_none());
            eventually("it reserves", || held.is_waited_for());
            for lock in [Lock::Shared, Lock::Exclusive] {
                let open = builder().advisory_lock(lock).open();
                with_timeout(open).await.unwrap();
            }
            assert!(poll_once(&mut first).await.is_none());
            drop(held);
            with_timeout(first).await.unwrap();
        });
    });
}

fuse_test!(failed_reservation_maps_nothing, |fuse| {
    let reader = open_ro(fuse).await;
    fuse.refuse(FALLOCATE, libc::ENOSPC);
    let writer = MemoryMappedFile::builder(fuse.path("data")).mode(MmapMode::ReadWrite);
    assert_errno(writer.preallocate(true).open().await, libc::ENOSPC);
    assert!(!reader.is_mapped_for_writing());
});

#[track_caller]
fn assert_errno<T>(result: Result<T>, errno: i32) {
    let error = result.map(drop).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(errno), "{error:?}");
}

fuse_test!(refused_read_is_an_error, |fuse| {
    for file in [open_ro(fuse).await, open_rw(fuse).await] {
        fuse.refuse(READ, libc::EIO);
        assert_errno(file.slice(0, 100).await, libc::EIO);
        assert_errno(file.read_into(5000, &mut [0; 100]).await, libc::EIO);
        assert_errno(file.read_bytes(LEN - 100, 100).await, libc::EIO);
        assert_errno(file.touch_pages().await, libc::EIO);
        if file.mode() == MmapMode::ReadWrite {
            // A page is read before a part of it is written.
            assert_errno(file.update_region(9000, b"x").await, libc::EIO);
            assert_errno(file.as_slice_mut(9000, 1).await, libc::EIO);
        }
        fuse.refuse(READ, 0);
        assert!(file.slice(0, LEN).await.unwrap() == *pattern(LEN as usize));
        file.evict(0, LEN).await.unwrap();
        file.close().await.unwrap();
    }
});

fuse_test!(refused_sync_error_sticks, |fuse| {
    for kind in [FSYNC, WRITE] {
        let file = open_rw(fuse).await;
        fuse.refuse(kind, libc::EIO);
        assert_errno(file.update_region_async(0, b"lost").await, libc::EIO);
        fuse.refuse(kind, 0);
        assert_errno(file.update_region_async(0, b"lost").await, libc::EIO);
        assert_errno(file.flush().await, libc::EIO);
        assert_eq!(file.slice(0, 4).await.unwrap(), b"lost");
        let again = open_rw(fuse).await;
        assert_errno(Err::<(), _>(again.last_flush_error().unwrap()), libc::EIO);
        drop(again);
        assert!(file.close().await.is_err());
        all_close(fuse);
    }
});

fuse_test!(files_grow_without_fallocate, |fuse| {
    for (round, errno) in [libc::EOPNOTSUPP, libc::ENOSYS].into_iter().enumerate() {
        fuse.refuse(FALLOCATE, errno);
        let name = |what| format!("{what}-{round}");
        let path = |what| fuse.path(&name(what));
        let created = MemoryMappedFile::create_rw(path("created"), 5000)
            .await
            .unwrap();
        let new = MemoryMappedFile::builder(path("new"))
            .size(5000)
            .create_new();
        let new = new.await.unwrap();
        let opened = MemoryMappedFile::open_or_create(path("opened"), 5000);
        let opened = opened.await.unwrap();
        let files = [created, new, opened];
        for (what, file) in ["created", "new", "opened"].into_iter().zip(files) {
            file.update_region(0, &pattern(5000)).await.unwrap();
            file.resize(10_000).await.unwrap();
            assert_eq!(file.grow_to(2 << 20).await.unwrap(), 2 << 20);
            assert_eq!(file.grow_to(100).await.unwrap(), 2 << 20);
            file.update_region_async((2 << 20) - 3, b"end")
                .await
                .unwrap();
            let mut expected = pattern(5000);
            expected.resize((2 << 20) - 3, 0);
            expected.extend(b"end");
            assert!(file.slice(0, 2 << 20).await.unwrap() == *expected);
            file.close().await.unwrap();
            assert!(fuse.content(&name(what)) == expected);
        }
    }
});

fuse_test!(refused_preallocate_empties_nothing, |fuse| {
    fuse.refuse(FALLOCATE, libc::EOPNOTSUPP);
    let builder = MemoryMappedFile::builder(fuse.path("data"));
    let created = builder.size(5000).preallocate(true).create().await;
    if created.is_err() {
        assert!(
            fuse.content("data") == pattern(LEN as usize),
            "the failed creation changed the file"
        );
    }
});

/// Locks a file for writing, as another process would.
fn lock(file: &File, command: libc::c_int) {
    // SAFETY: all-zero bytes are a valid `flock`: the whole file.
    let mut whole: libc::flock = unsafe { std::mem::zeroed() };
    whole.l_type = libc::F_WRLCK as libc::c_short;
    // SAFETY: `whole` is live for the call.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), command, &whole) }, 0);
}

fuse_test!(growth_beside_lock_cuts_nothing, |fuse| {
    fuse.refuse(FALLOCATE, libc::EOPNOTSUPP);
    for command in [libc::F_OFD_SETLK, libc::F_SETLK] {
        let peer = File::options()
            .read(true)
            .write(true)
            .open(fuse.path("other"));
        let peer = peer.unwrap();
        let file = MemoryMappedFile::open_rw(fuse.path("other")).await.unwrap();
        let (len, content) = (file.len(), fuse.content("other"));
        lock(&peer, command);
        for result in [
            file.grow_to(len + 5000).await.map(drop),
            file.resize(len + 5000).await,
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, MmapIoError::ResizeFailed(_)), "{error:?}");
            assert_errno(Err::<(), _>(error), libc::EAGAIN);
        }
        assert_eq!((file.len(), fuse.content("other")), (len, content));
        // Bytes that the peer appends under its lock stay.
        peer.write_all_at(b"peer", len).unwrap();
        assert_eq!(file.grow_to(len + 4).await.unwrap(), len + 4);
        assert_eq!(file.slice(len, 4).await.unwrap(), b"peer");
        // Its lock ends.
        drop(peer);
        assert_eq!(file.grow_to(len + 5000).await.unwrap(), len + 5000);
        assert_eq!(&fuse.content("other")[len as usize..][..4], b"peer");
        assert_eq!(fuse.content("other").len() as u64, len + 5000);
        file.close().await.unwrap();
    }
});

/// Starts more reads of pages that the server holds back than the pool has threads.
async fn start_reads(
    file: &MemoryMappedFile,
) -> Vec<Pin<Box<impl Future<Output = Result<Bytes>> + '_>>> {
    const READS: u64 = 2_000;
    let mut reads = Vec::new();
    for number in 0..READS {
        let mut read = Box::pin(file.read_bytes(number % (LEN / 4096) * 4096, 4096));
        assert!(poll_once(&mut read).await.is_none());
        reads.push(read);
    }
    assert_eq!(file.stats().resident_misses, READS);
    reads
}

fuse_test!(cold_reads_leave_pool_to_writes, |fuse| {
    if is_single_threaded() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let local = MemoryMappedFile::create_rw(dir.path().join("local"), 5000).await;
    let local = local.unwrap();
    let file = open_ro(fuse).await;
    let held = fuse.hold(&[READ]);
    let mut reads = start_reads(&file).await;
    eventually("pages are asked for", || fuse.count(READ) > 0);
    for _ in 0..5 {
        with_timeout(local.update_region_async(100, b"durable"))
            .await
            .unwrap();
        with_timeout(local.read_bytes(100, 7)).await.unwrap();
    }
    for read in &mut reads {
        assert!(poll_once(read).await.is_none());
    }
    drop(held);
    let expected = pattern(LEN as usize);
    for (expected, read) in expected.chunks(4096).cycle().zip(reads) {
        assert_eq!(with_timeout(read).await.unwrap(), expected);
    }
});

fuse_test!(reads_that_are_not_polled_delay_none, |fuse| {
    let file = open_ro(fuse).await;
    let held = fuse.hold(&[READ]);
    let mut reads = start_reads(&file).await;
    let last = reads.pop().unwrap();
    drop(held);
    with_timeout(last).await.unwrap();
    with_timeout(file.read_bytes(LEN - 100, 100)).await.unwrap();
    drop(reads);
});

fuse_test!(birth_time_separates_equal_inodes, |fuse| {
    fuse.repeat_inode_number();
    let plain = ["data", "other"].map(|name| fs::metadata(fuse.path(name)).unwrap());
    assert_eq!(plain[0].ino(), plain[1].ino());
    // The birth times tell them apart.
    let born = plain.map(|plain| plain.created().unwrap());
    assert_ne!(born[0], born[1]);
    let data = open_rw(fuse).await;
    let other = MemoryMappedFile::open_rw(fuse.path("other")).await.unwrap();
    assert_eq!((data.len(), other.len()), (LEN, 8192));
    let view = data.bytes(0, 100).unwrap();
    with_timeout(other.update_region_async(0, b"other"))
        .await
        .unwrap();
    assert_eq!(view, pattern(100));
    assert!(fuse.content("data") == pattern(LEN as usize));
    assert_eq!(&fuse.content("other")[..5], b"other");
});

// A signal makes the server give up requests, which says nothing about the file.
fuse_test!(interrupted_reads_are_made_again, |fuse| {
    for interrupted in 1..10 {
        let file = open_ro(fuse).await;
        fuse.refuse_next(interrupted, READ, libc::EINTR);
        let slice = with_timeout(file.slice(0, 100)).await.unwrap();
        assert_eq!(
            slice,
            &pattern(100)[..],
            "after {interrupted} interruptions"
        );
        drop(slice);
        file.evict(0, LEN).await.unwrap();
    }
});

// But a write that a server has given up is told of only once: after that, its pages are clean.
fuse_test!(interrupted_write_back_is_an_error_that_sticks, |fuse| {
    let file = open_rw(fuse).await;
    fuse.refuse(WRITE, libc::EINTR);
    let failed = file.update_region_async(100, b"lost").await.unwrap_err();
    assert!(matches!(failed, MmapIoError::FlushFailed(_)), "{failed:?}");
    assert_eq!(failed.raw_os_error(), Some(libc::EINTR));
    assert!(fuse.content("data") == pattern(LEN as usize));
    fuse.refuse(WRITE, 0);
    let again = file.flush().await.unwrap_err();
    assert!(matches!(again, MmapIoError::FlushFailed(_)), "{again:?}");
});

/// Whether a thread lets a signal wait.
fn lets_wait(thread: u32, signal: libc::c_int) -> bool {
    let status = fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    let blocked = u64::from_str_radix(blocked.unwrap().trim(), 16).unwrap();
    blocked >> (signal - 1) & 1 == 1
}

// So that a signal is not taken for that error.
fuse_test!(signals_wait_for_syncs, |fuse| {
    let file = open_rw(fuse).await;
    for is_longer in [false, true] {
        if is_longer {
            file.resize(LEN + 1).await.unwrap();
        }
        let held = fuse.hold(&[FSYNC]);
        let mut write = Box::pin(file.update_region_async(0, b"durable"));
        assert!(poll_once(&mut write).await.is_none());
        eventually("the server is asked", || held.is_waited_for());
        let thread = fuse.last_asker(FSYNC);
        assert!(lets_wait(thread, libc::SIGUSR1));
        drop(held);
        with_timeout(write).await.unwrap();
        assert!(!lets_wait(thread, libc::SIGUSR1));
    }
});
