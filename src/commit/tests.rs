//! Tests of group commit on a disk whose n-th flush fails: no waiter hangs, no waiter is forgotten,
//! and no waiter is told that its bytes are durable when they are not.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::*;

/// The time after which a test counts as hanging.
const WATCHDOG: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Errno(i32),
    Panic,
}

/// The record of what a disk did; it outlives the disk.
#[derive(Debug, Default)]
struct Log {
    /// The version of each byte: as written, and as durable.
    written: HashMap<u64, u32>,
    durable: HashMap<u64, u32>,
    /// The ranges that each flush had to cover; `None` for everything.
    flushes: Vec<Option<Vec<(u64, u64)>>>,
    failed: bool,
}

/// A file whose flushes can be held and failed.
struct Disk {
    commits: Commits,
    log: Arc<Mutex<Log>>,
    /// The number of the flush that fails, counted from 1, and how it fails.
    fault: Option<(usize, Fault)>,
    /// Reports that a flush has begun, and holds the flush until the test lets it go on.
    gate: Option<(Sender<()>, Mutex<Receiver<()>>)>,
    losses: Mutex<Losses>,
    /// The file cannot be flushed at present.
    is_faulted: AtomicBool,
}

impl Disk {
    fn new(fault: Option<(usize, Fault)>) -> Self {
        Self {
            commits: Commits::default(),
            log: Arc::default(),
            fault,
            gate: None,
            losses: Mutex::default(),
            is_faulted: AtomicBool::new(false),
        }
    }

    /// A disk whose flushes report that they have begun, and then wait for the test.
    fn gated(fault: Option<(usize, Fault)>) -> (Self, Receiver<()>, Sender<()>) {
        let (began, begun) = channel();
        let (go, going) = channel();
        let disk = Self {
            gate: Some((began, Mutex::new(going))),
            ..Self::new(fault)
        };
        (disk, begun, go)
    }

    /// Another process cuts off bytes that were written.
    fn lose(&self) {
        let error = io::Error::from(io::ErrorKind::UnexpectedEof);
        self.losses.lock().unwrap().add(error.into());
    }

    fn write(&self, at: u64, version: u32) {
        self.log.lock().unwrap().written.insert(at, version);
    }
}

impl Durable for Disk {
    fn commits(&self) -> &Commits {
        &self.commits
    }

    fn check(&self) -> Result<()> {
        match self.is_faulted.load(Ordering::SeqCst) {
            true => Err(MmapIoError::Faulted { offset: 0 }),
            false => Ok(()),
        }
    }

    fn last_loss(&self) -> Option<Arc<Loss>> {
        self.losses.lock().unwrap().last()
    }

    fn flush(&self, extent: Extent<'_>) -> io::Result<()> {
        let (number, covered) = {
            let mut log = self.log.lock().unwrap();
            assert!(!log.failed, "a flush was tried after one had failed");
            log.flushes.push(match extent {
                Extent::Everything => None,
                Extent::Ranges(ranges) => {
                    let ends = ranges.iter().map(|range| (range.start(), range.end()));
                    Some(ends.collect())
                }
            });
            let is_covered = |at: u64| match extent {
                Extent::Everything => true,
                Extent::Ranges(ranges) => ranges
                    .iter()
                    .any(|range| range.contains(ByteRange::between(at, at + 1))),
            };
            // A byte that is written from now on may come too late for this flush.
            let mut covered = log.written.clone();
            covered.retain(|at, _| is_covered(*at));
            (log.flushes.len(), covered)
        };
        if let Some((began, go)) = &self.gate {
            began.send(()).unwrap();
            go.lock().unwrap().recv_timeout(WATCHDOG).unwrap();
        }
        match self.fault {
            Some((fails, fault)) if fails == number => {
                self.log.lock().unwrap().failed = true;
                match fault {
                    Fault::Errno(errno) => Err(io::Error::from_raw_os_error(errno)),
                    Fault::Panic => panic!("the disk of this test panics"),
                }
            }
            _ => {
                self.log.lock().unwrap().durable.extend(covered);
                Ok(())
            }
        }
    }
}

fn byte(at: u64) -> Flush {
    Flush::of(ByteRange::between(at, at + 1))
}

