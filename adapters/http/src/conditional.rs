//! Conditional requests (RFC 9110, section 13): whether the client has the file already, and
//! whether the file is still the one that the client means.

use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{
    HeaderMap, HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, RANGE,
};

use crate::range::Requested;
use crate::validators::{Tag, TagRef, Validators};

/// What the conditions of a request say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Go on.
    Holds,
    /// 412: the file is not the one that the client means.
    Failed,
    /// 304: the client has the file.
    NotModified,
}

impl Condition {
    /// Evaluates the conditions of a GET or HEAD request, in the order of section 13.2.2.
    pub(crate) fn of(headers: &HeaderMap, validators: &Validators) -> Self {
        let tag = &validators.tag;
        let date = validators.last_modified;
        if headers.contains_key(IF_MATCH) {
            if !any_tag(headers, &IF_MATCH, |other| tag.is_strongly(other)) {
                return Self::Failed;
            }
        } else if let Some(since) = http_date(headers, &IF_UNMODIFIED_SINCE) {
            // Without a date, the file may have been modified at any time up to now.
            if date.is_none_or(|date| is_later(date, since)) {
                return Self::Failed;
            }
        }
        if headers.contains_key(IF_NONE_MATCH) {
            if any_tag(headers, &IF_NONE_MATCH, |other| tag.is_weakly(other)) {
                return Self::NotModified;
            }
        } else if let (Some(date), Some(since)) = (date, http_date(headers, &IF_MODIFIED_SINCE)) {
            if !is_later(date, since) {
                return Self::NotModified;
            }
        }
        Self::Holds
    }
}

/// The ranges that a GET request is to get, of a file of `len` bytes.
pub(crate) fn requested(headers: &HeaderMap, validators: &Validators, len: u64) -> Requested {
    match single(headers, &RANGE) {
        Some(value) if if_range_holds(headers, &validators.tag) => Requested::parse(value, len),
        _ => Requested::Whole,
    }
}

/// Whether `If-Range` permits ranges: there is none, or it has the strong tag of the file.
///
/// A date never does. It has seconds, and files are replaced by others of the same date, by tools
/// that keep or fix times: a client would join two files (section 13.1.5 asks for a date that is
/// known to be strong).
fn if_range_holds(headers: &HeaderMap, tag: &Tag) -> bool {
    if !headers.contains_key(IF_RANGE) {
        return true;
    }
    match single(headers, &IF_RANGE).and_then(TagRef::parse) {
        Some((other, [])) => tag.is_strongly(other),
        _ => false,
    }
}

/// Whether a header has `*`, or a tag for which `matches` holds. What follows a malformed tag does
/// not count.
fn any_tag(headers: &HeaderMap, name: &HeaderName, matches: impl Fn(TagRef<'_>) -> bool) -> bool {
    headers.get_all(name).iter().any(|value| {
        let value = value.as_bytes().trim_ascii();
        value == b"*" || tags(value).any(&matches)
    })
}

fn tags(mut value: &[u8]) -> impl Iterator<Item = TagRef<'_>> {
    std::iter::from_fn(move || {
        while let [b' ' | b'\t' | b',', rest @ ..] = value {
            value = rest;
        }
        let (tag, rest) = TagRef::parse(value)?;
        value = rest;
        Some(tag)
    })
}

/// The date of a header; `None` if there is none, or it is malformed and so to be ignored.
fn http_date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    let value = std::str::from_utf8(single(headers, name)?).ok()?;
    httpdate::parse_http_date(value).ok()
}

/// The value of a header that stands there once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.as_bytes();
    values.next().is_none().then(|| value.trim_ascii())
}

/// Compares in seconds, as headers have them.
fn is_later(date: SystemTime, since: SystemTime) -> bool {
    let seconds = |time: SystemTime| {
        time.duration_since(UNIX_EPOCH)
            .map_or(0, |age| age.as_secs())
    };
    seconds(date) > seconds(since)
}
