//! A model of the crate: operations as data, an interpreter that calls the crate, and one that works
//! on a `Vec<u8>`. This file runs both side by side, and knows what waits for what: which views are
//! alive, and which operations wait for them or for each other.
//!
//! The operations come from one task, so that their order is known; their futures wait side by side.
//! Nothing here relies on whether an operation completes where it is polled or on the pool.

mod changes;
pub(crate) mod ops;
pub(crate) mod oracle;
pub(crate) mod real;
mod views;

use std::collections::VecDeque;
use std::fs;
use std::ops::Range;
use std::path::Path;

use futures_lite::future::{poll_once, yield_now};
use mmap_io::{MmapIoError, Result};

use self::ops::{Change, Look, Op, Place, Record, Step, Upkeep, LEN};
use self::oracle::{range, Oracle};
use self::real::{Got, Outcome, Real, Running};
use self::views::{Held, View, Views};
use super::{pattern, with_timeout};

/// Runs the operations on a file below `dir`, and fails if the crate differs from the model.
pub(crate) async fn run(dir: &Path, records: &[Record], write_buffer: usize) {
    let steps: Vec<_> = records.iter().copied().map(Step::decode).collect();
    let content = pattern(LEN as usize);
    let real = Real::new(dir, &content, write_buffer).await;
    let mut board = Board::new(&real, Oracle::new(content));
    board.has_room = write_buffer > MUCH;
    for (number, step) in steps.iter().enumerate() {
        board.run(step).await;
        board.check(number % 8 == 0, step);
    }
    board.finish().await;
}

/// More bytes than a few operations write.
const MUCH: usize = 500_000;

/// A change that waits.
struct Waiting<'a> {
    handle: usize,
    change: Change,
    claims: Vec<Range<u64>>,
    expected_len: u64,
    /// The least length of the file since it was submitted, in bytes.
    least_len: u64,
    future: Running<'a, Outcome<'a>>,
    /// Its result, from the poll that found it until it is its turn in the model.
    result: Option<Result<Outcome<'a>>>,
}

impl Waiting<'_> {
    /// Whether a part of its bytes has been cut off since it was submitted.
    fn was_cut(&self) -> bool {
        self.claims.iter().any(|claim| claim.end > self.least_len)
    }
}

/// A look that waits for mutable or atomic views.
struct Looking<'a> {
    look: Look,
    place: Place,
    /// As for a change.
    least_len: u64,
    future: Running<'a, Vec<Got<'a>>>,
}

/// Both sides, and what is alive and what waits.
struct Board<'a> {
    real: &'a Real,
    oracle: Oracle,
    views: Views<'a>,
    /// In the order of submission.
    waiting: Vec<Waiting<'a>>,
    looking: VecDeque<Looking<'a>>,
    /// Whether no write ever has to wait for room.
    has_room: bool,
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

impl<'a> Board<'a> {
    fn new(real: &'a Real, oracle: Oracle) -> Self {
        Self {
            real,
            oracle,
            views: Views::default(),
            waiting: Vec::new(),
            looking: VecDeque::new(),
            has_room: true,
        }
    }

