//! Measures reads, to catch regressions: small and large, borrowed, resident, shared and copied, of
//! many ranges, and of the whole file.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use futures_lite::future::block_on;
use futures_lite::StreamExt;
use mmap_io::MemoryMappedFile;

const FILE_LEN: u64 = 16 << 20;
const LENGTHS: [u64; 2] = [64, 64 << 10];
/// The step between offsets: it visits the whole file in an order that no prefetcher predicts.
const STEP: u64 = 10_007 * 64;

fn main() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let map = block_on(MemoryMappedFile::create_rw(
        dir.path().join("file"),
        FILE_LEN,
    ))
    .expect("a new file can be mapped");
    block_on(map.update_region(0, &vec![1; FILE_LEN as usize])).expect("it can be written");

    let mut criterion = Criterion::default().configure_from_args();
    views(&mut criterion, &map);
    copies(&mut criterion, &map);
    many(&mut criterion, &map);
    whole_file(&mut criterion, &map);
    criterion.final_summary();
}

/// Measures views of the file: borrowed, borrowed and resident, and owned.
fn views(criterion: &mut Criterion, map: &MemoryMappedFile) {
    let mut group = criterion.benchmark_group("view");
    for len in LENGTHS {
        let mut next = offsets(len);
        group.bench_function(BenchmarkId::new("as_slice", len), |bencher| {
            bencher.iter(|| map.as_slice(next(), len).expect("in bounds")[0]);
        });
        group.bench_function(BenchmarkId::new("slice", len), |bencher| {
            bencher.iter(|| block_on(map.slice(next(), len)).expect("in bounds")[0]);
        });
        group.bench_function(BenchmarkId::new("bytes", len), |bencher| {
            bencher.iter(|| map.bytes(next(), len).expect("in bounds")[0]);
        });
    }
    group.finish();
}

/// Measures copies into a buffer of the caller.
fn copies(criterion: &mut Criterion, map: &MemoryMappedFile) {
    let mut group = criterion.benchmark_group("copy");
    for len in LENGTHS {
        let mut next = offsets(len);
        let mut buffer = vec![0; len as usize];
        group.throughput(Throughput::Bytes(len));
        group.bench_function(BenchmarkId::new("read_into", len), |bencher| {
            bencher.iter(|| {
                block_on(map.read_into(next(), &mut buffer)).expect("in bounds");
                black_box(&buffer);
            });
        });
    }
    group.finish();
}

/// Measures views of many ranges at once.
fn many(criterion: &mut Criterion, map: &MemoryMappedFile) {
    const COUNT: usize = 64;
    let mut group = criterion.benchmark_group("many");
    for len in LENGTHS {
        let regions: Vec<_> = std::iter::repeat_with(offsets(len))
            .take(COUNT)
            .map(|offset| (offset, len))
            .collect();
        group.throughput(Throughput::Elements(COUNT as u64));
        group.bench_function(BenchmarkId::new("slices", len), |bencher| {
            bencher.iter(|| block_on(map.slices(&regions)).expect("in bounds").len());
        });
        group.bench_function(BenchmarkId::new("read_regions", len), |bencher| {
            bencher.iter(|| {
                block_on(map.read_regions(&regions))
                    .expect("in bounds")
                    .len()
            });
        });
    }
    group.finish();
}

/// Measures scans, without the time that it takes to look at the bytes.
fn whole_file(criterion: &mut Criterion, map: &MemoryMappedFile) {
    const CHUNK: usize = 64 << 10;
    let mut group = criterion.benchmark_group("whole_file");
    group.throughput(Throughput::Bytes(FILE_LEN));
    #[cfg(feature = "iterator")]
    group.bench_function("chunks", |bencher| {
        bencher.iter(|| {
            for chunk in map.chunks(CHUNK) {
                black_box(&chunk.expect("in bounds")[..]);
            }
        });
    });
    group.bench_function("stream", |bencher| {
        bencher.iter(|| {
            block_on(async {
                let mut stream = map.stream(.., CHUNK).expect("in bounds");
                while let Some(chunk) = stream.next().await {
                    black_box(chunk.expect("in bounds"));
                }
            });
        });
    });
    group.finish();
}

fn offsets(len: u64) -> impl FnMut() -> u64 {
    let mut offset = 0;
    move || {
        offset = (offset + STEP) % (FILE_LEN - len);
        offset
    }
}
