//! Parquet files read from maps: the same rows, and no copy.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringViewArray};
use futures_lite::future::block_on;
use futures_lite::StreamExt;
use mmap_io_object_store::MappedParquet;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::arrow::{ArrowWriter, ParquetRecordBatchStreamBuilder, ProjectionMask};
use parquet::file::properties::WriterProperties;

const ROWS: i64 = 20_000;

/// Writes a table of two columns in five row groups, not compressed.
fn write(path: &Path) -> RecordBatch {
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..ROWS));
    let text = (0..ROWS).map(|row| format!("a text that is not stored inline, row {row}"));
    let texts: ArrayRef = Arc::new(StringViewArray::from_iter_values(text));
    let batch = RecordBatch::try_from_iter([("number", numbers), ("text", texts)]).unwrap();
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_max_row_group_row_count(Some(ROWS as usize / 5))
        .build();
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    batch
}

#[test]
fn rows_are_those_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("table.parquet");
    let written = write(&path);
    block_on(async {
        let file = MappedParquet::open(&path).await.unwrap();
        let reader = ParquetRecordBatchStreamBuilder::new(file.clone())
            .await
            .unwrap();
        let mut batches = reader.with_batch_size(4096).build().unwrap();
        let mut at = 0;
        while let Some(batch) = batches.next().await {
            let batch = batch.unwrap();
            assert_eq!(batch, written.slice(at, batch.num_rows()));
            at += batch.num_rows();
        }
        assert_eq!(at, ROWS as usize);
        drop(batches);
        assert_eq!(file.file().stats().views, 0);

        // One column of two row groups.
        let reader = ParquetRecordBatchStreamBuilder::new(file).await.unwrap();
        let columns = ProjectionMask::columns(reader.parquet_schema(), ["number"]);
        let reader = reader.with_projection(columns).with_row_groups(vec![1, 4]);
        let mut batches = reader.build().unwrap();
        let mut numbers = Vec::new();
        while let Some(batch) = batches.next().await {
            let batch = batch.unwrap();
            assert_eq!(batch.num_columns(), 1);
            numbers.extend_from_slice(batch.column(0).as_primitive::<Int64Type>().values());
        }
        assert!(numbers.into_iter().eq((4000..8000).chain(16_000..20_000)));
    });
}

#[test]
fn decoder_gets_the_map_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("table.parquet");
    write(&path);
    block_on(async {
        let mut file = MappedParquet::open(&path).await.unwrap();
        let ranges = vec![1000..1010, 500..600, 300_000..300_004];
        let read = file.get_byte_ranges(ranges.clone()).await.unwrap();
        let handle = file.file().clone();
        for (range, bytes) in ranges.into_iter().zip(read) {
            let slice = handle
                .as_slice(range.start, range.end - range.start)
                .unwrap();
            assert_eq!(bytes.as_ptr(), slice.as_ptr());
            assert_eq!(
                file.get_bytes(range).await.unwrap().as_ptr(),
                slice.as_ptr()
            );
        }

        // Strings of a decoded batch lie in the map, which they hold.
        let whole = handle.read_bytes(0, handle.len()).await.unwrap();
        let in_map = whole.as_ptr_range();
        drop(whole);
        let mut batches = ParquetRecordBatchStreamBuilder::new(file)
            .await
            .unwrap()
            .build()
            .unwrap();
        let batch = batches.next().await.unwrap().unwrap();
        drop(batches);
        let text = batch.column(1).as_string_view();
        assert!(!text.data_buffers().is_empty());
        for buffer in text.data_buffers().iter() {
            assert!(in_map.contains(&buffer.as_ptr()));
        }
        assert!(handle.stats().views > 0);
        drop(batch);
        assert_eq!(handle.stats().views, 0);
    });
}

#[test]
fn damaged_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("table.parquet");
    write(&path);
    let content = std::fs::read(&path).unwrap();
    block_on(async {
        for cut in [0, 7, 100, content.len() / 2, content.len() - 1] {
            std::fs::write(&path, &content[..cut]).unwrap();
            let file = MappedParquet::open(&path).await.unwrap();
            assert!(ParquetRecordBatchStreamBuilder::new(file).await.is_err());
        }
        std::fs::write(&path, &content).unwrap();
        let mut file = MappedParquet::open(&path).await.unwrap();
        let len = content.len() as u64;
        assert!(file.get_bytes(len - 1..len + 1).await.is_err());
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = file.get_bytes(9..3).await;
        assert!(reversed.is_err());
        // Another program cuts it while it is being read.
        let mut batches = ParquetRecordBatchStreamBuilder::new(file)
            .await
            .unwrap()
            .build()
            .unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(4096)
            .unwrap();
        assert!(batches.next().await.unwrap().is_err());
    });
}

#[test]
fn sync_decoder_takes_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("table.parquet");
    let written = write(&path);
    block_on(async {
        let file = mmap_io::MemoryMappedFile::open_ro(&path).await.unwrap();
        let bytes = file.read_bytes(0, file.len()).await.unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
        let mut at = 0;
        for batch in reader.build().unwrap() {
            let batch = batch.unwrap();
            assert_eq!(batch, written.slice(at, batch.num_rows()));
            at += batch.num_rows();
        }
        assert_eq!(at, ROWS as usize);
    });
}
