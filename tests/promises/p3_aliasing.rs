//! No view changes under its holder, whatever is called, through whichever handle.

use std::fs;
use std::future::Future;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{symlink, MetadataExt};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use futures_lite::future::{poll_once, zip};
use mmap_io::{MappedSlice, MappedSliceMut, MemoryMappedFile, MmapIoError, MmapMode, Result};
use proptest::prelude::*;

use crate::common::child::{child, child_dir};
use crate::common::{block_on, is_quiet, pattern, patterned, wait_until, with_timeout, TIMEOUT};

/// Every way to open a file beside one that is open already; the last only reads.
async fn open_again(path: &Path, hard_link: &Path, soft_link: &Path) -> Vec<MemoryMappedFile> {
    let plain = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let duplicate = plain.try_clone().unwrap();
    vec![
        MemoryMappedFile::open_rw(hard_link).await.unwrap(),
        MemoryMappedFile::open_rw(soft_link).await.unwrap(),
        MemoryMappedFile::open_or_create(path, 1).await.unwrap(),
        MemoryMappedFile::from_file(duplicate, MmapMode::ReadWrite, "")
            .await
            .unwrap(),
        MemoryMappedFile::open_ro(path).await.unwrap(),
    ]
}

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
    /// Onto the file, by whatever name.
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

/// An operation that something is in the way of.
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

/// A waker that holds up whoever wakes it, until it is let go.
struct SlowWaker {
    woken: Mutex<Sender<()>>,
    release: Mutex<Receiver<()>>,
}

impl Wake for SlowWaker {
    fn wake(self: Arc<Self>) {
        // The other ends are gone when nobody is interested any more.
        let _ = self.woken.lock().unwrap().send(());
        let _ = self.release.lock().unwrap().recv_timeout(TIMEOUT);
    }
}

/// Polls until the future is woken or ready. The job that has woken it stands still until what is
/// returned is dropped.
fn poll_until_woken<T>(future: Pin<&mut impl Future<Output = T>>) -> (Sender<()>, Option<T>) {
    let (woken, is_woken) = mpsc::channel();
    let (release, is_let_go) = mpsc::channel();
    let waker = Waker::from(Arc::new(SlowWaker {
        woken: Mutex::new(woken),
        release: Mutex::new(is_let_go),
    }));
    match future.poll(&mut Context::from_waker(&waker)) {
        Poll::Ready(output) => (release, Some(output)),
        Poll::Pending => {
            is_woken.recv_timeout(TIMEOUT).unwrap();
            (release, None)
        }
    }
}

/// What the file is, who looks at it, and who waits, in the order of submission.
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

    /// Whether something is in the way of an operation: one of the first `earlier` that wait, or a
    /// view. One that is out of bounds in its turn fails without waiting for views.
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
        assert!(!self.is_viewed(&range), "{range:?} has two holders");
        assert!(*view == self.content[indices(&range)]);
        view.fill(at as u8);
        self.content[indices(&range)].fill(at as u8);
        self.take(at, Holder::Mutable(view));
    }

    /// Submits an operation; one that nothing is in the way of is done when this returns.
    async fn submit(&mut self, range: Range<u64>, kind: Kind, mut future: Submitted<'a>) {
        if self.is_blocked(&range, kind, self.waiting.len()) {
            let outcome = poll_once(&mut future).await;
            assert!(outcome.is_none(), "{kind:?} of {range:?} went through");
        }
        self.waiting.push(Waiting {
            range,
            kind,
            least_len: self.content.len(),
            future,
        });
        self.settle().await;
    }

    /// Awaits every operation that nothing is in the way of any more.
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
                    _ => panic!("{kind:?} came to nothing"),
                },
                // A shrink went first; one that grew the file again may have ended before this one
                // was awaited.
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
        let (hard_link, soft_link) = (dir.path().join("hard"), dir.path().join("soft"));
        block_on(async {
            let (path, first) = patterned(dir.path(), 8_000).await;
            fs::hard_link(&path, &hard_link).unwrap();
            symlink(&path, &soft_link).unwrap();
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
            // Among them mutable ones that were waited for.
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
    // The last one only reads.
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
            // The gate of an operation that waits may be up.
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

#[test]
fn shrink_waits_behind_longer_write() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 10_000).await;
        let view = file.as_slice(0, 10).unwrap();
        let mut write = Box::pin(file.update_region(0, &[1; 5000]));
        let mut shrink = Box::pin(file.resize(100));
        assert!(poll_once(&mut write).await.is_none());
        assert!(poll_once(&mut shrink).await.is_none());
        wait_until(&file, |stats| stats.oldest_blocked.is_some()).await;
        assert_eq!(view, &pattern(10)[..]);
        drop(view);
        let (written, shrunk) = with_timeout(zip(write, shrink)).await;
        written.and(shrunk).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [1; 100]);
    });
}

