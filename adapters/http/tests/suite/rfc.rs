//! RFC 9110 as a table: what a request with these headers gets. `oracle.rs` runs the same table
//! against another implementation.

use mmap_io_http::{MappedDir, MappedFile};

use crate::client::{get, request, Answer};
use crate::server::boxed;
use crate::{both, modified, pattern, settled};

pub(crate) const LEN: usize = 1000;

/// The dates of the headers: of the file, and before and after it.
pub(crate) const DATE: &str = "Sun, 09 Sep 2001 01:46:40 GMT";
pub(crate) const BEFORE: &str = "Sun, 09 Sep 2001 01:46:39 GMT";
pub(crate) const AFTER: &str = "Sun, 09 Sep 2001 01:46:41 GMT";

/// What a request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gets {
    Whole,
    /// These bytes, the last one included.
    Range(usize, usize),
    /// Several of them.
    Parts(&'static [(usize, usize)]),
    NotModified,
    Failed,
    Unsatisfiable,
}

/// What the oracle does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Oracle {
    Agrees,
    /// It has another answer, for a reason.
    Differs(&'static str),
}

pub(crate) struct Case {
    pub(crate) headers: &'static [(&'static str, &'static str)],
    pub(crate) gets: Gets,
    pub(crate) oracle: Oracle,
}

use Gets::{Failed, NotModified, Parts, Range, Unsatisfiable, Whole};
use Oracle::{Agrees, Differs};

const fn case(headers: &'static [(&'static str, &'static str)], gets: Gets) -> Case {
    Case {
        headers,
        gets,
        oracle: Agrees,
    }
}

const fn unlike(
    reason: &'static str,
    headers: &'static [(&'static str, &'static str)],
    gets: Gets,
) -> Case {
    Case {
        headers,
        gets,
        oracle: Differs(reason),
    }
}

const MALFORMED_DATE: &str = "it answers 400 to a malformed date, which section 5.6.7 has ignored";
const MALFORMED_TAG: &str = "it answers 400 to a malformed tag";
const BOTH_DATES: &str = "it looks at If-Unmodified-Since although there is an If-Match";

