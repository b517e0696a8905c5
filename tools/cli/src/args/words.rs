//! Words that an argument may be, as the node API spells them.

use clap::ValueEnum;

/// What a device is.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Kind {
    Gpu,
    Npu,
    Fpga,
}

impl Kind {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::Npu => "npu",
            Self::Fpga => "fpga",
        }
    }
}

/// How urgent a share's work is.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ShareClass {
    /// Served first, within a budget
    Realtime,
    /// Served by weight
    Normal,
    /// Served when nobody else wants the device
    Idle,
}

impl ShareClass {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Realtime => "realtime",
            Self::Normal => "normal",
            Self::Idle => "idle",
        }
    }
}

/// What keeps a tenant inside its grant, weakest first.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Enforcement {
    /// Nothing
    None,
    /// A library inside the tenant's process: holds for honest workloads
    Library,
    /// The kernel
    Kernel,
    /// The device itself
    Hardware,
}

impl Enforcement {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Library => "library",
            Self::Kernel => "kernel",
            Self::Hardware => "hardware",
        }
    }
}
