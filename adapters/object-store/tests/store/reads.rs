//! What `get` and `get_ranges` return: the bytes of the map itself, of the object as it is now, and
//! what `LocalFileSystem` says in every other respect.

use std::fs::{self, File};
use std::ops::Range;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{mpsc, Arc, RwLock};
use std::time::{Duration, Instant};

use blocking::unblock;
use bytes::Bytes;
use futures_lite::future::{block_on, poll_once, yield_now};
use futures_lite::StreamExt;
use mmap_io::MemoryMappedFile;
use mmap_io_object_store::MappedFileSystem;
use tempfile::TempDir;

use super::object_store::{
    local::LocalFileSystem, path::Path, GetOptions, GetRange, GetResult, GetResultPayload,
    ObjectStore, ObjectStoreExt, PutPayload, Result,
};

/// A store with one object of 300,000 bytes.
fn store() -> (TempDir, PathBuf, MappedFileSystem) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("object");
    fs::write(&path, content()).unwrap();
    let store = MappedFileSystem::new_with_prefix(dir.path()).unwrap();
    (dir, path, store)
}

fn content() -> Vec<u8> {
    (0..300_000_u32).map(|at| (at % 251) as u8).collect()
}

fn object() -> Path {
    Path::from("object")
}

async fn chunks(result: GetResult) -> Result<Vec<Bytes>> {
    assert!(matches!(result.payload, GetResultPayload::Stream(_)));
    let mut stream = result.into_stream();
    let mut chunks = Vec::new();
    while let Some(chunk) = stream.next().await {
        chunks.push(chunk?);
    }
    Ok(chunks)
}

#[test]
fn reads_are_the_map_itself() {
    let (_dir, _, store) = store();
    block_on(async {
        let first = store.get_range(&object(), 5000..9000).await.unwrap();
        assert_eq!(first, content()[5000..9000]);
        let again = store.get_range(&object(), 5000..9000).await.unwrap();
        let whole = store.get(&object()).await.unwrap().bytes().await.unwrap();
        let parts = [100..200, 5000..9000, 200_000..200_010, 7..7];
        let parts = store.get_ranges(&object(), &parts).await.unwrap();
        // A copy would be elsewhere.
        assert_eq!(again.as_ptr(), first.as_ptr());
        assert_eq!(whole[5000..].as_ptr(), first.as_ptr());
        assert_eq!(parts[1].as_ptr(), first.as_ptr());
        assert_eq!(parts[0].as_ptr(), whole[100..].as_ptr());
        assert_eq!(parts[2], content()[200_000..200_010]);
        assert!(parts[3].is_empty());
        assert_eq!(store.stats().mapped, 1);
        assert_eq!(store.stats().unmapped_reads, 0);
    });
}

#[test]
fn hundred_thousand_ranges_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    // Near ones and wide gaps, so that there are many runs of many ranges.
    let mut content = vec![0; 20_000_000];
    let mut random = fastrand::Rng::with_seed(1);
    let ranges: Vec<Range<u64>> = (0..100_000)
        .map(|_| {
            let start = (random.usize(..200) * 95_000) + random.usize(..4000);
            let end = start + random.usize(..100);
            content[start..end].fill(random.u8(..));
            start as u64..end as u64
        })
        .collect();
    fs::write(dir.path().join("object"), &content).unwrap();
    block_on(async {
        for maps in [10, 0] {
            let store = MappedFileSystem::new_with_prefix(dir.path()).unwrap();
            let store = store.with_max_maps(maps);
            let read = store.get_ranges(&object(), &ranges).await.unwrap();
            assert_eq!(read.len(), ranges.len());
            for (range, bytes) in ranges.iter().zip(read) {
                assert_eq!(bytes, content[range.start as usize..range.end as usize]);
            }
        }
    });
}

#[test]
fn range_is_one_chunk() {
    let (_dir, _, store) = store();
    let store = store.with_one_chunk_limit(0);
    block_on(async {
        let options = GetOptions {
            range: Some(GetRange::Bounded(10..290_000)),
            ..Default::default()
        };
        let result = store.get_opts(&object(), options).await.unwrap();
        let read = chunks(result).await.unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0], content()[10..290_000]);
    });
}

