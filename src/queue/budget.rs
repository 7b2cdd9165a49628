//! The limit on queued writes, in bytes: their data, and the memory that each write costs beside
//! it.
//!
//! There are two accounts of the same size. When the drain finds that a write is blocked by a view,
//! or by an earlier blocked write, it moves the write to the account of blocked writes. So blocked
//! writes take no room from the writes that nothing blocks, which leave their account as fast as
//! the drain applies them. A write that finds no room waits at the [door](super::door).

use crate::sync::{AtomicU64, Ordering};

/// The default limit of an account, in bytes.
const DEFAULT_LIMIT: u64 = 64 << 20;

/// The account that counts the bytes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Account {
    /// The write is not known to be blocked.
    Queued,
    /// The write was found blocked.
    Blocked,
}

/// The number of bytes of queued writes that a file may hold and holds.
///
/// All accesses are Relaxed: each account is a sum, and no other data depends on it. The thread
/// that gives room back and the write that waits for room both check the accounts under the queue's
/// lock.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: AtomicU64,
    /// The used bytes, by account.
    used: [AtomicU64; 2],
    /// The length of the line at the door; changed under the queue's lock.
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

    /// Changes the limit for writes that are admitted from now on. If writes wait, there are writes
    /// that hold room, and these check for waiting writes when they give it back.
    pub(crate) fn set_limit(&self, bytes: usize) {
        self.limit.store(bytes as u64, Ordering::Relaxed);
    }

    /// Returns the sum of both accounts.
    #[cfg(test)]
    pub(super) fn used(&self) -> u64 {
        let used = self.used.iter().map(|used| used.load(Ordering::Relaxed));
        used.sum()
    }

    /// Takes room for a new write, unless earlier writes wait for room.
    pub(super) fn try_enter(&self, bytes: u64) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0 && self.try_take(Account::Queued, bytes)
    }

    /// Takes room. An empty account admits a write that is larger than the limit.
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

    /// Takes room beyond the limit, if necessary.
    pub(super) fn take(&self, account: Account, bytes: u64) {
        self.used[account as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, account: Account, bytes: u64) {
        if bytes > 0 {
            self.used[account as usize].fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Stores how many writes wait in the line. The caller holds the queue's lock.
    pub(super) fn set_waiting(&self, writes: usize) {
        self.waiting.store(writes as u64, Ordering::Relaxed);
    }

    /// Returns a predicate that is called with the weights of writes, in order, and tells which of
    /// them would find room now. After the first write that would not, no write would.
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
    fn an_account_admits_its_limit_or_one_write() {
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
    fn a_new_write_waits_behind_the_line() {
        let budget = Budget::new();
        budget.set_waiting(1);
        assert!(!budget.try_enter(1));
        budget.set_waiting(0);
        assert!(budget.try_enter(1));
    }
}
