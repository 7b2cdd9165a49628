//! Follows a configuration file: a service uses what it says, and another program replaces it.
//!
//! ```text
//! cargo run --release --features watch --example watch_config
//! ```
//!
//! The configuration is a copy of this crate's `Cargo.toml`, and the service uses its `version`.
//! An editor changes the version, breaks the file, removes it, and puts it back. The service has
//! to see each good version, and to keep the last one while there is none.

use std::error::Error;
use std::path::Path;

use futures_lite::future::{block_on, or};
use futures_lite::StreamExt;
use mmap_io::watch::ChangeKind;
use mmap_io::{replace, MemoryMappedFile};
use tokio::sync::watch::{channel, Receiver, Sender};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> Outcome {
    block_on(async {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("config.toml");
        let original = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        std::fs::copy(original, &path)?;
        let (state, states) = channel(State::default());
        // The service does not end by itself.
        or(serve(&path, state), edit(&path, states)).await
    })
}

/// The version that the service goes by, and why the file names none: then the last one stays.
type State = (String, Option<String>);

/// The service: reads the file, and again after each change.
async fn serve(path: &Path, state: Sender<State>) -> Outcome {
    let file = MemoryMappedFile::open_ro(path).await?;
    // Begins before the first look, so that no change is missed.
    let mut changes = file.watch_stream().await?;
    drop(file);
    loop {
        match version(path).await {
            Ok(version) => state.send_modify(|state| *state = (version, None)),
            Err(problem) => state.send_modify(|state| state.1 = Some(problem.to_string())),
        }
        // Goes on when the file is replaced, and when there is none for a while.
        match changes.next().await.ok_or("the watch has ended")?.kind {
            ChangeKind::Removed => println!("service   the file is gone"),
            kind => println!("service   {kind:?}"),
        }
    }
}

/// Reads the version from the file that is at the path now: a mapping goes on showing the old one.
async fn version(path: &Path) -> Outcome<String> {
    let file = MemoryMappedFile::open_ro(path).await?;
    let content = file.slice(0, file.len()).await?;
    let mut lines = std::str::from_utf8(&content)?.lines();
    let version = lines.find_map(|line| line.strip_prefix("version = "));
    let version = version.ok_or("it has no version")?;
    Ok(version.trim_matches('"').to_owned())
}

/// The editor: changes the file, and waits each time until the service has noticed.
async fn edit(path: &Path, mut states: Receiver<State>) -> Outcome {
    let original = std::fs::read_to_string(path)?;
    let with = |version: &str| {
        let line = format!("version = \"{}\"", env!("CARGO_PKG_VERSION"));
        original.replacen(&line, &format!("version = \"{version}\""), 1)
    };
    until(&mut states, |state| state.0 == env!("CARGO_PKG_VERSION")).await?;

    for version in ["7.0.0", "7.0.1", "7.1.0"] {
        // Whole at once, so that the service never reads half of a file.
        replace(path, with(version)).await?;
        println!("editor    version {version}");
        until(&mut states, |state| state.0 == version).await?;
    }
    replace(path, "not what it was").await?;
    println!("editor    a file without a version");
    let state = until(&mut states, |state| state.1.is_some()).await?;
    check_kept(&state, "7.1.0")?;

    replace(path, with("7.2.0")).await?;
    until(&mut states, |state| state.0 == "7.2.0").await?;
    std::fs::remove_file(path)?;
    let state = until(&mut states, |state| state.1.is_some()).await?;
    check_kept(&state, "7.2.0")?;

    replace(path, with("8.0.0")).await?;
    println!("editor    a new file, version 8.0.0");
    until(&mut states, |state| state.0 == "8.0.0").await?;
    println!("verified  each version was seen, and kept while there was none");
    Ok(())
}

async fn until(states: &mut Receiver<State>, is_so: impl Fn(&State) -> bool) -> Outcome<State> {
    Ok(states.wait_for(|state| is_so(state)).await?.clone())
}

fn check_kept(state: &State, version: &str) -> Outcome {
    println!("service   keeps version {}", state.0);
    match state.0 == version {
        true => Ok(()),
        false => Err(format!("the service has left version {version}: {state:?}").into()),
    }
}
