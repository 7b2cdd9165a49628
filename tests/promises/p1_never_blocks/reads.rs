//! Every read of pages that are not in memory, on a disk and from a server that answers late: the
//! ticker of a one-threaded runtime runs beside it, and the thread that polls neither faults on a
//! page that has to be read nor asks the server for anything. What could break: a touch or a
//! question before the hop to the pool, or after it.

use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::chown;
use std::path::Path;
use std::time::Instant;

use futures_lite::{AsyncBufReadExt, AsyncReadExt, StreamExt};

use super::*;
use crate::common::child::{child_dir, Child};
use crate::common::disk::truncate;
use crate::common::fuse::{with_fuse, Fuse, GETATTR, READ};
use crate::common::probe::{cached, can_trace, trace};
use crate::common::{on_a_disk, pattern, skip, with_timeout};
use crate::refused_calls::refuse_populating;

const LEN: u64 = 1 << 20;

/// What is read: several pages, not whole ones.
const AT: u64 = 5_000;
const SIZE: u64 = 100_000;
const END: u64 = AT + SIZE;

/// Another part of the file.
const FAR: u64 = 800_001;

/// A way to read. It checks, and so touches, what it has read. It runs once before its faults are
/// counted, so that its own code is in memory.
struct Read {
    name: &'static str,
    /// Whether it waits until the pages are in memory.
    waits: bool,
    run: fn(MemoryMappedFile) -> Running<'static>,
}

