//! What devices tell of their own accord, and whether they are sound.
//!
//! Three detectors tell of a device that is off the bus, since any one of them may fail with
//! it: NVML, the kernel log, and a read from the device's configuration space.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    iter,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use accelpool_model::{DeviceUuid, Fault, FaultClass, PciAddress, RecoveryAction};
use accelpool_vendor_api::{VendorError, VendorEvent};

use crate::{
    fallback::{self, Described},
    health::{self, Health},
    inventory,
    kmsg::{Kmsg, Line},
    library::{Caller, Library},
    locked,
    roots::Roots,
    sys::{CallError, Event, EventSet, Gpu, Nvml, SystemEvents},
    uevent::Uevents,
    xid,
};

/// How long one wait in the library holds up a call that wants to close it.
const TURN: Duration = Duration::from_millis(200);

/// How often the bus and the list of devices are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How often devices are asked about conditions that no event tells of.
const EXAMINE: Duration = Duration::from_secs(3);

/// More than a storm of errors brings between two calls; what is beyond is told again by NVML
/// or by the next look.
const QUEUE_LEN_MAX: usize = 1024;

/// More than the library has to tell of one device's loss.
const PENDING_MAX: usize = 64;

/// What is told of a device of which the library says no more than that.
const LOST: (&str, &str) = ("nvml-15", "the library says that the device is lost");

/// Events of `nvml.h` that are asked for, by their bits.
mod kind {
    pub(super) const DOUBLE_BIT_ECC: u64 = 0x2;
    pub(super) const XID: u64 = 0x8;
    pub(super) const MIG_CHANGE: u64 = 0x100;
    pub(super) const SINGLE_BIT_ECC_STORM: u64 = 0x200;
    pub(super) const RETIREMENT_FAILURE: u64 = 0x800;
    pub(super) const FATAL_POISON: u64 = 0x2000;
    pub(super) const UNAVAILABLE: u64 = 0x4000;
    pub(super) const RECOVERY_ACTION: u64 = 0x8000;
    pub(super) const WANTED: u64 = DOUBLE_BIT_ECC
        | XID
        | MIG_CHANGE
        | SINGLE_BIT_ECC_STORM
        | RETIREMENT_FAILURE
        | FATAL_POISON
        | UNAVAILABLE
        | RECOVERY_ACTION;
}

/// What is being watched, from call to call.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    set: Option<EventSet>,
    /// Devices whose events come through the set.
    registered: BTreeSet<DeviceUuid>,
    /// Tells of the driver taking and leaving devices, where the library does so.
    system: Option<SystemEvents>,
    kmsg: Option<Kmsg>,
    uevents: Option<Uevents>,
    looked: Option<Instant>,
    examined: Option<Instant>,
    /// Conditions of devices; what is known of one that is away stays.
    health: BTreeMap<DeviceUuid, Health>,
    /// Every device that was seen: one that is lost no longer says who it is.
    known: BTreeMap<PciAddress, DeviceUuid>,
    /// The devices of the last look.
    present: Option<BTreeSet<DeviceUuid>>,
    /// Devices that are told to be off the bus, or that the library is of no use for.
    told_lost: BTreeSet<DeviceUuid>,
    told_unusable: bool,
    /// Devices came or went: a library that was loaded before does not know those that came.
    stale: bool,
    queue: VecDeque<VendorEvent>,
}

/// Waits for the next event.
pub(crate) fn next(
    roots: &Roots,
    library: &Library,
    watch: &Mutex<Watch>,
    timeout: Duration,
) -> Result<Option<VendorEvent>, VendorError> {
    let began = Instant::now();
    loop {
        if let Some(event) = locked(watch).queue.pop_front() {
            return Ok(Some(event));
        }
        let left = timeout.saturating_sub(began.elapsed());
        let turn = left.min(TURN);
        let waited = library.with(roots, Caller::Waiting, |nvml| {
            let mut watch = locked(watch);
            watch.look(roots, nvml);
            match nvml {
                Some(nvml) if watch.queue.is_empty() => watch.wait(nvml, turn),
                Some(_) => Ok(true),
                None => Ok(false),
            }
        });
        match waited {
            Ok(true) => {}
            Ok(false) => thread::sleep(turn),
            Err(error) => {
                let mut watch = locked(watch);
                watch.close();
                watch.unusable(roots, &error);
                if watch.queue.is_empty() {
                    return Err(error);
                }
            }
        }
        if std::mem::take(&mut locked(watch).stale) {
            locked(watch).close();
            library.close_if_open();
        }
        if left.is_zero() {
            return Ok(locked(watch).queue.pop_front());
        }
    }
}

