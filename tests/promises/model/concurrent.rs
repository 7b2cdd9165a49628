//! Threads that write, append, look and give up at the same time, compared with every order that the
//! promises allow.
//!
//! Each operation writes a byte of its own, so that what a look shows tells which operations it has
//! seen, and which of them came later at each byte. That, and what has ended before what began,
//! are the edges of a graph: *this before that*. A write that a look sees in part, an order that
//! differs from byte to byte or from look to look, a write that overtakes an earlier one, and a look
//! that shows what was overwritten before it began: each makes a circle.

mod history;

use std::collections::BTreeSet;
use std::fs;
use std::future::{poll_fn, Future};
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::task::Poll;
use std::thread;

use futures_lite::future::{poll_once, yield_now};
use mmap_io::Result;
use proptest::prelude::*;

use self::history::{History, Written};
use super::{check_many, Records, CASES};
use crate::common::model::ops::{Change, Durability, Look, Op, Record, Step, Upkeep, Way};
use crate::common::model::oracle::range;
use crate::common::model::real::{Got, Outcome, Real, Running};
use crate::common::{is_quiet, on_each_runtime, wait_until, with_timeout, BlockOn};

/// Bytes that are written over and over; appends come behind them.
const LEN: u64 = 6_000;

const THREADS: usize = 3;

/// Operations of one thread, so that each of a round has a byte of its own.
const STEPS: usize = 60;

/// What the outside process appends, a line at a time.
const LINE: &[u8] = b"\xff\xfe\xfd\xfc";

/// One thread's part.
struct Worker<'a> {
    real: &'a Real,
    history: &'a History,
    /// Views, and what they showed first.
    held: Vec<(Got<'a>, Vec<u8>)>,
    /// Changes that have not ended.
    pending: Vec<Pending<'a>>,
}

struct Pending<'a> {
    number: u8,
    future: Running<'a, Outcome<'a>>,
}

fn shown<'a>(got: &'a Got<'_>) -> (u64, &'a [u8]) {
    match got {
        Got::Slice(at, bytes) => (*at, bytes),
        Got::Bytes(at, bytes) => (*at, bytes),
        Got::Copy(at, bytes) => (*at, bytes),
    }
}

