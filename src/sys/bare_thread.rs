//! Threads that are started to see whether they can be, on Unix.
//!
//! They are the C library's own: one of the standard library's allocates when it begins (a signal
//! stack, an arena), and ends the process if that fails; the process may run out of memory between
//! the start and that moment.

use std::io;
use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex};

/// As the standard library has it for its own threads.
const STACK: usize = 2 << 20;

/// A thread that waits at a gate, and ends. Dropped, it ends by itself.
#[derive(Debug)]
pub(crate) struct BareThread(libc::pthread_t);

impl BareThread {
    /// Starts a thread that ends when `gate` is free ([`pthread_create(3)`]).
    ///
    /// # Errors
    ///
    /// `EAGAIN` if the process may have no more threads, or has no memory for its stack.
    ///
    /// [`pthread_create(3)`]: https://man7.org/linux/man-pages/man3/pthread_create.3.html
    pub(crate) fn start(gate: Arc<Mutex<()>>) -> io::Result<Self> {
        extern "C" fn pass(gate: *mut libc::c_void) -> *mut libc::c_void {
            // SAFETY: `start` has made the pointer of an `Arc`, for this thread alone.
            let gate = unsafe { Arc::from_raw(gate.cast_const().cast::<Mutex<()>>()) };
            drop(gate.lock());
            std::ptr::null_mut()
        }
        let attributes = Attributes::new()?;
        let gate = Arc::into_raw(gate);
        let mut thread = std::mem::MaybeUninit::uninit();
        // SAFETY: both places are live for the call; the function neither panics nor needs anything
        // but its argument, which is the thread's from now on.
        let error = unsafe {
            libc::pthread_create(
                thread.as_mut_ptr(),
                &attributes.0,
                pass,
                gate.cast_mut().cast(),
            )
        };
        if error != 0 {
            // SAFETY: no thread has the pointer.
            drop(unsafe { Arc::from_raw(gate) });
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: the call has filled it in.
        Ok(Self(unsafe { thread.assume_init() }))
    }

    /// Waits until it has ended ([`pthread_join(3)`]).
    ///
    /// [`pthread_join(3)`]: https://man7.org/linux/man-pages/man3/pthread_join.3.html
    pub(crate) fn join(self) {
        let thread = ManuallyDrop::new(self);
        // SAFETY: the thread was neither joined nor detached, and neither will be done again.
        unsafe { libc::pthread_join(thread.0, std::ptr::null_mut()) };
    }
}

impl Drop for BareThread {
    fn drop(&mut self) {
        // SAFETY: as in `join`.
        unsafe { libc::pthread_detach(self.0) };
    }
}

struct Attributes(libc::pthread_attr_t);

impl Attributes {
    fn new() -> io::Result<Self> {
        let mut attributes = std::mem::MaybeUninit::uninit();
        // SAFETY: the place is live for the call.
        match unsafe { libc::pthread_attr_init(attributes.as_mut_ptr()) } {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        // SAFETY: the call has filled it in.
        let mut attributes = Self(unsafe { attributes.assume_init() });
        // SAFETY: they are live, and were initialised. A size that is refused leaves the default.
        unsafe { libc::pthread_attr_setstacksize(&mut attributes.0, STACK) };
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: they were initialised, and are not used again.
        unsafe { libc::pthread_attr_destroy(&mut self.0) };
    }
}
