//! Finds files: below a root that no path leaves, or at one path.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{self as unix, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) len: u64,
    /// When the content was last modified: seconds since 1970, and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// When the content or what describes the file last changed, its permissions among them: a file
    /// that this process may not read any more is opened again, which fails.
    pub(crate) ctime: (i64, u32),
}

impl Identity {
    /// When the content was last modified; `None` for times before 1970.
    pub(crate) fn modified(&self) -> Option<SystemTime> {
        let (seconds, nanos) = self.mtime;
        let since = Duration::new(u64::try_from(seconds).ok()?, nanos);
        UNIX_EPOCH.checked_add(since)
    }
}

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    File(Identity),
    Directory,
}

/// Where paths begin.
#[derive(Clone, Debug)]
pub(crate) enum Root {
    /// At a directory, which they do not leave.
    Directory { path: PathBuf, symlinks: Symlinks },
    /// Anywhere: the caller has chosen them.
    Anywhere,
}

/// Whether symbolic links below a root are followed, as far as they stay below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Symlinks {
    Follow,
    Refuse,
}

/// To open a directory only as the start of paths.
#[cfg(target_os = "linux")]
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
#[cfg(not(target_os = "linux"))]
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// To read a file. Without waiting, in case that another process has put a FIFO there.
const READ: OFlags = OFlags::NONBLOCK
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

