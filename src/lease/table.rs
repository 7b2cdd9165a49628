//! The lease protocol of one file: it decides which readers and writers may use which bytes.
//!
//! Readers are frequent and writers are rare, so the writers pay. A reader on the fast path stores
//! its range into a slot of its own thread and loads one word of the file; it takes no lock,
//! allocates nothing and runs no locked instruction. The word ([`Hull`]) covers every range that a
//! writer holds or requests, or that is in atomic use. If the word is empty, the reader has its
//! lease. Otherwise the reader also loads a second word ([`Stripes`]), which tells distant ranges
//! apart; the reader has its lease if one of the two words does not cover its range. If both cover
//! it, the reader takes the mutex and compares its range with the exact ones.
//!
//! A writer announces its range in the two words, runs a heavy fence, and then, in one critical
//! section, scans the slots and the maps and records its lease. The possible orders are:
//!
//! 1. The reader's store comes before the writer's fence: the scan sees the slot, and the writer is
//!    blocked.
//! 2. The store comes after the fence: the reader's load sees the announcement, and the reader
//!    takes the mutex.
//!    1. The reader has the mutex before the writer's scan: no lease is recorded yet, the reader
//!       keeps its slot, and the scan sees the slot.
//!    2. The reader has the mutex after the scan: the lease is recorded, and the reader gives its
//!       slot back.
//! 3. The reader loads one word from before an announcement and the other word from after it. Each
//!    word alone covers everything that is announced: the meaning of one does not depend on the
//!    other (the stripes carry their own scale), and the writer stores both before its fence. So a
//!    reader may rely on either word. After the fence (case 2) both words cover its range. If a
//!    word that was stored after the end of an earlier lease does not cover the range, the same
//!    word makes the writes under that lease visible to the reader.
//!
//! A blocked writer marks the conflicting leases as *watched* and scans once more, after another
//! heavy fence if a conflicting lease is in a slot: the thread that releases the lease later sees
//! the mark ([`Wake::writers`]). Slots that appear between the first scan and the second belong to
//! readers of case 2.1, and these readers mark their own slots. Then the writer withdraws its
//! announcement, so that readers go on undisturbed.
//!
//! The heavy fence interrupts every running thread, so no writer pays it twice for the same bytes.
//! The range that a writer has announced and fenced stays announced after its lease has ended; it
//! is called the *fenced* range. A writer inside it needs no fence, since every reader there takes
//! the mutex. A writer elsewhere announces the hull of the fenced range and of its own, so that the
//! fenced range stays one range without gaps: the bytes between two announced ranges are not
//! announced by themselves. Readers open the range again after [`REOPEN_AFTER`] of them have found
//! no writer in it. If only writers use a range, they do not fence again; if only readers use it,
//! they stay on the fast path; if both do, they share the cost.
//!
//! The table does no I/O and never waits; it tells its caller which readers and writers to wake.
//!
//! Alternatives not taken: a lock-free interval tree (readers would write to shared cache lines);
//! one reader-writer lock for the file (a view would block every write); hazard pointers with two
//! fences (three times the cost of a read).

mod atomic;
mod owned;

use std::io;
use std::marker::PhantomData;
use std::time::Instant;

use super::announced::{Hull, Stripes};
use super::fence::Fences;
use super::intervals::Intervals;
use super::kinds::{Asks, Conflict, Kind, Term, Token, Wake, Want};
use super::slots::{Block, Blocks, Slot};
use super::state::{Gate, Marks, Obstacle, Pending, State};
use super::waiting::{Waiter, Waiting};
use crate::range::ByteRange;
use crate::sync::{lock, AtomicU64, Mutex};

/// How many readers in a row must find no writer in the fenced range before it is opened again:
/// these readers together cost a few microseconds, which is less than the fence that the next
/// writer then has to run.
const REOPEN_AFTER: u32 = if cfg!(mmap_io_loom) { 1 } else { 64 };

/// A request announces and fences whole blocks of this many bytes, so that a writer which walks
/// forward fences once a block. A reader does not tell much smaller ranges apart anyway.
const FENCED: u64 = if cfg!(mmap_io_loom) { 1 } else { 64 << 10 };

/// After this many requests of a file, the blocks of threads that no longer read are delisted.
const TIDY_EVERY: u64 = 64;

/// A batch of at most this many bytes ends soon, so readers wait for it.
pub(crate) const BRIEF: u64 = 1 << 20;

