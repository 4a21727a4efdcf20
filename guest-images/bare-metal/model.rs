//! What the bare-metal guest writes, and where: one description for the guest and for whoever checks its memory.
//!
//! The guest takes this file in as a module, and so does a test on the host (`#[path = ".../model.rs"] mod model;`).
//! It needs nothing but `core`.
//!
//! ```text
//! HEADER_ADDRESS, one page:              (little-endian; offsets are of `Header`, pinned by a test)
//!   0  magic "CKVMMBMG"     8  version u32      12  job u32
//!  16  seed                24  arena address    32  arena bytes     40  hot bytes
//!  48  steps done          56  units            64  first TSC       72  last TSC
//!  80  longest gap         88  its unit         96  times TSC went back
//! 104  histogram: 64 counts, entry i counts gaps of 2^i to 2^(i+1)-1 ticks
//!
//! arena: cells of 8 bytes                cell 0 .. hot ............. cells
//!   step n < cells: writes cell n        [--------- fill, once ----------]
//!   later steps:    writes the hot cells [ again and again ]
//! ```
//!
//! Invariants:
//! - Step n writes `value(seed, n)` to one cell, and only then sets "steps done" to n + 1. Stores of one x86 CPU are
//!   seen in their order: in a picture of memory that says "n done", steps before n are complete, step n may be, and no
//!   later one is. `check` says whether memory is such a picture.
//! - The hot cells are visited in the same order on each round, so that the step which wrote a cell last follows from
//!   n alone: checking takes time for the arena's size, not for n.
//! - A cell before its first write is zero: RAM begins so.

/// Guest physical address of the header.
pub const HEADER_ADDRESS: u64 = 0x20_0000;
/// First bytes of the header once the guest runs its job.
pub const MAGIC: [u8; 8] = *b"CKVMMBMG";
/// Version of this layout and sequence.
pub const VERSION: u32 = 1;
/// Bytes of a cell.
pub const CELL: u64 = 8;
/// Lowest address that an arena can have: below are the guest's code and page tables.
pub const ARENA_LOWEST: u64 = 0xa0_0000;
/// Number of gap classes: one for each bit of a TSC difference.
pub const GAP_CLASSES: usize = 64;

/// Distance between hot cells that are visited one after the other: a prime, and no factor of any arena's size.
const STRIDE: u64 = 2_654_435_761;

/// The header's `job` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Job {
    /// No memory work (hello, echo, …).
    Other = 0,
    /// Fills the arena, then rewrites its hot cells for ever.
    Write = 1,
    /// Fills the arena, then does nothing.
    PageFill = 2,
    /// Looks at the TSC only.
    Time = 3,
    /// Fills the arena, then visits one hot page after the other: no sequence says what they hold.
    Sweep = 4,
    /// As `Write`, and each step after the fill is written to two disks too: disk_model.rs.
    Disks = 5,
    /// No memory work: exchanges frames with other nodes, and its account is where an arena would be: net_model.rs.
    Net = 6,
}

/// The header, as the guest keeps it and as it is found in a picture of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`]; zero until the guest has filled in the rest.
    pub magic: [u8; 8],
    /// [`VERSION`]
    pub version: u32,
    /// A [`Job`].
    pub job: u32,
    /// Chooses the values and the order of the writes.
    pub seed: u64,
    /// Guest physical address of the arena.
    pub arena: u64,
    /// Size of the arena.
    pub arena_bytes: u64,
    /// Size of its hot part, from its beginning.
    pub hot_bytes: u64,
    /// Steps that are complete.
    pub steps: u64,
    /// Looks at the TSC.
    pub units: u64,
    /// TSC at the first look.
    pub first_tsc: u64,
    /// TSC at the latest look.
    pub last_tsc: u64,
    /// Longest time between two looks, in TSC ticks.
    pub longest_gap: u64,
    /// Value of `units` when it ended.
    pub longest_gap_unit: u64,
    /// Looks that found an earlier TSC than the look before.
    pub backwards: u64,
    /// Gaps by their length: entry i counts those of 2^i to 2^(i+1)-1 ticks.
    pub gaps: [u64; GAP_CLASSES],
}

impl Header {
    /// Bytes of the header.
    pub const BYTES: usize = size_of::<Header>();
    /// A header of nothing.
    pub const EMPTY: Header = Header {
        magic: [0; 8],
        version: 0,
        job: 0,
        seed: 0,
        arena: 0,
        arena_bytes: 0,
        hot_bytes: 0,
        steps: 0,
        units: 0,
        first_tsc: 0,
        last_tsc: 0,
        longest_gap: 0,
        longest_gap_unit: 0,
        backwards: 0,
        gaps: [0; GAP_CLASSES],
    };

