//! The ways to read many pieces: iterators, regions, streams and readers. Each gives the bytes that a
//! plain read gives, whatever the sizes; what could break is an end, an order, or a length.

use std::future::poll_fn;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::pin::Pin;
use std::task::Poll;
use std::time::Instant;

use ::bytes::Bytes;
use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, Stream, StreamExt};
use mmap_io::{MemoryMappedFile, MmapIoError};
use proptest::prelude::*;

use crate::common::probe::{cached, can_probe};
use crate::common::{block_on, on_a_disk, pattern, patterned, poll_once, rt_test, with_timeout};

mod bytes;
mod decoders;

const LEN: usize = 100_000;

#[cfg(feature = "iterator")]
rt_test!(chunks_cover_the_file_from_both_ends, |dir| {
    // All of its chunks of a byte are held at the same time.
    const LEN: usize = 10_000;
    let (_, file) = patterned(dir, LEN).await;
    let content = pattern(LEN);
    for size in [1, 7, 4096, LEN / 2, LEN - 1, LEN, LEN + 1, usize::MAX] {
        let expected: Vec<&[u8]> = content.chunks(size).collect();
        let mut chunks = file.chunks(size);
        assert_eq!(chunks.len(), expected.len());
        let all: Vec<_> = chunks.clone().map(|chunk| chunk.unwrap()).collect();
        assert!(all
            .iter()
            .map(|chunk| &**chunk)
            .eq(expected.iter().copied()));
        let back: Vec<_> = file.chunks_owned(size).rev().map(Result::unwrap).collect();
        assert!(back
            .iter()
            .map(|chunk| &chunk[..])
            .eq(expected.iter().rev().copied()));
        // Both ends meet in the middle.
        let mut left = expected.len();
        let (mut front, mut end) = (0, expected.len());
        while left > 0 {
            assert_eq!(chunks.size_hint(), (left, Some(left)));
            if left % 2 == 0 {
                assert_eq!(chunks.next().unwrap().unwrap(), expected[front]);
                front += 1;
            } else {
                end -= 1;
                assert_eq!(chunks.next_back().unwrap().unwrap(), expected[end]);
            }
            left -= 1;
            if left > 100 {
                // Skips most of them.
                let skipped = left / 2;
                assert_eq!(
                    chunks.nth(skipped).unwrap().unwrap(),
                    expected[front + skipped]
                );
                front += skipped + 1;
                left -= skipped + 1;
            }
        }
        assert!(chunks.next().is_none() && chunks.next_back().is_none());
        assert_eq!(chunks.size_hint(), (0, Some(0)));
    }
    assert!(file.chunks(0).next().is_none());
    let page = mmap_io::utils::page_size();
    assert_eq!(file.pages().len(), LEN.div_ceil(page));
    assert_eq!(
        file.pages_owned().nth(1).unwrap().unwrap(),
        content[page..2 * page]
    );
});

#[cfg(feature = "iterator")]
rt_test!(chunk_outlives_iterator_and_blocks_only_its_bytes, |dir| {
    let (_, file) = patterned(dir, LEN).await;
    let second = file.chunks(100).nth(1).unwrap().unwrap();
    file.update_region(0, &[1; 100]).await.unwrap();
    assert!(!file.try_update_region(150, b"x").await.unwrap());
    assert_eq!(second, pattern(LEN)[100..200]);
    // A cut ends no iterator: what is gone is an error.
    drop(second);
    let mut chunks = file.chunks(50_000);
    file.resize(60_000).await.unwrap();
    assert!(chunks.next().unwrap().is_ok());
    let cut = chunks.next().unwrap().unwrap_err();
    assert!(matches!(cut, MmapIoError::OutOfBounds { .. }), "{cut:?}");
    assert!(chunks.next().is_none());
});

