//! The recipes of the crate page.

use std::future::poll_fn;
use std::io::Cursor;
use std::pin::{pin, Pin};

use arrow_buffer::Buffer;
use bytes::Bytes;
use mmap_io::{create_mmap, MemoryMappedFile};
use parquet::column::reader::get_typed_column_reader;
use parquet::data_type::Int64Type;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};

use crate::common::{poll_once, rt_test, wait_until};

/// Reads to the end through tokio's `AsyncRead`.
async fn read_to_end(reader: impl AsyncRead) -> Vec<u8> {
    let mut reader = pin!(reader);
    let mut all = Vec::new();
    loop {
        let mut space = [0; 16];
        let mut buffer = ReadBuf::new(&mut space);
        poll_fn(|context| reader.as_mut().poll_read(context, &mut buffer))
            .await
            .unwrap();
        if buffer.filled().is_empty() {
            return all;
        }
        all.extend_from_slice(buffer.filled());
    }
}

/// Splits what tokio's `AsyncBufRead` gives into lines.
async fn lines(mut reader: impl AsyncBufRead + Unpin) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = Vec::new();
    loop {
        let mut pinned = Pin::new(&mut reader);
        let part = poll_fn(|context| {
            pinned
                .as_mut()
                .poll_fill_buf(context)
                .map_ok(<[u8]>::to_vec)
        })
        .await
        .unwrap();
        let Some(first) = part.first() else {
            return lines;
        };
        match first {
            b'\n' => lines.push(String::from_utf8(std::mem::take(&mut line)).unwrap()),
            byte => line.push(*byte),
        }
        Pin::new(&mut reader).consume(1);
    }
}

rt_test!(cursor_of_bytes_is_a_tokio_reader, |dir| {
    let path = dir.join("log");
    let text = "first line\nsecond line, which is longer\n\nlast\n";
    std::fs::write(&path, text).unwrap();
    let file = MemoryMappedFile::open_ro(&path).await.unwrap();
    let bytes = file.read_bytes(0, file.len()).await.unwrap();
    assert_eq!(
        read_to_end(Cursor::new(bytes.clone())).await,
        text.as_bytes()
    );
    let found = lines(Cursor::new(bytes.clone())).await;
    assert_eq!(found, text.lines().collect::<Vec<_>>());
    let plain: Result<Vec<String>, _> = std::io::BufRead::lines(Cursor::new(bytes)).collect();
    assert_eq!(plain.unwrap(), found);
});

rt_test!(parts_of_bytes_share_the_mapping, |dir| {
    let (_, file) = crate::common::patterned(dir, 8192).await;
    let bytes: Bytes = file.read_bytes(0, 8192).await.unwrap();
    // A footer, and a column chunk that it points to.
    let (footer, chunk) = (bytes.slice(8184..), bytes.slice(100..200));
    assert_eq!(footer.as_ptr(), bytes[8184..].as_ptr());
    assert_eq!(chunk.as_ptr(), bytes[100..].as_ptr());
    drop((file, bytes));
    assert_eq!(chunk, crate::common::pattern(8192)[100..200]);
});

rt_test!(slow_client_delays_only_overlapping_writes, |dir| {
    let file = create_mmap(dir.join("data"), 8192).await.unwrap();
    let body = file.read_bytes(0, 4096).await.unwrap();
    let mut blocked = pin!(file.update_region(0, b"new"));
    assert!(poll_once(blocked.as_mut()).await.is_none());
    wait_until(&file, |stats| stats.oldest_blocked.is_some()).await;

    file.update_region(4096, b"elsewhere").await.unwrap();
    file.resize(16384).await.unwrap();
    assert_eq!(file.slice(0, 3).await.unwrap(), [0; 3]);
    assert!(!file.try_update_region(0, b"now").await.unwrap());
    assert!(poll_once(blocked.as_mut()).await.is_none());
    // A copy of the whole file waits behind the write, and a write behind the copy.
    let mut copy = pin!(file.copy_to(dir.join("copy")));
    assert!(poll_once(copy.as_mut()).await.is_none());
    let mut behind = pin!(file.update_region(4096, b"later"));
    assert!(poll_once(behind.as_mut()).await.is_none());

    let sent = Bytes::copy_from_slice(&body);
    drop(body);
    let (written, copied) = futures_lite::future::zip(blocked, copy).await;
    written.unwrap();
    assert_eq!(copied.unwrap(), 16384);
    behind.await.unwrap();
    let copy = std::fs::read(dir.join("copy")).unwrap();
    assert_eq!(
        (&copy[..3], &copy[4096..4101]),
        (&b"new"[..], &b"elsew"[..])
    );
    assert_eq!(sent[..3], [0; 3]);
    assert_eq!(file.as_slice(0, 3).unwrap(), b"new");
});

rt_test!(body_keeps_the_file_mapped, |dir| {
    let (_, file) = crate::common::patterned(dir, 4096).await;
    let body = file.read_bytes(0, 4096).await.unwrap();
    let file = file.unmap().expect_err("the body lives");
    drop(file);
    assert_eq!(body, crate::common::pattern(4096));
});

