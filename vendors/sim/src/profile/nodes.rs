//! Device nodes of a profile: how they are called and which minor number each has.
//!
//! Names and minors follow from the profile alone, so that every worker, and the one after a
//! crash, finds the same node for the same partition.

use accelpool_model::{PartitionProfile, Partitioning, ProfileName};

use super::raw;
use crate::refusal::{Refusal, number, refuse};

/// What a number is put in place of.
const PLACEHOLDER: &str = "{n}";

/// Longest path of a node below the folder, in bytes.
const PATH_LEN_MAX: usize = 96;

/// One device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// Below the folder's `dev`.
    pub(crate) path: String,
    /// Below the container's `/dev`.
    pub(crate) container_path: String,
    pub(crate) minor: u32,
    /// True if all devices of the model have it in common.
    pub(crate) shared: bool,
}

/// How the nodes of a device's partitions are called.
#[derive(Debug, Clone)]
pub(crate) struct PartitionNodes {
    /// First part of a partition's UUID.
    pub(crate) uuid_prefix: String,
    /// Nodes of the device that a partition needs too.
    pub(crate) inherited: Vec<Node>,
    pub(super) templates: Vec<Template>,
    /// Places on earlier devices of the model: names count over all of them.
    pub(super) places_before: u32,
    /// Minor number of the first node of the first place.
    pub(super) first_minor: u32,
}

/// A name with room for a number.
#[derive(Debug, Clone)]
pub(super) struct Template {
    path: String,
    container: String,
    first: u32,
}

impl Template {
    pub(super) fn read(path: &str, raw: &raw::NodeTemplate) -> Result<Self, Refusal> {
        let container = raw.container.clone().unwrap_or_else(|| raw.path.clone());
        for (key, text) in [("path", &raw.path), ("container", &container)] {
            if !is_below_dev(text) {
                let rule = "use up to 96 bytes and 4 parts of letters, digits, `.`, `_`, `-` \
                            below /dev, with `{n}` where a number goes";
                return Err(refuse(format!("{path}.{key}"), text, rule));
            }
        }
        let first = number(format!("{path}.first"), raw.first, 0..=100_000)?;
        Ok(Self { path: raw.path.clone(), container, first })
    }

    pub(super) fn is_shared(&self) -> bool {
        !self.path.contains(PLACEHOLDER)
    }

    pub(super) fn node(&self, ordinal: u32, minor: u32) -> Node {
        let n = (self.first + ordinal).to_string();
        Node {
            path: self.path.replace(PLACEHOLDER, &n),
            container_path: self.container.replace(PLACEHOLDER, &n),
            minor,
            shared: self.is_shared(),
        }
    }
}

fn is_below_dev(path: &str) -> bool {
    let path = path.replace(PLACEHOLDER, "0");
    let is_part = |part: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        !matches!(part, "" | "." | "..") && part.bytes().all(plain)
    };
    path.len() <= PATH_LEN_MAX && path.split('/').count() <= 4 && path.split('/').all(is_part)
}

impl PartitionNodes {
    /// The nodes of the partition of `profile` at `start` alone; `None` if it has no such place.
    pub(crate) fn nodes(
        &self,
        partitioning: &Partitioning,
        profile: &ProfileName,
        start: u32,
    ) -> Option<Vec<Node>> {
        let mut place = 0;
        for known in &partitioning.profiles {
            let starts = known.starts();
            if known.name == *profile {
                let at = starts.iter().position(|known| *known == start)?;
                return Some(self.at(place + u32::try_from(at).ok()?));
            }
            place += place_count(known);
        }
        None
    }

    /// The nodes of every partition that the device can have.
    pub(crate) fn all(&self, partitioning: &Partitioning) -> impl Iterator<Item = Node> {
        let places = partitioning.profiles.iter().map(place_count).sum::<u32>();
        (0..places).flat_map(|place| self.at(place))
    }

    fn at(&self, place: u32) -> Vec<Node> {
        let per_place = u32::try_from(self.templates.len()).unwrap_or(0);
        let node = |(template, k): (&Template, u32)| {
            template.node(
                (self.places_before + place) * per_place + k,
                self.first_minor + place * per_place + k,
            )
        };
        self.templates.iter().zip(0..).map(node).collect()
    }
}

/// Places that partitions of a profile can have.
pub(super) fn place_count(profile: &PartitionProfile) -> u32 {
    u32::try_from(profile.starts().len()).unwrap_or(u32::MAX)
}
