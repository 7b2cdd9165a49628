//! The lease protocol of one file: who may look at, change or share which bytes.
//!
//! Readers are frequent and writers rare, so the cost is the writer's. A reader on the fast path
//! stores its range into a slot of its own thread and loads one word of the file; no lock, no
//! allocation, no locked instruction. The word ([`Hull`]) covers every range that a writer has,
//! wants, or that is in atomic use; a reader that finds it empty is done. Another one looks at a
//! second word ([`Stripes`]) as well, which tells ranges far from each other apart; it is done if
//! either word does not cover its range. A reader under both *meets* the writers under the mutex,
//! where the truth is.
//!
//! A writer announces its range in the word, runs a heavy fence, and then, in one critical
//! section, scans the slots and the maps and marks its lease. What the possible orders give:
//!
//! 1. The reader's store is before the writer's fence: the scan sees the slot, the writer is
//!    blocked.
//! 2. It is after the fence: the reader's load sees the announcement, and it takes the mutex.
//!    1. The mutex before the writer's scan: nothing is marked yet, the reader keeps its slot,
//!       and the scan sees it.
//!    2. The mutex after the scan: the lease is marked, the reader takes its slot back.
//! 3. It loads one word from before an announcement and the other from after it. Each word covers
//!    all that is announced, by itself: neither is read in the light of the other, the stripes carry
//!    their own scale, and both stand before the writer's fence. So a reader may go by either one:
//!    after the fence (case 2) it is let through by neither, and if it is let through by a word that
//!    was stored when an earlier lease had ended, the same word makes that lease's writes visible.
//!
//! A blocked writer marks what is in its way as *watched*, and looks once more, after another
//! heavy fence if it was a slot: whoever releases it later sees the mark ([`Wake::writers`]).
//! Slots that appear between the first look and the second belong to readers of case 2.1, and
//! those mark themselves. Then the writer takes its announcement back, so that readers go on
//! undisturbed.
//!
//! The heavy fence interrupts every running thread, so it is not paid twice for the same bytes: what
//! a writer has announced and fenced stays announced (*closed*) after its lease has ended, and a
//! writer inside that range needs no fence, since every reader there comes to the mutex. A writer
//! elsewhere announces all from there to its own range, so that what is closed stays one range: what
//! lies between two ranges that are announced is not. Readers open the range again when they have met
//! no writer there for [`REOPEN_AFTER`] times. A writer alone never fences; readers alone are on the
//! fast path; both together share the cost.
//!
//! The table does no I/O and never waits; it tells its caller whom to wake.
//!
//! Alternatives not taken: a lock-free interval tree (readers would write to shared cache lines);
//! one reader-writer lock for the file (a view would hold up every write); hazard pointers with
//! two fences (three times the cost of a read).

use std::io;
use std::marker::PhantomData;
use std::time::Instant;

use super::announced::{Hull, Stripes};
use super::fence::Fences;
use super::intervals::Intervals;
use super::kinds::{Asks, Conflict, Entry, Kind, Token, Wake, Want};
use super::slots::{Block, Blocks, Slot};
use super::state::{Gate, Marks, Obstacle, Pending, State};
use super::waiting::{Waiter, Waiting};
use crate::range::ByteRange;
use crate::sync::{lock, AtomicU64, Mutex};

/// Meetings with nobody after which a closed range is opened: as many as cost a few microseconds,
/// which is less than the next writer's fence will.
const REOPEN_AFTER: u32 = if cfg!(mmap_io_loom) { 1 } else { 64 };

/// Requests of a file after which the blocks of threads that no longer read are taken off the list.
const TIDY_EVERY: u64 = 64;

/// Writes of at most this many bytes in all are over in a moment: readers wait for them.
pub(crate) const BRIEF: u64 = 1 << 20;