impl Root {
    /// Looks a path up without ever blocking; `None` if that cannot be done, or the answer could be
    /// out of date.
    ///
    /// The answer is exact for a file of a local file system. On another file system it may be
    /// older: the caller must know where the file is.
    #[cfg(target_os = "linux")]
    pub(crate) fn look_up_cached(&self, path: &Path) -> Option<io::Result<Found>> {
        use rustix::fs::ResolveFlags;
        let cached = ResolveFlags::CACHED;
        let found = match self {
            Self::Directory {
                path: root,
                symlinks,
            } => {
                let root = unix::openat2(unix::CWD, root, DIRECTORY, Mode::empty(), cached).ok()?;
                if path.as_os_str().is_empty() {
                    return Some(Ok(Found::Directory));
                }
                unix::openat2(
                    &root,
                    path,
                    OPEN_PATH,
                    Mode::empty(),
                    cached | symlinks.resolve(),
                )
            }
            Self::Anywhere => unix::openat2(unix::CWD, path, OPEN_PATH, Mode::empty(), cached),
        };
        match found {
            Ok(found) => stat_cached(&found),
            Err(Errno::NOENT) => Some(Err(Errno::NOENT.into())),
            Err(_) => None,
        }
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn look_up_cached(&self, _path: &Path) -> Option<io::Result<Found>> {
        None
    }

    /// Looks a path up. Blocks.
    ///
    /// # Errors
    ///
    /// `NotFound` also for what is neither a file nor a directory, and for what must not be
    /// followed.
    pub(crate) fn look_up(&self, path: &Path) -> io::Result<Found> {
        match self {
            Self::Anywhere => found(&unix::stat(path).map_err(not_found)?),
            Self::Directory {
                path: root,
                symlinks,
            } => {
                let root = open_root(root)?;
                if path.as_os_str().is_empty() {
                    return Ok(Found::Directory);
                }
                match open_beneath(&root, path, OPEN_PATH, *symlinks) {
                    Some(opened) => found(&unix::fstat(opened?)?),
                    None => look_up_by_components(root, path),
                }
            }
        }
    }

    /// Opens the file at a path for reading. Blocks.
    ///
    /// # Errors
    ///
    /// As [`look_up`](Self::look_up); `NotFound` for a directory.
    pub(crate) fn open(&self, path: &Path) -> io::Result<(File, Identity)> {
        let opened = match self {
            Self::Anywhere => unix::open(path, READ, Mode::empty()).map_err(not_found)?,
            Self::Directory {
                path: root,
                symlinks,
            } => {
                let root = open_root(root)?;
                match open_beneath(&root, path, READ, *symlinks) {
                    Some(opened) => opened?,
                    None => open_by_components(root, path)?,
                }
            }
        };
        match found(&unix::fstat(&opened)?)? {
            Found::File(identity) => Ok((opened.into(), identity)),
            Found::Directory => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

fn open_root(root: &Path) -> io::Result<OwnedFd> {
    unix::open(root, DIRECTORY, Mode::empty()).map_err(not_found)
}

/// To ask about a file without opening it.
#[cfg(target_os = "linux")]
const OPEN_PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
#[cfg(not(target_os = "linux"))]
const OPEN_PATH: OFlags = READ;

/// Opens a path below `root`, which it does not leave: by one call of [`openat2(2)`]. `None` where
/// there is no such call, or a sandbox refuses it.
///
/// [`openat2(2)`]: https://man7.org/linux/man-pages/man2/openat2.2.html
#[cfg(target_os = "linux")]
fn open_beneath(
    root: &OwnedFd,
    path: &Path,
    flags: OFlags,
    symlinks: Symlinks,
) -> Option<io::Result<OwnedFd>> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        return match unix::openat2(root, path, flags, Mode::empty(), symlinks.resolve()) {
            Ok(opened) => Some(Ok(opened)),
            Err(Errno::NOSYS | Errno::PERM) => None,
            // Another process renames a directory, and a link with `..` was followed just then.
            Err(Errno::AGAIN | Errno::INTR) if attempts < 16 => continue,
            Err(error) => Some(Err(not_found(error))),
        };
    }
}

#[cfg(not(target_os = "linux"))]
fn open_beneath(_: &OwnedFd, _: &Path, _: OFlags, _: Symlinks) -> Option<io::Result<OwnedFd>> {
    None
}

fn look_up_by_components(root: OwnedFd, path: &Path) -> io::Result<Found> {
    let (directory, name) = parent_by_components(root, path)?;
    let stat = unix::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW);
    found(&stat.map_err(not_found)?)
}

fn open_by_components(root: OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let (directory, name) = parent_by_components(root, path)?;
    let flags = READ | OFlags::NOFOLLOW;
    unix::openat(&directory, name, flags, Mode::empty()).map_err(not_found)
}

/// Opens the directory of `path` component by component, and returns it and the last component.
/// Follows no links: a directory that is replaced by a link during the walk is refused, too.
fn parent_by_components(root: OwnedFd, path: &Path) -> io::Result<(OwnedFd, &std::ffi::OsStr)> {
    let mut components = path.components().peekable();
    let mut directory = root;
    while let Some(component) = components.next() {
        let Component::Normal(name) = component else {
            break;
        };
        if components.peek().is_none() {
            return Ok((directory, name));
        }
        let flags = DIRECTORY | OFlags::NOFOLLOW;
        directory = unix::openat(&directory, name, flags, Mode::empty()).map_err(not_found)?;
    }
    Err(io::ErrorKind::NotFound.into())
}

#[cfg(target_os = "linux")]
impl Symlinks {
    fn resolve(self) -> unix::ResolveFlags {
        use rustix::fs::ResolveFlags;
        match self {
            Self::Follow => ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
            Self::Refuse => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        }
    }
}

/// What the path leads to is not there, or is not to be found this way: one answer for all of it,
/// so that a client does not learn what lies outside of the root.
fn not_found(error: Errno) -> io::Error {
    match error {
        Errno::NOENT
        | Errno::NOTDIR
        | Errno::LOOP
        | Errno::XDEV
        | Errno::NAMETOOLONG
        | Errno::ACCESS
        // `O_NOFOLLOW` on a link, on some systems; a socket; a device without a driver.
        | Errno::MLINK
        | Errno::NXIO => io::Error::new(io::ErrorKind::NotFound, io::Error::from(error)),
        error => error.into(),
    }
}

fn found(stat: &unix::Stat) -> io::Result<Found> {
    // The types of the fields differ between platforms.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(Found::File(Identity {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            len: stat.st_size as u64,
            mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as u32),
            ctime: (stat.st_ctime as i64, stat.st_ctime_nsec as u32),
        })),
        FileType::Directory => Ok(Found::Directory),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Asks the system what it knows of a file, without asking a server or another process.
