//! What asks the servers: `wrk`, and a client that measures each answer.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{clock_gettime, ClockId};

/// What a run of `wrk` has found.
pub(crate) struct Load {
    pub(crate) per_second: f64,
    /// Time of the processor that this process, the server, took for a request, in microseconds.
    pub(crate) cpu_us: f64,
}

/// Asks for the first `len` bytes, by 16 connections.
pub(crate) fn run(address: SocketAddr, len: usize, time: Duration) -> Result<Load, Box<dyn Error>> {
    let before = cpu_time();
    let output = Command::new("wrk")
        .args(["--threads", "1", "--connections", "16", "--duration"])
        .arg(format!("{}s", time.as_secs().max(1)))
        .arg("--header")
        .arg(format!("Range: bytes=0-{}", len - 1))
        .arg(format!("http://{address}/"))
        .output()
        .map_err(|error| format!("wrk: {error} (Debian: apt-get install wrk)"))?;
    let cpu = cpu_time() - before;
    let text = String::from_utf8(output.stdout)?;
    let line = |begin: &str| {
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(begin));
        line.map(str::trim)
    };
    if line("Non-2xx").is_some() || line("Socket errors").is_some() {
        return Err(text.into());
    }
    let per_second: f64 = line("Requests/sec:").ok_or(text.clone())?.parse()?;
    let requests = text.lines().find(|line| line.contains(" requests in "));
    let requests = requests.and_then(|line| line.trim().split(' ').next());
    let requests: f64 = requests.ok_or(text.clone())?.parse()?;
    Ok(Load {
        per_second,
        cpu_us: cpu.as_secs_f64() * 1e6 / requests,
    })
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// How long each request for `small` takes, one after the other, while `large` is being read.
pub(crate) fn latencies(
    address: SocketAddr,
    small: &str,
    large: &str,
) -> io::Result<Vec<Duration>> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let read = Connection::new(address).and_then(|mut connection| connection.get(large));
            done.store(true, Ordering::Relaxed);
            read
        });
        let mut connection = Connection::new(address)?;
        let mut latencies = Vec::new();
        while !done.load(Ordering::Relaxed) || latencies.is_empty() {
            let begin = Instant::now();
            connection.get(small)?;
            latencies.push(begin.elapsed());
            std::thread::sleep(Duration::from_micros(200));
        }
        reading.join().expect("a client that does not panic")?;
        Ok(latencies)
    })
}

/// A connection that is kept open.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn new(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::with_capacity(256 << 10, stream)))
    }

    /// Reads a whole response, and drops it.
    fn get(&mut self, target: &str) -> io::Result<u64> {
        let request = format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes())?;
        let mut len = 0;
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line)?;
            match line.trim_end().split_once(": ") {
                Some(("content-length", value)) => len = value.parse().unwrap_or(0),
                Some(_) => {}
                None if line.starts_with("HTTP/1.1 200") => {}
                None if line == "\r\n" => break,
                None => return Err(io::Error::other(line)),
            }
        }
        io::copy(&mut (&mut self.0).take(len), &mut io::sink())
    }
}