    async fn run(&mut self, step: &Step) {
        let real = self.real;
        let any = step.handle % real.handles.len();
        match &step.op {
            Op::Change(change) => self.change(any, change, step.dropped_after).await,
            Op::Look(look, place) => self.look(any, *look, *place, step.dropped_after).await,
            Op::Atomic {
                size,
                at,
                count,
                stored,
            } => {
                let file = &real.handles[any];
                let may_write = any < real.writers;
                let (oracle, views) = (&mut self.oracle, &mut self.views);
                views.take_atomic(file, may_write, oracle, (*size, *at, *count), *stored);
            }
            Op::Keep(upkeep, place) => self.keep(any, *upkeep, *place, step.dropped_after).await,
            Op::AppendOutside(len, byte) => {
                use std::io::Write;
                let data = vec![*byte; *len];
                let file = fs::File::options().append(true).open(&real.path);
                file.unwrap().write_all(&data).unwrap();
                self.oracle.append_outside(&data);
            }
            Op::Claim(which) => {
                let refused = with_timeout(real.claim(any, *which)).await;
                assert!(matches!(refused, Err(MmapIoError::Busy { .. })));
                if Real::claim_opens(*which) {
                    self.oracle.known = self.oracle.content.len() as u64;
                }
            }
            Op::DropView(which) => {
                drop(self.views.take(*which));
                self.settle().await;
            }
            Op::Commit(which) => match self.views.take(*which).map(|view| view.held) {
                Some(Held::Mutable(view)) => {
                    with_timeout(view.commit()).await.unwrap();
                    self.settle().await;
                }
                view => {
                    drop(view);
                    self.settle().await;
                }
            },
            Op::Store(which, byte) => self.views.store(*which, *byte, &mut self.oracle),
            Op::Withdraw(which) => {
                if !self.waiting.is_empty() {
                    drop(self.waiting.remove(which % self.waiting.len()));
                    self.settle().await;
                } else if !self.looking.is_empty() {
                    self.looking.pop_front();
                }
            }
        }
    }

    /// What holds at any time when nothing is being applied.
    fn check(&self, whole: bool, step: &Step) {
        self.views.check(step);
        for file in &self.real.handles {
            assert_eq!(file.len(), self.oracle.known, "{step:?}");
        }
        if whole {
            let content = fs::read(&self.real.path).unwrap();
            assert!(content == self.oracle.content, "the file differs: {step:?}");
        }
    }

    async fn finish(mut self) {
        // Among them mutable views that were waited for.
        loop {
            while !self.views.is_empty() {
                drop(self.views.take(0));
                self.settle().await;
            }
            if self.waiting.is_empty() && self.looking.is_empty() {
                break;
            }
            self.settle().await;
            assert!(!self.views.is_empty(), "something waits for no view");
        }
        let first = &self.real.handles[0];
        with_timeout(first.flush()).await.unwrap();
        assert_eq!(first.pending_bytes(), 0);
        let content = fs::read(&self.real.path).unwrap();
        assert!(
            content == self.oracle.content,
            "the file differs at the end"
        );
        let known = self.oracle.known;
        for file in &self.real.handles {
            let shown = with_timeout(file.slice(0, known)).await.unwrap();
            assert!(shown[..] == content[..known as usize]);
        }
        let quiet = async {
            loop {
                let stats = first.stats();
                if stats.views == 0 && stats.queued_writes == 0 && stats.queued_bytes == 0 {
                    break;
                }
                yield_now().await;
            }
        };
        with_timeout(quiet).await;
    }

    async fn look(&mut self, handle: usize, look: Look, place: Place, dropped: Option<usize>) {
        if let Look::Pinned = look {
            // It opens the file first.
            self.oracle.known = self.oracle.content.len() as u64;
        }
        let mut future = self.real.look(handle, look, place);
        let covers = self.covers(look, place);
        if !self.oracle.has(&range(place)) && look.has_a_range(place.1) {
            let result = with_timeout(future).await;
            let is_out = matches!(result, Err(MmapIoError::OutOfBounds { .. }));
            assert!(is_out, "{look:?} of {place:?} is not out of bounds");
            return;
        }
        let blocked = self.views.conflict(&covers, look.asks());
        if !look.waits() {
            match with_timeout(future).await {
                Err(MmapIoError::Busy { .. }) => assert!(blocked, "{look:?} of {place:?}"),
                Ok(got) if got.is_empty() => assert!(
                    covers.is_empty() || look == Look::TrySlice,
                    "{look:?} of {place:?}"
                ),
                result => {
                    assert!(
                        !blocked,
                        "{look:?} of {place:?} shows what is being changed"
                    );
                    self.show(result.unwrap(), look);
                }
            }
            return;
        }
        // The pieces of a stream that waits are of different moments.
        let dropped = match look {
            Look::Stream(_) if blocked => Some(2),
            _ => dropped,
        };
        if let Some(polls) = dropped {
            for _ in 0..polls {
                if poll_once(&mut future).await.is_some() {
                    assert!(!blocked, "{look:?} of {place:?}");
                    break;
                }
                yield_now().await;
            }
            return;
        }
        self.looking.push_back(Looking {
            look,
            place,
            least_len: self.oracle.known,
            future,
        });
        self.settle_looks().await;
    }

