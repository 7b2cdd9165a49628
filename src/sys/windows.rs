//! The Windows backend. So far it is only type-checked; every call cites the page of Microsoft's
//! reference that it relies on, by title.
//!
//! Differences from Unix: a mapping cannot reach past the end of its file, a mapped file cannot be
//! cut, a name in a directory needs no flush of its own, and a page that cannot be read raises a
//! structured exception (`EXCEPTION_IN_PAGE_ERROR`), which Rust code cannot turn into an error.

mod locks;

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::windows::fs::{FileExt, OpenOptionsExt};
use std::os::windows::io::AsRawHandle;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use windows_sys::Wdk::Storage::FileSystem::{
    FileAccessInformation, NtQueryInformationFile, FILE_ACCESS_INFORMATION,
};
use windows_sys::Win32::Foundation::{
    RtlNtStatusToDosError, ERROR_DISK_FULL, ERROR_LOCK_VIOLATION, ERROR_MR_MID_NOT_FOUND, HANDLE,
};
use windows_sys::Win32::Storage::FileSystem::{
    FileIdInfo, GetFileInformationByHandle, GetFileInformationByHandleEx, GetFileType,
    BY_HANDLE_FILE_INFORMATION, FILE_APPEND_DATA, FILE_FLAG_BACKUP_SEMANTICS, FILE_ID_INFO,
    FILE_READ_DATA, FILE_TYPE_DISK, FILE_WRITE_DATA,
};
use windows_sys::Win32::System::Memory::{
    FlushViewOfFile, PrefetchVirtualMemory, WIN32_MEMORY_RANGE_ENTRY,
};
use windows_sys::Win32::System::SystemInformation::{GetSystemInfo, SYSTEM_INFO};
use windows_sys::Win32::System::Threading::{FlushProcessWriteBuffers, GetCurrentProcess};
use windows_sys::Win32::System::IO::IO_STATUS_BLOCK;

pub(crate) use self::locks::*;
use super::{Access, Advice, CacheHint, FileId, FileInfo, Run};

/// A section that is larger than its file extends the file (`CreateFileMappingW`), so a mapping
/// must end where the file ends.
pub(crate) const CAN_MAP_PAST_END: bool = false;

/// How many times a flush is tried that conflicts with one of the memory manager, a millisecond
/// apart.
const FLUSH_TRIES: u32 = 1000;

fn handle(file: &File) -> HANDLE {
    file.as_raw_handle().cast()
}

/// Turns the result of a Win32 call into an error if the call has failed.
fn check(result: windows_sys::core::BOOL) -> io::Result<()> {
    match result {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Returns the size of a page in bytes, a power of two ("GetSystemInfo function", `dwPageSize`).
pub(crate) fn page_size() -> usize {
    static PAGE: OnceLock<usize> = OnceLock::new();
    *PAGE.get_or_init(|| {
        let mut info = SYSTEM_INFO::default();
        // SAFETY: `info` is a live `SYSTEM_INFO`, which the call fills in.
        unsafe { GetSystemInfo(&mut info) };
        info.dwPageSize as usize
    })
}

/// Returns `false`: there is no `fork` here.
pub(crate) fn is_forked() -> bool {
    false
}

/// Does nothing: there is no `fork` here.
pub(crate) fn watch_forks() -> io::Result<()> {
    Ok(())
}

/// Opens a path with the given options; this never waits for a peer.
pub(crate) fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.open(path)
}

/// Not used: a new file inherits the permissions of its directory.
pub(crate) const FOR_ALL: u32 = 0;
/// Not used: a program that wants an access control list of its own creates the file itself.
pub(crate) const FOR_THE_OWNER: u32 = 0;

/// Prepares `options` to open a file for reading and writing, or to create it if it does not exist.
pub(crate) fn open_or_create(options: &mut OpenOptions, _permissions: u32) -> &mut OpenOptions {
    let options = options.read(true).write(true);
    options.create(true).truncate(false)
}

/// The name of a file that was created.
#[derive(Debug)]
pub(crate) struct Created(PathBuf);

/// Creates a file for reading and writing, which must not exist ("CreateFileW function",
/// `CREATE_NEW`).
pub(crate) fn create_new(path: &Path, _permissions: u32) -> io::Result<(File, Option<Created>)> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).open(path)?;
    Ok((file, Some(Created(path.to_path_buf()))))
}