#[test]
fn blocked_operations_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 100).await;
        let (early, late) = (file.as_slice(0, 1).unwrap(), file.as_slice(29, 1).unwrap());
        let mut first = Box::pin(file.update_region(0, &[1; 10]));
        assert!(poll_once(&mut first).await.is_none());
        wait_until(&file, |stats| stats.oldest_blocked.is_some()).await;
        let (release, apart) = loop {
            let mut apart = Box::pin(file.update_region(90, b"x"));
            match poll_until_woken(apart.as_mut()) {
                (release, None) => break (release, apart),
                // Done before anybody could be held up.
                (_, Some(done)) => done.unwrap(),
            }
        };
        // Looked at together, by a job that knows what the third waits for, and not yet that the
        // second waits as well.
        let mut second = Box::pin(file.update_region(20, &[2; 10]));
        let mut third = Box::pin(file.update_region(5, &[3; 20]));
        assert!(poll_once(&mut second).await.is_none());
        assert!(poll_once(&mut third).await.is_none());
        drop(release);
        apart.await.unwrap();
        wait_until(&file, |stats| stats.queued_writes == 3).await;
        drop((early, late));
        let all = zip(zip(first, second), third);
        let ((first, second), third) = with_timeout(all).await;
        first.and(second).and(third).unwrap();
        let mut expected = pattern(100);
        expected[0..10].fill(1);
        expected[20..30].fill(2);
        expected[5..25].fill(3);
        expected[90] = b'x';
        assert_eq!(file.as_slice(0, 100).unwrap(), &expected[..]);
    });
}

#[test]
fn dropped_blocked_shrink_never_happens() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 8000).await;
        for turn in 0..5000 {
            let view = file.slice(5000, 2000).await.unwrap();
            let mut shrink = Box::pin(file.resize(6000));
            assert!(poll_once(&mut shrink).await.is_none());
            for _ in 0..turn % 50 * 10 {
                std::hint::spin_loop();
            }
            // The view is there before the shrink and until after it is dropped.
            drop(shrink);
            drop(view);
            // Behind whatever is still being done.
            file.update_region(7999, b"x").await.unwrap();
            assert_eq!(file.len(), 8000, "turn {turn}");
        }
    });
}

#[test]
fn own_shrink_is_not_a_truncation() {
    let dir = tempfile::tempdir().unwrap();
    let (_, file) = block_on(patterned(dir.path(), 50_000));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for _ in 0..2000 {
                block_on(file.resize(10_000)).unwrap();
                block_on(file.resize(50_000)).unwrap();
            }
            is_over.store(true, Ordering::Relaxed);
        });
        threads.spawn(|| {
            let mut buffer = [0; 10_000];
            while !is_over.load(Ordering::Relaxed) {
                for result in [
                    block_on(file.slice(40_000, 10_000)).map(drop),
                    block_on(file.read_bytes(9_000, 2000)).map(drop),
                    block_on(file.read_into(20_000, &mut buffer)),
                    block_on(file.touch_pages()),
                    block_on(file.update_region(30_000, b"x")),
                    block_on(file.as_slice_mut(49_990, 10)).map(drop),
                    block_on(file.flush()),
                ] {
                    match result {
                        Ok(()) | Err(MmapIoError::OutOfBounds { .. }) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
            }
        });
    });
}

