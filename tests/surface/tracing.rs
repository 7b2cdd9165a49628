//! Spans and warnings, as a subscriber gets them. It is there for the whole process, so each test
//! runs in a process of its own.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use mmap_io::MemoryMappedFile;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::common::child::{abort_if_stuck, child, child_dir, Child};
use crate::common::operations::{operations, BusyPool, Fixture};
use crate::common::{
    assert_waits, block_on, eventually, patterned, poll_once, wait_until_examined, with_timeout,
};

type Fields = BTreeMap<&'static str, String>;

static COLLECTED: Mutex<Collected> = Mutex::new(Collected {
    spans: Vec::new(),
    warnings: Vec::new(),
});

struct Collected {
    spans: Vec<Span>,
    warnings: Vec<Fields>,
}

#[derive(Clone, Debug, Default)]
struct Span {
    fields: Fields,
    is_closed: bool,
}

impl Span {
    fn number(&self, field: &str) -> u128 {
        let value = self.fields.get(field);
        value
            .unwrap_or_else(|| panic!("no {field}: {self:?}"))
            .parse()
            .unwrap()
    }
}

fn collected() -> MutexGuard<'static, Collected> {
    COLLECTED.lock().unwrap()
}

/// Takes the spans since the last call, all of which are closed.
fn take_spans() -> Vec<Span> {
    let spans = collected().spans.clone();
    let new = spans.iter().filter(|span| !span.fields.is_empty());
    let new: Vec<_> = new.cloned().collect();
    for span in &mut collected().spans {
        span.fields.clear();
    }
    for span in &new {
        assert!(span.is_closed, "{span:?}");
    }
    new
}

struct Collector;

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "mmap_io"
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut collected = collected();
        let mut span = Span::default();
        attributes.record(&mut Visitor(&mut span.fields));
        collected.spans.push(span);
        Id::from_u64(collected.spans.len() as u64)
    }

    fn record(&self, id: &Id, values: &Record<'_>) {
        let span = &mut collected().spans[id.into_u64() as usize - 1];
        assert!(!span.is_closed);
        values.record(&mut Visitor(&mut span.fields));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        assert_eq!(*event.metadata().level(), Level::WARN);
        let mut fields = Fields::new();
        event.record(&mut Visitor(&mut fields));
        collected().warnings.push(fields);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}

    fn try_close(&self, id: Id) -> bool {
        collected().spans[id.into_u64() as usize - 1].is_closed = true;
        true
    }
}

struct Visitor<'a>(&'a mut Fields);

impl Visit for Visitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

fn in_child(child: Child) {
    let dir = tempfile::tempdir().unwrap();
    child.dir(dir.path()).passes();
}

fn collect() {
    tracing::subscriber::set_global_default(Collector).unwrap();
}

#[test]
fn each_operation_has_a_span() {
    in_child(child!(operations_child));
}

#[test]
fn operations_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    collect();
    block_on(async {
        for operation in operations() {
            let fixture = Fixture::new(&dir).await;
            take_spans();
            (operation.run)(&fixture).await.unwrap();
            let spans = take_spans();
            assert!(!spans.is_empty(), "{}", operation.name);
            for span in spans {
                assert!(span.fields.contains_key("operation"));
                span.number("waited_us");
                span.number("ran_us");
            }
        }
    });
}

#[test]
fn span_tells_wait_and_run() {
    in_child(child!(times_child).one_pool_thread());
}

