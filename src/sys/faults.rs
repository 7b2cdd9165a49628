//! What the fault guard needs of the system: a handler of `SIGBUS`, and calls that the handler may
//! make.
//!
//! The kernel raises `SIGBUS` in the thread that touches a page which it cannot provide
//! ([`sigaction(2)`]). Code that runs in the handler interrupts any code of that thread. So it
//! allocates nothing, takes no lock, and reads nothing but atomics and values that are set before
//! the handler is installed.
//!
//! [`sigaction(2)`]: https://man7.org/linux/man-pages/man2/sigaction.2.html

use std::fs::File;
use std::mem::{transmute, MaybeUninit};
use std::os::unix::io::AsRawFd;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Once, OnceLock};

use super::Run;

/// Whether [`guard_faults`] does anything.
pub(crate) const CAN_GUARD_FAULTS: bool = true;

/// Takes the address that was touched; returns whether it may be touched again.
type Rescue = fn(usize) -> bool;

type PlainHandler = extern "C" fn(libc::c_int);
type InfoHandler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

static RESCUE: OnceLock<Rescue> = OnceLock::new();
/// What was to be done on the signal before the handler was installed.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
/// Whether a handler that was installed for one signal (`SA_RESETHAND`) has been called.
static IS_SPENT: AtomicBool = AtomicBool::new(false);

/// From now on calls `rescue` when a thread touches a page that the system cannot provide. Where it
/// returns `false`, what was installed for the signal before decides. Installs the handler once.
pub(crate) fn guard_faults(rescue: Rescue) {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let previous = current_action();
        // Both before the handler can run.
        let _ = RESCUE.set(rescue);
        let _ = PREVIOUS.set(previous);
        let mut action = default_action();
        action.sa_sigaction = on_signal as InfoHandler as libc::sighandler_t;
        // `SA_ONSTACK`: on the thread's signal stack if it has one, since handlers that the signal
        // is passed on to may need it: the standard library's reports stack overflows, which are a
        // `SIGBUS` on macOS.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // Whether a signal of another process interrupts system calls, and the handler itself. A
        // signal that is ignored interrupts none.
        action.sa_flags |= previous.sa_flags & (libc::SA_RESTART | libc::SA_NODEFER);
        if previous.sa_sigaction == libc::SIG_IGN {
            action.sa_flags |= libc::SA_RESTART;
        }
        // The earlier handler runs with the signals blocked that it has asked for.
        action.sa_mask = previous.sa_mask;
        install(&action);
    });
}

/// Handles `SIGBUS`.
extern "C" fn on_signal(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let errno = errno();
    // SAFETY: the kernel passes the information of the signal, which is live during the handler.
    let code = unsafe { (*info).si_code };
    let is_rescued = is_lost_page(code) && {
        // SAFETY: as above; a fault has an address.
        let addr = unsafe { (*info).si_addr() };
        RESCUE.get().is_some_and(|rescue| rescue(addr as usize))
    };
    if !is_rescued {
        pass_on(signal, info, context, code);
    }
    // SAFETY: the pointer is that of the thread's own variable.
    unsafe { errno.0.write(errno.1) };
}

/// Whether a signal says that a page cannot be provided: it lies behind the end of the file, or its
/// read has failed, or its memory has.
fn is_lost_page(code: libc::c_int) -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const MEMORY_ERROR: libc::c_int = libc::BUS_MCEERR_AR;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const MEMORY_ERROR: libc::c_int = libc::BUS_OBJERR;
    matches!(code, libc::BUS_ADRERR | libc::BUS_OBJERR) || code == MEMORY_ERROR
}

/// Whether the instruction that has raised a signal raises it again when the handler returns. A
/// signal that was sent (`kill(2)`: the code is not positive), and a report of damaged memory that
/// no instruction has touched, come once.
fn comes_again(code: libc::c_int) -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let is_report = code == libc::BUS_MCEERR_AO;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let is_report = false;
    code > 0 && !is_report
}

