//! Random writes by every way into the file, compared with a `Vec<u8>`.

use std::fs;
use std::path::Path;

use mmap_io::{FlushPolicy, MemoryMappedFile, MmapMode};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::data;
use crate::common::{block_on, on_a_disk, pattern, skip};

/// Bytes of the file in the model; not a whole number of pages.
const LEN: usize = (6 << 20) + 1234;

#[derive(Clone, Copy, Debug)]
enum Before {
    Sparse,
    Preallocated,
    Written,
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, usize, u8),
    WriteBytes(usize, usize, u8),
    /// Of two ranges, as one operation.
    WriteMany([(usize, usize); 2], u8),
    Durable(usize, usize, u8),
    View(usize, usize, u8),
    Evict(usize, usize),
    Touch(usize, usize),
    FlushRange(usize, usize),
    Flush,
    Schedule,
    /// Through the other handle.
    Other(usize, usize, u8),
}

/// A range of at least a byte: short ones, and some of up to 3 MiB.
fn range() -> impl Strategy<Value = (usize, usize)> {
    let len = prop_oneof![
        1..200_usize,
        3000..10_000_usize,
        60_000..300_000_usize,
        250_000..(3_usize << 20),
    ];
    (0..LEN, len).prop_map(|(offset, len)| (offset, len.min(LEN - offset)))
}

fn step() -> impl Strategy<Value = Step> {
    let write = || (range(), any::<u8>());
    prop_oneof![
        4 => write().prop_map(|((at, len), seed)| Step::Write(at, len, seed)),
        2 => write().prop_map(|((at, len), seed)| Step::WriteBytes(at, len, seed)),
        2 => (range(), range(), any::<u8>())
            .prop_map(|(one, two, seed)| Step::WriteMany([one, two], seed)),
        1 => write().prop_map(|((at, len), seed)| Step::Durable(at, len, seed)),
        1 => write().prop_map(|((at, len), seed)| Step::View(at, len, seed)),
        2 => range().prop_map(|(at, len)| Step::Evict(at, len)),
        1 => Just(Step::Evict(0, LEN)),
        1 => range().prop_map(|(at, len)| Step::Touch(at, len)),
        1 => range().prop_map(|(at, len)| Step::FlushRange(at, len)),
        1 => Just(Step::Flush),
        1 => Just(Step::Schedule),
        2 => write().prop_map(|((at, len), seed)| Step::Other(at, len, seed)),
    ]
}

async fn check(dir: &Path, before: Before, steps: &[Step]) {
    let path = dir.join("data");
    let _ = fs::remove_file(&path);
    let mut model = vec![0; LEN];
    let file = match before {
        Before::Sparse => MemoryMappedFile::create_rw(&path, LEN as u64).await,
        Before::Preallocated => {
            let builder = MemoryMappedFile::builder(&path).size(LEN as u64);
            builder.preallocate(true).create().await
        }
        Before::Written => {
            model = pattern(LEN);
            fs::write(&path, &model).unwrap();
            MemoryMappedFile::open_rw(&path).await
        }
    };
    let file = file.unwrap();
    let other = MemoryMappedFile::builder(&path)
        .mode(MmapMode::ReadWrite)
        .flush_policy(FlushPolicy::EveryBytes(1 << 20))
        .open()
        .await
        .unwrap();
    let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
    for step in steps {
        match *step {
            Step::Write(at, len, seed) => {
                let data = data(len, seed);
                file.update_region(at as u64, &data).await.unwrap();
                model[at..at + len].copy_from_slice(&data);
            }
            Step::WriteBytes(at, len, seed) => {
                let data = data(len, seed);
                model[at..at + len].copy_from_slice(&data);
                file.write_bytes(at as u64, data.into()).await.unwrap();
            }
            Step::WriteMany(ranges, seed) => {
                let [one, two] = ranges.map(|(_, len)| data(len, seed));
                let [(at_one, _), (at_two, _)] = ranges;
                let regions: [(u64, &[u8]); 2] = [(at_one as u64, &one), (at_two as u64, &two)];
                file.update_regions(&regions).await.unwrap();
                model[at_one..at_one + one.len()].copy_from_slice(&one);
                model[at_two..at_two + two.len()].copy_from_slice(&two);
            }
            Step::Durable(at, len, seed) => {
                let data = data(len, seed);
                file.update_region_async(at as u64, &data).await.unwrap();
                model[at..at + len].copy_from_slice(&data);
            }
            Step::View(at, len, seed) => {
                let data = data(len, seed);
                let mut view = file.as_slice_mut(at as u64, len as u64).await.unwrap();
                assert!(*view == model[at..at + len]);
                view.copy_from_slice(&data);
                model[at..at + len].copy_from_slice(&data);
            }
            Step::Evict(at, len) => file.evict(at as u64, len as u64).await.unwrap(),
            Step::Touch(at, len) => {
                let (at, len) = (at as u64, len as u64);
                file.touch_pages_range(at, len).await.unwrap();
            }
            Step::FlushRange(at, len) => file.flush_range(at as u64, len as u64).await.unwrap(),
            Step::Flush => file.flush().await.unwrap(),
            Step::Schedule => file.schedule_flush().await.unwrap(),
            Step::Other(at, len, seed) => {
                let data = data(len, seed);
                other.update_region(at as u64, &data).await.unwrap();
                model[at..at + len].copy_from_slice(&data);
            }
        }
        // Every map shows it at once.
        for handle in [&file, &reader] {
            assert!(
                handle.as_slice(0, LEN as u64).unwrap() == model[..],
                "{step:?}"
            );
        }
    }
    assert!(other.slice(0, LEN as u64).await.unwrap() == model[..]);
    assert!(fs::read(&path).unwrap() == model, "read without a map");
    file.evict(0, LEN as u64).await.unwrap();
    assert!(fs::read(&path).unwrap() == model, "read from the disk");
    assert!(reader.read_bytes(0, LEN as u64).await.unwrap() == model[..]);
}

fn check_contents(dir: &Path, cases: u32) {
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    };
    let before = prop_oneof![
        Just(Before::Sparse),
        Just(Before::Preallocated),
        Just(Before::Written)
    ];
    let steps = proptest::collection::vec(step(), 1..12);
    TestRunner::new(config)
        .run(&(before, steps), |(before, steps)| {
            block_on(check(dir, before, &steps));
            Ok(())
        })
        .unwrap();
}

#[test]
fn contents_match_model_on_disk() {
    check_contents(on_a_disk().path(), 40);
}

#[test]
fn contents_match_model_on_tmpfs() {
    match tempfile::tempdir_in("/dev/shm") {
        Ok(dir) => check_contents(dir.path(), 40),
        Err(error) => skip(
            "contents_match_model_on_tmpfs",
            &format!("/dev/shm: {error}"),
        ),
    }
}
