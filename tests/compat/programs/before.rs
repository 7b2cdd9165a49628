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
    fn create(path: &Path) -> Result<Self, MmapIoError> {
        let file = MemoryMappedFile::builder(path)
            .mode(MmapMode::ReadWrite)
            .size(4096)
            .flush_policy(FlushPolicy::EveryBytes(64 << 10))
            .create()?;
        Ok(Self { file, end: HEADER })
    }

    fn append(&mut self, record: &[u8]) -> Result<(), MmapIoError> {
        let end = self.end + 4 + record.len() as u64;
        if end > self.file.len() {
            self.file.resize(end.next_multiple_of(64 << 10))?;
        }
        let len = record.len() as u32;
        self.file.update_region(self.end, &len.to_le_bytes())?;
        self.file.update_region(self.end + 4, record)?;
        self.end = end;
        Ok(())
    }

    fn commit(&self) -> Result<(), MmapIoError> {
        let mut header = self.file.as_slice_mut(0, HEADER)?;
        header.as_mut().copy_from_slice(&self.end.to_le_bytes());
        drop(header);
        self.file.flush()
    }

    fn records(&self) -> Result<Vec<String>, MmapIoError> {
        let (mut records, mut at) = (Vec::new(), HEADER);
        while at < self.end {
            let mut len = [0; 4];
            self.file.read_into(at, &mut len)?;
            let len = u64::from(u32::from_le_bytes(len));
            let record = self.file.as_slice(at + 4, len)?;
            records.push(String::from_utf8_lossy(&record).into_owned());
            at += 4 + len;
        }
        Ok(records)
    }
}

fn main() -> Result<(), MmapIoError> {
    let path = std::env::temp_dir().join(format!("log-{}", std::process::id()));
    let mut log = Log::create(&path)?;
    for number in 0..1000 {
        log.append(format!("record number {number}").as_bytes())?;
    }
    log.commit()?;
    let records = log.records()?;
    assert_eq!(records[999], "record number 999");
    println!("{} records in {} bytes", records.len(), log.end);
    delete_mmap(&path)
}