#[cfg(target_os = "linux")]
rt_test!(
    truncated_page_is_an_error_before_its_bytes_are_used,
    |dir| {
        let (path, file) = crate::common::patterned(dir, 3 * 4096).await;
        let mut first = vec![0; 4096];
        file.read_into(0, &mut first).await.unwrap();
        // What another process would do.
        let other = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        other.set_len(4096).unwrap();

        let mut page = vec![0; 4096];
        let cut = |error| {
            matches!(
                error,
                mmap_io::MmapIoError::Truncated { file_len: 4096, .. }
            )
        };
        assert!(cut(file.read_into(4096, &mut page).await.unwrap_err()));
        assert!(cut(file.slice(4096, 4096).await.unwrap_err()));
        assert!(cut(file.read_bytes(8192, 1).await.unwrap_err()));
        // Below the cut all goes on, and a copy that was made before stays.
        file.read_into(0, &mut page).await.unwrap();
        other.set_len(0).unwrap();
        let crc = crc32fast::hash(&crate::common::pattern(4096));
        assert_eq!(
            (crc32fast::hash(&first), crc32fast::hash(&page)),
            (crc, crc)
        );
    }
);

#[cfg(feature = "atomic")]
rt_test!(atomic_counter_loses_nothing, |dir| {
    use std::sync::atomic::Ordering;

    let file = create_mmap(dir.join("data"), 4096).await.unwrap();
    let add = |count: u64| {
        let file = file.clone();
        async move {
            for _ in 0..count {
                file.atomic_u64(8).unwrap().fetch_add(1, Ordering::Relaxed);
                futures_lite::future::yield_now().await;
            }
        }
    };
    futures_lite::future::zip(add(20), add(30)).await;
    assert_eq!(file.as_slice(8, 8).unwrap(), 50_u64.to_ne_bytes());
});

rt_test!(counter_under_a_mutable_view_loses_nothing, |dir| {
    let file = create_mmap(dir.join("data"), 4096).await.unwrap();
    let add = |count: u64| {
        let file = file.clone();
        async move {
            for _ in 0..count {
                let mut counter = file.as_slice_mut(16, 8).await.unwrap();
                let next = u64::from_le_bytes((*counter).try_into().unwrap()) + 1;
                counter.copy_from_slice(&next.to_le_bytes());
            }
        }
    };
    let (first, second) = (add(20), add(30));
    futures_lite::future::zip(first, second).await;
    assert_eq!(file.as_slice(16, 8).unwrap(), 50_u64.to_le_bytes());
});

/// Alone in its process as far as memory goes: every other test of this file maps little.
#[cfg(all(target_os = "linux", feature = "advise"))]
#[test]
fn mapped_pages_count_as_resident_set() {
    const LEN: u64 = 32 << 20;
    let mapped_kib = || -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let fields = ["RssFile:", "RssShmem:"].map(|name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap()
                .trim_end_matches("kB")
                .trim()
                .parse::<u64>()
                .unwrap()
        });
        fields.iter().sum()
    };
    let dir = tempfile::tempdir().unwrap();
    crate::common::block_on(async {
        let (_, file) = crate::common::patterned(dir.path(), LEN as usize).await;
        let before = mapped_kib();
        let sum = |slice: &[u8]| slice.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        let touched = sum(&file.slice(0, LEN).await.unwrap());
        let during = mapped_kib();
        assert!(
            during >= before + (LEN >> 10) * 3 / 4,
            "{before} -> {during}"
        );
        let advice = mmap_io::MmapAdvice::DontNeed;
        file.advise(0, LEN, advice).await.unwrap();
        let after = mapped_kib();
        assert!(after + (LEN >> 10) * 3 / 4 <= during, "{during} -> {after}");
        assert_eq!(sum(&file.slice(0, LEN).await.unwrap()), touched);
    });
}

fn write_parquet(path: &std::path::Path, numbers: &[i64]) {
    let schema = parse_message_type("message numbers { REQUIRED INT64 number; }").unwrap();
    let file = std::fs::File::create(path).unwrap();
    let properties = std::sync::Arc::default();
    let mut writer = SerializedFileWriter::new(file, schema.into(), properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().expect("there is one column");
    let typed = column.typed::<Int64Type>();
    typed.write_batch(numbers, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

rt_test!(parquet_and_arrow_read_the_mapping, |dir| {
    let path = dir.join("numbers.parquet");
    let numbers: Vec<i64> = (0..10_000).collect();
    write_parquet(&path, &numbers);
    let file = MemoryMappedFile::open_ro(&path).await.unwrap();
    let bytes = file.read_bytes(0, file.len()).await.unwrap();

    let reader = SerializedFileReader::new(bytes.clone()).unwrap();
    let group = reader.get_row_group(0).unwrap();
    let mut column = get_typed_column_reader::<Int64Type>(group.get_column_reader(0).unwrap());
    let mut read = Vec::new();
    while read.len() < numbers.len() {
        let (records, ..) = column.read_records(1000, None, None, &mut read).unwrap();
        assert!(records > 0, "the column ends after {} numbers", read.len());
    }
    assert_eq!(read, numbers);

    // An Arrow buffer is the mapping itself.
    let buffer = Buffer::from(bytes.clone());
    assert_eq!(buffer.as_ptr(), bytes.as_ptr());
});
