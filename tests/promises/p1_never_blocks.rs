//! No executor thread is blocked: a ticker on a one-threaded runtime goes on while an operation is
//! stuck behind a view, and a runtime that is shut down leaves nothing behind.

use std::future::Future;
use std::pin::pin;

use futures_lite::future::{poll_once, yield_now};
use mmap_io::MemoryMappedFile;

use crate::common::{alone, is_quiet, patterned, until};

/// Polls `stuck` on the only thread there is, in turn with a ticker.
async fn ticks_beside(stuck: impl Future) {
    let mut stuck = pin!(stuck);
    for _ in 0..1000 {
        assert!(
            poll_once(&mut stuck).await.is_none(),
            "nothing is in its way"
        );
        yield_now().await;
    }
}

#[test]
fn a_ticker_goes_on_while_each_operation_is_stuck() {
    let dir = tempfile::tempdir().unwrap();
    alone(async {
        let (_, file) = patterned(dir.path(), 10_000).await;
        let view = file.bytes(0, 10_000).unwrap();
        ticks_beside(file.update_region(0, b"x")).await;
        ticks_beside(file.update_region_async(0, b"x")).await;
        ticks_beside(file.update_regions(&[(0, b"x"), (9_999, b"y")])).await;
        ticks_beside(file.write_bytes(5, vec![1].into())).await;
        ticks_beside(file.as_slice_mut(0, 10)).await;
        ticks_beside(file.resize(5_000)).await;
        drop(view);
        until(&file, is_quiet).await;
        let view = file.as_slice_mut(0, 10_000).await.unwrap();
        ticks_beside(file.slice(0, 1)).await;
        ticks_beside(file.read_bytes(0, 1)).await;
        ticks_beside(file.read_into(0, &mut [0])).await;
        ticks_beside(file.copy_to(dir.path().join("copy"))).await;
        drop(view);
        until(&file, is_quiet).await;
        assert_eq!(file.stats().updates, 0);
    });
}

#[test]
fn a_runtime_that_is_shut_down_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_, file) = runtime.block_on(patterned(dir.path(), 10_000));
    let view = file.bytes(0, 100).unwrap();
    for at in 0..50 {
        let file = file.clone();
        runtime.spawn(async move { file.update_region_async(at, b"x").await });
        let (file, size) = (view.clone(), 20_000);
        drop((file, size));
    }
    runtime.spawn(file.flush());
    runtime.block_on(until(&file, |stats| stats.queued_writes == 50));
    runtime.shutdown_background();
    alone(async {
        drop(view);
        until(&file, is_quiet).await;
        file.update_region_async(0, b"after").await.unwrap();
        assert_eq!(file.as_slice(0, 5).unwrap(), b"after");
    });
}

#[cfg(target_os = "linux")]
#[test]
fn cold_pages_are_read_on_the_pool() {
    use std::os::fd::AsRawFd;

    /// Faults of this thread that had to wait for the disk.
    fn major_faults() -> i64 {
        // SAFETY: an all-zero `rusage` is valid, and the call fills it.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: `usage` is live for the call.
        unsafe { libc::getrusage(libc::RUSAGE_THREAD, &mut usage) };
        usage.ru_majflt
    }

    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("cold");
    let plain = std::fs::File::create_new(&path).unwrap();
    std::io::Write::write_all(&mut &plain, &vec![7; 8 << 20]).unwrap();
    plain.sync_all().unwrap();
    // SAFETY: the call takes no pointer.
    unsafe { libc::posix_fadvise(plain.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    alone(async {
        let file = MemoryMappedFile::open_ro(&path).await.unwrap();
        let before = major_faults();
        let slice = file.slice(0, 8 << 20).await.unwrap();
        assert!(slice.iter().all(|byte| *byte == 7));
        assert_eq!(major_faults(), before);
        assert_eq!(file.stats().resident_misses, 1);
        file.slice(0, 4096).await.unwrap();
        assert_eq!(file.stats().resident_hits, 1);
    });
}
