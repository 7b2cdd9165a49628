//! Shields our locks, and the locks of the crates that we use, from foreign wakers.
//!
//! A waker runs code of the executor. It may panic, and it may drop or poll other futures of the
//! same file. `event-listener` calls and drops wakers under a lock of its own: after a panic the
//! listeners behind the waker sleep forever, and a waker that uses the same event again deadlocks.
//! The tasks of the pool abort the process when a waker panics.
//!
//! So we poll the futures of these crates with a waker of our own ([`Shielded`]). Inside a
//! [`scope`], the `wake` and the drop of our waker only note the real waker. When the outermost
//! scope of the thread ends, the real wakers are woken or dropped one by one, each
//! [contained](contain). Outside a scope this happens at once.
//!
//! A scope is opened only where the thread holds no lock that a waker could need, and no code in it
//! waits for what a waker may have to bring about.

use std::cell::RefCell;
use std::future::{poll_fn, Future};
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use event_listener::Listener;

use crate::completion::contain;
use crate::sys;

thread_local! {
    /// The wakers to wake or drop when the outermost scope of this thread ends; `None` outside a
    /// scope.
    ///
    /// Never destroyed, so that a scope can be opened while the other thread-local values are being
    /// destroyed. The list is empty when the thread ends.
    static NOTED: RefCell<Option<ManuallyDrop<Vec<Noted>>>> = const { RefCell::new(None) };
}

/// A wake or a drop that was requested inside a scope.
enum Noted {
    Wake(Arc<Shield>),
    Drop(Waker),
}

impl Noted {
    fn carry_out(self) {
        match self {
            Self::Wake(shield) => shield.wake_real(),
            Self::Drop(waker) => drop(contain(|| drop(waker))),
        }
    }

    /// Leaves the wake or drop for the end of the scope; outside a scope, carries it out at once.
    fn note(self) {
        let at_once = NOTED.with(|noted| match &mut *noted.borrow_mut() {
            Some(noted) => {
                noted.push(self);
                None
            }
            None => Some(self),
        });
        if let Some(noted) = at_once {
            noted.carry_out();
        }
    }
}

/// Returns `Pending` once, after `wake` has seen to it that the waker is woken.
pub(crate) async fn yield_by(wake: impl FnOnce(&Waker)) {
    let mut wake = Some(wake);
    poll_fn(|context| match wake.take() {
        Some(wake) => {
            wake(context.waker());
            Poll::Pending
        }
        None => Poll::Ready(()),
    })
    .await;
}

/// Lets the task be polled again at once.
pub(crate) async fn yield_now() {
    yield_by(|waker| {
        contain(|| waker.wake_by_ref());
    })
    .await;
}

/// Runs `code`. The real wakers that it wakes or drops through ours are woken or dropped after it.
pub(crate) fn scope<T>(code: impl FnOnce() -> T) -> T {
    let _scope = Scope::open();
    code()
}

/// An open scope, and whether it is the outermost one.
struct Scope(bool);

impl Scope {
    fn open() -> Self {
        Self(NOTED.with(|noted| {
            let mut noted = noted.borrow_mut();
            let is_outermost = noted.is_none();
            noted.get_or_insert_with(ManuallyDrop::default);
            is_outermost
        }))
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        if !self.0 {
            return;
        }
        // Close the scope first: a waker may open a scope of its own.
        let noted = NOTED.with(|noted| noted.borrow_mut().take());
        let noted = noted.map(ManuallyDrop::into_inner);
        noted.into_iter().flatten().for_each(Noted::carry_out);
    }
}

/// Our waker around a real waker.
struct Shield {
    /// Present until the drop.
    real: Option<Waker>,
}

impl Shield {
    fn is_for(&self, waker: &Waker) -> bool {
        self.real.as_ref().is_some_and(|real| real.will_wake(waker))
    }

    fn wake_real(&self) {
        if let Some(real) = &self.real {
            contain(|| real.wake_by_ref());
        }
    }
}

impl Wake for Shield {
    fn wake(self: Arc<Self>) {
        Noted::Wake(self).note();
    }
}

impl Drop for Shield {
    fn drop(&mut self) {
        if let Some(real) = self.real.take() {
            Noted::Drop(real).note();
        }
    }
}

/// A future of another crate that is polled with our waker, and polled and dropped in a scope.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub(crate) struct Shielded<F> {
    /// Present until the drop.
    future: Option<F>,
    waker: Option<(Arc<Shield>, Waker)>,
}

impl<F> Shielded<F> {
    pub(crate) fn new(future: F) -> Self {
        Self {
            future: Some(future),
            waker: None,
        }
    }
}

impl<F: Future + Unpin> Future for Shielded<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Self { future, waker } = &mut *self;
        let (_, ours) = match waker {
            Some((shield, _)) if shield.is_for(context.waker()) => waker.as_ref(),
            waker => {
                let real = Some(context.waker().clone());
                let shield = Arc::new(Shield { real });
                let ours = Waker::from(shield.clone());
                *waker = Some((shield, ours));
                waker.as_ref()
            }
        }
        .expect("set above");
        let future = future.as_mut().expect("present until the drop");
        scope(|| Pin::new(future).poll(&mut Context::from_waker(ours)))
    }
}

impl<F> Drop for Shielded<F> {
    fn drop(&mut self) {
        if sys::is_forked() {
            // In a forked child the lock of the listeners may never be free, and no task waits.
            std::mem::forget(self.future.take());
            return;
        }
        scope(|| self.future = None);
    }
}

impl std::fmt::Debug for Shield {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shield").finish_non_exhaustive()
    }
}