#[test]
fn long_object_comes_in_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..9_000_000_u32).map(|at| (at % 251) as u8).collect();
    fs::write(dir.path().join("object"), &content).unwrap();
    block_on(async {
        // With maps, and without.
        for maps in [10, 0] {
            let store = MappedFileSystem::new_with_prefix(dir.path()).unwrap();
            let store = store.with_max_maps(maps);
            let one = chunks(store.get(&object()).await.unwrap()).await.unwrap();
            assert_eq!(one.len(), 1);
            let store = store.with_one_chunk_limit(8_999_999);
            let several = chunks(store.get(&object()).await.unwrap()).await.unwrap();
            let lengths: Vec<usize> = several.iter().map(Bytes::len).collect();
            assert_eq!(lengths, [4 << 20, 4 << 20, 9_000_000 - (8 << 20)]);
            assert_eq!(several.concat(), content);
            assert_eq!(one[0], content);
            if maps > 0 {
                assert_eq!(several[1].as_ptr(), one[0][4 << 20..].as_ptr());
            }
        }
    });
}

#[test]
fn replaced_object_is_seen_at_once() {
    let (dir, path, store) = store();
    block_on(async {
        let read = async || store.get(&object()).await.unwrap().bytes().await.unwrap();
        assert_eq!(read().await, content());
        // By a put, by a rename of another program, and by a rename of the directory.
        store.put(&object(), "by a put".into()).await.unwrap();
        assert_eq!(read().await, "by a put");
        fs::write(dir.path().join("other"), "by a rename").unwrap();
        fs::rename(dir.path().join("other"), &path).unwrap();
        assert_eq!(read().await, "by a rename");
        fs::remove_file(&path).unwrap();
        let read_range = store.get_range(&object(), 0..1).await;
        assert!(read_range.is_err());

        for (table, text) in [("old", "the old table"), ("new", "the new table")] {
            fs::create_dir(dir.path().join(table)).unwrap();
            fs::write(dir.path().join(table).join("part"), text).unwrap();
        }
        let part = Path::from("old/part");
        let whole = [0..13];
        let read = async || store.get_ranges(&part, &whole).await.unwrap().remove(0);
        assert_eq!(read().await, "the old table");
        fs::rename(dir.path().join("old"), dir.path().join("gone")).unwrap();
        fs::rename(dir.path().join("new"), dir.path().join("old")).unwrap();
        assert_eq!(read().await, "the new table");
    });
}

#[test]
fn old_generation_outlives_replacement() {
    let (_dir, _, store) = store();
    block_on(async {
        let old = store.get_range(&object(), 0..300_000).await.unwrap();
        let part = old.slice(1000..2000);
        drop(old);
        store.put(&object(), "new".into()).await.unwrap();
        let new = store.get(&object()).await.unwrap().bytes().await.unwrap();
        assert_eq!(new, "new");
        assert_eq!(part, content()[1000..2000]);
        let stats = store.stats();
        assert_eq!((stats.maps, stats.cached), (2, 1));
        assert_eq!(stats.mapped_bytes, 300_003);
        drop(part);
        assert_eq!(store.stats().maps, 1);
        assert_eq!(store.stats().mapped_bytes, 3);
    });
}

