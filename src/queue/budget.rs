//! The bound on queued writes, in bytes: of their data, and of what each costs beside it.
//!
//! There are two accounts of the same size. What a view blocks, or an earlier write that a view
//! blocks, moves to an account of its own when the drain finds that out, so that it takes no room
//! from writes that nothing blocks; those leave theirs as fast as the drain applies them, whatever
//! views there are. What finds neither account open waits at the [door](super::door).

use crate::sync::{AtomicU64, Ordering};

/// Bytes that an account holds at a time, unless told otherwise.
const DEFAULT_LIMIT: u64 = 64 << 20;

/// Where the bytes of a write are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Account {
    /// Nothing is known to block it.
    Queued,
    /// It was found blocked.
    Blocked,
}

/// How many bytes of writes a file may hold, and how many it does.
///
/// Relaxed throughout: each account is a sum, and nothing else follows from it. Room that is given
/// back is looked for under the queue's lock, by the one who gave it back and by the one who waits.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: AtomicU64,
    /// By account.
    used: [AtomicU64; 2],
    /// Length of the line at the door; changed under the queue's lock.
    waiting: AtomicU64,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self {
            limit: AtomicU64::new(DEFAULT_LIMIT),
            used: [AtomicU64::new(0), AtomicU64::new(0)],
            waiting: AtomicU64::new(0),
        }
    }

    /// Changes the limit, for what is admitted from now on. If writes wait, others hold room, and
    /// will give it back.
    pub(crate) fn set_limit(&self, bytes: usize) {
        self.limit.store(bytes as u64, Ordering::Relaxed);
    }

    /// What both accounts hold.
    #[cfg(test)]
    pub(super) fn used(&self) -> u64 {
        let used = self.used.iter().map(|used| used.load(Ordering::Relaxed));
        used.sum()
    }

    /// Takes room for a newcomer, who overtakes no one.
    pub(super) fn try_enter(&self, bytes: u64) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0 && self.try_take(Account::Queued, bytes)
    }

    /// Takes room. More than the limit are let in where nothing else is.
    pub(super) fn try_take(&self, account: Account, bytes: u64) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let fits = |used: u64| {
            let total = used.checked_add(bytes)?;
            (used == 0 || total <= limit).then_some(total)
        };
        self.used[account as usize]
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .is_ok()
    }

    /// Takes room that may not be there.
    pub(super) fn take(&self, account: Account, bytes: u64) {
        self.used[account as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, account: Account, bytes: u64) {
        if bytes > 0 {
            self.used[account as usize].fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Says how many writes wait at the door; the queue's lock is held.
    pub(super) fn set_waiting(&self, writes: usize) {
        self.waiting.store(writes as u64, Ordering::Relaxed);
    }

    /// Which of the writes of these weights, in order, would find room now; from the first one on
    /// that would not, none does.
    pub(super) fn would_take(&self, account: Account) -> impl FnMut(u64) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let mut used = self.used[account as usize].load(Ordering::Relaxed);
        move |bytes| {
            let total = used.saturating_add(bytes);
            let fits = used == 0 || total <= limit;
            used = if fits { total } else { u64::MAX };
            fits
        }
    }
}

#[cfg(all(test, not(mmap_io_loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_account_takes_its_limit_or_one_larger_write() {
        let budget = Budget::new();
        budget.set_limit(100);
        for account in [Account::Queued, Account::Blocked] {
            let mut would_take = budget.would_take(account);
            assert_eq!([60, 40, 1].map(&mut would_take), [true, true, false]);
            assert_eq!([101, 1].map(budget.would_take(account)), [true, false]);
            assert!(budget.try_take(account, 60));
            assert!(!budget.try_take(account, 41));
            assert!(budget.try_take(account, 40));
            assert!(!budget.would_take(account)(1));
            budget.give_back(account, 100);
            assert!(budget.try_take(account, 1000));
            assert!(!budget.try_take(account, 1));
            assert_eq!(budget.used(), 1000);
            budget.give_back(account, 1000);
        }
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_newcomer_does_not_pass_the_line() {
        let budget = Budget::new();
        budget.set_waiting(1);
        assert!(!budget.try_enter(1));
        budget.set_waiting(0);
        assert!(budget.try_enter(1));
    }
}
