//! The lease table against an oracle.