#[test]
fn all_handles_share_leases() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let (hard_link, soft_link) = (dir.path().join("hard"), dir.path().join("soft"));
        fs::hard_link(&path, &hard_link).unwrap();
        symlink(&path, &soft_link).unwrap();
        let mut others = open_again(&path, &hard_link, &soft_link).await;
        let reader = others.pop().unwrap();
        others.push(file.clone());
        let slice = reader.as_slice(0, 10).unwrap();
        let bytes = others[0].bytes(5, 10).unwrap();
        for other in &others {
            assert!(!other.try_update_region(5, b"x").await.unwrap());
            assert!(other.try_as_slice_mut(0, 6).unwrap().is_none());
            assert!(poll_once(other.update_region(5, b"x")).await.is_none());
            assert!(poll_once(other.update_regions(&[(500, b"x"), (5, b"x")]))
                .await
                .is_none());
            assert!(poll_once(other.write_bytes(5, Bytes::from_static(b"x")))
                .await
                .is_none());
            assert!(poll_once(other.as_slice_mut(5, 1)).await.is_none());
            assert!(poll_once(other.resize(5)).await.is_none());
        }
        assert_eq!(slice, &pattern(10)[..]);
        assert_eq!(bytes, pattern(15)[5..]);
        drop(slice);

        // Respects the view, and is no error.
        let data = [7; 20];
        let mut write = Box::pin(mmap_io::write_mmap(&soft_link, 0, &data));
        while file.stats().oldest_blocked.is_none() {
            assert!(poll_once(&mut write).await.is_none());
            std::thread::yield_now();
        }
        assert_eq!(bytes, pattern(15)[5..]);
        drop(bytes);
        write.await.unwrap();
        assert_eq!(reader.as_slice(0, 20).unwrap(), [7; 20]);

        // Nobody sees what somebody changes.
        let view = file.as_slice_mut(100, 100).await.unwrap();
        for other in others.iter().chain([&reader]) {
            assert!(matches!(
                other.as_slice(150, 100),
                Err(MmapIoError::Busy {
                    offset: 150,
                    len: 100,
                    ..
                })
            ));
            assert!(other.try_as_slice(199, 1).unwrap().is_none());
            assert!(matches!(other.bytes(0, 101), Err(MmapIoError::Busy { .. })));
            assert!(poll_once(other.slice(100, 1)).await.is_none());
            assert!(poll_once(other.read_bytes(0, 1000)).await.is_none());
            assert!(poll_once(other.read_into(100, &mut [0])).await.is_none());
            assert_eq!(other.as_slice(200, 1).unwrap().len(), 1);
        }
        assert!(matches!(
            reader.as_slice_bytes(199, 1),
            Err(MmapIoError::Busy { .. })
        ));
        drop(view);
    });
}

#[test]
fn borrowed_bytes_block_until_reader_drops() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 10_000).await;
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let clone = reader.clone();
        let borrowed = reader.as_slice_bytes(100, 5000).unwrap();
        let again = clone.as_slice_bytes(50, 100).unwrap();
        assert!(!file.try_update_region(60, b"x").await.unwrap());
        let mut write = Box::pin(file.update_region(5000, &[1; 200]));
        assert!(poll_once(&mut write).await.is_none());
        file.update_region(5300, b"beside it").await.unwrap();
        assert_eq!(*borrowed, pattern(5100)[100..]);
        assert_eq!(*again, pattern(150)[50..]);
        drop(clone);
        assert!(poll_once(&mut write).await.is_none());
        drop(reader);
        write.await.unwrap();
    });
}

