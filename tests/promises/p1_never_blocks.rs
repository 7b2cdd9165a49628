//! No executor thread is blocked: a ticker on a one-threaded runtime goes on while an operation is
//! stuck, behind a view or a busy pool; a runtime that is shut down leaves nothing behind; and the
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

use crate::common::operations::{
    operations, with_one_pool_thread, Gate, HeldBy, Operation, Running, Scene, AFTER, BEFORE, LEN,
};
use crate::common::{alone, is_quiet, until, SOON};

type Body = Pin<Box<dyn Future<Output = ()>>>;

/// Runs a body on one thread, beside a ticker that it hears from.
type OneThread = fn(&dyn Fn(Receiver<()>) -> Body);

const TICK: Duration = Duration::from_millis(1);

const ONE_THREAD: [OneThread; 3] = [on_tokio, on_smol, on_nothing];

fn on_tokio(body: &dyn Fn(Receiver<()>) -> Body) {
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

fn on_smol(body: &dyn Fn(Receiver<()>) -> Body) {
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

fn on_nothing(body: &dyn Fn(Receiver<()>) -> Body) {
    let (tick, ticks) = channel::bounded(1);
    let ticker = async move {
        loop {
            let _ = tick.try_send(());
            yield_now().await;
        }
    };
    alone(or(body(ticks), ticker));
}

fn current_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// The ticker goes on while an operation is stuck.
async fn ticks_beside(name: &str, stuck: &mut Running<'_>, ticks: &Receiver<()>) {
    for _ in 0..4 {
        let tick = async {
            ticks.recv().await.unwrap();
            None
        };
        let ended = or(async { Some(stuck.as_mut().await) }, tick).await;
        assert!(ended.is_none(), "nothing is in the way of {name}");
    }
}

/// What the written range holds after an operation.
fn expected(operation: &Operation) -> u8 {
    let writes = operation.held_by == HeldBy::AnyView && !operation.name.starts_with("resize");
    match writes || operation.name == "try_update_region" {
        true => AFTER,
        false => BEFORE,
    }
}

#[test]
fn a_ticker_goes_on_while_each_operation_is_stuck_behind_a_view() {
    let dir = tempfile::tempdir().unwrap();
    for on_one_thread in ONE_THREAD {
        on_one_thread(&|ticks| Box::pin(all_behind_views(dir.path().to_path_buf(), ticks)));
    }
}

async fn all_behind_views(dir: PathBuf, ticks: Receiver<()>) {
    for operation in operations() {
        let scene = Scene::new(&dir).await;
        if operation.held_by == HeldBy::AnyView {
            let view = scene.file.bytes(0, LEN).unwrap();
            let mut stuck = (operation.run)(&scene);
            ticks_beside(operation.name, &mut stuck, &ticks).await;
            drop(view);
            stuck.await.unwrap();
        }
        // A file that is smaller now has no such view.
        if operation.held_by != HeldBy::Nothing && scene.file.len() == LEN {
            let view = scene.file.as_slice_mut(0, LEN).await.unwrap();
            let mut stuck = (operation.run)(&scene);
            ticks_beside(operation.name, &mut stuck, &ticks).await;
            drop(view);
            stuck.await.unwrap();
            scene.settled().await;
            assert_eq!(scene.written(), expected(&operation), "{}", operation.name);
        }
    }
}

#[test]
fn a_ticker_goes_on_while_the_pool_is_busy() {
    let name = "p1_never_blocks::a_ticker_goes_on_while_the_pool_is_busy";
    with_one_pool_thread(name, || {
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
        let scene = Scene::new(&dir).await;
        let gate = Gate::shut();
        let mut stuck = (operation.run)(&scene);
        ticks_beside(operation.name, &mut stuck, &ticks).await;
        drop(gate);
        stuck.await.unwrap();
        scene.settled().await;
        assert_eq!(scene.written(), expected(&operation), "{}", operation.name);
    }
}

/// Something that is in the way of operations for as long as it lives.
trait Obstacle {}
impl<T> Obstacle for T {}

/// Starts every operation on a runtime, behind an obstacle, and shuts the runtime down. Nothing
/// that was held up takes effect any more.
fn shut_down_with_all_in_flight(
    runtime: tokio::runtime::Runtime,
    behind: for<'a> fn(&'a Scene) -> Box<dyn Obstacle + 'a>,
) -> Arc<Scene> {
    let scene = Arc::new(alone(Scene::new(&std::env::temp_dir())));
    let obstacle = behind(&scene);
    let polled = Arc::new(AtomicUsize::new(0));
    let all = operations();
    for operation in all.clone() {
        let (scene, polled) = (scene.clone(), polled.clone());
        runtime.spawn(async move {
            let mut running = (operation.run)(&scene);
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
    runtime.shutdown_timeout(SOON);
    let stats = scene.file.stats();
    assert_eq!((stats.queued_writes, stats.queued_bytes), (0, 0));
    drop(obstacle);
    alone(async {
        scene.settled().await;
        assert_eq!(scene.written(), BEFORE);
        assert_eq!(scene.file.stats().updates, 0);
    });
    scene
}

/// Every operation works as if nothing had been before.
fn all_go_on(scene: &Scene) {
    alone(async {
        for operation in operations() {
            let result = (operation.run)(scene).await;
            assert!(result.is_ok(), "{}: {result:?}", operation.name);
        }
        scene.settled().await;
        assert_eq!(scene.written(), AFTER);
    });
}

fn runtimes() -> [tokio::runtime::Runtime; 2] {
    [tokio::runtime::Runtime::new().unwrap(), current_thread()]
}

#[test]
fn a_runtime_that_is_shut_down_behind_a_view_leaves_nothing_behind() {
    for runtime in runtimes() {
        let scene = shut_down_with_all_in_flight(runtime, |scene| {
            Box::new(scene.file.bytes(0, LEN).unwrap())
        });
        all_go_on(&scene);
    }
    for runtime in runtimes() {
        let scene = shut_down_with_all_in_flight(runtime, |scene| {
            Box::new(alone(scene.file.as_slice_mut(0, LEN)).unwrap())
        });
        all_go_on(&scene);
    }
}

#[test]
fn a_runtime_that_is_shut_down_beside_a_busy_pool_leaves_nothing_behind() {
    let name =
        "p1_never_blocks::a_runtime_that_is_shut_down_beside_a_busy_pool_leaves_nothing_behind";
    with_one_pool_thread(name, || {
        for runtime in runtimes() {
            let scene = shut_down_with_all_in_flight(runtime, |_| Box::new(Gate::shut()));
            assert_eq!(scene.created().count(), 0);
            assert_eq!(scene.file.len(), LEN);
            assert!(scene.dir.join("doomed").exists());
            all_go_on(&scene);
        }
    });
}

/// By `strace`: which thread makes which calls.
#[cfg(target_os = "linux")]
mod calls {
    use std::fs;

    use futures_lite::future::poll_once;

    use super::*;
    use crate::p5_durable::{as_child, can_trace, child_dir};

    /// What may wait for a disk, or for other processors.
    const CALLS: [&str; 30] = [
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
        "copy_file_range",
        "sendfile",
        "ioctl",
        "unlink",
        "unlinkat",
        "fstat",
        "newfstatat",
        "statx",
    ];

    /// Tells where the child is: what follows is operation `number`; 0 is none.
    fn mark(number: usize) {
        // SAFETY: the call takes no pointer; the descriptor is invalid.
        unsafe { libc::fsync(-1 - number as i32) };
    }

    /// The number of a mark.
    fn marked(line: &str) -> Option<usize> {
        let (_, rest) = line.split_once("fsync(-")?;
        let (number, _) = rest.split_once(')')?;
        Some(number.parse::<usize>().unwrap() - 1)
    }

    #[test]
    fn the_thread_that_polls_makes_no_call_that_may_wait() {
        let test = "the_thread_that_polls_makes_no_call_that_may_wait";
        if !can_trace(test) {
            return;
        }
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let trace = dir.join("trace");
        // A question mark: not every system has the call.
        let traced = CALLS.map(|call| format!("?{call}")).join(",");
        let traced = format!("-etrace={traced}");
        let program = ["strace", "-f", "-y", &traced, "-o", trace.to_str().unwrap()];
        let output = as_child(&program, "p1_never_blocks::calls::traced_child", &dir);
        assert!(output.status.success(), "{output:?}");

        let trace = fs::read_to_string(trace).unwrap();
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
        for line in trace.lines().filter(|line| !line.contains("resumed>")) {
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
        // It does see what it looks for.
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
            "msync" | "membarrier" | "process_madvise" => false,
            // The standard library looks at files of the system.
            _ => !arguments.contains(dir),
        }
    }

    #[test]
    fn traced_child() {
        let Some(dir) = child_dir() else {
            return;
        };
        alone(async {
            let mut scenes = Vec::new();
            for operation in operations() {
                scenes.push((operation, Scene::new(&dir).await, Scene::new(&dir).await));
            }
            for (number, (operation, scene, held)) in scenes.iter().enumerate() {
                mark(number + 1);
                (operation.run)(scene).await.unwrap();
                // Given up after its first step, and behind a view.
                let _ = poll_once((operation.run)(scene)).await;
                until(&scene.file, is_quiet).await;
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
                until(&held.file, is_quiet).await;
                mark(0);
            }
        });
    }
}

#[cfg(target_os = "linux")]
mod cold {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::chown;
    use std::path::Path;

    use super::*;
    use crate::common::skip;

    /// As much as is asked for without a hop.
    const LEN: usize = 4 << 20;

    /// Faults of this thread that had to wait for the disk.
    fn major_faults() -> i64 {
        // SAFETY: an all-zero `rusage` is valid, and the call fills it.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: `usage` is live for the call.
        unsafe { libc::getrusage(libc::RUSAGE_THREAD, &mut usage) };
        usage.ru_majflt
    }

    /// A file that is on the disk and not in memory.
    fn cold_file(path: &Path) {
        let mut plain = File::create(path).unwrap();
        plain.write_all(&vec![7; LEN]).unwrap();
        plain.sync_all().unwrap();
        // SAFETY: the call takes no pointer.
        unsafe { libc::posix_fadvise(plain.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    }

    /// Reads of a cold file fault on the pool, and of a resident one make no hop if `probes`.
    fn reads_on_the_pool(path: &Path, probes: bool) {
        alone(async {
            let file = MemoryMappedFile::open_ro(path).await.unwrap();
            let before = major_faults();
            let slice = file.slice(0, LEN as u64).await.unwrap();
            assert!(slice.iter().all(|byte| *byte == 7));
            assert_eq!(major_faults(), before);
            assert_eq!(file.stats().resident_misses, 1);
            file.slice(0, 4096).await.unwrap();
            assert_eq!(file.stats().resident_hits, u64::from(probes));
        });
    }

    #[test]
    fn cold_pages_are_read_on_the_pool() {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("cold");
        cold_file(&path);
        reads_on_the_pool(&path, true);
    }

    /// The kernel calls every page resident for a process that neither owns nor may write a file, and
    /// has no capability that stands for that.
    #[test]
    fn cold_pages_are_read_on_the_pool_without_capabilities() {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("cold");
        cold_file(&path);
        if let Err(error) = chown(&path, Some(12_345), None) {
            let test = "cold_pages_are_read_on_the_pool_without_capabilities";
            return skip(test, &format!("no file of another user: {error}"));
        }
        let without = std::thread::spawn(move || {
            // `struct __user_cap_header_struct`, version 3, this thread; and no capability at all.
            let (header, none) = ([0x2008_0522_u32, 0], [0_u32; 6]);
            // SAFETY: both arrays are live for the call and as large as version 3 says.
            let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
            assert_eq!(result, 0);
            reads_on_the_pool(&path, false);
        });
        without.join().unwrap();
    }
}
