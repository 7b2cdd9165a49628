//! Memory-mapped files for async Rust.
//!
//! Reads are slices of the mapping: no copy, no allocation, no lock. Everything that may block (a
//! page fault, a flush, an allocation of disk blocks) runs on a pool of threads, behind an
//! `async fn`. It works the same under tokio, smol, async-std and a bare `block_on`: there is no
//! runtime to choose.
//!
//! ```
//! # futures_lite::future::block_on(async {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("data");
//! use mmap_io::MemoryMappedFile;
//!
//! let file = MemoryMappedFile::create_rw(&path, 1 << 20).await?;
//!
//! // Visible to every reader when it returns; the second write is durable as well.
//! file.update_region(0, b"hello").await?;
//! file.update_region_async(4096, b"survives a power cut").await?;
//!
//! // Zero-copy; `slice` makes sure that the pages are in memory first.
//! assert_eq!(file.as_slice(0, 5)?, b"hello");
//! assert_eq!(file.slice(4096, 8).await?, b"survives");
//!
//! // For hyper and axum: the mapping itself, counted.
//! let body: bytes::Bytes = file.read_bytes(4096, 20).await?;
//! assert_eq!(body, "survives a power cut");
//! # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
//! ```
//!
#![doc = include_str!("choices.md")]
//!
//! # What it promises
//!
//! - **No executor thread is blocked.** No `async fn` does file I/O, waits for a view, or causes a
//!   page fault that reads from disk on the thread that polls it. What may be done there is memory
//!   work: copying the `&[u8]` of a write, the last copy of
//!   [`read_into`](MemoryMappedFile::read_into), and a read whose pages are in memory. The synchronous reads may fault when their bytes
//!   are touched; [`slice`](MemoryMappedFile::slice) reads the pages in before.
//! - **No view changes while it lives**, as far as this process uses the file through this crate:
//!   through one handle, its clones, or other handles on the same file, also by another path.
//! - **A write waits for no view but those that overlap it.** A waiting write does not hold up new
//!   readers, with one exception: so that a steady stream of readers cannot starve it, a blocked
//!   write may hold off new readers of its range for about 1 ms in every 100 ms. If overlapping
//!   reads follow one another without a gap and each lasts longer than that, the write can still
//!   starve; [`stats`](MemoryMappedFile::stats) shows how long the oldest blocked write has been
//!   waiting.
//! - **A write is all or nothing to readers**, even if its future is dropped. A write that has not started is
//!   withdrawn; a write that has started runs to completion. Overlapping writes take effect in the
//!   order in which they were first polled.
//! - **Durable means durable**: when a write whose name ends in `_async`, or a
//!   [`flush`](MemoryMappedFile::flush), returns `Ok`, its bytes survive a power cut, and so do the
//!   length of the file and the name it was opened by. A flush that failed is not forgotten: every
//!   later durable operation fails, until the last handle and `Bytes` of the file are gone.
//! - **Errors instead of signals.** On Linux 5.14 or newer, a full disk, a failing disk, or a file
//!   truncated by another process is an `Err` of the operation that meets it, not a `SIGBUS`; the
//!   exceptions are [listed below](#a-file-that-another-process-truncates).
//!
//! [ARCHITECTURE.md](https://github.com/mmap-io/mmap-io-async/blob/main/docs/ARCHITECTURE.md) tells
//! how the crate keeps these promises, and follows a write and a read from the call to the disk.
//!
//! # Views and leases
//!
//! A view is bytes of the mapping together with a *lease*: the right to look at a range of the file
//! ([`MappedSlice`], `Bytes`), to change it ([`MappedSliceMut`]), or to use its words as atomics
//! (feature `atomic`). A lease covers exactly the bytes that were asked for. Leases belong to the file, not to the handle: all handles that this
//! process has opened on a file share them, also if they were opened by different paths.
//!
//! Views for reading may overlap each other, and so may atomic views of words of one size; the two
//! kinds exclude each other. A mutable view, a write and a shrink overlap nothing:
//! they wait for the views of their bytes, for their turn, and for room in the write buffer. Growing
//! waits for no view (but of bytes that another process has cut off), and the memory of a `Bytes`
//! stays valid after the handle is dropped.
//!
//! # Order and cancellation
//!
//! An operation is submitted when its future is first polled. Writes, mutable views, resizes and
//! copies that overlap take effect in that order; operations that do not overlap do not wait for
//! each other. A reader sees each write whole or not at all.
//!
//! Dropping a future withdraws an operation that has not started: a timeout around a write means
//! that the write is either done, or being done, or will never be done. After an `Err` the content
//! of the range is unspecified.
//!
//! # What survives
//!
//! | | the process is killed | the power is cut |
//! |---|---|---|
//! | a durable write, or what a flush covered | yes | yes |
//! | any other write that has returned | yes | if the system has written it back by then |
//! | a write that is being applied | perhaps a part | perhaps a part |
//! | a write that waits | no | no |
//!
//! A write is in the page cache when it returns, and the page cache belongs to the system:
//! `kill -9` loses none of it. What a power cut may take is bounded by the [`FlushPolicy`], which
//! is [`Never`](FlushPolicy::Never) by default: without a durable operation nothing is flushed. No
//! write is atomic across a power cut: a log with checksums is (`examples/durable_log`), and so is
//! [`replace`], which puts a whole new file in the place of an old one.
//!
//! A file that has lost its name while it was open, because it was removed or another file was
//! renamed over it (as by [`replace`]), goes on to take writes, and they are lost with its last
//! handle. [`is_at_path`](MemoryMappedFile::is_at_path) detects this.
//!
//! # Deadlocks
//!
//! A task that awaits a write, a mutable view or a shrink over bytes of which it holds a view
//! itself waits forever:
//!
//! ```no_run
//! # async fn example(file: mmap_io::MemoryMappedFile) -> mmap_io::Result<()> {
//! let slice = file.as_slice(0, 10)?;
//! // file.update_region(5, b"x").await?;   // waits for `slice`
//! drop(slice);
//! file.update_region(5, b"x").await?;
//! # Ok(()) }
//! ```
//!
//! So does a task that holds a [`MappedSliceMut`] and awaits a write over bytes of it, or anything
//! that reads them: [`slice`](MemoryMappedFile::slice), [`read_bytes`](MemoryMappedFile::read_bytes),
//! [`read_into`](MemoryMappedFile::read_into), several ranges at once, a stream, a body or a reader;
//! and a task that holds one and awaits [`copy_to`](MemoryMappedFile::copy_to) of the file. A task
//! that holds an atomic view waits forever for the same operations, except `read_into` and a reader,
//! which wait only for an atomic view of the file below a writable copy-on-write handle. Two tasks
//! that wait for each other's views wait forever. `try_*` methods never wait.
//!
//! A future that has been polled, and is kept without being polled on, counts as the view that it
//! may have been granted: a task that polls a read once, and then awaits a write of its bytes while
//! it keeps the future, waits forever.
//!
//! [Clippy](https://rust-lang.github.io/rust-clippy/master/index.html#await_holding_invalid_type)
//! finds views that are held across an `.await`, if the `clippy.toml` of the program has these
//! lines:
//!
//! ```toml
//! await-holding-invalid-types = [
//!     { path = "mmap_io::MappedSlice", reason = "a write that overlaps it waits forever" },
//!     { path = "mmap_io::MappedSliceMut", reason = "reads and writes of its bytes wait forever" },
//!     { path = "mmap_io::AtomicView", reason = "a write that overlaps it waits forever" },
//!     { path = "mmap_io::AtomicSliceView", reason = "a write that overlaps it waits forever" },
//! ]
//! ```
//!
//! It warns of every await, also of those that have nothing to do with the view: an
//! `#[allow(clippy::await_holding_invalid_type)]` says that such an await is meant. Atomic views
//! need the feature `atomic`: leave their lines out without it. `Bytes` are not in the list: most
//! `Bytes` are no views, and those of [`bytes`](MemoryMappedFile::bytes) and
//! [`read_bytes`](MemoryMappedFile::read_bytes) are made to be held.
//!
#![doc = include_str!("recipes.md")]
//!
//! # Coming from the synchronous crate
//!
//! The names of mmap-io 0.9 and 1.x stay, most of them with `.await`. Three things behave
//! differently:
//!
//! - [`as_slice`](MemoryMappedFile::as_slice) of bytes under a live [`MappedSliceMut`] does not
//!   wait for it: it is [`Busy`](MmapIoError::Busy). [`slice`](MemoryMappedFile::slice) waits.
//! - [`read_bytes`](MemoryMappedFile::read_bytes) does not copy: while its `Bytes` live, writes
//!   that overlap them wait. `Bytes::from(&slice)` is a copy.
//! - Dropping a handle that may write does not wait until the file is closed: a thread of the pool
//!   closes it. [`close`](MemoryMappedFile::close) waits for that.
//!
//! [COMPAT.md](https://github.com/mmap-io/mmap-io-async/blob/main/docs/COMPAT.md) has a line for
//! each name of that crate, the traps, and a program before and after.
//!
//! # Safety and other processes
//!
//! The mapping shows the file. Views are protected from everything that goes through this crate in
//! this process. They are not protected from other handles on the file: `std::fs`, a duplicated
//! descriptor, another process. The caller makes sure that no such handle changes or truncates a
//! file while views of it are alive.
//!
//! Not supported: use in a signal handler, and network file systems with more than one writer.
//!
//! ## A file that another process truncates
//!
//! On Linux, reads, writes, resizes and copies that need bytes which another process has cut off
//! fail with [`Truncated`](MmapIoError::Truncated) while the file is too short; operations below
//! the cut go on. [`refresh`](MemoryMappedFile::refresh), and every opening of the file, takes note
//! of the new length: then operations past it are out of bounds, and if the cut has destroyed
//! written bytes that no flush had covered, the next durable operation fails with `Truncated` once,
//! and so does each that was waiting then. Stores through a view that lives at the cut count as
//! such bytes; they are looked for when it ends.
//! If a flush finds such a loss before the new length is noted, the flush fails with
//! [`FlushFailed`](MmapIoError::FlushFailed), and so does every later durable operation. If another
//! process cuts a file and makes it as long again in between, the crate cannot tell that from an
//! overwrite: a later flush makes durable what the file holds then.
//!
//! Two things still raise `SIGBUS`:
//! - another process truncates the file, or punches a hole into it, while an operation copies to or
//!   from the bytes that it removes;
//! - the caller touches a view where the kernel cannot provide the page: because another process
//!   has cut it off, because the disk cannot read it, or because it is a hole in a file on a full
//!   file system (on a full tmpfs even a read of a hole fails).
//!
//! [`slice`](MemoryMappedFile::slice) and [`as_slice_mut`](MemoryMappedFile::as_slice_mut) detect
//! the second case before they return a view, and
//! [`preallocate`](MemoryMappedFileBuilder::preallocate) leaves no holes. The feature `fault-guard`
//! makes an error of both.
//!
//! ## The fault guard
//!
//! With the feature `fault-guard`, the crate handles `SIGBUS`. A page of a mapping that the system
//! cannot provide is replaced by zeroes, and the thread that has touched it goes on. From then on
//! every operation on the file fails with [`Faulted`](MmapIoError::Faulted), through all handles,
//! [`flush`](MemoryMappedFile::flush) included; so does the operation that has copied from or to
//! such a page. Views that exist stay: they show zeroes where pages were lost. A program that
//! passes a view on, and must know that its bytes were those of the file, calls
//! [`as_slice`](MemoryMappedFile::as_slice) again when it is done.
//!
//! - If another process has cut the file, [`refresh`](MemoryMappedFile::refresh) and every opening
//!   of the file map it again, also while views and `Bytes` of the old content live: a log that was
//!   rotated can be read, appended to and flushed beside them. (A write that overlaps such a view
//!   waits for its end, as always.) Bytes that were stored to the zeroes are lost, and the next
//!   durable operation says so, once. As long as a [`MappedSliceMut`] or an atomic view lives, the
//!   file is not mapped again.
//! - If a disk has failed, or was full, the error sticks to the file until its last handle and view
//!   are gone. Private pages of a copy-on-write handle are lost for good in both cases.
//!
//! Reads cost the same with the guard. It changes nothing outside the mappings of this crate: all
//! other signals go to the handler that was installed before the first file was mapped, or end the
//! process. It cannot help a thread that blocks `SIGBUS`, nor where the program installs another
//! handler later which does not pass the signal on. A system call on a lost page fails with
//! `EFAULT`, as it does without the guard. A process has a limited number of mappings, and each
//! lost page may split one: so after 4,096 lost pages a mapping that loses a page loses all pages
//! behind it. Pages behind the end of a file do not count: they are replaced together.
//!
//! The guard works on Linux and Android, and is type-checked for macOS, iOS and FreeBSD. On other
//! platforms the feature does nothing: on Windows a page that cannot be read raises an exception,
//! which only the code that touches the page can catch.
//!
//! ## A file that another process grows
//!
//! Bytes that another process appends become visible, to every handle, when the file is next
//! opened, refreshed, or grown by [`grow_to`](MemoryMappedFile::grow_to) or an append.
//!
//! Several processes may open, create and grow one file at the same time. Opening takes the length
//! that it finds, and never shortens a file; only [`create`](MemoryMappedFileBuilder::create) and
//! [`copy_to`](MemoryMappedFile::copy_to) do that, to a file that is not mapped in this process.
//! Where the file system has no `fallocate`, a file is grown under an OFD lock (`fcntl(2)`) on a
//! byte past every end, which is tried and not waited for: a lock on the whole file that another
//! process has set by `fcntl`, or this one, then makes growing fail. On NFS the client asks the
//! server for such a lock.
//!
//! ## Locks on the file
//!
//! Closing any descriptor of a file releases all locks that the process itself has set on the file
//! by `fcntl(F_SETLK)`: that is how POSIX defines them. This crate closes its descriptors of a file
//! when the last handle and view of the file go, and the descriptors with which it creates or
//! copies files. On Linux 5.8 and later, handles on one file share the descriptors, and opening it
//! again closes none, except on overlayfs, and where several tasks open the file for the first time
//! at once. OFD locks and `flock` are not touched.
//!
//! With [`advisory_lock`](MemoryMappedFileBuilder#method.advisory_lock) the crate itself takes a
//! lock on the file, by `flock`, so that other processes which ask for one know that the file is in
//! use. It has a descriptor of its own, which is opened with the first handle that asks for the
//! lock, and closed with the last handle and view; or when an opening that has asked for the lock
//! fails, or is dropped.
//!
//! ## The time of modification
//!
//! Stores through a mapping move the file's modification time late, when the system writes them
//! back, and on tmpfs never: programs that compare times (rsync, make) may miss a change.
//! [`touch_mtime`](MemoryMappedFileBuilder::touch_mtime) sets the time at each flush.
//!
//! ## Paths and names
//!
//! Paths are opened as the system opens them: links are followed. The name that becomes durable
//! with the first durable operation is the name that the file was opened by for writing; where its
//! directory cannot be opened, or the file was moved before that, all of the file system is synced
//! (Linux). The caller has to make other names durable: the name of a file that is moved later,
//! that has other names (hard links), or that was opened from a descriptor, and the directories
//! above the directory of the file.
//!
//! ## Overlayfs
//!
//! On overlayfs, the first descriptor that may write copies a file up from the lower layer, and
//! maps made before show the old file forever. Within this process the crate follows the copy: the
//! first handle that may write replaces the map that other handles read, or is
//! [`Busy`](MmapIoError::Busy) while they have views of it. If another process copies a file up,
//! handles that were opened before do not see what it writes, until the last of them is gone or the
//! file is opened again; and one of several hard links to a file of a lower layer becomes a file of
//! its own. Private pages that were mapped before the copy go on to show the old file.
//!
//! A copy of a file that is on overlayfs has no holes, unless it shares the blocks of the file.
//!
//! ## A child that is forked off
//!
//! A child that the process forks off, and that executes no other program, has none of the threads
//! that do the work, and may find any lock taken forever. On Unix every `async` operation fails
//! there with an [`Io`](MmapIoError::Io) error of the kind `Unsupported`, before it waits for a
//! lock, once the parent has opened a file (or written to anonymous memory); an operation that the
//! parent began does not end in the child. [`as_slice`](MemoryMappedFile::as_slice) and
//! [`try_as_slice`](MemoryMappedFile::try_as_slice) go on, except for bytes on which a write, a
//! mutable view or an atomic view was at the time of the fork: those bytes are `Busy` forever. If
//! another thread began or ended one of these at that very moment, so may be all bytes near those
//! that the parent had changed before. A thread of the child can have 16 views, and those that it,
//! or perhaps others, had at the fork count; to one more, all bytes are `Busy`.
//! [`bytes`](MemoryMappedFile::bytes) is `Busy` for all bytes,
//! and so is every view of private pages. To the child the parent is another process: its writes
//! show under the child's views. Handles, views and futures can be dropped, and the parent runs the
//! flushes that were scheduled; [`pending_bytes`](MemoryMappedFile::pending_bytes) and
//! [`stats`](MemoryMappedFile::stats) count nothing of what is queued, pending or viewed. A child
//! that is forked off before the parent has opened a file works as any process does.
//!
//! ## Where no thread can be started
//!
//! Where the process may start no more threads (`RLIMIT_NPROC`, `pids.max`), operations take turns
//! on the threads that the pool has; without any, they fail with an [`Io`](MmapIoError::Io) error.
//! For that time the crate lowers the pool's limit (`blocking::set_max_blocking_threads`) for the
//! whole process, and sets it to the value of `BLOCKING_MAX_THREADS` when threads can be started
//! again.
//!
//! # When not to use it
//!
//! For files that are read or written once, from front to back, plain reads and writes are as fast
//! and simpler. Where the program must bound the memory that its files take, use a buffer pool: the
//! kernel decides what the page cache keeps.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `advise` | yes | [`MemoryMappedFile::advise`] |
//! | `iterator` | yes | [`chunks`](MemoryMappedFile::chunks), [`pages`](MemoryMappedFile::pages), their owned siblings, and [`chunks_mut`](MemoryMappedFile::chunks_mut) |
//! | `advisory-lock` | no | [`advisory_lock`](MemoryMappedFileBuilder#method.advisory_lock) of the builder: a lock on the file that other processes respect |
//! | `atomic` | no | `atomic_u32`, `atomic_u64`, and their slices: words of a file as atomics of the standard library |
//! | `cow` | no | [`open_cow`](MemoryMappedFile#method.open_cow), [`open_cow_writable`](MemoryMappedFile#method.open_cow_writable), and the mode [`CopyOnWrite`](MmapMode::CopyOnWrite) |
//! | `fault-guard` | no | [errors](#the-fault-guard) instead of `SIGBUS` also where a view is touched whose page is gone, on Unix |
//! | `hugepages` | no | [`huge_pages`](MemoryMappedFileBuilder#method.huge_pages) of the builder, [`AnonymousMmap::with_huge_pages`](AnonymousMmap#method.with_huge_pages) |
//! | `locking` | no | [`lock`](MemoryMappedFile#method.lock), [`lock_all`](MemoryMappedFile#method.lock_all) and their opposites: pages that stay in memory |
//! | `http-body` | no | `MemoryMappedFile::body`: a range as the body of an HTTP message |
//! | `tokio` | no | tokio's `AsyncRead`, `AsyncBufRead` and `AsyncSeek` for [`MmapReader`] |
//! | `tracing` | no | [spans and warnings](#tracing) for subscribers of `tracing` |
//! | `watch` | no | `MemoryMappedFile::watch` and `watch_stream`: reports when the file is changed or replaced |
//! | `async`, `bytes` | no | nothing: their items of mmap-io 0.9 are always there |
//!
//! # Tracing
//!
//! With the feature `tracing`, each operation that gives work to the pool or to the queue of a file
//! has a span named `operation`, with the target `mmap_io` and the level `DEBUG`. It begins when
//! the operation is submitted, and ends when the future resolves or is dropped. Its fields:
//!
//! | field | what it tells |
//! |---|---|
//! | `operation` | what the operation does, as error messages name it |
//! | `path`, `offset`, `len` | what it is about, the latter two in bytes; as far as they apply |
//! | `waited_us` | microseconds for which it waited for a thread of the pool, its turn, room and views |
//! | `ran_us` | microseconds for which it ran after that, including a flush that it shares |
//!
//! The last two are recorded at the end, and do not count what has not ended by then.
//!
//! A write, a mutable view or a resize that views or earlier operations have blocked for a second
//! causes an event of the level `WARN`, which names the bytes, the file if it was opened by a path,
//! and the views. Each is named once, and a file causes at most one such event a second. While
//! something is blocked and a subscriber wants warnings, one job of the pool waits for all files.
//!
//! The subscriber is called on the thread that polls and on threads of the pool.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(unsafe_code)]

