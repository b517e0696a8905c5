//! An adapter with one defect: a simulated node that misbehaves in one way.
#![expect(clippy::wildcard_enum_match_arm, reason = "a method has a few defects of the many")]

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, ThreadId},
    time::Duration,
};

use accelpool_model::{
    Device, DeviceCounters, DeviceUuid, Engine, Link, MemoryBytes, Partition, Placements,
    ProfileName, RecoveryAction, Sample,
};
use accelpool_vendor_api::{Vendor, VendorError, VendorEvent};
use accelpool_vendor_sim::Sim;

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Defect {
    OneUuidForTwo,
    NameByIndex,
    LongProductName,
    EmptyDriverVersion,
    NoNodes,
    NodeThatIsNotThere,
    TwoNodesAtOnePath,
    StartBeyondTheEnd,
    ProfileTwice,
    NewUuidEachTime,
    Panics,
    LinkToNowhere,
    LinkToItself,
    LinkTwiceReversed,
    SamplesAnything,
    DestroysAnything,
    ProbesAnything,
    ProbeForgetsDevices,
    ProcessTwice,
    ProcessInNoPartition,
    CountsAnything,
    BusierThanBusy,
    EnergyComesBack,
    EventsWithoutEnd,
    DeadAfterQuiesce,
    OneThreadOnly,
    ListsForAllDevices,
    UnknownProfileIsOccupied,
    AnyStart,
    AnswersHalfCreated,
    DestroysNothing,
    PartitionWithoutNodes,
    GoneIsAnError,
    OccupiedIsAFailure,
    EvictsWhoIsThere,
    NumbersAnew,
    DestroysAll,
    EveryoneWins,
    MakesRoomThatIsNotThere,
}

pub(crate) struct Broken {
    sim: Sim,
    defect: Defect,
    calls: AtomicU64,
    quiesced: AtomicBool,
    first_thread: OnceLock<ThreadId>,
}

impl Broken {
    pub(crate) fn new(sim: Sim, defect: Defect) -> Self {
        if defect == Defect::ListsForAllDevices {
            let device = sim.discover().unwrap().remove(7).uuid;
            sim.create_partition(&device, &"7g.80gb".parse().unwrap(), 0).unwrap();
        }
        let (calls, quiesced, first_thread) = Default::default();
        Self { sim, defect, calls, quiesced, first_thread }
    }

    fn is(&self, defect: Defect) -> bool {
        self.defect == defect
    }

    fn fail<T>(call: &'static str) -> Result<T, VendorError> {
        Err(VendorError::Failed { call, detail: "defect".to_owned() })
    }

    fn spoil(&self, devices: &mut [Device]) {
        let first = devices[0].clone();
        let device = &mut devices[1];
        match self.defect {
            Defect::OneUuidForTwo => device.uuid = first.uuid,
            Defect::NameByIndex => device.name = "gpu-1".parse().unwrap(),
            Defect::LongProductName => device.model = "x".repeat(65),
            Defect::EmptyDriverVersion => device.driver_version.clear(),
            Defect::NoNodes => device.injection.nodes.clear(),
            Defect::NodeThatIsNotThere => device.injection.nodes[0].host_path.push('x'),
            Defect::TwoNodesAtOnePath => {
                device.injection.nodes[0] = device.injection.nodes[1].clone();
            }
            Defect::StartBeyondTheEnd => {
                let profile = &mut device.partitioning.as_mut().unwrap().profiles[6];
                profile.placements = Placements::Fixed(vec![0, 1]);
            }
            Defect::ProfileTwice => {
                let profiles = &mut device.partitioning.as_mut().unwrap().profiles;
                profiles.push(profiles[0].clone());
            }
            Defect::NewUuidEachTime => {
                let call = self.calls.fetch_add(1, Ordering::SeqCst);
                device.uuid = format!("GPU-{call}").parse().unwrap();
            }
            Defect::Panics => panic!("defect"),
            _ => {}
        }
    }
}

impl Vendor for Broken {
    fn discover(&self) -> Result<Vec<Device>, VendorError> {
        let first_thread = *self.first_thread.get_or_init(|| thread::current().id());
        if self.is(Defect::OneThreadOnly) && first_thread != thread::current().id() {
            return Self::fail("discover");
        }
        if self.is(Defect::DeadAfterQuiesce) && self.quiesced.load(Ordering::SeqCst) {
            return Self::fail("discover");
        }
        let mut devices = self.sim.discover()?;
        self.spoil(&mut devices);
        Ok(devices)
    }

    fn links(&self) -> Result<Vec<Link>, VendorError> {
        let mut links = self.sim.links()?;
        match self.defect {
            Defect::LinkToNowhere => links[0].ends.1 = "gpu-9".parse().unwrap(),
            Defect::LinkToItself => links[0].ends.1 = links[0].ends.0.clone(),
            Defect::LinkTwiceReversed => {
                let mut again = links[0].clone();
                std::mem::swap(&mut again.ends.0, &mut again.ends.1);
                links.push(again);
            }
            _ => {}
        }
        Ok(links)
    }

    fn partitions(&self, device: &DeviceUuid) -> Result<Vec<Partition>, VendorError> {
        let mut listed = self.sim.partitions(device)?;
        let count = listed.len();
        match self.defect {
            Defect::ListsForAllDevices => {
                for other in self.sim.discover()? {
                    listed.extend(self.sim.partitions(&other.uuid)?);
                }
            }
            Defect::NumbersAnew if count > 1 => {
                listed[0].uuid = format!("MIG-{count}").parse().unwrap();
            }
            _ => {}
        }
        Ok(listed)
    }