/// Adds a waiter, and takes the turn if it is free.
fn start(
    disk: &Arc<Disk>,
    flush: Flush,
    everything: bool,
) -> (Arc<Flush>, Option<FlushTurn<Disk>>) {
    let flush = Arc::new(flush);
    let losses = disk.losses.lock().unwrap().count();
    disk.commits.add(flush.clone(), everything, losses);
    (flush, Commits::turn(disk))
}

fn wait(flush: &Flush) -> Result<()> {
    let deadline = Instant::now() + WATCHDOG;
    loop {
        let told = futures_lite::future::poll_once(flush.done());
        if let Some(result) = futures_lite::future::block_on(told) {
            return result;
        }
        assert!(Instant::now() < deadline, "the waiter was not told in time");
        std::thread::yield_now();
    }
}

#[track_caller]
fn assert_failed(result: Result<()>, fault: Fault) {
    let error = result.unwrap_err();
    assert!(matches!(error, MmapIoError::FlushFailed(_)), "{error:?}");
    match fault {
        Fault::Errno(errno) => assert_eq!(error.raw_os_error(), Some(errno)),
        Fault::Panic => assert_eq!(error.io_kind(), Some(io::ErrorKind::Other)),
    }
}

const FAULTS: [Fault; 3] = [
    Fault::Errno(libc::EIO),
    Fault::Errno(libc::ENOSPC),
    Fault::Panic,
];

/// Many threads write and wait, usually for their own bytes and sometimes for everything.
fn many_waiters(fault: Option<(usize, Fault)>) {
    const THREADS: u64 = 4;
    const WRITES: u32 = 30;
    let disk = Arc::new(Disk::new(fault));
    let (told, tell) = channel();
    for thread in 0..THREADS {
        let (disk, told) = (disk.clone(), told.clone());
        std::thread::spawn(move || {
            let mut failed = false;
            for version in 1..=WRITES {
                let at = thread * 100 + u64::from(version) % 7;
                disk.write(at, version);
                let (flush, turn) = match version % 5 {
                    0 => start(&disk, Flush::of_everything(), false),
                    1 => start(&disk, byte(at), true),
                    _ => start(&disk, byte(at), false),
                };
                match turn {
                    Some(turn) if version % 2 == 0 => turn.run(1),
                    Some(turn) => turn.spawn(),
                    None => {}
                }
                match wait(&flush) {
                    Ok(()) => {
                        assert!(!failed, "a durable write succeeded after one had failed");
                        let durable = disk.log.lock().unwrap().durable.get(&at).copied();
                        assert!(
                            durable >= Some(version),
                            "version {version} is acknowledged, but {durable:?} is durable"
                        );
                    }
                    error => {
                        failed = true;
                        assert!(
                            disk.log.lock().unwrap().failed,
                            "a waiter got an error, but no flush has failed"
                        );
                        assert_failed(error, fault.unwrap().1);
                    }
                }
            }
            told.send(failed).unwrap();
        });
    }
    for _ in 0..THREADS {
        let failed = tell
            .recv_timeout(WATCHDOG)
            .expect("a thread of waiters hangs or has panicked");
        // A thread sees the failure only if the n-th flush was reached.
        assert!(!failed || disk.log.lock().unwrap().failed);
    }
    let log = disk.log.lock().unwrap();
    assert_eq!(disk.commits.failure().is_some(), log.failed);
    assert_eq!(
        disk.commits.flushes.load(Ordering::Relaxed),
        log.flushes.len() as u64
    );
    let served = disk.commits.served.load(Ordering::Relaxed);
    assert_eq!(served, THREADS * u64::from(WRITES));
}

#[test]
fn a_failed_flush_is_told_to_every_waiter() {
    many_waiters(None);
    for fault in FAULTS {
        for fails in (1..20).chain([25, 35, 50, 80]) {
            many_waiters(Some((fails, fault)));
        }
    }
}

