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

/// One launch in so many of a kernel that was timed before is timed again.
pub const TIMED_ONE_IN: u32 = 64;

/// The bits of a mean.
const MEAN: u64 = 0xffff_ffff;

/// The mark of a kernel that was seen and not timed yet; above [`LONGEST_US`].
const SEEN: u64 = 1 << 31;

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

    /// The estimate of a kernel, by its function and the number of its blocks; `None` for one
    /// that was never timed.
    #[must_use]
    pub fn estimate_us(&self, function: u64, blocks: u64) -> Option<u64> {
        let (index, tag) = place(function, blocks);
        let entry = self.entries[index].load(Ordering::Relaxed);
        (entry >> 32 == tag && entry & SEEN == 0).then_some(entry & MEAN)
    }

    /// Whether the coming launch of a kernel is one to time, `untimed` launches after the last.
    ///
    /// The first launch loads the kernel, which is none of its time: the second one is timed,
    /// and then one in [`TIMED_ONE_IN`].
    #[must_use]
    pub fn is_due(&self, function: u64, blocks: u64, untimed: u32) -> bool {
        let (index, tag) = place(function, blocks);
        let entry = self.entries[index].load(Ordering::Relaxed);
        if entry >> 32 != tag {
            self.entries[index].store(tag << 32 | SEEN, Ordering::Relaxed);
            return false;
        }
        entry & SEEN != 0 || untimed >= TIMED_ONE_IN
    }

    /// Learns from a kernel that was timed.
    pub fn learn(&self, function: u64, blocks: u64, took_us: u64) {
        let (index, tag) = place(function, blocks);
        let entry = self.entries[index].load(Ordering::Relaxed);
        let took_us = took_us.min(LONGEST_US);
        let mean_us = if entry >> 32 == tag && entry & SEEN == 0 {
            let old_us = entry & MEAN;
            (old_us * (SMOOTHING - 1) + took_us).div_ceil(SMOOTHING)
        } else {
            took_us
        };
        self.entries[index].store(tag << 32 | mean_us, Ordering::Relaxed);
    }

    /// Forgets what was under this name: it names something else from now on.
    pub fn forget(&self, function: u64, blocks: u64) {
        let (index, tag) = place(function, blocks);
        if self.entries[index].load(Ordering::Relaxed) >> 32 == tag {
            self.entries[index].store(0, Ordering::Relaxed);
        }
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