#[test]
fn deleted_object_is_unmapped() {
    let (_dir, _, store) = store();
    block_on(async {
        let bytes = store.get_range(&object(), 0..10).await.unwrap();
        store.delete(&object()).await.unwrap();
        assert_eq!(store.stats().cached, 0);
        assert_eq!(store.stats().maps, 1);
        assert_eq!(bytes, content()[..10]);
        drop(bytes);
        assert_eq!(store.stats().maps, 0);
        // And one that is moved, and one that an upload of several parts replaces.
        for location in ["from", "to"] {
            let location = Path::from(location);
            store.put(&location, "moved".into()).await.unwrap();
            store.get_range(&location, 0..5).await.unwrap();
        }
        assert_eq!(store.stats().maps, 2);
        store.rename(&"from".into(), &"to".into()).await.unwrap();
        assert_eq!(store.stats().maps, 0);
        store.get_range(&"to".into(), 0..5).await.unwrap();
        let mut upload = store.put_multipart(&"to".into()).await.unwrap();
        upload.put_part("parts".into()).await.unwrap();
        upload.complete().await.unwrap();
        assert_eq!(store.stats().maps, 0);
        assert_eq!(store.get_range(&"to".into(), 0..5).await.unwrap(), "parts");
    });
}

/// The job of a put that was dropped goes on, and the map of the old object goes with it.
#[test]
fn dropped_put_unmaps_the_old_object() {
    let (_dir, path, store) = store();
    block_on(async {
        store.get_range(&object(), 0..10).await.unwrap();
        assert_eq!(store.stats().cached, 1);
        let location = object();
        let mut put = Box::pin(store.put(&location, "new".into()));
        let is_over = poll_once(&mut put).await.is_some();
        let begun = Instant::now();
        while fs::read(&path).unwrap() != b"new" {
            assert!(begun.elapsed() < Duration::from_secs(60), "no put");
            yield_now().await;
        }
        drop(put);
        while store.stats().maps > 0 {
            let is_late = begun.elapsed() > Duration::from_secs(60);
            assert!(!is_late, "still mapped; ended in a poll: {is_over}");
            yield_now().await;
        }
    });
}

#[test]
fn answers_are_those_of_local_file_system() {
    let (dir, _, store) = store();
    let local = LocalFileSystem::new_with_prefix(dir.path()).unwrap();
    fs::write(dir.path().join("empty"), b"").unwrap();
    fs::create_dir(dir.path().join("directory")).unwrap();
    block_on(async {
        let meta = local.head(&object()).await.unwrap();
        let tag = meta.e_tag.clone();
        let (before, after) = (
            Some(meta.last_modified - Duration::from_secs(5)),
            Some(meta.last_modified + Duration::from_secs(5)),
        );
        let with_range = |range: GetRange| GetOptions {
            range: Some(range),
            ..Default::default()
        };
        let options = [
            GetOptions::default(),
            GetOptions {
                head: true,
                ..Default::default()
            },
            GetOptions {
                if_match: tag.clone(),
                ..Default::default()
            },
            GetOptions {
                if_match: Some("other".into()),
                ..Default::default()
            },
            GetOptions {
                if_none_match: tag,
                ..Default::default()
            },
            GetOptions {
                if_none_match: Some("other".into()),
                ..Default::default()
            },
            GetOptions {
                if_modified_since: before,
                ..Default::default()
            },
            GetOptions {
                if_modified_since: after,
                ..Default::default()
            },
            GetOptions {
                if_unmodified_since: before,
                ..Default::default()
            },
            GetOptions {
                if_unmodified_since: after,
                ..Default::default()
            },
            with_range(GetRange::Bounded(5..10)),
            with_range(GetRange::Bounded(299_990..400_000)),
            with_range(GetRange::Bounded(300_000..300_001)),
            with_range(GetRange::Bounded(5..5)),
            with_range(GetRange::Offset(299_000)),
            with_range(GetRange::Offset(300_000)),
            with_range(GetRange::Suffix(20)),
            with_range(GetRange::Suffix(0)),
            with_range(GetRange::Suffix(400_000)),
        ];
        let ranges = [
            vec![],
            vec![3..9, 8..20],
            vec![7..7],
            vec![299_990..300_001],
            vec![300_000..300_010, 0..5],
        ];
        // At first there is no map, then there is one.
        for _ in 0..2 {
            for location in ["object", "empty", "none", "directory", "a#1"].map(Path::from) {
                for options in &options {
                    let expected = local.get_opts(&location, options.clone()).await;
                    let found = store.get_opts(&location, options.clone()).await;
                    compare(expected, found, options.head).await;
                }
                for ranges in &ranges {
                    let expected = local.get_ranges(&location, ranges).await;
                    let found = store.get_ranges(&location, ranges).await;
                    if location.as_ref() == "directory" {
                        // `LocalFileSystem` opens it, and fails when it reads from it.
                        assert!(found.is_err());
                        continue;
                    }
                    match (expected, found) {
                        (Ok(expected), Ok(found)) => assert_eq!(expected, found),
                        (Err(expected), Err(found)) => {
                            assert_eq!(expected.to_string(), found.to_string());
                        }
                        differ => panic!("{location} {ranges:?}: {differ:?}"),
                    }
                }
            }
        }
        assert_eq!(store.stats().mapped, 1);
        // `LocalFileSystem` overflows here.
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = store.get_ranges(&object(), &[9..3]).await;
        assert!(reversed.unwrap_err().to_string().contains("9..3"));
    });
}

