//! What a client can compare: the entity tag and the date of a file (RFC 9110, section 8.8).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;

use crate::lookup::Identity;

/// How long a file must have been unchanged before its time of modification tells it from its next
/// state: file systems round that time, the coarsest to 2 s.
const SETTLED: Duration = Duration::from_secs(2);

/// The entity tag and the date of one state of a file.
#[derive(Debug)]
pub(crate) struct Validators {
    pub(crate) tag: Tag,
    /// `None` if the date could be that of another state too.
    pub(crate) last_modified: Option<SystemTime>,
}

/// An entity tag, as it stands in the header.
#[derive(Clone, Debug)]
pub(crate) struct Tag(HeaderValue);

impl Validators {
    /// Makes the validators of the state that `identity` names.
    ///
    /// The tag is strong if no later state can have the same identity: the file has not been
    /// modified within the last 2 s, and this process does not write to it. Stores through a
    /// mapping move the time of modification late or never. Otherwise the tag is weak, and that of
    /// one response alone, so that no condition takes a later state for this one; and there is no
    /// date.
    pub(crate) fn new(identity: &Identity, may_be_written: bool, now: SystemTime) -> Self {
        let modified = identity.modified();
        let age = modified.and_then(|modified| now.duration_since(modified).ok());
        let is_settled = !may_be_written && age.is_some_and(|age| age >= SETTLED);
        let (inode, len) = (identity.inode, identity.len);
        let (seconds, nanos) = identity.mtime;
        let state = format!("{inode:x}-{seconds:x}.{nanos:x}-{len:x}");
        let tag = match is_settled {
            true => format!("\"{state}\""),
            false => {
                let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
                format!("W/\"{state}-{:x}\"", now.as_nanos())
            }
        };
        Self {
            tag: Tag(HeaderValue::try_from(tag).expect("hexadecimal digits in quotes")),
            last_modified: modified.filter(|_| is_settled),
        }
    }
}

impl Tag {
    pub(crate) fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    fn parts(&self) -> TagRef<'_> {
        TagRef::parse(self.0.as_bytes())
            .expect("made by `Validators::new`")
            .0
    }

    /// Compares strongly: two weak tags are never equal.
    pub(crate) fn is_strongly(&self, other: TagRef<'_>) -> bool {
        let tag = self.parts();
        tag == other && !tag.is_weak
    }

    /// Compares weakly: whether either is weak does not count.
    pub(crate) fn is_weakly(&self, other: TagRef<'_>) -> bool {
        self.parts().opaque == other.opaque
    }
}

/// An entity tag of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TagRef<'a> {
    is_weak: bool,
    opaque: &'a [u8],
}

impl<'a> TagRef<'a> {
    /// The tag at the start of `value`, and what follows it.
    pub(crate) fn parse(value: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let strong = value.strip_prefix(b"W/");
        let (is_weak, quoted) = (strong.is_some(), strong.unwrap_or(value));
        let content = quoted.strip_prefix(b"\"")?;
        let end = content.iter().position(|byte| *byte == b'"')?;
        let (opaque, rest) = (&content[..end], &content[end + 1..]);
        // Section 8.8.3: no blanks and no control characters.
        opaque
            .iter()
            .all(|byte| *byte > b' ' && *byte != 0x7f)
            .then_some(())?;
        Some((Self { is_weak, opaque }, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(seconds: i64) -> Identity {
        Identity {
            device: 1,
            inode: 0xab,
            len: 16,
            mtime: (seconds, 5),
            ctime: (seconds, 6),
        }
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn strong_when_settled() {
        let validators = Validators::new(&identity(100), false, at(103));
        assert_eq!(validators.tag.header(), "\"ab-64.5-10\"");
        assert!(validators.last_modified.is_some());
        let (same, rest) = TagRef::parse(b"\"ab-64.5-10\"").unwrap();
        assert!(rest.is_empty());
        assert!(validators.tag.is_strongly(same) && validators.tag.is_weakly(same));
        let (weak, _) = TagRef::parse(b"W/\"ab-64.5-10\"").unwrap();
        assert!(!validators.tag.is_strongly(weak) && validators.tag.is_weakly(weak));
    }

    #[test]
    fn weak_while_it_may_change() {
        for (written, now) in [(false, 101), (false, 50), (true, 1000)] {
            let validators = Validators::new(&identity(100), written, at(now));
            assert!(validators
                .tag
                .header()
                .as_bytes()
                .starts_with(b"W/\"ab-64.5-10-"));
            assert!(validators.last_modified.is_none());
            let (own, _) = TagRef::parse(validators.tag.0.as_bytes()).unwrap();
            assert!(!validators.tag.is_strongly(own));
            // The tag of the next response is another one.
            let later = at(now) + Duration::from_nanos(1);
            let later = Validators::new(&identity(100), written, later);
            assert!(!later.tag.is_weakly(own));
        }
    }

    #[test]
    fn dates_before_the_epoch() {
        let validators = Validators::new(&identity(-100), false, at(100));
        assert!(validators.last_modified.is_none());
        assert!(validators.tag.header().as_bytes().starts_with(b"W/"));
    }

    #[test]
    fn malformed_tags() {
        for value in ["", "W/", "\"", "abc", "\"a", "w/\"a\"", "\"a b\""] {
            assert!(TagRef::parse(value.as_bytes()).is_none(), "{value}");
        }
    }
}
