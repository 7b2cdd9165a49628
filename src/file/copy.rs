//! Snapshots: a copy of the file that no write can tear.

use std::fs::File;
use std::future::Future;
use std::io;
use std::path::Path;

use super::{Handle, MemoryMappedFile};
use crate::error::{MmapIoError, Result, Subject};
use crate::fairness::operation;
use crate::lease::Kind;
use crate::mode::MmapMode;
use crate::offload::offload;
use crate::open_file::{OpenFile, OwnedLease};
use crate::opening::{
    absolute, fail_if_used, find_by_path, find_open, is_gone, Intent, Target, TRIES,
};
use crate::queue::{Action, Op, Outcome, Queue, Submitted};
use crate::range::ByteRange;
use crate::registry::Found;
use crate::residency;
use crate::sys;
use crate::wakers::EventListener;

impl MemoryMappedFile {
    /// Copies a consistent snapshot of the file to `path` and returns its length.
    ///
    /// The copy is what the file was at one moment: it takes its turn among the writes, and later
    /// writes wait until it is done. It shares the blocks of the file where the file system can
    /// (reflink), and else the kernel copies them. A file that was at `path` is overwritten in
    /// place: its other names, and processes that have it open, see the copy. The copy is not
    /// durable. A writable copy-on-write handle copies what it shows, private pages included,
    /// through memory.
    ///
    /// Until it is whole, the copy can be opened by the process's own user alone, also if a file
    /// was at `path`; then it gets the permissions of the source, without the set-user-id,
    /// set-group-id and sticky bits. A process that had opened a file at `path` before reads on.
    ///
    /// # Errors
    ///
    /// - [`Busy`](MmapIoError::Busy): the file at `path` is mapped in this process, also under
    ///   another name, or is the source itself.
    /// - [`Io`](MmapIoError::Io): `path` cannot be written, or is no regular file; or copying
    ///   failed; or users who cannot read the source could read the copy, and that cannot be
    ///   prevented. A file that was not at `path` before is removed again; a file that was there
    ///   keeps its permissions for reading, writing and executing, and may have lost its content.
    /// - [`Truncated`](MmapIoError::Truncated): another process has shortened the file.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws a copy that has not started; a copy that has started runs to
    /// completion.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// let file = mmap_io::create_mmap(dir.path().join("data"), 4096).await?;
    /// file.update_region(0, b"backed up").await?;
    /// let copy = dir.path().join("backup");
    /// assert_eq!(file.copy_to(&copy).await?, 4096);
    /// assert!(std::fs::read(&copy)?.starts_with(b"backed up"));
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn copy_to(
        &self,
        path: impl AsRef<Path>,
    ) -> impl Future<Output = Result<u64>> + Send + 'static {
        let handle = self.handle.clone();
        let path = path.as_ref();
        let (subject, path) = (Subject::from(path), absolute(path));
        operation("copying to", subject, async move {
            // It takes its turn now; but a copy that must fail does not wait for that turn.
            let mut turn = handle.snapshot_turn();
            let destination = path.clone();
            offload(move || check_destination(&destination)).await?;
            let (len, mut snapshot) = loop {
                let Some((len, submitted)) = turn else {
                    break (0, None);
                };
                match submitted.await {
                    Ok(Outcome::Leased(lease)) => break (len, Some(lease)),
                    Ok(Outcome::Done | Outcome::Appended(_) | Outcome::InUse) => {
                        unreachable!("it ends in a lease or an error")
                    }
                    // A shrink went first.
                    Err(MmapIoError::OutOfBounds { .. }) => turn = handle.snapshot_turn(),
                    Err(error) => return Err(error),
                }
            };
            loop {
                let (path, source, lease) = (path.clone(), handle.file().clone(), snapshot.take());
                let copying =
                    handle.run_on_pool(move |open| copy_out(open, &source, len, &path, lease));
                match copying.await? {
                    Copied::Done => return Ok(len),
                    Copied::Later(lease, closed) => {
                        snapshot = lease;
                        closed.await;
                    }
                }
            }
        })
    }
}

impl Handle {
    /// Takes a turn among the writes, for a lease that keeps all bytes as they are. Returns their
    /// number too; `None` if there are none.
    fn snapshot_turn(&self) -> Option<(u64, Submitted<'_, OpenFile>)> {
        let len = self.shared.len();
        let op = Op::new(ByteRange::between(0, len), Action::Lease(Kind::Shared));
        (len > 0).then(|| (len, Queue::submit(&self.shared, op)))
    }
}

