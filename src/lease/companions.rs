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

use super::kinds::{Asks, Conflict, Kind, Token};
use super::{release_slowly, try_owned, LeaseHost, Leases};
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
}

/// Takes a shared lease and its companion, or reports what conflicts with it in which table.
///
/// Both are entries, and not slots: the companion must be found when the lease ends.
pub(super) fn try_shared<'a>(
    host: &'a (impl LeaseHost + ?Sized),
    under: Under<'a>,
    range: ByteRange,
) -> Result<Token, (Conflict, &'a Leases)> {
    let file = under.file.leases();
    let companion = try_owned(file, range).map_err(|conflict| (conflict, file))?;
    match try_owned(host.leases(), range) {
        Ok(own) => {
            under.companions.keep(&own, companion);
            Ok(own)
        }
        Err(conflict) => {
            release_slowly(under.file, companion);
            Err((conflict, host.leases()))
        }
    }
}

/// Takes the companion of a lease of any kind.
pub(super) fn try_companion(under: Under<'_>, kind: Kind, range: ByteRange) -> Option<Token> {
    let covered = match kind {
        Kind::Shared => range,
        _ => range.to_pages(sys::page_size()).into(),
    };
    try_owned(under.file.leases(), covered).ok()
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
