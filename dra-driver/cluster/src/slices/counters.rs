//! The counters of a device: what its partitions and shares draw, and so what excludes what.
//!
//! Each slice that partitions can lie on is a counter, so that overlapping placements
//! exclude each other. Where a profile is limited further, its instances are counted.
//!
//! More is needed for "any number of A, or any number of B": two A must fit together, and one
//! A and one B must not. No single counter can say that. So each A has a counter of its own,
//! which holds as many units as there are B; that A draws them all, every B draws one. This
//! is how the modes of a uniform device exclude each other, and fixed shares and partitions.

use std::collections::BTreeMap;

use accelpool_model::{PartitionProfile, Partitioning, Placements};

use super::capacity::FixedShare;

/// Amounts by counter.
pub(super) type Amounts = BTreeMap<String, u64>;

/// What is drawn by whom.
pub(super) struct Scheme<'a> {
    profiles: &'a [PartitionProfile],
    slices: u32,
    uniform: bool,
    /// True if fixed shares are offered, too.
    fixed_shares: bool,
    /// Everything there is.
    pub(super) total: Amounts,
}

/// The API's limit on counters in a set and in a device's draw.
const COUNTERS_MAX: usize = 32;
/// More slices than counters are refused; this keeps the loops short until then.
const SLICES_MAX: u32 = 64;
/// The counter of slices that are only counted.
const SLICES: &str = "slices";

/// A set that the API would refuse.
#[derive(Debug)]
pub(super) struct TooManyCounters(pub(super) usize);

impl<'a> Scheme<'a> {
    /// The scheme of a device that can be cut as `partitioning` says, if at all.
    pub(super) fn new(
        partitioning: Option<&'a Partitioning>,
        fixed_shares: bool,
    ) -> Result<Self, TooManyCounters> {
        let (profiles, slices, uniform) = match partitioning {
            Some(Partitioning { profiles, slices, uniform, .. }) => {
                (profiles.as_slice(), *slices, *uniform)
            }
            None => (&[][..], 0, false),
        };
        let mut scheme = Self { profiles, slices, uniform, fixed_shares, total: Amounts::new() };
        scheme.total = scheme.count_all();
        match scheme.total.len() {
            count if count > COUNTERS_MAX => Err(TooManyCounters(count)),
            _ => Ok(scheme),
        }
    }

    fn count_all(&self) -> Amounts {
        let profiles = self.profiles;
        let mut total = Amounts::new();
        if profiles.iter().any(is_counted) {
            total.insert(SLICES.to_owned(), self.slices.into());
        }
        if profiles.iter().any(|profile| self.lies_on_slices(profile)) {
            for slice in 0..self.slices.min(SLICES_MAX) {
                total.insert(slice_name(slice), 1);
            }
        }
        for profile in profiles.iter().filter(|profile| is_limited(profile)) {
            total.insert(instances_name(profile), profile.instances_max.into());
        }
        for (profile, start, units) in self.modes() {
            total.insert(mode_name(profile, start), units);
        }
        for share in self.shares() {
            total.insert(share_name(share), self.placements().max(1));
        }
        total
    }

    /// What a partition draws.
    pub(super) fn partition(&self, profile: &PartitionProfile, start: u32) -> Amounts {
        let mut drawn = Amounts::new();
        if self.total.contains_key(SLICES) {
            drawn.insert(SLICES.to_owned(), profile.size.into());
        }
        let placement = profile.placement_at(start).filter(|_| self.lies_on_slices(profile));
        if let Some(placement) = placement {
            for slice in placement.start()..placement.end().min(SLICES_MAX) {
                drawn.insert(slice_name(slice), 1);
            }
        }
        if is_limited(profile) {
            drawn.insert(instances_name(profile), 1);
        }
        for (other, at, units) in self.modes() {
            if other.name != profile.name {
                drawn.insert(mode_name(other, at), 1);
            } else if at == start {
                drawn.insert(mode_name(other, at), units);
            }
        }
        drawn.extend(self.shares().map(|share| (share_name(share), 1)));
        drawn
    }

    /// What a fixed share draws.
    pub(super) fn fixed_share(&self, share: FixedShare) -> Amounts {
        [(share_name(share), self.placements().max(1))].into()
    }

    fn shares(&self) -> impl Iterator<Item = FixedShare> {
        FixedShare::all().filter(|_| self.fixed_shares)
    }

    /// True if slices decide where a partition of `profile` may lie: not in a device whose
    /// modes exclude each other anyway.
    fn lies_on_slices(&self, profile: &PartitionProfile) -> bool {
        !(is_counted(profile) || self.uniform && self.profiles.len() > 1)
    }

    /// How many partitions could be, at the very most.
    fn placements(&self) -> u64 {
        self.profiles.iter().map(|profile| profile.starts().len() as u64).sum()
    }

    /// The placements of a uniform device that have a counter, with the units it holds.
    fn modes(&self) -> impl Iterator<Item = (&PartitionProfile, u32, u64)> {
        let Self { uniform, profiles, .. } = *self;
        let several = uniform && profiles.len() > 1;
        let count = |profile: &PartitionProfile| profile.starts().len();
        // One profile needs no counters, as the others' exclude it: the one with most placements.
        let spared = profiles.iter().max_by_key(|profile| count(profile));
        let spared = spared.map(|profile| &profile.name);
        let moded = profiles.iter().filter(move |profile| several && Some(&profile.name) != spared);
        moded.flat_map(move |profile| {
            let others = profiles.iter().filter(|other| other.name != profile.name);
            let units = others.map(count).max().unwrap_or(1).max(1);
            profile.starts().into_iter().map(move |start| (profile, start, units as u64))
        })
    }
}

/// True if slices alone allow more partitions of the profile than there may be.
fn is_limited(profile: &PartitionProfile) -> bool {
    profile.instances_max as usize > 0 && (profile.instances_max as usize) < profile.starts().len()
}

fn is_counted(profile: &PartitionProfile) -> bool {
    profile.placements == Placements::Counted
}

fn slice_name(slice: u32) -> String {
    format!("memory-slice-{slice}")
}

fn instances_name(profile: &PartitionProfile) -> String {
    label("instances", &profile.name.to_string())
}

fn mode_name(profile: &PartitionProfile, start: u32) -> String {
    label("mode", &format!("{}-{start}", profile.name))
}

fn share_name(share: FixedShare) -> String {
    format!("share-{}", share.index)
}

/// A DNS label made of the vendor's words; their end is what tells them apart.
fn label(kind: &str, words: &str) -> String {
    let words: String = words
        .chars()
        .map(
            |letter| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' },
        )
        .collect();
    let room = 63 - kind.len() - 1;
    let start = words.len().saturating_sub(room);
    format!("{kind}-{}", words[start..].trim_matches('-'))
}
