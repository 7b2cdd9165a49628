//! Leases on bytes in atomic use: those of atomic views, and those of copies made of such bytes.
//!
//! Accesses of different sizes to one word must not race, and neither must an atomic store and a
//! plain load. So a copy of bytes that are in atomic use is itself an atomic user of the same kind
//! for as long as it reads; and bytes that a copy reads plainly are not used atomically until it
//! has ended.

use std::io;

use super::super::kinds::{Asks, Conflict, Kind, Term, Token};
use super::super::slots::Slot;
use super::super::state::Marks;
use super::{Fences, Table};
use crate::range::ByteRange;
use crate::sync::lock;

impl<F: Fences> Table<F> {
    /// Takes the leases under which a copy reads `range`, part by part: where the bytes are in
    /// atomic use, a lease of that kind, and shared leases between those. All of them or none, so
    /// that the copy shows each write whole or not at all.
    ///
    /// Runs no fence: a part in atomic use is [joined](Self::try_atomic), and shared leases in the
    /// map need none.
    pub(crate) fn try_copy(
        &self,
        range: ByteRange,
        term: Term,
    ) -> Result<Vec<(Kind, ByteRange, Token)>, Conflict> {
        let mut state = lock(&self.state);
        if let Some(conflict) = state.conflict(|kind| kind == Kind::Exclusive, range) {
            return Err(conflict);
        }
        let parts = state.copy_parts(range).into_iter();
        let marks = Marks::of(term);
        let leased = parts.map(|(kind, part)| (kind, part, state.insert(kind, part, marks)));
        Ok(leased.collect())
    }

    /// Takes an atomic lease for a caller that may keep it.
    ///
    /// If a live lease of the same kind contains the range, the new lease *joins* it and runs no
    /// fence: that lease has found no reader and no writer there, has kept them out since, and has
    /// announced the range. Otherwise the lease is taken as by [`try_acquire`](Self::try_acquire).
    ///
    /// # Errors
    ///
    /// The conflict; inside the result, a fence that the system refused.
    #[cfg_attr(not(feature = "atomic"), allow(dead_code))]
    pub(crate) fn try_atomic(
        &self,
        kind: Kind,
        range: ByteRange,
        asks: Asks,
    ) -> Result<io::Result<Token>, Conflict> {
        let mut state = lock(&self.state);
        match state.conflict(|other| kind.excludes(other), range) {
            // It ends soon, and a request has to mark it.
            None | Some(Conflict::Applying) => {}
            Some(conflict) => return Err(conflict),
        }
        let held = &state.entries[kind as usize];
        let contains = |key| held.range(key).contains(range);
        if held.find_overlap(range).is_some_and(contains) {
            return Ok(Ok(state.insert(kind, range, Marks::of(Term::Lasting))));
        }
        drop(state);
        match self.try_acquire(kind, range, asks) {
            Ok(Some(token)) => Ok(Ok(token)),
            Ok(None) => Err(self.conflict_of_atomic(kind, range)),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Returns what conflicts with an atomic lease that was refused. A conflict that has ended in
    /// the meantime is one that ends soon.
    fn conflict_of_atomic(&self, kind: Kind, range: ByteRange) -> Conflict {
        let state = lock(&self.state);
        if let Some(conflict) = state.conflict(|other| kind.excludes(other), range) {
            return conflict;
        }
        let lasts = |slot: &Slot| {
            let lasting = slot.lasting::<F>(self.file);
            lasting.is_some_and(|other| other.overlaps(range))
        };
        match self.blocks.slots::<F>().any(lasts) {
            true => Conflict::Held,
            false => Conflict::Applying,
        }
    }
}
