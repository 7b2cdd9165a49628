//! Threads that are started to see whether they can be, where the standard library's will do.

use std::io;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// A thread that waits at a gate, and ends. Dropped, it ends by itself.
#[derive(Debug)]
pub(crate) struct BareThread(JoinHandle<()>);

impl BareThread {
    /// Starts a thread that ends when `gate` is free.
    pub(crate) fn start(gate: Arc<Mutex<()>>) -> io::Result<Self> {
        let pass = move || drop(gate.lock());
        thread::Builder::new().spawn(pass).map(Self)
    }

    /// Waits until it has ended.
    pub(crate) fn join(self) {
        // It does not panic.
        let _ = self.0.join();
    }
}
