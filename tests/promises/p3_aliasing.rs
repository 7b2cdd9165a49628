//! No view changes while it is held, whatever is called, through whichever handle.

use std::fs;
use std::future::Future;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use futures_lite::future::{poll_once, zip};
use mmap_io::{MemoryMappedFile, MmapIoError, MmapMode};

use crate::common::{block_on, is_quiet, pattern, patterned, wait_until, with_timeout, TIMEOUT};

#[cfg(feature = "atomic")]
mod atomic;
mod handles;
mod sources;

/// Creates a hard link and a symbolic link to a file, beside it.
fn link_twice(path: &Path) -> (PathBuf, PathBuf) {
    let (hard_link, soft_link) = (path.with_file_name("hard"), path.with_file_name("soft"));
    fs::hard_link(path, &hard_link).unwrap();
    symlink(path, &soft_link).unwrap();
    (hard_link, soft_link)
}

/// Every way to open a file that is open already; the last handle is read-only.
async fn open_again(path: &Path, hard_link: &Path, soft_link: &Path) -> Vec<MemoryMappedFile> {
    let plain = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let duplicate = plain.try_clone().unwrap();
    vec![
        MemoryMappedFile::open_rw(hard_link).await.unwrap(),
        MemoryMappedFile::open_rw(soft_link).await.unwrap(),
        MemoryMappedFile::open_or_create(path, 1).await.unwrap(),
        MemoryMappedFile::from_file(duplicate, MmapMode::ReadWrite, "")
            .await
            .unwrap(),
        MemoryMappedFile::open_ro(path).await.unwrap(),
    ]
}

/// A waker that blocks the thread that wakes it until it is released.
struct SlowWaker {
    woken: Mutex<Sender<()>>,
    release: Mutex<Receiver<()>>,
}

impl Wake for SlowWaker {
    fn wake(self: Arc<Self>) {
        // The other ends are gone when the test has dropped them.
        let _ = self.woken.lock().unwrap().send(());
        let _ = self.release.lock().unwrap().recv_timeout(TIMEOUT);
    }
}

/// Polls once, and waits until the future is woken unless it is ready. The job that has woken it is
/// blocked until the returned sender is dropped.
fn poll_until_woken<T>(future: Pin<&mut impl Future<Output = T>>) -> (Sender<()>, Option<T>) {
    let (woken, is_woken) = mpsc::channel();
    let (release, is_let_go) = mpsc::channel();
    let waker = Waker::from(Arc::new(SlowWaker {
        woken: Mutex::new(woken),
        release: Mutex::new(is_let_go),
    }));
    match future.poll(&mut Context::from_waker(&waker)) {
        Poll::Ready(output) => (release, Some(output)),
        Poll::Pending => {
            is_woken.recv_timeout(TIMEOUT).unwrap();
            (release, None)
        }
    }
}

#[test]
fn shrink_waits_behind_longer_write() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 10_000).await;
        let view = file.as_slice(0, 10).unwrap();
        let mut write = Box::pin(file.update_region(0, &[1; 5000]));
        let mut shrink = Box::pin(file.resize(100));
        assert!(poll_once(&mut write).await.is_none());
        assert!(poll_once(&mut shrink).await.is_none());
        wait_until(&file, |stats| stats.oldest_blocked.is_some()).await;
        assert_eq!(view, &pattern(10)[..]);
        drop(view);
        let (written, shrunk) = with_timeout(zip(write, shrink)).await;
        written.and(shrunk).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [1; 100]);
    });
}

#[test]
fn blocked_operations_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 100).await;
        let (early, late) = (file.as_slice(0, 1).unwrap(), file.as_slice(29, 1).unwrap());
        let mut first = Box::pin(file.update_region(0, &[1; 10]));
        assert!(poll_once(&mut first).await.is_none());
        wait_until(&file, |stats| stats.oldest_blocked.is_some()).await;
        let (release, apart) = loop {
            let mut apart = Box::pin(file.update_region(90, b"x"));
            match poll_until_woken(apart.as_mut()) {
                (release, None) => break (release, apart),
                // It was complete before its waker could block the drain.
                (_, Some(done)) => done.unwrap(),
            }
        };
        // The queue examines both together, in a job that knows what the third waits for, and does
        // not yet know that the second waits as well.
        let mut second = Box::pin(file.update_region(20, &[2; 10]));
        let mut third = Box::pin(file.update_region(5, &[3; 20]));
        assert!(poll_once(&mut second).await.is_none());
        assert!(poll_once(&mut third).await.is_none());
        drop(release);
        apart.await.unwrap();
        wait_until(&file, |stats| stats.queued_writes == 3).await;
        drop((early, late));
        let all = zip(zip(first, second), third);
        let ((first, second), third) = with_timeout(all).await;
        first.and(second).and(third).unwrap();
        let mut expected = pattern(100);
        expected[0..10].fill(1);
        expected[20..30].fill(2);
        expected[5..25].fill(3);
        expected[90] = b'x';
        assert_eq!(file.as_slice(0, 100).unwrap(), &expected[..]);
    });
}

