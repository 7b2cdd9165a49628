//! The store, under each version of object_store that is compiled in.

#[cfg(all(feature = "v0_13", feature = "v0_14"))]
mod both;
#[cfg(feature = "v0_13")]
mod v0_13;
#[cfg(feature = "v0_14")]
mod v0_14;
