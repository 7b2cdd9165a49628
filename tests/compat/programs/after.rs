// A log of records that grows as it is written, is made durable, and is read back.

use std::path::Path;

use mmap_io::flush::FlushPolicy;
use mmap_io::{delete_mmap, MemoryMappedFile, MmapIoError, MmapMode};

const HEADER: u64 = 8;

struct Log {
    file: MemoryMappedFile,
    end: u64,
}

impl Log {
    async fn create(path: &Path) -> Result<Self, MmapIoError> {
        let file = MemoryMappedFile::builder(path)
            .mode(MmapMode::ReadWrite)
            .size(4096)
            .flush_policy(FlushPolicy::EveryBytes(64 << 10))
            .create()
            .await?;
        Ok(Self { file, end: HEADER })
    }

    async fn append(&mut self, record: &[u8]) -> Result<(), MmapIoError> {
        let end = self.end + 4 + record.len() as u64;
        if end > self.file.len() {
            self.file.resize(end.next_multiple_of(64 << 10)).await?;
        }
        let len = record.len() as u32;
        // One operation: a reader sees both or neither.
        self.file
            .update_regions(&[(self.end, &len.to_le_bytes()), (self.end + 4, record)])
            .await?;
        self.end = end;
        Ok(())
    }

    async fn commit(&self) -> Result<(), MmapIoError> {
        let mut header = self.file.as_slice_mut(0, HEADER).await?;
        header.as_mut().copy_from_slice(&self.end.to_le_bytes());
        // Without this, the flush would not cover the header.
        drop(header);
        self.file.flush().await
    }

    async fn records(&self) -> Result<Vec<String>, MmapIoError> {
        let (mut records, mut at) = (Vec::new(), HEADER);
        while at < self.end {
            let mut len = [0; 4];
            self.file.read_into(at, &mut len).await?;
            let len = u64::from(u32::from_le_bytes(len));
            // `as_slice` would do as well, and could wait for the disk on this thread.
            let record = self.file.slice(at + 4, len).await?;
            records.push(String::from_utf8_lossy(&record).into_owned());
            at += 4 + len;
        }
        Ok(records)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), MmapIoError> {
    let path = std::env::temp_dir().join(format!("log-{}", std::process::id()));
    let mut log = Log::create(&path).await?;
    for number in 0..1000 {
        log.append(format!("record number {number}").as_bytes()).await?;
    }
    log.commit().await?;
    let records = log.records().await?;
    assert_eq!(records[999], "record number 999");
    println!("{} records in {} bytes", records.len(), log.end);
    log.file.close().await?; // A drop would report no error.
    delete_mmap(&path).await
}