impl<'a> Worker<'a> {
    async fn run(&mut self, step: Step, is_outside: bool) {
        let writer = step.handle % self.real.writers;
        let any = step.handle % self.real.handles.len();
        // Inside what is written over and over.
        let inside = |(at, len): (u64, u64)| {
            let at = at % LEN;
            (at, 1 + len % 2_000.min(LEN - at))
        };
        let op = step.op.clone();
        match step.op {
            Op::Change(Change::Write(way, places, _)) => {
                let places: Vec<_> = places.into_iter().map(inside).collect();
                let ranges = places.iter().map(|(at, len)| *at..at + len).collect();
                let number = self.history.begin(&op);
                let future = match way {
                    Way::Regions(durability) => self.write_all(writer, durability, places, number),
                    _ => {
                        let change = Change::Write(way, places, number);
                        self.real.change(writer, &change, 0)
                    }
                };
                let is_one_step = way != Way::Path;
                if is_one_step || self.held.is_empty() {
                    self.submit(number, ranges, future, is_one_step, step.dropped_after)
                        .await;
                }
            }
            // It would keep others, and itself, from the bytes.
            Op::Change(Change::Mutable(place, _)) if self.held.is_empty() => {
                let (at, len) = inside(place);
                let number = self.history.begin(&op);
                let change = Change::Mutable((at, len), number);
                let future = self.real.change(writer, &change, 0);
                let range = at..at + len;
                self.submit(number, vec![range], future, true, step.dropped_after)
                    .await;
                self.finish_pending().await;
            }
            Op::Change(Change::Append(durability, len, _)) => {
                let number = self.history.begin(&op);
                let change = Change::Append(durability, len % 90 + 1, number);
                self.append(writer, number, change, 0, step.dropped_after)
                    .await;
            }
            // Another process would be overwritten.
            Op::Change(Change::AppendAt(_, len, _)) if !is_outside => {
                let number = self.history.begin(&op);
                let change = Change::AppendAt(0, len % 90 + 1, number);
                let expected_len = self.real.handles[writer].len();
                self.append(writer, number, change, expected_len, None)
                    .await;
            }
            Op::Change(Change::Refresh) => {
                let refresh = self.real.handles[any].refresh();
                assert!(self.beside(refresh).await.unwrap() >= LEN);
            }
            Op::Change(Change::GrowTo(_) | Change::Resize(_)) => {
                // Without a byte of its own, it grows nothing.
                let grow = self.real.handles[writer].grow_to(LEN);
                assert!(self.beside(grow).await.unwrap() >= LEN);
            }
            Op::Look(look, place) => {
                self.look(any, look, inside(place), step.dropped_after)
                    .await;
            }
            Op::Atomic {
                size, at, count, ..
            } => {
                let at = (at % LEN) & !7;
                let count = count.min(((LEN - at) / size) as usize);
                let file = &self.real.handles[writer];
                // It blocks others for a moment, or is `Busy`.
                let words = file.atomic_u32_slice(at, count);
                yield_now().await;
                drop(words);
            }
            Op::Keep(Upkeep::Metadata, _) => {}
            Op::Keep(upkeep, place) => {
                let mut keep = self.real.keep(any, upkeep, inside(place));
                match step.dropped_after {
                    Some(_) => drop(poll_once(&mut keep).await),
                    None => self.beside(keep).await.unwrap(),
                }
            }
            Op::DropView(which) if !self.held.is_empty() => {
                let (view, first) = self.held.swap_remove(which % self.held.len());
                assert!(shown(&view).1 == first, "a view has changed");
            }
            Op::Withdraw(_) | Op::Commit(_) => self.drop_views().await,
            _ => {}
        }
        if self.pending.len() > 8 {
            self.drop_views().await;
        }
        if self.held.is_empty() && self.pending.len() > 2 {
            self.finish_pending().await;
        }
    }

    /// As [`Real::change`] does, with one byte for all places.
    fn write_all(
        &self,
        handle: usize,
        durability: Durability,
        places: Vec<(u64, u64)>,
        byte: u8,
    ) -> Running<'a, Outcome<'a>> {
        let file = &self.real.handles[handle];
        Box::pin(async move {
            let data = vec![byte; LEN as usize];
            let part = |(at, len): &(u64, u64)| (*at, &data[..*len as usize]);
            let parts: Vec<_> = places.iter().map(part).collect();
            match durability {
                Durability::ByPolicy => file.update_regions(&parts).await?,
                Durability::Durable => file.update_regions_async(&parts).await?,
            }
            Ok(Outcome::Done)
        })
    }

    /// Polls a change once, and then more often if it is to be dropped; else keeps it.
    async fn submit(
        &mut self,
        number: u8,
        ranges: Vec<Range<u64>>,
        mut future: Running<'a, Outcome<'a>>,
        is_one_step: bool,
        dropped_after: Option<usize>,
    ) {
        let begun = self.history.tick();
        self.history.note(number, |it| {
            it.ranges = ranges;
            it.may_show = true;
            it.begun = begun..u64::MAX;
        });
        if dropped_after == Some(0) {
            return self.history.note(number, |it| it.may_show = false);
        }
        let result = poll_once(&mut future).await;
        if is_one_step {
            let submitted = self.history.tick();
            self.history.note(number, |it| it.begun.end = submitted);
        }
        if let Some(result) = result {
            return self.end(number, result);
        }
        for _ in 1..dropped_after.unwrap_or_default() {
            yield_now().await;
            if let Some(result) = poll_once(&mut future).await {
                return self.end(number, result);
            }
        }
        if dropped_after.is_none() {
            self.pending.push(Pending { number, future });
        }
    }

