//! Reads a parquet file from its map with parquet's synchronous reader.
//!
//! ```text
//! cargo run --release --features parquet --example sync_parquet [FILE]
//! ```
//!
//! `Bytes` are parquet's `ChunkReader`: a program that is not async needs no adapter. Without a file
//! the example writes one. It prints the rows, the time, and where the strings of the first batch
//! are: in the map, unless their pages were compressed.

use std::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arrow_array::cast::AsArray;
use arrow_array::{ArrayRef, RecordBatch, StringViewArray};
use futures_lite::future::block_on;
use mmap_io::MemoryMappedFile;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::ArrowWriter;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let path = match std::env::args_os().nth(1) {
        Some(path) => PathBuf::from(path),
        None => write(&dir.path().join("table.parquet"))?,
    };
    let file = block_on(MemoryMappedFile::open_ro(&path))?;
    // All of it is in memory before the decoder touches it; `bytes` would leave that to the decoder.
    let bytes = block_on(file.read_bytes(0, file.len()))?;
    let in_map = bytes.as_ptr_range();
    println!("mapped    {}: {} bytes", path.display(), file.len());

    let clock = Instant::now();
    let mut rows = 0;
    for batch in ParquetRecordBatchReaderBuilder::try_new(bytes)?.build()? {
        let batch = batch?;
        if rows == 0 {
            for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
                if let Some(text) = column.as_string_view_opt() {
                    let buffers = text.data_buffers();
                    let shared = buffers
                        .iter()
                        .filter(|buffer| in_map.contains(&buffer.as_ptr()));
                    let (shared, all) = (shared.count(), buffers.len());
                    println!(
                        "column    {}: {shared} of {all} buffers in the map",
                        field.name()
                    );
                }
            }
        }
        rows += batch.num_rows();
    }
    println!("read      {rows} rows in {:?}", clock.elapsed());
    Ok(())
}

/// Writes a table that is not compressed.
fn write(path: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let text = (0..100_000).map(|row| format!("a text that is not stored inline, row {row}"));
    let texts: ArrayRef = Arc::new(StringViewArray::from_iter_values(text));
    let batch = RecordBatch::try_from_iter([("text", texts)])?;
    let mut writer = ArrowWriter::try_new(File::create(path)?, batch.schema(), None)?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(path.to_owned())
}
