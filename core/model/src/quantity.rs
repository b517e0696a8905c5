//! Quantities with their unit in the type: bytes, thousandths, weights, placements.

use std::{fmt, str::FromStr};

/// Why a text or number is not a quantity of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text is no number with a known suffix.
    #[error("{what} `{text}` is not valid: write {example}")]
    Malformed {
        /// The kind of quantity.
        what: &'static str,
        /// The text, shortened.
        text: String,
        /// A good one.
        example: &'static str,
    },
    /// The number lies outside the range of its kind.
    #[error("{what} {value} is out of range: use {min} to {max}")]
    OutOfRange {
        /// The kind of quantity.
        what: &'static str,
        /// The number found.
        value: u64,
        /// The least allowed.
        min: u64,
        /// The most allowed.
        max: u64,
    },
}

/// An amount of device memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MemoryBytes(u64);

impl MemoryBytes {
    /// No memory.
    pub const ZERO: Self = Self(0);

    /// An amount given in bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// An amount given in binary gigabytes.
    #[must_use]
    pub const fn from_gib(gib: u32) -> Self {
        Self((gib as u64) << 30)
    }

    /// The amount in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The sum, or the largest amount there is.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// What is left, or nothing.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl std::iter::Sum for MemoryBytes {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Self::saturating_add)
    }
}

/// Suffixes of Kubernetes quantities, with the bytes they stand for, largest first.
const BINARY: [(&str, u64); 5] =
    [("Pi", 1 << 50), ("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
const DECIMAL: [(&str, u64); 5] = [
    ("P", 1_000_000_000_000_000),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
];

impl FromStr for MemoryBytes {
    type Err = QuantityError;

    /// Reads a whole number of bytes with an optional suffix, as Kubernetes writes them.
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let malformed = || QuantityError::Malformed {
            what: "memory",
            text: text.chars().take(32).flat_map(char::escape_debug).collect(),
            example: "a whole number of bytes with an optional suffix, such as 10Gi or 512Mi",
        };
        let (digits, unit) = BINARY
            .iter()
            .chain(&DECIMAL)
            .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)))
            .unwrap_or((text, 1));
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(malformed());
        }
        let count: u64 = digits.parse().map_err(|_| malformed())?;
        count.checked_mul(unit).map(Self).ok_or_else(malformed)
    }
}

impl fmt::Display for MemoryBytes {
    /// Writes the shortest exact form, such as `10Gi`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = BINARY.iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit));
        match exact {
            Some((suffix, unit)) => f.pad(&format!("{}{suffix}", self.0 / unit)),
            None => f.pad(&self.0.to_string()),
        }
    }
}

/// Part of a device's compute time, in thousandths: 1 to 1000, whole = 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ComputePermille(u16);

impl ComputePermille {
    /// All of the device's compute time.
    pub const WHOLE: Self = Self(1000);

    /// A part known while the program is built; `None` outside 1 to 1000.
    #[must_use]
    pub const fn new(permille: u16) -> Option<Self> {
        if permille >= 1 && permille <= Self::WHOLE.0 { Some(Self(permille)) } else { None }
    }

    /// The part in thousandths.
    #[must_use]
    pub const fn permille(self) -> u16 {
        self.0
    }
}

impl TryFrom<u64> for ComputePermille {
    type Error = QuantityError;
    fn try_from(value: u64) -> Result<Self, QuantityError> {
        let max = u64::from(Self::WHOLE.0);
        match u16::try_from(value) {
            Ok(permille) if (1..=max).contains(&value) => Ok(Self(permille)),
            _ => Err(QuantityError::OutOfRange { what: "compute", value, min: 1, max }),
        }
    }
}

impl FromStr for ComputePermille {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let value = if plain { text.parse::<u64>().ok() } else { None };
        let value = value.ok_or_else(|| QuantityError::Malformed {
            what: "compute",
            text: text.chars().take(32).flat_map(char::escape_debug).collect(),
            example: "thousandths of the device's compute time, 1 to 1000, such as 250",
        })?;
        Self::try_from(value)
    }
}

