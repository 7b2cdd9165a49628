//! Parquet files, mapped.

use std::future::Future;
use std::ops::Range;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use mmap_io::{MemoryMappedFile, MmapIoError};
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use crate::ranges;

/// A mapped parquet file, for the async readers of [`parquet`].
///
/// It gives the decoder `Bytes` of the map, which are in memory when it gets them: nothing is copied
/// before it is decoded, and no thread of an executor waits for the disk. Strings of pages that are
/// not compressed stay in the map: a decoded batch may hold it as long as the batch lives.
///
/// Clones share the map.
///
/// [`MmapReader`](mmap_io::MmapReader) can be given to the same decoder, if the feature `tokio` of
/// `mmap-io` is on. It copies, since that is what `AsyncRead` does. Decoders that are not async take
/// [`MemoryMappedFile::bytes`] as it is: `Bytes` are parquet's `ChunkReader`.
///
/// # Examples
///
/// ```
/// # use std::sync::Arc;
/// # use arrow_array::{Int64Array, RecordBatch};
/// # futures_lite::future::block_on(async {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("table.parquet");
/// # let numbers = Arc::new(Int64Array::from_iter_values(0..1000));
/// # let batch = RecordBatch::try_from_iter([("number", numbers as _)])?;
/// # let mut writer = parquet::arrow::ArrowWriter::try_new(
/// #     std::fs::File::create(&path)?, batch.schema(), None)?;
/// # writer.write(&batch)?;
/// # writer.close()?;
/// use futures_lite::StreamExt;
/// use mmap_io_object_store::MappedParquet;
/// use parquet::arrow::ParquetRecordBatchStreamBuilder;
///
/// let file = MappedParquet::open(&path).await?;
/// let mut batches = ParquetRecordBatchStreamBuilder::new(file).await?.build()?;
/// let mut rows = 0;
/// while let Some(batch) = batches.next().await {
///     rows += batch?.num_rows();
/// }
/// assert_eq!(rows, 1000);
/// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
// Not an `AsyncRead`: parquet implements the trait for every type that is one, by copies.
#[derive(Clone, Debug)]
pub struct MappedParquet {
    file: MemoryMappedFile,
}

impl MappedParquet {
    /// Reads a file that is mapped.
    pub fn new(file: MemoryMappedFile) -> Self {
        Self { file }
    }

    /// Maps a file for reading.
    ///
    /// # Errors
    ///
    /// Those of [`open_ro`](MemoryMappedFile::open_ro). The content is looked at when it is read.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind.
    pub async fn open(path: impl AsRef<Path>) -> mmap_io::Result<Self> {
        Ok(Self::new(MemoryMappedFile::open_ro(path).await?))
    }

    /// Returns the mapped file.
    pub fn file(&self) -> &MemoryMappedFile {
        &self.file
    }
}

impl AsyncFileReader for MappedParquet {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        Box::pin(async move {
            check(&range)?;
            let read = self.file.read_bytes(range.start, range.end - range.start);
            read.await.map_err(external)
        })
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        Box::pin(async move {
            ranges.iter().try_for_each(check)?;
            let read = ranges::read(&self.file, &ranges, |bytes| bytes);
            read.await.map_err(external)
        })
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>>> {
        Box::pin(async move {
            let len = self.file.len();
            let reader = ParquetMetaDataReader::new().with_arrow_reader_options(options);
            Ok(Arc::new(reader.load_and_finish(self, len).await?))
        })
    }
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A damaged file may lead the decoder to any range.
fn check(range: &Range<u64>) -> Result<()> {
    match range.start <= range.end {
        true => Ok(()),
        false => Err(ParquetError::General(format!(
            "the range {range:?} ends before it starts"
        ))),
    }
}

fn external(error: MmapIoError) -> ParquetError {
    ParquetError::External(Box::new(error))
}
