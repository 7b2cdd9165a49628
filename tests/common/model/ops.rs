//! The operations, each of them decoded from eight bytes.

/// Bytes of the file at the start. Not a whole number of pages.
pub(crate) const LEN: u64 = 8_000;

/// Eight bytes that say what an operation is. A record that is left out changes no other, so that
/// proptest can shrink a list of them, and a fuzzer can mutate it.
pub(crate) type Record = [u8; 8];

/// An offset and a length.
pub(crate) type Place = (u64, u64);

#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// What takes its turn in the queue.
    Change(Change),
    Look(Look, Place),
    /// Words of this size in bytes, as one view, and the value that is stored to them at once.
    Atomic {
        size: u64,
        at: u64,
        count: usize,
        stored: u8,
    },
    Keep(Upkeep, Place),
    /// Another descriptor appends this many bytes of this value.
    AppendOutside(usize, u8),
    /// Creates or copies onto the file, by one of its names.
    Claim(usize),
    /// These name one of the views that are alive.
    DropView(usize),
    Commit(usize),
    Store(usize, u8),
    /// Drops one of the operations that wait.
    Withdraw(usize),
}

/// An operation that takes its turn among the others that overlap it.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Each place gets the byte, plus the number of places before it.
    Write(Way, Vec<Place>, u8),
    /// Bytes of the file itself, from the first offset to the second.
    WriteOwn(u64, u64, u64),
    /// A mutable view, which is kept, and filled with the byte.
    Mutable(Place, u8),
    TryMutable(Place, u8),
    /// Stores the byte at the beginning of each chunk, and fails at the chunk of this number.
    EachChunk {
        chunk: u64,
        byte: u8,
        stop: u64,
    },
    Append(Durability, u64, u8),
    /// Only if the end is so far behind the known end, or at it.
    AppendAt(u64, u64, u8),
    Resize(u64),
    GrowTo(u64),
    Refresh,
    Copy,
}

impl Change {
    /// Whether it changes bytes that are there, and fails if they are out of bounds in its turn.
    pub(crate) fn fills(&self) -> bool {
        match self {
            Self::Write(..)
            | Self::WriteOwn(..)
            | Self::Mutable(..)
            | Self::TryMutable(..)
            | Self::EachChunk { .. } => true,
            Self::Append(..)
            | Self::AppendAt(..)
            | Self::Resize(_)
            | Self::GrowTo(_)
            | Self::Refresh
            | Self::Copy => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Region(Durability),
    Regions(Durability),
    Bytes(Durability),
    Manager,
    /// By the path of the file, which is opened for it.
    Path,
    Segment,
    Try,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    ByPolicy,
    Durable,
}

/// A way to look at bytes. The views are kept, the copies are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    AsSlice,
    TrySlice,
    Bytes,
    Segment,
    /// `as_slice_bytes` of a handle of its own.
    Pinned,
    /// All of the file in pieces of this size.
    Chunks(u64),
    ChunksOwned(u64),
    // From here on, the call waits.
    Slice,
    Slices,
    ReadBytes,
    ReadRegions,
    ReadInto,
    /// In pieces of this size.
    Stream(u64),
    Reader,
    FillBuf,
}

/// What changes no byte.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Upkeep {
    Flush,
    FlushRange,
    ScheduleFlush,
    ScheduleFlushRange,
    TouchPages,
    TouchRange,
    Prefetch,
    Advise(usize),
    Evict,
    Lock,
    Unlock,
    Metadata,
    /// Opens the file once more, and closes it.
    Reopen,
}

/// An operation, through which handle, and after how many polls its future is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) op: Op,
    pub(crate) handle: usize,
    pub(crate) dropped_after: Option<usize>,
}

