//! Readers and streams under the decoders that programs put on top of them: gzip, lines, and
//! copying, of futures-io and of tokio. Each gives what the same decoder, or none, gives of plain
//! bytes. What could break: the end of the input, and a poll that is pending in the middle of a
//! frame.

use std::path::Path;

use async_compression::futures::bufread as futures_gzip;
use async_compression::tokio::bufread as tokio_gzip;
use futures_lite::{AsyncReadExt, StreamExt};
use mmap_io::MemoryMappedFile;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;

use crate::common::{on_a_disk, rt_test};

/// Lines of different lengths, packed longer than what a reader buffers. The last one has no end.
fn text() -> String {
    let mut text = String::new();
    for line in 0..4_000_u64 {
        let word = |seed: u64| (line + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let (first, second, third) = (word(1), word(1 << 20), word(1 << 40));
        let end = "+".repeat(first as usize % 40);
        text += &format!("{line} {first:x} {second:x} {third:x}{end}\n");
    }
    text + "the last line"
}

async fn gzip(data: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    let mut encoder = futures_gzip::GzipEncoder::new(data);
    encoder.read_to_end(&mut packed).await.unwrap();
    packed
}

/// Handles on a file of that content: of both kinds, each with pages that are in memory and with
/// pages that have to be read in.
async fn handles(dir: &Path, content: &[u8]) -> Vec<MemoryMappedFile> {
    let mut handles = Vec::new();
    for (number, is_cold) in [false, true].into_iter().enumerate() {
        let path = dir.join(number.to_string());
        let file = MemoryMappedFile::create_rw(&path, content.len() as u64).await;
        let file = file.unwrap();
        file.update_region(0, content).await.unwrap();
        if is_cold {
            file.evict(0, content.len() as u64).await.unwrap();
        }
        handles.push(MemoryMappedFile::open_ro(&path).await.unwrap());
        handles.push(file);
    }
    handles
}

rt_test!(gzip_of_futures_io, |_dir| {
    let dir = on_a_disk();
    let text = text();
    let packed = gzip(text.as_bytes()).await;
    assert!(packed.len() > 64 << 10, "one buffer holds all of it");
    for file in handles(dir.path(), &packed).await {
        let mut plain = String::new();
        let mut decoder = futures_gzip::GzipDecoder::new(file.reader());
        decoder.read_to_string(&mut plain).await.unwrap();
        assert!(plain == text);
        assert_eq!(file.stats().views, 0);
    }
});

rt_test!(gzip_members_at_an_offset, |_dir| {
    let dir = on_a_disk();
    let (first, second) = (text(), "in a second member".repeat(1000));
    let mut content = b"no part of it".to_vec();
    let start = content.len() as u64;
    content.extend(gzip(first.as_bytes()).await);
    let middle = content.len() as u64;
    content.extend(gzip(second.as_bytes()).await);
    for file in handles(dir.path(), &content).await {
        for (from, expected) in [(start, first.clone() + &second), (middle, second.clone())] {
            let mut decoder = futures_gzip::GzipDecoder::new(file.reader_range(from..).unwrap());
            decoder.multiple_members(true);
            let mut plain = String::new();
            decoder.read_to_string(&mut plain).await.unwrap();
            assert!(plain == expected);
        }
        // What is cut off is an error, as it is of plain bytes.
        let cut = file.reader_range(start..middle - 1).unwrap();
        let mut decoder = futures_gzip::GzipDecoder::new(cut);
        let error = decoder.read_to_end(&mut Vec::new()).await.unwrap_err();
        let plain = &content[start as usize..middle as usize - 1];
        let mut decoder = futures_gzip::GzipDecoder::new(plain);
        let expected = decoder.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), expected.kind());
    }
});

rt_test!(gzip_of_a_stream, |_dir| {
    use tokio::io::AsyncReadExt;
    let dir = on_a_disk();
    let text = text();
    let packed = gzip(text.as_bytes()).await;
    for file in handles(dir.path(), &packed).await {
        for chunk in [1000, 1 << 20] {
            let stream = file.stream(.., chunk).unwrap();
            let mut decoder = tokio_gzip::GzipDecoder::new(StreamReader::new(stream));
            let mut plain = String::new();
            decoder.read_to_string(&mut plain).await.unwrap();
            assert!(plain == text);
        }
        assert_eq!(file.stats().views, 0);
    }
});