impl Created {
    /// Gives the file another name in its directory, and takes that name from the file that has it
    /// ("MoveFileExW function", which the standard library calls). Fails if that file is mapped.
    pub(crate) fn rename(&mut self, name: &OsStr) -> io::Result<()> {
        let renamed = self.0.with_file_name(name);
        fs::rename(&self.0, &renamed)?;
        self.0 = renamed;
        Ok(())
    }

    /// Makes the name of `file`, which was created here, durable; see [`sync_name`].
    pub(crate) fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    /// Removes the file that was created, unless the name belongs to another file by now.
    pub(crate) fn remove(&self, file: &File) -> io::Result<()> {
        match file_id_at(&self.0)? == file_info(file)?.id {
            true => fs::remove_file(&self.0),
            false => Ok(()),
        }
    }
}

/// Does nothing: the owner of an existing file has chosen its permissions.
pub(crate) fn restrict(_file: &File, _source: &Metadata) -> io::Result<()> {
    Ok(())
}

/// Gives a file the attribute `FILE_ATTRIBUTE_READONLY` of `source`. Succeeds even if the system
/// refuses.
pub(crate) fn copy_permissions(file: &File, source: &Metadata) -> io::Result<()> {
    match file.set_permissions(source.permissions()) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        result => result,
    }
}

/// Gives `file` the attribute `FILE_ATTRIBUTE_READONLY` of another file. It has the access control
/// list that new files have in its directory.
pub(crate) fn copy_attributes(file: &File, _old: &Path, metadata: &Metadata) -> io::Result<()> {
    copy_permissions(file, metadata)
}

/// Sets the time of the last modification to now.
pub(crate) fn touch_mtime(file: &File) -> io::Result<()> {
    file.set_modified(std::time::SystemTime::now())
}

/// Succeeds: a lack of address space is found when a file is mapped.
pub(crate) fn check_address_space(_len: u64) -> io::Result<()> {
    Ok(())
}

/// Succeeds: a full disk is found when the bytes are written.
pub(crate) fn check_free_space(_file: &File, _len: u64) -> io::Result<()> {
    Ok(())
}

/// Succeeds, like [`check_free_space`].
pub(crate) fn check_free_space_for(_path: &Path, _len: u64) -> io::Result<()> {
    Ok(())
}

/// Succeeds: there is no such limit here.
pub(crate) fn check_file_limit(_end: u64) -> io::Result<()> {
    Ok(())
}

/// Returns the identity, the length and the kind of an open file ("GetFileInformationByHandleEx
/// function", `FileIdInfo`).
pub(crate) fn file_info(file: &File) -> io::Result<FileInfo> {
    // SAFETY: `file` keeps the handle open, and the call takes no pointer.
    let on_disk = unsafe { GetFileType(handle(file)) } == FILE_TYPE_DISK;
    if !on_disk {
        // Pipes and consoles have no file id. The caller refuses them, and does not use it.
        return Ok(FileInfo {
            id: FileId {
                volume: 0,
                index: 0,
            },
            len: 0,
            is_regular: false,
            is_linked: true,
            born: None,
        });
    }
    let metadata = file.metadata()?;
    Ok(FileInfo {
        id: wide_id(file).or_else(|_| narrow_id(file))?,
        len: metadata.len(),
        is_regular: metadata.is_file(),
        is_linked: true,
        born: metadata.created().ok(),
    })
}