/// `{tag}` stands for the tag of the file, `{bare}` for what is between its quotes.
pub(crate) const CASES: &[Case] = &[
    case(&[], Whole),
    // Section 14: ranges.
    case(&[("range", "bytes=0-0")], Range(0, 0)),
    case(&[("range", "bytes=10-19")], Range(10, 19)),
    case(&[("range", "bytes=990-")], Range(990, 999)),
    case(&[("range", "bytes=990-5000")], Range(990, 999)),
    case(&[("range", "bytes=-10")], Range(990, 999)),
    unlike(
        "it has no suffix longer than the file",
        &[("range", "bytes=-5000")],
        Range(0, 999),
    ),
    case(&[("range", "bytes=0-")], Range(0, 999)),
    case(&[("range", "bytes=1000-")], Unsatisfiable),
    case(&[("range", "bytes=5000-6000")], Unsatisfiable),
    unlike(
        "it sends 1000 to 999",
        &[("range", "bytes=-0")],
        Unsatisfiable,
    ),
    unlike(
        "it answers 416, which section 14.2 permits",
        &[("range", "bytes=20-10")],
        Whole,
    ),
    case(&[("range", "bytes=a-b")], Whole),
    case(&[("range", "lines=0-1")], Whole),
    case(&[("range", "bytes=")], Whole),
    unlike(
        "it ignores a unit in capitals",
        &[("range", "Bytes=1-2")],
        Range(1, 2),
    ),
    unlike(
        "it takes the first",
        &[("range", "bytes=1-2"), ("range", "bytes=3-4")],
        Whole,
    ),
    // Section 14.6: several ranges.
    case(&[("range", "bytes=0-9,20-29")], Parts(&[(0, 9), (20, 29)])),
    case(
        &[("range", "bytes=20-29, -10, 0-9")],
        Parts(&[(20, 29), (990, 999), (0, 9)]),
    ),
    case(&[("range", "bytes=0-9,5000-")], Range(0, 9)),
    case(&[("range", "bytes=1000-1001,5000-")], Unsatisfiable),
    // No shorter than the file itself.
    case(&[("range", "bytes=0-499,500-999")], Whole),
    unlike(
        "it sends bytes twice",
        &[("range", "bytes=0-9,5-14")],
        Whole,
    ),
    // Section 13.1.1 and 13.1.2: tags.
    case(&[("if-match", "*")], Whole),
    case(&[("if-match", "{tag}")], Whole),
    case(&[("if-match", "\"other\", {tag}")], Whole),
    case(&[("if-match", "\"other\"")], Failed),
    case(&[("if-match", "W/{tag}")], Failed),
    unlike(MALFORMED_TAG, &[("if-match", "{bare}")], Failed),
    case(&[("if-none-match", "*")], NotModified),
    case(&[("if-none-match", "{tag}")], NotModified),
    case(&[("if-none-match", "W/{tag}")], NotModified),
    unlike(
        "it takes a blank before a comma for the end",
        &[("if-none-match", "\"a,b\",\"other\" , {tag}")],
        NotModified,
    ),
    case(
        &[("if-none-match", "\"a,b\", \"other\", {tag}")],
        NotModified,
    ),
    case(&[("if-none-match", "\"other\"")], Whole),
    case(&[("if-none-match", "{bare}")], Whole),
    // Section 13.1.3 and 13.1.4: dates.
    case(&[("if-modified-since", DATE)], NotModified),
    case(&[("if-modified-since", AFTER)], NotModified),
    case(&[("if-modified-since", BEFORE)], Whole),
    unlike(MALFORMED_DATE, &[("if-modified-since", "yesterday")], Whole),
    case(&[("if-unmodified-since", DATE)], Whole),
    case(&[("if-unmodified-since", AFTER)], Whole),
    case(&[("if-unmodified-since", BEFORE)], Failed),
    unlike(
        MALFORMED_DATE,
        &[("if-unmodified-since", "yesterday")],
        Whole,
    ),
    // The two other forms of a date (section 5.6.7).
    case(
        &[("if-modified-since", "Sunday, 09-Sep-01 01:46:40 GMT")],
        NotModified,
    ),
    case(
        &[("if-modified-since", "Sun Sep  9 01:46:40 2001")],
        NotModified,
    ),
    // Section 13.2.2: which goes first.
    unlike(
        BOTH_DATES,
        &[("if-match", "{tag}"), ("if-unmodified-since", BEFORE)],
        Whole,
    ),
    case(
        &[("if-match", "\"other\""), ("if-none-match", "{tag}")],
        Failed,
    ),
    case(
        &[("if-match", "{tag}"), ("if-none-match", "{tag}")],
        NotModified,
    ),
    case(
        &[("if-none-match", "\"other\""), ("if-modified-since", AFTER)],
        Whole,
    ),
    case(
        &[("if-none-match", "{tag}"), ("if-modified-since", BEFORE)],
        NotModified,
    ),
    case(
        &[("if-unmodified-since", BEFORE), ("if-none-match", "{tag}")],
        Failed,
    ),
    case(
        &[("if-none-match", "{tag}"), ("range", "bytes=0-9")],
        NotModified,
    ),
    case(&[("if-match", "\"other\""), ("range", "bytes=0-9")], Failed),
    case(
        &[("if-match", "{tag}"), ("range", "bytes=0-9")],
        Range(0, 9),
    ),
    case(
        &[("if-none-match", "{tag}"), ("range", "bytes=5000-")],
        NotModified,
    ),
    // Section 13.1.5: If-Range.
    case(
        &[("if-range", "{tag}"), ("range", "bytes=500-")],
        Range(500, 999),
    ),
    case(&[("if-range", "\"other\""), ("range", "bytes=500-")], Whole),
    case(&[("if-range", "W/{tag}"), ("range", "bytes=500-")], Whole),
    case(
        &[("if-range", "\"other\""), ("range", "bytes=5000-")],
        Whole,
    ),
    case(&[("if-range", DATE), ("range", "bytes=500-")], Whole),
    case(&[("if-range", AFTER), ("range", "bytes=500-")], Whole),
    case(
        &[("if-range", "{tag}, {tag}"), ("range", "bytes=500-")],
        Whole,
    ),
    case(
        &[("if-range", "{tag}"), ("range", "bytes=0-499,500-999")],
        Whole,
    ),
    case(&[("if-range", "{tag}")], Whole),
    case(
        &[("if-range", "{tag}"), ("range", "bytes=0-9,20-29")],
        Parts(&[(0, 9), (20, 29)]),
    ),
];

/// The headers of a case, for the file whose tag this is.
pub(crate) fn headers(case: &Case, tag: &str) -> Vec<(&'static str, String)> {
    let value = |value: &str| {
        let value = value.replace("{tag}", tag);
        value.replace("{bare}", tag.trim_matches('"'))
    };
    case.headers
        .iter()
        .map(|(name, text)| (*name, value(text)))
        .collect()
}

/// What an answer amounts to. Panics if it contradicts itself.
pub(crate) fn gets(answer: &Answer) -> Gets {
    let content = pattern(LEN);
    let status = answer.status;
    let content_range = answer.header("content-range");
    match (status, content_range) {
        (200, None) => {
            assert_eq!(answer.body, content);
            Whole
        }
        (206, Some(range)) => {
            let (first, last) = parse(range);
            assert_eq!(answer.body, content[first..=last]);
            Range(first, last)
        }
        (206, None) => {
            let mut ranges = Vec::new();
            for (_, range, part) in answer.parts() {
                let (first, last) = parse(&range);
                assert_eq!(part, content[first..=last]);
                ranges.push((first, last));
            }
            Parts(ranges.leak())
        }
        (304, None) => NotModified,
        (412, None) => Failed,
        (416, Some("bytes */1000")) => Unsatisfiable,
        other => panic!("{other:?}"),
    }
}

