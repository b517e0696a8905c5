//! What is on the node: devices, their partitions, links and taints, as last observed.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Device, DeviceName, DeviceUuid, Link, Partition, PartitionName, PartitionProfile, ProfileName,
    Taint,
};

/// What a name that a claim gives stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// A device, whole or shared.
    Device(DeviceName),
    /// A partition, whether or not it exists at the moment.
    Partition {
        /// The device it is a part of.
        device: DeviceName,
        /// Its shape.
        profile: ProfileName,
        /// Where it lies.
        start: u32,
    },
}

/// The devices of this node, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    devices: BTreeMap<DeviceName, Device>,
    partition_names: BTreeMap<PartitionName, Target>,
    /// Partitions that exist.
    pub partitions: Vec<Partition>,
    /// Devices that were seen once and no longer are: still listed while leased.
    pub lost: BTreeSet<DeviceName>,
    /// Links between devices.
    pub links: Vec<Link>,
    /// Taints by device.
    pub taints: BTreeMap<DeviceName, Vec<Taint>>,
}

impl Inventory {
    /// An inventory of `devices`, without partitions, links or taints.
    #[must_use]
    pub fn new(devices: impl IntoIterator<Item = Device>) -> Self {
        let mut inventory = Self::default();
        for device in devices {
            inventory.insert(device);
        }
        inventory
    }

    /// Adds a device, or replaces the one of the same name.
    pub fn insert(&mut self, device: Device) {
        self.remove(&device.name);
        for (name, target) in possible_partitions(&device) {
            self.partition_names.insert(name, target);
        }
        self.devices.insert(device.name.clone(), device);
    }

    /// Puts a device in place of the one of the same name and shape; all that is known of it, its
    /// partitions among them, stays.
    pub fn replace(&mut self, device: Device) {
        if let Some(known) = self.devices.get_mut(&device.name) {
            *known = device;
        }
    }

    /// Takes a device out, with the names of its partitions and its mark as lost.
    pub fn remove(&mut self, name: &DeviceName) -> Option<Device> {
        let device = self.devices.remove(name)?;
        self.partition_names.retain(
            |_, target| !matches!(target, Target::Partition { device, .. } if device == name),
        );
        self.partitions.retain(|partition| partition.device != device.uuid);
        self.lost.remove(name);
        Some(device)
    }

    /// The devices, in the order of their names.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.values()
    }

    /// The device of that name.
    #[must_use]
    pub fn device(&self, name: &DeviceName) -> Option<&Device> {
        self.devices.get(name)
    }

    /// The device of that identity.
    #[must_use]
    pub fn device_by_uuid(&self, uuid: &DeviceUuid) -> Option<&Device> {
        self.devices.values().find(|device| device.uuid == *uuid)
    }

    /// What `name` stands for: a device, or any partition that a device could have.
    #[must_use]
    pub fn resolve(&self, name: &str) -> Option<Target> {
        if let Some(device) = name.parse().ok().and_then(|name| self.devices.get(&name)) {
            return Some(Target::Device(device.name.clone()));
        }
        name.parse().ok().and_then(|name: PartitionName| self.partition_names.get(&name).cloned())
    }

    /// Every partition that a device of this node could have, with its name.
    pub fn possible_partitions(&self) -> impl Iterator<Item = (&PartitionName, &Target)> {
        self.partition_names.iter()
    }

    /// The partition that exists at that place, complete or not.
    #[must_use]
    pub fn partition_at(
        &self,
        device: &DeviceUuid,
        profile: &ProfileName,
        start: u32,
    ) -> Option<&Partition> {
        self.partitions.iter().find(|partition| {
            partition.device == *device && partition.profile == *profile && partition.start == start
        })
    }
}

fn possible_partitions(device: &Device) -> Vec<(PartitionName, Target)> {
    let Some(partitioning) = &device.partitioning else { return Vec::new() };
    let of_profile = |profile: &PartitionProfile| {
        let profile = profile.clone();
        profile.starts().into_iter().filter_map(move |start| {
            // A profile whose words fit no name cannot be asked for by name; discovery reports it.
            let name = Partition::name_at(&device.name, &partitioning.scheme, &profile.name, start)
                .ok()?;
            let device = device.name.clone();
            Some((name, Target::Partition { device, profile: profile.name.clone(), start }))
        })
    };
    partitioning.profiles.iter().flat_map(of_profile).collect()
}
