//! Changes: what they wait for, the order in which they end, and what is left of those whose future
//! was dropped.

use std::fs;
use std::future::{poll_fn, Future};
use std::mem::replace;
use std::ops::Range;
use std::task::Poll;

use futures_lite::future::{poll_once, yield_now};
use mmap_io::{MmapIoError, Result};

use super::ops::{Change, Way};
use super::oracle::{range, Answer};
use super::real::Outcome;
use super::views::Asks;
use super::{overlap, with_timeout, Board, Waiting};

impl Board<'_> {
    pub(super) async fn change(
        &mut self,
        handle: usize,
        change: &Change,
        dropped_after: Option<usize>,
    ) {
        if let Change::Write(Way::Path, ..) = change {
            // Opening it takes note of its length, and the write takes its turn in bytes that were
            // appended, too.
            let file_len = self.oracle.content.len() as u64;
            let known = replace(&mut self.oracle.known, file_len);
            if self.is_blocked(change, &self.oracle.claims(change), self.waiting.len()) {
                // The file would be opened before that.
                self.oracle.known = known;
                return;
            }
        }
        if let Change::WriteOwn(from, _, len) = change {
            // It has no source then.
            if self.views.conflict(&range((*from, *len)), Asks::Shared) {
                return;
            }
        }
        let may_write = handle < self.real.writers;
        // An offset and a length that `append_at` is called with.
        let expected_len = match change {
            Change::AppendAt(behind, ..) => self.oracle.known + behind,
            _ => 0,
        };
        let mut future = self.real.change(handle, change, expected_len);
        if let Some(answer) = self.oracle.answer_at_once(change, may_write) {
            let result = with_timeout(future).await;
            assert_answer(&result, answer, change);
            return;
        }
        let claims = self.oracle.claims(change);
        let blocked = self.is_blocked(change, &claims, self.waiting.len());
        let views_before = self.real.handles[handle].stats().views;
        match change {
            Change::TryMutable(place, byte) => {
                match with_timeout(future).await.unwrap() {
                    Outcome::Mutable(view) => {
                        assert!(!blocked, "granted beside another: {change:?}");
                        self.oracle.apply(change, &claims, 0);
                        self.views.take_mutable(place.0, view, *byte);
                    }
                    // Part of what was applied last may not be over for the queue.
                    Outcome::Is(false) => {}
                    _ => panic!("the outcome is of another kind"),
                }
                return;
            }
            Change::Write(Way::Try, ..) if blocked => {
                let result = with_timeout(future).await;
                assert_answer(&result, Answer::Is(false), change);
                return;
            }
            // It would hold its source while it waits, as in the model it does not.
            Change::WriteOwn(..) if blocked => return,
            // After a shrink it takes another turn, which is the last then.
            Change::Copy if blocked => {
                for _ in 0..2 {
                    assert!(poll_once(&mut future).await.is_none(), "{change:?}");
                }
                return;
            }
            _ => {}
        }
        let is_one_step = !matches!(change, Change::Write(Way::Path, ..) | Change::WriteOwn(..));
        if let Some(polls) = dropped_after.filter(|_| is_one_step) {
            let mut result = None;
            for _ in 0..polls {
                result = poll_once(&mut future).await;
                if result.is_some() {
                    break;
                }
                yield_now().await;
            }
            let Some(result) = result else {
                drop(future);
                if !blocked {
                    self.find_out(handle, change, claims, expected_len, views_before)
                        .await;
                }
                return;
            };
            assert!(
                !blocked,
                "it has ended before what it waits for: {change:?}"
            );
            future = Box::pin(std::future::ready(result));
        }
        self.waiting.push(Waiting {
            handle,
            change: change.clone(),
            claims,
            expected_len,
            least_len: self.oracle.known,
            future,
            result: None,
        });
        self.settle().await;
    }

    /// Whether a change is blocked: by one of the first `earlier` changes that wait, or by a view.
    /// A change that is out of bounds in its turn fails without waiting for views.
    fn is_blocked(&self, change: &Change, claims: &[Range<u64>], earlier: usize) -> bool {
        let overlaps = |other: &Range<u64>| claims.iter().any(|claim| overlap(claim, other));
        let mut waiting = self.waiting[..earlier].iter();
        if waiting.any(|waiting| waiting.claims.iter().any(overlaps)) {
            return true;
        }
        let asks = match change {
            Change::Append(..) | Change::AppendAt(..) | Change::GrowTo(_) | Change::Refresh => {
                return false
            }
            Change::Copy => Asks::Shared,
            _ => Asks::Alone,
        };
        let fails = !matches!(change, Change::Resize(_) | Change::Copy)
            && claims.iter().any(|claim| !self.oracle.has(claim));
        !fails && claims.iter().any(|claim| self.views.conflict(claim, asks))
    }

    /// Finds out whether an operation whose future was dropped took effect: all of it, or nothing.
    async fn find_out(
        &mut self,
        handle: usize,
        change: &Change,
        claims: Vec<Range<u64>>,
        expected_len: u64,
        views_before: usize,
    ) {
        let real = self.real;
        let file = &real.handles[handle];
        let mut outcomes = vec![self.oracle.clone()];
        let mut changed = |change: &Change| {
            let mut other = outcomes[0].clone();
            other.apply(change, &claims, expected_len);
            outcomes.push(other);
        };
        match change {
            // Each prefix of its steps.
            Change::EachChunk { chunk, byte, stop } => {
                let chunks = claims[0].end.div_ceil(*chunk);
                for stop in 0..chunks.min(*stop + 1) {
                    let (chunk, byte) = (*chunk, *byte);
                    changed(&Change::EachChunk { chunk, byte, stop });
                }
            }
            Change::Mutable(..) => {}
            _ => changed(change),
        }
        // An operation behind it in the order, which waits for nothing else.
        let mut appended = 0;
        match change {
            Change::Append(..) | Change::AppendAt(..) | Change::Resize(_) | Change::GrowTo(_) => {
                self.beside(file.append(b"+")).await.unwrap();
                appended = 1;
            }
            Change::Refresh => {
                self.beside(file.refresh()).await.unwrap();
                self.oracle.known = self.oracle.content.len() as u64;
                return;
            }
            Change::Copy => {
                let over = async {
                    while file.stats().views != views_before {
                        yield_now().await;
                    }
                };
                return with_timeout(over).await;
            }
            _ => {
                for claim in &claims {
                    let len = claim.end - claim.start;
                    let view = self.beside(file.as_slice_mut(claim.start, len)).await;
                    drop(view.unwrap());
                }
            }
        }
        let mut content = fs::read(&self.real.path).unwrap();
        let known = file.len() - appended;
        content.truncate(content.len() - appended as usize);
        let found = outcomes.into_iter().find(|outcome| {
            // An append takes note of the length.
            outcome.content == content && (appended > 0 || outcome.known == known)
        });
        self.oracle = found.unwrap_or_else(|| panic!("half of it was done: {change:?}"));
        self.note_len();
        if appended > 0 {
            self.oracle.append_outside(b"+");
            self.oracle.known = self.oracle.content.len() as u64;
        }
    }

    /// Awaits what nothing blocks, and polls the changes that wait: a write may need room that an
    /// earlier one has to take first.
    async fn beside<T>(&mut self, future: impl Future<Output = T>) -> T {
        let future = with_timeout(future);
        let changes = async {
            loop {
                any_ends(&mut self.waiting).await;
            }
        };
        futures_lite::future::or(future, changes).await
    }

    /// Awaits every change and every look that is no longer blocked.
    pub(super) async fn settle(&mut self) {
        loop {
            if let Some(next) = (0..self.waiting.len()).find(|next| self.may_end(*next)) {
                self.end(next);
                continue;
            }
            if poll_once(any_ends(&mut self.waiting)).await.is_some() {
                continue;
            }
            if !self.is_any_due() {
                if self.withdraw_a_cut_one() {
                    continue;
                }
                break;
            }
            with_timeout(any_ends(&mut self.waiting)).await;
        }
        for waiting in &self.waiting {
            let change = &waiting.change;
            assert!(waiting.result.is_none(), "not its turn: {change:?}");
        }
        self.settle_looks().await;
    }

    /// Withdraws a change that is blocked, and of whose bytes a part has been cut off and come back:
    /// it may have failed in between, and then what it blocks may be applied at any time.
    fn withdraw_a_cut_one(&mut self) -> bool {
        let has_end = |it: &Waiting<'_>| it.claims.iter().all(|claim| claim.end < u64::MAX);
        let is_cut = |it: &Waiting<'_>| it.result.is_none() && it.was_cut() && has_end(it);
        let found = self.waiting.iter().position(is_cut);
        found.map(|at| drop(self.waiting.remove(at))).is_some()
    }

    fn is_any_due(&self) -> bool {
        let mut waiting = self.waiting.iter().enumerate();
        waiting.any(|(next, it)| !self.is_blocked(&it.change, &it.claims, next))
    }

    /// Whether a change has ended, and it is its turn in the model.
    fn may_end(&self, next: usize) -> bool {
        let waiting = &self.waiting[next];
        let Some(result) = &waiting.result else {
            return false;
        };
        // What was cut off, and no earlier change can bring back, need not wait for its turn; a later
        // growth may have come since.
        let mut earlier = self.waiting[..next].iter().flat_map(|it| &it.claims);
        let is_gone = matches!(result, Err(MmapIoError::OutOfBounds { .. }))
            && waiting.was_cut()
            && earlier.all(|claim| claim.end < u64::MAX);
        if is_gone {
            return true;
        }
        // A growth that the model has not seen may have brought it into bounds.
        let is_inside = waiting.claims.iter().all(|claim| self.oracle.has(claim));
        let is_inside = is_inside || !waiting.change.fills();
        (result.is_err() || is_inside) && !self.is_blocked(&waiting.change, &waiting.claims, next)
    }

    /// What waits has seen this length.
    pub(super) fn note_len(&mut self) {
        let known = self.oracle.known;
        for waiting in &mut self.waiting {
            waiting.least_len = waiting.least_len.min(known);
        }
        for looking in &mut self.looking {
            looking.least_len = looking.least_len.min(known);
        }
    }

    fn end(&mut self, next: usize) {
        let waiting = self.waiting.remove(next);
        let was_cut = waiting.was_cut();
        let (change, claims) = (&waiting.change, &waiting.claims);
        let result = waiting.result.expect("it has ended");
        if matches!(result, Err(MmapIoError::OutOfBounds { .. })) {
            // A shrink went first.
            assert!(was_cut, "{change:?}");
            return;
        }
        let before = self.oracle.clone();
        let mut answer = self.oracle.apply(change, claims, waiting.expected_len);
        if let (Change::GrowTo(_), Ok(Outcome::Number(len))) = (change, &result) {
            // The length is that of the last poll, and a later change may have been applied by then.
            let mut later = self.waiting.iter();
            if later.any(|it| it.claims.iter().any(|claim| claim.end == u64::MAX)) {
                answer = Answer::Number(*len);
            }
        }
        if let (Change::Write(Way::Try, ..), Ok(Outcome::Is(false))) = (change, &result) {
            assert!(!self.has_room, "nothing is in use: {change:?}");
            self.oracle = before;
            return;
        }
        assert_answer(&result, answer, change);
        self.note_len();
        match (change, result) {
            (Change::Mutable((at, len), byte), Ok(Outcome::Mutable(view))) => {
                let place = range((*at, *len));
                let alone = !self.views.conflict(&place, Asks::Alone);
                assert!(alone, "granted beside another: {change:?}");
                assert!(*view == *before.at(&place), "{change:?}");
                self.views.take_mutable(*at, view, *byte);
            }
            (Change::Copy, Ok(_)) => {
                let copy = fs::read(self.real.copy()).unwrap();
                assert!(copy == before.content[..before.known as usize]);
            }
            (Change::Write(_, places, _), Ok(_)) => {
                // A later change may have overwritten it by now.
                let mut later = self.waiting.iter();
                if later.any(|it| {
                    it.claims
                        .iter()
                        .any(|it| claims.iter().any(|one| overlap(one, it)))
                }) {
                    return;
                }
                let file = &self.real.handles[waiting.handle];
                for place in places {
                    if let Ok(Some(shown)) = file.try_as_slice(place.0, place.1) {
                        assert!(shown[..] == *self.oracle.at(&range(*place)), "{change:?}");
                    }
                }
            }
            _ => {}
        }
    }
}

