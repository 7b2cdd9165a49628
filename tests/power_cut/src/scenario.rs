//! The list of scenarios: the ways to make bytes durable that are tested.

use mmap_io::FlushPolicy;

/// A way to make bytes durable; [`writer`](crate::writer) takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    UpdateRegionAsync,
    WriteBytesAsync,
    UpdateRegionsAsync,
    Flush,
    FlushRange,
    Commit,
    PolicyAlways,
    EveryBytes,
    EveryWrites,
    EveryMillis,
    AfterCreate,
    AfterGrow,
    AfterShrink,
    Overwrites,
    ConcurrentTasks,
    /// A file that grows by each record.
    Append,
    /// Whole files that replace one another.
    Replace,
    /// The log of the examples; [`log_writer`](crate::log_writer) appends to it.
    DurableLog,
    /// Not durable: every byte has got to the disk, but the disk's cache was not flushed.
    Control,
}

impl Scenario {
    pub(crate) const ALL: &'static [Self] = &[
        Self::UpdateRegionAsync,
        Self::WriteBytesAsync,
        Self::UpdateRegionsAsync,
        Self::Flush,
        Self::FlushRange,
        Self::Commit,
        Self::PolicyAlways,
        Self::EveryBytes,
        Self::EveryWrites,
        Self::EveryMillis,
        Self::AfterCreate,
        Self::AfterGrow,
        Self::AfterShrink,
        Self::Overwrites,
        Self::ConcurrentTasks,
        Self::Append,
        Self::Replace,
        Self::DurableLog,
        Self::Control,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::UpdateRegionAsync => "update_region_async",
            Self::WriteBytesAsync => "write_bytes_async",
            Self::UpdateRegionsAsync => "update_regions_async",
            Self::Flush => "flush",
            Self::FlushRange => "flush_range",
            Self::Commit => "commit",
            Self::PolicyAlways => "policy_always",
            Self::EveryBytes => "every_bytes",
            Self::EveryWrites => "every_writes",
            Self::EveryMillis => "every_millis",
            Self::AfterCreate => "after_create",
            Self::AfterGrow => "after_grow",
            Self::AfterShrink => "after_shrink",
            Self::Overwrites => "overwrites",
            Self::ConcurrentTasks => "concurrent_tasks",
            Self::Append => "append",
            Self::Replace => "replace",
            Self::DurableLog => "durable_log",
            Self::Control => "control",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|it| it.name() == name)
    }

    pub(crate) fn policy(self) -> FlushPolicy {
        match self {
            Self::PolicyAlways => FlushPolicy::Always,
            Self::EveryBytes => FlushPolicy::EveryBytes(BYTES),
            Self::EveryWrites => FlushPolicy::EveryWrites(WRITES),
            Self::EveryMillis => FlushPolicy::EveryMillis(5),
            _ => FlushPolicy::Never,
        }
    }

    /// Slots of a new file.
    pub(crate) fn slots(self) -> u64 {
        match self {
            Self::AfterCreate | Self::AfterGrow => 1,
            Self::Overwrites => 3,
            Self::ConcurrentTasks => 2 * TASKS,
            _ => 16,
        }
    }
}

/// Of [`Scenario::ConcurrentTasks`].
pub(crate) const TASKS: u64 = 64;
/// The threshold of [`Scenario::EveryBytes`]: two to five records, mostly.
pub(crate) const BYTES: usize = 9000;
/// The threshold of [`Scenario::EveryWrites`].
pub(crate) const WRITES: usize = 3;
