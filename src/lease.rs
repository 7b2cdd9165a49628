//! Leases: the right to look at, change, or share by atomics a range of one file.
//!
//! This module is the façade over the protocol in [`table`]. It adds what the protocol leaves out:
//! the calling thread's block of slots, waiting, waking, and leases that release themselves when
//! they are dropped.

mod announced;
mod companions;
mod copy;
mod fence;
mod intervals;
mod kinds;
mod slots;
mod state;
mod table;
mod thread_block;
mod waiting;

#[cfg(all(test, mmap_io_loom))]
mod loom_models;
#[cfg(all(test, not(mmap_io_loom)))]
mod tests;

use std::future::Future;
use std::io;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use self::fence::ProcessFences;
use self::kinds::{Term, Wake};
use self::table::Table;
use self::thread_block::{thread_block, BLOCKS, THREAD_BLOCK};
use self::waiting::Waiter;
use crate::error::Result;
use crate::range::ByteRange;
use crate::sys;
use crate::wakers::{scope, yield_now};

pub(crate) use self::companions::{Companions, Under};
pub(crate) use self::copy::CopyLease;
pub(crate) use self::intervals::{Intervals, Key};
pub(crate) use self::kinds::{Asks, Conflict, Hold, Kind, Token, Want};
pub(crate) use self::table::BRIEF;

/// The longest time for which a blocked write keeps new readers out.
const GATE: Duration = Duration::from_millis(1);
/// How long readers may pass between two such gates.
const GATE_PAUSE: Duration = Duration::from_millis(100);

/// How often a reader tries before it parks: a small write ends after about a microsecond.
const SPINS: u32 = 64;

/// The owner of a file's leases, which is told when a watched lease ends.
pub(crate) trait LeaseHost {
    fn leases(&self) -> &Leases;

    /// Returns the current length of the file in bytes.
    fn len(&self) -> u64;

    /// Tells the host that a lease on the range `gone` has ended, and that it blocked a queued
    /// operation.
    fn restart(&self, gone: ByteRange);

    /// Tells the host that a caller has the companion of a lease from now on: that is a use of this
    /// host.
    fn viewed(&self) {}

    /// Returns the file that shows through the bytes of this host, if there is one. Every lease of
    /// the host then comes with one on that file; see [`companions`].
    fn under(&self) -> Option<Under<'_>> {
        None
    }
}

/// The leases of one file.
#[derive(Debug)]
pub(crate) struct Leases {
    table: Table<ProcessFences>,
}

