//! Every asynchronous operation, for the promises that hold for each of them.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{mpsc, Arc};
use std::time::Instant;

use bytes::Bytes;
use futures_lite::{AsyncBufReadExt, AsyncReadExt, StreamExt};
use mmap_io::{
    manager, FlushPolicy, MemoryMappedFile, MmapIoError, MmapMode, Result, SegmentMut, TouchHint,
};

/// Bytes of the file that operations work on. Only the first pages are written; the rest is a
/// hole, which is not resident until it is read.
pub(crate) const LEN: u64 = 1 << 20;

/// Bytes of every file that an operation creates.
pub(crate) const CREATED: u64 = 5000;

/// Where operations write, and how much.
pub(crate) const WRITTEN: (u64, u64) = (100, 3000);

/// Where operations read, so that they have to read in.
const COLD: (u64, u64) = (LEN / 4, 1 << 16);

/// The bytes of the written range before.
pub(crate) const BEFORE: u8 = 0xB0;
/// Its bytes after any operation that writes.
pub(crate) const AFTER: u8 = 0xAF;

const PART: [u8; 1000] = [AFTER; 1000];
const WHOLE: [u8; WRITTEN.1 as usize] = [AFTER; WRITTEN.1 as usize];

/// Files for one operation, or several, to work on.
pub(crate) struct Fixture {
    pub(crate) dir: PathBuf,
    pub(crate) file: MemoryMappedFile,
    /// Another file, whose mapping is a source of `Bytes`.
    other: MemoryMappedFile,
    /// A descriptor of a third one, which is not mapped.
    plain: fs::File,
    names: AtomicU32,
}

/// An operation in progress.
pub(crate) type Running<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// Which view of the whole file an operation has to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockedBy {
    Nothing,
    MutableViews,
    AnyView,
}

#[derive(Clone, Copy)]
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    pub(crate) blocked_by: BlockedBy,
    pub(crate) run: for<'a> fn(&'a Fixture) -> Running<'a>,
}

impl Fixture {
    /// In a directory of its own, below `dir`.
    pub(crate) async fn new(dir: &Path) -> Self {
        let dir = tempfile::tempdir_in(dir).unwrap().keep();
        let file = dir.join("data");
        fs::write(&file, [BEFORE; 8192]).unwrap();
        let plain = fs::File::options().write(true).open(&file).unwrap();
        plain.set_len(LEN).unwrap();
        for name in ["unmapped", "doomed"] {
            fs::write(dir.join(name), [BEFORE; CREATED as usize]).unwrap();
        }
        fs::write(dir.join("other"), WHOLE).unwrap();
        let mut both = fs::File::options();
        Self {
            file: MemoryMappedFile::open_rw(&file).await.unwrap(),
            other: MemoryMappedFile::open_ro(dir.join("other")).await.unwrap(),
            plain: both
                .read(true)
                .write(true)
                .open(dir.join("unmapped"))
                .unwrap(),
            dir,
            names: AtomicU32::new(0),
        }
    }

    /// The byte that fills the written range.
    pub(crate) fn written(&self) -> u8 {
        let content = self.file.as_slice(0, 8192).unwrap();
        let (offset, len) = (WRITTEN.0 as usize, WRITTEN.1 as usize);
        let (before, rest) = content.split_at(offset);
        let (written, after) = rest.split_at(len);
        let is_torn = written.iter().any(|byte| *byte != written[0]);
        assert!(!is_torn, "a write is torn");
        let around = before.iter().chain(&after[..8192 - offset - len]);
        assert!({ around }.all(|byte| *byte == BEFORE));
        written[0]
    }

    /// Waits until every file that was created is whole, or is removed.
    pub(crate) async fn settled(&self) {
        super::wait_until(&self.file, super::is_quiet).await;
        let deadline = Instant::now() + super::TIMEOUT;
        while !self.created().all(|(_, is_whole)| is_whole) {
            let is_in_time = Instant::now() < deadline;
            assert!(is_in_time, "a file was left half done in {:?}", self.dir);
            std::thread::yield_now();
            futures_lite::future::yield_now().await;
        }
    }

