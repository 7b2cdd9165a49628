//! Cuts the power of a disk while mmap-io writes to it, and then requires every acknowledged write
//! in full, with the name and the length of its file.
//!
//! Killing a process does not test that, since the page cache survives. Copying the file under a
//! loop device does not either, since bytes get there without a flush of the disk's cache. So this
//! process serves the disk itself ([`server`]), and knows what was flushed and what was not
//! ([`disk`]). A control scenario shows that a missing flush is detected: it writes everything out,
//! and omits only the flush of the disk.
//!
//! After that the disk fails, at one request after the other ([`faults`]).
//!
//! Needs root, FUSE and loop devices; if one of them is missing, the program reports that and
//! succeeds.

mod check;
mod child;
mod cuts;
mod disk;
mod faults;
mod image;
#[allow(dead_code)] // Its own example uses the rest.
#[path = "../../../examples/durable_log/log.rs"]
mod log;
mod log_writer;
mod mount;
mod protocol;
mod replacer;
mod rig;
mod scenario;
mod server;
mod watchdog;
mod writer;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use fastrand::Rng;

use crate::cuts::Tally;
use crate::mount::FileSystem;
use crate::rig::Rig;
use crate::scenario::Scenario;
use crate::watchdog::Watchdog;

const USAGE: &str = "\
power_cut [--quick] [--images N] [--only SCENARIO] [--fs ext4|xfs] [--seed N]
  --images N       images of each scenario, at least
  --only SCENARIO  this one alone; \"faults\" are the failing disks";

const FAULTS: &str = "faults";

/// What xfs is asked to do, unless told otherwise: its recovery takes long.
const ON_XFS: [Scenario; 5] = [
    Scenario::AfterCreate,
    Scenario::AfterGrow,
    Scenario::ConcurrentTasks,
    Scenario::Replace,
    Scenario::Control,
];

