//! A client that sends what it is told, and takes nothing for granted.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The value of a header, which must not stand there twice.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(other, _)| other == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} twice");
        value
    }

    /// Whether the body is as long as its head says.
    pub(crate) fn is_whole(&self) -> bool {
        let len = self
            .header("content-length")
            .map(|len| len.parse().unwrap());
        len == Some(self.body.len())
    }

    /// The parts of a multipart body: content type, content range, content.
    pub(crate) fn parts(&self) -> Vec<(String, String, Vec<u8>)> {
        let content_type = self.header("content-type").unwrap();
        let boundary = content_type
            .strip_prefix("multipart/byteranges; boundary=")
            .unwrap();
        let delimiter = format!("\r\n--{boundary}");
        // The first delimiter stands at the very start.
        let body = [b"\r\n", &self.body[..]].concat();
        let mut pieces = split(&body, delimiter.as_bytes());
        assert_eq!(pieces.remove(0), b"");
        assert_eq!(pieces.pop().unwrap(), b"--\r\n");
        let part = |piece: &[u8]| {
            let piece = piece.strip_prefix(b"\r\n").unwrap();
            let end = find(piece, b"\r\n\r\n").unwrap();
            let headers = headers(std::str::from_utf8(&piece[..end]).unwrap().lines());
            let get = |name: &str| {
                let header = headers.iter().find(|(other, _)| other == name);
                header.map(|(_, value)| value.clone()).unwrap_or_default()
            };
            let content = piece[end + 4..].to_vec();
            (get("content-type"), get("content-range"), content)
        };
        pieces.into_iter().map(part).collect()
    }
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes
        .windows(pattern.len())
        .position(|window| window == pattern)
}

fn split<'a>(mut bytes: &'a [u8], delimiter: &[u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    while let Some(at) = find(bytes, delimiter) {
        pieces.push(&bytes[..at]);
        bytes = &bytes[at + delimiter.len()..];
    }
    pieces.push(bytes);
    pieces
}

fn headers<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<(String, String)> {
    let header = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_ascii_lowercase(), value.to_string())
    };
    lines.map(header).collect()
}

/// Sends the head of a request, with the target as it is.
pub(crate) fn send(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> TcpStream {
    send_on(
        TcpStream::connect(address).unwrap(),
        method,
        target,
        headers,
    )
}

pub(crate) fn send_on(
    mut stream: TcpStream,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> TcpStream {
    // So that a server that hangs fails the test.
    let timeout = Some(Duration::from_secs(60));
    stream.set_read_timeout(timeout).unwrap();
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    stream
}

/// Reads a response to its end, or to where the server cuts it.
pub(crate) fn receive(mut stream: TcpStream) -> Answer {
    let mut answer = Vec::new();
    // A server that ends a body with an error may reset the connection.
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
    let end = find(&answer, b"\r\n\r\n").expect("a head");
    let head = std::str::from_utf8(&answer[..end]).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    Answer {
        status: status.parse().unwrap(),
        headers: headers(lines),
        body: answer[end + 4..].to_vec(),
    }
}

pub(crate) fn request(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Answer {
    receive(send(address, method, target, headers))
}

pub(crate) fn get(address: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Answer {
    request(address, "GET", target, headers)
}
