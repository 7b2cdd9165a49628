//! Applying a batch of writes: pages first, then leases, then the bytes.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::strategy::{reserve, Plan};
use super::{drop_payloads, Action, Ended, Granted, Op, Outcome, Payload, Queue};
use crate::commit::Commits;
use crate::error::{MmapIoError, Result};
use crate::flush::{Due, Pending};
use crate::lease::{Leases, Want};
use crate::map::{Backing, Map};
use crate::range::ByteRange;
use crate::residency::{self, Unpopulated};
use crate::sys;

/// What writes are applied to.
#[derive(Debug)]
pub(crate) struct Site<'a> {
    pub(crate) backing: &'a Backing,
    pub(crate) map: &'a Map,
    /// Length of the file in bytes; nothing changes it while a batch is applied.
    pub(crate) len: u64,
    /// The descriptor, if what is written through it is seen in the map, and the other way.
    pub(crate) coherent: Option<&'a File>,
    pub(crate) leases: &'a Leases,
    pub(crate) pending: &'a Pending,
    pub(crate) commits: &'a Commits,
    /// When a gate was last raised for a write of this file.
    pub(crate) last_gate: &'a Mutex<Option<Instant>>,
}

/// What became of a batch.
#[derive(Debug)]
pub(crate) struct Applied<L> {
    /// Writes that something was in the way of, in order.
    pub(crate) deferred: Vec<Arc<Op<L>>>,
    /// Writes that are in place, durable or not.
    pub(crate) writes: u64,
    /// Writes that failed.
    pub(crate) errors: u64,
    /// The time at which the file is flushed in the background has changed.
    pub(crate) alarm: bool,
}

/// Applies what can be applied. Writes that are done have ended; those that are to be durable wait
/// for a commit.
///
/// The pages are made writable *before* any lease is taken: that may wait for the disk, and
/// readers of the range go on meanwhile. It also finds a full disk before the first byte changes.
pub(crate) fn apply_writes<L: Granted>(
    site: &Site<'_>,
    queue: &Queue<L>,
    batch: &[Arc<Op<L>>],
    ended: &mut Ended<L>,
) -> Applied<L> {
    let mut applied = Applied {
        deferred: Vec::new(),
        writes: 0,
        errors: 0,
        alarm: false,
    };
    let mut fail = |op: &Arc<Op<L>>, error: MmapIoError| {
        applied.errors += 1;
        queue.finish(op, Err(error), ended);
    };
    let mut ready = check_length(site, batch, &mut fail);
    make_writable(site, &mut ready, &mut fail);

    let mut wants: Vec<Want<'_>> = ready
        .iter()
        .map(|(op, _)| Want {
            ranges: &op.ranges,
            gives_up: matches!(op.action, Action::TryWrite(_)),
            granted: false,
        })
        .collect();
    let leased = match site.leases.begin_batch(&mut wants) {
        Ok(leased) => leased,
        Err(error) => {
            let error = MmapIoError::from(error);
            for (op, _) in &ready {
                fail(op, error.clone());
            }
            return applied;
        }
    };

    let mut payloads = Vec::new();
    let mut written = Vec::with_capacity(ready.len());
    for ((op, plan), want) in ready.iter().zip(&wants) {
        if !want.granted {
            if matches!(op.action, Action::TryWrite(_)) {
                queue.finish(op, Ok(Outcome::InUse), ended);
            } else {
                if op.was_deferred() {
                    raise_gate(site, &op.ranges);
                }
                applied.deferred.push(Arc::clone(op));
            }
            continue;
        }
        if plan.is_direct() {
            // Right before: a file that somebody has cut may not be made longer again.
            if let Err(error) = residency::check_length(site.backing.file(), &op.ranges) {
                applied.errors += 1;
                queue.finish(op, Err(error), ended);
                continue;
            }
        }
        let Some(payload) = queue.begin(op) else {
            continue;
        };
        debug_assert!(!matches!(payload, Payload::Mapped(_)));
        // SAFETY: the map lives and is writable, the ranges are inside the file, and the batch
        // holds an exclusive lease on each; a payload is never in a map of ours.
        let result = unsafe { plan.carry_out(site, &op.ranges, payload.bytes()) };
        payloads.push(payload);
        written.push((*op, result));
    }
    let mut due = Vec::with_capacity(written.len());
    let mut pending = site.pending.writing();
    for (op, _) in &written {
        due.push(pending.wrote(&op.ranges, op.action.policy()));
    }
    drop(pending);
    drop(leased);

    for ((op, result), due) in written.into_iter().zip(due) {
        if let Err(error) = result {
            applied.errors += 1;
            ended.push(op, Err(MmapIoError::from(error)));
            continue;
        }
        applied.writes += 1;
        match due {
            Due::Nothing => ended.push(op, Ok(Outcome::Done)),
            Due::Write => site.commits.add(op.clone(), false),
            Due::Everything => site.commits.add(op.clone(), true),
            // There is nothing to wait for, but for the news that it is in vain.
            Due::Alarm(_) | Due::Alarmed => {
                let failed = site.commits.failure();
                ended.push(op, failed.map_or(Ok(Outcome::Done), Err));
            }
        }
        applied.alarm |= matches!(due, Due::Alarm(_));
    }
    // The owner of a `Bytes` is the user's code.
    drop_payloads(&mut payloads);
    applied
}

