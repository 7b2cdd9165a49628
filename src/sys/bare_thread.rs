//! Trial threads on Unix: started to find out whether a thread can be started.
//!
//! They are started by the C library. A thread of the standard library allocates when it begins (a
//! signal stack, an arena), and ends the process if that fails, as it may if the process runs out
//! of memory between the start and that moment.

use std::io;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::sync::{Arc, Mutex};

/// The default stack size of the standard library's threads.
const STACK: usize = 2 << 20;

/// A thread that waits at a gate, and then ends. Dropping the value detaches the thread.
#[derive(Debug)]
pub(crate) struct BareThread(libc::pthread_t);

impl BareThread {
    /// Starts a thread that ends when `gate` is unlocked ([`pthread_create(3)`]).
    ///
    /// # Errors
    ///
    /// `EAGAIN` if the process may have no more threads, or has no memory for the stack.
    ///
    /// [`pthread_create(3)`]: https://man7.org/linux/man-pages/man3/pthread_create.3.html
    pub(crate) fn start(gate: Arc<Mutex<()>>) -> io::Result<Self> {
        extern "C" fn pass(gate: *mut libc::c_void) -> *mut libc::c_void {
            // SAFETY: `start` made the pointer by `Arc::into_raw`, and passed it to this thread
            // alone.
            let gate = unsafe { Arc::from_raw(gate.cast_const().cast::<Mutex<()>>()) };
            drop(gate.lock());
            std::ptr::null_mut()
        }
        let attributes = Attributes::new()?;
        let gate = Arc::into_raw(gate);
        let mut thread = MaybeUninit::uninit();
        // SAFETY: `thread` and `attributes` are live for the call, and the latter were initialised
        // by `Attributes::new`; `pass` does not panic, and uses only its argument, which the new
        // thread owns.
        let error = unsafe {
            libc::pthread_create(
                thread.as_mut_ptr(),
                attributes.0.as_ptr(),
                pass,
                gate.cast_mut().cast(),
            )
        };
        if error != 0 {
            // SAFETY: `gate` is from `Arc::into_raw` above, and no thread was started that owns it.
            drop(unsafe { Arc::from_raw(gate) });
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: `pthread_create` has succeeded, and has written the id.
        Ok(Self(unsafe { thread.assume_init() }))
    }

    /// Waits until the thread has ended ([`pthread_join(3)`]).
    ///
    /// [`pthread_join(3)`]: https://man7.org/linux/man-pages/man3/pthread_join.3.html
    pub(crate) fn join(self) {
        let thread = ManuallyDrop::new(self);
        // SAFETY: `start` created the thread joinable; `self` was taken by value and is not
        // dropped, so that the thread is neither joined nor detached a second time.
        unsafe { libc::pthread_join(thread.0, std::ptr::null_mut()) };
    }
}

impl Drop for BareThread {
    fn drop(&mut self) {
        // SAFETY: `start` created the thread joinable, and `join` prevents this drop.
        unsafe { libc::pthread_detach(self.0) };
    }
}

/// What a thread is made with. Boxed: POSIX does not say that they may be moved once they are
/// initialised.
struct Attributes(Box<MaybeUninit<libc::pthread_attr_t>>);

impl Attributes {
    fn new() -> io::Result<Self> {
        let mut attributes = Box::new(MaybeUninit::uninit());
        // SAFETY: the place is live for the call.
        match unsafe { libc::pthread_attr_init(attributes.as_mut_ptr()) } {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        let mut attributes = Self(attributes);
        // SAFETY: they are live, and `pthread_attr_init` has succeeded. If the size is refused, the
        // default stays.
        unsafe { libc::pthread_attr_setstacksize(attributes.0.as_mut_ptr(), STACK) };
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: `new` has initialised them, and nothing uses them after this.
        unsafe { libc::pthread_attr_destroy(self.0.as_mut_ptr()) };
    }
}