impl Leases {
    /// Creates a table without leases. The first call in a process registers its memory barriers,
    /// which may take milliseconds while other threads run; without this call the first read or
    /// write would pay for it.
    pub(crate) fn new() -> Self {
        ProcessFences::can_be_light();
        // An id is never used again, so that a slot that a scan reads late cannot name another
        // file.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            table: Table::new(NEXT.fetch_add(1, Ordering::Relaxed), &BLOCKS),
        }
    }

    /// Exclusive leases for a batch of writes; see [`Table::begin_batch`].
    pub(crate) fn begin_batch(&self, wants: &mut [Want<'_>]) -> io::Result<Batch<'_>> {
        let batch = Batch(self);
        self.table.begin_batch(wants)?;
        Ok(batch)
    }

    /// Exclusive leases for one write, if they can be taken without a fence; see
    /// [`Table::try_begin_unfenced`].
    pub(crate) fn try_begin_unfenced(
        &self,
        ranges: &[ByteRange],
        around: ByteRange,
    ) -> Option<Batch<'_>> {
        let is_begun = self.table.try_begin_unfenced(ranges, around);
        is_begun.then(|| Batch(self))
    }

    /// Keeps new readers out of `ranges` for [`GATE`], unless the previous gate was raised less
    /// than [`GATE_PAUSE`] ago. Returns the time at which the gate was raised.
    pub(crate) fn raise_gate(
        &self,
        ranges: &[ByteRange],
        last: Option<Instant>,
    ) -> Option<Instant> {
        let now = Instant::now();
        if last.is_some_and(|last| now < last + GATE_PAUSE) {
            return None;
        }
        self.table.raise_gate(ranges, now + GATE);
        Some(now)
    }

    /// Returns the result of `attempt`. If the attempt is refused by a gate whose time is over,
    /// lowers the gate and tries again.
    fn past_gates<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, Conflict>,
    ) -> Result<T, Conflict> {
        if sys::is_forked() {
            // In a forked child every obstacle may last forever, the table's lock included.
            return Err(Conflict::Held);
        }
        loop {
            match attempt() {
                Err(Conflict::Gate(until)) if until <= Instant::now() => {
                    self.table.lower_gate(until);
                }
                result => return result,
            }
        }
    }

    /// Resolves when a lease that conflicts with readers of `range` has ended. Listens from this
    /// call on: a caller that tries again after it, and is refused, misses no end.
    pub(crate) fn listen(&self, range: ByteRange) -> impl Future<Output = ()> + Send + '_ {
        self.table.listen(range)
    }

    /// Returns the number of live leases, without those of the batch of writes being applied.
    pub(crate) fn count(&self) -> usize {
        self.table.count()
    }

    /// Whether there is a lease that its holder has; see [`Table::has_lasting`].
    pub(crate) fn has_lasting(&self) -> bool {
        self.table.has_lasting()
    }

    /// Returns the number of [`count`](Self::count) after a heavy fence; see
    /// [`Table::count_after_fence`].
    pub(crate) fn count_after_fence(&self) -> io::Result<usize> {
        self.table.count_after_fence()
    }

    /// Returns whether there is a live view through which its holder may write.
    pub(crate) fn has_writing_views(&self) -> bool {
        self.table.has_writing_views()
    }

    /// Notes a cut by another process in the leases to write; see [`Table::note_cut`].
    pub(crate) fn note_cut(&self, gone: ByteRange) -> bool {
        self.table.note_cut(gone)
    }

    /// Returns the ranges of the leases that share a byte with `range`; see [`Table::leased`].
    pub(crate) fn leased(&self, range: ByteRange) -> Vec<ByteRange> {
        self.table.leased(range)
    }

    /// Wakes the readers that wait for a byte of `range`, so that they check again: the lease that
    /// they wait for has changed, or the length of the file has.
    pub(crate) fn recheck(&self, range: ByteRange) {
        wake_readers(&self.table.recheck(range));
    }
}

fn wake(host: &(impl LeaseHost + ?Sized), wake: &Wake) {
    if let Some(gone) = wake.writers {
        restart(host, gone);
    }
    wake_readers(wake);
}

/// Wakes the readers that are named in `wake`. The caller holds no lock, or is inside a scope.
fn wake_readers(wake: &Wake) {
    if !wake.readers.is_empty() {
        scope(|| wake.readers.iter().for_each(|reader| reader.notify()));
    }
}

/// The exclusive leases of a batch of writes, released together when dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Batch<'a>(&'a Leases);

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        wake_readers(&self.0.table.end_batch());
    }
}

/// A lease that is released when dropped. `H` is a reference to the host, borrowed or counted.
#[derive(Debug)]
#[must_use]
pub(crate) struct Lease<H>
where
    H: Deref,
    H::Target: LeaseHost + Sized,
{
    host: H,
    /// Present until the drop.
    token: Option<Token>,
}

