//! Leases: the right to look at, change, or share by atomics a range of one file.
//!
//! This is the façade over the protocol in [`table`]. It adds what the protocol leaves out: the
//! calling thread's block of slots, waiting, waking, and tokens that release themselves.

mod announced;
mod fence;
mod intervals;
mod kinds;
mod slots;
mod state;
mod table;
mod waiting;

#[cfg(all(test, mmap_io_loom))]
mod loom_models;
#[cfg(all(test, not(mmap_io_loom)))]
mod tests;

use std::cell::Cell;
use std::io;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_lite::future::yield_now;

use self::fence::ProcessFences;
use self::kinds::Wake;
use self::slots::{Block, Blocks};
use self::table::Table;
use crate::error::Result;
use crate::range::ByteRange;
use crate::sys;
use crate::wakers::scope;

pub(crate) use self::intervals::{Intervals, Key};
pub(crate) use self::kinds::{Asks, Conflict, Kind, Token, Want};
pub(crate) use self::table::BRIEF;

/// How long a blocked write keeps new readers out, at most.
const GATE: Duration = Duration::from_millis(1);
/// How long it lets them pass between two such gates.
const GATE_PAUSE: Duration = Duration::from_millis(100);

/// Tries of a reader before it parks: a small write is over in about a microsecond.
const SPINS: u32 = 64;

/// The owner of a file's leases, which hears of their end.
pub(crate) trait LeaseHost {
    fn leases(&self) -> &Leases;

    /// Length of the file in bytes, as it is now.
    fn len(&self) -> u64;

    /// A lease on that range has ended, and a queued operation was blocked by it.
    fn restart(&self, gone: ByteRange);
}

/// How a shared lease is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// In a slot of the calling thread if one is free: for views that are gone in a moment.
    Slot,
    /// In the table's own map: for views that may live long, or change threads.
    Entry,
}

/// The leases of one file.
#[derive(Debug)]
pub(crate) struct Leases {
    table: Table<ProcessFences>,
}

impl Leases {
    /// No leases. The first call of the process registers its memory barriers, which may take
    /// milliseconds where threads are running: a first read or write would pay for that otherwise.
    pub(crate) fn new() -> Self {
        ProcessFences::can_be_light();
        // Ids are never used again, so that a slot that a scan reads too late names no other file.
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

    /// Keeps new readers out of `ranges` for a moment, if the last time is long enough ago.
    /// Returns when the gate was raised.
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

    /// What `attempt` gets; a gate that is over is taken down, by whoever meets it first.
    fn past_gates<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, Conflict>,
    ) -> Result<T, Conflict> {
        if sys::is_forked() {
            // Whatever a reader met may last for ever there, the table's lock included.
            return Err(Conflict::Held);
        }
        loop {
            match attempt() {
                Err(Conflict::Gate(until)) if until <= Instant::now() => {
                    self.table.lower_gate(until);
                }
                met => return met,
            }
        }
    }

    /// Number of leases that are out, apart from the batch of writes being applied.
    pub(crate) fn count(&self) -> usize {
        self.table.count()
    }

    /// The same; see [`Table::count_after_fence`].
    pub(crate) fn count_after_fence(&self) -> io::Result<usize> {
        self.table.count_after_fence()
    }

    /// Whether a view is out that its holder may write through.
    pub(crate) fn has_writing_views(&self) -> bool {
        self.table.has_writing_views()
    }

    /// The ranges of those that share a byte with `range`; see [`Table::leased`].
    pub(crate) fn leased(&self, range: ByteRange) -> Vec<ByteRange> {
        self.table.leased(range)
    }

    /// Has the readers that wait for a byte of `range` look again: what they wait for has changed, or
    /// the length has.
    pub(crate) fn recheck(&self, range: ByteRange) {
        wake_readers(&self.table.recheck(range));
    }
}

fn wake(host: &impl LeaseHost, wake: &Wake) {
    if let Some(gone) = wake.writers {
        host.restart(gone);
    }
    wake_readers(wake);
}

/// Wakes them. The caller holds no lock, or is in a scope.
fn wake_readers(wake: &Wake) {
    if !wake.readers.is_empty() {
        scope(|| wake.readers.iter().for_each(|reader| reader.notify()));
    }
}