/// An event for tasks and threads; a notification reaches all listeners at once.
#[derive(Debug)]
pub(crate) struct Event(event_listener::Event);

/// Resolves when the event is notified after [`Event::listen`].
pub(crate) type EventListener = Shielded<event_listener::EventListener>;

impl Event {
    pub(crate) const fn new() -> Self {
        Self(event_listener::Event::new())
    }

    pub(crate) fn listen(&self) -> EventListener {
        Shielded::new(self.0.listen())
    }

    /// Notifies all listeners. The caller holds no lock.
    pub(crate) fn notify(&self) {
        scope(|| self.0.notify(usize::MAX));
    }
}

impl EventListener {
    /// Blocks the thread until the event is notified, or until `deadline`.
    pub(crate) fn wait(mut self, deadline: Option<Instant>) {
        // Not in a scope: wakers noted in it would wait, too. No waker is involved here.
        match (self.future.take(), deadline) {
            (Some(listener), Some(deadline)) => drop(listener.wait_deadline(deadline)),
            (Some(listener), None) => listener.wait(),
            (None, _) => unreachable!("present until the drop"),
        }
    }
}

#[cfg(all(test, not(mmap_io_loom)))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::Mutex;

    use futures_lite::future::block_on;

    use super::*;

    /// A waker that counts its wake-ups and runs a closure at the first one.
    struct Does<F>(AtomicUsize, Mutex<Option<F>>);

    impl<F: FnOnce() + Send + 'static> Does<F> {
        fn new(what: F) -> Arc<Self> {
            Arc::new(Self(AtomicUsize::new(0), Mutex::new(Some(what))))
        }
    }

    impl<F: FnOnce() + Send + 'static> Wake for Does<F> {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
            let what = self.1.lock().unwrap().take();
            if let Some(what) = what {
                what();
            }
        }
    }

    fn poll(listener: &mut EventListener, waker: &Waker) -> bool {
        Pin::new(listener)
            .poll(&mut Context::from_waker(waker))
            .is_ready()
    }

    #[test]
    fn a_panicking_waker_spares_other_wakers() {
        for bad_at in 0..3 {
            let event = Event::new();
            let good = Does::new(|| ());
            let mut listeners = [(); 3].map(|()| event.listen());
            for (at, listener) in listeners.iter_mut().enumerate() {
                let waker = match at == bad_at {
                    true => Does::new(|| panic!("this waker panics")).into(),
                    false => Waker::from(good.clone()),
                };
                assert!(!poll(listener, &waker));
            }
            event.notify();
            assert_eq!(good.0.load(Ordering::SeqCst), 2);
            listeners.into_iter().for_each(block_on);
            // The event works as before.
            let listener = event.listen();
            event.notify();
            block_on(listener);
        }
    }

    #[test]
    fn a_waker_may_use_its_event_again() {
        let event = Arc::new(Event::new());
        let mut other = event.listen();
        let good = Does::new(|| ());
        assert!(!poll(&mut other, &good.clone().into()));
        let again = event.clone();
        let waker = Does::new(move || {
            // The other listener is notified by now, although its waker is called after this one.
            assert!(poll(&mut other, &good.clone().into()));
            drop(other);
            let mut new = again.listen();
            let newest = Does::new(|| ());
            assert!(!poll(&mut new, &newest.clone().into()));
            again.notify();
            assert_eq!(newest.0.load(Ordering::SeqCst), 1);
        });
        let mut first = event.listen();
        assert!(!poll(&mut first, &waker.clone().into()));
        event.notify();
        assert_eq!(waker.0.load(Ordering::SeqCst), 1);
        assert!(waker.1.lock().unwrap().is_none());
        block_on(first);
    }

    #[cfg(unix)]
    #[test]
    fn forked_child_drops_listener_while_list_is_locked() {
        let event = Event::new();
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut dropped = Some(event.listen());
        // The event calls this waker, which is not shielded, while it has its list locked.
        let waker = Does::new(move || {
            let is_dropped = sys::in_fork(|| {
                dropped = None;
                true
            });
            sender.send((is_dropped, dropped)).unwrap();
        });
        let mut bare = event.0.listen();
        let waker = Waker::from(waker);
        assert!(Pin::new(&mut bare)
            .poll(&mut Context::from_waker(&waker))
            .is_pending());
        event.0.notify(usize::MAX);
        assert!(receiver.recv().unwrap().0);
    }

    #[test]
    fn wakers_run_when_the_outermost_scope_ends() {
        let event = Event::new();
        let waker = Does::new(|| ());
        let mut listener = event.listen();
        assert!(!poll(&mut listener, &waker.clone().into()));
        scope(|| {
            event.notify();
            assert_eq!(waker.0.load(Ordering::SeqCst), 0);
        });
        assert_eq!(waker.0.load(Ordering::SeqCst), 1);
        // The same when a panic unwinds through the scope.
        let mut listener = event.listen();
        assert!(!poll(&mut listener, &waker.clone().into()));
        contain(|| {
            scope(|| {
                event.notify();
                panic!("inside a scope");
            })
        });
        assert_eq!(waker.0.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_replaced_waker_is_dropped_not_woken() {
        let event = Event::new();
        let [old, new] = [(); 2].map(|()| Does::new(|| ()));
        let mut listener = event.listen();
        assert!(!poll(&mut listener, &old.clone().into()));
        assert!(!poll(&mut listener, &new.clone().into()));
        assert_eq!(Arc::strong_count(&old), 1);
        event.notify();
        assert_eq!(old.0.load(Ordering::SeqCst), 0);
        assert_eq!(new.0.load(Ordering::SeqCst), 1);
        drop(listener);
        assert_eq!(Arc::strong_count(&new), 1);
    }
}
