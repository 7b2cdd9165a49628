//! Random operations compared with a model, and threads that check what they see.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;

use proptest::prelude::*;

use super::*;

const PAGES: u64 = 4;

#[derive(Clone, Debug)]
enum Step {
    /// Through which handle; what to write where, by one of the ways.
    Write(usize, u64, u64, usize),
    /// Throws the copies of a private handle away.
    #[cfg(feature = "advise")]
    Discard(usize, u64, u64),
    /// Opens a private handle again.
    Reopen(usize),
}

/// The file, and two handles on private pages.
const HANDLES: usize = 3;

fn step() -> impl Strategy<Value = Step> {
    let len = PAGES * page();
    let range = (0..len - 1).prop_flat_map(move |at| (Just(at), 1..(len - at).min(page() + 100)));
    let write = (0..HANDLES, range.clone(), 0..4_usize)
        .prop_map(|(handle, (at, len), way)| Step::Write(handle, at, len, way));
    let reopen = (1..HANDLES).prop_map(Step::Reopen);
    #[cfg(feature = "advise")]
    return prop_oneof![
        8 => write,
        2 => (1..HANDLES, range).prop_map(|(handle, (at, len))| Step::Discard(handle, at, len)),
        1 => reopen,
    ];
    #[cfg(not(feature = "advise"))]
    return prop_oneof![8 => write, 1 => reopen];
}

async fn write(file: &MemoryMappedFile, at: u64, data: &[u8], way: usize) {
    match way {
        0 => file.update_region(at, data).await.unwrap(),
        1 => {
            let data = Bytes::copy_from_slice(data);
            file.write_bytes_async(at, data).await.unwrap();
        }
        2 => file
            .as_slice_mut(at, data.len() as u64)
            .await
            .unwrap()
            .copy_from_slice(data),
        _ => {
            let view = file.try_as_slice_mut(at, data.len() as u64).unwrap();
            view.unwrap().copy_from_slice(data);
        }
    }
}

/// What a handle shows: its own copy of a page, or the page of the file.
struct Model {
    file: Vec<u8>,
    copies: [Vec<Option<Vec<u8>>>; HANDLES],
}

impl Model {
    fn write(&mut self, handle: usize, at: usize, data: &[u8]) {
        for (at, byte) in (at..).zip(data) {
            if handle == 0 {
                self.file[at] = *byte;
                continue;
            }
            let (index, size) = (at / page_size(), page_size());
            let shown = &self.file[index * size..(index + 1) * size];
            let copy = self.copies[handle][index].get_or_insert_with(|| shown.to_vec());
            copy[at % size] = *byte;
        }
    }

    fn shown(&self, handle: usize) -> Vec<u8> {
        let pages = self.file.chunks(page_size()).zip(&self.copies[handle]);
        let pages = pages.map(|(page, copy)| copy.as_deref().unwrap_or(page));
        pages.collect::<Vec<_>>().concat()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn random_steps_match_model(steps in proptest::collection::vec(step(), 1..30)) {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let (file, first) = opened(dir.path()).await;
            let path = file.path().to_path_buf();
            let second = MemoryMappedFile::open_cow_writable(&path).await.unwrap();
            let mut handles = [file, first, second];
            let mut model = Model {
                file: vec![1; PAGES as usize * page_size()],
                copies: std::array::from_fn(|_| vec![None; PAGES as usize]),
            };
            for (number, step) in steps.iter().enumerate() {
                match *step {
                    Step::Write(handle, at, len, way) => {
                        let data = vec![number as u8 + 2; len as usize];
                        write(&handles[handle], at, &data, way).await;
                        model.write(handle, at as usize, &data);
                    }
                    #[cfg(feature = "advise")]
                    Step::Discard(handle, at, len) => {
                        let advice = mmap_io::MmapAdvice::DontNeed;
                        handles[handle].advise(at, len, advice).await.unwrap();
                        let pages = at / page()..(at + len).div_ceil(page());
                        model.copies[handle][pages.start as usize..pages.end as usize].fill(None);
                    }
                    Step::Reopen(handle) => {
                        let opened = MemoryMappedFile::open_cow_writable(&path).await;
                        handles[handle] = opened.unwrap();
                        model.copies[handle].fill(None);
                    }
                }
                for (handle, file) in handles.iter().enumerate() {
                    let shown = file.slice(0, PAGES * page()).await.unwrap();
                    prop_assert!(*shown == model.shown(handle), "handle {handle}, after {step:?}");
                    prop_assert_eq!(file.pending_bytes() > 0 && handle > 0, false);
                }
            }
            prop_assert_eq!(&fs::read(&path).unwrap(), &model.file);
            Ok(())
        })?;
    }
}

