//! What random walks share: dice, variables that say how far, and the memory they leave behind.

use std::{env, fs};

/// A sequence that follows from its seed (xorshift64, Marsaglia 2003), which must not be 0.
#[derive(Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// The next number below `limit`.
    pub const fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// The number in an environment variable, if it is set.
///
/// # Panics
///
/// If it is no number.
#[must_use]
pub fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, not a number")))
}

/// The memory of a process that is in RAM, in KiB; none if it has ended.
#[must_use]
pub fn resident_kib(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}
