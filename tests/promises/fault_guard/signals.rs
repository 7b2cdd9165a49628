//! The guard's handler beside others: what is no page of this crate is what it was before.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::thread;

use mmap_io::MemoryMappedFile;

use super::{assert_faulted, in_a_child};
use crate::common::child::{child, child_dir, Child};
use crate::common::disk::truncate;
use crate::common::{block_on, patterned};
use crate::refused_calls::refuse_populating;

/// Maps a file with a page of which nothing is there, without the crate, and returns its address.
fn foreign_map() -> *mut u8 {
    let file = tempfile::tempfile().unwrap();
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping replaces nothing; the descriptor is open.
    let map = unsafe { libc::mmap(null_mut(), 4096, access, flags, file.as_raw_fd(), 0) };
    assert_ne!(map, libc::MAP_FAILED);
    map.cast()
}

/// Makes the guard rescue a page.
fn rescue_a_page(dir: &std::path::Path) {
    block_on(async {
        let (path, file) = patterned(dir, 10_000).await;
        let view = file.bytes(0, 10_000).unwrap();
        truncate(&path, 0);
        // SAFETY: the call takes nothing and returns the place of this thread's variable.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: as above.
        unsafe { *errno = 77 };
        let byte = view[0];
        // SAFETY: as above.
        assert_eq!((byte, unsafe { *errno }), (0, 77));
        assert!(file.as_slice(0, 1).is_err());
    });
}

fn install(handler: libc::sighandler_t, flags: libc::c_int) {
    // SAFETY: all zeroes are a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: `action` is live for the call, and the handlers of this file are fit for it.
    let installed = unsafe { libc::sigaction(libc::SIGBUS, &action, null_mut()) };
    assert_eq!(installed, 0);
}

fn raise() {
    // SAFETY: the call takes a number.
    unsafe { libc::raise(libc::SIGBUS) };
}

static CALLS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn plain(signal: libc::c_int) {
    assert_eq!(signal, libc::SIGBUS);
    CALLS.fetch_add(1, Ordering::Relaxed);
}

/// Repairs the page, so that the thread can go on.
extern "C" fn repairs(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    CALLS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the kernel passes the information of a fault.
    let addr = unsafe { (*info).si_addr() };
    let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: it replaces the page of `foreign_map`, which begins at the address.
    unsafe { libc::mmap(addr, 4096, libc::PROT_READ, flags, -1, 0) };
}