#[derive(Default)]
struct Options {
    quick: bool,
    images: Option<usize>,
    only: Option<String>,
    file_system: Option<FileSystem>,
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["--writer", scenario, directory] => Scenario::named(scenario)
            .context("no such scenario")
            .and_then(|scenario| match scenario {
                Scenario::DurableLog => log_writer::run(Path::new(directory), 0, 0),
                Scenario::Replace => replacer::run(Path::new(directory)),
                _ => writer::run(scenario, Path::new(directory)),
            })
            .map(|()| true),
        [log_writer::REBORN, directory, log, life] => {
            let numbers = log.parse().and_then(|log| Ok((log, life.parse()?)));
            let numbers = numbers.context("which life of which log?");
            numbers
                .and_then(|(log, life)| log_writer::run(Path::new(directory), log, life))
                .map(|()| true)
        }
        [faults::FOREGROUND | faults::BACKGROUND, directory] => {
            let is_background = words[0] == faults::BACKGROUND;
            faults::run(Path::new(directory), is_background).map(|()| true)
        }
        _ => Options::parse(&words).and_then(|options| run(&options)),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("power_cut: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// `false` after any loss.
fn run(options: &Options) -> Result<bool> {
    // SAFETY: the call takes nothing.
    if unsafe { libc::geteuid() } != 0 {
        return skip("power_cut", "not root");
    }
    if let Err(error) = mount::enter_namespace() {
        return skip("power_cut", &format!("no mount namespace: {error}"));
    }
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let watchdog = Watchdog::start(Duration::from_secs(60));
    let mut good = true;
    println!(
        "{:<5} {:<22} {:>6} {:>9} {:>7} {:>6}",
        "fs", "scenario", "images", "checked", "losses", "s"
    );
    for kind in options.file_systems() {
        // What is missing shows here: the first thing to be made of everything.
        if let Err(error) = Rig::new(kind) {
            if !is_for_want_of_something(&error) {
                return Err(error);
            }
            let name = format!("power_cut on {}", kind.name());
            good &= skip(&name, &format!("{error:#}"))?;
            continue;
        }
        for scenario in options.scenarios(kind) {
            let begin = Instant::now();
            let images = options.images(kind);
            let tally = cuts::cut_during(scenario, kind, images, &mut rng, &watchdog);
            let tally = tally.with_context(|| format!("{} on {}", scenario.name(), kind.name()))?;
            report(kind, scenario, &tally, begin.elapsed());
            good &= is_good(scenario, &tally);
        }
        if kind == FileSystem::Ext4 && options.wants(FAULTS) {
            good &= break_disks(options.quick, &watchdog);
        }
    }
    Ok(good)
}

fn report(kind: FileSystem, scenario: Scenario, tally: &Tally, took: Duration) {
    println!(
        "{:<5} {:<22} {:>6} {:>9} {:>7} {:>6.1}",
        kind.name(),
        scenario.name(),
        tally.images,
        tally.checked,
        tally.losses.len(),
        took.as_secs_f64()
    );
}

fn is_good(scenario: Scenario, tally: &Tally) -> bool {
    if scenario != Scenario::Control {
        for loss in tally.losses.iter().take(10) {
            println!("  {loss}");
        }
        return tally.losses.is_empty();
    }
    if tally.barrier_losses == 0 {
        println!("  the control has lost nothing: this test would not see a missing flush");
    }
    if tally.all_losses > 0 {
        println!("  the control has lost what was on the disk");
    }
    tally.barrier_losses > 0 && tally.all_losses == 0
}

fn break_disks(quick: bool, watchdog: &Watchdog) -> bool {
    let (mut good, mut runs, mut forgotten) = (true, 0, 0);
    for fault in &faults::all(quick) {
        watchdog.pat();
        // In the background one failed flush is as good as another.
        let modes = [faults::FOREGROUND, faults::BACKGROUND];
        for mode in &modes[..if fault.nth == 1 { 2 } else { 1 }] {
            runs += 1;
            match faults::fail_during(*fault, mode) {
                Ok(plain_forgets) => forgotten += u32::from(plain_forgets),
                Err(error) => {
                    println!("  {mode}, {fault:?}: {error:#}");
                    good = false;
                }
            }
        }
    }
    println!("{runs} failing disks; after {forgotten} of them a plain fsync of the file succeeds");
    good
}

/// Whether a program, a device, a file system or a right is missing.
fn is_for_want_of_something(error: &anyhow::Error) -> bool {
    let mut causes = error
        .chain()
        .filter_map(|it| it.downcast_ref::<io::Error>());
    causes.any(|cause| {
        matches!(
            cause.raw_os_error(),
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::EPERM | libc::EACCES)
        )
    })
}

/// Reports why a test cannot run here, in the file that continuous integration reads.
fn skip(what: &str, reason: &str) -> Result<bool> {
    let line = format!("skipped: {what}: {reason}\n");
    print!("{line}");
    if let Some(log) = std::env::var_os("MMAP_IO_SKIP_LOG") {
        let mut log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)?;
        log.write_all(line.as_bytes())?;
    }
    Ok(true)
}

impl Options {
    fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self::default();
        let mut words = words.iter().copied();
        while let Some(word) = words.next() {
            let mut value = || words.next().context(USAGE);
            match word {
                "--quick" => options.quick = true,
                "--images" => options.images = Some(value()?.parse().context(USAGE)?),
                "--seed" => options.seed = Some(value()?.parse().context(USAGE)?),
                "--only" => options.only = Some(value()?.into()),
                "--fs" => {
                    options.file_system = Some(match value()? {
                        "ext4" => FileSystem::Ext4,
                        "xfs" => FileSystem::Xfs,
                        _ => bail!(USAGE),
                    });
                }
                _ => bail!(USAGE),
            }
        }
        if let Some(name) = &options.only {
            let known = name == FAULTS || Scenario::named(name).is_some();
            ensure!(known, "no scenario {name:?}");
        }
        Ok(options)
    }

    fn file_systems(&self) -> Vec<FileSystem> {
        match self.file_system {
            Some(kind) => vec![kind],
            None if self.quick => vec![FileSystem::Ext4],
            None => vec![FileSystem::Ext4, FileSystem::Xfs],
        }
    }

    fn scenarios(&self, kind: FileSystem) -> Vec<Scenario> {
        let of_kind = match (kind, &self.only) {
            (FileSystem::Xfs, None) => &ON_XFS[..],
            _ => Scenario::ALL,
        };
        let wanted = of_kind.iter().copied();
        wanted.filter(|it| self.wants(it.name())).collect()
    }

    fn wants(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == name)
    }

    fn images(&self, kind: FileSystem) -> usize {
        self.images.unwrap_or(match (self.quick, kind) {
            (true, _) => 8,
            (false, FileSystem::Ext4) => 100,
            (false, FileSystem::Xfs) => 10,
        })
    }
}