    fn switch_mode(&self, device: &DeviceUuid, on: bool) -> Result<(), VendorError> {
        self.sim.switch_mode(device, on)
    }

    fn create_partition(
        &self,
        device: &DeviceUuid,
        profile: &ProfileName,
        start: u32,
    ) -> Result<Partition, VendorError> {
        let start = if self.is(Defect::AnyStart) && start == u32::MAX { 0 } else { start };
        let answer = self.sim.create_partition(device, profile, start);
        match (self.defect, answer) {
            (Defect::UnknownProfileIsOccupied, Err(VendorError::UnknownProfile { .. })) => {
                Err(VendorError::Occupied(device.clone()))
            }
            (Defect::AnswersHalfCreated, Ok(made)) => Ok(Partition { complete: false, ..made }),
            (Defect::PartitionWithoutNodes, Ok(mut made)) => {
                made.injection.nodes.clear();
                Ok(made)
            }
            (Defect::OccupiedIsAFailure, Err(VendorError::Occupied(_))) => {
                Self::fail("create_partition")
            }
            (Defect::EvictsWhoIsThere, Err(VendorError::Occupied(_))) => {
                for other in self.sim.partitions(device)? {
                    self.sim.destroy_partition(device, &other.profile, other.start)?;
                }
                self.sim.create_partition(device, profile, start)
            }
            (Defect::EveryoneWins, Err(VendorError::Occupied(_))) => {
                let mut listed = self.sim.partitions(device)?.into_iter();
                let same = |one: &Partition| one.profile == *profile && one.start == start;
                listed.find(same).ok_or_else(|| VendorError::Occupied(device.clone()))
            }
            (Defect::MakesRoomThatIsNotThere, Err(VendorError::Occupied(_))) => {
                let listed = self.sim.partitions(device)?;
                let there = |one: &Partition| one.profile == *profile && one.start == start;
                match listed.first() {
                    Some(one) if !listed.iter().any(there) => Ok(one.clone()),
                    Some(_) | None => Err(VendorError::Occupied(device.clone())),
                }
            }
            (_, answer) => answer,
        }
    }

    fn destroy_partition(
        &self,
        device: &DeviceUuid,
        profile: &ProfileName,
        start: u32,
    ) -> Result<(), VendorError> {
        let listed = self.sim.partitions(device);
        match self.defect {
            Defect::DestroysNothing => return listed.map(drop),
            Defect::DestroysAnything if listed.is_err() => return Ok(()),
            Defect::DestroysAll => {
                for other in listed? {
                    self.sim.destroy_partition(device, &other.profile, other.start)?;
                }
                return Ok(());
            }
            Defect::GoneIsAnError => {
                let there = |one: &Partition| one.profile == *profile && one.start == start;
                if !listed?.iter().any(there) {
                    return Self::fail("destroy_partition");
                }
            }
            _ => {}
        }
        self.sim.destroy_partition(device, profile, start)
    }

    fn sample(&self, device: &DeviceUuid) -> Result<Vec<Sample>, VendorError> {
        let sample = |partition: Option<&str>| Sample {
            pid: 7,
            partition: partition.map(|uuid| uuid.parse().unwrap()),
            memory: MemoryBytes::ZERO,
            compute_busy: None,
            engines: std::collections::BTreeMap::new(),
        };
        let samples = self.sim.sample(device);
        match self.defect {
            Defect::SamplesAnything => Ok(samples.unwrap_or_default()),
            Defect::ProcessTwice => samples.map(|_| vec![sample(None), sample(None)]),
            Defect::ProcessInNoPartition => samples.map(|_| vec![sample(Some("MIG-gone"))]),
            _ => samples,
        }
    }

    fn counters(&self, device: &DeviceUuid) -> Result<DeviceCounters, VendorError> {
        let counters = self.sim.counters(device);
        match self.defect {
            Defect::CountsAnything => Ok(counters.unwrap_or_default()),
            Defect::BusierThanBusy => counters
                .map(|it| DeviceCounters { engines: [(Engine::Compute, 1001)].into(), ..it }),
            Defect::EnergyComesBack => {
                let call = self.calls.fetch_add(1, Ordering::SeqCst);
                counters
                    .map(|it| DeviceCounters { energy_millijoules: Some(u64::MAX - call), ..it })
            }
            _ => counters,
        }
    }

    fn next_event(&self, timeout: Duration) -> Result<Option<VendorEvent>, VendorError> {
        if self.is(Defect::EventsWithoutEnd) {
            return Ok(Some(VendorEvent::DevicesChanged));
        }
        self.sim.next_event(timeout)
    }

    fn recovery_action(&self, device: &DeviceUuid) -> Result<RecoveryAction, VendorError> {
        self.sim.recovery_action(device)
    }

    fn probe(&self, device: &DeviceUuid) -> Result<(), VendorError> {
        match self.defect {
            Defect::ProbesAnything => Ok(()),
            Defect::ProbeForgetsDevices => Err(VendorError::UnknownDevice(device.clone())),
            _ => self.sim.probe(device),
        }
    }

    fn quiesce(&self, device: Option<&DeviceUuid>) -> Result<(), VendorError> {
        self.quiesced.store(true, Ordering::SeqCst);
        self.sim.quiesce(device)
    }
}
