//! Small writes complete where they are polled if nothing there can block; all others hop.

use std::fs;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Barrier;

use bytes::Bytes;
use futures_lite::future::{poll_once, zip};
use mmap_io::{FlushPolicy, MemoryMappedFile, MmapIoError, Result};

use crate::common::child::{alone, child, child_dir, Child};
use crate::common::disk::{assert_full, Disk};
use crate::common::probe::{can_probe, Probe};
use crate::common::{block_on, eventually, on_a_disk, skip, with_timeout};

const LEN: u64 = 4 << 20;
/// Bytes from the start that [`warm`] makes dirty and mapped.
const WARM: u64 = 1 << 16;
/// In another folio than everything else.
const SPARE: u64 = 3 << 20;

/// A file whose first pages can be stored to without a fault, as far as the crate knows.
async fn warm(dir: &Path, policy: FlushPolicy) -> MemoryMappedFile {
    let builder = MemoryMappedFile::builder(dir.join("data")).size(LEN);
    let file = builder.flush_policy(policy).create().await.unwrap();
    warm_up(&file).await;
    file
}

async fn warm_up(file: &MemoryMappedFile) {
    // In the middle of each page: whole pages may go through the descriptor. Twice: a page that is
    // not in memory makes the crate forget those around it.
    for page in (0..WARM / 4096).chain(0..WARM / 4096) {
        file.update_region(4096 * page + 10, b"warm").await.unwrap();
    }
}

/// Waits until no job works on the file: a job that has told a future may still look for more. The
/// byte that is written is far from all others.
fn wait_until_idle(file: &MemoryMappedFile) {
    eventually("a write is inline", || {
        let before = file.stats().inline_updates;
        block_on(file.update_region(SPARE, b"-")).unwrap();
        file.stats().inline_updates > before
    });
}

/// Runs an operation while no job works on the file. Returns whether it was applied without a job.
fn is_inline<T>(file: &MemoryMappedFile, operation: impl Future<Output = Result<T>>) -> bool {
    wait_until_idle(file);
    let hops = file.stats().pool_hops;
    let was_inline = is_counted_inline(file, operation);
    assert_eq!(was_inline, file.stats().pool_hops == hops);
    was_inline
}

/// Asserts that an operation is applied without a job. It is tried a few times: while other tests have
/// many threads that read, writes are queued.
macro_rules! assert_inline {
    ($file:ident, $operation:expr $(, $($message:tt)+)?) => {
        assert!((0..50).any(|_| is_inline(&$file, $operation)) $(, $($message)+)?);
    };
}

fn is_counted_inline<T>(
    file: &MemoryMappedFile,
    operation: impl Future<Output = Result<T>>,
) -> bool {
    let before = file.stats();
    let mut operation = pin!(operation);
    let first = block_on(poll_once(&mut operation));
    let is_done = first.is_some();
    match first {
        Some(result) => drop(result.unwrap()),
        None => drop(block_on(with_timeout(operation)).unwrap()),
    }
    let after = file.stats();
    assert_eq!(after.updates, before.updates + 1);
    let was_inline = after.inline_updates > before.inline_updates;
    // One in many yields to other tasks of the thread before it resolves.
    assert!(was_inline || !is_done);
    was_inline
}

/// Runs a test, of which `this` is the child, where writes may be inline: on a disk. In a process of
/// its own: beside many threads of other tests that read, writes are queued.
fn alone_on_a_disk(this: Child, test: impl FnOnce(&Path)) {
    let name = this.test();
    alone(this, || {
        let disk = on_a_disk();
        if can_probe(name, disk.path()) {
            test(disk.path());
        }
    });
}

/// Does the same, and again on a file system in memory.
fn alone_on_each_disk(this: Child, test: impl Fn(&Path)) {
    alone_on_a_disk(this, |disk| {
        test(disk);
        if let Ok(memory) = tempfile::tempdir_in("/dev/shm") {
            test(memory.path());
        }
    });
}

