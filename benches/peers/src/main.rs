//! Measures `mmap-io` against what its users would write without it: `memmap2`, a blocking pool
//! around the synchronous `mmap-io` 1.1, `std::fs`.
//!
//! ```text
//! cargo run --release --manifest-path benches/peers/Cargo.toml -- [F1 F9 ..] [OPTIONS]
//!
//!   F1 F9 ..       run these figures only
//!   --quick        less work and fewer rounds, the same checks: all figures within a minute
//!   --json FILE    write every line as JSON as well
//!   --svg DIR      write one bar chart a figure, `DIR/f01.svg` and so on
//! ```
//!
//! Machines are shared and noisy, so only ratios count, between two sides that were measured in the
//! same run: the sides take turns, and their medians are compared. Every pair also checks that both
//! sides did the same work. The program prints one line for each target, with the ratio in the
//! direction in which the target is stated; a line that ends in `no target` is for information.
//!
//! The exit code tells whether the figures are *valid*, not whether they are good: a missed target
//! is printed as `SHORT`, while a failed operation, or two sides that did different work, end the
//! run with an error.

mod alloc;
mod append;
mod beside_flush;
mod beside_sync;
mod bounded;
mod bulk;
mod bytes_views;
mod chart;
mod cold_batch;
mod contention;
mod durable;
mod files;
mod fixture;
mod group_commit;
mod harness;
mod hazard;
mod last_drop;
mod many_files;
mod os;
mod reads;
mod report;
mod residency;
mod scan;
mod stall;
mod ticker;
mod whole_file;
mod writes;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use crate::harness::{Bench, Result};
use crate::report::Line;

#[global_allocator]
static ALLOCATOR: alloc::Counting = alloc::Counting;

/// The longest a figure may take.
const FIGURE_SECONDS: f64 = 30.0;

/// One row of the list of figures: its name, and what measures it.
struct Figure {
    id: &'static str,
    run: fn(&Bench) -> Result<Vec<Line>>,
}

const FIGURES: &[Figure] = &[
    Figure {
        id: "F1",
        run: reads::read_write_mapping,
    },
    Figure {
        id: "F2",
        run: reads::read_write_mapping_vs_sync,
    },
    Figure {
        id: "F3",
        run: reads::read_only_mapping,
    },
    Figure {
        id: "F4",
        run: reads::threads,
    },
    Figure {
        id: "F5",
        run: scan::scan,
    },
    Figure {
        id: "F6",
        run: group_commit::many_tasks,
    },
    Figure {
        id: "F7",
        run: durable::one_task,
    },
    Figure {
        id: "F8",
        run: group_commit::scattered,
    },
    Figure {
        id: "F9",
        run: writes::many_tasks,
    },
    Figure {
        id: "F10",
        run: writes::one_task,
    },
    Figure {
        id: "F11",
        run: bulk::overwrite_cold,
    },
    Figure {
        id: "F12",
        run: writes::overwrite_hot,
    },
    Figure {
        id: "F13",
        run: bulk::fill_fresh,
    },
    Figure {
        id: "F14",
        run: stall::stall,
    },
    Figure {
        id: "F15",
        run: residency::slice_resident,
    },
    Figure {
        id: "F17",
        run: files::copy,
    },
    Figure {
        id: "F18",
        run: many_files::many_files,
    },
    Figure {
        id: "F19",
        run: contention::growth,
    },
    Figure {
        id: "F20",
        run: contention::read_beside_writes,
    },
    Figure {
        id: "F21",
        run: |bench| {
            let mut lines = beside_flush::write_beside_flush(bench)?;
            lines.extend(beside_sync::write_beside_sync(bench)?);
            Ok(lines)
        },
    },
    Figure {
        id: "F22",
        run: bytes_views::bytes,
    },
    Figure {
        id: "F23",
        run: files::open_close,
    },
    Figure {
        id: "F24",
        run: last_drop::last_drop,
    },
    Figure {
        id: "F26",
        run: cold_batch::cold_batch,
    },
    Figure {
        id: "F27",
        run: bounded::bounded_memory,
    },
    Figure {
        id: "F30",
        run: hazard::async_hazard,
    },
    Figure {
        id: "F31",
        run: append::append,
    },
];

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args
        .next()
        .is_some_and(|first| first == beside_sync::CLEAN_PAGES)
    {
        let cleaned = beside_sync::clean_pages(args.next().unwrap_or_default().into());
        return exit_code(cleaned);
    }
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    exit_code(run(&args))
}

fn exit_code(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the chosen figures, prints each as it ends, and then writes the requested files.
fn run(args: &Args) -> Result<()> {
    let mut results = Vec::new();
    for figure in &args.figures {
        let start = Instant::now();
        // A new one each time: no figure inherits the files or the idle pool threads of another.
        let bench = Bench::new(args.quick)?;
        let lines = (figure.run)(&bench).map_err(|error| format!("{}: {error}", figure.id))?;
        for line in &lines {
            println!("{} {line}", figure.id);
        }
        let seconds = start.elapsed().as_secs_f64();
        if seconds > FIGURE_SECONDS {
            eprintln!(
                "{} took {seconds:.0} s, more than {FIGURE_SECONDS} s",
                figure.id
            );
        }
        results.push((figure.id, lines));
    }
    if let Some(path) = &args.json {
        fs::write(path, report::json(&results))?;
    }
    if let Some(dir) = &args.svg {
        fs::create_dir_all(dir)?;
        for (id, lines) in &results {
            fs::write(dir.join(chart::file_name(id)), chart::svg(id, lines))?;
        }
    }
    Ok(())
}

/// The options of the command line.
struct Args {
    figures: Vec<&'static Figure>,
    quick: bool,
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
}

impl Args {
    fn parse(mut args: impl Iterator<Item = String>) -> std::result::Result<Self, String> {
        let mut parsed = Self {
            figures: Vec::new(),
            quick: false,
            json: None,
            svg: None,
        };
        while let Some(arg) = args.next() {
            let mut value = || {
                args.next()
                    .map(PathBuf::from)
                    .ok_or(format!("{arg} needs a value"))
            };
            match arg.as_str() {
                "--quick" => parsed.quick = true,
                "--json" => parsed.json = Some(value()?),
                "--svg" => parsed.svg = Some(value()?),
                name => parsed.figures.push(
                    FIGURES
                        .iter()
                        .find(|figure| figure.id.eq_ignore_ascii_case(name))
                        .ok_or_else(|| {
                            let known: Vec<_> = FIGURES.iter().map(|figure| figure.id).collect();
                            format!("no figure {name}; there are {}", known.join(" "))
                        })?,
                ),
            }
        }
        if parsed.figures.is_empty() {
            parsed.figures.extend(FIGURES);
        }
        Ok(parsed)
    }
}