rt_test!(regions_keep_their_order_and_may_overlap, |dir| {
    let (_, file) = patterned(dir, LEN).await;
    let content = pattern(LEN);
    let regions = [
        (90_000, 10_000),
        (0, 10),
        (5, 10),
        (7, 0),
        (200_000, 0),
        (5, 10),
    ];
    let expected: Vec<&[u8]> = regions
        .iter()
        .map(|(at, len)| match len {
            0 => &[][..],
            len => &content[*at as usize..(*at + *len) as usize],
        })
        .collect();
    let read = file.read_regions(&regions).await.unwrap();
    assert!(read
        .iter()
        .map(|bytes| &bytes[..])
        .eq(expected.iter().copied()));
    let slices = file.slices(&regions).await.unwrap();
    assert!(slices
        .iter()
        .map(|slice| &**slice)
        .eq(expected.iter().copied()));
    drop(slices);
    // Each is leased on its own, as long as it lives.
    assert!(file.try_update_region(50_000, b"x").await.unwrap());
    assert!(!file.try_update_region(8, b"x").await.unwrap());
    drop(read);
    assert!(file.try_update_region(8, b"x").await.unwrap());
    // All, or an error and no lease.
    let error = file
        .read_regions(&[(0, 10), (99_999, 2)])
        .await
        .unwrap_err();
    assert!(
        matches!(error, MmapIoError::OutOfBounds { .. }),
        "{error:?}"
    );
    assert_eq!(file.stats().views, 0);
    assert!(file.read_regions(&[]).await.unwrap().is_empty());
});

#[test]
fn regions_are_checked_at_first_poll() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), LEN).await;
        let regions = [(0, 10), (LEN as u64, 10)];
        let (grown, cut) = (file.read_regions(&regions), file.read_regions(&regions));
        file.resize(2 * LEN as u64).await.unwrap();
        assert_eq!(grown.await.unwrap(), [&pattern(10)[..], &[0; 10]]);
        file.resize(LEN as u64).await.unwrap();
        let cut = cut.await.unwrap_err();
        assert!(matches!(cut, MmapIoError::OutOfBounds { .. }), "{cut:?}");
    });
}

rt_test!(regions_wait_for_a_mutable_view, |dir| {
    let (_, file) = patterned(dir, LEN).await;
    let mut view = file.as_slice_mut(100, 10).await.unwrap();
    let regions = [(0, 50), (105, 10), (500, 10)];
    let mut reading = Box::pin(file.read_regions(&regions));
    assert!(futures_lite::future::poll_once(&mut reading)
        .await
        .is_none());
    // It holds none of the others in the meantime.
    assert!(file.try_update_region(0, &[1; 50]).await.unwrap());
    view.fill(2);
    drop(view);
    let read = with_timeout(reading).await.unwrap();
    assert_eq!(read[0], [1; 50][..]);
    assert_eq!(read[1][..5], [2; 5]);
});

rt_test!(stream_yields_the_range_in_chunks, |dir| {
    let (_, file) = patterned(dir, LEN).await;
    let content = pattern(LEN);
    for (start, end) in [(0, LEN), (1, LEN - 1), (5000, 5001), (77, 77), (LEN, LEN)] {
        for chunk in [1000, 4096, 70_000, LEN, usize::MAX] {
            let stream = file.stream(start as u64..end as u64, chunk).unwrap();
            let expected: Vec<&[u8]> = content[start..end].chunks(chunk).collect();
            assert_eq!(stream.size_hint().1, Some(expected.len()));
            assert_eq!(stream.remaining(), (end - start) as u64);
            let items: Vec<Bytes> = stream.map(Result::unwrap).collect().await;
            assert!(items.iter().map(|item| &item[..]).eq(expected));
        }
    }
    let all = file.stream(.., LEN).unwrap().next().await.unwrap().unwrap();
    assert_eq!(all, content);
    for range in [0..LEN as u64 + 1, 5..u64::MAX] {
        let error = file.stream(range, 10).unwrap_err();
        assert!(
            matches!(error, MmapIoError::OutOfBounds { .. }),
            "{error:?}"
        );
    }
});

rt_test!(stream_ends_after_an_error, |dir| {
    let (path, file) = patterned(dir, LEN).await;
    let mut stream = file.stream(.., 40_000).unwrap();
    assert_eq!(
        stream.next().await.unwrap().unwrap(),
        pattern(LEN)[..40_000]
    );
    std::fs::File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(50_000)
        .unwrap();
    let error = stream.next().await.unwrap().unwrap_err();
    assert!(matches!(error, MmapIoError::Truncated { .. }), "{error:?}");
    assert!(stream.next().await.is_none());
    // A stream holds no lease: an item does.
    assert_eq!(file.stats().views, 0);
});