    /// The bytes that a look shows.
    fn covers(&self, look: Look, (at, len): Place) -> Range<u64> {
        match look {
            Look::Chunks(_) | Look::ChunksOwned(_) => 0..self.oracle.known,
            Look::Reader => at + len / 2..at + len,
            _ => at..at + len,
        }
    }

    /// Awaits each look that no view blocks; the changes have settled before.
    async fn settle_looks(&mut self) {
        for _ in 0..self.looking.len() {
            let mut looking = self.looking.pop_front().expect("one of them");
            let look = looking.look;
            let place = self.covers(look, looking.place);
            // Then it fails, but perhaps not before the view that it waits for is gone.
            let was_cut = range(looking.place).end > looking.least_len;
            let conflict = self.views.conflict(&place, look.asks());
            let result = match conflict {
                true => poll_once(&mut looking.future).await,
                false => Some(with_timeout(&mut looking.future).await),
            };
            match result {
                None => self.looking.push_back(looking),
                Some(Ok(got)) => {
                    assert!(!conflict, "{look:?} of {place:?} does not wait");
                    self.show(got, look);
                }
                Some(Err(error)) => {
                    let no_bounds = !look.has_a_range(looking.place.1);
                    assert!(was_cut && !no_bounds, "{look:?} of {place:?}: {error:?}");
                }
            }
        }
    }

    /// Compares what a look shows, and keeps the views.
    fn show(&mut self, got: Vec<Got<'a>>, look: Look) {
        for got in got {
            let (at, len) = match &got {
                Got::Slice(at, bytes) => (*at, bytes.len()),
                Got::Bytes(at, bytes) => (*at, bytes.len()),
                Got::Copy(at, bytes) => (*at, bytes.len()),
            };
            if len == 0 {
                continue;
            }
            let place = at..at + len as u64;
            assert!(
                self.oracle.has(&place),
                "{look:?} of {place:?} shows what was cut off"
            );
            let expected = self.oracle.at(&place);
            match got {
                Got::Copy(_, bytes) => assert!(bytes == expected, "{look:?} at {at}"),
                Got::Slice(at, bytes) => {
                    assert!(*bytes == *expected, "{look:?} at {at}");
                    self.views.push(View::new(at, Held::Slice(bytes)));
                }
                Got::Bytes(at, bytes) => {
                    assert!(bytes == expected, "{look:?} at {at}");
                    self.views.push(View::new(at, Held::Bytes(bytes)));
                }
            }
        }
    }

    async fn keep(&mut self, handle: usize, upkeep: Upkeep, place: Place, dropped: Option<usize>) {
        let mut future = self.real.keep(handle, upkeep, place);
        if let Some(polls) = dropped.filter(|_| !matches!(upkeep, Upkeep::Reopen)) {
            for _ in 0..polls {
                if poll_once(&mut future).await.is_some() {
                    break;
                }
            }
            return;
        }
        let is_inside = place.1 == 0 || self.oracle.has(&range(place));
        match with_timeout(future).await {
            Err(MmapIoError::OutOfBounds { .. }) => {
                assert!(
                    upkeep.has_a_range() && !is_inside,
                    "{upkeep:?} of {place:?}"
                );
            }
            // The limit of the process.
            Err(MmapIoError::LockFailed(_)) if matches!(upkeep, Upkeep::Lock) => {}
            result => {
                result.unwrap();
                assert!(
                    !upkeep.has_a_range() || is_inside,
                    "{upkeep:?} of {place:?}"
                );
            }
        }
        match upkeep {
            Upkeep::Reopen => self.oracle.known = self.oracle.content.len() as u64,
            Upkeep::Flush if handle < self.real.writers => {
                let pending = self.real.handles[0].pending_bytes();
                assert_eq!(pending, 0, "pending after a flush");
            }
            _ => {}
        }
    }
}