/// The writes that lie inside the file: as it should be, and as it is.
fn check_length<'a, L: Send + 'static>(
    site: &Site<'_>,
    batch: &'a [Arc<Op<L>>],
    fail: &mut impl FnMut(&Arc<Op<L>>, MmapIoError),
) -> Vec<Ready<'a, L>> {
    let file_len = site.backing.file().map_or(Ok(site.len), sys::file_len);
    let check = |op: &Op<L>| -> Result<()> {
        op.ranges
            .iter()
            .try_for_each(|range| range.check(site.len))?;
        match &file_len {
            Ok(file_len) if op.ranges.iter().all(|range| range.end() <= *file_len) => Ok(()),
            // Again, for the error.
            _ => residency::check_length(site.backing.file(), &op.ranges),
        }
    };
    let mut ready = Vec::with_capacity(batch.len());
    for op in batch {
        match check(op) {
            Ok(()) => ready.push((op, Plan::of(site, &op.ranges))),
            Err(error) => fail(op, error),
        }
    }
    ready
}

/// A write that may be applied, and how.
type Ready<'a, L> = (&'a Arc<Op<L>>, Plan);

/// Makes room on the disk for all writes, and their pages writable; removes those for which that
/// fails.
fn make_writable<L: Send + 'static>(
    site: &Site<'_>,
    ready: &mut Vec<Ready<'_, L>>,
    fail: &mut impl FnMut(&Arc<Op<L>>, MmapIoError),
) {
    ready.retain(|(op, plan)| match reserve(site, plan) {
        Ok(()) => true,
        Err(error) => {
            fail(op, MmapIoError::from(error));
            false
        }
    });
    let copied = ready.iter().flat_map(|(op, plan)| plan.copied(&op.ranges));
    if populate(site, copied).is_ok() {
        return;
    }
    // Some of them are in trouble: each is asked on its own.
    ready.retain_mut(|(op, plan)| match make_one_writable(site, op, plan) {
        Ok(()) => true,
        Err(error) => {
            fail(op, error);
            false
        }
    });
}

fn make_one_writable<L>(site: &Site<'_>, op: &Op<L>, plan: &mut Plan) -> Result<()> {
    match populate(site, plan.copied(&op.ranges)) {
        Err(Unpopulated::Unexplained(error)) => {
            let direct = Plan::all_direct(site, &op.ranges).ok_or(error)?;
            reserve(site, &direct)?;
            *plan = direct;
            Ok(())
        }
        populated => Ok(populated?),
    }
}

fn populate(
    site: &Site<'_>,
    ranges: impl Iterator<Item = ByteRange> + Clone,
) -> Result<(), Unpopulated> {
    residency::populate_write(site.map, site.backing, ranges)
}

/// Keeps new readers out for a moment, for a write that was in their way before.
fn raise_gate(site: &Site<'_>, ranges: &[ByteRange]) {
    let mut last = site
        .last_gate
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(raised) = site.leases.raise_gate(ranges, *last) {
        *last = Some(raised);
    }
}
