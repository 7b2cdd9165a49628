//! Leases of a host through which a file shows.
//!
//! The bytes of such a host are those of the file, except in pages of which the host has copies of
//! its own. So each lease of the host has a *companion*: a shared lease in the table of the file,
//! for as long as it lives, which keeps the writers of the file off the bytes. The companion of a
//! shared lease covers the same bytes; that of every other lease covers their whole pages, since a
//! store copies the whole page.
//!
//! The companion is taken before the lease and released after it. No request waits for one of the
//! two tables while it holds a lease in the other, so that two requests never wait for each other.

use std::collections::HashMap;
use std::io;

use super::kinds::{Asks, Kind, Term, Token};
use super::{release_slowly, try_owned, wake_readers, At, LeaseHost, Refused};
use crate::range::ByteRange;
use crate::sync::{lock, Mutex};
use crate::sys;

/// The file that shows through a host, and the leases on it.
#[derive(Clone, Copy)]
pub(crate) struct Under<'a> {
    pub(crate) file: &'a (dyn LeaseHost + Send + Sync),
    pub(crate) companions: &'a Companions,
}

/// The companions of the leases of one host, by the entries of these leases.
#[derive(Debug)]
pub(crate) struct Companions(Mutex<HashMap<u64, Token>>);

impl Companions {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    /// Gives a lease its companion. The entry of the lease belongs to the caller, so that no other
    /// lease has its number.
    pub(super) fn keep(&self, own: &Token, companion: Token) {
        if let Token::Entry(entry) = own {
            lock(&self.0).insert(entry.number(), companion);
        }
    }

    /// Takes the companion of a lease that is about to end.
    pub(super) fn take(&self, own: &Token) -> Option<Token> {
        match own {
            Token::Entry(entry) => lock(&self.0).remove(&entry.number()),
            Token::Slot(_) => None,
        }
    }

    /// Notes that a caller has a lease from now on, and with it its companion on `file`.
    pub(super) fn mark_lasting(&self, own: &Token, file: &(dyn LeaseHost + Send + Sync)) {
        let Token::Entry(entry) = own else {
            return;
        };
        let due = match lock(&self.0).get(&entry.number()) {
            Some(companion) => file.leases().table.mark_lasting(companion),
            None => return,
        };
        wake_readers(&due);
        file.viewed();
    }
}

/// Takes a shared lease and its companion, or reports what conflicts with it in which table.
///
/// Both are entries, and not slots: the companion must be found when the lease ends.
pub(super) fn try_shared(
    host: &(impl LeaseHost + ?Sized),
    under: Under<'_>,
    range: ByteRange,
    term: Term,
) -> Result<Token, Refused> {
    let companion = try_under(under, range, term)?;
    match try_owned(host.leases(), range, term) {
        Ok(own) => {
            under.companions.keep(&own, companion);
            Ok(own)
        }
        Err(conflict) => {
            release_slowly(under.file, companion);
            Err((conflict, At::Own))
        }
    }
}

/// Takes a shared lease on the file.
fn try_under(under: Under<'_>, range: ByteRange, term: Term) -> Result<Token, Refused> {
    try_owned(under.file.leases(), range, term).map_err(|conflict| (conflict, At::Under))
}

/// Takes an atomic lease by `take`, and its companion.
pub(super) fn try_atomic(
    under: Under<'_>,
    range: ByteRange,
    take: impl FnOnce() -> Result<io::Result<Token>, Refused>,
) -> Result<io::Result<Token>, Refused> {
    let pages = range.to_pages(sys::page_size());
    let companion = try_under(under, pages.into(), Term::Lasting)?;
    let own = take();
    match &own {
        Ok(Ok(own)) => under.companions.keep(own, companion),
        _ => release_slowly(under.file, companion),
    }
    own
}

/// Takes the leases of a copy of `range` by `take`, and their companion, which the last of them gets.
pub(super) fn try_parts(
    under: Under<'_>,
    range: ByteRange,
    term: Term,
    take: impl FnOnce() -> Result<Vec<(Kind, ByteRange, Token)>, Refused>,
) -> Result<Vec<(Kind, ByteRange, Token)>, Refused> {
    let companion = try_under(under, range, term)?;
    let parts = take();
    match parts.as_ref().ok().and_then(|parts| parts.last()) {
        Some((.., own)) => under.companions.keep(own, companion),
        None => release_slowly(under.file, companion),
    }
    parts
}

/// Takes the companion of a lease of any kind.
pub(super) fn try_companion(
    under: Under<'_>,
    kind: Kind,
    range: ByteRange,
    asks: Asks,
) -> Option<Token> {
    let covered = match kind {
        Kind::Shared => range,
        _ => range.to_pages(sys::page_size()).into(),
    };
    let term = match asks {
        Asks::Queue => Term::Working,
        Asks::Caller | Asks::WaitingCaller => Term::Lasting,
    };
    try_owned(under.file.leases(), covered, term).ok()
}

/// Takes a lease of any kind for a caller that has its companion.
pub(super) fn try_acquire(
    host: &(impl LeaseHost + ?Sized),
    under: Under<'_>,
    kind: Kind,
    range: ByteRange,
    asks: Asks,
    companion: Token,
) -> io::Result<Option<Token>> {
    let own = host.leases().table.try_acquire(kind, range, asks);
    match &own {
        Ok(Some(own)) => under.companions.keep(own, companion),
        _ => release_slowly(under.file, companion),
    }
    own
}
