//! Asks whether the path of a file still names it.

use std::fs;
use std::future::Future;
use std::io;
use std::path::Path;

use super::MemoryMappedFile;
#[cfg(doc)]
use crate::error::MmapIoError;
use crate::error::{Result, Subject};
use crate::fairness::operation;
use crate::sys;

impl MemoryMappedFile {
    /// Returns `true` if the path that was used to open the file still names this file.
    ///
    /// It returns `false` if the file was removed or another file was renamed over it. A handle of
    /// such a file goes on working; bytes that are written to it are lost with the last handle.
    ///
    /// # Errors
    ///
    /// [`Io`](MmapIoError::Io): the path cannot be looked up, for another reason than that no file
    /// is there, or that a file is where the path has a directory.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("data");
    /// let file = mmap_io::create_mmap(&path, 100).await?;
    /// assert!(file.is_at_path().await?);
    /// std::fs::remove_file(&path)?;
    /// assert!(!file.is_at_path().await?);
    /// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn is_at_path(&self) -> impl Future<Output = Result<bool>> + Send + 'static {
        let handle = self.handle.clone();
        let path = Subject::from(&handle.path);
        operation("looking up", path, async move {
            let (file, location) = (handle.file().clone(), handle.location.clone());
            let looked = handle.run_on_pool(move |_| match sys::file_id_at(&location) {
                Ok(there) => Ok(there == sys::file_info(&file)?.id),
                Err(error) if is_absent(&location, &error) => Ok(false),
                Err(error) => Err(error),
            });
            Ok(looked.await?)
        })
    }
}

/// Whether the error of looking up a path says that no file is there: there is none, or a file is
/// where the path has a directory.
pub(crate) fn is_absent(path: &Path, error: &io::Error) -> bool {
    // The error kind of the second case is newer than the oldest compiler that the crate supports.
    let nearest = || {
        path.ancestors()
            .skip(1)
            .find_map(|above| fs::metadata(above).ok())
    };
    error.kind() == io::ErrorKind::NotFound || nearest().is_some_and(|above| !above.is_dir())
}
