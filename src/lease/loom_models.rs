//! Models of the lease protocol: every interleaving, and every value that the memory model lets a
//! load see.
//!
//! Readers and writers of one cell go through the real [`Table`]; loom reports any two accesses
//! that are not ordered. The fences are full ones on both sides, since loom knows no others: what
//! makes an asymmetric pair as good is argued in [`fence`](super::fence).
//!
//! Each ordering, and each second fence, is needed: the models named `without_*` weaken one of
//! them, and must fail.

use std::io;

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::Arc;
use loom::thread;

use super::fence::Fences;
use super::kinds::{Asks, Conflict, Kind, Token, Want};
use super::slots::{Block, Blocks};
use super::table::Table;
use crate::range::ByteRange;
use crate::sync::{fence, AtomicU32, Ordering};

/// The range of the cell.
const CELL: fn() -> ByteRange = || ByteRange::between(0, 8);
/// A range that does not overlap it, in another block of the announcement.
const ELSEWHERE: fn() -> ByteRange = || ByteRange::between(1 << 20, (1 << 20) + 8);

/// Ranges far apart, the cell being in the middle one, far from both.
const APART: fn() -> [ByteRange; 3] =
    || [0, 32, 64].map(|block| ByteRange::between(block << 15, (block << 15) + 8));

/// One file with one cell.
struct File<F> {
    table: Table<F>,
    cell: UnsafeCell<u32>,
    /// Times that somebody said that a writer waits.
    told: AtomicU32,
}

impl<F: Fences> File<F> {
    fn new(id: u64, blocks: &'static Blocks) -> Arc<Self> {
        Arc::new(Self {
            table: Table::new(id, blocks),
            cell: UnsafeCell::new(0),
            told: AtomicU32::new(0),
        })
    }

    /// Looks at the cell, if that is permitted right now.
    fn read(&self, block: &'static Block) -> Option<u32> {
        self.read_at(block, CELL())
    }

    /// The same, of a cell that lies at `range`.
    fn read_at(&self, block: &'static Block, range: ByteRange) -> Option<u32> {
        match self.table.try_shared(Some(block), range) {
            Ok(token) => {
                // SAFETY: loom checks the access.
                let value = self.cell.with(|cell| unsafe { *cell });
                self.release(token);
                Some(value)
            }
            Err((_, wake)) => {
                self.tell(wake.writers.is_some());
                None
            }
        }
    }

    /// Holds a lease elsewhere in the file for a moment.
    fn visit_elsewhere(&self, block: &'static Block) {
        if let Ok(token) = self.table.try_shared(Some(block), ELSEWHERE()) {
            self.release(token);
        }
    }

    /// Changes the cell, if that is permitted right now.
    fn write(&self) -> bool {
        self.write_at(CELL())
    }

