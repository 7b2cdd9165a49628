//! Applies the operations that the queue hands to a file.
//!
//! A batch of writes is applied here: first their pages are made writable, then the leases are
//! taken, then the bytes are copied. Every other operation comes alone, and is dispatched from
//! here.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::nearby::nearby;
use super::resize::Longer;
use super::write_plan::{reserve, WritePlan, WriteTarget};
use super::{OpenFile, OwnedLease};
use crate::dirty::FlushDue;
use crate::error::{MmapIoError, Result};
use crate::flush::FlushPolicy;
use crate::lease::{Asks, Intervals, Kind, Lease, Want};
use crate::map::{Map, Protection};
use crate::queue::{Action, AllSteps, Ended, Granted, Op, Outcome, Payload, Queue, QueueHost};
use crate::range::ByteRange;
use crate::residency::{self, Unpopulated};
use crate::sync::lock;
use crate::sys;

/// For how many ranges of a batch further pages are made writable.
const MOST_WITH_NEARBY: usize = 16;

pub(super) type Operation = Arc<Op<OwnedLease>>;
/// A write whose ranges are inside the file, and its plan.
type Ready<'a> = (&'a Operation, WritePlan);
/// A write that was applied, and its result.
pub(super) type Written<'a> = (&'a Operation, io::Result<()>);

impl QueueHost for OpenFile {
    type Lease = OwnedLease;
    type Steps = AllSteps;

    fn queue(&self) -> &Queue<OwnedLease> {
        &self.queue
    }

    fn apply(
        self: &Arc<Self>,
        batch: &[Operation],
        ended: &mut Ended<OwnedLease>,
    ) -> Vec<Operation> {
        if self.refuse_faulted(batch, ended) {
            return Vec::new();
        }
        let op = match batch {
            [op] => op,
            [first, ..] if matches!(first.action, Action::Append(_)) => {
                return self.apply_appends(batch, ended)
            }
            writes => return self.apply_writes(writes, ended),
        };
        let range = op.ranges[0];
        let starts = || self.queue.take_payload(op).is_some();
        let outcome = match op.action {
            Action::Write(_) | Action::TryWrite(_) => return self.apply_writes(batch, ended),
            Action::Append(_) | Action::AppendAt(..) => return self.apply_appends(batch, ended),
            Action::Lease(kind) => self
                .lease(kind, range, kind == Kind::Exclusive)
                .map(|lease| lease.map(Outcome::Leased)),
            Action::LeaseUnpopulated => self
                .lease(Kind::Exclusive, range, false)
                .map(|lease| lease.map(Outcome::Leased)),
            Action::Resize => self
                .resize(range.start(), starts)
                .map(|resized| resized.then_some(Outcome::Done)),
            Action::GrowTo => self
                .grow(range.start(), Longer::Welcome, starts)
                .map(|grown| grown.then_some(Outcome::Done)),
            Action::SetLenIfEmpty => self
                .set_len_if_empty(range.start(), starts)
                .map(|grown| grown.then_some(Outcome::Done)),
            Action::AdoptFileLen => self.adopt_file_len().map(|()| Some(Outcome::Done)),
        };
        match outcome.transpose() {
            Some(outcome) => {
                self.queue.complete(op, outcome, ended);
                Vec::new()
            }
            None => batch.to_vec(),
        }
    }

    fn leased(&self, ranges: &[ByteRange]) -> Vec<ByteRange> {
        let leased = ranges.iter().map(|range| self.hot.leases.leased(*range));
        leased.flatten().collect()
    }

    fn name(&self) -> Option<&Path> {
        self.name.get()
    }
}

impl Granted for OwnedLease {
    fn delivered(&self) {
        self.mark_lasting();
        // Another opening may wait for the file to be closed. The view counts as a use of the file
        // from now on, so that opening must check again, and not wait for a future that may have
        // been forgotten (`mem::forget`).
        self.host().closed.notify();
    }
}

