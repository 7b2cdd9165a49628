//! Measures writes, to catch regressions: from one task and from many, in batches, large ones
//! without a copy, and durable ones.

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use mmap_io::MemoryMappedFile;
use tokio::runtime::{Builder, Runtime};

const FILE_LEN: u64 = 16 << 20;
const MIB: u64 = 1 << 20;
/// The step between offsets: it visits the whole file in an order that no prefetcher predicts.
const STEP: u64 = 10_007 * 64;
const SMALL: [u8; 64] = [1; 64];
/// How many small writes each task makes, so that the cost of spawning it hardly matters.
const EACH: u64 = 16;

fn main() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .expect("a runtime can be built");
    let map = runtime
        .block_on(MemoryMappedFile::create_rw(
            dir.path().join("file"),
            FILE_LEN,
        ))
        .expect("a new file can be mapped");
    runtime
        .block_on(map.update_region(0, &vec![0; FILE_LEN as usize]))
        .expect("the file can be written");

    let mut criterion = Criterion::default().configure_from_args();
    small(&mut criterion, &runtime, &map);
    large(&mut criterion, &runtime, &map);
    durable(&mut criterion, &runtime, &map);
    criterion.final_summary();
}

/// Measures writes of 64 bytes.
fn small(criterion: &mut Criterion, runtime: &Runtime, map: &MemoryMappedFile) {
    let mut group = criterion.benchmark_group("update_region");
    for tasks in [1, 64] {
        group.throughput(Throughput::Elements(tasks * EACH));
        group.bench_function(format!("{tasks} tasks"), |bencher| {
            bencher.iter(|| runtime.block_on(update_from_tasks(map, tasks)));
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("update_regions");
    let batch: Vec<(u64, &[u8])> = (0..64)
        .map(|number| (number * STEP % (FILE_LEN - 64), &SMALL[..]))
        .collect();
    group.throughput(Throughput::Elements(batch.len() as u64));
    group.bench_function("64 ranges", |bencher| {
        bencher.iter(|| {
            runtime
                .block_on(map.update_regions(&batch))
                .expect("it can be written")
        });
    });
    group.finish();
}

/// Measures writes of 1 MiB from `Bytes`, which are not copied first.
fn large(criterion: &mut Criterion, runtime: &Runtime, map: &MemoryMappedFile) {
    let data = Bytes::from(vec![2; MIB as usize]);
    let mut group = criterion.benchmark_group("write_bytes");
    group.throughput(Throughput::Bytes(MIB));
    group.bench_function("1 MiB", |bencher| {
        let mut block = 0;
        bencher.iter(|| {
            block = (block + 1) % (FILE_LEN / MIB);
            runtime
                .block_on(map.write_bytes(block * MIB, data.clone()))
                .expect("it can be written");
        });
    });
    group.finish();
}

/// Measures durable writes of 64 bytes, one after the other.
fn durable(criterion: &mut Criterion, runtime: &Runtime, map: &MemoryMappedFile) {
    let mut group = criterion.benchmark_group("update_region_async");
    group.sample_size(20);
    group.bench_function("1 task", |bencher| {
        let mut record = 0;
        bencher.iter(|| {
            record = (record + 1) % (FILE_LEN / 64);
            runtime
                .block_on(map.update_region_async(record * 64, &SMALL))
                .expect("it is durable");
        });
    });
    group.finish();
}

/// Makes [`EACH`] writes from each of `tasks` tasks, which run at the same time.
async fn update_from_tasks(map: &MemoryMappedFile, tasks: u64) {
    let spawned: Vec<_> = (0..tasks)
        .map(|task| {
            let map = map.clone();
            tokio::spawn(async move {
                for write in task * EACH..(task + 1) * EACH {
                    map.update_region(write * STEP % (FILE_LEN - 64), &SMALL)
                        .await
                        .expect("it can be written");
                }
            })
        })
        .collect();
    for task in spawned {
        task.await.expect("a writer panicked");
    }
}
