//! Leases in the map of a table, which may live long.

use super::super::kinds::{Conflict, Entry, Kind, Term, Token, Wake};
use super::super::state::Marks;
use super::{Fences, Table};
use crate::range::ByteRange;
use crate::sync::{lock, try_lock};

impl<F: Fences> Table<F> {
    /// Takes a shared lease in the map: for views that may live long or move to another thread.
    pub(crate) fn try_owned(&self, range: ByteRange, term: Term) -> Result<Token, Conflict> {
        let mut state = lock(&self.state);
        match state.conflict(|kind| kind.excludes(Kind::Shared), range) {
            None => Ok(state.insert(Kind::Shared, range, Marks::of(term))),
            Some(conflict) => Err(conflict),
        }
    }

    /// Returns whether no lease conflicts with a reader of `range`, in a forked child: `None` if a
    /// thread of the parent had the lock at the time of the fork.
    pub(crate) fn is_free_for_reader(&self, range: ByteRange) -> Option<bool> {
        let state = try_lock(&self.state)?;
        let conflict = state.conflict(|kind| kind.excludes(Kind::Shared), range);
        // No write comes for which a gate would keep readers off.
        Some(!matches!(
            conflict,
            Some(Conflict::Applying | Conflict::Held)
        ))
    }

    /// Takes another shared lease on bytes that are under a shared lease of the caller. So no other
    /// lease conflicts with it; and a gate holds off only readers that have none.
    pub(crate) fn share_again(&self, range: ByteRange, term: Term) -> Token {
        let mut state = lock(&self.state);
        debug_assert!(state.writer_conflict(Kind::Shared, range).is_none());
        state.insert(Kind::Shared, range, Marks::of(term))
    }

    /// Notes that a caller holds the lease from now on and may keep it: readers that conflict with
    /// it do not wait any more. Returns the readers that wait now, to be woken.
    pub(crate) fn mark_lasting(&self, token: &Token) -> Wake {
        let Token::Entry(entry) = token else {
            return Wake::default();
        };
        let mut state = lock(&self.state);
        let entries = &mut state.entries[entry.kind() as usize];
        entries.value_mut(entry.key()).term = Term::Lasting;
        let range = entries.range(entry.key());
        drop(state);
        self.recheck(range)
    }

    pub(super) fn release_entry(&self, entry: Entry) -> Wake {
        let (kind, key) = (entry.kind(), entry.key());
        let mut state = lock(&self.state);
        let entries = &mut state.entries[kind as usize];
        let range = entries.range(key);
        let writers = entries.remove(key).watched.then_some(range);
        if kind == Kind::Shared {
            return Wake {
                writers,
                readers: Vec::new(),
            };
        }
        state.held = None;
        self.announce(&mut state);
        let ended: &[ByteRange] = match self.waiting.is_empty() {
            true => &[],
            false => &[range],
        };
        drop(state);
        Wake {
            writers,
            readers: self.waiting.overlapping(ended),
        }
    }
}