#[test]
fn waiters_of_one_flush_share_its_result() {
    for fault in FAULTS {
        for fails in 1..=4 {
            let (disk, begun, go) = Disk::gated(Some((fails, fault)));
            let disk = Arc::new(disk);
            let mut groups = Vec::new();
            let (first, turn) = start(&disk, byte(0), false);
            turn.unwrap().spawn();
            groups.push(vec![first]);
            // Each group arrives while the previous group is being flushed.
            for group in 1..5_u64 {
                if group as usize <= fails {
                    begun.recv_timeout(WATCHDOG).unwrap();
                }
                let mut waiters = Vec::new();
                for at in 0..10 {
                    disk.write(group * 10 + at, 1);
                    let (waiter, turn) = start(&disk, byte(group * 10 + at), false);
                    waiters.push(waiter);
                    if let Some(turn) = turn {
                        assert!(
                            group as usize > fails,
                            "the turn is free while a flush is running"
                        );
                        turn.spawn();
                    }
                }
                groups.push(waiters);
                if group as usize <= fails {
                    go.send(()).unwrap();
                }
            }
            for (group, waiters) in groups.iter().enumerate() {
                for waiter in waiters {
                    match group + 1 < fails {
                        true => wait(waiter).unwrap(),
                        false => assert_failed(wait(waiter), fault),
                    }
                }
            }
            let log = disk.log.lock().unwrap();
            assert_eq!(log.flushes.len(), fails);
            let shared = log.flushes.iter().skip(1).flatten();
            assert!(shared.into_iter().all(|ranges| ranges.len() == 10));
        }
    }
}

#[test]
fn a_late_waiter_is_served_by_the_next_flush() {
    let (disk, begun, go) = Disk::gated(None);
    let disk = Arc::new(disk);
    disk.write(0, 1);
    let (early, turn) = start(&disk, byte(0), false);
    turn.unwrap().spawn();
    begun.recv_timeout(WATCHDOG).unwrap();
    // Write the same byte again: the running flush has passed it.
    disk.write(0, 2);
    let (late, turn) = start(&disk, byte(0), false);
    assert!(turn.is_none());
    go.send(()).unwrap();
    wait(&early).unwrap();
    begun.recv_timeout(WATCHDOG).unwrap();
    assert_eq!(disk.log.lock().unwrap().durable[&0], 1);
    let is_told = futures_lite::future::poll_once(late.done());
    assert!(futures_lite::future::block_on(is_told).is_none());
    go.send(()).unwrap();
    wait(&late).unwrap();
    assert_eq!(disk.log.lock().unwrap().durable[&0], 2);
}

#[track_caller]
fn assert_lost(flush: &Flush) {
    let told = wait(flush).unwrap_err();
    assert_eq!(told.io_kind(), Some(io::ErrorKind::UnexpectedEof));
}

/// A loss is told until a future has taken the error: not one that was dropped before the flush, nor
/// one that was dropped after it, nor that of a flush for which no future waits.
#[test]
fn loss_is_told_until_a_future_has_taken_it() {
    let disk = Arc::new(Disk::new(None));
    disk.lose();
    for dropped_before in [true, false] {
        let (flush, turn) = start(&disk, byte(0), false);
        let started = Some(Started::new(flush)).filter(|_| !dropped_before);
        turn.unwrap().run(1);
        drop(started);
    }
    let (_, turn) = start(&disk, byte(0).unheeded(), false);
    turn.unwrap().run(1);
    let (heeded, turn) = start(&disk, byte(0), false);
    turn.unwrap().run(1);
    assert_lost(&heeded);
    let (later, turn) = start(&disk, byte(0), false);
    turn.unwrap().run(1);
    wait(&later).unwrap();
}

/// While one flush runs, the bytes are lost for whose flush another waiter waits. The waiter of the
/// running flush takes the error first.
#[test]
fn loss_is_told_to_waiters_of_next_flush() {
    let (disk, begun, go) = Disk::gated(None);
    let disk = Arc::new(disk);
    let (first, turn) = start(&disk, Flush::of_everything(), false);
    turn.unwrap().spawn();
    begun.recv_timeout(WATCHDOG).unwrap();
    let (second, _) = start(&disk, byte(0), false);
    disk.lose();
    go.send(()).unwrap();
    assert_lost(&first);
    begun.recv_timeout(WATCHDOG).unwrap();
    let (third, _) = start(&disk, byte(0), false);
    go.send(()).unwrap();
    assert_lost(&second);
    begun.recv_timeout(WATCHDOG).unwrap();
    go.send(()).unwrap();
    wait(&third).unwrap();
}

