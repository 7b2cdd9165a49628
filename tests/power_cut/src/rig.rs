//! A file system on a disk whose power can be cut.

use std::path::Path;
use std::process::Command;

use anyhow::{ensure, Context, Result};
use tempfile::TempDir;

use crate::disk::{Blocks, Disk};
use crate::image::to_file;
use crate::mount::{FileSystem, Mounted};
use crate::server::Served;

/// The parts are dropped in the order of the fields.
pub(crate) struct Rig {
    live: Option<Mounted>,
    _served: Served,
    pub(crate) disk: Disk,
    kind: FileSystem,
    directories: TempDir,
}

impl Rig {
    /// A new disk with a new file system, mounted.
    pub(crate) fn new(kind: FileSystem) -> Result<Self> {
        let directories = tempfile::tempdir()?;
        for name in ["fuse", "live", "image"] {
            std::fs::create_dir(directories.path().join(name))?;
        }
        let disk = Disk::new(kind.disk_len());
        let served = Served::mount(&disk, &directories.path().join("fuse"))?;
        make_file_system(kind, served.path())?;
        let live = Mounted::new(kind, &served.open()?, &directories.path().join("live"))?;
        Ok(Self {
            live: Some(live),
            _served: served,
            disk,
            kind,
            directories,
        })
    }

    /// Where the living file system is mounted.
    pub(crate) fn path(&self) -> &Path {
        self.live.as_ref().expect("mounted until dropped").path()
    }

    /// Mounts what a power cut has left; the file system recovers from its journal.
    pub(crate) fn mount_image(&self, blocks: &Blocks) -> Result<Mounted> {
        let at = self.directories.path().join("image");
        Mounted::new(self.kind, &to_file(blocks)?, &at).context("the image of a cut")
    }
}

fn make_file_system(kind: FileSystem, disk: &Path) -> Result<()> {
    let [program, options @ ..] = kind.mkfs() else {
        unreachable!("a command has a name");
    };
    let output = Command::new(program).args(options).arg(disk).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}", stderr.trim());
    Ok(())
}