#[test]
fn dropped_blocked_shrink_never_happens() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 8000).await;
        for turn in 0..5000 {
            let view = file.slice(5000, 2000).await.unwrap();
            let mut shrink = Box::pin(file.resize(6000));
            assert!(poll_once(&mut shrink).await.is_none());
            for _ in 0..turn % 50 * 10 {
                std::hint::spin_loop();
            }
            // The view lives from before the shrink until after the shrink is dropped.
            drop(shrink);
            drop(view);
            // Ordered behind anything that is still in progress.
            file.update_region(7999, b"x").await.unwrap();
            assert_eq!(file.len(), 8000, "turn {turn}");
        }
    });
}

#[test]
fn own_shrink_is_not_a_truncation() {
    let dir = tempfile::tempdir().unwrap();
    let (_, file) = block_on(patterned(dir.path(), 50_000));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for _ in 0..2000 {
                block_on(file.resize(10_000)).unwrap();
                block_on(file.resize(50_000)).unwrap();
            }
            is_over.store(true, Ordering::Relaxed);
        });
        threads.spawn(|| {
            let mut buffer = [0; 10_000];
            while !is_over.load(Ordering::Relaxed) {
                for result in [
                    block_on(file.slice(40_000, 10_000)).map(drop),
                    block_on(file.read_bytes(9_000, 2000)).map(drop),
                    block_on(file.read_into(20_000, &mut buffer)),
                    block_on(file.touch_pages()),
                    block_on(file.update_region(30_000, b"x")),
                    block_on(file.as_slice_mut(49_990, 10)).map(drop),
                    block_on(file.flush()),
                ] {
                    match result {
                        Ok(()) | Err(MmapIoError::OutOfBounds { .. }) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
            }
        });
    });
}

#[test]
fn views_on_many_threads_never_change() {
    const CELL: u64 = 3000;
    const CELLS: u64 = 6;
    let dir = tempfile::tempdir().unwrap();
    let (path, first) = block_on(patterned(dir.path(), (CELLS * CELL) as usize));
    block_on(first.update_region(0, &[0; (CELLS * CELL) as usize])).unwrap();
    let second = block_on(MemoryMappedFile::open_rw(&path)).unwrap();
    let reader = block_on(MemoryMappedFile::open_ro(&path)).unwrap();
    let handles = [&first, &second, &reader];
    let writers_left = AtomicU32::new(2);
    let is_over = AtomicBool::new(false);

    // Every write fills a cell with one value.
    let check = |view: &[u8]| {
        let value = view[0];
        let is_whole = |when: &str| assert!(view.iter().all(|byte| *byte == value), "{when}");
        is_whole("a reader saw a part of a write");
        std::thread::yield_now();
        is_whole("the bytes changed while the view was held");
    };
    std::thread::scope(|threads| {
        for seed in 0..2_u32 {
            let (check, is_over) = (&check, &is_over);
            threads.spawn(move || {
                let mut random = seed + 1;
                let mut turns = 0;
                while turns < 100 || !is_over.load(Ordering::Relaxed) {
                    turns += 1;
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let file = handles[(random >> 8) as usize % 3];
                    let at = u64::from(random >> 16) % CELLS * CELL;
                    // A mutable view may conflict, or the last cell be cut off.
                    match turns % 4 {
                        0 => check(&match block_on(file.slice(at, CELL)) {
                            Err(MmapIoError::OutOfBounds { .. }) => continue,
                            view => view.unwrap(),
                        }),
                        1 => check(&match file.bytes(at, CELL) {
                            Err(MmapIoError::OutOfBounds { .. } | MmapIoError::Busy { .. }) => {
                                continue
                            }
                            view => view.unwrap(),
                        }),
                        2 => check(&match file.try_as_slice(at, CELL) {
                            Err(MmapIoError::OutOfBounds { .. }) | Ok(None) => continue,
                            view => view.unwrap().unwrap(),
                        }),
                        _ => check(&match file.as_slice(at, CELL) {
                            Err(MmapIoError::OutOfBounds { .. } | MmapIoError::Busy { .. }) => {
                                continue
                            }
                            view => view.unwrap(),
                        }),
                    }
                }
            });
        }
        for writer in 0..2_u32 {
            let (check, writers_left, is_over) = (&check, &writers_left, &is_over);
            let file = handles[writer as usize];
            threads.spawn(move || {
                for turn in 0..300_u32 {
                    let at = u64::from(turn * 5 + writer) % CELLS * CELL;
                    let value = (turn * 2 + writer) as u8;
                    let data = [value; CELL as usize];
                    let write = match turn % 5 {
                        0 => block_on(async {
                            let mut view = file.as_slice_mut(at, CELL).await?;
                            view.fill(value);
                            check(&view);
                            Ok(())
                        }),
                        1 => block_on(file.write_bytes(at, Bytes::copy_from_slice(&data))),
                        2 => block_on(file.update_regions(&[(0, &data), (at, &data)])),
                        // The last cell goes, and comes back as zeroes.
                        3 if turn % 10 == 3 => block_on(async {
                            file.resize((CELLS - 1) * CELL).await?;
                            file.resize(CELLS * CELL).await
                        }),
                        _ => block_on(file.update_region(at, &data)),
                    };
                    match write {
                        Err(MmapIoError::OutOfBounds { .. }) => {}
                        write => write.unwrap(),
                    }
                }
                if writers_left.fetch_sub(1, Ordering::Relaxed) == 1 {
                    is_over.store(true, Ordering::Relaxed);
                }
            });
        }
    });
    block_on(wait_until(&first, is_quiet));
}
