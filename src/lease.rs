//! Leases: the right to look at, change, or share by atomics a range of one file.
//!
//! This is the façade over the protocol in [`table`]. It adds what the protocol leaves out: the
//! calling thread's block of slots, waiting, waking, and tokens that release themselves.

mod fence;
mod intervals;
mod slots;
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
use self::slots::{Block, Blocks};
use self::table::{Table, Wake};
use crate::error::Result;
use crate::range::ByteRange;
use crate::sys;
use crate::wakers::scope;

pub(crate) use self::intervals::{Intervals, Key};
pub(crate) use self::table::{Asks, Conflict, Kind, Token, Want, BRIEF};

/// How long a blocked write keeps new readers out, at most.
const GATE: Duration = Duration::from_millis(1);
/// How long it lets them pass between two such gates.
const GATE_PAUSE: Duration = Duration::from_millis(100);

/// Tries of a reader before it parks: a small write is over in about a microsecond.
const SPINS: u32 = 64;

/// Who owns a file's leases, and hears of their end.
pub(crate) trait LeaseHost {
    fn leases(&self) -> &Leases;

    /// Something that a queued operation waited for is gone: a lease on that range.
    fn restart(&self, gone: ByteRange);
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
    /// A shared lease: at once if that is possible, and else what `slowly` gets.
    ///
    /// Always inlined, with what is rare out of line and returned in registers. A view that went
    /// through memory on its way to the caller would be stored and loaded by different words,
    /// which the CPU cannot forward; then the cache misses of one read no longer overlap those of
    /// the next, and a read of 7 ns takes 150.
    #[inline(always)]
    pub(crate) fn shared_or(
        host: H,
        range: ByteRange,
        slowly: impl FnOnce(&H::Target, ByteRange) -> Option<Token>,
    ) -> Option<Self> {
        let published = match MINE.get() {
            Some(block) => host.leases().table.publish(block, range),
            None => None,
        };
        let token = match published {
            Some(Ok(slot)) => Some(Token::Slot(slot)),
            published => {
                if let Some(Err(slot)) = published {
                    release_slowly(&*host, Token::Slot(slot));
                }
                slowly(&host, range)
            }
        };
        let token = Some(token?);
        Some(Self { host, token })
    }

    /// A shared lease, if nothing is in the way.
    pub(crate) fn try_shared(host: H, range: ByteRange) -> Result<Self, Conflict> {
        let token = Some(try_shared(&*host, range)?);
        Ok(Self { host, token })
    }

    /// A shared lease that may live long, if nothing is in the way.
    pub(crate) fn try_owned(host: H, range: ByteRange) -> Result<Self, Conflict> {
        let leases = host.leases();
        let token = leases.past_gates(|| leases.table.try_owned(range))?;
        Ok(Self {
            host,
            token: Some(token),
        })
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

/// A shared lease that the caller turns into a [`Lease`].
pub(crate) fn try_shared(host: &impl LeaseHost, range: ByteRange) -> Result<Token, Conflict> {
    let leases = host.leases();
    if sys::is_forked() {
        return without_locks(host, range);
    }
    leases.past_gates(|| {
        let lease = leases.table.try_shared(my_block(), range);
        lease.map_err(|(conflict, due)| {
            wake(host, &due);
            conflict
        })
    })
}

/// A shared lease in a forked child, where a lock may never be free: from the slots alone.
#[cold]
fn without_locks(host: &impl LeaseHost, range: ByteRange) -> Result<Token, Conflict> {
    let block = my_block().ok_or(Conflict::Held)?;
    match host.leases().table.publish(block, range) {
        Some(Ok(slot)) => Ok(Token::Slot(slot)),
        Some(Err(slot)) => {
            release_slowly(host, Token::Slot(slot));
            Err(Conflict::Held)
        }
        None => Err(Conflict::Held),
    }
}

/// Takes a lease by `attempt`, waiting for what is over in a moment: small writes that are being
/// applied, a cut, a view that is about to be given to its caller or dropped with its future, and
/// the gate of a write that readers kept out for long. Blocks the thread meanwhile.
///
/// # Errors
///
/// - `OutOfBounds` as soon as the range is outside of `len` bytes, which is asked at each turn.
/// - `Busy` against anything that may last.
pub(crate) fn wait_briefly<T>(
    leases: &Leases,
    range: ByteRange,
    len: impl Fn() -> u64,
    mut attempt: impl FnMut() -> Result<T, Conflict>,
) -> Result<T> {
    let mut spins = 0;
    let mut listener = None;
    loop {
        range.check(len())?;
        let conflict = match attempt() {
            Ok(lease) => return Ok(lease),
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
            (None, _) => listener = Some(leases.table.listen(range)),
            (Some(listening), Conflict::Gate(until)) => listening.wait(Some(until)),
            (Some(listening), _) => listening.wait(None),
        }
    }
}

/// Takes a lease on `range` by `attempt`, waiting for whatever is in the way.
///
/// # Cancel safety
///
/// Dropping the future leaves nothing behind.
pub(crate) async fn wait<T>(
    leases: &Leases,
    range: ByteRange,
    mut attempt: impl FnMut() -> Result<T, Conflict>,
) -> T {
    let mut listener = None;
    loop {
        match (attempt(), listener.take()) {
            (Ok(lease), _) => return lease,
            // Nobody's timer: the gate is down within a millisecond, whoever looks first.
            (Err(Conflict::Gate(_)), _) => yield_now().await,
            (Err(_), None) => listener = Some(leases.table.listen(range)),
            (Err(_), Some(listening)) => listening.await,
        }
    }
}

/// The blocks of slots of all threads.
static BLOCKS: Blocks = Blocks::new();

thread_local! {
    /// This thread's block. Nothing to destroy, so that it can be read at any time.
    static MINE: Cell<Option<&'static Block>> = const { Cell::new(None) };
    /// Hands the block back when the thread ends.
    static HAND_BACK: HandBack = const { HandBack };
}

struct HandBack;

impl Drop for HandBack {
    fn drop(&mut self) {
        // Nothing takes a slot in the block after this: `claim_block` finds this value gone.
        if let Some(block) = MINE.take() {
            block.hand_back();
        }
    }
}

#[inline]
fn my_block() -> Option<&'static Block> {
    MINE.get().or_else(claim_block)
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
    MINE.set(Some(block));
    Some(block)
}
