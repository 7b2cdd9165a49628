//! The child that replaces whole files, which other handles have mapped.

use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use mmap_io::{replace, MemoryMappedFile};

use crate::protocol::{replaced_name, Message, Version};
use crate::writer::{tell, KEPT};

/// Files that are replaced at the same time.
const TASKS: u64 = 2;
/// Versions of each file.
const VERSIONS: u64 = 12;

/// Replaces one pair of files after the other, until it is killed.
pub(crate) fn run(directory: &Path) -> Result<()> {
    smol::block_on(async {
        for first in (0..).step_by(TASKS as usize) {
            let tasks: Vec<_> = (first..first + TASKS)
                .map(|file| smol::spawn(replace_often(directory.to_path_buf(), file)))
                .collect();
            for task in tasks {
                task.await?;
            }
            for file in first..first + TASKS {
                if let Some(gone) = file.checked_sub(KEPT as u64) {
                    tell(&[Message::Gone { file: gone }])?;
                    std::fs::remove_file(directory.join(replaced_name(gone)))?;
                }
            }
        }
        Ok(())
    })
}

async fn replace_often(directory: PathBuf, file: u64) -> Result<()> {
    let path = directory.join(replaced_name(file));
    // The first version replaces no file.
    let mut old: Option<MemoryMappedFile> = None;
    for number in 0..VERSIONS {
        let version = Version { file, number };
        replace(&path, version.content()).await.context("replace")?;
        tell(&[Message::Replaced(version)])?;
        if let Some(old) = old {
            overwrite(&old, number % 2 == 0).await?;
        }
        old = Some(MemoryMappedFile::open_rw(&path).await.context("open")?);
    }
    Ok(())
}

/// Writes to a file that was replaced: that must not reach the new file.
async fn overwrite(old: &MemoryMappedFile, flushes: bool) -> Result<()> {
    let zeroes = vec![0; old.len() as usize];
    old.update_region(0, &zeroes).await?;
    if flushes {
        old.flush().await?;
    }
    let content = old.slice(0, old.len()).await?;
    ensure!(content[..] == zeroes, "the old file has other bytes");
    Ok(())
}