#[test]
fn hot_writes_complete_when_polled() {
    alone_on_each_disk(child!(hot_writes_complete_when_polled), |dir| {
        let file = block_on(warm(dir, FlushPolicy::Manual));
        let data = [7; 3000];
        assert_inline!(file, file.update_region(100, &data));
        assert_inline!(file, file.try_update_region(4000, &data));
        assert_inline!(file, file.write_bytes(9000, Bytes::from(data.to_vec())));
        let parts: [(u64, &[u8]); 4] = [
            (20_000, b"one"),
            (30_000, b""),
            (40_000, b"two"),
            (20_001, b"x"),
        ];
        assert_inline!(file, file.update_regions(&parts));
        let all = [9; WARM as usize];
        assert_inline!(file, file.update_region(0, &all));
        assert_inline!(file, file.update_region(0, &all[..1]));
        let seen = fs::read(dir.join("data")).unwrap();
        assert_eq!(seen[..WARM as usize], all);
        assert_eq!(file.pending_bytes(), WARM + 1);
        // Readers of the same bytes do not end that, and views of other bytes neither.
        let other = file.as_slice(50_000, 10).unwrap();
        for _ in 0..10 {
            assert_eq!(file.as_slice(0, 1).unwrap(), [9]);
            assert_inline!(file, file.update_region(0, &all[..1]));
        }
        drop(other);
    });
}

#[test]
fn inline_parts_land_in_their_order() {
    alone_on_each_disk(child!(inline_parts_land_in_their_order), |dir| {
        let file = block_on(warm(dir, FlushPolicy::Never));
        let parts: [(u64, &[u8]); 3] = [(100, b"aaaa"), (102, b"bb"), (5000, b"cc")];
        assert_inline!(file, file.update_regions(&parts));
        assert_eq!(file.as_slice(100, 4).unwrap(), b"aabb");
        assert_eq!(file.as_slice(5000, 2).unwrap(), b"cc");
    });
}

#[test]
fn large_and_durable_writes_hop() {
    alone_on_each_disk(child!(large_and_durable_writes_hop), |dir| {
        let file = block_on(warm(dir, FlushPolicy::Manual));
        let large = vec![1; WARM as usize + 1];
        assert!(!is_inline(&file, file.update_region(0, &large)));
        block_on(warm_up(&file));
        assert!(!is_inline(&file, file.update_region_async(0, b"x")));
        block_on(warm_up(&file));
        let mapped = file.bytes(100, 10).unwrap();
        assert!(!is_inline(&file, file.write_bytes(8000, mapped)));
    });
}

#[test]
fn writes_to_unknown_pages_hop() {
    alone_on_each_disk(child!(writes_to_unknown_pages_hop), |dir| {
        let file = block_on(warm(dir, FlushPolicy::Manual));
        // A page that was never written, and a write that reaches into one.
        assert!(!is_inline(&file, file.update_region(2 << 20, b"x")));
        assert_inline!(file, file.update_region(2 << 20, b"x"));
        assert!(!is_inline(
            &file,
            file.update_region((2 << 20) + 4095, b"xx")
        ));
        assert_inline!(file, file.update_region((2 << 20) + 4095, b"xx"));
        block_on(file.evict(0, LEN)).unwrap();
        assert!(!is_inline(&file, file.update_region(0, b"x")));
        assert_inline!(file, file.update_region(0, b"x"));
        // Growth, and a cut that leaves the page.
        block_on(file.resize(LEN + 5000)).unwrap();
        block_on(file.update_region(LEN + 10, b"x")).unwrap();
        assert_inline!(file, file.update_region(LEN + 10, b"x"));
        block_on(file.resize(LEN + 100)).unwrap();
        assert!(!is_inline(&file, file.update_region(LEN + 10, b"x")));
        assert_inline!(file, file.update_region(LEN + 10, b"x"));
    });
}