enum Copied {
    Done,
    /// The destination is being opened or closed; try again when that is over.
    Later(Option<OwnedLease>, EventListener),
}

/// Fails if the destination cannot be written at present.
fn check_destination(path: &Path) -> Result<()> {
    if let Some(open) = find_by_path(path, Intent::Write) {
        fail_if_used(&open)?;
    }
    let target = match Target::existing(path, MmapMode::ReadWrite) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        target => target?,
    };
    let (info, fs_traits) = target.identify()?;
    match find_open(&target, &info, fs_traits) {
        Found::Open(open) if open.check_in_use().is_ok() => {
            Err(ByteRange::between(0, info.len).busy())
        }
        Found::Open(_) | Found::Vacant(_) | Found::Claimed(_) => Ok(()),
    }
}

/// Copies to `path`, which no other handle of this process can map in the meantime.
fn copy_out(
    open: &OpenFile,
    source: &File,
    len: u64,
    path: &Path,
    snapshot: Option<OwnedLease>,
) -> Result<Copied> {
    for tries_left in (0..TRIES).rev() {
        // Other users may open it only when it is whole, and if they may read the source.
        let target = Target::create(path, sys::FOR_THE_OWNER)?;
        let (info, fs_traits) = target.identify()?;
        let claim = match find_open(&target, &info, fs_traits) {
            // Another holder of the claim may have removed the file.
            Found::Vacant(claim) => {
                let info = sys::file_info(target.file())?;
                if tries_left > 0 && is_gone(&info, path) {
                    continue;
                }
                claim
            }
            // Another opening has found the file that was created here, and uses it.
            Found::Claimed(opening) => {
                target.keep();
                return Ok(Copied::Later(snapshot, opening));
            }
            Found::Open(open) => {
                target.keep();
                match open.check_in_use() {
                    Ok(()) => return Err(ByteRange::between(0, info.len).busy()),
                    Err(closed) => return Ok(Copied::Later(snapshot, closed)),
                }
            }
        };
        let private = snapshot.as_ref().filter(|_| open.is_private());
        let copied = copy_all(source, target.file(), len, private);
        drop(snapshot);
        // If the copy failed, a file that was created is removed before the claim on it is dropped.
        match &copied {
            Ok(()) => drop(target.keep()),
            Err(_) => target.discard(),
        }
        drop(claim);
        return copied.map(|()| Copied::Done);
    }
    unreachable!("the last try takes the file as it is")
}

/// `private` is the lease on private pages, if the copy is of these.
fn copy_all(
    source: &File,
    destination: &File,
    len: u64,
    private: Option<&OwnedLease>,
) -> Result<()> {
    // Before the destination loses its content.
    sys::check_file_limit(len)?;
    residency::check_length(Some(source), &[ByteRange::between(0, len)])?;
    let (metadata, before) = (source.metadata()?, destination.metadata()?);
    sys::restrict(destination, &metadata)?;
    overwrite(source, destination, len, private).map_err(|error| {
        // Users who may not read the source must not find a part of it.
        if destination.set_len(0).is_ok() {
            let _ = sys::copy_permissions(destination, &before);
        }
        error
    })?;
    Ok(sys::copy_permissions(destination, &metadata)?)
}

/// Overwrites a file with the first `len` bytes of the source.
fn overwrite(
    source: &File,
    destination: &File,
    len: u64,
    private: Option<&OwnedLease>,
) -> Result<()> {
    // An empty file is not truncated: ext4 writes a truncated file back when it is closed.
    if destination.metadata()?.len() > 0 {
        destination.set_len(0)?;
    }
    if let Some(lease) = private {
        lease.host().copy_private(destination, len, lease)?;
    } else if sys::file_len(source)? == len && sys::clone_file(source, destination) {
        // The file may have become longer before it was cloned, by half of an append; or shorter.
        if sys::file_len(destination)? > len {
            destination.set_len(len)?;
        }
        residency::check_length(Some(destination), &[ByteRange::between(0, len)])?;
    } else {
        sys::copy_contents(source, destination, len).map_err(|error| {
            // Another process may have shortened the file in the meantime.
            let whole = residency::check_length(Some(source), &[ByteRange::between(0, len)]);
            whole.err().unwrap_or(MmapIoError::from(error))
        })?;
    }
    Ok(())
}