#[test]
fn create_and_copy_over_mapped_file_fail() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 1000).await;
        let (hard_link, soft_link) = (dir.path().join("hard"), dir.path().join("soft"));
        fs::hard_link(&path, &hard_link).unwrap();
        symlink(&path, &soft_link).unwrap();
        let source = dir.path().join("source");
        fs::write(&source, b"another").unwrap();
        let other = MemoryMappedFile::open_ro(&source).await.unwrap();
        let assert_refused = || async {
            for name in [&path, &hard_link, &soft_link] {
                let builder = || MemoryMappedFile::builder(name).size(10);
                let refused = [
                    MemoryMappedFile::create_rw(name, 10).await.map(drop),
                    mmap_io::create_mmap(name, 2000).await.map(drop),
                    builder().preallocate(true).create().await.map(drop),
                    other.copy_to(name).await.map(drop),
                    mmap_io::copy_mmap(&source, name).await,
                    // Onto itself.
                    mmap_io::copy_mmap(&path, name).await,
                ];
                for result in refused {
                    assert!(
                        matches!(result, Err(MmapIoError::Busy { .. })),
                        "{result:?}"
                    );
                }
                let exists = builder().create_new().await.unwrap_err();
                assert_eq!(exists.io_kind(), Some(std::io::ErrorKind::AlreadyExists));
            }
            assert!(fs::read(&path).unwrap() == pattern(1000));
        };
        assert_refused().await;
        // A reader counts, and so does what is left of one.
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        drop(file);
        assert_refused().await;
        let bytes = reader.bytes(0, 1000).unwrap();
        drop(reader);
        assert_refused().await;
        assert_eq!(bytes, pattern(1000));
        drop(bytes);

        // Onto itself it is refused even when nobody else has it.
        let itself = mmap_io::copy_mmap(&path, &hard_link).await;
        assert!(matches!(itself, Err(MmapIoError::Busy { .. })));
        assert!(fs::read(&path).unwrap() == pattern(1000));
        mmap_io::copy_mmap(&source, &soft_link).await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"another");
        assert_eq!(
            MemoryMappedFile::create_rw(&path, 10).await.unwrap().len(),
            10
        );
    });
}

#[test]
fn path_is_free_after_close() {
    if std::env::var("BLOCKING_MAX_THREADS").is_ok_and(|threads| threads == "1") {
        // It is that thread which is held up here.
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = block_on(patterned(dir.path(), 1000));
    let mut close = Box::pin(file.close());
    // The job that flushes is not done with waking this thread when close returns.
    let (release, closed) = poll_until_woken(close.as_mut());
    closed.unwrap_or_else(|| block_on(&mut close)).unwrap();
    drop(close);
    let created = block_on(MemoryMappedFile::create_rw(&path, 10));
    drop(release);
    assert_eq!(created.unwrap().len(), 10);
}

#[test]
fn new_file_under_old_name_is_separate() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, old) = patterned(dir.path(), 1000).await;
        let view = old.as_slice(0, 1000).unwrap();
        mmap_io::delete_mmap(&path).await.unwrap();
        let new = MemoryMappedFile::create_rw(&path, 500).await.unwrap();
        new.update_region(0, &[1; 500]).await.unwrap();
        assert_eq!(view, &pattern(1000)[..]);
        assert_eq!((old.len(), new.len()), (1000, 500));
        // And one that is moved there.
        fs::write(dir.path().join("moved"), [2; 100]).unwrap();
        fs::rename(dir.path().join("moved"), &path).unwrap();
        let moved = MemoryMappedFile::open_rw(&path).await.unwrap();
        moved.update_region(0, &[3; 100]).await.unwrap();
        assert_eq!(new.as_slice(0, 500).unwrap(), [1; 500]);
        assert_eq!(view, &pattern(1000)[..]);
    });
}