/// Returns the identity of the file or directory that a path leads to ("CreateFileW function",
/// `FILE_FLAG_BACKUP_SEMANTICS`, without which it opens no directory).
pub(crate) fn file_id_at(path: &Path) -> io::Result<FileId> {
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(FILE_FLAG_BACKUP_SEMANTICS);
    Ok(file_info(&options.open(path)?)?.id)
}

/// Whether the error says that an address is invalid, which tells a caller nothing.
pub(crate) fn is_fault(_error: &io::Error) -> bool {
    false
}

/// Whether the error says that the disk is full.
pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(ERROR_DISK_FULL as i32)
}

/// Returns the volume and the 128-bit id ("FILE_ID_INFO structure"), the only unique id on ReFS.
fn wide_id(file: &File) -> io::Result<FileId> {
    let mut info = FILE_ID_INFO::default();
    // SAFETY: `info` is live, has the type of the class `FileIdInfo`, and the size that the call is
    // given; `file` keeps the handle open.
    check(unsafe {
        GetFileInformationByHandleEx(
            handle(file),
            FileIdInfo,
            std::ptr::addr_of_mut!(info).cast(),
            std::mem::size_of::<FILE_ID_INFO>() as u32,
        )
    })?;
    Ok(FileId {
        volume: info.VolumeSerialNumber,
        index: u128::from_le_bytes(info.FileId.Identifier),
    })
}

/// Returns the volume and the 64-bit id ("BY_HANDLE_FILE_INFORMATION structure"), for file systems
/// without the 128-bit id (FAT). A file system has the same kind of id for all of its files, so
/// that ids of two kinds are never compared.
fn narrow_id(file: &File) -> io::Result<FileId> {
    let mut info = BY_HANDLE_FILE_INFORMATION::default();
    // SAFETY: `info` is live and has the type that the call writes; `file` keeps the handle open.
    check(unsafe { GetFileInformationByHandle(handle(file), &mut info) })?;
    Ok(FileId {
        volume: u64::from(info.dwVolumeSerialNumber),
        index: u128::from(info.nFileIndexHigh) << 32 | u128::from(info.nFileIndexLow),
    })
}

/// Returns what the handle was opened for ("NtQueryInformationFile function",
/// `FileAccessInformation`; the Win32 API has no call for this).
pub(crate) fn access(file: &File) -> io::Result<Access> {
    let mut info = FILE_ACCESS_INFORMATION::default();
    let mut status = IO_STATUS_BLOCK::default();
    // SAFETY: `status` and `info` are live; `info` has the type of the class, and the size that the
    // call is given; `file` keeps the handle open. The system answers this class at once, so it
    // does not write to `status` or `info` after the call.
    let result = unsafe {
        NtQueryInformationFile(
            handle(file),
            &mut status,
            std::ptr::addr_of_mut!(info).cast(),
            std::mem::size_of::<FILE_ACCESS_INFORMATION>() as u32,
            FileAccessInformation,
        )
    };
    if result < 0 {
        // SAFETY: the call takes no pointer.
        let code = unsafe { RtlNtStatusToDosError(result) };
        return Err(match code {
            ERROR_MR_MID_NOT_FOUND => io::ErrorKind::Other.into(),
            code => io::Error::from_raw_os_error(code as i32),
        });
    }
    let rights = info.AccessFlags;
    let writes = rights & (FILE_WRITE_DATA | FILE_APPEND_DATA);
    Ok(Access {
        read: rights & FILE_READ_DATA != 0,
        write: writes != 0,
        append: writes == FILE_APPEND_DATA,
    })
}

/// Makes the content, length and attributes of `file` durable ("FlushFileBuffers function", which
/// the standard library calls). The handle must be open for writing.
pub(crate) fn sync_file(file: &File) -> io::Result<()> {
    file.sync_all()
}

/// Does nothing. NTFS and ReFS log the creation of a name before any change of the file, and
/// flushing the file ("File Buffering": data *and* metadata) flushes the log as well.
pub(crate) fn sync_name(_file: &File, _path: &Path) -> io::Result<()> {
    Ok(())
}