/// Polls the changes that have not ended, until one of them ends. It polls all of them, since one may
/// need room that another has to take first.
async fn any_ends(waiting: &mut [Waiting<'_>]) {
    poll_fn(|context| {
        let mut found = Poll::Pending;
        for waiting in waiting.iter_mut().filter(|it| it.result.is_none()) {
            if let Poll::Ready(result) = waiting.future.as_mut().poll(context) {
                waiting.result = Some(result);
                found = Poll::Ready(());
            }
        }
        found
    })
    .await;
}

fn assert_answer(result: &Result<Outcome<'_>>, answer: Answer, change: &Change) {
    let is_so = match (result, answer) {
        (Ok(Outcome::Done | Outcome::Mutable(_)), Answer::Done) => true,
        (Ok(Outcome::Is(is)), Answer::Is(expected)) => *is == expected,
        // The view of no bytes.
        (Ok(Outcome::Mutable(view)), Answer::Is(true)) => view.is_empty(),
        (Ok(Outcome::Number(number)), Answer::Number(expected)) => *number == expected,
        (Err(MmapIoError::OutOfBounds { .. }), Answer::OutOfBounds) => true,
        (Err(MmapIoError::InvalidMode(_)), Answer::InvalidMode) => true,
        (Err(MmapIoError::ResizeFailed(_)), Answer::ResizeFailed) => true,
        _ => false,
    };
    let found = match result {
        Ok(Outcome::Done) => "done".to_owned(),
        Ok(Outcome::Is(is)) => is.to_string(),
        Ok(Outcome::Number(number)) => number.to_string(),
        Ok(Outcome::Mutable(_)) => "a view".to_owned(),
        Err(error) => format!("{error:?}"),
    };
    assert!(is_so, "{change:?}: expected {answer:?}, found {found}");
}