/// The exclusive leases of a batch of writes; given back when dropped.
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
    /// A shared lease in a slot: at once if that is possible, and else what `slow_path` gets.
    ///
    /// Always inlined, with what is rare out of line and returned in registers. If the view were
    /// returned through memory, it would be stored and reloaded in words of different sizes, which
    /// defeats store-to-load forwarding. The cache misses of consecutive reads would then no longer
    /// overlap, and a read would take 150 ns instead of 7.
    #[inline(always)]
    pub(crate) fn shared_or(
        host: H,
        range: ByteRange,
        slow_path: impl FnOnce(&H::Target, ByteRange) -> Option<Token>,
    ) -> Option<Self> {
        let published = match THREAD_BLOCK.get() {
            Some(block) => host.leases().table.publish(block, range),
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

    /// A shared lease, unless something conflicts with it.
    pub(crate) fn try_shared(host: H, hold: Hold, range: ByteRange) -> Result<Self, Conflict> {
        let token = Some(try_shared(&*host, hold, range)?);
        Ok(Self { host, token })
    }

    /// A shared lease, after what is over in a moment; see [`shared_briefly`].
    pub(crate) fn shared_briefly(host: H, hold: Hold, range: ByteRange) -> Result<Self> {
        let token = Some(shared_briefly(&*host, hold, range)?);
        Ok(Self { host, token })
    }

    /// A shared lease, however long it takes.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub(crate) async fn shared(host: H, hold: Hold, range: ByteRange) -> Self {
        let token = Some(shared(&*host, hold, range).await);
        Self { host, token }
    }

    /// A lease of any kind, for one who may run a heavy fence; see [`Table::try_acquire`].
    pub(crate) fn try_acquire(
        host: H,
        kind: Kind,
        range: ByteRange,
        asks: Asks,
    ) -> io::Result<Option<Self>> {
        let token = host.leases().table.try_acquire(kind, range, asks)?;
        Ok(token.map(|token| Self {
            host,
            token: Some(token),
        }))
    }

    pub(crate) fn host(&self) -> &H {
        &self.host
    }

    /// A caller has the lease from now on: readers that meet it do not wait for its end.
    pub(crate) fn mark_lasting(&self) {
        if let Some(token) = &self.token {
            wake_readers(&self.host.leases().table.mark_lasting(token));
        }
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

#[cold]
fn restart(host: &impl LeaseHost, gone: ByteRange) {
    host.restart(gone);
}

#[cold]
fn release_slowly(host: &impl LeaseHost, token: Token) {
    if sys::is_forked() && !matches!(token, Token::Slot(_)) {
        // The lock on the entries may never be free there, and no writer looks at them.
        return;
    }
    wake(host, &host.leases().table.release(token));
}

/// A shared lease that the caller turns into a [`Lease`], unless something conflicts with it.
pub(crate) fn try_shared(
    host: &impl LeaseHost,
    hold: Hold,
    range: ByteRange,
) -> Result<Token, Conflict> {
    let leases = host.leases();
    match hold {
        Hold::Slot if sys::is_forked() => without_locks(host, range),
        Hold::Slot => leases.past_gates(|| {
            let lease = leases.table.try_shared(thread_block(), range);
            lease.map_err(|(conflict, due)| {
                wake(host, &due);
                conflict
            })
        }),
        Hold::Entry => leases.past_gates(|| leases.table.try_owned(range)),
    }
}

/// A shared lease in a forked child, where a lock may never be free: from the slots alone.
#[cold]
fn without_locks(host: &impl LeaseHost, range: ByteRange) -> Result<Token, Conflict> {
    let block = thread_block().ok_or(Conflict::Held)?;
    match host.leases().table.publish(block, range) {
        Some(Ok(slot)) => Ok(Token::Slot(slot)),
        Some(Err(slot)) => {
            release_slowly(host, Token::Slot(slot));
            Err(Conflict::Held)
        }
        None => Err(Conflict::Held),
    }
}

/// A shared lease that the caller turns into a [`Lease`]. Waits for what is over in a moment: small
/// writes that are being applied, a cut, a view that is about to be given to its caller or dropped
/// with its future, and the gate of a write that readers kept out for long. Blocks the thread in the
/// meantime.
///
/// # Errors
///
/// - `OutOfBounds` as soon as the range is outside of the file, which is asked at each turn.
/// - `Busy` against anything that may last.
pub(crate) fn shared_briefly(host: &impl LeaseHost, hold: Hold, range: ByteRange) -> Result<Token> {
    let mut spins = 0;
    let mut listener = None;
    loop {
        range.check(host.len())?;
        let conflict = match try_shared(host, hold, range) {
            Ok(token) => return Ok(token),
            Err(Conflict::Held) => return Err(range.busy()),
            Err(conflict) => conflict,
        };
        if spins < SPINS {
            spins += 1;
            std::hint::spin_loop();
            continue;
        }
        // Listen first, then try once more: what ends in between is heard.
        match (listener.take(), conflict) {
            (None, _) => listener = Some(host.leases().table.listen(range)),
            (Some(listening), Conflict::Gate(until)) => listening.wait(Some(until)),
            (Some(listening), _) => listening.wait(None),
        }
    }
}

/// The same, however long it takes.
async fn shared(host: &impl LeaseHost, hold: Hold, range: ByteRange) -> Token {
    let mut listener = None;
    loop {
        match (try_shared(host, hold, range), listener.take()) {
            (Ok(token), _) => return token,
            // No timer is needed: a gate lasts at most a millisecond, and the first reader that looks
            // after that takes it down.
            (Err(Conflict::Gate(_)), _) => yield_now().await,
            (Err(_), None) => listener = Some(host.leases().table.listen(range)),
            (Err(_), Some(listening)) => listening.await,
        }
    }
}

/// The blocks of slots of all threads.
static BLOCKS: Blocks = Blocks::new();

thread_local! {
    /// This thread's block. Nothing to destroy, so that it can be read at any time.
    static THREAD_BLOCK: Cell<Option<&'static Block>> = const { Cell::new(None) };
    /// Hands the block back when the thread ends.
    static HAND_BACK: HandBack = const { HandBack };
}

struct HandBack;

impl Drop for HandBack {
    fn drop(&mut self) {
        // Nothing takes a slot in the block after this: `claim_block` finds this value gone.
        if let Some(block) = THREAD_BLOCK.take() {
            block.hand_back();
        }
    }
}

#[inline]
fn thread_block() -> Option<&'static Block> {
    THREAD_BLOCK.get().or_else(claim_block)
}

/// A block for this thread; `None` while its thread-local values are being destroyed, and where
/// the fences for it are not to be had.
#[cold]
fn claim_block() -> Option<&'static Block> {
    HAND_BACK.try_with(|_| ()).ok()?;
    // A forked child has no writers to fence with, and the thread that decides may be the parent's.
    if !sys::is_forked() && !ProcessFences::can_be_light() {
        return None;
    }
    let block = BLOCKS.claim::<ProcessFences>();
    THREAD_BLOCK.set(Some(block));
    Some(block)
}