#[test]
fn copy_is_not_visible_until_whole() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 100_000).await;
        let copy_path = dir.path().join("copy");
        let view = file.as_slice_mut(50_000, 10).await.unwrap();
        let mut copy = Box::pin(file.copy_to(&copy_path));
        // The snapshot waits for the view, and leaves the destination to others meanwhile.
        while file.stats().oldest_blocked.is_none() {
            assert!(poll_once(&mut copy).await.is_none());
            std::thread::yield_now();
        }
        assert!(!copy_path.exists());
        drop(view);
        // Whoever finds it, in whatever moment, finds all of it; or has it before it is claimed,
        // and then there is no copy.
        let opener = std::thread::spawn(move || loop {
            match block_on(MemoryMappedFile::open_ro(&copy_path)) {
                Ok(opened) => break opened,
                Err(error) => assert_eq!(error.io_kind(), Some(std::io::ErrorKind::NotFound)),
            }
        });
        let copied = copy.await;
        let opened = opener.join().unwrap();
        match copied {
            Ok(len) => {
                assert_eq!((len, opened.len()), (100_000, 100_000));
                assert_eq!(opened.as_slice(0, len).unwrap(), pattern(100_000)[..]);
            }
            Err(error) => {
                assert!(matches!(error, MmapIoError::Busy { .. }), "{error:?}");
                assert!(opened.is_empty());
            }
        }
    });
}

#[test]
fn mapped_source_keeps_write_order() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 10_000).await;
        for round in 0..100 {
            // They are copied first, on the pool, and the write behind them is not.
            let mapped = file.bytes(5000, 10).unwrap();
            let first = file.write_bytes(0, mapped);
            let data = [round; 10];
            let second = file.update_region(0, &data);
            let (first, second) = zip(first, second).await;
            first.and(second).unwrap();
            assert_eq!(file.as_slice(0, 10).unwrap(), [round; 10]);
        }
        // Nor does a lease on the source hold up what it waits for itself: the first waits for the
        // second one's source, and the second for the first.
        let mapped = file.bytes(5, 1).unwrap();
        let mut first = Box::pin(file.update_region(0, &[1; 10]));
        assert!(poll_once(&mut first).await.is_none());
        let second = file.write_bytes(9, mapped);
        let (first, second) = zip(first, second).await;
        first.and(second).unwrap();
        assert_eq!(file.as_slice(0, 9).unwrap(), [1; 9]);
        wait_until(&file, is_quiet).await;
    });
}

#[test]
fn panicking_owner_blocks_nothing() {
    struct Owner(Bytes);

    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Owner {
        fn drop(&mut self) {
            panic!("an owner of the test's own");
        }
    }

    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, file) = patterned(dir.path(), 10_000).await;
        for data in [
            file.bytes(0, 100).unwrap(),
            Bytes::from_static(b"elsewhere"),
        ] {
            let data = Bytes::from_owner(Owner(data));
            file.write_bytes(5000, data).await.unwrap();
            file.update_region(5000, b"later").await.unwrap();
        }
        wait_until(&file, is_quiet).await;
    });
}

#[test]
fn bytes_can_be_written_to_own_file() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, file) = patterned(dir.path(), 10_000).await;
        let other = MemoryMappedFile::open_ro(&path).await.unwrap();
        // Onto themselves: the only view in the way is the one that is moved in.
        for handle in [&file, &other] {
            let same = handle.bytes(100, 5000).unwrap();
            file.write_bytes(100, same).await.unwrap();
            let part = handle.bytes(0, 10_000).unwrap().slice(500..600);
            file.write_bytes_async(550, part).await.unwrap();
        }
        let mut expected = pattern(10_000);
        expected.copy_within(500..600, 550);
        expected.copy_within(500..600, 550);
        assert_eq!(file.as_slice(0, 10_000).unwrap(), &expected[..]);

        // A clone of them elsewhere is in the way like any view.
        let bytes = file.bytes(0, 100).unwrap();
        let mut write = Box::pin(file.write_bytes(50, bytes.clone()));
        while file.stats().oldest_blocked.is_none() {
            assert!(poll_once(&mut write).await.is_none());
            std::thread::yield_now();
        }
        assert!(poll_once(&mut write).await.is_none());
        assert_eq!(bytes, expected[..100]);
        drop(bytes);
        write.await.unwrap();
        expected.copy_within(0..100, 50);
        assert_eq!(file.as_slice(0, 10_000).unwrap(), &expected[..]);
    });
}

