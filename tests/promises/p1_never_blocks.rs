//! No executor thread is blocked: a ticker on a one-threaded runtime runs while an operation is
//! stuck behind a view or a busy pool; a runtime that is shut down leaves nothing behind; and the
//! thread that polls makes no system call that may wait for a disk.

use std::future::{poll_fn, Future};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use futures_lite::future::{or, yield_now};
use mmap_io::MemoryMappedFile;
use smol::channel::{self, Receiver};

use crate::common::child::{child, with_one_pool_thread};
use crate::common::operations::{
    operations, BlockedBy, BusyPool, Fixture, Operation, Running, AFTER, BEFORE, LEN,
};
use crate::common::{block_on, is_quiet, wait_until, TIMEOUT};

#[cfg(target_os = "linux")]
mod reads;

type Body<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Runs a body on one thread, beside a ticker that it hears from.
type OneThread = for<'a> fn(&dyn Fn(Receiver<()>) -> Body<'a>);

const TICK: Duration = Duration::from_millis(1);

const ONE_THREAD: [OneThread; 3] = [on_tokio, on_smol, on_nothing];

fn on_tokio<'a>(body: &dyn Fn(Receiver<()>) -> Body<'a>) {
    let (tick, ticks) = channel::bounded(1);
    let runtime = current_thread();
    runtime.block_on(async {
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(TICK).await;
                let _ = tick.try_send(());
            }
        });
        body(ticks).await;
    });
}

fn on_smol<'a>(body: &dyn Fn(Receiver<()>) -> Body<'a>) {
    let (tick, ticks) = channel::bounded(1);
    let executor = smol::LocalExecutor::new();
    let ticker = executor.spawn(async move {
        loop {
            smol::Timer::after(TICK).await;
            let _ = tick.try_send(());
        }
    });
    smol::block_on(executor.run(body(ticks)));
    drop(ticker);
}

fn on_nothing<'a>(body: &dyn Fn(Receiver<()>) -> Body<'a>) {
    let (tick, ticks) = channel::bounded(1);
    let ticker = async move {
        loop {
            let _ = tick.try_send(());
            yield_now().await;
        }
    };
    block_on(or(body(ticks), ticker));
}

fn current_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Checks that the ticker runs while an operation is stuck.
async fn ticks_beside(name: &str, stuck: &mut Running<'_>, ticks: &Receiver<()>) {
    for _ in 0..4 {
        let tick = async {
            ticks.recv().await.unwrap();
            None
        };
        let ended = or(async { Some(stuck.as_mut().await) }, tick).await;
        assert!(
            ended.is_none(),
            "expected {name} to be blocked, but it completed"
        );
    }
}

/// What the written range holds after an operation.
fn expected(operation: &Operation) -> u8 {
    let writes =
        operation.blocked_by == BlockedBy::AnyView && !operation.name.starts_with("resize");
    match writes || operation.name == "try_update_region" {
        true => AFTER,
        false => BEFORE,
    }
}

async fn assert_wrote(fixture: &Fixture, operation: &Operation) {
    fixture.settled().await;
    assert_eq!(fixture.written(), expected(operation), "{}", operation.name);
}

#[test]
fn ticker_runs_beside_ops_behind_view() {
    let dir = tempfile::tempdir().unwrap();
    for on_one_thread in ONE_THREAD {
        on_one_thread(&|ticks| Box::pin(all_behind_views(dir.path().to_path_buf(), ticks)));
    }
}

async fn all_behind_views(dir: PathBuf, ticks: Receiver<()>) {
    for operation in operations() {
        let fixture = Fixture::new(&dir).await;
        if operation.blocked_by == BlockedBy::AnyView {
            let view = fixture.file.bytes(0, LEN).unwrap();
            let mut stuck = (operation.run)(&fixture);
            ticks_beside(operation.name, &mut stuck, &ticks).await;
            drop(view);
            stuck.await.unwrap();
        }
        // A file that is shorter by now has no such view.
        if operation.blocked_by != BlockedBy::Nothing && fixture.file.len() == LEN {
            let view = fixture.file.as_slice_mut(0, LEN).await.unwrap();
            let mut stuck = (operation.run)(&fixture);
            ticks_beside(operation.name, &mut stuck, &ticks).await;
            drop(view);
            stuck.await.unwrap();
            assert_wrote(&fixture, &operation).await;
        }
    }
}

#[test]
fn ticker_runs_while_pool_is_busy() {
    with_one_pool_thread(child!(ticker_runs_while_pool_is_busy), || {
        let dir = tempfile::tempdir().unwrap();
        for on_one_thread in ONE_THREAD {
            on_one_thread(&|ticks| {
                Box::pin(all_beside_a_busy_pool(dir.path().to_path_buf(), ticks))
            });
        }
    });
}

