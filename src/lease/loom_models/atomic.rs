//! Models of atomic leases: the word is changed by atomics under them, and read plainly under
//! shared leases.

use super::order::NoHeavy;
use super::*;

impl<F: Fences> File<F> {
    /// Adds 1 to the word, if that is permitted right now.
    fn count(&self) -> bool {
        let granted = self
            .table
            .try_atomic(Kind::Atomic4, CELL(), Asks::WaitingCaller);
        match granted {
            Ok(token) => {
                self.add();
                self.release(token.unwrap());
                true
            }
            Err(conflict) => {
                // No lease of these models lasts.
                assert_ne!(conflict, Conflict::Held);
                false
            }
        }
    }

    fn add(&self) {
        self.word.fetch_add(1, Ordering::Relaxed);
        // SAFETY: loom checks the access, which no writer may run beside.
        self.cell.with(|cell| unsafe { *cell });
    }

    /// Copies the word, if that is permitted right now.
    fn copy(&self, block: &'static Block) -> bool {
        match self.table.try_shared(Some(block), CELL(), Term::Brief) {
            Ok(token) => {
                self.load_plainly();
                self.release(token);
                return true;
            }
            Err((_, wake)) => self.restart(wake.writers.is_some()),
        }
        let Ok(parts) = self.table.try_copy(CELL(), Term::Brief) else {
            return false;
        };
        for (kind, _, token) in parts {
            match kind {
                Kind::Shared | Kind::Exclusive => self.load_plainly(),
                Kind::Atomic4 | Kind::Atomic8 => {
                    self.word.load(Ordering::Relaxed);
                    // SAFETY: loom checks the access.
                    self.cell.with(|cell| unsafe { *cell });
                }
            }
            self.release(token);
        }
        true
    }

    fn load_plainly(&self) {
        // SAFETY: loom checks that no atomic store runs beside it.
        unsafe { self.word.unsync_load() };
        // SAFETY: loom checks the access.
        self.cell.with(|cell| unsafe { *cell });
    }
}

/// A view, and a copy of its word in a slot.
fn a_view_and_a_copy<F: Fences>() {
    check(|blocks| {
        let file = File::<F>::new(1, blocks);
        let block = blocks.claim::<Right>();
        let reader = {
            let file = file.clone();
            thread::spawn(move || file.copy(block))
        };
        let counted = file.count();
        let copied = reader.join().unwrap();
        assert!(counted || file.has_restarted(), "lost wake-up");
        assert!(copied || counted);
    });
}

/// A view and a writer.
fn a_view_and_a_writer<F: Fences>() {
    check(|blocks| {
        let file = File::<F>::new(1, blocks);
        let view = {
            let file = file.clone();
            thread::spawn(move || file.count())
        };
        let written = file.write();
        let counted = view.join().unwrap();
        assert!(written || file.has_restarted(), "lost wake-up");
        assert!(written || counted);
    });
}

/// A view that may join another one, which ends, and a copy in a slot.
fn a_view_that_joins<F: Fences>() {
    check(|blocks| {
        let file = File::<F>::new(1, blocks);
        let first = file.table.try_atomic(Kind::Atomic4, CELL(), Asks::Caller);
        let first = first.unwrap().unwrap();
        let block = blocks.claim::<Right>();
        let view = {
            let file = file.clone();
            thread::spawn(move || file.count())
        };
        let reader = {
            let file = file.clone();
            thread::spawn(move || file.copy(block))
        };
        file.add();
        file.release(first);
        view.join().unwrap();
        reader.join().unwrap();
    });
}

/// A copy of the word of a view that ends, and a writer that waits for both.
fn a_copy_under_a_view<F: Fences>() {
    check(|blocks| {
        let file = File::<F>::new(1, blocks);
        let first = file.table.try_atomic(Kind::Atomic4, CELL(), Asks::Caller);
        let first = first.unwrap().unwrap();
        let block = blocks.claim::<Right>();
        let view = {
            let file = file.clone();
            thread::spawn(move || {
                file.add();
                file.release(first);
            })
        };
        let reader = {
            let file = file.clone();
            thread::spawn(move || file.copy(block))
        };
        let written = file.write();
        view.join().unwrap();
        let copied = reader.join().unwrap();
        assert!(written || file.has_restarted(), "lost wake-up");
        assert!(written || copied);
    });
}

#[test]
fn a_view_and_a_copy_exclude_each_other() {
    a_view_and_a_copy::<Right>();
}

#[test]
fn a_view_and_a_writer_exclude_each_other() {
    a_view_and_a_writer::<Right>();
}

#[test]
fn a_view_may_join_another() {
    a_view_that_joins::<Right>();
}

#[test]
fn a_copy_may_join_a_view() {
    a_copy_under_a_view::<Right>();
}

#[test]
#[should_panic]
fn without_the_fence_of_a_view() {
    a_view_and_a_copy::<NoHeavy>();
}
needed!(
    without_the_second_fence_of_a_view,
    a_view_and_a_copy,
    fn heavy_again() -> io::Result<()> {
        Ok(())
    }
);
