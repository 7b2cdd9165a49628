//! Snapshots: a copy of the file that no write can tear.

use std::fs::{self, File};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;

#[cfg(doc)]
use crate::error::MmapIoError;
use crate::error::Result;
use crate::file::{Handle, MemoryMappedFile};
use crate::lease::Kind;
use crate::offload::offload;
use crate::open_file::OPEN_FILES;
use crate::opening::{open_target, Target};
use crate::queue::{Action, Op, Outcome, Queue};
use crate::range::ByteRange;
use crate::registry::{Claim, Found};
use crate::residency;
use crate::sys;

impl MemoryMappedFile {
    /// Copies the file to `path`, and resolves to the number of bytes.
    ///
    /// The copy is what the file was at one moment: it takes its turn among the writes, and those
    /// after it wait until it is done. Shares the blocks of the file where the file system can
    /// (reflink), and else copies inside the kernel. What was there is replaced; permission bits
    /// are copied. The copy is not durable.
    ///
    /// # Errors
    ///
    /// - [`Busy`](MmapIoError::Busy): `path` is mapped in this process, by whatever name: also if
    ///   it is the file itself.
    /// - [`Io`](MmapIoError::Io): `path` cannot be written, or is no regular file; or copying
    ///   failed. A file that was not there before is removed again.
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
        let path = path.as_ref().to_path_buf();
        async move {
            let (target, claim) = loop {
                let path = path.clone();
                match offload(move || claim_target(&path)).await? {
                    Claimed::Mine(target, claim) => break (target, claim),
                    Claimed::Later(opening) => opening.await,
                }
            };
            handle.copy_into(target, claim).await
        }
    }
}

impl Handle {
    async fn copy_into(
        &self,
        target: Target,
        claim: Claim<crate::open_file::OpenFile>,
    ) -> Result<u64> {
        let len = self.open.len();
        let snapshot = if len == 0 {
            None
        } else {
            let all = ByteRange::between(0, len);
            let op = Op::new(all, Action::Lease(Kind::Shared));
            match Queue::submit(&self.open, op).await? {
                Outcome::Leased(lease) => Some(lease),
                Outcome::Done | Outcome::InUse => unreachable!("it ends in a lease or an error"),
            }
        };
        let source = self.file.clone();
        self.hop(move |_| {
            let copied = copy_all(&source, target.file(), len);
            drop(snapshot);
            // If it failed, a file that was created goes before the claim on it does.
            if copied.is_ok() {
                target.keep();
            } else {
                drop(target);
            }
            drop(claim);
            copied.map(|()| len)
        })
        .await
    }
}

enum Claimed {
    Mine(Target, Claim<crate::open_file::OpenFile>),
    Later(event_listener::EventListener),
}

/// Opens the destination, and keeps everybody from mapping it.
fn claim_target(path: &Path) -> Result<Claimed> {
    let (target, info) = open_target(path)?;
    match OPEN_FILES.find((&info).into()) {
        Found::Vacant(claim) => Ok(Claimed::Mine(target, claim)),
        // What was created here is somebody else's by now.
        Found::Claimed(opening) => {
            target.keep();
            Ok(Claimed::Later(opening))
        }
        Found::Open(open) => {
            target.keep();
            match open.check_in_use() {
                Ok(()) => Err(ByteRange::between(0, info.len).busy()),
                Err(closed) => Ok(Claimed::Later(closed)),
            }
        }
    }
}

fn copy_all(source: &Arc<File>, destination: &File, len: u64) -> Result<()> {
    // Before anything is lost that was there.
    residency::check_length(source, &[ByteRange::between(0, len)])?;
    let metadata = source.metadata()?;
    // Not a file that is empty anyway: ext4 writes a truncated one back when it is closed.
    if destination.metadata()?.len() > 0 {
        destination.set_len(0)?;
    }
    if !(metadata.len() == len && sys::clone_file(source, destination)) {
        sys::copy_contents(source, destination, len)?;
    }
    Ok(set_permissions(destination, metadata.permissions())?)
}

/// Best effort, as some file systems have none.
fn set_permissions(file: &File, permissions: fs::Permissions) -> std::io::Result<()> {
    match file.set_permissions(permissions) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        result => result,
    }
}