rt_test!(reader_gives_lines_and_copies, |dir| {
    let path = dir.join("text");
    let text: String = (0..10_000).map(|line| format!("line {line}\n")).collect();
    std::fs::write(&path, &text).unwrap();
    for writes in [false, true] {
        let file = match writes {
            true => MemoryMappedFile::open_rw(&path).await.unwrap(),
            false => MemoryMappedFile::open_ro(&path).await.unwrap(),
        };
        let mut lines = file.reader().lines();
        for line in 0..10_000 {
            let expected = format!("line {line}");
            assert_eq!(lines.next().await.unwrap().unwrap(), expected);
        }
        assert!(lines.next().await.is_none());
        let mut copied = Vec::new();
        let len = futures_lite::io::copy(file.reader(), &mut copied)
            .await
            .unwrap();
        assert_eq!((len, &copied[..]), (text.len() as u64, text.as_bytes()));
        // An idle reader that has been read from holds no lease.
        let mut reader = file.reader();
        let mut some = [0; 10];
        reader.read_exact(&mut some).await.unwrap();
        assert_eq!(file.stats().views, 0);
        if writes {
            reader.fill_buf().await.unwrap();
            assert!(file.try_update_region(20, b"x").await.unwrap());
            file.update_region(20, &text.as_bytes()[20..21])
                .await
                .unwrap();
        }
    }
});

/// Helpers of futures-lite poll `fill_buf` twice. In between, the file grows by pages that are not in
/// memory.
#[test]
fn reader_answers_twice_at_an_end_that_moves() {
    use futures_lite::AsyncBufRead;

    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let path = dir.path().join("data");
        let file = MemoryMappedFile::create_rw(&path, 4096).await.unwrap();
        let mut reader = file.reader();
        reader.set_position(4096);
        for len in [8192, 12_288] {
            let polled = poll_fn(|context| {
                let first = Pin::new(&mut reader).poll_fill_buf(context);
                Poll::Ready(first.map(|bytes| bytes.unwrap().len()))
            });
            assert_eq!(polled.await, Poll::Ready(0));
            file.resize(len).await.unwrap();
            let polled = poll_fn(|context| {
                let second = Pin::new(&mut reader).poll_fill_buf(context);
                Poll::Ready(second.map(|bytes| bytes.unwrap().len()))
            });
            assert!(polled.await.is_ready(), "a file of {len} bytes");
            let bytes = reader.fill_buf().await.unwrap().len();
            assert_eq!(bytes, 4096);
            reader.consume(bytes);
        }
    });
}

/// Reads wait for a view, and have the length that the file had when they began to wait.
#[test]
fn reader_goes_on_with_file_that_became_shorter() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), LEN).await;
        for lends in [false, true] {
            file.resize(LEN as u64).await.unwrap();
            let mut view = file.as_slice_mut(0, 10).await.unwrap();
            view.copy_from_slice(&pattern(10));
            let (mut reader, mut part) = (file.reader(), file.reader_range(..2000).unwrap());
            let mut buffer = [0; 5000];
            for reader in [&mut reader, &mut part] {
                let waits = match lends {
                    true => poll_once(reader.fill_buf()).await.is_none(),
                    false => poll_once(reader.read(&mut buffer)).await.is_none(),
                };
                assert!(waits);
            }
            file.resize(1000).await.unwrap();
            drop(view);
            let (read, refused) = match lends {
                true => {
                    let refused = with_timeout(part.fill_buf()).await.map(drop);
                    (with_timeout(reader.fill_buf()).await.unwrap(), refused)
                }
                false => {
                    let refused = with_timeout(part.read(&mut buffer)).await.map(drop);
                    let len = with_timeout(reader.read(&mut buffer)).await.unwrap();
                    (&buffer[..len], refused)
                }
            };
            assert_eq!(read, &pattern(1000)[..]);
            // The end of a range is not that of the file.
            let refused = refused.unwrap_err();
            let cause = refused.get_ref().unwrap().downcast_ref();
            assert!(
                matches!(cause, Some(MmapIoError::OutOfBounds { .. })),
                "{refused:?}"
            );
        }
    });
}

#[derive(Clone, Debug)]
enum Step {
    Read(usize),
    Buffered(usize),
    Seek(SeekFrom),
}

