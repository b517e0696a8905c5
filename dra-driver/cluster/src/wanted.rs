//! What a scheduler's answer means on this node: the whole of a device, a share of it, or a
//! partition.

use accelpool_model::{ComputePermille, Share, ShareClass, Weight};

use crate::{
    AllocationResult, Consumed, NodeState,
    slices::{FixedShare, admin, published_memory},
};

/// What the daemon is to be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The device or partition, as the daemon names it.
    pub device: String,
    /// The share, if it is not the whole.
    pub share: Option<Share>,
}

impl NodeState {
    /// The device beside which the entry `name` stands, if it is one for claims with `adminAccess`.
    #[must_use]
    pub fn admin_entry<'name>(&self, name: &'name str) -> Option<&'name str> {
        let known = |name: &str| self.devices.iter().any(|device| device.name.as_str() == name);
        admin::device_of(name).filter(|device| known(device) && !known(name))
    }

    /// What `result` asks of this node.
    ///
    /// A device that is not known here is passed on by name: the daemon refuses it with its
    /// own reason.
    #[must_use]
    pub fn wanted(&self, result: &AllocationResult) -> Wanted {
        let find = |name: &str| self.devices.iter().find(|device| device.name.as_str() == name);
        let whole = Wanted { device: result.device.clone(), share: None };
        if result.admin_access {
            let device = self.admin_entry(&result.device).unwrap_or(&result.device).to_owned();
            return Wanted { device, share: None };
        }
        let Some(device) = find(&result.device) else {
            let Some((name, fixed)) = FixedShare::parse(&result.device) else { return whole };
            let Some(device) = find(name) else { return whole };
            let share = fixed.share(device.memory);
            return Wanted { device: name.to_owned(), share: Some(configured(share, result)) };
        };
        let Consumed { memory, compute } = result.consumed;
        let memory = memory.filter(|memory| *memory < published_memory(device.memory));
        let compute = compute.filter(|compute| *compute < ComputePermille::WHOLE);
        // A claim that was given everything holds the device alone, whatever it asked for.
        if memory.is_none() && compute.is_none() {
            return whole;
        }
        let share =
            Share { memory, compute, weight: Weight::DEFAULT, class: ShareClass::default() };
        Wanted { share: Some(configured(share, result)), ..whole }
    }
}

fn configured(share: Share, result: &AllocationResult) -> Share {
    Share {
        weight: result.config.weight.unwrap_or(share.weight),
        class: result.config.class.unwrap_or(share.class),
        ..share
    }
}

#[cfg(test)]
mod tests {
    use accelpool_model::MemoryBytes;
    use accelpool_proto::node as wire;

    use super::*;
    use crate::ShareConfig;

    const MEMORY: u64 = (80 << 30) + 12_345;

    #[track_caller]
    fn check(device: &str, memory: Option<u64>, compute: Option<u64>, expected: &str) {
        check_access(device, (memory, compute), false, expected);
    }

    #[track_caller]
    fn check_access(
        device: &str,
        (memory, compute): (Option<u64>, Option<u64>),
        admin_access: bool,
        expected: &str,
    ) {
        let state = NodeState::from_wire(&wire::WatchNodeResponse {
            devices: vec![wire::Device {
                name: "gpu-0".into(),
                vendor: "sim".into(),
                kind: "gpu".into(),
                memory_bytes: MEMORY,
                ..wire::Device::default()
            }],
            ..wire::WatchNodeResponse::default()
        });
        assert_eq!(state.refused, [""; 0]);
        let result = AllocationResult {
            request: "r".into(),
            driver: "accelpool.dev".into(),
            pool: "accelpool.dev/n".into(),
            device: device.into(),
            share_id: None,
            admin_access,
            consumed: Consumed {
                memory: memory.map(MemoryBytes::new),
                compute: compute.map(|compute| compute.try_into().unwrap()),
            },
            config: ShareConfig { class: Some(ShareClass::Idle), ..ShareConfig::default() },
        };
        let Wanted { device, share } = state.wanted(&result);
        let share = share.map_or_else(
            || "whole".to_owned(),
            |Share { memory, compute, weight, class }| {
                let memory = memory.map_or("all".to_owned(), |memory| memory.to_string());
                let compute = compute.map_or("all".to_owned(), |compute| compute.to_string());
                format!("{memory} {compute} {weight} {class}")
            },
        );
        assert_eq!(format!("{device}: {share}"), expected);
    }

    #[test]
    fn everything_means_the_whole_device() {
        check("gpu-0", None, None, "gpu-0: whole");
        check("gpu-0", Some(80 << 30), Some(1000), "gpu-0: whole");
    }

    #[test]
    fn a_part_means_a_share() {
        check("gpu-0", Some(20 << 30), Some(250), "gpu-0: 20Gi 250 100 idle");
        check("gpu-0", Some(80 << 30), Some(250), "gpu-0: all 250 100 idle");
        check("gpu-0", Some(20 << 30), None, "gpu-0: 20Gi all 100 idle");
    }

    #[test]
    fn a_fixed_share_is_known_by_its_name() {
        check("gpu-0-share-1-of-4", None, None, "gpu-0: 20Gi 250 100 idle");
        check("gpu-1-share-1-of-4", None, None, "gpu-1-share-1-of-4: whole");
    }

    #[test]
    fn who_looks_is_given_the_device_by_either_name() {
        check_access("gpu-0", (None, None), true, "gpu-0: whole");
        check_access("gpu-0-admin", (Some(1), Some(1)), true, "gpu-0: whole");
        check_access("gpu-1-admin", (None, None), true, "gpu-1-admin: whole");
    }

    #[test]
    fn other_names_are_passed_on() {
        check("gpu-0-mig-1g-10gb-4", None, None, "gpu-0-mig-1g-10gb-4: whole");
    }
}