impl Watch {
    /// Lets go of the library. What was seen stays known.
    pub(crate) fn close(&mut self) {
        self.set = None;
        self.system = None;
        self.registered.clear();
        self.looked = None;
        self.examined = None;
    }

    /// Looks at everything that does not tell of itself, at its pace.
    fn look(&mut self, roots: &Roots, nvml: Option<&Arc<Nvml>>) {
        self.read_log(roots);
        if self.read_uevents() {
            self.change();
        }
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return;
        }
        self.looked = Some(Instant::now());
        let described = fallback::devices(roots);
        if let Some(nvml) = nvml {
            self.told_unusable = false;
            if self.set.as_ref().is_some_and(|set| !set.is_of(nvml)) {
                self.close();
                self.looked = Some(Instant::now());
            }
            self.register(nvml, &described);
            if self.examined.is_none_or(|examined| examined.elapsed() >= EXAMINE) {
                self.examined = Some(Instant::now());
                self.examine(nvml);
            }
        }
        let mut present: BTreeSet<DeviceUuid> = self.registered.clone();
        for device in described {
            present.insert(device.uuid.clone());
            self.known.entry(device.pci).or_insert(device.uuid);
        }
        if self.present.as_ref().is_some_and(|last| *last != present) {
            self.change();
        }
        self.present = Some(present);
        let known: Vec<_> = self.known.iter().map(|(pci, uuid)| (*pci, uuid.clone())).collect();
        for (pci, uuid) in known {
            if fallback::fell_off_bus(roots, pci) {
                self.lost(uuid, "bus-read", "the device does not answer on the bus");
            } else if self.registered.contains(&uuid) {
                self.told_lost.remove(&uuid);
            }
        }
    }

    /// Devices came or went: whoever lists them does so anew, with a library that is loaded anew.
    fn change(&mut self) {
        self.push(VendorEvent::DevicesChanged);
        self.stale = true;
        self.looked = None;
    }

    /// True if the kernel told of a device that came or went.
    fn read_uevents(&mut self) -> bool {
        if self.uevents.is_none() {
            self.uevents = Uevents::open();
        }
        self.uevents.as_ref().is_some_and(Uevents::concern_us)
    }

    /// Why a device that answers is not sound, if it is not.
    pub(crate) fn ailment(&self, device: &DeviceUuid) -> Option<String> {
        self.health.get(device)?.ailment().map(str::to_owned)
    }

    /// Looks at each device for what no event tells.
    fn examine(&mut self, nvml: &Nvml) {
        let Ok(known) = inventory::known(nvml) else { return };
        for fault in health::examine(&mut self.health, &known) {
            self.push(VendorEvent::Fault(fault));
        }
    }

    /// Has the library tell of every device that it answers for. One that it no longer answers for
    /// while the driver describes it stays registered: the library has yet to say that it is lost.
    fn register(&mut self, nvml: &Arc<Nvml>, described: &[Described]) {
        if self.system.is_none() {
            self.system = SystemEvents::new(Arc::clone(nvml)).ok();
        }
        let Ok(known) = inventory::known(nvml) else { return };
        let uuids: BTreeSet<DeviceUuid> = known.iter().map(|it| it.uuid.clone()).collect();
        let is_described = |uuid: &DeviceUuid| described.iter().any(|device| device.uuid == *uuid);
        self.registered.retain(|uuid| uuids.contains(uuid) || is_described(uuid));
        for device in known {
            self.known.insert(device.pci, device.uuid.clone());
            if self.registered.contains(&device.uuid) {
                continue;
            }
            if self.set.is_none() {
                self.set = EventSet::new(Arc::clone(nvml)).ok();
            }
            let Some(set) = &mut self.set else { return };
            // A device that tells nothing is looked at all the same.
            let _ = set.register(device.gpu, kind::WANTED);
            self.registered.insert(device.uuid);
        }
    }

    /// Waits in the library. False if it cannot wait, and the caller has to.
    fn wait(&mut self, nvml: &Arc<Nvml>, turn: Duration) -> Result<bool, VendorError> {
        if self.system.as_mut().is_some_and(|system| matches!(system.poll(), Ok(true))) {
            self.change();
            return Ok(true);
        }
        let Some(set) = &mut self.set else { return Ok(false) };
        let timeout_ms = u32::try_from(turn.as_millis()).unwrap_or(u32::MAX);
        match set.wait(timeout_ms) {
            Ok(Some(event)) => {
                self.tell(nvml, &event);
                Ok(true)
            }
            Ok(None) => Ok(true),
            Err(error) if error.is_lost() => {
                // What it has yet to tell may say why.
                let pending = iter::from_fn(|| set.wait(0).ok().flatten()).take(PENDING_MAX);
                for event in pending.collect::<Vec<_>>() {
                    self.tell(nvml, &event);
                }
                self.find_lost(nvml, LOST);
                Ok(false)
            }
            Err(error) if error.is_unsupported() => Ok(false),
            Err(error) => Err(error.about_nobody()),
        }
    }

    fn tell(&mut self, nvml: &Nvml, event: &Event) {
        if event.kind & kind::MIG_CHANGE != 0 {
            self.push(VendorEvent::DevicesChanged);
            return;
        }
        let uuid = event.uuid.as_deref().and_then(|uuid| uuid.parse().ok());
        let Some(uuid) = uuid else {
            // It cannot say who it is: then it is lost. Which XID says so, people look up.
            let xid = (event.kind == kind::XID).then(|| xid::classify(event.value));
            let code = format!("xid-{}", event.value);
            match xid {
                Some((FaultClass::FellOffBus, words)) => self.find_lost(nvml, (&code, words)),
                Some(_) | None => self.find_lost(nvml, LOST),
            }
            return;
        };
        let Some((class, code, mut message)) = fault_of(nvml, &uuid, event) else { return };
        if let Some((gpu, compute)) = event.place {
            message = format!("{message} (GPU instance {gpu}, compute instance {compute})");
        }
        if class == FaultClass::FellOffBus {
            self.told_lost.insert(uuid.clone());
        }
        self.tell_fault(uuid, class, code, message);
    }

    /// Tells of every registered device that the library no longer answers for, by what code and
    /// in what words.
    fn find_lost(&mut self, nvml: &Nvml, (code, message): (&str, &str)) {
        let answering: BTreeSet<DeviceUuid> = inventory::known(nvml)
            .map(|known| known.into_iter().map(|device| device.uuid).collect())
            .unwrap_or_default();
        for uuid in self.registered.clone() {
            if !answering.contains(&uuid) {
                self.registered.remove(&uuid);
                self.lost(uuid, code, message);
            }
        }
    }

    fn read_log(&mut self, roots: &Roots) {
        if self.kmsg.is_none() {
            self.kmsg = Kmsg::open(roots);
        }
        let lines = self.kmsg.as_mut().map(Kmsg::read).unwrap_or_default();
        for line in lines {
            match line {
                Line::FellOff(pci) => {
                    if let Some(uuid) = self.known.get(&pci).cloned() {
                        self.lost(uuid, "kernel-log", "the kernel says it fell off the bus");
                    }
                }
                Line::Xid(pci, number) => {
                    // Where the library tells, it has told, and knows more.
                    let uuid = self.known.get(&pci).cloned();
                    let Some(uuid) = uuid.filter(|it| !self.registered.contains(it)) else {
                        continue;
                    };
                    let (class, words) = xid::classify(number);
                    let (code, message) = (format!("xid-{number}"), words.to_owned());
                    self.tell_fault(uuid, class, code, message);
                }
            }
        }
    }

    /// Tells once that a device is off the bus, until it is back.
    fn lost(&mut self, device: DeviceUuid, code: &str, message: &str) {
        if self.told_lost.insert(device.clone()) {
            let (class, code) = (FaultClass::FellOffBus, code.to_owned());
            self.tell_fault(device, class, code, message.to_owned());
        }
    }

    /// Tells once that nothing can be known of the devices, until the library is of use again.
    fn unusable(&mut self, roots: &Roots, error: &VendorError) {
        let library = matches!(error, VendorError::Library(_));
        if !library || std::mem::replace(&mut self.told_unusable, true) {
            return;
        }
        for device in fallback::devices(roots) {
            self.push(VendorEvent::Fault(Fault {
                device: device.uuid,
                class: FaultClass::Unobserved,
                code: "nvml-unusable".to_owned(),
                message: error.to_string(),
            }));
        }
    }

    /// Tells of a fault; what it leaves behind on the device is then told of by no look.
    fn tell_fault(&mut self, device: DeviceUuid, class: FaultClass, code: String, message: String) {
        self.health.entry(device.clone()).or_default().blame(class);
        self.push(VendorEvent::Fault(Fault { device, class, code, message }));
    }

    fn push(&mut self, event: VendorEvent) {
        if self.queue.len() < QUEUE_LEN_MAX {
            self.queue.push_back(event);
        }
    }
}

