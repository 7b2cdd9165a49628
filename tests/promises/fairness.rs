//! Operations that complete where they are polled leave the other tasks of their thread a turn.

use std::future::{poll_fn, Future};
use std::path::Path;
use std::pin::pin;
use std::sync::{mpsc, Arc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, ThreadId};
use std::time::Instant;

use futures_lite::{AsyncBufReadExt, AsyncReadExt, StreamExt};
use mmap_io::MemoryMappedFile;

use crate::common::child::{alone, child, with_one_pool_thread};
use crate::common::{block_on, patterned, poll_once, with_timeout, TIMEOUT};

/// Rounds of each loop.
const ROUNDS: u32 = 5000;
/// The least number of turns that the task beside a loop must get: one for 128 operations.
const TURNS: u32 = ROUNDS / 128;

/// Turns that a task beside `looped` gets on the same thread.
async fn turns_beside(looped: impl Future<Output = ()>) -> u32 {
    let mut looped = pin!(looped);
    let mut turns = 0;
    poll_fn(|context| match looped.as_mut().poll(context) {
        Poll::Ready(()) => Poll::Ready(turns),
        Poll::Pending => {
            turns += 1;
            Poll::Pending
        }
    })
    .await
}

macro_rules! assert_fair {
    ($name:expr, $operation:expr) => {
        let looped = async {
            for _ in 0..ROUNDS {
                let _ = $operation.await;
            }
        };
        let turns = turns_beside(looped).await;
        assert!(turns >= TURNS, "{turns} turns beside a loop of {}", $name);
    };
}

async fn resident_file(dir: &Path) -> MemoryMappedFile {
    let (_, file) = patterned(dir, 1 << 20).await;
    file.touch_pages().await.unwrap();
    file
}

#[test]
fn reads_of_resident_bytes_are_fair() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = resident_file(dir.path()).await;
        assert_fair!("slice", file.slice(4000, 100));
        assert_fair!("read_bytes", file.read_bytes(4000, 100));
        assert_fair!("touch_pages_range", file.touch_pages_range(4000, 100));
        assert_fair!("touch_pages", file.touch_pages());
        let mut buffer = [0; 100];
        assert_fair!("read_into", file.read_into(4000, &mut buffer));
    });
}

/// A task that has yielded may get no turn for long. A lease that its copy kept would block a thread
/// that makes an atomic view of the bytes, perhaps the very thread that is to run the task.
#[test]
fn yielding_copies_hold_no_lease() {
    async fn check<T>(file: &MemoryMappedFile, copy: impl Future<Output = T>) -> u32 {
        let mut copy = pin!(copy);
        let mut yields = 0;
        while futures_lite::future::poll_once(&mut copy).await.is_none() {
            assert_eq!(file.stats().views, 0);
            yields += 1;
        }
        yields
    }

    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = resident_file(dir.path()).await;
        let (mut reading, mut buffering) = (file.reader(), file.reader_range(..16).unwrap());
        let mut byte = [0];
        let mut yields = [0; 3];
        for at in 0..ROUNDS {
            yields[0] += check(&file, reading.read(&mut byte)).await;
            buffering.set_position(u64::from(at % 16));
            yields[1] += check(&file, async { buffering.fill_buf().await.map(drop) }).await;
            yields[2] += check(&file, file.read_into(0, &mut byte)).await;
        }
        assert!(yields.iter().all(|yields| *yields > 0), "{yields:?}");
    });
}

/// The pages ahead are read in by jobs of the pool. A task that works on each item finds them done.
#[test]
fn stream_beside_work_is_fair() {
    const ITEMS: u32 = 2048;
    with_one_pool_thread(child!(stream_beside_work_is_fair), || {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let file = resident_file(dir.path()).await;
            let chunk = file.len() as usize / ITEMS as usize;
            let mut items = 0;
            let (sender, done) = mpsc::channel();
            let looped = async {
                let mut stream = file.stream(.., chunk).unwrap().drop_behind(true);
                while let Some(item) = stream.next().await {
                    item.unwrap();
                    items += 1;
                    // The only thread of the pool has done all that it was given before.
                    let sender = sender.clone();
                    blocking::unblock(move || sender.send(()).unwrap()).detach();
                    done.recv_timeout(TIMEOUT).unwrap();
                }
            };
            let turns = turns_beside(looped).await;
            assert_eq!(items, ITEMS);
            assert!(turns >= ITEMS / 128, "{turns} turns beside a stream");
        });
    });
}

/// What has been read from a file that grows is asked for again and again.
#[test]
fn reads_at_the_end_are_fair() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = resident_file(dir.path()).await;
        for mut reader in [file.reader(), file.reader_range(..1000).unwrap()] {
            reader.set_position(file.len());
            let mut byte = [0];
            assert_fair!("read", reader.read(&mut byte));
            assert_fair!("fill_buf", async { reader.fill_buf().await.map(drop) });
            assert_fair!("read of nothing", reader.read(&mut []));
        }
        // A read that has yielded at the end finds what was appended since.
        let mut reader = file.reader();
        reader.set_position(file.len());
        let mut byte = [0];
        while poll_once(reader.read(&mut byte)).await.is_some() {}
        file.append(b"x").await.unwrap();
        assert_eq!((reader.read(&mut byte).await.unwrap(), byte), (1, *b"x"));
    });
}