/// Runs `body` until the others have ended.
fn repeat<T>(ended: &AtomicBool, mut body: impl FnMut(usize) -> T) {
    for round in 0.. {
        body(round);
        if ended.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// A writer fills the file with one byte at a time. Whatever a private handle shows of it is of one
/// write: under its views, and in the pages that one of its own writes copies.
#[test]
fn no_view_and_no_copy_is_torn() {
    const ROUNDS: usize = 200;
    const PAGES: usize = 32;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let len = PAGES as u64 * page();
    let (file, private) = block_on(async {
        let file = MemoryMappedFile::create_rw(&path, len).await.unwrap();
        let private = MemoryMappedFile::open_cow_writable(&path).await.unwrap();
        (file, private)
    });
    let ended = Arc::new(AtomicBool::new(false));
    let copied = Arc::new(AtomicUsize::new(0));
    let is_one = |bytes: &[u8]| bytes.iter().all(|byte| *byte == bytes[0]);
    let threads = [
        thread::spawn({
            let (private, ended) = (private.clone(), ended.clone());
            move || {
                repeat(&ended, |round| {
                    let (at, len) = [(0, len), (page() - 50, 100), (300, 20)][round % 3];
                    let view = block_on(private.slice(at, len)).unwrap();
                    assert!(is_one(&view));
                    if let Ok(Some(view)) = private.try_as_slice(at, len) {
                        assert!(is_one(&view));
                    }
                });
            }
        }),
        thread::spawn({
            // Another handle, since what it copies no longer shows the file.
            let (ended, copied) = (ended.clone(), copied.clone());
            move || {
                repeat(&ended, |round| {
                    block_on(async {
                        let own = MemoryMappedFile::open_cow_writable(&path).await.unwrap();
                        if round % 4 > 0 {
                            // It copies all pages, and changes the first byte of each.
                            let regions =
                                (0..PAGES as u64).map(|index| (index * page(), &b"!"[..]));
                            let regions: Vec<_> = regions.collect();
                            own.update_regions(&regions).await.unwrap();
                        } else {
                            let mut view = own.as_slice_mut(0, len).await.unwrap();
                            view.iter_mut()
                                .step_by(page_size())
                                .for_each(|byte| *byte = b'!');
                        }
                        let mut shown = own.slice(0, len).await.unwrap().to_vec();
                        for index in (0..len as usize).step_by(page_size()) {
                            assert_eq!(shown[index], b'!');
                            shown[index] = shown[1];
                        }
                        assert!(is_one(&shown));
                    });
                    copied.fetch_add(1, Ordering::Relaxed);
                });
            }
        }),
    ];
    block_on(async {
        let mut round = 0;
        while round < ROUNDS || copied.load(Ordering::Relaxed) < 60 {
            round += 1;
            let byte = round as u8 | 1;
            match round % 4 {
                0 => {
                    let view = with_timeout(file.as_slice_mut(0, len)).await;
                    view.unwrap().fill(byte);
                }
                _ => {
                    let data = vec![byte; len as usize];
                    with_timeout(file.update_region(0, &data)).await.unwrap();
                }
            }
            if threads.iter().any(thread::JoinHandle::is_finished) {
                break;
            }
        }
    });
    ended.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Many writes of private pages against mutable views of the file that come and go: each is tried
/// again when it may succeed, and none waits forever.
#[test]
fn blocked_writes_all_end() {
    let dir = tempfile::tempdir().unwrap();
    let (file, private) = block_on(opened(dir.path()));
    let ended = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3_u64)
        .map(|number| {
            let private = private.clone();
            thread::spawn(move || {
                for round in 0..100 {
                    let at = (number * 1000 + round * 97) % (3 * page());
                    let regions = [(at, &b"a"[..]), (number * page(), b"b")];
                    block_on(with_timeout(private.update_regions(&regions))).unwrap();
                    if round % 10 == 0 {
                        drop(block_on(with_timeout(private.as_slice_mut(at, 10))).unwrap());
                    }
                }
            })
        })
        .collect();
    let viewer = thread::spawn({
        let ended = ended.clone();
        move || {
            repeat(&ended, |round| {
                let at = round as u64 * 611 % (3 * page());
                let view = block_on(with_timeout(file.as_slice_mut(at, 100))).unwrap();
                thread::yield_now();
                drop(view);
            });
            file
        }
    });
    for writer in writers {
        writer.join().unwrap();
    }
    ended.store(true, Ordering::Relaxed);
    let file = viewer.join().unwrap();
    block_on(async {
        wait_until(&file, is_quiet).await;
        wait_until(&private, is_quiet).await;
    });
}