impl<H> Lease<H>
where
    H: Deref,
    H::Target: LeaseHost + Sized,
{
    /// Takes a shared lease in a slot at once if that is possible, and otherwise calls `slow_path`.
    ///
    /// Always inlined; the rare cases are out of line and return their result in registers. If the
    /// view were returned through memory, it would be stored and reloaded in words of different
    /// sizes, which defeats store-to-load forwarding. The cache misses of consecutive reads would
    /// then no longer overlap, and a read would take 150 ns instead of 7.
    #[inline(always)]
    pub(crate) fn shared_or(
        host: H,
        range: ByteRange,
        slow_path: impl FnOnce(&H::Target, ByteRange) -> Option<Token>,
    ) -> Option<Self> {
        debug_assert!(host.under().is_none(), "a slot has no companion");
        let published = match THREAD_BLOCK.get() {
            Some(block) => host.leases().table.publish(block, range, Term::Lasting),
            None => None,
        };
        let token = match published {
            Some(Ok(slot)) => Some(Token::Slot(slot)),
            published => {
                if let Some(Err(slot)) = published {
                    release_slowly(&*host, Token::Slot(slot));
                }
                slow_path(&host, range)
            }
        };
        let token = Some(token?);
        Some(Self { host, token })
    }

    /// Makes a lease of what one of this module's functions has taken.
    pub(crate) fn of(host: H, token: Token) -> Self {
        let token = Some(token);
        Self { host, token }
    }

    /// Takes a shared lease, or reports what conflicts with it.
    pub(crate) fn try_shared(host: H, hold: Hold, range: ByteRange) -> Result<Self, Refused> {
        let token = try_shared(&*host, hold, range)?;
        Ok(Self::of(host, token))
    }

    /// Takes another shared lease on bytes that are under a shared lease of the caller; see
    /// [`Table::share_again`].
    #[cfg_attr(not(feature = "iterator"), allow(dead_code))]
    pub(crate) fn shared_again(host: H, hold: Hold, range: ByteRange) -> Self {
        debug_assert!(host.under().is_none(), "its companion would need the same");
        let token = host.leases().table.share_again(range, hold.term(range));
        Self::of(host, token)
    }

    /// Takes a shared lease, and waits for conflicts that end soon; see [`shared_briefly`].
    pub(crate) fn shared_briefly(host: H, hold: Hold, range: ByteRange) -> Result<Self> {
        let token = shared_briefly(&*host, hold, range)?;
        Ok(Self::of(host, token))
    }

    /// Takes a shared lease, however long that takes.
    ///
    /// # Errors
    ///
    /// `OutOfBounds` as soon as the range is outside the file.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub(crate) async fn shared(host: H, hold: Hold, range: ByteRange) -> Result<Self> {
        let mut attempt = || try_shared(&*host, hold, range);
        let token = until_granted(&*host, range, &mut attempt).await?;
        Ok(Self::of(host, token))
    }

    /// Takes an atomic lease, which the caller may keep. Waits for conflicts that end soon, as
    /// [`shared_briefly`] does, and for copies that are being made of the bytes.
    ///
    /// Runs a heavy fence, unless a lease of the same kind contains the range.
    ///
    /// # Errors
    ///
    /// Those of [`shared_briefly`], and `Io` if the system refuses the fence.
    #[cfg_attr(not(feature = "atomic"), allow(dead_code))]
    pub(crate) fn atomic_briefly(host: H, kind: Kind, range: ByteRange) -> Result<Self> {
        let attempt = |asks| try_atomic(&*host, kind, range, asks);
        let token = briefly(&*host, range, range, attempt)??;
        Ok(Self::of(host, token))
    }

    /// Takes a lease of any kind for a caller that may run a heavy fence; see
    /// [`Table::try_acquire`].
    pub(crate) fn try_acquire(
        host: H,
        kind: Kind,
        range: ByteRange,
        asks: Asks,
    ) -> io::Result<Option<Self>> {
        let Some(under) = host.under() else {
            return Self::try_acquire_alone(host, kind, range, asks);
        };
        let Some(companion) = companions::try_companion(under, kind, range, asks) else {
            return Ok(None);
        };
        let token = companions::try_acquire(&*host, under, kind, range, asks, companion)?;
        Ok(token.map(|token| Self::of(host, token)))
    }

    /// Takes a lease as [`try_acquire`](Self::try_acquire) does; `companion` becomes its companion,
    /// if there is one.
    pub(crate) fn try_acquire_with(
        host: H,
        kind: Kind,
        range: ByteRange,
        asks: Asks,
        companion: Option<Self>,
    ) -> io::Result<Option<Self>> {
        let companion = companion.and_then(|mut companion| companion.token.take());
        let (Some(under), Some(companion)) = (host.under(), companion) else {
            return Self::try_acquire_alone(host, kind, range, asks);
        };
        let token = companions::try_acquire(&*host, under, kind, range, asks, companion)?;
        Ok(token.map(|token| Self::of(host, token)))
    }

    /// Takes a lease without a companion: for a caller that does not look at the bytes.
    pub(crate) fn try_acquire_alone(
        host: H,
        kind: Kind,
        range: ByteRange,
        asks: Asks,
    ) -> io::Result<Option<Self>> {
        let token = host.leases().table.try_acquire(kind, range, asks)?;
        Ok(token.map(|token| Self::of(host, token)))
    }

    pub(crate) fn host(&self) -> &H {
        &self.host
    }

    /// Returns where another process has cut off bytes of the lease; see [`Table::cut_at`].
    pub(crate) fn cut_at(&self) -> Option<u64> {
        let token = self.token.as_ref()?;
        self.host.leases().table.cut_at(token)
    }

    /// Notes that a caller holds the lease from now on: readers that conflict with it do not wait
    /// for its end.
    pub(crate) fn mark_lasting(&self) {
        let Some(token) = &self.token else {
            return;
        };
        if let Some(under) = self.host.under() {
            under.companions.mark_lasting(token, under.file);
        }
        wake_readers(&self.host.leases().table.mark_lasting(token));
    }
}

