//! A process that is killed in the middle of its writes loses no write that was acknowledged: each
//! write whose call had returned is in the file, whole, and so is the length after a resize. (A
//! power cut is another matter; the pages of a killed process stay in the kernel.)

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::{fs, thread};

use mmap_io::MemoryMappedFile;

use crate::common::child::{child, child_dir};
use crate::common::{block_on, on_a_disk};

const WRITERS: u64 = 3;
/// Each writer has slots of its own, and goes through them in turn.
const SLOTS: u64 = 8;
/// Slots are not at page boundaries.
const SLOT: u64 = 300_000 + 123;
const BODY: u64 = WRITERS * SLOTS * SLOT;
/// The data of a slot is small and copied, or large and written in another way.
const LENGTHS: [u64; 4] = [1, 5_000, 70_000, 300_000];

/// Where the n-th write of a writer goes, how long it is, and the byte it is made of.
fn write_of(writer: u64, number: u64) -> (u64, usize, u8) {
    let slot = writer * SLOTS + number % SLOTS;
    let len = LENGTHS[(number / SLOTS % 4) as usize];
    (slot * SLOT, len as usize, (number % 255) as u8 + 1)
}

/// The length of the file after its n-th resize, up and down, by less than a page and by many.
fn length_of(number: u64) -> u64 {
    BODY + 1 + number * 7919 % 1_000_000
}

/// Tells the parent, which survives, that an operation has returned.
fn acknowledge(line: &str) {
    // One call, so that a line arrives whole or not at all.
    std::io::stdout().write_all(line.as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
}

#[test]
fn writing_child() {
    let Some(dir) = child_dir() else {
        return;
    };
    let first = |name: &str| -> u64 {
        let number = std::env::var(name).unwrap();
        number.parse().unwrap()
    };
    let file = block_on(MemoryMappedFile::open_rw(dir.join("data"))).unwrap();
    thread::scope(|threads| {
        for writer in 0..WRITERS {
            let (file, from) = (&file, first(&format!("MMAP_IO_TEST_WRITE_{writer}")));
            threads.spawn(move || {
                for number in from.. {
                    let (offset, len, byte) = write_of(writer, number);
                    let data = vec![byte; len];
                    let written = match number % 3 {
                        0 => block_on(file.update_region(offset, &data)),
                        1 => block_on(file.write_bytes(offset, data.into())),
                        _ if writer == 0 => block_on(file.update_region_async(offset, &data)),
                        // Two ranges of one operation.
                        _ => {
                            let (one, two) = data.split_at(len / 2);
                            let regions = [(offset, one), (offset + len as u64 / 2, two)];
                            block_on(file.update_regions(&regions))
                        }
                    };
                    written.unwrap();
                    acknowledge(&format!("\n{writer} {number}\n"));
                }
            });
        }
        for number in first("MMAP_IO_TEST_RESIZE").. {
            block_on(file.resize(length_of(number))).unwrap();
            acknowledge(&format!("\n{WRITERS} {number}\n"));
        }
    });
}

/// The next number of each writer, and of the resizes, after a child was killed.
fn killed_after(dir: &Path, next: &mut [u64], acknowledgements: usize) {
    let resize = next[WRITERS as usize].to_string();
    let mut child = child!(writing_child)
        .dir(dir)
        .env("MMAP_IO_TEST_RESIZE", &resize);
    for writer in 0..WRITERS {
        let from = next[writer as usize].to_string();
        child = child.env(&format!("MMAP_IO_TEST_WRITE_{writer}"), &from);
    }
    let mut command = child.command();
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    let mut acknowledge = |line: &str| {
        let mut words = line.split(' ').map(|word| word.trim().parse::<u64>());
        match (words.next(), words.next(), words.next()) {
            (Some(Ok(writer)), Some(Ok(number)), None) => {
                assert_eq!(number, next[writer as usize]);
                next[writer as usize] += 1;
                true
            }
            _ => false,
        }
    };
    let mut heard = 0;
    while heard < acknowledgements {
        line.clear();
        assert!(
            output.read_line(&mut line).unwrap() > 0,
            "the child ended before it was killed"
        );
        heard += usize::from(acknowledge(&line));
    }
    // SIGKILL: no destructor, no flush, no time.
    child.kill().unwrap();
    child.wait().unwrap();
    // What it printed before it died.
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    rest.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .for_each(|line| {
            acknowledge(line);
        });
}

#[test]
fn acknowledged_writes_survive_kill() {
    let dir = on_a_disk();
    let path = dir.path().join("data");
    fs::File::create(&path)
        .unwrap()
        .set_len(length_of(0))
        .unwrap();
    let mut next = [1_u64; WRITERS as usize + 1];
    for round in 0..20 {
        let before = next;
        killed_after(dir.path(), &mut next, 5 + round * 11 % 60);
        let content = fs::read(&path).unwrap();
        let resizes = next[WRITERS as usize];
        let lengths = [length_of(resizes - 1), length_of(resizes)];
        assert!(lengths.contains(&(content.len() as u64)), "{lengths:?}");
        for writer in 0..WRITERS {
            let next = next[writer as usize];
            // The last write that was acknowledged in each slot. The next write was not
            // acknowledged and may have been in progress; it has a slot of its own.
            for number in (1..next).rev().take(SLOTS as usize - 1) {
                let (offset, len, byte) = write_of(writer, number);
                let slot = &content[offset as usize..][..len];
                let wrong = slot.iter().position(|found| *found != byte);
                assert_eq!(wrong, None, "write {number} of {writer}, round {round}");
            }
        }
        assert_ne!(before, next);
        // And the file can be used; a write that was in progress is repeated in the next round.
        block_on(async {
            let file = MemoryMappedFile::open_rw(&path).await.unwrap();
            assert_eq!(file.len(), content.len() as u64);
            assert!(file.as_slice(0, file.len()).unwrap() == content[..]);
            file.close().await.unwrap();
        });
    }
}