fn step() -> impl Strategy<Value = Step> {
    let offset = -(LEN as i64) * 2..LEN as i64 * 2;
    prop_oneof![
        (0..3 * LEN).prop_map(Step::Read),
        (0..3 * LEN).prop_map(Step::Buffered),
        (0..2 * LEN as u64).prop_map(|at| Step::Seek(SeekFrom::Start(at))),
        offset.clone().prop_map(|at| Step::Seek(SeekFrom::End(at))),
        offset.prop_map(|at| Step::Seek(SeekFrom::Current(at))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn reader_is_a_cursor(
        steps in proptest::collection::vec(step(), 1..20),
        start in 0..LEN,
        writes in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let (path, file) = patterned(dir.path(), LEN).await;
            let file = match writes {
                true => file,
                false => MemoryMappedFile::open_ro(path).await.unwrap(),
            };
            let content = pattern(LEN);
            let mut model = Cursor::new(&content[start..]);
            let mut reader = file.reader_range(start as u64..).unwrap();
            for step in steps {
                match step {
                    Step::Read(len) => {
                        let mut ours = vec![0; len];
                        let read = reader.read(&mut ours).await.unwrap();
                        let mut theirs = vec![0; read];
                        model.read_exact(&mut theirs).unwrap();
                        assert!(ours[..read] == theirs);
                        assert_eq!(read == 0, len == 0 || model.position() >= (LEN - start) as u64 && theirs.is_empty());
                    }
                    Step::Buffered(len) => {
                        let buffered = reader.fill_buf().await.unwrap();
                        let used = len.min(buffered.len());
                        let mut theirs = vec![0; used];
                        model.read_exact(&mut theirs).unwrap();
                        assert!(buffered[..used] == theirs);
                        reader.consume(used);
                    }
                    Step::Seek(to) => {
                        let (ours, theirs) = (reader.seek(to).await, model.seek(to));
                        assert_eq!(ours.ok(), theirs.ok());
                    }
                }
                assert_eq!(reader.position(), model.position());
            }
        });
    }
}

rt_test!(stats_count_what_is_read_in, |_dir| {
    let dir = on_a_disk();
    let (_, file) = patterned(dir.path(), LEN).await;
    let counts = || {
        let stats = file.stats();
        let looked_at = (stats.resident_hits, stats.resident_misses);
        (looked_at, stats.bytes_read_in, stats.read_in_time)
    };
    file.evict(0, LEN as u64).await.unwrap();
    file.slice(10_000, 20_000).await.unwrap();
    let (looked_at, bytes, time) = counts();
    assert_eq!((looked_at, bytes), ((0, 1), 20_000));
    assert!(!time.is_zero());
    // In memory by now.
    file.read_bytes(15_000, 100).await.unwrap();
    assert_eq!(counts(), ((1, 1), 20_000, time));
    file.evict(0, LEN as u64).await.unwrap();
    file.read_regions(&[(0, 100), (90_000, 1_000)])
        .await
        .unwrap();
    assert_eq!((counts().0, counts().1), ((1, 3), 21_100));
    // What a stream and a reader read ahead counts as well.
    for is_stream in [true, false] {
        file.evict(0, LEN as u64).await.unwrap();
        let before = counts().1;
        match is_stream {
            true => {
                let mut stream = file.stream(.., 30_000).unwrap();
                while let Some(item) = stream.next().await {
                    item.unwrap();
                }
            }
            false => {
                let mut content = Vec::new();
                file.reader().read_to_end(&mut content).await.unwrap();
            }
        }
        assert!(counts().1 > before);
    }
    // Of many ranges none is looked at where the read is polled.
    let looked_at = counts().0;
    let hops = file.stats().pool_hops;
    file.read_regions(&[(0, 10); 17]).await.unwrap();
    assert_eq!((counts().0, file.stats().pool_hops), (looked_at, hops + 1));
    file.slices(&[(0, 10); 16]).await.unwrap();
    assert_eq!(file.stats().pool_hops, hops + 1);
    assert_eq!(counts().0, (looked_at.0 + 16, looked_at.1));
});

#[test]
fn prefetch_brings_all_of_its_range() {
    const RANGE: usize = 64 << 20;
    let dir = on_a_disk();
    if !can_probe("prefetch_brings_all_of_its_range", dir.path()) {
        return;
    }
    block_on(async {
        let (path, file) = patterned(dir.path(), RANGE).await;
        file.flush().await.unwrap();
        let all = RANGE / mmap_io::utils::page_size();
        let mut present = Vec::new();
        // While memory is short, the system may take pages out again that nothing has touched yet.
        for _ in 0..5 {
            file.evict(0, RANGE as u64).await.unwrap();
            assert_eq!(cached(&path, 0, RANGE), 0);
            file.prefetch_range(0, RANGE as u64).await.unwrap();
            let asked = Instant::now();
            while asked.elapsed().as_secs() < 12 {
                present.push(cached(&path, 0, RANGE));
                if present.last() == Some(&all) {
                    return;
                }
                std::thread::yield_now();
            }
        }
        present.dedup();
        panic!("of {all} pages there were {present:?}");
    });
}
