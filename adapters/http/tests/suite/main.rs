//! The services behind real sockets, under axum and tokio and under hyper and smol.
//!
//! One binary, since each is linked with two runtimes and two servers.

mod client;
mod server;

#[cfg(feature = "backend")]
mod backend;
mod bodies;
mod browser;
mod curl;
mod directories;
mod links;
mod oracle;
mod replaced;
mod rfc;
mod slow_clients;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Makes a module with one test for each server from one body.
macro_rules! both {
    ($name:ident, |$start:ident| $body:block) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            fn body($start: impl Fn($crate::server::Service) -> $crate::server::Server) {
                $body
            }

            #[test]
            fn axum_tokio() {
                body($crate::server::axum_tokio);
            }

            #[test]
            fn hyper_smol() {
                body($crate::server::hyper_smol);
            }
        }
    };
}
pub(crate) use both;

/// Prints why a test cannot run here, and writes it to the log that continuous integration reads.
pub(crate) fn skip(test: &str, reason: &str) {
    let line = format!("skipped: {test}: {reason}\n");
    print!("{line}");
    if let Some(log) = std::env::var_os("MMAP_IO_SKIP_LOG") {
        let mut options = fs::File::options();
        let mut log = options.create(true).append(true).open(log).unwrap();
        log.write_all(line.as_bytes()).unwrap();
    }
}

/// `len` bytes that repeat nowhere near.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (index, word) in bytes.chunks_mut(4).enumerate() {
        let value = (index as u32).wrapping_mul(0x9e37_79b1).to_le_bytes();
        word.copy_from_slice(&value[..word.len()]);
    }
    bytes
}

/// When the files of [`settled`] were modified.
pub(crate) fn modified() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_000_000_000)
}

/// Writes a file and sets its time of modification to one that is long ago, so that its tag is
/// strong.
pub(crate) fn settled(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
    set_modified(path, modified());
}

pub(crate) fn set_modified(path: &Path, time: SystemTime) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(time).unwrap();
}
