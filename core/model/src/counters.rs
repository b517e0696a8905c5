//! What a device tells of itself: gauges of the moment and counts that only grow.
//!
//! Absent is not zero: what a vendor does not measure is absent, everywhere here.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::{LinkKind, MemoryBytes};

/// One look at a device's own figures.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceCounters {
    /// Its memory, as it is now.
    pub memory: Option<MemoryCounters>,
    /// How busy each engine was lately, in thousandths.
    pub engines: BTreeMap<Engine, u16>,
    /// What it draws now, in milliwatts.
    pub power_milliwatts: Option<u64>,
    /// What it may draw, in milliwatts.
    pub power_limit_milliwatts: Option<u64>,
    /// What it has drawn since its driver was loaded, in millijoules.
    pub energy_millijoules: Option<u64>,
    /// Temperatures in thousandths of a degree Celsius.
    pub temperatures: BTreeMap<Sensor, i64>,
    /// Clocks in hertz.
    pub clocks: BTreeMap<ClockDomain, u64>,
    /// Reasons for being slower than it could be that the device can tell.
    pub throttles: BTreeMap<ThrottleReason, Throttle>,
    /// Errors counted over the device's life, or since its driver was loaded.
    pub errors: BTreeMap<ErrorKind, u64>,
    /// True if faulty memory waits for a reset to be taken out of use.
    pub retirement_pending: Option<bool>,
    /// True if faulty memory could not be taken out of use.
    pub retirement_failed: Option<bool>,
    /// Bytes over its links since its driver was loaded. A count may begin anew.
    pub traffic: BTreeMap<(LinkKind, Direction), u64>,
}

/// A device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryCounters {
    /// All of it.
    pub total: MemoryBytes,
    /// What is in use, by whomever.
    pub used: MemoryBytes,
    /// What can be had.
    pub free: MemoryBytes,
    /// What the driver keeps for itself, where it says so.
    pub reserved: Option<MemoryBytes>,
}

/// Whether a reason slows a device down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Throttle {
    /// Whether it does now.
    pub active: Option<bool>,
    /// For how long it has, since the driver was loaded.
    pub accumulated: Option<Duration>,
}

/// Makes an enum whose variants have one word each.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The word, as it stands on wires and in labels.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words! {
    /// A part of a device that works on its own.
    Engine {
        /// What computes.
        Compute = "compute",
        /// The way to the memory.
        MemoryInterface = "memory-interface",
        /// Encodes video.
        Encoder = "encoder",
        /// Decodes video.
        Decoder = "decoder",
        /// Decodes still pictures.
        Jpeg = "jpeg",
        /// Computes optical flow.
        OpticalFlow = "optical-flow",
        /// Draws.
        Render = "render",
        /// Copies.
        Copy = "copy",
        /// Any engine that has no word here.
        Other = "other",
    }
}

words! {
    /// Where a temperature is taken.
    Sensor {
        /// The chip.
        Core = "core",
        /// Its memory.
        Memory = "memory",
    }
}

words! {
    /// What a clock drives.
    ClockDomain {
        /// What draws.
        Graphics = "graphics",
        /// What computes.
        Compute = "compute",
        /// The memory.
        Memory = "memory",
        /// Video engines.
        Video = "video",
    }
}

words! {
    /// Why a device is slower than it could be.
    ThrottleReason {
        /// The power limit that is set.
        PowerCap = "power-cap",
        /// The driver keeps the temperature down.
        Thermal = "thermal",
        /// The hardware keeps the temperature down.
        HardwareThermal = "hardware-thermal",
        /// The power supply calls for less.
        PowerBrake = "power-brake",
        /// The hardware's own slowdown, for heat, power or both.
        HardwareSlowdown = "hardware-slowdown",
        /// It keeps in step with others.
        SyncBoost = "sync-boost",
        /// The board's limit.
        BoardLimit = "board-limit",
        /// The limit that keeps it reliable.
        Reliability = "reliability",
    }
}

words! {
    /// What is counted as an error.
    ErrorKind {
        /// Memory errors that were corrected.
        EccCorrected = "ecc-corrected",
        /// Memory errors that could not be.
        EccUncorrected = "ecc-uncorrected",
        /// Memory pages retired after corrected errors.
        PagesRetiredCorrected = "pages-retired-corrected",
        /// Memory pages retired after uncorrected errors.
        PagesRetiredUncorrected = "pages-retired-uncorrected",
        /// Memory rows remapped after corrected errors.
        RowsRemappedCorrected = "rows-remapped-corrected",
        /// Memory rows remapped after uncorrected errors.
        RowsRemappedUncorrected = "rows-remapped-uncorrected",
        /// Packets sent again over PCIe.
        PcieReplay = "pcie-replay",
        /// Checksum errors of links to other devices.
        LinkCrc = "link-crc",
        /// Packets sent again over links to other devices.
        LinkReplay = "link-replay",
        /// Links to other devices that had to recover.
        LinkRecovery = "link-recovery",
    }
}

words! {
    /// Which way bytes go, as the device sees it.
    Direction {
        /// Out of the device.
        Transmitted = "transmitted",
        /// Into the device.
        Received = "received",
    }
}