/// Pages are lost while a flush runs; it may have missed what was stored to them.
#[test]
fn flush_during_which_pages_are_lost_fails() {
    for loses in [false, true] {
        let (disk, begun, go) = Disk::gated(None);
        let disk = Arc::new(disk);
        let (flush, turn) = start(&disk, byte(0), false);
        turn.unwrap().spawn();
        begun.recv_timeout(WATCHDOG).unwrap();
        disk.is_faulted.store(true, Ordering::SeqCst);
        if loses {
            disk.lose();
        }
        go.send(()).unwrap();
        let faulted = wait(&flush);
        assert!(
            matches!(faulted, Err(MmapIoError::Faulted { .. })),
            "{faulted:?}"
        );
        // That does not stick, and a loss is told when the file can be flushed again.
        disk.is_faulted.store(false, Ordering::SeqCst);
        let (later, turn) = start(&disk, byte(0), false);
        turn.unwrap().spawn();
        begun.recv_timeout(WATCHDOG).unwrap();
        go.send(()).unwrap();
        match loses {
            true => assert_lost(&later),
            false => wait(&later).unwrap(),
        }
    }
}

/// A future takes the error of one loss when there is a second one already.
#[test]
fn second_loss_is_told_after_the_first() {
    let disk = Arc::new(Disk::new(None));
    disk.lose();
    let (first, turn) = start(&disk, byte(0), false);
    turn.unwrap().run(1);
    disk.lose();
    assert_lost(&first);
    let (second, turn) = start(&disk, byte(0), false);
    turn.unwrap().run(1);
    assert_lost(&second);
}

#[test]
fn a_waiting_flush_keeps_the_file_open() {
    let (disk, begun, go) = Disk::gated(None);
    let disk = Arc::new(disk);
    let log = disk.log.clone();
    let (_, turn) = start(&disk, byte(0), false);
    turn.unwrap().spawn();
    begun.recv_timeout(WATCHDOG).unwrap();
    disk.write(7, 1);
    let (_, turn) = start(&disk, byte(7), false);
    assert!(turn.is_none());
    drop(disk);
    go.send(()).unwrap();
    begun
        .recv_timeout(WATCHDOG)
        .expect("the second flush never began");
    go.send(()).unwrap();
    // The disk, and its end of the channel, are dropped when both flushes have ended.
    assert!(begun.recv_timeout(WATCHDOG).is_err());
    assert_eq!(log.lock().unwrap().durable[&7], 1);
}

#[test]
fn the_turn_drops_the_file_before_it_wakes() {
    for _ in 0..200 {
        let disk = Arc::new(Disk::new(None));
        let (flush, turn) = start(&disk, byte(0), false);
        turn.unwrap().spawn();
        wait(&flush).unwrap();
        // This must be the only reference that is left.
        assert!(Arc::into_inner(disk).is_some());
    }
}

#[test]
fn a_refused_turn_fails_only_its_own_waiters() {
    let disk = Arc::new(Disk::new(None));
    disk.write(1, 1);
    let (refused, also) = (
        Arc::new(Flush::of_everything()),
        Arc::new(Flush::of_everything()),
    );
    disk.commits.add(refused.clone(), false, 0);
    disk.commits.add(also.clone(), false, 0);
    let turn = Commits::turn(&disk).unwrap();
    turn.refuse(&io::Error::from_raw_os_error(11).into());
    for flush in [refused, also] {
        let told = futures_lite::future::block_on(flush.done());
        assert_eq!(told.unwrap_err().raw_os_error(), Some(11));
    }
    // The error does not stick, and the next waiter gets a turn.
    assert!(disk.commits.failure().is_none());
    let flush = Arc::new(Flush::of_everything());
    disk.commits.add(flush.clone(), false, 0);
    Commits::turn(&disk).unwrap().run(1);
    futures_lite::future::block_on(flush.done()).unwrap();
    assert_eq!(disk.log.lock().unwrap().durable[&1], 1);
}
