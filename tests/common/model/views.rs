//! The views that are alive, and which of them conflict.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;
use mmap_io::{AtomicSliceView, MappedSlice, MappedSliceMut, MemoryMappedFile, MmapIoError};

use super::ops::{Look, Step, Upkeep};
use super::oracle::{indices, Oracle};
use super::overlap;

/// A view, and what it has to show.
pub(crate) struct View<'a> {
    range: Range<u64>,
    pub(crate) held: Held<'a>,
    content: Vec<u8>,
}

pub(crate) enum Held<'a> {
    Slice(MappedSlice<'a>),
    Bytes(Bytes),
    Mutable(MappedSliceMut<'a>),
    Words4(AtomicSliceView<'a, AtomicU32>),
    Words8(AtomicSliceView<'a, AtomicU64>),
}

/// What an operation asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asks {
    /// No other view of its bytes.
    Alone,
    /// No view that may change its bytes.
    Shared,
    /// No mutable view: words are copied by atomic loads.
    Copy,
    /// No view but atomic ones of this size.
    Words(u64),
}

impl Look {
    pub(crate) fn asks(self) -> Asks {
        match self {
            Self::ReadInto | Self::Reader | Self::FillBuf | Self::ChunksOwned(_) => Asks::Copy,
            _ => Asks::Shared,
        }
    }

    /// Whether it fails if the bytes that it names are out of bounds. No bytes are never that.
    pub(crate) fn has_a_range(self, len: u64) -> bool {
        match self {
            Self::Chunks(_) | Self::ChunksOwned(_) => false,
            _ => len > 0,
        }
    }

    /// Whether it waits for what conflicts with it.
    pub(crate) fn waits(self) -> bool {
        match self {
            Self::AsSlice
            | Self::TrySlice
            | Self::Bytes
            | Self::Segment
            | Self::Pinned
            | Self::Chunks(_)
            | Self::ChunksOwned(_) => false,
            Self::Slice
            | Self::Slices
            | Self::ReadBytes
            | Self::ReadRegions
            | Self::ReadInto
            | Self::Stream(_)
            | Self::Reader
            | Self::FillBuf => true,
        }
    }
}

impl Upkeep {
    pub(crate) fn has_a_range(self) -> bool {
        !matches!(
            self,
            Self::Flush | Self::ScheduleFlush | Self::TouchPages | Self::Metadata | Self::Reopen
        )
    }
}

impl<'a> View<'a> {
    pub(crate) fn new(at: u64, held: Held<'a>) -> Self {
        let content = held.shown();
        Self {
            range: at..at + content.len() as u64,
            held,
            content,
        }
    }
}

impl Held<'_> {
    fn shown(&self) -> Vec<u8> {
        // Relaxed: one task stores and loads.
        match self {
            Self::Slice(view) => view.to_vec(),
            Self::Bytes(view) => view.to_vec(),
            Self::Mutable(view) => view.to_vec(),
            Self::Words4(view) => {
                let words = view.iter().map(|word| word.load(Ordering::Relaxed));
                words.flat_map(u32::to_ne_bytes).collect()
            }
            Self::Words8(view) => {
                let words = view.iter().map(|word| word.load(Ordering::Relaxed));
                words.flat_map(u64::to_ne_bytes).collect()
            }
        }
    }

    fn permits(&self, asks: Asks) -> bool {
        match self {
            Self::Slice(_) | Self::Bytes(_) => matches!(asks, Asks::Shared | Asks::Copy),
            Self::Mutable(_) => false,
            Self::Words4(_) => matches!(asks, Asks::Copy | Asks::Words(4)),
            Self::Words8(_) => matches!(asks, Asks::Copy | Asks::Words(8)),
        }
    }
}

/// All views that are alive. None is empty.
#[derive(Default)]
pub(crate) struct Views<'a>(Vec<View<'a>>);

impl<'a> Views<'a> {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn conflict(&self, range: &Range<u64>, asks: Asks) -> bool {
        let mut views = self.0.iter();
        let conflicts = |view: &View<'_>| overlap(&view.range, range) && !view.held.permits(asks);
        !range.is_empty() && views.any(conflicts)
    }

    pub(crate) fn push(&mut self, view: View<'a>) {
        self.0.push(view);
    }

    /// Takes one out.
    pub(crate) fn take(&mut self, which: usize) -> Option<View<'a>> {
        let len = self.0.len();
        (len > 0).then(|| self.0.swap_remove(which % len))
    }

    /// Keeps a mutable view, and fills it; the oracle has done that.
    pub(crate) fn take_mutable(&mut self, at: u64, mut view: MappedSliceMut<'a>, byte: u8) {
        if !view.is_empty() {
            view.fill(byte);
            self.push(View::new(at, Held::Mutable(view)));
        }
    }

    pub(crate) fn take_atomic(
        &mut self,
        file: &'a MemoryMappedFile,
        may_write: bool,
        oracle: &mut Oracle,
        (size, at, count): (u64, u64, usize),
        stored: u8,
    ) {
        let range = at..at + size * count as u64;
        let conflict = self.conflict(&range, Asks::Words(size));
        let held = match size {
            4 => file.atomic_u32_slice(at, count).map(Held::Words4),
            _ => file.atomic_u64_slice(at, count).map(Held::Words8),
        };
        let what = format!("{count} words of {size} bytes at {at}");
        match held {
            Err(MmapIoError::InvalidMode(_)) => assert!(!may_write, "{what}"),
            Err(MmapIoError::Misaligned { .. }) => assert!(may_write && at % size > 0, "{what}"),
            Err(MmapIoError::OutOfBounds { .. }) => assert!(!oracle.has(&range), "{what}"),
            Err(MmapIoError::Busy { .. }) => assert!(conflict, "{what}"),
            held => {
                let is_right = may_write && at % size == 0 && oracle.has(&range) && !conflict;
                assert!(is_right, "granted: {what}");
                if count > 0 {
                    let view = View::new(at, held.unwrap());
                    assert!(view.content == oracle.at(&range), "{what}");
                    self.push(view);
                    self.store(self.len() - 1, stored, oracle);
                }
            }
        }
    }

    /// Stores a byte to all of a view, if that can change.
    pub(crate) fn store(&mut self, which: usize, byte: u8, oracle: &mut Oracle) {
        let len = self.len();
        if len == 0 {
            return;
        }
        let view = &mut self.0[which % len];
        let range = view.range.clone();
        match &mut view.held {
            Held::Slice(_) | Held::Bytes(_) => return,
            Held::Mutable(view) => view.fill(byte),
            Held::Words4(view) => {
                let word = u32::from_ne_bytes([byte; 4]);
                view.iter().for_each(|it| it.store(word, Ordering::Relaxed));
            }
            Held::Words8(view) => {
                let word = u64::from_ne_bytes([byte; 8]);
                view.iter().for_each(|it| it.store(word, Ordering::Relaxed));
            }
        }
        // Atomic views may overlap each other.
        oracle.content[indices(&range)].fill(byte);
        for view in self
            .0
            .iter_mut()
            .filter(|view| overlap(&view.range, &range))
        {
            view.content = oracle.at(&view.range).to_vec();
        }
    }

    /// No view has changed.
    pub(crate) fn check(&self, step: &Step) {
        for view in &self.0 {
            let (range, is_same) = (&view.range, view.held.shown() == view.content);
            assert!(is_same, "the view of {range:?} has changed: {step:?}");
        }
    }
}
