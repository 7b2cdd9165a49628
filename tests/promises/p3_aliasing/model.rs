//! Random steps on one file through every kind of handle, compared with a model of the file, its
//! views and the operations that wait.

use std::fs;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;

use bytes::Bytes;
use futures_lite::future::poll_once;
use mmap_io::{MappedSlice, MappedSliceMut, MemoryMappedFile, MmapIoError, Result};
use proptest::prelude::*;

use super::{link_twice, open_again};
use crate::common::{block_on, is_quiet, pattern, patterned, wait_until, with_timeout, TIMEOUT};

#[derive(Clone, Debug)]
enum Step {
    Slice(u64, u64),
    TrySlice(u64, u64),
    Bytes(u64, u64),
    TryMutable(u64, u64),
    Mutable(u64, u64),
    Write(u64, u64, u8),
    WriteOwnBytes(u64, u64, u64),
    Resize(u64),
    /// Creates or copies onto the file, by any of its names.
    Replace,
    Drop(usize),
    Withdraw(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let at = || 0..12_000_u64;
    let len = || 1..5_000_u64;
    // The file is also moved to a larger map.
    let size = prop_oneof![9 => 1..12_000_u64, 1 => 1_u64 << 20..3 << 20];
    prop_oneof![
        3 => (at(), len()).prop_map(|(at, len)| Step::Slice(at, len)),
        1 => (at(), len()).prop_map(|(at, len)| Step::TrySlice(at, len)),
        3 => (at(), len()).prop_map(|(at, len)| Step::Bytes(at, len)),
        1 => (at(), len()).prop_map(|(at, len)| Step::TryMutable(at, len)),
        1 => (at(), len()).prop_map(|(at, len)| Step::Mutable(at, len)),
        5 => (at(), len(), any::<u8>()).prop_map(|(at, len, byte)| Step::Write(at, len, byte)),
        1 => (at(), at(), len()).prop_map(|(from, to, len)| Step::WriteOwnBytes(from, to, len)),
        2 => size.prop_map(Step::Resize),
        1 => Just(Step::Replace),
        8 => any::<usize>().prop_map(Step::Drop),
        1 => any::<usize>().prop_map(Step::Withdraw),
    ]
}

/// A view, and what it showed when it was taken.
struct View<'a> {
    range: Range<u64>,
    bytes: Holder<'a>,
    content: Vec<u8>,
}

enum Holder<'a> {
    Slice(MappedSlice<'a>),
    Bytes(Bytes),
    Mutable(MappedSliceMut<'a>),
}

impl<'a> View<'a> {
    fn new(at: u64, bytes: Holder<'a>) -> Self {
        let mut view = Self {
            range: at..at,
            bytes,
            content: Vec::new(),
        };
        view.content = view.bytes().to_vec();
        view.range.end += view.content.len() as u64;
        view
    }

    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Holder::Slice(view) => view,
            Holder::Bytes(view) => view,
            Holder::Mutable(view) => view,
        }
    }

    fn is_mutable(&self) -> bool {
        matches!(self.bytes, Holder::Mutable(_))
    }
}

/// An operation that is blocked.
struct Waiting<'a> {
    range: Range<u64>,
    kind: Kind,
    /// The least length of the file since it was submitted, in bytes.
    least_len: usize,
    future: Submitted<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Write(u8),
    Mutable,
    Resize,
}

type Submitted<'a> = Pin<Box<dyn Future<Output = Result<Option<MappedSliceMut<'a>>>> + 'a>>;

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

fn indices(range: &Range<u64>) -> Range<usize> {
    range.start as usize..range.end as usize
}

/// The content of the file, its views, and the operations that wait, in the order of submission.
struct Model<'a> {
    content: Vec<u8>,
    views: Vec<View<'a>>,
    waiting: Vec<Waiting<'a>>,
}

impl<'a> Model<'a> {
    fn has(&self, range: &Range<u64>) -> bool {
        range.end <= self.content.len() as u64
    }

    fn is_viewed(&self, range: &Range<u64>) -> bool {
        self.views.iter().any(|view| overlap(&view.range, range))
    }

    fn is_being_changed(&self, range: &Range<u64>) -> bool {
        let mut mutable = self.views.iter().filter(|view| view.is_mutable());
        mutable.any(|view| overlap(&view.range, range))
    }

