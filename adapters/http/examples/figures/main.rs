//! Measures the services beside tower-http's `ServeFile`, under axum on loopback:
//!
//! ```sh
//! cargo run --release --example figures [-- --quick]
//! ```
//!
//! Needs `wrk`, which runs in a process of its own (Debian has a package of that name). It prints
//! one line for each target: `F16 http_4K ours=.. other=.. ratio=.. target>=.. ok|SHORT`. Ours and
//! the other are measured in turns, and medians count. Only the ratios mean something, and those
//! only on a machine that is quiet.

mod load;
mod server;

use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use load::{latencies, Load};
use server::Server;

/// How long and how often is measured.
#[derive(Clone, Copy)]
struct Effort {
    rounds: usize,
    time: Duration,
    cold_mib: usize,
}

const FULL: Effort = Effort {
    rounds: 5,
    time: Duration::from_secs(2),
    cold_mib: 1024,
};

const QUICK: Effort = Effort {
    rounds: 1,
    time: Duration::from_secs(1),
    cold_mib: 64,
};

/// What a request asks for: its name, its bytes, and the least ratio of requests a second and the
/// most ratio of CPU a request that it must reach.
const SIZES: [(&str, usize, f64, f64); 4] = [
    ("1K", 1 << 10, 3.0, 0.25),
    ("4K", 4 << 10, 3.0, 0.25),
    ("64K", 64 << 10, 2.5, 0.3),
    ("1M", 1 << 20, 2.0, 0.35),
];

fn main() -> Result<(), Box<dyn Error>> {
    let effort = match std::env::args().any(|argument| argument == "--quick") {
        true => QUICK,
        false => FULL,
    };
    let directory = tempfile::tempdir_in(".")?;
    hot(&directory.path().join("hot"), effort)?;
    cold(directory.path(), effort)
}

/// Requests a second and CPU a request, for ranges of a file that is in memory.
fn hot(path: &Path, effort: Effort) -> Result<(), Box<dyn Error>> {
    fs::write(path, vec![b'x'; 64 << 20])?;
    let ours = Server::mapped(path)?;
    let other = Server::plain(path)?;
    for (name, len, least, most) in SIZES {
        let mut measured = [Vec::new(), Vec::new()];
        // Without counting: what is opened first, and the caches of the processor.
        for server in [&ours, &other] {
            load::run(server.address, len, effort.time / 2)?;
        }
        for _ in 0..effort.rounds {
            for (server, measured) in [&ours, &other].into_iter().zip(&mut measured) {
                measured.push(load::run(server.address, len, effort.time)?);
            }
        }
        let [ours, other] = measured;
        let median = |loads: &[Load], value: fn(&Load) -> f64| {
            let mut values: Vec<f64> = loads.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let rate = |loads: &[Load]| median(loads, |load| load.per_second);
        let (a, b) = (rate(&ours), rate(&other));
        let verdict = verdict(a / b >= least);
        println!(
            "F16 http_{name} ours={a:.0}/s other={b:.0}/s (ServeFile) ratio={:.2} \
             target>={least} {verdict}",
            a / b
        );
        let cpu = |loads: &[Load]| median(loads, |load| load.cpu_us);
        let (a, b) = (cpu(&ours), cpu(&other));
        let verdict = self::verdict(a / b <= most);
        println!(
            "F16 http_{name}_cpu ours={a:.1}us other={b:.1}us (ServeFile) ratio={:.2} \
             target<={most} {verdict}",
            a / b
        );
    }
    Ok(())
}

/// How long other requests take while a file that is not in memory is being sent.
fn cold(directory: &Path, effort: Effort) -> Result<(), Box<dyn Error>> {
    let large = directory.join("large");
    let mut file = File::create(&large)?;
    for index in 0..effort.cold_mib {
        file.write_all(&vec![index as u8; 1 << 20])?;
    }
    file.sync_all()?;
    fs::write(directory.join("small"), [b'x'; 1024])?;
    let mut p99s = [Vec::new(), Vec::new()];
    let servers = [
        Server::mapped_directory(directory)?,
        Server::plain_directory(directory)?,
    ];
    for _ in 0..effort.rounds {
        for (server, p99s) in servers.iter().zip(&mut p99s) {
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
            let mut latencies = latencies(server.address, "/small", "/large")?;
            latencies.sort();
            p99s.push(latencies[latencies.len() * 99 / 100]);
        }
    }
    let [a, b] = p99s.map(|mut p99s: Vec<Duration>| {
        p99s.sort();
        p99s[p99s.len() / 2].as_secs_f64() * 1e6
    });
    println!(
        "F16 http_beside_cold_p99 ours={a:.0}us other={b:.0}us (ServeDir) ratio={:.2} \
         target<=1.0 {}",
        a / b,
        verdict(a <= b)
    );
    Ok(())
}

fn verdict(reached: bool) -> &'static str {
    match reached {
        true => "ok",
        false => "SHORT",
    }
}
