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
use crate::offload::{offload, spawn};
use crate::open_file::{OpenFile, OwnedLease, OPEN_FILES};
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
            let destination = loop {
                let path = path.clone();
                match offload(move || claim_target(&path)).await? {
                    Claimed::Mine(destination) => break destination,
                    Claimed::Later(opening) => opening.await,
                }
            };
            handle.copy_into(destination).await
        }
    }
}

impl Handle {
    async fn copy_into(&self, mut destination: Destination) -> Result<u64> {
        let len = self.open.len();
        let snapshot = match self.snapshot(len).await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                let claimed = destination.0.take();
                offload(move || drop(claimed)).await;
                return Err(error);
            }
        };
        let source = self.file.clone();
        self.hop(move |_| {
            let Some((target, claim)) = destination.0.take() else {
                unreachable!("it is taken once");
            };
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

    /// Keeps the first `len` bytes as they are.
    async fn snapshot(&self, len: u64) -> Result<Option<OwnedLease>> {
        if len == 0 {
            return Ok(None);
        }
        let op = Op::new(ByteRange::between(0, len), Action::Lease(Kind::Shared));
        match Queue::submit(&self.open, op).await? {
            Outcome::Leased(lease) => Ok(Some(lease)),
            Outcome::Done | Outcome::InUse => unreachable!("it ends in a lease or an error"),
        }
    }
}

/// A file to copy to, which nobody else may map; present until it is taken.
///
/// A file that was created goes before the claim on it does: whoever gets the place next keeps
/// what is found there. So the two are one value, and dropped in that order.
struct Destination(Option<(Target, Claim<OpenFile>)>);

impl Drop for Destination {
    /// Gives the place up, on the pool: the thread that drops a future removes no file.
    fn drop(&mut self) {
        if let Some(claimed) = self.0.take() {
            spawn(move || drop(claimed));
        }
    }
}

enum Claimed {
    Mine(Destination),
    Later(event_listener::EventListener),
}

/// Opens the destination, and keeps everybody from mapping it.
fn claim_target(path: &Path) -> Result<Claimed> {
    let (target, info) = open_target(path)?;
    match OPEN_FILES.find((&info).into()) {
        Found::Vacant(claim) => Ok(Claimed::Mine(Destination(Some((target, claim))))),
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