/// How a page beside the one that is examined is made dirty again.
#[derive(Clone, Copy, Debug)]
enum Redirtied {
    ByTheQueue,
    ByDescriptor,
    Inline,
    ThroughAView,
    ByEachChunk,
}

/// The page cache speaks of whole folios: after they were cleaned, one store makes all of their
/// pages dirty, but only its own page writable.
#[test]
fn cleaned_page_hops_however_folio_is_redirtied() {
    use Redirtied::*;
    alone_on_a_disk(
        child!(cleaned_page_hops_however_folio_is_redirtied),
        |dir| {
            let file = block_on(warm(dir, FlushPolicy::Manual));
            let outside = fs::File::open(dir.join("data")).unwrap();
            let probe = Probe::new(&dir.join("data"));
            // One folio, as far as the file system uses large ones.
            let large = vec![1; 2 << 20];
            for redirtied in [ByTheQueue, ByDescriptor, Inline, ThroughAView, ByEachChunk] {
                block_on(file.update_region(0, &large)).unwrap();
                block_on(warm_up(&file));
                assert_inline!(file, file.update_region(100, b"P"), "{redirtied:?}");
                outside.sync_data().unwrap();
                assert_eq!(probe.unwritten(0, WARM), Some(0));
                // The page after the next: the store of neither goes to the other.
                let other = 2 * 4096;
                block_on(async {
                    match redirtied {
                        ByTheQueue => {
                            let view = file.bytes(other, 1).unwrap();
                            let mut write = pin!(file.update_region(other, b"Q"));
                            assert!(poll_once(&mut write).await.is_none());
                            drop(view);
                            with_timeout(write).await.unwrap();
                        }
                        ByDescriptor => file.update_region(other, &large[..4096]).await.unwrap(),
                        // The first one hops, since the page is clean.
                        Inline => {
                            assert!(!is_inline(&file, file.update_region(other, b"Q")));
                            assert_inline!(file, file.update_region(other, b"Q"));
                        }
                        ThroughAView => file.as_slice_mut(other, 10).await.unwrap().fill(1),
                        ByEachChunk => {
                            #[cfg(feature = "iterator")]
                            file.chunks_mut(4096)
                                .for_each_mut(|at, chunk| {
                                    if at == other {
                                        chunk.fill(2);
                                    }
                                    Ok(())
                                })
                                .await
                                .unwrap();
                        }
                    }
                });
                assert!(
                    !is_inline(&file, file.update_region(100, b"P")),
                    "after the page beside it was made dirty: {redirtied:?}"
                );
                assert_inline!(file, file.update_region(100, b"P"));
            }
        },
    );
}

#[test]
fn flushed_pages_hop_once() {
    alone_on_each_disk(child!(flushed_pages_hop_once), |dir| {
        let file = block_on(warm(dir, FlushPolicy::Manual));
        block_on(file.flush()).unwrap();
        assert!(!is_inline(&file, file.update_region(10, b"x")));
        assert_inline!(file, file.update_region(10, b"x"));
        block_on(file.schedule_flush()).unwrap();
        assert!(!is_inline(&file, file.update_region(10, b"x")));
        block_on(file.flush_range(0, 100)).unwrap();
        assert!(!is_inline(&file, file.update_region(10, b"x")));
        assert_eq!(file.pending_bytes(), 2);
    });
}

/// Pages ahead of a writer that walks forward are made writable, but not holes.
#[test]
fn forward_writer_hops_rarely() {
    const RANGE: u64 = 1 << 20;
    alone_on_each_disk(child!(forward_writer_hops_rarely), |dir| {
        let file = block_on(warm(dir, FlushPolicy::Never));
        // A page has 64 writes. A write may join a job that is about to end.
        let walk = || {
            let before = file.stats().pool_hops;
            for at in (0..RANGE).step_by(64) {
                block_on(file.update_region(at, &[1; 64])).unwrap();
            }
            file.stats().pool_hops - before
        };
        walk();
        let holes = fs::metadata(dir.join("data")).unwrap();
        assert!(std::os::unix::fs::MetadataExt::blocks(&holes) * 512 < 2 * RANGE);
        // The further rounds are over pages that are in memory and clean. Several, since the system may
        // write pages back in front of the writer.
        let hops_rarely = || {
            block_on(file.flush()).unwrap();
            walk() < RANGE / 4096 / 2
        };
        assert!((0..10).any(|_| hops_rarely()));
    });
}

