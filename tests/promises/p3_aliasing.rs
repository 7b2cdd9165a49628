//! No view changes under its holder, whatever is called, through whichever handle.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use bytes::Bytes;
use futures_lite::future::poll_once;
use mmap_io::{MappedSlice, MappedSliceMut, MemoryMappedFile, MmapMode};
use proptest::prelude::*;

use crate::common::{alone, pattern, patterned};

#[derive(Clone, Debug)]
enum Step {
    Slice(u64, u64),
    Bytes(u64, u64),
    Mutable(u64, u64),
    Write(u64, u64, u8),
    WriteOwnBytes(u64, u64, u64),
    Resize(u64),
    Drop(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0..12_000_u64;
    let len = 1..5_000_u64;
    prop_oneof![
        2 => (at.clone(), len.clone()).prop_map(|(at, len)| Step::Slice(at, len)),
        2 => (at.clone(), len.clone()).prop_map(|(at, len)| Step::Bytes(at, len)),
        1 => (at.clone(), len.clone()).prop_map(|(at, len)| Step::Mutable(at, len)),
        4 => (at.clone(), len.clone(), any::<u8>()).prop_map(|(at, len, byte)| Step::Write(at, len, byte)),
        1 => (at.clone(), at.clone(), len).prop_map(|(from, to, len)| Step::WriteOwnBytes(from, to, len)),
        2 => (1..12_000_u64).prop_map(Step::Resize),
        4 => any::<usize>().prop_map(Step::Drop),
    ]
}

/// A view, and what was in it when it was taken.
enum View<'a> {
    Slice(u64, MappedSlice<'a>, Vec<u8>),
    Bytes(u64, Bytes, Vec<u8>),
    Mutable(u64, MappedSliceMut<'a>, u8),
}

impl View<'_> {
    fn range(&self) -> std::ops::Range<u64> {
        let (at, len) = match self {
            Self::Slice(at, view, _) => (*at, view.len()),
            Self::Bytes(at, view, _) => (*at, view.len()),
            Self::Mutable(at, view, _) => (*at, view.len()),
        };
        at..at + len as u64
    }

    fn is_unchanged(&self) -> bool {
        match self {
            Self::Slice(_, view, content) => *view == content[..],
            Self::Bytes(_, view, content) => view == content,
            Self::Mutable(_, view, byte) => view.iter().all(|other| other == byte),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn views_keep_their_bytes_and_the_file_is_what_was_written(
        steps in proptest::collection::vec((0..3_usize, step()), 1..60),
    ) {
        let dir = tempfile::tempdir().unwrap();
        alone(async {
            let (path, first) = patterned(dir.path(), 8_000).await;
            std::fs::hard_link(&path, dir.path().join("link")).unwrap();
            let second = MemoryMappedFile::open_rw(dir.path().join("link")).await.unwrap();
            let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
            let handles = [&first, &second, &reader];
            let mut model = pattern(8_000);
            let mut views: Vec<View<'_>> = Vec::new();
            for (handle, step) in steps {
                let file = handles[handle];
                let writer = handles[handle % 2];
                let in_use = |views: &[View<'_>], range: std::ops::Range<u64>, all: bool| {
                    views.iter().any(|view| {
                        let is_mutable = matches!(view, View::Mutable(..));
                        let other = view.range();
                        (all || is_mutable) && other.start < range.end && range.start < other.end
                    })
                };
                let fits = |model: &[u8], at: u64, len: u64| at + len <= model.len() as u64;
                match step {
                    Step::Slice(at, len) => match file.as_slice(at, len) {
                        Ok(view) => {
                            assert_eq!(view, &model[at as usize..(at + len) as usize]);
                            let content = view.to_vec();
                            views.push(View::Slice(at, view, content));
                        }
                        Err(_) => assert!(!fits(&model, at, len) || in_use(&views, at..at + len, false)),
                    },
                    Step::Bytes(at, len) => match file.bytes(at, len) {
                        Ok(view) => {
                            assert_eq!(view, &model[at as usize..(at + len) as usize]);
                            let content = view.to_vec();
                            views.push(View::Bytes(at, view, content));
                        }
                        Err(_) => assert!(!fits(&model, at, len) || in_use(&views, at..at + len, false)),
                    },
                    Step::Mutable(at, len) => match writer.try_as_slice_mut(at, len) {
                        Ok(Some(mut view)) => {
                            assert!(!in_use(&views, at..at + len, true));
                            view.fill(at as u8);
                            model[at as usize..(at + len) as usize].fill(at as u8);
                            views.push(View::Mutable(at, view, at as u8));
                        }
                        Ok(None) => {}
                        Err(_) => assert!(!fits(&model, at, len)),
                    },
                    Step::Write(at, len, byte) => {
                        let data = vec![byte; len as usize];
                        let is_free = fits(&model, at, len) && !in_use(&views, at..at + len, true);
                        if is_free {
                            writer.update_region(at, &data).await.unwrap();
                            model[at as usize..(at + len) as usize].fill(byte);
                        } else if fits(&model, at, len) {
                            assert!(!writer.try_update_region(at, &data).await.unwrap());
                        } else {
                            assert!(writer.update_region(at, &data).await.is_err());
                        }
                    }
                    Step::WriteOwnBytes(from, to, len) => {
                        let free = fits(&model, from, len)
                            && fits(&model, to, len)
                            && !in_use(&views, to..to + len, true)
                            && !in_use(&views, from..from + len, false);
                        if free {
                            // Also onto itself.
                            let data = writer.bytes(from, len).unwrap();
                            writer.write_bytes(to, data).await.unwrap();
                            model.copy_within(from as usize..(from + len) as usize, to as usize);
                        }
                    }
                    Step::Resize(size) => {
                        let size = size.max(1);
                        if !in_use(&views, size..u64::MAX, true) {
                            writer.resize(size).await.unwrap();
                            model.resize(size as usize, 0);
                        }
                    }
                    Step::Drop(which) if !views.is_empty() => {
                        let which = which % views.len();
                        drop(views.swap_remove(which));
                    }
                    Step::Drop(_) => {}
                }
                assert!(views.iter().all(View::is_unchanged));
                assert_eq!(first.len(), model.len() as u64);
            }
            assert_eq!(std::fs::read(&path).unwrap(), model);
        });
    }
}

#[test]
fn handles_know_of_each_other_however_they_were_opened() {
    let dir = tempfile::tempdir().unwrap();
    alone(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let duplicate = std::fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let duplicate = duplicate.try_clone().unwrap();
        let others = [
            file.clone(),
            MemoryMappedFile::open_rw(&link).await.unwrap(),
            MemoryMappedFile::from_file(duplicate, MmapMode::ReadWrite, "")
                .await
                .unwrap(),
            MemoryMappedFile::open_or_create(&path, 1).await.unwrap(),
        ];
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let view = reader.as_slice(0, 10).unwrap();
        for other in &others {
            assert!(!other.try_update_region(5, b"x").await.unwrap());
            assert!(poll_once(other.update_region(5, b"x")).await.is_none());
            assert!(poll_once(mmap_io::write_mmap(&path, 5, b"x"))
                .await
                .is_none());
        }
        assert_eq!(view, &pattern(10)[..]);
        drop(view);
        mmap_io::write_mmap(&path, 5, b"x").await.unwrap();
        assert_eq!(reader.as_slice(5, 1).unwrap(), b"x");
        // A new file under an old name is another file.
        mmap_io::delete_mmap(&path).await.unwrap();
        MemoryMappedFile::create_rw(&path, 10).await.unwrap();
        assert_eq!(reader.len(), 1000);
    });
}

#[test]
fn bytes_of_two_files_are_written_into_each_other() {
    let dir = tempfile::tempdir().unwrap();
    alone(async {
        let (_, one) = patterned(dir.path(), 1000).await;
        let two = MemoryMappedFile::create_rw(dir.path().join("two"), 1000)
            .await
            .unwrap();
        // Each is the other's source: neither may wait for the other's view of it.
        let (from_one, from_two) = (one.bytes(0, 1000).unwrap(), two.bytes(0, 1000).unwrap());
        let swap =
            futures_lite::future::zip(two.write_bytes(0, from_one), one.write_bytes(0, from_two));
        let (first, second) = swap.await;
        first.and(second).unwrap();
        assert_eq!(two.as_slice(0, 1000).unwrap(), &pattern(1000)[..]);
        assert_eq!(one.as_slice(0, 1000).unwrap(), [0; 1000]);
    });
}

#[test]
fn readers_on_threads_see_each_write_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (_, file) = alone(patterned(dir.path(), 10_000));
    alone(file.update_region(0, &[0; 10_000])).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (file, stop) = (file.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut reads = 0_u32;
                while !stop.load(Ordering::Relaxed) || reads < 100 {
                    let view = file.as_slice(1000, 5000).unwrap();
                    let first = view[0];
                    assert!(view.iter().all(|byte| *byte == first), "a torn write");
                    std::thread::yield_now();
                    assert!(
                        view.iter().all(|byte| *byte == first),
                        "changed under its holder"
                    );
                    reads += 1;
                }
            })
        })
        .collect();
    alone(async {
        for turn in 0..300_u32 {
            file.update_region(1000, &[turn as u8; 5000]).await.unwrap();
        }
    });
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
}
