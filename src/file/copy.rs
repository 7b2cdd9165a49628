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
    /// Copies the file to `path`, and resolves to the number of bytes.
    ///
    /// The copy is what the file was at one moment: it takes its turn among the writes, and those
    /// after it wait until it is done. Shares the blocks of the file where the file system can
    /// (reflink), and else copies inside the kernel. A file that was there is overwritten in place:
    /// its other names, and processes that have it open, see the copy. The copy is not durable.
    ///
    /// Until it is whole, the copy is for the process's own user alone, a file that was there as
    /// well; then it gets the permissions of the file, without the set-user-id, set-group-id and
    /// sticky bits. A process that had a file open that was there reads on.
    ///
    /// # Errors
    ///
    /// - [`Busy`](MmapIoError::Busy): `path` is mapped in this process, by whatever name: also if
    ///   it is the file itself.
    /// - [`Io`](MmapIoError::Io): `path` cannot be written, or is no regular file; or others could
    ///   read the copy who cannot read the file, and nothing can be done about it; or copying failed.
    ///   A file that was not there before is removed again; one that was is lost.
    /// - [`Truncated`](MmapIoError::Truncated): another process has shortened the file.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws the copy if it has not started; one that has runs to its
    /// end.
    pub fn copy_to(
        &self,
        path: impl AsRef<Path>,
    ) -> impl Future<Output = Result<u64>> + Send + 'static {
        let handle = self.handle.clone();
        let path = path.as_ref();
        let (subject, path) = (Subject::from(path), absolute(path));
        operation("copying to", subject, async move {
            // It takes its turn now; but what cannot be waits for nobody.
            let mut turn = handle.snapshot_turn();
            let destination = path.clone();
            offload(move || check_destination(&destination)).await?;
            let (len, mut snapshot) = loop {
                let Some((len, submitted)) = turn else {
                    break (0, None);
                };
                match submitted.await {
                    Ok(Outcome::Leased(lease)) => break (len, Some(lease)),
                    Ok(Outcome::Done | Outcome::InUse) => {
                        unreachable!("it ends in a lease or an error")
                    }
                    // A shrink went first.
                    Err(MmapIoError::OutOfBounds { .. }) => turn = handle.snapshot_turn(),
                    Err(error) => return Err(error),
                }
            };
            loop {
                let (path, source, lease) = (path.clone(), handle.file().clone(), snapshot.take());
                let copying = handle.run_on_pool(move |_| copy_out(&source, len, &path, lease));
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
    /// A turn among the writes, to keep all bytes as they are; says how many there are.
    fn snapshot_turn(&self) -> Option<(u64, Submitted<'_, OpenFile>)> {
        let len = self.shared.len();
        let op = Op::new(ByteRange::between(0, len), Action::Lease(Kind::Shared));
        (len > 0).then(|| (len, Queue::submit(&self.shared, op)))
    }
}

enum Copied {
    Done,
    /// The destination is being opened or closed; try again then.
    Later(Option<OwnedLease>, EventListener),
}

/// Fails if the destination cannot be written as it is now.
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

/// Copies to `path`, which no other handle here can map meanwhile.
fn copy_out(source: &File, len: u64, path: &Path, snapshot: Option<OwnedLease>) -> Result<Copied> {
    for tries_left in (0..TRIES).rev() {
        // For other users only when it is whole, and if they may read the source.
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
            // What was created here belongs to others by now.
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
        let copied = copy_all(source, target.file(), len);
        drop(snapshot);
        // If it failed, a file that was created goes before the claim on it does.
        match &copied {
            Ok(()) => drop(target.keep()),
            Err(_) => target.discard(),
        }
        drop(claim);
        return copied.map(|()| Copied::Done);
    }
    unreachable!("the last try takes the file as it is")
}

fn copy_all(source: &File, destination: &File, len: u64) -> Result<()> {
    // Before anything is lost that was there.
    sys::check_file_limit(len)?;
    residency::check_length(Some(source), &[ByteRange::between(0, len)])?;
    let metadata = source.metadata()?;
    sys::restrict(destination, &metadata)?;
    // Not a file that is empty anyway: ext4 writes a truncated one back when it is closed.
    if destination.metadata()?.len() > 0 {
        destination.set_len(0)?;
    }
    if !(metadata.len() == len && sys::clone_file(source, destination)) {
        sys::copy_contents(source, destination, len).map_err(|error| {
            // The file may have become shorter meanwhile.
            let whole = residency::check_length(Some(source), &[ByteRange::between(0, len)]);
            whole.err().unwrap_or(MmapIoError::from(error))
        })?;
    }
    Ok(sys::copy_permissions(destination, &metadata)?)
}
