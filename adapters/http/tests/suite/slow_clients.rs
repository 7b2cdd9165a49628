//! Clients that do not read: they hold bytes of the file, and delay nothing but writes of those.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use futures_lite::future::{block_on, poll_once};
use mmap_io::MemoryMappedFile;
use mmap_io_http::MappedDir;

use crate::client::{get, send_on};
use crate::server::boxed;
use crate::{both, pattern, skip};

const CLIENTS: usize = 500;

/// Each client has a descriptor, and so has the server for it; two servers are tested at a time.
fn may_open_enough() -> bool {
    use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
    let needed = 5 * CLIENTS as u64;
    let limit = getrlimit(Resource::Nofile);
    let is_enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= needed);
    is_enough(limit.current)
        || is_enough(limit.maximum)
            && setrlimit(
                Resource::Nofile,
                Rlimit {
                    current: limit.maximum,
                    ..limit
                },
            )
            .is_ok()
}

both!(five_hundred_slow_clients, |start| {
    if !may_open_enough() {
        return skip("five_hundred_slow_clients", "too few descriptors");
    }
    const LEN: usize = 4 << 20;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let content = pattern(2 * LEN);
    std::fs::write(&path, &content).unwrap();
    let file = block_on(MemoryMappedFile::open_rw(&path)).unwrap();
    let server = start(boxed(MappedDir::new(dir.path())));
    let range = format!("bytes=0-{}", LEN - 1);
    let clients: Vec<TcpStream> = (0..CLIENTS)
        .map(|_| {
            let client = TcpStream::connect(server.address).unwrap();
            // The socket takes no more than a little: the rest is the server's to hold.
            rustix::net::sockopt::set_socket_recv_buffer_size(&client, 64 << 10).unwrap();
            send_on(client, "GET", "/a", &[("range", &range)])
        })
        .collect();
    for mut client in &clients {
        let mut begin = [0; 12];
        client.read_exact(&mut begin).unwrap();
        assert_eq!(&begin, b"HTTP/1.1 206");
    }
    // Each of them holds at least one frame.
    let end = Instant::now() + Duration::from_secs(60);
    while file.stats().views < CLIENTS {
        assert!(Instant::now() < end, "{:?}", file.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(file.stats().views <= 4 * CLIENTS, "{:?}", file.stats());

    block_on(async {
        // A write of what they hold waits.
        let mut overlapping = Box::pin(file.update_region(0, &[0xff; LEN]));
        assert!(poll_once(&mut overlapping).await.is_none());
        let end = Instant::now() + Duration::from_secs(60);
        while file.stats().oldest_blocked.is_none() {
            assert!(poll_once(&mut overlapping).await.is_none());
            assert!(Instant::now() < end, "{:?}", file.stats());
            std::thread::yield_now();
        }
        // Reads of the same bytes do not, and see what is there.
        let mut reads = Vec::new();
        for round in 0..1000 {
            let offset = round * 4096 % LEN;
            let begin = Instant::now();
            let slice = file.slice(offset as u64, 4096).await.unwrap();
            reads.push(begin.elapsed());
            assert_eq!(slice, content[offset..offset + 4096]);
        }
        reads.sort();
        // A gate of 1 ms in 100 ms may hold some of them up.
        assert!(reads[500] < Duration::from_millis(1), "{:?}", reads[500]);
        // Writes elsewhere do not.
        for round in 0..200 {
            let offset = LEN + round * 4096;
            file.update_region(offset as u64, &[round as u8; 4096])
                .await
                .unwrap();
        }
        assert!(poll_once(&mut overlapping).await.is_none());
        // Nor do other clients.
        let range = format!("bytes={}-{}", LEN, LEN + 4095);
        let answer = get(server.address, "/a", &[("range", &range)]);
        assert_eq!((answer.status, &*answer.body), (206, &[0; 4096][..]));
        let answer = get(server.address, "/a", &[("range", "bytes=0-99")]);
        assert_eq!(answer.body, content[..100]);
        assert!(poll_once(&mut overlapping).await.is_none());
        drop(clients);
        overlapping.await.unwrap();
    });
    let answer = get(server.address, "/a", &[("range", "bytes=0-9")]);
    assert_eq!(answer.body, [0xff; 10]);
});