#[test]
fn two_files_can_swap_bytes() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (_, one) = patterned(dir.path(), 1000).await;
        let two = MemoryMappedFile::create_rw(dir.path().join("two"), 1000)
            .await
            .unwrap();
        // Each is the other's source: neither may wait for the other's view of it.
        let (from_one, from_two) = (one.bytes(0, 1000).unwrap(), two.bytes(0, 1000).unwrap());
        let swap = zip(two.write_bytes(0, from_one), one.write_bytes(0, from_two));
        let (first, second) = swap.await;
        first.and(second).unwrap();
        assert_eq!(two.as_slice(0, 1000).unwrap(), &pattern(1000)[..]);
        assert_eq!(one.as_slice(0, 1000).unwrap(), [0; 1000]);
        // The same within one file.
        let (low, high) = (two.bytes(0, 500).unwrap(), two.bytes(500, 500).unwrap());
        let (first, second) = zip(two.write_bytes(500, low), two.write_bytes(0, high)).await;
        first.and(second).unwrap();
        let mut expected = pattern(1000);
        expected.rotate_left(500);
        assert_eq!(two.as_slice(0, 1000).unwrap(), &expected[..]);
    });
}

/// Inode and length, by the handle's own descriptor.
fn identity(file: &MemoryMappedFile) -> (u64, u64) {
    let descriptor = file.as_fd().try_clone_to_owned().unwrap();
    let metadata = fs::File::from(descriptor).metadata().unwrap();
    (metadata.ino(), metadata.len())
}

#[test]
fn concurrent_opens_share_new_file() {
    let dir = tempfile::tempdir().unwrap();
    for turn in 0..1500 {
        let path = dir.path().join(turn.to_string());
        let start = Barrier::new(3);
        let opened: Vec<_> = std::thread::scope(|threads| {
            let openers: Vec<_> = (0..3)
                .map(|opener| {
                    let (path, start) = (&path, &start);
                    threads.spawn(move || {
                        start.wait();
                        match opener {
                            0 if turn % 2 == 0 => block_on(MemoryMappedFile::create_rw(path, 4096)),
                            _ => block_on(MemoryMappedFile::open_or_create(path, 4096)),
                        }
                    })
                })
                .collect();
            let opened = openers.into_iter().map(|opener| opener.join().unwrap());
            opened.collect()
        });
        for opened in opened {
            match opened {
                Ok(file) => {
                    let inode = fs::metadata(&path).expect("the file is gone").ino();
                    assert_eq!(identity(&file), (inode, 4096), "opened, and then replaced");
                }
                // Somebody has it already; but not nobody.
                Err(error) => assert!(matches!(error, MmapIoError::Busy { .. }), "{error:?}"),
            }
        }
    }
}

/// Between finding out a file's length and claiming it, somebody else may have created it anew,
/// and closed it. That takes luck, or a kernel that is slow to tell the length.
#[cfg(target_os = "linux")]
#[test]
fn handle_length_survives_racing_create() {
    use crate::common::probe::{can_trace, trace};

    if !can_trace("handle_length_survives_racing_create") {
        return;
    }
    let slow = [
        "-etrace=statx,fstat",
        "-einject=statx,fstat:delay_exit=1000",
    ];
    let dir = tempfile::tempdir().unwrap();
    trace(child!(opening_child), dir.path(), &slow);
}

