//! Looks at a file, or at a process, from outside: which pages are dirty, which are in the page
//! cache, and which system calls are made.

use std::collections::HashMap;
use std::fs::{self, File};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::child::Child;
use super::skip;

/// Looks at the pages of a file.
pub(crate) struct Probe {
    path: PathBuf,
    file: File,
}

impl Probe {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            file: File::open(path).unwrap(),
        }
    }

    /// Whether no page of the file is dirty or being written back.
    pub(crate) fn is_clean(&self) -> bool {
        match self.unwritten(0, 0) {
            Some(pages) => pages == 0,
            // The older way of the kernel to tell, for what is mapped here.
            None => self.dirty_and_mapped() == 0,
        }
    }

    /// Waits until the file is clean: long before the kernel writes it back of its own accord,
    /// which it does after 30 s by default.
    #[track_caller]
    pub(crate) fn wait_until_clean(&self) {
        let deadline = Instant::now() + Duration::from_secs(15);
        while !self.is_clean() {
            assert!(Instant::now() < deadline, "dirty pages were not flushed");
            std::thread::yield_now();
        }
    }

    /// Pages that are dirty or being written back, by `cachestat(2)` (Linux 6.5). All of them if
    /// `len` is 0.
    pub(crate) fn unwritten(&self, offset: u64, len: u64) -> Option<u64> {
        #[repr(C)]
        struct Range {
            offset: u64,
            len: u64,
        }
        #[repr(C)]
        #[derive(Default)]
        struct CacheStat {
            cached: u64,
            dirty: u64,
            writeback: u64,
            evicted: u64,
            recently_evicted: u64,
        }
        const SYS_CACHESTAT: libc::c_long = 451;
        let range = Range { offset, len };
        let mut stat = CacheStat::default();
        let descriptor = self.file.as_raw_fd();
        // SAFETY: both structures are live for the call, and laid out as it says.
        let result = unsafe { libc::syscall(SYS_CACHESTAT, descriptor, &range, &mut stat, 0) };
        (result == 0).then_some(stat.dirty + stat.writeback)
    }

    /// KiB, by `/proc/self/smaps`.
    fn dirty_and_mapped(&self) -> u64 {
        let name = self.path.to_str().unwrap();
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_ours = false;
        let mut dirty = 0;
        for line in maps.lines() {
            if line.contains('/') || line.contains('-') {
                is_ours = line.ends_with(name);
            }
            let value = ["Shared_Dirty:", "Private_Dirty:"]
                .iter()
                .find_map(|key| line.strip_prefix(key));
            if let (true, Some(value)) = (is_ours, value) {
                let value = value.trim().trim_end_matches(" kB");
                dirty += value.parse::<u64>().unwrap();
            }
        }
        dirty
    }
}

/// Makes a change again and again until the probe sees a dirty page: the system may write a page back
/// at any time, for example when another program calls `sync(2)`.
macro_rules! until_dirty {
    ($probe:expr, $change:expr) => {{
        let mut tries = 0;
        while tries == 0 || $probe.is_clean() {
            tries += 1;
            assert!(tries < 100, "expected the probe to see dirty pages");
            $change;
        }
    }};
}
pub(crate) use until_dirty;

/// Whether the kernel shows dirty pages of a file on that disk; says so if not.
pub(crate) fn can_probe(test: &str, dir: &Path) -> bool {
    let path = dir.join("trial");
    let sees = (0..100).any(|_| {
        fs::write(&path, b"x").unwrap();
        !Probe::new(&path).is_clean()
    });
    if !sees {
        skip(test, "neither cachestat(2) nor smaps sees a dirty page");
    }
    sees
}

/// Pages of a part of a file that are in the page cache (`mincore(2)`).
pub(crate) fn cached(path: &Path, offset: usize, len: usize) -> usize {
    let file = File::open(path).unwrap();
    // SAFETY: nothing is read through the map.
    let map = unsafe { memmap2::MmapOptions::new().map(&file) }.unwrap();
    let mut present = vec![0_u8; len.div_ceil(4096)];
    let addr = map.as_ptr().wrapping_add(offset).cast_mut();
    // SAFETY: the range lies in the live map, and there is a byte for each of its pages.
    let result = unsafe { libc::mincore(addr.cast(), len, present.as_mut_ptr()) };
    assert_eq!(result, 0);
    present.iter().filter(|page| **page & 1 == 1).count()
}