    /// Whether an operation is blocked: by one of the first `earlier` operations that wait, or by a
    /// view. An operation that is out of bounds in its turn fails without waiting for views.
    fn is_blocked(&self, range: &Range<u64>, kind: Kind, earlier: usize) -> bool {
        let mut earlier = self.waiting[..earlier].iter();
        let fails = kind != Kind::Resize && !self.has(range);
        earlier.any(|other| overlap(&other.range, range)) || !fails && self.is_viewed(range)
    }

    fn take(&mut self, at: u64, bytes: Holder<'a>) {
        let view = View::new(at, bytes);
        assert!(view.bytes() == &self.content[indices(&view.range)]);
        self.views.push(view);
    }

    fn take_mutable(&mut self, at: u64, mut view: MappedSliceMut<'a>) {
        let range = at..at + view.len() as u64;
        assert!(
            !self.is_viewed(&range),
            "a mutable view of {range:?} was granted beside another view"
        );
        assert!(*view == self.content[indices(&range)]);
        view.fill(at as u8);
        self.content[indices(&range)].fill(at as u8);
        self.take(at, Holder::Mutable(view));
    }

    /// Submits an operation. If nothing blocks it, it is complete when this returns.
    async fn submit(&mut self, range: Range<u64>, kind: Kind, mut future: Submitted<'a>) {
        if self.is_blocked(&range, kind, self.waiting.len()) {
            let outcome = poll_once(&mut future).await;
            assert!(
                outcome.is_none(),
                "expected {kind:?} of {range:?} to be blocked, but it completed"
            );
        }
        self.waiting.push(Waiting {
            range,
            kind,
            least_len: self.content.len(),
            future,
        });
        self.settle().await;
    }

    /// Awaits every operation that is no longer blocked.
    async fn settle(&mut self) {
        let mut next = 0;
        while next < self.waiting.len() {
            let Waiting { range, kind, .. } = &self.waiting[next];
            if self.is_blocked(range, *kind, next) {
                next += 1;
                continue;
            }
            let Waiting {
                range,
                kind,
                least_len,
                future,
            } = self.waiting.remove(next);
            match with_timeout(future).await {
                Ok(None) if kind == Kind::Resize => {
                    let len = range.start as usize;
                    self.content.resize(len, 0);
                    for waiting in &mut self.waiting {
                        waiting.least_len = waiting.least_len.min(len);
                    }
                }
                Ok(Some(view)) => self.take_mutable(range.start, view),
                Ok(None) => match kind {
                    Kind::Write(byte) => self.content[indices(&range)].fill(byte),
                    _ => panic!("expected a view from {kind:?}"),
                },
                // A shrink went first; a growth may have completed before this operation was
                // awaited.
                Err(MmapIoError::OutOfBounds { .. }) => assert!(range.end > least_len as u64),
                Err(error) => panic!("{kind:?} of {range:?}: {error:?}"),
            }
            next = 0;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150,
        failure_persistence: None,
        max_shrink_time: 2 * TIMEOUT.as_millis() as u32,
        ..ProptestConfig::default()
    })]

    #[test]
    fn views_and_file_match_model(
        steps in proptest::collection::vec((any::<usize>(), step()), 1..80),
    ) {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let (path, first) = patterned(dir.path(), 8_000).await;
            let (hard_link, soft_link) = link_twice(&path);
            let mut handles = open_again(&path, &hard_link, &soft_link).await;
            handles.insert(0, first);
            let names = [&path, &hard_link, &soft_link];
            let mut model = Model {
                content: pattern(8_000),
                views: Vec::new(),
                waiting: Vec::new(),
            };
            for (which, step) in steps {
                apply(&mut model, &handles, &names, which, step).await;
                for view in &model.views {
                    assert!(view.bytes() == view.content, "{:?} has changed", view.range);
                }
                assert!(handles.iter().all(|file| file.len() == model.content.len() as u64));
            }
            // Among them mutable views that were waited for.
            while model.views.pop().is_some() {
                model.settle().await;
            }
            assert!(model.waiting.is_empty());
            assert!(fs::read(&path).unwrap() == model.content);
            wait_until(&handles[0], is_quiet).await;
        });
    }
}