impl OpenFile {
    /// Grants the lease of a view or a snapshot; `None` while another lease or operation conflicts
    /// with it. First makes the pages writable, if asked to.
    fn lease(
        self: &Arc<Self>,
        kind: Kind,
        range: ByteRange,
        populates: bool,
    ) -> Result<Option<OwnedLease>> {
        let Some(mut held) = self.hold_origin(&[range]) else {
            return Ok(None);
        };
        range.check(self.len())?;
        if populates {
            let mapped = self.writable()?;
            residency::check_length(mapped.backing.file(), &[range])?;
            if let Some(map) = mapped.current() {
                self.make_range_writable(&map, range)?;
            }
        }
        // One range has one lease on the origin, if there is an origin.
        let companion = held.pop();
        let this = self.clone();
        Ok(Lease::try_acquire_with(
            this,
            kind,
            range,
            Asks::Queue,
            companion,
        )?)
    }

    /// Makes the pages of a range writable in a map of the file, if the disk has room for all of
    /// them. Blocks.
    pub(crate) fn make_range_writable(&self, map: &Map, range: ByteRange) -> Result<()> {
        let fs_traits = self.writable()?.fs_traits;
        residency::make_writable(map, map.backing(), fs_traits, range)
    }

    /// Applies a batch of writes, and returns the writes whose ranges are in use. Writes that must
    /// be durable are handed to the commits; all other writes have ended.
    ///
    /// The pages are made writable *before* any lease is taken: that may wait for the disk, and
    /// readers of the ranges are not blocked in the meantime. It also finds a full disk before the
    /// first byte changes.
    fn apply_writes(
        self: &Arc<Self>,
        batch: &[Operation],
        ended: &mut Ended<OwnedLease>,
    ) -> Vec<Operation> {
        if !self.is_private() {
            return self.apply_held(batch, ended);
        }
        let mut blocked = Intervals::new();
        let (mut ready, mut held, mut deferred) = (Vec::new(), Vec::new(), Vec::new());
        for op in batch {
            // An operation does not overtake one that waits for the origin.
            let is_behind = op.ranges.iter().any(|range| blocked.overlaps(*range));
            let leases = match is_behind {
                true => None,
                false => self.hold_origin(&op.ranges),
            };
            if let Some(leases) = leases {
                held.extend(leases);
                ready.push(op.clone());
            } else if !self.gives_up(op, ended) {
                for range in &*op.ranges {
                    blocked.insert(*range, ());
                }
                deferred.push(op.clone());
            }
        }
        deferred.extend(self.apply_held(&ready, ended));
        deferred
    }

    /// Applies a batch of writes whose pages nothing changes in the meantime but these writes.
    fn apply_held(
        self: &Arc<Self>,
        batch: &[Operation],
        ended: &mut Ended<OwnedLease>,
    ) -> Vec<Operation> {
        let (mapped, map) = match (self.writable(), self.map(Protection::ReadWrite)) {
            (Ok(mapped), Some(map)) => (mapped, map),
            _ => unreachable!("a write comes from a handle that may write a file with bytes"),
        };
        let target = WriteTarget {
            file: self,
            backing: &mapped.backing,
            fs_traits: mapped.fs_traits,
            map: &map,
            len: self.len(),
            coherent: match mapped.fs_traits.coherent_writes {
                true => mapped.backing.stored_file(),
                false => None,
            },
        };
        let mut ready = self.check_lengths(&target, batch, ended);
        self.make_writable(&target, &mut ready, ended);
        let mut wants: Vec<Want<'_>> = ready
            .iter()
            .map(|(op, _)| Want {
                ranges: &op.ranges,
                gives_up: matches!(op.action, Action::TryWrite(_)),
                granted: false,
            })
            .collect();
        let lease = match self.hot.leases.begin_batch(&mut wants) {
            Ok(lease) => lease,
            Err(error) => {
                let error = MmapIoError::from(error);
                for (op, _) in &ready {
                    self.fail(op, error.clone(), ended);
                }
                return Vec::new();
            }
        };
        let mut written = Vec::with_capacity(ready.len());
        let mut deferred = Vec::new();
        for ((op, plan), want) in ready.iter().zip(&wants) {
            match want.granted {
                true => written.extend(self.copy(&target, op, plan, ended)),
                false => deferred.extend(self.refuse(op, ended)),
            }
        }
        let due = self.record(&written);
        drop(lease);
        self.account(written, due, ended);
        deferred
    }

