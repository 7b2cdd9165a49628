//! Runs eight queries of DataFusion over the same parquet files twice: through `MappedFileSystem`,
//! and through object_store's `LocalFileSystem`. Compares every result, and prints the times. With
//! the feature `ballista`, a cluster of processes then runs the same queries.
//!
//! ```text
//! cargo run --release -- [--data DIR] [--rows N] [--rounds N]
//! ```
//!
//! The files (about 470 MB for the default of 8,000,000 rows) are made in a temporary directory,
//! which is removed at the end; those in `DIR` stay, and the next run finds them. Needs Linux. Each
//! time is a median: *hot* of interleaved rounds in one session for each store, *cold* of rounds
//! with a new session each, the opening of the tables included, whose files are not in memory.

#[cfg(feature = "ballista")]
mod cluster;
mod generate;
mod measure;
mod queries;
mod ranges;
mod report;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::object_store::local::LocalFileSystem;
use datafusion::object_store::ObjectStore;
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use mmap_io_object_store::MappedFileSystem;
use url::Url;

use crate::generate::TABLES;
use crate::queries::{Query, QUERIES};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What the user asks for.
struct Options {
    data: Option<PathBuf>,
    rows: usize,
    rounds: usize,
}

fn main() -> Outcome<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    #[cfg(feature = "ballista")]
    if let Some(member) = cluster::Member::from_arguments(&arguments)? {
        return runtime.block_on(member.serve());
    }
    let options = options(&arguments)?;
    // On a worker thread, as the tasks of a service are.
    runtime.block_on(runtime.spawn(compare(options)))?
}

async fn compare(options: Options) -> Outcome<()> {
    let temporary;
    let directory = match &options.data {
        Some(directory) => directory,
        None => {
            temporary = tempfile::tempdir()?;
            temporary.path()
        }
    };
    let data = directory.join(options.rows.to_string());
    generate::generate(&data, options.rows)?;
    // As the system names it in its list of maps.
    let data = data.canonicalize()?;
    let files = generate::files(&data)?;
    println!(
        "{} files, {} MB in {}",
        files.len(),
        files.iter().map(|(_, len)| len).sum::<u64>() / 1_000_000,
        data.display()
    );

    let store = MappedFileSystem::new();
    let local = LocalFileSystem::new();
    ranges::measure(&store, &local, &files).await?;
    let mapped = session(Arc::new(store.clone()), &data).await?;
    let local = session(Arc::new(local), &data).await?;
    let mut expected = Vec::new();
    for query in QUERIES {
        expected.push(measure::hot(query, &mapped, &local, options.rounds).await?);
    }
    println!("{:?}", store.stats());
    // Pages of a live map stay in memory.
    drop((mapped, local, store));
    measure::cold(&data, &files, &expected, options.rounds).await?;
    println!("every result is the same with both stores");

    #[cfg(feature = "ballista")]
    cluster::run(&data, &expected).await?;
    Ok(())
}

/// A session whose files are read through `store`, with the tables.
async fn session(store: Arc<dyn ObjectStore>, data: &Path) -> Outcome<SessionContext> {
    let session = SessionContext::new();
    open_tables(&session, store, data).await?;
    Ok(session)
}

/// Makes `session` read files through `store`, and opens the tables.
async fn open_tables(
    session: &SessionContext,
    store: Arc<dyn ObjectStore>,
    data: &Path,
) -> Outcome<()> {
    session.register_object_store(&all_files()?, store);
    for table in TABLES {
        let directory = format!("{}/", data.join(table).display());
        let options = ParquetReadOptions::default();
        session.register_parquet(table, directory, options).await?;
    }
    Ok(())
}

/// What a store of local files is registered for.
fn all_files() -> Outcome<Url> {
    Ok(Url::parse("file://")?)
}

/// Runs the statements of a query one after the other, and returns their results as text.
async fn run(session: &SessionContext, query: &Query) -> Outcome<String> {
    let mut results = String::new();
    for statement in query.statements {
        let batches = session.sql(statement).await?.collect().await?;
        results += &pretty_format_batches(&batches)?.to_string();
        results.push('\n');
    }
    Ok(results)
}

fn check(query: &Query, found: &str, expected: &str) -> Outcome<()> {
    match found == expected {
        true => Ok(()),
        false => {
            let name = query.name;
            Err(format!("{name}: the results differ\n{found}\ninstead of\n{expected}").into())
        }
    }
}

fn options(arguments: &[String]) -> Outcome<Options> {
    let mut options = Options {
        data: None,
        rows: 8_000_000,
        rounds: 7,
    };
    let mut arguments = arguments.iter();
    while let Some(name) = arguments.next() {
        let value = arguments
            .next()
            .ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--data" => options.data = Some(std::path::absolute(value)?),
            "--rows" => options.rows = value.parse()?,
            "--rounds" => options.rounds = value.parse()?,
            _ => return Err(format!("unknown option {name}").into()),
        }
    }
    // Each file has rows, and each time a median.
    if options.rows < 1000 || options.rounds == 0 {
        return Err("at least 1000 rows and 1 round".into());
    }
    Ok(options)
}