    /// Reads a header from the bytes at [`HEADER_ADDRESS`]; an error says what is wrong with them.
    pub fn parse(bytes: &[u8]) -> Result<Header, &'static str> {
        if bytes.len() < Self::BYTES {
            return Err("fewer bytes than a header has");
        }
        let number = |at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(eight)
        };
        let mut gaps = [0; GAP_CLASSES];
        for (class, gap) in gaps.iter_mut().enumerate() {
            *gap = number(104 + class * 8);
        }
        let header = Header {
            magic: number(0).to_le_bytes(),
            version: number(8) as u32,
            job: (number(8) >> 32) as u32,
            seed: number(16),
            arena: number(24),
            arena_bytes: number(32),
            hot_bytes: number(40),
            steps: number(48),
            units: number(56),
            first_tsc: number(64),
            last_tsc: number(72),
            longest_gap: number(80),
            longest_gap_unit: number(88),
            backwards: number(96),
            gaps,
        };
        if header.magic != MAGIC {
            return Err("no header: the guest has not begun its job");
        }
        if header.version != VERSION {
            return Err("a header of another version");
        }
        if header.hot_bytes > header.arena_bytes
            || !header.arena_bytes.is_multiple_of(CELL)
            || !header.hot_bytes.is_multiple_of(CELL)
        {
            return Err("a header with impossible sizes");
        }
        Ok(header)
    }

    /// The writes that this header describes, from the first on.
    pub fn writes(&self) -> Writes {
        Writes::new(self.seed, self.arena_bytes / CELL, self.hot_bytes / CELL)
    }
}

/// What step `n` writes: all 64 bits depend on seed and step (SplitMix64).
pub fn value(seed: u64, step: u64) -> u64 {
    let mut z = seed.wrapping_add(step.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The sequence of writes: (cell, value) of step 0, 1, 2, … Ends after the fill if there are no hot cells.
#[derive(Clone, Debug)]
pub struct Writes {
    seed: u64,
    cells: u64,
    hot: u64,
    step: u64,
    /// Cell of the next step.
    cell: u64,
    stride: u64,
}

impl Writes {
    /// The sequence for an arena of `cells` whose first `hot` are rewritten.
    pub fn new(seed: u64, cells: u64, hot: u64) -> Self {
        let stride = if hot == 0 { 0 } else { STRIDE % hot };
        Self { seed, cells, hot, step: 0, cell: 0, stride }
    }

    /// Steps that it has given.
    pub fn done(&self) -> u64 {
        self.step
    }

    /// Where the rounds over the hot cells begin.
    fn first_hot(&self) -> u64 {
        if self.hot == 0 { 0 } else { value(self.seed, u64::MAX) % self.hot }
    }

    fn next_hot(&self, cell: u64) -> u64 {
        let next = cell + self.stride;
        if next >= self.hot { next - self.hot } else { next }
    }
}

impl Iterator for Writes {
    type Item = (u64, u64);

    #[inline]
    fn next(&mut self) -> Option<(u64, u64)> {
        if self.step >= self.cells {
            if self.hot == 0 {
                return None;
            }
            if self.step == self.cells {
                self.cell = self.first_hot();
            }
        }
        let write = (self.cell, value(self.seed, self.step));
        self.cell = if self.step < self.cells { self.cell + 1 } else { self.next_hot(self.cell) };
        self.step += 1;
        Some(write)
    }
}

/// A cell that is not what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Guest physical address.
    pub address: u64,
    /// What the sequence says.
    pub expected: u64,
    /// What memory holds.
    pub found: u64,
    /// Steps done, as the header says.
    pub steps: u64,
}

impl core::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { address, expected, found, steps } = self;
        write!(f, "guest memory at {address:#x} is {found:#018x}, and after {steps} steps must be {expected:#018x}")
    }
}

/// Whether memory is what `header.steps` steps leave, one more step perhaps begun. `cell(i)` reads the arena's i-th
/// cell. The error is the first cell found that is not.
pub fn check(header: &Header, mut cell: impl FnMut(u64) -> u64) -> Result<(), Mismatch> {
    let Header { seed, steps, .. } = *header;
    let writes = header.writes();
    let (cells, hot) = (writes.cells, writes.hot);
    let filled = steps.min(cells);
    let mut compare = |index: u64, last: Option<u64>, begun: bool| {
        let expected = last.map_or(0, |step| value(seed, step));
        let found = cell(index);
        if found == expected || (begun && found == value(seed, steps)) {
            return Ok(());
        }
        Err(Mismatch { address: header.arena + index * CELL, expected, found, steps })
    };
    // Cells outside the hot part, or all of them if no round has begun: the fill.
    let after_fill = steps >= cells && hot > 0;
    for index in if after_fill { hot } else { 0 }..cells {
        compare(index, (index < filled).then_some(index), index == steps)?;
    }
    if !after_fill {
        return Ok(());
    }
    // Hot cells in the order of their rounds: up to the place reached, this round wrote them; from there on, the last
    // one did; in the first round that is the fill.
    let (round, place) = ((steps - cells) / hot, (steps - cells) % hot);
    let mut index = writes.first_hot();
    for position in 0..hot {
        let rounds = if position < place { round + 1 } else { round };
        let last = if rounds == 0 { index } else { cells + (rounds - 1) * hot + position };
        compare(index, Some(last), position == place)?;
        index = writes.next_hot(index);
    }
    Ok(())
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
