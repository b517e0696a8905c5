//! One device and all it could be: the entries that stand for it, and their counter set.
//!
//! What another surface or an operator holds is drawn from the counter set beforehand, since
//! the scheduler cannot know of it; where there is no set, a taint keeps claims off.

use std::collections::BTreeMap;

use accelpool_model::{
    ComputePermille, Exposure, Partition, PartitionProfile, Partitioning, ProfileName, Sharing,
    Taint, TaintEffect,
};
use k8s_openapi::{
    api::resource::v1::{
        Counter, CounterSet, Device, DeviceCapacity, DeviceCounterConsumption, DeviceTaint,
    },
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};

use super::{
    Features, admin,
    attributes::{Form, attributes},
    capacity::{self, FixedShare},
    counters::{Amounts, Scheme, TooManyCounters},
};
use crate::{DRIVER_NAME, ExistingPartition, HeldPortion, NodeDevice};

/// What is published for one device.
pub(super) struct Group {
    pub(super) counters: Option<CounterSet>,
    pub(super) devices: Vec<Device>,
}

/// Kubernetes 1.34 takes no more; later versions take 16.
const TAINTS_MAX: usize = 4;
/// Keys of the taints that the driver sets itself, where no counter can say it.
const HELD_ELSEWHERE: &str = "held-elsewhere";
const CUT_BY_HAND: &str = "cut-by-hand";
const LOST: &str = "lost";

/// What stands for `device`; `None` if it is not offered in this way.
pub(super) fn group(
    device: &NodeDevice,
    features: Features,
    omitted: &mut Vec<String>,
) -> Option<Group> {
    let sharing = offered(device)?;
    let draft = Draft::new(device, features, sharing, omitted);
    let mut devices = Vec::new();
    if draft.offers_whole() {
        devices.extend(draft.whole());
    }
    devices.extend(draft.admin());
    if draft.scheme.is_some() && draft.offers_fixed_shares() {
        devices.extend(FixedShare::all().filter_map(|share| draft.fixed_share(share)));
    }
    draft.add_partitions(&mut devices, omitted);
    Some(Group { counters: draft.counter_set(), devices })
}

/// How the device may be cut, if it is offered to the scheduler at all.
fn offered(device: &NodeDevice) -> Option<Sharing> {
    // What the scheduler has given away stays listed whatever becomes of pool and device:
    // else it would lose count of what is taken (k/k#140802).
    let given = device.holdings.iter().any(|holding| holding.placed_by_scheduler);
    let offer = device.offer.as_ref().filter(|offer| match offer.exposure {
        Exposure::Dra | Exposure::Both => true,
        Exposure::DevicePlugin => given,
    });
    match offer {
        Some(offer) if device.present || given => Some(offer.sharing),
        None if given => Some(Sharing::Any),
        Some(_) | None => None,
    }
}

/// What is known while a group is made.
struct Draft<'a> {
    device: &'a NodeDevice,
    features: Features,
    sharing: Sharing,
    scheme: Option<Scheme<'a>>,
}

impl<'a> Draft<'a> {
    fn new(
        device: &'a NodeDevice,
        features: Features,
        sharing: Sharing,
        omitted: &mut Vec<String>,
    ) -> Self {
        let mut draft = Self { device, features, sharing, scheme: None };
        let cut = device.partitioning.as_ref().filter(|_| sharing.allows_partitions());
        let fixed_shares = draft.offers_fixed_shares();
        if features.counters && (cut.is_some() || fixed_shares) {
            match Scheme::new(cut, fixed_shares) {
                Ok(scheme) => draft.scheme = Some(scheme),
                Err(TooManyCounters(count)) => omitted.push(format!(
                    "partitions of `{}`: they would need {count} counters",
                    device.name
                )),
            }
        }
        draft
    }

    fn offers_partitions(&self) -> bool {
        self.sharing.allows_partitions() && self.device.partitioning.is_some()
    }

    /// Without counters nothing could keep the whole device and its partitions apart, so a
    /// device that is cut is offered in pieces, and one that is not is offered whole.
    fn offers_whole(&self) -> bool {
        let apart =
            self.scheme.is_some() || !self.offers_partitions() || self.device.existing.is_empty();
        apart && (!self.device.parts_only || self.is_given(None))
    }

    fn offers_shares(&self) -> bool {
        !self.device.parts_only
            && self.sharing.allows_shares()
            && capacity::is_divisible(self.device.memory)
    }

    fn offers_fixed_shares(&self) -> bool {
        let enough = FixedShare::all().all(|share| share.memory(self.device.memory).bytes() > 0);
        !self.features.consumable && self.offers_shares() && enough
    }

