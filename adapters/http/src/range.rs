//! The `Range` header: parsed, bounded, and resolved against a length (RFC 9110, section 14).

use std::ops::Range;

/// Most ranges of one request. A request with more of them gets the whole file.
const MAX_RANGES: usize = 64;

/// What a `Range` header asks for, of a file of a known length.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Requested {
    /// The whole file: there is no header, or it is one to ignore.
    Whole,
    One(Range<u64>),
    /// Two or more ranges that do not overlap, in the order of the request.
    Many(Vec<Range<u64>>),
    /// No range has a byte inside the file.
    Unsatisfiable,
}

impl Requested {
    /// Resolves the value of a `Range` header.
    ///
    /// A header that does not follow the grammar, has another unit than bytes, asks for more than
    /// [`MAX_RANGES`] ranges, or for ranges that overlap, is ignored, as section 14.2 permits. The
    /// ranges are counted before they are looked at, so that a flood of them costs one pass.
    pub(crate) fn parse(value: &[u8], len: u64) -> Self {
        let Some(set) = range_set(value) else {
            return Self::Whole;
        };
        if set.iter().filter(|byte| **byte == b',').count() >= MAX_RANGES {
            return Self::Whole;
        }
        let mut satisfiable = Vec::new();
        let mut count = 0;
        let elements = set.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        for element in elements.filter(|element| !element.is_empty()) {
            count += 1;
            match Spec::parse(element) {
                // A file without bytes has a last byte no more than a first one, but section 14.1.2
                // calls this satisfiable. No `Content-Range` can express it.
                Some(Spec::Last(1..)) if len == 0 => return Self::Whole,
                Some(spec) => satisfiable.extend(spec.resolve(len)),
                None => return Self::Whole,
            }
        }
        match satisfiable.len() {
            _ if count == 0 => Self::Whole,
            0 => Self::Unsatisfiable,
            1 => Self::One(satisfiable.remove(0)),
            _ if overlap(&satisfiable) => Self::Whole,
            _ => Self::Many(satisfiable),
        }
    }
}

/// What stands behind `bytes=`; `None` if the unit is another one.
fn range_set(value: &[u8]) -> Option<&[u8]> {
    let equals = value.iter().position(|byte| *byte == b'=')?;
    let (unit, set) = (&value[..equals], &value[equals + 1..]);
    unit.eq_ignore_ascii_case(b"bytes").then_some(set)
}

fn overlap(ranges: &[Range<u64>]) -> bool {
    let mut sorted = ranges.to_vec();
    sorted.sort_by_key(|range| range.start);
    sorted.windows(2).any(|pair| pair[1].start < pair[0].end)
}

/// One range, before the length is known.
enum Spec {
    /// From a position on.
    From(u64),
    /// From a position to a position, both inclusive.
    Between(u64, u64),
    /// The last bytes, that many.
    Last(u64),
}

impl Spec {
    fn parse(element: &[u8]) -> Option<Self> {
        let dash = element.iter().position(|byte| *byte == b'-')?;
        let (first, last) = (&element[..dash], &element[dash + 1..]);
        match (first.is_empty(), last.is_empty()) {
            (true, true) => None,
            (true, false) => Some(Self::Last(number(last)?)),
            (false, true) => Some(Self::From(number(first)?)),
            (false, false) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::Between(first, last))
            }
        }
    }

    /// The bytes that it names; `None` if there are none.
    fn resolve(&self, len: u64) -> Option<Range<u64>> {
        let range = match *self {
            Self::From(first) => first..len,
            Self::Between(first, last) => first..last.saturating_add(1).min(len),
            Self::Last(count) => len.saturating_sub(count)..len,
        };
        (range.start < range.end).then_some(range)
    }
}

/// A number in decimal digits. One that does not fit is larger than every length.
fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        Some(number.saturating_mul(10).saturating_add(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::Requested::{self, Many, One, Unsatisfiable, Whole};

    fn parse(value: &str) -> Requested {
        Requested::parse(value.as_bytes(), 100)
    }

    #[test]
    fn single_ranges() {
        assert_eq!(parse("bytes=0-0"), One(0..1));
        assert_eq!(parse("bytes=10-19"), One(10..20));
        assert_eq!(parse("bytes=90-"), One(90..100));
        assert_eq!(parse("bytes=90-1000"), One(90..100));
        assert_eq!(parse("bytes=-1"), One(99..100));
        assert_eq!(parse("bytes=-1000"), One(0..100));
        assert_eq!(parse("BYTES=1-1"), One(1..2));
        assert_eq!(parse("bytes= ,, 1-1 ,"), One(1..2));
        assert_eq!(parse("bytes=0-99999999999999999999999"), One(0..100));
    }

    #[test]
    fn nothing_to_satisfy() {
        assert_eq!(parse("bytes=100-"), Unsatisfiable);
        assert_eq!(parse("bytes=99999999999999999999999-"), Unsatisfiable);
        assert_eq!(parse("bytes=-0"), Unsatisfiable);
        assert_eq!(parse("bytes=100-101,200-"), Unsatisfiable);
        assert_eq!(Requested::parse(b"bytes=0-", 0), Unsatisfiable);
        assert_eq!(Requested::parse(b"bytes=-5", 0), Whole);
        assert_eq!(Requested::parse(b"bytes=-0", 0), Unsatisfiable);
    }

    #[test]
    fn what_is_ignored() {
        for value in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=1",
            "bytes=5-4",
            "bytes=a-b",
            "bytes=1-2x",
            "bytes=+1-2",
            "bytes=1--2",
            "bytes=1-2;3-4",
            "bytes =1-2",
            "lines=1-2",
            "bytes=0-0,x",
        ] {
            assert_eq!(parse(value), Whole, "{value}");
        }
    }

    #[test]
    fn several_ranges() {
        assert_eq!(parse("bytes=0-0,2-2"), Many(vec![0..1, 2..3]));
        assert_eq!(
            parse("bytes=50-59, -10 ,0-9"),
            Many(vec![50..60, 90..100, 0..10])
        );
        // Neighbours do not overlap.
        assert_eq!(parse("bytes=0-9,10-19"), Many(vec![0..10, 10..20]));
        // One is left.
        assert_eq!(parse("bytes=5-6,200-300"), One(5..7));
        assert_eq!(parse("bytes=0-10,10-20"), Whole);
        assert_eq!(parse("bytes=0-,5-5"), Whole);
    }

    #[test]
    fn a_flood_is_ignored() {
        let ranges = |count: usize| {
            let ranges: Vec<_> = (0..count).map(|n| format!("{n}-{n}")).collect();
            Requested::parse(format!("bytes={}", ranges.join(",")).as_bytes(), 1 << 20)
        };
        assert!(matches!(ranges(64), Many(ranges) if ranges.len() == 64));
        assert_eq!(ranges(65), Whole);
        assert_eq!(parse(&format!("bytes={}0-0", ",".repeat(64))), Whole);
    }
}
