//! What each operation does to a `Vec<u8>`: the interpreter that knows nothing of the crate.

use std::ops::Range;

use super::ops::{Change, Place, Way};

/// The content of the file, and how long its handles believe it to be: another process may have
/// appended to it since.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Oracle {
    pub(crate) content: Vec<u8>,
    pub(crate) known: u64,
}

/// How a change ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    Is(bool),
    /// An offset or a length.
    Number(u64),
    OutOfBounds,
    InvalidMode,
    ResizeFailed,
}

pub(crate) fn range((at, len): Place) -> Range<u64> {
    at..at + len
}

pub(crate) fn indices(range: &Range<u64>) -> Range<usize> {
    range.start as usize..range.end as usize
}

impl Oracle {
    pub(crate) fn new(content: Vec<u8>) -> Self {
        let known = content.len() as u64;
        Self { content, known }
    }

    pub(crate) fn has(&self, range: &Range<u64>) -> bool {
        range.end <= self.known
    }

    /// The bytes of a range. An empty one may lie anywhere, also past the end.
    pub(crate) fn at(&self, range: &Range<u64>) -> &[u8] {
        match range.is_empty() {
            true => &[],
            false => &self.content[indices(range)],
        }
    }

    /// The ranges at which a change takes its turn; none if it waits for nothing.
    pub(crate) fn claims(&self, change: &Change) -> Vec<Range<u64>> {
        match change {
            Change::Write(_, places, _) => {
                let places = places.iter().filter(|(_, len)| *len > 0);
                places.copied().map(range).collect()
            }
            Change::WriteOwn(_, to, len) => vec![range((*to, *len))],
            Change::Mutable(place, _) | Change::TryMutable(place, _) => vec![range(*place)],
            Change::EachChunk { .. } | Change::Copy => vec![range((0, self.known))],
            Change::Append(_, len, _) | Change::AppendAt(_, len, _) => {
                vec![range((u64::MAX - len, *len))]
            }
            Change::Resize(size) | Change::GrowTo(size) => vec![range((*size, u64::MAX - size))],
            Change::Refresh => Vec::new(),
        }
    }

    /// The answer to a change that is over before it takes its turn.
    pub(crate) fn answer_at_once(&self, change: &Change, may_write: bool) -> Option<Answer> {
        let no_mode = (!may_write).then_some(Answer::InvalidMode);
        let bounds = |place: &Place| (!self.has(&range(*place))).then_some(Answer::OutOfBounds);
        match change {
            Change::Write(way, places, _) => {
                let mut places = places.iter().filter(|(_, len)| *len > 0).peekable();
                if places.peek().is_none() {
                    return Some(match way {
                        Way::Try => Answer::Is(true),
                        _ => Answer::Done,
                    });
                }
                // A segment that does not lie in the file cannot be made, and a path is opened
                // anew.
                let bounds = places.find_map(bounds);
                match way {
                    Way::Segment => bounds.or(no_mode),
                    Way::Path => bounds,
                    _ => no_mode.or(bounds),
                }
            }
            Change::WriteOwn(_, _, 0) | Change::Mutable((_, 0), _) => Some(Answer::Done),
            Change::TryMutable((_, 0), _) => Some(Answer::Is(true)),
            Change::WriteOwn(from, to, len) => {
                bounds(&(*from, *len)).or(no_mode).or(bounds(&(*to, *len)))
            }
            Change::Mutable(place, _) | Change::TryMutable(place, _) => no_mode.or(bounds(place)),
            Change::EachChunk { chunk, .. } => {
                no_mode.or((*chunk == 0).then_some(Answer::Is(true)))
            }
            Change::Append(_, 0, _) => Some(Answer::Number(self.known)),
            Change::AppendAt(behind, 0, _) => Some(Answer::Is(*behind == 0)),
            Change::Append(..) | Change::AppendAt(..) => no_mode,
            Change::Resize(size) | Change::GrowTo(size) => {
                no_mode.or((*size == 0).then_some(Answer::ResizeFailed))
            }
            Change::Refresh | Change::Copy => None,
        }
    }

    /// Makes a change in its turn; `claims` are those of its submission, and `expected_len` is the
    /// length that an `append_at` was given.
    pub(crate) fn apply(
        &mut self,
        change: &Change,
        claims: &[Range<u64>],
        expected_len: u64,
    ) -> Answer {
        if change.fills() && claims.iter().any(|claim| !self.has(claim)) {
            return Answer::OutOfBounds;
        }
        let file_len = self.content.len() as u64;
        match change {
            Change::Write(way, places, byte) => {
                for (number, place) in places.iter().enumerate() {
                    let place = indices(&range(*place));
                    if !place.is_empty() {
                        self.content[place].fill(byte.wrapping_add(number as u8));
                    }
                }
                match way {
                    Way::Try => Answer::Is(true),
                    _ => Answer::Done,
                }
            }
            Change::WriteOwn(from, to, len) => {
                let source = indices(&range((*from, *len)));
                self.content.copy_within(source, *to as usize);
                Answer::Done
            }
            Change::Mutable(place, byte) | Change::TryMutable(place, byte) => {
                self.content[indices(&range(*place))].fill(*byte);
                match change {
                    Change::TryMutable(..) => Answer::Is(true),
                    _ => Answer::Done,
                }
            }
            Change::EachChunk { chunk, byte, stop } => {
                let starts = (claims[0].start..claims[0].end).step_by(*chunk as usize);
                let is_whole = starts.clone().count() as u64 <= *stop;
                for start in starts.take(*stop as usize + 1) {
                    self.content[start as usize] = *byte;
                }
                Answer::Is(is_whole)
            }
            Change::Append(_, len, byte) => {
                self.lengthen(file_len + len, *byte);
                Answer::Number(file_len)
            }
            Change::AppendAt(_, len, byte) => {
                let is_there = file_len == expected_len;
                self.known = file_len;
                if is_there {
                    self.lengthen(file_len + len, *byte);
                }
                Answer::Is(is_there)
            }
            Change::Resize(size) if *size < self.known => {
                self.content.truncate(*size as usize);
                self.known = *size;
                Answer::Done
            }
            Change::Resize(size) if *size > self.known && *size < file_len => {
                self.known = file_len;
                Answer::ResizeFailed
            }
            Change::Resize(size) if *size > self.known => {
                self.lengthen(*size, 0);
                Answer::Done
            }
            Change::Resize(_) => Answer::Done,
            Change::GrowTo(min) => {
                self.lengthen((*min).max(file_len), 0);
                Answer::Number(self.known)
            }
            Change::Refresh => {
                self.known = file_len;
                Answer::Number(file_len)
            }
            Change::Copy => Answer::Number(self.known),
        }
    }

    /// Another descriptor appends.
    pub(crate) fn append_outside(&mut self, data: &[u8]) {
        self.content.extend_from_slice(data);
    }

    fn lengthen(&mut self, len: u64, byte: u8) {
        self.content.resize(len as usize, byte);
        self.known = len;
    }
}