impl Step {
    pub(crate) fn decode(record: Record) -> Self {
        let [kind, which, a, b, c, d, byte, flags] = record;
        let number = |high, low, below: u64| u64::from(u16::from_be_bytes([high, low])) % below;
        let place = (number(a, b, 12_000), number(c, d, 5_000));
        // A second place, and a third, which may overlap the first.
        let (at, len) = place;
        let other = ((at * 5 + 701) % 9_000, (len * 3 + 7) % 900);
        let more = ((at * 7 + 2_003) % 9_000, (len * 5 + 1) % 300);
        let how = usize::from(flags >> 4);
        let durability = match flags & 8 {
            0 => Durability::ByPolicy,
            _ => Durability::Durable,
        };
        let index = usize::from(u16::from_be_bytes([a, b]));
        let change = |change| Op::Change(change);
        let op = match kind % 64 {
            0..=5 => Op::Look(look(how, len), place),
            6..=9 => Op::Look(awaited_look(how, len), place),
            10..=22 => {
                let (way, places) = match how {
                    0..=3 => (Way::Region(durability), vec![place]),
                    4..=6 => (Way::Regions(durability), vec![place, other, more]),
                    7..=9 => (Way::Bytes(durability), vec![place]),
                    10 => (Way::Manager, vec![place]),
                    11 => (Way::Path, vec![place]),
                    12 => (Way::Segment, vec![place]),
                    _ => (Way::Try, vec![place]),
                };
                change(Change::Write(way, places, byte))
            }
            23 => change(Change::WriteOwn(other.0, at, len)),
            24..=26 => change(Change::Mutable(place, byte)),
            27 => change(Change::TryMutable(place, byte)),
            28 => change(Change::EachChunk {
                chunk: len,
                byte,
                stop: how as u64,
            }),
            29..=31 => change(Change::Append(durability, len % 2_000, byte)),
            32 => change(Change::AppendAt(at % 2 * 7, len % 2_000, byte)),
            // Sometimes out of the first map.
            33..=35 => change(Change::Resize(match how {
                15 => (1 << 20) + at * 100,
                _ => at,
            })),
            36 => change(Change::GrowTo(at)),
            37 => change(Change::Refresh),
            38 => change(Change::Copy),
            39..=40 => Op::Atomic {
                size: if durability == Durability::Durable {
                    8
                } else {
                    4
                },
                // Now and then misaligned.
                at: if how == 0 { at } else { at & !7 },
                count: (len % 100) as usize,
                stored: byte,
            },
            41..=44 => Op::Keep(upkeep(how, index), place),
            45 => Op::AppendOutside((len % 300) as usize, byte),
            46 => Op::Claim(how),
            47..=57 => Op::DropView(index),
            58 => Op::Commit(index),
            59..=61 => Op::Store(index, byte),
            _ => Op::Withdraw(index),
        };
        Self {
            op,
            handle: usize::from(which),
            dropped_after: (flags & 7 == 7).then_some(usize::from(which) / 64),
        }
    }
}

fn look(how: usize, len: u64) -> Look {
    match how {
        0..=4 => Look::AsSlice,
        5 => Look::TrySlice,
        6..=10 => Look::Bytes,
        11 => Look::Segment,
        12 => Look::Pinned,
        13 | 14 => Look::Chunks(len + 300),
        _ => Look::ChunksOwned(len + 300),
    }
}

fn awaited_look(how: usize, len: u64) -> Look {
    match how {
        0..=3 => Look::Slice,
        4 => Look::Slices,
        5..=7 => Look::ReadBytes,
        8 => Look::ReadRegions,
        9..=11 => Look::ReadInto,
        12 => Look::Stream(len / 3 + 1),
        13 | 14 => Look::Reader,
        _ => Look::FillBuf,
    }
}

fn upkeep(how: usize, index: usize) -> Upkeep {
    match how {
        0..=2 => Upkeep::Flush,
        3 | 4 => Upkeep::FlushRange,
        5 => Upkeep::ScheduleFlush,
        6 => Upkeep::ScheduleFlushRange,
        7 => Upkeep::TouchPages,
        8 => Upkeep::TouchRange,
        9 => Upkeep::Prefetch,
        10 => Upkeep::Advise(index),
        11 => Upkeep::Evict,
        12 => Upkeep::Lock,
        13 => Upkeep::Unlock,
        14 => Upkeep::Metadata,
        _ => Upkeep::Reopen,
    }
}