async fn apply<'a>(
    model: &mut Model<'a>,
    handles: &'a [MemoryMappedFile],
    names: &[&std::path::PathBuf],
    which: usize,
    step: Step,
) {
    let file = &handles[which % handles.len()];
    // The last handle is read-only.
    let writer = &handles[which % (handles.len() - 1)];
    macro_rules! assert_out_of_bounds {
        ($result:expr) => {
            assert!(matches!($result, Err(MmapIoError::OutOfBounds { .. })))
        };
    }
    match step {
        Step::Slice(at, len) => {
            let range = at..at + len;
            match file.as_slice(at, len) {
                result if !model.has(&range) => assert_out_of_bounds!(result),
                Err(MmapIoError::Busy { .. }) => assert!(model.is_being_changed(&range)),
                view => model.take(at, Holder::Slice(view.unwrap())),
            }
        }
        Step::TrySlice(at, len) => match file.try_as_slice(at, len) {
            result if !model.has(&(at..at + len)) => assert_out_of_bounds!(result),
            // The gate of a waiting operation may be up.
            result => {
                if let Some(view) = result.unwrap() {
                    model.take(at, Holder::Slice(view));
                }
            }
        },
        Step::Bytes(at, len) => {
            let range = at..at + len;
            match file.bytes(at, len) {
                result if !model.has(&range) => assert_out_of_bounds!(result),
                Err(MmapIoError::Busy { .. }) => assert!(model.is_being_changed(&range)),
                view => model.take(at, Holder::Bytes(view.unwrap())),
            }
        }
        Step::TryMutable(at, len) => {
            let range = at..at + len;
            match writer.try_as_slice_mut(at, len) {
                result if !model.has(&range) => assert_out_of_bounds!(result),
                result => {
                    if let Some(view) = result.unwrap() {
                        assert!(!model.is_blocked(&range, Kind::Mutable, model.waiting.len()));
                        model.take_mutable(at, view);
                    }
                }
            }
        }
        Step::Mutable(at, len) => {
            let range = at..at + len;
            if model.has(&range) {
                let future = async move { writer.as_slice_mut(at, len).await.map(Some) };
                model.submit(range, Kind::Mutable, Box::pin(future)).await;
            } else {
                assert_out_of_bounds!(writer.as_slice_mut(at, len).await);
            }
        }
        Step::Write(at, len, byte) => {
            let range = at..at + len;
            let data = vec![byte; len as usize];
            if !model.has(&range) {
                assert_out_of_bounds!(writer.update_region(at, &data).await);
                return;
            }
            if model.is_blocked(&range, Kind::Write(byte), model.waiting.len()) {
                assert!(!writer.try_update_region(at, &data).await.unwrap());
            }
            let future = async move { writer.update_region(at, &data).await.map(|()| None) };
            model
                .submit(range, Kind::Write(byte), Box::pin(future))
                .await;
        }
        Step::WriteOwnBytes(from, to, len) => {
            let (source, range) = (from..from + len, to..to + len);
            if model.has(&source)
                && model.has(&range)
                && !model.is_being_changed(&source)
                && !model.is_blocked(&range, Kind::Write(0), model.waiting.len())
            {
                // Also onto itself, in whole or in part.
                let data = file.bytes(from, len).unwrap();
                writer.write_bytes(to, data).await.unwrap();
                model.content.copy_within(indices(&source), to as usize);
            }
        }
        Step::Resize(size) => {
            let resize = writer.resize(size);
            let future = async move { resize.await.map(|()| None) };
            model
                .submit(size..u64::MAX, Kind::Resize, Box::pin(future))
                .await;
        }
        Step::Replace => {
            let name = names[which % names.len()];
            let refused = match which % 3 {
                0 => MemoryMappedFile::create_rw(name, 10).await.map(drop),
                1 => file.copy_to(name).await.map(drop),
                _ => mmap_io::copy_mmap(names[0], name).await,
            };
            assert!(matches!(refused, Err(MmapIoError::Busy { .. })));
        }
        Step::Drop(which) => {
            if !model.views.is_empty() {
                let which = which % model.views.len();
                drop(model.views.swap_remove(which));
                model.settle().await;
            }
        }
        Step::Withdraw(which) => {
            if !model.waiting.is_empty() {
                let which = which % model.waiting.len();
                drop(model.waiting.remove(which));
                model.settle().await;
            }
        }
    }
}