macro_rules! reads {
    ($($(#[$attribute:meta])* $waits:literal $name:literal: |$file:ident| $body:block)*) => {
        vec![$(
            $(#[$attribute])*
            Read {
                name: $name,
                waits: $waits,
                run: |$file| Box::pin(async move {
                    $body
                    Ok(())
                }),
            },
        )*]
    };
}

fn reads() -> Vec<Read> {
    reads! {
        true "slice": |file| { check(AT, &file.slice(AT, SIZE).await?); }
        true "slices": |file| {
            let slices = file.slices(&[(FAR, 9_000), (AT, SIZE)]).await?;
            check(FAR, &slices[0]);
            check(AT, &slices[1]);
        }
        true "read_bytes": |file| { check(AT, &file.read_bytes(AT, SIZE).await?); }
        true "read_regions": |file| {
            let regions = file.read_regions(&[(FAR, 9_000), (AT, SIZE)]).await?;
            check(FAR, &regions[0]);
            check(AT, &regions[1]);
        }
        true "read_into": |file| {
            let mut buffer = vec![0; SIZE as usize];
            file.read_into(AT, &mut buffer).await?;
            check(AT, &buffer);
        }
        true "stream": |file| {
            let mut stream = file.stream(AT..END, 60_000)?;
            let mut at = AT;
            while let Some(piece) = stream.next().await {
                let piece = piece?;
                check(at, &piece);
                at += piece.len() as u64;
            }
            assert_eq!(at, END);
        }
        #[cfg(feature = "http-body")]
        true "body": |file| {
            let mut body = file.body(AT..END)?;
            let mut at = AT;
            while let Some(frame) = http_body_util::BodyExt::frame(&mut body).await {
                let piece = frame?.into_data().unwrap();
                check(at, &piece);
                at += piece.len() as u64;
            }
            assert_eq!(at, END);
        }
        true "reader, read": |file| {
            let mut buffer = vec![0; SIZE as usize];
            file.reader_range(AT..END)?.read_exact(&mut buffer).await?;
            check(AT, &buffer);
        }
        true "reader, fill_buf": |file| {
            let mut reader = file.reader_range(AT..END)?;
            loop {
                let at = AT + reader.position();
                let buffer = reader.fill_buf().await?;
                check(at, buffer);
                let len = buffer.len();
                if len == 0 {
                    break assert_eq!(at, END);
                }
                reader.consume(len);
            }
        }
        true "touch_pages": |file| {
            file.touch_pages().await?;
            check(0, &file.as_slice(0, LEN)?);
        }
        true "touch_pages_range": |file| {
            file.touch_pages_range(AT, SIZE).await?;
            check(AT, &file.as_slice(AT, SIZE)?);
        }
        false "prefetch_range": |file| { file.prefetch_range(AT, SIZE).await?; }
        #[cfg(feature = "advise")]
        false "advise": |file| { file.advise(AT, SIZE, mmap_io::MmapAdvice::WillNeed).await?; }
    }
}

/// Compares bytes of the file with what they should be.
#[track_caller]
fn check(at: u64, bytes: &[u8]) {
    let expected = pattern(at as usize + bytes.len());
    assert!(
        *bytes == expected[at as usize..],
        "{} bytes at {at}",
        bytes.len()
    );
}

/// Takes all of a file out of memory, when nothing reads it any more.
async fn make_cold(file: &MemoryMappedFile) {
    file.touch_pages().await.unwrap();
    file.evict(0, LEN).await.unwrap();
}

/// A handle that reads, and one that may write, on a file whose bytes are a pattern.
async fn both_handles(path: &Path) -> [MemoryMappedFile; 2] {
    [
        MemoryMappedFile::open_ro(path).await.unwrap(),
        MemoryMappedFile::open_rw(path).await.unwrap(),
    ]
}

/// A file whose pages can be dropped from memory, since the disk has them.
fn synced_file(path: &Path) -> File {
    let mut plain = File::create(path).unwrap();
    plain.write_all(&pattern(LEN as usize)).unwrap();
    plain.sync_all().unwrap();
    plain
}

async fn handles_on_a_disk(dir: &Path) -> [MemoryMappedFile; 2] {
    let path = dir.join("data");
    synced_file(&path);
    both_handles(&path).await
}

/// Faults of this thread that had to wait for the disk.
fn major_faults() -> libc::c_long {
    // SAFETY: an all-zero `rusage` is valid, and the call fills it.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is live for the call.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &mut usage) };
    usage.ru_majflt
}

/// Makes a read of cold pages, and checks that this thread has no major fault.
async fn read_cold(file: &MemoryMappedFile, read: &Read) {
    let mut tries = Tries::default();
    while tries.go_on(read) {
        tries.0.push(faults_of_cold(file, read).await);
    }
}

async fn faults_of_cold(file: &MemoryMappedFile, read: &Read) -> libc::c_long {
    (read.run)(file.clone()).await.unwrap();
    // A read ahead that has just begun may bring pages back.
    while cached(file.path(), 0, LEN as usize) > 0 {
        make_cold(file).await;
    }
    let before = (major_faults(), file.stats().pool_hops);
    (read.run)(file.clone()).await.unwrap();
    assert!(file.stats().pool_hops > before.1, "{}", read.name);
    major_faults() - before.0
}

/// Major faults of each try of a read. The system takes a page of the program away now and then, so
/// one try without a fault is enough: a read that faults on its bytes does so in each.
#[derive(Default)]
struct Tries(Vec<libc::c_long>);

impl Tries {
    /// Whether another try is needed. Fails when there were enough.
    fn go_on(&self, read: &Read) -> bool {
        let all = &self.0;
        assert!(all.len() < 3 || all.contains(&0), "{}: {all:?}", read.name);
        !all.contains(&0)
    }
}

#[test]
fn cold_pages_fault_on_the_pool() {
    let dir = on_a_disk();
    block_on(async {
        for file in handles_on_a_disk(dir.path()).await {
            for read in reads() {
                read_cold(&file, &read).await;
            }
            // The count does show a touch of a page that is not in memory.
            make_cold(&file).await;
            let before = major_faults();
            check(AT, &file.as_slice(AT, SIZE).unwrap());
            assert!(major_faults() > before);
            // Where all is in memory, no read hops.
            let before = file.stats().pool_hops;
            check(AT, &file.slice(AT, SIZE).await.unwrap());
            assert_eq!(file.stats().pool_hops, before);
        }
    });
}

#[test]
fn ticker_runs_beside_cold_reads() {
    with_one_pool_thread(child!(ticker_runs_beside_cold_reads), || {
        let dir = on_a_disk();
        for on_one_thread in ONE_THREAD {
            on_one_thread(&|ticks| Box::pin(all_cold_reads(dir.path(), ticks)));
        }
    });
}

async fn all_cold_reads(dir: &Path, ticks: Receiver<()>) {
    for file in handles_on_a_disk(dir).await {
        for read in reads() {
            let mut tries = Tries::default();
            while tries.go_on(&read) {
                (read.run)(file.clone()).await.unwrap();
                make_cold(&file).await;
                let before = major_faults();
                // As a slow disk would be.
                let busy = BusyPool::new();
                let mut stuck = (read.run)(file.clone());
                ticks_beside(read.name, &mut stuck, &ticks).await;
                drop(busy);
                with_timeout(stuck).await.unwrap();
                tries.0.push(major_faults() - before);
            }
        }
    }
}

/// What a kernel before 5.14 offers.
#[test]
fn cold_reads_work_without_populate() {
    let dir = on_a_disk();
    let printed = child!(unpopulating_child).dir(dir.path()).passes();
    assert!(printed.contains("works without"), "{printed}");
}

#[test]
fn unpopulating_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    refuse_populating();
    block_on(async {
        for file in handles_on_a_disk(&dir).await {
            for read in reads() {
                read_cold(&file, &read).await;
            }
        }
        // A cut is an error here as well, and no signal.
        let path = dir.join("cut");
        std::fs::write(&path, [7; 20_000]).unwrap();
        let file = MemoryMappedFile::open_ro(&path).await.unwrap();
        truncate(&path, 5000);
        let refused = file.slice(0, 20_000).await.map(drop);
        assert!(matches!(
            refused,
            Err(mmap_io::MmapIoError::Truncated { .. })
        ));
        let refused = file.touch_pages().await;
        assert!(matches!(
            refused,
            Err(mmap_io::MmapIoError::Truncated { .. })
        ));
    });
    println!("works without populating");
}

/// The kernel calls every page resident for a process that neither owns nor may write a file, and
/// has no capability that stands for that.
#[test]
fn cold_pages_fault_on_pool_unprivileged() {
    let dir = on_a_disk();
    let path = dir.path().join("data");
    synced_file(&path);
    if let Err(error) = chown(&path, Some(12_345), None) {
        let test = "cold_pages_fault_on_pool_unprivileged";
        return skip(test, &format!("no file of another user: {error}"));
    }
    let printed = child!(unprivileged_child).dir(dir.path()).passes();
    assert!(printed.contains("works without"), "{printed}");
}

#[test]
fn unprivileged_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    // `struct __user_cap_header_struct`, version 3, this thread; and no capability at all.
    let (header, none) = ([0x2008_0522_u32, 0], [0_u32; 6]);
    // SAFETY: both arrays are live for the call and as large as version 3 says.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    assert_eq!(result, 0);
    let path = dir.join("data");
    let plain = File::open(&path).unwrap();
    block_on(async {
        for read in reads() {
            let mut tries = Tries::default();
            while tries.go_on(&read) {
                let file = MemoryMappedFile::open_ro(&path).await.unwrap();
                (read.run)(file.clone()).await.unwrap();
                file.close().await.unwrap();
                // Pages that are mapped would stay.
                // SAFETY: the call takes no pointer.
                unsafe { libc::posix_fadvise(plain.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
                let file = MemoryMappedFile::open_ro(&path).await.unwrap();
                let before = major_faults();
                (read.run)(file.clone()).await.unwrap();
                tries.0.push(major_faults() - before);
                let stats = file.stats();
                assert_eq!(stats.resident_hits, 0, "{}", read.name);
                assert!(stats.pool_hops > 0, "{}", read.name);
                file.close().await.unwrap();
            }
        }
    });
    println!("works without capabilities");
}

/// Runs a body on a file system of which the kernel remembers no attributes.
fn on_a_server(this: Child, body: impl FnOnce(&Fuse)) {
    // Reads that wait for the server occupy threads of the pool.
    with_fuse(this.usual_pool(), &[("data", LEN as usize)], |fuse| {
        fuse.expire_attributes();
        body(fuse);
    });
}

#[test]
fn ticker_runs_beside_each_remote_read() {
    on_a_server(child!(ticker_runs_beside_each_remote_read), |fuse| {
        for on_one_thread in ONE_THREAD {
            on_one_thread(&|ticks| Box::pin(all_remote_reads(fuse, ticks)));
        }
    });
}

/// Makes each read, with answers that come when the ticker has run.
async fn all_remote_reads(fuse: &Fuse, ticks: Receiver<()>) {
    for file in both_handles(&fuse.path("data")).await {
        for read in reads() {
            let name = read.name;
            (read.run)(file.clone()).await.unwrap();
            make_cold(&file).await;
            fuse.asked_here();
            let asked = fuse.count(READ);
            let held = fuse.hold(&[READ, GETATTR]);
            let mut running = (read.run)(file.clone());
            if read.waits {
                ticks_beside(name, &mut running, &ticks).await;
            }
            loop {
                held.answer();
                let tick = async {
                    ticks.recv().await.unwrap();
                    None
                };
                if let Some(ended) = or(async { Some(running.as_mut().await) }, tick).await {
                    break ended.unwrap();
                }
            }
            drop(held);
            // Faults ask, too.
            assert_eq!(fuse.asked_here(), [], "{name}, on the thread that polls");
            assert!(fuse.count(READ) > asked, "{name} reads nothing");
        }
    }
}

#[test]
fn server_that_takes_300_ms_stalls_nothing() {
    on_a_server(child!(server_that_takes_300_ms_stalls_nothing), |fuse| {
        on_tokio(&|ticks| Box::pin(all_reads_at_once(fuse, ticks)));
    });
}

async fn all_reads_at_once(fuse: &Fuse, ticks: Receiver<()>) {
    const TAKES: Duration = Duration::from_millis(300);
    let files = both_handles(&fuse.path("data")).await;
    for read in reads() {
        (read.run)(files[0].clone()).await.unwrap();
    }
    make_cold(&files[0]).await;
    let has_ended = Cell::new(false);
    let executor = smol::LocalExecutor::new();
    fuse.slow_down(&[READ, GETATTR], TAKES);
    fuse.asked_here();
    let began = Instant::now();
    let mut running = Vec::new();
    for file in &files {
        for read in reads() {
            let (file, has_ended) = (file.clone(), &has_ended);
            running.push(executor.spawn(async move {
                (read.run)(file).await.unwrap();
                if read.waits {
                    assert!(began.elapsed() >= TAKES, "{}", read.name);
                    has_ended.set(true);
                }
            }));
        }
    }
    let mut ticked = 0;
    let ticking = async {
        while !has_ended.get() {
            ticks.recv().await.unwrap();
            ticked += usize::from(!has_ended.get());
        }
    };
    executor.run(ticking).await;
    // Some hundred on a machine that has nothing else to do.
    assert!(ticked > 0, "no tick in {TAKES:?}");
    let ending = async {
        for read in running {
            with_timeout(read).await;
        }
    };
    executor.run(ending).await;
    assert_eq!(fuse.asked_here(), [], "on the thread that polls");
    fuse.slow_down(&[], TAKES);
}

#[test]
fn remote_reads_make_no_call_where_polled() {
    let test = "remote_reads_make_no_call_where_polled";
    if !can_trace(test) {
        return;
    }
    let dir = on_a_disk();
    let trace = trace(child!(traced_server_child), dir.path(), &["-y"]);
    let Ok(mount) = std::fs::read_to_string(dir.path().join("mount")) else {
        // The child has said why.
        return;
    };
    let thread = |line: &str| line.split_whitespace().next().unwrap().to_owned();
    let begin = trace.lines().find(|line| calls::marked(line).is_some());
    let executor = thread(begin.expect("no marks"));
    let (mut number, mut elsewhere) = (0, String::new());
    for line in trace.lines() {
        let is_executor = thread(line) == executor;
        if let (true, Some(mark)) = (is_executor, calls::marked(line)) {
            number = mark;
        } else if number > 0 && is_executor {
            let name = reads()[number - 1].name;
            assert!(
                is_local(line, &mount),
                "{name}, on the thread that polls: {line}"
            );
        } else if number > 0 {
            elsewhere += line;
        }
    }
    assert_eq!(number, 0);
    // The trace does contain what the test looks for.
    assert!(elsewhere.contains("_POPULATE_READ") && elsewhere.contains(&mount));
}

/// Whether a call is certain not to reach the server.
fn is_local(line: &str, mount: &str) -> bool {
    let (_, call) = line.split_once(char::is_whitespace).unwrap();
    let Some((name, arguments)) = call.trim_start().split_once('(') else {
        // A signal.
        return true;
    };
    match name {
        // The allocator gives memory back.
        "madvise" => arguments.contains("MADV_DONTNEED"),
        // These ask about pages by their addresses.
        "mincore" | "msync" | "mlock" | "mlock2" | "process_madvise" => false,
        _ => !arguments.contains(mount),
    }
}

#[test]
fn traced_server_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    on_a_server(child!(traced_server_child), |fuse| {
        let mount = fuse.path("");
        std::fs::write(dir.join("mount"), mount.to_str().unwrap()).unwrap();
        block_on(async {
            for file in both_handles(&fuse.path("data")).await {
                for (number, read) in reads().iter().enumerate() {
                    make_cold(&file).await;
                    calls::mark(number + 1);
                    (read.run)(file.clone()).await.unwrap();
                    calls::mark(0);
                }
            }
        });
    });
}