#[test]
fn policies_count_inline_writes() {
    alone_on_each_disk(child!(policies_count_inline_writes), |dir| {
        let file = block_on(warm(dir, FlushPolicy::EveryWrites(1000)));
        let mut counted = file.stats().updates;
        // Returns whether the write that reaches the number was inline. It waits for the flush.
        let mut flushes_inline = || {
            let flushes = file.stats().flushes;
            for _ in counted..999 {
                block_on(file.update_region(10, b"x")).unwrap();
            }
            assert_eq!(file.stats().flushes, flushes);
            let inline = file.stats().inline_updates;
            block_on(file.update_region(10, b"x")).unwrap();
            let after = file.stats();
            assert_eq!((after.flushes, after.pending_bytes), (flushes + 1, 0));
            counted = 0;
            after.inline_updates > inline
        };
        // Not if the system has just cleaned the page.
        assert!((0..50).any(|_| flushes_inline()));

        let path = dir.join("by bytes");
        let builder = MemoryMappedFile::builder(path).size(LEN);
        let file = block_on(builder.flush_policy(FlushPolicy::EveryBytes(5000)).create()).unwrap();
        block_on(warm_up(&file));
        let flushes = file.stats().flushes;
        while file.stats().flushes == flushes {
            block_on(file.update_region(10, &[1; 500])).unwrap();
        }
        assert_eq!(file.pending_bytes(), 0);
    });
}

#[test]
fn inline_write_sets_the_alarm() {
    alone_on_a_disk(child!(inline_write_sets_the_alarm), |dir| {
        let file = block_on(warm(dir, FlushPolicy::EveryMillis(3_600_000)));
        let quick = MemoryMappedFile::builder(dir.join("data"));
        let quick = quick.mode(mmap_io::MmapMode::ReadWrite);
        let quick = block_on(quick.flush_policy(FlushPolicy::EveryMillis(1)).open()).unwrap();
        assert_inline!(file, quick.update_region(10, b"x"));
        eventually("the inline write is flushed", || file.pending_bytes() == 0);
    });
}

#[test]
fn what_conflicts_is_waited_for() {
    alone_on_each_disk(child!(what_conflicts_is_waited_for), |dir| {
        let file = block_on(warm(dir, FlushPolicy::Never));
        block_on(async {
            let view = file.as_slice(100, 10).unwrap();
            let mut write = pin!(file.update_region(105, b"x"));
            assert!(poll_once(&mut write).await.is_none());
            assert!(!file.try_update_region(105, b"y").await.unwrap());
            // Nothing overtakes it, and what it does not overlap goes on.
            let mut later = pin!(file.update_region(105, b"z"));
            assert!(poll_once(&mut later).await.is_none());
            with_timeout(file.update_region(9000, b"x")).await.unwrap();
            assert_eq!(view[5], 0);
            drop(view);
            let (first, second) = with_timeout(zip(write, later)).await;
            first.and(second).unwrap();
            assert_eq!(file.as_slice(105, 1).unwrap(), b"z");
            let mutable = file.as_slice_mut(100, 10).await.unwrap();
            let mut write = pin!(file.update_region(109, b"x"));
            assert!(poll_once(&mut write).await.is_none());
            drop(mutable);
            with_timeout(write).await.unwrap();
        });
    });
}

#[test]
fn address_for_stores_ends_inline_writes() {
    alone_on_each_disk(child!(address_for_stores_ends_inline_writes), |dir| {
        let file = block_on(warm(dir, FlushPolicy::Never));
        assert_inline!(file, file.update_region(10, b"x"));
        // SAFETY: nothing is stored through it.
        let _ = unsafe { file.as_mut_ptr() }.unwrap();
        for _ in 0..100 {
            assert!(!is_counted_inline(&file, file.update_region(10, b"x")));
        }
    });
}