/// Class, code and words of an event; none if it is no fault.
fn fault_of(nvml: &Nvml, uuid: &DeviceUuid, event: &Event) -> Option<(FaultClass, String, String)> {
    let memory = FaultClass::MemoryUncorrectable;
    let (class, code, words) = match event.kind {
        kind::XID => {
            let (class, words) = xid::classify(event.value);
            return Some((class, format!("xid-{}", event.value), words.to_owned()));
        }
        kind::DOUBLE_BIT_ECC => (memory, "ecc-double-bit", "uncorrectable ECC error"),
        kind::FATAL_POISON => (memory, "poison-fatal", "memory error that was not contained"),
        kind::RETIREMENT_FAILURE => {
            (memory, "retirement-failure", "faulty memory could not be retired")
        }
        kind::SINGLE_BIT_ECC_STORM => {
            (FaultClass::Throttled, "ecc-storm", "very many corrected memory errors")
        }
        kind::UNAVAILABLE => {
            (FaultClass::FellOffBus, "unavailable", "the driver says that the GPU is unavailable")
        }
        kind::RECOVERY_ACTION => {
            let known = inventory::known(nvml).ok()?;
            let gpu = known.into_iter().find(|device| device.uuid == *uuid)?.gpu;
            let action = recovery_action(gpu, uuid).ok()?;
            if action == RecoveryAction::None {
                return None;
            }
            let message = format!("the driver asks for recovery: {action}");
            return Some((FaultClass::ResetRequired, "recovery-action".to_owned(), message));
        }
        // An event that was not asked for.
        _ => return None,
    };
    Some((class, code.to_owned(), words.to_owned()))
}

