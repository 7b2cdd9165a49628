//! Stress tests: several threads take leases of all kinds at the same time.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU8};
use std::sync::Mutex;

use super::*;

#[test]
fn threads_never_hold_conflicting_leases() {
    const BYTES: u64 = 200_000;
    let host = Host::new();
    let oracle: Arc<Mutex<Vec<(u64, Kind, ByteRange)>>> = Arc::default();
    let memory: Arc<Vec<AtomicU8>> = Arc::new((0..BYTES).map(|_| AtomicU8::new(0)).collect());
    let threads: Vec<_> = (0..4_u64)
        .map(|thread| {
            let (host, oracle, memory) = (host.clone(), oracle.clone(), memory.clone());
            thread::spawn(move || {
                let mut seed = 0x9e37_79b9_7f4a_7c15 ^ (thread + 1);
                let mut random = move |below: u64| {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    seed % below
                };
                for turn in 0..4_000_u64 {
                    let start = random(BYTES - 1);
                    let wanted = range(start, (start + 1 + random(3_000)).min(BYTES));
                    let way = WAYS[random(WAYS.len() as u64) as usize];
                    let Some(lease) = way.take(&host, wanted) else {
                        continue;
                    };
                    let id = thread << 32 | turn;
                    {
                        let mut oracle = oracle.lock().unwrap();
                        for (_, kind, other) in oracle.iter() {
                            let clash = kind.excludes(way.kind()) && other.overlaps(wanted);
                            assert!(
                                !clash,
                                "{way:?} {wanted:?} was granted beside {kind:?} {other:?}"
                            );
                        }
                        oracle.push((id, way.kind(), wanted));
                    }
                    let bytes = &memory[wanted.start() as usize..wanted.end() as usize];
                    let looks_like = |value| {
                        let mut bytes = bytes.iter().step_by(101);
                        bytes.all(|byte| byte.load(Ordering::Relaxed) == value)
                    };
                    match way.kind() {
                        Kind::Exclusive => {
                            let stamp = id as u8;
                            for byte in bytes {
                                byte.store(stamp, Ordering::Relaxed);
                            }
                            thread::yield_now();
                            assert!(looks_like(stamp));
                        }
                        _ => {
                            let before: Vec<u8> = bytes
                                .iter()
                                .map(|byte| byte.load(Ordering::Relaxed))
                                .collect();
                            thread::yield_now();
                            let same = before
                                .iter()
                                .zip(bytes)
                                .all(|(old, byte)| *old == byte.load(Ordering::Relaxed));
                            assert!(same);
                        }
                    }
                    oracle.lock().unwrap().retain(|(other, ..)| *other != id);
                    drop(lease);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(host.leases.count(), 0);
}

/// Plain memory, so that a sanitizer reports accesses that the leases do not order.
struct Cell4K(UnsafeCell<[u8; 4096]>);

// SAFETY: the tests access it under leases only; whether these suffice is what they test.
unsafe impl Sync for Cell4K {}

/// Has two threads read plain memory under shared leases, and this thread write it under the
/// exclusive leases that `exclusively` takes, until the readers are done.
fn check_plain_accesses(
    host: &Arc<Host>,
    mut exclusively: impl FnMut(ByteRange, &mut dyn FnMut()),
) {
    let memory = Arc::new(Cell4K(UnsafeCell::new([0; 4096])));
    let all = range(0, 4096);
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (host, memory) = (host.clone(), memory.clone());
            thread::spawn(move || {
                let mut reads = 0_u32;
                while reads < 5_000 {
                    let Ok(lease) = Lease::try_shared(host.clone(), Hold::Slot, all) else {
                        std::hint::spin_loop();
                        continue;
                    };
                    // SAFETY: under a shared lease.
                    let bytes = unsafe { &*memory.0.get() };
                    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
                    drop(lease);
                    reads += 1;
                }
            })
        })
        .collect();
    let mut writes = 0_u8;
    while !readers.iter().all(|reader| reader.is_finished()) {
        exclusively(all, &mut || {
            writes = writes.wrapping_add(1);
            // SAFETY: under an exclusive lease.
            unsafe { *memory.0.get() = [writes; 4096] };
        });
    }
    for reader in readers {
        reader.join().unwrap();
    }
}

#[test]
fn batches_and_reads_exclude_each_other() {
    let host = Host::new();
    check_plain_accesses(&host, |all, write| {
        let ranges = [all];
        let mut wants = [Want {
            ranges: &ranges,
            gives_up: false,
            granted: false,
        }];
        let batch = host.leases.begin_batch(&mut wants).unwrap();
        if wants[0].granted {
            write();
        }
        drop(batch);
    });
}

#[test]
fn leases_exclude_each_other_during_delisting() {
    let host = Host::new();
    let stop = Arc::new(AtomicBool::new(false));
    let delister = {
        let stop = stop.clone();
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                BLOCKS.delist::<ProcessFences>();
            }
        })
    };
    check_plain_accesses(&host, |all, write| {
        if let Some(lease) = exclusive(&host, all) {
            write();
            drop(lease);
        }
    });
    stop.store(true, Ordering::Relaxed);
    delister.join().unwrap();
}
