//! The leases of a copy, which may be made of bytes that are in atomic use.

use std::ops::Deref;

use super::{briefly, companions, At, Conflict, Hold, Kind, Lease, LeaseHost, Refused};
use crate::error::Result;
use crate::range::ByteRange;
use crate::wakers::scope;

/// The leases of a copy of bytes, some of which may be in atomic use.
#[derive(Debug)]
#[must_use]
pub(crate) enum CopyLease<H>
where
    H: Deref,
    H::Target: LeaseHost + Sized,
{
    /// No byte is in atomic use.
    Plain(Lease<H>),
    /// Parts, in their order and without gaps; at least one of them is in atomic use.
    Parts(Vec<(Kind, ByteRange, Lease<H>)>),
}

impl<H> CopyLease<H>
where
    H: Deref + Clone,
    H::Target: LeaseHost + Sized,
{
    /// Takes the leases for a copy of `range`, which conflict only with writers, or reports what
    /// conflicts with them.
    pub(crate) fn try_new(host: H, range: ByteRange) -> Result<Self, Refused> {
        match Lease::try_shared(host.clone(), Hold::Copy, range) {
            // The other lease may be an atomic one.
            Err((Conflict::Held | Conflict::Applying, At::Own)) => {}
            lease => return lease.map(Self::Plain),
        }
        let leases = host.leases();
        let term = Hold::Copy.term(range);
        let alone = || {
            let parts = leases.past_gates(|| leases.table.try_copy(range, term));
            parts.map_err(|conflict| (conflict, At::Own))
        };
        let parts = match host.under() {
            Some(under) => companions::try_parts(under, range, term, alone)?,
            None => alone()?,
        };
        let lease = |token| Lease {
            host: host.clone(),
            token: Some(token),
        };
        let mut parts: Vec<_> = parts
            .into_iter()
            .map(|(kind, part, token)| (kind, part, lease(token)))
            .collect();
        match &parts[..] {
            [(Kind::Shared, ..)] => {
                let (.., lease) = parts.swap_remove(0);
                Ok(Self::Plain(lease))
            }
            _ => Ok(Self::Parts(parts)),
        }
    }

    /// Takes the same leases, and waits for conflicts that end soon; see [`shared_briefly`].
    #[cfg_attr(not(feature = "iterator"), allow(dead_code))]
    pub(crate) fn briefly(host: H, range: ByteRange) -> Result<Self> {
        briefly(&*host, range, range, |_| Self::try_new(host.clone(), range))
    }

    /// Calls `visit` for each part of `range`, in order: `range` is the range that the leases were
    /// taken for, or its beginning.
    pub(crate) fn each_part(&self, range: ByteRange, mut visit: impl FnMut(Kind, ByteRange)) {
        match self {
            Self::Plain(_) => visit(Kind::Shared, range),
            Self::Parts(parts) => {
                let inside = parts.iter().filter(|(_, part, _)| part.overlaps(range));
                inside.for_each(|(kind, part, _)| visit(*kind, part.intersection(range)));
            }
        }
    }
}

impl<H> Drop for CopyLease<H>
where
    H: Deref,
    H::Target: LeaseHost + Sized,
{
    fn drop(&mut self) {
        if let Self::Parts(parts) = self {
            // The wakers run when all parts have ended: a waker may ask for bytes of another part,
            // and wait for its end.
            scope(|| parts.clear());
        }
    }
}