/// A stream that has yielded may get no turn until its task has written what the stream would show.
#[test]
fn yielding_stream_holds_no_lease() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = resident_file(dir.path()).await;
        let mut yields = 0;
        let mut at = 0;
        let mut stream = file.stream(.., 1000).unwrap();
        while at < file.len() {
            match poll_once(stream.next()).await {
                Some(item) => at += item.unwrap().unwrap().len() as u64,
                None => {
                    yields += 1;
                    assert_eq!(file.stats().views, 0);
                    with_timeout(file.update_region(at, b"x")).await.unwrap();
                    let item = stream.next().await.unwrap().unwrap();
                    assert_eq!(item[0], b'x');
                    at += item.len() as u64;
                }
            }
        }
        assert!(yields > 0);
    });
}

/// A copy costs its thread time.
#[test]
fn large_copies_yield_more_often() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = resident_file(dir.path()).await;
        let mut buffer = vec![0; 32 << 10];
        let looped = async {
            for _ in 0..100 {
                file.read_into(0, &mut buffer).await.unwrap();
            }
        };
        assert!(turns_beside(looped).await >= 50);
    });
}

/// The caller reads what it is shown.
#[test]
fn large_views_yield_more_often() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = resident_file(dir.path()).await;
        let looped = async {
            for _ in 0..100 {
                file.slice(0, 1 << 19).await.unwrap();
            }
        };
        assert!(turns_beside(looped).await >= 49);
    });
}

/// A thread that always has a task to run may look at its timers seldom.
#[test]
fn long_loops_leave_their_thread_idle() {
    struct Wakes(mpsc::Sender<ThreadId>);
    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.send(thread::current().id()).unwrap();
        }
    }

    // A pool of one thread has none to spare for this.
    alone(
        child!(long_loops_leave_their_thread_idle).usual_pool(),
        || {
            let dir = tempfile::tempdir().unwrap();
            let file = block_on(resident_file(dir.path()));
            let (sender, wakes) = mpsc::channel();
            let waker = Waker::from(Arc::new(Wakes(sender)));
            let started = Instant::now();
            let mut looped = pin!(async {
                loop {
                    file.slice(4000, 100).await.unwrap();
                }
            });
            let mut from_pool = 0;
            while from_pool < 5 {
                let context = &mut Context::from_waker(&waker);
                assert!(looped.as_mut().poll(context).is_pending());
                let woken_on = wakes.recv_timeout(TIMEOUT).unwrap();
                from_pool += u128::from(woken_on != thread::current().id());
                // Such a turn takes long, so that there are few of them.
                assert!(from_pool <= started.elapsed().as_micros() / 500);
            }
        },
    );
}

#[test]
fn empty_operations_are_fair() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = resident_file(dir.path()).await;
        let reader = MemoryMappedFile::open_ro(file.path()).await.unwrap();
        assert_fair!("slice of nothing", file.slice(0, 0));
        assert_fair!("read_bytes of nothing", file.read_bytes(0, 0));
        assert_fair!("flush of a reader", reader.flush());
        assert_fair!("flush_range of a reader", reader.flush_range(0, 10));
        assert_fair!("schedule_flush of a reader", reader.schedule_flush());
        assert_fair!("flush_range of nothing", file.flush_range(0, 0));
        assert_fair!("evict of nothing", file.evict(0, 0));
        assert_fair!("prefetch_range of nothing", file.prefetch_range(0, 0));
        #[cfg(feature = "advise")]
        assert_fair!(
            "advise about nothing",
            file.advise(0, 0, mmap_io::MmapAdvice::Random)
        );
        assert_fair!("update_region of nothing", file.update_region(0, b""));
        assert_fair!("update_regions of nothing", file.update_regions(&[]));
        assert_fair!(
            "write_bytes of nothing",
            file.write_bytes(0, bytes::Bytes::new())
        );
        assert_fair!(
            "try_update_region of nothing",
            file.try_update_region(0, b"")
        );
        assert_fair!("as_slice_mut of nothing", file.as_slice_mut(0, 0));
        #[cfg(feature = "iterator")]
        assert_fair!(
            "chunks_mut of nothing",
            file.chunks_mut(0).for_each_mut(|_, _| Ok(()))
        );
    });
}

#[test]
fn refused_operations_are_fair() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let file = resident_file(dir.path()).await;
        let reader = MemoryMappedFile::open_ro(file.path()).await.unwrap();
        let past_end = file.len();
        assert_fair!("slice", file.slice(past_end, 1));
        assert_fair!("read_bytes", file.read_bytes(past_end, 1));
        assert_fair!("read_into", file.read_into(past_end, &mut [0]));
        assert_fair!("flush_range", file.flush_range(past_end, 1));
        assert_fair!("evict", file.evict(past_end, 1));
        assert_fair!("update_region", reader.update_region(0, b"x"));
        assert_fair!("update_regions", reader.update_regions(&[(0, b"x")]));
        assert_fair!("try_update_region", reader.try_update_region(0, b"x"));
        assert_fair!("as_slice_mut", reader.as_slice_mut(0, 1));
        #[cfg(feature = "iterator")]
        assert_fair!(
            "chunks_mut",
            reader.chunks_mut(1).for_each_mut(|_, _| Ok(()))
        );
        assert_fair!("resize", reader.resize(1));
        assert_fair!("grow_to", reader.grow_to(1));
        assert_fair!("create", MemoryMappedFile::create_rw(file.path(), 0));
    });
}