fn parse(content_range: &str) -> (usize, usize) {
    let range = content_range.strip_prefix("bytes ").unwrap();
    let (range, len) = range.split_once('/').unwrap();
    assert_eq!(len, LEN.to_string());
    let (first, last) = range.split_once('-').unwrap();
    (first.parse().unwrap(), last.parse().unwrap())
}

both!(table, |start| {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file.txt");
    settled(&path, &pattern(LEN));
    let services = [
        (boxed(MappedDir::new(dir.path())), "/file.txt"),
        (boxed(MappedFile::new(&path)), "/any/path"),
    ];
    for (service, target) in services {
        let server = start(service);
        let first = get(server.address, target, &[]);
        assert_eq!(first.header("content-type"), Some("text/plain"));
        assert_eq!(first.header("accept-ranges"), Some("bytes"));
        assert_eq!(first.header("last-modified"), Some(DATE));
        let tag = first.header("etag").unwrap();
        assert!(tag.starts_with('"'), "{tag}");
        for case in CASES {
            let headers = headers(case, tag);
            let headers: Vec<_> = headers
                .iter()
                .map(|(name, value)| (*name, &**value))
                .collect();
            let answer = get(server.address, target, &headers);
            assert_eq!(gets(&answer), case.gets, "{headers:?}");
            match case.gets {
                NotModified => {
                    assert_eq!(answer.body, b"");
                    assert_eq!(answer.header("etag"), Some(tag));
                    assert_eq!(answer.header("last-modified"), Some(DATE));
                }
                Failed | Unsatisfiable => assert_eq!(answer.body, b""),
                Whole => assert_eq!(answer.header("content-type"), Some("text/plain")),
                Range(..) | Parts(_) => assert_eq!(answer.header("etag"), Some(tag)),
            }
            if !matches!(case.gets, NotModified) {
                assert!(answer.is_whole(), "{headers:?}");
            }
            // Section 15.3.7: a client that resumes has the rest from before.
            if let Range(..) = case.gets {
                let resumes = headers.iter().any(|(name, _)| *name == "if-range");
                assert_eq!(answer.header("content-type").is_none(), resumes);
            }
            // Section 9.3.2 and 14.2: HEAD is GET without a body, and without ranges.
            let head = request(server.address, "HEAD", target, &headers);
            let status = match answer.status {
                206 | 416 => 200,
                status => status,
            };
            assert_eq!(head.status, status, "{headers:?}");
            assert_eq!(head.body, b"");
            if status == 200 {
                assert_eq!(head.header("content-length"), Some("1000"));
                assert_eq!(head.header("etag"), Some(tag));
            }
        }
    }
    assert_eq!(httpdate::fmt_http_date(modified()), DATE);
});

both!(other_methods, |start| {
    let dir = tempfile::tempdir().unwrap();
    settled(&dir.path().join("a"), b"content");
    let server = start(boxed(MappedDir::new(dir.path())));
    for method in [
        "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "OTHER",
    ] {
        let answer = request(server.address, method, "/a", &[("content-length", "0")]);
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    }
});

both!(empty_file, |start| {
    let dir = tempfile::tempdir().unwrap();
    settled(&dir.path().join("empty"), b"");
    let server = start(boxed(MappedDir::new(dir.path())));
    let range = |range: &str| get(server.address, "/empty", &[("range", range)]);
    for (answer, status) in [
        (get(server.address, "/empty", &[]), 200),
        (range("bytes=0-"), 416),
        (range("bytes=-1"), 200),
    ] {
        assert_eq!(answer.status, status);
        assert!(answer.is_whole() && answer.body.is_empty());
    }
    let answer = range("bytes=0-0");
    assert_eq!(answer.header("content-range"), Some("bytes */0"));
});

// A flood of ranges is no reason to send more than the file.
both!(floods_of_ranges, |start| {
    let dir = tempfile::tempdir().unwrap();
    let content = pattern(100_000);
    settled(&dir.path().join("a"), &content);
    let server = start(boxed(MappedDir::new(dir.path())));
    let ranges = |count: usize, step: usize| {
        let ranges: Vec<_> = (0..count).map(|n| format!("{0}-{0}", n * step)).collect();
        let ranges = format!("bytes={}", ranges.join(","));
        get(server.address, "/a", &[("range", &ranges)])
    };
    let some = ranges(64, 2);
    assert_eq!((some.status, some.parts().len()), (206, 64));
    for answer in [ranges(65, 2), ranges(5000, 2), ranges(2, 0)] {
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body, content);
    }
});