#[cfg(feature = "atomic")]
#[test]
fn stores_of_atomic_views_end_inline_writes() {
    alone_on_each_disk(child!(stores_of_atomic_views_end_inline_writes), |dir| {
        let file = block_on(warm(dir, FlushPolicy::Never));
        let counter = file.atomic_u64(8192).unwrap();
        for _ in 0..2 {
            counter.fetch_add(1, Ordering::Relaxed);
            assert!(!is_inline(&file, file.update_region(10, b"x")));
        }
        drop(counter);
        assert!(!is_inline(&file, file.update_region(10, b"x")));
        assert_inline!(file, file.update_region(10, b"x"));
    });
}

#[test]
fn truncated_file_is_an_error_inline() {
    alone_on_each_disk(child!(truncated_file_is_an_error_inline), |dir| {
        let file = block_on(warm(dir, FlushPolicy::Never));
        let outside = fs::File::options().write(true).open(dir.join("data"));
        outside.unwrap().set_len(5000).unwrap();
        let error = block_on(file.update_region(8192, b"x")).unwrap_err();
        assert!(matches!(error, MmapIoError::Truncated { .. }), "{error:?}");
        block_on(file.update_region(10, b"x")).unwrap();
    });
}

#[test]
fn full_disk_is_an_error_beside_inline_writes() {
    let this = child!(full_disk_is_an_error_beside_inline_writes);
    let name = this.test();
    alone(this, || {
        block_on(async {
            let Some(disk) = Disk::tmpfs(name, 1 << 20) else {
                return;
            };

            let file = MemoryMappedFile::create_rw(disk.path("data"), LEN)
                .await
                .unwrap();
            file.update_region(0, b"x").await.unwrap();
            wait_until_idle(&file);
            disk.fill();
            for page in 0..3 {
                assert_inline!(file, file.update_region(page, b"x"));
            }
            for _ in 0..3 {
                assert_full(file.update_region(8192, b"x").await);
            }
            file.update_region(0, b"y").await.unwrap();
            assert_eq!(file.as_slice(0, 3).unwrap(), b"yxx");
        })
    });
}

/// Threads write the same records and others, inline and through the queue, while a reader looks.
#[test]
fn inline_and_queued_writes_stay_whole() {
    const RECORD: u64 = 200;
    const ROUNDS: u64 = 600;
    alone_on_each_disk(child!(inline_and_queued_writes_stay_whole), |dir| {
        let file = block_on(warm(dir, FlushPolicy::Never));
        block_on(file.update_region(0, &[0; 20_000])).unwrap();
        let writing = AtomicUsize::new(3);
        std::thread::scope(|threads| {
            for thread in 0..3_u64 {
                let (file, writing) = (file.clone(), &writing);
                threads.spawn(move || {
                    let large = vec![0; 70_000];
                    for round in 1..=ROUNDS {
                        let byte = (3 * round + thread) as u8;
                        block_on(async {
                            // Whole records, of which each thread writes any.
                            let at = round * 7 % 20 * RECORD;
                            file.update_region(at, &[byte; RECORD as usize])
                                .await
                                .unwrap();
                            // A count of its own, which must never go back.
                            let own = 8000 + 8 * thread;
                            let count = round.to_le_bytes();
                            let parts: [(u64, &[u8]); 2] = [(own, &count), (own + 5000, &count)];
                            file.update_regions(&parts).await.unwrap();
                            if round % 16 == thread {
                                file.update_region(1 << 17, &large).await.unwrap();
                            }
                            if round % 64 == 10 * thread {
                                file.as_slice_mut(own, 8).await.unwrap()[..]
                                    .copy_from_slice(&count);
                            }
                        });
                    }
                    writing.fetch_sub(1, Ordering::Relaxed);
                });
            }
            let mut seen = [0; 3];
            while writing.load(Ordering::Relaxed) > 0 {
                for record in 0..20 {
                    let bytes = block_on(file.slice(record * RECORD, RECORD)).unwrap();
                    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{bytes:?}");
                }
                for (thread, seen) in seen.iter_mut().enumerate() {
                    let own = 8000 + 8 * thread as u64;
                    let both = block_on(file.slice(own, 5008)).unwrap();
                    let count =
                        |at: usize| u64::from_le_bytes(both[at..at + 8].try_into().unwrap());
                    // One operation, so that a reader sees both parts of it or none.
                    assert_eq!(count(0), count(5000));
                    assert!(*seen <= count(0), "{seen} came before {}", count(0));
                    *seen = count(0);
                }
            }
        });
        let stats = file.stats();
        assert!(stats.inline_updates > 0, "{stats:?}");
        assert!(stats.updates > stats.inline_updates, "{stats:?}");
    });
}

