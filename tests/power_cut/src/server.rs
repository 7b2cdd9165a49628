//! Serves a [`Disk`] as the file `disk` of a FUSE file system.
//!
//! A loop device on that file passes on every write of the file system above it at once, and turns
//! a disk flush into an `fsync` of the file. One thread serves all requests in their order, so that
//! every write that arrived before a flush was acknowledged before it.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyWrite, Request, WriteFlags,
};

use crate::disk::{Disk, Eio};

const NAME: &str = "disk";
const INODE: INodeNo = INodeNo(2);
/// Nothing but this server changes the file's attributes.
const VALID: Duration = Duration::from_secs(3600);

/// A mounted FUSE file system with one disk in it; unmounted when dropped.
pub(crate) struct Served {
    session: Option<BackgroundSession>,
    path: PathBuf,
}

impl Served {
    /// Mounts it on an empty directory.
    pub(crate) fn mount(disk: &Disk, at: &Path) -> Result<Self> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("power_cut".into())];
        let session = fuser::spawn_mount(Server(disk.clone()), at, &config)
            .context("cannot mount a FUSE file system")?;
        Ok(Self {
            session: Some(session),
            path: at.join(NAME),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn open(&self) -> Result<File> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path);
        file.context("cannot open the disk")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            // Busy only if a loop device still holds the file; the namespace of this process
            // takes the mount with it then.
            if let Err(error) = session.umount_and_join() {
                eprintln!("cannot unmount the FUSE file system: {error}");
            }
        }
    }
}

struct Server(Disk);

impl Server {
    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0o700, 0),
            INODE => (FileType::RegularFile, 0o600, self.0.len()),
            _ => return None,
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(INODE) {
            Some(attributes) if parent == INodeNo::ROOT && name == NAME => {
                reply.entry(&VALID, &attributes, Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&VALID, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(&self.0.read(offset, size as usize));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.0.write(offset, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(Eio) => reply.error(Errno::EIO),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.0.flush() {
            Ok(()) => reply.ok(),
            Err(Eio) => reply.error(Errno::EIO),
        }
    }

    /// Sent when a descriptor is closed. Not a flush of the disk.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}
