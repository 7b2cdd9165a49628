//! One store under both versions, and what it tells subscribers of `tracing`.

use std::fmt::{self, Write};
use std::sync::Mutex;

use futures_lite::future::block_on;
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
