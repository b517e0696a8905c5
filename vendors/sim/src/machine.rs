//! The simulated hardware: what a profile describes, in the state that its folder holds.
//!
//! Each method that changes something does so under the folder's lock and returns without it:
//! nothing here waits. A change that takes two steps leaves, when cut short by a kill, what
//! real hardware leaves: a half-created partition.

use std::{fs, time::Duration};

use accelpool_model::{
    Device, DeviceCounters, DeviceUuid, Link, Partition, Partitioning, PartitioningMode, Sample,
};
use accelpool_vendor_api::VendorError;

use crate::{
    OpenSimError,
    chain::Chain,
    cut::{Place, check_fits},
    folder::{Folder, FolderError, free_major},
    profile::{Node, Profile, Unit},
    script::{Process, Script},
    state::{Drawn, IDS_MAX, Locked, PartitionRecord, State, StateError},
    usage::{counters, power, usage},
};

/// A simulated machine.
#[derive(Debug)]
pub(crate) struct Machine {
    profile: Profile,
    folder: Folder,
}

/// What a machine could not do because of its folder.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    #[error("simulated hardware is not usable")]
    State(#[from] StateError),
    #[error("simulated hardware is not usable")]
    Folder(#[from] FolderError),
}

impl From<MachineError> for VendorError {
    fn from(error: MachineError) -> Self {
        Self::Library(Chain(&error).to_string())
    }
}

impl Machine {
    /// Finds the machine in `folder` as it was left, or switches it on.
    pub(crate) fn open(profile: Profile, folder: Folder) -> Result<Self, OpenSimError> {
        let machine = Self { profile, folder };
        machine.folder.write_library()?;
        let mut locked = Locked::open(machine.folder.path(), &machine.profile)?;
        machine.settle(&mut locked)?;
        machine.repair_nodes(&locked.state)?;
        Ok(machine)
    }

    pub(crate) fn profile(&self) -> &Profile {
        &self.profile
    }

    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Takes the lock, and brings the hardware to where the script wants it.
    pub(crate) fn lock(&self, script: &Script) -> Result<Locked, VendorError> {
        let mut locked =
            Locked::open(self.folder.path(), &self.profile).map_err(MachineError::from)?;
        self.settle(&mut locked).map_err(|error| match error {
            OpenSimError::State(error) => MachineError::from(error),
            OpenSimError::Folder(error) => MachineError::from(error),
        })?;
        if self.play(&mut locked.state, script)? {
            locked.save().map_err(MachineError::from)?;
        }
        Ok(locked)
    }

    /// Finishes switching on: chooses the major, and clears nodes of an earlier life.
    fn settle(&self, locked: &mut Locked) -> Result<(), OpenSimError> {
        if !locked.powered_on {
            return Ok(());
        }
        // Without /proc there is nobody to ask; the profile's choice is as good as any.
        let devices = fs::read_to_string("/proc/devices").unwrap_or_default();
        locked.state.major = free_major(&devices, self.profile.major)?;
        for unit in self.profile.units() {
            for (nodes, partitioning) in unit.partitions.iter().zip(&unit.device.partitioning) {
                nodes.all(partitioning).try_for_each(|node| self.folder.remove_node(&node))?;
            }
        }
        self.repair_nodes(&locked.state)?;
        locked.save()?;
        locked.powered_on = false;
        Ok(())
    }

    /// Makes the nodes that should exist.
    fn repair_nodes(&self, state: &State) -> Result<(), FolderError> {
        for unit in self.profile.units() {
            self.ensure(&unit.nodes, state)?;
        }
        for record in state.partitions.iter().filter(|record| record.complete) {
            self.ensure(&self.nodes_of(record), state)?;
        }
        Ok(())
    }

    fn ensure(&self, nodes: &[Node], state: &State) -> Result<(), FolderError> {
        nodes.iter().try_for_each(|node| self.folder.ensure_node(node, state.major))
    }

    /// Does what the script says of the hardware itself. True if that changed something.
    fn play(&self, state: &mut State, script: &Script) -> Result<bool, VendorError> {
        let absent = script.absent.iter().map(ToString::to_string).collect();
        let before = state.changes;
        if state.absent != absent {
            state.absent = absent;
            state.changes += 1;
        }
        for scripted in &script.partitions {
            if state.done.contains(&scripted.id) {
                continue;
            }
            let Some(unit) = self.profile.unit(&scripted.device) else { continue };
            check_fits(&unit.device, &state.places(&scripted.device), &scripted.place).map_err(
                |error| {
                    let path = self.folder.script_path();
                    let id = &scripted.id;
                    let path = path.display();
                    VendorError::Library(format!("script `{path}`: partition `{id}`: {error}"))
                },
            )?;
            let mut record = new_record(state, unit, &scripted.place);
            record.complete = scripted.complete;
            if record.complete {
                self.ensure(&self.nodes_of(&record), state).map_err(MachineError::from)?;
            }
            state.partitions.push(record);
            self.mark_done(state, &scripted.id)?;
            state.changes += 1;
        }
        Ok(state.changes != before)
    }

    /// Notes that a script entry has happened and must not happen again.
    pub(crate) fn mark_done(&self, state: &mut State, id: &str) -> Result<(), VendorError> {
        self.check_room(state.done.len())?;
        state.done.insert(id.to_owned());
        Ok(())
    }

    /// Checks that the state can take one more id beside `len`.
    pub(crate) fn check_room(&self, len: usize) -> Result<(), VendorError> {
        if len < IDS_MAX {
            return Ok(());
        }
        let folder = self.folder.path().display();
        Err(VendorError::Library(format!(
            "{IDS_MAX} script entries have happened in `{folder}`: \
             delete its state.json to power-cycle the simulated machine"
        )))
    }

    /// The device of that identity, unless it is off the bus.
    pub(crate) fn present(&self, state: &State, uuid: &DeviceUuid) -> Result<&Unit, VendorError> {
        let unit = self.profile.unit(uuid);
        unit.filter(|_| !state.absent.contains(uuid.as_str()))
            .ok_or_else(|| VendorError::UnknownDevice(uuid.clone()))
    }

    /// The devices on the bus.
    pub(crate) fn devices(&self, state: &State) -> Vec<Device> {
        let device = |unit: &Unit| Device {
            injection: self.folder.injection(self.profile.name(), &unit.nodes),
            partitioning: unit
                .device
                .partitioning
                .clone()
                .map(|it| Partitioning { mode: mode(state, &unit.device), ..it }),
            ..unit.device.clone()
        };
        let on_bus = |unit: &&Unit| !state.absent.contains(unit.device.uuid.as_str());
        self.profile.units().iter().filter(on_bus).map(device).collect()
    }

    /// The links between devices on the bus.
    pub(crate) fn links(&self, state: &State) -> Vec<Link> {
        let devices: Vec<_> = self.devices(state).into_iter().map(|device| device.name).collect();
        let stands =
            |link: &&Link| devices.contains(&link.ends.0) && devices.contains(&link.ends.1);
        self.profile.links().iter().filter(stands).cloned().collect()
    }

    /// The partitions of a device.
    pub(crate) fn partitions(
        &self,
        state: &State,
        uuid: &DeviceUuid,
    ) -> Result<Vec<Partition>, VendorError> {
        let unit = self.present(state, uuid)?;
        Ok(state.partitions_of(uuid).filter_map(|record| self.partition(unit, record)).collect())
    }

    /// A record as the node sees it. `None` for what [`State::parse`] would have refused.
    fn partition(&self, unit: &Unit, record: &PartitionRecord) -> Option<Partition> {
        let own = self.nodes_of(record);
        let inherited = unit.partitions.iter().flat_map(|nodes| &nodes.inherited);
        Some(Partition {
            uuid: record.uuid.parse().ok()?,
            device: unit.device.uuid.clone(),
            profile: record.profile.parse().ok()?,
            start: record.start,
            complete: record.complete,
            injection: self.folder.injection(self.profile.name(), inherited.chain(&own)),
        })
    }

    fn nodes_of(&self, record: &PartitionRecord) -> Vec<Node> {
        let nodes = || {
            let place = record.place()?;
            let unit = self.profile.unit(&record.device.parse().ok()?)?;
            let partitioning = unit.device.partitioning.as_ref()?;
            unit.partitions.as_ref()?.nodes(partitioning, &place.profile, place.start)
        };
        nodes().unwrap_or_default()
    }

    /// Brings an idle device into its partitioning mode, or out of it.
    pub(crate) fn switch_mode(
        &self,
        script: &Script,
        uuid: &DeviceUuid,
        on: bool,
    ) -> Result<(), VendorError> {
        let mut locked = self.lock(script)?;
        let unit = self.present(&locked.state, uuid)?;
        let Some(now) = mode(&locked.state, &unit.device) else {
            return Err(VendorError::Unsupported("the device has no such mode".to_owned()));
        };
        if now.on == on {
            return Ok(());
        }
        check_idle(script, uuid, |_| true)?;
        if locked.state.partitions_of(uuid).next().is_some() {
            let (device, holder) = (uuid.clone(), "its partitions".to_owned());
            return Err(VendorError::InUse { device, holder });
        }
        locked.state.modes.insert(uuid.to_string(), on);
        Ok(locked.save().map_err(MachineError::from)?)
    }

    /// First half of a creation: the place is taken by a half-created partition.
    pub(crate) fn begin_create(
        &self,
        script: &Script,
        uuid: &DeviceUuid,
        place: &Place,
    ) -> Result<(), VendorError> {
        let mut locked = self.lock(script)?;
        let unit = self.present(&locked.state, uuid)?;
        if mode(&locked.state, &unit.device).is_some_and(|mode| !mode.on) {
            let detail = "the device is not in the mode in which it serves parts".to_owned();
            return Err(VendorError::Failed { call: "create_partition", detail });
        }
        check_fits(&unit.device, &locked.state.places(uuid), place)?;
        let whole = |process: &Process| process.partition.is_none();
        check_idle(script, uuid, whole)?;
        let record = new_record(&mut locked.state, unit, place);
        locked.state.partitions.push(record);
        Ok(locked.save().map_err(MachineError::from)?)
    }

    /// Second half of a creation: the nodes exist, and so does the partition.
    pub(crate) fn finish_create(
        &self,
        script: &Script,
        uuid: &DeviceUuid,
        place: &Place,
    ) -> Result<Partition, VendorError> {
        let mut locked = self.lock(script)?;
        let unit = self.present(&locked.state, uuid)?;
        let destroyed = || VendorError::Failed {
            call: "create_partition",
            detail: "the partition was destroyed while it was created".to_owned(),
        };
        let half = locked.state.partition_mut(uuid, place).ok_or_else(destroyed)?.clone();
        self.ensure(&self.nodes_of(&half), &locked.state).map_err(MachineError::from)?;
        let record = locked.state.partition_mut(uuid, place).ok_or_else(destroyed)?;
        record.complete = true;
        let partition = self.partition(unit, record).ok_or_else(destroyed)?;
        locked.save().map_err(MachineError::from)?;
        Ok(partition)
    }

    /// First half of a destruction: the partition serves nobody any more.
    pub(crate) fn begin_destroy(
        &self,
        script: &Script,
        uuid: &DeviceUuid,
        place: &Place,
    ) -> Result<(), VendorError> {
        let mut locked = self.lock(script)?;
        self.present(&locked.state, uuid)?;
        let Some(record) = locked.state.partition_mut(uuid, place) else { return Ok(()) };
        if record.complete {
            check_idle(script, uuid, |process| process.partition.as_ref() == Some(place))?;
        }
        record.complete = false;
        Ok(locked.save().map_err(MachineError::from)?)
    }

    /// Second half of a destruction: nodes and place are free.
    pub(crate) fn finish_destroy(
        &self,
        script: &Script,
        uuid: &DeviceUuid,
        place: &Place,
    ) -> Result<(), VendorError> {
        let mut locked = self.lock(script)?;
        let Some(record) = locked.state.partition_mut(uuid, place) else { return Ok(()) };
        for node in self.nodes_of(record) {
            self.folder.remove_node(&node).map_err(MachineError::from)?;
        }
        locked.state.partitions.retain(|record| !record.is_at(uuid, place));
        Ok(locked.save().map_err(MachineError::from)?)
    }

    /// What the script's processes used since the previous sample; `now` counts from boot.
    pub(crate) fn sample(
        &self,
        script: &Script,
        uuid: &DeviceUuid,
        now: Duration,
    ) -> Result<Vec<Sample>, VendorError> {
        let mut locked = self.lock(script)?;
        self.present(&locked.state, uuid)?;
        let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let before_ns = locked.state.sampled_ns.insert(uuid.to_string(), now_ns);
        locked.save().map_err(MachineError::from)?;
        // The first sample has no previous one, and a clock that went back measured nothing.
        let elapsed_ns = now_ns.saturating_sub(before_ns.unwrap_or(now_ns));
        let of_device = script.processes.iter().filter(|process| process.device == *uuid);
        Ok(of_device.filter_map(|process| usage(process, &locked.state, elapsed_ns)).collect())
    }

    /// What a device tells of itself; `now` counts from boot.
    pub(crate) fn counters(
        &self,
        script: &Script,
        uuid: &DeviceUuid,
        now: Duration,
    ) -> Result<DeviceCounters, VendorError> {
        let mut locked = self.lock(script)?;
        self.present(&locked.state, uuid)?;
        let of_device = script.processes.iter().filter(|process| process.device == *uuid);
        let running: Vec<(&Process, Sample)> = of_device
            .filter_map(|process| Some((process, usage(process, &locked.state, 0)?)))
            .collect();
        let permille: u32 =
            running.iter().filter_map(|(process, _)| process.compute_permille).sum();
        let permille = u16::try_from(permille).unwrap_or(1000).min(1000);
        let at_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let before = locked.state.drawn.get(uuid.as_str());
        let before = before.copied().unwrap_or(Drawn { at_ns, microjoules: 0 });
        // Milliwatts times milliseconds are microjoules.
        let elapsed_ms = at_ns.saturating_sub(before.at_ns) / 1_000_000;
        let microjoules = before.microjoules.saturating_add(power(permille) * elapsed_ms);
        // What is left of a millisecond counts next time.
        let at_ns = before.at_ns.saturating_add(elapsed_ms * 1_000_000);
        locked.state.drawn.insert(uuid.to_string(), Drawn { at_ns, microjoules });
        locked.save().map_err(MachineError::from)?;
        let mut devices = self.profile.units().iter().map(|unit| &unit.device);
        let device = devices.find(|device| device.uuid == *uuid);
        let device = device.ok_or_else(|| VendorError::UnknownDevice(uuid.clone()))?;
        let samples: Vec<Sample> = running.into_iter().map(|(_, sample)| sample).collect();
        Ok(counters(device, &samples, permille, microjoules, script.health.get(uuid)))
    }
}

/// The mode that a device is in, if it has one.
fn mode(state: &State, device: &Device) -> Option<PartitioningMode> {
    let begins = device.mode()?;
    let on = state.modes.get(device.uuid.as_str()).copied().unwrap_or(begins.on);
    Some(PartitioningMode { on, ..begins })
}

/// Checks that no process of the script that `counts` uses the device.
fn check_idle(
    script: &Script,
    uuid: &DeviceUuid,
    counts: impl Fn(&Process) -> bool,
) -> Result<(), VendorError> {
    let user = script.processes.iter().find(|process| process.device == *uuid && counts(process));
    match user {
        None => Ok(()),
        Some(process) => Err(VendorError::InUse {
            device: uuid.clone(),
            holder: format!("process {}", process.pid),
        }),
    }
}

/// A half-created partition with an identity that none had before it.
fn new_record(state: &mut State, unit: &Unit, place: &Place) -> PartitionRecord {
    state.serial += 1;
    let prefix = unit.partitions.as_ref().map_or("", |nodes| nodes.uuid_prefix.as_str());
    let device = unit.device.uuid.to_string();
    PartitionRecord {
        uuid: format!("{prefix}{:016x}-{:08x}", digest(&device), state.serial),
        device,
        profile: place.profile.to_string(),
        start: place.start,
        complete: false,
    }
}

/// FNV-1a: tells the partitions of one device from those of another, no more.
fn digest(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