    fn whole(&self) -> Option<Device> {
        let shared = self.features.consumable && self.offers_shares();
        let capacity = if shared {
            capacity::consumable(self.device.memory)
        } else {
            capacity::exclusive(self.device.memory, ComputePermille::WHOLE)
        };
        let name = self.device.name.to_string();
        let draws = self.scheme.as_ref().map(|scheme| scheme.total.clone());
        let entry = self.entry(name, &Form::Device { shared }, capacity, draws, None)?;
        Some(Device { allow_multiple_allocations: shared.then_some(true), ..entry })
    }

    /// The entry for those who look. Without taints nothing would keep other claims off it. What is
    /// wrong with the device does not taint it: to look at that is what it is for.
    fn admin(&self) -> Option<Device> {
        let name = admin::name(self.device.name.as_str())?;
        let wanted = self.features.taints && self.device.present;
        wanted.then(|| Device {
            name,
            attributes: Some(attributes(self.device, &Form::Admin)),
            capacity: Some(capacity::exclusive(self.device.memory, ComputePermille::WHOLE)),
            taints: Some(vec![own_taint(admin::TAINT)]),
            ..Device::default()
        })
    }

    fn fixed_share(&self, share: FixedShare) -> Option<Device> {
        let name = share.name(self.device.name.as_str());
        let capacity = capacity::exclusive(share.memory(self.device.memory), share.compute()?);
        let draws = self.scheme.as_ref().map(|scheme| scheme.fixed_share(share));
        self.entry(name, &Form::Share(share), capacity, draws, None)
    }

    fn add_partitions(&self, devices: &mut Vec<Device>, omitted: &mut Vec<String>) {
        let cut = self.device.partitioning.as_ref().filter(|_| self.offers_partitions());
        let Some(Partitioning { scheme, profiles, .. }) = cut else { return };
        for profile in profiles {
            for start in profile.starts() {
                let existing = self.existing(&profile.name, start);
                if self.scheme.is_none() && !existing.is_some_and(|existing| existing.complete) {
                    continue;
                }
                match Partition::name_at(&self.device.name, scheme, &profile.name, start) {
                    Ok(name) => devices.extend(self.partition(name.to_string(), profile, start)),
                    Err(error) => omitted.push(format!(
                        "partition {} at {start} of `{}`: {error}",
                        profile.name, self.device.name
                    )),
                }
            }
        }
    }

    fn partition(&self, name: String, profile: &PartitionProfile, start: u32) -> Option<Device> {
        let capacity = capacity::exclusive(profile.memory, profile.compute);
        let adoptable = self
            .existing(&profile.name, start)
            .is_some_and(|existing| existing.complete && !existing.claimed);
        // What was cut by hand is drawn beforehand, so that it keeps others off and can still
        // be had itself.
        let scheme = self.scheme.as_ref().filter(|_| !adoptable);
        let draws = scheme.map(|scheme| scheme.partition(profile, start));
        let part = (&profile.name, start);
        self.entry(name, &Form::Partition(profile.name.clone()), capacity, draws, Some(part))
    }

    /// The entry, unless taints should keep claims off it and the API server knows none.
    fn entry(
        &self,
        name: String,
        form: &Form,
        capacity: BTreeMap<String, DeviceCapacity>,
        draws: Option<Amounts>,
        part: Option<(&ProfileName, u32)>,
    ) -> Option<Device> {
        let taints = self.taints(part);
        if !self.features.taints && taints.iter().any(is_severe) && !self.is_given(part) {
            return None;
        }
        let taints = Some(taints).filter(|taints| self.features.taints && !taints.is_empty());
        let consumes_counters = draws.map(|draws| {
            let counter_set = self.device.name.to_string();
            vec![DeviceCounterConsumption { counter_set, counters: counters(draws) }]
        });
        Some(Device {
            name,
            attributes: Some(attributes(self.device, form)),
            capacity: Some(capacity),
            consumes_counters,
            taints,
            ..Device::default()
        })
    }

    fn existing(&self, profile: &ProfileName, start: u32) -> Option<&ExistingPartition> {
        let same =
            |existing: &&ExistingPartition| existing.profile == *profile && existing.start == start;
        self.device.existing.iter().find(same)
    }

    /// True if the scheduler has given away the device, or that part of it.
    fn is_given(&self, part: Option<(&ProfileName, u32)>) -> bool {
        let given = self.device.holdings.iter().filter(|holding| holding.placed_by_scheduler);
        given.map(|holding| &holding.portion).any(|portion| match portion {
            HeldPortion::Whole | HeldPortion::Share => part.is_none(),
            HeldPortion::Partition { profile, start } => part == Some((profile, *start)),
        })
    }

    /// The counter set less what the scheduler cannot know of.
    fn counter_set(&self) -> Option<CounterSet> {
        let scheme = self.scheme.as_ref()?;
        let mut left = scheme.total.clone();
        for drawn in self.drawn_beforehand(scheme) {
            for (name, amount) in drawn {
                left.entry(name).and_modify(|total| *total = total.saturating_sub(amount));
            }
        }
        Some(CounterSet { name: self.device.name.to_string(), counters: counters(left) })
    }