async fn all_beside_a_busy_pool(dir: PathBuf, ticks: Receiver<()>) {
    for operation in operations() {
        let fixture = Fixture::new(&dir).await;
        let gate = BusyPool::new();
        let mut stuck = (operation.run)(&fixture);
        ticks_beside(operation.name, &mut stuck, &ticks).await;
        drop(gate);
        stuck.await.unwrap();
        assert_wrote(&fixture, &operation).await;
    }
}

/// Something that blocks operations for as long as it lives.
trait Obstacle {}
impl<T> Obstacle for T {}

/// Starts every operation on a runtime, behind an obstacle, and shuts the runtime down. Nothing
/// that was held up takes effect any more.
fn shut_down_with_all_in_flight(
    runtime: tokio::runtime::Runtime,
    behind: for<'a> fn(&'a Fixture) -> Box<dyn Obstacle + 'a>,
) -> Arc<Fixture> {
    let fixture = Arc::new(block_on(Fixture::new(&std::env::temp_dir())));
    let obstacle = behind(&fixture);
    let polled = Arc::new(AtomicUsize::new(0));
    let all = operations();
    for operation in all.clone() {
        let (fixture, polled) = (fixture.clone(), polled.clone());
        runtime.spawn(async move {
            let mut running = (operation.run)(&fixture);
            let mut is_first = true;
            poll_fn(|context| {
                let poll = running.as_mut().poll(context);
                if std::mem::take(&mut is_first) {
                    polled.fetch_add(1, Ordering::SeqCst);
                }
                poll
            })
            .await
        });
    }
    runtime.block_on(async {
        while polled.load(Ordering::SeqCst) < all.len() {
            yield_now().await;
        }
    });
    // Tasks are dropped on whatever thread the runtime likes.
    runtime.shutdown_timeout(TIMEOUT);
    let stats = fixture.file.stats();
    assert_eq!((stats.queued_writes, stats.queued_bytes), (0, 0));
    drop(obstacle);
    block_on(async {
        fixture.settled().await;
        assert_eq!(fixture.written(), BEFORE);
        // Views do not block an append, so that it may be complete.
        let may_be_complete = |operation: &&Operation| operation.name.starts_with("append");
        let appends = all.iter().filter(may_be_complete).count();
        assert!(fixture.file.stats().updates <= appends as u64);
    });
    fixture
}

/// Every operation works as if nothing had happened before.
fn all_go_on(fixture: &Fixture) {
    block_on(async {
        for operation in operations() {
            let result = (operation.run)(fixture).await;
            assert!(result.is_ok(), "{}: {result:?}", operation.name);
        }
        fixture.settled().await;
        assert_eq!(fixture.written(), AFTER);
    });
}

fn runtimes() -> [tokio::runtime::Runtime; 2] {
    [tokio::runtime::Runtime::new().unwrap(), current_thread()]
}

#[test]
fn shutdown_behind_view_leaves_nothing() {
    for runtime in runtimes() {
        let fixture = shut_down_with_all_in_flight(runtime, |fixture| {
            Box::new(fixture.file.bytes(0, LEN).unwrap())
        });
        all_go_on(&fixture);
    }
    for runtime in runtimes() {
        let fixture = shut_down_with_all_in_flight(runtime, |fixture| {
            Box::new(block_on(fixture.file.as_slice_mut(0, LEN)).unwrap())
        });
        all_go_on(&fixture);
    }
}

#[test]
fn shutdown_beside_busy_pool_leaves_nothing() {
    with_one_pool_thread(child!(shutdown_beside_busy_pool_leaves_nothing), || {
        for runtime in runtimes() {
            let fixture = shut_down_with_all_in_flight(runtime, |_| Box::new(BusyPool::new()));
            assert_eq!(fixture.created().count(), 0);
            assert_eq!(fixture.file.len(), LEN);
            assert!(fixture.dir.join("doomed").exists());
            all_go_on(&fixture);
        }
    });
}

/// By `strace`: which thread makes which calls.
#[cfg(target_os = "linux")]
mod calls {

    use futures_lite::future::poll_once;

    use super::*;
    use crate::common::child::child_dir;
    use crate::common::on_a_disk;
    use crate::common::probe::{can_trace, trace};

    /// What may wait for a disk, or for other processors.
    const CALLS: [&str; 33] = [
        "open",
        "openat",
        "openat2",
        "creat",
        "truncate",
        "ftruncate",
        "fallocate",
        "msync",
        "fsync",
        "fdatasync",
        "sync_file_range",
        "readahead",
        "pread64",
        "preadv",
        "preadv2",
        "pwrite64",
        "pwritev",
        "pwritev2",
        "membarrier",
        "madvise",
        "process_madvise",
        "fadvise64",
        "mlock",
        "munlock",
        "flock",
        "copy_file_range",
        "sendfile",
        "ioctl",
        "unlink",
        "unlinkat",
        "fstat",
        "newfstatat",
        "statx",
    ];

