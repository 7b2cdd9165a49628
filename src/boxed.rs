//! A future in a box that can be shared between threads, as the bodies of HTTP messages must be.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

/// A future in a box. It is `Sync` although its future may not be: a shared reference to it can do
/// nothing, and the mutex, which is never locked, lets the compiler know.
pub(crate) struct Boxed<T>(Mutex<Pin<Box<dyn Future<Output = T> + Send>>>);

impl<T> Boxed<T> {
    pub(crate) fn new(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self(Mutex::new(Box::pin(future)))
    }

    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<T> {
        let future = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        future.as_mut().poll(context)
    }
}

impl<T> fmt::Debug for Boxed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Boxed").finish_non_exhaustive()
    }
}
