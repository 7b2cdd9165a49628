//! Models of gates and wake-ups: no blocked reader and no blocked writer is forgotten.

use super::*;

/// A gate, lowered by a reader or by the write it was raised for.
fn gate<F: Fences>() {
    check(|blocks| {
        let file = File::<F>::new(1, blocks);
        let until = std::time::Instant::now();
        file.table.raise_gate(&[CELL()], until);
        let block = blocks.claim::<Right>();
        let reader = {
            let file = file.clone();
            thread::spawn(
                move || match file.table.try_shared(Some(block), CELL(), Term::Lasting) {
                    Ok(token) => file.release(token),
                    Err((conflict, wake)) => {
                        file.restart(wake.writers.is_some());
                        if conflict == Conflict::Gate(until) {
                            file.table.lower_gate(until);
                        }
                    }
                },
            )
        };
        let written = file.write();
        reader.join().unwrap();
        assert!(written || file.has_restarted(), "lost wake-up");
        assert!(file.read(block).is_some(), "the gate was not lowered");
    });
}

/// A refused reader is told when the conflicting lease, in the map or of a batch, has ended.
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

#[test]
fn a_gate_is_lowered_in_time() {
    gate::<Right>();
}

#[test]
fn a_waiting_reader_is_told() {
    waiting_reader(true, false);
    waiting_reader(true, true);
}

#[test]
#[should_panic = "lost wake-up"]
fn without_a_note_before_the_last_look() {
    waiting_reader(false, false);
}

/// The second of two writes of a batch overlaps the first, and a reader blocks each of them.
#[test]
fn a_write_behind_another_is_restarted() {
    check(|blocks| {
        let file = File::<Right>::new(1, blocks);
        let [one, two] = [(0, 4), (8, 12)].map(|(start, end)| {
            let range = ByteRange::between(start, end);
            let token = file
                .table
                .try_shared(Some(blocks.claim::<Right>()), range, Term::Lasting);
            let token = token.expect("no lease conflicts with it");
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
        assert!(all || file.has_restarted(), "lost wake-up");
    });
}

/// Two writers want the same bytes, and only one of them waits for the bytes.
#[test]
fn requests_on_equal_ranges_are_distinct() {
    let mut model = Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let blocks: &'static Blocks = Box::leak(Box::new(Blocks::new()));
        let file = File::<Right>::new(1, blocks);
        let held = file
            .table
            .try_shared(Some(blocks.claim::<Right>()), CELL(), Term::Lasting);
        let held = held.expect("no lease conflicts with it");
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
        assert!(written || file.has_restarted(), "lost wake-up");
    });
}
