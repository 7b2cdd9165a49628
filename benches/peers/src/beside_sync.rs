//! Measures that small writes never wait for the disk, while another process has the system clean
//! the pages all the time.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use mmap_io::MemoryMappedFile;

use crate::fixture::{file, offsets, ours_written_once, stream, AFTER, MIB};
use crate::harness::{Bench, Result};
use crate::os;
use crate::report::{Goal, Line};
use crate::ticker::{beside_ticker, Lateness};
use crate::writes::LEN;

/// The first argument of the process that cleans pages.
pub(crate) const CLEAN_PAGES: &str = "clean-pages";

/// Where the writes are. Few pages, so that most writes find theirs as the write before has left it.
const RANGE: u64 = MIB;

/// Of F21: major faults, and the lateness of a ticker on the same thread, of writes that complete
/// where they are polled, and of writes that are queued.
pub(crate) fn write_beside_sync(bench: &Bench) -> Result<Vec<Line>> {
    let paths = [
        file(bench, "inline", 16 * MIB)?,
        file(bench, "queued", 16 * MIB)?,
    ];
    let inline = ours_written_once(bench, &paths[0])?;
    let queued = ours_written_once(bench, &paths[1])?;
    // SAFETY: nothing is stored through it. The crate cannot know that, and queues each write.
    let _ = unsafe { queued.as_mut_ptr()? };

    let (mut late, mut late_queued) = (Lateness::new()?, Lateness::new()?);
    let mut major_faults = 0;
    let writes = bench.amount(1_000_000, 50_000);
    let mut turn = |map: &MemoryMappedFile, path, writes, late: &mut Lateness| -> Result<()> {
        let _cleaner = Cleaner::start(path)?;
        let map = map.clone();
        let before = map.stats();
        let turn = beside_ticker(&bench.current, async move {
            for offset in offsets(stream(0, 0), 0..RANGE, LEN).take(writes as usize) {
                map.update_region(offset, AFTER.at(offset, LEN)).await?;
            }
            let after = map.stats();
            Ok(after.inline_updates - before.inline_updates)
        })?;
        late.add(&turn)?;
        major_faults += turn.major_faults;
        let is_inline = 2 * turn.work > writes;
        if is_inline != path.ends_with("inline") {
            return Err(format!("{} of {writes} writes were inline", turn.work).into());
        }
        Ok(())
    };
    turn(&inline, &paths[0], writes, &mut late)?;
    // A queued write takes many times as long.
    turn(&queued, &paths[1], writes / 20, &mut late_queued)?;
    Ok(vec![
        Line::count("write_beside_sync_major_faults", major_faults, 0),
        Line::times(
            "write_beside_sync_tick_p999",
            late.p999(),
            late_queued.p999() + 1e6,
            "queued + 1 ms",
            Goal::AtMost(1.0),
        ),
    ])
}

/// A process that cleans the pages of a file, until this is dropped.
struct Cleaner(Child);

impl Cleaner {
    fn start(path: &Path) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        Ok(Self(command.arg(CLEAN_PAGES).arg(path).spawn()?))
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        // It ends by nothing else.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Writes the pages of a file out, again and again: alone, by `msync`, and with all others, by `sync`.
pub(crate) fn clean_pages(path: PathBuf) -> Result<()> {
    let file = std::fs::File::options().read(true).write(true).open(path)?;
    // SAFETY: no byte of the map is touched.
    let map = unsafe { memmap2::MmapMut::map_mut(&file)? };
    loop {
        map.flush()?;
        os::sync()?;
    }
}
