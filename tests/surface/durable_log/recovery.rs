//! What an opening finds again: up to the first bad record, and nothing behind it.

use std::path::Path;

use self::log::{Log, LogError, MAX_PAYLOAD};
use super::{close, live, log, open, payloads, HEADER, OPENING};
use crate::common::block_on;

fn flip(path: &Path, at: u64, bits: u8) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at as usize] ^= bits;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn recovery_stops_at_the_first_bad_record() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    block_on(async {
        let written: [&[u8]; 5] = [
            b"one",
            b"",
            b"three, which is longer",
            b"4",
            b"the last one",
        ];
        let positions = live(&path, &written).await;
        let good = std::fs::read(&path).unwrap();
        assert_eq!(payloads(&path).await, written);
        let copy = dir.path().join("copy");
        for (index, position) in positions.iter().enumerate() {
            let start = position.0 as usize;
            let end = start + HEADER + written[index].len();
            for at in start..end {
                for bits in [1, 0x80, 0xff] {
                    let mut bytes = good.clone();
                    bytes[at] ^= bits;
                    std::fs::write(&copy, bytes).unwrap();
                    assert_eq!(payloads(&copy).await, written[..index], "{at} {bits}");
                }
                // Sectors that were never written, and a file that is too short.
                let mut bytes = good.clone();
                bytes[at..].fill(0);
                std::fs::write(&copy, &bytes).unwrap();
                // A header is partly random, and may end in zeroes.
                let whole = index + usize::from(bytes[at..end] == good[at..end]);
                assert_eq!(payloads(&copy).await, written[..whole], "zeroes from {at}");
                std::fs::write(&copy, &bytes[..at]).unwrap();
                assert_eq!(payloads(&copy).await, written[..index], "cut at {at}");
            }
        }
        // What is appended then takes the place of the bad one.
        for at in positions[4].0..positions[4].0 + HEADER as u64 {
            std::fs::write(&copy, &good).unwrap();
            flip(&copy, at, 0x10);
            let opened = open(&copy).await;
            assert_eq!(opened.0.recovered(), 4);
            opened.0.append(b"another").await.unwrap();
            close(opened).await;
            let expected: [&[u8]; 5] = [written[0], written[1], written[2], written[3], b"another"];
            assert_eq!(payloads(&copy).await, expected);
        }
    });
}

#[test]
fn records_after_torn_record_stay_dead() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    block_on(async {
        let long = [b'b'; OPENING + 20];
        let first = live(&path, &[b"a", &long, b"c", b"d"]).await;
        flip(&path, first[1].0, 1);
        // The second life ends where the first one's third record begins.
        let second = live(&path, &[b"twenty bytes, exactly"[..20].as_ref()]).await;
        assert_eq!(second[0].0 + HEADER as u64 + 20, first[2].0);
        assert_eq!(payloads(&path).await, [&b"a"[..], b"twenty bytes, exactl"]);
        let opened = open(&path).await;
        assert_eq!(opened.0.recovered(), 2);
        close(opened).await;
    });
}

#[test]
fn lives_after_torn_opening_stay_dead() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    block_on(async {
        live(&path, &[b"a"]).await;
        let second = live(&path, &[&[b'b'; OPENING + 5]]).await;
        let third = live(&path, &[b"c"]).await;
        assert_eq!(payloads(&path).await.len(), 3);
        flip(&path, second[0].0 - OPENING as u64, 1);
        // The fourth life takes the place of the second one's opening, and nothing more.
        live(&path, &[]).await;
        assert_eq!(payloads(&path).await, ["a"]);
        // The fifth ends where the third one opens.
        let fifth = live(&path, &[b"fifth"]).await;
        let end = fifth[0].0 + HEADER as u64 + 5;
        assert_eq!(end, third[0].0 - OPENING as u64);
        assert_eq!(payloads(&path).await, [&b"a"[..], b"fifth"]);
    });
}

/// A process that was killed may leave records only in the page cache. Records that are appended
/// later would be acknowledged, and be lost with the first record that a power cut takes.
#[cfg(target_os = "linux")]
#[test]
fn recovery_flushes_before_first_append() {
    use std::io::Write;

    use crate::common::probe::{can_probe, until_dirty, Probe};

    let dir = crate::common::on_a_disk();
    if !can_probe("recovery_flushes_before_first_append", dir.path()) {
        return;
    }
    let path = dir.path().join("log");
    block_on(async {
        live(&path, &[&[1; 30_000][..]; 10]).await;
        let copy = dir.path().join("copy");
        // By pages, so that a flush of the last one does not take the first with it.
        let bytes = std::fs::read(&path).unwrap();
        let mut file = std::fs::File::create(&copy).unwrap();
        for page in bytes.chunks(4096) {
            file.write_all(page).unwrap();
        }
        file.sync_all().unwrap();
        let probe = Probe::new(&copy);
        assert!(probe.is_clean());
        until_dirty!(probe, {
            std::io::Seek::rewind(&mut file).unwrap();
            file.write_all(&bytes[..4096]).unwrap();
        });
        let (log, _writer) = Log::open(&copy).await.unwrap();
        assert_eq!(log.recovered(), 10);
        assert!(probe.is_clean());
    });
}

#[test]
fn foreign_file_is_refused_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        for content in [&b"short"[..], b"something else, longer than a header"] {
            let path = dir.path().join("other");
            std::fs::write(&path, content).unwrap();
            let refused = Log::open(&path).await;
            assert!(matches!(refused, Err(LogError::NotALog)), "{refused:?}");
            assert!(matches!(Log::scan(&path).await, Err(LogError::NotALog)));
            assert_eq!(std::fs::read(&path).unwrap(), content);
        }
        let path = dir.path().join("log");
        let opened = open(&path).await;
        let refused = opened.0.append(&vec![0; MAX_PAYLOAD + 1]).await;
        assert!(matches!(refused, Err(LogError::TooLarge(_))), "{refused:?}");
        let largest = vec![7; MAX_PAYLOAD];
        opened.0.append(&largest).await.unwrap();
        close(opened).await;
        assert_eq!(payloads(&path).await, [largest]);
    });
}
