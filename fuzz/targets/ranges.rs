//! Ranges and pages, compared with sets of numbers and with arithmetic that cannot overflow; and
//! offsets and lengths of any size, passed to the surface.

#![no_main]

// The module itself, since it is private to the crate.
#[allow(dead_code)]
#[path = "../../src/error.rs"]
mod error;
#[allow(dead_code)]
#[path = "../../src/range.rs"]
mod range;

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::OnceLock;

use mmap_io::{utils, MemoryMappedFile, MmapIoError};

use self::range::{ByteRange, PageRange, MAX_LEN};

/// Bytes of the file whose surface is called.
const LEN: u64 = 10_000;

libfuzzer_sys::fuzz_target!(|input: (u64, u64, u64, u8, Vec<(u8, u8)>)| {
    let (one, two, three, choice, places) = input;
    // Near each other as often as anywhere.
    let small = |number: u64| match choice & 1 {
        0 => number,
        _ => number % (2 * LEN),
    };
    let (offset, len, total) = (small(one), small(two), small(three));
    bounds(offset, len, total);
    resolved(offset, len, total, choice);
    let page_size = 4096 << (choice % 5);
    pages(offset % MAX_LEN, len % (MAX_LEN / 2), page_size);
    sets(&places, three);
    surface(offset, len);
    // Seldom: most of them go to the pool and back.
    if choice >> 6 == 0 {
        futures_lite::future::block_on(awaited(offset, len));
    }
});

fn bounds(offset: u64, len: u64, total: u64) {
    let end = u128::from(offset) + u128::from(len);
    let is_inside = end <= u128::from(total);
    let range = ByteRange::new(offset, len, total);
    assert_eq!(range.is_ok(), is_inside);
    assert_eq!(
        utils::ensure_in_bounds(offset, len, total).is_ok(),
        is_inside
    );
    let slice = utils::slice_range(offset, len, total);
    assert_eq!(slice.is_ok(), is_inside);
    if let (Ok(range), Ok((start, to))) = (range, slice) {
        assert_eq!((range.start(), range.len()), (offset, len));
        assert_eq!((start as u64, to as u64), (offset, range.end()));
        assert!(range.check(total).is_ok());
    }
    let aligned = match len {
        0 => u128::from(offset),
        _ => u128::from(offset).div_ceil(u128::from(len)) * u128::from(len),
    };
    let aligned = u64::try_from(aligned).unwrap_or(u64::MAX);
    assert_eq!(utils::align_up(offset, len), aligned);
}

fn resolved(from: u64, to: u64, total: u64, choice: u8) {
    let wide = |number| u128::from(number);
    let (start, first) = match choice >> 2 & 3 {
        0 => (Bound::Unbounded, 0),
        1 => (Bound::Excluded(from), wide(from) + 1),
        _ => (Bound::Included(from), wide(from)),
    };
    let (end, past) = match choice >> 4 & 3 {
        0 => (Bound::Unbounded, wide(total).max(first)),
        1 => (Bound::Included(to), wide(to) + 1),
        _ => (Bound::Excluded(to), wide(to)),
    };
    let range = ByteRange::resolve((start, end), total);
    if past <= first.min(wide(u64::MAX)) && end != Bound::Unbounded {
        // It has no bytes, also if it runs backwards, and begins where it says.
        let range = range.unwrap();
        assert!(range.is_empty() && wide(range.start()) == first.min(wide(u64::MAX)));
        return;
    }
    if past.max(first) > wide(u64::MAX) {
        // It cannot be inside anything, unless the end of all numbers is the end of it.
        assert!(range.is_err() || total == u64::MAX);
        return;
    }
    assert_eq!(range.is_ok(), past <= wide(total));
    if let Ok(range) = range {
        assert_eq!((wide(range.start()), wide(range.end())), (first, past));
    }
}

fn pages(offset: u64, len: u64, page_size: usize) {
    let page = page_size as u64;
    let range = ByteRange::between(offset, offset + len);
    let all = range.to_pages(page_size);
    assert!(all.start() % page == 0 && all.end() % page == 0);
    assert!(all.start() <= offset && offset - all.start() < page);
    assert!(range.end() <= all.end() && all.end() - range.end() < page);
    let first = offset.div_ceil(page) * page;
    let last = range.end() / page * page;
    match range.whole_pages(page_size) {
        Some(whole) => assert_eq!((whole.start(), whole.end()), (first, last)),
        None => assert!(first >= last),
    }
}