#[test]
fn opening_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let path = dir.join("data");
    fs::write(&path, b"x").unwrap();
    std::thread::scope(|threads| {
        for opener in 0..4_u64 {
            let path = &path;
            threads.spawn(move || {
                for turn in 0..400 {
                    let opened = match opener {
                        0 | 1 => block_on(MemoryMappedFile::create_rw(path, 10 + turn)),
                        2 => block_on(MemoryMappedFile::open_rw(path)),
                        _ => block_on(MemoryMappedFile::open_ro(path)),
                    };
                    match opened {
                        // As long as it is open here, nobody else truncates it.
                        Ok(file) => assert_eq!(file.len(), identity(&file).1),
                        Err(MmapIoError::Busy { .. }) if opener < 2 => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
            });
        }
    });
}

#[test]
fn views_on_many_threads_never_change() {
    const CELL: u64 = 3000;
    const CELLS: u64 = 6;
    let dir = tempfile::tempdir().unwrap();
    let (path, first) = block_on(patterned(dir.path(), (CELLS * CELL) as usize));
    block_on(first.update_region(0, &[0; (CELLS * CELL) as usize])).unwrap();
    let second = block_on(MemoryMappedFile::open_rw(&path)).unwrap();
    let reader = block_on(MemoryMappedFile::open_ro(&path)).unwrap();
    let handles = [&first, &second, &reader];
    let writers_left = AtomicU32::new(2);
    let is_over = AtomicBool::new(false);

    // Every write fills a cell with one value.
    let check = |view: &[u8]| {
        let value = view[0];
        let is_whole = |when: &str| assert!(view.iter().all(|byte| *byte == value), "{when}");
        is_whole("a write is seen in part");
        std::thread::yield_now();
        is_whole("changed under its holder");
    };
    std::thread::scope(|threads| {
        for seed in 0..2_u32 {
            let (check, is_over) = (&check, &is_over);
            threads.spawn(move || {
                let mut random = seed + 1;
                let mut turns = 0;
                while turns < 100 || !is_over.load(Ordering::Relaxed) {
                    turns += 1;
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let file = handles[(random >> 8) as usize % 3];
                    let at = u64::from(random >> 16) % CELLS * CELL;
                    // A mutable view may be in the way, or the last cell be cut off.
                    match turns % 4 {
                        0 => check(&match block_on(file.slice(at, CELL)) {
                            Err(MmapIoError::OutOfBounds { .. }) => continue,
                            view => view.unwrap(),
                        }),
                        1 => check(&match file.bytes(at, CELL) {
                            Err(MmapIoError::OutOfBounds { .. } | MmapIoError::Busy { .. }) => {
                                continue
                            }
                            view => view.unwrap(),
                        }),
                        2 => check(&match file.try_as_slice(at, CELL) {
                            Err(MmapIoError::OutOfBounds { .. }) | Ok(None) => continue,
                            view => view.unwrap().unwrap(),
                        }),
                        _ => check(&match file.as_slice(at, CELL) {
                            Err(MmapIoError::OutOfBounds { .. } | MmapIoError::Busy { .. }) => {
                                continue
                            }
                            view => view.unwrap(),
                        }),
                    }
                }
            });
        }
        for writer in 0..2_u32 {
            let (check, writers_left, is_over) = (&check, &writers_left, &is_over);
            let file = handles[writer as usize];
            threads.spawn(move || {
                for turn in 0..300_u32 {
                    let at = u64::from(turn * 5 + writer) % CELLS * CELL;
                    let value = (turn * 2 + writer) as u8;
                    let data = [value; CELL as usize];
                    let write = match turn % 5 {
                        0 => block_on(async {
                            let mut view = file.as_slice_mut(at, CELL).await?;
                            view.fill(value);
                            check(&view);
                            Ok(())
                        }),
                        1 => block_on(file.write_bytes(at, Bytes::copy_from_slice(&data))),
                        2 => block_on(file.update_regions(&[(0, &data), (at, &data)])),
                        // The last cell goes, and comes back as zeroes.
                        3 if turn % 10 == 3 => block_on(async {
                            file.resize((CELLS - 1) * CELL).await?;
                            file.resize(CELLS * CELL).await
                        }),
                        _ => block_on(file.update_region(at, &data)),
                    };
                    match write {
                        Err(MmapIoError::OutOfBounds { .. }) => {}
                        write => write.unwrap(),
                    }
                }
                if writers_left.fetch_sub(1, Ordering::Relaxed) == 1 {
                    is_over.store(true, Ordering::Relaxed);
                }
            });
        }
    });
    block_on(wait_until(&first, is_quiet));
}
