//! The table of `rfc.rs` against `http-serve`, which serves ranges and conditions as well.

use std::ops::Range;
use std::pin::Pin;
use std::time::SystemTime;

use bytes::Bytes;
use futures_lite::{stream, Stream};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use http_serve::{BoxError, Entity};

use crate::rfc::{headers, Gets, Oracle, CASES, LEN};
use crate::{modified, pattern};

const TAG: &str = "\"tag\"";

struct File;

impl Entity for File {
    type Error = BoxError;
    type Data = Bytes;

    fn len(&self) -> u64 {
        LEN as u64
    }

    fn get_range(
        &self,
        range: Range<u64>,
    ) -> Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send + Sync>> {
        let content = Bytes::from(pattern(LEN));
        let part = content.slice(range.start as usize..range.end as usize);
        Box::pin(stream::once(Ok(part)))
    }

    fn add_headers(&self, headers: &mut HeaderMap) {
        headers.insert("content-type", HeaderValue::from_static("text/plain"));
    }

    fn etag(&self) -> Option<HeaderValue> {
        Some(HeaderValue::from_static(TAG))
    }

    fn last_modified(&self) -> Option<SystemTime> {
        Some(modified())
    }
}

/// What the oracle's answer amounts to; `None` for a 400.
fn gets(response: Response<http_serve::Body>) -> Option<Gets> {
    let (head, body) = response.into_parts();
    let body = futures_lite::future::block_on(body.collect())
        .unwrap()
        .to_bytes();
    let header = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap());
    let parse = |range: &str| {
        let (range, _) = range
            .strip_prefix("bytes ")
            .unwrap()
            .split_once('/')
            .unwrap();
        let (first, last) = range.split_once('-').unwrap();
        (first.parse().unwrap(), last.parse().unwrap())
    };
    Some(match (head.status.as_u16(), header("content-range")) {
        (200, None) => Gets::Whole,
        (206, Some(range)) => {
            let (first, last) = parse(range);
            Gets::Range(first, last)
        }
        (206, None) => {
            let body = String::from_utf8_lossy(&body).into_owned();
            let lines = body.split("\r\n");
            let ranges = lines.filter_map(|line| line.strip_prefix("Content-Range: "));
            Gets::Parts(ranges.map(parse).collect::<Vec<_>>().leak())
        }
        (304, None) => Gets::NotModified,
        (400, None) => return None,
        (412, None) => Gets::Failed,
        (416, Some(_)) => Gets::Unsatisfiable,
        other => panic!("{other:?}"),
    })
}

#[test]
fn agrees_with_http_serve() {
    let mut surprises = Vec::new();
    for case in CASES {
        let mut request = Request::get("/");
        for (name, value) in headers(case, TAG) {
            request = request.header(name, value);
        }
        let request = request.body(()).unwrap();
        let answer = gets(http_serve::serve(File, &request));
        let agrees = answer == Some(case.gets);
        if agrees != (case.oracle == Oracle::Agrees) {
            surprises.push((case.headers, answer));
        }
    }
    assert!(surprises.is_empty(), "{surprises:#?}");
}
