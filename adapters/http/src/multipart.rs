//! Several ranges in one body: `multipart/byteranges` (RFC 9110, section 14.6).

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;

use bytes::Bytes;
use http::HeaderValue;

/// What a body consists of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Text(Bytes),
    /// Bytes of the file.
    Range(Range<u64>),
}

impl Piece {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Range(range) => range.end - range.start,
        }
    }
}

/// A body of several ranges, and its headers.
#[derive(Debug)]
pub(crate) struct Multipart {
    pub(crate) content_type: HeaderValue,
    pub(crate) len: u64,
    pub(crate) pieces: Vec<Piece>,
}

impl Multipart {
    /// Lays the ranges out, of a file of `len` bytes and a content type. `None` if that would be no
    /// shorter than the file.
    pub(crate) fn new(ranges: &[Range<u64>], len: u64, content_type: &HeaderValue) -> Option<Self> {
        let boundary = boundary();
        let mut pieces = Vec::with_capacity(2 * ranges.len() + 1);
        for range in ranges {
            let mut header = Vec::with_capacity(160);
            if !pieces.is_empty() {
                header.extend_from_slice(b"\r\n");
            }
            header.extend_from_slice(format!("--{boundary}\r\nContent-Type: ").as_bytes());
            header.extend_from_slice(content_type.as_bytes());
            let (first, last) = (range.start, range.end - 1);
            let content_range = format!("\r\nContent-Range: bytes {first}-{last}/{len}\r\n\r\n");
            header.extend_from_slice(content_range.as_bytes());
            pieces.push(Piece::Text(header.into()));
            pieces.push(Piece::Range(range.clone()));
        }
        pieces.push(Piece::Text(format!("\r\n--{boundary}--\r\n").into()));
        let total = pieces.iter().map(Piece::len).sum();
        let content_type = format!("multipart/byteranges; boundary={boundary}");
        (total < len).then(|| Self {
            content_type: HeaderValue::try_from(content_type).expect("hexadecimal digits"),
            len: total,
            pieces,
        })
    }
}

/// A boundary that no file contains unless by chance: 128 bits that a client cannot know before.
fn boundary() -> String {
    static SECRET: OnceLock<[RandomState; 2]> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let [low, high] = SECRET.get_or_init(|| [RandomState::new(), RandomState::new()]);
    // Relaxed: only that the numbers differ.
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{:016x}{:016x}", low.hash_one(count), high.hash_one(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_and_length() {
        let text = HeaderValue::from_static("text/plain");
        let multipart = Multipart::new(&[0..5, 900..1000], 1000, &text).unwrap();
        let content_type = multipart.content_type.to_str().unwrap();
        let boundary = content_type
            .strip_prefix("multipart/byteranges; boundary=")
            .unwrap();
        let piece = |text: String| Piece::Text(text.into());
        let first = "Content-Type: text/plain\r\nContent-Range: bytes 0-4/1000\r\n\r\n";
        let second = "Content-Type: text/plain\r\nContent-Range: bytes 900-999/1000\r\n\r\n";
        let expected = [
            piece(format!("--{boundary}\r\n{first}")),
            Piece::Range(0..5),
            piece(format!("\r\n--{boundary}\r\n{second}")),
            Piece::Range(900..1000),
            piece(format!("\r\n--{boundary}--\r\n")),
        ];
        assert_eq!(multipart.pieces, expected);
        assert_eq!(multipart.len, expected.iter().map(Piece::len).sum::<u64>());
    }

    #[test]
    fn never_longer_than_the_file() {
        let text = HeaderValue::from_static("text/plain");
        assert!(Multipart::new(&[0..1, 2..3], 100, &text).is_none());
        assert!(Multipart::new(&[0..500, 500..1000], 1000, &text).is_none());
    }

    #[test]
    fn boundaries_differ() {
        assert_ne!(boundary(), boundary());
    }
}