/// The leases of one file.
#[derive(Debug)]
pub(crate) struct Table<F> {
    /// Tells this file's slots from others'; never used twice.
    file: u64,
    blocks: &'static Blocks,
    /// A [`Hull`] over all that readers must not overlook. Stored under the mutex.
    announced: AtomicU64,
    /// The [`Stripes`] of the same. A reader looks at them if the hull is not empty.
    stripes: AtomicU64,
    state: Mutex<State>,
    waiting: Waiting,
    fences: PhantomData<F>,
}

impl<F: Fences> Table<F> {
    pub(crate) fn new(file: u64, blocks: &'static Blocks) -> Self {
        Self {
            file,
            blocks,
            announced: AtomicU64::new(Hull::EMPTY),
            stripes: AtomicU64::new(Stripes::EMPTY),
            state: Mutex::new(State {
                entries: [
                    Intervals::new(),
                    Intervals::new(),
                    Intervals::new(),
                    Intervals::new(),
                ],
                held: None,
                applying: Vec::new(),
                applying_is_brief: true,
                pending: Vec::new(),
                requests: 0,
                closed: None,
                empty_checks: 0,
                gate: None,
                live: Vec::new(),
            }),
            waiting: Waiting::new(),
            fences: PhantomData,
        }
    }

    /// A shared lease in a slot of `block`, which is the calling thread's; in the map without one,
    /// or when all its slots are taken.
    ///
    /// # Errors
    ///
    /// What is in the way, and whom to wake because of the attempt.
    pub(crate) fn try_shared(
        &self,
        block: Option<&'static Block>,
        range: ByteRange,
    ) -> Result<Token, (Conflict, Wake)> {
        match block.and_then(|block| self.publish(block, range)) {
            None => self.try_owned(range).map_err(|met| (met, Wake::default())),
            Some(Ok(slot)) => Ok(Token::Slot(slot)),
            Some(Err(slot)) => self.meet(slot, range),
        }
    }

    /// The fast path: a slot of `block`, if one is free; an error if there are writers to meet.
    #[inline(always)]
    pub(crate) fn publish(
        &self,
        block: &'static Block,
        range: ByteRange,
    ) -> Option<Result<&'static Slot, &'static Slot>> {
        let slot = block.publish::<F>(self.file, range)?;
        F::light();
        // One branch for both.
        let is_quiet = self.announced.load(F::READER_LOAD) | block.unlisted() == Hull::EMPTY;
        Some(match is_quiet || !self.is_announced(block, range) {
            true => Ok(slot),
            false => Err(slot),
        })
    }

    /// Whether both words cover `range`, which was published in `block`.
    #[cold]
    fn is_announced(&self, block: &'static Block, range: ByteRange) -> bool {
        if block.unlisted() != 0 {
            block.list::<F>();
        }
        // The stripes first: they let most readers through that the hull would not.
        Stripes::covers(self.stripes.load(F::READER_LOAD), range)
            && Hull::covers(self.announced.load(F::READER_LOAD), range)
    }

    /// A shared lease in the map: for views that may live long, or change threads.
    pub(crate) fn try_owned(&self, range: ByteRange) -> Result<Token, Conflict> {
        let mut state = lock(&self.state);
        match state.reader_conflict(range) {
            None => {
                let key = state.entries[Kind::Shared as usize].insert(range, Marks::default());
                Ok(Token::Entry(Entry::new(Kind::Shared, key)))
            }
            Some(conflict) => Err(conflict),
        }
    }

    /// A lease of any kind in the map, for one who may run a heavy fence.
    ///
    /// # Errors
    ///
    /// A fence that the system refused.
    pub(crate) fn try_acquire(
        &self,
        kind: Kind,
        range: ByteRange,
        asks: Asks,
    ) -> io::Result<Option<Token>> {
        let mut wants = [Want {
            ranges: &[range],
            gives_up: false,
            granted: false,
        }];
        let marks = Marks {
            watched: false,
            lasting: asks == Asks::Caller,
        };
        self.request(kind, &mut wants, asks, |state, _| {
            if kind != Kind::Shared {
                state.held = None;
            }
            let key = state.entries[kind as usize].insert(range, marks);
            Token::Entry(Entry::new(kind, key))
        })
    }