    /// Marks in the trace that operation `number` follows; 0 stands for none.
    pub(super) fn mark(number: usize) {
        // SAFETY: the call takes no pointer; the descriptor is invalid.
        unsafe { libc::fsync(-1 - number as i32) };
    }

    /// The number of a mark.
    pub(super) fn marked(line: &str) -> Option<usize> {
        let (_, rest) = line.split_once("fsync(-")?;
        let (number, _) = rest.split_once(')')?;
        Some(number.parse::<usize>().unwrap() - 1)
    }

    #[test]
    fn polling_thread_makes_no_blocking_call() {
        let test = "polling_thread_makes_no_blocking_call";
        if !can_trace(test) {
            return;
        }
        let dir = on_a_disk();
        let dir = dir.path().canonicalize().unwrap();
        // A question mark: not every system has the call.
        let traced = CALLS.map(|call| format!("?{call}")).join(",");
        let traced = format!("-etrace={traced}");
        let trace = trace(child!(traced_child), &dir, &["-y", &traced]);

        let dir = dir.to_str().unwrap();
        let thread = |line: &str| line.split_whitespace().next().unwrap().to_owned();
        let begin = trace.lines().find(|line| marked(line).is_some());
        let executor = thread(begin.expect("no marks"));
        let names: Vec<_> = operations()
            .iter()
            .map(|operation| operation.name)
            .collect();
        // Registering takes milliseconds where threads are running: a first read or write does not
        // pay for that.
        let mut registering = trace.lines().filter(|line| line.contains("CMD_REGISTER"));
        let registered = registering.next().expect("no barrier is registered");
        assert_ne!(thread(registered), executor, "{registered}");
        assert_eq!(registering.next(), None, "registered twice");

        let mut number = 0;
        let mut elsewhere = String::new();
        for line in trace.lines() {
            let is_executor = thread(line) == executor;
            if let (true, Some(mark)) = (is_executor, marked(line)) {
                number = mark;
            } else if number > 0 && is_executor {
                let name = names[number - 1];
                assert!(
                    is_harmless(line, dir),
                    "{name}, on the thread that polls: {line}"
                );
            } else if number > 0 {
                elsewhere.push_str(line);
            }
        }
        // The trace does contain what the test looks for.
        for call in [
            "openat(",
            "ftruncate(",
            "fallocate(",
            "sync(",
            "unlink(",
            "fadvise64(",
        ] {
            assert!(elsewhere.contains(call), "no {call}");
        }
        assert!(elsewhere.contains("_POPULATE_READ") && elsewhere.contains("_POPULATE_WRITE"));
    }

    fn is_harmless(line: &str, dir: &str) -> bool {
        let (_, call) = line.split_once(char::is_whitespace).unwrap();
        let (name, arguments) = call.trim_start().split_once('(').unwrap();
        match name {
            // The allocator gives memory back.
            "madvise" => arguments.contains("MADV_DONTNEED"),
            // The probe: what the kernel knows about an open file.
            "statx" => ["STATX_SIZE", "STATX_NLINK"].iter().any(|mask| {
                arguments.contains(&format!("AT_STATX_DONT_SYNC|AT_EMPTY_PATH, {mask}, "))
            }),
            "msync" | "membarrier" | "process_madvise" | "mlock" | "munlock" => false,
            // On a local file system, which this is, no process waits for it.
            "flock" => arguments.contains("LOCK_UN"),
            // The standard library looks at files of the system.
            _ => !arguments.contains(dir),
        }
    }

    #[test]
    fn traced_child() {
        let Some(dir) = child_dir() else {
            return;
        };
        block_on(async {
            let mut fixtures = Vec::new();
            for operation in operations() {
                fixtures.push((
                    operation,
                    Fixture::new(&dir).await,
                    Fixture::new(&dir).await,
                ));
            }
            for (number, (operation, fixture, held)) in fixtures.iter().enumerate() {
                mark(number + 1);
                (operation.run)(fixture).await.unwrap();
                // Dropped after its first poll, and behind a view.
                let _ = poll_once((operation.run)(fixture)).await;
                wait_until(&fixture.file, is_quiet).await;
                let view = held.file.as_slice_mut(0, LEN).await.unwrap();
                let mut running = (operation.run)(held);
                for _ in 0..100 {
                    if poll_once(&mut running).await.is_some() {
                        break;
                    }
                    std::thread::yield_now();
                }
                drop(running);
                drop(view);
                wait_until(&held.file, is_quiet).await;
                mark(0);
            }
        });
    }
}