/// The leases of one file.
#[derive(Debug)]
pub(crate) struct Table<F> {
    /// Distinguishes the slots of this file from those of other files; never used twice.
    file: u64,
    blocks: &'static Blocks,
    /// A [`Hull`] over everything that readers must not overlook. Stored under the mutex.
    announced: AtomicU64,
    /// The [`Stripes`] of the same ranges. A reader loads them if the hull is not empty.
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
                fenced: None,
                empty_checks: 0,
                gate: None,
                live: Vec::new(),
            }),
            waiting: Waiting::new(),
            fences: PhantomData,
        }
    }

    /// Takes a shared lease in a slot of `block`, which belongs to the calling thread. Without a
    /// block, or if all its slots are taken, the lease goes into the map.
    ///
    /// # Errors
    ///
    /// The conflict, and the writers and readers to wake because of the attempt.
    pub(crate) fn try_shared(
        &self,
        block: Option<&'static Block>,
        range: ByteRange,
        term: Term,
    ) -> Result<Token, (Conflict, Wake)> {
        match block.and_then(|block| self.publish(block, range, term)) {
            None => self
                .try_owned(range, term)
                .map_err(|conflict| (conflict, Wake::default())),
            Some(Ok(slot)) => Ok(Token::Slot(slot)),
            Some(Err(slot)) => self.check_under_lock(slot, range),
        }
    }

    /// The fast path: publishes the lease in a slot of `block`, if one is free. Returns the slot as
    /// an error if the reader has to check for writers under the mutex.
    #[inline(always)]
    pub(crate) fn publish(
        &self,
        block: &'static Block,
        range: ByteRange,
        term: Term,
    ) -> Option<Result<&'static Slot, &'static Slot>> {
        let slot = block.publish::<F>(self.file, range, term)?;
        F::light();
        // One branch for both.
        let is_quiet = self.announced.load(F::READER_LOAD) | block.unlisted() == Hull::EMPTY;
        Some(match is_quiet || self.is_passed(block, range) {
            true => Ok(slot),
            false => Err(slot),
        })
    }

    /// Returns whether the stripes let a reader through, which is in line since views at both ends
    /// of a file leave it to them, or the rest of what there is to ask.
    #[inline(always)]
    fn is_passed(&self, block: &'static Block, range: ByteRange) -> bool {
        let is_clear = || !Stripes::covers(self.stripes.load(F::READER_LOAD), range);
        (block.unlisted() == 0 && is_clear()) || !self.is_announced(block, range)
    }

    /// Returns whether both words cover `range`, which was published in `block`.
    #[cold]
    fn is_announced(&self, block: &'static Block, range: ByteRange) -> bool {
        if block.unlisted() != 0 {
            block.list::<F>();
        }
        // The stripes first: they rule out most conflicts that the hull does not rule out.
        Stripes::covers(self.stripes.load(F::READER_LOAD), range)
            && Hull::covers(self.announced.load(F::READER_LOAD), range)
    }

    /// Takes a lease of any kind in the map, for a caller that may run a heavy fence.
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
        let marks = Marks::of(match asks {
            Asks::Queue => Term::Brief,
            Asks::Caller | Asks::WaitingCaller => Term::Lasting,
        });
        self.request(kind, &mut wants, asks, |state, _| {
            state.insert(kind, range, marks)
        })
    }

    /// Notes that a reader waits for `range`. The reader calls this before it tries once more.
    pub(crate) fn listen(&self, range: ByteRange) -> Waiter<'_> {
        self.waiting.listen(range)
    }

    /// Returns the readers that wait for a byte of `range`, to be woken.
    pub(crate) fn recheck(&self, range: ByteRange) -> Wake {
        Wake {
            writers: None,
            readers: self.waiting.overlapping(&[range]),
        }
    }

    /// Takes exclusive leases for a batch of writes. A want is granted as a whole or not at all,
    /// and it is not granted if an earlier want that overlaps it was refused. Conflicting leases
    /// are marked, so that their end restarts the writers. Granted wants may overlap each other;
    /// the caller applies them in order. The leases are released together, by
    /// [`end_batch`](Self::end_batch).
    ///
    /// A file has one batch at a time.
    ///
    /// # Errors
    ///
    /// A fence that the system refused.
    pub(crate) fn begin_batch(&self, wants: &mut [Want<'_>]) -> io::Result<()> {
        self.request(Kind::Exclusive, wants, Asks::Queue, |state, wants| {
            debug_assert!(state.applying.is_empty(), "a batch is still being applied");
            let granted = wants.iter().filter(|want| want.granted);
            state.applying.extend(granted.flat_map(|want| want.ranges));
            state.applying_is_brief =
                state.applying.iter().map(|range| range.len()).sum::<u64>() <= BRIEF;
            ByteRange::merge(&mut state.applying);
        })?;
        Ok(())
    }

    /// Takes exclusive leases for one write, as a batch of its own, unless a lease conflicts with
    /// them, a lease to write has a byte of `around`, or a fence would be needed. Marks nothing.
    ///
    /// No fence is needed inside the fenced range: a slot is visible to this thread, or its reader
    /// takes the mutex after this call, and finds the batch.
    pub(crate) fn try_begin_unfenced(&self, ranges: &[ByteRange], around: ByteRange) -> bool {
        let Some(hull) = ranges.iter().copied().reduce(ByteRange::hull) else {
            return false;
        };
        if !self.blocks.are_few() {
            // The scan would take long. A request delists the blocks that are not used.
            return false;
        }
        let mut state = lock(&self.state);
        let is_fenced = state.fenced.is_some_and(|fenced| fenced.contains(hull));
        if F::FENCES_THE_UNFENCED && !is_fenced {
            return false;
        }
        debug_assert!(state.applying.is_empty(), "a batch is still being applied");
        let overlaps = |other: ByteRange| ranges.iter().any(|range| range.overlaps(other));
        let is_written =
            |kind: Kind| kind != Kind::Shared && state.entries[kind as usize].overlaps(around);
        let is_viewed =
            |range: &ByteRange| state.writer_conflict(Kind::Exclusive, *range).is_some();
        if Kind::ALL.into_iter().any(is_written) || ranges.iter().any(is_viewed) {
            return false;
        }
        let mut live = self.blocks.slots::<F>();
        if live.any(|slot| slot.live::<F>(self.file).is_some_and(overlaps)) {
            return false;
        }
        state.empty_checks = 0;
        state.applying.extend(ranges);
        state.applying_is_brief = true;
        ByteRange::merge(&mut state.applying);
        true
    }

    /// Ends every lease of the batch.
    pub(crate) fn end_batch(&self) -> Wake {
        let mut state = lock(&self.state);
        let hull = (state.applying.first().copied()).zip(state.applying.last().copied());
        let hull = hull.map(|(first, last)| first.hull(last));
        // What is inside the fenced range stays announced.
        let stays = hull.zip(state.fenced);
        let stays = stays.is_some_and(|(hull, fenced)| fenced.contains(hull));
        let ended = match self.waiting.is_empty() {
            true => Vec::new(),
            false => std::mem::take(&mut state.applying),
        };
        state.applying.clear();
        if !stays {
            self.announce(&mut state);
        }
        drop(state);
        Wake {
            writers: None,
            readers: self.waiting.overlapping(&ended),
        }
    }

    /// Keeps new readers out of `ranges` until `until`, so that a write that a steady stream of
    /// readers has blocked gets its turn.
    pub(crate) fn raise_gate(&self, ranges: &[ByteRange], until: Instant) {
        let mut state = lock(&self.state);
        state.gate = Some(Gate {
            ranges: ranges.to_vec(),
            until,
        });
        self.announce(&mut state);
    }

    /// Lowers the gate if it is the gate that ends at `until`.
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

    /// Returns the number of live leases of the file, without the batch.
    pub(crate) fn count(&self) -> usize {
        let slots = self.blocks.slots::<F>();
        let live = slots.filter(|slot| slot.live::<F>(self.file).is_some());
        let state = lock(&self.state);
        live.count() + state.entries.iter().map(Intervals::len).sum::<usize>()
    }

    /// Whether there is a lease in a slot, or one in the map whose holder has it and may keep it.
    /// Counts no lease that was granted to an operation, and which its caller does not have yet, or
    /// has withdrawn.
    pub(crate) fn has_lasting(&self) -> bool {
        let mut slots = self.blocks.slots::<F>();
        if slots.any(|slot| slot.live::<F>(self.file).is_some()) {
            return true;
        }
        let state = lock(&self.state);
        let everything = ByteRange::between(0, u64::MAX);
        let mut entries = state.entries.iter();
        let lasts = |marks: &Marks| marks.term == Term::Lasting;
        entries.any(|entries| entries.any_overlap(everything, lasts))
    }

    /// Returns the number of [`count`](Self::count) after a heavy fence: if a lease is not counted,
    /// the thread that takes it sees everything that this thread stored before the call.
    ///
    /// # Errors
    ///
    /// A fence that the system refused.
    pub(crate) fn count_after_fence(&self) -> io::Result<usize> {
        F::heavy()?;
        Ok(self.count())
    }

    /// Returns whether there is a live lease, the batch apart, under which its holder may write.
    pub(crate) fn has_writing_views(&self) -> bool {
        let state = lock(&self.state);
        let mut writing = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Shared);
        writing.any(|kind| !state.entries[kind as usize].is_empty())
    }

    /// Notes that another process has cut off `gone`, in each lease under which its holder may
    /// write there; returns whether there is one, the batch apart.
    pub(crate) fn note_cut(&self, gone: ByteRange) -> bool {
        let mut state = lock(&self.state);
        let mut is_written = false;
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Shared) {
            state.entries[kind as usize].change_overlapping(gone, &mut |marks: &mut Marks| {
                let lowest = marks.cut_at.map_or(gone.start(), |at| at.min(gone.start()));
                marks.cut_at = Some(lowest);
                is_written = true;
            });
        }
        is_written
    }

    /// Returns the lowest end that the file has had while the lease lived, if a cut that was
    /// [noted](Self::note_cut) has taken bytes of the lease.
    pub(crate) fn cut_at(&self, token: &Token) -> Option<u64> {
        let Token::Entry(entry) = token else {
            return None;
        };
        let mut state = lock(&self.state);
        let entries = &mut state.entries[entry.kind() as usize];
        entries.value_mut(entry.key()).cut_at
    }

    /// Returns the ranges of the leases that share a byte with `range`, in no particular order and
    /// without the batch. This is a hint: a lease that is taken during the call may be missing.
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

    /// Decides about a lease that was published in `slot` and that both words cover.
    #[cold]
    fn check_under_lock(
        &self,
        slot: &'static Slot,
        range: ByteRange,
    ) -> Result<Token, (Conflict, Wake)> {
        let mut state = lock(&self.state);
        match state.conflict(|kind| kind.excludes(Kind::Shared), range) {
            None => {
                state.empty_checks += 1;
                // A pending request will make the range that it announces now a fenced one.
                if state.empty_checks >= REOPEN_AFTER && state.pending.is_empty() {
                    state.fenced = None;
                    self.announce(&mut state);
                }
                // A pending request scans after this point, so it sees the slot. If that is its
                // second scan, no fence follows the mark that it leaves, and this thread could miss
                // the mark on release. So the reader marks its own slot here, which it cannot miss.
                let is_second = |other: &Pending| other.has_marked && other.hull.overlaps(range);
                if F::READER_MARKS_OWN_SLOT && state.pending.iter().any(is_second) {
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

    /// Announces, fences and scans; records the granted leases by `mark`. Returns `None` if no want
    /// was granted.
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
            // Do this now, and not while readers wait for the leases of this request.
            drop(state);
            self.blocks.tidy::<F>();
            state = lock(&self.state);
        }
        let is_fenced = state.fenced.is_some_and(|fenced| fenced.contains(hull));
        let wide = ByteRange::between(
            hull.start() / FENCED * FENCED,
            hull.end()
                .checked_next_multiple_of(FENCED)
                .unwrap_or(hull.end()),
        );
        let announces = match state.fenced {
            Some(fenced) if !is_fenced && F::ANNOUNCES_GAPS => fenced.hull(wide),
            _ => wide,
        };
        state.pending.push(Pending {
            number,
            hull,
            announces,
            has_marked: false,
        });
        state.empty_checks = 0;
        let mut fence = Ok(());
        if !is_fenced {
            self.announce_with(&mut state, F::ANNOUNCES_STRIPES);
            drop(state);
            fence = F::heavy();
            state = lock(&self.state);
            if fence.is_ok() {
                // Both ranges have been announced since before a fence that has ended. If they do
                // not touch, the bytes between them have not been; then the older range is opened.
                let touches = |older: &ByteRange| {
                    older.start() <= announces.end() && announces.start() <= older.end()
                        || !F::ANNOUNCES_GAPS
                };
                let older = state.fenced.filter(touches);
                state.fenced = Some(older.map_or(announces, |older| older.hull(announces)));
            }
        }
        if fence.is_ok() && self.scan(&mut state, kind, wants, asks) {
            // Slots were marked. Only a scan after another fence tells whether their holders will
            // see the marks.
            let request = state
                .pending
                .iter_mut()
                .find(|other| other.number == number);
            request.expect("pushed above").has_marked = true;
            drop(state);
            fence = F::heavy_again();
            state = lock(&self.state);
            if fence.is_ok() {
                self.scan(&mut state, kind, wants, asks);
            }
        }
        let done = state
            .pending
            .iter()
            .position(|other| other.number == number);
        state.pending.swap_remove(done.expect("pushed above"));
        let granted = fence.is_ok() && wants.iter().any(|want| want.granted);
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
        fence.map(|()| marked)
    }

    /// Grants or refuses every want; returns whether slots were marked as watched.
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
                // One mark in the map is enough, because it cannot be missed. The slots are not
                // marked: the want stays blocked until this lease has ended, whatever the slots do.
                Some(Obstacle::Entry(kind, key)) => {
                    state.entries[kind as usize].value_mut(key).watched = true;
                }
                Some(Obstacle::Applying) => {}
                // Mark every conflicting slot, not only the first. By the second scan one of them
                // may have been released, and a want that was behind another want in the first scan
                // may be judged for the first time.
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
