//! Watches.

use std::fs;
use std::sync::mpsc;

use futures_lite::StreamExt;
use mmap_io::watch::{ChangeEvent, ChangeKind, WatchHandle, WatchStream};
use mmap_io::MmapIoError;

use crate::common::{eventually, with_timeout, TIMEOUT};
use crate::{block_on, refused, Rig};

#[test]
fn watch() {
    block_on(async {
        let rig = Rig::new().await;
        let (sender, events) = mpsc::channel();
        let send = move |event: ChangeEvent| sender.send(event).unwrap();
        let watch: WatchHandle = rig.reader.watch(send).await.unwrap();
        assert!(watch.is_active());
        // The watch outlives the handle.
        let path = rig.path.clone();
        drop((rig.file, rig.reader, rig.cow, rig.private));
        fs::write(&path, b"changed").unwrap();
        let event = events.recv_timeout(TIMEOUT).unwrap();
        assert_eq!(event.kind, ChangeKind::Modified);
        assert_eq!((event.offset, event.len), (None, None));
        assert_eq!(event.clone(), event);
        fs::remove_file(&path).unwrap();
        while events.recv_timeout(TIMEOUT).unwrap().kind != ChangeKind::Removed {}
        assert!(!watch.is_active());
        // The watch is of the path: it goes on with the next file there.
        fs::write(&path, b"again").unwrap();
        eventually("the new file is noticed", || watch.is_active());
        drop(watch);
        // The callback, and so its sender, is gone.
        eventually("no callback is left", || {
            matches!(events.try_recv(), Err(mpsc::TryRecvError::Disconnected))
        });
    });
}

#[test]
fn watch_stream() {
    block_on(async {
        let rig = Rig::new().await;
        let mut changes: WatchStream = rig.file.watch_stream().await.unwrap();
        let mut permissions = fs::metadata(&rig.path).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&rig.path, permissions).unwrap();
        let event = with_timeout(changes.next()).await.unwrap();
        assert_eq!(event.kind, ChangeKind::Metadata);
        fs::remove_file(&rig.path).unwrap();
        while with_timeout(changes.next()).await.unwrap().kind != ChangeKind::Removed {}
        // No file is at the path.
        let error = rig.file.watch_stream().await.unwrap_err();
        assert!(matches!(error, MmapIoError::WatchFailed(_)), "{error:?}");
        assert!(error.to_string().contains(rig.path.to_str().unwrap()));
        refused!(rig.file.watch(|_| ()).await, MmapIoError::WatchFailed(_));
    });
}