async fn compare(expected: Result<GetResult>, found: Result<GetResult>, is_head: bool) {
    match (expected, found) {
        (Ok(expected), Ok(found)) => {
            assert_eq!(expected.meta, found.meta);
            assert_eq!(expected.range, found.range);
            assert_eq!(expected.attributes, found.attributes);
            let found = chunks(found).await.unwrap().concat();
            match is_head {
                true => assert!(found.is_empty()),
                false => assert_eq!(expected.bytes().await.unwrap(), found),
            }
        }
        (Err(expected), Err(found)) => assert_eq!(expected.to_string(), found.to_string()),
        differ => panic!("{differ:?}"),
    }
}

#[test]
fn cut_object_is_an_error() {
    let (_dir, path, store) = store();
    block_on(async {
        let late = store.get(&object()).await.unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(5000)
            .unwrap();
        // What was there when the read began is gone.
        let error = late.bytes().await.unwrap_err();
        assert!(error.to_string().contains("truncated"), "{error}");
        // And now the object is a shorter one.
        let short = store.get(&object()).await.unwrap();
        assert_eq!(short.meta.size, 5000);
        assert_eq!(short.bytes().await.unwrap(), content()[..5000]);
        assert!(store.get_range(&object(), 5000..5001).await.is_err());
        assert!(store
            .get_ranges(&object(), &[0..1, 4000..6000])
            .await
            .is_err());
        assert_eq!(
            store.get_ranges(&object(), &[0..1]).await.unwrap()[0],
            [0_u8][..]
        );
    });
}

#[test]
fn object_cut_between_chunks_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("object");
    File::create(&path).unwrap().set_len(20 << 20).unwrap();
    block_on(async {
        for maps in [10, 0] {
            let store = MappedFileSystem::new_with_prefix(dir.path()).unwrap();
            let store = store.with_one_chunk_limit(0).with_max_maps(maps);
            let file = File::options().write(true).open(&path).unwrap();
            file.set_len(20 << 20).unwrap();
            let mut stream = store.get(&object()).await.unwrap().into_stream();
            assert_eq!(stream.next().await.unwrap().unwrap().len(), 4 << 20);
            file.set_len(5 << 20).unwrap();
            assert!(stream.next().await.unwrap().is_err());
            assert!(stream.next().await.is_none());
        }
    });
}

#[test]
#[cfg(target_os = "linux")]
fn hot_read_needs_no_hop() {
    let (_dir, _, store) = store();
    block_on(store.get_range(&object(), 0..300_000)).unwrap();
    let (object, ranges) = (object(), [10..20, 200_000..200_020]);
    // At the first poll, or at the second if the thread had to yield to other tasks.
    let read_at_once = || {
        let mut read = pin!(store.get_ranges(&object, &ranges));
        let first = block_on(poll_once(&mut read));
        let parts = first.or_else(|| block_on(poll_once(&mut read)));
        parts.is_some_and(|parts| parts.unwrap()[0] == content()[10..20])
    };
    // Not all, since the system looks no path up without waiting while something is mounted.
    let at_once = (0..100).filter(|_| read_at_once()).count();
    assert!(at_once >= 90, "{} of 100 reads wait", 100 - at_once);
}