#[test]
fn earlier_handler_is_called() {
    in_a_child(child!(earlier_handler_is_called), |dir| {
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = repairs;
        install(handler as libc::sighandler_t, libc::SA_SIGINFO);
        rescue_a_page(dir);
        assert_eq!(CALLS.load(Ordering::Relaxed), 0);
        let map = foreign_map();
        // SAFETY: the address is that of a mapping; the handler makes it readable.
        assert_eq!(unsafe { map.read_volatile() }, 0);
        assert_eq!(CALLS.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn earlier_plain_handler_is_called() {
    in_a_child(child!(earlier_plain_handler_is_called), |dir| {
        let handler: extern "C" fn(libc::c_int) = plain;
        install(handler as libc::sighandler_t, 0);
        rescue_a_page(dir);
        raise();
        assert_eq!(CALLS.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn ignored_signal_stays_ignored() {
    in_a_child(child!(ignored_signal_stays_ignored), |dir| {
        install(libc::SIG_IGN, 0);
        rescue_a_page(dir);
        raise();
        rescue_a_page(dir);
    });
}

/// Returns what the system knows of a thread of this process.
fn thread_status(thread: i32, field: &str) -> String {
    let all = std::fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
    let line = all.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap().trim().to_owned()
}

/// Sends the signal to a thread that waits for a byte, and then the byte. Returns how many bytes the
/// thread gets.
fn read_beside_a_signal() -> std::io::Result<usize> {
    let (mut writer, reader) = UnixStream::pair().unwrap();
    let thread = AtomicI32::new(0);
    thread::scope(|threads| {
        let read = threads.spawn(|| {
            // SAFETY: the call takes nothing.
            thread.store(unsafe { libc::gettid() }, Ordering::Release);
            (&reader).read(&mut [0])
        });
        let thread = loop {
            match thread.load(Ordering::Acquire) {
                0 => thread::yield_now(),
                thread => break thread,
            }
        };
        while !thread_status(thread, "State:").starts_with('S') {
            thread::yield_now();
        }
        // SAFETY: the call takes no pointer.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGBUS) };
        assert_eq!(sent, 0);
        // When the signal has been taken, the wait is over.
        while thread_status(thread, "SigPnd:").contains(|digit| digit != '0') {
            thread::yield_now();
        }
        writer.write_all(&[1]).unwrap();
        read.join().unwrap()
    })
}

#[test]
fn earlier_handler_restarts_calls() {
    in_a_child(child!(earlier_handler_restarts_calls), |dir| {
        let handler: extern "C" fn(libc::c_int) = plain;
        install(handler as libc::sighandler_t, libc::SA_RESTART);
        rescue_a_page(dir);
        assert_eq!(read_beside_a_signal().unwrap(), 1);
        assert_eq!(CALLS.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn ignored_signal_interrupts_no_call() {
    in_a_child(child!(ignored_signal_interrupts_no_call), |dir| {
        install(libc::SIG_IGN, 0);
        rescue_a_page(dir);
        assert_eq!(read_beside_a_signal().unwrap(), 1);
    });
}

/// How many calls of the handler had begun at the end of the first.
static BEGUN: AtomicUsize = AtomicUsize::new(0);

extern "C" fn nests(_: libc::c_int) {
    if CALLS.fetch_add(1, Ordering::Relaxed) == 0 {
        raise();
        BEGUN.store(CALLS.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

#[test]
fn earlier_handler_is_interrupted_by_its_signal() {
    in_a_child(
        child!(earlier_handler_is_interrupted_by_its_signal),
        |dir| {
            let handler: extern "C" fn(libc::c_int) = nests;
            install(handler as libc::sighandler_t, libc::SA_NODEFER);
            rescue_a_page(dir);
            raise();
            assert_eq!(BEGUN.load(Ordering::Relaxed), 2);
        },
    );
}

/// The descriptor through which the next fault writes the file anew; negative if it does not.
static REWRITTEN: AtomicI32 = AtomicI32::new(-1);
/// The guard's handler.
static GUARD: AtomicUsize = AtomicUsize::new(0);

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// Lets another process write the file anew after the fault, and before the guard looks at it.
extern "C" fn rewrites(signal: libc::c_int, info: *mut libc::siginfo_t, more: *mut libc::c_void) {
    let file = REWRITTEN.swap(-1, Ordering::Relaxed);
    if file >= 0 {
        // SAFETY: the bytes are live for the call.
        let written = unsafe { libc::pwrite(file, [2_u8; 4096].as_ptr().cast(), 4096, 0) };
        assert_eq!(written, 4096);
    }
    let guard = GUARD.load(Ordering::Relaxed);
    // SAFETY: it is the guard's handler, which takes three arguments.
    let guard = unsafe { std::mem::transmute::<libc::sighandler_t, Handler>(guard) };
    guard(signal, info, more);
}

/// Another process empties a file, and writes it anew while a thread is about to be told that its
/// page is not there.
fn rewritten_file_has_lost_nothing(dir: &std::path::Path) {
    let path = dir.join("rewritten");
    std::fs::write(&path, [1; 4096]).unwrap();
    let other = File::options().write(true).open(&path).unwrap();
    let rewrite = || {
        other.set_len(0).unwrap();
        REWRITTEN.store(other.as_raw_fd(), Ordering::Relaxed);
    };
    let was_rewritten = || REWRITTEN.load(Ordering::Relaxed) < 0;
    block_on(async {
        let file = MemoryMappedFile::open_ro(&path).await.unwrap();
        // SAFETY: all zeroes are a valid value.
        let mut guard: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: `guard` is live for the call, which changes nothing else.
        unsafe { libc::sigaction(libc::SIGBUS, null_mut(), &mut guard) };
        GUARD.store(guard.sa_sigaction, Ordering::Relaxed);
        let handler: Handler = rewrites;
        install(handler as libc::sighandler_t, libc::SA_SIGINFO);

        let view = file.bytes(0, 4096).unwrap();
        for _ in 0..10 {
            rewrite();
            assert_eq!((black_box(&view)[0], was_rewritten()), (2, true));
            assert_eq!(file.slice(0, 1).await.unwrap(), [2]);
        }
        drop(view);
        // Stores as well.
        let writer = MemoryMappedFile::open_rw(&path).await.unwrap();
        let mut view = writer.as_slice_mut(1, 1).await.unwrap();
        rewrite();
        black_box(&mut view)[0] = 7;
        assert!(was_rewritten());
        drop(view);
        assert_eq!(std::fs::read(&path).unwrap()[..3], [2, 7, 2]);
        // A file that stays cut is found.
        let view = file.bytes(0, 4096).unwrap();
        other.set_len(0).unwrap();
        assert_eq!(black_box(&view)[0], 0);
        assert_faulted(file.slice(0, 1).await, 0);
        assert_eq!(file.refresh().await.unwrap(), 0);
    });
}

#[test]
fn file_rewritten_at_a_fault_has_lost_nothing() {
    let this = child!(file_rewritten_at_a_fault_has_lost_nothing);
    in_a_child(this, rewritten_file_has_lost_nothing);
}

#[test]
fn file_rewritten_at_a_fault_on_an_old_kernel_has_lost_nothing() {
    let this = child!(file_rewritten_at_a_fault_on_an_old_kernel_has_lost_nothing);
    in_a_child(this, |dir| {
        refuse_populating();
        rewritten_file_has_lost_nothing(dir);
    });
}

/// Runs a child that has to fail.
fn fails(this: Child) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let output = this.dir(dir.path()).command().output().unwrap();
    assert!(!output.status.success());
    output
}

/// Prepares a process to be ended, without a core file.
fn guarded(dir: &std::path::Path) {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the limits are live for the call.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) };
    rescue_a_page(dir);
}

#[test]
fn foreign_fault_in_a_child() {
    if let Some(dir) = child_dir() {
        guarded(&dir);
        // SAFETY: the address is that of a mapping; the access ends the process.
        unsafe { foreign_map().read_volatile() };
    }
}

#[test]
fn foreign_fault_under_ignore_in_a_child() {
    if let Some(dir) = child_dir() {
        install(libc::SIG_IGN, 0);
        guarded(&dir);
        // SAFETY: the address is that of a mapping; the access ends the process.
        unsafe { foreign_map().read_volatile() };
    }
}

#[test]
fn sent_signal_in_a_child() {
    if let Some(dir) = child_dir() {
        install(libc::SIG_DFL, 0);
        guarded(&dir);
        raise();
    }
}

/// Installs a handler for one signal.
fn install_once() {
    // A handler that is called forever must not keep the test waiting.
    // SAFETY: the call takes no pointer.
    unsafe { libc::alarm(20) };
    let handler: extern "C" fn(libc::c_int) = plain;
    install(handler as libc::sighandler_t, libc::SA_RESETHAND);
}

#[test]
fn foreign_fault_after_one_shot_handler_in_a_child() {
    if let Some(dir) = child_dir() {
        install_once();
        guarded(&dir);
        // SAFETY: the address is that of a mapping; the handler returns, and the access ends the
        // process.
        unsafe { foreign_map().read_volatile() };
    }
}

#[test]
fn second_signal_after_one_shot_handler_in_a_child() {
    if let Some(dir) = child_dir() {
        install_once();
        guarded(&dir);
        raise();
        assert_eq!(CALLS.load(Ordering::Relaxed), 1);
        rescue_a_page(&dir);
        raise();
    }
}

#[test]
fn unmapped_file_in_a_child() {
    if let Some(dir) = child_dir() {
        guarded(&dir);
        let path = dir.join("other");
        std::fs::write(&path, [1; 4096]).unwrap();
        let file = block_on(MemoryMappedFile::open_ro(&path)).unwrap();
        // SAFETY: it is read through only when the map has gone, to see the process end.
        let map = unsafe { file.as_ptr() };
        block_on(file.close()).unwrap();
        let flags = libc::MAP_FIXED | libc::MAP_SHARED;
        let other = tempfile::tempfile().unwrap();
        let descriptor = other.as_raw_fd();
        let at = map.cast_mut().cast();
        // SAFETY: what was mapped there is unmapped, and this thread is the only one that maps.
        let again = unsafe { libc::mmap(at, 4096, libc::PROT_READ, flags, descriptor, 0) };
        assert_eq!(again, at);
        // SAFETY: the address is that of the new mapping; the access ends the process.
        unsafe { map.read_volatile() };
    }
}

#[test]
fn what_is_not_ours_still_kills() {
    for this in [
        child!(foreign_fault_in_a_child),
        child!(foreign_fault_under_ignore_in_a_child),
        child!(sent_signal_in_a_child),
        child!(foreign_fault_after_one_shot_handler_in_a_child),
        child!(second_signal_after_one_shot_handler_in_a_child),
        child!(unmapped_file_in_a_child),
    ] {
        let test = this.test();
        let signal = fails(this).status.signal();
        assert_eq!(signal, Some(libc::SIGBUS), "{test}");
    }
}

/// Uses up the stack.
#[allow(unconditional_recursion)]
#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    recurse(depth + 1) + frame[(depth % 64) as usize]
}

#[test]
fn stack_overflow_in_a_child() {
    if let Some(dir) = child_dir() {
        guarded(&dir);
        let thread = std::thread::Builder::new().name("deep".to_owned());
        let thread = thread.stack_size(256 << 10).spawn(|| recurse(0)).unwrap();
        thread.join().unwrap();
    }
}

#[test]
fn stack_overflow_is_still_reported() {
    let output = fails(child!(stack_overflow_in_a_child));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("thread 'deep'"), "{errors}");
    assert!(errors.contains("has overflowed its stack"), "{errors}");
    assert_eq!(output.status.signal(), Some(libc::SIGABRT));
}