/// What must happen before a device is sound again: field 230.
pub(crate) fn recovery_action(
    gpu: Gpu<'_>,
    device: &DeviceUuid,
) -> Result<RecoveryAction, VendorError> {
    // `nvmlDeviceGpuRecoveryAction_t` of `nvml.h`.
    match gpu.recovery_action().map_err(|error| error.about(device))? {
        0 => Ok(RecoveryAction::None),
        1 => Ok(RecoveryAction::ResetDevice),
        2 => Ok(RecoveryAction::RebootNode),
        3 => Ok(RecoveryAction::DrainPeers),
        4 => Ok(RecoveryAction::DrainAndReset),
        5 => Ok(RecoveryAction::RecoverFabric),
        other => Err(VendorError::Failed {
            call: "recovery_action",
            detail: format!("action {other} is not known"),
        }),
    }
}

/// Checks that a device answers on the bus and in the library, and that its memory is sound.
pub(crate) fn probe(roots: &Roots, gpu: Gpu<'_>, device: &DeviceUuid) -> Result<(), VendorError> {
    let failed = |detail: &str| VendorError::Failed { call: "probe", detail: detail.to_owned() };
    let needed = |answer: Result<(), CallError>| match answer {
        Err(error) if error.is_unsupported() => Ok(()),
        other => other.map_err(|error| error.about(device)),
    };
    let pci = gpu.pci().map_err(|error| error.about(device))?;
    let pci = inventory::parse_pci(&pci).ok_or_else(|| failed("the device has no address"))?;
    if fallback::fell_off_bus(roots, pci) {
        return Err(failed("the device does not answer on the bus"));
    }
    needed(gpu.memory_total().map(drop))?;
    needed(gpu.processes().map(drop))?;
    match gpu.remapped_rows() {
        Ok(rows) if rows.failed => Err(failed("faulty memory could not be remapped")),
        Ok(_) => Ok(()),
        Err(error) => needed(Err(error)),
    }
}
