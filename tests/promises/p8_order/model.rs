//! Random operations that wait together, compared with one after the other.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use futures_lite::future::poll_once;
use mmap_io::{MappedSlice, MappedSliceMut, MemoryMappedFile, MmapIoError, MmapMode};
use proptest::prelude::*;

use super::{Came, Submitted};
use crate::common::{block_on, is_quiet, patterned, wait_until, with_timeout, HeldQueue, TIMEOUT};

/// The queue is held by a write to the first byte, which nothing else uses.
const SPARE: u64 = 0;

const LEN: u64 = 8_000;

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64),
    WriteMany(Vec<(u64, u64)>),
    Mutable(u64, u64),
    Resize(u64),
    Snapshot,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (1..LEN - 3_000, 1..3_000_u64);
    prop_oneof![
        4 => range().prop_map(|(at, len)| Step::Write(at, len)),
        2 => proptest::collection::vec(range(), 1..4).prop_map(Step::WriteMany),
        2 => range().prop_map(|(at, len)| Step::Mutable(at, len)),
        2 => prop_oneof![3 => 1_000..LEN, 1 => LEN..2 * LEN, 1 => 1_u64 << 20..3 << 20]
            .prop_map(Step::Resize),
        1 => Just(Step::Snapshot),
    ]
}

/// A step, whether its future is dropped, and a range that is viewed when it is submitted.
type Turn = (Step, bool, Option<(u64, u64)>);

fn turn() -> impl Strategy<Value = Turn> {
    let view = proptest::option::of((1..LEN - 500, 1..500_u64));
    (step(), proptest::bool::weighted(0.2), view)
}

/// The outcome of a step if every earlier step has taken effect, and no later one.
#[derive(Debug, PartialEq)]
enum Expected {
    Done,
    OutOfBounds,
    Content(Vec<u8>),
}

/// Applies a step to `content`.
fn model(content: &mut Vec<u8>, step: &Step, byte: u8) -> Expected {
    let range = |(at, len): (u64, u64)| at as usize..(at + len) as usize;
    let ranges = match step {
        Step::Write(at, len) | Step::Mutable(at, len) => vec![range((*at, *len))],
        Step::WriteMany(ranges) => ranges.iter().copied().map(range).collect(),
        Step::Resize(size) => {
            content.resize(*size as usize, 0);
            return Expected::Done;
        }
        Step::Snapshot => return Expected::Content(content[1..].to_vec()),
    };
    if ranges.iter().any(|range| range.end > content.len()) {
        return Expected::OutOfBounds;
    }
    let before = content[ranges[0].clone()].to_vec();
    for range in ranges {
        content[range].fill(byte);
    }
    match step {
        Step::Mutable(..) => Expected::Content(before),
        _ => Expected::Done,
    }
}

fn submission<'a>(
    file: &'a MemoryMappedFile,
    step: &Step,
    byte: u8,
    copy: &'a Path,
) -> Submitted<'a> {
    let data = move |len: u64| vec![byte; len as usize];
    match step.clone() {
        Step::Write(at, len) if byte % 2 == 0 => Box::pin(async move {
            file.update_region(at, &data(len)).await?;
            Ok(Came::Nothing)
        }),
        Step::Write(at, len) => Box::pin(async move {
            file.write_bytes(at, data(len).into()).await?;
            Ok(Came::Nothing)
        }),
        Step::WriteMany(ranges) => Box::pin(async move {
            let data = data(3_000);
            let part = |(at, len): &(u64, u64)| (*at, &data[..*len as usize]);
            let parts: Vec<_> = ranges.iter().map(part).collect();
            file.update_regions(&parts).await?;
            Ok(Came::Nothing)
        }),
        Step::Mutable(at, len) => {
            Box::pin(async move { file.as_slice_mut(at, len).await.map(Came::Mutable) })
        }
        Step::Resize(size) => Box::pin(async move {
            file.resize(size).await?;
            Ok(Came::Nothing)
        }),
        Step::Snapshot => Box::pin(async move {
            file.copy_to(copy).await?;
            Ok(Came::Copied(fs::read(copy).unwrap()[1..].to_vec()))
        }),
    }
}