// The modules stand in the order in which they build on each other: each uses only modules above
// it.

// What everything else uses: errors, ranges, modes, locks.
mod error;
mod mode;
mod range;
mod sync;

mod completion;
mod trace;

pub mod flush;

// The platform: its calls, the pool of threads, descriptors, mappings and their pages.
#[allow(unsafe_code)]
mod sys;

mod wakers;

mod offload;

mod fairness;

mod descriptor;

mod advisory_lock;

mod writable_pages;

#[allow(unsafe_code)]
mod fault_guard;
#[allow(unsafe_code)]
mod map;
#[allow(unsafe_code)]
mod residency;

// Leases: which bytes are read, and which bytes are changed.
#[allow(unsafe_code)]
mod lease;

// Durability: which bytes are to be flushed, when, for which operations, and by which call.
mod commit;
mod dirty;
mod timer;
#[allow(unsafe_code)]
mod writeback;

// The order of writes, and of everything else that is exclusive.
#[allow(unsafe_code)]
mod queue;

// One open file: all of the above for one inode, and how handles find it.
mod registry;

#[allow(unsafe_code)]
mod open_file;

mod opening;

// The public surface.
#[cfg(feature = "advise")]
#[cfg_attr(docsrs, doc(cfg(feature = "advise")))]
pub mod advise;
#[allow(unsafe_code)]
mod view;