    fn end(&self, number: u8, result: Result<Outcome<'_>>) {
        match result.unwrap() {
            Outcome::Mutable(mut view) => view.fill(number),
            Outcome::Is(false) => self.history.note(number, |it| it.may_show = false),
            Outcome::Is(true) | Outcome::Done | Outcome::Number(_) => {}
        }
        let ended = self.history.tick();
        self.history.note(number, |it| it.ended = Some(ended));
    }

    /// Appends, and notes where.
    async fn append(
        &mut self,
        handle: usize,
        number: u8,
        change: Change,
        expected_len: u64,
        dropped_after: Option<usize>,
    ) {
        let len = match change {
            Change::Append(_, len, _) | Change::AppendAt(_, len, _) => len,
            _ => unreachable!("an append"),
        };
        // Its place is not known yet.
        let ranges = vec![range((u64::MAX - len, len))];
        let file = &self.real.handles[handle];
        let appended = self.real.change(handle, &change, expected_len);
        let future: Running<'a, Outcome<'a>> = Box::pin(async move {
            let outcome = appended.await?;
            // The handle knows the length that it has appended to.
            if let Outcome::Number(at) = outcome {
                assert!(at >= LEN && at + len <= file.len());
                let shown = file.slice(at, len).await?;
                assert!(shown.iter().all(|byte| *byte == number));
            }
            Ok(outcome)
        });
        self.submit(number, ranges, future, true, dropped_after)
            .await;
    }

    async fn look(
        &mut self,
        handle: usize,
        look: Look,
        place: (u64, u64),
        dropped_after: Option<usize>,
    ) {
        let begun = self.history.tick();
        let mut future = self.real.look(handle, look, place);
        let result = match dropped_after {
            Some(_) => poll_once(&mut future).await,
            None => Some(self.beside(future).await),
        };
        let got = match result {
            Some(Ok(got)) => got,
            None | Some(Err(mmap_io::MmapIoError::Busy { .. })) => return,
            Some(Err(error)) => panic!("{look:?}: {error:?}"),
        };
        for got in got {
            let (at, bytes) = shown(&got);
            let inside = &bytes[..bytes.len().min(LEN.saturating_sub(at) as usize)];
            self.history.saw(begun, at, inside);
            if !matches!(got, Got::Copy(..)) {
                let first = bytes.to_vec();
                self.held.push((got, first));
            }
        }
    }

    async fn drop_views(&mut self) {
        for (view, first) in self.held.drain(..) {
            assert!(shown(&view).1 == first, "a view has changed");
        }
        self.finish_pending().await;
    }

    /// Awaits all changes that have not ended. The caller holds no view.
    async fn finish_pending(&mut self) {
        while !self.pending.is_empty() {
            self.any_ends().await;
        }
    }

    /// Awaits a future, and goes on with the changes: a write may need room that an earlier one has
    /// to take first.
    async fn beside<T>(&mut self, future: impl Future<Output = T>) -> T {
        let changes = async {
            loop {
                self.any_ends().await;
            }
        };
        futures_lite::future::or(future, changes).await
    }

    async fn any_ends(&mut self) {
        let pending = &mut self.pending;
        let (which, result) = poll_fn(|context| {
            for (which, it) in pending.iter_mut().enumerate() {
                if let Poll::Ready(result) = it.future.as_mut().poll(context) {
                    return Poll::Ready((which, result));
                }
            }
            Poll::Pending
        })
        .await;
        let ended = self.pending.remove(which);
        self.end(ended.number, result);
    }
}

/// A process that appends lines, one call each.
fn append_lines(path: &std::path::Path, count: usize) -> Child {
    const SCRIPT: &str =
        r#"while [ "$1" != 0 ]; do printf '\377\376\375\374'; set -- $(($1 - 1)); done"#;
    let file = fs::File::options().append(true).open(path).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", SCRIPT, "sh", &count.to_string()]);
    shell.stdout(Stdio::from(file)).spawn().unwrap()
}