/// A write looks at a slot of each thread that has read lately. If there are many, it does that on
/// the pool, until the table has forgotten those that read no more.
#[test]
fn write_after_many_readers_hops() {
    alone_on_each_disk(child!(write_after_many_readers_hops), |dir| {
        let file = block_on(warm(dir, FlushPolicy::Never));
        wait_until_idle(&file);
        let (has_read, end) = (Barrier::new(101), Barrier::new(101));
        std::thread::scope(|threads| {
            for _ in 0..100 {
                threads.spawn(|| {
                    let view = file.as_slice(100, 1).unwrap();
                    has_read.wait();
                    end.wait();
                    drop(view);
                });
            }
            has_read.wait();
            let was_inline = is_counted_inline(&file, file.update_region(10, b"x"));
            end.wait();
            assert!(!was_inline);
        });
        assert_inline!(file, file.update_region(10, b"x"));
    });
}

#[test]
fn nothing_is_inline_without_the_count() {
    let dir = on_a_disk();
    child!(blind_child).dir(dir.path()).passes();
}

#[test]
fn blind_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    mmap_io::utils::stop_probing_residency();
    let file = block_on(warm(&dir, FlushPolicy::Never));
    for _ in 0..100 {
        assert!(!is_counted_inline(&file, file.update_region(10, b"x")));
    }
}

/// Inline writes beside a loop of `sync` in another process, which cleans the pages all the time.
#[test]
fn inline_writes_never_read_a_page() {
    alone_on_a_disk(child!(inline_writes_never_read_a_page), |dir| {
        let sync = std::process::Command::new("sh")
            .args(["-c", "while sync -d \"$0\"; do :; done"])
            .arg(dir.join("data"))
            .stderr(std::process::Stdio::null())
            .spawn();
        let file = block_on(warm(dir, FlushPolicy::Never));
        let Ok(mut sync) = sync else {
            return skip("inline_writes_never_read_a_page", "no shell");
        };
        let before = major_faults();
        block_on(async {
            for write in 0..30_000_u64 {
                let at = write * 2654435761 % (WARM - 8);
                file.update_region(at, &write.to_le_bytes()).await.unwrap();
            }
        });
        let faults = major_faults() - before;
        sync.kill().unwrap();
        sync.wait().unwrap();
        assert_eq!(faults, 0);
        let stats = file.stats();
        assert!(stats.inline_updates > 0, "{stats:?}");
        // What was stored is what is in the file.
        let at = 29_999 * 2654435761 % (WARM - 8);
        let mut last = [0; 8];
        fs::File::open(dir.join("data"))
            .unwrap()
            .read_exact_at(&mut last, at)
            .unwrap();
        assert_eq!(u64::from_le_bytes(last), 29_999);
    });
}

/// Page faults of this thread that have read from a disk.
fn major_faults() -> i64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is live for the call, which fills it in.
    let usage = unsafe {
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()), 0);
        usage.assume_init()
    };
    usage.ru_majflt
}
