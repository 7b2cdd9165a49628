//! Loom models of the lease protocol: loom tries every interleaving, and every value that the
//! memory model allows a load to see.
//!
//! Readers and writers of one cell use the real [`Table`]; loom reports any two accesses that are
//! not ordered. The fences are full ones on both sides, since loom knows no other fences;
//! [`fence`](super::fence) argues why an asymmetric pair has the same effect.
//!
//! Each ordering and each second fence is needed: the models named `without_*` weaken one of them,
//! and must fail.

/// Full fences on both sides, with the given changes.
macro_rules! fences {
    ($name:ident $(, $($change:item)*)?) => {
        #[derive(Debug)]
        struct $name;

        impl Fences for $name {
            $($($change)*)?

            fn light() {
                fence(Ordering::SeqCst);
            }

            fn heavy() -> io::Result<()> {
                fence(Ordering::SeqCst);
                Ok(())
            }
        }
    };
}

/// A model that must fail with the given change to the fences.
macro_rules! needed {
    ($name:ident, $model:ident, $($change:item)*) => {
        #[test]
        #[should_panic]
        fn $name() {
            fences!(Weak, $($change)*);
            $model::<Weak>();
        }
    };
}

mod atomic;
mod delisting;
mod order;
mod waiting;

use std::io;

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::Arc;
use loom::thread::{self, JoinHandle};

use super::fence::Fences;
use super::kinds::{Asks, Conflict, Kind, Term, Token, Want};
use super::slots::{Block, Blocks};
use super::table::Table;
use crate::range::ByteRange;
use crate::sync::{fence, AtomicU32, Ordering};

/// The range of the cell.
const CELL: fn() -> ByteRange = || ByteRange::between(0, 8);
/// A range that does not overlap it, in another block of the announcement.
const ELSEWHERE: fn() -> ByteRange = || ByteRange::between(1 << 20, (1 << 20) + 8);

/// Three ranges far from each other; the cell is in the middle one.
const APART: fn() -> [ByteRange; 3] =
    || [0, 32, 64].map(|block| ByteRange::between(block << 15, (block << 15) + 8));

/// One file with one cell.
struct File<F> {
    table: Table<F>,
    cell: UnsafeCell<u32>,
    /// A word of the same range, for atomic views.
    word: AtomicU32,
    /// How often the end of a lease reported that a writer waits.
    restarts: AtomicU32,
}

impl<F: Fences> File<F> {
    fn new(id: u64, blocks: &'static Blocks) -> Arc<Self> {
        Arc::new(Self {
            table: Table::new(id, blocks),
            cell: UnsafeCell::new(0),
            word: AtomicU32::new(0),
            restarts: AtomicU32::new(0),
        })
    }

    /// Reads the cell, if that is permitted right now.
    fn read(&self, block: &'static Block) -> Option<u32> {
        self.read_at(block, CELL())
    }

    /// Reads the cell as if it lay at `range`.
    fn read_at(&self, block: &'static Block, range: ByteRange) -> Option<u32> {
        match self.table.try_shared(Some(block), range, Term::Lasting) {
            Ok(token) => {
                // SAFETY: loom checks the access.
                let value = self.cell.with(|cell| unsafe { *cell });
                self.release(token);
                Some(value)
            }
            Err((_, wake)) => {
                self.restart(wake.writers.is_some());
                None
            }
        }
    }

    /// Holds a lease elsewhere in the file for a moment.
    fn visit_elsewhere(&self, block: &'static Block) {
        if let Ok(token) = self
            .table
            .try_shared(Some(block), ELSEWHERE(), Term::Lasting)
        {
            self.release(token);
        }
    }

    /// Changes the cell, if that is permitted right now.
    fn write(&self) -> bool {
        self.write_at(CELL())
    }

    /// Changes the cell as if it lay at `range`.
    fn write_at(&self, range: ByteRange) -> bool {
        let token = self.table.try_acquire(Kind::Exclusive, range, Asks::Queue);
        match token.unwrap() {
            Some(token) => {
                // SAFETY: loom checks the access.
                self.cell.with_mut(|cell| unsafe { *cell += 1 });
                self.release(token);
                true
            }
            None => false,
        }
    }

    fn release(&self, token: Token) {
        self.restart(self.table.release(token).writers.is_some());
    }

    fn restart(&self, writers: bool) {
        if writers {
            self.restarts.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the end of a lease has restarted the writers.
    fn has_restarted(&self) -> bool {
        self.restarts.load(Ordering::Relaxed) > 0
    }
}

/// Reads the cell on a thread of its own.
fn spawn_read<F: Fences>(file: &Arc<File<F>>, block: &'static Block) -> JoinHandle<Option<u32>> {
    let file = file.clone();
    thread::spawn(move || file.read(block))
}

/// Runs a model with a fresh list of blocks each time.
fn check(model: impl Fn(&'static Blocks) + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(2);
    builder.check(move || model(Box::leak(Box::new(Blocks::new()))));
}

fences!(Right);
