//! Asks which file a path leads to, where that cannot block.

use std::fs::File;
use std::path::Path;

use crate::generation::Identity;

/// Whether the file is on a file system that keeps what it knows of open files in memory, and asks
/// no server.
///
/// See [`fstatfs(2)`](https://man7.org/linux/man-pages/man2/fstatfs.2.html). Blocks if the file
/// system does.
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
    // The numbers have 32 bits; the type has more on some platforms.
    let kind = rustix::fs::fstatfs(file).map(|stat| u64::from(stat.f_type as u32));
    matches!(
        kind,
        Ok(EXT | XFS | BTRFS | TMPFS | OVERLAYFS | F2FS | ZFS | BCACHEFS)
    )
}

/// Returns the identity of the file that a path leads to, unless finding it could block.
///
/// [`openat2(2)`](https://man7.org/linux/man-pages/man2/openat2.2.html) with `RESOLVE_CACHED` fails
/// where a name on the path is not in memory or must be asked for, and `O_PATH` opens no file;
/// [`statx(2)`](https://man7.org/linux/man-pages/man2/statx.2.html) asks no server. Any error is
/// "not known": the caller then asks on the pool, and gets the true one.
#[cfg(target_os = "linux")]
pub(crate) fn identity_at_once(path: &Path) -> Option<Identity> {
    use rustix::fs::{
        makedev, openat2, statx, AtFlags, Mode, OFlags, ResolveFlags, StatxFlags, CWD,
    };
    use std::time::{Duration, SystemTime};

    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED).ok()?;
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(&found, c"", flags, StatxFlags::BASIC_STATS).ok()?;
    let seconds = stat.stx_mtime.tv_sec;
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let modified = match seconds {
        0.. => SystemTime::UNIX_EPOCH.checked_add(whole),
        _ => SystemTime::UNIX_EPOCH.checked_sub(whole),
    };
    let rest = Duration::from_nanos(stat.stx_mtime.tv_nsec.into());
    Some(Identity {
        device: makedev(stat.stx_dev_major, stat.stx_dev_minor),
        inode: stat.stx_ino,
        modified: modified?.checked_add(rest)?,
        changed: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec.into()),
        len: stat.stx_size,
    })
}

/// No other system has a call for it.
#[cfg(not(target_os = "linux"))]
pub(crate) fn identity_at_once(_: &Path) -> Option<Identity> {
    None
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn is_local(_: &File) -> bool {
    false
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn both_ways_find_one_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        std::fs::write(&path, b"some bytes").unwrap();
        // In 1965 and now: times before 1970 count backwards.
        let before = std::time::SystemTime::UNIX_EPOCH - std::time::Duration::new(157_000_000, 5);
        for modified in [Some(before), None] {
            let file = File::options().write(true).open(&path).unwrap();
            if let Some(modified) = modified {
                file.set_modified(modified).unwrap();
            } else {
                file.set_modified(std::time::SystemTime::now()).unwrap();
            }
            let expected = Identity::of(&file.metadata().unwrap()).unwrap();
            // `None` only on a kernel before 5.12, or in a sandbox.
            let found = identity_at_once(&path);
            assert!(found.is_none() || found == Some(expected), "{found:?}");
            assert!(is_local(&file));
        }
        assert_eq!(identity_at_once(&dir.path().join("none")), None);
    }

    #[test]
    fn both_ways_see_changed_permissions() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        std::fs::write(&path, b"some bytes").unwrap();
        let metadata = || std::fs::metadata(&path).unwrap();
        let (before, before_at_once) = (metadata(), identity_at_once(&path));
        let times = |of: &std::fs::Metadata| (of.ctime(), of.ctime_nsec());
        // The clock of the file system moves in steps of some milliseconds.
        while times(&metadata()) == times(&before) {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
        }
        let identity = Identity::of(&metadata()).unwrap();
        assert_ne!(identity, Identity::of(&before).unwrap());
        if let Some(found) = identity_at_once(&path) {
            assert_eq!(found, identity);
            assert_ne!(Some(found), before_at_once);
        }
    }
}