    fn drawn_beforehand(&self, scheme: &Scheme<'_>) -> Vec<Amounts> {
        let draw = |profile: &ProfileName, start| {
            let profiles = self.device.partitioning.iter().flat_map(|cut| &cut.profiles);
            let shape = profiles.into_iter().find(|shape| shape.name == *profile);
            // A partition of a shape that the device does not list could lie anywhere.
            shape.map_or_else(|| scheme.total.clone(), |shape| scheme.partition(shape, start))
        };
        let elsewhere = self.elsewhere().map(|portion| match portion {
            HeldPortion::Whole | HeldPortion::Share => scheme.total.clone(),
            HeldPortion::Partition { profile, start } => draw(profile, *start),
        });
        let by_hand = self.by_hand().map(|cut| draw(&cut.profile, cut.start));
        elsewhere.chain(by_hand).collect()
    }

    /// What is held by claims that the scheduler did not place.
    fn elsewhere(&self) -> impl Iterator<Item = &HeldPortion> {
        let holdings = self.device.holdings.iter();
        holdings.filter(|holding| !holding.placed_by_scheduler).map(|holding| &holding.portion)
    }

    /// Partitions that belong to no claim.
    fn by_hand(&self) -> impl Iterator<Item = &ExistingPartition> {
        self.device.existing.iter().filter(|existing| !existing.claimed)
    }

    /// The worst first; `part` is the partition that is tainted, if it is one.
    fn taints(&self, part: Option<(&ProfileName, u32)>) -> Vec<DeviceTaint> {
        let mut taints: Vec<DeviceTaint> = self.device.taints.iter().map(device_taint).collect();
        if !self.device.present && !taints.iter().any(is_severe) {
            taints.push(own_taint(LOST));
        }
        if self.scheme.is_none() {
            let meant = |portion: &HeldPortion| match portion {
                HeldPortion::Whole | HeldPortion::Share => true,
                HeldPortion::Partition { profile, start } => {
                    part.is_none_or(|part| part == (profile, *start))
                }
            };
            if self.elsewhere().any(meant) {
                taints.push(own_taint(HELD_ELSEWHERE));
            }
            if part.is_none() && self.by_hand().next().is_some() {
                taints.push(own_taint(CUT_BY_HAND));
            }
        }
        taints.sort_by(|a, b| severity(b).cmp(&severity(a)).then_with(|| a.key.cmp(&b.key)));
        taints.dedup_by(|a, b| a.key == b.key && a.effect == b.effect);
        taints.truncate(TAINTS_MAX);
        taints
    }
}

fn own_taint(key: &str) -> DeviceTaint {
    DeviceTaint {
        key: format!("{DRIVER_NAME}/{key}"),
        effect: TaintEffect::NoSchedule.as_str().to_owned(),
        ..DeviceTaint::default()
    }
}

fn device_taint(taint: &Taint) -> DeviceTaint {
    let Taint { key, effect, reason, since_ms, incarnation: _ } = taint;
    let since = i64::try_from(since_ms / 1000).ok();
    let value = label_value(reason);
    DeviceTaint {
        key: format!(
            "{DRIVER_NAME}/{}",
            Some(label_value(key))
                .filter(|key| !key.is_empty())
                .unwrap_or_else(|| "unnamed".to_owned())
        ),
        effect: effect.as_str().to_owned(),
        value: Some(value).filter(|value| !value.is_empty()),
        time_added: since.and_then(|since| Timestamp::from_second(since).ok()).map(Time),
    }
}

fn severity(taint: &DeviceTaint) -> Option<TaintEffect> {
    taint.effect.parse().ok()
}

fn is_severe(taint: &DeviceTaint) -> bool {
    match severity(taint) {
        Some(TaintEffect::NoSchedule | TaintEffect::NoExecute) => true,
        Some(TaintEffect::None) | None => false,
    }
}

/// `words` as a label value: at most 63 of its letters, digits, `-`, `_` and `.`.
fn label_value(words: &str) -> String {
    let plain = |letter: char| {
        let kept = letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
        if kept { letter } else { '-' }
    };
    let mut value = String::new();
    for letter in words.chars().map(plain) {
        if value.len() < 63 && !(letter == '-' && value.ends_with('-')) {
            value.push(letter);
        }
    }
    value.trim_matches(['-', '_', '.']).to_owned()
}

fn counters(amounts: Amounts) -> BTreeMap<String, Counter> {
    let counter = |(name, amount)| (name, Counter { value: capacity::decimal(amount) });
    amounts.into_iter().map(counter).collect()
}