rt_test!(lines_of_a_stream, |_dir| {
    let dir = on_a_disk();
    let text = text();
    for file in handles(dir.path(), text.as_bytes()).await {
        for chunk in [777, 70_000] {
            let stream = StreamReader::new(file.stream(.., chunk).unwrap());
            let lines = FramedRead::new(stream, LinesCodec::new());
            let lines: Vec<String> = lines.map(Result::unwrap).collect().await;
            assert!(lines.iter().eq(text.lines()));
        }
    }
});

rt_test!(copy_of_futures_lite, |_dir| {
    let dir = on_a_disk();
    let text = text();
    for file in handles(dir.path(), text.as_bytes()).await {
        let mut copied = Vec::new();
        let len = futures_lite::io::copy(file.reader(), &mut copied).await;
        assert_eq!(len.unwrap(), text.len() as u64);
        assert!(copied == text.as_bytes());
        // A reader at the end has no more, and one that was set back has the rest.
        let mut reader = file.reader();
        for (position, left) in [(text.len() as u64, 0), (text.len() as u64 - 9, 9)] {
            reader.set_position(position);
            let len = futures_lite::io::copy(&mut reader, &mut copied).await;
            assert_eq!(len.unwrap(), left);
        }
    }
});

#[cfg(feature = "tokio")]
mod of_tokio {
    use std::io::SeekFrom;

    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt};

    use super::*;

    rt_test!(gzip_of_tokio, |_dir| {
        let dir = on_a_disk();
        let text = text();
        let packed = gzip(text.as_bytes()).await;
        for file in handles(dir.path(), &packed).await {
            let mut plain = String::new();
            let mut decoder = tokio_gzip::GzipDecoder::new(file.reader());
            decoder.read_to_string(&mut plain).await.unwrap();
            assert!(plain == text);
            assert_eq!(file.stats().views, 0);
        }
    });

    rt_test!(framed_lines, |_dir| {
        let dir = on_a_disk();
        let text = text();
        for file in handles(dir.path(), text.as_bytes()).await {
            let lines = FramedRead::new(file.reader(), LinesCodec::new());
            let lines: Vec<String> = lines.map(Result::unwrap).collect().await;
            assert!(lines.iter().eq(text.lines()));
            // A codec reads into its own buffer, and may ask for little.
            let half = text.len() as u64 / 2;
            let reader = file.reader_range(half..).unwrap();
            let lines = FramedRead::with_capacity(reader, LinesCodec::new(), 7);
            let lines: Vec<String> = lines.map(Result::unwrap).collect().await;
            assert!(lines.iter().eq(text[half as usize..].lines()));
            assert_eq!(file.stats().views, 0);
        }
    });

    rt_test!(buffered_copy, |_dir| {
        let dir = on_a_disk();
        let text = text();
        for file in handles(dir.path(), text.as_bytes()).await {
            let mut copied = Vec::new();
            let mut reader = file.reader();
            let len = tokio::io::copy_buf(&mut reader, &mut copied).await;
            assert_eq!(len.unwrap(), text.len() as u64);
            assert!(copied == text.as_bytes());
            assert_eq!(reader.position(), text.len() as u64);
            copied.clear();
            let mut reader = file.reader_range(100..70_000).unwrap();
            let len = tokio::io::copy(&mut reader, &mut copied).await;
            assert_eq!(len.unwrap(), 69_900);
            assert!(copied == text.as_bytes()[100..70_000]);
        }
    });

    rt_test!(seek_and_lines, |_dir| {
        let dir = on_a_disk();
        let text = text();
        for file in handles(dir.path(), text.as_bytes()).await {
            let mut reader = file.reader();
            for to in [
                SeekFrom::End(-1000),
                SeekFrom::Start(77),
                SeekFrom::Current(50_000),
            ] {
                let at = reader.seek(to).await.unwrap() as usize;
                let expected = text[at..].split_inclusive('\n').next().unwrap();
                let mut line = String::new();
                reader.read_line(&mut line).await.unwrap();
                assert_eq!(line, expected);
                assert_eq!(reader.position(), (at + line.len()) as u64);
            }
        }
    });
}
