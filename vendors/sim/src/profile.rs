//! What a simulated node is made of: devices, how they are cut, links, device nodes.
//!
//! A profile is a text (TOML) with a strict reader: unknown keys, values out of range and
//! contradictions are refused by naming the place. What is read is valid and never changes;
//! the state of the simulated hardware lives elsewhere.

mod build;
mod model;
mod nodes;
mod raw;
#[cfg(test)]
mod tests;

use accelpool_model::{Device, DeviceUuid, Link};

use crate::{nesting::from_toml, refusal::Refusal};

pub(crate) use self::nodes::{Node, PartitionNodes};

/// Longest profile text, in bytes. A node with 64 devices and all its links needs a tenth of it.
pub const PROFILE_LEN_MAX: usize = 1 << 20;

const EMBEDDED: [(&str, &str); 4] = [
    ("dgx-h100", include_str!("../profiles/dgx-h100.toml")),
    ("mi300x", include_str!("../profiles/mi300x.toml")),
    ("atlas-910b", include_str!("../profiles/atlas-910b.toml")),
    ("mixed-edge", include_str!("../profiles/mixed-edge.toml")),
];

/// A simulated node as described, before anything happens to it.
#[derive(Debug, Clone)]
pub struct Profile {
    name: String,
    /// The major number that its device nodes get where the machine leaves it free.
    pub(crate) major: u32,
    units: Vec<Unit>,
    links: Vec<Link>,
}

/// One device of a profile, with what the simulation needs to know beside.
#[derive(Debug, Clone)]
pub(crate) struct Unit {
    /// The device; its injection is empty, since paths depend on the folder.
    pub(crate) device: Device,
    /// The nodes that a container needs to use all of it.
    pub(crate) nodes: Vec<Node>,
    /// How nodes of its partitions are named, if it can be cut.
    pub(crate) partitions: Option<PartitionNodes>,
}

/// Why a text is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ParseProfileError {
    /// The text is too long to be one.
    #[error("profile has {len} bytes: at most {PROFILE_LEN_MAX} are read")]
    TooLong {
        /// Length found.
        len: usize,
    },
    /// The text is not TOML, or has keys or types that no profile has.
    #[error("profile is not readable")]
    Syntax(#[source] toml::de::Error),
    /// A value is not allowed.
    #[error("profile has a value that is not allowed")]
    Value(#[source] Refusal),
}

impl Profile {
    /// Names of the profiles that are part of this program.
    pub fn embedded_names() -> impl Iterator<Item = &'static str> {
        EMBEDDED.iter().map(|(name, _)| *name)
    }

    /// The profile of that name that is part of this program.
    ///
    /// # Panics
    ///
    /// Never: a test reads every embedded profile.
    #[must_use]
    pub fn embedded(name: &str) -> Option<Self> {
        let (_, text) = EMBEDDED.iter().find(|(known, _)| *known == name)?;
        Some(Self::parse(text).expect("embedded profiles are valid"))
    }

    /// Reads a profile.
    ///
    /// # Errors
    ///
    /// Refuses what is too long, not TOML, has unknown keys, or a value out of its range.
    pub fn parse(text: &str) -> Result<Self, ParseProfileError> {
        if text.len() > PROFILE_LEN_MAX {
            return Err(ParseProfileError::TooLong { len: text.len() });
        }
        let raw: raw::Profile = from_toml(text).map_err(ParseProfileError::Syntax)?;
        build::profile(&raw).map_err(ParseProfileError::Value)
    }

    /// The profile's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its devices, without injections: those depend on the folder of the simulation.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.units.iter().map(|unit| &unit.device)
    }

    /// The links between its devices.
    #[must_use]
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    pub(crate) fn units(&self) -> &[Unit] {
        &self.units
    }

    pub(crate) fn unit(&self, uuid: &DeviceUuid) -> Option<&Unit> {
        self.units.iter().find(|unit| unit.device.uuid == *uuid)
    }

    /// The device that a person means by its name or its UUID.
    pub(crate) fn device_called(&self, text: &str) -> Option<&Device> {
        self.devices().find(|device| device.name.as_str() == text || device.uuid.as_str() == text)
    }
}
