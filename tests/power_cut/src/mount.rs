//! Mounts and loop devices, which must not be left behind.
//!
//! Guards remove them. If the process is killed, the kernel removes them: all mounts are in a
//! mount namespace of this process, which ends with it, and a loop device clears itself when it is
//! closed for the last time.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, Context, Result};

/// The file system that is made on a disk, and how it is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSystem {
    Ext4,
    Xfs,
}

impl FileSystem {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// The command that makes it. Nothing is discarded: the FUSE file cannot do that.
    pub(crate) fn mkfs(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &[
                "mkfs.ext4",
                "-qF",
                "-b4096",
                "-Enodiscard,lazy_itable_init=1,lazy_journal_init=1",
            ],
            Self::Xfs => &["mkfs.xfs", "-qfK"],
        }
    }

    /// In bytes; `mkfs.xfs` refuses less than 300 MiB.
    pub(crate) fn disk_len(self) -> u64 {
        match self {
            Self::Ext4 => 96 << 20,
            Self::Xfs => 320 << 20,
        }
    }

    /// The image of a mounted xfs has the same UUID; ext4 does not mind. Inode tables that are
    /// initialised in the background would only add writes that have nothing to do with the test.
    fn options(self) -> &'static str {
        match self {
            Self::Ext4 => "noinit_itable,errors=continue",
            Self::Xfs => "nouuid",
        }
    }
}

/// Gives this process a private mount namespace: no other process sees its mounts, and they end
/// with it.
///
/// Must be called before any thread is started.
pub(crate) fn enter_namespace() -> io::Result<()> {
    // SAFETY: the call takes no pointer.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    let (none, root) = (std::ptr::null(), c"/".as_ptr());
    // SAFETY: the target is a C string, and a change of propagation reads no other argument.
    check(unsafe { libc::mount(none, root, none, flags, none.cast()) })
}

/// A mounted file system on a loop device on a file.
pub(crate) struct Mounted {
    at: PathBuf,
    /// Held so that the device is there until after the unmount.
    _device: LoopDevice,
}

impl Mounted {
    pub(crate) fn new(kind: FileSystem, backing: &File, at: &Path) -> Result<Self> {
        let device = LoopDevice::new(backing).context("cannot set up a loop device")?;
        let (source, target) = (c_string(&device.path), c_string(at));
        let (name, options) = (c_string(kind.name()), c_string(kind.options()));
        // SAFETY: all four are C strings that live through the call.
        let mounted = check(unsafe {
            libc::mount(
                source.as_ptr(),
                target.as_ptr(),
                name.as_ptr(),
                libc::MS_NOATIME,
                options.as_ptr().cast(),
            )
        });
        mounted.with_context(|| format!("cannot mount {}", kind.name()))?;
        Ok(Self {
            at: at.into(),
            _device: device,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let at = c_string(&self.at);
        // A process that was killed a moment ago may keep a file open a little longer.
        for _ in 0..200 {
            // SAFETY: the target is a C string that lives through the call.
            match check(unsafe { libc::umount2(at.as_ptr(), 0) }) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => {
                    eprintln!("cannot unmount {}: {error}", self.at.display());
                    break;
                }
                Ok(()) => return,
            }
        }
        // SAFETY: the target is a C string that lives through the call.
        unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
    }
}

/// A loop device; it clears itself when no process has it open any more.
struct LoopDevice {
    path: PathBuf,
    _open: File,
}

// From `linux/loop.h`; see loop(4).
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LOOP_MAJOR: u32 = 7;

/// `struct loop_config`, with `struct loop_info64` in its midst. Zeroes are the defaults.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info_devices_and_limits: [u64; 5],
    info_number: u32,
    info_encrypt: [u32; 2],
    info_flags: u32,
    info_names_and_keys: [u8; 64 + 64 + 32],
    info_init: [u64; 2],
    reserved: [u64; 8],
}

const _: () = assert!(std::mem::size_of::<LoopConfig>() == 304);

impl LoopDevice {
    fn new(backing: &File) -> Result<Self> {
        let control = open_read_write(Path::new("/dev/loop-control"))?;
        // Another process may take the free device first.
        for _ in 0..64 {
            // SAFETY: the request takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
            let number = u32::try_from(number).map_err(|_| io::Error::last_os_error())?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            make_node(&path, number)?;
            let device = open_read_write(&path)?;
            // SAFETY: the struct is all numbers, for which zero bytes are valid.
            let mut config: LoopConfig = unsafe { std::mem::zeroed() };
            config.fd = backing.as_raw_fd() as u32;
            config.info_flags = LO_FLAGS_AUTOCLEAR;
            // SAFETY: `config` has the layout that the request reads, and lives through the call.
            match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &config) }) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                configured => {
                    configured.context("LOOP_CONFIGURE")?;
                    return Ok(Self {
                        path,
                        _open: device,
                    });
                }
            }
        }
        bail!("another process has taken every free loop device first");
    }
}

/// Where `/dev` is not kept by the kernel, a new device has no node yet.
fn make_node(path: &Path, number: u32) -> io::Result<()> {
    let c_path = c_string(path);
    let device = libc::makedev(LOOP_MAJOR, number);
    // SAFETY: the path is a C string that lives through the call.
    match check(unsafe { libc::mknod(c_path.as_ptr(), libc::S_IFBLK | 0o600, device) }) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn open_read_write(path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(path);
    file.with_context(|| format!("cannot open {}", path.display()))
}

fn c_string(text: impl AsRef<std::ffi::OsStr>) -> CString {
    CString::new(text.as_ref().as_bytes()).expect("the paths of this program have no zero byte")
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