    /// Files that operations have created, and whether they are whole.
    pub(crate) fn created(&self) -> impl Iterator<Item = (PathBuf, bool)> + '_ {
        let entries = fs::read_dir(&self.dir).unwrap();
        entries.filter_map(|entry| {
            let path = entry.unwrap().path();
            // A withdrawn operation has removed the file that it created.
            let len = fs::metadata(&path).ok()?.len();
            let name = path.file_name().unwrap().to_str().unwrap();
            let is_whole = match name.split('-').next().unwrap() {
                "created" => len == CREATED,
                "copy" => len >= LEN / 2,
                "small_copy" => len == CREATED,
                // The temporary file of a replacement takes its name, or is removed.
                ".mmap" => false,
                _ => return None,
            };
            Some((path, is_whole))
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A path that nothing was created at.
    fn fresh(&self, name: &str) -> PathBuf {
        // Relaxed: a count.
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        self.dir.join(format!("{name}-{number}"))
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

macro_rules! operations {
    ($($(#[$attribute:meta])* $blocked_by:ident $name:literal: |$fixture:ident| $body:expr;)*) => {
        vec![$(
            $(#[$attribute])*
            Operation {
                name: $name,
                blocked_by: BlockedBy::$blocked_by,
                run: |$fixture| Box::pin(async move {
                    let _ = $body.await?;
                    Ok(())
                }),
            },
        )*]
    };
}

/// The operations that read: they wait for their bytes, and are not in the queue.
pub(crate) const READS: [&str; 8] = [
    "slice",
    "slices",
    "read_bytes",
    "read_regions",
    "read_into",
    "stream",
    "reader, read",
    "reader, fill_buf",
];

/// Every operation, with arguments that give it work on the pool.
pub(crate) fn operations() -> Vec<Operation> {
    operations! {
        Nothing "create_rw": |fixture| {
            MemoryMappedFile::create_rw(fixture.path("created"), CREATED)
        };
        Nothing "create": |fixture| MemoryMappedFile::builder(fixture.path("created-b"))
            .size(CREATED)
            .preallocate(true)
            .touch_hint(TouchHint::Eager)
            .create();
        Nothing "create, read-only": |fixture| MemoryMappedFile::builder(fixture.path("unmapped"))
            .mode(MmapMode::ReadOnly)
            .create();
        Nothing "create_new": |fixture| MemoryMappedFile::builder(fixture.fresh("created"))
            .size(CREATED)
            .create_new();
        Nothing "open_or_create, new": |fixture| {
            MemoryMappedFile::open_or_create(fixture.fresh("created"), CREATED)
        };
        Nothing "open_or_create, old": |fixture| {
            MemoryMappedFile::open_or_create(fixture.path("unmapped"), CREATED)
        };
        Nothing "open_ro": |fixture| MemoryMappedFile::open_ro(fixture.path("unmapped"));
        Nothing "open_rw": |fixture| MemoryMappedFile::open_rw(fixture.path("unmapped"));
        Nothing "open_rw, mapped": |fixture| MemoryMappedFile::open_rw(fixture.path("data"));
        Nothing "open": |fixture| MemoryMappedFile::builder(fixture.path("unmapped"))
            .touch_hint(TouchHint::Eager)
            .flush_policy(FlushPolicy::Always)
            .open();
        #[cfg(feature = "cow")]
        Nothing "open_cow": |fixture| MemoryMappedFile::open_cow(fixture.path("unmapped"));
        #[cfg(feature = "cow")]
        Nothing "open_cow_writable": |fixture| {
            MemoryMappedFile::open_cow_writable(fixture.path("data"))
        };
        Nothing "from_file": |fixture| {
            let file = fixture.plain.try_clone().unwrap();
            MemoryMappedFile::from_file(file, MmapMode::ReadWrite, "name")
        };
        AnyView "update_region": |fixture| fixture.file.update_region(WRITTEN.0, &WHOLE);
        AnyView "update_region_async": |fixture| {
            fixture.file.update_region_async(WRITTEN.0, &WHOLE)
        };
        AnyView "update_regions": |fixture| {
            fixture.file.update_regions(&[(100, &PART), (1100, &PART), (2100, &PART)])
        };
        AnyView "update_regions_async": |fixture| {
            fixture.file.update_regions_async(&[(2100, &PART), (100, &PART), (1100, &PART)])
        };
        AnyView "write_bytes": |fixture| {
            fixture.file.write_bytes(WRITTEN.0, Bytes::from_static(&WHOLE))
        };
        AnyView "write_bytes_async": |fixture| {
            fixture.file.write_bytes_async(WRITTEN.0, Bytes::from_static(&WHOLE))
        };
        AnyView "write_bytes of a mapping": |fixture| {
            let source = fixture.other.bytes(0, WRITTEN.1)?;
            fixture.file.write_bytes(WRITTEN.0, source)
        };
        Nothing "try_update_region": |fixture| fixture.file.try_update_region(WRITTEN.0, &WHOLE);
        Nothing "append": |fixture| fixture.file.append(&PART);
        Nothing "append_async": |fixture| fixture.file.append_async(&PART);
        Nothing "append_at": |fixture| fixture.file.append_at(fixture.file.len(), &PART);
        AnyView "as_slice_mut": |fixture| async {
            fixture.file.as_slice_mut(WRITTEN.0, WRITTEN.1).await?.fill(AFTER);
            Ok::<_, MmapIoError>(())
        };
        AnyView "commit": |fixture| async {
            let mut view = fixture.file.as_slice_mut(WRITTEN.0, WRITTEN.1).await?;
            view.fill(AFTER);
            view.commit().await
        };
        AnyView "SegmentMut::write": |fixture| async {
            let parent = Arc::new(fixture.file.clone());
            let segment = SegmentMut::new(parent, WRITTEN.0, WRITTEN.1)?;
            segment.write(&WHOLE).await
        };
        AnyView "SegmentMut::as_slice_mut": |fixture| async {
            let parent = Arc::new(fixture.file.clone());
            let segment = SegmentMut::new(parent, WRITTEN.0, WRITTEN.1)?;
            segment.as_slice_mut().await?.fill(AFTER);
            Ok::<_, MmapIoError>(())
        };
        #[cfg(feature = "iterator")]
        AnyView "for_each_mut": |fixture| {
            fixture.file.chunks_mut(1 << 17).for_each_mut(|offset, chunk| {
                if offset == 0 {
                    chunk[WRITTEN.0 as usize..][..WRITTEN.1 as usize].fill(AFTER);
                }
                Ok(())
            })
        };
        Nothing "flush": |fixture| fixture.file.flush();
        Nothing "flush_range": |fixture| fixture.file.flush_range(WRITTEN.0, WRITTEN.1);
        Nothing "flush_async": |fixture| fixture.file.flush_async();
        Nothing "flush_range_async": |fixture| fixture.file.flush_range_async(WRITTEN.0, WRITTEN.1);
        Nothing "close": |fixture| fixture.file.clone().close();
        Nothing "touch_pages": |fixture| fixture.file.touch_pages();
        Nothing "touch_pages_range": |fixture| fixture.file.touch_pages_range(COLD.0, COLD.1);
        Nothing "prefetch_range": |fixture| fixture.file.prefetch_range(COLD.0, COLD.1);
        #[cfg(feature = "advise")]
        Nothing "advise": |fixture| {
            fixture.file.advise(COLD.0, COLD.1, mmap_io::MmapAdvice::WillNeed)
        };
        #[cfg(feature = "locking")]
        Nothing "lock": |fixture| fixture.file.lock(COLD.0, COLD.1);
        #[cfg(feature = "locking")]
        Nothing "lock_all": |fixture| fixture.file.lock_all();
        #[cfg(feature = "locking")]
        Nothing "unlock": |fixture| fixture.file.unlock(COLD.0, COLD.1);
        #[cfg(feature = "locking")]
        Nothing "unlock_all": |fixture| fixture.file.unlock_all();
        #[cfg(feature = "hugepages")]
        Nothing "open, huge pages": |fixture| MemoryMappedFile::builder(fixture.path("unmapped"))
            .huge_pages(true)
            .open();
        #[cfg(feature = "advisory-lock")]
        Nothing "open, locked": |fixture| MemoryMappedFile::builder(fixture.path("unmapped"))
            .mode(MmapMode::ReadWrite)
            .advisory_lock(mmap_io::Lock::Exclusive)
            .open();
        Nothing "metadata": |fixture| fixture.file.metadata();
        Nothing "is_at_path": |fixture| fixture.file.is_at_path();
        Nothing "is_hugepage_backed": |fixture| async {
            let _ = fixture.file.is_hugepage_backed().await;
            Ok::<_, MmapIoError>(())
        };
        #[cfg(feature = "cow")]
        MutableViews "update_region, private": |fixture| async {
            let private = MemoryMappedFile::open_cow_writable(fixture.path("data")).await?;
            private.update_region(WRITTEN.0, &WHOLE).await
        };
        #[cfg(feature = "cow")]
        MutableViews "as_slice_mut, private": |fixture| async {
            let private = MemoryMappedFile::open_cow_writable(fixture.path("data")).await?;
            private.as_slice_mut(WRITTEN.0, WRITTEN.1).await?.fill(AFTER);
            Ok::<_, MmapIoError>(())
        };
        #[cfg(feature = "cow")]
        MutableViews "slice, private": |fixture| async {
            let private = MemoryMappedFile::open_cow_writable(fixture.path("data")).await?;
            private.slice(COLD.0, COLD.1).await.map(drop)
        };
        MutableViews "slice": |fixture| fixture.file.slice(COLD.0, COLD.1);
        MutableViews "read_bytes": |fixture| fixture.file.read_bytes(COLD.0, COLD.1);
        MutableViews "read_into": |fixture| async {
            let mut buffer = vec![1; COLD.1 as usize];
            fixture.file.read_into(COLD.0, &mut buffer).await?;
            assert!(buffer.iter().all(|byte| *byte == 0));
            Ok::<_, MmapIoError>(())
        };
        MutableViews "read_regions": |fixture| fixture.file.read_regions(&[COLD, (2 * COLD.0, 10)]);
        MutableViews "slices": |fixture| fixture.file.slices(&[COLD, (2 * COLD.0, 10)]);
        MutableViews "stream": |fixture| async {
            let mut stream = fixture.file.stream(COLD.0..COLD.0 + COLD.1, 1 << 14)?;
            while let Some(piece) = stream.next().await {
                assert_eq!(piece?, [0; 1 << 14][..]);
            }
            Ok::<_, MmapIoError>(())
        };
        MutableViews "reader, read": |fixture| async {
            let mut buffer = vec![1; COLD.1 as usize];
            fixture.file.reader_range(COLD.0..)?.read_exact(&mut buffer).await?;
            assert!(buffer.iter().all(|byte| *byte == 0));
            Ok::<_, MmapIoError>(())
        };
        MutableViews "reader, fill_buf": |fixture| async {
            let mut reader = fixture.file.reader_range(COLD.0..)?;
            assert!(reader.fill_buf().await?.iter().all(|byte| *byte == 0));
            Ok::<_, MmapIoError>(())
        };
        MutableViews "copy_to": |fixture| fixture.file.copy_to(fixture.path("copy"));
        MutableViews "copy_to, new": |fixture| fixture.file.copy_to(fixture.fresh("copy"));
        Nothing "resize, larger": |fixture| fixture.file.resize(fixture.file.len() + 4 * LEN);
        // Windows cuts no mapped file.
        #[cfg(not(windows))]
        AnyView "resize, smaller": |fixture| fixture.file.resize(LEN / 2);
        Nothing "create_mmap": |fixture| mmap_io::create_mmap(fixture.path("created-m"), CREATED);
        Nothing "create_mmap_async": |fixture| {
            manager::r#async::create_mmap_async(fixture.path("created-a"), CREATED)
        };
        Nothing "load_mmap": |fixture| {
            mmap_io::load_mmap(fixture.path("unmapped"), MmapMode::ReadWrite)
        };
        AnyView "write_mmap": |fixture| {
            mmap_io::write_mmap(fixture.path("data"), WRITTEN.0, &WHOLE)
        };
        AnyView "manager::update_region": |fixture| {
            mmap_io::update_region(&fixture.file, WRITTEN.0, &WHOLE)
        };
        Nothing "manager::flush": |fixture| mmap_io::flush(&fixture.file);
        MutableViews "copy_mmap": |fixture| {
            mmap_io::copy_mmap(fixture.path("data"), fixture.path("copy-m"))
        };
        Nothing "copy_mmap_async": |fixture| {
            let target = fixture.path("small_copy");
            manager::r#async::copy_mmap_async(fixture.path("unmapped"), target)
        };
        #[cfg(feature = "watch")]
        Nothing "watch": |fixture| fixture.file.watch(|_| ());
        #[cfg(feature = "watch")]
        Nothing "watch_stream": |fixture| fixture.file.watch_stream();
        Nothing "replace": |fixture| {
            mmap_io::replace(fixture.path("created-p"), vec![AFTER; CREATED as usize])
        };
        Nothing "delete_mmap": |fixture| deleted(mmap_io::delete_mmap(fixture.path("doomed")));
        Nothing "delete_mmap_async": |fixture| {
            deleted(manager::r#async::delete_mmap_async(fixture.path("doomed")))
        };
    }
}

/// The file may have been deleted before.
async fn deleted(deletion: impl Future<Output = Result<()>>) -> Result<()> {
    match deletion.await {
        Err(error) if error.io_kind() == Some(std::io::ErrorKind::NotFound) => Ok(()),
        result => result,
    }
}

/// Keeps the only thread of the pool busy until it is dropped.
pub(crate) struct BusyPool(#[allow(unused)] mpsc::Sender<()>);

impl BusyPool {
    pub(crate) fn new() -> Self {
        let (release, gate) = mpsc::channel::<()>();
        let (shut, is_shut) = mpsc::channel();
        let job = move || {
            shut.send(()).unwrap();
            let _ = gate.recv();
        };
        blocking::unblock(job).detach();
        is_shut.recv_timeout(super::TIMEOUT).unwrap();
        Self(release)
    }
}