impl<H> Drop for Lease<H>
where
    H: Deref,
    H::Target: LeaseHost + Sized,
{
    #[inline]
    fn drop(&mut self) {
        match self.token.take() {
            None => {}
            Some(Token::Slot(slot)) => {
                if let Some(gone) = slot.release::<ProcessFences>() {
                    restart(&*self.host, gone);
                }
            }
            Some(token) => release_slowly(&*self.host, token),
        }
    }
}

/// Tells the writers and the callers that wait for the end of a lease that it has ended.
#[cold]
fn restart(host: &(impl LeaseHost + ?Sized), gone: ByteRange) {
    host.restart(gone);
    if !sys::is_forked() {
        // In a forked child the lock on the waiting callers may never be free.
        host.leases().recheck(gone);
    }
}

#[cold]
fn release_slowly(host: &(impl LeaseHost + ?Sized), token: Token) {
    if sys::is_forked() && !matches!(token, Token::Slot(_)) {
        // In a forked child the lock on the entries may never be free, and no writer looks at them.
        return;
    }
    // Before the entry is free for the next lease.
    let companion = host
        .under()
        .and_then(|under| Some((under, under.companions.take(&token)?)));
    let due = host.leases().table.release(token);
    // Before the wakers run: a waker may ask for bytes of the companion, and wait for its end.
    if let Some((under, companion)) = companion {
        release_slowly(under.file, companion);
    }
    wake(host, &due);
}

/// What conflicts with a lease, and where.
pub(crate) type Refused = (Conflict, At);

/// Among which leases a conflict was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// Those of the host itself.
    Own,
    /// Those of the file that shows through it.
    Under,
}

/// Listens for the end of what refuses a request for `range`.
fn listen(host: &impl LeaseHost, at: At, range: ByteRange) -> Waiter<'_> {
    match (at, host.under()) {
        // On whole pages, as far as a companion may reach.
        (At::Under, Some(under)) => {
            let pages = range.to_pages(sys::page_size());
            under.file.leases().table.listen(pages.into())
        }
        _ => host.leases().table.listen(range),
    }
}

/// Takes a shared lease that the caller turns into a [`Lease`], or reports what conflicts with it.
pub(crate) fn try_shared(
    host: &impl LeaseHost,
    hold: Hold,
    range: ByteRange,
) -> Result<Token, Refused> {
    if let Some(under) = host.under() {
        return companions::try_shared(host, under, range, hold.term(range));
    }
    let leases = host.leases();
    let token = match hold {
        Hold::Slot | Hold::Copy if sys::is_forked() => without_locks(host, range),
        Hold::Slot | Hold::Copy => leases.past_gates(|| {
            let term = hold.term(range);
            let lease = leases.table.try_shared(thread_block(), range, term);
            lease.map_err(|(conflict, due)| {
                wake(host, &due);
                conflict
            })
        }),
        Hold::Entry | Hold::Work => try_owned(leases, range, hold.term(range)),
    };
    token.map_err(|conflict| (conflict, At::Own))
}

/// Takes a shared lease in the table's own map.
fn try_owned(leases: &Leases, range: ByteRange, term: Term) -> Result<Token, Conflict> {
    leases.past_gates(|| leases.table.try_owned(range, term))
}

