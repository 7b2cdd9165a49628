//! A disk with a volatile cache, in memory.
//!
//! It separates the writes before the last flush, which survive a power cut, from the writes since
//! then, in their order. A cut keeps any part of the latter: a drive writes its cache back in no
//! order that a program can rely on. A block of 4096 bytes is written as a whole or not at all, as
//! on current drives; ext4 would not survive a smaller unit (its superblock spans several sectors
//! of 512 bytes).

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(crate) const BLOCK: usize = 4096;

type Block = [u8; BLOCK];

/// What is on the disk, by block; `None` is zeroes.
#[derive(Clone)]
pub(crate) struct Blocks(Vec<Option<Arc<Block>>>);

/// The part of a write that falls into one block.
#[derive(Clone)]
pub(crate) struct Piece {
    block: usize,
    offset: usize,
    data: Arc<[u8]>,
}

/// The disk at one moment.
pub(crate) struct Snapshot {
    pub(crate) durable: Blocks,
    /// Written since the last flush, oldest first.
    pub(crate) volatile: Vec<Piece>,
}

/// What the disk refuses to do, with `EIO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Write,
    Flush,
}

/// The `nth` request of a kind from now on fails; if the disk stays broken, all later ones do too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) request: Request,
    pub(crate) nth: u32,
    pub(crate) stays: bool,
}

/// An I/O error.
#[derive(Debug)]
pub(crate) struct Eio;

#[derive(Clone)]
pub(crate) struct Disk(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    durable: Blocks,
    /// The content with the volatile writes, which is what a read returns.
    current: Blocks,
    volatile: Vec<Piece>,
    fault: Option<Fault>,
    faults_met: u32,
    freeze: Freeze,
}

#[derive(PartialEq, Eq)]
enum Freeze {
    Off,
    /// The disk stops at this request from now on.
    After(u32),
    On,
}

impl Disk {
    pub(crate) fn new(len: u64) -> Self {
        let blocks = Blocks(vec![None; len as usize / BLOCK]);
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                durable: blocks.clone(),
                current: blocks,
                volatile: Vec::new(),
                fault: None,
                faults_met: 0,
                freeze: Freeze::Off,
            }),
            changed: Condvar::new(),
        }))
    }

    pub(crate) fn len(&self) -> u64 {
        self.lock().current.len()
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        self.lock().current.read(offset, len)
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<(), Eio> {
        let mut state = self.lock();
        state.meet_fault(Request::Write)?;
        let mut at = offset as usize;
        let mut rest = data;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(BLOCK - at % BLOCK));
            let piece = Piece {
                block: at / BLOCK,
                offset: at % BLOCK,
                data: now.into(),
            };
            state.current.apply(&piece);
            state.volatile.push(piece);
            at += now.len();
            rest = later;
        }
        // The write is not acknowledged yet: a cut at this moment may keep it or lose it.
        drop(self.stop_if_frozen(state));
        Ok(())
    }

    /// Makes everything written before durable.
    pub(crate) fn flush(&self) -> Result<(), Eio> {
        let mut state = self.stop_if_frozen(self.lock());
        state.meet_fault(Request::Flush)?;
        state.durable = state.current.clone();
        state.volatile.clear();
        Ok(())
    }

    /// Stops the disk at a request, the `nth` from now or the first after `patience`: what it
    /// holds does not change until the guard is dropped, so that every acknowledgement the writer
    /// gives in the meantime must be covered already.
    pub(crate) fn freeze(&self, nth: u32, patience: Duration) -> Frozen<'_> {
        let until = Instant::now() + patience;
        let mut state = self.lock();
        state.freeze = Freeze::After(nth);
        while state.freeze != Freeze::On {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.freeze = Freeze::On;
                break;
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Frozen(self)
    }

    /// Arms a fault, or disarms it; requests are counted from here.
    pub(crate) fn set_fault(&self, fault: Option<Fault>) {
        let mut state = self.lock();
        state.fault = fault;
        state.faults_met = 0;
    }

    /// How many requests have failed since the fault was armed.
    pub(crate) fn faults_met(&self) -> u32 {
        self.lock().faults_met
    }

    fn stop_if_frozen<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if let Freeze::After(nth) = &mut state.freeze {
            *nth = nth.saturating_sub(1);
            if *nth == 0 {
                state.freeze = Freeze::On;
                self.0.changed.notify_all();
            }
        }
        while state.freeze == Freeze::On {
            let waited = self.0.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn meet_fault(&mut self, request: Request) -> Result<(), Eio> {
        match &mut self.fault {
            Some(fault) if fault.request == request => {
                let is_due = fault.nth == 1;
                fault.nth = fault.nth.saturating_sub(1);
                if is_due || (fault.nth == 0 && fault.stays) {
                    self.faults_met += 1;
                    return Err(Eio);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// A disk that stands still.
#[must_use]
pub(crate) struct Frozen<'a>(&'a Disk);

impl Frozen<'_> {
    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = self.0.lock();
        Snapshot {
            durable: state.durable.clone(),
            volatile: state.volatile.clone(),
        }
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.lock().freeze = Freeze::Off;
        self.0 .0.changed.notify_all();
    }
}

impl Blocks {
    pub(crate) fn len(&self) -> u64 {
        (self.0.len() * BLOCK) as u64
    }

    pub(crate) fn apply(&mut self, piece: &Piece) {
        let Some(slot) = self.0.get_mut(piece.block) else {
            return;
        };
        if piece.data.len() == BLOCK && piece.data.iter().all(|byte| *byte == 0) {
            *slot = None;
            return;
        }
        let block = Arc::make_mut(slot.get_or_insert_with(|| Arc::new([0; BLOCK])));
        block[piece.offset..][..piece.data.len()].copy_from_slice(&piece.data);
    }

    /// The blocks that are not zeroes, with their offsets in bytes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.0.iter().enumerate().filter_map(|(at, block)| {
            let block = block.as_deref()?;
            Some(((at * BLOCK) as u64, block.as_slice()))
        })
    }

    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let end = (offset + len as u64).min(self.len()) as usize;
        let mut at = offset as usize;
        let mut data = Vec::with_capacity(len);
        while at < end {
            let part = (end - at).min(BLOCK - at % BLOCK);
            match &self.0[at / BLOCK] {
                Some(block) => data.extend_from_slice(&block[at % BLOCK..][..part]),
                None => data.resize(data.len() + part, 0),
            }
            at += part;
        }
        data
    }
}