#[test]
fn times_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    collect();
    block_on(async {
        let (path, file) = patterned(&dir, 4 << 20).await;
        take_spans();

        // A write waits for a view.
        let view = file.bytes(100, 10).unwrap();
        let mut write = Box::pin(file.update_region(50, &[1; 1000]));
        assert_waits(&file, 0, &mut write).await;
        let begin = Instant::now();
        wait_until_examined(&file, 0).await;
        let waited = begin.elapsed();
        drop(view);
        with_timeout(write).await.unwrap();
        let spans = take_spans();
        let is_it = |span: &&Span| span.fields["offset"] == "50";
        let span = spans.iter().find(is_it).unwrap();
        assert_eq!(span.fields["operation"], "writing");
        assert_eq!(span.number("len"), 1000);
        assert!(span.number("waited_us") >= waited.as_micros(), "{span:?}");

        // A job waits for a thread of the pool.
        let busy = BusyPool::new();
        let mut looking = Box::pin(file.is_at_path());
        assert!(poll_once(&mut looking).await.is_none());
        let begin = Instant::now();
        assert!(poll_once(&mut looking).await.is_none());
        let waited = begin.elapsed();
        drop(busy);
        assert!(with_timeout(looking).await.unwrap());
        let [span] = &take_spans()[..] else {
            panic!("one operation");
        };
        assert_eq!(span.fields["path"], path.display().to_string());
        assert!(span.number("waited_us") >= waited.as_micros(), "{span:?}");

        // Each of these takes a while: a job, copying, and a flush of what was copied.
        let created = MemoryMappedFile::create_rw(dir.join("created"), 100);
        created.await.unwrap();
        file.update_region(0, &vec![1; 4 << 20]).await.unwrap();
        file.update_region(0, &vec![2; 4 << 20]).await.unwrap();
        file.flush().await.unwrap();
        let spans = take_spans();
        assert_eq!(spans.len(), 4);
        for span in spans {
            assert!(span.number("ran_us") > 0, "{span:?}");
        }

        // Nothing is offloaded here: nothing was written.
        file.flush().await.unwrap();
        assert!(take_spans().is_empty());

        // A future that is dropped ends its span.
        let view = file.bytes(100, 10).unwrap();
        let mut write = Box::pin(file.update_region(50, &[1; 1000]));
        assert!(poll_once(&mut write).await.is_none());
        drop((write, view));
        assert_eq!(take_spans().len(), 1);
    });
}

#[test]
fn blocked_write_is_warned_of() {
    in_child(child!(blocked_child));
}

#[test]
fn blocked_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    collect();
    let warned = |count| {
        eventually("a warning", || collected().warnings.len() >= count);
        collected().warnings[count - 1].clone()
    };
    block_on(async {
        let (path, file) = patterned(&dir, 10_000).await;
        let view = file.bytes(0, 100).unwrap();
        let begin = Instant::now();
        let mut first = Box::pin(file.update_region(50, &[1; 10]));
        let mut second = Box::pin(file.update_region(55, &[1; 100]));
        assert_waits(&file, 9_999, &mut first).await;
        assert_waits(&file, 9_999, &mut second).await;

        let warning = warned(1);
        assert!(begin.elapsed().as_millis() >= 1000);
        assert_eq!(warning["ranges"], "50..60");
        assert_eq!(warning["views"], "0..100");
        assert_eq!(warning["path"], path.display().to_string());
        let blocked: u128 = warning["blocked_ms"].parse().unwrap();
        assert!((1000..=begin.elapsed().as_millis()).contains(&blocked));
        let message = format!(
            "a write at bytes 50..60 of {} has been blocked for {blocked} ms by views of bytes \
             0..100",
            path.display()
        );
        assert!(warning["message"].starts_with(&message), "{warning:?}");

        let warning = warned(2);
        assert_eq!((&*warning["ranges"], &*warning["others"]), ("55..155", "1"));
        drop(view);
        with_timeout(first).await.unwrap();
        with_timeout(second).await.unwrap();
        assert_eq!(collected().warnings.len(), 2);
    });
}

/// How often the subscriber that panics was asked whether it wants a warning.
static ASKED: AtomicUsize = AtomicUsize::new(0);

/// Panics whenever it is asked whether it wants a warning.
struct Panicking;

impl Subscriber for Panicking {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        if metadata.target() == "mmap_io" && *metadata.level() == Level::WARN {
            ASKED.fetch_add(1, Ordering::Relaxed);
            panic!("a subscriber is foreign code");
        }
        false
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        unreachable!("no span is enabled")
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn panic_of_subscriber_stops_no_write() {
    in_child(child!(panicking_child));
}

#[test]
fn panicking_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    tracing::subscriber::set_global_default(Panicking).unwrap();
    abort_if_stuck();
    block_on(async {
        let (_, file) = patterned(&dir, 10_000).await;
        with_timeout(file.update_region(50, &[1; 10]))
            .await
            .unwrap();
        let view = file.bytes(0, 100).unwrap();
        let writes = [50, 70].map(|offset| file.update_region(offset, &[2; 10]));
        let mut writes = writes.map(Box::pin);
        for write in &mut writes {
            assert_waits(&file, 9_999, write).await;
        }
        // It is asked for each of the two, whatever became of the warning of the first.
        eventually("two warnings", || ASKED.load(Ordering::Relaxed) >= 2);
        drop(view);
        for write in writes {
            with_timeout(write).await.unwrap();
        }
    });
}
