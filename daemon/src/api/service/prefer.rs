//! Which of some free devices or partitions go best together, for the device plugin.

use accelpool_model::{DeviceName, Inventory, Target};
use accelpool_planner::choose::{CANDIDATES_MAX, Candidate, choose};
use accelpool_proto::node::PreferDevicesRequest;
use tonic::Status;

use crate::{api::request::bad, error, node::NodeError};

/// Answers with `size` of the available names, those that must be included among them.
pub(super) fn prefer(
    inventory: &Inventory,
    request: &PreferDevicesRequest,
) -> Result<Vec<String>, Status> {
    let PreferDevicesRequest { available, must_include, size } = request;
    if available.len() > CANDIDATES_MAX {
        let reason =
            format!("has {} entries, at most {CANDIDATES_MAX} are allowed", available.len());
        return Err(bad("available")(&reason).into());
    }
    let mut places = Vec::new();
    for name in available {
        places.push(Place::of(inventory, name)?);
    }
    // A partition lies where its device lies; the links of its device serve all of it at once
    // and so say nothing about which partitions go together.
    let candidates: Vec<Candidate<'_>> = places.iter().map(Place::candidate).collect();
    let included: Result<Vec<DeviceName>, _> =
        must_include.iter().map(|name| name.parse()).collect();
    let included = included.map_err(|error| bad("must_include")(&error))?;
    let included: Vec<&DeviceName> = included.iter().collect();
    let chosen = choose(&candidates, &inventory.links, *size as usize, &included);
    let chosen = chosen.ok_or_else(|| {
        bad("size")(
            &"at least as many as `must_include`, at most as many as `available`, which \
                      must hold all of `must_include`",
        )
    })?;
    Ok(chosen.into_iter().map(|index| available[index].clone()).collect())
}

/// A name of a device or partition, and the device that it lies on.
struct Place<'a> {
    name: DeviceName,
    numa_node: Option<u32>,
    pcie_root: Option<&'a str>,
}

impl<'a> Place<'a> {
    fn of(inventory: &'a Inventory, name: &str) -> Result<Self, Status> {
        let unknown = || NodeError::UnknownDevice(name.chars().take(80).collect());
        let device = match inventory.resolve(name) {
            Some(Target::Device(device) | Target::Partition { device, .. }) => {
                inventory.device(&device)
            }
            None => None,
        };
        let device = device.ok_or_else(|| error::status(&unknown()))?;
        Ok(Self {
            name: name.parse().map_err(|_| error::status(&unknown()))?,
            numa_node: device.numa_node,
            pcie_root: device.pcie_root.as_deref(),
        })
    }

    fn candidate(&self) -> Candidate<'_> {
        Candidate { name: &self.name, numa_node: self.numa_node, pcie_root: self.pcie_root }
    }
}