impl fmt::Display for ComputePermille {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

/// How much of a contended device a share is owed beside the others: 1 to 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u16);

impl Weight {
    /// The weight of a share that asks for none.
    pub const DEFAULT: Self = Self(100);

    /// The weight as a number.
    #[must_use]
    pub const fn value(self) -> u16 {
        self.0
    }
}

impl TryFrom<u64> for Weight {
    type Error = QuantityError;
    fn try_from(value: u64) -> Result<Self, QuantityError> {
        match u16::try_from(value) {
            Ok(weight @ 1..=1000) => Ok(Self(weight)),
            _ => Err(QuantityError::OutOfRange { what: "weight", value, min: 1, max: 1000 }),
        }
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

/// A rate of transfer, in bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bandwidth(u64);

impl Bandwidth {
    /// A rate given in bytes per second.
    #[must_use]
    pub const fn from_bytes_per_second(rate: u64) -> Self {
        Self(rate)
    }

    /// The rate in bytes per second.
    #[must_use]
    pub const fn bytes_per_second(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = self.0 / 100_000_000;
        f.pad(&format!("{}.{} GB/s", tenths / 10, tenths % 10))
    }
}

/// A run of a device's slices: where a partition lies, `start..start + size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Placement {
    start: u32,
    size: u32,
}

impl Placement {
    /// A placement; `None` if it is empty or its end does not fit a `u32`.
    #[must_use]
    pub fn new(start: u32, size: u32) -> Option<Self> {
        start.checked_add(size).filter(|_| size > 0).map(|_| Self { start, size })
    }

    /// The first slice.
    #[must_use]
    pub const fn start(self) -> u32 {
        self.start
    }

    /// The number of slices, at least 1.
    #[must_use]
    pub const fn size(self) -> u32 {
        self.size
    }

    /// The slice after the last.
    #[must_use]
    pub const fn end(self) -> u32 {
        self.start + self.size
    }

    /// True if both hold a slice in common.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("[{}..{})", self.start, self.end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let actual = match text.parse::<MemoryBytes>() {
            Ok(memory) => format!("{} {memory}", memory.bytes()),
            Err(error) => error.to_string(),
        };
        assert_eq!(actual, expected);
    }

    #[test]
    fn memory_reads_kubernetes_suffixes() {
        check("10Gi", "10737418240 10Gi");
        check("100M", "100000000 100000000");
        check("0", "0 0");
        check("1536Mi", "1610612736 1536Mi");
    }

    #[test]
    fn memory_refuses_the_rest() {
        let rule = "write a whole number of bytes with an optional suffix, such as 10Gi or 512Mi";
        for text in ["", "Gi", "-1Gi", "1.5Gi", "10 Gi", "+1", "1e3", "99999999999Pi"] {
            check(text, &format!("memory `{text}` is not valid: {rule}"));
        }
    }

    #[test]
    fn compute_is_one_to_a_thousand() {
        assert_eq!("250".parse::<ComputePermille>().unwrap().permille(), 250);
        for text in ["0", "1001", "99999999999"] {
            let error = text.parse::<ComputePermille>().unwrap_err().to_string();
            assert_eq!(error, format!("compute {text} is out of range: use 1 to 1000"));
        }
        assert!("250m".parse::<ComputePermille>().is_err());
    }

    #[test]
    fn placements_overlap_by_slices_held_in_common() {
        let at = |start, size| Placement::new(start, size).unwrap();
        assert!(at(0, 4).overlaps(at(3, 1)));
        assert!(!at(0, 4).overlaps(at(4, 4)));
        assert_eq!(Placement::new(3, 0), None);
        assert_eq!(Placement::new(u32::MAX, 1), None);
    }
}