/// What stands behind the first bytes: whole appends, and whole lines.
fn check_tail(written: &[Written], mut tail: &[u8], lines: usize) {
    let (mut found_lines, mut found) = (0, BTreeSet::new());
    while let Some(first) = tail.first() {
        if let Some(rest) = tail.strip_prefix(LINE) {
            found_lines += 1;
            tail = rest;
            continue;
        }
        let it = &written[usize::from(*first)];
        let len = (it.ranges[0].end - it.ranges[0].start) as usize;
        assert!(
            it.may_show && it.ranges[0].end == u64::MAX,
            "not an append: {first}"
        );
        assert!(
            tail[..len].iter().all(|byte| byte == first),
            "{first} is torn"
        );
        assert!(found.insert(*first), "{first} is there twice");
        // Those that were over before it began stand in front of it.
        for (number, other) in written.iter().enumerate().filter(|(_, it)| is_append(it)) {
            if other.ended.is_some_and(|ended| ended < it.begun.start) && other.may_show {
                assert!(
                    found.contains(&(number as u8)),
                    "{number} stands behind {first}"
                );
            }
        }
        tail = &tail[len..];
    }
    assert_eq!(found_lines, lines, "lines of the other process");
    for (number, it) in written.iter().enumerate().filter(|(_, it)| is_append(it)) {
        let is_there = found.contains(&(number as u8));
        let may_be_absent = it.ended.is_none() || !it.may_show;
        assert!(is_there || may_be_absent, "{number} is lost: {}", it.what);
    }
}

fn is_append(it: &Written) -> bool {
    it.ranges.first().is_some_and(|range| range.end == u64::MAX)
}

fn round(block_on: BlockOn, threads: Vec<Vec<Record>>, write_buffer: usize, lines: usize) {
    let dir = tempfile::tempdir().unwrap();
    let (sender, made) = std::sync::mpsc::channel();
    let path = dir.path().to_path_buf();
    block_on(Box::pin(async move {
        let real = Real::new(&path, &[0; LEN as usize], write_buffer).await;
        sender.send(Arc::new(real)).unwrap();
    }));
    let real = made.recv().unwrap();
    let history = Arc::new(History::new());
    let outside = (lines > 0).then(|| append_lines(&real.path, lines));
    thread::scope(|scope| {
        for records in threads {
            let (real, history) = (real.clone(), history.clone());
            scope.spawn(move || {
                block_on(Box::pin(async move {
                    let mut worker = Worker {
                        real: &real,
                        history: &history,
                        held: Vec::new(),
                        pending: Vec::new(),
                    };
                    let all = async {
                        for record in records {
                            worker.run(Step::decode(record), lines > 0).await;
                        }
                        worker.drop_views().await;
                    };
                    with_timeout(all).await;
                }));
            });
        }
    });
    if let Some(mut outside) = outside {
        assert!(outside.wait().unwrap().success());
    }
    let begun = history.tick();
    futures_lite::future::block_on(async {
        let file = &real.handles[0];
        wait_until(file, is_quiet).await;
        let len = file.refresh().await.unwrap();
        let content = file.slice(0, len).await.unwrap();
        assert!(fs::read(&real.path).unwrap() == *content);
        history.saw(begun, 0, &content[..LEN as usize]);
        check_tail(
            &history.written.lock().unwrap(),
            &content[LEN as usize..],
            lines,
        );
    });
    history.check();
}

fn orders_match_promises(block_on: BlockOn) {
    let records = proptest::collection::vec(any::<Record>(), 1..STEPS).prop_map(Records);
    let threads = [(); THREADS].map(|()| records.clone());
    let buffer = prop_oneof![Just(1 << 20), Just(4_000)];
    let lines = prop_oneof![Just(0_usize), Just(40)];
    check_many(
        CASES / 2,
        (threads, buffer, lines),
        |(threads, buffer, lines)| {
            let threads = threads.into_iter().map(|records| records.0).collect();
            round(block_on, threads, buffer, lines);
        },
    );
}

on_each_runtime!(orders, orders_match_promises);
