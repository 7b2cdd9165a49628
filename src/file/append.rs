//! Writing behind the end of the file.

use super::MemoryMappedFile;
#[cfg(doc)]
use crate::error::MmapIoError;
use crate::error::{Result, Subject};
use crate::fairness::operation;
use crate::flush::FlushPolicy;
use crate::offload::check;
use crate::open_file::OwnedLease;
use crate::queue::{Action, Outcome, Queue, Ranges, Source};

/// # Appending
///
/// An append writes behind the end of the file, and makes the file longer by exactly that. It takes
/// its turn among the other appends and the operations that change the length, and waits for no
/// view, but of bytes that another process has cut off. Its place is found when it is applied, so
/// that any number of tasks can append and no two of them get the same place. Appends that wait at the same time are applied together, and durable ones
/// share one flush. A reader sees each append whole or not at all.
///
/// On ext4, xfs, btrfs and tmpfs other processes may append to the file as well, with `O_APPEND`:
/// nothing is overwritten (`pwritev2(2)`, `RWF_APPEND`). The first append then opens the file once
/// more; if no descriptor is free for that, it fails with [`Io`](MmapIoError::Io). On other file
/// systems, and if the system refuses to open the file again for writing (`/proc` is not mounted,
/// or the process may no longer do that), only one process may append.
///
/// [Writing](#writing) tells the errors and the cancel safety; a full disk is found before the first
/// byte is written. Besides those, an append fails with [`ResizeFailed`](MmapIoError::ResizeFailed)
/// if the file would be larger than can be mapped, and with
/// [`InvalidMode`](MmapIoError::InvalidMode) through every copy-on-write handle: private pages do
/// not make the file longer. After an I/O error the file may be longer.
impl MemoryMappedFile {
    /// Writes `data` behind the end of the file, and returns the offset at which it begins.
    ///
    /// The handle's [`FlushPolicy`] says when it is durable. No bytes are `Ok`, through any handle,
    /// and begin at the end.
    ///
    /// # Errors
    ///
    /// See [Appending](#appending).
    ///
    /// # Cancel safety
    ///
    /// See [Writing](#writing).
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("log");
    /// # std::fs::write(&path, "header")?;
    /// let log = mmap_io::MemoryMappedFile::open_rw(&path).await?;
    /// let (first, second) = futures_lite::future::try_zip(log.append(b"one"), log.append(b"two")).await?;
    /// assert_eq!((first, second), (6, 9));
    /// assert_eq!(log.as_slice(0, log.len())?, b"headeronetwo");
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub async fn append(&self, data: &[u8]) -> Result<u64> {
        self.append_with(data, self.handle.policy).await
    }

    /// Writes `data` behind the end of the file, makes it durable, and returns the offset at which it
    /// begins.
    ///
    /// The length of the file is durable as well.
    ///
    /// # Errors
    ///
    /// See [Appending](#appending).
    ///
    /// # Cancel safety
    ///
    /// See [Writing](#writing).
    #[doc(alias = "durable")]
    #[doc(alias = "fsync")]
    pub async fn append_async(&self, data: &[u8]) -> Result<u64> {
        self.append_with(data, FlushPolicy::Always).await
    }

    /// Writes `data` behind the end of the file if that is at `expected_len`; returns whether it was.
    ///
    /// After `false` nothing was written. For writers that must not append to what they have not read.
    /// Among the tasks of this process that is exact; an append of another process may come between
    /// the look and the write, and is then overwritten.
    ///
    /// # Errors
    ///
    /// See [Appending](#appending).
    ///
    /// # Cancel safety
    ///
    /// See [Writing](#writing).
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("log");
    /// # std::fs::write(&path, "header")?;
    /// let log = mmap_io::MemoryMappedFile::open_rw(&path).await?;
    /// assert!(log.append_at(6, b"one").await?);
    /// assert!(!log.append_at(6, b"two").await?);
    /// assert_eq!(log.len(), 9);
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub async fn append_at(&self, expected_len: u64, data: &[u8]) -> Result<bool> {
        let len = data.len() as u64;
        operation("appending", (expected_len, len), async {
            if data.is_empty() {
                return Ok(self.len() == expected_len);
            }
            let action = Action::AppendAt(self.handle.policy, expected_len);
            Ok(!matches!(
                self.submit_append(data, action).await?,
                Outcome::InUse
            ))
        })
        .await
    }

    async fn append_with(&self, data: &[u8], policy: FlushPolicy) -> Result<u64> {
        operation("appending", Subject::Len(data.len() as u64), async {
            if data.is_empty() {
                return Ok(self.len());
            }
            match self.submit_append(data, Action::Append(policy)).await? {
                Outcome::Appended(offset) => Ok(offset),
                Outcome::Done | Outcome::Leased(_) | Outcome::InUse => {
                    unreachable!("an append ends in its offset or an error")
                }
            }
        })
        .await
    }

    async fn submit_append(&self, data: &[u8], action: Action) -> Result<Outcome<OwnedLease>> {
        self.handle.mode.require_write()?;
        check()?;
        let ranges = Ranges::of_append(data.len() as u64);
        Queue::write(&self.handle.shared, ranges, action, Source::Slice(data)).await
    }
}