/// Ranges of small numbers, as sets of them.
fn sets(places: &[(u8, u8)], at: u64) {
    const PAGE: u64 = 4096;
    let places = &places[..places.len().min(20)];
    // Short, so that gaps are left between them.
    let places = places.iter().map(|(start, len)| (*start, *len % 32));
    let ranges: Vec<_> = places
        .filter(|(_, len)| *len > 0)
        .map(|(start, len)| u64::from(start)..u64::from(start) + u64::from(len))
        .collect();
    let numbers: BTreeSet<u64> = ranges.iter().cloned().flatten().collect();

    let mut merged: Vec<_> = ranges.iter().cloned().map(ByteRange::from).collect();
    ByteRange::merge(&mut merged);
    let apart = merged.windows(2).all(|two| two[0].end() < two[1].start());
    assert!(apart, "{merged:?}");
    let found = merged.iter().flat_map(|range| range.start()..range.end());
    assert!(found.eq(numbers.iter().copied()));

    let pages_of = |range: &std::ops::Range<u64>| {
        ByteRange::between(range.start * PAGE, range.end * PAGE).to_pages(PAGE as usize)
    };
    let runs = PageRange::merged(ranges.iter().map(pages_of));
    let found = runs.iter().flat_map(numbers_of);
    assert!(found.eq(numbers.iter().copied()));

    // What a range has that the runs do not.
    let whole = pages_of(&(64..192));
    let left = whole.without(&runs);
    let found: Vec<u64> = left.iter().flat_map(numbers_of).collect();
    let expected: Vec<u64> = (64..192).filter(|it| !numbers.contains(it)).collect();
    assert_eq!(found, expected);

    let at = at % (256 * PAGE);
    let (front, back) = whole.split_before(at, PAGE as usize);
    let page = (at / PAGE).clamp(64, 192);
    assert!(numbers_of(&front).eq(64..page) && numbers_of(&back).eq(page..192));
    let steps = whole.steps((1 + at % 7) * PAGE);
    assert!(steps.flat_map(|step| numbers_of(&step)).eq(64..192));

    fn numbers_of(pages: &PageRange) -> std::ops::Range<u64> {
        pages.start() / PAGE..pages.end() / PAGE
    }
}

/// A file of [`LEN`] bytes, which is created once; its descriptor keeps it.
fn file() -> &'static MemoryMappedFile {
    static FILE: OnceLock<MemoryMappedFile> = OnceLock::new();
    FILE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let file = MemoryMappedFile::create_rw(dir.path().join("data"), LEN);
        futures_lite::future::block_on(file).unwrap()
    })
}

/// Whether an operation on these bytes of the file ended as it has to.
fn check(what: &str, (offset, len): (u64, u64), result: Result<(), MmapIoError>) {
    let is_inside = len == 0 || u128::from(offset) + u128::from(len) <= u128::from(LEN);
    match result {
        Ok(()) => assert!(is_inside, "{what}"),
        Err(MmapIoError::OutOfBounds {
            offset: at,
            len: of,
            total,
        }) => {
            assert!(!is_inside, "{what}");
            assert_eq!((at, of, total), (offset, len, LEN), "{what}");
        }
        Err(error) => panic!("{what}: {error}"),
    }
}

fn surface(offset: u64, len: u64) {
    let (file, place) = (file(), (offset, len));
    check("as_slice", place, file.as_slice(offset, len).map(drop));
    let slice = file.try_as_slice(offset, len);
    check("try_as_slice", place, slice.map(drop));
    check("bytes", place, file.bytes(offset, len).map(drop));
    let slice = file.try_as_slice_mut(offset, len);
    check("try_as_slice_mut", place, slice.map(drop));
    let words = file.atomic_u64_slice(offset, len as usize);
    let end = u128::from(len) * 8 + u128::from(offset);
    match words {
        Ok(words) => {
            assert!(offset % 8 == 0 && end <= u128::from(LEN) && words.len() as u64 == len)
        }
        Err(MmapIoError::Misaligned { .. }) => assert!(offset % 8 > 0),
        Err(error) => assert!(end > u128::from(LEN), "{error}"),
    }
}

async fn awaited(offset: u64, len: u64) {
    let (file, place) = (file(), (offset, len));
    check("slice", place, file.slice(offset, len).await.map(drop));
    let bytes = file.read_bytes(offset, len).await;
    check("read_bytes", place, bytes.map(drop));
    check("flush_range", place, file.flush_range(offset, len).await);
    let touched = file.touch_pages_range(offset, len).await;
    check("touch_pages_range", place, touched);
    let hinted = file.prefetch_range(offset, len).await;
    check("prefetch_range", place, hinted);
}
