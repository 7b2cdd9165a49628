//! One store under both versions, and what it tells subscribers of `tracing`.

use std::fmt::{self, Write};
use std::sync::Mutex;

use futures_lite::future::block_on;
use futures_lite::StreamExt;
use mmap_io_object_store::MappedFileSystem;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

#[test]
fn versions_share_the_maps() {
    let dir = tempfile::tempdir().unwrap();
    let store = MappedFileSystem::new_with_prefix(dir.path()).unwrap();
    block_on(async {
        let old = {
            use object_store_0_13::{path::Path, ObjectStore, ObjectStoreExt};
            let location = Path::from("object");
            ObjectStoreExt::put(&store, &location, "shared".into())
                .await
                .unwrap();
            ObjectStore::get_ranges(&store, &location, &[1..4])
                .await
                .unwrap()
        };
        let new = {
            use object_store_0_14::{path::Path, ObjectStore};
            let ranges = [1..4];
            ObjectStore::get_ranges(&store, &Path::from("object"), &ranges)
                .await
                .unwrap()
        };
        assert_eq!(new, ["har"]);
        assert_eq!(old[0].as_ptr(), new[0].as_ptr());
        assert_eq!((store.stats().mapped, store.stats().hits), (1, 1));
    });
}

/// Maps an object through one version, and compares what the other one says of its tag with what a
/// put and a list say.
macro_rules! tags_are_those_of {
    ($asked:ident, mapped_by $mapper:ident, $name:ident) => {
        #[test]
        fn $name() {
            use $asked::{path::Path, Error, GetOptions, ObjectStore, ObjectStoreExt};

            let dir = tempfile::tempdir().unwrap();
            let store = MappedFileSystem::new_with_prefix(dir.path()).unwrap();
            block_on(async {
                let location = Path::from("object");
                let put = store.put(&location, "tagged".into()).await.unwrap();
                let same = $mapper::path::Path::from("object");
                let mapped = $mapper::ObjectStore::get_ranges(&store, &same, &[0..6]).await;
                assert_eq!(mapped.unwrap(), ["tagged"]);

                let listed = store.list(None).next().await.unwrap().unwrap();
                assert_eq!(listed.e_tag, put.e_tag);
                assert_eq!(store.head(&location).await.unwrap(), listed);
                let options = GetOptions {
                    if_match: put.e_tag.clone(),
                    ..Default::default()
                };
                let found = store.get_opts(&location, options).await.unwrap();
                assert_eq!(found.meta, listed);
                assert_eq!(found.bytes().await.unwrap(), "tagged");
                let options = GetOptions {
                    if_none_match: put.e_tag,
                    ..Default::default()
                };
                let found = store.get_opts(&location, options).await;
                assert!(matches!(found, Err(Error::NotModified { .. })), "{found:?}");

                // The version that has mapped it keeps its own.
                let listed = $mapper::ObjectStore::list(&store, None).next().await;
                let head = $mapper::ObjectStoreExt::head(&store, &same).await;
                assert_eq!(head.unwrap(), listed.unwrap().unwrap());
                let stats = store.stats();
                assert_eq!((stats.mapped, stats.hits, stats.unmapped_reads), (1, 4, 0));
            });
        }
    };
}

tags_are_those_of!(object_store_0_13, mapped_by object_store_0_14, old_tags_of_a_new_map);
tags_are_those_of!(object_store_0_14, mapped_by object_store_0_13, new_tags_of_an_old_map);

#[test]
fn tags_belong_to_the_bytes_while_the_object_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let store = MappedFileSystem::new_with_prefix(dir.path()).unwrap();
    let rounds = 1..=300_usize;
    let last = *rounds.end();
    let writer = std::thread::spawn({
        let store = store.clone();
        move || {
            use object_store_0_13::{path::Path, ObjectStore, ObjectStoreExt};
            let location = Path::from("object");
            for round in rounds {
                block_on(async {
                    let payload = vec![round as u8; round];
                    store.put(&location, payload.into()).await.unwrap();
                    // So that the other version finds a map without a tag of its own.
                    store.get_ranges(&location, &[0..1]).await.unwrap();
                });
            }
        }
    });
    block_on(async {
        use object_store_0_14::{path::Path, Error, ObjectStoreExt};
        let location = Path::from("object");
        let mut round = 0;
        while round < last {
            let found = match store.get(&location).await {
                Ok(found) => found,
                Err(Error::NotFound { .. }) => continue,
                Err(error) => panic!("{error}"),
            };
            // A tag ends with the length of the object.
            let tag = found.meta.e_tag.clone().unwrap();
            let bytes = found.bytes().await.unwrap();
            assert!(bytes.iter().all(|byte| *byte == bytes.len() as u8));
            assert!(tag.ends_with(&format!("-{:x}\"", bytes.len())), "{tag}");
            assert!(bytes.len() >= round);
            round = bytes.len();
        }
    });
    writer.join().unwrap();
}

/// What the subscriber of the process was told about the objects of the test below.
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Lines;

impl<S: tracing::Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        struct Line(String);
        impl tracing::field::Visit for Line {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
                write!(self.0, "{field}={value:?} ").unwrap();
            }
        }
        let mut line = Line(format!("{} ", event.metadata().level()));
        event.record(&mut line);
        if line.0.contains("location=\"traced-") {
            LINES.lock().unwrap().push(line.0.trim_end().to_owned());
        }
    }
}

#[test]
fn events_tell_what_happens_to_maps() {
    use object_store_0_14::{path::Path, ObjectStoreExt};

    let dir = tempfile::tempdir().unwrap();
    let store = MappedFileSystem::new_with_prefix(dir.path()).unwrap();
    let store = store.with_max_maps(1);
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Lines)).unwrap();
    // An event that another test emits at this moment may count as one without a subscriber.
    tracing::callsite::rebuild_interest_cache();
    block_on(async {
        let [a, b] = ["traced-a", "traced-b"].map(Path::from);
        for location in [&a, &b] {
            store.put(location, "text".into()).await.unwrap();
            let bytes = store.get_range(location, 0..1).await.unwrap();
            store.get_range(&a, 0..1).await.unwrap();
            drop(bytes);
        }
        std::fs::write(dir.path().join("traced-b"), "longer").unwrap();
        store.get_range(&b, 0..1).await.unwrap();
    });
    assert_eq!(
        *LINES.lock().unwrap(),
        [
            "DEBUG message=mapped an object location=\"traced-a\" bytes=4",
            "DEBUG message=evicted a map location=\"traced-a\" bytes=4",
            "DEBUG message=mapped an object location=\"traced-b\" bytes=4",
            "WARN message=no room for a map: the object is read into memory of its own \
             location=\"traced-a\" bytes=4 maps=1 mapped_bytes=4",
            "DEBUG message=the object was replaced, changed or deleted location=\"traced-b\"",
            "DEBUG message=mapped an object location=\"traced-b\" bytes=6",
        ]
    );
}
