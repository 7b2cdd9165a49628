//! Models of the lease protocol.
