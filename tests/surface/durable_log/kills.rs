//! A process that is killed loses no append that was acknowledged.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use self::log::{Log, Position};
use super::log;
use crate::common::child::{child, child_dir};
use crate::common::{block_on, on_a_disk};

const CHILD_TASKS: usize = 6;

fn child_payload(life: usize, task: usize, number: usize) -> Vec<u8> {
    let mut payload = format!("{life} {task} {number} ").into_bytes();
    payload.resize(payload.len() + (number * 37) % 900, b'a' + task as u8);
    payload
}

/// Appends until it is killed, and prints what was acknowledged.
#[test]
fn appending_child() {
    let Some(path) = child_dir() else {
        return;
    };
    let life: usize = std::env::var("MMAP_IO_TEST_LIFE").unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    runtime.block_on(async {
        let (log, writer) = Log::open(path).await.unwrap();
        let log = std::sync::Arc::new(log);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async { panic!("the writer ended: {:?}", writer.run().await) });
        for task in 0..CHILD_TASKS {
            let log = log.clone();
            tasks.spawn(async move {
                for number in 0.. {
                    let payload = child_payload(life, task, number);
                    let position = log.append(&payload).await.unwrap();
                    let line = format!("ack {task} {number} {}\n", position.0);
                    let mut pipe = std::io::stdout().lock();
                    pipe.write_all(line.as_bytes()).unwrap();
                    pipe.flush().unwrap();
                }
            });
        }
        tasks.join_next().await.unwrap().unwrap();
    });
}

/// Life, task, number and position of each append that a child acknowledged before it was killed,
/// which happens after `enough` of them.
fn acknowledged_by_a_child(path: &Path, life: usize, enough: usize) -> Vec<[usize; 4]> {
    let mut child = child!(appending_child)
        .dir(path)
        .env("MMAP_IO_TEST_LIFE", &life.to_string())
        .command()
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = BufReader::new(child.stdout.take().unwrap());
    let mut acknowledged = Vec::new();
    let mut line = String::new();
    // What it printed before it was killed counts, except for a line that was cut off.
    while pipe.read_line(&mut line).unwrap() > 0 {
        // The harness may have begun the line.
        if let (Some((_, ack)), true) = (line.split_once("ack "), line.ends_with('\n')) {
            let words = ack.split_whitespace().map(|word| word.parse().unwrap());
            let words: Vec<usize> = words.collect();
            acknowledged.push([life, words[0], words[1], words[2]]);
            if acknowledged.len() == enough {
                child.kill().unwrap();
            }
        }
        line.clear();
    }
    let status = child.wait().unwrap();
    assert!(
        acknowledged.len() >= enough,
        "the child ended before it was killed: {status}"
    );
    acknowledged
}

#[test]
fn acknowledged_appends_survive_kill() {
    let dir = on_a_disk();
    let path = dir.path().join("log");
    let mut acknowledged = Vec::new();
    for (life, enough) in [1, 20, 150, 400].into_iter().enumerate() {
        acknowledged.extend(acknowledged_by_a_child(&path, life, enough));
        let found = block_on(Log::scan(&path)).unwrap();
        for [life, task, number, position] in &acknowledged {
            let position = Position(*position as u64);
            let at = found.binary_search_by_key(&position, |(position, _)| *position);
            let payload = child_payload(*life, *task, *number);
            assert_eq!(found[at.unwrap()].1, payload, "{life} {task} {number}");
        }
        // At most one append of each task was not acknowledged when the process was killed.
        assert!(found.len() <= acknowledged.len() + (life + 1) * CHILD_TASKS);
        let mut next = vec![[0; CHILD_TASKS]; life + 1];
        for (_, payload) in &found {
            let head = String::from_utf8_lossy(payload);
            let words: Vec<usize> = (head.split(' ').take(3))
                .map(|word| word.parse().unwrap())
                .collect();
            let number = &mut next[words[0]][words[1]];
            assert_eq!(payload, &child_payload(words[0], words[1], *number));
            *number += 1;
        }
    }
}