/// Takes an atomic lease, or reports what conflicts with it.
#[cfg_attr(not(feature = "atomic"), allow(dead_code))]
fn try_atomic(
    host: &impl LeaseHost,
    kind: Kind,
    range: ByteRange,
    asks: Asks,
) -> Result<io::Result<Token>, Refused> {
    let leases = host.leases();
    let alone = || {
        let token = leases.past_gates(|| leases.table.try_atomic(kind, range, asks));
        token.map_err(|conflict| (conflict, At::Own))
    };
    match host.under() {
        Some(under) => companions::try_atomic(under, range, alone),
        None => alone(),
    }
}

/// Takes a shared lease in a forked child, in a slot, and without waiting for a lock, which may
/// never be free there.
#[cold]
fn without_locks(host: &impl LeaseHost, range: ByteRange) -> Result<Token, Conflict> {
    let block = thread_block().ok_or(Conflict::Held)?;
    match host.leases().table.publish(block, range, Term::Lasting) {
        Some(Ok(slot)) => Ok(Token::Slot(slot)),
        Some(Err(slot)) => match host.leases().table.is_free_for_reader(range) {
            Some(true) => Ok(Token::Slot(slot)),
            Some(false) | None => {
                release_slowly(host, Token::Slot(slot));
                Err(Conflict::Held)
            }
        },
        None => Err(Conflict::Held),
    }
}

/// Takes a shared lease that the caller turns into a [`Lease`]. Waits for conflicts that end soon:
/// small writes that are being applied, a cut, a view that is about to be given to its caller or
/// dropped with its future, and the gate of a write that readers have kept out for long. Blocks the
/// thread in the meantime.
///
/// # Errors
///
/// - `OutOfBounds` as soon as the range is outside the file, which is checked before each try.
/// - `Busy` if the conflict may last.
pub(crate) fn shared_briefly(host: &impl LeaseHost, hold: Hold, range: ByteRange) -> Result<Token> {
    briefly(host, range, range, |_| try_shared(host, hold, range))
}

/// Repeats `attempt` until it grants its leases, all of them on `range`, and waits in between; see
/// [`shared_briefly`]. Only `inside` has to be inside the file, and the errors are about it.
pub(crate) fn briefly<T>(
    host: &impl LeaseHost,
    inside: ByteRange,
    range: ByteRange,
    mut attempt: impl FnMut(Asks) -> Result<T, Refused>,
) -> Result<T> {
    let mut spins = 0;
    let mut listening: Listening<'_> = None;
    loop {
        inside.check(host.len())?;
        let asks = match &listening {
            None => Asks::Caller,
            Some(_) => Asks::WaitingCaller,
        };
        let (conflict, at) = match attempt(asks) {
            Ok(granted) => return Ok(granted),
            Err((Conflict::Held, _)) => return Err(inside.busy()),
            Err(refused) => refused,
        };
        if spins < SPINS {
            spins += 1;
            std::hint::spin_loop();
            continue;
        }
        // Listen first, then try once more: if the conflict ends in between, the listener is told.
        match (listening.take(), conflict) {
            (Some((place, told)), Conflict::Gate(until)) if place == at => {
                told.wait(Some(until));
            }
            (Some((place, told)), _) if place == at => told.wait(None),
            _ => listening = Some((at, listen(host, at, range))),
        }
    }
}

/// Repeats `attempt` until it grants its leases, however long that takes.
///
/// # Errors
///
/// `OutOfBounds` as soon as the range is outside the file, which is checked before each try.
pub(crate) async fn until_granted<T>(
    host: &impl LeaseHost,
    range: ByteRange,
    attempt: &mut impl FnMut() -> Result<T, Refused>,
) -> Result<T> {
    let mut listening: Listening<'_> = None;
    loop {
        range.check(host.len())?;
        let (conflict, at) = match attempt() {
            Ok(granted) => return Ok(granted),
            Err(refused) => refused,
        };
        match (listening.take(), conflict) {
            // No timer is needed: a gate lasts at most a millisecond, and the first reader that
            // looks after that takes it down.
            (_, Conflict::Gate(_)) => yield_now().await,
            (Some((place, told)), _) if place == at => told.await,
            _ => listening = Some((at, listen(host, at, range))),
        }
    }
}

/// Where a reader listens, and what tells it.
type Listening<'a> = Option<(At, Waiter<'a>)>;
