//! Trial threads on platforms other than Unix: started, by the standard library, to find out
//! whether a thread can be started.

use std::io;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// A thread that waits at a gate, and then ends. Dropping the value detaches the thread.
#[derive(Debug)]
pub(crate) struct BareThread(JoinHandle<()>);

impl BareThread {
    /// Starts a thread that ends when `gate` is unlocked.
    pub(crate) fn start(gate: Arc<Mutex<()>>) -> io::Result<Self> {
        let pass = move || drop(gate.lock());
        thread::Builder::new().spawn(pass).map(Self)
    }

    /// Waits until the thread has ended.
    pub(crate) fn join(self) {
        // The thread does not panic, so that there is no error.
        let _ = self.0.join();
    }
}
