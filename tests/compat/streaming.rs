//! Streams, bodies and readers.

use std::io::{ErrorKind, SeekFrom};

use bytes::Bytes;
use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, Stream, StreamExt};
use http_body::Body;
use http_body_util::BodyExt;
use mmap_io::{MmapBody, MmapReader, MmapStream};

use crate::common::pattern;
use crate::{assert_outside, block_on, Rig, LEN};

#[test]
fn stream() {
    block_on(async {
        let rig = Rig::new().await;
        for file in rig.all() {
            let mut stream: MmapStream = file.stream(.., 4096).unwrap();
            assert_eq!(
                (stream.remaining(), stream.size_hint()),
                (LEN, (1, Some(3)))
            );
            let first: Bytes = stream.next().await.unwrap().unwrap();
            assert_eq!((first.len(), stream.remaining()), (4096, LEN - 4096));
            // It owns a handle, and a piece is the mapping itself.
            assert_eq!(first.as_ptr(), file.as_slice(0, 1).unwrap().as_ptr());
            let rest: Vec<Bytes> = stream.map(Result::unwrap).collect().await;
            let whole = [vec![first], rest].concat().concat();
            assert!(whole == pattern(LEN as usize));

            // Every way to write a range; nothing is clamped.
            for (stream, expected) in [
                (file.stream(5..7, 10), &[5, 6][..]),
                (file.stream(5..=7, 10), &[5, 6, 7]),
                (file.stream(..2, 10), &[0, 1]),
                (file.stream(LEN..LEN, 10), &[]),
                (file.stream(LEN + 1..LEN + 1, 10), &[]),
                (file.stream(u64::MAX..u64::MAX, 10), &[]),
            ] {
                let pieces: Vec<Bytes> = stream.unwrap().map(Result::unwrap).collect().await;
                assert_eq!(pieces.concat(), expected);
            }
            assert_outside(file.stream(..LEN + 1, 10), (0, LEN + 1), LEN);
            assert_outside(file.stream(LEN..LEN + 1, 10), (LEN, 1), LEN);
            // To the end of the file, in which it has to begin.
            assert_outside(file.stream(LEN + 1.., 10), (LEN + 1, 0), LEN);
        }
        let no_chunk = || rig.file.stream(.., 0).map(drop);
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(no_chunk)).is_err());
    });
}

#[test]
fn drop_behind() {
    block_on(async {
        let rig = Rig::new().await;
        for drop_behind in [false, true] {
            // Nothing is lost, whatever leaves memory.
            let stream = rig.reader.stream(.., 1000).unwrap();
            let stream = stream.drop_behind(drop_behind);
            let pieces: Vec<Bytes> = stream.map(Result::unwrap).collect().await;
            assert!(pieces.concat() == pattern(LEN as usize));
            let body = rig.reader.body(..).unwrap().drop_behind(drop_behind);
            let sent = body.collect().await.unwrap().to_bytes();
            assert!(sent == pattern(LEN as usize));
        }
    });
}

#[test]
fn body() {
    block_on(async {
        let rig = Rig::new().await;
        for file in rig.all() {
            let body: MmapBody = file.body(5..LEN).unwrap();
            assert_eq!(body.size_hint().exact(), Some(LEN - 5));
            assert!(!body.is_end_stream());
            let sent = body.collect().await.unwrap().to_bytes();
            assert!(sent == pattern(LEN as usize)[5..]);
            assert!(file.body(LEN..).unwrap().is_end_stream());
            assert!(file.body(LEN + 9..LEN + 9).unwrap().is_end_stream());
            assert_outside(file.body(..=LEN), (0, LEN + 1), LEN);
        }
    });
}

#[test]
fn reader() {
    block_on(async {
        let rig = Rig::new().await;
        for file in rig.all() {
            let mut reader: MmapReader = file.reader();
            let mut all = Vec::new();
            reader.read_to_end(&mut all).await.unwrap();
            assert!(all == pattern(LEN as usize));
            assert_eq!(reader.position(), LEN);
            assert_eq!(reader.read(&mut [0; 5]).await.unwrap(), 0);
            // An idle reader holds no lease, whatever it has lent.
            let mut reader = file.reader();
            let lent = reader.fill_buf().await.unwrap().len();
            assert_eq!((lent as u64, reader.position()), (LEN, 0));
            reader.consume(lent);
            assert_eq!((reader.position(), file.stats().views), (LEN, 0));
        }
        // On a writable handle it lends a copy, for which no write waits.
        let mut reader = rig.file.reader();
        assert_eq!(reader.fill_buf().await.unwrap()[..2], [0, 1]);
        rig.file.update_region(0, b"xx").await.unwrap();
        assert_eq!(reader.fill_buf().await.unwrap()[..2], [0, 1]);
        // It reads under an atomic view.
        let _word = rig.file.atomic_u32(0).unwrap();
        let mut word = [0; 4];
        rig.reader.reader().read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"xx\x02\x03");
    });
}

#[test]
fn reader_range() {
    block_on(async {
        let rig = Rig::new().await;
        for file in rig.all() {
            let mut reader = file.reader_range(5..8).unwrap();
            let mut all = Vec::new();
            reader.read_to_end(&mut all).await.unwrap();
            assert_eq!((all, reader.position()), (vec![5, 6, 7], 3));
            assert_outside(file.reader_range(LEN - 1..LEN + 1), (LEN - 1, 2), LEN);
            assert!(file.reader_range(LEN..).is_ok());
            let mut none = file.reader_range(LEN + 9..LEN + 9).unwrap();
            assert_eq!(none.read(&mut [0]).await.unwrap(), 0);
        }
    });
}

#[test]
fn position() {
    block_on(async {
        let rig = Rig::new().await;
        // As a `Cursor`: any position may be set, and there is nothing past the end.
        let mut reader = rig.reader.reader_range(100..200).unwrap();
        let mut byte = [0];
        reader.set_position(50);
        reader.read_exact(&mut byte).await.unwrap();
        assert_eq!((byte, reader.position()), ([150], 51));
        reader.set_position(u64::MAX);
        assert_eq!(reader.read(&mut byte).await.unwrap(), 0);
        assert_eq!(reader.position(), u64::MAX);

        assert_eq!(reader.seek(SeekFrom::End(-1)).await.unwrap(), 99);
        assert_eq!(reader.seek(SeekFrom::Current(-9)).await.unwrap(), 90);
        for to in [SeekFrom::Current(-91), SeekFrom::End(i64::MIN)] {
            let error = reader.seek(to).await.unwrap_err();
            assert_eq!(
                (error.kind(), reader.position()),
                (ErrorKind::InvalidInput, 90)
            );
        }
        // The traits of tokio do the same.
        let to = tokio::io::AsyncSeekExt::seek(&mut reader, SeekFrom::Start(7));
        assert_eq!(to.await.unwrap(), 7);
        assert_eq!(
            tokio::io::AsyncReadExt::read_u8(&mut reader).await.unwrap(),
            107
        );
    });
}