/// Does what would be done without this handler.
fn pass_on(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
    code: libc::c_int,
) {
    let Some(previous) = PREVIOUS.get() else {
        return;
    };
    match previous.sa_sigaction {
        // The kernel lets no process ignore a fault.
        libc::SIG_IGN if !comes_again(code) => {}
        libc::SIG_IGN | libc::SIG_DFL => act_by_default(signal, code),
        // Relaxed: nothing else depends on it.
        _ if previous.sa_flags & libc::SA_RESETHAND != 0
            && IS_SPENT.swap(true, Ordering::Relaxed) =>
        {
            act_by_default(signal, code);
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: a program has installed this as a handler with three arguments.
            let handler = unsafe { transmute::<libc::sighandler_t, InfoHandler>(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: a program has installed this as a handler with one argument.
            let handler = unsafe { transmute::<libc::sighandler_t, PlainHandler>(handler) };
            handler(signal);
        }
    }
}

/// Ends the process by the signal: when this handler has returned, if not before.
fn act_by_default(signal: libc::c_int, code: libc::c_int) {
    install(&default_action());
    if !comes_again(code) {
        // SAFETY: the call takes a number.
        unsafe { libc::raise(signal) };
    }
}

fn default_action() -> libc::sigaction {
    // SAFETY: all zeroes are a valid value: no flags, no blocked signal, and `SIG_DFL`, which is 0.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

fn current_action() -> libc::sigaction {
    let mut action = default_action();
    // SAFETY: `action` is live for the call, which changes nothing else.
    unsafe { libc::sigaction(libc::SIGBUS, null_mut(), &mut action) };
    action
}

/// It cannot fail: the signal is a valid one that may be handled.
fn install(action: &libc::sigaction) {
    // SAFETY: `action` is live for the call, and is the default or calls `on_signal`, which may run
    // in any thread at any time.
    unsafe { libc::sigaction(libc::SIGBUS, action, null_mut()) };
}

/// The place of the thread's error number, and its value.
fn errno() -> (*mut libc::c_int, libc::c_int) {
    #[cfg(target_os = "android")]
    use libc::__errno as errno_location;
    #[cfg(target_os = "linux")]
    use libc::__errno_location as errno_location;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    use libc::__error as errno_location;
    // SAFETY: the call takes nothing, and returns the address of a variable of this thread.
    let place = unsafe { errno_location() };
    // SAFETY: as above.
    (place, unsafe { *place })
}

/// Replaces pages by private ones of zeroes, which may be read and written. Returns `false` if the
/// system refuses; then the pages stay as they are. May be called in a handler.
///
/// They may be written whatever the map was made for: so no access to them can fault again, and the
/// handler cannot be called for them in a loop.
///
/// Before version 6.12, Linux unmaps what [`MAP_FIXED`] replaces, and then asks whether there is
/// memory for the new pages, which is refused where all memory is counted (`vm.overcommit_memory`
/// 2). That would leave a hole, which another mapping might fill. So the new pages are made
/// elsewhere first, and then moved ([`mremap(2)`]), which needs no more memory.
///
/// # Safety
///
/// The run lies in one live mapping. Its bytes may change.
///
/// [`MAP_FIXED`]: https://man7.org/linux/man-pages/man2/mmap.2.html
/// [`mremap(2)`]: https://man7.org/linux/man-pages/man2/mremap.2.html
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) unsafe fn replace_by_zeroes(run: Run) -> bool {
    // SAFETY: a new mapping replaces nothing.
    let Some(zeroes) = (unsafe { map_zeroes(null_mut(), run.len, 0) }) else {
        return false;
    };
    // `libc` has neither the function nor its flags for Android.
    const MAYMOVE: libc::c_int = 1;
    const FIXED: libc::c_int = 2;
    let (flags, addr, len) = (MAYMOVE | FIXED, run.addr.cast::<libc::c_void>(), run.len);
    // SAFETY: the pages that are moved were mapped above, and those that they replace belong to one
    // live mapping, by this function's contract.
    if unsafe { libc::syscall(libc::SYS_mremap, zeroes, len, len, flags, addr) } != -1 {
        return true;
    }
    // SAFETY: the pages were mapped above, and were not moved.
    unsafe { libc::munmap(zeroes, len) };
    // A filter of system calls refuses to move them. There was memory for them a moment ago.
    // SAFETY: the pages belong to one live mapping, by this function's contract, so that nothing
    // else is replaced.
    unsafe { map_zeroes(addr, len, libc::MAP_FIXED) }.is_some()
}

/// Replaces pages by private ones of zeroes, which may be read and written
/// ([`mmap(2)`], `MAP_FIXED`). Returns `false` if the system refuses. May be called in a handler.
///
/// They may be written whatever the map was made for: so no access to them can fault again, and the
/// handler cannot be called for them in a loop.
///
/// # Safety
///
/// The run lies in one live mapping. Its bytes may change.
///
/// [`mmap(2)`]: https://man.freebsd.org/cgi/man.cgi?query=mmap&sektion=2
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) unsafe fn replace_by_zeroes(run: Run) -> bool {
    // SAFETY: the pages belong to one live mapping, by this function's contract, so that nothing
    // else is replaced.
    unsafe { map_zeroes(run.addr.cast(), run.len, libc::MAP_FIXED) }.is_some()
}

/// Maps private pages of zeroes, which may be read and written ([`mmap(2)`]).
///
/// # Safety
///
/// With `MAP_FIXED`: what is mapped at the address may be replaced.
///
/// [`mmap(2)`]: https://man7.org/linux/man-pages/man2/mmap.2.html
unsafe fn map_zeroes(
    addr: *mut libc::c_void,
    len: usize,
    flags: libc::c_int,
) -> Option<*mut libc::c_void> {
    // The pages of a large run are not counted against the memory of the system until they are
    // written.
    #[cfg(not(target_os = "freebsd"))]
    const NO_RESERVE: libc::c_int = libc::MAP_NORESERVE;
    #[cfg(target_os = "freebsd")]
    const NO_RESERVE: libc::c_int = 0;
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANON | NO_RESERVE;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping replaces nothing unless it has a fixed address; then this function's
    // contract permits it.
    let mapped = unsafe { libc::mmap(addr, len, protection, flags, -1, 0) };
    (mapped != libc::MAP_FAILED).then_some(mapped)
}

/// A number for [`len_of_number`].
pub(crate) fn file_number(file: &File) -> i32 {
    file.as_raw_fd()
}

/// Returns the length of a file in bytes ([`fstat(2)`]); `None` if the system does not tell. May be
/// called in a handler, as long as the file is open.
///
/// [`fstat(2)`]: https://man7.org/linux/man-pages/man2/fstat.2.html
pub(crate) fn len_of_number(number: i32) -> Option<u64> {
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    use libc::{fstat, stat};
    #[cfg(any(target_os = "linux", target_os = "android"))]
    use libc::{fstat64 as fstat, stat64 as stat};
    let mut info = MaybeUninit::<stat>::uninit();
    // SAFETY: `info` is live for the call, which fills it.
    if unsafe { fstat(number, info.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call has succeeded.
    let info = unsafe { info.assume_init() };
    u64::try_from(info.st_size).ok()
}

/// Whether the device of a file fails to read the byte at an offset ([`pread(2)`], `EIO`). May be
/// called in a handler, as long as the file is open.
///
/// [`pread(2)`]: https://man7.org/linux/man-pages/man2/pread.2.html
pub(crate) fn is_unreadable(number: i32, offset: u64) -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    use libc::{off64_t as off_t, pread64 as pread};
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    use libc::{off_t, pread};
    let mut byte = [0_u8];
    // SAFETY: `byte` is live for the call, and has room for the byte that is read.
    let read = unsafe { pread(number, byte.as_mut_ptr().cast(), 1, offset as off_t) };
    // SAFETY: the pointer is that of the thread's own variable.
    read == -1 && unsafe { *errno().0 } == libc::EIO
}