    /// A caller has the lease from now on, and may keep it: readers that meet it do not wait any
    /// more, and those that wait are to be woken.
    pub(crate) fn mark_lasting(&self, token: &Token) -> Wake {
        let Token::Entry(entry) = token else {
            return Wake::default();
        };
        let mut state = lock(&self.state);
        let entries = &mut state.entries[entry.kind() as usize];
        entries.value_mut(entry.key()).lasting = true;
        let range = entries.range(entry.key());
        drop(state);
        self.recheck(range)
    }

    /// Notes that a reader waits for `range`, before it tries once more.
    pub(crate) fn listen(&self, range: ByteRange) -> Waiter<'_> {
        self.waiting.listen(range)
    }

    /// The readers that wait for a byte of `range`.
    pub(crate) fn recheck(&self, range: ByteRange) -> Wake {
        Wake {
            writers: None,
            readers: self.waiting.overlapping(&[range]),
        }
    }

    /// Exclusive leases for a batch of writes: each want is granted whole or not at all, and not
    /// if an earlier one that overlaps it was not. What is in the way will tell when it goes.
    /// Granted wants may overlap each other; the caller applies them in order. They are given
    /// back together, by [`end_batch`](Self::end_batch).
    ///
    /// There is one batch of a file at a time.
    ///
    /// # Errors
    ///
    /// A fence that the system refused.
    pub(crate) fn begin_batch(&self, wants: &mut [Want<'_>]) -> io::Result<()> {
        self.request(Kind::Exclusive, wants, Asks::Queue, |state, wants| {
            debug_assert!(state.applying.is_empty(), "one batch at a time");
            let granted = wants.iter().filter(|want| want.granted);
            state.applying.extend(granted.flat_map(|want| want.ranges));
            state.applying_is_brief =
                state.applying.iter().map(|range| range.len()).sum::<u64>() <= BRIEF;
            ByteRange::merge(&mut state.applying);
        })?;
        Ok(())
    }

    /// Ends every lease of the batch.
    pub(crate) fn end_batch(&self) -> Wake {
        let mut state = lock(&self.state);
        let ended = match self.waiting.is_empty() {
            true => Vec::new(),
            false => std::mem::take(&mut state.applying),
        };
        state.applying.clear();
        self.announce(&mut state);
        drop(state);
        Wake {
            writers: None,
            readers: self.waiting.overlapping(&ended),
        }
    }

    /// Keeps new readers out of `ranges` until `until`, so that a write that is blocked by ever
    /// new ones gets its turn.
    pub(crate) fn raise_gate(&self, ranges: &[ByteRange], until: Instant) {
        let mut state = lock(&self.state);
        state.gate = Some(Gate {
            ranges: ranges.to_vec(),
            until,
        });
        self.announce(&mut state);
    }

    /// Takes the gate down if it is the one that ends at `until`.
    pub(crate) fn lower_gate(&self, until: Instant) {
        let mut state = lock(&self.state);
        if state.gate.as_ref().is_some_and(|gate| gate.until == until) {
            state.gate = None;
            self.announce(&mut state);
        }
    }

    /// Ends a lease.
    #[inline]
    pub(crate) fn release(&self, token: Token) -> Wake {
        match token {
            Token::Slot(slot) => Wake {
                writers: slot.release::<F>(),
                readers: Vec::new(),
            },
            Token::Entry(entry) => self.release_entry(entry),
        }
    }

    /// Number of leases of the file that are out, the batch apart.
    pub(crate) fn count(&self) -> usize {
        let slots = self.blocks.slots::<F>();
        let live = slots.filter(|slot| slot.live::<F>(self.file).is_some());
        let state = lock(&self.state);
        live.count() + state.entries.iter().map(Intervals::len).sum::<usize>()
    }

    /// The same, after a heavy fence: a lease that is not counted is taken by a thread that sees all
    /// that this one has stored before.
    ///
    /// # Errors
    ///
    /// A fence that the system refused.
    pub(crate) fn count_after_fence(&self) -> io::Result<usize> {
        F::heavy()?;
        Ok(self.count())
    }

    /// Whether a lease is out that its holder may write under, the batch apart.
    pub(crate) fn has_writing_views(&self) -> bool {
        let state = lock(&self.state);
        let mut writing = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Shared);
        writing.any(|kind| !state.entries[kind as usize].is_empty())
    }

    /// The ranges of the leases that share a byte with `range`, in no order, the batch apart. A hint:
    /// a lease that is taken meanwhile may be missing.
    pub(crate) fn leased(&self, range: ByteRange) -> Vec<ByteRange> {
        let slots = self.blocks.slots::<F>();
        let live = slots.filter_map(|slot| slot.live::<F>(self.file));
        let mut leased: Vec<ByteRange> = live.filter(|other| other.overlaps(range)).collect();
        let state = lock(&self.state);
        for entries in &state.entries {
            entries.each_overlap(range, &mut |other| leased.push(other));
        }
        leased
    }

    #[cold]
    fn meet(&self, slot: &'static Slot, range: ByteRange) -> Result<Token, (Conflict, Wake)> {
        let mut state = lock(&self.state);
        match state.reader_conflict(range) {
            None => {
                state.empty_checks += 1;
                // A request that is pending will close what is announced now.
                if state.empty_checks >= REOPEN_AFTER && state.pending.is_empty() {
                    state.closed = None;
                    self.announce(&mut state);
                }
                // A request that is pending looks after this, and sees the slot. If that is its
                // second look, then its mark might be missed; this one is not.
                let is_second = |other: &Pending| other.has_marked && other.hull.overlaps(range);
                if F::MARKS_ITSELF && state.pending.iter().any(is_second) {
                    slot.watch();
                }
                Ok(Token::Slot(slot))
            }
            Some(conflict) => {
                drop(state);
                let wake = Wake {
                    writers: slot.release::<F>(),
                    readers: Vec::new(),
                };
                Err((conflict, wake))
            }
        }
    }

    fn release_entry(&self, entry: Entry) -> Wake {
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

    /// Announces, fences, scans, and marks what was granted, by `mark`; `None` if nothing was.
    fn request<T>(
        &self,
        kind: Kind,
        wants: &mut [Want<'_>],
        asks: Asks,
        mark: impl FnOnce(&mut State, &[Want<'_>]) -> T,
    ) -> io::Result<Option<T>> {
        let all = wants.iter().flat_map(|want| want.ranges);
        let Some(hull) = all.copied().reduce(ByteRange::hull) else {
            return Ok(None);
        };
        let mut state = lock(&self.state);
        let number = state.requests;
        state.requests += 1;
        if number % TIDY_EVERY == TIDY_EVERY - 1 {
            // Now, and not while readers wait for what this request has.
            drop(state);
            self.blocks.tidy::<F>();
            state = lock(&self.state);
        }
        let is_closed = state.closed.is_some_and(|closed| closed.contains(hull));
        let announces = match state.closed {
            Some(closed) if !is_closed && F::ANNOUNCES_WHAT_IS_BETWEEN => closed.hull(hull),
            _ => hull,
        };
        state.pending.push(Pending {
            number,
            hull,
            announces,
            has_marked: false,
        });
        state.empty_checks = 0;
        let mut fenced = Ok(());
        if !is_closed {
            self.announce_with(&mut state, F::ANNOUNCES_STRIPES);
            drop(state);
            fenced = F::heavy();
            state = lock(&self.state);
            if fenced.is_ok() {
                // Both have stayed announced since before a fence that has ended; what lies between
                // them, if they do not touch, has not. Then the older one is opened.
                let touches = |closed: &ByteRange| {
                    closed.start() <= announces.end() && announces.start() <= closed.end()
                        || !F::ANNOUNCES_WHAT_IS_BETWEEN
                };
                let closed = state.closed.filter(touches);
                state.closed = Some(closed.map_or(announces, |closed| closed.hull(announces)));
            }
        }
        if fenced.is_ok() && self.scan(&mut state, kind, wants, asks) {
            // Slots were marked: only a look after another fence tells whether their owners will
            // see the marks.
            let request = state
                .pending
                .iter_mut()
                .find(|other| other.number == number);
            request.expect("pushed above").has_marked = true;
            drop(state);
            fenced = F::heavy_again();
            state = lock(&self.state);
            if fenced.is_ok() {
                self.scan(&mut state, kind, wants, asks);
            }
        }
        let done = state
            .pending
            .iter()
            .position(|other| other.number == number);
        state.pending.swap_remove(done.expect("pushed above"));
        let granted = fenced.is_ok() && wants.iter().any(|want| want.granted);
        let marked = granted.then(|| mark(&mut state, wants));
        let through = |gate: &Gate| {
            let mut granted = wants.iter().filter(|want| want.granted);
            granted.any(|want| want.ranges.iter().any(|range| gate.overlaps(*range)))
        };
        if state.gate.as_ref().is_some_and(through) {
            state.gate = None;
        }
        self.announce(&mut state);
        drop(state);
        fenced.map(|()| marked)
    }

    /// Judges every want; says whether slots were marked as watched.
    fn scan(&self, state: &mut State, kind: Kind, wants: &mut [Want<'_>], asks: Asks) -> bool {
        let mut live = std::mem::take(&mut state.live);
        if kind.excludes(Kind::Shared) {
            for slot in self.blocks.slots::<F>() {
                live.extend(slot.live::<F>(self.file).map(|range| (range, slot)));
            }
        }
        let mut marked = false;
        let mut refused = Intervals::new();
        for want in wants.iter_mut() {
            let overlaps =
                |other: &ByteRange| want.ranges.iter().any(|range| range.overlaps(*other));
            let slots = live.iter().filter(|(range, _)| overlaps(range));
            let is_behind = want.ranges.iter().any(|range| refused.overlaps(*range));
            let mut ranges = want.ranges.iter();
            let obstacle = match is_behind {
                true => None,
                false => ranges.find_map(|range| state.writer_conflict(kind, *range)),
            };
            want.granted = !is_behind && obstacle.is_none() && slots.clone().next().is_none();
            match obstacle {
                _ if asks == Asks::Caller => {}
                // One mark in the map is enough, for it cannot be missed; the slots are not asked
                // to tell, since that would be in vain until this has gone.
                Some(Obstacle::Entry(kind, key)) => {
                    state.entries[kind as usize].value_mut(key).watched = true;
                }
                Some(Obstacle::Applying) => {}
                // All of them: the second look may find one gone that the first one found, and
                // judge a want that was behind another one the first time.
                None => slots.for_each(|(_, slot)| {
                    slot.watch();
                    marked = true;
                }),
            }
            if !want.granted && !want.gives_up {
                for range in want.ranges {
                    refused.insert(*range, ());
                }
            }
        }
        live.clear();
        state.live = live;
        marked
    }

    fn announce(&self, state: &mut State) {
        self.announce_with(state, true);
    }

    fn announce_with(&self, state: &mut State, tells_stripes: bool) {
        let hull = state.all_writers().reduce(ByteRange::hull);
        let stripes = hull.map_or(Stripes::EMPTY, |hull| state.stripes(hull).packed());
        self.announced
            .store(hull.map_or(Hull::EMPTY, Hull::of), F::ANNOUNCE);
        if tells_stripes {
            self.stripes.store(stripes, F::ANNOUNCE);
        }
    }
}
