//! On an overlayfs, a file that is opened for writing becomes another file, under the readers of
//! the first.

use std::fs::{self, File};

use mmap_io::{MemoryMappedFile, MmapIoError};

use crate::common::child::{child, child_dir};
use crate::common::disk::{Disk, MIB};
use crate::common::{block_on, on_a_disk, pattern};
use crate::refused_calls::refuse;

/// An overlayfs, whose files lie on its lower layer until they are opened for writing.
struct Overlay {
    /// Unmounted in this order.
    disk: Disk,
    _layers: tempfile::TempDir,
}

impl Overlay {
    /// Has files of 64 KiB, filled with the letter L.
    fn new(test: &str, names: &[&str]) -> Option<Self> {
        let layers = on_a_disk();
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| layers.path().join(name));
        for layer in [&lower, &upper, &work] {
            fs::create_dir(layer).unwrap();
        }
        for name in names {
            fs::write(lower.join(name), vec![b'L'; 65_536]).unwrap();
        }
        let [lower, upper, work] = [&lower, &upper, &work].map(|layer| layer.display());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        let disk = Disk::mount(test, &options, "overlay", "overlay".as_ref())?;
        Some(Self {
            disk,
            _layers: layers,
        })
    }
}

#[test]
fn overlayfs_reader_sees_first_write() {
    let names = ["reader first", "writer first", "descriptor", "late", "std"];
    let test = "overlayfs_reader_sees_first_write";
    let Some(overlay) = Overlay::new(test, &names) else {
        return;
    };
    let [reader_first, writer_first, descriptor, late, std] =
        names.map(|name| overlay.disk.path(name));
    let from_old = |file: File| MemoryMappedFile::from_file(file, mmap_io::MmapMode::ReadOnly, "");
    block_on(async {
        let assert_seen = |reader: MemoryMappedFile, writer: MemoryMappedFile| async move {
            writer.update_region_async(0, b"NEW!").await.unwrap();
            assert_eq!(reader.slice(0, 4).await.unwrap(), b"NEW!");
            // Also in the maps that growth adds.
            writer.resize(5 * MIB).await.unwrap();
            writer.update_region(5 * MIB - 4, b"END!").await.unwrap();
            writer.update_region(4, b"MORE").await.unwrap();
            assert_eq!(reader.slice(5 * MIB - 4, 4).await.unwrap(), b"END!");
            assert_eq!(reader.as_slice(0, 9).unwrap(), b"NEW!MOREL");
            // And by readers that are opened later.
            let path = writer.path().to_path_buf();
            let other = MemoryMappedFile::open_ro(path).await.unwrap();
            assert_eq!(other.as_slice(0, 9).unwrap(), b"NEW!MOREL");
        };
        let reader = MemoryMappedFile::open_ro(&reader_first).await.unwrap();
        assert_eq!(reader.slice(0, 4).await.unwrap(), b"LLLL");
        let writer = MemoryMappedFile::open_rw(&reader_first).await.unwrap();
        assert_seen(reader, writer).await;

        let writer = MemoryMappedFile::open_rw(&writer_first).await.unwrap();
        let reader = MemoryMappedFile::open_ro(&writer_first).await.unwrap();
        assert_seen(reader, writer).await;

        // Opened before, and mapped after.
        let old = File::open(&descriptor).unwrap();
        let writer = MemoryMappedFile::open_rw(&descriptor).await.unwrap();
        let reader = from_old(old).await.unwrap();
        assert_seen(reader, writer).await;
        let old = File::open(&late).unwrap();
        drop(MemoryMappedFile::open_rw(&late).await.unwrap());
        let reader = from_old(old).await.unwrap();
        let writer = MemoryMappedFile::open_rw(&late).await.unwrap();
        assert_seen(reader, writer).await;

        // Copied up without this crate: seen when the file is opened again.
        let reader = MemoryMappedFile::open_ro(&std).await.unwrap();
        assert_eq!(reader.as_slice(0, 4).unwrap(), b"LLLL");
        drop(File::options().write(true).open(&std).unwrap());
        let second = MemoryMappedFile::open_ro(&std).await.unwrap();
        let writer = MemoryMappedFile::open_rw(&std).await.unwrap();
        writer.update_region(0, b"NEW!").await.unwrap();
        assert_eq!(second.as_slice(0, 4).unwrap(), b"NEW!");
        assert_seen(reader, writer).await;
    });
}

#[test]
fn overlayfs_view_refuses_first_writer() {
    let test = "overlayfs_view_refuses_first_writer";
    let Some(overlay) = Overlay::new(test, &["slice", "bytes", "kept"]) else {
        return;
    };
    let refused = |result: mmap_io::Result<MemoryMappedFile>| {
        let result = result.map(drop);
        assert!(
            matches!(result, Err(MmapIoError::Busy { .. })),
            "{result:?}"
        );
    };
    block_on(async {
        for name in ["slice", "bytes", "kept"] {
            let path = overlay.disk.path(name);
            let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
            let (slice, bytes);
            match name {
                "slice" => {
                    slice = reader.as_slice(10_000, 4).unwrap();
                    refused(MemoryMappedFile::open_rw(&path).await);
                    refused(MemoryMappedFile::open_or_create(&path, 10).await);
                    assert_eq!(slice, b"LLLL");
                    drop(slice);
                }
                "bytes" => {
                    bytes = reader.bytes(0, 1).unwrap();
                    refused(MemoryMappedFile::open_rw(&path).await);
                    drop(bytes);
                }
                _ => {
                    let clone = reader.clone();
                    clone.as_slice_bytes(0, 1).unwrap();
                    refused(MemoryMappedFile::open_rw(&path).await);
                    refused(MemoryMappedFile::open_rw(&path).await);
                    drop((clone, reader));
                    drop(MemoryMappedFile::open_rw(&path).await.unwrap());
                    continue;
                }
            }
            let writer = MemoryMappedFile::open_rw(&path).await.unwrap();
            writer.update_region(0, b"NEW!").await.unwrap();
            assert_eq!(reader.as_slice(0, 5).unwrap(), b"NEW!L");
        }
        // A file of the upper layer is like any other.
        let path = overlay.disk.path("upper");
        fs::write(&path, pattern(10_000)).unwrap();
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        let view = reader.as_slice(0, 10).unwrap();
        let writer = MemoryMappedFile::open_rw(&path).await.unwrap();
        writer.update_region(10, b"x").await.unwrap();
        assert!(!writer.try_update_region(5, b"x").await.unwrap());
        assert_eq!(view, &pattern(10)[..]);
        assert_eq!(reader.as_slice(10, 1).unwrap(), b"x");
    });
}

#[test]
fn unknown_file_system_may_be_an_overlayfs() {
    let test = "unknown_file_system_may_be_an_overlayfs";
    if let Some(overlay) = Overlay::new(test, &["data"]) {
        child!(unknowing_child).dir(&overlay.disk.path("")).passes();
    }
}

#[test]
fn unknowing_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    refuse(libc::SYS_fstatfs, libc::EPERM);
    let path = dir.join("data");
    block_on(async {
        let reader = MemoryMappedFile::open_ro(&path).await.unwrap();
        assert_eq!(reader.slice(0, 4).await.unwrap(), b"LLLL");
        let writer = MemoryMappedFile::open_rw(&path).await.unwrap();
        writer.update_region_async(0, b"NEW!").await.unwrap();
        assert_eq!(reader.slice(0, 4).await.unwrap(), b"NEW!");
        let later = MemoryMappedFile::open_ro(&path).await.unwrap();
        assert_eq!(later.slice(0, 4).await.unwrap(), b"NEW!");
    });
}