/// A mapping of this process, or a part of one with flags of its own, by `/proc/self/smaps`.
#[derive(Debug)]
pub(crate) struct Area {
    pub(crate) addresses: Range<usize>,
    /// Two letters each, by the names of `VmFlags`: `lo` is locked, `hg` is for huge pages.
    pub(crate) flags: Vec<String>,
    /// Bytes that are mapped at this moment.
    pub(crate) resident: u64,
}

/// The mappings of this process.
pub(crate) fn areas() -> Vec<Area> {
    let mut areas: Vec<Area> = Vec::new();
    for line in fs::read("/proc/self/smaps")
        .unwrap()
        .split(|byte| *byte == b'\n')
    {
        // Paths are not all UTF-8.
        let line = String::from_utf8_lossy(line);
        let mut words = line.split_ascii_whitespace();
        let name = words.next().unwrap_or_default();
        let address = |text| usize::from_str_radix(text, 16).ok();
        let bounds = name.split_once('-');
        let bounds = bounds.and_then(|(start, end)| address(start).zip(address(end)));
        if let Some((start, end)) = bounds {
            areas.push(Area {
                addresses: start..end,
                flags: Vec::new(),
                resident: 0,
            });
        } else if let Some(area) = areas.last_mut() {
            match name {
                "VmFlags:" => area.flags = words.map(str::to_owned).collect(),
                "Rss:" => area.resident = words.next().unwrap().parse::<u64>().unwrap() << 10,
                _ => {}
            }
        }
    }
    areas
}

/// Whether the mapping at an address has a flag.
pub(crate) fn has_flag(addr: *const u8, flag: &str) -> bool {
    let mut areas = areas().into_iter();
    let area = areas.find(|area| area.addresses.contains(&(addr as usize)));
    area.unwrap().flags.iter().any(|other| other == flag)
}

/// Whether this kernel has huge pages at all, for a process that asks for them.
pub(crate) fn has_huge_pages(test: &str) -> bool {
    let setting = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    let has = setting.is_ok_and(|setting| !setting.contains("[never]"));
    if !has {
        skip(test, "the kernel has no transparent huge pages");
    }
    has
}

/// Whether `strace` is there and may trace; says so if not.
pub(crate) fn can_trace(test: &str) -> bool {
    let mut trial = Command::new("strace");
    let problem = match trial.args(["-o", "/dev/null", "true"]).output() {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).replace('\n', " "),
        Err(error) => format!("strace: {error}"),
    };
    skip(test, &problem);
    false
}

/// Runs a child on `dir` under `strace`, which gets `options`, and returns the trace: one line a
/// call, in the order in which the calls began.
#[track_caller]
pub(crate) fn trace(child: Child, dir: &Path, options: &[&str]) -> String {
    let trace = dir.join("trace");
    let mut program = vec!["strace", "-f", "-o", trace.to_str().unwrap()];
    program.extend(options);
    child.dir(dir).under(&program).passes();
    join_split_calls(&fs::read_to_string(trace).unwrap())
}

/// `strace` splits the line of a call during which another thread makes one, into `call(arguments
/// <unfinished ...>` and `<... call resumed>rest`. Appends the second to the first.
fn join_split_calls(trace: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut begun = HashMap::new();
    for line in trace.lines() {
        let (thread, call) = line.split_once(' ').unwrap();
        let resumed = call.trim_start().strip_prefix("<... ");
        if let Some(begin) = line.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, lines.len());
            lines.push(begin.to_owned());
        } else if let Some(resumed) = resumed {
            let (_, rest) = resumed.split_once(" resumed>").unwrap();
            lines[begun.remove(thread).unwrap()].push_str(rest);
        } else {
            lines.push(line.to_owned());
        }
    }
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}

/// Makes a system call that fails, by which a trace can be told apart into steps.
pub(crate) fn end_of_step() {
    // SAFETY: the call takes no pointer; the descriptor is invalid.
    unsafe { libc::fsync(-1) };
}