    /// Returns the writes whose ranges are inside both the known and the actual length of the file,
    /// each with its plan. The other writes fail.
    fn check_lengths<'a>(
        &self,
        target: &WriteTarget<'_>,
        batch: &'a [Operation],
        ended: &mut Ended<OwnedLease>,
    ) -> Vec<Ready<'a>> {
        let file_len = target.backing.file().map_or(Ok(target.len), sys::file_len);
        let check = |op: &Op<OwnedLease>| -> Result<()> {
            op.ranges
                .iter()
                .try_for_each(|range| range.check(target.len))?;
            match &file_len {
                Ok(file_len) if op.ranges.iter().all(|range| range.end() <= *file_len) => Ok(()),
                // The check is repeated to get its error.
                _ => residency::check_length(target.backing.file(), &op.ranges),
            }
        };
        let mut ready = Vec::with_capacity(batch.len());
        for op in batch {
            match check(op) {
                Ok(()) => ready.push((op, WritePlan::of(target, &op.ranges))),
                Err(error) => self.fail(op, error, ended),
            }
        }
        ready
    }

    /// Reserves disk space for all writes, and makes their pages writable. Fails and removes the
    /// writes for which that is impossible.
    fn make_writable(
        &self,
        target: &WriteTarget<'_>,
        ready: &mut Vec<Ready<'_>>,
        ended: &mut Ended<OwnedLease>,
    ) {
        ready.retain(|(op, plan)| match reserve(target, plan) {
            Ok(()) => true,
            Err(error) => {
                self.fail(op, MmapIoError::from(error), ended);
                false
            }
        });
        let copied = ready
            .iter()
            .flat_map(|(op, plan)| plan.memcpy_parts(&op.ranges));
        let nearby = self.nearby_pages(target, ready);
        // In one call: a look at pages that are clean makes all pages around them forgotten.
        if !nearby.is_empty() {
            let all = copied.clone().chain(nearby.iter().copied());
            if populate(target, all).is_ok() {
                return;
            }
        }
        if populate(target, copied).is_ok() {
            return;
        }
        // It failed for some of the writes, so each is tried on its own.
        ready.retain_mut(|(op, plan)| match make_one_writable(target, op, plan) {
            Ok(()) => true,
            Err(error) => {
                self.fail(op, error, ended);
                false
            }
        });
    }

    /// Returns the pages that are made writable beside those of the writes; see [`nearby`].
    fn nearby_pages(&self, target: &WriteTarget<'_>, ready: &[Ready<'_>]) -> Vec<ByteRange> {
        // Durable writes make their hops in any case.
        let may_be_here = |(op, plan): &&Ready<'_>| {
            op.action.policy() != FlushPolicy::Always && !plan.is_direct()
        };
        let mut walk = lock(&self.walk);
        let ranges = ready.iter().filter(may_be_here);
        let ranges = ranges.flat_map(|(op, _)| op.ranges.iter());
        ranges
            .take(MOST_WITH_NEARBY)
            .filter_map(|range| nearby(&mut walk, target, *range))
            .collect()
    }

    /// Starts a write whose ranges are leased, unless it was withdrawn, and copies its data.
    fn copy<'a>(
        &self,
        target: &WriteTarget<'_>,
        op: &'a Operation,
        plan: &WritePlan,
        ended: &mut Ended<OwnedLease>,
    ) -> Option<Written<'a>> {
        if plan.is_direct() {
            // Immediately before the write: `pwrite` would make a file longer again that another
            // process has cut.
            if let Err(error) = residency::check_length(target.backing.file(), &op.ranges) {
                self.fail(op, error, ended);
                return None;
            }
        }
        let payload = self.queue.take_payload(op)?;
        debug_assert!(!matches!(payload, Payload::Mapped(_)));
        // SAFETY: `target` borrows a live map of `Protection::ReadWrite`; `check_lengths` has
        // checked that the ranges are inside the file; `begin_batch` has granted this write an
        // exclusive lease on each range; and the queue has copied payloads that were in a map of
        // this crate.
        let result = unsafe { plan.execute(target, &op.ranges, payload.bytes()) };
        // Later, since dropping a `Bytes` may run the user's code.
        ended.drop_later(payload);
        Some((op, result))
    }

    /// Returns a write whose ranges are in use, to be deferred; a `TryWrite` is completed instead.
    fn refuse(&self, op: &Operation, ended: &mut Ended<OwnedLease>) -> Option<Operation> {
        if self.gives_up(op, ended) {
            return None;
        }
        if op.was_deferred() {
            self.raise_gate(&op.ranges);
        }
        Some(op.clone())
    }

    /// Completes a `TryWrite`, whose range is in use, and returns whether it was one.
    fn gives_up(&self, op: &Operation, ended: &mut Ended<OwnedLease>) -> bool {
        let gives_up = matches!(op.action, Action::TryWrite(_));
        if gives_up {
            self.queue.complete(op, Ok(Outcome::InUse), ended);
        }
        gives_up
    }

    /// Holds off new readers for a moment, for a write that was blocked before.
    fn raise_gate(&self, ranges: &[ByteRange]) {
        let mut last = lock(&self.last_gate);
        if let Some(raised) = self.hot.leases.raise_gate(ranges, *last) {
            *last = Some(raised);
        }
    }

    /// Records what was written as dirty, while it is still leased. Returns what each write's
    /// policy wants to be flushed now.
    pub(super) fn record(&self, written: &[Written<'_>]) -> Vec<FlushDue> {
        let mut dirty = self.dirty.lock();
        let record = |(op, _): &Written<'_>| dirty.record(op.written(), op.action.policy());
        written.iter().map(record).collect()
    }

    /// Completes the writes, except those that must be durable: the commits complete these.
    pub(super) fn account(
        self: &Arc<Self>,
        written: Vec<Written<'_>>,
        due: Vec<FlushDue>,
        ended: &mut Ended<OwnedLease>,
    ) {
        self.set_alarm_if_due(&due);
        let mut applied = 0;
        // Only the drain, which this is, takes note of what another process cuts off. Of lost pages a
        // flush may take note; that shows below.
        let losses = self.losses();
        // After the copies: what went to a page that is lost has reached only the zeroes.
        let whole = self.check_maps();
        for ((op, result), due) in written.into_iter().zip(due) {
            if let Err(error) = whole.clone().and(result.map_err(MmapIoError::from)) {
                self.fail(op, error, ended);
                continue;
            }
            applied += 1;
            match due {
                FlushDue::None => ended.push(op, Ok(op.success())),
                FlushDue::ThisWrite => self.commits.add(op.clone(), false, losses),
                FlushDue::AllDirty => self.commits.add(op.clone(), true, losses),
                // The background flush is not awaited. But once a flush has failed, no later one
                // can succeed, so that is reported now.
                FlushDue::ArmTimer(_) | FlushDue::TimerArmed => {
                    let failed = self.commits.failure();
                    ended.push(op, failed.map_or_else(|| Ok(op.success()), Err));
                }
            }
        }
        self.counters.writes.fetch_add(applied, Ordering::Relaxed);
    }

    /// Counts a write that has failed here, for the statistics.
    pub(crate) fn count_failed_write(&self) {
        self.counters.write_errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn fail(&self, op: &Operation, error: MmapIoError, ended: &mut Ended<OwnedLease>) {
        if op.action.is_write() {
            self.count_failed_write();
        }
        self.queue.complete(op, Err(error), ended);
    }
}

fn make_one_writable(
    target: &WriteTarget<'_>,
    op: &Op<OwnedLease>,
    plan: &mut WritePlan,
) -> Result<()> {
    match populate(target, plan.memcpy_parts(&op.ranges)) {
        Err(Unpopulated::Unexplained(error)) => {
            let direct = WritePlan::all_direct(target, &op.ranges).ok_or(error)?;
            reserve(target, &direct)?;
            *plan = direct;
            Ok(())
        }
        populated => Ok(populated?),
    }
}

fn populate(
    target: &WriteTarget<'_>,
    ranges: impl Iterator<Item = ByteRange> + Clone,
) -> Result<(), Unpopulated> {
    residency::populate_write(target.map, target.backing, target.fs_traits, ranges)
}