#[cfg(target_os = "linux")]
fn stat_cached(file: impl AsFd) -> Option<io::Result<Found>> {
    use rustix::fs::{makedev, statx, StatxFlags};
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(file, c"", flags, StatxFlags::BASIC_STATS).ok()?;
    let mode = u32::from(stat.stx_mode);
    Some(match FileType::from_raw_mode(mode) {
        FileType::RegularFile => Ok(Found::File(Identity {
            device: makedev(stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            len: stat.stx_size,
            mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            ctime: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
        })),
        FileType::Directory => Ok(Found::Directory),
        _ => Err(io::ErrorKind::NotFound.into()),
    })
}

/// Whether nothing of the file system of `file` is on another machine, or is answered by another
/// process: so that to ask for what is cached cannot block, and is exact. Blocks if the file system
/// does.
#[cfg(target_os = "linux")]
pub(crate) fn is_local(file: &File) -> bool {
    const EXT: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const BTRFS: u64 = 0x9123_683e;
    const TMPFS: u64 = 0x0102_1994;
    const OVERLAYFS: u64 = 0x794c_7630;
    const F2FS: u64 = 0xf2f5_2010;
    const ZFS: u64 = 0x2fc1_2fc1;
    const BCACHEFS: u64 = 0xca45_1a4e;
    const EROFS: u64 = 0xe0f5_e1e2;
    const SQUASHFS: u64 = 0x7371_7368;
    // The type of the field differs between platforms; the numbers have 32 bits.
    let kind = unix::fstatfs(file).map(|stat| u64::from(stat.f_type as u32));
    matches!(
        kind,
        Ok(EXT | XFS | BTRFS | TMPFS | OVERLAYFS | F2FS | ZFS | BCACHEFS | EROFS | SQUASHFS)
    )
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn is_local(_: &File) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A root, beside it a secret, and links to both.
    fn site(dir: &Path) -> PathBuf {
        let root = dir.join("root");
        fs::create_dir_all(root.join("sub/deep")).unwrap();
        fs::write(dir.join("secret"), b"secret").unwrap();
        fs::write(root.join("a"), b"content").unwrap();
        fs::write(root.join("sub/deep/b"), b"below").unwrap();
        symlink("a", root.join("link")).unwrap();
        symlink("sub", root.join("subdirectory")).unwrap();
        symlink("../secret", root.join("outside")).unwrap();
        symlink("..", root.join("parent")).unwrap();
        root
    }

    /// What a client can tell apart.
    fn outcome(found: &io::Result<Found>) -> Result<bool, io::ErrorKind> {
        match found {
            Ok(Found::File(_)) => Ok(true),
            Ok(Found::Directory) => Ok(false),
            Err(error) => Err(error.kind()),
        }
    }

    const PATHS: &[&str] = &[
        "a",
        "sub",
        "sub/deep/b",
        "missing",
        "a/b",
        "link",
        "subdirectory",
        "subdirectory/deep/b",
        "outside",
        "parent",
        "parent/secret",
        "sub/missing/b",
    ];

    #[test]
    fn all_ways_agree() {
        let dir = tempfile::tempdir().unwrap();
        let path = site(dir.path());
        let root = Root::Directory {
            path: path.clone(),
            symlinks: Symlinks::Refuse,
        };
        for name in PATHS {
            let name = Path::new(name);
            let found = root.look_up(name);
            let walked = look_up_by_components(open_root(&path).unwrap(), name);
            assert_eq!(outcome(&walked), outcome(&found), "{name:?}");
            if let Some(cached) = root.look_up_cached(name) {
                assert_eq!(outcome(&cached), outcome(&found), "{name:?}");
                assert_eq!(cached.ok(), found.as_ref().ok().copied(), "{name:?}");
            }
            let read = |mut file: File| {
                let mut content = String::new();
                file.read_to_string(&mut content).map(|_| content)
            };
            let opened = root.open(name).and_then(|(file, _)| read(file));
            let walked = open_by_components(open_root(&path).unwrap(), name);
            let walked = walked.and_then(|file| read(file.into()));
            assert_eq!(opened.ok(), walked.ok(), "{name:?}");
        }
    }

    #[test]
    fn permissions_are_part_of_the_state() {
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, b"content").unwrap();
        let identity = || match Root::Anywhere.look_up(&path).unwrap() {
            Found::File(identity) => identity,
            Found::Directory => panic!("a file is a directory"),
        };
        let before = identity();
        // The clock of the file system moves in steps.
        while identity().ctime == before.ctime {
            for mode in [0o600, 0o400] {
                fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            }
        }
        assert_eq!(identity().mtime, before.mtime);
        assert_ne!(identity(), before);
        if let Some(cached) = Root::Anywhere.look_up_cached(&path) {
            assert_eq!(cached.unwrap(), Found::File(identity()));
        }
    }

    #[test]
    fn only_what_is_below() {
        let dir = tempfile::tempdir().unwrap();
        let path = site(dir.path());
        for symlinks in [Symlinks::Refuse, Symlinks::Follow] {
            let path = path.clone();
            let root = Root::Directory { path, symlinks };
            // Not even if a path with `..` came this far.
            for name in [
                "outside",
                "parent",
                "parent/secret",
                "../secret",
                "/etc/passwd",
            ] {
                let found = root.look_up(Path::new(name));
                assert_eq!(outcome(&found), Err(io::ErrorKind::NotFound), "{name}");
                assert!(root.open(Path::new(name)).is_err(), "{name}");
                let cached = root.look_up_cached(Path::new(name));
                assert!(!matches!(cached, Some(Ok(_))), "{name}");
            }
        }
        for name in ["../secret", "sub/../../secret", "/etc/passwd", "."] {
            let walked = look_up_by_components(open_root(&path).unwrap(), Path::new(name));
            assert_eq!(outcome(&walked), Err(io::ErrorKind::NotFound), "{name}");
        }
    }
}