/// Not called, since [`fs_traits`](super::fs_traits) never claims `in_memory`.
pub(crate) fn allocated(_file: &File) -> io::Result<u64> {
    Ok(u64::MAX)
}

/// Returns `false`; it has no effect, since [`resident`] always returns `false`.
pub(crate) fn is_owner(_file: &File) -> bool {
    false
}

/// Starts reading all runs, in a few large reads ("PrefetchVirtualMemory function"). It is a hint:
/// an error is ignored, and the pages are not in the working set yet when it returns.
///
/// # Safety
///
/// Every run lies in one live, readable mapping.
unsafe fn prefetch(runs: &[Run]) {
    if runs.is_empty() {
        return;
    }
    // SAFETY: the call takes no argument, and returns a constant.
    let process = unsafe { GetCurrentProcess() };
    // SAFETY: `runs` is live for the call, and `Run` has the layout of `WIN32_MEMORY_RANGE_ENTRY`
    // (pointer, length; `repr(C)`); every run lies in a live mapping, by this function's contract.
    unsafe {
        PrefetchVirtualMemory(
            process,
            runs.len(),
            runs.as_ptr().cast::<WIN32_MEMORY_RANGE_ENTRY>(),
            0,
        )
    };
}

/// Faults in the pages of a run by a read of each.
///
/// # Safety
///
/// The run lies in one live, readable mapping.
unsafe fn touch(run: Run) {
    for at in (0..run.len).step_by(page_size()) {
        // SAFETY: `at` is less than `run.len`, and the run lies in one mapping, by this function's
        // contract.
        let byte = unsafe { run.addr.add(at) };
        // SAFETY: the byte is in a live, readable mapping, by this function's contract; its value
        // is ignored, so a concurrent store does not matter.
        unsafe { byte.read_volatile() };
    }
}

/// Faults in the pages of a run for reading.
///
/// # Safety
///
/// The run lies in one live, readable mapping, inside the file.
pub(crate) unsafe fn populate_read(run: Run) -> io::Result<()> {
    // SAFETY: the run lies in one live, readable mapping, by this function's contract.
    unsafe { prefetch(&[run]) };
    // SAFETY: as above.
    unsafe { touch(run) };
    Ok(())
}

/// Faults in the pages of a run like [`populate_read`]: no program can cut a mapped file, so that
/// they can always be touched. Returns `true`.
///
/// # Safety
///
/// The same as for [`populate_read`].
pub(crate) unsafe fn try_populate_read(run: Run) -> io::Result<bool> {
    // SAFETY: the contract of `populate_read` is that of this function.
    unsafe { populate_read(run) }.map(|()| true)
}

/// Faults in the pages of every run by a read of each, so that the first store to a page need not
/// read it. Returns the number of runs. The clusters of a file were reserved with its length, unless
/// another program has made the file sparse.
///
/// # Errors
///
/// None; the signature is shared with the platforms that report errors.
///
/// # Safety
///
/// Every run lies in one live, readable mapping, inside the file.
pub(crate) unsafe fn try_populate_write(runs: &[Run]) -> Result<usize, (usize, io::Error)> {
    // SAFETY: every run lies in one live, readable mapping, by this function's contract.
    unsafe { prefetch(runs) };
    for run in runs {
        // SAFETY: as above.
        unsafe { touch(*run) };
    }
    Ok(runs.len())
}

/// Returns `false`: unknown here, so every probe finds the range not resident. (`QueryWorkingSetEx`
/// tells which pages this process has touched recently, not which are in the cache.)
pub(crate) fn resident(_run: Run) -> io::Result<bool> {
    Ok(false)
}

/// A barrier for the whole process exists.
pub(crate) const HAS_BARRIER: bool = true;

/// Returns `true`: the barrier needs no announcement.
pub(crate) fn register_barrier() -> bool {
    true
}

