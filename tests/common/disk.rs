//! Disks of a test's own: a tmpfs, or an ext4 in a file, that can be filled or made to fail.

use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::skip;

pub(crate) const MIB: u64 = 1 << 20;

/// A small file system, unmounted when dropped.
pub(crate) struct Disk(tempfile::TempDir);

impl Disk {
    pub(crate) fn tmpfs(test: &str, size: u64) -> Option<Self> {
        Self::tmpfs_with(test, size, "rw")
    }

    pub(crate) fn tmpfs_with(test: &str, size: u64, options: &str) -> Option<Self> {
        let options = format!("size={size},{options}");
        Self::mount(test, &options, "tmpfs", "tmpfs".as_ref())
    }

    /// An ext4 in a sparse image of that size, which is made at `image`.
    pub(crate) fn ext4(test: &str, image: &Path, size: u64) -> Option<Self> {
        Self::ext4_with(test, image, size, &["-b4096"])
    }

    pub(crate) fn ext4_with(test: &str, image: &Path, size: u64, options: &[&str]) -> Option<Self> {
        Self::ext4_prepared(test, image, size, options, |_| Some(()))
    }

    /// The same, but for `prepare`, which changes the file system before it is mounted.
    pub(crate) fn ext4_prepared(
        test: &str,
        image: &Path,
        size: u64,
        options: &[&str],
        prepare: impl FnOnce(&Path) -> Option<()>,
    ) -> Option<Self> {
        File::create(image).unwrap().set_len(size).unwrap();
        let features = ["-O", "^has_journal", "-E", "nodiscard,lazy_itable_init=1"];
        let mut make = Command::new("mkfs.ext4");
        make.args(["-q", "-m", "0"]).args(features).args(options);
        try_run(test, make.arg(image))?;
        prepare(image)?;
        Self::loop_device(test, image)
    }

    /// Mounts an ext4 that is in `image` already.
    pub(crate) fn loop_device(test: &str, image: &Path) -> Option<Self> {
        Self::mount(test, "loop,noatime,errors=continue", "ext4", image)
    }

    pub(crate) fn mount(test: &str, options: &str, kind: &str, source: &Path) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", kind, "-o", options]);
        try_run(test, mount.arg(source).arg(dir.path()))?;
        Some(Self(dir))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Leaves no block free, by a file at the path that it returns.
    pub(crate) fn fill(&self) -> PathBuf {
        let path = self.path("filler");
        let mut file = File::create(&path).unwrap();
        // Blocks that were held back for a delayed allocation may turn up free once it is made.
        while file.write_all(&[1; 4096]).is_ok() {
            while file.write_all(&[1; 4096]).is_ok() {}
            let _ = file.sync_all();
        }
        path
    }

    /// Gives the blocks of a [`fill`](Self::fill) free. They are so at once, also if a child that
    /// another test is starting has a copy of a descriptor of the file.
    pub(crate) fn free(&self, filler: &Path) {
        File::options()
            .write(true)
            .open(filler)
            .unwrap()
            .set_len(0)
            .unwrap();
        std::fs::remove_file(filler).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut path = self.0.path().as_os_str().as_bytes().to_vec();
        path.push(0);
        // SAFETY: the string is live and ends in a zero byte.
        unsafe { libc::umount2(path.as_ptr().cast(), libc::MNT_DETACH) };
    }
}

/// Runs what only root may, or says why the test is skipped.
pub(crate) fn try_run(test: &str, command: &mut Command) -> Option<()> {
    // SAFETY: the call takes nothing and cannot fail.
    let problem = if unsafe { libc::geteuid() } != 0 {
        "needs root, for a disk of its own".to_owned()
    } else {
        match command.output() {
            Ok(output) if output.status.success() => return Some(()),
            Ok(output) => String::from_utf8_lossy(&output.stderr).replace('\n', " "),
            Err(error) => format!("{:?}: {error}", command.get_program()),
        }
    };
    skip(test, &problem);
    None
}

/// Cuts a file to `len` bytes, or makes it that long, in another process.
pub(crate) fn truncate(path: &Path, len: u64) {
    let mut truncate = Command::new("truncate");
    let truncate = truncate.args(["--size", &len.to_string()]).arg(path);
    assert!(truncate.status().unwrap().success());
}

/// Expects the error of a full disk.
#[track_caller]
pub(crate) fn assert_full<T>(result: mmap_io::Result<T>) {
    let error = result.map(drop).unwrap_err();
    let full = std::io::Error::from_raw_os_error(libc::ENOSPC).kind();
    assert_eq!(error.io_kind(), Some(full), "{error:?}");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
}
