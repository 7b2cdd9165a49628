//! Memory-mapped files for async Rust.