    /// The same, of a cell that lies at `range`.
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
        self.tell(self.table.release(token).writers.is_some());
    }

    fn tell(&self, writers: bool) {
        if writers {
            self.told.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Runs a model with a fresh list of blocks each time.
fn check(model: impl Fn(&'static Blocks) + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(2);
    builder.check(move || model(Box::leak(Box::new(Blocks::new()))));
}

/// A reader and a writer of the same bytes.
fn one_reader<F: Fences>() {
    check(|blocks| {
        let file = File::<F>::new(1, blocks);
        let reader = {
            let (file, block) = (file.clone(), blocks.claim::<Right>());
            thread::spawn(move || file.read(block))
        };
        let written = file.write();
        let read = reader.join().unwrap();
        // One of them may have been turned away, but not both by each other for good.
        let told = file.told.load(Ordering::Relaxed) > 0;
        assert!(written || told, "a blocked writer was told nothing");
        assert!(read.is_some() || written);
    });
}

/// The reader's slot is taken again, for other bytes, while the writer scans.
fn slot_reuse<F: Fences>() {
    check(|blocks| {
        let file = File::<F>::new(1, blocks);
        let reader = {
            let (file, block) = (file.clone(), blocks.claim::<Right>());
            thread::spawn(move || {
                file.read(block);
                file.visit_elsewhere(block);
            })
        };
        file.write();
        reader.join().unwrap();
    });
}

/// The same, for another file: the mark of a writer must not be taken down by the next lease.
fn slot_reuse_by_another_file<F: Fences>() {
    check(|blocks| {
        let (file, other) = (File::<F>::new(1, blocks), File::<F>::new(2, blocks));
        let block = blocks.claim::<Right>();
        // The lease is dropped by another thread than the one that owns the block.
        let token = file.table.try_shared(Some(block), CELL()).unwrap();
        let dropper = {
            let file = file.clone();
            thread::spawn(move || file.release(token))
        };
        let writer = {
            let file = file.clone();
            thread::spawn(move || file.write())
        };
        other.read(block);
        dropper.join().unwrap();
        let written = writer.join().unwrap();
        assert!(written || file.told.load(Ordering::Relaxed) > 0);
    });
}

/// A reader that opens a closed range, and one that comes after it on the fast path.
fn reopening<F: Fences>() {
    check(|blocks| {
        let file = File::<F>::new(1, blocks);
        let [first, second] = [blocks.claim::<Right>(), blocks.claim::<Right>()];
        let writer = {
            let file = file.clone();
            thread::spawn(move || file.write())
        };
        let opener = {
            let file = file.clone();
            thread::spawn(move || file.read(first))
        };
        file.read(second);
        writer.join().unwrap();
        opener.join().unwrap();
    });
}

/// Two readers, one of which may come between the two looks of a blocked writer.
fn two_readers<F: Fences>() {
    check(|blocks| {
        let file = File::<F>::new(1, blocks);
        let readers = [blocks.claim::<Right>(), blocks.claim::<Right>()].map(|block| {
            let file = file.clone();
            thread::spawn(move || file.read(block))
        });
        let written = file.write();
        for reader in readers {
            reader.join().unwrap();
        }
        assert!(written || file.told.load(Ordering::Relaxed) > 0);
    });
}

/// A writer that finds its range closed by an earlier one runs no fence.
fn two_writers<F: Fences>() {
    check(|blocks| {
        let file = File::<F>::new(1, blocks);
        let block = blocks.claim::<Right>();
        let reader = {
            let file = file.clone();
            thread::spawn(move || file.read(block))
        };
        let writer = {
            let file = file.clone();
            thread::spawn(move || file.write())
        };
        file.write();
        reader.join().unwrap();
        writer.join().unwrap();
    });
}

/// Leases in the map.
fn owned<F: Fences>() {
    check(|blocks| {
        let file = File::<F>::new(1, blocks);
        let reader = {
            let file = file.clone();
            thread::spawn(move || {
                if let Ok(token) = file.table.try_owned(CELL()) {
                    // SAFETY: loom checks the access.
                    file.cell.with(|cell| unsafe { *cell });
                    file.release(token);
                }
            })
        };
        let written = file.write();
        reader.join().unwrap();
        assert!(written || file.told.load(Ordering::Relaxed) > 0);
    });
}

/// A reader and a writer between two views that last, on a range that readers have opened.
fn between_two_views<F: Fences>() {
    check(|blocks| {
        let file = File::<F>::new(1, blocks);
        let [first, middle, last] = APART();
        let views = [first, last].map(|range| {
            let token = file.table.try_acquire(Kind::Exclusive, range, Asks::Caller);
            token.unwrap().expect("no lease conflicts with it")
        });
        let block = blocks.claim::<Right>();
        file.read_at(block, middle).expect("the middle is free");
        let reader = {
            let file = file.clone();
            thread::spawn(move || file.read_at(block, middle))
        };
        let written = file.write_at(middle);
        // The second time, another reader may have to wait for nothing but what is stored.
        let again = file.read_at(blocks.claim::<Right>(), middle);
        let read = reader.join().unwrap();
        assert!(written || file.told.load(Ordering::Relaxed) > 0);
        assert!(read.is_some() || written);
        assert!(again.is_some(), "nothing conflicts with it");
        for token in views {
            let _ = file.table.release(token);
        }
    });
}

/// The same, with a reader that opens the range after the write.
fn between_two_views_reopened<F: Fences>() {
    check(|blocks| {
        let file = File::<F>::new(1, blocks);
        let [first, middle, last] = APART();
        let views = [first, last].map(|range| {
            let token = file.table.try_acquire(Kind::Exclusive, range, Asks::Caller);
            token.unwrap().expect("no lease conflicts with it")
        });
        let [one, other] = [blocks.claim::<Right>(), blocks.claim::<Right>()];
        file.read_at(one, middle).expect("the middle is free");
        let writer = {
            let file = file.clone();
            thread::spawn(move || file.write_at(middle))
        };
        let opener = {
            let file = file.clone();
            thread::spawn(move || file.read_at(one, middle))
        };
        file.read_at(other, middle);
        writer.join().unwrap();
        opener.join().unwrap();
        for token in views {
            let _ = file.table.release(token);
        }
    });
}

/// A reader and a writer of bytes between two ranges that are closed.
fn between_two_writes<F: Fences>() {
    check(|blocks| {
        let file = File::<F>::new(1, blocks);
        let [first, middle, last] = APART();
        let pass = |range| {
            let token = file.table.try_acquire(Kind::Exclusive, range, Asks::Queue);
            let _ = file.table.release(token.unwrap().expect("it is free"));
        };
        pass(first);
        let block = blocks.claim::<Right>();
        let reader = {
            let file = file.clone();
            thread::spawn(move || file.read_at(block, middle))
        };
        // Closes all from the first to the last, so that the next one runs no fence.
        pass(last);
        file.write_at(middle);
        reader.join().unwrap();
    });
}

/// A reader and a writer, and a thread that takes the reader's block off the list.
fn delisting<F: Fences>() {
    check(|blocks| {
        let file = File::<F>::new(1, blocks);
        let block = blocks.claim::<Right>();
        let reader = {
            let file = file.clone();
            thread::spawn(move || file.read(block))
        };
        let delister = thread::spawn(move || blocks.delist::<F>());
        file.write();
        reader.join().unwrap();
        delister.join().unwrap();
    });
}

/// The same, with a writer that takes the block off itself, before it writes.
fn delisting_first<F: Fences>() {
    check(|blocks| {
        let file = File::<F>::new(1, blocks);
        let block = blocks.claim::<Right>();
        let reader = {
            let file = file.clone();
            thread::spawn(move || file.read(block))
        };
        blocks.delist::<F>();
        file.write();
        reader.join().unwrap();
    });
}

/// A block that is off the list, and is taken off again, with a reader that comes twice.
fn delisting_again<F: Fences>() {
    check(|blocks| {
        let file = File::<F>::new(1, blocks);
        let block = blocks.claim::<Right>();
        blocks.delist::<F>();
        let delister = thread::spawn(move || blocks.delist::<F>());
        let reader = {
            let file = file.clone();
            thread::spawn(move || {
                file.read(block);
                file.read(block);
            })
        };
        let written = file.write();
        reader.join().unwrap();
        delister.join().unwrap();
        let told = file.told.load(Ordering::Relaxed) > 0;
        assert!(written || told, "a blocked writer was told nothing");
    });
}

/// A gate, lowered by a reader or by the write it was raised for.
fn gate<F: Fences>() {
    check(|blocks| {
        let file = File::<F>::new(1, blocks);
        let until = std::time::Instant::now();
        file.table.raise_gate(&[CELL()], until);
        let block = blocks.claim::<Right>();
        let reader = {
            let file = file.clone();
            thread::spawn(move || match file.table.try_shared(Some(block), CELL()) {
                Ok(token) => file.release(token),
                Err((conflict, wake)) => {
                    file.tell(wake.writers.is_some());
                    if conflict == Conflict::Gate(until) {
                        file.table.lower_gate(until);
                    }
                }
            })
        };
        let written = file.write();
        reader.join().unwrap();
        assert!(written || file.told.load(Ordering::Relaxed) > 0);
        assert!(file.read(block).is_some(), "the gate is down");
    });
}

/// A reader that was refused is told when what it met has ended, a lease in the map or a batch.
fn waiting_reader(notes_first: bool, is_batch: bool) {
    check(move |blocks| {
        let file = File::<Right>::new(1, blocks);
        let block = blocks.claim::<Right>();
        let writer = {
            let file = file.clone();
            thread::spawn(move || {
                let wake = if is_batch {
                    let mut wants = [Want {
                        ranges: &[CELL()],
                        gives_up: true,
                        granted: false,
                    }];
                    file.table.begin_batch(&mut wants).unwrap();
                    file.table.end_batch()
                } else {
                    let token = file
                        .table
                        .try_acquire(Kind::Exclusive, CELL(), Asks::Caller);
                    token
                        .unwrap()
                        .map(|token| file.table.release(token))
                        .unwrap_or_default()
                };
                wake.readers.len()
            })
        };
        let mut waiter = notes_first.then(|| file.table.listen(CELL()));
        let read = file.read(block);
        waiter.get_or_insert_with(|| file.table.listen(CELL()));
        let told = writer.join().unwrap();
        assert!(read.is_some() || told > 0, "lost wake-up");
    });
}

/// The fences as they are, with one thing about them changed.
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

fences!(Right);

#[test]
fn a_reader_and_a_writer() {
    one_reader::<Right>();
}

#[test]
fn a_slot_that_is_taken_again() {
    slot_reuse::<Right>();
    slot_reuse_by_another_file::<Right>();
}

#[test]
fn what_is_ordered_after_a_light_fence() {
    fences!(Light, fn light_again() {});
    slot_reuse::<Light>();
    reopening::<Light>();
}

#[test]
fn a_range_that_is_opened_again() {
    reopening::<Right>();
}

#[test]
fn a_reader_between_two_looks() {
    two_readers::<Right>();
}

#[test]
fn two_writers_and_a_reader() {
    two_writers::<Right>();
}

#[test]
fn a_lease_in_the_map() {
    owned::<Right>();
}

#[test]
fn a_reader_between_two_views() {
    between_two_views::<Right>();
    fences!(Light, fn light_again() {});
    between_two_views_reopened::<Light>();
}

#[test]
fn a_reader_between_two_writes() {
    between_two_writes::<Right>();
}

#[test]
fn a_block_that_is_taken_off_the_list() {
    fences!(Light, fn light_again() {});
    delisting::<Light>();
    delisting_first::<Light>();
    delisting_again::<Right>();
}

#[test]
fn a_gate_that_is_raised_and_lowered() {
    gate::<Right>();
}

#[test]
fn a_reader_that_waits() {
    waiting_reader(true, false);
    waiting_reader(true, true);
}

#[test]
#[should_panic = "lost wake-up"]
fn without_a_note_before_the_last_look() {
    waiting_reader(false, false);
}

/// Of two writes of a batch the second one overlaps the first, and each has a reader in its way.
#[test]
fn whoever_stands_behind_another_is_told_as_well() {
    check(|blocks| {
        let file = File::<Right>::new(1, blocks);
        let [one, two] = [(0, 4), (8, 12)].map(|(start, end)| {
            let range = ByteRange::between(start, end);
            let token = file.table.try_shared(Some(blocks.claim::<Right>()), range);
            let token = token.expect("nobody else is there");
            let file = file.clone();
            thread::spawn(move || file.release(token))
        });
        let ranges = [ByteRange::between(0, 8), ByteRange::between(4, 12)];
        let mut wants = ranges.each_ref().map(|range| Want {
            ranges: std::slice::from_ref(range),
            gives_up: false,
            granted: false,
        });
        file.table.begin_batch(&mut wants).unwrap();
        let all = wants.iter().all(|want| want.granted);
        let _ = file.table.end_batch();
        one.join().unwrap();
        two.join().unwrap();
        assert!(all || file.told.load(Ordering::Relaxed) > 0, "lost wake-up");
    });
}

/// Two writers want the same bytes, and only one of them waits for them.
#[test]
fn requests_on_equal_ranges_are_not_mistaken_for_each_other() {
    let mut model = Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let blocks: &'static Blocks = Box::leak(Box::new(Blocks::new()));
        let file = File::<Right>::new(1, blocks);
        let held = file.table.try_shared(Some(blocks.claim::<Right>()), CELL());
        let held = held.expect("nobody else is there");
        let again = blocks.claim::<Right>();
        let reader = {
            let file = file.clone();
            thread::spawn(move || {
                file.release(held);
                file.read(again);
            })
        };
        let other = {
            let file = file.clone();
            thread::spawn(move || {
                let token = file
                    .table
                    .try_acquire(Kind::Exclusive, CELL(), Asks::Caller);
                if let Some(token) = token.unwrap() {
                    file.release(token);
                }
            })
        };
        let written = file.write();
        reader.join().unwrap();
        other.join().unwrap();
        assert!(
            written || file.told.load(Ordering::Relaxed) > 0,
            "lost wake-up"
        );
    });
}

/// A model that must fail with one thing about the fences changed.
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

needed!(
    without_the_order_of_a_release,
    one_reader,
    const RELEASE: Ordering = Ordering::Relaxed;
);
needed!(
    without_the_order_of_the_scan,
    one_reader,
    const SCAN: Ordering = Ordering::Relaxed;
);
// The second fence is left out where loom's full one would order what the light one does not;
// without it alone these models pass (`what_is_ordered_after_a_light_fence`).
needed! {
    without_the_order_of_field_stores,
    slot_reuse,
    const FIELD_STORE: Ordering = Ordering::Relaxed;
    fn light_again() {}
}
needed!(
    without_the_order_of_field_loads,
    slot_reuse,
    const FIELD_LOAD: Ordering = Ordering::Relaxed;
);
needed! {
    without_the_order_of_announcements,
    reopening,
    const ANNOUNCE: Ordering = Ordering::Relaxed;
    fn light_again() {}
}
needed! {
    without_the_order_of_meeting,
    reopening,
    const READER_LOAD: Ordering = Ordering::Relaxed;
    fn light_again() {}
}
needed!(
    without_the_stripes_of_a_request,
    between_two_views,
    const ANNOUNCES_STRIPES: bool = false;
);
needed! {
    without_the_order_of_announced_stripes,
    between_two_views_reopened,
    const ANNOUNCE: Ordering = Ordering::Relaxed;
    fn light_again() {}
}
needed! {
    without_the_order_of_meeting_stripes,
    between_two_views_reopened,
    const READER_LOAD: Ordering = Ordering::Relaxed;
    fn light_again() {}
}
needed!(
    without_what_is_between_two_ranges,
    between_two_writes,
    const ANNOUNCES_WHAT_IS_BETWEEN: bool = false;
);
needed!(
    without_the_fence_before_a_block_is_taken_off,
    delisting,
    fn heavy_to_delist() -> io::Result<()> {
        Ok(())
    }
);
needed!(
    without_the_fence_after_a_block_is_listed,
    delisting_again,
    fn after_listing() {}
);
needed!(
    without_a_second_look_at_the_flag,
    delisting_first,
    const LOOKS_AT_THE_FLAG: bool = false;
);
needed! {
    without_the_order_of_bits_that_are_cleared,
    delisting,
    const DELIST: Ordering = Ordering::Relaxed;
    fn light_again() {}
}
needed! {
    without_the_order_of_bits_that_are_looked_at,
    delisting,
    const LISTED: Ordering = Ordering::Relaxed;
    fn light_again() {}
}
needed!(
    without_the_readers_second_fence,
    one_reader,
    fn light_again() {}
);
needed!(
    without_the_writers_second_fence,
    one_reader,
    fn heavy_again() -> io::Result<()> {
        Ok(())
    }
);
needed!(
    without_readers_that_mark_themselves,
    two_readers,
    const MARKS_ITSELF: bool = false;
);

/// No fence between the reader's store and its load.
#[derive(Debug)]
struct NoLight;

impl Fences for NoLight {
    fn light() {}

    fn light_again() {
        fence(Ordering::SeqCst);
    }

    fn heavy() -> io::Result<()> {
        fence(Ordering::SeqCst);
        Ok(())
    }
}

#[test]
#[should_panic]
fn without_the_readers_fence() {
    one_reader::<NoLight>();
}

/// No fence between the writer's announcement and its scan.
#[derive(Debug)]
struct NoHeavy;

impl Fences for NoHeavy {
    fn light() {
        fence(Ordering::SeqCst);
    }

    fn heavy() -> io::Result<()> {
        Ok(())
    }

    fn heavy_again() -> io::Result<()> {
        fence(Ordering::SeqCst);
        Ok(())
    }
}

#[test]
#[should_panic]
fn without_the_writers_fence() {
    one_reader::<NoHeavy>();
}
