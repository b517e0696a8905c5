//! Device numbers, and what may be done with a device node.
//!
//! As the kernel's device cgroup sees them: a type, a major, a minor. Names, paths and
//! vendors are unknown here.

use std::{
    fmt,
    ops::{BitAnd, BitOr},
};

/// The largest major that the kernel hands out (`MAJOR(dev_t)` has 12 bits).
pub const MAJOR_MAX: u32 = (1 << 12) - 1;

/// The largest minor that the kernel hands out (`MINOR(dev_t)` has 20 bits).
pub const MINOR_MAX: u32 = (1 << 20) - 1;

/// Whether a device node is a block or a character device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "named as the kernel names them")]
pub enum DeviceType {
    Block,
    Character,
}

impl DeviceType {
    /// The number in the ABI (`BPF_DEVCG_DEV_BLOCK`, `BPF_DEVCG_DEV_CHAR` in `linux/bpf.h`).
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Block => 1,
            Self::Character => 2,
        }
    }

    pub(crate) const fn of_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Block),
            2 => Some(Self::Character),
            _ => None,
        }
    }
}

/// The number of one device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    kind: DeviceType,
    major: u32,
    minor: u32,
}

impl DeviceNumber {
    /// The number of a node of type `kind`.
    pub const fn new(kind: DeviceType, major: u32, minor: u32) -> Result<Self, NoSuchNumber> {
        if major > MAJOR_MAX || minor > MINOR_MAX {
            return Err(NoSuchNumber { major, minor });
        }
        Ok(Self { kind, major, minor })
    }

    /// Block or character.
    #[must_use]
    pub const fn kind(self) -> DeviceType {
        self.kind
    }

    /// Which driver, as a rule.
    #[must_use]
    pub const fn major(self) -> u32 {
        self.major
    }

    /// Which device of that driver.
    #[must_use]
    pub const fn minor(self) -> u32 {
        self.minor
    }
}

impl fmt::Display for DeviceNumber {
    /// As `c 195:0`, the way the kernel and the container runtimes write it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            DeviceType::Block => 'b',
            DeviceType::Character => 'c',
        };
        write!(formatter, "{kind} {}:{}", self.major, self.minor)
    }
}

/// Neighbouring devices: some minors of one major.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceRange {
    kind: DeviceType,
    major: u32,
    first: u32,
    last: u32,
}

impl DeviceRange {
    /// The minors `first` to `last` of a major, both included.
    pub const fn new(
        kind: DeviceType,
        major: u32,
        first: u32,
        last: u32,
    ) -> Result<Self, NoSuchNumber> {
        if major > MAJOR_MAX || last > MINOR_MAX || first > last {
            return Err(NoSuchNumber { major, minor: last });
        }
        Ok(Self { kind, major, first, last })
    }

    /// Every minor of a major, also those that no driver uses yet.
    pub const fn whole(kind: DeviceType, major: u32) -> Result<Self, NoSuchNumber> {
        Self::new(kind, major, 0, MINOR_MAX)
    }

    /// Block or character.
    #[must_use]
    pub const fn kind(self) -> DeviceType {
        self.kind
    }

    /// The major that all of them have.
    #[must_use]
    pub const fn major(self) -> u32 {
        self.major
    }

    /// The lowest minor.
    #[must_use]
    pub const fn first(self) -> u32 {
        self.first
    }

    /// The highest minor.
    #[must_use]
    pub const fn last(self) -> u32 {
        self.last
    }

    /// Whether a device is one of them.
    #[must_use]
    pub fn contains(self, device: DeviceNumber) -> bool {
        self.kind == device.kind
            && self.major == device.major
            && (self.first..=self.last).contains(&device.minor)
    }
}

impl From<DeviceNumber> for DeviceRange {
    fn from(device: DeviceNumber) -> Self {
        let DeviceNumber { kind, major, minor } = device;
        Self { kind, major, first: minor, last: minor }
    }
}

impl fmt::Display for DeviceRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = DeviceNumber { kind: self.kind, major: self.major, minor: self.first };
        if (self.first, self.last) == (0, MINOR_MAX) {
            let whole = first.to_string();
            return write!(formatter, "{}*", whole.trim_end_matches('0'));
        }
        write!(formatter, "{first}")?;
        if self.last > self.first { write!(formatter, "-{}", self.last) } else { Ok(()) }
    }
}

/// The kernel has no device of this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{major}:{minor} is no device number: majors end at {MAJOR_MAX}, minors at {MINOR_MAX}")]
pub struct NoSuchNumber {
    major: u32,
    minor: u32,
}

/// What is done with a device node, or may be done: any of read, write and make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Access(u8);

impl Access {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// To make a node (`BPF_DEVCG_ACC_MKNOD`). The gate never refuses it.
    pub const MAKE: Self = Self(1);
    /// To open for reading (`BPF_DEVCG_ACC_READ`).
    pub const READ: Self = Self(2);
    /// To open for writing (`BPF_DEVCG_ACC_WRITE`).
    pub const WRITE: Self = Self(4);
    /// To open for reading and writing.
    pub const READ_WRITE: Self = Self(2 | 4);

    /// The bits in the ABI.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0 as u32
    }

    /// Of bits in the ABI; those without a meaning are dropped.
    #[must_use]
    pub const fn of_bits(bits: u32) -> Self {
        Self((bits & 7) as u8)
    }

    /// Whether all of `other` is in it.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }
}

impl BitOr for Access {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Access {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Display for Access {
    /// As `rwm`, the way the kernel and the container runtimes write it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = [(Self::READ, 'r'), (Self::WRITE, 'w'), (Self::MAKE, 'm')];
        let held = letters.into_iter().filter(|(access, _)| self.covers(*access));
        let text: String = held.map(|(_, letter)| letter).collect();
        formatter.write_str(if text.is_empty() { "none" } else { &text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernel() {
        let of = |major, minor| DeviceNumber::new(DeviceType::Character, major, minor);
        assert_eq!(of(195, 255).map(|it| it.to_string()), Ok("c 195:255".to_owned()));
        assert!(of(MAJOR_MAX, MINOR_MAX).is_ok());
        assert!(of(MAJOR_MAX + 1, 0).is_err());
        assert!(of(0, MINOR_MAX + 1).is_err());
    }

    #[test]
    fn ranges_read_as_device_rules() {
        let of = |first, last| {
            DeviceRange::new(DeviceType::Block, 10, first, last).map(|it| it.to_string())
        };
        assert_eq!(of(0, MINOR_MAX), Ok("b 10:*".to_owned()));
        assert_eq!(of(0, 0), Ok("b 10:0".to_owned()));
        assert_eq!(of(128, 143), Ok("b 10:128-143".to_owned()));
        assert!(of(2, 1).is_err());
        assert!(of(0, MINOR_MAX + 1).is_err());
    }

    #[test]
    fn access_reads_as_device_rules() {
        assert_eq!((Access::READ_WRITE | Access::MAKE).to_string(), "rwm");
        assert_eq!(Access::NONE.to_string(), "none");
        assert_eq!(Access::of_bits(u32::MAX), Access::READ_WRITE | Access::MAKE);
        assert!(Access::READ_WRITE.covers(Access::WRITE));
        assert!(!Access::READ.covers(Access::READ_WRITE));
    }
}