#[allow(dead_code)] // They exist to be dropped.
enum View<'a> {
    Slice(MappedSlice<'a>),
    Bytes(Bytes),
    Mutable(MappedSliceMut<'a>),
}

/// Submits all steps, drops what blocks them bit by bit, and compares with the model. Held up by
/// the queue, no step is examined before the last is submitted; held up by a view, each step is
/// examined and deferred by itself.
async fn round(dir: &Path, file: &MemoryMappedFile, turns: &[Turn], by_the_queue: bool) {
    file.resize(LEN).await.unwrap();
    let mut content = fs::read(file.path()).unwrap();
    let copies: Vec<_> = (0..turns.len())
        .map(|turn| dir.join(format!("copy {turn}")))
        .collect();
    let mut views = Vec::new();
    let (mut held, mut in_the_way) = (None, None);
    if by_the_queue {
        held = Some(HeldQueue::new(file, SPARE));
    } else {
        in_the_way = Some(file.bytes(1, LEN - 1).unwrap());
    }
    let mut waiting = Vec::new();
    let mut withdrawn = Vec::new();
    let mut has_resized = false;
    let mut shortest = LEN;
    for (number, (step, is_withdrawn, view)) in turns.iter().enumerate() {
        if let Some((at, len)) = *view {
            // The gate of a waiting operation may be up, or a growth be over already.
            views.push(match number % 2 {
                0 => View::Slice(file.as_slice(at, len).unwrap()),
                _ => View::Bytes(file.bytes(at, len).unwrap()),
            });
        }
        match step {
            // A copy is claimed on the pool before it takes its place in the queue, and its length
            // is fixed at that moment.
            Step::Snapshot if by_the_queue || has_resized => continue,
            // Growth waits for nothing, so that nothing may be left to overtake it.
            Step::Resize(size) if !by_the_queue && *size >= LEN => continue,
            // What was cut off is not grown again: a growth goes ahead of what it has no byte in
            // common with, and a write that the shrink has put out of bounds may find itself in
            // bounds again.
            Step::Resize(size) if shortest < LEN && *size > shortest => continue,
            Step::Resize(size) => {
                has_resized = true;
                shortest = shortest.min(*size);
            }
            _ => {}
        }
        let byte = number as u8 + 1;
        let mut future = submission(file, step, byte, &copies[number]);
        let mut came = poll_once(&mut future).await;
        if let Step::Snapshot = step {
            // With nothing before it, it is made at once.
            if came.is_some() {
                // It completed at the first poll.
            } else if waiting.is_empty() && withdrawn.is_empty() {
                came = Some(with_timeout(&mut future).await);
            } else {
                let count = waiting.len() + withdrawn.len() + 1;
                let place = async {
                    while came.is_none() && file.stats().queued_writes < count {
                        came = poll_once(&mut future).await;
                        futures_lite::future::yield_now().await;
                    }
                };
                with_timeout(place).await;
            }
        }
        match came {
            Some(Ok(Came::Copied(copied))) if waiting.is_empty() && withdrawn.is_empty() => {
                assert!(copied == content[1..]);
            }
            Some(_) => panic!("expected {step:?} to be blocked, but it completed"),
            None if *is_withdrawn => withdrawn.push(future),
            None => waiting.push((step, byte, future)),
        }
    }
    drop(withdrawn);
    let mut expected: Vec<_> = waiting
        .iter()
        .map(|(step, byte, _)| Some(model(&mut content, step, *byte)))
        .collect();
    drop(in_the_way);
    if let Some(held) = held {
        held.release().await;
    }

    let mut waiting: Vec<_> = waiting.into_iter().map(Some).collect();
    let end = async {
        while waiting.iter().any(Option::is_some) || !views.is_empty() {
            for (number, slot) in waiting.iter_mut().enumerate() {
                let Some((step, byte, future)) = slot else {
                    continue;
                };
                let Some(came) = poll_once(future).await else {
                    continue;
                };
                let came = match came {
                    Ok(Came::Nothing) => Expected::Done,
                    Ok(Came::Copied(copied)) => Expected::Content(copied),
                    Ok(Came::Mutable(mut view)) => {
                        let before = view.to_vec();
                        view.fill(*byte);
                        views.push(View::Mutable(view));
                        Expected::Content(before)
                    }
                    Err(MmapIoError::OutOfBounds { .. }) => Expected::OutOfBounds,
                    Err(error) => panic!("{error:?}"),
                };
                let is_expected = Some(&came) == expected[number].take().as_ref();
                assert!(
                    is_expected,
                    "step {number}, {step:?}: the outcome differs from the model"
                );
                *slot = None;
            }
            if !views.is_empty() {
                let which = (content.len() + waiting.len()) % views.len();
                drop(views.swap_remove(which));
            }
            futures_lite::future::yield_now().await;
        }
    };
    with_timeout(end).await;
    wait_until(file, is_quiet).await;
    assert_eq!(file.len(), content.len() as u64);
    assert!(file.as_slice(1, file.len() - 1).unwrap() == content[1..]);
    assert!(fs::read(file.path()).unwrap()[1..] == content[1..]);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150,
        failure_persistence: None,
        max_shrink_time: TIMEOUT.as_millis() as u32,
        ..ProptestConfig::default()
    })]

    #[test]
    fn concurrent_ops_match_sequential_model(
        rounds in proptest::collection::vec(
            (proptest::collection::vec(turn(), 1..16), any::<bool>()),
            1..4,
        ),
        buffer in prop_oneof![Just(0), Just(2_000), Just(8_000), Just(1 << 20)],
    ) {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let (path, _) = patterned(dir.path(), LEN as usize).await;
            let builder = MemoryMappedFile::builder(path).mode(MmapMode::ReadWrite);
            let file = builder.write_buffer(buffer).open().await.unwrap();
            for (turns, by_the_queue) in rounds {
                round(dir.path(), &file, &turns, by_the_queue).await;
            }
        });
    }
}