/// Runs a full memory barrier on every processor that runs a thread of this process
/// ("FlushProcessWriteBuffers function").
pub(crate) fn barrier() -> io::Result<()> {
    // SAFETY: the call takes no argument and cannot fail.
    unsafe { FlushProcessWriteBuffers() };
    Ok(())
}

/// Does nothing: the call is unavailable, and only a hint.
pub(crate) fn cache_hint(_: &File, _: u64, _: u64, _: CacheHint) -> io::Result<()> {
    Ok(())
}

/// Makes a file `len` bytes long, unless it is longer. It cannot cut a file that another process
/// has mapped: Windows refuses that.
pub(crate) fn extend(file: &File, len: u64) -> io::Result<()> {
    match file_len(file)? >= len {
        true => Ok(()),
        false => file.set_len(len),
    }
}

/// [`allocate`] writes zeroes, so it may be called only for bytes that are new.
pub(crate) const ALLOCATE_KEEPS_BYTES: bool = false;

/// Reserves clusters for a range past the old end of the file by writing zeroes to it.
///
/// `FileAllocationInfo` would need one call, but it cuts the file if another process has extended
/// it in the meantime.
pub(crate) fn allocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let zeroes = vec![0; 1 << 16];
    let mut at = 0;
    while at < len {
        let step = (len - at).min(zeroes.len() as u64);
        match file.seek_write(&zeroes[..step as usize], offset + at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => at += written as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Makes a range of a mapping durable: its pages to the file ("FlushViewOfFile function"), then
/// the file and the drive's cache ("FlushFileBuffers function").
///
/// # Errors
///
/// Those of the calls. But the first call fails with `ERROR_LOCK_VIOLATION` while the memory
/// manager itself is writing one of the pages; then nothing is lost, and the call is repeated for a
/// while.
///
/// # Safety
///
/// The run lies in one live mapping of `file`, which is open for writing.
pub(crate) unsafe fn sync_range(file: &File, run: Run) -> io::Result<()> {
    let mut tries = 1;
    loop {
        // SAFETY: the run lies in one live mapping, by this function's contract.
        match check(unsafe { FlushViewOfFile(run.addr.cast(), run.len) }) {
            Ok(()) => break,
            Err(error)
                if error.raw_os_error() == Some(ERROR_LOCK_VIOLATION as i32)
                    && tries < FLUSH_TRIES =>
            {
                tries += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error),
        }
    }
    file.sync_data()
}

/// Gives the advice `WillNeed`; every other advice is a hint, and is ignored.
///
/// # Safety
///
/// The run lies in one live mapping.
#[cfg_attr(not(feature = "advise"), allow(dead_code))]
pub(crate) unsafe fn advise(run: Run, advice: Advice) -> io::Result<()> {
    match advice {
        Advice::WillNeed => {
            // SAFETY: the run lies in one live mapping, by this function's contract, and every
            // mapping of this crate is readable.
            unsafe { prefetch(&[run]) };
        }
        Advice::Normal
        | Advice::Random
        | Advice::Sequential
        | Advice::DontNeed
        | Advice::Cold
        | Advice::PageOut
        | Advice::HugePage
        | Advice::NoHugePage => {}
    }
    Ok(())
}

/// Returns `false`: files cannot share clusters here.
pub(crate) fn clone_file(_source: &File, _destination: &File) -> bool {
    false
}

/// Copies the first `len` bytes of `source` over `destination`, through memory.
///
/// # Errors
///
/// `UnexpectedEof` if the source is shorter.
pub(crate) fn copy_contents(source: &File, destination: &File, len: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    let mut buffer = vec![0; 1 << 18];
    let mut at = 0;
    while at < len {
        let step = (len - at).min(buffer.len() as u64) as usize;
        let read = source.seek_read(&mut buffer[..step], at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut written = 0;
        while written < read {
            written += destination.seek_write(&buffer[written..read], at + written as u64)?;
        }
        at += read as u64;
    }
    Ok(())
}

/// Returns the length of an open file in bytes.
pub(crate) fn file_len(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.len())
}