mod file;

mod boxed;
mod reader;
mod stream;

#[cfg(feature = "http-body")]
mod body;

#[allow(unsafe_code)]
pub mod anonymous;
mod replace;

#[cfg(feature = "atomic")]
#[cfg_attr(docsrs, doc(cfg(feature = "atomic")))]
#[allow(unsafe_code)]
pub mod atomic;
pub mod manager;
pub mod segment;
pub mod utils;
#[cfg(all(feature = "watch", any(unix, windows)))]
#[cfg_attr(docsrs, doc(cfg(feature = "watch")))]
pub mod watch;

#[cfg(feature = "advise")]
pub use crate::advise::MmapAdvice;
#[cfg(feature = "advisory-lock")]
#[cfg_attr(docsrs, doc(cfg(feature = "advisory-lock")))]
pub use crate::advisory_lock::Lock;
pub use crate::anonymous::AnonymousMmap;
#[cfg(feature = "atomic")]
pub use crate::atomic::{AtomicSliceView, AtomicView};
#[cfg(feature = "http-body")]
#[cfg_attr(docsrs, doc(cfg(feature = "http-body")))]
pub use crate::body::MmapBody;
pub use crate::error::{Cause, MmapIoError, Result};
#[cfg(feature = "iterator")]
pub use crate::file::{ChunkIterator, ChunkIteratorMut, OwnedChunkIterator};
pub use crate::file::{MemoryMappedFile, MemoryMappedFileBuilder, Stats};
pub use crate::flush::FlushPolicy;
pub use crate::manager::{
    copy_mmap, create_mmap, delete_mmap, flush, load_mmap, update_region, write_mmap,
};
pub use crate::mode::{MmapMode, TouchHint};
pub use crate::reader::MmapReader;
pub use crate::replace::replace;
pub use crate::segment::{Segment, SegmentMut};
pub use crate::stream::MmapStream;
pub use crate::view::{MappedSlice, MappedSliceMut};
#[cfg(all(feature = "watch", any(unix, windows)))]
pub use crate::watch::{ChangeEvent, ChangeKind, WatchHandle, WatchStream};

/// The iterators under their old path.
#[cfg(feature = "iterator")]
#[cfg_attr(docsrs, doc(cfg(feature = "iterator")))]
pub mod iterator {
    pub use crate::file::{ChunkIterator, ChunkIteratorMut, OwnedChunkIterator};
}

/// The error type under its old path.
pub mod errors {
    pub use crate::error::{Cause, MmapIoError, Result};
}

/// The handle, its views and its modes under their old path.
pub mod mmap {
    pub use crate::file::{MemoryMappedFile, MemoryMappedFileBuilder, Stats};
    pub use crate::mode::{MmapMode, TouchHint};
    pub use crate::reader::MmapReader;
    pub use crate::view::{MappedSlice, MappedSliceMut};
}

/// The examples of the README, so that they are compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

/// What must not compile. Examples, and not tests of `trybuild`, since the text of the messages
/// changes with the compiler, and their codes do not.
#[cfg(all(doctest, feature = "atomic", feature = "iterator", feature = "watch"))]
#[doc = include_str!("misuse.md")]
mod misuse {}
