//! How long a kernel takes: a running mean for each function and size of grid.
//!
//! Good to a factor of two is good enough: the daemon corrects the scale by the drain that it
//! measures. The table has a fixed size, and a new kernel takes an old one's place.

use core::sync::atomic::{AtomicU64, Ordering};

/// What is assumed of a kernel that was never timed.
pub const UNKNOWN_US: u64 = 50;

/// The longest that is believed; longer ones are as bad for a window.
pub const LONGEST_US: u64 = 10_000_000;

/// Programs have some hundred kernels; one in a thousand launches may lose its place.
const ENTRIES: usize = 1024;

/// Each new sample counts for one in this many.
const SMOOTHING: u64 = 4;

/// The table. Racing samples may lose one of them, never more.
#[derive(Debug)]
pub struct Estimates {
    /// 32 bits that tell kernels apart, 32 bits of microseconds.
    entries: [AtomicU64; ENTRIES],
}

impl Default for Estimates {
    fn default() -> Self {
        Self::new()
    }
}

impl Estimates {
    /// An empty table.
    #[must_use]
    pub const fn new() -> Self {
        Self { entries: [const { AtomicU64::new(0) }; ENTRIES] }
    }

    /// The estimate of a kernel, by its function and the number of its blocks.
    #[must_use]
    pub fn estimate_us(&self, function: u64, blocks: u64) -> u64 {
        let (index, tag) = place(function, blocks);
        let entry = self.entries[index].load(Ordering::Relaxed);
        if entry >> 32 == tag { entry & 0xffff_ffff } else { UNKNOWN_US }
    }

    /// Learns from a kernel that was timed.
    pub fn learn(&self, function: u64, blocks: u64, took_us: u64) {
        let (index, tag) = place(function, blocks);
        let entry = self.entries[index].load(Ordering::Relaxed);
        let took_us = took_us.min(LONGEST_US);
        let mean_us = if entry >> 32 == tag {
            let old_us = entry & 0xffff_ffff;
            (old_us * (SMOOTHING - 1) + took_us).div_ceil(SMOOTHING)
        } else {
            took_us
        };
        self.entries[index].store(tag << 32 | mean_us, Ordering::Relaxed);
    }
}

/// Grids of the same power of two are taken together.
fn place(function: u64, blocks: u64) -> (usize, u64) {
    let size = u64::from(64 - blocks.leading_zeros());
    let mixed = (function ^ size << 57).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // Ten bits for the place, 32 others as the tag; never zero, which is an empty entry.
    let index = usize::try_from(mixed >> 54).unwrap_or_default() % ENTRIES;
    (index, (mixed >> 16 & 0xffff_ffff).max(1))
}