/// Occupies the pool for as long as the caller has locked `held` for writing.
fn occupy_pool(held: &Arc<RwLock<()>>) {
    // It has at most 500 threads: what comes after as many jobs that wait does not start.
    for _ in 0..500 {
        let held = Arc::clone(held);
        unblock(move || drop(held.read())).detach();
    }
}

#[test]
fn uploads_are_opened_on_the_pool() {
    let (dir, _, store) = store();
    let staged = || fs::read_dir(dir.path()).unwrap().count() - 1;
    let held = Arc::new(RwLock::new(()));
    let hold = held.write();
    occupy_pool(&held);
    let object = object();
    let mut upload = pin!(store.put_multipart(&object));
    assert!(block_on(poll_once(&mut upload)).is_none());
    assert_eq!(staged(), 0);
    drop(hold);

    // An upload that is given up leaves nothing behind.
    let upload = block_on(upload).unwrap();
    assert_eq!(staged(), 1);
    drop(upload);
    let start = Instant::now();
    while staged() > 0 {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::yield_now();
    }
}

/// The pool drops the job of a put that was given up, and the payload with it.
#[test]
fn panicking_owner_of_withdrawn_put_aborts_nothing() {
    struct Owner(mpsc::Sender<()>);

    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            b"new"
        }
    }

    impl Drop for Owner {
        fn drop(&mut self) {
            let _ = self.0.send(());
            panic!("as the test wants");
        }
    }

    let (_dir, path, store) = store();
    let (sender, is_dropped) = mpsc::channel();
    let payload = PutPayload::from(Bytes::from_owner(Owner(sender)));
    let held = Arc::new(RwLock::new(()));
    let hold = held.write();
    occupy_pool(&held);
    let object = object();
    let mut put = Box::pin(store.put(&object, payload));
    assert!(block_on(poll_once(&mut put)).is_none());
    drop(put);
    drop(hold);
    is_dropped.recv_timeout(Duration::from_secs(20)).unwrap();
    // The thread goes on with other jobs.
    for _ in 0..1000 {
        block_on(unblock(|| ()));
    }
    assert!(fs::read(path).unwrap() == content());
}

#[test]
fn loop_of_hot_heads_yields() {
    let (_dir, _, store) = store();
    block_on(store.get_range(&object(), 0..10)).unwrap();
    let heads = async {
        for _ in 0..1000 {
            assert_eq!(store.head(&object()).await.unwrap().size, 300_000);
        }
    };
    let mut heads = pin!(heads);
    assert!(block_on(poll_once(&mut heads)).is_none());
    block_on(heads);
    assert_eq!(store.stats().hits, 1000);
}

#[test]
fn cache_delays_no_writes() {
    let (_dir, path, store) = store();
    block_on(async {
        let bytes = store.get_range(&object(), 0..100).await.unwrap();
        let file = MemoryMappedFile::open_rw(&path).await.unwrap();
        let mut write = pin!(file.update_region(50, b"written"));
        assert!(poll_once(&mut write).await.is_none());
        drop(bytes);
        // The map is kept, and has no lease of its own.
        write.await.unwrap();
        assert_eq!(store.stats().maps, 1);
    });
}

#[test]
fn other_executors_read_as_well() {
    let (_dir, _, store) = store();
    let read = || {
        let store = store.clone();
        async move {
            let parts = store.get_ranges(&object(), &[0..10, 5..30]).await.unwrap();
            assert_eq!(parts[1], content()[5..30]);
            store.put(&"other".into(), "written".into()).await.unwrap();
            let other = store.get(&"other".into()).await.unwrap();
            assert_eq!(other.bytes().await.unwrap(), "written");
            assert_eq!(store.list(None).count().await, 2);
            store.delete(&"other".into()).await.unwrap();
            assert!(store.head(&"other".into()).await.is_err());
        }
    };
    smol::block_on(smol::spawn(read()));
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(read());
    block_on(read());
}
